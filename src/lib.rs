// SPDX-License-Identifier: MPL-2.0
#![deny(unsafe_op_in_unsafe_fn)]
//! GStreamer elements around a latent video diffusion transformer.

pub mod elements;
pub mod error;
pub mod frames;
pub mod models;
pub mod nn;
pub mod pipeline;
pub mod schedulers;
pub mod session;
pub mod torch;
#[cfg(feature = "training")]
pub mod training;
pub mod weights;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    elements::register(plugin)
}

gst::plugin_define!(
    dit,
    env!("CARGO_PKG_DESCRIPTION"),
    plugin_init,
    concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
    "MPL-2.0",
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_NAME"),
    env!("CARGO_PKG_REPOSITORY"),
    env!("BUILD_REL_DATE")
);
