// SPDX-License-Identifier: MPL-2.0
//! What all elements tell the application in the same words.

use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;

use crate::pipeline::{Controls, FolderInfo};

/// When a buffer is shown.
#[derive(Debug, Clone, Copy)]
pub struct When {
    pub pts: Option<gst::ClockTime>,
    pub duration: Option<gst::ClockTime>,
    pub running_time: Option<gst::ClockTime>,
    pub stream_time: Option<gst::ClockTime>,
}

impl When {
    /// The times of a buffer in the segment that it is pushed in.
    pub fn new(buffer: &gst::BufferRef, segment: &gst::Segment) -> Self {
        let pts = buffer.pts();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        Self {
            pts,
            duration: buffer.duration(),
            running_time: segment.and_then(|segment| segment.to_running_time(pts)),
            stream_time: segment.and_then(|segment| segment.to_stream_time(pts)),
        }
    }

    /// The beginning of a message about the frame shown then.
    pub fn structure(&self, name: &str) -> gst::structure::Builder {
        gst::Structure::builder(name)
            .field("running-time", self.running_time)
            .field("stream-time", self.stream_time)
            .field("timestamp", self.pts)
    }
}

/// Whether an error was posted; what follows from it is not posted again.
#[derive(Debug, Default)]
pub struct FirstError(AtomicBool);

impl FirstError {
    /// Lets the next error be the first again.
    pub fn forget(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether a message that is about to be posted is an error that another came before.
    pub fn precedes(&self, message: &gst::Message) -> bool {
        message.type_() == gst::MessageType::Error && self.0.swap(true, Ordering::SeqCst)
    }
}

/// The property `stats` of an element, whose blurb lists its fields.
pub fn stats_pspec(blurb: &str) -> glib::ParamSpec {
    glib::ParamSpecBoxed::builder::<gst::Structure>("stats")
        .nick("Statistics")
        .blurb(blurb)
        .read_only()
        .build()
}

/// `dit-controls-applied`: the frame shown at `when` is the first that was made with these controls.
pub fn controls_applied(
    controls: &Controls,
    steps: u32,
    when: &When,
    info: &FolderInfo,
) -> gst::Structure {
    when.structure("dit-controls-applied")
        .field("prompt", &controls.prompt)
        .field("negative-prompt", &controls.negative_prompt)
        .field("guidance-scale", guidance(controls, info))
        .field("seed", controls.seed)
        .field("steps", steps)
        .build()
}

/// The guidance asked for, else the model's own.
pub fn guidance(controls: &Controls, info: &FolderInfo) -> f64 {
    controls.guidance_scale.unwrap_or(info.native.guidance_scale)
}

/// A QoS message of a live stream with counters of frames: processed, and shown in another way than was asked for.
pub fn qos(
    element: &impl IsA<gst::Object>,
    when: &When,
    (processed, dropped): (u64, u64),
) -> gst::Message {
    gst::message::Qos::builder(true)
        .running_time(when.running_time)
        .stream_time(when.stream_time)
        .timestamp(when.pts)
        .duration(when.duration)
        .stats(gst::format::Buffers::from_u64(processed), gst::format::Buffers::from_u64(dropped))
        .src(element)
        .build()
}
