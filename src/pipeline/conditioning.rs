// SPDX-License-Identifier: MPL-2.0
//! Known pixels for folders that take them as channels beside the latents (image-to-video of 2.1 and A14B).

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
}
