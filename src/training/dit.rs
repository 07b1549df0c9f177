// SPDX-License-Identifier: MPL-2.0
//! Joint training of the transformer and its text encoder by flow matching (Lipman et al., arXiv 2210.02747)
//! with a noise level of its own for each latent frame (diffusion forcing, Chen et al., arXiv 2407.01392), so
//! that known frames, streaming and restyling are all in distribution, under full and block-causal attention.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::batch::{Batch, Sampler, SamplerOptions};
use super::captions::{build_tokenizer_json, canonical, tokenizer_config_json};
use super::optim::{AdamW, Hyper, trapezoid_schedule};
use super::progress::Progress;
use super::world::{Scene, Split};
use super::{folder, generate, sheet, vae};
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::{
    AttentionPattern, Timestep, TransformerInput, WanTransformer3DModel,
    WanTransformer3DModelConfig,
};
use crate::models::umt5::{UMT5EncoderModel, Umt5Config};
use crate::nn::attention::KvAccess;
use crate::torch;
use crate::weights::{Parameters, Source};

/// Longest prompt in tokens.
pub const MAX_SEQUENCE_LENGTH: i64 = 64;
/// Below this noise level the loss counts errors as if at it.
const LEAST_LEVEL: f64 = 0.2;

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
    /// Steps at the end over which the learning rate goes down to nothing.
    pub decay_steps: u64,
    /// Tokens of video in a batch.
    pub batch_tokens: i64,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    pub workers: usize,
    pub seed: u64,
    pub device: Device,
    pub save_every: u64,
}

/// The transformer of the default model.
pub fn transformer_config(in_channels: i64) -> WanTransformer3DModelConfig {
    WanTransformer3DModelConfig {
        patch_size: [1, 2, 2],
        num_attention_heads: 4,
        attention_head_dim: 64,
        in_channels,
        out_channels: Some(in_channels),
        text_dim: 128,
        freq_dim: 128,
        ffn_dim: 1024,
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

    /// The clean latents that the model sees in noisy ones `[B, C, T, h, w]` at levels `[B, T]`.
    fn denoise(
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

impl DitOptions {
    fn worker_count(&self) -> usize {
        match (self.workers, self.device) {
            (0, Device::Cpu) => tch::get_num_threads().max(1) as usize,
            (0, _) => 1,
            (count, _) => count,
        }
    }
}

/// Trains until `steps`, resuming whatever the folder holds, then writes the pipeline folder `model/`.
///
/// # Errors
/// When a folder is missing, cannot be written or holds the state of another model.
pub fn train(options: &DitOptions) -> Result<()> {
    std::fs::create_dir_all(&options.out).with_context(|| options.out.display().to_string())?;
    tch::manual_seed(options.seed as i64);
    write_tokenizer(&options.out.join("tokenizer"))?;
    let sources = Sources::new();
    let count = options.worker_count();
    // The first built is the one whose configuration is written; all share the parameters.
    let channels = vae::load(&options.vae, options.device)?.config().z_dim;
    let models = sources.models(options, channels)?;
    let mut optimiser = AdamW::new(sources.named(), Hyper { ema_decay: 0.999, ..Hyper::default() });
    let state = options.out.join("dit-state.safetensors");
    if state.exists() {
        optimiser.resume(&state)?;
    }
    optimiser.set_threads(count);
    let workers = (0..count)
        .map(|worker| {
            // Workers draw different clips.
            let options =
                DitOptions { seed: options.seed + 1000 * worker as u64, ..options.clone() };
            sources.worker(&options, optimiser.steps(), count as u64)
        })
        .collect::<Result<Vec<_>>>()?;
    // New threads take over this number: with several workers each computes alone, and idle helpers of libtorch
    // would only spin in their way.
    let threads = tch::get_num_threads();
    let alone = if count > 1 { 1 } else { threads };
    tch::set_num_threads(alone);
    std::thread::scope(|scope| {
        let crew = Crew::start(scope, workers);
        let progress =
            Progress::new("dit", options.steps, optimiser.steps(), optimiser.parameter_count());
        let mut average = f64::NAN;
        while optimiser.steps() < options.steps {
            let step = optimiser.steps();
            let loss = crew.step(step)?;
            let rate = trapezoid_schedule(step, options.steps, 300, options.decay_steps)
                * options.learning_rate;
            let norm = optimiser.step(rate);
            average = if average.is_nan() { loss } else { 0.99 * average + 0.01 * loss };
            progress.step(step + 1, &[("loss", average), ("norm", norm)]);
            if (step + 1).is_multiple_of(options.save_every) || step + 1 == options.steps {
                optimiser.save(&state)?;
                optimiser.swap_averages();
                folder::write(options, &models, sources.parts().map(|(_, parameters)| parameters))?;
                optimiser.swap_averages();
                tch::set_num_threads(threads);
                sheet(options, step + 1)?;
                tch::set_num_threads(alone);
                progress.note(&format!(
                    "step {}: loss {average:.4}, wrote model/ and a sheet",
                    step + 1
                ));
            }
        }
        Ok(())
    })
}

/// The parameters, from which any number of models that share them are built.
struct Sources {
    transformer: Source,
    text_encoder: Source,
}

impl Sources {
    fn new() -> Self {
        Self {
            transformer: Source::Trainable(Parameters::default()),
            text_encoder: Source::Trainable(Parameters::default()),
        }
    }

    /// Both parts with the prefixes of their names in a state.
    fn parts(&self) -> [(&'static str, &Parameters); 2] {
        [("transformer", &self.transformer), ("text_encoder", &self.text_encoder)].map(
            |(prefix, source)| match source {
                Source::Trainable(parameters) => (prefix, parameters),
                Source::Frozen(_) => unreachable!("made trainable"),
            },
        )
    }

    /// All parameters that models were built from so far.
    fn named(&self) -> Vec<(String, Tensor)> {
        let named = |(prefix, parameters): (&str, &Parameters)| {
            let named = parameters.named().into_iter();
            named.map(|(name, t)| (format!("{prefix}.{name}"), t)).collect::<Vec<_>>()
        };
        self.parts().into_iter().flat_map(named).collect()
    }

    fn models(&self, options: &DitOptions, channels: i64) -> Result<Models> {
        let tokenizer = PromptTokenizer::from_folder(&options.out.join("tokenizer"))?;
        Models::new(&self.transformer, &self.text_encoder, tokenizer, channels, options.device)
    }

    /// One of `count` workers that begins at `step`.
    fn worker(&self, options: &DitOptions, step: u64, count: u64) -> Result<Worker> {
        let vae = vae::load(&options.vae, options.device)?;
        Ok(Worker {
            models: self.models(options, vae.config().z_dim)?,
            sampler: Sampler::new(
                SamplerOptions {
                    seed: options.seed,
                    image_steps: options.image_steps * count,
                    batch_tokens: options.batch_tokens / count as i64,
                    device: options.device,
                },
                vae,
                step,
            ),
            share: 1.0 / count as f64,
        })
    }
}

fn write_tokenizer(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    let json = serde_json::to_string(&build_tokenizer_json())?;
    std::fs::write(path.join("tokenizer.json"), json)?;
    std::fs::write(
        path.join("tokenizer_config.json"),
        serde_json::to_string_pretty(&tokenizer_config_json())? + "\n",
    )?;
    Ok(())
}

/// One thread's share of every step: its own clips and graph, but the same parameters.
struct Worker {
    models: Models,
    sampler: Sampler,
    /// Part of the gradient that this worker's batch makes.
    share: f64,
}

impl Worker {
    /// Draws the batch of that number and adds its gradients to the parameters'; returns its loss.
    fn work(&mut self, number: u64) -> Result<f64> {
        let batch = self.sampler.batch(number);
        let loss = self.loss(&batch)?;
        (&loss * self.share).backward();
        Ok(loss.double_value(&[]))
    }

    /// Mean squared error of the flow that the model's clean latents amount to, over the frames that are not known.
    ///
    /// The model predicts the clean latents: they have far fewer dimensions than noise, which a narrow model could
    /// not even copy; the error is weighted as that of the flow (Li and He, arXiv 2511.13720).
    fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let noise = batch.latents.randn_like();
        let s = batch.latents.size();
        let level = batch.levels.view([s[0], 1, s[2], 1, 1]);
        let noisy = &batch.latents + (noise - &batch.latents) * &level;
        let embeds = self.models.embed(&batch.captions)?;
        let clean = self.models.denoise(&noisy, &batch.levels, &embeds, batch.pattern);
        let free = level.gt(0.0).to_kind(Kind::Float);
        let error = ((clean - &batch.latents) / level.clamp_min(LEAST_LEVEL)).square() * &free;
        Ok(error.sum(Kind::Float) / (free.sum(Kind::Float) * (s[1] * s[3] * s[4]) as f64))
    }
}

/// Workers on threads of their own. Models this small leave most of a core idle when their operations are split
/// over several; batches in parallel do not.
struct Crew {
    orders: Vec<Sender<u64>>,
    losses: Receiver<Result<f64>>,
}

impl Crew {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, workers: Vec<Worker>) -> Self {
        let (report, losses) = channel();
        let orders = workers
            .into_iter()
            .map(|mut worker| {
                let (order, orders) = channel();
                let report = report.clone();
                scope.spawn(move || {
                    torch::flush_denormals();
                    while let Ok(number) = orders.recv() {
                        if report.send(worker.work(number)).is_err() {
                            return;
                        }
                    }
                });
                order
            })
            .collect();
        Self { orders, losses }
    }

    /// Lets every worker add the gradients of one batch; returns the mean loss.
    fn step(&self, step: u64) -> Result<f64> {
        let count = self.orders.len() as u64;
        for (worker, order) in (0..).zip(&self.orders) {
            order.send(step * count + worker).context("a training thread has ended")?;
        }
        let mut sum = 0.0;
        for _ in &self.orders {
            sum += self.losses.recv().context("a training thread has ended")??;
        }
        Ok(sum / count as f64)
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
