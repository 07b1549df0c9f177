// SPDX-License-Identifier: MPL-2.0
//! `ditfilter`: restyles the video that flows through it.
//!
//! ```sh
//! # A file, with another look; the model works at its own size, the picture keeps its size.
//! gst-launch-1.0 -e filesrc location=in.mp4 ! decodebin ! videoconvert \
//!     ! ditfilter prompt="in 1920s film style" strength=0.6 \
//!     ! videoconvert ! x264enc ! mp4mux ! filesink location=out.mp4
//! # A live screen; a preset brings prompt and strength.
//! gst-launch-1.0 ximagesrc ! videorate ! video/x-raw,framerate=8/1 ! videoconvert \
//!     ! ditfilter prompt="in rainbow style" ! videoconvert ! autovideosink
//! ```
//!
//! One buffer comes out for each that goes in, with its times, flags and metas. Frames are gathered into chunks,
//! each of which is encoded, noised as far as `strength` says, denoised with the last chunk as context, and decoded;
//! what does not fill a chunk at the end of the stream, of a segment or of a format is restyled too.
//!
//! **Latency**: a frame waits for the rest of its chunk and for the chunk to be made, so `chunk-frames - 1` frames and
//! `latency-budget` (by default the length of a chunk, which is the most that can be sustained) are reported. Only a
//! change of the frame rate or the budget changes it. With `stream-batch` a frame waits for all chunks that its own is
//! made together with, which are the shorter for it.
//!
//! **Live and too slow**: `late-policy=degrade` takes fewer denoising steps, then smaller pictures, then every second
//! frame shown twice, then passes pictures through, and goes back up when the load falls; passing through, it tries
//! again after 2, 4, ... up to 32 chunks. A frame whose time has come shows the last restyled picture again, for a
//! chunk at most, then as it is. `dit-degraded` and QoS messages tell of each change. Upstream is never kept waiting for
//! the model; while the model loads, a live stream passes through.
//!
//! **Errors on the way** (`on-error=passthrough`): the chunk's pictures pass through, one warning is posted, and the next
//! try comes after 1, 2, 4, ... up to 32 chunks. A model that cannot be loaded is always an error.
//!
//! | file | holds |
//! |---|---|
//! | `imp.rs` | the element: properties, states, pads, events, queries |
//! | `input.rs` | the sink pad's thread: frames to chunks to jobs |
//! | `output.rs` | the source pad's thread: finished, late and untouched pictures, in order |
//! | `queue.rs` | what lies between the two |
//! | `degrading.rs` | what is given up when it is too slow |
//! | `report.rs` | element messages, QoS and the `stats` structure |
//! | `settings.rs` | the properties' values |

use gst::prelude::*;

mod degrading;
mod imp;
mod input;
mod output;
mod queue;
mod report;
mod settings;

glib::wrapper! {
    /// Restyles the video that flows through it; see the module's documentation.
    pub struct DitFilter(ObjectSubclass<imp::DitFilter>)
        @extends gst::Element, gst::Object, @implements gst::Preset;
}

/// The property `late-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitLatePolicy")]
pub enum DitLatePolicy {
    #[default]
    #[enum_value(
        name = "Degrade: fewer steps, smaller pictures, fewer frames, then pass through",
        nick = "degrade"
    )]
    Degrade,
    #[enum_value(
        name = "Repeat: full quality, late frames show the last picture again",
        nick = "repeat"
    )]
    Repeat,
    #[enum_value(
        name = "Passthrough: full quality, late frames pass as they are",
        nick = "passthrough"
    )]
    Passthrough,
    #[enum_value(name = "Wait: nothing is given up, frames come late", nick = "wait")]
    Wait,
}

/// The property `on-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitOnError")]
pub enum DitOnError {
    #[default]
    #[enum_value(
        name = "Passthrough: pass pictures as they are, warn once, try again",
        nick = "passthrough"
    )]
    Passthrough,
    #[enum_value(name = "Error: end the stream with an error", nick = "error")]
    Error,
}

/// Registers the element; it is never picked automatically.
///
/// # Errors
/// What GStreamer refuses to register.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        DitLatePolicy::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        DitOnError::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    super::loading::find_presets();
    gst::Element::register(Some(plugin), "ditfilter", gst::Rank::NONE, DitFilter::static_type())
}
