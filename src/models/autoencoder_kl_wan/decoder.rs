// SPDX-License-Identifier: MPL-2.0
//! The decoder of the autoencoder, in its flat (2.1) and residual (2.2) forms.

use tch::Tensor;

use super::AutoencoderKLWanConfig;
use super::blocks::{DupUp3D, MidBlock, ResidualBlock, Upsample, WanRmsNorm};
use crate::error::Result;
use crate::nn::conv3d::{CausalConv3d, FeatureCache, FeatureCaches, SlotCounter};
use crate::weights::{Init, Weights};

/// One level: residual blocks, then an upsampler except in the last.
#[derive(Debug)]
struct UpBlock {
    resnets: Vec<ResidualBlock>,
    upsampler: Option<Upsample>,
    avg_shortcut: Option<DupUp3D>,
}

impl UpBlock {
    fn forward(&self, x: &Tensor, caches: &mut FeatureCaches, first: bool) -> Tensor {
        let mut h = x.shallow_clone();
        for resnet in &self.resnets {
            h = resnet.forward(&h, caches);
        }
        if let Some(upsampler) = &self.upsampler {
            h = upsampler.forward(&h, caches);
        }
        match &self.avg_shortcut {
            Some(shortcut) => h + shortcut.forward(x, first),
            None => h,
        }
    }
}

/// `[B, z_dim, T, h, w]` to `[B, out_channels, F, H, W]`.
#[derive(Debug)]
pub(super) struct Decoder3d {
    conv_in: CausalConv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: WanRmsNorm,
    conv_out: CausalConv3d,
}

impl Decoder3d {
    pub fn new(
        w: &Weights,
        slots: &mut SlotCounter,
        config: &AutoencoderKLWanConfig,
    ) -> Result<Self> {
        let base = config.decoder_base_dim.unwrap_or(config.base_dim);
        let mut dims: Vec<i64> = config.dim_mult.iter().rev().map(|m| m * base).collect();
        dims.insert(0, dims[0]);
        let bottom = dims[dims.len() - 1];
        let conv_in = CausalConv3d::new(
            &w.pp("conv_in"),
            slots,
            (config.z_dim, dims[0]),
            [3, 3, 3],
            Init::FanIn(1.0),
        )?;
        let mid_block = MidBlock::new(&w.pp("mid_block"), slots, dims[0])?;
        let mut up_blocks = Vec::new();
        for level in 0..config.dim_mult.len() {
            let w = w.pp("up_blocks").pp(level);
            up_blocks.push(up_block(&w, slots, config, level, (dims[level], dims[level + 1]))?);
        }
        Ok(Self {
            conv_in,
            mid_block,
            up_blocks,
            norm_out: WanRmsNorm::new(&w.pp("norm_out"), bottom, 3)?,
            conv_out: CausalConv3d::new(
                &w.pp("conv_out"),
                slots,
                (bottom, config.out_channels),
                [3, 3, 3],
                Init::FanIn(1.0),
            )?,
        })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let first =
            self.conv_in.slot().is_none_or(|slot| matches!(caches.slot(slot), FeatureCache::Empty));
        let mut h = self.mid_block.forward(&self.conv_in.forward(x, caches), caches);
        for block in &self.up_blocks {
            h = block.forward(&h, caches, first);
        }
        self.conv_out.forward(&self.norm_out.forward(&h).silu(), caches)
    }
}

fn up_block(
    w: &Weights,
    slots: &mut SlotCounter,
    config: &AutoencoderKLWanConfig,
    level: usize,
    channels: (i64, i64),
) -> Result<UpBlock> {
    let (wide, output) = channels;
    // The flat form's upsamplers halve the channels, the residual form's keep them.
    let block_input = if !config.is_residual && level > 0 { wide / 2 } else { wide };
    let mut input = block_input;
    let mut resnets = Vec::new();
    for index in 0..=config.num_res_blocks {
        resnets.push(ResidualBlock::new(&w.pp("resnets").pp(index), slots, input, output)?);
        input = output;
    }
    // Time doubles in the order opposite to the encoder's; the last level has no upsampler.
    let temporal = config.temporal_downsample.iter().rev().nth(level).copied();
    let (key, upsampled) = match config.is_residual {
        true => (w.pp("upsampler"), output),
        false => (w.pp("upsamplers").pp(0), output / 2),
    };
    let upsampler = temporal
        .map(|temporal| Upsample::new(&key, slots, (output, upsampled), temporal))
        .transpose()?;
    let avg_shortcut = temporal.filter(|_| config.is_residual).map(|temporal| DupUp3D {
        output,
        factor_t: if temporal { 2 } else { 1 },
        factor_s: 2,
    });
    Ok(UpBlock { resnets, upsampler, avg_shortcut })
}
