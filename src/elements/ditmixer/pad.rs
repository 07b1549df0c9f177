// SPDX-License-Identifier: MPL-2.0
//! A sink pad of `ditmixer`: its properties, and its frames in the output's format.

use std::sync::{LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::{AggregateFramesToken, prelude::*};

use super::imp::CAT;
use super::picture::{DitSizing, Fit, Scaler};
use crate::session::locked;

/// Most that one stream can outweigh another.
const MAX_WEIGHT: f64 = 100.0;

#[derive(Debug, Clone)]
struct Settings {
    prompt: String,
    weight: f64,
    sizing: DitSizing,
}

impl Default for Settings {
    fn default() -> Self {
        Self { prompt: String::new(), weight: 1.0, sizing: DitSizing::default() }
    }
}

#[derive(Default)]
pub struct DitMixerPad {
    settings: Mutex<Settings>,
    scaler: Mutex<Scaler>,
}

#[glib::object_subclass]
impl ObjectSubclass for DitMixerPad {
    const NAME: &'static str = "GstDitMixerPad";
    type Type = super::DitMixerPad;
    type ParentType = gst_video::VideoAggregatorConvertPad;
}

impl ObjectImpl for DitMixerPad {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let default = Settings::default();
            vec![
                glib::ParamSpecString::builder("prompt")
                    .nick("Prompt")
                    .blurb("What this stream shows, in words; empty: the prompt of the element")
                    .default_value(Some(default.prompt.as_str()))
                    .mutable_playing()
                    .build(),
                glib::ParamSpecDouble::builder("weight")
                    .nick("Weight")
                    .blurb("How far this stream reaches into the mix with a neighbour (factor; both ends stay exact)")
                    .maximum(MAX_WEIGHT)
                    .minimum(0.0)
                    .default_value(default.weight)
                    .controllable()
                    .mutable_playing()
                    .build(),
                glib::ParamSpecEnum::builder_with_default("sizing-policy", default.sizing)
                    .nick("Sizing policy")
                    .blurb("How a picture whose shape differs from the output's is put into it")
                    .mutable_playing()
                    .build(),
            ]
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = locked(&self.settings);
        let taken = match pspec.name() {
            "prompt" => {
                value.get::<Option<String>>().map(|it| settings.prompt = it.unwrap_or_default())
            }
            "weight" => value.get().map(|it| settings.weight = it),
            "sizing-policy" => value.get().map(|it| settings.sizing = it),
            _ => Ok(()),
        };
        drop(settings);
        if let Err(error) = taken {
            gst::warning!(CAT, imp = self, "{}: {error}", pspec.name());
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = locked(&self.settings);
        match pspec.name() {
            "prompt" => settings.prompt.to_value(),
            "weight" => settings.weight.to_value(),
            "sizing-policy" => settings.sizing.to_value(),
            _ => pspec.default_value().clone(),
        }
    }
}

impl GstObjectImpl for DitMixerPad {}

impl PadImpl for DitMixerPad {}

impl AggregatorPadImpl for DitMixerPad {
    fn flush(&self, aggregator: &gst_base::Aggregator) -> Result<gst::FlowSuccess, gst::FlowError> {
        locked(&self.scaler).reset();
        self.parent_flush(aggregator)
    }
}

impl VideoAggregatorPadImpl for DitMixerPad {
    // Only the frames that are mixed are converted, and they are when they are.
    fn prepare_frame(
        &self,
        _aggregator: &gst_video::VideoAggregator,
        _token: &AggregateFramesToken,
        _buffer: &gst::Buffer,
    ) -> Option<gst_video::VideoFrame<gst_video::video_frame::Readable>> {
        None
    }

    fn clean_frame(
        &self,
        _aggregator: &gst_video::VideoAggregator,
        _token: &AggregateFramesToken,
        _frame: Option<gst_video::VideoFrame<gst_video::video_frame::Readable>>,
    ) {
    }
}

impl VideoAggregatorConvertPadImpl for DitMixerPad {}

impl DitMixerPad {
    pub(super) fn prompt(&self) -> String {
        locked(&self.settings).prompt.clone()
    }

    pub(super) fn weight(&self) -> f64 {
        locked(&self.settings).weight
    }

    /// What the stream shows now, in the output's format; its last picture while it shows nothing, if `hold`.
    pub(super) fn picture(
        &self,
        token: &AggregateFramesToken,
        output: &gst_video::VideoInfo,
        hold: bool,
    ) -> Option<gst::Buffer> {
        let obj = self.obj();
        // A gap comes as a buffer without data.
        let current = obj.current_buffer(token).filter(|buffer| buffer.size() > 0);
        let (Some(current), Some(input)) =
            (current, VideoAggregatorPadExtManual::video_info(&*obj))
        else {
            return locked(&self.scaler).last(output).filter(|_| hold);
        };
        let fit = Fit { sizing: locked(&self.settings).sizing, config: self.config() };
        let scaled = locked(&self.scaler).scaled(&current, &input, output, &fit);
        scaled.inspect_err(|error| gst::warning!(CAT, imp = self, "{error}")).ok()
    }

    /// The frame that waits to be shown.
    pub(super) fn coming(&self, output: &gst_video::VideoInfo) -> Option<gst::Buffer> {
        let obj = self.obj();
        let coming = obj.peek_buffer().filter(|buffer| buffer.size() > 0)?;
        let input = VideoAggregatorPadExtManual::video_info(&*obj)?;
        let fit = Fit { sizing: locked(&self.settings).sizing, config: self.config() };
        locked(&self.scaler).scaled(&coming, &input, output, &fit).ok()
    }

    /// Whether the stream has ended and its last frame been shown.
    pub(super) fn is_over(&self, token: &AggregateFramesToken) -> bool {
        let obj = self.obj();
        obj.is_eos() && !obj.has_buffer() && obj.current_buffer(token).is_none()
    }

    /// Lets go of what was shown.
    pub(super) fn forget(&self) {
        locked(&self.scaler).reset();
    }

    fn config(&self) -> Option<gst_video::VideoConverterConfig> {
        let structure = self.obj().property::<Option<gst::Structure>>("converter-config")?;
        gst_video::VideoConverterConfig::try_from(structure).ok()
    }
}
