// SPDX-License-Identifier: MPL-2.0
//! Training of the autoencoder on clips of the world: absolute and squared error of the reconstruction from
//! sampled latents, the object's counting more, that of its edges, and a small Kullback-Leibler term that lets latent channels nobody needs fall silent.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::ahead::{Ahead, makers};
use super::clock::Clock;
use super::crew::{Crew, Losses, Work, worker_count};
use super::emphasis;
use super::eval::pixels;
use super::lengthen::Lengthener;
use super::optim::{AdamW, Hyper, trapezoid_schedule};
use super::progress::Progress;
use super::redraw::Redrawer;
use super::sheet;
use super::world::{Scene, Split};
use crate::models::autoencoder_kl_wan::{
    AutoencoderKLWan, AutoencoderKLWanConfig, DiagonalGaussian,
};
use crate::nn::conv3d::FeatureCaches;
use crate::pipeline::torch_noise;
use crate::weights::{Checkpoint, Parameters, Source, safetensors};

/// Options of `dit-train vae`.
#[derive(Debug, Clone)]
pub struct VaeOptions {
    /// Folder for the state, the sheets and the finished `vae/`.
    pub out: PathBuf,
    /// A finished `vae/` folder from whose weights to start.
    pub from: Option<PathBuf>,
    /// A finished pipeline folder whose decoder alone is taught, on latents of its encoder and on what its transformer
    /// makes of these: latents keep their meaning.
    pub decoder_of: Option<PathBuf>,
    /// A finished pipeline folder whose encoder alone is taught, on clips far longer than a second.
    pub encoder_of: Option<PathBuf>,
    /// Words of the world that every second clip shows one of.
    pub favoured: Vec<&'static str>,
    pub steps: u64,
    /// Ends after this time instead, however many steps that are.
    pub seconds: Option<f64>,
    /// Steps on single frames before clips come in.
    pub image_steps: u64,
    pub learning_rate: f64,
    /// Steps at the end over which the learning rate goes down to nothing.
    pub decay_steps: u64,
    pub kl_weight: f64,
    /// Most noise on the latents that are decoded, as a share of their standard deviation.
    pub latent_noise: f64,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    pub workers: usize,
    pub seed: u64,
    pub device: Device,
    /// Steps between saves and sheets.
    pub save_every: u64,
    /// Clips of 5 frames of 64x64 in a batch; other shapes are scaled to the same cost.
    pub batch: i64,
}

/// The autoencoder of the default model: 16x16x4, 48 channels; a patch of 4 keeps full-resolution work small.
pub fn default_config() -> AutoencoderKLWanConfig {
    AutoencoderKLWanConfig {
        base_dim: 32,
        decoder_base_dim: Some(40),
        z_dim: 48,
        dim_mult: vec![1, 2, 2],
        num_res_blocks: 1,
        temporal_downsample: vec![true, true],
        is_residual: true,
        in_channels: 48,
        out_channels: 48,
        patch_size: Some(4),
        scale_factor_spatial: 16,
        latents_mean: vec![0.0; 48],
        latents_std: vec![1.0; 48],
        ..AutoencoderKLWanConfig::default()
    }
}

/// Shapes that training cycles through: clips per batch unit (of 8), frames, height and width of the crop.
const CLIPS: [(i64, i64, i64); 6] =
    [(8, 5, 64), (4, 9, 64), (3, 13, 64), (4, 9, 64), (8, 5, 64), (2, 5, 128)];
/// The same for the first phase: single frames show the spatial layers many more scenes in the same time.
const IMAGES: [(i64, i64, i64); 4] = [(24, 1, 64), (24, 1, 64), (24, 1, 64), (6, 1, 128)];

/// The file that a run resumes from.
const STATE: &str = "vae-state.safetensors";

/// Trains until `steps`, resuming whatever the folder holds, then writes `vae/` with measured latent statistics.
///
/// # Errors
/// When the folder cannot be written or holds the state of another model.
pub fn train(options: &VaeOptions) -> Result<()> {
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    tch::manual_seed(options.seed as i64);
    // One half alone is taught of a finished autoencoder, whose latents keep their meaning.
    let half = options.decoder_of.as_ref().or(options.encoder_of.as_ref());
    let pretrained = half.map(|folder| folder.join("vae"));
    let mut config = match &pretrained {
        Some(folder) => read_config(folder)?,
        None => default_config(),
    };
    let source = Source::Trainable(match pretrained.as_ref().or(options.from.as_ref()) {
        Some(folder) => {
            Parameters::starting_from(Checkpoint::open(folder, "diffusion_pytorch_model")?)
        }
        None => Parameters::default(),
    });
    let model = || AutoencoderKLWan::new(&source.weights(Kind::Float, options.device), &config);
    let vae = model()?;
    let workers = worker_count(options.workers, options.device);
    let models = (0..workers).map(|_| model()).collect::<Result<Vec<_>, _>>()?;
    let Source::Trainable(parameters) = &source else { unreachable!("made trainable above") };
    if pretrained.is_none() && options.from.is_none() {
        quiet_posterior(parameters, config.z_dim);
    }
    let trained = |(name, _): &(String, Tensor)| {
        pretrained.is_none() || is_decoders(name) == options.decoder_of.is_some()
    };
    let trained = parameters.named().into_iter().filter(trained).collect();
    let mut optimiser = AdamW::new(trained, Hyper { ema_decay: 0.998, ..Hyper::default() });
    let state = options.out.join(STATE);
    if state.exists() {
        optimiser.resume(&state)?;
    }
    optimiser.set_threads(workers);
    let progress =
        Progress::new("vae", options.steps, optimiser.steps(), optimiser.parameter_count())
            .within(options.seconds);
    steps(options, (&vae, models), parameters, &mut optimiser, &progress)?;
    optimiser.swap_averages();
    if pretrained.is_none() {
        let (mean, std) = latent_statistics(&vae, options.device);
        config.latents_mean = vec![mean; config.z_dim as usize];
        config.latents_std = vec![std; config.z_dim as usize];
        progress.note(&format!("latents: mean {mean:.4}, std {std:.4}"));
    }
    write_folder(&options.out.join("vae"), &config, parameters)?;
    progress.note("wrote vae/");
    optimiser.swap_averages();
    Ok(())
}

/// Trains models that share their parameters, a worker each, and shows what `vae`, one more of them, makes of it.
fn steps(
    options: &VaeOptions,
    (vae, models): (&AutoencoderKLWan, Vec<AutoencoderKLWan>),
    parameters: &Parameters,
    optimiser: &mut AdamW,
    progress: &Progress,
) -> Result<()> {
    let count = models.len() as u64;
    let first = optimiser.steps() * count;
    let crew = (first..)
        .zip(models)
        .map(|(first, vae)| {
            let lesson = Lesson::new(options)?;
            let ahead = lesson.takes_crops().then(|| ahead(options, first, count)).flatten();
            Ok(Worker { vae, options, count, ahead, lesson })
        })
        .collect::<Result<Vec<_>>>()?;
    let threads = tch::get_num_threads();
    // As in `trainer::run`: each worker computes alone.
    let alone = if count > 1 { 1 } else { threads };
    tch::set_num_threads(alone);
    let outcome = std::thread::scope(|scope| {
        let crew = Crew::start(scope, crew);
        let clock = Clock::new(options.steps, options.seconds)?;
        let mut done = clock.at(optimiser.steps()) >= options.steps;
        while !done {
            let step = optimiser.steps();
            if step > 0 && step == options.image_steps {
                inflate(parameters);
                optimiser.restart_averages();
            }
            let [loss, ..] = crew.step(step)?;
            let rate = trapezoid_schedule(clock.at(step), options.steps, 100, options.decay_steps);
            let norm = optimiser.step(rate * options.learning_rate);
            progress.step(step + 1, &[("loss", loss), ("norm", norm)]);
            done = clock.at(step + 1) >= options.steps;
            if (step + 1).is_multiple_of(options.save_every) || done {
                optimiser.save(&options.out.join(STATE))?;
                optimiser.swap_averages();
                tch::set_num_threads(threads);
                let psnr = reconstruct(vae, step + 1 < options.image_steps, options)?;
                tch::set_num_threads(alone);
                optimiser.swap_averages();
                progress.note(&format!(
                    "step {}: PSNR {:.2} dB on held-out clips, {:.2} dB after noise of {SHOWN_NOISE} on their latents, {:.2} dB in the \
                     last of {LONG_SECONDS} seconds",
                    step + 1,
                    psnr[0],
                    psnr[1],
                    late(vae, options)
                ));
            }
        }
        Ok(())
    });
    tch::set_num_threads(threads);
    outcome
}

/// Loads a finished `vae/` folder for inference.
///
/// # Errors
/// Those of reading a checkpoint.
pub fn load(folder: &Path, device: Device) -> Result<AutoencoderKLWan> {
    let config = read_config(folder)?;
    let source = Source::frozen(Checkpoint::open(folder, "diffusion_pytorch_model")?);
    let vae = AutoencoderKLWan::new(&source.weights(Kind::Float, device), &config)?;
    source.check_all_used(|_| false)?;
    Ok(vae)
}

fn read_config(folder: &Path) -> Result<AutoencoderKLWanConfig> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Whether a parameter has its place after the latents.
fn is_decoders(name: &str) -> bool {
    name.starts_with("decoder.") || name.starts_with("post_quant_conv.")
}

/// Starts with a narrow posterior: at a standard deviation of 1 the noise drowns faint channels, colour among
/// them, for the first thousands of steps.
fn quiet_posterior(parameters: &Parameters, z_dim: i64) {
    const LOGVAR: f64 = -5.0;
    let _no_grad = tch::no_grad_guard();
    if let Some((_, bias)) = parameters.named().iter().find(|(name, _)| name == "quant_conv.bias") {
        let _ = bias.narrow(0, z_dim, z_dim).fill_(LOGVAR);
    }
}

/// Where single frames end and clips begin: kernels that never saw a history start by ignoring it, pairs of frames
/// by being averaged and repeated, so that a clip is at first treated as the images that it is made of.
fn inflate(parameters: &Parameters) {
    let _no_grad = tch::no_grad_guard();
    for (name, weight) in parameters.named() {
        let shape = weight.size();
        if shape.len() != 5 || shape[2] != 3 {
            continue;
        }
        let _ = weight.narrow(2, 0, 2).zero_();
        if !name.ends_with("time_conv.weight") {
            continue;
        }
        let identity =
            Tensor::eye(shape[1], (Kind::Float, weight.device())).view([shape[1], shape[1], 1, 1]);
        let mut last = weight.select(2, 2);
        if shape[0] == shape[1] {
            let half = &identity * 0.5;
            weight.select(2, 1).copy_(&half);
            last.copy_(&half);
        } else {
            last.copy_(&Tensor::cat(&[&identity, &identity], 0));
        }
    }
}

/// One thread's share of every step.
struct Worker<'a> {
    vae: AutoencoderKLWan,
    options: &'a VaeOptions,
    /// Workers in all: each has its share of every step.
    count: u64,
    /// Where batches are drawn by other threads.
    ahead: Option<Ahead<(Tensor, Tensor)>>,
    lesson: Lesson,
}

/// What is taught, and with what.
enum Lesson {
    /// All of it, on crops.
    Whole,
    /// The decoder alone, half of the time on crops.
    Decoder(Box<Redrawer>),
    /// The encoder alone, on long clips.
    Encoder(Box<Lengthener>),
}

impl Lesson {
    fn new(options: &VaeOptions) -> Result<Self> {
        Ok(match (&options.decoder_of, &options.encoder_of) {
            (Some(folder), _) => Self::Decoder(Box::new(Redrawer::open(folder, options)?)),
            (None, Some(folder)) => {
                let known = load(&folder.join("vae"), options.device)?;
                Self::Encoder(Box::new(Lengthener::new(known, options)))
            }
            (None, None) => Self::Whole,
        })
    }

    fn takes_crops(&self) -> bool {
        !matches!(self, Self::Encoder(_))
    }
}

/// On a GPU, threads that draw batches `first` and following.
fn ahead(options: &VaeOptions, first: u64, count: u64) -> Option<Ahead<(Tensor, Tensor)>> {
    // Several workers would each want every so many-th batch.
    let makers = if count == 1 { makers(options.device) } else { 0 };
    let maker = || {
        let options = options.clone();
        move |number: u64| batch(number, number < options.image_steps, &options)
    };
    (makers > 0).then(|| Ahead::new((0..makers).map(|_| maker()).collect(), first))
}

impl Work for Worker<'_> {
    fn work(&mut self, number: u64) -> Result<Losses> {
        // Batches are counted over all workers, steps are not.
        let images = number < self.options.image_steps * self.count;
        let mut crops = || match &mut self.ahead {
            Some(ahead) => ahead.take(number),
            None => Ok(batch(number, images, self.options)),
        };
        let loss = match &self.lesson {
            Lesson::Decoder(redrawer) => {
                let (latents, video, weights) = redrawer.lesson(number, crops()?)?;
                let decoded = self.vae.decode_unclamped(&latents, &mut FeatureCaches::default());
                reconstruction(&(decoded - video), &weights)
            }
            Lesson::Encoder(lengthener) => lengthener.loss(&self.vae, number),
            Lesson::Whole => {
                let (video, weights) = crops()?;
                loss(&self.vae, (&video, &weights), self.options)
            }
        };
        (&loss / self.count as f64).backward();
        Ok([loss.double_value(&[]), 0.0, 0.0])
    }
}

/// How much more pixels around the object count than others.
const OBJECT_WEIGHT: f32 = 4.0;
/// Within how many pixels of where the object ends pixels count even more, and how much: a few of them make a shape.
const OUTLINE: (f32, f32) = (2.0, 12.0);

/// How much the error of differences between neighbours counts, which blurred edges are.
const EDGE_WEIGHT: f64 = 1.0;

/// The loss for video `[B, 3, F, H, W]` with weights `[B, 1, F, H, W]`.
fn loss(
    vae: &AutoencoderKLWan,
    (video, weights): (&Tensor, &Tensor),
    options: &VaeOptions,
) -> Tensor {
    let DiagonalGaussian { mean, logvar } = vae.encode(video, &mut FeatureCaches::default());
    let std = (&logvar * 0.5).exp();
    let sampled = noised(&(&mean + std * mean.randn_like()), options.latent_noise);
    let decoded = vae.decode_unclamped(&sampled, &mut FeatureCaches::default());
    let kl: Tensor = (mean.square() + logvar.exp() - 1.0 - logvar).mean(Kind::Float) * 0.5;
    reconstruction(&(decoded - video), weights) + kl * options.kl_weight
}

/// Latents `[B, z, T, h, w]` with noise of 0 to `most` of their standard deviation, as much for all of a clip: what shows is then
/// told by large numbers, which a transformer's error does not hide (Yang et al., "Latent Denoising Makes Good
/// Tokenizers", arXiv 2507.15856). The deviation is part of the graph, so that growing as a whole gains nothing.
fn noised(latents: &Tensor, most: f64) -> Tensor {
    if most <= 0.0 {
        return latents.shallow_clone();
    }
    let share = Tensor::rand([latents.size()[0], 1, 1, 1, 1], (Kind::Float, latents.device()));
    latents + latents.randn_like() * share * latents.std(true) * most
}

/// The loss for errors `[B, 3, F, H, W]` with weights `[B, 1, F, H, W]`.
fn reconstruction(difference: &Tensor, weights: &Tensor) -> Tensor {
    let each = difference.abs() + difference.square();
    let error = (each * weights).mean(Kind::Float) / weights.mean(Kind::Float);
    error + edges(difference, weights) * EDGE_WEIGHT
}

/// Weighted mean absolute difference of horizontal and vertical neighbours in the error.
fn edges(difference: &Tensor, weights: &Tensor) -> Tensor {
    let step = |dim: i64| {
        let size = difference.size()[dim as usize] - 1;
        let steps = difference.narrow(dim, 1, size) - difference.narrow(dim, 0, size);
        let weights = weights.narrow(dim, 1, size);
        (steps.abs() * &weights).mean(Kind::Float) / weights.mean(Kind::Float)
    };
    step(3) + step(4)
}

/// One batch `[B, 3, F, H, W]` in [-1, 1] and its weights `[B, 1, F, H, W]`, a pure function of the step: crops of freshly
/// drawn clips.
fn batch(step: u64, images: bool, options: &VaeOptions) -> (Tensor, Tensor) {
    let shapes: &[(i64, i64, i64)] = if images { &IMAGES } else { &CLIPS };
    let (per_unit, frames, size) = shapes[(step % shapes.len() as u64) as usize];
    let clips = (per_unit * options.batch / 8).max(1);
    let first = (options.seed << 32) + step * 64;
    let (videos, weights): (Vec<Tensor>, Vec<Tensor>) =
        (0..clips as u64).map(|clip| crop(first + clip, frames, size, &options.favoured)).unzip();
    (
        Tensor::stack(&videos, 0).to_device(options.device),
        Tensor::stack(&weights, 0).to_device(options.device),
    )
}

/// `[3, F, size, size]` in [-1, 1] and its weights `[1, F, size, size]`: a window of clip `index`, at one of several scales
/// and moments.
fn crop(index: u64, frames: i64, size: i64, favoured: &[&'static str]) -> (Tensor, Tensor) {
    let scene = Scene::favouring(index, Split::Train, favoured);
    let draw = |salt: u64, below: i64| {
        let mixed = (index ^ (salt << 17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 33) % below.max(1) as u64) as i64
    };
    let height = [96, 128, 128, 160][draw(1, 4) as usize].max(size);
    let width = height.max(size) + 16 * draw(2, 3);
    let (video, weights) = weighed(&scene, (width, height), frames, draw(3, 16));
    // Every second one lies as whole frames do on the grid of latents.
    let grid = [1, 16][draw(6, 2) as usize];
    let (top, left) = (draw(4, height - size + 1), draw(5, width - size + 1));
    let cut = |video: &Tensor| {
        video.narrow(2, top / grid * grid, size).narrow(3, left / grid * grid, size)
    };
    (cut(&video), cut(&weights))
}

/// `[3, F, H, W]` in [-1, 1] of frames `first` and following, and how much each pixel counts, `[1, F, H, W]`.
pub(super) fn weighed(
    scene: &Scene,
    (width, height): (i64, i64),
    frames: i64,
    first: i64,
) -> (Tensor, Tensor) {
    let mut weights = vec![1.0; (frames * height * width) as usize];
    for (frame, plane) in (0..).zip(weights.chunks_exact_mut((height * width) as usize)) {
        let seconds = (first + frame) as f64 / FRAME_RATE;
        emphasis::mark(plane, width as usize, scene, seconds, OBJECT_WEIGHT);
        emphasis::mark_outline(plane, width as usize, scene, seconds, OUTLINE);
    }
    let weights = Tensor::from_slice(&weights).view([1, frames, height, width]);
    (render(scene, (width, height), frames, first), weights)
}

/// Frames a second of the clips that models are trained on.
pub const FRAME_RATE: f64 = 16.0;

/// `[3, F, H, W]` in [-1, 1] of frames `first` and following at [`FRAME_RATE`].
pub fn render(scene: &Scene, (width, height): (i64, i64), frames: i64, first: i64) -> Tensor {
    let pixels = scene.render(width as usize, height as usize, frames as usize, first, FRAME_RATE);
    let video = Tensor::from_slice(&pixels).view([frames, height, width, 3]);
    video.permute([3, 0, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0
}

/// Noise on latents, as a share of their standard deviation, after which reconstructions are measured as well.
const SHOWN_NOISE: f64 = 0.2;

/// Reconstructs held-out clips (or their first frames), writes input over output, returns the PSNR in dB, without and with
/// noise on the latents.
fn reconstruct(vae: &AutoencoderKLWan, images: bool, options: &VaeOptions) -> Result<[f64; 2]> {
    let _no_grad = tch::no_grad_guard();
    let frames = if images { 1 } else { 17 };
    let clips: Vec<Tensor> = (0..8)
        .map(|i| render(&Scene::from_index(i, Split::HeldOut), (224, 128), frames, 0))
        .collect();
    let video = Tensor::stack(&clips, 0).to_device(options.device);
    let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
    // The same noise every time: figures compare, and training draws what it would have drawn.
    let noise = torch_noise(0, &latents.size()).to_device(options.device);
    let noise = noise * latents.std(true) * SHOWN_NOISE;
    let [decoded, noised] = [&latents, &(&latents + noise)]
        .map(|latents| vae.decode(latents, &mut FeatureCaches::default()));
    sheet::write(&options.out.join("vae.png"), &[&video, &decoded, &noised], 4)?;
    Ok([decoded, noised].map(|decoded| pixels::psnr(pixels::squared_error(&decoded, &video))))
}

/// Seconds of the clips whose last one is measured.
pub(super) const LONG_SECONDS: i64 = 5;

/// Squared error, as [`pixels::squared_error`] has it, of the last of [`LONG_SECONDS`] of a scene of that width and height after the
/// autoencoder.
pub(super) fn late_error(
    vae: &AutoencoderKLWan,
    scene: &Scene,
    size: (i64, i64),
    device: Device,
) -> f64 {
    let _no_grad = tch::no_grad_guard();
    let frames = LONG_SECONDS * FRAME_RATE as i64 + 1;
    let video = render(scene, size, frames, 0).unsqueeze(0).to_device(device);
    let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
    let decoded = vae.decode(&latents, &mut FeatureCaches::default());
    let last = |video: &Tensor| video.narrow(2, frames - FRAME_RATE as i64, FRAME_RATE as i64);
    pixels::squared_error(&last(&decoded), &last(&video))
}

/// PSNR in dB of the last second of long clips, most of them in a film's grey, which shows least to go by.
fn late(vae: &AutoencoderKLWan, options: &VaeOptions) -> f64 {
    const CLIPS: u64 = 3;
    let scene = |i| Scene::favouring(2 * i + 1, Split::HeldOut, &["1920s film"]);
    let error = |i| late_error(vae, &scene(i), (224, 128), options.device);
    pixels::psnr((0..CLIPS).map(error).sum::<f64>() / CLIPS as f64)
}

/// One mean and one standard deviation for all channels: channels keep their relative energy, so that
/// texture nobody can predict stays small in the transformer's loss.
fn latent_statistics(vae: &AutoencoderKLWan, device: Device) -> (f64, f64) {
    let _no_grad = tch::no_grad_guard();
    let clips: Vec<Tensor> =
        (0..64).map(|i| render(&Scene::from_index(i, Split::Train), (128, 128), 9, 0)).collect();
    let video = Tensor::stack(&clips, 0).to_device(device);
    let latents = vae.encode(&video, &mut FeatureCaches::default()).mean;
    (latents.mean(Kind::Float).double_value(&[]), latents.std(true).double_value(&[]))
}

fn write_folder(
    folder: &Path,
    config: &AutoencoderKLWanConfig,
    parameters: &Parameters,
) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut json = serde_json::to_value(config)?;
    json["_class_name"] = "AutoencoderKLWan".into();
    let path = folder.join("config.json");
    std::fs::write(&path, serde_json::to_string_pretty(&json)? + "\n")
        .with_context(|| path.display().to_string())?;
    let named: Vec<(String, Tensor)> = parameters
        .named()
        .into_iter()
        .map(|(name, t)| (name, t.detach().to_kind(Kind::Half)))
        .collect();
    let tensors = named.iter().map(|(name, t)| (name.clone(), t));
    Ok(safetensors::write(&folder.join("diffusion_pytorch_model.safetensors"), tensors)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share of the deviation, so that larger latents gain nothing.
    #[test]
    fn noise_on_latents_grows_with_them() {
        let latents = torch_noise(1, &[6, 4, 2, 3, 3]);
        let by = |latents: &Tensor, most| {
            tch::manual_seed(5);
            noised(latents, most) - latents
        };
        assert_eq!(by(&latents, 0.0).abs().max().double_value(&[]), 0.0);
        let (once, thrice) = (by(&latents, 0.5), by(&(&latents * 3.0), 0.5));
        assert!((&once * 3.0 - thrice).abs().max().double_value(&[]) < 1e-4);
        let each = once.std_dim(vec![1i64, 2, 3, 4], true, false);
        let (least, most) = (each.min().double_value(&[]), each.max().double_value(&[]));
        assert!(most < 0.6 && most > 2.0 * least, "{least} to {most}");
    }
}
