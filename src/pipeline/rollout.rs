// SPDX-License-Identifier: MPL-2.0
//! An endless stream, chunk after chunk, each continuing the last.
//!
//! How it continues is the folder's matter, and callers never see which way is taken: *windowed*, where the tail of the last
//! window is known in the next; *causal*, where the transformer looks back at cached keys and values; or *from the last
//! picture*, for folders that take known pixels in channels of their own.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::decode::{RgbFrame, rgb_frames};
use super::denoise::{CausalCaches, Denoiser, Guidance, Known, Prompts, Window, check};
use super::request::{Controls, Request};
use super::{FolderInfo, Pipeline};
use crate::error::{Error, Result};
use crate::nn::attention::KvCache;
use crate::nn::conv3d::FeatureCaches;
use crate::schedulers::Schedule;
use crate::torch::guarded;

/// What one stream remembers from chunk to chunk.
#[derive(Debug)]
pub struct Rollout {
    request: Request,
    schedule: Schedule,
    /// Latents along height and width.
    latent_size: [i64; 2],
    prompts: Option<PreparedPrompts>,
    state: State,
}

/// Prompts as they were last encoded.
#[derive(Debug)]
struct PreparedPrompts {
    prompt: String,
    /// Encoded if there was guidance.
    negative_prompt: Option<String>,
    prompts: Prompts,
}

/// Replaced as a whole when a chunk is finished, so that a cancelled one leaves no trace.
#[derive(Debug)]
struct State {
    next_latent_frame: u64,
    next_frame: u64,
    decoder: FeatureCaches,
    continuation: Continuation,
}

/// What the next chunk continues from.
#[derive(Debug)]
enum Continuation {
    /// Clean latents `[1, z, t, h, w]` of the last window's tail.
    Windowed(Option<Tensor>),
    /// Clean latents of as many frames as the transformer looks back at, and their keys and values for the present prompts.
    Causal { tail: Option<Tensor>, caches: Option<CausalCaches> },
    /// The last picture, `[1, 3, 1, H, W]` in [-1, 1].
    LastPicture(Option<Tensor>),
}

/// What one chunk took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    pub encode_prompt: Duration,
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

/// A stopwatch that is read between stages.
struct Stopwatch(Instant);

impl Stopwatch {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

/// A denoised chunk before it is made pictures.
struct Latents {
    /// `[1, z, t, h, w]`, those to decode.
    latents: Tensor,
    /// Pictures at the start of the decoded clip that the last chunk has shown already.
    shown: i64,
    continuation: Continuation,
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
        let frames = if self.rolls_causally() {
            self.native.block_latent_frames
        } else if self.concatenates_condition() {
            (self.window_latent_frames() - 1).max(1)
        } else {
            self.window_latent_frames() - self.context_latent_frames()
        };
        frames * self.vae.temporal_factor()
    }

    fn rolls_causally(&self) -> bool {
        self.native.causal && !self.concatenates_condition() && self.transformer_2.is_none()
    }

    /// Latent frames known from the last window.
    fn context_latent_frames(&self) -> i64 {
        self.native.context_latent_frames.min(self.window_latent_frames() - 1)
    }
}

impl Rollout {
    /// The start of a stream.
    ///
    /// # Errors
    /// A folder that needs an image to start from, or a schedule that the number of steps leaves unusable.
    pub fn new(pipeline: &Pipeline, request: Request) -> Result<Self> {
        let info = pipeline.info();
        if info.transformer.image_dim.is_some() {
            return Err(Error::setting(
                format!("{}: transformer image_dim", info.folder.display()),
                "a model that needs the embedding of an image",
                "a text-to-video model",
            ));
        }
        if info.concatenates_condition() && info.window_latent_frames() < 2 {
            return Err(Error::setting("num_frames", info.native.num_frames, "at least 5"));
        }
        let (width, height) = info.padded_size(request.width, request.height);
        let spatial = info.vae.spatial_factor();
        let schedule = info.scheduler.set_timesteps(request.num_inference_steps as usize, None)?;
        let continuation = if info.concatenates_condition() {
            Continuation::LastPicture(None)
        } else if info.rolls_causally() {
            Continuation::Causal { tail: None, caches: None }
        } else {
            Continuation::Windowed(None)
        };
        Ok(Self {
            schedule,
            latent_size: [height / spatial, width / spatial],
            prompts: None,
            state: State {
                next_latent_frame: 0,
                next_frame: 0,
                decoder: FeatureCaches::default(),
                continuation,
            },
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
            self.schedule = pipeline.info().scheduler.set_timesteps(steps as usize, None)?;
            self.request.num_inference_steps = steps;
        }
        Ok(())
    }

    /// Number of the frame that the next chunk starts with.
    pub fn next_frame(&self) -> u64 {
        self.state.next_frame
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
        guarded(|| {
            let mut stopwatch = Stopwatch(Instant::now());
            let mut timings = Timings::default();
            check(cancel)?;
            self.prepare_prompts(pipeline, controls)?;
            timings.encode_prompt = stopwatch.lap();
            let task = Task { rollout: self, pipeline, controls, cancel };
            let chunk = match &self.state.continuation {
                Continuation::Windowed(context) => task.windowed(context.as_ref())?,
                Continuation::Causal { tail, caches } => {
                    task.causal(tail.as_ref(), caches.as_ref())?
                }
                Continuation::LastPicture(last) => task.after_picture(last.as_ref())?,
            };
            wait_for(pipeline.device());
            timings.denoise = stopwatch.lap();
            let mut decoder = match &chunk.continuation {
                // Each clip starts anew from a picture.
                Continuation::LastPicture(_) => FeatureCaches::default(),
                _ => self.state.decoder.shallow_clone(),
            };
            let video = pipeline.decode_latents(&chunk.latents, &mut decoder, cancel)?;
            wait_for(pipeline.device());
            timings.decode = stopwatch.lap();
            let continuation = match chunk.continuation {
                Continuation::LastPicture(_) => {
                    Continuation::LastPicture(Some(video.narrow(2, video.size()[2] - 1, 1).copy()))
                }
                other => other,
            };
            let new = video.narrow(2, chunk.shown, video.size()[2] - chunk.shown);
            let frames = rgb_frames(&new, self.request.size());
            timings.convert = stopwatch.lap();
            let first_frame = self.state.next_frame;
            self.state = State {
                next_latent_frame: self.state.next_latent_frame + chunk.latents.size()[2] as u64,
                next_frame: first_frame + frames.len() as u64,
                decoder,
                continuation,
            };
            Ok(Chunk { first_frame, frames, timings })
        })
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
        guarded(|| {
            let mut stopwatch = Stopwatch(Instant::now());
            check(cancel)?;
            self.prepare_prompts(pipeline, controls)?;
            let mut timings = Timings { encode_prompt: stopwatch.lap(), ..Timings::default() };
            let task = Task { rollout: self, pipeline, controls, cancel };
            let window = Window { latents: task.noise(0, 1, 0), ..task.window(1) };
            let latents = task.denoiser()?.run(&window, None, &mut |_| {})?;
            wait_for(pipeline.device());
            timings.denoise = stopwatch.lap();
            let video = pipeline.decode_latents(&latents, &mut FeatureCaches::default(), cancel)?;
            timings.decode = stopwatch.lap();
            let frames = rgb_frames(&video, self.request.size());
            timings.convert = stopwatch.lap();
            let first_frame = self.state.next_frame;
            self.state.next_frame += 1;
            self.state.next_latent_frame += 1;
            Ok(Chunk { first_frame, frames, timings })
        })
    }

    /// Encodes the prompts if they differ from the last ones; what was computed with those is dropped.
    fn prepare_prompts(&mut self, pipeline: &Pipeline, controls: &Controls) -> Result<()> {
        let guided = guidance_scale(pipeline, controls) > 1.0;
        let negative_prompt = guided.then(|| controls.negative_prompt.clone());
        if self.prompts.as_ref().is_some_and(|prepared| {
            prepared.prompt == controls.prompt && prepared.negative_prompt == negative_prompt
        }) {
            return Ok(());
        }
        let positive = pipeline.encode_prompt(&controls.prompt)?;
        let negative =
            negative_prompt.as_deref().map(|text| pipeline.encode_prompt(text)).transpose()?;
        let prompts = Prompts::new(pipeline, &positive, negative.as_ref(), None);
        self.prompts =
            Some(PreparedPrompts { prompt: controls.prompt.clone(), negative_prompt, prompts });
        if let Continuation::Causal { caches, .. } = &mut self.state.continuation {
            *caches = None;
        }
        Ok(())
    }
}

fn guidance_scale(pipeline: &Pipeline, controls: &Controls) -> f64 {
    controls.guidance_scale.unwrap_or(pipeline.info().native.guidance_scale)
}

/// Waits until a GPU is done, so that timings mean something.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// One chunk in the making.
struct Task<'a> {
    rollout: &'a Rollout,
    pipeline: &'a Pipeline,
    controls: &'a Controls,
    cancel: &'a dyn Fn() -> bool,
}

impl Task<'_> {
    fn denoiser(&self) -> Result<Denoiser<'_>> {
        let scale = guidance_scale(self.pipeline, self.controls);
        let prepared = self.rollout.prompts.as_ref();
        let prompts =
            &prepared.ok_or_else(|| Error::Torch("no prompt was prepared".into()))?.prompts;
        Ok(Denoiser {
            pipeline: self.pipeline,
            prompts,
            guidance: Guidance { scale, scale_2: scale },
            schedule: &self.rollout.schedule,
            cancel: self.cancel,
        })
    }

    /// Noise for `frames` latent frames, the first `before` frames before the next of the stream.
    fn noise(&self, before: i64, frames: i64, step: u32) -> Tensor {
        let first = self.rollout.state.next_latent_frame - before as u64;
        let [height, width] = self.rollout.latent_size;
        let size = [frames, height, width];
        let kind = self.rollout.request.noise;
        self.pipeline.noise(kind, self.controls.seed, first, step, size)
    }

    /// A window of free frames.
    fn window(&self, frames: i64) -> Window {
        Window {
            latents: self.noise(0, frames, 0),
            known: None,
            condition: None,
            frame_offset: 0,
            begin_index: 0,
        }
    }

    fn windowed(&self, context: Option<&Tensor>) -> Result<Latents> {
        let info = self.pipeline.info();
        let frames = info.window_latent_frames();
        let known = context.map_or(0, |context| context.size()[2]);
        let window = match context {
            None => self.window(frames),
            Some(context) => {
                let new = frames - known;
                let padding = [0, 0, 0, 0, 0, new];
                Window {
                    latents: Tensor::cat(&[context.shallow_clone(), self.noise(0, new, 0)], 2),
                    known: Some(Known {
                        frames: (0..frames).map(|frame| frame < known).collect(),
                        latents: context.constant_pad_nd(padding),
                        noise: self.noise(known, known, 1).constant_pad_nd(padding),
                    }),
                    condition: None,
                    frame_offset: 0,
                    begin_index: 0,
                }
            }
        };
        let latents = self.denoiser()?.run(&window, None, &mut |_| {})?;
        let tail = last_frames(&latents, info.context_latent_frames());
        Ok(Latents {
            latents: latents.narrow(2, known, frames - known),
            shown: 0,
            continuation: Continuation::Windowed(tail),
        })
    }

    fn causal(&self, tail: Option<&Tensor>, caches: Option<&CausalCaches>) -> Result<Latents> {
        let info = self.pipeline.info();
        let denoiser = self.denoiser()?;
        let block = info.native.block_latent_frames;
        let position = self.rollout.state.next_latent_frame as i64;
        let span = info.window_latent_frames() - block;
        let mut caches = match caches {
            Some(caches) => caches.shallow_clone(),
            None => {
                let mut caches = self.empty_caches(span, denoiser.prompts.guided());
                if let Some(tail) = tail {
                    denoiser.remember(tail, position - tail.size()[2], &mut caches)?;
                }
                caches
            }
        };
        let window = Window { frame_offset: position, ..self.window(block) };
        let latents = denoiser.run(&window, Some(&caches), &mut |_| {})?;
        denoiser.remember(&latents, position, &mut caches)?;
        let seen = match tail {
            Some(tail) => Tensor::cat(&[tail, &latents], 2),
            None => latents.shallow_clone(),
        };
        let tail = last_frames(&seen, span);
        Ok(Latents {
            latents,
            shown: 0,
            continuation: Continuation::Causal { tail, caches: Some(caches) },
        })
    }

    /// Caches that hold `frames` latent frames.
    fn empty_caches(&self, frames: i64, guided: bool) -> CausalCaches {
        let [height, width] = self.rollout.latent_size;
        let [pt, ph, pw] = self.pipeline.info().transformer.patch_size;
        let tokens = (frames / pt) * (height / ph) * (width / pw);
        CausalCaches {
            positive: KvCache::new(tokens),
            negative: guided.then(|| KvCache::new(tokens)),
        }
    }

    fn after_picture(&self, last: Option<&Tensor>) -> Result<Latents> {
        let info = self.pipeline.info();
        let frames = info.window_latent_frames();
        let [height, width] = self.rollout.latent_size;
        let spatial = info.vae.spatial_factor();
        let shape = [1, 3, info.native.num_frames, height * spatial, width * spatial];
        let grey = Tensor::zeros(shape, (Kind::Float, self.pipeline.device()));
        let mut known = vec![false; info.native.num_frames as usize];
        if let Some(picture) = last {
            grey.narrow(2, 0, 1).copy_(picture);
            known[0] = true;
        }
        let window = Window {
            condition: Some(self.pipeline.channel_condition(&grey, &known)),
            ..self.window(frames)
        };
        let latents = self.denoiser()?.run(&window, None, &mut |_| {})?;
        Ok(Latents {
            latents,
            shown: i64::from(last.is_some()),
            continuation: Continuation::LastPicture(None),
        })
    }
}

/// A copy of the last frames, at most `frames` of them; `None` for none.
fn last_frames(latents: &Tensor, frames: i64) -> Option<Tensor> {
    let length = latents.size()[2];
    let kept = frames.min(length);
    (kept > 0).then(|| latents.narrow(2, length - kept, kept).copy())
}
