// SPDX-License-Identifier: MPL-2.0
//! How much memory a request takes, before any of it is taken.
//!
//! Weights, caches and token counts are exact; activations are estimated from the widest layers.

use tch::{Device, Kind};

use super::{FolderInfo, load};
use crate::error::{Error, Result};
use crate::torch::{Precision, available_memory, device_name, kind_bytes};

const MIB: u64 = 1 << 20;

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    pub weights: u64,
    /// Key-value caches of a causal rollout, and prompts.
    pub attention_caches: u64,
    /// Features that the decoder keeps between chunks.
    pub vae_caches: u64,
    /// The larger of transformer and decoder.
    pub activations: u64,
}

impl MemoryEstimate {
    /// All together.
    pub fn total(&self) -> u64 {
        self.weights + self.attention_caches + self.vae_caches + self.activations
    }
}

impl FolderInfo {
    /// What an output of `width` x `height` pixels takes on a device.
    ///
    /// # Errors
    /// Weight files that are missing or damaged.
    pub fn estimate_memory(
        &self,
        width: i64,
        height: i64,
        device: Device,
        precision: Precision,
    ) -> Result<MemoryEstimate> {
        let (width, height) = self.padded_size(width, height);
        let kind = kind_bytes(precision.kind(device));
        let config = &self.transformer;
        let frames = self.window_latent_frames().max(1) as u64;
        let multiple = self.size_multiple();
        let tokens = frames * ((width / multiple) * (height / multiple)) as u64;
        let (dim, ffn) = (config.dim() as u64, config.ffn_dim as u64);
        let text = self.native.max_sequence_length as u64;
        let layers = config.num_layers as u64;
        let experts = 1 + u64::from(self.transformer_2.is_some());
        let kept = if self.native.causal { tokens } else { 0 };
        // Two prompts; keys and values.
        let attention_caches = 4 * layers * dim * kind * (kept + text * experts);
        // Of one block: a dozen copies of the tokens, half of them in f32, and the inside of the feed-forward.
        let transformer = tokens * (dim * (6 * kind + 24) + 2 * ffn * kind);
        Ok(MemoryEstimate {
            weights: load::weight_bytes(self, device, precision)?,
            attention_caches,
            vae_caches: self.decoder_features(width, height, 2) * self.decoder_convolutions(),
            // About six tensors of the widest level live at once.
            activations: transformer
                .max(6 * self.decoder_features(width, height, self.vae.temporal_factor())),
        })
    }

    /// Bytes of `frames` frames of the decoder's features at full size, in f32.
    fn decoder_features(&self, width: i64, height: i64, frames: i64) -> u64 {
        let patch = self.vae.patch_size.unwrap_or(1);
        let base = self.vae.decoder_base_dim.unwrap_or(self.vae.base_dim);
        let widest = base * self.vae.dim_mult.get(1).copied().unwrap_or(1);
        (frames * widest * (width / patch) * (height / patch) * 4) as u64
    }

    /// Temporal convolutions of the decoder, in units of those at full size.
    fn decoder_convolutions(&self) -> u64 {
        // Each level has a quarter of the pixels of the next, with up to twice the channels.
        2 * (2 * (self.vae.num_res_blocks as u64 + 1) + 2)
    }

    /// Refuses what cannot fit.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the arithmetic and what to change; those of [`Self::estimate_memory`].
    pub fn check_memory(
        &self,
        width: i64,
        height: i64,
        device: Device,
        precision: Precision,
    ) -> Result<()> {
        let estimate = self.estimate_memory(width, height, device, precision)?;
        let Some(available) = available_memory(device) else { return Ok(()) };
        if estimate.total() <= available {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(MIB);
        let smaller = if estimate.weights > available { "model" } else { "width and height" };
        let narrower = match precision.kind(device) {
            Kind::Float => "precision=bf16, ",
            _ => "",
        };
        let advice = format!("choose a smaller {smaller}, {narrower}or another device");
        Err(Error::OutOfMemory {
            device: device_name(device),
            needed_mib: mib(estimate.total()),
            available_mib: available / MIB,
            breakdown: format!(
                "weights {}, attention caches {}, autoencoder caches {}, activations {}",
                mib(estimate.weights),
                mib(estimate.attention_caches),
                mib(estimate.vae_caches),
                mib(estimate.activations)
            ),
            advice,
        })
    }
}
