// SPDX-License-Identifier: MPL-2.0
//! Teaches a loaded folder a user's own clips: all of it, or low-rank changes (LoRA) of attention and feed-forward only.

mod clips;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

use super::bank::Shape;
use super::batch::{Batch, Captions, Draws, NEXT, Task};
use super::crew::worker_count;
use super::folder::{copy_folder, trained_weights};
use super::generate::{self, Sampling};
use super::optim::Hyper;
use super::sampler::towards;
use super::sheet;
use super::trainer::{self, Batches, Blueprint, Plan, Sources};
use crate::frames::file;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::AttentionPattern;
use crate::pipeline::{FolderInfo, Pipeline};
use crate::torch::Precision;
use crate::weights::lora::Adapters;
use crate::weights::{Checkpoint, Parameters, Source, safetensors};
use clips::{Buckets, Entry};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Transformer and text encoder; the result is a whole folder.
    Full,
    /// Low-rank changes of the transformer's attention and feed-forward; the result is one small file.
    Lora { rank: i64 },
}

/// Options of `dit-train finetune`.
#[derive(Debug, Clone)]
pub struct FinetuneOptions {
    /// The folder to begin with.
    pub model: PathBuf,
    /// Clips with captions.
    pub data: PathBuf,
    /// Folder for the state, the sheets, and `model/` or `lora.safetensors`.
    pub out: PathBuf,
    pub method: Method,
    pub steps: u64,
    pub learning_rate: f64,
    /// Tokens of video in a batch.
    pub batch_tokens: i64,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    pub workers: usize,
    pub save_every: u64,
    /// Prompts of the contact sheets; the first captions if there are none.
    pub samples: Vec<String>,
    pub seed: u64,
    pub device: Device,
}

const STATE: &str = "finetune-state.safetensors";
/// What a LoRA is written to.
pub const LORA: &str = "lora.safetensors";
/// Share of the captions that are left out, which guidance needs.
const WITHOUT_CAPTION: f64 = 0.1;
/// Share of clips trained with block-causal attention, where the model knows it.
const CAUSAL: f64 = 0.25;
/// Share of the steps on first pictures alone, where a model makes them alone: it is there that a look is decided, and a step
/// holds many more of them than of clips.
const STILLS: f64 = 0.5;
/// Share of the windows, of clips that have one, that begin from the state before.
const FROM_BEFORE: f64 = 0.5;
/// Most rows of a contact sheet.
const SAMPLES: usize = 6;

/// Trains until `steps`, resuming whatever the folder holds, then writes `model/` or `lora.safetensors`.
///
/// # Errors
/// A model or data folder that cannot be used, a state of another training, no readable clip.
pub fn train(options: &FinetuneOptions) -> Result<()> {
    file::init()?;
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    tch::manual_seed(options.seed as i64);
    let info = FolderInfo::open(&options.model)?;
    check(&info)?;
    let listing = clips::list(&options.data)?;
    let pipeline = Pipeline::load(&info, options.device, Precision::F32, &mut |_, _| true)?;
    let samples = samples(options, &listing);
    let clips = clips::encode(listing, &pipeline)?;
    let before = sample(options, &pipeline, &samples)?;
    drop(pipeline);
    let blueprint = Blueprint {
        teacher: None,
        transformer: info.transformer.clone(),
        text_encoder: info.text_encoder.clone(),
        tokenizer: info.folder.join("tokenizer"),
        max_sequence_length: info.native.max_sequence_length,
        predicts_sample: info.scheduler.predicts_sample(),
        guidance_scale: info.native.learnt_guidance_scale,
        half_attention: false,
        device: options.device,
    };
    let sources = sources(options, &info)?;
    let plan = Plan {
        name: "finetune",
        steps: options.steps,
        seconds: None,
        learning_rate: options.learning_rate,
        warmup_steps: 20.min(options.steps / 10),
        decay_steps: options.steps / 4,
        save_every: options.save_every,
        hyper: Hyper { ema_decay: 0.98, ..Hyper::default() },
        state: options.out.join(STATE),
        from: None,
    };
    let count = worker_count(options.workers, options.device);
    let batches =
        |worker: usize, _: u64| ClipSampler::new(options, &info, &clips.buckets, worker, count);
    trainer::run(&plan, (&sources, &blueprint), count, batches, |step| {
        let finished = write(options, &info, &sources)?;
        let pipeline = Pipeline::load(&finished, options.device, Precision::F32, &mut |_, _| true)?;
        let after = sample(options, &pipeline, &samples)?;
        let path = options.out.join(format!("finetune-{step:06}.png"));
        sheet::write_small(&path, &[&before, &after], 5)
    })?;
    eprintln!(
        "{}: trained on {} clip(s), {} skipped",
        options.out.display(),
        clips.read,
        clips.skipped
    );
    Ok(())
}

/// Refuses folders that need more than text and noise to be trained.
fn check(info: &FolderInfo) -> Result<()> {
    let folder = info.folder.display();
    if info.concatenates_condition()
        || info.controls_by_branch()
        || info.transformer.image_dim.is_some()
    {
        bail!(
            "{folder}: found a model with image or control conditions, expected a text-to-video model"
        );
    }
    if info.transformer_2.is_some() {
        bail!("{folder}: found two transformers, expected a folder with one");
    }
    Ok(())
}

/// Where parameters begin, and which of them are trained.
fn sources(options: &FinetuneOptions, info: &FolderInfo) -> Result<Sources> {
    let transformer =
        Checkpoint::open(&info.folder.join("transformer"), "diffusion_pytorch_model")?;
    let text_encoder = Checkpoint::open(&info.folder.join("text_encoder"), "model")?;
    Ok(match options.method {
        Method::Full => Sources {
            transformer: Source::Trainable(Parameters::starting_from(transformer)),
            text_encoder: Source::Trainable(Parameters::starting_from(text_encoder)),
            attribute_head: None,
        },
        Method::Lora { rank } => {
            ensure!(rank > 0, "--rank: found {rank}, expected at least 1");
            let adapters = Adapters::new(rank, rank as f64, is_adapted, Parameters::default());
            Sources {
                transformer: Source::frozen(transformer).adapted(adapters),
                text_encoder: Source::frozen(text_encoder),
                attribute_head: None,
            }
        }
    })
}

/// Whether a layer of the transformer belongs to attention or feed-forward of a block.
fn is_adapted(layer: &str) -> bool {
    layer.starts_with("blocks.")
        && (layer.contains(".attn1.to_")
            || layer.contains(".attn2.to_")
            || layer.contains(".ffn.net."))
}

/// Writes what is trained and says how to open it.
fn write(options: &FinetuneOptions, info: &FolderInfo, sources: &Sources) -> Result<FolderInfo> {
    match options.method {
        Method::Full => {
            let folder = options.out.join("model");
            copy_folder(&info.folder, &folder)?;
            trained_weights(&folder, sources)?;
            Ok(FolderInfo::open(&folder)?)
        }
        Method::Lora { .. } => {
            let path = options.out.join(LORA);
            let tensors: Vec<(String, Tensor)> = sources
                .named()
                .into_iter()
                .map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Float)))
                .collect();
            safetensors::write(&path, tensors.iter().map(|(name, t)| (name.clone(), t)))?;
            Ok(info.clone().with_lora(&path, 1.0)?)
        }
    }
}

/// The prompts of the contact sheets.
fn samples(options: &FinetuneOptions, listing: &clips::Listing) -> Vec<String> {
    if !options.samples.is_empty() {
        return options.samples.clone();
    }
    let mut captions: Vec<String> = Vec::new();
    for clip in &listing.clips {
        if captions.len() < SAMPLES && !captions.contains(&clip.caption) {
            captions.push(clip.caption.clone());
        }
    }
    captions
}

/// A clip for each prompt, with the model's own steps and guidance: `[B, 3, F, H, W]` in [-1, 1].
fn sample(options: &FinetuneOptions, pipeline: &Pipeline, prompts: &[String]) -> Result<Tensor> {
    let frames = pipeline.info().native.num_frames as usize;
    let videos = (0..)
        .zip(prompts)
        .map(|(at, prompt)| {
            let seed = options.seed + at;
            let made = generate::sampled(pipeline, prompt, seed, frames, Sampling::default())?;
            generate::to_tensor(&made)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::stack(&videos, 0))
}

/// Draws batches out of a user's clips, one worker's share of them.
struct ClipSampler {
    seed: u64,
    batch_tokens: i64,
    tokenizer: PromptTokenizer,
    max_sequence_length: i64,
    device: Device,
    shift: f64,
    /// Whether latent frames may have noise levels of their own.
    each_frame: bool,
    /// Latent frames of a block, for models that know block-causal attention.
    causal_block: Option<i64>,
    window: i64,
    token_size: i64,
    buckets: Vec<(Shape, Vec<Entry>)>,
    pieces: usize,
}

impl ClipSampler {
    fn new(
        options: &FinetuneOptions,
        info: &FolderInfo,
        buckets: &Buckets,
        worker: usize,
        workers: usize,
    ) -> Result<Self> {
        let shared = |entries: &Vec<Entry>| {
            let share = |e: &Entry| Entry {
                latents: e.latents.shallow_clone(),
                caption: e.caption.clone(),
                before: e.before.as_ref().map(Tensor::shallow_clone),
            };
            entries.iter().map(share).collect::<Vec<_>>()
        };
        Ok(Self {
            seed: options.seed + 1000 * worker as u64,
            batch_tokens: options.batch_tokens / workers as i64,
            tokenizer: PromptTokenizer::from_folder(&info.folder.join("tokenizer"))?,
            max_sequence_length: info.native.max_sequence_length,
            device: options.device,
            shift: info.scheduler.shift(),
            each_frame: info.expand_timesteps,
            causal_block: info.native.causal.then_some(info.native.block_latent_frames),
            window: info.window_latent_frames(),
            token_size: info.size_multiple(),
            buckets: buckets.iter().map(|(shape, entries)| (*shape, shared(entries))).collect(),
            pieces: buckets.values().map(Vec::len).sum(),
        })
    }

    /// The bucket that a piece drawn from all of them is in.
    fn bucket(&self, draw: u64) -> &(Shape, Vec<Entry>) {
        let mut at = (draw % self.pieces as u64) as usize;
        for bucket in &self.buckets {
            if at < bucket.1.len() {
                return bucket;
            }
            at -= bucket.1.len();
        }
        &self.buckets[0]
    }
}

impl Batches for ClipSampler {
    fn batch(&mut self, number: u64) -> Result<Batch> {
        let mut draws = Draws::new(self.seed, number).with_shift(self.shift);
        let (shape, entries) = self.bucket(draws.next());
        let length = entries[0].latents.size()[1];
        let task = match self.causal_block {
            Some(_) if self.each_frame && draws.unit() < STILLS => Task::Stills,
            // Without levels of their own, known frames cannot be told.
            Some(block) if self.each_frame && length > block && draws.unit() < NEXT => {
                Task::Next { block }
            }
            _ => Task::Window,
        };
        let frames = task.frames(&mut draws, length.min(self.window));
        let tokens = (shape.width / self.token_size)
            * (shape.height / self.token_size)
            * task.frames_in(frames);
        let size = (self.batch_tokens / tokens.max(1)).max(1);
        let (mut latents, mut captions, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut shown, mut shown_otherwise) = (Vec::new(), Vec::new());
        for _ in 0..size {
            let entry = &entries[(draws.next() % entries.len() as u64) as usize];
            let last = (length - frames) as u64;
            let at_start = last == 0 || task == Task::Stills || draws.unit() < 0.5;
            let start = if at_start { 0 } else { 1 + draws.next() % last };
            let truth = entry.latents.narrow(1, start as i64, frames);
            let named = draws.unit() >= WITHOUT_CAPTION;
            captions.push(if named { entry.caption.clone() } else { String::new() });
            let own = if self.each_frame {
                task.levels(&mut draws, frames as usize, start > 0)
            } else {
                vec![draws.level(); frames as usize]
            };
            let before = entry.before.as_ref().filter(|_| named && draws.unit() < FROM_BEFORE);
            shown_otherwise.push(before.is_some());
            shown.push(match before.map(|before| before.narrow(1, start as i64, frames)) {
                Some(before) => towards(&truth, &before, &own, &mut draws),
                None => truth.shallow_clone(),
            });
            latents.push(truth);
            levels.extend(own);
        }
        let pattern = match (task, self.causal_block) {
            (Task::Window, Some(block)) if frames > 1 && draws.unit() < CAUSAL => {
                AttentionPattern::BlockCausal { first_block: block, block_latent_frames: block }
            }
            (Task::Window, _) => AttentionPattern::Full,
            _ => task.pattern(&mut draws),
        };
        let latents = Tensor::stack(&latents, 0);
        let captions = Captions::new(&self.tokenizer, &captions, self.max_sequence_length)?;
        Ok(Batch {
            held: None,
            weights: latents.narrow(1, 0, 1).ones_like(),
            shown: Tensor::stack(&shown, 0),
            guided: Batch::guided(&captions, &shown_otherwise).to_device(self.device),
            latents,
            levels: Tensor::from_slice(&levels).view([size, frames]).to_device(self.device),
            captions: captions.to_device(self.device),
            truth: None,
            pattern,
        })
    }
}
