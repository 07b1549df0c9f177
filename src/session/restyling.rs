// SPDX-License-Identifier: MPL-2.0
//! What `ditfilter` pushes to a model's thread: a chunk of frames in, as many restyled frames out.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Result;
use crate::pipeline::{
    ColourLock, EmbeddingCache, Embeddings, Motion, NoiseKind, Pipeline, RestyleControls, Restyler,
    RgbFrame, StartLevel, Timings, VideoEncoder, difference, rgb_frames, video_of,
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
    pub settings: RestyleSettings,
}

/// A restyled chunk.
#[derive(Debug, Clone)]
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
    /// The last frame that went in, the last that came out, and how it was made.
    last: Option<(Arc<RgbFrame>, Arc<RgbFrame>, RestyleSettings)>,
}

impl Process for Restyling {
    type Job = RestyleJob;
    type Output = RestyledFrames;

    fn process(
        &mut self,
        pipeline: &Pipeline,
        job: RestyleJob,
        cancel: &dyn Fn() -> bool,
    ) -> Result<RestyledFrames> {
        let size = job.frames.first().map_or((0, 0), |frame| (frame.width, frame.height));
        if job.restart || self.stream.as_ref().is_some_and(|stream| stream.size != size) {
            self.stream = None;
        }
        // Taken out, so that what fails half-way is gone.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => Stream::new(pipeline, size)?,
        };
        if let Some(frames) = stream.still(&job) {
            self.stream = Some(stream);
            return Ok(RestyledFrames { frames, timings: Timings::default(), still: true });
        }
        let mut started = Instant::now();
        let embeddings = self.embeddings(pipeline, &job.settings)?;
        let encode_prompt = started.elapsed();
        started = Instant::now();
        let fitted = Fitted::new(pipeline, &stream.encoder, &job.frames);
        let padded = pipeline.info().padded_size(size.0 as i64, size.1 as i64);
        let video = video_of(fitted.frames.iter().map(|frame| &**frame), padded)?;
        let guide = stream.encoder.encode(pipeline, &video, cancel)?;
        let encode = started.elapsed();
        let settings = &job.settings;
        let steps = settings.steps.unwrap_or(pipeline.info().native.num_inference_steps);
        let controls = RestyleControls {
            embeddings: &embeddings,
            guidance_scale: settings.guidance_scale,
            seed: settings.seed,
            num_inference_steps: steps,
            start_level: stream.start_level(pipeline, &job, steps)?,
        };
        let restyled = stream.restyler.next_chunk(pipeline, &guide, &controls, cancel)?;
        started = Instant::now();
        if stream.last.as_ref().is_some_and(|(.., before)| before.words != settings.words)
            || settings.from.is_some()
        {
            stream.colours.release();
        }
        let video = stream.colours.apply(&video, &restyled.video, settings.colour_lock);
        let mut frames = rgb_frames(&video, (size.0 as i64, size.1 as i64));
        frames.truncate(frames.len() - fitted.after);
        let frames: Vec<_> = frames.into_iter().skip(fitted.before).map(Arc::new).collect();
        if let (Some(input), Some(output)) = (job.frames.last(), frames.last()) {
            stream.last = Some((input.clone(), output.clone(), job.settings));
        }
        // Behind repeated frames a stream cannot go on as if they had been there.
        self.stream = (fitted.after == 0).then_some(stream);
        let timings =
            Timings { encode_prompt, encode, convert: started.elapsed(), ..restyled.timings };
        Ok(RestyledFrames { frames, timings, still: false })
    }

    fn reset(&mut self) {
        self.stream = None;
    }
}

impl Restyling {
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
    fn new(pipeline: &Pipeline, size: (usize, usize)) -> Result<Self> {
        let pixels = (size.0 as i64, size.1 as i64);
        Ok(Self {
            size,
            encoder: VideoEncoder::default(),
            restyler: Restyler::new(pipeline, pixels, NoiseKind::Counter)?,
            motion: Motion::default(),
            colours: ColourLock::default(),
            last: None,
        })
    }

    /// The last picture again, where nothing has moved and nothing else is wanted.
    fn still(&self, job: &RestyleJob) -> Option<Vec<Arc<RgbFrame>>> {
        let (input, output, settings) = self.last.as_ref()?;
        let threshold = job.settings.still_threshold;
        let same = threshold > 0.0
            && *settings == job.settings
            && job.frames.iter().all(|frame| difference(input, frame) <= threshold);
        same.then(|| vec![output.clone(); job.frames.len()])
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
        let before = self.last.as_ref().map(|(input, ..)| &**input);
        let motion = self.motion.observe(before.into_iter().chain(job.frames.iter().map(|f| &**f)));
        let schedule = pipeline.info().scheduler.set_timesteps(steps as usize, None)?;
        let (schedule, begin) = wanted.place(&schedule)?;
        let level = f64::from(schedule.sigma(begin)) - job.settings.motion_relief * motion;
        Ok(if motion > 0.0 { StartLevel::Noise(level.max(LEAST_LEVEL)) } else { wanted })
    }
}

/// Frames, with the first or the last repeated until they fill latent frames.
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
