// SPDX-License-Identifier: MPL-2.0
//! `WanTransformer3DModel`: the flow of a clip of noisy latents (Wan 2.1 and 2.2), one struct for inference,
//! streaming and training.
//!
//! Latents are `[B, C, T, H, W]`. Each patch of `patch_size` latents is one token; tokens run over frames, then
//! rows, then columns. Timesteps are in [0, 1000], one for a clip, a latent frame or a token. The result is the
//! flow `noise - clean`, `[B, out_channels, T, H, W]`, or the clean latents where the folder's scheduler says so.
//!
//! Follows diffusers `models/transformers/transformer_wan.py` (0.42.1). Norms, the time embedding and the
//! modulation tables stay in f32 when the model is loaded in half precision, as diffusers keeps them.

mod block;
mod config;
mod embeddings;
mod vace;

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::nn::attention::{KvAccess, RotaryTables, TokenGrid};
use crate::nn::{LayerNorm, Linear};
use crate::weights::{Init, Weights};
use block::{ContextKv, WanTransformerBlock, modulated_norm};
pub use config::WanTransformer3DModelConfig;
use embeddings::ConditionEmbedder;
use vace::{Control, Vace};

/// Noise levels as the model is told them, in [0, 1000].
#[derive(Debug, Clone, Copy)]
pub enum Timestep<'a> {
    /// `[B]`.
    PerClip(&'a Tensor),
    /// `[B, T]`, T counted in tokens along time.
    PerFrame(&'a Tensor),
    /// `[B, N]`.
    PerToken(&'a Tensor),
}

/// Which frames a frame may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum AttentionPattern {
    /// All.
    #[default]
    Full,
    /// Those of its own block and of earlier ones; the first block may have another length.
    BlockCausal { first_block: i64, block_latent_frames: i64 },
    /// Every block looks at itself and at what came before it as it should be: the clip is there twice, first clean without its
    /// last block, block-causal, then noisy. One evaluation teaches every block what a rollout with cached keys asks of it
    /// (teacher forcing).
    NextBlock { block_latent_frames: i64 },
}

/// What depends on the shape of a clip alone: positions and mask. Made once, used at every step.
#[derive(Debug)]
pub struct TokenLayout {
    grid: TokenGrid,
    rotary: RotaryTables,
    /// `[N, N]`, true where a query may look.
    mask: Option<Tensor>,
}

/// What the blocks look at besides the video: text, and images where the model takes them. Made once for a prompt,
/// used at every step; in training made within the graph.
#[derive(Debug)]
pub struct TransformerContext {
    blocks: Vec<ContextKv>,
    vace_blocks: Vec<ContextKv>,
    control: Option<Control>,
}

impl TransformerContext {
    /// What two batches look at, as one batch; `None` where a control steers them.
    pub fn stacked(one: &Self, other: &Self) -> Option<Self> {
        if one.control.is_some() || other.control.is_some() {
            return None;
        }
        let stack = |one: &[ContextKv], other: &[ContextKv]| {
            one.iter().zip(other).map(|(a, b)| ContextKv::stacked(a, b)).collect()
        };
        Some(Self {
            blocks: stack(&one.blocks, &other.blocks),
            vace_blocks: stack(&one.vace_blocks, &other.vace_blocks),
            control: None,
        })
    }

    /// The same prompt for each of so many clips; what is given is for one. Controls are left out.
    pub fn repeated(&self, clips: i64) -> Self {
        let repeat = |blocks: &[ContextKv]| blocks.iter().map(|b| b.repeated(clips)).collect();
        Self { blocks: repeat(&self.blocks), vace_blocks: repeat(&self.vace_blocks), control: None }
    }

    /// A copy that shares the tensors, without a control.
    fn shallow_clone(&self) -> Self {
        let share = |blocks: &[ContextKv]| blocks.iter().map(ContextKv::shallow_clone).collect();
        Self { blocks: share(&self.blocks), vace_blocks: share(&self.vace_blocks), control: None }
    }
}

/// One evaluation of the model.
#[derive(Debug)]
pub struct TransformerInput<'a> {
    /// `[B, in_channels, T, H, W]`.
    pub hidden_states: &'a Tensor,
    pub timestep: Timestep<'a>,
    pub context: &'a TransformerContext,
    pub layout: &'a TokenLayout,
    pub kv: KvAccess<'a>,
}

/// The transformer.
#[derive(Debug)]
pub struct WanTransformer3DModel {
    config: WanTransformer3DModelConfig,
    patch_embedding: PatchEmbedding,
    condition_embedder: ConditionEmbedder,
    blocks: Vec<WanTransformerBlock>,
    norm_out: LayerNorm,
    proj_out: Linear,
    /// `[1, 2, D]`.
    scale_shift_table: Tensor,
    vace: Option<Vace>,
    kind: Kind,
}

impl WanTransformer3DModel {
    /// Builds the model from weights under the keys of diffusers.
    ///
    /// # Errors
    /// Those of [`WanTransformer3DModelConfig::validate`] and [`Weights::get`].
    pub fn new(w: &Weights, config: &WanTransformer3DModelConfig) -> Result<Self> {
        config.validate("transformer")?;
        let dim = config.dim();
        let blocks = w.pp("blocks");
        let table = Init::Normal((dim as f64).powf(-0.5));
        Ok(Self {
            patch_embedding: PatchEmbedding::new(
                &w.pp("patch_embedding"),
                config,
                config.in_channels,
            )?,
            condition_embedder: ConditionEmbedder::new(&w.pp("condition_embedder"), config)?,
            blocks: (0..config.num_layers)
                .map(|layer| WanTransformerBlock::new(&blocks.pp(layer), config))
                .collect::<Result<_>>()?,
            norm_out: LayerNorm::plain(dim, config.eps),
            proj_out: Linear::with_init(
                &w.pp("proj_out"),
                dim,
                config.output_channels() * config.patch_volume(),
                Init::Zeros,
            )?,
            scale_shift_table: w.with_kind(Kind::Float).get(
                "scale_shift_table",
                &[1, 2, dim],
                table,
            )?,
            vace: config
                .vace_layers
                .as_deref()
                .map(|layers| Vace::new(w, config, layers))
                .transpose()?,
            kind: w.kind(),
            config: config.clone(),
        })
    }

    /// The same model with attention itself, but none of the products around it, computed in another kind: half precision is
    /// what GPUs have fast kernels for.
    pub fn attending_in(mut self, kind: Kind) -> Self {
        for block in &mut self.blocks {
            block.set_attention_kind(kind);
        }
        self
    }

    /// The configuration the model was built with.
    pub fn config(&self) -> &WanTransformer3DModelConfig {
        &self.config
    }

    /// The kind that the model computes in, islands apart.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.condition_embedder.device()
    }

    /// Whether a key of the files may stay unused, as the reference leaves it.
    pub fn may_ignore(key: &str) -> bool {
        key.contains("norm_added_q")
    }

    /// Positions and mask for latents of `frames` x `height` x `width`, the first at `frame_offset` tokens of time.
    pub fn layout(
        &self,
        [frames, height, width]: [i64; 3],
        frame_offset: i64,
        pattern: AttentionPattern,
    ) -> TokenLayout {
        let [pt, ph, pw] = self.config.patch_size;
        let grid =
            TokenGrid { frames: frames / pt, height: height / ph, width: width / pw, frame_offset };
        let device = self.device();
        let head_dim = self.config.attention_head_dim;
        let rotary = || RotaryTables::new(&grid, head_dim, device);
        let (rotary, mask) = match pattern {
            AttentionPattern::Full => (rotary(), None),
            AttentionPattern::BlockCausal { first_block, block_latent_frames } => {
                (rotary(), Some(block_causal_mask(&grid, first_block, block_latent_frames, device)))
            }
            AttentionPattern::NextBlock { block_latent_frames } => {
                let clean = (grid.frames - block_latent_frames) / 2;
                let frames: Vec<i64> =
                    (0..clean).chain(0..grid.frames - clean).map(|t| frame_offset + t).collect();
                let mask = next_block_mask(&grid, clean, block_latent_frames, device);
                (RotaryTables::at(&frames, &grid, head_dim, device), Some(mask))
            }
        };
        TokenLayout { grid, rotary, mask }
    }

    /// Prepares text `[B, L, text_dim]` and, for models that take them, image embeddings `[Bi, S, image_dim]`.
    pub fn context(&self, text: &Tensor, image: Option<&Tensor>) -> TransformerContext {
        let text = self.condition_embedder.text(&text.to_kind(self.kind));
        let image =
            image.and_then(|image| self.condition_embedder.image(&image.to_kind(self.kind)));
        let blocks = self.blocks.iter().map(|block| block.context(&text, image.as_ref())).collect();
        let vace_blocks =
            self.vace.as_ref().map_or_else(Vec::new, |vace| vace.context(&text, image.as_ref()));
        TransformerContext { blocks, vace_blocks, control: None }
    }

    /// The same prompt steered by a control `[B, vace_in_channels, T, H, W]`, in models that have the branch for it; `scale` has
    /// one value a block of that branch (1 where it has fewer).
    pub fn with_control(
        &self,
        context: &TransformerContext,
        control: &Tensor,
        scale: &[f64],
    ) -> TransformerContext {
        let [pt, ph, pw] = self.config.patch_size;
        let s = control.size();
        let grid =
            TokenGrid { frames: s[2] / pt, height: s[3] / ph, width: s[4] / pw, frame_offset: 0 };
        let control = self.vace.as_ref().map(|vace| Control {
            tokens: vace.embed(&self.patchify(&control.to_kind(self.kind), &grid)),
            scale: scale.to_vec(),
        });
        TransformerContext { control, ..context.shallow_clone() }
    }

    /// The flow (or the clean latents) `[B, out_channels, T, H, W]` in the kind of the model.
    pub fn forward(&self, input: TransformerInput<'_>) -> Tensor {
        self.forward_unless(input, &|| false).expect("nothing cancels")
    }

    /// As [`Self::forward`], asking `cancel` before each block.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; a cache that was being appended to is then incomplete.
    pub fn forward_unless(
        &self,
        input: TransformerInput<'_>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Tensor> {
        self.forward_watched(input, &mut |_, _| {
            if cancel() { Err(Error::Cancelled) } else { Ok(()) }
        })
    }

    /// As [`Self::forward`], showing `watch` the tokens `[B, N, D]` that go into each block before it runs.
    ///
    /// # Errors
    /// The first one of `watch`, which ends the evaluation; a cache that was being appended to is then incomplete.
    pub fn forward_watched(
        &self,
        input: TransformerInput<'_>,
        watch: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let TransformerInput { hidden_states, timestep, context, layout, mut kv } = input;
        let timestep = match timestep {
            Timestep::PerClip(t) => t.unsqueeze(1),
            Timestep::PerFrame(t) | Timestep::PerToken(t) => t.shallow_clone(),
        };
        let (temb, timestep_proj) = self.condition_embedder.time(&timestep, self.kind);
        let mut x = self.patch_embedding.forward(&self.patchify(hidden_states, &layout.grid));
        let hints = self.vace.as_ref().zip(context.control.as_ref()).map(|(vace, control)| {
            vace.hints(&x, control, &timestep_proj, layout, &context.vace_blocks)
        });
        for (layer, block) in self.blocks.iter().enumerate() {
            watch(layer, &x)?;
            x = block.forward(&x, &timestep_proj, layout, &context.blocks[layer], (&mut kv, layer));
            if let Some(hints) = &hints {
                x = hints.add_to(x, layer);
            }
        }
        let ends = (&self.scale_shift_table + temb.to_kind(Kind::Float).unsqueeze(2)).chunk(2, 2);
        let x = modulated_norm(&self.norm_out, &x, &ends[0], &ends[1]);
        Ok(self.unpatchify(&self.proj_out.forward(&x), &layout.grid))
    }

    /// `[B, C, T, H, W]` to patches `[B, N, C * pt * ph * pw]`; what does not fill a patch is cut off.
    fn patchify(&self, x: &Tensor, grid: &TokenGrid) -> Tensor {
        let [pt, ph, pw] = self.config.patch_size;
        let (batch, channels) = (x.size()[0], x.size()[1]);
        let TokenGrid { frames: t, height: h, width: w, .. } = *grid;
        x.narrow(2, 0, t * pt)
            .narrow(3, 0, h * ph)
            .narrow(4, 0, w * pw)
            .reshape([batch, channels, t, pt, h, ph, w, pw])
            .permute([0, 2, 4, 6, 1, 3, 5, 7]) // [B, t, h, w, C, pt, ph, pw]
            .reshape([batch, t * h * w, channels * pt * ph * pw])
    }

    /// `[B, N, pt * ph * pw * C]` to `[B, C, T, H, W]`; here the channels come last within a patch.
    fn unpatchify(&self, x: &Tensor, grid: &TokenGrid) -> Tensor {
        let [pt, ph, pw] = self.config.patch_size;
        let TokenGrid { frames: t, height: h, width: w, .. } = *grid;
        x.reshape([-1, t, h, w, pt, ph, pw, self.config.output_channels()])
            .permute([0, 7, 1, 4, 2, 5, 3, 6]) // [B, C, t, pt, h, ph, w, pw]
            .reshape([-1, self.config.output_channels(), t * pt, h * ph, w * pw])
    }
}

/// The convolution whose stride is its kernel, computed as the matrix product that it is.
#[derive(Debug)]
struct PatchEmbedding {
    /// `[D, C, pt, ph, pw]`.
    weight: Tensor,
    bias: Tensor,
}

impl PatchEmbedding {
    fn new(w: &Weights, config: &WanTransformer3DModelConfig, channels: i64) -> Result<Self> {
        let dim = config.dim();
        let [pt, ph, pw] = config.patch_size;
        let shape = [dim, channels, pt, ph, pw];
        Ok(Self {
            weight: w.get("weight", &shape, Init::FanIn(1.0))?,
            bias: w.get("bias", &[dim], Init::Zeros)?,
        })
    }

    /// Patches `[B, N, C * pt * ph * pw]` to tokens `[B, N, D]`.
    fn forward(&self, patches: &Tensor) -> Tensor {
        let weight = self.weight.flatten(1, -1);
        patches.to_kind(weight.kind()).linear(&weight, Some(&self.bias))
    }
}

/// `[N, N]`: true where the query's block is not before the key's.
fn block_causal_mask(grid: &TokenGrid, first_block: i64, block: i64, device: Device) -> Tensor {
    let blocks: Vec<i64> = (0..grid.len())
        .map(|token| {
            let frame = token / (grid.height * grid.width);
            if frame < first_block { 0 } else { 1 + (frame - first_block) / block.max(1) }
        })
        .collect();
    let blocks = Tensor::from_slice(&blocks);
    blocks.unsqueeze(1).ge_tensor(&blocks.unsqueeze(0)).to_device(device)
}

/// `[N, N]` for `clean` frames and then the same ones and one more block noisy: true for keys of clean frames of earlier blocks,
/// and for those of the query's own block that are as clean or noisy as it is.
fn next_block_mask(grid: &TokenGrid, clean: i64, block: i64, device: Device) -> Tensor {
    let places: Vec<(bool, i64)> = (0..grid.len())
        .map(|token| token / (grid.height * grid.width))
        .map(|frame| {
            (frame < clean, if frame < clean { frame } else { frame - clean } / block.max(1))
        })
        .collect();
    let mask: Vec<bool> = places
        .iter()
        .flat_map(|(is_clean, own)| {
            places.iter().map(move |(key_is_clean, other)| {
                (*key_is_clean && other < own) || (is_clean == key_is_clean && other == own)
            })
        })
        .collect();
    Tensor::from_slice(&mask).view([grid.len(), grid.len()]).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::attention::KvCache;
    use crate::weights::{Parameters, Source};

    fn tiny() -> WanTransformer3DModel {
        let config = WanTransformer3DModelConfig {
            num_attention_heads: 2,
            attention_head_dim: 12,
            in_channels: 4,
            out_channels: Some(4),
            text_dim: 8,
            freq_dim: 16,
            ffn_dim: 32,
            num_layers: 2,
            ..WanTransformer3DModelConfig::default()
        };
        let source = Source::Trainable(Parameters::default());
        let weights = source.weights(Kind::Float, Device::Cpu);
        let model = WanTransformer3DModel::new(&weights, &config).unwrap();
        // The last layer starts at zero, which would hide everything.
        let _no_grad = tch::no_grad_guard();
        for (_, mut weight) in source.parameters().unwrap().named() {
            let _ = weight.g_add_(&(weight.randn_like() * 0.1));
        }
        model
    }

    /// What teacher forcing teaches is what a rollout asks: each block behind clean ones gives the same, block by block or all
    /// at once.
    #[test]
    fn all_next_blocks_at_once_are_each_by_itself() {
        let model = tiny();
        let _no_grad = tch::no_grad_guard();
        let float = (Kind::Float, Device::Cpu);
        let context = model.context(&Tensor::randn([1, 3, 8], float), None);
        let run = |latents: &Tensor, levels: &Tensor, pattern| {
            let s = latents.size();
            let layout = model.layout([s[2], s[3], s[4]], 0, pattern);
            model.forward(TransformerInput {
                hidden_states: latents,
                timestep: Timestep::PerFrame(levels),
                context: &context,
                layout: &layout,
                kv: KvAccess::None,
            })
        };
        let clean = Tensor::randn([1, 4, 4, 4, 4], float);
        let noisy = Tensor::randn([1, 4, 4, 4, 4], float);
        let levels = Tensor::from_slice(&[900f32, 700.0, 500.0, 300.0]).view([1, 4]);
        for block in [1, 2] {
            let known = 4 - block;
            let twice = Tensor::cat(&[&clean.narrow(2, 0, known), &noisy], 2);
            let none = Tensor::zeros([1, known], float);
            let pattern = AttentionPattern::NextBlock { block_latent_frames: block };
            let at_once = run(&twice, &Tensor::cat(&[&none, &levels], 1), pattern);
            for first in (0..4).step_by(block as usize) {
                let own = noisy.narrow(2, first, block);
                let window = Tensor::cat(&[&clean.narrow(2, 0, first), &own], 2);
                let before = Tensor::zeros([1, first], float);
                let levels = Tensor::cat(&[&before, &levels.narrow(1, first, block)], 1);
                let pattern = AttentionPattern::BlockCausal {
                    first_block: block,
                    block_latent_frames: block,
                };
                let alone = run(&window, &levels, pattern).narrow(2, first, block);
                let off = (alone - at_once.narrow(2, known + first, block)).abs().max();
                assert!(off.double_value(&[]) < 1e-5, "block {first} of {block}: {off}");
            }
        }
    }

    /// Attention in bfloat16 rounds queries, keys and values, and nothing else.
    #[test]
    fn attention_in_half_precision_stays_near() {
        let model = tiny();
        let _no_grad = tch::no_grad_guard();
        let float = (Kind::Float, Device::Cpu);
        let context = model.context(&Tensor::randn([1, 3, 8], float), None);
        let latents = Tensor::randn([1, 4, 1, 4, 4], float);
        let whole = one_frame(&model, &latents, (&context, 0), KvAccess::None);
        let model = model.attending_in(Kind::BFloat16);
        let half = one_frame(&model, &latents, (&context, 0), KvAccess::None);
        assert_eq!(half.kind(), Kind::Float);
        let off = ((&half - &whole).abs().max() / whole.abs().max()).double_value(&[]);
        assert!(off > 0.0 && off < 1e-2, "{off}");
    }

    /// One frame at a position in time, at half its way through the noise.
    fn one_frame(
        model: &WanTransformer3DModel,
        latents: &Tensor,
        (context, position): (&TransformerContext, i64),
        kv: KvAccess<'_>,
    ) -> Tensor {
        let levels = Tensor::full([latents.size()[0], 1], 500.0, (Kind::Float, Device::Cpu));
        let layout = model.layout([1, 4, 4], position, AttentionPattern::Full);
        model.forward(TransformerInput {
            hidden_states: latents,
            timestep: Timestep::PerFrame(&levels),
            context,
            layout: &layout,
            kv,
        })
    }

    /// Guidance may evaluate both prompts as one batch: each half is what its prompt gives by itself, looking back at its own
    /// cache.
    #[test]
    fn two_prompts_as_one_batch_are_each_by_itself() {
        let model = tiny();
        let _no_grad = tch::no_grad_guard();
        let float = (Kind::Float, Device::Cpu);
        let contexts = [(); 2].map(|()| model.context(&Tensor::randn([1, 3, 8], float), None));
        let before = Tensor::randn([1, 4, 1, 4, 4], float);
        let caches = [0, 1].map(|i| {
            let mut cache = KvCache::new(100);
            let _ = one_frame(&model, &before, (&contexts[i], 0), KvAccess::Append(&mut cache));
            cache
        });
        let latents = Tensor::randn([1, 4, 1, 4, 4], float);
        let context = TransformerContext::stacked(&contexts[0], &contexts[1]).unwrap();
        let cache = KvCache::stacked(&caches[0], &caches[1]);
        let twice = Tensor::cat(&[&latents, &latents], 0);
        let both = one_frame(&model, &twice, (&context, 1), KvAccess::Read(&cache));
        for i in 0..2 {
            let alone = one_frame(&model, &latents, (&contexts[i], 1), KvAccess::Read(&caches[i]));
            let off = (alone - both.narrow(0, i as i64, 1)).abs().max();
            assert!(off.double_value(&[]) < 1e-5, "prompt {i}: {off}");
        }
        let apart = (both.narrow(0, 0, 1) - both.narrow(0, 1, 1)).abs().max();
        assert!(apart.double_value(&[]) > 1e-3, "{apart}");
    }
}
