// SPDX-License-Identifier: MPL-2.0
//! A checkpoint folder as its JSON files describe it: `model_index.json` and the configs of the components.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::models::autoencoder_kl_wan::AutoencoderKLWanConfig;
use crate::models::clip_vision::ClipVisionConfig;
use crate::models::transformer_wan::WanTransformer3DModelConfig;
use crate::models::umt5::Umt5Config;
use crate::schedulers::{Schedule, SchedulerConfig};
use crate::weights::lora::LoraFile;

/// What a model is best used at: the key `_dit` of `model_index.json`, else what its family is published with.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Native {
    /// Pixels.
    pub width: i64,
    pub height: i64,
    /// Frames per second, as a fraction.
    pub framerate: (i32, i32),
    /// Pixel frames of one window, 4n+1.
    pub num_frames: i64,
    pub num_inference_steps: u32,
    /// Noise level that the last of fewer steps than `num_inference_steps`, but three at least, begins at, at most, in what begins
    /// with noise alone; `None`: as the scheduler has it.
    pub few_steps_terminal: Option<f64>,
    /// Noise levels at which the steps of a restyling by strength begin, in walks of their number, others by straight lines between
    /// them; `None`: as the scheduler has them.
    pub restyle_sigmas: Option<Vec<f64>>,
    /// Least strength of the first block of a causal stream that is restyled by strength.
    pub restyle_first_strength: f64,
    /// File in the folder with low-rank changes (LoRA) that what restyles merges into the weights; `None`: they restyle as they are.
    pub restyle_lora: Option<String>,
    /// How strongly they change the weights: 1 as trained.
    pub restyle_lora_scale: f64,
    pub guidance_scale: f64,
    /// The same for what nothing precedes: single pictures and the first chunk of a stream; `None`: no other.
    pub initial_guidance_scale: Option<f64>,
    /// Guidance that the weights have learnt to do by themselves; 1 for none. Going on with their training keeps it.
    pub learnt_guidance_scale: f64,
    /// Tokens of a prompt, padding included.
    pub max_sequence_length: i64,
    /// Largest area that the model was trained for; `None`: no limit known.
    pub max_pixels: Option<i64>,
    /// Latent frames carried from window to window.
    pub context_latent_frames: i64,
    /// Whether the model was trained with block-causal attention too.
    pub causal: bool,
    /// Latent frames of one block of a causal rollout, the first one included.
    pub block_latent_frames: i64,
    /// How firmly a causal rollout from noise holds the statistics of its latents where its first seconds had them, 0 to 1.
    pub latent_lock: f64,
}

impl Default for Native {
    /// Wan 2.1.
    fn default() -> Self {
        Self {
            width: 832,
            height: 480,
            framerate: (16, 1),
            num_frames: 81,
            num_inference_steps: 50,
            few_steps_terminal: None,
            restyle_sigmas: None,
            restyle_first_strength: 0.0,
            restyle_lora: None,
            restyle_lora_scale: 1.0,
            guidance_scale: 5.0,
            initial_guidance_scale: None,
            learnt_guidance_scale: 1.0,
            max_sequence_length: 512,
            max_pixels: None,
            context_latent_frames: 1,
            causal: false,
            block_latent_frames: 1,
            latent_lock: 0.0,
        }
    }
}

impl Native {
    /// Wan 2.2 TI2V-5B.
    fn wan22() -> Self {
        Self { width: 1280, height: 704, framerate: (24, 1), num_frames: 121, ..Self::default() }
    }

    fn validate(&self, path: &Path, temporal: i64) -> Result<()> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(Error::setting(format!("{}: _dit.{key}", path.display()), found, expected))
        };
        if self.width < 16 || self.height < 16 {
            let found = format!("{}x{}", self.width, self.height);
            return wrong("width, height", found, "at least 16 pixels");
        }
        if self.framerate.0 < 1 || self.framerate.1 < 1 {
            return wrong("framerate", format!("{:?}", self.framerate), "a positive fraction");
        }
        if self.num_frames < 1 || (self.num_frames - 1) % temporal != 0 {
            let expected = format!("{temporal}n+1 frames");
            return wrong("num_frames", self.num_frames.to_string(), &expected);
        }
        let latent_frames = (self.num_frames - 1) / temporal + 1;
        if !(0..latent_frames.max(1)).contains(&self.context_latent_frames) && latent_frames > 1 {
            let expected = format!("0 to {}, fewer than the window has", latent_frames - 1);
            return wrong(
                "context_latent_frames",
                self.context_latent_frames.to_string(),
                &expected,
            );
        }
        if !(1..=latent_frames).contains(&self.block_latent_frames) {
            let expected = format!("1 to {latent_frames}");
            return wrong("block_latent_frames", self.block_latent_frames.to_string(), &expected);
        }
        if let Some(level) = self.few_steps_terminal.filter(|level| !(*level > 0.0 && *level < 1.0))
        {
            let expected = "null, or a noise level above 0 and below 1";
            return wrong("few_steps_terminal", level.to_string(), expected);
        }
        let unusable = |levels: &&Vec<f64>| Schedule::from_sigmas(levels).is_err();
        if let Some(levels) = self.restyle_sigmas.as_ref().filter(unusable) {
            let expected = "null, or strictly falling noise levels above 0 and at most 1";
            return wrong("restyle_sigmas", format!("{levels:?}"), expected);
        }
        if !(0.0..=1.0).contains(&self.latent_lock) {
            return wrong("latent_lock", self.latent_lock.to_string(), "0 to 1");
        }
        if !(0.0..=1.0).contains(&self.restyle_first_strength) {
            let found = self.restyle_first_strength.to_string();
            return wrong("restyle_first_strength", found, "0 to 1");
        }
        if !(-10.0..=10.0).contains(&self.restyle_lora_scale) {
            return wrong("restyle_lora_scale", self.restyle_lora_scale.to_string(), "-10 to 10");
        }
        if self.max_sequence_length < 1 || self.num_inference_steps < 1 {
            let found = format!("{} and {}", self.max_sequence_length, self.num_inference_steps);
            return wrong("max_sequence_length, num_inference_steps", found, "at least 1");
        }
        Ok(())
    }
}

/// A checkpoint folder that has been looked at but not loaded.
#[derive(Debug, Clone)]
pub struct FolderInfo {
    pub folder: PathBuf,
    /// `WanPipeline`, `WanImageToVideoPipeline` or another that holds the same components.
    pub class_name: String,
    pub native: Native,
    pub transformer: WanTransformer3DModelConfig,
    /// The low-noise expert of a two-expert folder.
    pub transformer_2: Option<WanTransformer3DModelConfig>,
    pub vae: AutoencoderKLWanConfig,
    pub text_encoder: Umt5Config,
    /// For models that look at the embedding of an image.
    pub image_encoder: Option<ClipVisionConfig>,
    pub scheduler: SchedulerConfig,
    /// Share of the timesteps below which `transformer_2` takes over.
    pub boundary_ratio: Option<f64>,
    /// Whether frames may have timesteps of their own.
    pub expand_timesteps: bool,
    /// Low-rank changes to merge into the weights when they are loaded, one on top of the other.
    pub loras: Vec<LoraFile>,
}

impl FolderInfo {
    /// Reads and checks `model_index.json` and the configs, no weights; cheap, and no call of libtorch.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] or [`Error::Setting`] naming the file and what is wrong in it.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = Index::read(folder)?;
        index.check_classes()?;
        let transformer = index.transformer("transformer")?;
        let transformer_2 =
            index.class("transformer_2").map(|_| index.transformer("transformer_2")).transpose()?;
        let vae: AutoencoderKLWanConfig = config(folder, "vae")?;
        vae.validate()?;
        let text_encoder: Umt5Config = config(folder, "text_encoder")?;
        text_encoder.validate()?;
        let image_encoder = index
            .class("image_encoder")
            .filter(|class| class.starts_with("CLIPVisionModel"))
            .map(|_| config::<ClipVisionConfig>(folder, "image_encoder"))
            .transpose()?;
        if let Some(config) = &image_encoder {
            config.validate()?;
        }
        let expand_timesteps = index.flag("expand_timesteps");
        let native = index.native(expand_timesteps || vae.z_dim == 48)?;
        native.validate(&index.path, vae.temporal_factor())?;
        let info = Self {
            class_name: index.json["_class_name"].as_str().unwrap_or_default().to_owned(),
            scheduler: SchedulerConfig::from_folder(&folder.join("scheduler"))?,
            boundary_ratio: index.json.get("boundary_ratio").and_then(serde_json::Value::as_f64),
            folder: folder.to_owned(),
            expand_timesteps,
            native,
            transformer,
            transformer_2,
            vae,
            text_encoder,
            image_encoder,
            loras: Vec::new(),
        };
        info.check_agreement("transformer", &info.transformer)?;
        if let Some(transformer_2) = &info.transformer_2 {
            info.check_agreement("transformer_2", transformer_2)?;
        }
        Ok(info)
    }

    /// The same folder with one more LoRA file to be merged into its weights; the file itself is read when they are.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if there is no such file.
    pub fn with_lora(mut self, path: &Path, scale: f64) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::checkpoint(path, "no such file; lora names a safetensors file"));
        }
        self.loras.push(LoraFile { path: path.to_owned(), scale });
        Ok(self)
    }

    /// The same folder as what restyles opens it: with its own LoRA for that, where it names one.
    ///
    /// # Errors
    /// [`Error::Setting`] if the file that it names is not there.
    pub fn for_restyling(self) -> Result<Self> {
        let Some(name) = self.native.restyle_lora.clone() else { return Ok(self) };
        let path = self.folder.join(&name);
        if !path.is_file() {
            let key = format!("{}: _dit.restyle_lora", self.folder.join(MODEL_INDEX).display());
            let expected = "null, or the name of a safetensors file in this folder";
            return Err(Error::setting(key, name, expected));
        }
        let scale = self.native.restyle_lora_scale;
        self.with_lora(&path, scale)
    }

    /// Whether a transformer fits the other components.
    fn check_agreement(
        &self,
        component: &str,
        transformer: &WanTransformer3DModelConfig,
    ) -> Result<()> {
        let wrong = |key: &str, found: String, expected: String| {
            let file = self.folder.join(component).join("config.json");
            Err(Error::setting(format!("{}: {key}", file.display()), found, expected))
        };
        if transformer.text_dim != self.text_encoder.d_model {
            let expected = format!("text_encoder's d_model, {}", self.text_encoder.d_model);
            return wrong("text_dim", transformer.text_dim.to_string(), expected);
        }
        let z = self.vae.z_dim;
        if transformer.output_channels() != z {
            let expected = format!("the vae's z_dim, {z}");
            return wrong("out_channels", transformer.output_channels().to_string(), expected);
        }
        let conditioned = 2 * z + self.vae.temporal_factor();
        if transformer.in_channels != z && transformer.in_channels != conditioned {
            let expected = format!("{z}, or {conditioned} with a condition");
            return wrong("in_channels", transformer.in_channels.to_string(), expected);
        }
        let control = 2 * z + self.vae.spatial_factor().pow(2);
        if transformer.vace_layers.is_some() && transformer.vace_in_channels != control {
            let expected = format!("{control}, two latents and a mask of the vae's");
            return wrong("vace_in_channels", transformer.vace_in_channels.to_string(), expected);
        }
        // Both experts see the same latents.
        if transformer.in_channels != self.transformer.in_channels {
            let expected = format!("that of transformer, {}", self.transformer.in_channels);
            return wrong("in_channels", transformer.in_channels.to_string(), expected);
        }
        if transformer.patch_size != self.transformer.patch_size {
            let expected = format!("that of transformer, {:?}", self.transformer.patch_size);
            return wrong("patch_size", format!("{:?}", transformer.patch_size), expected);
        }
        Ok(())
    }

    /// Whether known frames are told to the transformer in channels beside the latents.
    pub fn concatenates_condition(&self) -> bool {
        self.transformer.in_channels != self.vae.z_dim
    }

    /// Whether known pixels steer the transformer through a branch of its own.
    pub fn controls_by_branch(&self) -> bool {
        self.transformer.vace_layers.is_some()
    }

    /// Whether known frames are given as pixels, not as latents.
    pub(super) fn knows_by_pixels(&self) -> bool {
        self.concatenates_condition() || self.controls_by_branch()
    }

    /// Pixels of one token in width and height; generated sizes are multiples of it.
    pub fn size_multiple(&self) -> i64 {
        let [_, height, width] = self.transformer.patch_size;
        self.vae.spatial_factor() * height.max(width)
    }

    /// The size to generate for an output of `width` x `height`: itself, or scaled down to the largest area that the
    /// model was trained for; the caller scales the frames up again.
    pub fn generation_size(&self, width: i64, height: i64) -> (i64, i64) {
        match self.native.max_pixels {
            Some(limit) if width * height > limit => {
                let scale = (limit as f64 / (width * height) as f64).sqrt();
                let scaled = |side: i64| ((side as f64 * scale).round() as i64).max(16);
                (scaled(width), scaled(height))
            }
            _ => (width, height),
        }
    }

    /// Width and height rounded up to what can be generated.
    pub fn padded_size(&self, width: i64, height: i64) -> (i64, i64) {
        let multiple = self.size_multiple();
        let up = |side: i64| (side + multiple - 1) / multiple * multiple;
        (up(width), up(height))
    }

    /// The noise levels of so many steps down from noise alone.
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::set_timesteps`].
    pub fn schedule_from_noise(&self, num_inference_steps: u32) -> Result<Schedule> {
        let schedule = self.scheduler.set_timesteps(num_inference_steps as usize, None)?;
        let Native { num_inference_steps: own, few_steps_terminal, .. } = self.native;
        Ok(match few_steps_terminal.filter(|_| num_inference_steps < own) {
            Some(terminal) => schedule.with_terminal_at_most(terminal),
            None => schedule,
        })
    }

    /// The noise levels of so many steps, of which a restyling's strength leaves some.
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::set_timesteps`].
    pub fn schedule_from_video(&self, num_inference_steps: u32) -> Result<Schedule> {
        let schedule = self.scheduler.set_timesteps(num_inference_steps as usize, None)?;
        Ok(match &self.native.restyle_sigmas {
            Some(levels) => schedule.over_levels(levels),
            None => schedule,
        })
    }

    /// Latent frames of one window.
    pub fn window_latent_frames(&self) -> i64 {
        self.vae.num_latent_frames(self.native.num_frames)
    }
}

/// `model_index.json`.
const MODEL_INDEX: &str = "model_index.json";

/// What it says.
struct Index<'a> {
    folder: &'a Path,
    path: PathBuf,
    json: serde_json::Value,
}

impl<'a> Index<'a> {
    fn read(folder: &'a Path) -> Result<Self> {
        let path = folder.join(MODEL_INDEX);
        let missing = if !folder.is_dir() {
            "no such folder"
        } else if !path.is_file() {
            "no model_index.json in it"
        } else {
            return Ok(Self { folder, json: read_json(&path)?, path });
        };
        let what = format!("{missing}; model-path must name a folder in diffusers' format");
        Err(Error::checkpoint(folder, what))
    }

    /// The class of a component, where the folder has that component.
    fn class(&self, component: &str) -> Option<&str> {
        self.json.get(component)?.get(1)?.as_str()
    }

    fn has_vace(&self) -> bool {
        self.class("transformer") == Some("WanVACETransformer3DModel")
    }

    fn check_classes(&self) -> Result<()> {
        for (component, expected) in [
            ("transformer", "WanTransformer3DModel"),
            ("vae", "AutoencoderKLWan"),
            ("text_encoder", "UMT5EncoderModel"),
        ] {
            let class = self.class(component);
            if class != Some(expected) && !(component == "transformer" && self.has_vace()) {
                let name = format!("{}: {component}", self.path.display());
                return Err(Error::setting(name, class.unwrap_or("nothing"), expected));
            }
        }
        Ok(())
    }

    /// The configuration of a transformer, checked by itself.
    fn transformer(&self, component: &str) -> Result<WanTransformer3DModelConfig> {
        let transformer: WanTransformer3DModelConfig = config(self.folder, component)?;
        transformer.validate(component)?;
        if self.has_vace() != transformer.vace_layers.is_some() {
            let expected = if self.has_vace() { "a list, for a VACE model" } else { "nothing" };
            let found = format!("{:?}", transformer.vace_layers);
            let name = format!("{component}/config.json: vace_layers");
            return Err(Error::setting(name, found, expected));
        }
        Ok(transformer)
    }

    fn native(&self, wan22: bool) -> Result<Native> {
        let family = if wan22 { Native::wan22() } else { Native::default() };
        let Some(own) = self.json.get("_dit") else { return Ok(family) };
        let unusable =
            |error: serde_json::Error| Error::checkpoint(&self.path, format!("_dit: {error}"));
        let mut merged = serde_json::to_value(family).map_err(unusable)?;
        if let (Some(merged), Some(own)) = (merged.as_object_mut(), own.as_object()) {
            merged.extend(own.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        serde_json::from_value(merged).map_err(unusable)
    }

    fn flag(&self, key: &str) -> bool {
        self.json.get(key).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }
}

fn config<T: DeserializeOwned>(folder: &Path, component: &str) -> Result<T> {
    read_json(&folder.join(component).join("config.json"))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::checkpoint(path, format!("cannot be used: {e}")))
}
