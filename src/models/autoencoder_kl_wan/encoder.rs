// SPDX-License-Identifier: MPL-2.0
//! The encoder of the autoencoder, in its flat (2.1) and residual (2.2) forms.

use tch::Tensor;

use super::AutoencoderKLWanConfig;
use super::blocks::{AvgDown3D, Downsample, MidBlock, ResidualBlock, WanRmsNorm};
use crate::error::Result;
use crate::nn::conv3d::{CausalConv3d, FeatureCaches, SlotCounter};
use crate::weights::{Init, Weights};

/// One level: residual blocks, then a downsampler except in the last.
#[derive(Debug)]
struct DownBlock {
    resnets: Vec<ResidualBlock>,
    downsampler: Option<Downsample>,
    avg_shortcut: Option<AvgDown3D>,
}

impl DownBlock {
    fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let mut h = x.shallow_clone();
        for resnet in &self.resnets {
            h = resnet.forward(&h, caches);
        }
        if let Some(downsampler) = &self.downsampler {
            h = downsampler.forward(&h, caches);
        }
        match &self.avg_shortcut {
            Some(shortcut) => h + shortcut.forward(x),
            None => h,
        }
    }
}

/// `[B, in_channels, F, H, W]` to `[B, 2*z_dim, T, h, w]`.
#[derive(Debug)]
pub(super) struct Encoder3d {
    conv_in: CausalConv3d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    norm_out: WanRmsNorm,
    conv_out: CausalConv3d,
}

/// Hands out the keys `down_blocks.N` of the flat form, or `down_blocks.i.<name>` of the residual one.
struct Keys<'a> {
    w: Weights<'a>,
    level: usize,
    flat: Option<usize>,
}

impl<'a> Keys<'a> {
    fn next(&mut self, residual_name: &str) -> Weights<'a> {
        match &mut self.flat {
            Some(index) => {
                *index += 1;
                self.w.pp(*index - 1)
            }
            None => residual_name.split('.').fold(self.w.pp(self.level), |w, part| w.pp(part)),
        }
    }
}

impl Encoder3d {
    pub fn new(
        w: &Weights,
        slots: &mut SlotCounter,
        config: &AutoencoderKLWanConfig,
    ) -> Result<Self> {
        let mut dims = vec![config.base_dim];
        dims.extend(config.dim_mult.iter().map(|m| m * config.base_dim));
        let conv_in = CausalConv3d::new(
            &w.pp("conv_in"),
            slots,
            (config.in_channels, dims[0]),
            [3, 3, 3],
            Init::FanIn(1.0),
        )?;
        let mut keys =
            Keys { w: w.pp("down_blocks"), level: 0, flat: (!config.is_residual).then_some(0) };
        let mut down_blocks = Vec::new();
        for level in 0..config.dim_mult.len() {
            keys.level = level;
            down_blocks.push(down_block(&mut keys, slots, config, (dims[level], dims[level + 1]))?);
        }
        let top = dims[dims.len() - 1];
        Ok(Self {
            conv_in,
            down_blocks,
            mid_block: MidBlock::new(&w.pp("mid_block"), slots, top)?,
            norm_out: WanRmsNorm::new(&w.pp("norm_out"), top, 3)?,
            conv_out: CausalConv3d::new(
                &w.pp("conv_out"),
                slots,
                (top, 2 * config.z_dim),
                [3, 3, 3],
                Init::FanIn(1.0),
            )?,
        })
    }

    pub fn forward(&self, x: &Tensor, caches: &mut FeatureCaches) -> Tensor {
        let mut h = self.conv_in.forward(x, caches);
        for block in &self.down_blocks {
            h = block.forward(&h, caches);
        }
        let h = self.mid_block.forward(&h, caches);
        self.conv_out.forward(&self.norm_out.forward(&h).silu(), caches)
    }
}

fn down_block(
    keys: &mut Keys,
    slots: &mut SlotCounter,
    config: &AutoencoderKLWanConfig,
    channels: (i64, i64),
) -> Result<DownBlock> {
    let (mut input, output) = channels;
    let mut resnets = Vec::new();
    for index in 0..config.num_res_blocks {
        let w = keys.next(&format!("resnets.{index}"));
        resnets.push(ResidualBlock::new(&w, slots, input, output)?);
        input = output;
    }
    // The last level has no entry, and no downsampler.
    let temporal = config.temporal_downsample.get(keys.level).copied();
    let downsampler = temporal
        .map(|temporal| Downsample::new(&keys.next("downsampler"), slots, output, temporal))
        .transpose()?;
    let avg_shortcut = config.is_residual.then_some(AvgDown3D {
        output,
        factor_t: if temporal == Some(true) { 2 } else { 1 },
        factor_s: if temporal.is_some() { 2 } else { 1 },
    });
    Ok(DownBlock { resnets, downsampler, avg_shortcut })
}
