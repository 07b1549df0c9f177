// SPDX-License-Identifier: MPL-2.0
//! What the element tests share: a tiny real checkpoint, and pipelines whose frames and messages are kept.

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

pub mod checks;
pub mod watched;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gst::prelude::*;

use watched::{Received, Watched, source_caps};

/// Frames of the first chunk of [`model`], and of each later one.
pub const FIRST_CHUNK: usize = 5;
pub const LATER_CHUNK: usize = 4;

/// Far more than anything here takes, for machines with other things to do.
pub const PATIENCE: gst::ClockTime = gst::ClockTime::from_seconds(120);

/// Starts GStreamer with the plugin; tests of one file run one after the other while they hold the guard.
pub fn init() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    let guard = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        gst::init().unwrap();
        gstdit::plugin_register_static().unwrap();
    });
    guard
}

/// What a model folder made for a test says about itself.
#[derive(Clone, Copy)]
pub struct Native {
    pub width: i32,
    pub height: i32,
    pub framerate: i32,
    pub steps: u32,
}

pub const TINY: Native = Native { width: 64, height: 32, framerate: 16, steps: 2 };

/// A folder with the weights of a fixture (linked, not copied) and a native size of its own.
pub fn folder_with(parent: &Path, fixture: &str, native: Native) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
    let folder = parent.join(fixture);
    std::fs::create_dir_all(&folder).unwrap();
    for part in ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
        std::os::unix::fs::symlink(source.join(part), folder.join(part)).unwrap();
    }
    let text = std::fs::read_to_string(source.join("model_index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["_dit"] = serde_json::json!({
        "width": native.width,
        "height": native.height,
        "framerate": [native.framerate, 1],
        "num_frames": FIRST_CHUNK,
        "num_inference_steps": native.steps,
        "guidance_scale": 1.0,
        "max_sequence_length": 16,
        "context_latent_frames": 1,
    });
    std::fs::write(folder.join("model_index.json"), index.to_string()).unwrap();
    folder
}

/// A folder whose parts may be changed: everything is copied.
pub fn copied_folder(parent: &Path, native: Native) -> PathBuf {
    let folder = folder_with(parent, "ti2v_public", native);
    for part in ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
        let link = folder.join(part);
        let source = std::fs::read_link(&link).unwrap();
        std::fs::remove_file(&link).unwrap();
        std::fs::create_dir(&link).unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), link.join(entry.file_name())).unwrap();
        }
    }
    folder
}

/// One buffer as it came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub pts: u64,
    pub duration: u64,
    pub offset: u64,
    pub discont: bool,
    pub data: Vec<u8>,
}

/// A pipeline `ditsrc ! caps ! fakesink` with everything that came out of it.
pub struct Rig {
    watched: Watched,
    pub src: gst::Element,
    frames: Received<Frame>,
}

impl Rig {
    /// A pipeline with a model, more properties as in `gst-launch-1.0`, and caps.
    pub fn new(model: &Path, properties: &str, caps: &str) -> Self {
        let watched = Watched::launch(&format!(
            "ditsrc name=src model-path={} device=cpu {properties} ! {caps} ! fakesink name=sink signal-handoffs=true sync=false",
            model.display()
        ));
        let frames = Received::at(&watched.element("sink"), frame);
        Self { src: watched.element("src"), watched, frames }
    }

    /// Plays to the end; false when an error ended it.
    pub fn play(&self) -> bool {
        self.pipeline.set_state(gst::State::Playing).is_ok() && self.finish()
    }

    /// Waits for the end of a playing pipeline; false when an error ended it.
    pub fn finish(&self) -> bool {
        self.outcome().is_ok()
    }

    /// Waits until `count` more frames have arrived.
    pub fn wait_frames(&self, count: usize) {
        self.frames.wait(count);
    }

    /// The frames so far, which are forgotten here.
    pub fn take_frames(&self) -> Vec<Frame> {
        self.frames.take()
    }

    /// What the source pad settled on.
    pub fn caps(&self) -> gst_video::VideoInfo {
        source_caps(&self.src)
    }
}

impl Deref for Rig {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

/// A buffer's times and bytes.
pub fn frame(buffer: &gst::Buffer) -> Frame {
    Frame {
        pts: buffer.pts().unwrap().nseconds(),
        duration: buffer.duration().unwrap().nseconds(),
        offset: buffer.offset(),
        discont: buffer.flags().contains(gst::BufferFlags::DISCONT),
        data: buffer.map_readable().unwrap().to_vec(),
    }
}

/// The frames of a pipeline that plays to its end.
pub fn played(model: &Path, properties: &str, caps: &str) -> Vec<Frame> {
    let rig = Rig::new(model, properties, caps);
    assert!(rig.play(), "{:?}", rig.errors());
    rig.take_frames()
}

/// The pixels of frames.
pub fn pixels(frames: &[Frame]) -> Vec<&[u8]> {
    frames.iter().map(|frame| frame.data.as_slice()).collect()
}
