// SPDX-License-Identifier: MPL-2.0
//! One transformer block: self-attention over the video, cross-attention to text and image, feed-forward.

use tch::{Kind, Tensor};

use super::{TokenLayout, WanTransformer3DModelConfig};
use crate::error::Result;
use crate::nn::attention::{KvAccess, attention, merge_heads, split_heads};
use crate::nn::{LayerNorm, Linear, RmsNorm};
use crate::weights::{Init, Weights};

/// Projections of one attention; queries and keys are normalised over all heads together.
#[derive(Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    added: Option<AddedKv>,
    heads: i64,
    /// The kind that attention itself is computed in, where it is not that of the weights.
    attention_kind: Option<Kind>,
}

/// Keys and values of image tokens.
#[derive(Debug)]
struct AddedKv {
    add_k_proj: Linear,
    add_v_proj: Linear,
    norm_added_k: RmsNorm,
}

impl Attention {
    fn new(
        w: &Weights,
        config: &WanTransformer3DModelConfig,
        added_dim: Option<i64>,
        out: Init,
    ) -> Result<Self> {
        let dim = config.dim();
        let added = added_dim
            .map(|added_dim| -> Result<AddedKv> {
                Ok(AddedKv {
                    add_k_proj: Linear::new(&w.pp("add_k_proj"), added_dim, dim)?,
                    add_v_proj: Linear::new(&w.pp("add_v_proj"), added_dim, dim)?,
                    norm_added_k: RmsNorm::new(&w.pp("norm_added_k"), dim, config.eps)?,
                })
            })
            .transpose()?;
        Ok(Self {
            to_q: Linear::new(&w.pp("to_q"), dim, dim)?,
            to_k: Linear::new(&w.pp("to_k"), dim, dim)?,
            to_v: Linear::new(&w.pp("to_v"), dim, dim)?,
            to_out: Linear::with_init(&w.pp("to_out").pp(0), dim, dim, out)?,
            norm_q: RmsNorm::new(&w.pp("norm_q"), dim, config.eps)?,
            norm_k: RmsNorm::new(&w.pp("norm_k"), dim, config.eps)?,
            added,
            heads: config.num_attention_heads,
            attention_kind: None,
        })
    }

    /// `x` `[B, N, D]` looking at itself and at what `kv` holds of this layer.
    fn over_video(
        &self,
        x: &Tensor,
        layout: &TokenLayout,
        kv: &mut KvAccess<'_>,
        layer: usize,
    ) -> Tensor {
        let query = layout.rotary.rotate(&self.norm_q.forward(&self.to_q.forward(x)), self.heads);
        let key = layout.rotary.rotate(&self.norm_k.forward(&self.to_k.forward(x)), self.heads);
        let value = split_heads(&self.to_v.forward(x), self.heads);
        let (key, value) = kv.extend(layer, key, value);
        let seen = self.attend(&query, (&key, &value), layout.mask.as_ref());
        self.to_out.forward(&merge_heads(&seen))
    }

    /// Keys and values of text tokens `[B, L, D]` and image tokens `[B, S, D]`.
    fn context(&self, text: &Tensor, image: Option<&Tensor>) -> ContextKv {
        let heads = self.heads;
        let key = split_heads(&self.norm_k.forward(&self.to_k.forward(text)), heads);
        let value = split_heads(&self.to_v.forward(text), heads);
        let image = image.zip(self.added.as_ref()).map(|(image, added)| {
            let key = added.norm_added_k.forward(&added.add_k_proj.forward(image));
            (split_heads(&key, heads), split_heads(&added.add_v_proj.forward(image), heads))
        });
        ContextKv { text: (key, value), image }
    }

    /// `x` `[B, N, D]` looking at `context`.
    fn over_context(&self, x: &Tensor, context: &ContextKv) -> Tensor {
        let query = split_heads(&self.norm_q.forward(&self.to_q.forward(x)), self.heads);
        let (key, value) = &context.text;
        let mut seen = self.attend(&query, (key, value), None);
        if let Some((key, value)) = &context.image {
            seen += self.attend(&query, (key, value), None);
        }
        self.to_out.forward(&merge_heads(&seen))
    }

    /// [`attention`] in the kind that is asked for, given back in that of the query.
    fn attend(&self, query: &Tensor, kv: (&Tensor, &Tensor), mask: Option<&Tensor>) -> Tensor {
        let kind = query.kind();
        let [query, key, value] =
            [query, kv.0, kv.1].map(|x| x.to_kind(self.attention_kind.unwrap_or(kind)));
        attention(&query, &key, &value, mask).to_kind(kind)
    }
}

/// What the cross-attention of one block looks at, the same at every step: `[B, heads, L, head_dim]` each.
#[derive(Debug)]
pub(super) struct ContextKv {
    text: (Tensor, Tensor),
    image: Option<(Tensor, Tensor)>,
}

impl ContextKv {
    /// A copy that shares the tensors.
    pub fn shallow_clone(&self) -> Self {
        let share = |(key, value): &(Tensor, Tensor)| (key.shallow_clone(), value.shallow_clone());
        Self { text: share(&self.text), image: self.image.as_ref().map(share) }
    }

    /// The same for each of so many clips, as views.
    pub fn repeated(&self, clips: i64) -> Self {
        let repeat = |(key, value): &(Tensor, Tensor)| {
            let size = [clips, -1, -1, -1];
            (key.expand(size, false), value.expand(size, false))
        };
        Self { text: repeat(&self.text), image: self.image.as_ref().map(repeat) }
    }

    /// Two as one batch; both have images, or none has.
    pub fn stacked(one: &Self, other: &Self) -> Self {
        let stack = |(a, b): &(Tensor, Tensor), (c, d): &(Tensor, Tensor)| {
            (Tensor::cat(&[a, c], 0), Tensor::cat(&[b, d], 0))
        };
        let images = one.image.as_ref().zip(other.image.as_ref());
        Self { text: stack(&one.text, &other.text), image: images.map(|(a, b)| stack(a, b)) }
    }
}

/// Normalisation without weights, then scale and shift by group: `LN(x) * (1 + scale) + shift`, in f32.
///
/// `x` is `[B, N, D]`; `shift` and `scale` are `[B, G, 1, D]` for G groups of N/G tokens in order.
pub(super) fn modulated_norm(
    norm: &LayerNorm,
    x: &Tensor,
    shift: &Tensor,
    scale: &Tensor,
) -> Tensor {
    let s = x.size();
    let groups = shift.size()[1];
    let normed = norm.forward(x).view([s[0], groups, -1, s[2]]);
    shift.addcmul(&normed, &(scale + 1.0)).view([s[0], s[1], s[2]])
}

/// `x + update * gate`, in f32; shapes as in [`modulated_norm`].
fn gated_add(x: &Tensor, update: &Tensor, gate: &Tensor) -> Tensor {
    let s = x.size();
    let grouped = [s[0], gate.size()[1], -1, s[2]];
    let x = x.to_kind(Kind::Float).view(grouped);
    x.addcmul(&update.to_kind(Kind::Float).view(grouped), gate).view([s[0], s[1], s[2]])
}

/// Shifts, scales and gates of one block, `[B, G, 1, D]` each.
struct Modulation {
    parts: Vec<Tensor>,
}

/// One block.
#[derive(Debug)]
pub(super) struct WanTransformerBlock {
    /// `[1, 6, D]`.
    scale_shift_table: Tensor,
    norm1: LayerNorm,
    attn1: Attention,
    norm2: Option<LayerNorm>,
    attn2: Attention,
    norm3: LayerNorm,
    ffn_0: Linear,
    ffn_2: Linear,
}

impl WanTransformerBlock {
    pub fn new(w: &Weights, config: &WanTransformer3DModelConfig) -> Result<Self> {
        let (dim, eps) = (config.dim(), config.eps);
        let table = Init::Normal((dim as f64).powf(-0.5));
        let norm2 = config
            .cross_attn_norm
            .then(|| LayerNorm::affine(&w.pp("norm2"), dim, eps))
            .transpose()?;
        let net = w.pp("ffn").pp("net");
        Ok(Self {
            scale_shift_table: w.with_kind(Kind::Float).get(
                "scale_shift_table",
                &[1, 6, dim],
                table,
            )?,
            norm1: LayerNorm::plain(dim, eps),
            attn1: Attention::new(&w.pp("attn1"), config, None, Init::FanIn(1.0))?,
            norm2,
            // Not gated, so small at first.
            attn2: Attention::new(
                &w.pp("attn2"),
                config,
                config.added_kv_proj_dim,
                Init::FanIn(0.2),
            )?,
            norm3: LayerNorm::plain(dim, eps),
            ffn_0: Linear::new(&net.pp(0).pp("proj"), dim, config.ffn_dim)?,
            ffn_2: Linear::new(&net.pp(2), config.ffn_dim, dim)?,
        })
    }

    /// Computes attention itself in a kind of its own.
    pub fn set_attention_kind(&mut self, kind: Kind) {
        self.attn1.attention_kind = Some(kind);
        self.attn2.attention_kind = Some(kind);
    }

    /// What this block's cross-attention looks at.
    pub fn context(&self, text: &Tensor, image: Option<&Tensor>) -> ContextKv {
        self.attn2.context(text, image)
    }

    /// `x` `[B, N, D]` in the kind of the model; `timestep_proj` is `[B, G, 6, D]`.
    pub fn forward(
        &self,
        x: &Tensor,
        timestep_proj: &Tensor,
        layout: &TokenLayout,
        context: &ContextKv,
        (kv, layer): (&mut KvAccess<'_>, usize),
    ) -> Tensor {
        let kind = x.kind();
        let Modulation { parts } = self.modulation(timestep_proj);
        let [shift1, scale1, gate1, shift2, scale2, gate2] = parts.as_slice() else {
            unreachable!("six parts were asked for")
        };
        let n = modulated_norm(&self.norm1, x, shift1, scale1).to_kind(kind);
        let x = gated_add(x, &self.attn1.over_video(&n, layout, kv, layer), gate1).to_kind(kind);
        let n = match &self.norm2 {
            Some(norm) => norm.forward(&x).to_kind(kind),
            None => x.shallow_clone(),
        };
        let x = x + self.attn2.over_context(&n, context);
        let n = modulated_norm(&self.norm3, &x, shift2, scale2).to_kind(kind);
        let update = self.ffn_2.forward(&self.ffn_0.forward(&n).gelu("tanh"));
        gated_add(&x, &update, gate2).to_kind(kind)
    }

    fn modulation(&self, timestep_proj: &Tensor) -> Modulation {
        let parts = (&self.scale_shift_table + timestep_proj.to_kind(Kind::Float)).chunk(6, 2);
        Modulation { parts }
    }
}
