// SPDX-License-Identifier: MPL-2.0
//! The control branch of `WanVACETransformer3DModel`: blocks of its own over control tokens, whose outputs are added to
//! the main branch after chosen layers (Jiang et al. 2025, "VACE: All-in-One Video Creation and Editing").

use tch::Tensor;

use super::block::{ContextKv, WanTransformerBlock};
use super::{PatchEmbedding, TokenLayout, WanTransformer3DModelConfig};
use crate::error::Result;
use crate::nn::Linear;
use crate::nn::attention::KvAccess;
use crate::weights::{Init, Weights};

/// A block of the control branch.
#[derive(Debug)]
struct VaceBlock {
    /// Of the first block only.
    proj_in: Option<Linear>,
    block: WanTransformerBlock,
    proj_out: Linear,
}

/// The control branch.
#[derive(Debug)]
pub(super) struct Vace {
    vace_patch_embedding: PatchEmbedding,
    vace_blocks: Vec<VaceBlock>,
    /// The layer after which each block's output is added.
    layers: Vec<i64>,
}

/// What steers the video.
#[derive(Debug)]
pub(super) struct Control {
    /// `[B, N', D]`.
    pub tokens: Tensor,
    /// One a block.
    pub scale: Vec<f64>,
}

/// Outputs of the control branch by layer of the main one.
pub(super) struct Hints(Vec<(i64, Tensor)>);

impl Hints {
    /// The sum of `x` and what belongs after `layer`.
    pub fn add_to(&self, x: Tensor, layer: usize) -> Tensor {
        match self.0.iter().find(|(at, _)| *at == layer as i64) {
            Some((_, hint)) => x + hint,
            None => x,
        }
    }
}

impl Vace {
    pub fn new(w: &Weights, config: &WanTransformer3DModelConfig, layers: &[i64]) -> Result<Self> {
        let dim = config.dim();
        let block = |index: usize| -> Result<VaceBlock> {
            let w = w.pp("vace_blocks").pp(index);
            let proj_in = (index == 0)
                .then(|| Linear::with_init(&w.pp("proj_in"), dim, dim, Init::Zeros))
                .transpose()?;
            Ok(VaceBlock {
                proj_in,
                block: WanTransformerBlock::new(&w, config)?,
                proj_out: Linear::with_init(&w.pp("proj_out"), dim, dim, Init::Zeros)?,
            })
        };
        Ok(Self {
            vace_patch_embedding: PatchEmbedding::new(
                &w.pp("vace_patch_embedding"),
                config,
                config.vace_in_channels,
            )?,
            vace_blocks: (0..layers.len()).map(block).collect::<Result<_>>()?,
            layers: layers.to_vec(),
        })
    }

    /// What the cross-attention of each block looks at.
    pub fn context(&self, text: &Tensor, image: Option<&Tensor>) -> Vec<ContextKv> {
        self.vace_blocks.iter().map(|vace| vace.block.context(text, image)).collect()
    }

    /// Patches of a control `[B, N', vace_in_channels * patch]` to tokens `[B, N', D]`.
    pub fn embed(&self, patches: &Tensor) -> Tensor {
        self.vace_patch_embedding.forward(patches)
    }

    /// Runs the branch beside `x`, the tokens before the first block.
    pub fn hints(
        &self,
        x: &Tensor,
        control: &Control,
        timestep_proj: &Tensor,
        layout: &TokenLayout,
        contexts: &[ContextKv],
    ) -> Hints {
        let missing = x.size()[1] - control.tokens.size()[1];
        let mut c = control.tokens.constant_pad_nd([0, 0, 0, missing]);
        let mut hints = Vec::new();
        for (index, vace) in self.vace_blocks.iter().enumerate() {
            if let Some(proj_in) = &vace.proj_in {
                c = proj_in.forward(&c) + x;
            }
            let no_cache = (&mut KvAccess::None, index);
            c = vace.block.forward(&c, timestep_proj, layout, &contexts[index], no_cache);
            let scale = control.scale.get(index).copied().unwrap_or(1.0);
            hints.push((self.layers[index], vace.proj_out.forward(&c) * scale));
        }
        Hints(hints)
    }
}
