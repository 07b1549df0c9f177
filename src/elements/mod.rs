// SPDX-License-Identifier: MPL-2.0
//! The GStreamer elements: negotiation, timestamps, latency, flushing, messages; no tensor arithmetic.

pub mod ditfilter;
pub mod ditmixer;
pub mod ditsrc;
pub mod loading;
pub mod report;
pub mod settings;

/// What `gst-inspect-1.0` says of an element: its name in words, its classes, and what it does.
fn metadata(
    name: &'static str,
    classes: &'static str,
    description: &'static str,
) -> gst::subclass::ElementMetadata {
    let authors = "The authors of gst-plugin-dit";
    gst::subclass::ElementMetadata::new(name, classes, description, authors)
}

/// Registers every element of the plugin.
///
/// # Errors
/// What GStreamer refuses to register.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    ditsrc::register(plugin)?;
    ditfilter::register(plugin)?;
    ditmixer::register(plugin)
}
