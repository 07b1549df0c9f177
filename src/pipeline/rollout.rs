// SPDX-License-Identifier: MPL-2.0
//! An endless stream from a prompt, chunk after chunk, each continuing the last.

use std::time::{Duration, Instant};

use super::continuation::{ChunkTask, Decoded, Start, Stopwatch, StreamState};
use super::decode::{RgbFrame, rgb_frames};
use super::denoise::{Guidance, Prompts, check};
use super::request::{Controls, Request};
use super::{FolderInfo, Pipeline};
use crate::error::{Error, Result};
use crate::schedulers::Schedule;
use crate::torch::guarded;

/// What one stream remembers from chunk to chunk.
#[derive(Debug)]
pub struct Rollout {
    request: Request,
    schedule: Schedule,
    prompts: Option<PreparedPrompts>,
    next_frame: u64,
    state: StreamState,
}

/// Prompts as they were last encoded.
#[derive(Debug)]
struct PreparedPrompts {
    prompt: String,
    /// Encoded if there was guidance.
    negative_prompt: Option<String>,
    prompts: Prompts,
}

/// What one chunk took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    pub encode_prompt: Duration,
    /// Frames of a guide to latents.
    pub encode: Duration,
    pub denoise: Duration,
    pub decode: Duration,
    /// Tensors to bytes.
    pub convert: Duration,
}

/// Finished frames that follow each other.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    pub frames: Vec<RgbFrame>,
    pub timings: Timings,
}

impl FolderInfo {
    /// Frames of the first chunk of a rollout.
    pub fn first_chunk_frames(&self) -> i64 {
        let frames = if self.rolls_causally() {
            self.native.block_latent_frames
        } else {
            self.window_latent_frames()
        };
        (frames - 1) * self.vae.temporal_factor() + 1
    }

    /// Frames of each later chunk.
    pub fn later_chunk_frames(&self) -> i64 {
        self.later_chunk_latent_frames() * self.vae.temporal_factor()
    }

    /// Latent frames of each later chunk.
    pub fn later_chunk_latent_frames(&self) -> i64 {
        if self.rolls_causally() {
            self.native.block_latent_frames
        } else if self.knows_by_pixels() {
            (self.window_latent_frames() - 1).max(1)
        } else {
            self.window_latent_frames() - self.context_latent_frames()
        }
    }

    /// Refuses folders whose streams need an image that no stream has.
    ///
    /// # Errors
    /// [`Error::Setting`] naming what the folder asks for.
    pub(super) fn check_streams(&self) -> Result<()> {
        if self.transformer.image_dim.is_some() {
            return Err(Error::setting(
                format!("{}: transformer image_dim", self.folder.display()),
                "a model that needs the embedding of an image",
                "a text-to-video model",
            ));
        }
        if self.knows_by_pixels() && self.window_latent_frames() < 2 {
            return Err(Error::setting("num_frames", self.native.num_frames, "at least 5"));
        }
        Ok(())
    }
}

impl Rollout {
    /// The start of a stream.
    ///
    /// # Errors
    /// A folder that needs an image to start from, or a schedule that the number of steps leaves unusable.
    pub fn new(pipeline: &Pipeline, request: Request) -> Result<Self> {
        let info = pipeline.info();
        info.check_streams()?;
        let schedule = info.schedule_from_noise(request.num_inference_steps)?;
        Ok(Self {
            schedule,
            prompts: None,
            next_frame: 0,
            state: StreamState::new(info, request.size(), request.noise),
            request,
        })
    }

    /// The request that it was made for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Denoising steps of the next chunks; the stream goes on where it is.
    ///
    /// # Errors
    /// A schedule that this number of steps leaves unusable.
    pub fn set_num_inference_steps(&mut self, pipeline: &Pipeline, steps: u32) -> Result<()> {
        if steps != self.request.num_inference_steps {
            self.schedule = pipeline.info().schedule_from_noise(steps)?;
            self.request.num_inference_steps = steps;
        }
        Ok(())
    }

    /// Number of the frame that the next chunk starts with.
    pub fn next_frame(&self) -> u64 {
        self.next_frame
    }

    /// The next frames: [`FolderInfo::first_chunk_frames`] or [`FolderInfo::later_chunk_frames`] of them.
    ///
    /// # Errors
    /// [`Error::Cancelled`] or [`Error::Torch`], both of which leave the stream as before the call.
    pub fn next_chunk(
        &mut self,
        pipeline: &Pipeline,
        controls: &Controls,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Chunk> {
        let is_initial = self.state.is_initial();
        self.chunk(pipeline, controls, (is_initial, cancel), StreamState::advance)
    }

    /// A single picture that stands for itself; the next one differs, its noise being that of the next latent frame.
    ///
    /// # Errors
    /// As [`Rollout::next_chunk`].
    pub fn still(
        &mut self,
        pipeline: &Pipeline,
        controls: &Controls,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Chunk> {
        self.chunk(pipeline, controls, (true, cancel), StreamState::still)
    }

    fn chunk(
        &mut self,
        pipeline: &Pipeline,
        controls: &Controls,
        (is_initial, cancel): (bool, &dyn Fn() -> bool),
        make: impl FnOnce(&mut StreamState, &ChunkTask<'_>) -> Result<Decoded>,
    ) -> Result<Chunk> {
        guarded(|| {
            let mut stopwatch = Stopwatch(Instant::now());
            check(cancel)?;
            let guidance = match is_initial {
                true => Guidance::initial(pipeline.info(), controls.guidance_scale),
                false => Guidance::of(pipeline.info(), controls.guidance_scale),
            };
            self.prepare_prompts(pipeline, controls, guidance.is_used())?;
            let encode_prompt = stopwatch.lap();
            let Some(prepared) = &self.prompts else {
                return Err(Error::Torch("no prompt was prepared".into()));
            };
            let task = ChunkTask {
                pipeline,
                prompts: &prepared.prompts,
                guidance,
                schedule: &self.schedule,
                seed: controls.seed,
                start: Start::Noise,
                cancel,
            };
            let Decoded { video, denoise, decode } = make(&mut self.state, &task)?;
            stopwatch.lap();
            let frames = rgb_frames(&video, self.request.size());
            let convert = stopwatch.lap();
            let first_frame = self.next_frame;
            self.next_frame += frames.len() as u64;
            let timings = Timings { encode_prompt, denoise, decode, convert, ..Timings::default() };
            Ok(Chunk { first_frame, frames, timings })
        })
    }

    /// Encodes the prompts if they differ from the last ones; what was computed with those is dropped.
    fn prepare_prompts(
        &mut self,
        pipeline: &Pipeline,
        controls: &Controls,
        guided: bool,
    ) -> Result<()> {
        let negative_prompt = guided.then(|| controls.negative_prompt.clone());
        if self.prompts.as_ref().is_some_and(|prepared| {
            prepared.prompt == controls.prompt
                && (!guided || prepared.negative_prompt == negative_prompt)
        }) {
            return Ok(());
        }
        let positive = pipeline.encode_prompt(&controls.prompt)?;
        let negative =
            negative_prompt.as_deref().map(|text| pipeline.encode_prompt(text)).transpose()?;
        let prompts = Prompts::new(pipeline, &positive, negative.as_ref(), None);
        self.prompts =
            Some(PreparedPrompts { prompt: controls.prompt.clone(), negative_prompt, prompts });
        self.state.forget_prompts();
        Ok(())
    }
}
