// SPDX-License-Identifier: MPL-2.0
//! Long videos: steps of the picture where chunks meet, and whether the end still shows what the beginning did.

use anyhow::{Result, ensure};
use tch::Tensor;

use super::clips::{second, seen};
use super::pixels::difference;
use super::score::{Score, Scores};
use super::{EvalOptions, prompt};
use crate::pipeline::{Chunk, Pipeline, RgbFrame};
use crate::training::generate;
use crate::training::judge::{ATTRIBUTES, Verdict};
use crate::training::progress::Progress;
use crate::training::world::{Attributes, Style};

/// Seconds at each end that are looked at.
const LOOKED_AT: f64 = 2.5;
/// Frames between the windows of one second that are judged in them.
const WINDOW_STEP: usize = 4;

/// Sum and number of frame differences.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mean {
    sum: f64,
    pub count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// 0 of nothing.
    pub fn value(self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// What the two ends of one video show.
#[derive(Debug)]
pub(super) struct LongVideo {
    pub prompt: String,
    /// What is right in the first and in the last seconds, in the order of [`ATTRIBUTES`].
    pub start: [Option<bool>; ATTRIBUTES.len()],
    pub end: [Option<bool>; ATTRIBUTES.len()],
    /// A second of each, `[3, F, H, W]` in [-1, 1].
    pub seconds: Tensor,
}

impl LongVideo {
    /// Names of the attributes that are right in an end.
    pub fn right(end: &[Option<bool>; ATTRIBUTES.len()]) -> Vec<&'static str> {
        let right = ATTRIBUTES.iter().zip(end).filter(|(_, answer)| **answer == Some(true));
        right.map(|(name, _)| *name).collect()
    }
}

/// What long videos show.
#[derive(Debug, Default)]
pub(super) struct Long {
    pub prompts: u64,
    pub seconds: u64,
    /// Differences of neighbouring frames in levels of 255: of two chunks, and within one.
    pub seam: Mean,
    pub ordinary: Mean,
    pub start: Scores,
    pub end: Scores,
    /// Of the attributes that were right at the start, those that still are at the end.
    pub kept: Score,
    pub videos: Vec<LongVideo>,
}

impl Long {
    /// How much larger the step from chunk to chunk is than within one; `None` when there was no seam or no change.
    pub fn seam_ratio(&self) -> Option<f64> {
        let (seam, ordinary) = (self.seam.value(), self.ordinary.value());
        (self.seam.count > 0 && ordinary > 0.0).then(|| seam / ordinary)
    }
}

/// Generates the long videos and measures them.
///
/// # Errors
/// What generating one fails with; a length too short to have two ends.
pub(super) fn watch(options: &EvalOptions, pipeline: &Pipeline) -> Result<Long> {
    let native = &pipeline.info().native;
    let rate = f64::from(native.framerate.0) / f64::from(native.framerate.1);
    let looked_at = (LOOKED_AT * rate).round() as usize + 1;
    let total = (options.long_seconds as f64 * rate).round() as usize + 1;
    ensure!(
        total >= 2 * looked_at,
        "--long-seconds: found {}, expected at least {}",
        options.long_seconds,
        2.0 * LOOKED_AT
    );
    let name = format!("{} s of {}", options.long_seconds, pipeline.info().folder.display());
    let progress = Progress::new(&name, options.long_prompts * total as u64, 0, 0);
    let mut long =
        Long { prompts: options.long_prompts, seconds: options.long_seconds, ..Long::default() };
    for index in 0..options.long_prompts {
        // Canonical captions only: those of even numbers.
        let (scene, caption) = prompt(options, 2 * index);
        let mut video = Ends::new(looked_at);
        let mut take = |chunk: Chunk| {
            video.add(chunk, &mut long);
            progress.step(index * total as u64 + video.count.min(total) as u64, &[]);
        };
        generate::chunks(
            pipeline,
            &caption,
            options.seed + index,
            total,
            options.sampling,
            &mut take,
        )?;
        let second = second(native);
        let start = shown(&video.head, &scene.attributes, second);
        let end = shown(&video.tail, &scene.attributes, second);
        long.start.add(start);
        long.end.add(end);
        for (start, end) in start.iter().zip(&end) {
            if *start == Some(true) {
                long.kept.add(*end);
            }
        }
        let ends = [&video.head[..second], &video.tail[video.tail.len() - second..]].concat();
        let seconds = generate::to_tensor(&ends)?;
        long.videos.push(LongVideo { prompt: caption, start, end, seconds });
    }
    Ok(long)
}

/// The two ends of a video whose middle is not kept.
struct Ends {
    length: usize,
    count: usize,
    head: Vec<RgbFrame>,
    tail: Vec<RgbFrame>,
}

impl Ends {
    fn new(length: usize) -> Self {
        Self { length, count: 0, head: Vec::new(), tail: Vec::new() }
    }

    fn add(&mut self, chunk: Chunk, long: &mut Long) {
        for (at, frame) in chunk.frames.into_iter().enumerate() {
            if let Some(before) = self.tail.last() {
                let step = difference(before, &frame);
                if at == 0 { long.seam.add(step) } else { long.ordinary.add(step) }
            }
            if self.head.len() < self.length {
                self.head.push(frame.clone());
            }
            if self.tail.len() == self.length {
                self.tail.remove(0);
            }
            self.tail.push(frame);
            self.count += 1;
        }
    }
}

/// What frames of some seconds show of the wanted attributes.
///
/// An object may be out of sight for a moment and a growing one shrinks in between, so what is about the object counts
/// as right when any window of one second shows it; background and style must be right in half of them.
fn shown(
    frames: &[RgbFrame],
    wanted: &Attributes,
    second: usize,
) -> [Option<bool>; ATTRIBUTES.len()] {
    let verdicts: Vec<Verdict> = frames.windows(second).step_by(WINDOW_STEP).map(seen).collect();
    let right = |is_right: &dyn Fn(&Verdict) -> bool| {
        verdicts.iter().filter(|verdict| is_right(verdict)).count()
    };
    let object = |is_right: &dyn Fn(&Verdict) -> bool| Some(right(is_right) > 0);
    let scenery = |is_right: &dyn Fn(&Verdict) -> bool| Some(2 * right(is_right) >= verdicts.len());
    [
        (wanted.style != Style::Film)
            .then(|| right(&|verdict| verdict.colour == Some(wanted.colour)) > 0),
        object(&|verdict| verdict.shape == Some(wanted.shape)),
        object(&|verdict| verdict.motion == Some(wanted.motion)),
        scenery(&|verdict| verdict.background == Some(wanted.background)),
        scenery(&|verdict| verdict.style == Some(wanted.style)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::clips::drawn;
    use super::*;
    use crate::pipeline::Native;
    use crate::training::world::{Scene, Split};

    fn native() -> Native {
        Native { width: 160, height: 96, ..Native::default() }
    }

    #[test]
    fn the_world_does_not_drift_in_a_minute() {
        let mut scores = Scores::default();
        for index in 0..24 {
            let scene = Scene::from_index(index, Split::Any);
            let frames = drawn(&scene, &native(), 41, 60 * 16 - 40);
            scores.add(shown(&frames, &scene.attributes, second(&native())));
        }
        for (name, score) in scores.named().take(ATTRIBUTES.len()) {
            assert!(score.right + 1 >= score.judged, "{name}: {score:?}");
        }
    }

    #[test]
    fn another_world_is_noticed() {
        for index in 0..6 {
            let (scene, other) =
                (Scene::from_index(index, Split::Any), Scene::from_index(index + 40, Split::Any));
            let frames = drawn(&other, &native(), 41, 60 * 16 - 40);
            let answers = shown(&frames, &scene.attributes, second(&native()));
            let differ = (scene.attributes.background != other.attributes.background)
                .then_some(answers[3] == Some(false));
            assert_ne!(differ, Some(false), "{index}");
        }
    }

    #[test]
    fn seams_are_told_from_motion() {
        let frame = |level: u8| RgbFrame { width: 2, height: 2, data: vec![level; 12] };
        let chunk = |levels: &[u8]| Chunk {
            first_frame: 0,
            frames: levels.iter().map(|level| frame(*level)).collect(),
            timings: crate::pipeline::Timings::default(),
        };
        let (mut ends, mut long) = (Ends::new(2), Long::default());
        ends.add(chunk(&[10, 12, 14]), &mut long);
        ends.add(chunk(&[20, 22]), &mut long);
        assert_eq!(long.seam_ratio(), Some(3.0));
        let levels = |frames: &[RgbFrame]| frames.iter().map(|f| f.data[0]).collect::<Vec<_>>();
        assert_eq!((levels(&ends.head), levels(&ends.tail)), (vec![10, 12], vec![20, 22]));
    }
}
