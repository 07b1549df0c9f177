// SPDX-License-Identifier: MPL-2.0
//! A finished model beside the one that is trained, which shows it what is not to change: few clips a step then teach something
//! new without costing what many had taught. What precedes a frame the teacher knows as it was, the pupil as a stream that went
//! wrong would remember it, so that it learns to come back (as Guo et al., arXiv 2512.15702, who spoil what is remembered
//! with the model itself).

use anyhow::Result;
use tch::{Device, Tensor};

use super::bank::Entry;
use super::batch::{Batch, Draws, Task, moved};
use super::trainer::{Blueprint, Models, Sources};
use super::world::Style;
use crate::models::transformer_wan::{AttentionPattern, TokenLayout};
use crate::pipeline::torch_noise;

/// Latent frames of the first second of a clip.
const FIRST_SECOND: i64 = 5;
/// Share of the windows whose memory has patches of another clip, how many at most, and their longest side in latents.
const PATCHED: f64 = 0.4;
const MOST_PATCHES: u64 = 3;
const LARGEST_PATCH: u64 = 4;
/// Noise levels from which memories are made anew: what they show is still known there.
const LEVELS: [f64; 2] = [0.3, 0.8];

/// What of a batch is held to what a teacher makes of it.
pub(super) struct Held {
    /// Which frames, `[B, 1, T, 1, 1]`; `None`: none.
    pub frames: Option<Tensor>,
    /// The clips with what went wrong in them, `[B, z, T, h, w]`.
    pub remembered: Tensor,
    /// The seed with which the teacher makes them anew as well; `None`: not.
    pub redrawn: Option<u64>,
    /// The numbers `[n]` of those whose first frame nothing precedes and nothing but the caption decides, which is guided; `None`:
    /// none.
    pub beginnings: Option<Tensor>,
}

impl Held {
    /// The same on a device.
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            frames: self.frames.as_ref().map(|frames| moved(frames, device)),
            remembered: moved(&self.remembered, device),
            redrawn: self.redrawn,
            beginnings: self.beginnings.as_ref().map(|numbers| moved(numbers, device)),
        }
    }
}

/// Whether a window from latent frame `start` on shows what a model that began with clips of a second has not learnt: an object
/// that has left or comes in (`place` `[T, 6]`), or a film after its first second.
pub(super) fn is_new(task: Task, entry: &Entry, place: &Tensor, start: i64) -> bool {
    let centre = place.narrow(1, 0, 2);
    let away = || centre.lt(0.0).logical_or(&centre.gt(1.0)).any().int64_value(&[]) != 0;
    let film = entry.attributes.style == Style::Film && start + place.size()[0] > FIRST_SECOND;
    matches!(task, Task::Next { .. }) && start > 0 && (film || (!entry.begins && away()))
}

/// A clip `[z, T, h, w]` in which now and then patches of another stand, as a stream grows them that never forgets what it once
/// got wrong.
pub(super) fn patched(clip: &Tensor, other: &Tensor, draws: &mut Draws) -> Tensor {
    let patched = clip.copy();
    if draws.unit() >= PATCHED {
        return patched;
    }
    let (height, width) = (clip.size()[2], clip.size()[3]);
    for _ in 0..1 + draws.next() % MOST_PATCHES {
        let mut side = |of: i64| {
            let side = 1 + (draws.next() % LARGEST_PATCH.min(of as u64)) as i64;
            ((draws.next() % (of - side + 1) as u64) as i64, side)
        };
        let ((top, rows), (left, columns)) = (side(height), side(width));
        let amount = 1.0 - 0.7 * draws.unit();
        let patch = |t: &Tensor| t.narrow(2, top, rows).narrow(3, left, columns);
        let _ = patch(&patched).lerp_(&patch(other), amount);
    }
    patched
}

/// A finished model, which shows what is not to change.
pub(super) struct Teacher {
    models: Models,
    /// Guidance of frames that nothing precedes.
    initial_guidance_scale: f64,
}

impl Teacher {
    /// Of `sources`, with the guidance that the blueprint names.
    ///
    /// # Errors
    /// Those of the models' constructors.
    pub fn new(sources: &Sources, blueprint: &Blueprint) -> Result<Self> {
        let initial_guidance_scale = blueprint.teacher.as_ref().map_or(1.0, |(_, scale)| *scale);
        Ok(Self { models: sources.models(blueprint)?, initial_guidance_scale })
    }

    /// What it makes, `[B, z, T, h, w]`, of latents and levels as the pupil has them (`[B, z, before + T, h, w]`,
    /// `[B, before + T]`), but for what precedes each block, which it knows as it was; beginnings are guided.
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn output(
        &self,
        (batch, held): (&Batch, &Held),
        (latents, levels): (&Tensor, &Tensor),
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let (models, s, at) = (&self.models, batch.latents.size(), batch.before());
        let context = models.context(&batch.captions);
        let noisy = latents.narrow(2, at, s[2]);
        let known = Tensor::cat(&[&batch.latents.narrow(2, 0, at), &noisy], 2);
        let (output, _) = models.predict(&known, levels, &context, layout)?;
        let output = output.narrow(2, at, s[2]).contiguous();
        if let Some(beginnings) = &held.beginnings {
            let of = |t: &Tensor, dim: i64| t.narrow(dim, at, 1).index_select(0, beginnings);
            let (first, levels) = (of(latents, 2), of(levels, 1));
            let layout = models.transformer.layout([1, s[3], s[4]], 0, AttentionPattern::Full);
            let none = models.context(&models.nothing).repeated(beginnings.size()[0]);
            let (negative, _) = models.predict(&first, &levels, &none, &layout)?;
            let own = output.narrow(2, 0, 1).index_select(0, beginnings);
            let guidance = (own - negative) * (self.initial_guidance_scale - 1.0);
            let _ = output.narrow(2, 0, 1).index_add_(0, beginnings, &guidance);
        }
        Ok(output)
    }

    /// What a stream would remember of a batch, `[B, z, T, h, w]`: what went wrong in it, and, where it is to be redrawn, what this
    /// model makes, in two steps, of frames that still show through their noise.
    ///
    /// # Errors
    /// Those of the transformer.
    pub fn memories(&self, (batch, held): (&Batch, &Held), layout: &TokenLayout) -> Result<Tensor> {
        let (s, at) = (batch.latents.size(), batch.before());
        let Some(seed) = held.redrawn.filter(|_| at > 0) else {
            return Ok(held.remembered.shallow_clone());
        };
        let _no_grad = tch::no_grad_guard();
        let context = self.models.context(&batch.captions);
        let clean = batch.latents.narrow(2, 0, at);
        let device = batch.latents.device();
        let mut draws = Draws::new(seed, 0);
        let levels = (0..s[0]).map(|_| LEVELS[0] + (LEVELS[1] - LEVELS[0]) * draws.unit());
        let levels: Vec<f32> = levels.map(|level| level as f32).collect();
        let level = Tensor::from_slice(&levels).view([s[0], 1]).to_device(device);
        let mut redrawn = batch.latents.shallow_clone();
        for level in [&level, &(&level * 0.5)] {
            let noise = torch_noise(draws.next(), &s).to_device(device);
            let noisy = redrawn.lerp_tensor(&noise, &level.view([s[0], 1, 1, 1, 1]));
            let latents = Tensor::cat(&[&clean, &noisy], 2);
            let levels = [level.zeros_like().repeat([1, at]), level.repeat([1, s[2]])];
            let levels = Tensor::cat(&levels, 1);
            let (output, _) = self.models.predict(&latents, &levels, &context, layout)?;
            redrawn = output.narrow(2, at, s[2]);
        }
        Ok(redrawn + &held.remembered - &batch.latents)
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::super::trainer::tests::{captions, of_the_default_model, off};
    use super::*;

    /// The default model as its own teacher.
    fn teacher() -> (Teacher, Blueprint) {
        let (sources, mut blueprint) = of_the_default_model();
        blueprint.teacher = Some((Default::default(), 1.5));
        (Teacher::new(&sources, &blueprint).unwrap(), blueprint)
    }

    /// Three clips of two latent frames, of which nothing precedes the first of the last two.
    fn batch(blueprint: &Blueprint) -> (Batch, Held) {
        let latents = torch_noise(1, &[3, 48, 2, 4, 4]);
        let held = Held {
            frames: Some(Tensor::from_slice(&[true; 6]).view([3, 1, 2, 1, 1])),
            remembered: latents.shallow_clone(),
            redrawn: Some(7),
            beginnings: Some(Tensor::from_slice(&[1i64, 2])),
        };
        let batch = Batch {
            shown: latents.shallow_clone(),
            guided: Tensor::zeros([0], (Kind::Int64, Device::Cpu)),
            held: None,
            latents,
            weights: Tensor::ones([3, 1, 2, 4, 4], (Kind::Float, Device::Cpu)),
            levels: Tensor::from_slice(&[0.0f32, 0.7, 0.5, 0.9, 0.8, 0.3]).view([3, 2]),
            captions: captions(blueprint, &["a red circle", "a star over the sea", ""]),
            truth: None,
            pattern: AttentionPattern::NextBlock { block_latent_frames: 1 },
        };
        (batch, held)
    }

    #[test]
    fn its_output_knows_what_was_and_is_guided_where_nothing_precedes() {
        let (teacher, blueprint) = teacher();
        let (batch, held) = batch(&blueprint);
        let _no_grad = tch::no_grad_guard();
        let models = &teacher.models;
        let layout = models.transformer.layout([3, 4, 4], 0, batch.pattern);
        let noisy = torch_noise(2, &[3, 48, 2, 4, 4]);
        let levels =
            Tensor::cat(&[batch.levels.narrow(1, 0, 1).zeros_like(), batch.levels.copy()], 1);
        let with = |memory: &Tensor| Tensor::cat(&[&memory.narrow(2, 0, 1), &noisy], 2);
        let own = |captions: &super::super::batch::Captions| {
            let context = models.context(captions);
            let latents = with(&batch.latents);
            models.predict(&latents, &levels, &context, &layout).unwrap().0.narrow(2, 1, 2)
        };
        let nothing = captions(&blueprint, &["", "", ""]);
        let (positive, negative) = (own(&batch.captions), own(&nothing));
        let spoilt = with(&torch_noise(3, &[3, 48, 2, 4, 4]));
        let shown = teacher.output((&batch, &held), (&spoilt, &levels), &layout).unwrap();
        let guided = &positive + (&positive - &negative) * 0.5;
        let frame = |video: &Tensor, clip, at| video.get(clip).narrow(1, at, 1);
        for clip in 0..3 {
            let first = if clip == 0 { &positive } else { &guided };
            assert!(off(&frame(&shown, clip, 0), &frame(first, clip, 0)) < 1e-4, "{clip}");
            assert!(off(&frame(&shown, clip, 1), &frame(&positive, clip, 1)) < 1e-4, "{clip}");
        }
        assert!(off(&frame(&guided, 1, 0), &frame(&positive, 1, 0)) > 1e-2);
    }

    #[test]
    fn memories_are_made_anew_with_what_went_wrong_in_them() {
        let (teacher, blueprint) = teacher();
        let (batch, held) = batch(&blueprint);
        let layout = teacher.models.transformer.layout([3, 4, 4], 0, batch.pattern);
        let memories = |held: &Held| teacher.memories((&batch, held), &layout).unwrap();
        let redrawn = memories(&held);
        assert_eq!(redrawn.size(), batch.latents.size());
        assert!(off(&redrawn, &batch.latents) > 1e-2);
        let wrong = torch_noise(4, &[3, 48, 2, 4, 4]);
        let held = Held { remembered: &batch.latents + &wrong, ..held };
        assert!(off(&memories(&held), &(redrawn + wrong)) < 1e-4);
        let held = Held { redrawn: None, ..held };
        assert!(memories(&held).equal(&held.remembered));
    }

    #[test]
    fn patches_of_another_clip_stay_where_they_are() {
        let mut draws = Draws::new(1, 1);
        let (clip, other) = (torch_noise(5, &[48, 5, 8, 14]), torch_noise(6, &[48, 5, 8, 14]));
        let mut spoilt = 0;
        for _ in 0..200 {
            let patched = patched(&clip, &other, &mut draws);
            let changed = (patched - &clip)
                .abs()
                .sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
                .gt(0.0);
            let cells = changed.get(0).sum(Kind::Int64).int64_value(&[]);
            assert!((0..5).all(|frame| changed.get(frame).equal(&changed.get(0))));
            assert!(cells <= (MOST_PATCHES * LARGEST_PATCH * LARGEST_PATCH) as i64);
            spoilt += usize::from(cells > 0);
        }
        assert!((60..100).contains(&spoilt), "{spoilt}");
    }
}
