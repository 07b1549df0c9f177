// SPDX-License-Identifier: MPL-2.0
//! Joint training of the transformer and its text encoder by flow matching (Lipman et al., arXiv 2210.02747)
//! with a noise level of its own for each latent frame (diffusion forcing, Chen et al., arXiv 2407.01392), so
//! that known frames, streaming and restyling are all in distribution, under full and block-causal attention.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Tensor};

use super::ahead::{Ahead, makers};
use super::captions::{build_tokenizer_json, canonical, tokenizer_config_json};
use super::crew::worker_count;
use super::optim::Hyper;
use super::sampler::{Sampler, SamplerOptions};
use super::trainer::{self, Batches, Blueprint, Plan, Sources};
use super::world::{Scene, Split};
use super::{folder, generate, sheet, vae};
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::WanTransformer3DModelConfig;
use crate::models::umt5::Umt5Config;
use crate::pipeline::FolderInfo;

/// Longest prompt in tokens.
pub const MAX_SEQUENCE_LENGTH: i64 = 64;

/// Options of `dit-train dit`.
#[derive(Debug, Clone)]
pub struct DitOptions {
    /// A finished `vae/` folder.
    pub vae: PathBuf,
    /// Folder for the state, the sheets and the finished pipeline folder `model/`.
    pub out: PathBuf,
    /// A `dit-state.safetensors` of another run, or a pipeline folder, from whose weights to start.
    pub from: Option<PathBuf>,
    /// Teaches the attributes half-way in a run that starts from a pipeline folder as well, which holds no head for it.
    pub fresh_head: bool,
    pub num_attention_heads: i64,
    pub num_layers: i64,
    pub steps: u64,
    /// Ends after this time, however many steps that are.
    pub seconds: Option<f64>,
    /// Steps on single images before clips come in.
    pub image_steps: u64,
    /// Steps over which stills begin with near objects in the plain look and become those of the world; then the same for
    /// clips.
    pub simple_steps: u64,
    /// Share of steps on clips after that, 0 to 1.
    pub clip_share: f64,
    /// Words of the world that every second clip shows one of.
    pub favoured: Vec<&'static str>,
    /// A pipeline folder, whose model shows what is not to change: all but objects that leave and come in again, and films after
    /// their first second. Its initial guidance is learnt.
    pub hold: Option<PathBuf>,
    /// Share of the batches that show footage of no world, in a style or not, to be restyled, 0 to 1.
    pub collage_share: f64,
    /// Rank of low-rank changes of the transformer that are trained instead of all weights, for restyling alone; the folder to
    /// start from is then written with them in it.
    pub restyle_lora: Option<i64>,
    /// Guidance that the model learns to do by itself; 1 for none.
    pub guidance_scale: f64,
    pub learning_rate: f64,
    /// Steps at the end over which the learning rate goes down to nothing.
    pub decay_steps: u64,
    /// Tokens of video in a batch.
    pub batch_tokens: i64,
    /// Whether attention is computed in bfloat16.
    pub half_attention: bool,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    pub workers: usize,
    pub seed: u64,
    pub device: Device,
    pub save_every: u64,
    /// Whether a contact sheet is drawn with each save.
    pub sheets: bool,
}

/// The transformer of the default model, which has 6 heads and 6 layers, or one like it.
pub fn transformer_config(
    in_channels: i64,
    num_attention_heads: i64,
    num_layers: i64,
) -> WanTransformer3DModelConfig {
    let attention_head_dim = 64;
    WanTransformer3DModelConfig {
        patch_size: [1, 2, 2],
        num_attention_heads,
        attention_head_dim,
        in_channels,
        out_channels: Some(in_channels),
        text_dim: 128,
        freq_dim: 128,
        ffn_dim: 4 * attention_head_dim * num_attention_heads,
        num_layers,
        ..WanTransformer3DModelConfig::default()
    }
}

/// The text encoder of the default model.
pub fn text_encoder_config(vocab_size: i64) -> Umt5Config {
    Umt5Config {
        vocab_size,
        d_model: 128,
        d_kv: 32,
        d_ff: 256,
        num_layers: 2,
        num_heads: 4,
        ..Umt5Config::default()
    }
}

/// Trains until `steps`, resuming whatever the folder holds, then writes the pipeline folder `model/`.
///
/// # Errors
/// When a folder is missing, cannot be written or holds the state of another model.
pub fn train(options: &DitOptions) -> Result<()> {
    let share = options.clip_share;
    ensure!((0.0..=1.0).contains(&share), "--clip-share: found {share}, expected 0 to 1");
    let share = options.collage_share;
    ensure!((0.0..=1.0).contains(&share), "--collage-share: found {share}, expected 0 to 1");
    ensure!(
        share == 0.0
            || (options.from.as_ref().is_some_and(|from| from.is_dir()) && !options.fresh_head),
        "--collage-share: found {share}, expected 0 where attributes are taught half-way, of which collages have none; start from a \
         pipeline folder with --from"
    );
    let (heads, layers) = (options.num_attention_heads, options.num_layers);
    ensure!(heads > 0, "--num-attention-heads: found {heads}, expected at least 1");
    ensure!(layers > 0, "--num-layers: found {layers}, expected at least 1");
    let scale = options.guidance_scale;
    ensure!(
        scale.is_finite() && scale >= 1.0,
        "--guidance-scale: found {scale}, expected at least 1"
    );
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    tch::manual_seed(options.seed as i64);
    let tokenizer = options.out.join("tokenizer");
    let vocab_size = write_tokenizer(&tokenizer)?.vocab_size() as i64;
    let channels = vae::load(&options.vae, options.device)?.config().z_dim;
    let blueprint = Blueprint {
        teacher: teacher(options)?,
        transformer: transformer_config(channels, options.num_attention_heads, options.num_layers),
        text_encoder: text_encoder_config(vocab_size),
        tokenizer,
        max_sequence_length: MAX_SEQUENCE_LENGTH,
        predicts_sample: true,
        guidance_scale: options.guidance_scale,
        half_attention: options.half_attention,
        device: options.device,
    };
    let (folder, state) = match options.from.clone() {
        Some(from) if from.is_dir() => (Some(from), None),
        state => (None, state),
    };
    let mut sources = match (&folder, options.restyle_lora) {
        (Some(from), Some(rank)) => Sources::adapting(from, rank)?,
        (Some(from), None) => Sources::starting_from(from)?,
        (None, None) => Sources::fresh(),
        (None, Some(_)) => bail!(
            "--restyle-lora: found no pipeline folder to start from, expected one with --from"
        ),
    };
    if options.fresh_head {
        sources.attribute_head = Sources::fresh().attribute_head;
    }
    let plan = plan(options, state);
    let count = worker_count(options.workers, options.device);
    let save = |step| {
        match (&folder, options.restyle_lora) {
            (Some(from), Some(_)) => folder::write_restyling(options, from, &sources)?,
            _ => folder::write(options, &blueprint, &sources)?,
        }
        if options.sheets { sheet(options, step) } else { Ok(()) }
    };
    let tokenizer = &blueprint.tokenizer;
    match makers(options.device) {
        0 => {
            let batches =
                |worker, step| sampler(options, tokenizer, (worker, count), (count, step));
            trainer::run(&plan, (&sources, &blueprint), count, batches, save)
        }
        makers => {
            let batches = |worker, step: u64| {
                let lanes = (0..makers)
                    .map(|maker| {
                        let place = (worker * makers + maker, count * makers);
                        let mut sampler = sampler(options, tokenizer, place, (count, step))?;
                        Ok(move |number| sampler.batch(number))
                    })
                    .collect::<Result<Vec<_>>>()?;
                Ok(Ahead::new(lanes, step))
            };
            ensure!(count == 1, "--workers: found {count}, expected 1 on a GPU");
            trainer::run(&plan, (&sources, &blueprint), count, batches, save)
        }
    }
}

/// The folder that shows what is not to change, and the guidance of what nothing precedes there.
fn teacher(options: &DitOptions) -> Result<Option<(PathBuf, f64)>> {
    let Some(folder) = &options.hold else { return Ok(None) };
    let FolderInfo { native, scheduler, expand_timesteps, .. } = FolderInfo::open(folder)?;
    ensure!(
        scheduler.predicts_sample() && expand_timesteps,
        "--hold {}: found a transformer that predicts the flow or has one level for all frames, expected one like the default \
         model's (prediction_type \"sample\", expand_timesteps)",
        folder.display()
    );
    let scale = native.initial_guidance_scale.unwrap_or(native.guidance_scale);
    Ok(Some((folder.clone(), scale)))
}

fn plan(options: &DitOptions, from: Option<PathBuf>) -> Plan {
    Plan {
        name: "dit",
        steps: options.steps,
        seconds: options.seconds,
        learning_rate: options.learning_rate,
        warmup_steps: 300,
        decay_steps: options.decay_steps,
        save_every: options.save_every,
        // Gradients of a few clips each are noisy: their squares are averaged over many of them.
        hyper: Hyper { betas: (0.9, 0.99), ema_decay: 0.999, ..Hyper::default() },
        state: options.out.join("dit-state.safetensors"),
        from,
    }
}

/// The number `place.0` of `place.1` samplers, for `workers` workers, that begins at `step`.
fn sampler(
    options: &DitOptions,
    tokenizer: &Path,
    place: (usize, usize),
    (workers, step): (usize, u64),
) -> Result<Sampler> {
    let on_gpu = options.device != Device::Cpu;
    let sampler = SamplerOptions {
        // Samplers draw different clips.
        seed: options.seed + 1000 * place.0 as u64,
        image_steps: options.image_steps * workers as u64,
        simple_steps: options.simple_steps * workers as u64,
        clip_share: options.clip_share,
        favoured: options.favoured.clone(),
        collage_share: options.collage_share,
        holds: options.hold.is_some(),
        batch_tokens: options.batch_tokens / workers as i64,
        max_sequence_length: MAX_SEQUENCE_LENGTH,
        device: options.device,
        // A GPU is hardly filled by one clip.
        at_once: if on_gpu { 8 } else { 1 },
        makers: place.1 / workers,
    };
    let tokenizer = PromptTokenizer::from_folder(tokenizer)?;
    Ok(Sampler::new(sampler, vae::load(&options.vae, options.device)?, tokenizer, step))
}

fn write_tokenizer(path: &Path) -> Result<PromptTokenizer> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    let json = serde_json::to_string(&build_tokenizer_json())?;
    std::fs::write(path.join("tokenizer.json"), json)?;
    std::fs::write(
        path.join("tokenizer_config.json"),
        serde_json::to_string_pretty(&tokenizer_config_json())? + "\n",
    )?;
    Ok(PromptTokenizer::from_folder(path)?)
}

/// Samples held-out prompts with the engine, as shipped, and writes them: images in the image phase, clips after it.
fn sheet(options: &DitOptions, step: u64) -> Result<()> {
    let images = step <= options.image_steps;
    let pipeline = generate::load(&options.out.join("model"), options.device)?;
    let videos = (0..12)
        .map(|i| {
            let prompt = canonical(&Scene::from_index(i, Split::HeldOut).attributes);
            generate::to_tensor(&generate::frames(
                &pipeline,
                &prompt,
                i,
                if images { 1 } else { 17 },
            )?)
        })
        .collect::<Result<Vec<_>>>()?;
    let path = options.out.join(format!("dit-{step:06}.png"));
    let videos = Tensor::stack(&videos, 0);
    if images {
        // Twelve stills: three rows of four.
        let rows: Vec<Tensor> =
            videos.chunk(3, 0).iter().map(|row| row.squeeze_dim(2).transpose(0, 1)).collect();
        return sheet::write(&path, &[&Tensor::stack(&rows, 0)], 4);
    }
    sheet::write(&path, &[&videos], 5)
}
