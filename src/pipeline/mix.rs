// SPDX-License-Identifier: MPL-2.0
//! Something between two videos: their latents interpolated, noised by an amount that peaks half-way, denoised again.
//!
//! A [`LatentMixer`] does so chunk after chunk. Between two latents the direction is interpolated position by position
//! (slerp; Shoemake 1985) after each channel's mean and spread have been taken out, frame by frame; mean and spread are
//! interpolated by themselves, so that neither colours jump nor contrast washes out as in an average. [`bridge`] makes
//! the frames that are missing between two clips, both of which it knows.

use std::sync::Arc;
use std::time::Instant;

use tch::{Kind, Tensor};

use super::continuation::Stopwatch;
use super::decode::{RgbFrame, rgb_frames, video_of};
use super::denoise::{Denoiser, Guidance, Known, Prompts, Window, check};
use super::detail::{End, detailed, eased, joined};
use super::noise::NoiseKind;
use super::restyle::{
    EmbeddingCache, Embeddings, RestyleControls, Restyler, StartLevel, VideoEncoder,
};
use super::rollout::Timings;
use super::{FolderInfo, Pipeline};
use crate::error::{Error, Result};
use crate::nn::conv3d::FeatureCaches;
use crate::torch::guarded;

/// Noise below which there is nothing to denoise.
const LEAST_LEVEL: f64 = 0.02;
/// Spread below which a channel of a frame counts as flat.
const FLAT: f64 = 1e-4;
/// Cosine above which directions are one and the same.
const PARALLEL: f64 = 1.0 - 1e-6;

/// The same moment of two streams.
#[derive(Debug, Clone)]
pub struct MixFrame {
    pub a: Arc<RgbFrame>,
    pub b: Arc<RgbFrame>,
    /// How much of `b`, in [0, 1].
    pub share: f64,
}

/// What may differ from chunk to chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct MixControls {
    /// What the streams show.
    pub prompts: [String; 2],
    pub negative_prompt: String,
    /// `None`: the folder's own.
    pub guidance_scale: Option<f64>,
    pub seed: u64,
    /// Steps of a whole schedule, of which the noise level leaves some.
    pub num_inference_steps: u32,
    /// Noise level half-way, in [0, 1].
    pub creativity: f64,
}

/// Frames between those of two streams.
#[derive(Debug)]
pub struct Mixed {
    /// As many as went in.
    pub frames: Vec<RgbFrame>,
    pub timings: Timings,
}

/// The noise level of a mix: none at either end, `creativity` half-way.
pub fn mix_level(creativity: f64, share: f64) -> f64 {
    (creativity * 4.0 * share * (1.0 - share)).clamp(0.0, 1.0)
}

/// Between latents `[1, z, t, h, w]`, by one share a latent frame; shares of 0 and 1 give one of them exactly.
pub fn blend_latents(a: &Tensor, b: &Tensor, shares: &[f64]) -> Tensor {
    let values: Vec<f32> = shares.iter().map(|&share| share.clamp(0.0, 1.0) as f32).collect();
    let share = Tensor::from_slice(&values).view([1, 1, -1, 1, 1]).to_device(a.device());
    let (x, y) = (a.to_kind(Kind::Float), b.to_kind(Kind::Float));
    let ((x, mean_x, std_x), (y, mean_y, std_y)) = (standardised(&x), standardised(&y));
    let mean = mean_x.lerp_tensor(&mean_y, &share);
    let std = std_x.log().lerp_tensor(&std_y.log(), &share).exp();
    let between = slerp(&x, &y, &share) * std + mean;
    let between = b.to_kind(Kind::Float).where_self(&share.ge(1.0), &between);
    a.to_kind(Kind::Float).where_self(&share.le(0.0), &between)
}

/// Mean 0 and spread 1 in each channel of each frame, and what they were.
fn standardised(x: &Tensor) -> (Tensor, Tensor, Tensor) {
    let plane = [3i64, 4].as_slice();
    let mean = x.mean_dim(plane, true, Kind::Float);
    let centred = x - &mean;
    let std = centred.square().mean_dim(plane, true, Kind::Float).sqrt().clamp_min(FLAT);
    (centred / &std, mean, std)
}

/// Between the vectors that the channels make at each position, by angle; their lengths are interpolated.
fn slerp(x: &Tensor, y: &Tensor, share: &Tensor) -> Tensor {
    let length =
        |t: &Tensor| t.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float).sqrt();
    let (of_x, of_y) = (length(x).clamp_min(1e-6), length(y).clamp_min(1e-6));
    let (u, v) = (x / &of_x, y / &of_y);
    let cosine = (&u * &v).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    // Opposite directions have no way between them that is nearer than another.
    let angle = cosine.clamp(-PARALLEL, PARALLEL).acos();
    let sine = angle.sin();
    let rest: Tensor = share.ones_like() - share;
    let direction = (&rest * &angle).sin() / &sine * &u + (share * &angle).sin() / &sine * &v;
    direction * of_x.lerp_tensor(&of_y, share)
}

/// Mixes two streams chunk after chunk, continuing its last chunk.
#[derive(Debug)]
pub struct LatentMixer {
    encoders: [VideoEncoder; 2],
    restyler: Restyler,
    size: (i64, i64),
}

impl LatentMixer {
    /// The start of a mix of streams of `width` x `height` pixels.
    ///
    /// # Errors
    /// A folder that needs an image to start from.
    pub fn new(pipeline: &Pipeline, size: (i64, i64)) -> Result<Self> {
        Ok(Self {
            encoders: [VideoEncoder::default(), VideoEncoder::default()],
            restyler: Restyler::new(pipeline, size, NoiseKind::Counter)?,
            size,
        })
    }

    /// The next frames: 1 + 4k of them at the start, 4k later. `texts` remembers embeddings from call to call.
    ///
    /// # Errors
    /// [`Error::Cancelled`] or [`Error::Torch`], which leave the mix as before the call; [`Error::Setting`] for frames of
    /// another number or size.
    pub fn next_chunk(
        &mut self,
        pipeline: &Pipeline,
        frames: &[MixFrame],
        controls: &MixControls,
        (texts, cancel): (&mut EmbeddingCache, &dyn Fn() -> bool),
    ) -> Result<Mixed> {
        guarded(|| {
            let mut stopwatch = Stopwatch(Instant::now());
            let mut encoders = [self.encoders[0].shallow_clone(), self.encoders[1].shallow_clone()];
            let padded = pipeline.info().padded_size(self.size.0, self.size.1);
            let of_a = video_of(frames.iter().map(|frame| &*frame.a), padded)?;
            let of_b = video_of(frames.iter().map(|frame| &*frame.b), padded)?;
            let a = encoders[0].encode(pipeline, &of_a, cancel)?;
            let b = encoders[1].encode(pipeline, &of_b, cancel)?;
            let shares = by_latent_frame(pipeline.info(), frames, a.size()[2]);
            let guide = blend_latents(&a, &b, &shares);
            let encode = stopwatch.lap();
            let share = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
            let embeddings = embeddings(pipeline, controls, share, texts)?;
            let level = mix_level(controls.creativity, share).max(LEAST_LEVEL);
            let restyling = RestyleControls {
                embeddings: &embeddings,
                guidance_scale: controls.guidance_scale,
                seed: controls.seed,
                num_inference_steps: controls.num_inference_steps,
                start_level: StartLevel::Noise(level),
            };
            let restyled = self.restyler.next_chunk(pipeline, &guide, &restyling, cancel)?;
            self.encoders = encoders;
            stopwatch.lap();
            let shares: Vec<f64> = frames.iter().map(|frame| frame.share).collect();
            let video = toned(&restyled.video, &of_a, &of_b, &shares);
            let video = detailed(&video, &of_a, &of_b, &shares);
            let frames = rgb_frames(&video, self.size);
            let timings = Timings { convert: stopwatch.lap() + encode, ..restyled.timings };
            Ok(Mixed { frames, timings })
        })
    }
}

/// A video with the mean and the spread of each channel brought, frame by frame, to those between two others: latent
/// frames stand for several frames, and brightness would go in steps.
fn toned(video: &Tensor, a: &Tensor, b: &Tensor, shares: &[f64]) -> Tensor {
    /// Beyond this it would be a picture of something else.
    const MOST: f64 = 1.5;
    let values: Vec<f32> = shares.iter().map(|&share| share.clamp(0.0, 1.0) as f32).collect();
    let share = Tensor::from_slice(&values).view([1, 1, -1, 1, 1]).to_device(video.device());
    let like = |t: &Tensor| t.to_device(video.device()).to_kind(Kind::Float);
    let (_, mean_a, std_a) = standardised(&like(a));
    let (_, mean_b, std_b) = standardised(&like(b));
    let (_, mean, std) = standardised(&like(video));
    let gain = std_a.lerp_tensor(&std_b, &share) / &std;
    let gain = gain.clamp(1.0 / MOST, MOST);
    (like(video) - mean) * gain + mean_a.lerp_tensor(&mean_b, &share)
}

/// The mean share of the frames of each latent frame; where there is a first frame by itself it has its own.
fn by_latent_frame(info: &FolderInfo, frames: &[MixFrame], latent_frames: i64) -> Vec<f64> {
    let factor = info.vae.temporal_factor() as usize;
    let head = frames.len() % factor;
    let (first, rest) = frames.split_at(head.min(frames.len()));
    let mean = |group: &[MixFrame]| {
        group.iter().map(|frame| frame.share).sum::<f64>() / group.len().max(1) as f64
    };
    let mut shares = Vec::with_capacity(latent_frames as usize);
    if !first.is_empty() {
        shares.push(mean(first));
    }
    shares.extend(rest.chunks(factor).map(mean));
    shares
}

/// Both prompts on the way from one to the other.
fn embeddings(
    pipeline: &Pipeline,
    controls: &MixControls,
    share: f64,
    texts: &mut EmbeddingCache,
) -> Result<Embeddings> {
    let [a, b] = &controls.prompts;
    let negative = controls.negative_prompt.as_str();
    let of_a = texts.pair(pipeline, (a, negative), controls.guidance_scale)?;
    if a == b {
        return Ok(of_a);
    }
    let of_b = texts.pair(pipeline, (b, negative), controls.guidance_scale)?;
    Ok(of_a.blend(&of_b, share))
}

/// The frames between two clips of `size`: `gap` of them, the end of `a` and the beginning of `b` being known. They begin as
/// the way from the last latents of `a` to the first of `b` with as much noise as the creativity says; at 1 as noise
/// alone. Of `a` 1 + 4k frames are looked at, of `b` 4k.
///
/// # Errors
/// [`Error::Cancelled`] or [`Error::Torch`]; [`Error::Setting`] without frames on both sides, or for a folder that takes
/// known pixels in channels of their own.
pub fn bridge(
    pipeline: &Pipeline,
    (a, b): (&[Arc<RgbFrame>], &[Arc<RgbFrame>]),
    (gap, size): (usize, (i64, i64)),
    controls: &MixControls,
    (texts, cancel): (&mut EmbeddingCache, &dyn Fn() -> bool),
) -> Result<Vec<RgbFrame>> {
    guarded(|| {
        check(cancel)?;
        let info = pipeline.info();
        let plan = BridgePlan::new(info, a.len(), gap, b.len())?;
        let padded = info.padded_size(size.0, size.1);
        let a = &a[a.len() - plan.before..];
        // What is not known yet looks like the beginning of b, so that its first latent frames come out as if b had
        // been standing still before.
        let filler = std::iter::repeat_n(&b[0], plan.free_frames(info));
        let clip = a.iter().chain(filler).chain(&b[..plan.after]).map(|frame| &**frame);
        let video = video_of(clip, padded)?;
        let latents = VideoEncoder::default().encode(pipeline, &video, cancel)?;
        let latents = denoise_bridge(pipeline, &latents, &plan, controls, (texts, cancel))?;
        let decoded = pipeline.decode_latents(&latents, &mut FeatureCaches::default(), cancel)?;
        Ok(rgb_frames(&plan.made(&video.to_device(decoded.device()), &decoded, gap), size))
    })
}

/// How a bridge is cut into latent frames.
struct BridgePlan {
    /// Frames of the first and the second clip that are known.
    before: usize,
    after: usize,
    /// Latent frames that are free, behind those that are known of the first clip.
    free: i64,
    known_before: i64,
}

impl BridgePlan {
    fn new(info: &FolderInfo, before: usize, gap: usize, after: usize) -> Result<Self> {
        if info.knows_by_pixels() {
            let name = format!("{}: transformer", info.folder.display());
            return Err(Error::setting(
                name,
                "known frames as channels",
                "a text-to-video model for mode=bridge",
            ));
        }
        let factor = info.vae.temporal_factor() as usize;
        if before == 0 || after == 0 || gap == 0 {
            let found = format!("{before}, {gap} and {after}");
            return Err(Error::setting("frames of a bridge", found, "at least one of each"));
        }
        let known_before = (before - 1) / factor + 1;
        Ok(Self {
            before: (known_before - 1) * factor + 1,
            after: after / factor * factor,
            free: gap.div_ceil(factor) as i64,
            known_before: known_before as i64,
        })
    }

    fn free_frames(&self, info: &FolderInfo) -> usize {
        (self.free * info.vae.temporal_factor()) as usize
    }

    /// The `gap` frames between the known ones of a decoded clip, `[1, 3, F, H, W]`, joined to those of the clip itself.
    fn made(&self, clip: &Tensor, decoded: &Tensor, gap: usize) -> Tensor {
        let first = self.before as i64;
        let behind = decoded.size()[2] - self.after as i64;
        let end = |frame: i64| End::new(&clip.narrow(2, frame, 1), &decoded.narrow(2, frame, 1));
        let after = (self.after > 0).then(|| end(behind));
        joined(&decoded.narrow(2, first, gap as i64), Some(&end(first - 1)), after.as_ref())
    }
}

fn denoise_bridge(
    pipeline: &Pipeline,
    latents: &Tensor,
    plan: &BridgePlan,
    controls: &MixControls,
    (texts, cancel): (&mut EmbeddingCache, &dyn Fn() -> bool),
) -> Result<Tensor> {
    let s = latents.size();
    let latents = latents.to_kind(Kind::Float);
    let is_free = |frame: i64| (plan.known_before..plan.known_before + plan.free).contains(&frame);
    let noise =
        |step| pipeline.noise(NoiseKind::Counter, controls.seed, 0, step, [s[2], s[3], s[4]]);
    let free: Vec<bool> = (0..s[2]).map(is_free).collect();
    let mask = Tensor::from_slice(&free).view([1, 1, -1, 1, 1]).to_device(latents.device());
    let embeddings = embeddings(pipeline, controls, 0.5, texts)?;
    let prompts = Prompts::new(pipeline, &embeddings.positive, embeddings.negative.as_ref(), None);
    let steps = controls.num_inference_steps as usize;
    let schedule = pipeline.info().scheduler.set_timesteps(steps, None)?;
    let schedule = schedule.starting_at(controls.creativity.clamp(LEAST_LEVEL, 1.0))?;
    let way = way_across(&latents, plan);
    let denoiser = Denoiser {
        pipeline,
        prompts: &prompts,
        guidance: Guidance::of(pipeline.info(), controls.guidance_scale),
        schedule: &schedule,
        cancel,
    };
    let window = Window {
        latents: schedule.add_noise(&way, &noise(0), 0).where_self(&mask, &latents),
        known: Some(Known {
            frames: free.iter().map(|free| !free).collect(),
            latents,
            noise: noise(1),
        }),
        condition: None,
        control: None,
        frame_offset: 0,
        begin_index: 0,
        noise: Box::new(noise),
    };
    denoiser.run(&window, None, &mut |_| {})
}

/// Latents `[1, z, T, h, w]` whose free frames lead from the known one before them to the known one behind.
fn way_across(latents: &Tensor, plan: &BridgePlan) -> Tensor {
    let frames = latents.size()[2];
    let behind = (plan.known_before + plan.free).min(frames - 1);
    // A latent frame is several frames: those next to what is known stay near to it.
    let shares: Vec<f64> =
        (1..=plan.free).map(|i| eased(i as f64 / (plan.free + 1) as f64)).collect();
    let still = |frame: i64| {
        let mut size = latents.size();
        size[2] = plan.free;
        latents.narrow(2, frame, 1).expand(&size, false)
    };
    let between = blend_latents(&still(plan.known_before - 1), &still(behind), &shares);
    let after = plan.known_before + plan.free;
    let parts = [
        latents.narrow(2, 0, plan.known_before),
        between,
        latents.narrow(2, after, frames - after),
    ];
    Tensor::cat(&parts, 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::counter_noise;

    fn latents(seed: u64) -> Tensor {
        counter_noise(seed, 0, 0, [8, 3, 4, 6]) * 1.7 + 0.4
    }

    #[test]
    fn ends_are_exactly_the_latents() {
        let (a, b) = (latents(1), latents(2));
        let mixed = blend_latents(&a, &b, &[0.0, 0.5, 1.0]);
        assert_eq!(mixed.narrow(2, 0, 1), a.narrow(2, 0, 1));
        assert_eq!(mixed.narrow(2, 2, 1), b.narrow(2, 2, 1));
    }

    #[test]
    fn the_middle_keeps_mean_and_spread_where_an_average_loses_it() {
        let (a, b) = (latents(1), latents(2));
        let mixed = blend_latents(&a, &b, &[0.5; 3]);
        let spread = |t: &Tensor| t.std(true).double_value(&[]);
        assert!((spread(&mixed) / spread(&a) - 1.0).abs() < 0.1, "{}", spread(&mixed));
        assert!(spread(&((&a + &b) / 2.0)) < 0.8 * spread(&a));
        let mean = |t: &Tensor| t.mean(Kind::Float).double_value(&[]);
        assert!((mean(&mixed) - (mean(&a) + mean(&b)) / 2.0).abs() < 0.05);
    }

    #[test]
    fn the_same_and_flat_latents_stay_finite_and_themselves() {
        let a = latents(1);
        let same = blend_latents(&a, &a, &[0.3; 3]);
        assert!((same - &a).abs().max().double_value(&[]) < 1e-3);
        let flat = Tensor::zeros([1, 8, 3, 4, 6], (Kind::Float, tch::Device::Cpu));
        for other in [&a, &flat, &-&a] {
            let mixed = blend_latents(&flat, other, &[0.5; 3]);
            assert!(mixed.isfinite().all().int64_value(&[]) == 1);
        }
        let opposite = blend_latents(&a, &-&a, &[0.5; 3]);
        assert!(opposite.isfinite().all().int64_value(&[]) == 1);
    }

    #[test]
    fn noise_peaks_half_way() {
        assert_eq!((mix_level(0.7, 0.0), mix_level(0.7, 1.0)), (0.0, 0.0));
        assert!((mix_level(0.7, 0.5) - 0.7).abs() < 1e-12);
        assert!(mix_level(1.0, 0.2) < mix_level(1.0, 0.4));
    }
}
