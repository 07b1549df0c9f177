// SPDX-License-Identifier: MPL-2.0
//! `AutoencoderKLWan`: video to latents and back, Wan 2.1 (flat) and Wan 2.2 (residual, patchified).
//!
//! Video is `[B, 3, F, H, W]` in [-1, 1] with F = 4n+1 at the start of a stream and 4n after; latents are
//! `[B, z_dim, T, H/s, W/s]`. Both directions take a [`FeatureCaches`]: a fresh one starts a clip, a kept one
//! continues it, and any cut into pieces gives the same numbers as one pass.
//!
//! Follows diffusers `models/autoencoders/autoencoder_kl_wan.py` (0.42.1); the reference works through a clip
//! one latent frame at a time, here a piece is one call with the cache only at its edges.

mod blocks;
mod decoder;
mod encoder;
mod tiling;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::nn::conv3d::{CausalConv3d, FeatureCaches, SlotCounter, channels_last};
use crate::weights::{Init, Weights};
use decoder::Decoder3d;
use encoder::Encoder3d;
pub use tiling::Tiling;

/// `vae/config.json`.
#[derive(Debug, Clone, PartialEq, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct AutoencoderKLWanConfig {
    pub base_dim: i64,
    pub decoder_base_dim: Option<i64>,
    pub z_dim: i64,
    pub dim_mult: Vec<i64>,
    pub num_res_blocks: i64,
    pub attn_scales: Vec<f64>,
    /// Spelt as the checkpoints spell it.
    #[serde(rename = "temperal_downsample")]
    pub temporal_downsample: Vec<bool>,
    pub is_residual: bool,
    pub in_channels: i64,
    pub out_channels: i64,
    pub patch_size: Option<i64>,
    pub scale_factor_temporal: i64,
    pub scale_factor_spatial: i64,
    pub latents_mean: Vec<f64>,
    pub latents_std: Vec<f64>,
}

impl Default for AutoencoderKLWanConfig {
    /// The published Wan 2.1 autoencoder.
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temporal_downsample: vec![false, true, true],
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
            scale_factor_temporal: 4,
            scale_factor_spatial: 8,
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134,
                -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526,
                2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
            ],
        }
    }
}

impl AutoencoderKLWanConfig {
    /// Pixels of one latent in height and width.
    pub fn spatial_factor(&self) -> i64 {
        (1 << (self.dim_mult.len() - 1)) * self.patch_size.unwrap_or(1)
    }

    /// Frames of one latent frame after the first.
    pub fn temporal_factor(&self) -> i64 {
        1 << self.temporal_downsample.iter().filter(|&&down| down).count()
    }

    /// Latent frames of a clip of `num_frames` frames (4n+1).
    pub fn num_latent_frames(&self, num_frames: i64) -> i64 {
        (num_frames - 1) / self.temporal_factor() + 1
    }

    /// Whether some level's weightless shortcut cannot share its channels out evenly.
    fn shortcuts_uneven(&self) -> bool {
        let base = self.base_dim;
        let mut input = base;
        self.dim_mult.iter().enumerate().any(|(level, &mult)| {
            let output = mult * base;
            let factor = match self.temporal_downsample.get(level) {
                Some(true) => 8,
                Some(false) => 4,
                None => 1,
            };
            // Decoders run the same steps the other way: out * factor must be a multiple of in there.
            let uneven = input * factor % output != 0;
            input = output;
            uneven
        })
    }

    /// Checks what the code relies on.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the key.
    pub fn validate(&self) -> Result<()> {
        self.validate_levels()?;
        self.validate_ends()
    }

    /// Levels, channels and shortcuts.
    fn validate_levels(&self) -> Result<()> {
        // Far above any published model; keeps products of them inside 64 bits.
        const LARGEST: i64 = 1 << 16;
        let levels = self.dim_mult.len();
        if !(2..=8).contains(&levels) || self.dim_mult.iter().any(|m| !(1..=256).contains(m)) {
            let found = format!("{:?}", self.dim_mult);
            return wrong("dim_mult", found, "two to eight numbers from 1 to 256");
        }
        if self.temporal_downsample.len() != levels - 1 {
            let found = format!("{:?}", self.temporal_downsample);
            return wrong("temperal_downsample", found, "one entry fewer than dim_mult");
        }
        if !self.attn_scales.is_empty() {
            return wrong("attn_scales", format!("{:?}", self.attn_scales), "an empty list");
        }
        let decoder_base_dim = self.decoder_base_dim.unwrap_or(1);
        for (key, value) in [
            ("base_dim", self.base_dim),
            ("decoder_base_dim", decoder_base_dim),
            ("z_dim", self.z_dim),
            ("num_res_blocks", self.num_res_blocks),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return wrong(key, value.to_string(), "a number from 1 to 2^16");
            }
        }
        if self.is_residual && self.shortcuts_uneven() {
            let found = format!("{:?}", self.dim_mult);
            return wrong("dim_mult", found, "channels that the residual shortcuts divide evenly");
        }
        Ok(())
    }

    /// Pixels at one end, latents at the other.
    fn validate_ends(&self) -> Result<()> {
        let patch = self.patch_size.unwrap_or(1);
        if !(1..=8).contains(&patch)
            || self.in_channels != 3 * patch * patch
            || self.out_channels != self.in_channels
        {
            let found =
                format!("{} and {} with patch_size {patch}", self.in_channels, self.out_channels);
            return wrong("in_channels, out_channels", found, "3 * patch_size^2");
        }
        for (key, values) in
            [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)]
        {
            if values.len() as i64 != self.z_dim || values.iter().any(|v| !v.is_finite()) {
                let expected = format!("{} finite values", self.z_dim);
                return wrong(key, format!("{} values", values.len()), &expected);
            }
        }
        if self.latents_std.iter().any(|&std| std <= 0.0) {
            return wrong("latents_std", "a value of 0 or below".into(), "positive values");
        }
        Ok(())
    }
}

fn wrong(key: &str, found: String, expected: &str) -> Result<()> {
    Err(Error::setting(format!("vae/config.json: {key}"), found, expected))
}

/// The autoencoder; immutable, so one instance serves any number of streams and training.
#[derive(Debug)]
pub struct AutoencoderKLWan {
    config: AutoencoderKLWanConfig,
    encoder: Encoder3d,
    quant_conv: CausalConv3d,
    post_quant_conv: CausalConv3d,
    decoder: Decoder3d,
    /// `[1, z, 1, 1, 1]`.
    latents_mean: Tensor,
    /// The reciprocal of the standard deviation, rounded to the kind of the weights as the pipelines do.
    latents_inv_std: Tensor,
}

/// The distribution that the encoder returns.
#[derive(Debug)]
pub struct DiagonalGaussian {
    /// `[B, z, T, h, w]`.
    pub mean: Tensor,
    /// `[B, z, T, h, w]`, clamped to [-30, 20].
    pub logvar: Tensor,
}

impl AutoencoderKLWan {
    /// Builds the model from weights under the keys of diffusers.
    ///
    /// # Errors
    /// Those of [`AutoencoderKLWanConfig::validate`] and [`Weights::get`].
    pub fn new(w: &Weights, config: &AutoencoderKLWanConfig) -> Result<Self> {
        config.validate()?;
        let z = config.z_dim;
        let mut slots = SlotCounter::default();
        let encoder = Encoder3d::new(&w.pp("encoder"), &mut slots, config)?;
        let mut slots = SlotCounter::default();
        let decoder = Decoder3d::new(&w.pp("decoder"), &mut slots, config)?;
        let pointwise = |name: &str, channels: i64| {
            CausalConv3d::new(
                &w.pp(name),
                &mut SlotCounter::default(),
                (channels, channels),
                [1, 1, 1],
                Init::FanIn(1.0),
            )
        };
        let column = |values: &[f64]| {
            Tensor::from_slice(values)
                .to_kind(Kind::Float)
                .to_device(w.device())
                .view([1, z, 1, 1, 1])
        };
        Ok(Self {
            encoder,
            decoder,
            quant_conv: pointwise("quant_conv", 2 * z)?,
            post_quant_conv: pointwise("post_quant_conv", z)?,
            latents_mean: column(&config.latents_mean).to_kind(w.kind()),
            latents_inv_std: column(&config.latents_std).to_kind(w.kind()).reciprocal(),
            config: config.clone(),
        })
    }

    /// The configuration the model was built with.
    pub fn config(&self) -> &AutoencoderKLWanConfig {
        &self.config
    }

    /// The kind the model computes in.
    pub fn kind(&self) -> Kind {
        self.latents_mean.kind()
    }

    /// Encodes a piece of a clip: `[B, 3, F, H, W]` in [-1, 1] to the latent distribution, F being 4n+1 for the
    /// first piece in `caches` and 4n for later ones, H and W multiples of the spatial factor.
    pub fn encode(&self, video: &Tensor, caches: &mut FeatureCaches) -> DiagonalGaussian {
        let x = video.to_kind(self.kind());
        let x = match self.config.patch_size {
            Some(patch) if patch > 1 => patchify(&x, patch),
            _ => x,
        };
        let h = self.encoder.forward(&channels_last(&x), caches);
        let h = self.quant_conv.forward(&h, caches);
        let mut halves = h.chunk(2, 1);
        let logvar = halves.remove(1).clamp(-30.0, 20.0);
        DiagonalGaussian { mean: halves.remove(0), logvar }
    }

    /// Decodes a piece of a clip: unnormalised latents `[B, z, T, h, w]` to `[B, 3, F, H, W]`, with F = 4(T-1)+1 for
    /// the first piece in `caches` and 4T for later ones, not clamped.
    pub fn decode_unclamped(&self, latents: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let z = channels_last(&latents.to_kind(self.kind()));
        let x = self.decoder.forward(&self.post_quant_conv.forward(&z, caches), caches);
        match self.config.patch_size {
            Some(patch) if patch > 1 => unpatchify(&x, patch),
            _ => x,
        }
    }

    /// As [`Self::decode_unclamped`], clamped to [-1, 1].
    pub fn decode(&self, latents: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        self.decode_unclamped(latents, caches).clamp(-1.0, 1.0)
    }

    /// Latents as the transformer sees them: `(z - mean) / std`.
    pub fn normalize_latents(&self, latents: &Tensor) -> Tensor {
        (latents - &self.latents_mean) * &self.latents_inv_std
    }

    /// The inverse of [`Self::normalize_latents`].
    pub fn denormalize_latents(&self, latents: &Tensor) -> Tensor {
        latents.to_kind(self.kind()) / &self.latents_inv_std + &self.latents_mean
    }
}

/// Folds `p x p` pixels into channels: `[B, C, F, H, W]` to `[B, C*p*p, F, H/p, W/p]`, channel = c*p*p + dw*p + dh.
fn patchify(x: &Tensor, p: i64) -> Tensor {
    let s = x.size();
    x.reshape([s[0], s[1], s[2], s[3] / p, p, s[4] / p, p])
        .permute([0, 1, 6, 4, 2, 3, 5])
        .reshape([s[0], s[1] * p * p, s[2], s[3] / p, s[4] / p])
}

/// The inverse of [`patchify`].
fn unpatchify(x: &Tensor, p: i64) -> Tensor {
    let s = x.size();
    let channels = s[1] / (p * p);
    x.reshape([s[0], channels, p, p, s[2], s[3], s[4]]).permute([0, 1, 4, 5, 3, 6, 2]).reshape([
        s[0],
        channels,
        s[2],
        s[3] * p,
        s[4] * p,
    ])
}
