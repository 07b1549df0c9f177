// SPDX-License-Identifier: MPL-2.0
//! Clips from a finished folder through the engine as it is shipped: its precision, and its steps and guidance unless
//! others are asked for.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::pipeline::{
    Chunk, Controls, EmbeddingCache, FolderInfo, NoiseKind, Pipeline, Request, RestyleControls,
    Restyler, RgbFrame, Rollout, Settings, StartLevel, rgb_frames, video_of,
};
use crate::torch::Precision;

/// Steps and guidance; `None`: the folder's own.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    pub num_inference_steps: Option<u32>,
    pub guidance_scale: Option<f64>,
}

/// Opens a pipeline folder.
///
/// # Errors
/// Those of [`Pipeline::load`].
pub fn load(folder: &Path, device: Device) -> Result<Pipeline> {
    opened(&FolderInfo::open(folder)?, device)
}

/// Opens a pipeline folder as `ditfilter` does, with its weights for restyling.
///
/// # Errors
/// Those of [`Pipeline::load`] and [`FolderInfo::for_restyling`].
pub fn load_for_restyling(folder: &Path, device: Device) -> Result<Pipeline> {
    opened(&FolderInfo::open(folder)?.for_restyling()?, device)
}

fn opened(info: &FolderInfo, device: Device) -> Result<Pipeline> {
    Ok(Pipeline::load(info, device, Precision::Auto, &mut |_, _| true)?)
}

/// The first `num_frames` frames of a prompt at the folder's native size; one frame is a still.
///
/// # Errors
/// Those of [`Rollout::next_chunk`].
pub fn frames(
    pipeline: &Pipeline,
    prompt: &str,
    seed: u64,
    num_frames: usize,
) -> Result<Vec<RgbFrame>> {
    sampled(pipeline, prompt, seed, num_frames, Sampling::default())
}

/// As [`frames`], with steps and guidance chosen.
///
/// # Errors
/// As [`frames`].
pub fn sampled(
    pipeline: &Pipeline,
    prompt: &str,
    seed: u64,
    num_frames: usize,
    sampling: Sampling,
) -> Result<Vec<RgbFrame>> {
    if num_frames == 1 {
        let (mut rollout, controls) = begin(pipeline, prompt, seed, sampling)?;
        return Ok(rollout.still(pipeline, &controls, &|| false)?.frames);
    }
    let mut frames = Vec::new();
    chunks(pipeline, prompt, seed, num_frames, sampling, &mut |chunk| frames.extend(chunk.frames))?;
    frames.truncate(num_frames);
    Ok(frames)
}

/// Hands out chunk after chunk until there are at least `num_frames` frames.
///
/// # Errors
/// As [`frames`].
pub fn chunks(
    pipeline: &Pipeline,
    prompt: &str,
    seed: u64,
    num_frames: usize,
    sampling: Sampling,
    take: &mut dyn FnMut(Chunk),
) -> Result<()> {
    let (mut rollout, controls) = begin(pipeline, prompt, seed, sampling)?;
    while (rollout.next_frame() as usize) < num_frames {
        take(rollout.next_chunk(pipeline, &controls, &|| false)?);
    }
    Ok(())
}

/// Frames made anew from a noise level on, or with a strength: what is lost on the way is lost above it.
///
/// # Errors
/// Those of [`Restyler::next_chunk`], and frames of different sizes.
pub fn redrawn(
    pipeline: &Pipeline,
    shown: &[RgbFrame],
    (prompt, seed): (&str, u64),
    start_level: StartLevel,
    sampling: Sampling,
) -> Result<Vec<RgbFrame>> {
    let native = &pipeline.info().native;
    let size = (native.width, native.height);
    let latents =
        pipeline.encode_video(&video_of(shown, pipeline.info().padded_size(size.0, size.1))?);
    let guidance_scale = sampling.guidance_scale;
    let embeddings = EmbeddingCache::default().pair(pipeline, (prompt, ""), guidance_scale)?;
    let controls = RestyleControls {
        embeddings: &embeddings,
        guidance_scale,
        seed,
        num_inference_steps: sampling.num_inference_steps.unwrap_or(native.num_inference_steps),
        start_level,
    };
    let mut restyler = Restyler::new(pipeline, size, NoiseKind::default())?;
    let (all, block) = (latents.size()[2], native.block_latent_frames);
    let mut frames = Vec::new();
    for first in (0..all).step_by(block as usize) {
        let guide = latents.narrow(2, first, block.min(all - first));
        let restyled = restyler.next_chunk(pipeline, &guide, &controls, &|| false)?;
        frames.extend(rgb_frames(&restyled.video, size));
    }
    Ok(frames)
}

fn begin(
    pipeline: &Pipeline,
    prompt: &str,
    seed: u64,
    sampling: Sampling,
) -> Result<(Rollout, Controls)> {
    let native = &pipeline.info().native;
    let settings = Settings {
        width: native.width,
        height: native.height,
        num_inference_steps: sampling.num_inference_steps,
        noise: NoiseKind::default(),
    };
    let rollout = Rollout::new(pipeline, Request::new(&settings, pipeline.info())?)?;
    let guidance_scale = sampling.guidance_scale;
    Ok((
        rollout,
        Controls { prompt: prompt.to_owned(), seed, guidance_scale, ..Controls::default() },
    ))
}

/// Frames as `[3, F, H, W]` in [-1, 1].
///
/// # Errors
/// When there is no frame.
pub fn to_tensor(frames: &[RgbFrame]) -> Result<Tensor> {
    ensure!(!frames.is_empty(), "no frames");
    let (width, height) = (frames[0].width as i64, frames[0].height as i64);
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.data.iter().copied()).collect();
    let video = Tensor::from_slice(&bytes).view([-1, height, width, 3]).permute([3, 0, 1, 2]);
    Ok(video.to_kind(Kind::Float) / 127.5 - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::captions::canonical;
    use crate::training::vae::render;
    use crate::training::world::{Scene, Split};

    #[test]
    fn the_less_noise_the_more_is_kept() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/default");
        let pipeline = load(&folder, Device::Cpu).unwrap();
        let scene = Scene::from_index(5, Split::HeldOut);
        let video = render(&scene, (224, 128), 5, 0);
        let shown = rgb_frames(&video.unsqueeze(0), (224, 128));
        let prompt = canonical(&scene.attributes);
        let sampling = Sampling { num_inference_steps: Some(3), guidance_scale: Some(1.0) };
        let made =
            |level| redrawn(&pipeline, &shown, (&prompt, 1), StartLevel::Noise(level), sampling);
        let off = [0.05, 0.6, 1.0].map(|level| {
            let made = to_tensor(&made(level).unwrap()).unwrap();
            assert_eq!(made.size(), [3, 5, 128, 224]);
            (made - &video).square().mean(Kind::Float).double_value(&[])
        });
        assert!(off[0] < 0.02 && off[0] < off[1] && off[1] < off[2], "{off:?}");
        assert!(made(1.5).unwrap_err().to_string().contains("1.5"));
    }
}
