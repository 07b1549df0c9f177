// SPDX-License-Identifier: MPL-2.0
//! `ditfilter` between an `appsrc` and a sink, with everything that went in and came out.

// Each test file compiles this module anew and uses a part of it.
#![allow(dead_code)]

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use gst::prelude::*;

use crate::support::watched::Watched;
use crate::support::{Frame, Native, folder_with};

/// Frames of 64x32 at 25 a second.
pub const CAPS: &str = "video/x-raw,format=RGB,width=64,height=32,framerate=25/1";
/// Restyled eight at a time: five, then eights.
pub const EIGHT: &str = "threads=1 chunk-frames=8 strength=0.5 still-threshold=0";
/// Nanoseconds of a frame of [`CAPS`].
pub const FRAME: u64 = 40_000_000;

/// A tiny model folder, with guidance off and windows of three latent frames.
pub fn model(parent: &Path, steps: u32) -> PathBuf {
    let native = Native { width: 64, height: 32, framerate: 25, steps };
    folder_with(parent, "ti2v_public", native)
}

/// A moving pattern of 64x32 RGB.
pub fn picture(number: u64) -> Vec<u8> {
    let value = |i: u64| (i % 64 * 3 + i / 192 * 5 + number * 11) as u8;
    (0..64 * 32 * 3).map(value).collect()
}

/// Frame number `number` as a buffer.
pub fn buffer(number: u64) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(picture(number));
    let writable = buffer.get_mut().unwrap();
    writable.set_pts(gst::ClockTime::from_nseconds(number * FRAME));
    writable.set_duration(gst::ClockTime::from_nseconds(FRAME));
    writable.set_offset(number);
    buffer
}

/// What arrived, in order.
#[derive(Debug, Clone)]
pub enum Arrival {
    Buffer(gst::Buffer),
    Event(gst::Event),
}

/// A pipeline `appsrc ! ditfilter ! fakesink`.
pub struct Rig {
    watched: Watched,
    pub source: gst::Element,
    pub filter: gst::Element,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

impl Rig {
    pub fn new(model: &Path, properties: &str, caps: &str) -> Self {
        Self::launch(&format!(
            "appsrc name=source format=time caps=\"{caps}\" \
             ! ditfilter name=filter model-path={} device=cpu {properties} ! fakesink name=sink sync=false",
            model.display()
        ))
    }

    /// A pipeline with elements named `filter`, `sink` and perhaps `source`.
    pub fn launch(line: &str) -> Self {
        let watched = Watched::launch(line);
        let filter = watched.element("filter");
        let source = watched.pipeline.by_name("source").unwrap_or_else(|| filter.clone());
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let kept = arrivals.clone();
        let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
        filter.static_pad("src").unwrap().add_probe(kinds, move |_, info| {
            let arrival = match &info.data {
                Some(gst::PadProbeData::Buffer(buffer)) => Arrival::Buffer(buffer.clone()),
                Some(gst::PadProbeData::Event(event)) => Arrival::Event(event.clone()),
                _ => return gst::PadProbeReturn::Ok,
            };
            kept.lock().unwrap().push(arrival);
            gst::PadProbeReturn::Ok
        });
        Self { watched, source, filter, arrivals }
    }

    pub fn push(&self, buffer: gst::Buffer) -> gst::FlowReturn {
        self.source.emit_by_name::<gst::FlowReturn>("push-buffer", &[&buffer])
    }

    pub fn push_numbers(&self, numbers: std::ops::Range<u64>) {
        for number in numbers {
            assert_eq!(self.push(buffer(number)), gst::FlowReturn::Ok);
        }
    }

    pub fn end(&self) {
        let _ = self.source.emit_by_name::<gst::FlowReturn>("end-of-stream", &[]);
    }

    /// Waits for an element message with a name and a value of its field `action`.
    pub fn wait_action(&self, action: &str) -> gst::Structure {
        let wanted = |message: &gst::Message| {
            message.structure().is_some_and(|it| {
                it.name() == "dit-degraded" && it.get::<&str>("action") == Ok(action)
            })
        };
        self.wait_message(wanted).structure().unwrap().to_owned()
    }

    pub fn wait_loaded(&self) {
        self.wait_message(|message| match message.view() {
            gst::MessageView::Progress(it) => it.get().0 == gst::ProgressType::Complete,
            gst::MessageView::Error(error) => panic!("{}", error.error()),
            _ => false,
        });
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    pub fn buffers(&self) -> Vec<gst::Buffer> {
        let buffer = |arrival: Arrival| match arrival {
            Arrival::Buffer(buffer) => Some(buffer),
            Arrival::Event(_) => None,
        };
        self.arrivals().into_iter().filter_map(buffer).collect()
    }

    pub fn frames(&self) -> Vec<Frame> {
        self.buffers().iter().map(crate::support::frame).collect()
    }

    pub fn stat(&self, name: &str) -> u64 {
        self.filter.property::<gst::Structure>("stats").get(name).unwrap()
    }
}

impl Deref for Rig {
    type Target = Watched;

    fn deref(&self) -> &Watched {
        &self.watched
    }
}

/// The frames of a stream of so many pictures.
pub fn restyled(model: &Path, properties: &str, count: u64) -> Vec<Frame> {
    let rig = Rig::new(model, properties, CAPS);
    rig.start();
    rig.push_numbers(0..count);
    rig.end();
    rig.outcome().unwrap();
    rig.frames()
}
