// SPDX-License-Identifier: MPL-2.0
//! The networks, one per file, under diffusers' names; pure functions of weights, tensors and explicit caches.

pub mod autoencoder_kl_wan;
pub mod clip_vision;
mod text_repair;
pub mod tokenizer;
pub mod transformer_wan;
pub mod umt5;
