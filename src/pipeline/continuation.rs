// SPDX-License-Identifier: MPL-2.0
//! How a stream goes on from chunk to chunk, whether it is denoised from noise alone or from a guide.
//!
//! How it continues is the folder's matter, and callers never see which way is taken: *windowed*, where the tail of the last
//! window is known in the next; *causal*, where the transformer looks back at cached keys and values; or *from the last
//! picture*, for folders that take known pixels in channels of their own.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::denoise::{CausalCaches, Denoiser, Guidance, Known, Prompts, Window};
use super::noise::NoiseKind;
use super::statistics::LatentLock;
use super::{FolderInfo, Pipeline};
use crate::error::Result;
use crate::nn::attention::KvCache;
use crate::nn::conv3d::FeatureCaches;
use crate::schedulers::Schedule;

/// What one stream remembers; replaced as a whole when a chunk is finished, so that a cancelled one leaves no trace.
#[derive(Debug)]
pub(super) struct StreamState {
    /// Latents along height and width.
    latent_size: [i64; 2],
    noise: NoiseKind,
    next_latent_frame: u64,
    decoder: FeatureCaches,
    continuation: Continuation,
}

/// What the next chunk continues from.
#[derive(Debug)]
enum Continuation {
    /// Clean latents `[1, z, t, h, w]` of the last window's tail.
    Windowed(Option<Tensor>),
    /// Clean latents of as many frames as the transformer looks back at, their keys and values for the present prompts, and
    /// what holds the stream where it began.
    Causal { tail: Option<Tensor>, caches: Option<CausalCaches>, lock: LatentLock },
    /// The last picture, `[1, 3, 1, H, W]` in [-1, 1].
    LastPicture(Option<Tensor>),
}

/// What the frames of a chunk are denoised from.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Noise alone: as many frames as the folder makes at once.
    Noise,
    /// Clean latents `[1, z, t, h, w]`, noised to the level of a step; the first block of a causal stream to that of another.
    Guide { latents: &'a Tensor, begin_index: usize, first_begin_index: usize },
}

impl Start<'_> {
    fn begin_index(&self, is_first_block: bool) -> usize {
        match self {
            Self::Noise => 0,
            Self::Guide { first_begin_index, .. } if is_first_block => *first_begin_index,
            Self::Guide { begin_index, .. } => *begin_index,
        }
    }
}

/// One chunk to make.
pub(super) struct ChunkTask<'a> {
    pub pipeline: &'a Pipeline,
    pub prompts: &'a Prompts,
    pub guidance: Guidance,
    pub schedule: &'a Schedule,
    pub seed: u64,
    pub start: Start<'a>,
    pub cancel: &'a dyn Fn() -> bool,
}

/// A finished chunk.
pub(super) struct Decoded {
    /// `[1, 3, F, H, W]` in [-1, 1]: the frames that follow those of the last chunk.
    pub video: Tensor,
    pub denoise: Duration,
    pub decode: Duration,
}

/// A denoised chunk before it is made pictures.
struct Latents {
    /// `[1, z, t, h, w]`, those to decode.
    latents: Tensor,
    /// Pictures at the start of the decoded clip that the last chunk has shown already.
    shown: i64,
    continuation: Continuation,
}

/// A stopwatch that is read between stages.
pub(super) struct Stopwatch(pub Instant);

impl Stopwatch {
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

impl FolderInfo {
    pub(super) fn rolls_causally(&self) -> bool {
        self.native.causal && !self.knows_by_pixels() && self.transformer_2.is_none()
    }

    /// Latent frames known from the last window.
    pub(super) fn context_latent_frames(&self) -> i64 {
        self.native.context_latent_frames.min(self.window_latent_frames() - 1)
    }
}

impl StreamState {
    /// The start of a stream of `width` x `height` pixels.
    pub fn new(info: &FolderInfo, (width, height): (i64, i64), noise: NoiseKind) -> Self {
        let (width, height) = info.padded_size(width, height);
        let spatial = info.vae.spatial_factor();
        let continuation = if info.knows_by_pixels() {
            Continuation::LastPicture(None)
        } else if info.rolls_causally() {
            Continuation::Causal { tail: None, caches: None, lock: LatentLock::default() }
        } else {
            Continuation::Windowed(None)
        };
        Self {
            latent_size: [height / spatial, width / spatial],
            noise,
            next_latent_frame: 0,
            decoder: FeatureCaches::default(),
            continuation,
        }
    }

    /// The start of a stream that rolls in windows, whatever the folder prefers.
    pub fn windowed(info: &FolderInfo, size: (i64, i64), noise: NoiseKind) -> Self {
        let continuation = Continuation::Windowed(None);
        Self { continuation, ..Self::new(info, size, noise) }
    }

    /// Whether nothing precedes the next chunk.
    pub fn is_initial(&self) -> bool {
        self.next_latent_frame == 0
    }

    /// Drops what was computed with prompts that are no longer used.
    pub fn forget_prompts(&mut self) {
        if let Continuation::Causal { caches, lock, .. } = &mut self.continuation {
            *caches = None;
            lock.release();
        }
    }

    /// Noise for `frames` latent frames, the first of them `from` frames after the next of the stream.
    pub fn noise_for(
        &self,
        pipeline: &Pipeline,
        seed: u64,
        (from, frames): (i64, i64),
        step: u32,
    ) -> Tensor {
        let first = self.next_latent_frame.saturating_add_signed(from);
        let [height, width] = self.latent_size;
        pipeline.noise(self.noise, seed, first, step, [frames, height, width])
    }

    /// Clean latents `[1, z, t, h, w]` before the next frame of a windowed stream.
    pub fn context(&self) -> Option<&Tensor> {
        match &self.continuation {
            Continuation::Windowed(context) => context.as_ref(),
            _ => None,
        }
    }

    /// Decodes clean latents `[1, z, t, h, w]` as the next frames of a windowed stream and moves on behind them.
    ///
    /// # Errors
    /// [`crate::error::Error::Cancelled`], which leaves everything as before the call.
    pub fn put_next(
        &mut self,
        pipeline: &Pipeline,
        latents: &Tensor,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Tensor> {
        let mut decoder = self.decoder.shallow_clone();
        let video = pipeline.decode_latents(latents, &mut decoder, cancel)?;
        wait_for(pipeline.device());
        let seen = match self.context() {
            Some(context) => Tensor::cat(&[context, latents], 2),
            None => latents.shallow_clone(),
        };
        let tail = last_frames(&seen, pipeline.info().context_latent_frames());
        *self = Self {
            next_latent_frame: self.next_latent_frame + latents.size()[2] as u64,
            decoder,
            continuation: Continuation::Windowed(tail),
            ..*self
        };
        Ok(video)
    }

    /// Makes the next chunk and moves on behind it.
    ///
    /// # Errors
    /// [`crate::error::Error::Cancelled`], which leaves everything as before the call.
    pub fn advance(&mut self, task: &ChunkTask<'_>) -> Result<Decoded> {
        let mut stopwatch = Stopwatch(Instant::now());
        let maker = Maker { state: self, task };
        let chunk = match &self.continuation {
            Continuation::Windowed(context) => maker.windowed(context.as_ref())?,
            Continuation::Causal { tail, caches, lock } => {
                maker.causal(tail.as_ref(), caches.as_ref(), lock.shallow_clone())?
            }
            Continuation::LastPicture(last) => maker.after_picture(last.as_ref())?,
        };
        wait_for(task.pipeline.device());
        let denoise = stopwatch.lap();
        let mut decoder = match &chunk.continuation {
            // Each clip starts anew from a picture.
            Continuation::LastPicture(_) => FeatureCaches::default(),
            _ => self.decoder.shallow_clone(),
        };
        let video = task.pipeline.decode_latents(&chunk.latents, &mut decoder, task.cancel)?;
        wait_for(task.pipeline.device());
        let decode = stopwatch.lap();
        let continuation = match chunk.continuation {
            Continuation::LastPicture(_) => {
                Continuation::LastPicture(Some(video.narrow(2, video.size()[2] - 1, 1).copy()))
            }
            other => other,
        };
        *self = Self {
            next_latent_frame: self.next_latent_frame + chunk.latents.size()[2] as u64,
            decoder,
            continuation,
            ..*self
        };
        let new = video.size()[2] - chunk.shown;
        Ok(Decoded { video: video.narrow(2, chunk.shown, new), denoise, decode })
    }

    /// A single picture from noise that stands for itself; the next one differs.
    ///
    /// # Errors
    /// As [`StreamState::advance`].
    pub fn still(&mut self, task: &ChunkTask<'_>) -> Result<Decoded> {
        let mut stopwatch = Stopwatch(Instant::now());
        let maker = Maker { state: self, task };
        let latents = maker.run(&maker.window(None, 1, 0), None)?;
        wait_for(task.pipeline.device());
        let denoise = stopwatch.lap();
        let mut decoder = FeatureCaches::default();
        let video = task.pipeline.decode_latents(&latents, &mut decoder, task.cancel)?;
        self.next_latent_frame += 1;
        Ok(Decoded { video, denoise, decode: stopwatch.lap() })
    }
}

/// Waits until a GPU is done, so that timings mean something.
pub(super) fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// One chunk in the making.
struct Maker<'a> {
    state: &'a StreamState,
    task: &'a ChunkTask<'a>,
}

impl Maker<'_> {
    fn denoiser(&self) -> Denoiser<'_> {
        let ChunkTask { pipeline, prompts, guidance, schedule, cancel, .. } = *self.task;
        Denoiser { pipeline, prompts, guidance, schedule, cancel }
    }

    fn run(&self, window: &Window<'_>, caches: Option<&CausalCaches>) -> Result<Tensor> {
        self.denoiser().run(window, caches, &mut |_| {})
    }

    fn info(&self) -> &FolderInfo {
        self.task.pipeline.info()
    }

    /// The latents to follow, where there are any.
    fn guide(&self) -> Option<&Tensor> {
        match &self.task.start {
            Start::Noise => None,
            Start::Guide { latents, .. } => Some(latents),
        }
    }

    /// As [`StreamState::noise_for`].
    fn noise(&self, from: i64, frames: i64, step: u32) -> Tensor {
        self.state.noise_for(self.task.pipeline, self.task.seed, (from, frames), step)
    }

    /// The first step of the frames `from` frames after the next of the stream.
    fn begin_index(&self, from: i64) -> usize {
        let causal = matches!(self.state.continuation, Continuation::Causal { .. });
        self.task.start.begin_index(causal && self.state.is_initial() && from == 0)
    }

    /// `frames` new latent frames, `from` frames after the next of the stream, at the noise level of the first step.
    fn fresh(&self, guide: Option<&Tensor>, from: i64, frames: i64) -> Tensor {
        let noise = self.noise(from, frames, 0);
        match guide {
            None => noise,
            Some(guide) => {
                let begin = self.begin_index(from);
                self.task.schedule.add_noise(&guide.to_kind(Kind::Float), &noise, begin)
            }
        }
    }

    /// A window of new frames.
    fn window(&self, guide: Option<&Tensor>, frames: i64, from: i64) -> Window<'_> {
        Window {
            latents: self.fresh(guide, from, frames),
            known: None,
            condition: None,
            control: None,
            frame_offset: 0,
            begin_index: self.begin_index(from),
            noise: Box::new(move |number| self.noise(from, frames, number)),
        }
    }

    fn windowed(&self, context: Option<&Tensor>) -> Result<Latents> {
        let info = self.info();
        let window_frames = info.window_latent_frames();
        let kept = context.map_or(0, |context| context.size()[2]);
        let (known, new) = match self.guide() {
            None => (kept, window_frames - kept),
            // A long guide leaves less room to look back at, but one frame at least.
            Some(guide) => {
                let new = guide.size()[2];
                (kept.min((window_frames - new).max(1)), new)
            }
        };
        let latents = match context {
            Some(context) => {
                let context = context.narrow(2, kept - known, known);
                self.continued(&context, self.window(self.guide(), new, 0))?
            }
            None => self.run(&self.window(self.guide(), new, 0), None)?,
        };
        let tail = last_frames(&latents, info.context_latent_frames());
        Ok(Latents {
            latents: latents.narrow(2, known, new),
            shown: 0,
            continuation: Continuation::Windowed(tail),
        })
    }

    /// Known latents `[1, z, t, h, w]` and the frames of a window after them.
    fn continued(&self, known: &Tensor, mut window: Window<'_>) -> Result<Tensor> {
        let (before, new) = (known.size()[2], window.latents.size()[2]);
        let padding = [0, 0, 0, 0, 0, new];
        window.latents = Tensor::cat(&[known, &window.latents], 2);
        window.known = Some(Known {
            frames: (0..before + new).map(|frame| frame < before).collect(),
            latents: known.constant_pad_nd(padding),
            noise: self.noise(-before, before, 1).constant_pad_nd(padding),
        });
        let noise = window.noise;
        window.noise = Box::new(move |step| noise(step).constant_pad_nd([0, 0, 0, 0, before, 0]));
        self.run(&window, None)
    }

    fn causal(
        &self,
        tail: Option<&Tensor>,
        caches: Option<&CausalCaches>,
        mut lock: LatentLock,
    ) -> Result<Latents> {
        let info = self.info();
        let denoiser = self.denoiser();
        let block = info.native.block_latent_frames;
        let position = self.state.next_latent_frame as i64;
        let span = info.window_latent_frames() - block;
        let guided = denoiser.is_guided();
        // Caches without the negative prompt's are of no use to guidance.
        let mut caches = match caches.filter(|caches| caches.negative.is_some() || !guided) {
            Some(caches) => {
                let CausalCaches { positive, negative } = caches.shallow_clone();
                CausalCaches { positive, negative: negative.filter(|_| guided) }
            }
            None => {
                let mut caches = self.empty_caches(span, guided);
                if let Some(tail) = tail {
                    denoiser.remember(tail, position - tail.size()[2], &mut caches)?;
                }
                caches
            }
        };
        let frames = self.guide().map_or(block, |guide| guide.size()[2]);
        let mut blocks = Vec::new();
        for from in (0..frames).step_by(block as usize) {
            let new = block.min(frames - from);
            let guide = self.guide().map(|guide| guide.narrow(2, from, new));
            let window =
                Window { frame_offset: position + from, ..self.window(guide.as_ref(), new, from) };
            let latents = denoiser.run(&window, Some(&caches), &mut |_| {})?;
            // What follows a guide is held by that.
            let latents = match guide {
                None => lock.apply(&latents, info.native.latent_lock),
                Some(_) => latents,
            };
            denoiser.remember(&latents, position + from, &mut caches)?;
            blocks.push(latents);
        }
        let latents = Tensor::cat(&blocks, 2);
        let seen = match tail {
            Some(tail) => Tensor::cat(&[tail, &latents], 2),
            None => latents.shallow_clone(),
        };
        let tail = last_frames(&seen, span);
        Ok(Latents {
            latents,
            shown: 0,
            continuation: Continuation::Causal { tail, caches: Some(caches), lock },
        })
    }

    /// Caches that hold `frames` latent frames.
    fn empty_caches(&self, frames: i64, guided: bool) -> CausalCaches {
        let [height, width] = self.state.latent_size;
        let [pt, ph, pw] = self.info().transformer.patch_size;
        let tokens = (frames / pt) * (height / ph) * (width / pw);
        CausalCaches {
            positive: KvCache::new(tokens),
            negative: guided.then(|| KvCache::new(tokens)),
        }
    }

    fn after_picture(&self, last: Option<&Tensor>) -> Result<Latents> {
        let info = self.info();
        // The clip begins with the last picture, which a guide says nothing about.
        let guide = match (self.guide(), last) {
            (Some(guide), Some(last)) => {
                let first = self.task.pipeline.encode_video(last).to_kind(guide.kind());
                Some(Tensor::cat(&[&first, guide], 2))
            }
            (guide, _) => guide.map(Tensor::shallow_clone),
        };
        let frames = guide.as_ref().map_or(info.window_latent_frames(), |guide| guide.size()[2]);
        let pictures = (frames - 1) * info.vae.temporal_factor() + 1;
        let [height, width] = self.state.latent_size;
        let spatial = info.vae.spatial_factor();
        let shape = [1, 3, pictures, height * spatial, width * spatial];
        let grey = Tensor::zeros(shape, (Kind::Float, self.task.pipeline.device()));
        let mut known = vec![false; pictures as usize];
        if let Some(picture) = last {
            grey.narrow(2, 0, 1).copy_(picture);
            known[0] = true;
        }
        let mut window = self.window(guide.as_ref(), frames, 0);
        if info.controls_by_branch() {
            let free: Vec<f32> = known.iter().map(|&known| f32::from(u8::from(!known))).collect();
            let mask = Tensor::from_slice(&free).view([1, 1, -1, 1, 1]).expand_as(&grey);
            let control = self.task.pipeline.control(&grey, &mask.narrow(1, 0, 1), &[]);
            window.control = Some((control, Vec::new()));
        } else {
            window.condition = Some(self.task.pipeline.channel_condition(&grey, &known));
        }
        Ok(Latents {
            latents: self.run(&window, None)?,
            shown: i64::from(last.is_some()),
            continuation: Continuation::LastPicture(None),
        })
    }
}

/// A copy of the last frames, at most `frames` of them; `None` for none.
pub(super) fn last_frames(latents: &Tensor, frames: i64) -> Option<Tensor> {
    let length = latents.size()[2];
    let kept = frames.min(length);
    (kept > 0).then(|| latents.narrow(2, length - kept, kept).copy())
}
