// SPDX-License-Identifier: MPL-2.0
//! `ditmixer`: one video turns into another.
//!
//! ```sh
//! # Two files, one after the other, with twelve frames between them that the model makes of the end of the one and the
//! # beginning of the other.
//! gst-launch-1.0 -e ditmixer name=mix mode=bridge transition-duration=750000000 \
//!     ! videoconvert ! video/x-raw,format=I420 ! x264enc ! mp4mux ! filesink location=bridged.mp4 \
//!     filesrc location=a.mp4 ! decodebin ! videoconvert ! mix.sink_0 \
//!     filesrc location=b.mp4 ! decodebin ! videoconvert ! mix.sink_1
//! ```
//!
//! `mix` goes from the first stream (0) to the last (1); at a stream the output is that stream, byte for byte once it is
//! scaled. In between the model makes a third thing: latents of both are interpolated, noised (most half-way, see
//! `creativity`), denoised under the prompts of both pads, continuing what was shown. Near either end the stream itself
//! shines through, so that nothing jumps. A `transition` is a sweep of `mix` from one stream to its neighbour within a
//! time, by the action signal of that name or at a running time (`transition-at`).
//!
//! Streams are aligned by running time; slower ones repeat frames, what ends early is held or replaced (`on-missing`).
//! In `mode=bridge` files wait for each other instead. A file waits for the model, a live stream does not: a frame that
//! is not ready when it is due goes out as a crossfade, with a QoS message and `dit-degraded`, and the model is asked for
//! fewer steps. The latency is that of two chunks and one frame; with `mode=crossfade` it is one frame. Live frames leave one
//! frame before they are shown, those of a stream alone as well: a sink holds on to what comes early, and to this element's
//! thread, which then takes in nothing.
//!
//! A `tee` that feeds both pads needs a `queue` on each branch, and so does every live source.
//!
//! | file | holds |
//! |---|---|
//! | `imp.rs` | the element: states, the base class's calls, latency |
//! | `properties.rs` | its properties |
//! | `pad.rs` | a sink pad: its properties, its frames in the output's format |
//! | `negotiation.rs` | size, shape, rate and latency of the output |
//! | `mixing.rs` | which streams are mixed and by how much; transitions |
//! | `slot.rs` | one output frame: what is mixed for it |
//! | `bridge.rs` | one stream after the other, with a bridge between |
//! | `run.rs` | pairs of frames on their way into chunks for the model |
//! | `queue.rs` | output frames that wait for the model, and when they go out without it |
//! | `picture.rs` | scaling, conversion, crossfade |
//! | `report.rs` | element messages |

use gst::prelude::*;

mod bridge;
mod imp;
mod mixing;
mod negotiation;
mod pad;
mod picture;
mod properties;
mod queue;
mod report;
mod run;
mod slot;

pub use mixing::DitEasing;
pub use picture::DitSizing;

/// What lies between two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitMixMode")]
pub enum DitMixMode {
    #[default]
    #[enum_value(
        name = "Interpolate: what the model makes of the mix of both",
        nick = "interpolate"
    )]
    Interpolate,
    #[enum_value(
        name = "Bridge: one stream, then what the model puts between its end and the beginning of the next",
        nick = "bridge"
    )]
    Bridge,
    #[enum_value(name = "Crossfade: both pictures laid over each other", nick = "crossfade")]
    Crossfade,
}

/// What stands in for a stream that shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitMissing")]
pub enum DitMissing {
    #[default]
    #[enum_value(name = "Fall back: the other stream", nick = "fall-back")]
    FallBack,
    #[enum_value(name = "Hold: its last picture", nick = "hold")]
    Hold,
}

glib::wrapper! {
    /// A sink pad of [`DitMixer`].
    pub struct DitMixerPad(ObjectSubclass<pad::DitMixerPad>)
        @extends gst_video::VideoAggregatorConvertPad, gst_video::VideoAggregatorPad, gst_base::AggregatorPad, gst::Pad, gst::Object;
}

glib::wrapper! {
    /// Turns one video into another; see the module's documentation.
    pub struct DitMixer(ObjectSubclass<imp::DitMixer>)
        @extends gst_video::VideoAggregator, gst_base::Aggregator, gst::Element, gst::Object,
        @implements gst::ChildProxy;
}

/// Registers the element; it is never picked automatically.
///
/// # Errors
/// What GStreamer refuses to register.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    {
        DitEasing::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        DitSizing::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        DitMixMode::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        DitMissing::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
        DitMixerPad::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "ditmixer", gst::Rank::NONE, DitMixer::static_type())
}
