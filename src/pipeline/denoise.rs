// SPDX-License-Identifier: MPL-2.0
//! The one loop behind every task: a window of latent frames, each known, free or partly noised, walked down the
//! noise schedule with guidance.
//!
//! Latents are `[B, z, T, h, w]`, normalised, in f32. A known frame has noise level 0 and never changes. Folders with
//! `expand_timesteps` tell the transformer so, frame by frame; for others the known frames are noised to the level of each
//! step before it (RePaint, Lugmayr et al. 2022), which needs no training for it.

use tch::{Kind, Tensor};

use super::{FolderInfo, Pipeline};
use crate::error::{Error, Result};
use crate::models::transformer_wan::{
    AttentionPattern, Timestep, TokenLayout, TransformerContext, TransformerInput,
    WanTransformer3DModel,
};
use crate::nn::attention::{KvAccess, KvCache};
use crate::schedulers::Schedule;

/// Prompts as the transformers look at them.
#[derive(Debug)]
pub struct Prompts {
    /// One a transformer of the folder.
    positive: Vec<TransformerContext>,
    /// The same of the negative prompt, if there is guidance.
    negative: Option<Vec<TransformerContext>>,
}

impl Prompts {
    /// Prepares embeddings `[B, L, d]` of a prompt and, for guidance, of a negative one; `image` `[Bi, S, d]` for
    /// models that take image embeddings.
    pub fn new(
        pipeline: &Pipeline,
        positive: &Tensor,
        negative: Option<&Tensor>,
        image: Option<&Tensor>,
    ) -> Self {
        let contexts = |text: &Tensor| {
            pipeline.transformers.iter().map(|model| model.context(text, image)).collect()
        };
        Self { positive: contexts(positive), negative: negative.map(contexts) }
    }

    /// The same prompts steered by a control `[B, c, T, h, w]`, in folders with a branch for it.
    fn with_control(&self, pipeline: &Pipeline, control: &Tensor, scale: &[f64]) -> Self {
        let steered = |contexts: &[TransformerContext]| {
            let pairs = pipeline.transformers.iter().zip(contexts);
            pairs.map(|(model, context)| model.with_control(context, control, scale)).collect()
        };
        Self { positive: steered(&self.positive), negative: self.negative.as_deref().map(steered) }
    }
}

/// Up to so many numbers in the tokens of an evaluation, both prompts are evaluated as one batch: such an evaluation is mostly
/// reading weights and starting kernels, which a batch of two does once.
const SMALL_EVALUATION: i64 = 1 << 17;

/// The negative and the positive prompt as one batch, with what each looks back at.
struct Pair {
    /// One a transformer of the folder.
    contexts: Vec<TransformerContext>,
    cache: Option<KvCache>,
}

/// How strongly the prompt is followed: `negative + scale * (positive - negative)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    pub scale: f64,
    /// For the low-noise expert of a two-expert folder.
    pub scale_2: f64,
}

impl Guidance {
    /// The wanted scale, or the folder's own, for all experts; below 1 there is none, as in diffusers.
    pub fn of(info: &FolderInfo, scale: Option<f64>) -> Self {
        let scale = scale.unwrap_or(info.native.guidance_scale).max(1.0);
        Self { scale, scale_2: scale }
    }

    /// The wanted scale, or the folder's own for what nothing precedes.
    pub fn initial(info: &FolderInfo, scale: Option<f64>) -> Self {
        Self::of(info, scale.or(info.native.initial_guidance_scale))
    }

    /// Whether the negative prompt has any effect.
    pub fn is_used(&self) -> bool {
        self.scale != 1.0 || self.scale_2 != 1.0
    }
}

/// Frames of a window that are not to change.
#[derive(Debug)]
pub struct Known {
    /// One a latent frame.
    pub frames: Vec<bool>,
    /// `[B, z, T, h, w]`, or one frame for all; only those of known frames are read.
    pub latents: Tensor,
    /// Of the same shape: what noises them in folders without timesteps by frame.
    pub noise: Tensor,
}

/// What is to be denoised.
pub struct Window<'a> {
    /// `[B, z, T, h, w]`, at the noise level of step `begin_index`.
    pub latents: Tensor,
    pub known: Option<Known>,
    /// `[B, c, T, h, w]`, channels laid beside the latents.
    pub condition: Option<Tensor>,
    /// `[B, c, T, h, w]` and its strength at each block, for folders with a control branch.
    pub control: Option<(Tensor, Vec<f64>)>,
    /// Position of the first latent frame on the time axis.
    pub frame_offset: i64,
    /// Step to start from.
    pub begin_index: usize,
    /// Normal noise like the latents, for solvers that ask for it, another one for each number.
    pub noise: Box<dyn Fn(u32) -> Tensor + 'a>,
}

/// Numbers of noise that a window begins with: its own, and that on what is known.
const BEGINNINGS: u32 = 2;

/// The number of the noise that a solver brings in at a step.
pub(super) fn noise_at_step(step: u32) -> u32 {
    BEGINNINGS + step
}

/// Key-value caches of what precedes a window, for each prompt.
#[derive(Debug, Default)]
pub struct CausalCaches {
    pub positive: KvCache,
    pub negative: Option<KvCache>,
}

impl CausalCaches {
    /// A copy that shares the tensors, which are never written in place.
    pub fn shallow_clone(&self) -> Self {
        Self {
            positive: self.positive.shallow_clone(),
            negative: self.negative.as_ref().map(KvCache::shallow_clone),
        }
    }
}

/// What all windows of a task have in common.
pub struct Denoiser<'a> {
    pub pipeline: &'a Pipeline,
    pub prompts: &'a Prompts,
    pub guidance: Guidance,
    pub schedule: &'a Schedule,
    pub cancel: &'a dyn Fn() -> bool,
}

impl Denoiser<'_> {
    /// Whether the negative prompt is looked at.
    pub fn is_guided(&self) -> bool {
        self.negative().is_some()
    }

    fn negative(&self) -> Option<&[TransformerContext]> {
        self.prompts.negative.as_deref().filter(|_| self.guidance.is_used())
    }

    /// Walks a window down to clean latents; `on_step` sees the latents after each step, known frames not yet restored.
    ///
    /// # Errors
    /// [`Error::Cancelled`] within a layer's time of `cancel` turning true.
    pub fn run(
        &self,
        window: &Window<'_>,
        caches: Option<&CausalCaches>,
        on_step: &mut dyn FnMut(&Tensor),
    ) -> Result<Tensor> {
        if let Some((control, scale)) = &window.control {
            let prompts = self.prompts.with_control(self.pipeline, control, scale);
            let steered = Denoiser { prompts: &prompts, ..*self };
            return steered.walk(window, caches, on_step);
        }
        self.walk(window, caches, on_step)
    }

    /// One evaluation of latents `[1, z, T, h, w]` whose frames have timesteps of their own, `[1, T / pt]` as the transformer is
    /// told them: the flow, or the clean latents, in f32. For folders with `expand_timesteps` and one transformer.
    ///
    /// # Errors
    /// As [`Denoiser::run`].
    pub fn predict(&self, latents: &Tensor, timestep: Tensor) -> Result<Tensor> {
        let s = latents.size();
        let model = &self.pipeline.transformers[0];
        let layout = model.layout([s[2], s[3], s[4]], 0, AttentionPattern::Full);
        let input = latents.shallow_clone();
        let pair = self.pair(latents, None);
        self.guided_flow(&Step { expert: 0, layout: &layout, input, timestep }, None, pair.as_ref())
    }

    /// Both prompts as one batch, where there is guidance and windows like these latents `[B, z, T, h, w]` are small.
    fn pair(&self, latents: &Tensor, caches: Option<&CausalCaches>) -> Option<Pair> {
        let negative = self.negative()?;
        let s = latents.size();
        let config = &self.pipeline.info.transformer;
        let tokens = s[2] * s[3] * s[4] / config.patch_volume();
        if s[0] != 1 || tokens * config.dim() > SMALL_EVALUATION {
            return None;
        }
        let pairs = negative.iter().zip(&self.prompts.positive);
        let contexts =
            pairs.map(|(negative, positive)| TransformerContext::stacked(negative, positive));
        let cache = match caches {
            Some(CausalCaches { positive, negative: Some(negative) }) => {
                Some(KvCache::stacked(negative, positive))
            }
            Some(_) => return None,
            None => None,
        };
        Some(Pair { contexts: contexts.collect::<Option<_>>()?, cache })
    }

    fn walk(
        &self,
        window: &Window<'_>,
        caches: Option<&CausalCaches>,
        on_step: &mut dyn FnMut(&Tensor),
    ) -> Result<Tensor> {
        let s = window.latents.size();
        let layouts: Vec<TokenLayout> = self
            .pipeline
            .transformers
            .iter()
            .map(|model| {
                model.layout([s[2], s[3], s[4]], window.frame_offset, AttentionPattern::Full)
            })
            .collect();
        let mask = window.known.as_ref().map(|known| frame_mask(&known.frames, &window.latents));
        let pair = self.pair(&window.latents, caches);
        let mut latents = window.latents.shallow_clone();
        let mut solver = self.schedule.start(window.begin_index);
        for index in window.begin_index..self.schedule.len() {
            let expert = self.pipeline.expert(self.schedule.timesteps[index]);
            if let (Some(known), Some(mask)) = (&window.known, &mask) {
                latents = self.with_known(&latents, known, mask, index);
            }
            let input = self.model_input(window, &latents, mask.as_ref());
            let timestep = self.timestep(window, index);
            let step = Step { expert, layout: &layouts[expert], input, timestep };
            let flow_pred = self.guided_flow(&step, caches, pair.as_ref())?;
            let noise = |step| (window.noise)(noise_at_step(step));
            latents = solver.step(&flow_pred, &latents, &noise);
            on_step(&latents);
        }
        Ok(match (&window.known, &mask) {
            (Some(known), Some(mask)) => known.latents.where_self(mask, &latents),
            _ => latents,
        })
    }

    /// In folders without timesteps by frame, puts known frames at the noise level of a step.
    fn with_known(&self, latents: &Tensor, known: &Known, mask: &Tensor, index: usize) -> Tensor {
        if self.pipeline.info.expand_timesteps {
            return latents.shallow_clone();
        }
        self.schedule.add_noise(&known.latents, &known.noise, index).where_self(mask, latents)
    }

    /// What the transformer sees: clean known frames where it is told of them, and the condition beside the latents.
    fn model_input(&self, window: &Window<'_>, latents: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let input = match (&window.known, mask) {
            (Some(known), Some(mask)) if self.pipeline.info.expand_timesteps => {
                known.latents.where_self(mask, latents)
            }
            _ => latents.shallow_clone(),
        };
        match &window.condition {
            Some(condition) => Tensor::cat(&[&input, condition], 1),
            None => input,
        }
    }

    /// `[B, t]` by frame of tokens, or `[B]`.
    fn timestep(&self, window: &Window<'_>, index: usize) -> Tensor {
        let (batch, device) = (window.latents.size()[0], window.latents.device());
        let timestep = self.schedule.timesteps[index];
        if !self.pipeline.info.expand_timesteps {
            return Tensor::full([batch], f64::from(timestep), (Kind::Float, device));
        }
        let patch = self.pipeline.info.transformer.patch_size[0];
        let frames = window.latents.size()[2] / patch;
        let is_known = |frame: i64| {
            window.known.as_ref().is_some_and(|known| known.frames[(frame * patch) as usize])
        };
        let levels: Vec<f32> =
            (0..frames).map(|frame| if is_known(frame) { 0.0 } else { timestep }).collect();
        Tensor::from_slice(&levels).to_device(device).unsqueeze(0).expand([batch, frames], false)
    }

    fn guided_flow(
        &self,
        step: &Step,
        caches: Option<&CausalCaches>,
        pair: Option<&Pair>,
    ) -> Result<Tensor> {
        let scale = if step.expert == 0 { self.guidance.scale } else { self.guidance.scale_2 };
        if let Some(pair) = pair {
            let both =
                self.flow(&step.twice(), &pair.contexts[step.expert], pair.cache.as_ref())?;
            let (negative, positive) = (both.narrow(0, 0, 1), both.narrow(0, 1, 1));
            return Ok(&negative + (positive - &negative) * scale);
        }
        let positive = self.flow(
            step,
            &self.prompts.positive[step.expert],
            caches.map(|caches| &caches.positive),
        )?;
        let Some(negative) = self.negative() else { return Ok(positive) };
        let cache = caches.and_then(|caches| caches.negative.as_ref());
        let negative = self.flow(step, &negative[step.expert], cache)?;
        Ok(&negative + (positive - &negative) * scale)
    }

    /// One evaluation, `[B, z, T, h, w]` in f32.
    fn flow(
        &self,
        step: &Step,
        context: &TransformerContext,
        cache: Option<&KvCache>,
    ) -> Result<Tensor> {
        let model = &self.pipeline.transformers[step.expert];
        let input = TransformerInput {
            hidden_states: &step.input,
            timestep: by_dimension(&step.timestep),
            context,
            layout: step.layout,
            kv: cache.map_or(KvAccess::None, KvAccess::Read),
        };
        Ok(model.forward_unless(input, self.cancel)?.to_kind(Kind::Float))
    }

    /// Lets the transformer see clean latents `[1, z, T, h, w]` at `frame_offset`, and keeps their keys and values; earlier
    /// frames do not see later blocks.
    ///
    /// # Errors
    /// As [`Denoiser::run`]; `caches` are then half written.
    pub fn remember(
        &self,
        latents: &Tensor,
        frame_offset: i64,
        caches: &mut CausalCaches,
    ) -> Result<()> {
        let model = &self.pipeline.transformers[0];
        let s = latents.size();
        let block = self.pipeline.info.native.block_latent_frames;
        for start in (0..s[2]).step_by(block as usize) {
            let frames = block.min(s[2] - start);
            let layout =
                model.layout([frames, s[3], s[4]], frame_offset + start, AttentionPattern::Full);
            let part = latents.narrow(2, start, frames);
            self.append(model, (&part, &layout), &self.prompts.positive[0], &mut caches.positive)?;
            if let (Some(negative), Some(cache)) = (self.negative(), &mut caches.negative) {
                self.append(model, (&part, &layout), &negative[0], cache)?;
            }
        }
        Ok(())
    }

    fn append(
        &self,
        model: &WanTransformer3DModel,
        (latents, layout): (&Tensor, &TokenLayout),
        context: &TransformerContext,
        cache: &mut KvCache,
    ) -> Result<()> {
        let clean = Tensor::zeros([latents.size()[0]], (Kind::Float, latents.device()));
        let input = TransformerInput {
            hidden_states: latents,
            timestep: Timestep::PerClip(&clean),
            context,
            layout,
            kv: KvAccess::Append(cache),
        };
        model.forward_unless(input, self.cancel).map(|_| ())
    }
}

/// One step as both prompts share it.
struct Step<'a> {
    expert: usize,
    layout: &'a TokenLayout,
    input: Tensor,
    timestep: Tensor,
}

impl Step<'_> {
    /// The same for a batch of two.
    fn twice(&self) -> Self {
        let twice = |t: &Tensor| Tensor::cat(&[t, t], 0);
        Self { input: twice(&self.input), timestep: twice(&self.timestep), ..*self }
    }
}

fn by_dimension(timestep: &Tensor) -> Timestep<'_> {
    if timestep.dim() == 1 { Timestep::PerClip(timestep) } else { Timestep::PerFrame(timestep) }
}

/// `[1, 1, T, 1, 1]`, true at known frames.
fn frame_mask(frames: &[bool], like: &Tensor) -> Tensor {
    Tensor::from_slice(frames).view([1, 1, -1, 1, 1]).to_device(like.device())
}

/// Refuses to start work that nobody waits for.
pub(super) fn check(cancel: &dyn Fn() -> bool) -> Result<()> {
    if cancel() { Err(Error::Cancelled) } else { Ok(()) }
}

/// The step that a clip to be restyled starts from, of `steps`: the share `strength` of them is left to walk.
///
/// # Errors
/// [`Error::Setting`] if no step would be left.
pub fn begin_index(steps: usize, strength: f64) -> Result<usize> {
    let walked = ((steps as f64 * strength).max(0.0) as usize).min(steps);
    if walked == 0 {
        let expected = format!("at least {} with {steps} steps", 1.0 / steps as f64);
        return Err(Error::setting("strength", strength, expected));
    }
    Ok(steps - walked)
}
