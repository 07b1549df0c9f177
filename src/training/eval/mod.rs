// SPDX-License-Identifier: MPL-2.0
//! Measures finished folders: clips for held-out combinations of attributes, made by the engine as shipped, are judged
//! from their pixels; long videos are looked at for seams and drift; the autoencoder reconstructs held-out clips.
//!
//! Beside the models stand the world's own clips of the same combinations: what the judge makes of the truth.

mod clips;
mod long;
pub(super) mod pixels;
mod report;
pub mod scaling;
mod score;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use super::generate::{self, Sampling};
use super::progress::Progress;
use super::world::{Attributes, Scene, Split, Style};
use super::{captions, vae};
use crate::nn::conv3d::FeatureCaches;
use crate::pipeline::{Pipeline, StartLevel, rgb_frames};
use clips::{Clips, Subject};
use long::Long;
use score::{Scores, Words};

/// Options of `dit-train eval`.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    /// One folder or several, to be compared.
    pub models: Vec<PathBuf>,
    /// Folder for `eval.json` and the contact sheets.
    pub out: PathBuf,
    /// Clips to judge: every combination is asked for twice, in the canonical caption and in another one.
    pub prompts: u64,
    /// Single pictures instead of clips; motion is then not judged.
    pub stills: bool,
    /// Clips that the autoencoder reconstructs.
    pub reconstructions: u64,
    /// Long videos, for seams and drift.
    pub long_prompts: u64,
    /// Seconds of each long video.
    pub long_seconds: u64,
    pub sampling: Sampling,
    /// From where on true clips are made anew, instead of clips out of nothing.
    pub from: Option<StartLevel>,
    /// Whether the true clips are in the plain look, and only their styles are asked for, as with `ditfilter`.
    pub restyle: bool,
    pub seed: u64,
    pub device: Device,
}

/// What the autoencoder gives back of held-out clips.
#[derive(Debug, Clone)]
struct Reconstruction {
    clips: u64,
    psnr: f64,
    /// Of the last of [`vae::LONG_SECONDS`] of some of them.
    late_psnr: f64,
    ssim: f64,
    /// What the judge still sees in them: no model that draws through this autoencoder is likely to do better.
    scores: Scores,
    words: Words,
}

/// Everything measured of one folder.
struct Measured {
    folder: PathBuf,
    clips: Clips,
    reconstruction: Option<Reconstruction>,
    long: Option<Long>,
    /// The steps and guidance that were used.
    steps: u32,
    guidance_scale: f64,
}

/// Evaluates and writes `eval.json` and contact sheets; the table goes to standard output.
///
/// # Errors
/// When a folder cannot be loaded or the results cannot be written.
pub fn evaluate(options: &EvalOptions) -> Result<()> {
    ensure!(options.prompts > 0, "--prompts: found 0, expected at least 1");
    if let Some(StartLevel::Noise(value) | StartLevel::Strength(value)) = options.from {
        ensure!(
            value > 0.0 && value <= 1.0,
            "--from-level, --strength: found {value}, expected above 0 and at most 1"
        );
    }
    ensure!(
        options.from.is_some() || !options.restyle,
        "--restyle: found no start, expected --strength or --from-level as well"
    );
    ensure!(!options.models.is_empty(), "--model: expected at least one folder");
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    // All folders are opened first: a mistyped one should not come to light after minutes.
    let pipelines = options
        .models
        .iter()
        .map(|folder| match options.from {
            Some(_) => generate::load_for_restyling(folder, options.device),
            None => generate::load(folder, options.device),
        })
        .collect::<Result<Vec<_>>>()?;
    let truth = clips::judged(options, &Subject::World(&pipelines[0].info().native))?;
    let mut models = Vec::new();
    for (folder, pipeline) in options.models.iter().zip(&pipelines) {
        let measured = measure(options, folder, pipeline)?;
        let label = report::label(folder);
        report::sheets(&options.out, &label, &measured.clips)?;
        if let Some(long) = &measured.long {
            report::long_sheet(&options.out, &label, long)?;
        }
        models.push(measured);
    }
    report::side_by_side(&options.out, &truth, &models)?;
    report::write(options, &truth, &models)
}

fn measure(
    options: &EvalOptions,
    folder: &std::path::Path,
    pipeline: &Pipeline,
) -> Result<Measured> {
    let native = &pipeline.info().native;
    let EvalOptions { sampling, from, restyle, .. } = *options;
    Ok(Measured {
        folder: folder.to_owned(),
        clips: clips::judged(options, &Subject::Model { pipeline, sampling, from, restyle })?,
        long: (options.long_prompts > 0).then(|| long::watch(options, pipeline)).transpose()?,
        reconstruction: (options.reconstructions > 0).then(|| reconstruct(options, pipeline)),
        steps: options.sampling.num_inference_steps.unwrap_or(native.num_inference_steps),
        guidance_scale: options.sampling.guidance_scale.unwrap_or(native.guidance_scale),
    })
}

/// Attributes and wording of prompt `index`: every combination in the canonical caption, then in one of the many other
/// ways to say all of it.
fn prompt(options: &EvalOptions, index: u64) -> (Scene, String) {
    let number = options.seed.wrapping_mul(1 << 20).wrapping_add(index / 2);
    let scene = Scene::from_index(number, Split::HeldOut);
    let caption = if index.is_multiple_of(2) {
        captions::canonical(&scene.attributes)
    } else {
        captions::complete(&scene.attributes, index)
    };
    (scene, caption)
}

/// What a plain clip `index` is restyled to, one style after the other, and the words for that, which say no more.
fn restyling(options: &EvalOptions, index: u64) -> (Scene, String) {
    let number = options.seed.wrapping_mul(1 << 20).wrapping_add(index);
    let styles = &Style::ALL[1..];
    let style = styles[(index % styles.len() as u64) as usize];
    let Scene { attributes, .. } = Scene::from_index(number, Split::HeldOut);
    let scene = Scene::with_attributes(Attributes { style, ..attributes }, number);
    (scene, format!("in {} style", style.name()))
}

/// Every so many-th clip is reconstructed over several seconds as well, which takes five times as long.
const LATE: u64 = 8;

/// PSNR and SSIM of reconstructed held-out clips of one second at the native size, and how well long ones end.
fn reconstruct(options: &EvalOptions, pipeline: &Pipeline) -> Reconstruction {
    let _no_grad = tch::no_grad_guard();
    let native = &pipeline.info().native;
    let progress = Progress::new("autoencoder", options.reconstructions, 0, 0);
    let (mut error, mut late, mut ssim) = (0.0, Vec::new(), 0.0);
    let (mut scores, mut words) = (Scores::default(), Words::default());
    for index in 0..options.reconstructions {
        let scene = Scene::from_index(index, Split::HeldOut);
        let video: Tensor =
            vae::render(&scene, (native.width, native.height), native.num_frames, 0)
                .to_device(options.device);
        let latents = pipeline.encode_video(&video.unsqueeze(0));
        let latents = pipeline.vae().denormalize_latents(&latents);
        let decoded = pipeline.vae().decode(&latents, &mut FeatureCaches::default());
        let frames = rgb_frames(&decoded, (native.width, native.height));
        let seen = clips::seen(&frames);
        let answers = seen.compare(&scene.attributes);
        scores.add(answers);
        words.add(&scene.attributes, &seen, answers);
        let decoded = decoded.get(0);
        error += pixels::squared_error(&decoded, &video);
        ssim += pixels::ssim(&decoded, &video);
        if index.is_multiple_of(LATE) {
            let size = (native.width, native.height);
            late.push(vae::late_error(pipeline.vae(), &scene, size, options.device));
        }
        progress.step(index + 1, &[]);
    }
    let count = options.reconstructions as f64;
    Reconstruction {
        clips: options.reconstructions,
        psnr: pixels::psnr(error / count),
        late_psnr: pixels::psnr(late.iter().sum::<f64>() / late.len() as f64),
        ssim: ssim / count,
        scores,
        words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restyled_clips_are_asked_for_by_their_styles_alone() {
        let options = EvalOptions {
            models: Vec::new(),
            out: PathBuf::new(),
            prompts: 10,
            stills: false,
            reconstructions: 0,
            long_prompts: 0,
            long_seconds: 60,
            sampling: Sampling::default(),
            from: Some(StartLevel::Strength(0.5)),
            restyle: true,
            seed: 1,
            device: Device::Cpu,
        };
        let native = crate::pipeline::Native { width: 160, height: 96, ..Default::default() };
        let mut styles = std::collections::HashSet::new();
        for index in 0..options.prompts {
            let (scene, caption) = restyling(&options, index);
            let style = scene.attributes.style;
            assert_eq!(caption, format!("in {} style", style.name()));
            styles.insert(style);
            // What is wanted is the world's own clip in that style, and the judge takes it for that.
            let seen = clips::seen(&clips::drawn(&scene, &native, clips::second(&native), 0));
            assert_eq!(seen.style, Some(style), "{:?}", scene.attributes);
        }
        assert!(styles.len() == Style::ALL.len() - 1 && !styles.contains(&Style::None));
        let nowhere = EvalOptions { from: None, models: vec!["none".into()], ..options };
        assert!(evaluate(&nowhere).unwrap_err().to_string().contains("--strength"));
    }
}
