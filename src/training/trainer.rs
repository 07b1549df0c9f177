// SPDX-License-Identifier: MPL-2.0
//! What every training of a transformer shares: the models over one set of parameters, the loss, workers in parallel,
//! and the loop that steps, saves and resumes. What differs is data: where parameters start, which of them are
//! trained, and where batches come from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::ahead::Ahead;
use super::attribute_head::AttributeHead;
use super::batch::{Batch, Captions};
use super::clock::Clock;
use super::crew::{Crew, Losses, Work};
use super::optim::{AdamW, Hyper, trapezoid_schedule};
use super::progress::Progress;
use super::teacher::Teacher;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::{
    AttentionPattern, Timestep, TokenLayout, TransformerContext, TransformerInput,
    WanTransformer3DModel, WanTransformer3DModelConfig,
};
use crate::models::umt5::{UMT5EncoderModel, Umt5Config};
use crate::nn::attention::KvAccess;
use crate::weights::lora::Adapters;
use crate::weights::{Checkpoint, Parameters, Source};

/// Below this noise level the loss counts errors of clean latents as if at it.
const LEAST_LEVEL: f64 = 0.35;

/// Most noise on frames that are known, as a standard deviation.
const MOST_SPOILT: f64 = 0.15;
/// How much naming attributes, and outlining the object, counts beside denoising.
const LESSON: [f64; 2] = [0.2, 0.5];
/// Prefix of the head's parameters in a state.
pub(super) const ATTRIBUTE_HEAD: &str = "attribute_head";

/// What the models of a training are built from besides their parameters.
#[derive(Debug, Clone)]
pub struct Blueprint {
    pub transformer: WanTransformer3DModelConfig,
    pub text_encoder: Umt5Config,
    /// The folder of the tokenizer.
    pub tokenizer: PathBuf,
    /// Longest prompt in tokens.
    pub max_sequence_length: i64,
    /// Whether the transformer's output is the clean latents, not the flow.
    pub predicts_sample: bool,
    /// Guidance that is learnt, so that sampling needs none; 1 for none.
    pub guidance_scale: f64,
    /// Whether attention is computed in bfloat16.
    pub half_attention: bool,
    /// A pipeline folder, to whose model clips are held that say so, and the guidance of its beginnings.
    pub teacher: Option<(PathBuf, f64)>,
    pub device: Device,
}

/// The parts that are trained together.
pub struct Models {
    pub(super) transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    attribute_head: Option<AttributeHead>,
    /// One caption that says nothing.
    pub(super) nothing: Captions,
    max_sequence_length: i64,
    predicts_sample: bool,
    guidance_scale: f64,
}

impl Models {
    /// Captions to embeddings `[B, max_sequence_length, text_dim]`, zero after the last token.
    fn embed(&self, prompts: &Captions) -> Tensor {
        let Captions { ids, mask, .. } = prompts;
        let embeds = self.text_encoder.forward(ids, Some(mask)) * mask.unsqueeze(-1);
        embeds.constant_pad_nd([0, 0, 0, self.max_sequence_length - ids.size()[1]])
    }

    /// What the transformer looks at under these captions.
    pub(super) fn context(&self, prompts: &Captions) -> TransformerContext {
        self.transformer.context(&self.embed(prompts), None)
    }

    /// The transformer's output, flow or clean latents, for noisy latents `[B, C, T, h, w]` at levels `[B, T]`; and its tokens
    /// `[B, N, D]` half-way.
    pub(super) fn predict(
        &self,
        latents: &Tensor,
        levels: &Tensor,
        context: &TransformerContext,
        layout: &TokenLayout,
    ) -> Result<(Tensor, Tensor)> {
        let timesteps = levels * 1000.0;
        let input = TransformerInput {
            hidden_states: latents,
            timestep: Timestep::PerFrame(&timesteps),
            context,
            layout,
            kv: KvAccess::None,
        };
        let half_way = (self.transformer.config().num_layers / 2) as usize;
        let mut tokens = Tensor::new();
        let predicted = self.transformer.forward_watched(input, &mut |layer, x| {
            if layer == half_way {
                tokens = x.shallow_clone();
            }
            Ok(())
        })?;
        Ok((predicted, tokens))
    }

    /// What to add to the truth, for the clips that guidance is learnt of, so that the transformer's own output becomes what
    /// guidance would make of it: its distance from what it makes of no caption (Tang et al., "Diffusion Models without
    /// Classifier-free Guidance", arXiv 2502.12154). With a share of `1 - 1 / scale` the output that reproduces itself is
    /// `negative + scale * (truth - negative)`.
    fn guidance(
        &self,
        batch: &Batch,
        noised: &Noised,
        predicted: &Tensor,
        layout: &TokenLayout,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let of_guided = |t: &Tensor| t.index_select(0, &batch.guided);
        let none = self.context(&self.nothing).repeated(batch.guided.size()[0]);
        let (latents, levels) = (of_guided(&noised.latents), of_guided(&noised.levels));
        let (negative, _) = self.predict(&latents, &levels, &none, layout)?;
        let negative = negative.narrow(2, noised.before, predicted.size()[2]);
        Ok((of_guided(predicted) - negative) * (1.0 - 1.0 / self.guidance_scale))
    }
}

/// The parameters, from which any number of models that share them are built.
pub struct Sources {
    pub transformer: Source,
    pub text_encoder: Source,
    /// Of the head that names attributes, where clips come with them.
    pub attribute_head: Option<Source>,
}

impl Sources {
    /// Everything is made anew and trained.
    pub fn fresh() -> Self {
        Self {
            transformer: Source::Trainable(Parameters::default()),
            text_encoder: Source::Trainable(Parameters::default()),
            attribute_head: Some(Source::Trainable(Parameters::default())),
        }
    }

    /// Everything is trained, starting from the transformer and text encoder of a pipeline folder.
    ///
    /// # Errors
    /// When their weights are missing or malformed.
    pub fn starting_from(folder: &Path) -> Result<Self> {
        let part = |name: &str, stem: &str| -> Result<Source> {
            let weights = Checkpoint::open(&folder.join(name), stem)?;
            Ok(Source::Trainable(Parameters::starting_from(weights)))
        };
        Ok(Self {
            transformer: part("transformer", "diffusion_pytorch_model")?,
            text_encoder: part("text_encoder", "model")?,
            // A folder holds no head, and what one made anew has yet to learn would pull at tokens that know it already.
            attribute_head: None,
        })
    }

    /// Low-rank changes of that rank are trained beside the transformer of a pipeline folder.
    ///
    /// # Errors
    /// When weights are missing or malformed, or the rank is below 1.
    pub fn adapting(folder: &Path, rank: i64) -> Result<Self> {
        ensure!(rank > 0, "--restyle-lora: found {rank}, expected at least 1");
        let part = |name: &str, stem: &str| Checkpoint::open(&folder.join(name), stem);
        let wanted = |layer: &str| layer.starts_with("blocks.") || layer == "proj_out";
        let adapters = Adapters::new(rank, rank as f64, wanted, Parameters::default());
        Ok(Self {
            transformer: Source::frozen(part("transformer", "diffusion_pytorch_model")?)
                .adapted(adapters),
            text_encoder: Source::frozen(part("text_encoder", "model")?),
            attribute_head: None,
        })
    }

    /// What is trained of each part, with the prefix of its names in a state.
    pub fn trained(&self) -> impl Iterator<Item = (&'static str, &Parameters)> {
        let parts = [("transformer", &self.transformer), ("text_encoder", &self.text_encoder)];
        let head = self.attribute_head.as_ref().map(|head| (ATTRIBUTE_HEAD, head));
        parts
            .into_iter()
            .chain(head)
            .filter_map(|(prefix, source)| Some((prefix, source.parameters()?)))
    }

    /// All parameters that models were built from so far.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        let named = |(prefix, parameters): (&str, &Parameters)| {
            let named = parameters.named().into_iter();
            named.map(|(name, t)| (format!("{prefix}.{name}"), t)).collect::<Vec<_>>()
        };
        self.trained().flat_map(named).collect()
    }

    /// Models that share these parameters.
    ///
    /// # Errors
    /// Those of the models' constructors.
    pub fn models(&self, blueprint: &Blueprint) -> Result<Models> {
        let Blueprint { max_sequence_length, predicts_sample, guidance_scale, device, .. } =
            *blueprint;
        let tokenizer = PromptTokenizer::from_folder(&blueprint.tokenizer)?;
        let nothing = Captions::new(&tokenizer, &[String::new()], max_sequence_length)?;
        let transformer = WanTransformer3DModel::new(
            &self.transformer.weights(Kind::Float, device),
            &blueprint.transformer,
        )?;
        Ok(Models {
            transformer: match blueprint.half_attention {
                true => transformer.attending_in(Kind::BFloat16),
                false => transformer,
            },
            text_encoder: UMT5EncoderModel::new(
                &self.text_encoder.weights(Kind::Float, device),
                &blueprint.text_encoder,
            )?,
            attribute_head: self
                .attribute_head
                .as_ref()
                .map(|head| {
                    let (dim, patch) =
                        (blueprint.transformer.dim(), blueprint.transformer.patch_size[1]);
                    AttributeHead::new(&head.weights(Kind::Float, device), dim, patch)
                })
                .transpose()?,
            nothing: nothing.to_device(device),
            max_sequence_length,
            predicts_sample,
            guidance_scale,
        })
    }
}

/// How long to train and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the progress bar shows.
    pub name: &'static str,
    pub steps: u64,
    /// Ends after this time instead, however many steps that are; the learning rate goes as if it were all of them.
    pub seconds: Option<f64>,
    pub learning_rate: f64,
    /// Steps over which the learning rate goes up at first, and down to nothing at the end.
    pub warmup_steps: u64,
    pub decay_steps: u64,
    pub save_every: u64,
    pub hyper: Hyper,
    /// The file that a run resumes from.
    pub state: PathBuf,
    /// A state of another run, from whose weights this one starts.
    pub from: Option<PathBuf>,
}

/// Where batches come from.
pub(super) trait Batches: Send {
    /// The batch of that number.
    ///
    /// # Errors
    /// What stands in the way of making it.
    fn batch(&mut self, number: u64) -> Result<Batch>;
}

impl Batches for Ahead<Result<Batch>> {
    fn batch(&mut self, number: u64) -> Result<Batch> {
        self.take(number)?
    }
}

/// Trains until the plan's end, resuming where its state says; `batches` makes the source of one worker, given its number
/// and the step that it begins at, and `save` writes what is trained: the averages are in place while it runs.
///
/// # Errors
/// A state of another model, and what `batches` and `save` fail with.
pub(super) fn run<B: Batches>(
    plan: &Plan,
    (sources, blueprint): (&Sources, &Blueprint),
    workers: usize,
    mut batches: impl FnMut(usize, u64) -> Result<B>,
    mut save: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let crew = (0..workers).map(|_| sources.models(blueprint)).collect::<Result<Vec<_>>>()?;
    let mut optimiser = AdamW::new(sources.named(), plan.hyper);
    if plan.state.exists() {
        optimiser.resume(&plan.state)?;
    } else if let Some(from) = &plan.from {
        optimiser.start_from(from, Some(ATTRIBUTE_HEAD))?;
    }
    optimiser.set_threads(workers);
    let teacher = blueprint.teacher.as_ref();
    let teacher = teacher.map(|(folder, _)| Sources::starting_from(folder)).transpose()?;
    let crew = (0..)
        .zip(crew)
        .map(|(number, models)| {
            let teacher = teacher.as_ref().map(|teacher| Teacher::new(teacher, blueprint));
            let teacher = teacher.transpose()?;
            let batches = batches(number, optimiser.steps())?;
            Ok(Worker {
                models,
                teacher,
                layouts: Layouts::new(),
                batches,
                share: 1.0 / workers as f64,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    // New threads take over this number: with several workers each computes alone, and idle helpers of libtorch
    // would only spin in their way.
    let threads = tch::get_num_threads();
    let alone = if workers > 1 { 1 } else { threads };
    tch::set_num_threads(alone);
    let outcome = std::thread::scope(|scope| {
        let crew = Crew::start(scope, crew);
        let progress =
            Progress::new(plan.name, plan.steps, optimiser.steps(), optimiser.parameter_count())
                .within(plan.seconds);
        let mut average: Option<Losses> = None;
        let clock = Clock::new(plan.steps, plan.seconds)?;
        let mut done = clock.at(optimiser.steps()) >= plan.steps;
        while !done {
            let step = optimiser.steps();
            let loss = crew.step(step)?;
            let at = clock.at(step);
            let rate = trapezoid_schedule(at, plan.steps, plan.warmup_steps, plan.decay_steps)
                * plan.learning_rate;
            let norm = optimiser.step(rate);
            let [average, names, outline] = *average.insert(match average {
                None => loss,
                Some(average) => std::array::from_fn(|i| 0.99 * average[i] + 0.01 * loss[i]),
            });
            let figures =
                [("loss", average), ("names", names), ("outline", outline), ("norm", norm)];
            progress.step(step + 1, &figures);
            done = clock.at(step + 1) >= plan.steps;
            if (step + 1).is_multiple_of(plan.save_every) || done {
                optimiser.save(&plan.state)?;
                optimiser.swap_averages();
                tch::set_num_threads(threads);
                save(step + 1)?;
                tch::set_num_threads(alone);
                optimiser.swap_averages();
                progress.note(&format!(
                    "step {}: loss {average:.4}, names {names:.3}, outline {outline:.3}, saved",
                    step + 1
                ));
            }
        }
        Ok(())
    });
    tch::set_num_threads(threads);
    outcome
}

/// Those of windows met so far, by latent frames, rows and columns.
type Layouts = BTreeMap<([i64; 3], AttentionPattern), TokenLayout>;

/// One thread's share of every step: its own clips and graph, but the same parameters.
struct Worker<B> {
    models: Models,
    teacher: Option<Teacher>,
    layouts: Layouts,
    batches: B,
    /// Part of the gradient that this worker's batch makes.
    share: f64,
}

impl<B: Batches> Work for Worker<B> {
    fn work(&mut self, number: u64) -> Result<Losses> {
        let batch = self.batches.batch(number)?;
        let (loss, lesson) = self.loss(&batch)?;
        let beside = lesson.iter().flatten().zip(LESSON).map(|(part, weight)| part * weight);
        let total = beside.fold(loss.shallow_clone(), |total, part| total + part);
        (total * self.share).backward();
        // Only now, as a GPU works on while nobody asks for numbers.
        let [names, outline] =
            lesson.map_or([0.0; 2], |parts| parts.map(|part| part.double_value(&[])));
        Ok([loss.double_value(&[]), names, outline])
    }
}

/// What the transformer is given of a batch.
struct Noised {
    /// `[B, z, before + T, h, w]`
    latents: Tensor,
    /// `[B, before + T]`
    levels: Tensor,
    /// Clean frames in front, where each block is taught what follows it.
    before: i64,
    /// `[B, z, T, h, w]`: the way from clean latents to these, which is noise less clean latents where those are shown.
    true_flow: Tensor,
}

impl Noised {
    /// `remembered` `[B, z, T, h, w]` is what precedes each block.
    fn new(batch: &Batch, remembered: &Tensor) -> Self {
        let noise = batch.latents.randn_like();
        let s = batch.latents.size();
        let level = batch.levels.view([s[0], 1, s[2], 1, 1]);
        let noisy = &batch.shown + (noise - &batch.shown) * &level;
        let true_flow = (&noisy - &batch.latents) / level.clamp_min(1e-3);
        // What a stream continues is never quite what it should be, of which nobody tells the model.
        let known = level.eq(0.0).to_kind(Kind::Float);
        let spoilt = Tensor::rand([s[0], 1, 1, 1, 1], (Kind::Float, level.device())) * MOST_SPOILT;
        let spoilt = batch.latents.randn_like() * spoilt;
        let noisy = noisy + &spoilt * known;
        let before = batch.before();
        let clean = (remembered + spoilt).narrow(2, 0, before);
        let levels = [&batch.levels.narrow(1, 0, before).zeros_like(), &batch.levels];
        Self {
            latents: Tensor::cat(&[&clean, &noisy], 2),
            levels: Tensor::cat(&levels, 1),
            before,
            true_flow,
        }
    }
}

impl<B> Worker<B> {
    /// Weighted mean squared error of the flow over the frames that are not known.
    ///
    /// A model may predict the clean latents: they have far fewer dimensions than noise, which a narrow model could
    /// not even copy; the error is weighted as that of the flow (Li and He, arXiv 2511.13720).
    ///
    /// Beside it, where clips come with their attributes, how badly tokens half-way tell these.
    fn loss(&mut self, batch: &Batch) -> Result<(Tensor, Option<[Tensor; 2]>)> {
        let s = batch.latents.size();
        let shape = [s[2] + batch.before(), s[3], s[4]];
        let layout = self
            .layouts
            .entry((shape, batch.pattern))
            .or_insert_with(|| self.models.transformer.layout(shape, 0, batch.pattern));
        let teacher = self.teacher.as_ref().zip(batch.held.as_ref());
        let remembered = match teacher {
            Some((teacher, held)) => teacher.memories((batch, held), layout)?,
            None => batch.latents.shallow_clone(),
        };
        let noised = Noised::new(batch, &remembered);
        let level = batch.levels.view([s[0], 1, s[2], 1, 1]);
        let context = self.models.context(&batch.captions);
        let (predicted, tokens) =
            self.models.predict(&noised.latents, &noised.levels, &context, layout)?;
        let predicted = predicted.narrow(2, noised.before, s[2]);
        let truth = if self.models.predicts_sample { &batch.latents } else { &noised.true_flow };
        let held = teacher.and_then(|(teacher, held)| Some((teacher, held, held.frames.as_ref()?)));
        let target = match held {
            Some((teacher, held, frames)) => {
                let noised = (&noised.latents, &noised.levels);
                let output = teacher.output((batch, held), noised, layout)?;
                output.where_self(frames, truth)
            }
            None => truth.shallow_clone(),
        };
        let mut off = &predicted - target;
        if self.models.guidance_scale > 1.0 && batch.guided.numel() > 0 {
            let guidance = self.models.guidance(batch, &noised, &predicted.detach(), layout)?;
            off = off.index_add(0, &batch.guided, &-guidance);
        }
        if self.models.predicts_sample {
            off /= level.clamp_min(LEAST_LEVEL);
        }
        let weights = level.gt(0.0).to_kind(Kind::Float) * &batch.weights;
        let error = off.square() * &weights;
        // Nothing counts where all objects stay away.
        let loss = error.sum(Kind::Float) / (weights.sum(Kind::Float).clamp_min(1.0) * s[1] as f64);
        Ok((loss, self.lesson(batch, &tokens)))
    }

    /// How badly tokens `[B, N, D]` half-way name and outline what clips show.
    fn lesson(&self, batch: &Batch, tokens: &Tensor) -> Option<[Tensor; 2]> {
        let (head, truth) = self.models.attribute_head.as_ref().zip(batch.truth.as_ref())?;
        let patch = self.models.transformer.config().patch_size;
        let touched = batch.weights.gt(1.0).to_kind(Kind::Float);
        let touched = touched.max_pool3d(patch, patch, [0; 3], [1; 3], false).squeeze_dim(1);
        let t = touched.size();
        let grid = [t[1], t[2], t[3]];
        let all: i64 = grid.iter().product();
        let tokens = tokens.narrow(1, tokens.size()[1] - all, all);
        Some(head.loss(&tokens, grid, truth, &touched.flatten(1, -1)))
    }
}

#[cfg(test)]
pub(super) mod tests;
