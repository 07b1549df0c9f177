// SPDX-License-Identifier: MPL-2.0
//! Clips from a finished folder through the engine as it is shipped: its precision, and its steps and guidance unless
//! others are asked for.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::pipeline::{
    Chunk, Controls, FolderInfo, NoiseKind, Pipeline, Request, RgbFrame, Rollout, Settings,
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
    let info = FolderInfo::open(folder)?;
    Ok(Pipeline::load(&info, device, Precision::Auto, &mut |_, _| true)?)
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
