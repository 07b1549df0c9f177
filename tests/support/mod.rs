// SPDX-License-Identifier: MPL-2.0
//! What the element tests share: a tiny real checkpoint, and pipelines whose frames and messages are kept.

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gst::prelude::*;

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
    pub pipeline: gst::Pipeline,
    pub src: gst::Element,
    frames: Arc<Mutex<Vec<Frame>>>,
    messages: Arc<Mutex<Vec<gst::Message>>>,
    arrived: std::sync::mpsc::Receiver<()>,
}

impl Rig {
    /// A pipeline with a model, more properties as in `gst-launch-1.0`, and caps.
    pub fn new(model: &Path, properties: &str, caps: &str) -> Self {
        let line = format!(
            "ditsrc name=src model-path={} device=cpu {properties} ! {caps} ! fakesink name=sink signal-handoffs=true sync=false",
            model.display()
        );
        let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let frames = Arc::new(Mutex::new(Vec::new()));
        let messages = Arc::new(Mutex::new(Vec::new()));
        let (sender, arrived) = std::sync::mpsc::channel();
        let kept = frames.clone();
        pipeline.by_name("sink").unwrap().connect("handoff", false, move |values| {
            let buffer = values[1].get::<gst::Buffer>().unwrap();
            kept.lock().unwrap().push(frame(&buffer));
            let _ = sender.send(());
            None
        });
        let kept = messages.clone();
        pipeline.bus().unwrap().set_sync_handler(move |_, message| {
            kept.lock().unwrap().push(message.clone());
            gst::BusSyncReply::Pass
        });
        let src = pipeline.by_name("src").unwrap();
        Self { pipeline, src, frames, messages, arrived }
    }

    /// Plays to the end; false when an error ended it.
    pub fn play(&self) -> bool {
        if self.pipeline.set_state(gst::State::Playing).is_err() {
            return false;
        }
        self.finish()
    }

    /// Waits for the end of a playing pipeline; false when an error ended it.
    pub fn finish(&self) -> bool {
        let bus = self.pipeline.bus().unwrap();
        let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
        let message = bus.timed_pop_filtered(PATIENCE, &kinds).expect("neither end nor error");
        message.type_() == gst::MessageType::Eos
    }

    /// Waits until `count` more frames have arrived.
    pub fn wait_frames(&self, count: usize) {
        for _ in 0..count {
            self.arrived.recv_timeout(Duration::from_secs(PATIENCE.seconds())).unwrap();
        }
    }

    /// Waits for a message on the bus.
    pub fn wait_message(&self, wanted: impl Fn(&gst::Message) -> bool) -> gst::Message {
        let bus = self.pipeline.bus().unwrap();
        loop {
            let message = bus.timed_pop(PATIENCE).expect("the message did not come");
            if wanted(&message) {
                return message;
            }
        }
    }

    pub fn stop(&self) {
        self.pipeline.set_state(gst::State::Null).unwrap();
    }

    /// The frames so far, which are forgotten here.
    pub fn take_frames(&self) -> Vec<Frame> {
        while self.arrived.try_recv().is_ok() {}
        std::mem::take(&mut self.frames.lock().unwrap())
    }

    pub fn messages(&self) -> Vec<gst::Message> {
        self.messages.lock().unwrap().clone()
    }

    /// The texts of all errors on the bus.
    pub fn errors(&self) -> Vec<String> {
        let text = |message: &gst::Message| match message.view() {
            gst::MessageView::Error(error) => Some(error.error().to_string()),
            _ => None,
        };
        self.messages().iter().filter_map(text).collect()
    }

    /// Kinds of the progress messages in order.
    pub fn progress(&self) -> Vec<gst::ProgressType> {
        let kind = |message: &gst::Message| match message.view() {
            gst::MessageView::Progress(progress) => Some(progress.get().0),
            _ => None,
        };
        self.messages().iter().filter_map(kind).collect()
    }

    /// Element messages with a name.
    pub fn structures(&self, name: &str) -> Vec<gst::Structure> {
        let found = |message: &gst::Message| {
            let structure = message.structure()?;
            (message.type_() == gst::MessageType::Element && structure.name() == name)
                .then(|| structure.to_owned())
        };
        self.messages().iter().filter_map(found).collect()
    }

    /// What the source pad settled on.
    pub fn caps(&self) -> gst_video::VideoInfo {
        let caps = self.src.static_pad("src").unwrap().current_caps().unwrap();
        gst_video::VideoInfo::from_caps(&caps).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
        self.pipeline.bus().unwrap().unset_sync_handler();
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
