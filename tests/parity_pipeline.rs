// SPDX-License-Identifier: MPL-2.0
//! Every case of the public fixture folders, computed by the code of the `parity` example, against the reference.

mod common;

#[path = "../examples/parity/cases.rs"]
mod cases;

use cases::Runner;
use common::{Report, fixture};
use gstdit::weights::Checkpoint;

/// Single stages.
const STAGE: f64 = 2e-5;
/// Latents after every step: errors pass through the transformer many times.
const STEPS: f64 = 2e-4;
/// Frames of a whole pipeline.
const VIDEO: f64 = 5e-4;

fn check_folder(name: &str) {
    let folder = fixture(name);
    let golden = Checkpoint::open_file(&folder.join("golden.safetensors")).unwrap();
    let mut runner = Runner::open(&folder).unwrap();
    let mut report = Report::default();
    for case in runner.cases().to_vec() {
        assert!(runner.run(&case).unwrap(), "{}: kind {} is not known", case.name, case.kind);
        let pipeline = matches!(case.kind.as_str(), "t2v" | "i2v" | "v2v");
        for key in case.outputs.iter().filter(|key| !key.contains(".trace.")) {
            let tolerance = match key.rsplit('.').next() {
                Some("video") if pipeline => VIDEO,
                Some("steps") => STEPS,
                _ => STAGE,
            };
            let found = runner.results.get(key).unwrap_or_else(|| panic!("{key} was not computed"));
            report.compare(key, &golden.raw(key).unwrap(), found, tolerance);
        }
    }
    report.finish(name);
}

#[test]
fn wan_2_1_text_to_video_folder() {
    check_folder("t2v_public");
}

#[test]
fn wan_2_2_text_and_image_to_video_folder() {
    check_folder("ti2v_public");
}

#[test]
fn schedulers() {
    check_folder("sched");
}
