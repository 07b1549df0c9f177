// SPDX-License-Identifier: MPL-2.0
//! Batches of windows out of rings of encoded clips of the world, which stay in main memory.

use anyhow::Result;
use tch::{Device, Tensor};

use super::attribute_head::{self, Truth};
use super::bank::{Bucket, Entry, Shape};
use super::batch::{BLOCK_LATENT_FRAMES, Batch, Captions, Draws, NEXT, Task};
use super::captions::{Captioned, canonical, captioned, look};
use super::exchange::Exchanged;
use super::teacher::{Held, is_new, patched};
use super::trainer::Batches;
use crate::models::autoencoder_kl_wan::AutoencoderKLWan;
use crate::models::tokenizer::PromptTokenizer;

/// Latent frames that the transformer is trained on at once.
const WINDOW_LATENT_FRAMES: i64 = 5;
/// Pixel frames of the clips that windows are cut from: with what comes after the first second.
const CLIP_FRAMES: i64 = 33;
/// How often a still, and a clip, is met before another takes its place; clips cost more to encode.
const MEETINGS: [f64; 2] = [24.0, 48.0];
/// Share of the windows that begin where their clip does, of clips that are the beginning of their scene.
const START: f64 = 0.7;
/// How often a still, and a clip, that has another beside it is shown as that one, where its caption tells them apart; and the least
/// noise level for it: below, a picture is all but finished.
const OTHERWISE: [f64; 2] = [0.5, 0.75];
const LEAST_OTHERWISE: f32 = 0.3;
/// The noise level from which on hardly anything of a picture shows.
const NOTHING_SHOWS: f32 = 0.8;
/// Share of the batches that a teacher makes memories of anew.
const REDRAWN: f64 = 0.5;
/// Noise levels of collages that are restyled: beyond them nothing of a picture is kept or changed.
const RESTYLING: [f64; 2] = [0.25, 0.85];
/// Share of the windows to be restyled whose memory is in the old style still, as after a change of words.
const OLD_STYLE: f64 = 0.25;

/// How a [`Sampler`] draws.
#[derive(Debug, Clone)]
pub(super) struct SamplerOptions {
    pub seed: u64,
    /// Steps on single images before clips come in.
    pub image_steps: u64,
    /// Steps over which stills, and clips once they come in, become as hard as the world.
    pub simple_steps: u64,
    /// Share of steps on clips, once they have come in.
    pub clip_share: f64,
    /// Words of the world that every second clip shows one of.
    pub favoured: Vec<&'static str>,
    /// Share of the batches that are collages to be restyled.
    pub collage_share: f64,
    /// Whether a teacher stands by, to whom all is held but what is new.
    pub holds: bool,
    /// Tokens of video in a batch.
    pub batch_tokens: i64,
    /// Longest caption in tokens.
    pub max_sequence_length: i64,
    pub device: Device,
    /// New clips that wait to be encoded together.
    pub at_once: usize,
    /// Samplers that share the work.
    pub makers: usize,
}

/// Draws batches out of rings of encoded clips, which stay in main memory.
pub(super) struct Sampler {
    options: SamplerOptions,
    vae: AutoencoderKLWan,
    tokenizer: PromptTokenizer,
    world: Rings,
    collages: Rings,
}

/// Rings of one kind of footage, one for each size.
struct Rings {
    images: Vec<Bucket>,
    clips: Vec<Bucket>,
}

impl Rings {
    /// Empty rings, each made with `bucket` out of its width, height, frames and capacity.
    fn new(bucket: impl Fn(i64, i64, i64, usize) -> Bucket) -> Self {
        Self {
            images: vec![
                bucket(224, 128, 1, 1_500),
                bucket(128, 128, 1, 1_000),
                bucket(128, 224, 1, 1_000),
            ],
            clips: vec![
                bucket(224, 128, CLIP_FRAMES, 600),
                bucket(128, 128, CLIP_FRAMES, 300),
                bucket(128, 224, CLIP_FRAMES, 200),
            ],
        }
    }

    fn of(&self, task: Task) -> &[Bucket] {
        if task == Task::Stills { &self.images } else { &self.clips }
    }

    fn of_mut(&mut self, task: Task) -> &mut [Bucket] {
        if task == Task::Stills { &mut self.images } else { &mut self.clips }
    }
}

impl Sampler {
    /// `first` is the step that it begins at: resumed runs go on to clips they have not seen.
    pub fn new(
        options: SamplerOptions,
        vae: AutoencoderKLWan,
        tokenizer: PromptTokenizer,
        first: u64,
    ) -> Self {
        let bucket = |width, height, frames, capacity| {
            let first = (options.seed << 40)
                + first * 64
                + (frames as u64) * 7_000_003
                + (width as u64) * 1009;
            Bucket::new(Shape { width, height, frames }, capacity, first, &options.favoured)
        };
        let world = Rings::new(bucket);
        let collages = Rings::new(|width, height, frames, capacity| {
            bucket(width, height, frames, capacity).of_collages()
        });
        Self { options, vae, tokenizer, world, collages }
    }

    fn rings(&self, collage: bool) -> &Rings {
        if collage { &self.collages } else { &self.world }
    }
}

impl Sampler {
    /// What a step teaches.
    fn task(&self, draws: &mut Draws, step: u64) -> Task {
        if step < self.options.image_steps || draws.unit() >= self.options.clip_share {
            Task::Stills
        } else if draws.unit() < NEXT {
            Task::Next { block: BLOCK_LATENT_FRAMES }
        } else {
            Task::Window
        }
    }

    /// Fills the ring up with what is new to this step.
    fn refresh(
        &mut self,
        draws: &mut Draws,
        (task, collage, at): (Task, bool, usize),
        step: u64,
        size: i64,
    ) {
        let clip = task != Task::Stills;
        let (makers, at_once, device) =
            (self.options.makers, self.options.at_once, self.options.device);
        let bucket = &self.rings(collage).of(task)[at];
        let fresh = size as f64 / MEETINGS[usize::from(clip)];
        let fresh = if bucket.is_empty() {
            ((size as usize * 4).min(400) / makers).max(at_once)
        } else {
            fresh as usize + usize::from(draws.unit() < fresh.fract())
        };
        // What is new begins simple: stills with the training, clips when they come in.
        let taught = if clip { step - self.options.image_steps } else { step };
        let ease = ease(taught, self.options.simple_steps);
        let rings = if collage { &mut self.collages } else { &mut self.world };
        rings.of_mut(task)[at].refresh(&self.vae, (fresh, at_once), ease, device);
    }
}

impl Batches for Sampler {
    fn batch(&mut self, step: u64) -> Result<Batch> {
        let mut draws = Draws::new(self.options.seed, step);
        let early = step < self.options.image_steps;
        let task = self.task(&mut draws, step);
        let at = match draws.unit() {
            u if u < 0.6 => 0,
            u if u < 0.8 => 1,
            _ => 2,
        };
        let frames = task.frames(&mut draws, WINDOW_LATENT_FRAMES);
        let share = self.options.collage_share;
        let collage = share > 0.0 && draws.unit() < share;
        let Shape { width, height, .. } = self.rings(collage).of(task)[at].shape;
        let tokens = (width / 32) * (height / 32) * task.frames_in(frames);
        let size = (self.options.batch_tokens / tokens).max(2);
        self.refresh(&mut draws, (task, collage, at), step, size);
        let bucket = &self.rings(collage).of(task)[at];
        let windows: Vec<Window> =
            (0..size).map(|_| self.window(bucket, (task, frames), early, &mut draws)).collect();
        self.gathered(windows, task, &mut draws)
    }
}

/// What a batch has of one clip.
struct Window {
    /// Normalised and clean, `[z, T, h, w]`.
    latents: Tensor,
    /// What is noised, `[z, T, h, w]`.
    shown: Tensor,
    /// The latents with what went wrong in them, `[z, T, h, w]`, where a teacher stands by.
    remembered: Option<Tensor>,
    /// `[1, T, h, w]`
    weights: Tensor,
    levels: Vec<f32>,
    caption: String,
    attributes: [i64; 5],
    /// `[T, 6]`
    places: Tensor,
    /// `[T, 4, 4h, 4w]`
    outlines: Tensor,
    /// What its caption says otherwise than what is noised shows.
    otherwise: Option<Exchanged>,
    /// Whether it is held to what a teacher makes of it.
    held: bool,
    /// Whether nothing precedes its first frame.
    opens: bool,
}

impl Window {
    /// Whether its first frame's guidance is learnt: not on the way from another clip, which it would overdo. Where nothing shows of
    /// that it makes no difference, and with two targets for the same half of the guidance would be learnt.
    fn is_guided(&self) -> bool {
        let first = self.levels.first().copied().unwrap_or_default();
        self.opens && (self.otherwise.is_none() || first >= NOTHING_SHOWS)
    }

    /// Whether a frame with this noise level is held to a teacher, who hardly knows what shows through when it has another style than
    /// the words say: there the truth is the better lesson.
    fn is_held_at(&self, level: f32) -> bool {
        let restyled = self.otherwise == Some(Exchanged::Style);
        self.held && !(restyled && (LEAST_OTHERWISE..NOTHING_SHOWS).contains(&level))
    }
}

impl Sampler {
    /// A window of so many latent frames of one of the clips.
    fn window(
        &self,
        bucket: &Bucket,
        (task, frames): (Task, i64),
        early: bool,
        draws: &mut Draws,
    ) -> Window {
        let entry = bucket.pick(draws.next());
        let last = (entry.latents.size()[1] - frames) as u64;
        let starts = last == 0 || (entry.begins && draws.unit() < START);
        let start = if starts { 0 } else { (1 + draws.next() % last) as i64 };
        let cut = |latents: &Tensor| latents.narrow(1, start, frames);
        let latents = cut(&entry.latents);
        let (caption, other) = said(entry, early, draws);
        let places = entry.places.narrow(0, start, frames);
        let otherwise = other.map(|(_, what)| what);
        let remembered = self.options.holds.then(|| {
            let foreign = &bucket.pick(draws.next()).latents;
            let at = (draws.next() % (last + 1)) as i64;
            let own = match other {
                Some((old, Exchanged::Style)) if draws.unit() < OLD_STYLE => cut(old),
                _ => latents.shallow_clone(),
            };
            patched(&own, &foreign.narrow(1, at, frames), draws)
        });
        let mut levels = task.levels(draws, frames as usize, start > 0);
        if entry.collage {
            for level in levels.iter_mut().filter(|level| **level > 0.0) {
                *level = (RESTYLING[0] + (RESTYLING[1] - RESTYLING[0]) * draws.unit()) as f32;
            }
        }
        let shown = match other {
            Some((other, _)) => towards(&latents, &cut(other), &levels, draws),
            None => latents.shallow_clone(),
        };
        Window {
            shown,
            remembered,
            weights: cut(&entry.weights),
            levels,
            caption,
            attributes: attribute_head::numbers(&entry.attributes),
            outlines: entry.outlines.narrow(0, start, frames),
            otherwise,
            held: self.options.holds && !entry.collage && !is_new(task, entry, &places, start),
            opens: start == 0 && task != Task::Window,
            places,
            latents,
        }
    }

    /// Windows of one length as a batch.
    fn gathered(&self, windows: Vec<Window>, task: Task, draws: &mut Draws) -> Result<Batch> {
        let size = windows.len() as i64;
        let stacked = |of: fn(&Window) -> &Tensor| {
            Tensor::stack(&windows.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let captions: Vec<String> = windows.iter().map(|window| window.caption.clone()).collect();
        let captions = Captions::new(&self.tokenizer, &captions, self.options.max_sequence_length)?;
        let unlike: Vec<_> = windows.iter().map(|w| w.otherwise.is_some() || w.held).collect();
        let levels: Vec<f32> = windows.iter().flat_map(|w| w.levels.iter().copied()).collect();
        let attributes: Vec<i64> = windows.iter().flat_map(|w| w.attributes).collect();
        let batch = Batch {
            guided: Batch::guided(&captions, &unlike),
            held: self.options.holds.then(|| held(&windows, draws)),
            truth: Some(Truth {
                attributes: Tensor::from_slice(&attributes).view([size, -1]),
                places: stacked(|window| &window.places),
                outlines: stacked(|window| &window.outlines),
            }),
            latents: stacked(|window| &window.latents),
            shown: stacked(|window| &window.shown),
            weights: stacked(|window| &window.weights),
            levels: Tensor::from_slice(&levels).view([size, -1]),
            captions,
            pattern: task.pattern(draws),
        };
        Ok(batch.to_device(self.options.device))
    }
}

/// What of windows is held to a teacher.
fn held(windows: &[Window], draws: &mut Draws) -> Held {
    let frames = windows.iter().flat_map(|w| w.levels.iter().map(|level| w.is_held_at(*level)));
    let frames: Vec<bool> = frames.collect();
    let beginnings = (0i64..).zip(windows).filter(|(_, window)| window.is_guided());
    let beginnings: Vec<i64> = beginnings.map(|(number, _)| number).collect();
    let remembered: Vec<&Tensor> = windows
        .iter()
        .map(|window| window.remembered.as_ref().unwrap_or(&window.latents))
        .collect();
    Held {
        frames: frames
            .contains(&true)
            .then(|| Tensor::from_slice(&frames).view([windows.len() as i64, 1, -1, 1, 1])),
        remembered: Tensor::stack(&remembered, 0),
        redrawn: (draws.unit() < REDRAWN).then(|| draws.next()),
        beginnings: (!beginnings.is_empty()).then(|| Tensor::from_slice(&beginnings)),
    }
}

/// The caption of a clip, and, where it says what the clip with an attribute exchanged shows otherwise, that one's latents and what
/// differs.
fn said<'a>(
    entry: &'a Entry,
    early: bool,
    draws: &mut Draws,
) -> (String, Option<(&'a Tensor, Exchanged)>) {
    if entry.collage {
        let other = entry.other.as_ref().map(|(other, what)| (other, *what));
        return (look(entry.attributes.style, draws.next()).to_owned(), other);
    }
    // The plainest words first.
    if early && draws.unit() < 0.4 {
        return (canonical(&entry.attributes), None);
    }
    let Captioned { caption, mentioned } = captioned(&entry.attributes, draws.next());
    let often = OTHERWISE[usize::from(entry.latents.size()[1] > 1)];
    let Some((other, what)) = entry.other.as_ref().filter(|_| draws.unit() < often) else {
        return (caption, None);
    };
    // Whoever restyles names a look and nothing else.
    if *what == Exchanged::Style && draws.unit() < 0.5 {
        return (look(entry.attributes.style, draws.next()).to_owned(), Some((other, *what)));
    }
    (caption, what.is_said(mentioned).then_some((other, *what)))
}

/// On the way from the truth `[z, T, h, w]` to another clip, in frames whose levels are not too low; half-drawn things are
/// what a sampler meets.
pub(super) fn towards(truth: &Tensor, other: &Tensor, levels: &[f32], draws: &mut Draws) -> Tensor {
    let amount = if draws.unit() < 0.5 { 1.0 } else { draws.unit() as f32 };
    let amounts: Vec<f32> =
        levels.iter().map(|&level| if level >= LEAST_OTHERWISE { amount } else { 0.0 }).collect();
    let amounts = Tensor::from_slice(&amounts).view([1, -1, 1, 1]).to_device(truth.device());
    truth + (other - truth) * amounts
}

/// How much simpler than the world a step's new scenes are, 0 to 1: all the way at first, not at all from `steps` on.
fn ease(step: u64, steps: u64) -> f32 {
    steps.saturating_sub(step) as f32 / steps.max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_become_those_of_the_world() {
        assert_eq!([0, 5, 10, 11].map(|step| ease(step, 10)), [1.0, 0.5, 0.0, 0.0]);
        assert_eq!([0, 1].map(|step| ease(step, 0)), [0.0, 0.0]);
    }

    #[test]
    fn first_frames_are_guided_unless_another_clip_shows_through() {
        let other = Some(Exchanged::Shape);
        let windows = [
            window(true, None, &[0.3, 0.1]),
            window(true, other, &[0.5, 0.1]),
            window(true, other, &[0.9, 0.1]),
            window(false, None, &[0.9, 0.1]),
        ];
        let held = held(&windows, &mut Draws::new(1, 1));
        assert_eq!(Vec::<i64>::try_from(held.beginnings.unwrap()).unwrap(), [0, 2]);
    }

    #[test]
    fn what_shows_through_in_an_old_style_learns_the_truth() {
        let levels = [0.1, 0.5, 0.9];
        let windows = [
            window(true, Some(Exchanged::Style), &levels),
            window(true, Some(Exchanged::Colour), &levels),
            Window { held: false, ..window(true, None, &levels) },
        ];
        let held = held(&windows, &mut Draws::new(1, 1));
        let frames = held.frames.unwrap();
        assert_eq!(frames.size(), [3, 1, 3, 1, 1]);
        let frames = Vec::<bool>::try_from(frames.flatten(0, -1)).unwrap();
        assert_eq!(frames, [true, false, true, true, true, true, false, false, false]);
        let new = [Window { held: false, ..window(true, None, &levels) }];
        assert!(super::held(&new, &mut Draws::new(1, 1)).frames.is_none());
    }

    #[test]
    fn collages_are_asked_for_by_their_look_alone() {
        let latents = Tensor::zeros([48, 9, 4, 7], (tch::Kind::Float, Device::Cpu));
        let mut scene =
            crate::training::world::Scene::from_index(3, super::super::world::Split::Train);
        scene.attributes.style = super::super::world::Style::Jungle;
        let other = Some((latents.shallow_clone(), Exchanged::Style));
        let entry = Entry {
            weights: latents.narrow(0, 0, 1),
            places: latents.shallow_clone(),
            outlines: latents.shallow_clone(),
            latents,
            begins: true,
            attributes: scene.attributes,
            collage: true,
            other,
        };
        let mut draws = Draws::new(1, 1);
        for _ in 0..20 {
            let (caption, other) = said(&entry, false, &mut draws);
            assert!(caption.contains("jungle") && !caption.contains("over the"), "{caption}");
            assert_eq!(other.map(|(_, what)| what), Some(Exchanged::Style));
        }
    }

    /// A window with these noise levels, held to a teacher.
    fn window(opens: bool, otherwise: Option<Exchanged>, levels: &[f32]) -> Window {
        let t = Tensor::zeros([1, 1, 1, 1], (tch::Kind::Float, Device::Cpu));
        Window {
            latents: t.shallow_clone(),
            shown: t.shallow_clone(),
            remembered: None,
            weights: t.shallow_clone(),
            levels: levels.to_vec(),
            caption: String::new(),
            attributes: [0; 5],
            places: t.shallow_clone(),
            outlines: t.shallow_clone(),
            otherwise,
            held: true,
            opens,
        }
    }
}
