// SPDX-License-Identifier: MPL-2.0
//! Known pixels for folders that take them as channels beside the latents (image-to-video of 2.1 and A14B) or through a control
//! branch (VACE).

use tch::{Kind, Tensor};

use super::Pipeline;

impl Pipeline {
    /// `[B, 4 + z, T, h, w]`: a mask of known frames in the channels that the frames of a latent make, then the latents of the video
    /// with mid grey where it is not known.
    ///
    /// `video` is `[B, 3, F, H, W]` in [-1, 1], F = 4n+1; `known` has one entry a frame.
    pub fn channel_condition(&self, video: &Tensor, known: &[bool]) -> Tensor {
        let s = video.size();
        let options = (Kind::Float, self.device);
        let flags: Vec<f32> = known.iter().map(|&known| f32::from(u8::from(known))).collect();
        let flags = Tensor::from_slice(&flags).to_device(self.device).view([1, 1, -1, 1, 1]);
        let latents = self.encode_video(&(video.to_device(self.device) * &flags));
        let z = latents.size();
        // The first frame stands for a whole group.
        let factor = self.info.vae.temporal_factor();
        let first = flags.narrow(2, 0, 1).expand([1, 1, factor, 1, 1], false);
        let later = flags.narrow(2, 1, s[2] - 1);
        let mask = Tensor::cat(&[first, later], 2)
            .view([1, z[2], factor, 1, 1])
            .transpose(1, 2) // [1, 4, T, 1, 1]
            .expand([s[0], factor, z[2], z[3], z[4]], false)
            .to_kind(options.0);
        Tensor::cat(&[mask, latents.to_kind(Kind::Float)], 1)
    }

    /// The control `[1, 2z + s*s, T + R, h, w]` of a VACE folder, s being the spatial factor of the autoencoder and R the number of
    /// references, each of which is a latent frame in front: latents of the kept pixels, latents of those to change, and the mask.
    ///
    /// `video` is `[1, 3, F, H, W]` in [-1, 1]; `mask` is `[1, 1, F, H, W]`, 1 where pixels are to change; references are
    /// `[3, h, w]` in [-1, 1], of any size.
    pub fn control(&self, video: &Tensor, mask: &Tensor, references: &[Tensor]) -> Tensor {
        let s = video.size();
        let video = video.to_device(self.device).to_kind(Kind::Float);
        let mask = mask.to_device(self.device).gt(0.5).to_kind(Kind::Float);
        let kept = self.encode_video(&(&video * (1.0 - &mask)));
        let changed = self.encode_video(&(&video * &mask));
        let mut latents = Tensor::cat(&[kept, changed], 1);
        for reference in references {
            let picture = on_canvas(&reference.to_device(self.device), (s[4], s[3]));
            let latent = self.encode_video(&picture);
            let latent = Tensor::cat(&[&latent, &latent.zeros_like()], 1);
            latents = Tensor::cat(&[latent, latents], 2);
        }
        let mask = self.folded_mask(&mask, latents.size()[2] - references.len() as i64);
        let ahead = references.len() as i64;
        Tensor::cat(&[latents, mask.constant_pad_nd([0, 0, 0, 0, ahead, 0])], 1)
    }

    /// `[1, 1, F, H, W]` to `[1, s*s, frames, H/s, W/s]`: the pixels of a latent as channels, and the nearest frame in time.
    fn folded_mask(&self, mask: &Tensor, frames: i64) -> Tensor {
        let size = mask.size();
        let (length, height, width) = (size[2], size[3], size[4]);
        let spatial = self.info.vae.spatial_factor();
        let folded = mask
            .view([length, height / spatial, spatial, width / spatial, spatial])
            .permute([2, 4, 0, 1, 3]) // [s, s, F, h, w]
            .reshape([1, spatial * spatial, length, height / spatial, width / spatial]);
        let nearest: Vec<i64> = (0..frames).map(|i| (2 * i + 1) * length / (2 * frames)).collect();
        folded.index_select(2, &Tensor::from_slice(&nearest).to_device(self.device))
    }
}

/// A picture `[3, h, w]` in [-1, 1] fitted into `width` x `height`, in the middle of white: `[1, 3, 1, height, width]`.
fn on_canvas(picture: &Tensor, (width, height): (i64, i64)) -> Tensor {
    let s = picture.size();
    let scale = (height as f64 / s[1] as f64).min(width as f64 / s[2] as f64);
    let (fitted_height, fitted_width) =
        ((s[1] as f64 * scale) as i64, (s[2] as f64 * scale) as i64);
    let fitted =
        picture.unsqueeze(0).upsample_bilinear2d([fitted_height, fitted_width], false, None, None);
    let canvas = Tensor::ones([1, 3, 1, height, width], (Kind::Float, picture.device()));
    let (top, left) = ((height - fitted_height) / 2, (width - fitted_width) / 2);
    canvas.narrow(3, top, fitted_height).narrow(4, left, fitted_width).copy_(&fitted.unsqueeze(2));
    canvas
}
