// SPDX-License-Identifier: MPL-2.0
//! `ditsrc` on its way up and down: loading, errors, cancelling, sharing, cycling.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use gst::prelude::*;
use support::checks::{kept_inspection, nothing_left_behind};
use support::watched::Watched;
use support::{Native, Rig, TINY, copied_folder, folder_with, init};

const RGB: &str = "video/x-raw,format=RGB,width=32,height=32";
/// How long going down may take on a machine with other things to do.
const PROMPTLY: Duration = Duration::from_secs(5);

#[test]
fn progress_starts_continues_and_completes() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "t2v_public", TINY);
    let rig = Rig::new(&folder, "num-buffers=1", RGB);
    assert!(rig.play(), "{:?}", rig.errors());
    let progress = rig.progress();
    assert_eq!(progress.first(), Some(&gst::ProgressType::Start));
    assert_eq!(progress.last(), Some(&gst::ProgressType::Complete));
    let between = &progress[1..progress.len() - 1];
    assert!(!between.is_empty());
    assert!(between.iter().all(|kind| *kind == gst::ProgressType::Continue));
}

/// Plays what must fail; the one error's text.
fn failure(folder: &Path, properties: &str, caps: &str) -> String {
    let rig = Rig::new(folder, properties, caps);
    let begun = Instant::now();
    assert!(!rig.play(), "{properties} {caps}: no error");
    println!("{:6.1} ms: {:?}", begun.elapsed().as_secs_f64() * 1000.0, rig.errors());
    let progress = rig.progress();
    rig.pipeline.set_state(gst::State::Null).unwrap();
    let errors = rig.errors();
    assert_eq!(errors.len(), 1, "{errors:?}");
    if progress.first() == Some(&gst::ProgressType::Start) {
        let ends = [gst::ProgressType::Error, gst::ProgressType::Complete];
        let ends = progress.iter().filter(|kind| ends.contains(kind)).count();
        assert!(ends <= 1, "{progress:?}");
    }
    errors.into_iter().next().unwrap()
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no \"{part}\" in: {text}");
    }
}

#[test]
fn unusable_folders_are_named_in_one_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let missing = parent.path().join("missing");
    says(&failure(&missing, "", RGB), &["missing", "model_index.json"]);
    let empty = parent.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    says(&failure(&empty, "", RGB), &["empty", "model_index.json"]);
    let file = parent.path().join("file");
    std::fs::write(&file, "x").unwrap();
    says(&failure(&file, "", RGB), &["file", "model_index.json"]);
}

#[test]
fn damaged_files_are_named_in_one_error() {
    let _serial = init();
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 5] = [
        (weights, |path| {
            let data = std::fs::read(path).unwrap();
            std::fs::write(path, &data[..data.len() / 2]).unwrap();
        }),
        (weights, |path| std::fs::write(path, u64::MAX.to_le_bytes()).unwrap()),
        (weights, |path| std::fs::remove_file(path).unwrap()),
        ("tokenizer/tokenizer.json", |path| std::fs::write(path, "garbage").unwrap()),
        ("vae/config.json", |path| std::fs::write(path, "{\"z_dim\": \"many\"}").unwrap()),
    ];
    for (name, spoil) in damage {
        let parent = tempfile::tempdir().unwrap();
        let folder = copied_folder(parent.path(), TINY);
        spoil(&folder.join(name));
        let stem = name.split('/').next().unwrap();
        says(&failure(&folder, "", RGB), &[stem]);
    }
}

#[test]
fn a_tensor_of_another_shape_is_named_in_one_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = copied_folder(parent.path(), TINY);
    let path = folder.join("transformer/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["ffn_dim"] = 52.into();
    std::fs::write(&path, config.to_string()).unwrap();
    says(&failure(&folder, "", RGB), &["ffn", "48", "52"]);
}

#[test]
fn unknown_devices_are_named_in_one_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    says(&failure(&folder, "device=gpu", RGB), &["gpu", "cuda:N"]);
    says(&failure(&folder, "device=cuda:99", RGB), &["cuda:99"]);
}

#[test]
fn a_size_beyond_the_memory_is_refused_before_it_is_taken() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let native = Native { width: 8192, height: 8192, ..TINY };
    let folder = folder_with(parent.path(), "ti2v_public", native);
    if gstdit::torch::available_memory(tch::Device::Cpu).is_some_and(|it| it > 28 << 30) {
        return;
    }
    let text = failure(&folder, "", "video/x-raw,format=RGB");
    says(&text, &["not enough memory", "MiB needed", "width"]);
}

#[test]
fn sizes_out_of_range_do_not_negotiate() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    let line =
        format!("ditsrc model-path={} ! video/x-raw,width=8,height=8 ! fakesink", folder.display());
    assert!(gst::parse::launch(&line).is_err());
}

#[test]
fn an_element_plays_after_an_error() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    let rig = Rig::new(&parent.path().join("missing"), "num-buffers=2", RGB);
    assert!(!rig.play());
    rig.stop();
    rig.src.set_property("model-path", folder.to_str().unwrap());
    assert!(rig.play(), "{:?}", rig.errors());
    assert_eq!(rig.take_frames().len(), 2);
}

#[test]
fn going_down_ends_loading_and_denoising() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    // So many steps at such a size would take minutes.
    let native = Native { width: 512, height: 512, steps: 1000, ..TINY };
    let folder = folder_with(parent.path(), "ti2v_public", native);
    let rig = Rig::new(&folder, "", "video/x-raw,format=RGB");
    rig.pipeline.set_state(gst::State::Paused).unwrap();
    let begun = Instant::now();
    rig.stop();
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    let ended = [gst::ProgressType::Canceled, gst::ProgressType::Complete];
    let ends = rig.progress().iter().filter(|kind| ended.contains(kind)).count();
    assert_eq!(ends, 1, "{:?}", rig.progress());

    rig.pipeline.set_state(gst::State::Playing).unwrap();
    rig.wait_message(|message| match message.view() {
        gst::MessageView::Progress(progress) => progress.get().0 == gst::ProgressType::Complete,
        _ => false,
    });
    let begun = Instant::now();
    rig.stop();
    println!("mid-denoise down in {:?}", begun.elapsed());
    assert!(begun.elapsed() < PROMPTLY, "{:?}", begun.elapsed());
    assert!(rig.errors().is_empty());
    assert_eq!(gstdit::session::loaded_models(), 0);
}

#[test]
fn two_elements_share_one_model() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    let rigs = [1, 2].map(|seed| Rig::new(&folder, &format!("seed={seed}"), RGB));
    for rig in &rigs {
        rig.pipeline.set_state(gst::State::Playing).unwrap();
    }
    for rig in &rigs {
        rig.wait_frames(8);
    }
    assert_eq!(gstdit::session::loaded_models(), 1);
    rigs[0].stop();
    rigs[1].take_frames();
    rigs[1].wait_frames(8);
    assert_eq!(gstdit::session::loaded_models(), 1);
    // READY keeps the weights, NULL lets go of them.
    rigs[1].pipeline.set_state(gst::State::Ready).unwrap();
    assert_eq!(gstdit::session::loaded_models(), 1);
    rigs[1].stop();
    assert_eq!(gstdit::session::loaded_models(), 0);
}

#[test]
fn properties_say_when_they_may_change() {
    let _serial = init();
    let element = gst::ElementFactory::make("ditsrc").build().unwrap();
    let playing = gst::PARAM_FLAG_MUTABLE_PLAYING;
    for name in ["prompt", "negative-prompt", "seed", "steps", "guidance-scale"] {
        let spec = element.find_property(name).unwrap();
        assert!(spec.flags().contains(playing), "{name}");
    }
    let ready = gst::PARAM_FLAG_MUTABLE_READY;
    for name in ["model-path", "device", "precision", "threads", "is-live"] {
        let spec = element.find_property(name).unwrap();
        assert!(spec.flags().contains(ready), "{name}");
    }
    let stats = element.property::<gst::Structure>("stats");
    assert_eq!(stats.name(), "application/x-dit-stats");
}

#[test]
fn the_kept_inspection_is_up_to_date() {
    let _serial = init();
    kept_inspection("ditsrc");
}

#[test]
fn a_hundred_cycles_leave_nothing_behind() {
    nothing_left_behind("a_hundred_cycles_leave_nothing_behind", cycle);
}

fn cycle() {
    let _serial = init();
    let parent = tempfile::tempdir().unwrap();
    let folder = folder_with(parent.path(), "ti2v_public", TINY);
    let line = format!(
        "ditsrc model-path={} device=cpu num-buffers=6 ! {RGB} ! fakesink sync=false",
        folder.display()
    );
    for round in 0..100 {
        let watched = Watched::launch(&line);
        watched.start();
        if round % 10 == 0 {
            watched.outcome().unwrap();
        }
        if round % 3 == 0 {
            watched.pipeline.set_state(gst::State::Ready).unwrap();
            watched.start();
        }
        watched.stop();
    }
}
