// SPDX-License-Identifier: MPL-2.0
//! Fine-tuning on a folder of real files: every format, what cannot be read named and skipped, resumed, and opened again.

#![cfg(feature = "training")]

mod support;

use std::path::{Path, PathBuf};

use gstdit::pipeline::FolderInfo;
use gstdit::training::finetune::{FinetuneOptions, LORA, Method, train};
use gstdit::weights::Checkpoint;
use support::watched::Watched;
use support::{TINY, folder_with, init, pixels, played};
use tch::Device;

/// Writes what a `gst-launch-1.0` line makes to a file of that name, with a caption.
fn record(folder: &Path, name: &str, line: &str, caption: &str) -> PathBuf {
    let path = folder.join(name);
    let line = format!("{line} ! filesink location={}", path.display());
    let pipeline = Watched::launch(&line);
    pipeline.start();
    pipeline.outcome().unwrap();
    pipeline.stop();
    std::fs::write(path.with_extension("txt"), caption).unwrap();
    path
}

/// Three clips and a picture of different formats, sizes and lengths, and four files that cannot be used.
fn clips(folder: &Path) {
    let source = "videotestsrc num-buffers=13 pattern=ball ! video/x-raw,framerate=16/1";
    record(folder, "a.avi", &format!("{source},width=96,height=48 ! jpegenc ! avimux"), "a ball");
    record(
        folder,
        "b.mkv",
        &format!("{source},width=48,height=96,pixel-aspect-ratio=2/1 ! jpegenc ! matroskamux"),
        "a ball, wide pixels",
    );
    record(
        folder,
        "c.y4m",
        "videotestsrc num-buffers=24 ! video/x-raw,format=I420,framerate=32/1,width=64,height=64 ! y4menc",
        "bars",
    );
    record(
        folder,
        "d.png",
        "videotestsrc num-buffers=1 ! video/x-raw,width=80,height=40 ! pngenc",
        "a picture",
    );
    std::fs::write(folder.join("broken.mp4"), "no film").unwrap();
    std::fs::write(folder.join("broken.txt"), "nothing").unwrap();
    std::fs::write(folder.join("empty.avi"), "").unwrap();
    std::fs::write(folder.join("empty.txt"), "nothing").unwrap();
    record(folder, "sound.ogg", "audiotestsrc num-buffers=10 ! wavenc", "a tone");
    std::fs::write(folder.join("unnamed.mp4"), "").unwrap();
}

/// A tiny model, an empty folder for clips, and where results shall go.
fn places(folder: &Path) -> [PathBuf; 3] {
    let data = folder.join("data");
    std::fs::create_dir(&data).unwrap();
    [folder_with(folder, "ti2v_public", TINY), data, folder.join("out")]
}

fn options(model: &Path, data: &Path, out: &Path, method: Method, steps: u64) -> FinetuneOptions {
    FinetuneOptions {
        model: model.to_owned(),
        data: data.to_owned(),
        out: out.to_owned(),
        method,
        steps,
        learning_rate: 1e-2,
        batch_tokens: 64,
        workers: 2,
        save_every: 4,
        samples: vec!["a ball".into()],
        seed: 1,
        device: Device::Cpu,
    }
}

#[test]
fn a_lora_is_trained_resumed_and_opened() {
    let _guard = init();
    let folder = tempfile::tempdir().unwrap();
    let [model, data, out] = places(folder.path());
    clips(&data);
    let method = Method::Lora { rank: 2 };
    train(&options(&model, &data, &out, method, 4)).unwrap();
    let lora = out.join(LORA);
    let first = std::fs::read(&lora).unwrap();
    let checkpoint = Checkpoint::open_file(&lora).unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    assert!(names.contains(&"transformer.blocks.0.attn1.to_out.0.lora_A.weight"), "{names:?}");
    assert!(names.contains(&"transformer.blocks.1.ffn.net.0.proj.lora_B.weight"), "{names:?}");
    assert!(out.join("finetune-000004.png").is_file());
    train(&options(&model, &data, &out, method, 6)).unwrap();
    assert_ne!(first, std::fs::read(&lora).unwrap());
    let run =
        |properties: String| played(&model, &format!("num-buffers=5 {properties}"), "video/x-raw");
    let (plain, with) = (run(String::new()), run(format!("lora={}", lora.display())));
    assert_ne!(pixels(&plain), pixels(&with));
    // The state is that of another training.
    let other = train(&options(&model, &data, &out, Method::Full, 8)).unwrap_err();
    assert!(format!("{other:#}").contains("finetune-state.safetensors"), "{other:#}");
}

#[test]
fn a_whole_folder_is_trained_and_opened() {
    let _guard = init();
    let folder = tempfile::tempdir().unwrap();
    let [model, data, out] = places(folder.path());
    clips(&data);
    train(&options(&model, &data, &out, Method::Full, 2)).unwrap();
    let finished = out.join("model");
    FolderInfo::open(&finished).unwrap();
    let (before, after) = (
        played(&model, "num-buffers=5", "video/x-raw"),
        played(&finished, "num-buffers=5", "video/x-raw"),
    );
    assert_ne!(pixels(&before), pixels(&after));
}

#[test]
fn folders_without_a_clip_are_refused() {
    let _guard = init();
    let folder = tempfile::tempdir().unwrap();
    let [model, data, out] = places(folder.path());
    std::fs::write(data.join("broken.mp4"), "no film").unwrap();
    std::fs::write(data.join("broken.txt"), "nothing").unwrap();
    let error = train(&options(&model, &data, &out, Method::Full, 1)).unwrap_err().to_string();
    assert!(error.contains("no clip could be read, 1 skipped"), "{error}");
    let none = folder.path().join("none");
    let error = train(&options(&model, &none, &out, Method::Full, 1)).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
}
