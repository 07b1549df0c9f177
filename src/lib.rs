// SPDX-License-Identifier: MPL-2.0
#![deny(unsafe_op_in_unsafe_fn)]
//! GStreamer elements around a latent video diffusion transformer.
//!
//! ```text
//! elements -> session (worker thread) -> pipeline (sampling) -> models + schedulers -> nn -> weights -> torch
//!     \__ frames (pixels to and from GStreamer, files) -> pipeline
//!
//! bin/dit-train -> training -> frames, pipeline, models, schedulers, nn, weights, torch
//! ```
//!
//! A layer imports only from those to its right; only `elements/`, `frames` and this file name GStreamer.
//!
//! Five minutes to find one's way: `elements/ditsrc/imp.rs` asks a session for a frame; `session/` runs a model's
//! thread; `pipeline/` is the sampling algorithm; `models/transformer_wan/` can be read beside diffusers' file of that
//! name; `weights/` reads the folder.

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
