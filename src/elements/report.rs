// SPDX-License-Identifier: MPL-2.0
//! Messages that all elements send in the same words.

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
