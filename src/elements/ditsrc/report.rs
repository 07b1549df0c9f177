// SPDX-License-Identifier: MPL-2.0
//! What `ditsrc` tells the application: changes that took effect, degradation, tags, statistics.
//!
//! | message | when | fields |
//! |---|---|---|
//! | `dit-controls-applied` | the first frame made with changed controls goes out | `running-time`, `stream-time`, `timestamp`, `prompt`, `negative-prompt`, `guidance-scale`, `seed`, `steps` |
//! | `dit-degraded` | a live stream begins to give something up, or takes it back | `running-time`, `stream-time`, `timestamp`, `action` (`none`, `fewer-steps`, `repeat-frame`), `level`, `steps`, `repeated` |
//! | QoS | a live stream repeats a frame | processed and dropped (repeated) frames |

use gst::prelude::*;

use crate::elements::report::{When, controls_applied, guidance, qos};
use crate::pipeline::{Controls, FolderInfo};
use crate::session::{ChunkInfo, Stats};

/// How far a live stream is from what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Degradation {
    /// The rung of the ladder of steps; 0 is full quality.
    pub level: u32,
    /// The last frame is repeated because there is no new one.
    pub repeating: bool,
}

/// Notices what changes from frame to frame.
#[derive(Debug, Default)]
pub struct Reporter {
    applied: Option<(Controls, u32)>,
    degradation: Degradation,
    repeated: u64,
    processed: u64,
}

impl Reporter {
    /// Messages that a frame which just went out gives rise to.
    pub fn frame_out(
        &mut self,
        chunk: &ChunkInfo,
        repeated: bool,
        when: &When,
        info: &FolderInfo,
    ) -> Vec<gst::Structure> {
        self.processed += 1;
        self.repeated += u64::from(repeated);
        let mut messages = Vec::new();
        // Steps that only the ladder changed are told of as degradation.
        let wanted = if chunk.level == 0 { chunk.steps } else { self.steps_applied(chunk.steps) };
        let now = (chunk.controls.clone(), wanted);
        if self.applied.as_ref().is_some_and(|applied| *applied != now) {
            messages.push(controls_applied(&chunk.controls, chunk.steps, when, info));
        }
        self.applied = Some(now);
        let degradation = Degradation { level: chunk.level, repeating: repeated };
        if degradation != self.degradation {
            self.degradation = degradation;
            messages.push(self.degraded(chunk.steps, when));
        }
        messages
    }

    fn steps_applied(&self, fallback: u32) -> u32 {
        self.applied.as_ref().map_or(fallback, |(_, steps)| *steps)
    }

    fn degraded(&self, steps: u32, when: &When) -> gst::Structure {
        let action = match self.degradation {
            Degradation { repeating: true, .. } => "repeat-frame",
            Degradation { level: 0, .. } => "none",
            Degradation { .. } => "fewer-steps",
        };
        when.structure("dit-degraded")
            .field("action", action)
            .field("level", self.degradation.level)
            .field("steps", steps)
            .field("repeated", self.repeated)
            .build()
    }

    /// A QoS message for a frame that was repeated.
    pub fn qos(&self, element: &impl IsA<gst::Object>, when: &When) -> gst::Message {
        qos(element, when, (self.processed, self.repeated))
    }
}

/// Title, encoder and comment of what is made with these controls.
pub fn tags(chunk: &ChunkInfo, info: &FolderInfo) -> gst::TagList {
    let controls = &chunk.controls;
    let model = info.folder.file_name().unwrap_or(info.folder.as_os_str()).to_string_lossy();
    let mut comment = format!(
        "seed={} model={model} steps={} guidance={}",
        controls.seed,
        chunk.steps,
        guidance(controls, info)
    );
    if let (None, Some(initial)) = (controls.guidance_scale, info.native.initial_guidance_scale) {
        comment += &format!(" initial-guidance={initial}");
    }
    let encoder = concat!("gst-plugin-dit ", env!("CARGO_PKG_VERSION"));
    let mut tags = gst::TagList::new();
    {
        let tags = tags.make_mut();
        tags.set_scope(gst::TagScope::Stream);
        if !controls.prompt.is_empty() {
            tags.add::<gst::tags::Title>(&controls.prompt.as_str(), gst::TagMergeMode::Replace);
        }
        tags.add::<gst::tags::Encoder>(&encoder, gst::TagMergeMode::Replace);
        tags.add::<gst::tags::Comment>(&comment.as_str(), gst::TagMergeMode::Replace);
    }
    tags
}

/// The value of the property `stats`.
pub fn stats_structure(stats: &Stats) -> gst::Structure {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
    gst::Structure::builder("application/x-dit-stats")
        .field("frames", stats.frames)
        .field("chunks", stats.chunks)
        .field("fps", stats.fps)
        .field("ms-encode-prompt", ms(stats.encode_prompt))
        .field("ms-denoise", ms(stats.denoise))
        .field("ms-decode", ms(stats.decode))
        .field("queue-level", stats.queue_level)
        .field("repeated", stats.repeated)
        .field("steps", stats.steps)
        .field("level", stats.level)
        .field("first-frame-ms", stats.first_frame.map_or(0.0, ms))
        .build()
}
