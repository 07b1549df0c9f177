// SPDX-License-Identifier: MPL-2.0
//! From a folder and a request to frames: loading, prompts, the denoising loop, and endless rollouts.
//!
//! [`FolderInfo`] looks at a folder, [`Pipeline`] holds its loaded models and never changes afterwards; a
//! [`Rollout`] holds what one stream from a prompt remembers from chunk to chunk, a [`Restyler`] the same of one that
//! follows other video, a [`LatentMixer`] that of one between two others.

mod conditioning;
mod continuation;
mod decode;
mod denoise;
mod detail;
mod folder;
mod image;
mod load;
mod memory;
mod mix;
mod noise;
mod request;
mod restyle;
mod rollout;
mod staggered;
mod statistics;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::models::autoencoder_kl_wan::AutoencoderKLWan;
use crate::models::clip_vision::ClipVisionModel;
use crate::models::tokenizer::PromptTokenizer;
use crate::models::transformer_wan::WanTransformer3DModel;
use crate::models::umt5::UMT5EncoderModel;
use crate::torch::guarded;
use image::ImageProcessor;

pub use decode::{RgbFrame, rgb_frames, video_of};
pub use denoise::{CausalCaches, Denoiser, Guidance, Known, Prompts, Window};
pub use folder::{FolderInfo, Native};
pub use image::{Filter, resize};
pub use memory::MemoryEstimate;
pub use mix::{LatentMixer, MixControls, MixFrame, Mixed, blend_latents, bridge, mix_level};
pub use noise::{NoiseKind, counter_noise, torch_noise};
pub use request::{Controls, Request, Settings};
pub use restyle::{
    EmbeddingCache, Embeddings, RestyleControls, Restyled, Restyler, StartLevel, VideoEncoder,
    blend_embeddings,
};
pub use rollout::{Chunk, Rollout, Timings};
pub use statistics::{ColourLock, Motion, difference};

/// The models of a folder on their device; immutable, so any number of rollouts share it.
#[derive(Debug)]
pub struct Pipeline {
    info: FolderInfo,
    device: Device,
    tokenizer: PromptTokenizer,
    text_encoder: UMT5EncoderModel,
    /// One, or the high-noise and the low-noise expert.
    transformers: Vec<WanTransformer3DModel>,
    vae: AutoencoderKLWan,
    image_encoder: Option<(ClipVisionModel, ImageProcessor)>,
}

impl Pipeline {
    /// What the folder's JSON files say.
    pub fn info(&self) -> &FolderInfo {
        &self.info
    }

    /// Where the models are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &PromptTokenizer {
        &self.tokenizer
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &UMT5EncoderModel {
        &self.text_encoder
    }

    /// The transformers: one, or the high-noise and the low-noise expert.
    pub fn transformers(&self) -> &[WanTransformer3DModel] {
        &self.transformers
    }

    /// The autoencoder.
    pub fn vae(&self) -> &AutoencoderKLWan {
        &self.vae
    }

    /// Embeddings `[1, max_sequence_length, d]` of a prompt, cleaned first; zeros after its last token.
    ///
    /// # Errors
    /// A text that the tokenizer refuses, or [`crate::error::Error::Torch`].
    pub fn encode_prompt(&self, text: &str) -> Result<Tensor> {
        self.encode_prompt_to(text, self.info.native.max_sequence_length)
    }

    /// As [`Self::encode_prompt`] with another length.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`].
    pub fn encode_prompt_to(&self, text: &str, max_sequence_length: i64) -> Result<Tensor> {
        guarded(|| {
            let tokens = self.tokenizer.encode(text, max_sequence_length as usize)?;
            Ok(self.text_encoder.encode(&tokens.ids, max_sequence_length))
        })
    }

    /// The index of the transformer for a timestep.
    fn expert(&self, timestep: f32) -> usize {
        // Folders converted from 2.1 may carry a boundary without having a second expert.
        match self.info.boundary_ratio {
            Some(ratio) if self.transformers.len() > 1 => {
                usize::from(f64::from(timestep) < ratio * 1000.0)
            }
            _ => 0,
        }
    }

    /// Normal noise `[1, z, T, h, w]` for latent frames from `first_frame` on, on the device; `step` as in [`counter_noise`].
    fn noise(
        &self,
        kind: NoiseKind,
        seed: u64,
        first_frame: u64,
        step: u32,
        size: [i64; 3],
    ) -> Tensor {
        let [frames, height, width] = size;
        let channels = self.info.vae.z_dim;
        let noise = match kind {
            NoiseKind::Counter => {
                counter_noise(seed, first_frame, step, [channels, frames, height, width])
            }
            // torch has one stream a seed; later windows and steps take other seeds.
            NoiseKind::Torch => {
                let seed = seed.wrapping_add(first_frame).wrapping_add(u64::from(step) << 16);
                torch_noise(seed, &[1, channels, frames, height, width])
            }
        };
        noise.to_device(self.device).to_kind(Kind::Float)
    }
}
