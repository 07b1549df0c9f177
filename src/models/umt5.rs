// SPDX-License-Identifier: MPL-2.0
//! `UMT5EncoderModel`: token ids `[B, L]` to text embeddings `[B, L, d_model]`.
//!
//! A T5 encoder in which every layer has its own relative position bias. Scores are not scaled by the head size, and
//! norms are root-mean-square ones. Follows transformers `models/umt5/modeling_umt5.py` (5.x), without dropout.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::nn::{Linear, RmsNorm};
use crate::weights::{Init, Weights};

/// A second copy of the embedding that some folders hold; it is tied to `shared.weight`.
const TIED_EMBEDDING: &str = "encoder.embed_tokens.weight";
/// What half-precision activations are kept within, so that later sums stay finite.
const HALF_LIMIT: f64 = 65504.0 - 1000.0;

/// `text_encoder/config.json`; defaults are those of transformers.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Umt5Config {
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Size of a token's embedding.
    pub d_model: i64,
    /// Size of a head.
    pub d_kv: i64,
    /// Inner size of the feed-forward part.
    pub d_ff: i64,
    pub num_layers: i64,
    pub num_heads: i64,
    /// Buckets of relative positions, half of them for each direction.
    pub relative_attention_num_buckets: i64,
    /// Distance from which on all positions share the last bucket.
    pub relative_attention_max_distance: i64,
    pub layer_norm_epsilon: f64,
    /// Must be `gated-gelu`.
    pub feed_forward_proj: String,
}

impl Default for Umt5Config {
    fn default() -> Self {
        Self {
            vocab_size: 250_112,
            d_model: 512,
            d_kv: 64,
            d_ff: 1024,
            num_layers: 8,
            num_heads: 6,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "gated-gelu".to_owned(),
        }
    }
}

impl Umt5Config {
    /// Checks what the code relies on.
    ///
    /// # Errors
    /// [`Error::Setting`] naming the key.
    pub fn validate(&self) -> Result<()> {
        let key = |name: &str| format!("text_encoder/config.json: {name}");
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ];
        if let Some((name, value)) = sizes.into_iter().find(|&(_, value)| value < 1) {
            return Err(Error::setting(key(name), value, "at least 1"));
        }
        let buckets = self.relative_attention_num_buckets;
        if buckets < 4 || buckets % 4 != 0 {
            let name = key("relative_attention_num_buckets");
            return Err(Error::setting(name, buckets, "a positive multiple of 4"));
        }
        let distance = self.relative_attention_max_distance;
        if distance <= buckets / 4 {
            let name = key("relative_attention_max_distance");
            return Err(Error::setting(
                name,
                distance,
                "more than a quarter of the number of buckets",
            ));
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon >= 0.0) {
            return Err(Error::setting(
                key("layer_norm_epsilon"),
                self.layer_norm_epsilon,
                "0 or a small number",
            ));
        }
        if self.feed_forward_proj != "gated-gelu" {
            return Err(Error::setting(
                key("feed_forward_proj"),
                &self.feed_forward_proj,
                "gated-gelu",
            ));
        }
        Ok(())
    }

    /// The bucket of every pair of positions: `[length, length]` int64, rows are queries and columns keys.
    ///
    /// Near distances have a bucket each, farther ones share buckets whose widths grow with the logarithm.
    fn relative_position_buckets(&self, length: i64, device: Device) -> Tensor {
        let per_direction = self.relative_attention_num_buckets / 2;
        let exact = per_direction / 2;
        let spread = self.relative_attention_max_distance as f64 / exact as f64;
        let positions = Tensor::arange(length, (Kind::Int64, Device::Cpu));
        let offset = positions.unsqueeze(0) - positions.unsqueeze(1);
        let distance = offset.abs();
        let far = (distance.to_kind(Kind::Float) / exact as f64).log() / spread.ln()
            * (per_direction - exact) as f64;
        // The logarithm of distance 0 is not taken up, but must not become an undefined integer on the way.
        let far = (far.clamp_min(0.0).to_kind(Kind::Int64) + exact).clamp_max(per_direction - 1);
        let bucket = distance.where_self(&distance.lt(exact), &far);
        (bucket + offset.gt(0).to_kind(Kind::Int64) * per_direction).to_device(device)
    }
}

/// The text encoder; fields are named as the checkpoint's keys.
#[derive(Debug)]
pub struct UMT5EncoderModel {
    config: Umt5Config,
    /// `[vocab_size, d_model]`.
    shared: Tensor,
    block: Vec<Block>,
    final_layer_norm: RmsNorm,
}

impl UMT5EncoderModel {
    /// Takes the weights of a `text_encoder` folder.
    ///
    /// # Errors
    /// A configuration that [`Umt5Config::validate`] refuses, and those of [`Weights::get`].
    pub fn new(w: &Weights, config: &Umt5Config) -> Result<Self> {
        config.validate()?;
        let embedding = if w.contains("shared.weight") { "shared.weight" } else { TIED_EMBEDDING };
        let shared = w.get(embedding, &[config.vocab_size, config.d_model], Init::Normal(1.0))?;
        let w = w.pp("encoder");
        let blocks = w.pp("block");
        let block = (0..config.num_layers)
            .map(|i| Block::new(&blocks.pp(i), config))
            .collect::<Result<_>>()?;
        let final_layer_norm =
            RmsNorm::new(&w.pp("final_layer_norm"), config.d_model, config.layer_norm_epsilon)?;
        Ok(Self { config: config.clone(), shared, block, final_layer_norm })
    }

    /// Whether a key of the files may stay unused: the second copy of the embedding.
    pub fn may_ignore(key: &str) -> bool {
        key == TIED_EMBEDDING
    }

    /// `input_ids` `[B, L]` int64, `attention_mask` `[B, L]` (0 hides a token from all others) to `[B, L, d_model]`.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Tensor {
        let (_, length) = input_ids.size2().expect("input_ids is [B, L]");
        let buckets = self.config.relative_position_buckets(length, self.shared.device());
        // [B, 1, 1, L]: 0 where a key is seen, the lowest float where it is not.
        let mask = attention_mask.map(|mask| {
            let hidden = mask.eq(0).unsqueeze(1).unsqueeze(1);
            hidden.to_kind(Kind::Float) * f64::from(f32::MIN)
        });
        let mut hidden_states = Tensor::embedding(&self.shared, input_ids, -1, false, false);
        for block in &self.block {
            hidden_states = block.forward(&hidden_states, &buckets, mask.as_ref());
        }
        self.final_layer_norm.forward(&hidden_states)
    }

    /// Prompt embeddings `[1, max_length, d_model]` of the token ids of one prompt, with zeros after the last token.
    ///
    /// The encoder sees the tokens alone, which equals running it on padded ids with a mask. Ids past `max_length`
    /// are left out.
    pub fn encode(&self, ids: &[i64], max_length: i64) -> Tensor {
        let ids = &ids[..ids.len().min(max_length.max(0) as usize)];
        let input_ids = Tensor::from_slice(ids).unsqueeze(0).to_device(self.shared.device());
        let embeds = self.forward(&input_ids, None);
        embeds.constant_pad_nd([0, 0, 0, max_length - ids.len() as i64])
    }
}

/// Self attention and feed-forward, each on the normalised input and added to it.
#[derive(Debug)]
struct Block {
    self_attention: SelfAttention,
    attention_layer_norm: RmsNorm,
    dense_relu_dense: GatedFeedForward,
    feed_forward_layer_norm: RmsNorm,
}

impl Block {
    fn new(w: &Weights, config: &Umt5Config) -> Result<Self> {
        let layer = w.pp("layer");
        let (w0, w1) = (layer.pp(0), layer.pp(1));
        let norm = |w: &Weights| {
            RmsNorm::new(&w.pp("layer_norm"), config.d_model, config.layer_norm_epsilon)
        };
        Ok(Self {
            self_attention: SelfAttention::new(&w0.pp("SelfAttention"), config)?,
            attention_layer_norm: norm(&w0)?,
            dense_relu_dense: GatedFeedForward::new(&w1.pp("DenseReluDense"), config)?,
            feed_forward_layer_norm: norm(&w1)?,
        })
    }

    fn forward(&self, hidden_states: &Tensor, buckets: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let normed = self.attention_layer_norm.forward(hidden_states);
        let attended = self.self_attention.forward(&normed, buckets, mask);
        let hidden_states = add_within_limits(hidden_states, &attended);
        let normed = self.feed_forward_layer_norm.forward(&hidden_states);
        add_within_limits(&hidden_states, &self.dense_relu_dense.forward(&normed))
    }
}

/// `x + update` in the kind of `x`; float16, whose range is small, is kept finite.
fn add_within_limits(x: &Tensor, update: &Tensor) -> Tensor {
    let sum = x + update.to_kind(x.kind());
    if x.kind() == Kind::Half { sum.clamp(-HALF_LIMIT, HALF_LIMIT) } else { sum }
}

/// Multi-head attention with a learned bias per head and bucket of relative positions.
#[derive(Debug)]
struct SelfAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[buckets, heads]`.
    relative_attention_bias: Tensor,
    num_heads: i64,
}

impl SelfAttention {
    fn new(w: &Weights, config: &Umt5Config) -> Result<Self> {
        let (model, heads) = (config.d_model, config.num_heads);
        let inner = heads * config.d_kv;
        // Scores are not divided by the root of the head size; queries start smaller instead.
        let query_gain = (config.d_kv as f64).powf(-0.5);
        let project =
            |name, gain| Linear::without_bias(&w.pp(name), model, inner, Init::FanIn(gain));
        let bias_shape = [config.relative_attention_num_buckets, heads];
        let bias_init = Init::Normal((model as f64).powf(-0.5));
        Ok(Self {
            q: project("q", query_gain)?,
            k: project("k", 1.0)?,
            v: project("v", 1.0)?,
            o: Linear::without_bias(&w.pp("o"), inner, model, Init::FanIn(1.0))?,
            relative_attention_bias: w.pp("relative_attention_bias").get(
                "weight",
                &bias_shape,
                bias_init,
            )?,
            num_heads: heads,
        })
    }

    fn forward(&self, x: &Tensor, buckets: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let (batch, length, _) = x.size3().expect("x is [B, L, d_model]");
        // [B, L, heads * d_kv] -> [B, heads, L, d_kv]
        let heads = |x: Tensor| x.view([batch, length, self.num_heads, -1]).transpose(1, 2);
        let (q, k, v) =
            (heads(self.q.forward(x)), heads(self.k.forward(x)), heads(self.v.forward(x)));
        // [L, L, heads] -> [1, heads, L, L]
        let bias = Tensor::embedding(&self.relative_attention_bias, buckets, -1, false, false);
        let bias = bias.permute([2, 0, 1]).unsqueeze(0).to_kind(Kind::Float);
        // Added up in float32: the lowest float has no half-precision counterpart.
        let scores = q.matmul(&k.transpose(2, 3)).to_kind(Kind::Float) + bias;
        let scores = match mask {
            Some(mask) => scores + mask,
            None => scores,
        };
        let attended = scores.softmax(-1, Kind::Float).to_kind(v.kind()).matmul(&v);
        self.o.forward(&attended.transpose(1, 2).reshape([batch, length, -1]))
    }
}

/// `wo(gelu(wi_0 x) * wi_1 x)`.
#[derive(Debug)]
struct GatedFeedForward {
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl GatedFeedForward {
    fn new(w: &Weights, config: &Umt5Config) -> Result<Self> {
        let (model, inner) = (config.d_model, config.d_ff);
        // The sums of this layer leave the range of float16.
        let wide = if w.kind() == Kind::Half { w.with_kind(Kind::Float) } else { w.clone() };
        let init = Init::FanIn(1.0);
        Ok(Self {
            wi_0: Linear::without_bias(&w.pp("wi_0"), model, inner, init)?,
            wi_1: Linear::without_bias(&w.pp("wi_1"), model, inner, init)?,
            wo: Linear::without_bias(&wide.pp("wo"), inner, model, init)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.wo.forward(&(self.wi_0.forward(x).gelu("tanh") * self.wi_1.forward(x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Parameters, Source};

    fn small() -> Umt5Config {
        Umt5Config {
            vocab_size: 20,
            d_model: 8,
            d_kv: 3,
            d_ff: 12,
            num_layers: 2,
            num_heads: 4,
            ..Umt5Config::default()
        }
    }

    fn model(source: &Source, config: &Umt5Config) -> UMT5EncoderModel {
        UMT5EncoderModel::new(&source.weights(Kind::Float, Device::Cpu), config).unwrap()
    }

    #[test]
    fn unusable_settings_are_refused_by_name() {
        type Spoil = fn(&mut Umt5Config);
        let cases: [(&str, Spoil); 8] = [
            ("vocab_size", |c| c.vocab_size = 0),
            ("d_model", |c| c.d_model = -1),
            ("num_layers", |c| c.num_layers = 0),
            ("num_heads", |c| c.num_heads = 0),
            ("relative_attention_num_buckets", |c| c.relative_attention_num_buckets = 2),
            ("relative_attention_max_distance", |c| c.relative_attention_max_distance = 8),
            ("layer_norm_epsilon", |c| c.layer_norm_epsilon = f64::NAN),
            ("feed_forward_proj", |c| c.feed_forward_proj = "relu".to_owned()),
        ];
        for (name, spoil) in cases {
            let mut config = small();
            spoil(&mut config);
            let error = config.validate().expect_err(name).to_string();
            assert!(
                error.starts_with(&format!("text_encoder/config.json: {name}: found ")),
                "{error}"
            );
        }
    }

    #[test]
    fn buckets_of_near_and_far_positions() {
        let buckets = Umt5Config::default().relative_position_buckets(300, Device::Cpu);
        let bucket = |query: i64, key: i64| buckets.int64_value(&[query, key]);
        // Keys before the query: one bucket per distance up to 7, then 8 at 8 to 11, the last from 128 on.
        let before: Vec<i64> =
            [0, 1, 7, 8, 11, 12, 16, 90, 91, 127, 128, 299].map(|d| bucket(299, 299 - d)).to_vec();
        assert_eq!(before, [0, 1, 7, 8, 8, 9, 10, 14, 15, 15, 15, 15]);
        // Keys after it use the other half.
        assert_eq!([bucket(0, 1), bucket(0, 7), bucket(0, 299)], [17, 23, 31]);
    }

    #[test]
    fn padding_with_a_mask_equals_no_padding() {
        let source = Source::Trainable(Parameters::default());
        let model = model(&source, &small());
        let encoded = model.encode(&[5, 7, 11, 1], 9);
        assert_eq!(encoded.size(), [1, 9, 8]);
        let padded = Tensor::from_slice(&[5i64, 7, 11, 1, 0, 0, 0, 0, 0]).unsqueeze(0);
        let mask = Tensor::from_slice(&[1i64, 1, 1, 1, 0, 0, 0, 0, 0]).unsqueeze(0);
        let whole = model.forward(&padded, Some(&mask));
        let difference =
            (encoded.narrow(1, 0, 4) - whole.narrow(1, 0, 4)).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
        assert_eq!(encoded.narrow(1, 4, 5).abs().max().double_value(&[]), 0.0);
    }

    #[test]
    fn every_parameter_learns() {
        let source = Source::Trainable(Parameters::default());
        let model = model(&source, &small());
        let loss = model.encode(&[3, 4, 5, 6, 1], 7).square().sum(Kind::Float);
        loss.backward();
        let Source::Trainable(parameters) = &source else { unreachable!("made trainable above") };
        let named = parameters.named();
        assert_eq!(named.len(), 2 + 2 * 10);
        for (name, parameter) in named {
            let gradient = parameter.grad().abs().max().double_value(&[]);
            assert!(gradient > 0.0, "{name}");
        }
    }

    #[test]
    fn prompts_longer_than_the_limit_are_cut() {
        let source = Source::Trainable(Parameters::default());
        let model = model(&source, &small());
        assert_eq!(model.encode(&[3, 4, 5, 6, 1], 2).size(), [1, 2, 8]);
    }
}
