// SPDX-License-Identifier: MPL-2.0
//! `ditsrc`: endless video from a prompt.
//!
//! ```sh
//! # The model that comes with the plugin, three seconds into a file.
//! gst-launch-1.0 -e ditsrc num-buffers=48 prompt="a red circle moving right over the sea" seed=1 \
//!     ! videoconvert ! x264enc ! mp4mux ! filesink location=circle.mp4
//! # Live, at any size; the picture is scaled where the model was trained for less.
//! gst-launch-1.0 ditsrc is-live=true ! video/x-raw,width=1280,height=720 ! videoconvert ! autovideosink
//! ```
//!
//! Chunk after chunk of frames is generated, each continuing the last, on the model's own thread; one chunk
//! is made ahead. The same seed, prompts and settings give the same bytes on the same machine. A seek to the
//! start begins the same stream again; a seek elsewhere generates everything before it too, which is slow.
//! Prompts, guidance, steps and seed may change at any time: frames that are queued still go out, the next
//! chunk follows the change, and the message `dit-controls-applied` names its first frame.
//!
//! A live stream keeps to the clock. When the machine is too slow it takes fewer denoising steps, and while
//! the next frame is missing it repeats the last; `dit-degraded` and QoS messages say so, and it goes back to
//! full quality by itself. The latency is one frame, whatever loading took.
//!
//! | file | holds |
//! |---|---|
//! | `imp.rs` | the element: properties, states, filling of buffers |
//! | `negotiation.rs` | caps, seeks and queries, and what the session is asked for |
//! | `timeline.rs` | timestamps and the mapping of output frames to generated frames, in integers |
//! | `report.rs` | element messages, QoS, tags and the `stats` structure |

use gst::prelude::*;

mod imp;
mod negotiation;
mod report;
mod timeline;

glib::wrapper! {
    /// Generates endless video from a prompt; see the module's documentation.
    pub struct DitSrc(ObjectSubclass<imp::DitSrc>)
        @extends gst_base::PushSrc, gst_base::BaseSrc, gst::Element, gst::Object;
}

/// Registers the element; it is never picked automatically.
///
/// # Errors
/// What GStreamer refuses to register.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    #[cfg(feature = "doc")]
    super::settings::DitPrecision::static_type().mark_as_plugin_api(gst::PluginAPIFlags::empty());
    gst::Element::register(Some(plugin), "ditsrc", gst::Rank::NONE, DitSrc::static_type())
}
