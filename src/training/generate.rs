// SPDX-License-Identifier: MPL-2.0
//! Clips from a finished folder through the engine as it is shipped: default steps, guidance and precision.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::pipeline::{
    Controls, FolderInfo, NoiseKind, Pipeline, Request, RgbFrame, Rollout, Settings,
};
use crate::torch::Precision;

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
    let native = &pipeline.info().native;
    let settings = Settings {
        width: native.width,
        height: native.height,
        num_inference_steps: None,
        noise: NoiseKind::default(),
    };
    let mut rollout = Rollout::new(pipeline, Request::new(&settings, pipeline.info())?)?;
    let controls = Controls { prompt: prompt.to_owned(), seed, ..Controls::default() };
    if num_frames == 1 {
        return Ok(rollout.still(pipeline, &controls, &|| false)?.frames);
    }
    let mut frames = Vec::new();
    while frames.len() < num_frames {
        frames.extend(rollout.next_chunk(pipeline, &controls, &|| false)?.frames);
    }
    frames.truncate(num_frames);
    Ok(frames)
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
