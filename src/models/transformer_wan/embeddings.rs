// SPDX-License-Identifier: MPL-2.0
//! Conditions to tokens: time, text and image embeddings (`condition_embedder`).

use tch::{Device, Kind, Tensor};

use super::WanTransformer3DModelConfig;
use crate::error::Result;
use crate::nn::{LayerNorm, Linear};
use crate::weights::{Init, Weights};

/// Epsilon of the image embedder's norms, which no configuration sets.
const IMAGE_NORM_EPS: f64 = 1e-5;

/// `[G]` timesteps to `[G, dim]`: cosines first, then sines, f32.
pub(super) fn time_sinusoid(timestep: &Tensor, dim: i64) -> Tensor {
    let half = dim / 2;
    let step = -(10_000f64.ln() as f32) as f64;
    let options = (Kind::Float, timestep.device());
    let frequency = (Tensor::arange(half, options) * step / half as f64).exp();
    let angles = timestep.to_kind(Kind::Float).unsqueeze(-1) * frequency;
    Tensor::cat(&[angles.cos(), angles.sin()], -1)
}

/// Two linear layers.
#[derive(Debug)]
struct TwoLayers {
    linear_1: Linear,
    linear_2: Linear,
}

impl TwoLayers {
    fn new(w: &Weights, input: i64, dim: i64) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(&w.pp("linear_1"), input, dim)?,
            linear_2: Linear::new(&w.pp("linear_2"), dim, dim)?,
        })
    }
}

/// Image embeddings to tokens beside the text.
#[derive(Debug)]
struct ImageEmbedder {
    /// `[1, P, image_dim]`, for two images laid end to end.
    pos_embed: Option<Tensor>,
    norm1: LayerNorm,
    net_0: Linear,
    net_2: Linear,
    norm2: LayerNorm,
}

impl ImageEmbedder {
    fn new(w: &Weights, config: &WanTransformer3DModelConfig, image_dim: i64) -> Result<Self> {
        let dim = config.dim();
        let pos_embed = config
            .pos_embed_seq_len
            .map(|length| w.get("pos_embed", &[1, length, image_dim], Init::Zeros))
            .transpose()?;
        let net = w.pp("ff").pp("net");
        Ok(Self {
            pos_embed,
            norm1: LayerNorm::affine(&w.pp("norm1"), image_dim, IMAGE_NORM_EPS)?,
            net_0: Linear::new(&net.pp(0).pp("proj"), image_dim, image_dim)?,
            net_2: Linear::new(&net.pp(2), image_dim, dim)?,
            norm2: LayerNorm::affine(&w.pp("norm2"), dim, IMAGE_NORM_EPS)?,
        })
    }

    /// `[Bi, S, image_dim]` to `[B, S', D]`.
    fn forward(&self, image: &Tensor) -> Tensor {
        let kind = self.net_0.weight.kind();
        let x = match &self.pos_embed {
            // The first and the last frame, stacked in the batch, become one sequence.
            Some(pos_embed) => {
                let s = image.size();
                image.reshape([-1, 2 * s[1], s[2]]) + pos_embed
            }
            None => image.shallow_clone(),
        };
        let x = self.net_0.forward(&self.norm1.forward(&x).to_kind(kind)).gelu("none");
        self.norm2.forward(&self.net_2.forward(&x)).to_kind(kind)
    }
}

/// Embeds timesteps, text and images.
#[derive(Debug)]
pub(super) struct ConditionEmbedder {
    time_embedder: TwoLayers,
    time_proj: Linear,
    text_embedder: TwoLayers,
    image_embedder: Option<ImageEmbedder>,
    freq_dim: i64,
}

impl ConditionEmbedder {
    pub fn new(w: &Weights, config: &WanTransformer3DModelConfig) -> Result<Self> {
        let dim = config.dim();
        let time = w.pp("time_embedder").with_kind(Kind::Float);
        let image_embedder = config
            .image_dim
            .map(|image_dim| ImageEmbedder::new(&w.pp("image_embedder"), config, image_dim))
            .transpose()?;
        Ok(Self {
            time_embedder: TwoLayers::new(&time, config.freq_dim, dim)?,
            // Small, so that training starts with gates near closed.
            time_proj: Linear::with_init(&w.pp("time_proj"), dim, 6 * dim, Init::Normal(0.02))?,
            text_embedder: TwoLayers::new(&w.pp("text_embedder"), config.text_dim, dim)?,
            image_embedder,
            freq_dim: config.freq_dim,
        })
    }

    /// `[B, G]` timesteps to `temb` `[B, G, D]` and its projection `[B, G, 6, D]`, both in the kind of the model.
    pub fn time(&self, timestep: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let (batch, groups) = (timestep.size()[0], timestep.size()[1]);
        let sinusoid = time_sinusoid(&timestep.reshape(-1), self.freq_dim);
        let hidden = self.time_embedder.linear_1.forward(&sinusoid).silu();
        let temb = self.time_embedder.linear_2.forward(&hidden).to_kind(kind);
        let projected = self.time_proj.forward(&temb.silu());
        (temb.view([batch, groups, -1]), projected.view([batch, groups, 6, -1]))
    }

    /// `[B, L, text_dim]` to `[B, L, D]`.
    pub fn text(&self, encoder_hidden_states: &Tensor) -> Tensor {
        let hidden = self.text_embedder.linear_1.forward(encoder_hidden_states).gelu("tanh");
        self.text_embedder.linear_2.forward(&hidden)
    }

    /// `[Bi, S, image_dim]` to `[B, S', D]`, if the model takes images.
    pub fn image(&self, image: &Tensor) -> Option<Tensor> {
        self.image_embedder.as_ref().map(|embedder| embedder.forward(image))
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.time_proj.weight.device()
    }
}
