// SPDX-License-Identifier: MPL-2.0
//! Decoding in overlapping tiles, for frames whose activations would not fit into memory at once.

use tch::{Kind, Tensor};

use super::{AutoencoderKLWan, unpatchify};
use crate::nn::conv3d::{FeatureCaches, channels_last};

/// Tile geometry in pixels; a tile of `min` pixels starts every `stride` pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    pub min: i64,
    pub stride: i64,
}

impl Default for Tiling {
    fn default() -> Self {
        Self { min: 256, stride: 192 }
    }
}

impl AutoencoderKLWan {
    /// As [`AutoencoderKLWan::decode`], tile by tile with blended seams; `caches` holds one entry a tile and
    /// starts empty. Follows diffusers' `tiled_decode`, whose blending reads neighbours already blended.
    pub fn decode_tiled(
        &self,
        latents: &Tensor,
        tiling: Tiling,
        caches: &mut Vec<FeatureCaches>,
    ) -> Tensor {
        let ratio = self.config.spatial_factor();
        let patch = self.config.patch_size.unwrap_or(1);
        let s = latents.size();
        let (min, step) = ((tiling.min / ratio).max(1), (tiling.stride / ratio).max(1));
        // Blending happens before pixels unfold out of the channels.
        let stride = tiling.stride / patch;
        let overlap = tiling.min / patch - stride;
        let mut rows: Vec<Vec<Tensor>> = Vec::new();
        let mut index = 0;
        for top in (0..s[3]).step_by(step as usize) {
            let mut row = Vec::new();
            for left in (0..s[4]).step_by(step as usize) {
                if caches.len() == index {
                    caches.push(FeatureCaches::default());
                }
                let tile = latents.narrow(3, top, min.min(s[3] - top)).narrow(
                    4,
                    left,
                    min.min(s[4] - left),
                );
                let z = channels_last(&tile.to_kind(self.kind()));
                let z = self.post_quant_conv.forward(&z, &mut caches[index]);
                row.push(self.decoder.forward(&z, &mut caches[index]));
                index += 1;
            }
            rows.push(row);
        }
        let joined = join(&mut rows, stride, overlap);
        let (height, width) = (s[3] * ratio / patch, s[4] * ratio / patch);
        let joined = joined.narrow(3, 0, height.min(joined.size()[3])).narrow(
            4,
            0,
            width.min(joined.size()[4]),
        );
        let video = if patch > 1 { unpatchify(&joined, patch) } else { joined };
        video.clamp(-1.0, 1.0)
    }
}

/// Blends each tile with the one above and the one to the left, crops it to the stride and joins all.
fn join(rows: &mut [Vec<Tensor>], stride: i64, overlap: i64) -> Tensor {
    let mut bands = Vec::new();
    for i in 0..rows.len() {
        let mut band = Vec::new();
        for j in 0..rows[i].len() {
            if i > 0 {
                rows[i][j] = blend(&rows[i - 1][j], &rows[i][j], 3, overlap);
            }
            if j > 0 {
                rows[i][j] = blend(&rows[i][j - 1], &rows[i][j], 4, overlap);
            }
            let tile = &rows[i][j];
            let s = tile.size();
            band.push(tile.narrow(3, 0, stride.min(s[3])).narrow(4, 0, stride.min(s[4])));
        }
        bands.push(Tensor::cat(&band, 4));
    }
    Tensor::cat(&bands, 3)
}

/// `next` with its first `extent` rows or columns faded in from the last ones of `previous`.
fn blend(previous: &Tensor, next: &Tensor, dim: i64, extent: i64) -> Tensor {
    let (before, length) = (previous.size()[dim as usize], next.size()[dim as usize]);
    let extent = extent.min(before).min(length);
    if extent <= 0 {
        return next.shallow_clone();
    }
    let mut shape = [1i64; 5];
    shape[dim as usize] = extent;
    let ramp = Tensor::arange(extent, (Kind::Float, next.device())) / extent as f64;
    let ramp = ramp.to_kind(next.kind()).view(shape);
    let tail = previous.narrow(dim, before - extent, extent);
    let mixed = tail * (1.0 - &ramp) + next.narrow(dim, 0, extent) * &ramp;
    Tensor::cat(&[mixed, next.narrow(dim, extent, length - extent)], dim)
}
