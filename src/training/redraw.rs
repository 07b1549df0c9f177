// SPDX-License-Identifier: MPL-2.0
//! What a decoder is given in use: latents of its encoder, and what a transformer makes of such latents once they have been
//! noised. The latter lack what the transformer could not tell, so that a decoder taught on the former alone has never seen
//! the like.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use super::captions::canonical;
use super::vae::{VaeOptions, weighed};
use super::world::{Scene, Split};
use super::{batch::Draws, generate};
use crate::models::autoencoder_kl_wan::DiagonalGaussian;
use crate::models::transformer_wan::{AttentionPattern, Timestep, TransformerInput};
use crate::nn::attention::KvAccess;
use crate::nn::conv3d::FeatureCaches;
use crate::pipeline::Pipeline;

/// Noise levels from which latents are made anew; the last step of few begins in the upper half of these.
const LEVELS: [f64; 2] = [0.1, 0.6];

/// Shapes of such lessons in turn: clips, frames, width and height.
const SHAPES: [(u64, i64, (i64, i64)); 6] = [
    (5, 1, (224, 128)),
    (1, 9, (224, 128)),
    (1, 9, (128, 224)),
    (8, 1, (128, 128)),
    (1, 13, (128, 128)),
    (1, 9, (224, 128)),
];

/// A finished pipeline that encodes, and makes latents anew.
pub(super) struct Redrawer {
    pipeline: Pipeline,
    favoured: Vec<&'static str>,
    seed: u64,
    device: Device,
}

impl Redrawer {
    /// Opens the pipeline folder.
    ///
    /// # Errors
    /// When it cannot be loaded, or its transformer predicts something else than clean latents by the frame's level.
    pub fn open(folder: &Path, options: &VaeOptions) -> Result<Self> {
        let pipeline = generate::load(folder, options.device)?;
        let info = pipeline.info();
        ensure!(
            info.scheduler.predicts_sample() && info.expand_timesteps,
            "{}: found a transformer that predicts the flow or has one level for all frames, expected one like the default \
             model's (prediction_type \"sample\", expand_timesteps)",
            folder.display()
        );
        let VaeOptions { favoured, seed, device, .. } = options;
        Ok(Self { pipeline, favoured: favoured.clone(), seed: *seed, device: *device })
    }

    /// Latents `[B, z, T, h, w]` as a decoder takes them, the video `[B, 3, F, H, W]` in [-1, 1] that they stand for, and how
    /// much its pixels count, `[B, 1, F, H, W]`: of lesson `number`, which every second time is these crops, only encoded.
    ///
    /// # Errors
    /// Those of encoding a prompt.
    pub fn lesson(
        &self,
        number: u64,
        (video, weights): (Tensor, Tensor),
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let _no_grad = tch::no_grad_guard();
        if number.is_multiple_of(2) {
            let DiagonalGaussian { mean, logvar } =
                self.pipeline.vae().encode(&video, &mut FeatureCaches::default());
            let sampled = &mean + (logvar * 0.5).exp() * mean.randn_like();
            return Ok((sampled, video, weights));
        }
        let mut draws = Draws::new(self.seed, number);
        let (clips, frames, size) = SHAPES[(number / 2 % SHAPES.len() as u64) as usize];
        let scenes: Vec<Scene> = (0..clips)
            .map(|_| Scene::favouring(draws.next(), Split::Train, &self.favoured))
            .collect();
        let first = (draws.next() % 16) as i64;
        let (videos, weights): (Vec<Tensor>, Vec<Tensor>) =
            scenes.iter().map(|scene| weighed(scene, size, frames, first)).unzip();
        let stack = |tensors: &[Tensor]| Tensor::stack(tensors, 0).to_device(self.device);
        let video = stack(&videos);
        let levels: Vec<f32> = scenes
            .iter()
            .map(|_| (LEVELS[0] + (LEVELS[1] - LEVELS[0]) * draws.unit()) as f32)
            .collect();
        let latents = self.redrawn(&self.pipeline.encode_video(&video), &scenes, &levels)?;
        Ok((self.pipeline.vae().denormalize_latents(&latents), video, stack(&weights)))
    }

    /// Normalised latents `[B, z, T, h, w]`, noised to a level each and made anew in one evaluation under their captions.
    fn redrawn(&self, latents: &Tensor, scenes: &[Scene], levels: &[f32]) -> Result<Tensor> {
        let s = latents.size();
        let embeds = scenes
            .iter()
            .map(|scene| Ok(self.pipeline.encode_prompt(&canonical(&scene.attributes))?))
            .collect::<Result<Vec<_>>>()?;
        let levels = Tensor::from_slice(levels).to_device(self.device).view([-1, 1]);
        let noisy = latents + (latents.randn_like() - latents) * levels.view([-1, 1, 1, 1, 1]);
        let model = &self.pipeline.transformers()[0];
        let timesteps = levels.expand([-1, s[2]], false) * 1000.0;
        let input = TransformerInput {
            hidden_states: &noisy,
            timestep: Timestep::PerFrame(&timesteps),
            context: &model.context(&Tensor::cat(&embeds, 0), None),
            layout: &model.layout([s[2], s[3], s[4]], 0, AttentionPattern::Full),
            kv: KvAccess::None,
        };
        Ok(model.forward(input).to_kind(Kind::Float))
    }
}
