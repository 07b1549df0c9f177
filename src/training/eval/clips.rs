// SPDX-License-Identifier: MPL-2.0
//! One second of video, or a picture, for each prompt, judged.

use std::time::Instant;

use anyhow::Result;
use tch::Tensor;

use super::pixels::{difference, flicker};
use super::score::{Scores, Words};
use super::{EvalOptions, prompt, restyling};
use crate::pipeline::{Native, Pipeline, RgbFrame, StartLevel};
use crate::training::generate::{self, Sampling};
use crate::training::judge::{ATTRIBUTES, Verdict, judge};
use crate::training::progress::Progress;
use crate::training::world::{Attributes, Scene, Style};

/// Clips kept for a contact sheet.
const KEPT: usize = 8;

/// Place of motion among the attributes.
const MOTION: usize = 2;

/// Whose clips are judged.
pub(super) enum Subject<'a> {
    /// The world itself, drawn at a model's size.
    World(&'a Native),
    Model {
        pipeline: &'a Pipeline,
        sampling: Sampling,
        /// Where not none, from where on it makes true clips anew.
        from: Option<StartLevel>,
        /// Whether those are in the plain look.
        restyle: bool,
    },
}

impl Subject<'_> {
    fn native(&self) -> &Native {
        match self {
            Self::World(native) => native,
            Self::Model { pipeline, .. } => &pipeline.info().native,
        }
    }

    fn frames(
        &self,
        scene: &Scene,
        prompt: &str,
        (seed, count): (u64, usize),
    ) -> Result<Vec<RgbFrame>> {
        match self {
            Self::World(native) => Ok(drawn(scene, native, count, 0)),
            Self::Model { pipeline, sampling, from: None, .. } => {
                generate::sampled(pipeline, prompt, seed, count, *sampling)
            }
            Self::Model { pipeline, sampling, from: Some(from), restyle } => {
                let mut scene = *scene;
                if *restyle {
                    scene.attributes.style = Style::None;
                }
                let shown = drawn(&scene, &pipeline.info().native, count, 0);
                generate::redrawn(pipeline, &shown, (prompt, seed), *from, *sampling)
            }
        }
    }
}

/// Frames of one second, the last included.
pub(super) fn second(native: &Native) -> usize {
    let (frames, seconds) = native.framerate;
    (f64::from(frames) / f64::from(seconds)).round() as usize + 1
}

/// Frames `first` and following of a scene of the world.
pub(super) fn drawn(scene: &Scene, native: &Native, count: usize, first: i64) -> Vec<RgbFrame> {
    let (width, height) = (native.width as usize, native.height as usize);
    let (frames, seconds) = native.framerate;
    let rate = f64::from(frames) / f64::from(seconds);
    let pixels = scene.render(width, height, count, first, rate);
    pixels
        .chunks_exact(width * height * 3)
        .map(|data| RgbFrame { width, height, data: data.to_vec() })
        .collect()
}

/// What a judge sees in frames of about one second.
pub(super) fn seen(frames: &[RgbFrame]) -> Verdict {
    let pixels: Vec<u8> = frames.iter().flat_map(|frame| frame.data.iter().copied()).collect();
    let (width, height) = frames.first().map_or((0, 0), |frame| (frame.width, frame.height));
    judge(&pixels, width, height)
}

/// A clip kept to be looked at.
pub(super) struct Kept {
    pub prompt: String,
    pub wanted: Attributes,
    pub seen: Verdict,
    /// `[3, F, H, W]` in [-1, 1].
    pub video: Tensor,
}

/// What all clips of a subject show.
#[derive(Default)]
pub(super) struct Clips {
    /// Of canonical captions and of other wordings.
    pub by_wording: [Scores; 2],
    pub words: Words,
    /// Levels of 255, means over the clips.
    pub flicker: f64,
    pub difference: f64,
    pub seconds_a_clip: f64,
    /// The first clips, whatever they show; then of all the first right and wrong ones.
    pub first: Vec<Kept>,
    pub right: Vec<Kept>,
    pub wrong: Vec<Kept>,
}

impl Clips {
    /// Over both wordings.
    pub fn total(&self) -> Scores {
        let mut total = self.by_wording[0];
        let more = &self.by_wording[1];
        for (score, more) in total.each.iter_mut().zip(more.each) {
            *score = score.plus(more);
        }
        total.all = total.all.plus(more.all);
        total
    }
}

/// Makes and judges a clip for each prompt.
///
/// # Errors
/// What generating one fails with.
pub(super) fn judged(options: &EvalOptions, subject: &Subject<'_>) -> Result<Clips> {
    let mut clips = Clips::default();
    let name = match subject {
        Subject::World(_) => "true clips".to_owned(),
        Subject::Model { pipeline, .. } => pipeline.info().folder.display().to_string(),
    };
    let progress = Progress::new(&name, options.prompts, 0, 0);
    let started = Instant::now();
    let count = if options.stills { 1 } else { second(subject.native()) };
    for index in 0..options.prompts {
        let wanted = if options.restyle { restyling } else { prompt };
        let (scene, prompt) = wanted(options, index);
        let frames = subject.frames(&scene, &prompt, (options.seed + index, count))?;
        let seen = seen(&frames);
        let mut answers = seen.compare(&scene.attributes);
        if options.stills {
            answers[MOTION] = None;
        }
        let right = clips.by_wording[(index % 2) as usize].add(answers);
        clips.words.add(&scene.attributes, &seen, answers);
        clips.flicker += flicker(&frames) / options.prompts as f64;
        clips.difference += mean_difference(&frames) / options.prompts as f64;
        let kept = || -> Result<Kept> {
            let video = generate::to_tensor(&frames)?;
            Ok(Kept { prompt: prompt.clone(), wanted: scene.attributes, seen, video })
        };
        if clips.first.len() < KEPT {
            clips.first.push(kept()?);
        }
        let of_kind = if right { &mut clips.right } else { &mut clips.wrong };
        if of_kind.len() < KEPT {
            of_kind.push(kept()?);
        }
        let total = clips.total();
        let shares: Vec<(&str, f64)> =
            ATTRIBUTES.iter().copied().zip(total.each.map(|score| score.interval().0)).collect();
        progress.step(index + 1, &shares);
    }
    clips.seconds_a_clip = started.elapsed().as_secs_f64() / options.prompts as f64;
    Ok(clips)
}

fn mean_difference(frames: &[RgbFrame]) -> f64 {
    let total: f64 = frames.windows(2).map(|pair| difference(&pair[0], &pair[1])).sum();
    total / frames.len().saturating_sub(1).max(1) as f64
}
