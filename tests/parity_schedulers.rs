// SPDX-License-Identifier: MPL-2.0
//! Every scheduler trajectory and noising of the reference, from `tests/fixtures/sched` and `tests/fixtures/dpmsolver`.

mod common;

use std::path::Path;

use common::{Case, Golden, Report};
use gstdit::schedulers::SchedulerConfig;
use serde_json::json;
use tch::Tensor;

/// The fair bar is 2e-4; a tenth of it leaves no room for a different formula.
const TOLERANCE: f64 = 2e-5;
/// Schedules differ by rounding only.
const SCHEDULE_TOLERANCE: f64 = 1e-7;

fn config(class_name: &str, settings: serde_json::Value) -> SchedulerConfig {
    SchedulerConfig::from_json(Path::new("golden.json"), class_name, settings).unwrap()
}

/// Walks one case and returns the samples after each step, [n, ...]; the last `drop_last` are not in the golden.
fn trajectory(golden: &Golden, case: &Case, schedule: &gstdit::schedulers::Schedule) -> Tensor {
    let mut sample = golden.tensor(&case.key("sample")).shallow_clone();
    let flow_preds = golden.tensor(&case.key("model_outputs"));
    let is_stochastic = case.name.starts_with("sde.");
    let start = case.count("start");
    let mut solver = schedule.start(start);
    let steps = schedule.len() - start - case.count("drop_last");
    let samples: Vec<Tensor> = (0..steps)
        .map(|i| {
            let noise = |step| {
                assert!(is_stochastic && step as usize == start + i, "{}: step {step}", case.name);
                golden.tensor(&case.key("noises")).get(i as i64)
            };
            sample = solver.step(&flow_preds.get(i as i64), &sample, &noise);
            sample.shallow_clone()
        })
        .collect();
    Tensor::stack(&samples, 0)
}

#[test]
fn trajectories_match_the_reference() {
    let mut report = Report::default();
    for golden in ["sched", "dpmsolver"].map(Golden::load) {
        trajectories(&golden, &mut report);
    }
    report.finish("scheduler");
}

fn trajectories(golden: &Golden, report: &mut Report) {
    for case in golden.of_kind("scheduler") {
        let class_name = case.text("scheduler").unwrap();
        let schedule = config(class_name, case.params["config"].clone())
            .set_timesteps(case.count("steps"), case.number("mu"))
            .unwrap();
        report.check(
            golden,
            &case.key("sigmas"),
            &Tensor::from_slice(&schedule.sigmas),
            SCHEDULE_TOLERANCE,
        );
        let timesteps = golden.tensor(&case.key("timesteps"));
        let found = Tensor::from_slice(&schedule.timesteps);
        report.compare(&case.key("timesteps"), timesteps, &found, SCHEDULE_TOLERANCE);
        report.check(
            golden,
            &case.key("trajectory"),
            &trajectory(golden, case, &schedule),
            TOLERANCE,
        );
    }
}

#[test]
fn noising_matches_the_reference() {
    let golden = Golden::load("sched");
    let mut report = Report::default();
    for case in golden.of_kind("add_noise") {
        let shift = case.number("shift").unwrap();
        let config = if case.name.contains("unipc") {
            let settings = json!({"prediction_type": "flow_prediction", "use_flow_sigmas": true, "flow_shift": shift});
            config("UniPCMultistepScheduler", settings)
        } else {
            config("FlowMatchEulerDiscreteScheduler", json!({"shift": shift}))
        };
        let schedule = config.set_timesteps(case.count("steps"), None).unwrap();
        let clean = golden.tensor(&case.key("clean"));
        let noise = golden.tensor(&case.key("noise"));
        let noisy = schedule.add_noise(clean, noise, case.count("index"));
        report.check(&golden, &case.key("noisy"), &noisy, TOLERANCE);
    }
    report.finish("add_noise");
}
