// SPDX-License-Identifier: MPL-2.0
//! `ditsrc`: endless video from a prompt.
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
