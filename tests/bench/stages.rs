// SPDX-License-Identifier: MPL-2.0
//! The stages of the engine one by one, at the native size of a folder and in f32 on the CPU.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use gstdit::models::transformer_wan::{AttentionPattern, Timestep, TransformerInput};
use gstdit::nn::attention::KvAccess;
use gstdit::nn::conv3d::FeatureCaches;
use gstdit::pipeline::{FolderInfo, Pipeline, rgb_frames};
use gstdit::torch::{self, Precision};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::machine;

const WARM_UP: usize = 2;
/// A stage is repeated this often, less often if that takes longer than the time below.
const REPEATS: usize = 15;
const ENOUGH: Duration = Duration::from_secs(5);
const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The middle one of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Times something after a warm-up.
fn time<T>(stage: &str, mut work: impl FnMut() -> Result<T>) -> Result<Value> {
    for _ in 0..WARM_UP {
        work()?;
    }
    let mut figures = Vec::with_capacity(REPEATS);
    let begun = Instant::now();
    while figures.len() < REPEATS && (figures.len() < 3 || begun.elapsed() < ENOUGH) {
        let started = Instant::now();
        work()?;
        figures.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let repeats = figures.len();
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let middle = median(figures);
    Ok(json!({ "stage": stage, "median_ms": middle, "least_ms": least, "repeats": repeats }))
}

/// Loading, prompt, one step of the transformer on a whole window, encoding and decoding of it.
pub fn measure(folder: &Path) -> Result<Value> {
    torch::init();
    torch::flush_denormals();
    let _no_grad = tch::no_grad_guard();
    let info = FolderInfo::open(folder)?;
    let load = || Pipeline::load(&info, Device::Cpu, Precision::F32, &mut |_, _| true);
    let pipeline = load()?;
    let native = &info.native;
    let (width, height, frames) = (native.width, native.height, native.num_frames);
    let mut stages = vec![time("load all weights", || Ok(load()?))?];
    stages.push(time("encode a prompt", || {
        Ok(pipeline.encode_prompt("a red circle moving right over the sea")?)
    })?);

    let spatial = info.vae.spatial_factor();
    let latent = [info.window_latent_frames(), height / spatial, width / spatial];
    let shape = [1, info.vae.z_dim, latent[0], latent[1], latent[2]];
    let latents = Tensor::randn(shape, OPTIONS);
    let model = &pipeline.transformers()[0];
    let text = pipeline.encode_prompt("a red circle moving right over the sea")?;
    let context = model.context(&text, None);
    let layout = model.layout(latent, 0, AttentionPattern::Full);
    let timestep = Tensor::full([1, latent[0]], 500.0, OPTIONS);
    let window = format!("{frames} frames of {width}x{height}");
    stages.push(time(&format!("transformer, one evaluation of {window}"), || {
        Ok(model.forward(TransformerInput {
            hidden_states: &latents,
            timestep: Timestep::PerFrame(&timestep),
            context: &context,
            layout: &layout,
            kv: KvAccess::None,
        }))
    })?);

    let video = Tensor::rand([1, 3, frames, height, width], OPTIONS) * 2.0 - 1.0;
    stages.push(time(&format!("VAE, encode {window}"), || Ok(pipeline.encode_video(&video)))?);
    stages.push(time(&format!("VAE, decode {window}"), || {
        Ok(pipeline.decode_latents(&latents, &mut FeatureCaches::default(), &|| false)?)
    })?);
    stages.push(time(&format!("tensor to bytes, {window}"), || {
        Ok(rgb_frames(&video, (width, height)))
    })?);
    Ok(
        json!({ "threads": tch::get_num_threads(), "peak_mib": machine::peak_mib(), "stages": stages }),
    )
}
