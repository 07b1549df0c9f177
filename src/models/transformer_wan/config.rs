// SPDX-License-Identifier: MPL-2.0
//! `transformer/config.json`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Settings of `WanTransformer3DModel`; defaults are those of diffusers (the 14B model).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct WanTransformer3DModelConfig {
    /// Latents of one token along time, height and width.
    pub patch_size: [i64; 3],
    pub num_attention_heads: i64,
    pub attention_head_dim: i64,
    pub in_channels: i64,
    /// `None` means `in_channels`.
    pub out_channels: Option<i64>,
    pub text_dim: i64,
    pub freq_dim: i64,
    pub ffn_dim: i64,
    pub num_layers: i64,
    pub cross_attn_norm: bool,
    pub eps: f64,
    /// Channels of image embeddings (2.1 image-to-video).
    pub image_dim: Option<i64>,
    pub added_kv_proj_dim: Option<i64>,
    pub rope_max_seq_len: i64,
    /// Image tokens of the two frames that the 2.1 first-last-frame model takes.
    pub pos_embed_seq_len: Option<i64>,
    /// Layers after which the control branch is added (`WanVACETransformer3DModel`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vace_layers: Option<Vec<i64>>,
    #[serde(skip_serializing_if = "without_vace")]
    pub vace_in_channels: i64,
}

/// Leaves a key out of files for models without the branch, which diffusers would refuse.
fn without_vace(channels: &i64) -> bool {
    *channels == DEFAULT_VACE_CHANNELS
}

const DEFAULT_VACE_CHANNELS: i64 = 96;

impl Default for WanTransformer3DModelConfig {
    fn default() -> Self {
        Self {
            patch_size: [1, 2, 2],
            num_attention_heads: 40,
            attention_head_dim: 128,
            in_channels: 16,
            out_channels: Some(16),
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
            vace_layers: None,
            vace_in_channels: DEFAULT_VACE_CHANNELS,
        }
    }
}

impl WanTransformer3DModelConfig {
    /// Width of a token.
    pub fn dim(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the flow that the model returns.
    pub fn output_channels(&self) -> i64 {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Latents in one token.
    pub fn patch_volume(&self) -> i64 {
        self.patch_size.iter().product()
    }

    /// Checks what the code relies on; `component` is the folder that it was read from.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the file and the key.
    pub fn validate(&self, component: &str) -> Result<()> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(Error::setting(format!("{component}/config.json: {key}"), found, expected))
        };
        let positive = [
            ("num_attention_heads", self.num_attention_heads),
            ("in_channels", self.in_channels),
            ("out_channels", self.output_channels()),
            ("text_dim", self.text_dim),
            ("ffn_dim", self.ffn_dim),
            ("num_layers", self.num_layers),
            ("rope_max_seq_len", self.rope_max_seq_len),
            ("vace_in_channels", self.vace_in_channels),
            ("image_dim", self.image_dim.unwrap_or(1)),
            ("added_kv_proj_dim", self.added_kv_proj_dim.unwrap_or(1)),
        ];
        // Far above any published model; keeps products of two inside 64 bits.
        const LARGEST: i64 = 1 << 24;
        for (key, value) in positive {
            if !(1..=LARGEST).contains(&value) {
                return wrong(key, value.to_string(), "a number from 1 to 2^24");
            }
        }
        if self.patch_size.iter().any(|p| !(1..=64).contains(p)) {
            return wrong(
                "patch_size",
                format!("{:?}", self.patch_size),
                "three numbers from 1 to 64",
            );
        }
        let head = self.attention_head_dim;
        if head % 2 != 0 || !(6..=LARGEST).contains(&head) {
            let expected = "an even number of at least 6, to share among three axes";
            return wrong("attention_head_dim", head.to_string(), expected);
        }
        if self.freq_dim < 2 || self.freq_dim % 2 != 0 || self.freq_dim > LARGEST {
            return wrong("freq_dim", self.freq_dim.to_string(), "an even number of at least 2");
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return wrong("eps", self.eps.to_string(), "a small number above 0");
        }
        if self.pos_embed_seq_len.is_some_and(|length| length < 2 || length % 2 != 0) {
            let found = format!("{:?}", self.pos_embed_seq_len);
            return wrong("pos_embed_seq_len", found, "null or an even number of image tokens");
        }
        if let Some(layers) = &self.vace_layers {
            let rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
            if layers.first() != Some(&0) || !rising || layers.last() >= Some(&self.num_layers) {
                let expected = "rising layer numbers from 0, below num_layers";
                return wrong("vace_layers", format!("{layers:?}"), expected);
            }
        }
        if self.image_dim.is_some() != self.added_kv_proj_dim.is_some() {
            let found = format!("{:?} and {:?}", self.image_dim, self.added_kv_proj_dim);
            return wrong("image_dim, added_kv_proj_dim", found, "both or neither");
        }
        Ok(())
    }
}
