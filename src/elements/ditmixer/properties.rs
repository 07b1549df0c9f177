// SPDX-License-Identifier: MPL-2.0
//! The properties of `ditmixer`: values, defaults, specifications.

use gst::prelude::*;

use super::mixing::DitEasing;
use super::{DitMissing, DitMixMode};
use crate::elements::report::stats_pspec;
use crate::elements::settings::Settings;

/// Values of the properties.
#[derive(Debug, Clone, PartialEq)]
pub struct Properties {
    pub common: Settings,
    pub mode: DitMixMode,
    pub mix: f64,
    pub creativity: f64,
    /// In nanoseconds.
    pub transition_duration: u64,
    pub easing: DitEasing,
    /// Running time in nanoseconds.
    pub transition_at: Option<u64>,
    pub on_missing: DitMissing,
    /// In nanoseconds.
    pub processing_latency: Option<u64>,
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            common: Settings { prompt: String::new(), ..Settings::default() },
            mode: DitMixMode::default(),
            mix: 0.0,
            creativity: 0.6,
            transition_duration: 1_000_000_000,
            easing: DitEasing::default(),
            transition_at: None,
            on_missing: DitMissing::default(),
            processing_latency: None,
        }
    }
}

/// `transition-at` when no transition begins by itself.
const NEVER: u64 = u64::MAX;
/// `processing-latency` of the playing time of a chunk.
const OWN: u64 = u64::MAX;

impl Properties {
    /// Takes a value; None for one of another type and for other names.
    pub fn set(&mut self, name: &str, value: &glib::Value) -> Option<()> {
        let time = |none: u64| value.get::<u64>().ok().map(|time| (time != none).then_some(time));
        match name {
            "mix" => self.mix = value.get().ok()?,
            "mode" => self.mode = value.get().ok()?,
            "creativity" => self.creativity = value.get().ok()?,
            "on-missing" => self.on_missing = value.get().ok()?,
            "processing-latency" => self.processing_latency = time(OWN)?,
            "transition-duration" => self.transition_duration = value.get().ok()?,
            "transition-easing" => self.easing = value.get().ok()?,
            "transition-at" => self.transition_at = time(NEVER)?,
            name => return self.common.set(name, value).map(|_| ()),
        }
        Some(())
    }

    /// The value of a property; None when the name is not one of them.
    pub fn get(&self, name: &str) -> Option<glib::Value> {
        Some(match name {
            "mix" => self.mix.to_value(),
            "mode" => self.mode.to_value(),
            "creativity" => self.creativity.to_value(),
            "on-missing" => self.on_missing.to_value(),
            "processing-latency" => self.processing_latency.unwrap_or(OWN).to_value(),
            "transition-duration" => self.transition_duration.to_value(),
            "transition-easing" => self.easing.to_value(),
            "transition-at" => self.transition_at.unwrap_or(NEVER).to_value(),
            name => return self.common.get(name),
        })
    }
}

/// The specifications of all properties.
pub fn pspecs() -> Vec<glib::ParamSpec> {
    let default = Properties::default();
    let mut specs = Settings::pspecs(&default.common, glib::ParamFlags::empty());
    specs.extend(mix_pspecs(&default));
    specs.extend(transition_pspecs(&default));
    specs
}

fn mix_pspecs(default: &Properties) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecDouble::builder("mix")
            .nick("Mix")
            .blurb("Where the output lies between the streams (0 = exactly the first, 1 = exactly the last; more than two lie at equal distances, in the order of zorder)")
            .minimum(0.0)
            .maximum(1.0)
            .default_value(default.mix)
            .controllable()
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("mode", default.mode)
            .nick("Mode")
            .blurb("What lies between two streams")
            .mutable_playing()
            .build(),
        glib::ParamSpecDouble::builder("creativity")
            .nick("Creativity")
            .blurb("How freely the model paints half-way between two streams, or all along a bridge (noise level; 0 = it only cleans up their mix)")
            .minimum(0.0)
            .maximum(1.0)
            .default_value(default.creativity)
            .controllable()
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("on-missing", default.on_missing)
            .nick("On missing")
            .blurb("What stands in for a stream that has ended or shows nothing for a while")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt64::builder("processing-latency")
            .nick("Processing latency")
            .blurb("Part of a live stream's latency that is left to the model (ns; the greatest value = the playing time of a chunk); what is not ready then goes out as a crossfade")
            .default_value(default.processing_latency.unwrap_or(OWN))
            .mutable_ready()
            .build(),
        stats_pspec("Frames out, and those of them that are crossfades because the model was too late"),
    ]
}

fn transition_pspecs(default: &Properties) -> Vec<glib::ParamSpec> {
    vec![
        glib::ParamSpecUInt64::builder("transition-duration")
            .nick("Transition duration")
            .blurb("How long a transition takes (ns)")
            .default_value(default.transition_duration)
            .mutable_playing()
            .build(),
        glib::ParamSpecEnum::builder_with_default("transition-easing", default.easing)
            .nick("Transition easing")
            .blurb("The course of a transition")
            .mutable_playing()
            .build(),
        glib::ParamSpecUInt64::builder("transition-at")
            .nick("Transition at")
            .blurb("Running time at which a transition to the neighbouring stream begins by itself (ns; the greatest value = never)")
            .default_value(default.transition_at.unwrap_or(NEVER))
            .mutable_playing()
            .build(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elements::settings::tests::check_table;

    #[test]
    fn every_property_has_a_value_like_its_default() {
        gst::init().unwrap();
        let mut specs = pspecs();
        specs.retain(|spec| spec.name() != "stats");
        check_table(&Properties::default(), &specs, Properties::get, Properties::set);
    }
}
