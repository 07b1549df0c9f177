// SPDX-License-Identifier: MPL-2.0
//! `dit-train`: trains, fine-tunes and measures models. Argument parsing only; the work is in `gstdit::training`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use gstdit::pipeline::StartLevel;
use gstdit::training::eval::scaling;
use gstdit::training::generate::Sampling;
use gstdit::training::world::{export, word};
use gstdit::training::{dit, eval, finetune, vae};

/// Trains and measures latent video diffusion models; a training goes on where it stopped.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train the autoencoder.
    Vae(VaeArgs),
    /// Train the transformer and its text encoder on latents of a finished autoencoder.
    Dit(DitArgs),
    /// Write clips of the drawn world as files with captions.
    World(WorldArgs),
    /// Teach a finished folder clips of your own.
    Finetune(FinetuneArgs),
    /// Measure one or more finished folders on held-out prompts.
    Eval(EvalArgs),
    /// Draw quality against training compute from results of `eval`.
    PlotScaling(PlotScalingArgs),
}

#[derive(Args)]
struct Common {
    /// Folder for states, contact sheets and the finished parts.
    #[arg(long)]
    out: PathBuf,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: String,
    /// CPU threads of one operation; 0 for libtorch's own choice, or one beside a GPU.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    /// Seed of data and noise.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Common {
    fn prepare(&self) -> Result<tch::Device> {
        gstdit::torch::init();
        gstdit::torch::flush_denormals();
        let device = gstdit::torch::resolve_device(&self.device)?;
        // Beside a GPU the cores draw clips, each thread by itself.
        let alone = self.threads == 0 && device != tch::Device::Cpu;
        gstdit::torch::set_threads(if alone { 1 } else { self.threads });
        Ok(device)
    }
}

#[derive(Args)]
struct VaeArgs {
    #[command(flatten)]
    common: Common,
    /// A finished `vae/` folder from whose weights to start, at once on clips.
    #[arg(long, conflicts_with = "image_steps")]
    from: Option<PathBuf>,
    /// A finished pipeline folder whose decoder alone to teach, also on what its transformer makes of noised latents; these
    /// keep their meaning, so that the new `vae/` may take the old one's place.
    #[arg(long, conflicts_with_all = ["from", "image_steps", "kl_weight"])]
    decoder_of: Option<PathBuf>,
    /// A finished pipeline folder whose encoder alone to teach, on clips of several seconds: it learns to make of every second of
    /// them what it makes of that second alone.
    #[arg(long, conflicts_with_all = ["from", "decoder_of", "image_steps", "kl_weight", "latent_noise", "batch"])]
    encoder_of: Option<PathBuf>,
    /// A word of the drawn world, such as "star", that every second clip is to show; give it again for one of several.
    #[arg(long, value_parser = word)]
    favour: Vec<&'static str>,
    #[arg(long, default_value_t = 6000)]
    steps: u64,
    /// End after this time, however many steps that are; the learning rate goes as if it were all of them.
    #[arg(long)]
    seconds: Option<f64>,
    /// Steps on single frames before clips come in.
    #[arg(long, default_value_t = 2000)]
    image_steps: u64,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Steps at the end over which the learning rate goes down to nothing.
    #[arg(long, default_value_t = 1000)]
    decay_steps: u64,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Weight of the Kullback-Leibler term.
    #[arg(long, default_value_t = 3e-4)]
    kl_weight: f64,
    /// Most noise on the latents that are decoded, as a share of their standard deviation: a transformer then finds what shows
    /// in large numbers. 0 for none.
    #[arg(long, default_value_t = 0.0, conflicts_with = "decoder_of")]
    latent_noise: f64,
    /// Steps between saved states and contact sheets.
    #[arg(long, default_value_t = 250)]
    save_every: u64,
    /// Clips of 5 frames of 64x64 in a batch; larger shapes use fewer.
    #[arg(long, default_value_t = 8)]
    batch: i64,
}

impl VaeArgs {
    fn run(self) -> Result<()> {
        vae::train(&vae::VaeOptions {
            device: self.common.prepare()?,
            out: self.common.out,
            image_steps: match [&self.from, &self.decoder_of, &self.encoder_of] {
                [None, None, None] => self.image_steps,
                _ => 0,
            },
            from: self.from,
            decoder_of: self.decoder_of,
            encoder_of: self.encoder_of,
            favoured: self.favour,
            steps: self.steps,
            seconds: self.seconds,
            learning_rate: self.learning_rate,
            decay_steps: self.decay_steps,
            kl_weight: self.kl_weight,
            latent_noise: self.latent_noise,
            workers: self.workers,
            seed: self.common.seed,
            save_every: self.save_every,
            batch: self.batch,
        })
    }
}

#[derive(Args)]
struct DitArgs {
    #[command(flatten)]
    common: Common,
    /// A finished `vae/` folder.
    #[arg(long)]
    vae: PathBuf,
    /// A `dit-state.safetensors` of another run, or a pipeline folder, from whose weights to start.
    #[arg(long)]
    from: Option<PathBuf>,
    /// Teach attributes half-way also where a run starts from a pipeline folder, which holds no head for it: for long runs.
    #[arg(long, requires = "from")]
    fresh_head: bool,
    /// Heads of 64 channels, which is how wide the transformer is.
    #[arg(long, default_value_t = 6)]
    num_attention_heads: i64,
    /// Blocks of the transformer.
    #[arg(long, default_value_t = 6)]
    num_layers: i64,
    #[arg(long, default_value_t = 40_000)]
    steps: u64,
    /// End after this time, however many steps that are; the learning rate goes as if it were all of them.
    #[arg(long)]
    seconds: Option<f64>,
    /// Steps on single images before clips come in.
    #[arg(long, default_value_t = 15_000)]
    image_steps: u64,
    /// Steps over which stills begin with near objects in the plain look and become those of the world; then the same for
    /// clips.
    #[arg(long, default_value_t = 2000)]
    simple_steps: u64,
    /// Share of steps on clips after that, 0 to 1.
    #[arg(long, default_value_t = 0.7)]
    clip_share: f64,
    /// A word of the drawn world, such as "star", that every second clip is to show; give it again for one of several.
    #[arg(long, value_parser = word)]
    favour: Vec<&'static str>,
    /// A pipeline folder, to whose model's output this one is held but for objects that leave and come in again and for films
    /// after their first second; its initial guidance is learnt, so that sampling needs none.
    #[arg(long, value_name = "FOLDER")]
    hold: Option<PathBuf>,
    /// Share of the batches that show footage of no world to be restyled, so that footage of the real one is kept, 0 to 1.
    #[arg(long, default_value_t = 0.0, requires = "from")]
    collage_share: f64,
    /// Train low-rank changes (LoRA) of this rank instead of all weights, which `ditfilter` then restyles with; what is made of
    /// nothing stays as it is.
    #[arg(long, value_name = "RANK", requires = "from")]
    restyle_lora: Option<i64>,
    /// Guidance that the model learns to do by itself, in one evaluation a step instead of two; 1 for none.
    #[arg(long, default_value_t = 2.0)]
    guidance_scale: f64,
    #[arg(long, default_value_t = 1.2e-3)]
    learning_rate: f64,
    /// Steps at the end over which the learning rate goes down to nothing.
    #[arg(long, default_value_t = 2_000)]
    decay_steps: u64,
    /// Tokens of video in a batch.
    #[arg(long, default_value_t = 840)]
    batch_tokens: i64,
    /// Compute attention, and nothing else, in bfloat16, which GPUs have faster kernels for.
    #[arg(long)]
    half_attention: bool,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Steps between saved states and contact sheets.
    #[arg(long, default_value_t = 1000)]
    save_every: u64,
    /// Draw no contact sheets.
    #[arg(long)]
    no_sheets: bool,
}

impl DitArgs {
    fn run(self) -> Result<()> {
        dit::train(&dit::DitOptions {
            device: self.common.prepare()?,
            vae: self.vae,
            out: self.common.out,
            from: self.from,
            fresh_head: self.fresh_head,
            num_attention_heads: self.num_attention_heads,
            num_layers: self.num_layers,
            steps: self.steps,
            seconds: self.seconds,
            image_steps: self.image_steps,
            simple_steps: self.simple_steps,
            clip_share: self.clip_share,
            favoured: self.favour,
            hold: self.hold,
            collage_share: self.collage_share,
            restyle_lora: self.restyle_lora,
            guidance_scale: self.guidance_scale,
            learning_rate: self.learning_rate,
            decay_steps: self.decay_steps,
            batch_tokens: self.batch_tokens,
            half_attention: self.half_attention,
            workers: self.workers,
            seed: self.common.seed,
            save_every: self.save_every,
            sheets: !self.no_sheets,
        })
    }
}

#[derive(Args)]
struct WorldArgs {
    /// Folder for `clip-NUMBER.y4m` and `clip-NUMBER.txt`.
    #[arg(long)]
    out: PathBuf,
    /// Number of the first clip.
    #[arg(long, default_value_t = 0)]
    first: u64,
    #[arg(long, default_value_t = 8)]
    clips: u64,
    #[arg(long, default_value_t = 224)]
    width: usize,
    #[arg(long, default_value_t = 128)]
    height: usize,
    /// Frames of each clip, at 16 a second.
    #[arg(long, default_value_t = 33)]
    frames: usize,
    /// Words to put behind each caption.
    #[arg(long, default_value = "")]
    suffix: String,
}

impl WorldArgs {
    fn run(self) -> Result<()> {
        export::export(&export::ExportOptions {
            out: self.out,
            first: self.first,
            clips: self.clips,
            width: self.width,
            height: self.height,
            frames: self.frames,
            suffix: self.suffix,
        })
    }
}

#[derive(Args)]
struct FinetuneArgs {
    #[command(flatten)]
    common: Common,
    /// The pipeline folder to begin with.
    #[arg(long, default_value = "models/default")]
    model: PathBuf,
    /// Folder of clips and pictures of any format, each with its caption in a .txt of the same name, or all in a .jsonl; a
    /// NAME.before.EXT beside NAME.EXT shows the same without what is to be learnt, and makes it quicker to learn.
    #[arg(long)]
    data: PathBuf,
    /// Rank of the low-rank changes (LoRA) that are trained.
    #[arg(long, default_value_t = 16)]
    rank: i64,
    /// Train transformer and text encoder themselves instead of a LoRA.
    #[arg(long, conflicts_with = "rank")]
    full: bool,
    #[arg(long, default_value_t = 400)]
    steps: u64,
    /// Small models want more than large ones: 1e-3 for the default model's LoRA, 1e-4 for Wan's.
    #[arg(long, default_value_t = 5e-4)]
    learning_rate: f64,
    /// Tokens of video in a batch.
    #[arg(long, default_value_t = 840)]
    batch_tokens: i64,
    /// Threads that make a share of each batch; 0 for one a core, or one on a GPU.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Steps between saved states, results and contact sheets.
    #[arg(long, default_value_t = 100)]
    save_every: u64,
    /// A prompt for the contact sheets; give it again for several. The first captions unless given.
    #[arg(long)]
    sample: Vec<String>,
}

impl FinetuneArgs {
    fn run(self) -> Result<()> {
        finetune::train(&finetune::FinetuneOptions {
            device: self.common.prepare()?,
            model: self.model,
            data: self.data,
            out: self.common.out,
            method: match self.full {
                true => finetune::Method::Full,
                false => finetune::Method::Lora { rank: self.rank },
            },
            steps: self.steps,
            learning_rate: self.learning_rate,
            batch_tokens: self.batch_tokens,
            workers: self.workers,
            save_every: self.save_every,
            samples: self.sample,
            seed: self.common.seed,
        })
    }
}

#[derive(Args)]
struct EvalArgs {
    #[command(flatten)]
    common: Common,
    /// A finished pipeline folder; give it again to compare several.
    #[arg(long, default_value = "models/default")]
    model: Vec<PathBuf>,
    /// Clips of one second to judge.
    #[arg(long, default_value_t = 200)]
    prompts: u64,
    /// Judge single pictures instead of clips; motion is then left out.
    #[arg(long)]
    stills: bool,
    /// Clips that the autoencoder reconstructs; 0 for none.
    #[arg(long, default_value_t = 32)]
    reconstructions: u64,
    /// Long videos, for seams and drift; 0 for none.
    #[arg(long, default_value_t = 4)]
    long_prompts: u64,
    /// Length of each long video.
    #[arg(long, default_value_t = 60)]
    long_seconds: u64,
    /// Denoising steps; the model's own number unless given.
    #[arg(long)]
    steps: Option<u32>,
    /// 1 for no guidance; the model's own factor unless given.
    #[arg(long)]
    guidance_scale: Option<f64>,
    /// Instead of clips out of nothing, noise true ones to this level, above 0 and at most 1, and make them anew from there: an attribute that
    /// gets lost is lost below it.
    #[arg(long)]
    from_level: Option<f64>,
    /// The same with a strength, as `ditfilter` has it.
    #[arg(long, conflicts_with = "from_level")]
    strength: Option<f64>,
    /// The true clips are plain ones, and all that is asked for are the styles: what is judged is whether those are taken on and the
    /// rest is kept.
    #[arg(long)]
    restyle: bool,
}

impl EvalArgs {
    fn run(self) -> Result<()> {
        eval::evaluate(&eval::EvalOptions {
            device: self.common.prepare()?,
            out: self.common.out,
            models: self.model,
            prompts: self.prompts,
            stills: self.stills,
            reconstructions: self.reconstructions,
            long_prompts: self.long_prompts,
            long_seconds: self.long_seconds,
            sampling: Sampling {
                num_inference_steps: self.steps,
                guidance_scale: self.guidance_scale,
            },
            from: (self.from_level.map(StartLevel::Noise))
                .or(self.strength.map(StartLevel::Strength)),
            restyle: self.restyle,
            seed: self.common.seed,
        })
    }
}

#[derive(Args)]
struct PlotScalingArgs {
    /// An `eval.json`; give it again for several.
    #[arg(long, required = true)]
    result: Vec<PathBuf>,
    /// Training compute of each model in the order of the results, as in 1,4,16.
    #[arg(long, required = true, value_delimiter = ',')]
    compute: Vec<f64>,
    /// The PNG file to write, with the data beside it.
    #[arg(long)]
    out: PathBuf,
}

impl PlotScalingArgs {
    fn run(self) -> Result<()> {
        scaling::plot(&scaling::ScalingOptions {
            results: self.result,
            compute: self.compute,
            out: self.out,
        })
    }
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Vae(args) => args.run(),
        Command::Dit(args) => args.run(),
        Command::World(args) => args.run(),
        Command::Finetune(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::PlotScaling(args) => args.run(),
    }
}
