// SPDX-License-Identifier: MPL-2.0
//! The properties that all elements share: which model, on what, and what it is told to paint.
//!
//! This file says everything about a property; the values live in [`Settings`], whose `Default` is also what
//! `gst-inspect-1.0` shows, unless an element has defaults of its own.

use std::path::PathBuf;

use gst::prelude::*;

use crate::pipeline::Controls;
use crate::torch::Precision;

/// The property `precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitPrecision")]
pub enum DitPrecision {
    #[default]
    #[enum_value(name = "Auto: bf16 on a GPU, f32 on the CPU", nick = "auto")]
    Auto,
    #[enum_value(name = "F32: 32-bit floating point", nick = "f32")]
    F32,
    #[enum_value(name = "BF16: 16-bit brain floating point", nick = "bf16")]
    Bf16,
    #[enum_value(name = "F16: 16-bit floating point", nick = "f16")]
    F16,
}

impl From<DitPrecision> for Precision {
    fn from(precision: DitPrecision) -> Self {
        match precision {
            DitPrecision::Auto => Self::Auto,
            DitPrecision::F32 => Self::F32,
            DitPrecision::Bf16 => Self::Bf16,
            DitPrecision::F16 => Self::F16,
        }
    }
}

const MODEL_PATH: &str = "model-path";
const LORA: &str = "lora";
const LORA_SCALE: &str = "lora-scale";
const DEVICE: &str = "device";
const PRECISION: &str = "precision";
const THREADS: &str = "threads";
const PROMPT: &str = "prompt";
const NEGATIVE_PROMPT: &str = "negative-prompt";
const SEED: &str = "seed";
const STEPS: &str = "steps";
const GUIDANCE_SCALE: &str = "guidance-scale";

/// Below 0 the model's own guidance is used.
const OWN_GUIDANCE: f64 = -1.0;
const MAX_STEPS: u32 = 1000;
const MAX_GUIDANCE: f64 = 100.0;
const MAX_THREADS: u32 = 1024;
const MAX_LORA_SCALE: f64 = 10.0;

/// Values of the shared properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Empty for the model that comes with the plugin.
    pub model_path: String,
    /// Empty for none.
    pub lora: String,
    pub lora_scale: f64,
    pub device: String,
    pub precision: DitPrecision,
    /// 0 for libtorch's default.
    pub threads: u32,
    pub prompt: String,
    pub negative_prompt: String,
    pub seed: u64,
    /// 0 for the model's own number.
    pub steps: u32,
    pub guidance_scale: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            model_path: String::new(),
            lora: String::new(),
            lora_scale: 1.0,
            device: "auto".into(),
            precision: DitPrecision::default(),
            threads: 0,
            prompt: "a red circle moving right over the sea".into(),
            negative_prompt: String::new(),
            seed: 0,
            steps: 0,
            guidance_scale: OWN_GUIDANCE,
        }
    }
}

/// What has to happen after a property was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Used when the element next goes from READY to PAUSED.
    NextStart,
    /// Used for the next chunk.
    NextChunk,
}

impl Settings {
    /// The specifications of the shared properties, with the defaults of an element; `guidance` are further flags of
    /// `guidance-scale`, which only some elements bind to a controller.
    pub fn pspecs(default: &Self, guidance: glib::ParamFlags) -> Vec<glib::ParamSpec> {
        let mut specs = default.model_pspecs();
        specs.extend(default.control_pspecs(guidance));
        specs
    }

    fn model_pspecs(&self) -> Vec<glib::ParamSpec> {
        let default = self;
        vec![
            glib::ParamSpecString::builder(MODEL_PATH)
                .nick("Model path")
                .blurb("Folder of a Wan checkpoint in the diffusers layout (it holds model_index.json); empty: the model that comes with the plugin")
                .default_value(Some(default.model_path.as_str()))
                .mutable_ready()
                .build(),
            glib::ParamSpecString::builder(LORA)
                .nick("LoRA")
                .blurb("Safetensors file with low-rank changes (LoRA) to merge into the model's weights, in the names of diffusers, the original code or kohya; empty: none")
                .default_value(Some(default.lora.as_str()))
                .mutable_ready()
                .build(),
            glib::ParamSpecDouble::builder(LORA_SCALE)
                .nick("LoRA scale")
                .blurb("How strongly the LoRA changes the model (factor; 1 = as trained, 0 = not at all)")
                .minimum(-MAX_LORA_SCALE)
                .maximum(MAX_LORA_SCALE)
                .default_value(default.lora_scale)
                .mutable_ready()
                .build(),
            glib::ParamSpecString::builder(DEVICE)
                .nick("Device")
                .blurb("Where the model runs: auto (a GPU if there is one), cpu, cuda or cuda:N")
                .default_value(Some(default.device.as_str()))
                .mutable_ready()
                .build(),
            glib::ParamSpecEnum::builder_with_default(PRECISION, default.precision)
                .nick("Precision")
                .blurb("Arithmetic of the model; fewer bits need less memory and are faster on a GPU")
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder(THREADS)
                .nick("Threads")
                .blurb("CPU threads of the model's arithmetic (count; 0 = all cores)")
                .maximum(MAX_THREADS)
                .default_value(default.threads)
                .mutable_ready()
                .build(),
        ]
    }

    fn control_pspecs(&self, guidance: glib::ParamFlags) -> Vec<glib::ParamSpec> {
        let default = self;
        vec![
            glib::ParamSpecString::builder(PROMPT)
                .nick("Prompt")
                .blurb("What the video shows, in words; a change takes effect at the next chunk")
                .default_value(Some(default.prompt.as_str()))
                .mutable_playing()
                .build(),
            glib::ParamSpecString::builder(NEGATIVE_PROMPT)
                .nick("Negative prompt")
                .blurb("What guidance steers away from, in words; used where guidance is above 1; a change takes effect at the next chunk")
                .default_value(Some(default.negative_prompt.as_str()))
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt64::builder(SEED)
                .nick("Seed")
                .blurb("Which noise the video begins from: the same seed and settings give the same bytes on the same machine; a change draws new noise from the next chunk on")
                .default_value(default.seed)
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt::builder(STEPS)
                .nick("Steps")
                .blurb("Denoising steps of each chunk (count; 0 = the model's own number); a change takes effect at the next chunk")
                .maximum(MAX_STEPS)
                .default_value(default.steps)
                .mutable_playing()
                .build(),
            glib::ParamSpecDouble::builder(GUIDANCE_SCALE)
                .nick("Guidance scale")
                .blurb("How strongly the prompt is followed (factor; 1 = no guidance and half the work, -1 = the model's own factor); a change takes effect at the next chunk")
                .minimum(OWN_GUIDANCE)
                .maximum(MAX_GUIDANCE)
                .default_value(default.guidance_scale)
                .flags(glib::ParamFlags::READWRITE | guidance)
                .mutable_playing()
                .build(),
        ]
    }

    /// Sets a shared property; None when the name is not one of them.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> Option<Effect> {
        let text = || value.get::<Option<String>>().ok().flatten().unwrap_or_default();
        match name {
            MODEL_PATH => self.model_path = text(),
            LORA => self.lora = text(),
            LORA_SCALE => self.lora_scale = value.get().ok()?,
            DEVICE => self.device = text(),
            PRECISION => self.precision = value.get().ok()?,
            THREADS => self.threads = value.get().ok()?,
            PROMPT => self.prompt = text(),
            NEGATIVE_PROMPT => self.negative_prompt = text(),
            SEED => self.seed = value.get().ok()?,
            STEPS => self.steps = value.get().ok()?,
            GUIDANCE_SCALE => self.guidance_scale = value.get().ok()?,
            _ => return None,
        }
        match name {
            MODEL_PATH | LORA | LORA_SCALE | DEVICE | PRECISION | THREADS => {
                Some(Effect::NextStart)
            }
            _ => Some(Effect::NextChunk),
        }
    }

    /// The value of a shared property; None when the name is not one of them.
    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            MODEL_PATH => self.model_path.to_value(),
            LORA => self.lora.to_value(),
            LORA_SCALE => self.lora_scale.to_value(),
            DEVICE => self.device.to_value(),
            PRECISION => self.precision.to_value(),
            THREADS => self.threads.to_value(),
            PROMPT => self.prompt.to_value(),
            NEGATIVE_PROMPT => self.negative_prompt.to_value(),
            SEED => self.seed.to_value(),
            STEPS => self.steps.to_value(),
            GUIDANCE_SCALE => self.guidance_scale.to_value(),
            _ => return None,
        })
    }

    /// The part that may change from chunk to chunk.
    pub fn controls(&self) -> Controls {
        Controls {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            guidance_scale: (self.guidance_scale >= 0.0).then_some(self.guidance_scale),
            seed: self.seed,
        }
    }

    /// The number of steps asked for; None for the model's own.
    pub fn steps(&self) -> Option<u32> {
        (self.steps > 0).then_some(self.steps)
    }

    /// The LoRA file asked for, with its scale.
    pub fn lora(&self) -> Option<(PathBuf, f64)> {
        (!self.lora.is_empty()).then(|| (PathBuf::from(&self.lora), self.lora_scale))
    }

    /// The folder asked for; None for the model that comes with the plugin.
    pub fn model_path(&self) -> Option<PathBuf> {
        (!self.model_path.is_empty()).then(|| PathBuf::from(&self.model_path))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Checks that each property has a value of its type, a default that is the value's own, and a blurb.
    pub fn check_table<S: Clone + PartialEq + std::fmt::Debug, E>(
        settings: &S,
        specs: &[glib::ParamSpec],
        get: impl Fn(&S, &str) -> Option<glib::Value>,
        set: impl Fn(&mut S, &str, &glib::Value) -> Option<E>,
    ) {
        for spec in specs {
            let value = get(settings, spec.name()).unwrap();
            assert!(value.type_().is_a(spec.value_type()), "{}", spec.name());
            let mut changed = settings.clone();
            assert!(set(&mut changed, spec.name(), spec.default_value()).is_some());
            assert_eq!(&changed, settings, "{}", spec.name());
            assert!(spec.blurb().is_some_and(|blurb| blurb.len() > 20));
        }
    }

    #[test]
    fn every_property_has_a_value_like_its_default() {
        gst::init().unwrap();
        let settings = Settings::default();
        let specs = Settings::pspecs(&settings, glib::ParamFlags::empty());
        check_table(&settings, &specs, Settings::get, Settings::set);
    }

    #[test]
    fn own_values_of_the_model_are_none() {
        let settings = Settings::default();
        assert_eq!((settings.steps(), settings.controls().guidance_scale), (None, None));
        assert_eq!(settings.model_path(), None);
    }
}
