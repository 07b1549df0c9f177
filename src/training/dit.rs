// SPDX-License-Identifier: MPL-2.0
//! Joint training of the transformer and its text encoder by flow matching (Lipman et al., arXiv 2210.02747)
//! with a noise level of its own for each latent frame (diffusion forcing, Chen et al., arXiv 2407.01392), so
//! that known frames, streaming and restyling are all in distribution, under full and block-causal attention.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::bank::{Bucket, Shape};
use super::captions::{build_tokenizer_json, canonical, caption, tokenizer_config_json};
use super::optim::{AdamW, Hyper, cosine_schedule};
use super::progress::Progress;
use super::world::{Scene, Split};
use super::{folder, generate, sheet, vae};
use crate::models::autoencoder_kl_wan::AutoencoderKLWan;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::{
    AttentionPattern, Timestep, TransformerInput, WanTransformer3DModel,
    WanTransformer3DModelConfig,
};
use crate::models::umt5::{UMT5EncoderModel, Umt5Config};
use crate::nn::attention::KvAccess;
use crate::weights::{Parameters, Source};

/// Longest prompt in tokens.
pub const MAX_SEQUENCE_LENGTH: i64 = 64;
/// Latent frames of one block under block-causal attention.
pub const BLOCK_LATENT_FRAMES: i64 = 1;

/// Options of `dit-train dit`.
#[derive(Debug, Clone)]
pub struct DitOptions {
    /// A finished `vae/` folder.
    pub vae: PathBuf,
    /// Folder for the state, the sheets and the finished pipeline folder `model/`.
    pub out: PathBuf,
    pub steps: u64,
    /// Steps on single images before clips come in.
    pub image_steps: u64,
    pub learning_rate: f64,
    /// Tokens of video in a batch.
    pub batch_tokens: i64,
    pub seed: u64,
    pub device: Device,
    pub save_every: u64,
}

/// The transformer of the default model.
pub fn transformer_config(in_channels: i64) -> WanTransformer3DModelConfig {
    WanTransformer3DModelConfig {
        patch_size: [1, 2, 2],
        num_attention_heads: 4,
        attention_head_dim: 48,
        in_channels,
        out_channels: Some(in_channels),
        text_dim: 128,
        freq_dim: 128,
        ffn_dim: 768,
        num_layers: 6,
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

/// The parts that are trained together.
pub struct Models {
    pub transformer: WanTransformer3DModel,
    pub text_encoder: UMT5EncoderModel,
    pub tokenizer: PromptTokenizer,
    pub transformer_config: WanTransformer3DModelConfig,
    pub text_encoder_config: Umt5Config,
    device: Device,
}

impl Models {
    fn new(
        transformer: &Source,
        text: &Source,
        tokenizer: PromptTokenizer,
        channels: i64,
        device: Device,
    ) -> Result<Self> {
        let transformer_config = transformer_config(channels);
        let text_encoder_config = text_encoder_config(tokenizer.vocab_size() as i64);
        Ok(Self {
            transformer: WanTransformer3DModel::new(
                &transformer.weights(Kind::Float, device),
                &transformer_config,
            )?,
            text_encoder: UMT5EncoderModel::new(
                &text.weights(Kind::Float, device),
                &text_encoder_config,
            )?,
            tokenizer,
            transformer_config,
            text_encoder_config,
            device,
        })
    }

    /// Prompts to embeddings `[B, MAX_SEQUENCE_LENGTH, text_dim]`, zero after the last token.
    fn embed(&self, prompts: &[String]) -> Result<Tensor> {
        let longest = MAX_SEQUENCE_LENGTH as usize;
        let tokens: Vec<_> = prompts
            .iter()
            .map(|prompt| self.tokenizer.encode(prompt, longest))
            .collect::<Result<_, _>>()?;
        let length = tokens.iter().map(|t| t.len()).max().unwrap_or(1);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for tokens in &tokens {
            let (row, row_mask) = tokens.padded(length);
            ids.extend(row);
            mask.extend(row_mask);
        }
        let shape = [prompts.len() as i64, length as i64];
        let ids = Tensor::from_slice(&ids).view(shape).to_device(self.device);
        let mask = Tensor::from_slice(&mask).view(shape).to_device(self.device);
        let embeds =
            self.text_encoder.forward(&ids, Some(&mask)) * mask.unsqueeze(-1).to_kind(Kind::Float);
        Ok(embeds.constant_pad_nd([0, 0, 0, MAX_SEQUENCE_LENGTH - length as i64]))
    }

    /// The flow for noisy latents `[B, C, T, h, w]` at levels `[B, T]`.
    fn flow(
        &self,
        latents: &Tensor,
        levels: &Tensor,
        embeds: &Tensor,
        pattern: AttentionPattern,
    ) -> Tensor {
        let s = latents.size();
        let context = self.transformer.context(embeds, None);
        let layout = self.transformer.layout([s[2], s[3], s[4]], 0, pattern);
        self.transformer.forward(TransformerInput {
            hidden_states: latents,
            timestep: Timestep::PerFrame(&(levels * 1000.0)),
            context: &context,
            layout: &layout,
            kv: KvAccess::None,
        })
    }
}

/// A stream of random numbers that is a pure function of seed and step.
struct Draws(u64);

impl Draws {
    fn new(seed: u64, step: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step.wrapping_mul(0xd134_2543_de82_ef95))
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A noise level: logit-normal (Esser et al., arXiv 2403.03206), shifted towards noise.
    fn level(&mut self) -> f32 {
        const SHIFT: f64 = 2.0;
        let radius = (-2.0 * self.unit().max(1e-12).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * self.unit()).cos();
        let s = 1.0 / (1.0 + (-1.1 * normal).exp());
        (SHIFT * s / (1.0 + (SHIFT - 1.0) * s)) as f32
    }

    /// Levels of the latent frames of one clip and which of them are known (level 0).
    fn levels(&mut self, frames: usize) -> Vec<f32> {
        let common = self.level();
        match self.unit() {
            _ if frames == 1 => vec![common],
            u if u < 0.4 => vec![common; frames],
            u if u < 0.65 => (0..frames).map(|_| self.level()).collect(),
            // A known head, as every window of an endless video has it; now and then a known tail as well.
            u => {
                let known = 1 + (self.next() % (frames as u64 / 2)) as usize;
                let tail = usize::from(u > 0.93);
                (0..frames)
                    .map(|t| if t < known || t >= frames - tail { 0.0 } else { common })
                    .collect()
            }
        }
    }
}

struct Batch {
    latents: Tensor,
    levels: Tensor,
    embeds: Tensor,
    pattern: AttentionPattern,
}

struct Trainer<'a> {
    options: &'a DitOptions,
    models: Models,
    vae: AutoencoderKLWan,
    images: Vec<Bucket>,
    clips: Vec<Bucket>,
}

/// Trains until `steps`, resuming whatever the folder holds, then writes the pipeline folder `model/`.
///
/// # Errors
/// When a folder is missing, cannot be written or holds the state of another model.
pub fn train(options: &DitOptions) -> Result<()> {
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    tch::manual_seed(options.seed as i64);
    let tokenizer = write_tokenizer(&options.out.join("tokenizer"))?;
    let vae = vae::load(&options.vae, options.device)?;
    let (source, text) =
        (Source::Trainable(Parameters::default()), Source::Trainable(Parameters::default()));
    let models = Models::new(&source, &text, tokenizer, vae.config().z_dim, options.device)?;
    let (Source::Trainable(dit), Source::Trainable(umt5)) = (&source, &text) else {
        unreachable!("made trainable above")
    };
    let prefixed = |prefix: &str, p: &Parameters| {
        p.named().into_iter().map(|(name, t)| (format!("{prefix}.{name}"), t)).collect::<Vec<_>>()
    };
    let mut parameters = prefixed("transformer", dit);
    parameters.extend(prefixed("text_encoder", umt5));
    let mut optimiser = AdamW::new(parameters, Hyper { ema_decay: 0.999, ..Hyper::default() });
    let state = options.out.join("dit-state.safetensors");
    if state.exists() {
        optimiser.resume(&state)?;
    }
    let mut trainer = Trainer::new(options, models, vae, optimiser.steps());
    let progress =
        Progress::new("dit", options.steps, optimiser.steps(), optimiser.parameter_count());
    let mut average = f64::NAN;
    while optimiser.steps() < options.steps {
        let step = optimiser.steps();
        let batch = trainer.batch(step)?;
        let loss = trainer.loss(&batch);
        let rate = cosine_schedule(step, options.steps, 200, options.learning_rate, 0.05);
        let norm = optimiser.step(&loss, rate);
        let value = loss.double_value(&[]);
        average = if average.is_nan() { value } else { 0.99 * average + 0.01 * value };
        progress.step(step + 1, &[("loss", average), ("norm", norm)]);
        if (step + 1).is_multiple_of(options.save_every) || step + 1 == options.steps {
            optimiser.save(&state)?;
            optimiser.swap_averages();
            folder::write(options, &trainer.models, dit, umt5)?;
            sheet(options, step + 1)?;
            optimiser.swap_averages();
            progress
                .note(&format!("step {}: loss {average:.4}, wrote model/ and a sheet", step + 1));
        }
    }
    Ok(())
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

impl<'a> Trainer<'a> {
    fn new(options: &'a DitOptions, models: Models, vae: AutoencoderKLWan, step: u64) -> Self {
        let bucket = |width, height, frames, capacity| {
            // Resumed runs go on to clips they have not seen.
            let first = (options.seed << 36)
                + step * 64
                + (frames as u64) * 7_000_003
                + (width as u64) * 1009;
            Bucket::new(Shape { width, height, frames }, capacity, first)
        };
        let images = vec![
            bucket(224, 128, 1, 20_000),
            bucket(128, 128, 1, 10_000),
            bucket(128, 224, 1, 8_000),
        ];
        let clips = vec![
            bucket(224, 128, 17, 5_000),
            bucket(128, 128, 17, 3_000),
            bucket(128, 224, 17, 2_000),
        ];
        Self { options, models, vae, images, clips }
    }

    fn batch(&mut self, step: u64) -> Result<Batch> {
        let mut draws = Draws::new(self.options.seed, step);
        let clip = step >= self.options.image_steps && draws.unit() < 0.8;
        let at = match draws.unit() {
            u if u < 0.6 => 0,
            u if u < 0.8 => 1,
            _ => 2,
        };
        let bucket = if clip { &mut self.clips[at] } else { &mut self.images[at] };
        let Shape { width, height, frames } = bucket.shape;
        let latent_frames = (frames - 1) / 4 + 1;
        let tokens = (width / 32) * (height / 32) * latent_frames;
        let size = (self.options.batch_tokens / tokens).max(2);
        // Enough to begin with, then a steady renewal: each clip is met about ten times.
        let fresh = if bucket.is_empty() {
            (size as usize * 8).min(400)
        } else {
            (size as usize).div_ceil(10)
        };
        bucket.refresh(&self.vae, fresh, self.options.device);
        let (mut latents, mut captions, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..size {
            let entry = bucket.pick(draws.next());
            latents.push(entry.latents.shallow_clone());
            captions.push(caption(&entry.attributes, draws.next()));
            levels.extend(draws.levels(latent_frames as usize));
        }
        let causal = clip && draws.unit() < 0.3;
        let pattern = if causal {
            AttentionPattern::BlockCausal {
                first_block: 1,
                block_latent_frames: BLOCK_LATENT_FRAMES,
            }
        } else {
            AttentionPattern::Full
        };
        let levels =
            Tensor::from_slice(&levels).view([size, latent_frames]).to_device(self.options.device);
        Ok(Batch {
            latents: Tensor::stack(&latents, 0),
            levels,
            embeds: self.models.embed(&captions)?,
            pattern,
        })
    }

    /// Mean squared error of the flow over the frames that are not known.
    fn loss(&self, batch: &Batch) -> Tensor {
        let noise = batch.latents.randn_like();
        let s = batch.latents.size();
        let level = batch.levels.view([s[0], 1, s[2], 1, 1]);
        let noisy = &batch.latents + (&noise - &batch.latents) * &level;
        let flow = self.models.flow(&noisy, &batch.levels, &batch.embeds, batch.pattern);
        let free = batch.levels.gt(0.0).to_kind(Kind::Float).view([s[0], 1, s[2], 1, 1]);
        let error = (flow - (noise - &batch.latents)).square() * &free;
        error.sum(Kind::Float) / (free.sum(Kind::Float) * (s[1] * s[3] * s[4]) as f64)
    }
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
