// SPDX-License-Identifier: MPL-2.0
#![deny(unsafe_op_in_unsafe_fn)]
//! GStreamer elements around a latent video diffusion transformer.

pub mod error;
pub mod models;
pub mod nn;
pub mod pipeline;
pub mod schedulers;
pub mod torch;
#[cfg(feature = "training")]
pub mod training;
pub mod weights;
