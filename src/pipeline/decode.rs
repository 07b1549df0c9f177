// SPDX-License-Identifier: MPL-2.0
//! Latents to RGB frames, and frames to latents.

use tch::{Kind, Tensor};

use super::Pipeline;
use super::denoise::check;
use crate::error::{Error, Result};
use crate::nn::conv3d::FeatureCaches;

/// Pixels that the decoder works on at once: whole chunks of small frames, one latent frame of large ones, so that
/// activations stay bounded and a cancelled decode ends soon.
const PIXELS_AT_ONCE: i64 = 1 << 20;

/// One finished picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbFrame {
    pub width: usize,
    pub height: usize,
    /// sRGB, full range, rows packed: `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl Pipeline {
    /// Normalised latents `[1, z, T, h, w]` to video `[1, 3, F, H, W]` in [-1, 1], continuing the stream in `caches`.
    ///
    /// # Errors
    /// [`crate::error::Error::Cancelled`].
    pub fn decode_latents(
        &self,
        latents: &Tensor,
        caches: &mut FeatureCaches,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Tensor> {
        let z = self.vae.denormalize_latents(latents);
        let pieces = self
            .pieces(latents)
            .map(|(start, frames)| {
                check(cancel)?;
                Ok(self.vae.decode(&z.narrow(2, start, frames), caches))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&pieces, 2))
    }

    /// Video `[B, 3, F, H, W]` in [-1, 1] to normalised latents `[B, z, T, h, w]` (the mode), a clip of its own; what does not fill
    /// a latent frame is left out.
    pub fn encode_video(&self, video: &Tensor) -> Tensor {
        let factor = self.info.vae.temporal_factor();
        let frames = (video.size()[2] - 1) / factor * factor + 1;
        let clip = video.narrow(2, 0, frames).to_device(self.device);
        self.vae.normalize_latents(&self.vae.encode(&clip, &mut FeatureCaches::default()).mean)
    }

    /// Latent frames at once: (start, number).
    fn pieces(&self, latents: &Tensor) -> impl Iterator<Item = (i64, i64)> {
        let s = latents.size();
        let spatial = self.info.vae.spatial_factor();
        let pixels = self.info.vae.temporal_factor() * s[3] * s[4] * spatial * spatial * s[0];
        let at_once = (PIXELS_AT_ONCE / pixels.max(1)).clamp(1, s[2].max(1));
        let frames = s[2];
        (0..frames).step_by(at_once as usize).map(move |start| (start, at_once.min(frames - start)))
    }
}

/// Video `[1, 3, F, H, W]` in [-1, 1] to frames of `width` x `height`, cut from the middle.
pub fn rgb_frames(video: &Tensor, (width, height): (i64, i64)) -> Vec<RgbFrame> {
    let s = video.size();
    let (top, left) = ((s[3] - height) / 2, (s[4] - width) / 2);
    let bytes = video
        .get(0)
        .narrow(2, top, height)
        .narrow(3, left, width)
        .permute([1, 2, 3, 0]) // [F, H, W, 3]
        .to_kind(Kind::Float);
    let bytes = ((bytes * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
    let bytes = bytes.to_device(tch::Device::Cpu).contiguous();
    let size = (width * height * 3) as usize;
    (0..s[2])
        .map(|frame| {
            let mut data = vec![0; size];
            bytes.get(frame).copy_data_u8(&mut data, size);
            RgbFrame { width: width as usize, height: height as usize, data }
        })
        .collect()
}

/// Frames of one size to video `[1, 3, F, H, W]` in [-1, 1] on the CPU, their edges repeated up to `padded` (width, height):
/// what [`rgb_frames`] cuts away again.
///
/// # Errors
/// [`Error::Setting`] for no frames, or frames of different sizes.
pub fn video_of<'a>(
    frames: impl IntoIterator<Item = &'a RgbFrame>,
    padded: (i64, i64),
) -> Result<Tensor> {
    let mut pictures = Vec::new();
    let mut size = None;
    for frame in frames {
        let found = (frame.width as i64, frame.height as i64);
        let (width, height) = *size.get_or_insert(found);
        if found != (width, height) || frame.data.len() as i64 != width * height * 3 {
            let found = format!("{}x{}, {} bytes", found.0, found.1, frame.data.len());
            return Err(Error::setting("frames", found, format!("{width}x{height} RGB")));
        }
        pictures.push(Tensor::from_slice(&frame.data).view([height, width, 3]));
    }
    let Some((width, height)) = size else {
        return Err(Error::setting("frames", "none", "at least one"));
    };
    let video = Tensor::stack(&pictures, 0).to_kind(Kind::Float) / 127.5 - 1.0; // [F, H, W, 3]
    let (left, top) = ((padded.0 - width) / 2, (padded.1 - height) / 2);
    let edges = [left, padded.0 - width - left, top, padded.1 - height - top];
    let video = video.permute([0, 3, 1, 2]).replication_pad2d(edges);
    Ok(video.permute([1, 0, 2, 3]).unsqueeze(0).contiguous())
}
