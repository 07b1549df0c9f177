// SPDX-License-Identifier: MPL-2.0
//! Measures a finished folder: clips for held-out combinations of attributes, made by the engine as shipped, are
//! judged from their pixels; the autoencoder reconstructs held-out clips.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::captions::{Mentioned, canonical, captioned};
use super::judge::{ATTRIBUTES, judge};
use super::progress::Progress;
use super::vae::render;
use super::world::{Attributes, Scene, Split};
use super::{generate, sheet};
use crate::nn::conv3d::FeatureCaches;
use crate::pipeline::Pipeline;

/// Options of `dit-train eval`.
#[derive(Debug, Clone)]
pub struct EvalOptions {
    pub model: PathBuf,
    /// Folder for `eval.json` and the contact sheets.
    pub out: PathBuf,
    pub prompts: u64,
    pub device: Device,
}

/// Frames of a judged clip: one second.
const NUM_FRAMES: usize = 17;
/// Rows of each contact sheet.
const ROWS: usize = 8;
/// Clips that the autoencoder reconstructs.
const RECONSTRUCTED: u64 = 32;

/// Right answers out of those the judge decided.
#[derive(Debug, Clone, Copy, Default)]
struct Score {
    right: u64,
    judged: u64,
}

impl Score {
    fn add(&mut self, verdict: Option<bool>) {
        if let Some(right) = verdict {
            self.judged += 1;
            self.right += u64::from(right);
        }
    }

    /// Accuracy and its 95 % interval (Wilson, JASA 22, 1927), as fractions.
    fn interval(self) -> (f64, f64, f64) {
        let (n, z) = (self.judged.max(1) as f64, 1.96);
        let p = self.right as f64 / n;
        let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
        (p, (centre - half).max(0.0), (centre + half).min(1.0))
    }
}

/// Evaluates and writes; the table goes to standard output.
///
/// # Errors
/// When the folder cannot be loaded or the results cannot be written.
pub fn evaluate(options: &EvalOptions) -> Result<()> {
    ensure!(options.prompts > 0, "--prompts: found 0, expected at least 1");
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    let pipeline = generate::load(&options.model, options.device)?;
    let progress = Progress::new("eval", options.prompts, 0, 0);
    let mut scores = [Score::default(); ATTRIBUTES.len()];
    let (mut best, mut worst): (Vec<Tensor>, Vec<Tensor>) = (Vec::new(), Vec::new());
    for index in 0..options.prompts {
        let attributes = Scene::from_index(index, Split::HeldOut).attributes;
        // Every other prompt is one of the many other ways to say it, as long as it says it all.
        let prompt = if index % 2 == 0 {
            canonical(&attributes)
        } else {
            complete_caption(&attributes, index)
        };
        let frames = generate::frames(&pipeline, &prompt, index, NUM_FRAMES)?;
        let pixels: Vec<u8> = frames.iter().flat_map(|frame| frame.data.iter().copied()).collect();
        let answers = judge(&pixels, frames[0].width, frames[0].height).compare(&attributes);
        for (score, answer) in scores.iter_mut().zip(answers) {
            score.add(answer);
        }
        let all_right = answers.iter().all(|answer| *answer != Some(false));
        let kept = if all_right { &mut best } else { &mut worst };
        if kept.len() < ROWS {
            kept.push(generate::to_tensor(&frames)?);
        }
        progress.step(index + 1, &[]);
    }
    for (name, clips) in [("successes.png", &best), ("failures.png", &worst)] {
        if !clips.is_empty() {
            sheet::write(&options.out.join(name), &[&Tensor::stack(clips, 0)], 5)?;
        }
    }
    let psnr = reconstruction(&pipeline, options.device);
    report(options, &scores, psnr)
}

fn complete_caption(attributes: &Attributes, index: u64) -> String {
    (0..64)
        .map(|attempt| captioned(attributes, index * 64 + attempt))
        .find(|captioned| captioned.mentioned == Mentioned::ALL)
        .map_or_else(|| canonical(attributes), |captioned| captioned.caption)
}

/// PSNR in dB of reconstructed held-out clips at the native size.
fn reconstruction(pipeline: &Pipeline, device: Device) -> f64 {
    let _no_grad = tch::no_grad_guard();
    let native = &pipeline.info().native;
    let errors: Vec<f64> = (0..RECONSTRUCTED)
        .map(|index| {
            let scene = Scene::from_index(index, Split::HeldOut);
            let video = render(&scene, (native.width, native.height), NUM_FRAMES as i64, 0);
            let video = video.unsqueeze(0).to_device(device);
            let vae = pipeline.vae();
            let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
            let decoded = vae.decode(&latents, &mut FeatureCaches::default());
            (decoded - video).square().mean(Kind::Float).double_value(&[])
        })
        .collect();
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    // Peak to peak is 2.
    10.0 * (4.0 / mean).log10()
}

fn report(options: &EvalOptions, scores: &[Score], psnr: f64) -> Result<()> {
    let mut table =
        String::from("| attribute | accuracy | 95 % interval | judged |\n|---|---|---|---|\n");
    let mut json = serde_json::Map::new();
    for (name, score) in ATTRIBUTES.iter().zip(scores) {
        let (p, low, high) = score.interval();
        let percent = |v: f64| format!("{:.1} %", 100.0 * v);
        table += &format!(
            "| {name} | {} | {} to {} | {} |\n",
            percent(p),
            percent(low),
            percent(high),
            score.judged
        );
        let entry = json!({ "right": score.right, "judged": score.judged, "accuracy": p, "low": low, "high": high });
        json.insert((*name).to_owned(), entry);
    }
    json.insert("vae_psnr_db".into(), json!(psnr));
    json.insert("prompts".into(), json!(options.prompts));
    println!("{table}\nautoencoder: PSNR {psnr:.2} dB on {RECONSTRUCTED} held-out clips");
    let path = options.out.join("eval.json");
    let text = serde_json::to_string_pretty(&Value::Object(json))? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}
