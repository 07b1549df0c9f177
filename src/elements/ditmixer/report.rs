// SPDX-License-Identifier: MPL-2.0
//! What `ditmixer` tells the application.
//!
//! | message | when | fields |
//! |---|---|---|
//! | `dit-transition-start` | the first frame of a transition goes out | `running-time`, `stream-time`, `timestamp`, `from`, `to` (pads), `duration` |
//! | `dit-transition-end` | the first frame after it goes out, exactly the stream it leads to | the same |
//! | `dit-degraded` | a live stream begins to give something up, or takes it back | `running-time`, `stream-time`, `timestamp`, `action` (`none`, `fewer-steps`, `crossfade`), `level`, `steps`, `crossfaded` |
//! | QoS | a live stream shows a crossfade because the model was too late | processed and dropped (crossfaded) frames |

use gst::prelude::*;

use crate::elements::report::{When, qos};

/// The beginning or the end of a transition between two pads.
pub fn transition(name: &str, when: &When, [from, to]: [&str; 2], duration: u64) -> gst::Structure {
    when.structure(name)
        .field("from", from)
        .field("to", to)
        .field("duration", gst::ClockTime::from_nseconds(duration))
        .build()
}

/// Notices what changes from frame to frame.
#[derive(Debug, Default)]
pub struct Reporter {
    level: u32,
    crossfading: bool,
    processed: u64,
    crossfaded: u64,
}

impl Reporter {
    /// Frames that went out, and those of them that are crossfades because the model was late.
    pub fn counts(&self) -> (u64, u64) {
        (self.processed, self.crossfaded)
    }

    /// Messages that a frame which goes out gives rise to; `missed` if the model's is missing, and the rung of the
    /// ladder with its steps.
    pub fn frame_out(
        &mut self,
        element: &impl IsA<gst::Object>,
        when: &When,
        missed: bool,
        (level, steps): (u32, u32),
    ) -> Vec<gst::Message> {
        self.processed += 1;
        self.crossfaded += u64::from(missed);
        let mut messages = Vec::new();
        if missed {
            messages.push(qos(element, when, (self.processed, self.crossfaded)));
        }
        if (missed, level) != (self.crossfading, self.level) {
            (self.crossfading, self.level) = (missed, level);
            let action = match (missed, level) {
                (true, _) => "crossfade",
                (false, 0) => "none",
                (false, _) => "fewer-steps",
            };
            let degraded = when
                .structure("dit-degraded")
                .field("action", action)
                .field("level", level)
                .field("steps", steps)
                .field("crossfaded", self.crossfaded)
                .build();
            messages.push(gst::message::Element::builder(degraded).src(element).build());
        }
        messages
    }
}
