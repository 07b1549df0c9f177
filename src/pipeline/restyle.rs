// SPDX-License-Identifier: MPL-2.0
//! Video to video, chunk after chunk: latents to follow are noised part of the way and denoised with other words.
//!
//! A [`VideoEncoder`] turns frames into latents as they come. A [`Restyler`] makes a chunk of new frames from such latents,
//! from their mix with others, or from any; it continues its own last chunk, never an encoding of what it showed. On one
//! whole clip this is SDEdit (Meng et al. 2022) as diffusers' `WanVideoToVideoPipeline` does it.

use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::continuation::{ChunkTask, Decoded, Start, Stopwatch, StreamState};
use super::denoise::{Denoiser, Guidance, Prompts, begin_index, check};
use super::rollout::Timings;
use super::staggered::Flights;
use super::{FolderInfo, NoiseKind, Pipeline};
use crate::error::{Error, Result};
use crate::nn::conv3d::FeatureCaches;
use crate::schedulers::Schedule;
use crate::torch::guarded;

/// Pixels that the encoder works on at once, so that activations stay bounded and a cancelled piece ends soon.
const PIXELS_AT_ONCE: i64 = 1 << 20;

/// Frames to latents in pieces; a stream cut in any way gives the latents of the whole.
#[derive(Debug, Default)]
pub struct VideoEncoder {
    caches: FeatureCaches,
    started: bool,
}

impl VideoEncoder {
    /// Frames that the next piece must have for so many latent frames: 4k, at the start of the stream 1 + 4(k-1).
    pub fn frames_for(&self, pipeline: &Pipeline, latent_frames: i64) -> i64 {
        let factor = pipeline.info().vae.temporal_factor();
        if self.started { latent_frames * factor } else { (latent_frames - 1) * factor + 1 }
    }

    /// The next piece `[1, 3, F, H, W]` in [-1, 1], sizes as [`Pipeline::padded_size`] says, to normalised latents
    /// `[1, z, t, h, w]` (the mode).
    ///
    /// # Errors
    /// [`Error::Cancelled`], which leaves the encoder as before; [`Error::Setting`] for a number of frames that does not
    /// fill its latent frames.
    pub fn encode(
        &mut self,
        pipeline: &Pipeline,
        video: &Tensor,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Tensor> {
        guarded(|| {
            let factor = pipeline.info().vae.temporal_factor();
            let (s, head) = (video.size(), i64::from(!self.started));
            if s[2] < 1 || s[2] % factor != head % factor {
                let expected = if self.started { "a multiple" } else { "one more than a multiple" };
                return Err(Error::setting("frames", s[2], format!("{expected} of {factor}")));
            }
            let pixels = (factor * s[3] * s[4]).max(1);
            let groups = (PIXELS_AT_ONCE / pixels).max(1) * factor;
            let mut caches = self.caches.shallow_clone();
            let (mut latents, mut from, mut frames) = (Vec::new(), 0, groups + head);
            while from < s[2] {
                check(cancel)?;
                frames = frames.min(s[2] - from);
                let piece = video.narrow(2, from, frames).to_device(pipeline.device());
                latents.push(pipeline.vae().encode(&piece, &mut caches).mean);
                (from, frames) = (from + frames, groups);
            }
            (self.caches, self.started) = (caches, true);
            Ok(pipeline.vae().normalize_latents(&Tensor::cat(&latents, 2)))
        })
    }

    /// An encoder that goes on from the same place; the tensors are shared and never written in place.
    pub fn shallow_clone(&self) -> Self {
        Self { caches: self.caches.shallow_clone(), started: self.started }
    }
}

/// A prompt and, for guidance, a negative one, as the text encoder gives them: `[1, L, d]`.
#[derive(Debug)]
pub struct Embeddings {
    pub positive: Tensor,
    pub negative: Option<Tensor>,
}

impl Embeddings {
    /// Another handle to the same tensors.
    pub fn shallow_clone(&self) -> Self {
        Self {
            positive: self.positive.shallow_clone(),
            negative: self.negative.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// On the way from this (`amount` 0) to another (1); a negative prompt only where both have one.
    pub fn blend(&self, other: &Self, amount: f64) -> Self {
        Self {
            positive: blend_embeddings(&self.positive, &other.positive, amount),
            negative: match (&self.negative, &other.negative) {
                (Some(a), Some(b)) => Some(blend_embeddings(a, b, amount)),
                _ => None,
            },
        }
    }

    fn equals(&self, other: &Self) -> bool {
        let same = |a: &Tensor, b: &Tensor| a.size() == b.size() && a.equal(b);
        same(&self.positive, &other.positive)
            && match (&self.negative, &other.negative) {
                (Some(a), Some(b)) => same(a, b),
                (None, None) => true,
                _ => false,
            }
    }
}

/// Between two embeddings `[1, L, d]`, token by token: the direction is interpolated, and so is the length.
pub fn blend_embeddings(a: &Tensor, b: &Tensor, amount: f64) -> Tensor {
    let amount = amount.clamp(0.0, 1.0);
    if amount == 0.0 {
        return a.shallow_clone();
    }
    if amount == 1.0 {
        return b.shallow_clone();
    }
    let length = |t: &Tensor| (t * t).sum_dim_intlist([-1].as_slice(), true, Kind::Float).sqrt();
    let between = |a: &Tensor, b: &Tensor| a * (1.0 - amount) + b * amount;
    let (x, y) = (a.to_kind(Kind::Float), b.to_kind(Kind::Float));
    let mixed = between(&x, &y);
    let scale = between(&length(&x), &length(&y)) / length(&mixed).clamp_min(1e-6);
    // Opposite directions cancel; what is left is not to be blown up.
    (mixed * scale.clamp_max(4.0)).to_kind(a.kind())
}

/// Embeddings of the texts used last.
#[derive(Debug, Default)]
pub struct EmbeddingCache {
    /// The latest last.
    entries: Vec<(String, Tensor)>,
}

impl EmbeddingCache {
    const SIZE: usize = 8;

    /// The embedding `[1, L, d]` of a text.
    ///
    /// # Errors
    /// Those of [`Pipeline::encode_prompt`].
    pub fn get(&mut self, pipeline: &Pipeline, text: &str) -> Result<Tensor> {
        let found = self.entries.iter().position(|(known, _)| known == text);
        let entry = match found {
            Some(index) => self.entries.remove(index),
            None => (text.to_owned(), pipeline.encode_prompt(text)?),
        };
        let embedding = entry.1.shallow_clone();
        self.entries.push(entry);
        let surplus = self.entries.len().saturating_sub(Self::SIZE);
        self.entries.drain(..surplus);
        Ok(embedding)
    }

    /// The embeddings of a prompt and, where the guidance asks for it, of a negative one.
    ///
    /// # Errors
    /// Those of [`Pipeline::encode_prompt`].
    pub fn pair(
        &mut self,
        pipeline: &Pipeline,
        (prompt, negative_prompt): (&str, &str),
        guidance_scale: Option<f64>,
    ) -> Result<Embeddings> {
        let guided = Guidance::of(pipeline.info(), guidance_scale).is_used();
        Ok(Embeddings {
            positive: self.get(pipeline, prompt)?,
            negative: if guided { Some(self.get(pipeline, negative_prompt)?) } else { None },
        })
    }
}

/// How much of what is to be followed is drowned in noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StartLevel {
    /// Diffusers' reading: this share of the steps, in (0, 1], is walked; the noise levels are those that the folder has for
    /// it ([`FolderInfo::schedule_from_video`]).
    Strength(f64),
    /// The noise level itself, sigma in (0, 1].
    Noise(f64),
}

impl StartLevel {
    /// The whole schedule of so many steps that this is a level of: a strength's may be the folder's own.
    ///
    /// # Errors
    /// Those of [`FolderInfo::schedule_from_video`].
    pub fn schedule(self, info: &FolderInfo, num_inference_steps: u32) -> Result<Schedule> {
        match self {
            Self::Strength(_) => info.schedule_from_video(num_inference_steps),
            Self::Noise(_) => info.scheduler.set_timesteps(num_inference_steps as usize, None),
        }
    }

    /// The level that the first block of a stream begins at: a style has to be made up there, which later blocks see in what
    /// precedes them.
    fn of_a_first_block(self, info: &FolderInfo) -> Self {
        match self {
            Self::Strength(strength) => {
                Self::Strength(strength.max(info.native.restyle_first_strength))
            }
            Self::Noise(_) => self,
        }
    }

    /// The schedule to walk and the step to begin at.
    ///
    /// # Errors
    /// [`Error::Setting`] where no step would be left.
    pub fn place(self, schedule: &Schedule) -> Result<(Schedule, usize)> {
        match self {
            Self::Strength(strength) => {
                let begin = begin_index(schedule.len(), strength)?;
                // As the reference finds it: of steps that round to one timestep, the second.
                let begin = schedule.index_for_timestep(schedule.timesteps[begin])?;
                Ok((schedule.clone(), begin))
            }
            Self::Noise(level) => Ok((schedule.starting_at(level)?, 0)),
        }
    }
}

/// What may differ from chunk to chunk.
#[derive(Debug)]
pub struct RestyleControls<'a> {
    pub embeddings: &'a Embeddings,
    /// `None`: the folder's own.
    pub guidance_scale: Option<f64>,
    pub seed: u64,
    /// Steps of a whole schedule, of which the start level leaves some.
    pub num_inference_steps: u32,
    pub start_level: StartLevel,
}

/// A finished chunk.
#[derive(Debug)]
pub struct Restyled {
    /// `[1, 3, F, H, W]` in [-1, 1]: 1 + 4(t-1) frames for the first t latent frames of a stream, 4t later.
    pub video: Tensor,
    pub timings: Timings,
}

impl Decoded {
    fn after(self, encode_prompt: Duration) -> Restyled {
        let Self { video, denoise, decode } = self;
        let timings = Timings { encode_prompt, denoise, decode, ..Timings::default() };
        Restyled { video, timings }
    }
}

/// Makes new frames from latents, continuing its last chunk.
#[derive(Debug)]
pub struct Restyler {
    state: StreamState,
    prompts: Option<(Embeddings, Prompts)>,
    /// Chunks denoised together.
    depth: usize,
    flights: Flights,
    /// What the chunks on their way are steered by.
    guidance: Option<Guidance>,
}

impl Restyler {
    /// The start of a stream of `width` x `height` pixels.
    ///
    /// # Errors
    /// A folder that needs an image to start from.
    pub fn new(pipeline: &Pipeline, size: (i64, i64), noise: NoiseKind) -> Result<Self> {
        pipeline.info().check_streams()?;
        Ok(Self {
            state: StreamState::new(pipeline.info(), size, noise),
            prompts: None,
            depth: 1,
            flights: Flights::default(),
            guidance: None,
        })
    }

    /// The start of a stream of which `depth` chunks are denoised together, each `1 / depth` of its steps behind the one before.
    ///
    /// # Errors
    /// [`Error::Setting`] for a folder whose transformer knows one noise level at a time
    /// ([`crate::pipeline::FolderInfo::can_stagger`]).
    pub fn together(
        pipeline: &Pipeline,
        size: (i64, i64),
        noise: NoiseKind,
        depth: usize,
    ) -> Result<Self> {
        let mut restyler = Self::new(pipeline, size, noise)?;
        if depth > 1 {
            let info = pipeline.info();
            if !info.can_stagger() {
                let expected =
                    "1 for this folder, whose transformer knows one noise level at a time";
                return Err(Error::setting("stream-batch", depth, expected));
            }
            restyler.depth = depth;
            restyler.state = StreamState::windowed(info, size, noise);
        }
        Ok(restyler)
    }

    /// New frames for the next latents `[1, z, t, h, w]`, normalised as [`VideoEncoder`] gives them; `t` is the caller's choice,
    /// best at most the folder's [`crate::pipeline::FolderInfo::later_chunk_latent_frames`].
    ///
    /// # Errors
    /// [`Error::Cancelled`] or [`Error::Torch`], which leave the stream as before the call; [`Error::Setting`] for a start level
    /// that leaves no step.
    pub fn next_chunk(
        &mut self,
        pipeline: &Pipeline,
        guide: &Tensor,
        controls: &RestyleControls<'_>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Restyled> {
        guarded(|| {
            let mut stopwatch = Stopwatch(Instant::now());
            check(cancel)?;
            let level = controls.start_level;
            let whole = level.schedule(pipeline.info(), controls.num_inference_steps)?;
            let (schedule, begin_index) = level.place(&whole)?;
            let (_, first_begin_index) = level.of_a_first_block(pipeline.info()).place(&whole)?;
            self.prepare_prompts(pipeline, controls.embeddings);
            let Some((_, prompts)) = &self.prompts else {
                return Err(Error::Torch("no prompt was prepared".into()));
            };
            let task = ChunkTask {
                pipeline,
                prompts,
                guidance: Guidance::of(pipeline.info(), controls.guidance_scale),
                schedule: &schedule,
                seed: controls.seed,
                start: Start::Guide { latents: guide, begin_index, first_begin_index },
                cancel,
            };
            let encode_prompt = stopwatch.lap();
            Ok(self.state.advance(&task)?.after(encode_prompt))
        })
    }

    /// Sends off a chunk to follow the next latents, as [`Restyler::next_chunk`] takes them, and gives the chunks that are finished
    /// by then, in order: this one, or, where chunks are denoised together, older ones. Other words or another guidance
    /// finish first what was begun with the old.
    ///
    /// # Errors
    /// As [`Restyler::next_chunk`]; a stream whose chunks are denoised together can't go on after one.
    pub fn push(
        &mut self,
        pipeline: &Pipeline,
        guide: &Tensor,
        controls: &RestyleControls<'_>,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Restyled>> {
        if self.depth == 1 {
            return Ok(vec![self.next_chunk(pipeline, guide, controls, cancel)?]);
        }
        guarded(|| {
            check(cancel)?;
            let guidance = Guidance::of(pipeline.info(), controls.guidance_scale);
            let others = self.prompts.as_ref().is_none_or(|(e, _)| !e.equals(controls.embeddings));
            let mut restyled = Vec::new();
            if others || self.guidance != Some(guidance) {
                restyled = self.finish(pipeline, cancel)?;
            }
            let mut stopwatch = Stopwatch(Instant::now());
            let level = controls.start_level;
            let whole = level.schedule(pipeline.info(), controls.num_inference_steps)?;
            let (schedule, begin_index) = level.place(&whole)?;
            self.prepare_prompts(pipeline, controls.embeddings);
            self.guidance = Some(guidance);
            let encode_prompt = stopwatch.lap();
            let Self { state, prompts: Some((_, prompts)), flights, depth, .. } = self else {
                return Err(Error::Torch("no prompt was prepared".into()));
            };
            let denoiser = Denoiser { pipeline, prompts, guidance, schedule: &schedule, cancel };
            let new = (guide, begin_index, controls.seed);
            let decoded = state.send_off(&denoiser, new, (flights, *depth))?;
            restyled.extend(decoded.into_iter().map(|decoded| decoded.after(encode_prompt)));
            Ok(restyled)
        })
    }

    /// Finishes the chunks that are on their way.
    ///
    /// # Errors
    /// As [`Restyler::push`].
    pub fn finish(
        &mut self,
        pipeline: &Pipeline,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Restyled>> {
        let Self { state, prompts: Some((_, prompts)), flights, guidance: Some(guidance), .. } =
            self
        else {
            return Ok(Vec::new());
        };
        let Some(schedule) = flights.schedule().cloned() else { return Ok(Vec::new()) };
        guarded(|| {
            let denoiser =
                Denoiser { pipeline, prompts, guidance: *guidance, schedule: &schedule, cancel };
            let decoded = state.bring_in(&denoiser, flights)?;
            Ok(decoded.into_iter().map(|decoded| decoded.after(Duration::ZERO)).collect())
        })
    }

    fn prepare_prompts(&mut self, pipeline: &Pipeline, embeddings: &Embeddings) {
        if self.prompts.as_ref().is_some_and(|(prepared, _)| prepared.equals(embeddings)) {
            return;
        }
        let prompts =
            Prompts::new(pipeline, &embeddings.positive, embeddings.negative.as_ref(), None);
        self.prompts = Some((embeddings.shallow_clone(), prompts));
        self.state.forget_prompts();
    }
}
