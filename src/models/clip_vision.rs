// SPDX-License-Identifier: MPL-2.0
//! `CLIPVisionModel` as Wan 2.1 image-to-video uses it: pictures `[B, 3, S, S]`, resized and normalised, to what the last layer
//! would take in, `[B, 1 + (S / patch)^2, hidden_size]`.
//!
//! Follows transformers `models/clip/modeling_clip.py`. The last layer and the norm after it are never run, and so not loaded.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::nn::attention::{attention, merge_heads, split_heads};
use crate::nn::{LayerNorm, Linear};
use crate::weights::{Init, Weights};

/// `image_encoder/config.json`; defaults are those of the published checkpoint (ViT-H/14).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_channels: i64,
    pub image_size: i64,
    pub patch_size: i64,
    /// `gelu` or `quick_gelu`.
    pub hidden_act: String,
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1280,
            intermediate_size: 5120,
            num_hidden_layers: 32,
            num_attention_heads: 16,
            num_channels: 3,
            image_size: 224,
            patch_size: 14,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// Checks what the code relies on.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(Error::setting(format!("image_encoder/config.json: {key}"), found, expected))
        };
        const LARGEST: i64 = 1 << 20;
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("patch_size", self.patch_size),
            ("image_size", self.image_size),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return wrong(key, value.to_string(), "a number from 1 to 2^20");
            }
        }
        if self.num_channels != 3 {
            return wrong("num_channels", self.num_channels.to_string(), "3");
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            let found = format!("{} and {}", self.hidden_size, self.num_attention_heads);
            return wrong("hidden_size, num_attention_heads", found, "a multiple of the heads");
        }
        if self.image_size < self.patch_size {
            return wrong("image_size", self.image_size.to_string(), "at least patch_size");
        }
        if !matches!(self.hidden_act.as_str(), "gelu" | "quick_gelu") {
            return wrong("hidden_act", self.hidden_act.clone(), "gelu or quick_gelu");
        }
        Ok(())
    }
}

/// One layer: attention and two-layer network, each on the normalised input and added to it.
#[derive(Debug)]
struct Layer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn new(w: &Weights, config: &ClipVisionConfig) -> Result<Self> {
        let (dim, eps) = (config.hidden_size, config.layer_norm_eps);
        let (attention, mlp) = (w.pp("self_attn"), w.pp("mlp"));
        Ok(Self {
            layer_norm1: LayerNorm::affine(&w.pp("layer_norm1"), dim, eps)?,
            q_proj: Linear::new(&attention.pp("q_proj"), dim, dim)?,
            k_proj: Linear::new(&attention.pp("k_proj"), dim, dim)?,
            v_proj: Linear::new(&attention.pp("v_proj"), dim, dim)?,
            out_proj: Linear::new(&attention.pp("out_proj"), dim, dim)?,
            layer_norm2: LayerNorm::affine(&w.pp("layer_norm2"), dim, eps)?,
            fc1: Linear::new(&mlp.pp("fc1"), dim, config.intermediate_size)?,
            fc2: Linear::new(&mlp.pp("fc2"), config.intermediate_size, dim)?,
        })
    }

    fn forward(&self, x: &Tensor, config: &ClipVisionConfig) -> Tensor {
        let n = self.layer_norm1.forward(x);
        let heads = |linear: &Linear| split_heads(&linear.forward(&n), config.num_attention_heads);
        let seen =
            attention(&heads(&self.q_proj), &heads(&self.k_proj), &heads(&self.v_proj), None);
        let x = x + self.out_proj.forward(&merge_heads(&seen));
        let hidden = self.fc1.forward(&self.layer_norm2.forward(&x));
        let hidden = match config.hidden_act.as_str() {
            "quick_gelu" => (&hidden * 1.702).sigmoid() * hidden,
            _ => hidden.gelu("none"),
        };
        x + self.fc2.forward(&hidden)
    }
}

/// The image encoder.
#[derive(Debug)]
pub struct ClipVisionModel {
    config: ClipVisionConfig,
    /// `[hidden_size]`.
    class_embedding: Tensor,
    /// `[hidden_size, 3, patch, patch]`.
    patch_embedding: Tensor,
    /// `[1 + patches, hidden_size]`.
    position_embedding: Tensor,
    pre_layrnorm: LayerNorm,
    layers: Vec<Layer>,
}

impl ClipVisionModel {
    /// Takes the weights of an `image_encoder` folder, whose keys may start with `vision_model.` or not.
    ///
    /// # Errors
    /// Those of [`ClipVisionConfig::validate`] and [`Weights::get`].
    pub fn new(w: &Weights, config: &ClipVisionConfig) -> Result<Self> {
        config.validate()?;
        let prefixed = w.pp("vision_model");
        let w = if prefixed.contains("embeddings.class_embedding") { &prefixed } else { w };
        let (dim, patch) = (config.hidden_size, config.patch_size);
        let side = config.image_size / patch;
        let embeddings = w.pp("embeddings");
        let layers = w.pp("encoder").pp("layers");
        let normal = Init::Normal(0.02);
        Ok(Self {
            class_embedding: embeddings.get("class_embedding", &[dim], normal)?,
            patch_embedding: embeddings.pp("patch_embedding").get(
                "weight",
                &[dim, config.num_channels, patch, patch],
                Init::FanIn(1.0),
            )?,
            position_embedding: embeddings.pp("position_embedding").get(
                "weight",
                &[side * side + 1, dim],
                normal,
            )?,
            pre_layrnorm: LayerNorm::affine(&w.pp("pre_layrnorm"), dim, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers - 1)
                .map(|i| Layer::new(&layers.pp(i), config))
                .collect::<Result<_>>()?,
            config: config.clone(),
        })
    }

    /// The configuration the model was built with.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Whether a key of the files may stay unused: what comes after the second to last layer.
    pub fn may_ignore(config: &ClipVisionConfig, key: &str) -> bool {
        let key = key.strip_prefix("vision_model.").unwrap_or(key);
        let last = format!("encoder.layers.{}.", config.num_hidden_layers - 1);
        key.starts_with(&last)
            || key.starts_with("post_layernorm.")
            || key.ends_with("position_ids")
    }

    /// Normalised pictures `[B, 3, S, S]` to the hidden states before the last layer, `[B, 1 + patches, hidden_size]`.
    pub fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let batch = pixel_values.size()[0];
        let (dim, patch) = (self.config.hidden_size, self.config.patch_size);
        let pixels = pixel_values.to_kind(self.patch_embedding.kind());
        let patches = pixels
            .conv2d(&self.patch_embedding, None::<&Tensor>, [patch, patch], [0, 0], [1, 1], 1)
            .flatten(2, 3)
            .transpose(1, 2); // [B, patches, D]
        let class = self.class_embedding.view([1, 1, dim]).expand([batch, 1, dim], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.position_embedding;
        let x = self.pre_layrnorm.forward(&x);
        self.layers.iter().fold(x, |x, layer| layer.forward(&x, &self.config)).to_kind(Kind::Float)
    }
}
