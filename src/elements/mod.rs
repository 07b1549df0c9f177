// SPDX-License-Identifier: MPL-2.0
//! The GStreamer elements: negotiation, timestamps, latency, flushing, messages; no tensor arithmetic.

pub mod ditfilter;
pub mod ditmixer;
pub mod ditsrc;
pub mod loading;
pub mod report;
pub mod settings;

/// Registers every element of the plugin.
///
/// # Errors
/// What GStreamer refuses to register.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    ditsrc::register(plugin)?;
    ditfilter::register(plugin)?;
    ditmixer::register(plugin)
}
