// SPDX-License-Identifier: MPL-2.0
//! The properties of `ditfilter` beside those that all elements share.

use std::time::Duration;

use gst::prelude::*;

use crate::elements::settings::{Effect, Settings};
use crate::pipeline::{FolderInfo, StartLevel};
use crate::session::{RestyleSettings, Words};

use super::{DitLatePolicy, DitOnError};

/// Below 0 `strength` counts.
const BY_STRENGTH: f64 = -1.0;
const MAX_CHUNK: u32 = 1024;
const MAX_BATCH: u32 = 16;
const MAX_SIZE: u32 = 8192;

/// Values of all properties.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterSettings {
    pub common: Settings,
    pub strength: f64,
    pub noise_level: f64,
    /// 0 where the other side or the model decides.
    pub processing_width: u32,
    pub processing_height: u32,
    /// 0 for the model's own size.
    pub processing_scale: f64,
    /// 0 for the model's own.
    pub chunk_frames: u32,
    /// Chunks denoised together.
    pub stream_batch: u32,
    /// Nanoseconds; 0 for the length of a chunk.
    pub latency_budget: u64,
    pub late_policy: DitLatePolicy,
    pub on_error: DitOnError,
    pub bypass: bool,
    /// Nanoseconds.
    pub style_transition: u64,
    pub motion_relief: f64,
    pub color_lock: f64,
    pub still_threshold: f64,
}

impl Default for FilterSettings {
    fn default() -> Self {
        Self {
            common: Settings { prompt: "in 1920s film style".into(), ..Settings::default() },
            strength: 0.6,
            noise_level: BY_STRENGTH,
            processing_width: 0,
            processing_height: 0,
            processing_scale: 0.0,
            chunk_frames: 0,
            stream_batch: 1,
            latency_budget: 0,
            late_policy: DitLatePolicy::default(),
            on_error: DitOnError::default(),
            bypass: false,
            style_transition: 0,
            motion_relief: 0.0,
            color_lock: 0.5,
            still_threshold: 0.002,
        }
    }
}

impl FilterSettings {
    /// The specifications of all properties that can be written.
    pub fn pspecs() -> Vec<glib::ParamSpec> {
        let default = Self::default();
        let mut specs = Settings::pspecs(&default.common, gst::PARAM_FLAG_CONTROLLABLE);
        specs.extend(default.level_pspecs());
        specs.extend(default.size_pspecs());
        specs.extend(default.timing_pspecs());
        specs.extend(default.steadiness_pspecs());
        specs
    }

    fn level_pspecs(&self) -> Vec<glib::ParamSpec> {
        vec![
            glib::ParamSpecDouble::builder("strength")
                .nick("Strength")
                .blurb("How much of the picture is made anew: the share of the denoising steps that is walked (0 = the picture as it is, 1 = nothing of it is left); a change takes effect at the next chunk")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(self.strength)
                .controllable()
                .mutable_playing()
                .build(),
            glib::ParamSpecDouble::builder("noise-level")
                .nick("Noise level")
                .blurb("The noise level that restyling starts from, instead of strength (0 = the picture as it is, 1 = noise alone, -1 = go by strength); a change takes effect at the next chunk")
                .minimum(BY_STRENGTH)
                .maximum(1.0)
                .default_value(self.noise_level)
                .controllable()
                .mutable_playing()
                .build(),
            glib::ParamSpecUInt64::builder("style-transition")
                .nick("Style transition")
                .blurb("How long a change of the prompt takes, blending from the old one (nanoseconds; 0 = at once)")
                .default_value(self.style_transition)
                .mutable_playing()
                .build(),
        ]
    }

    fn size_pspecs(&self) -> Vec<glib::ParamSpec> {
        let side = |name: &str, nick: &str, blurb: &str, value: u32| {
            glib::ParamSpecUInt::builder(name)
                .nick(nick)
                .blurb(blurb)
                .maximum(MAX_SIZE)
                .default_value(value)
                .mutable_playing()
                .build()
        };
        vec![
            side(
                "processing-width",
                "Processing width",
                "Width that pictures are restyled at; with a height too they are fitted inside, with their own shape (pixels; 0 = follows the height, or the model's own size)",
                self.processing_width,
            ),
            side(
                "processing-height",
                "Processing height",
                "Height that pictures are restyled at; with a width too they are fitted inside, with their own shape (pixels; 0 = follows the width, or the model's own size)",
                self.processing_height,
            ),
            glib::ParamSpecDouble::builder("processing-scale")
                .nick("Processing scale")
                .blurb("Size that pictures are restyled at as a part of their own, where no width and height is given (factor; 0 = the model's own size)")
                .minimum(0.0)
                .maximum(1.0)
                .default_value(self.processing_scale)
                .mutable_playing()
                .build(),
        ]
    }

    fn timing_pspecs(&self) -> Vec<glib::ParamSpec> {
        vec![
            glib::ParamSpecUInt::builder("chunk-frames")
                .nick("Chunk frames")
                .blurb("Frames restyled together, rounded up to what fills the model's latent frames; fewer for less latency (frames; 0 = the model's own number)")
                .maximum(MAX_CHUNK)
                .default_value(self.chunk_frames)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt::builder("stream-batch")
                .nick("Stream batch")
                .blurb("Chunks denoised together, each some steps further than the next, so that they can be short: less latency for the same work, and one large evaluation where a GPU would idle on small ones (chunks; 1 = one after the other; models that know one noise level at a time are always taken so)")
                .minimum(1)
                .maximum(MAX_BATCH)
                .default_value(self.stream_batch)
                .mutable_ready()
                .build(),
            glib::ParamSpecUInt64::builder("latency-budget")
                .nick("Latency budget")
                .blurb("Time that restyling a chunk may take in a live pipeline, reported as latency beside the length of the chunk (nanoseconds; 0 = the length of a chunk)")
                .default_value(self.latency_budget)
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("late-policy", self.late_policy)
                .nick("Late policy")
                .blurb("What a live pipeline gives up when restyling is too slow")
                .mutable_playing()
                .build(),
            glib::ParamSpecEnum::builder_with_default("on-error", self.on_error)
                .nick("On error")
                .blurb("What happens when the model fails on the way")
                .mutable_playing()
                .build(),
            glib::ParamSpecBoolean::builder("bypass")
                .nick("Bypass")
                .blurb("Whether pictures pass as they are, with the same latency")
                .default_value(self.bypass)
                .mutable_playing()
                .build(),
        ]
    }

    fn steadiness_pspecs(&self) -> Vec<glib::ParamSpec> {
        let share = |name: &str, nick: &str, blurb: &str, value: f64| {
            glib::ParamSpecDouble::builder(name)
                .nick(nick)
                .blurb(blurb)
                .minimum(0.0)
                .maximum(1.0)
                .default_value(value)
                .mutable_playing()
                .build()
        };
        vec![
            share(
                "motion-relief",
                "Motion relief",
                "How much less noise a chunk gets where much moves (noise level at full motion; 0 = always the same)",
                self.motion_relief,
            ),
            share(
                "color-lock",
                "Color lock",
                "How firmly the colours of a style are held against drift from chunk to chunk (0 = not at all, 1 = fully)",
                self.color_lock,
            ),
            share(
                "still-threshold",
                "Still threshold",
                "Mean difference up to which pictures count as the same, so that the last restyled picture stands and nothing is computed (part of the range; 0 = always restyle)",
                self.still_threshold,
            ),
        ]
    }

    /// Sets a property; None when the name is not one of them.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> Option<Effect> {
        match name {
            "strength" => self.strength = value.get().ok()?,
            "noise-level" => self.noise_level = value.get().ok()?,
            "style-transition" => self.style_transition = value.get().ok()?,
            "processing-width" => self.processing_width = value.get().ok()?,
            "processing-height" => self.processing_height = value.get().ok()?,
            "processing-scale" => self.processing_scale = value.get().ok()?,
            "chunk-frames" => {
                self.chunk_frames = value.get().ok()?;
                return Some(Effect::NextStart);
            }
            "stream-batch" => {
                self.stream_batch = value.get().ok()?;
                return Some(Effect::NextStart);
            }
            "latency-budget" => self.latency_budget = value.get().ok()?,
            "late-policy" => self.late_policy = value.get().ok()?,
            "on-error" => self.on_error = value.get().ok()?,
            "bypass" => self.bypass = value.get().ok()?,
            "motion-relief" => self.motion_relief = value.get().ok()?,
            "color-lock" => self.color_lock = value.get().ok()?,
            "still-threshold" => self.still_threshold = value.get().ok()?,
            _ => return self.common.set(name, value),
        }
        Some(Effect::NextChunk)
    }

    /// The value of a property; None when the name is not one of them.
    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "strength" => self.strength.to_value(),
            "noise-level" => self.noise_level.to_value(),
            "style-transition" => self.style_transition.to_value(),
            "processing-width" => self.processing_width.to_value(),
            "processing-height" => self.processing_height.to_value(),
            "processing-scale" => self.processing_scale.to_value(),
            "chunk-frames" => self.chunk_frames.to_value(),
            "stream-batch" => self.stream_batch.to_value(),
            "latency-budget" => self.latency_budget.to_value(),
            "late-policy" => self.late_policy.to_value(),
            "on-error" => self.on_error.to_value(),
            "bypass" => self.bypass.to_value(),
            "motion-relief" => self.motion_relief.to_value(),
            "color-lock" => self.color_lock.to_value(),
            "still-threshold" => self.still_threshold.to_value(),
            _ => return self.common.get(name),
        })
    }

    /// Whether pictures are wanted as they are.
    pub fn leaves_pictures(&self) -> bool {
        self.bypass
            || if self.noise_level >= 0.0 { self.noise_level == 0.0 } else { self.strength == 0.0 }
    }

    /// The words of the moment.
    pub fn words(&self) -> Words {
        Words {
            prompt: self.common.prompt.clone(),
            negative_prompt: self.common.negative_prompt.clone(),
        }
    }

    /// How a chunk is restyled with `steps`; one step at least is walked.
    pub fn restyle(&self, steps: u32, from: Option<(Words, f64)>) -> RestyleSettings {
        let start_level = if self.noise_level >= 0.0 {
            StartLevel::Noise(self.noise_level)
        } else {
            // Rounding must not lose the only step.
            StartLevel::Strength(self.strength.max((1.0 + 1e-9) / f64::from(steps.max(1))).min(1.0))
        };
        RestyleSettings {
            words: self.words(),
            from,
            guidance_scale: self.common.controls().guidance_scale,
            seed: self.common.seed,
            steps: Some(steps),
            start_level,
            motion_relief: self.motion_relief,
            colour_lock: self.color_lock,
            still_threshold: self.still_threshold,
        }
    }

    /// The size that pictures of `width` x `height` square pixels are restyled at, of the same shape.
    pub fn processing_size(
        &self,
        info: &FolderInfo,
        (width, height): (i64, i64),
    ) -> (usize, usize) {
        let fit = |limit: u32, side: i64| f64::from(limit) / side as f64;
        let scale = match (self.processing_width, self.processing_height) {
            (0, 0) if self.processing_scale > 0.0 => self.processing_scale,
            (0, 0) => {
                let (own, _) = info.generation_size(width, height);
                own as f64 / width as f64
            }
            (limit, 0) => fit(limit, width),
            (0, limit) => fit(limit, height),
            (wide, high) => fit(wide, width).min(fit(high, height)),
        };
        let scaled = |side: i64| ((side as f64 * scale).round() as usize).max(16);
        (scaled(width), scaled(height))
    }

    /// Time that restyling a chunk of this length may take.
    pub fn allowance(&self, chunk: Duration) -> Duration {
        if self.latency_budget == 0 { chunk } else { Duration::from_nanos(self.latency_budget) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::settings::tests::check_table;
    use std::path::Path;

    #[test]
    fn every_property_has_a_value_like_its_default() {
        gst::init().unwrap();
        let settings = FilterSettings::default();
        check_table(&settings, &FilterSettings::pspecs(), FilterSettings::get, FilterSettings::set);
    }

    #[test]
    fn pictures_keep_their_shape_at_any_processing_size() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ti2v_public");
        let info = FolderInfo::open(&folder).unwrap();
        let size = |width, height, scale| {
            let settings = FilterSettings {
                processing_width: width,
                processing_height: height,
                processing_scale: scale,
                ..FilterSettings::default()
            };
            settings.processing_size(&info, (640, 480))
        };
        assert_eq!(size(0, 0, 0.0), (640, 480));
        assert_eq!(size(0, 0, 0.5), (320, 240));
        assert_eq!(size(320, 0, 0.0), (320, 240));
        assert_eq!(size(0, 120, 0.7), (160, 120));
        assert_eq!(size(224, 128, 0.0), (171, 128));
    }

    #[test]
    fn a_step_is_always_left() {
        let settings = FilterSettings { strength: 0.01, ..FilterSettings::default() };
        for steps in [1, 3, 12, 50] {
            let StartLevel::Strength(strength) = settings.restyle(steps, None).start_level else {
                panic!("not by strength");
            };
            assert!((f64::from(steps) * strength) as u32 >= 1, "{steps} steps");
        }
    }
}
