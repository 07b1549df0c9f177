// SPDX-License-Identifier: MPL-2.0
//! What `ditfilter` tells the application: changes that took effect, degradation, statistics.
//!
//! | message | when | fields |
//! |---|---|---|
//! | `dit-controls-applied` | the first frame made with changed controls goes out | `running-time`, `stream-time`, `timestamp`, `prompt`, `negative-prompt`, `guidance-scale`, `seed`, `steps`, `strength` |
//! | `dit-degraded` | something is given up, or taken back | `running-time`, `stream-time`, `timestamp`, `action` (`none`, `fewer-steps`, `smaller-picture`, `fewer-frames`, `repeat-frame`, `pass-through`), `level`, `steps`, `repeated`, `passed` |
//! | QoS | with each `dit-degraded`, and each second while frames are not restyled | processed frames, and those repeated or passed instead of restyled |

use std::time::Duration;

use gst::prelude::*;

use crate::elements::report::{When, controls_applied, qos};
use crate::pipeline::{Controls, FolderInfo, Timings};

use super::degrading::Action;
use super::queue::ChunkNote;

/// Figures since the element left READY.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Frames in, and frames out in one of four ways.
    pub received: u64,
    pub restyled: u64,
    pub repeated: u64,
    /// Passed as they are though something else was wanted.
    pub passed: u64,
    pub bypassed: u64,
    pub chunks: u64,
    /// Chunks in which nothing moved.
    pub still: u64,
    pub errors: u64,
    pub timings: Timings,
    pub busy: Duration,
    pub chunk_frames: u64,
}

/// How a frame went out.
#[derive(Debug, Clone)]
pub enum Shown<'a> {
    Restyled(&'a ChunkNote),
    Repeated,
    Passed,
    Bypassed,
}

/// Notices what changes from frame to frame.
#[derive(Debug, Default)]
pub struct Reporter {
    applied: Option<(Controls, u32, f64)>,
    action: Action,
    level: u32,
    steps: u32,
    told: Option<gst::ClockTime>,
}

impl Reporter {
    /// Counts a frame that just went out and returns the messages that it gives rise to.
    pub fn frame_out(
        &mut self,
        element: &impl IsA<gst::Object>,
        shown: &Shown<'_>,
        when: &When,
        (counters, info): (&mut Counters, Option<&FolderInfo>),
    ) -> Vec<gst::Message> {
        let action = self.count(shown, counters);
        let mut messages = Vec::new();
        let mut post = |structure| {
            messages.push(gst::message::Element::builder(structure).src(element).build());
        };
        if let (Shown::Restyled(note), Some(info)) = (shown, info) {
            let now = (note.controls.clone(), note.wanted_steps, note.strength);
            if self.applied.as_ref().is_some_and(|applied| *applied != now) {
                let mut applied = controls_applied(&note.controls, note.wanted_steps, when, info);
                applied.set("strength", note.strength);
                post(applied);
            }
            self.applied = Some(now);
        }
        let changed = action != self.action;
        if changed {
            self.action = action;
            post(self.degraded(counters, when));
        }
        let degraded = matches!(action, Action::RepeatFrame | Action::PassThrough);
        let second = gst::ClockTime::SECOND;
        let due = match (self.told, when.running_time) {
            (Some(told), Some(now)) => now >= told + second || now < told,
            _ => true,
        };
        if changed || (degraded && due) {
            self.told = when.running_time;
            let dropped = counters.repeated + counters.passed;
            messages.push(qos(
                element,
                when,
                (counters.restyled + counters.bypassed + dropped, dropped),
            ));
        }
        messages
    }

    /// Counts a frame; what was given up for it.
    fn count(&mut self, shown: &Shown<'_>, counters: &mut Counters) -> Action {
        match shown {
            Shown::Restyled(note) => {
                counters.restyled += 1;
                (self.level, self.steps) = (note.level, note.steps);
                note.action
            }
            Shown::Repeated => {
                counters.repeated += 1;
                Action::RepeatFrame
            }
            Shown::Passed => {
                counters.passed += 1;
                Action::PassThrough
            }
            Shown::Bypassed => {
                counters.bypassed += 1;
                Action::None
            }
        }
    }

    fn degraded(&self, counters: &Counters, when: &When) -> gst::Structure {
        when.structure("dit-degraded")
            .field("action", self.action.name())
            .field("level", self.level)
            .field("steps", self.steps)
            .field("repeated", counters.repeated)
            .field("passed", counters.passed)
            .build()
    }

    /// The value of the property `stats`.
    pub fn stats(&self, counters: &Counters, waiting: usize) -> gst::Structure {
        let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
        let timings = &counters.timings;
        gst::Structure::builder("application/x-dit-stats")
            .field("frames", counters.received)
            .field("restyled", counters.restyled)
            .field("repeated", counters.repeated)
            .field("passed", counters.passed)
            .field("bypassed", counters.bypassed)
            .field("chunks", counters.chunks)
            .field("still-chunks", counters.still)
            .field("errors", counters.errors)
            .field("fps", counters.chunk_frames as f64 / counters.busy.as_secs_f64().max(1e-9))
            .field("ms-encode-prompt", ms(timings.encode_prompt))
            .field("ms-encode", ms(timings.encode))
            .field("ms-denoise", ms(timings.denoise))
            .field("ms-decode", ms(timings.decode))
            .field("queue-level", waiting as u64)
            .field("action", self.action.name())
            .field("level", self.level)
            .field("steps", self.steps)
            .build()
    }
}
