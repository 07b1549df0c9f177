// SPDX-License-Identifier: MPL-2.0
//! What `ditmixer` tells the application.
//!
//! | message | when | fields |
//! |---|---|---|
//! | `dit-transition-start` | the first frame of a transition goes out | `running-time`, `stream-time`, `from`, `to` (pads), `duration` |
//! | `dit-transition-end` | the first frame after it goes out, exactly the stream it leads to | the same |

/// When a frame is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct When {
    pub running_time: Option<gst::ClockTime>,
    pub stream_time: Option<gst::ClockTime>,
}

impl When {
    /// The times of a timestamp in the output's segment.
    pub fn new(pts: Option<gst::ClockTime>, segment: &gst::Segment) -> Self {
        let segment = segment.downcast_ref::<gst::ClockTime>();
        Self {
            running_time: segment.and_then(|segment| segment.to_running_time(pts)),
            stream_time: segment.and_then(|segment| segment.to_stream_time(pts)),
        }
    }

    fn structure(&self, name: &str) -> gst::structure::Builder {
        gst::Structure::builder(name)
            .field("running-time", self.running_time)
            .field("stream-time", self.stream_time)
    }
}

/// The beginning or the end of a transition between two pads.
pub fn transition(name: &str, when: &When, [from, to]: [&str; 2], duration: u64) -> gst::Structure {
    when.structure(name)
        .field("from", from)
        .field("to", to)
        .field("duration", gst::ClockTime::from_nseconds(duration))
        .build()
}
