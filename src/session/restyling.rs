// SPDX-License-Identifier: MPL-2.0
//! What `ditfilter` pushes to a model's thread: a chunk of frames in, as many restyled frames out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tch::Tensor;

use crate::error::Result;
use crate::pipeline::{
    ColourLock, EmbeddingCache, Embeddings, Motion, NoiseKind, Pipeline, RestyleControls, Restyled,
    Restyler, RgbFrame, StartLevel, Timings, VideoEncoder, difference, rgb_frames, video_of,
};

use super::feed::Process;

/// Least noise level that motion leaves.
const LEAST_LEVEL: f64 = 0.05;

/// Words to follow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Words {
    pub prompt: String,
    pub negative_prompt: String,
}

/// How a chunk is to be restyled.
#[derive(Debug, Clone, PartialEq)]
pub struct RestyleSettings {
    pub words: Words,
    /// Words on the way out, and how far the new ones have come, in [0, 1].
    pub from: Option<(Words, f64)>,
    /// `None`: the folder's own.
    pub guidance_scale: Option<f64>,
    pub seed: u64,
    /// Steps of a whole schedule; `None`: the folder's own.
    pub steps: Option<u32>,
    pub start_level: StartLevel,
    /// How much less noise full motion gets, as a noise level.
    pub motion_relief: f64,
    /// How firmly colours are held, in [0, 1].
    pub colour_lock: f64,
    /// Mean difference in [0, 1] up to which a picture counts as the same.
    pub still_threshold: f64,
}

/// A chunk to restyle; all frames of one size.
#[derive(Debug, Clone)]
pub struct RestyleJob {
    pub frames: Vec<Arc<RgbFrame>>,
    /// Whether the frames do not continue those of the job before.
    pub restart: bool,
    /// Whether nothing that comes later continues these frames; without frames the job only finishes those before.
    pub last: bool,
    /// Chunks denoised together, the first of them the furthest; 1 for each by itself.
    pub depth: usize,
    pub settings: RestyleSettings,
}

/// A restyled chunk.
#[derive(Debug, Clone, Default)]
pub struct RestyledFrames {
    /// As many as went in.
    pub frames: Vec<Arc<RgbFrame>>,
    pub timings: Timings,
    /// Nothing moved, so the last picture stands and nothing was computed.
    pub still: bool,
}

/// The temporal state of one restyled stream.
#[derive(Debug, Default)]
pub struct Restyling {
    texts: EmbeddingCache,
    stream: Option<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Width and height of the frames.
    size: (usize, usize),
    encoder: VideoEncoder,
    restyler: Restyler,
    motion: Motion,
    colours: ColourLock,
    /// Whether the last chunk that was sent off had no frames but its own.
    whole: bool,
    /// Chunks that are on their way.
    waiting: VecDeque<Waiting>,
    /// The last frame that went in, the last that came out, and how it was made.
    last: Option<(Arc<RgbFrame>, Arc<RgbFrame>, RestyleSettings)>,
}

/// A chunk that was sent off.
#[derive(Debug)]
struct Waiting {
    fitted: Fitted,
    /// What went in, `[1, 3, F, H, W]` in [-1, 1].
    video: Tensor,
    /// Time spent on it before it was sent off.
    timings: Timings,
    last: Option<Arc<RgbFrame>>,
    settings: RestyleSettings,
}

impl Process for Restyling {
    type Job = RestyleJob;
    type Output = RestyledFrames;

    fn process(
        &mut self,
        pipeline: &Pipeline,
        job: RestyleJob,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<RestyledFrames>> {
        let size = job.frames.first().map_or((0, 0), |frame| (frame.width, frame.height));
        // Taken out, so that what fails half-way is gone.
        let mut stream = self.stream.take();
        let mut finished = Vec::new();
        let ends = job.frames.is_empty() || job.restart;
        if let Some(before) = stream.take_if(|stream| ends || stream.size != size).as_mut() {
            finished = before.finish(pipeline, cancel)?;
        }
        if job.frames.is_empty() {
            // What finished the others stands for nothing itself.
            finished.push(RestyledFrames::default());
            return Ok(finished);
        }
        let mut stream = match stream {
            Some(stream) => stream,
            None => Stream::new(pipeline, size, job.depth)?,
        };
        if stream.nothing_moves(&job) {
            finished.extend(stream.finish(pipeline, cancel)?);
            let frames = stream
                .last
                .iter()
                .flat_map(|(_, output, _)| std::iter::repeat_n(output.clone(), job.frames.len()));
            let frames = frames.collect();
            finished.push(RestyledFrames { frames, timings: Timings::default(), still: true });
            self.stream = Some(stream);
            return Ok(finished);
        }
        finished.extend(self.push(pipeline, &mut stream, &job, cancel)?);
        // Behind repeated frames a stream cannot go on as if they had been there.
        let goes_on = stream.whole;
        if job.last || !goes_on {
            finished.extend(stream.finish(pipeline, cancel)?);
        }
        self.stream = goes_on.then_some(stream);
        Ok(finished)
    }

    fn reset(&mut self) {
        self.stream = None;
    }
}

impl Restyling {
    /// Sends a chunk off; gives those that are finished.
    fn push(
        &mut self,
        pipeline: &Pipeline,
        stream: &mut Stream,
        job: &RestyleJob,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<RestyledFrames>> {
        let mut started = Instant::now();
        let embeddings = self.embeddings(pipeline, &job.settings)?;
        let encode_prompt = started.elapsed();
        started = Instant::now();
        let size = (stream.size.0 as i64, stream.size.1 as i64);
        let fitted = Fitted::new(pipeline, &stream.encoder, &job.frames);
        let padded = pipeline.info().padded_size(size.0, size.1);
        let video = video_of(fitted.frames.iter().map(|frame| &**frame), padded)?;
        let guide = stream.encoder.encode(pipeline, &video, cancel)?;
        let timings = Timings { encode_prompt, encode: started.elapsed(), ..Timings::default() };
        let settings = &job.settings;
        let steps = settings.steps.unwrap_or(pipeline.info().native.num_inference_steps);
        let controls = RestyleControls {
            embeddings: &embeddings,
            guidance_scale: settings.guidance_scale,
            seed: settings.seed,
            num_inference_steps: steps,
            start_level: stream.start_level(pipeline, job, steps)?,
        };
        stream.whole = fitted.after == 0;
        stream.waiting.push_back(Waiting {
            fitted,
            video,
            timings,
            last: job.frames.last().cloned(),
            settings: job.settings.clone(),
        });
        let restyled = stream.restyler.push(pipeline, &guide, &controls, cancel)?;
        Ok(restyled.into_iter().filter_map(|restyled| stream.land(restyled)).collect())
    }

    fn embeddings(
        &mut self,
        pipeline: &Pipeline,
        settings: &RestyleSettings,
    ) -> Result<Embeddings> {
        let mut pair = |words: &Words| {
            let texts = (words.prompt.as_str(), words.negative_prompt.as_str());
            self.texts.pair(pipeline, texts, settings.guidance_scale)
        };
        let to = pair(&settings.words)?;
        Ok(match &settings.from {
            Some((words, amount)) if *amount < 1.0 => pair(words)?.blend(&to, *amount),
            _ => to,
        })
    }
}

impl Stream {
    fn new(pipeline: &Pipeline, size: (usize, usize), depth: usize) -> Result<Self> {
        let pixels = (size.0 as i64, size.1 as i64);
        Ok(Self {
            size,
            encoder: VideoEncoder::default(),
            restyler: Restyler::together(pipeline, pixels, NoiseKind::Counter, depth)?,
            motion: Motion::default(),
            colours: ColourLock::default(),
            waiting: VecDeque::new(),
            whole: true,
            last: None,
        })
    }

    /// Whether nothing has moved since the last frame that went in and nothing else is wanted, so that its picture can stand.
    fn nothing_moves(&self, job: &RestyleJob) -> bool {
        let last = match self.waiting.back() {
            Some(waiting) => waiting.last.as_ref().map(|input| (input, &waiting.settings)),
            None => self.last.as_ref().map(|(input, _, settings)| (input, settings)),
        };
        let Some((input, settings)) = last else { return false };
        let threshold = job.settings.still_threshold;
        threshold > 0.0
            && *settings == job.settings
            && job.frames.iter().all(|frame| difference(input, frame) <= threshold)
    }

    /// Finishes the chunks that are on their way.
    fn finish(
        &mut self,
        pipeline: &Pipeline,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<RestyledFrames>> {
        let restyled = self.restyler.finish(pipeline, cancel)?;
        Ok(restyled.into_iter().filter_map(|restyled| self.land(restyled)).collect())
    }

    /// The first chunk on its way becomes pictures.
    fn land(&mut self, restyled: Restyled) -> Option<RestyledFrames> {
        let Waiting { fitted, video, timings, last, settings } = self.waiting.pop_front()?;
        let started = Instant::now();
        if self.last.as_ref().is_some_and(|(.., before)| before.words != settings.words)
            || settings.from.is_some()
        {
            self.colours.release();
        }
        let video = self.colours.apply(&video, &restyled.video, settings.colour_lock);
        let mut frames = rgb_frames(&video, (self.size.0 as i64, self.size.1 as i64));
        frames.truncate(frames.len() - fitted.after);
        let frames: Vec<_> = frames.into_iter().skip(fitted.before).map(Arc::new).collect();
        if let (Some(input), Some(output)) = (last, frames.last()) {
            self.last = Some((input, output.clone(), settings));
        }
        let Timings { encode_prompt, encode, .. } = timings;
        let convert = started.elapsed();
        let timings = Timings {
            encode_prompt: encode_prompt + restyled.timings.encode_prompt,
            encode,
            convert,
            ..restyled.timings
        };
        Some(RestyledFrames { frames, timings, still: false })
    }

    /// The wanted start level, lowered where much moves.
    fn start_level(
        &mut self,
        pipeline: &Pipeline,
        job: &RestyleJob,
        steps: u32,
    ) -> Result<StartLevel> {
        let wanted = job.settings.start_level;
        if job.settings.motion_relief <= 0.0 {
            return Ok(wanted);
        }
        let before = match self.waiting.back() {
            Some(waiting) => waiting.last.as_deref(),
            None => self.last.as_ref().map(|(input, ..)| &**input),
        };
        let motion = self.motion.observe(before.into_iter().chain(job.frames.iter().map(|f| &**f)));
        let (schedule, begin) = wanted.place(&wanted.schedule(pipeline.info(), steps)?)?;
        let level = f64::from(schedule.sigma(begin)) - job.settings.motion_relief * motion;
        Ok(if motion > 0.0 { StartLevel::Noise(level.max(LEAST_LEVEL)) } else { wanted })
    }
}

/// Frames, with the first or the last repeated until they fill latent frames.
#[derive(Debug)]
struct Fitted {
    frames: Vec<Arc<RgbFrame>>,
    before: usize,
    after: usize,
}

impl Fitted {
    /// At the start of a stream the first frame is repeated, which breaks nothing; later the last.
    fn new(pipeline: &Pipeline, encoder: &VideoEncoder, frames: &[Arc<RgbFrame>]) -> Self {
        let count = frames.len() as i64;
        let fresh = encoder.frames_for(pipeline, 1) == 1;
        let wanted = (1..).map(|latents| encoder.frames_for(pipeline, latents));
        let missing = wanted.into_iter().find(|&wanted| wanted >= count).unwrap_or(count) - count;
        let (before, after) = if fresh { (missing, 0) } else { (0, missing) };
        let repeat = |frame: Option<&Arc<RgbFrame>>, times: i64| {
            std::iter::repeat_n(frame.cloned(), times as usize).flatten().collect::<Vec<_>>()
        };
        let mut fitted = repeat(frames.first(), before);
        fitted.extend(frames.iter().cloned());
        fitted.extend(repeat(frames.last(), after));
        Self { frames: fitted, before: before as usize, after: after as usize }
    }
}
