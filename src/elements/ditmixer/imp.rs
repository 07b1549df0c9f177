// SPDX-License-Identifier: MPL-2.0
//! The element behind `ditmixer`.
//!
//! The base class aligns the streams by running time, repeats frames of slower ones, and asks for one output
//! frame after the other. Its lock is held while a frame is composed and free when the frame is finished,
//! which is where frames go out.
//!
//! Locks: `settings` and `state` are each taken alone and never held over a push, a message, a query or a
//! property's change.

use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::subclass::{AggregateFramesToken, prelude::*};

use super::mixing::{DitEasing, Transition};
use super::negotiation::{sink_caps, source_caps};
use super::slot::Slot;
use super::{DitMissing, DitMixMode, DitMixerPad};
use crate::elements::settings::Settings;

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "ditmixer",
        gst::DebugColorFlags::empty(),
        Some("One video turns into another by a diffusion transformer"),
    )
});

/// Values of the properties.
#[derive(Debug, Clone)]
pub(super) struct Properties {
    pub common: Settings,
    pub mode: DitMixMode,
    pub mix: f64,
    /// In nanoseconds.
    pub transition_duration: u64,
    pub easing: DitEasing,
    /// Running time in nanoseconds.
    pub transition_at: Option<u64>,
    pub on_missing: DitMissing,
}

impl Default for Properties {
    fn default() -> Self {
        Self {
            common: Settings { prompt: String::new(), ..Settings::default() },
            mode: DitMixMode::default(),
            mix: 0.0,
            transition_duration: 1_000_000_000,
            easing: DitEasing::default(),
            transition_at: None,
            on_missing: DitMissing::default(),
        }
    }
}

/// What lives from READY to PAUSED and back.
#[derive(Default)]
pub(super) struct State {
    /// A transition was asked for, of this duration; it begins with the next frame.
    pub wanted: Option<u64>,
    pub transition: Option<Transition>,
    /// The value of `transition-at` that has been acted on.
    pub started_at: Option<u64>,
    /// The frame that was composed and is about to be finished.
    pub composed: Option<Slot>,
}

#[derive(Default)]
pub struct DitMixer {
    pub(super) settings: Mutex<Properties>,
    pub(super) state: Mutex<State>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under the lock has already been reported; the data behind it is plain.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `transition-at` when no transition begins by itself.
const NEVER: u64 = u64::MAX;

#[glib::object_subclass]
impl ObjectSubclass for DitMixer {
    const NAME: &'static str = "GstDitMixer";
    type Type = super::DitMixer;
    type ParentType = gst_video::VideoAggregator;
    type Interfaces = (gst::ChildProxy,);
}

impl ObjectImpl for DitMixer {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(own_pspecs);
        &PROPERTIES
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        static SIGNALS: LazyLock<Vec<glib::subclass::Signal>> = LazyLock::new(|| {
            let signal = glib::subclass::Signal::builder("transition")
                .action()
                .param_types([u64::static_type()])
                .return_type::<bool>()
                .class_handler(|args| {
                    let element = args.first()?.get::<super::DitMixer>().ok()?;
                    let duration = args.get(1)?.get::<u64>().ok()?;
                    Some(element.imp().ask_for_transition(duration).to_value())
                })
                .build();
            vec![signal]
        });
        &SIGNALS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let mut settings = locked(&self.settings);
        let taken = match pspec.name() {
            "mix" => value.get().map(|it| settings.mix = it),
            "mode" => value.get().map(|it| settings.mode = it),
            "transition-duration" => value.get().map(|it| settings.transition_duration = it),
            "transition-easing" => value.get().map(|it| settings.easing = it),
            "transition-at" => value
                .get()
                .map(|it: u64| settings.transition_at = Some(it).filter(|it| *it != NEVER)),
            "on-missing" => value.get().map(|it| settings.on_missing = it),
            name => {
                settings.common.set(name, value);
                Ok(())
            }
        };
        drop(settings);
        match taken {
            Ok(()) => gst::log!(CAT, imp = self, "{} is now {value:?}", pspec.name()),
            Err(error) => gst::warning!(CAT, imp = self, "{}: {error}", pspec.name()),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        let settings = locked(&self.settings);
        match pspec.name() {
            "mix" => settings.mix.to_value(),
            "mode" => settings.mode.to_value(),
            "transition-duration" => settings.transition_duration.to_value(),
            "transition-easing" => settings.easing.to_value(),
            "transition-at" => settings.transition_at.unwrap_or(NEVER).to_value(),
            "on-missing" => settings.on_missing.to_value(),
            name => settings.common.get(name).unwrap_or_else(|| pspec.default_value().clone()),
        }
    }
}

fn own_pspecs() -> Vec<glib::ParamSpec> {
    let default = Properties::default();
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
        glib::ParamSpecEnum::builder_with_default("on-missing", default.on_missing)
            .nick("On missing")
            .blurb("What stands in for a stream that has ended or shows nothing for a while")
            .mutable_playing()
            .build(),
    ]
}

impl GstObjectImpl for DitMixer {}

impl ElementImpl for DitMixer {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "Diffusion transformer video mixer",
                "Filter/Editor/Video/Compositor",
                "Interpolates between video streams with a latent diffusion transformer",
                "The authors of gst-plugin-dit",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let sink = gst::PadTemplate::with_gtype(
                "sink_%u",
                gst::PadDirection::Sink,
                gst::PadPresence::Request,
                &sink_caps(),
                DitMixerPad::static_type(),
            );
            let source = gst::PadTemplate::with_gtype(
                "src",
                gst::PadDirection::Src,
                gst::PadPresence::Always,
                &source_caps(),
                gst_base::AggregatorPad::static_type(),
            );
            sink.into_iter().chain(source).collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        templ: &gst::PadTemplate,
        name: Option<&str>,
        caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        let pad = self.parent_request_new_pad(templ, name, caps)?;
        self.obj().child_added(&pad, &pad.name());
        Some(pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        if let Some(pad) = pad.downcast_ref::<DitMixerPad>() {
            pad.imp().forget();
        }
        let name = pad.name();
        self.obj().child_removed(pad, &name);
        self.parent_release_pad(pad);
    }
}

impl ChildProxyImpl for DitMixer {
    fn child_by_name(&self, name: &str) -> Option<glib::Object> {
        self.pads().into_iter().find(|pad| pad.name() == name).map(|pad| pad.upcast())
    }

    fn child_by_index(&self, index: u32) -> Option<glib::Object> {
        self.pads().into_iter().nth(index as usize).map(|pad| pad.upcast())
    }

    fn children_count(&self) -> u32 {
        u32::from(self.obj().num_sink_pads())
    }
}

impl AggregatorImpl for DitMixer {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *locked(&self.state) = State::default();
        self.parent_start()
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        *locked(&self.state) = State::default();
        self.pads().iter().for_each(|pad| pad.imp().forget());
        self.parent_stop()
    }

    fn flush(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        *locked(&self.state) = State::default();
        self.parent_flush()
    }

    fn fixate_src_caps(&self, caps: gst::Caps) -> gst::Caps {
        self.fixated(caps)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        match event.view() {
            // The base class would leave out frames, and decoders before it too, which tears holes into what
            // is mixed; frames in time are this element's own matter.
            gst::EventView::Qos(_) => true,
            _ => self.parent_src_event(event),
        }
    }

    fn finish_buffer(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let slot = locked(&self.state).composed.take().unwrap_or_default();
        if slot.mix_moved {
            self.obj().notify("mix");
        }
        for note in slot.notes {
            gst::debug!(CAT, imp = self, "{note}");
            let _ = self
                .obj()
                .post_message(gst::message::Element::builder(note).src(&*self.obj()).build());
        }
        self.parent_finish_buffer(buffer)
    }
}

impl VideoAggregatorImpl for DitMixer {
    fn aggregate_frames(
        &self,
        token: &AggregateFramesToken,
        outbuf: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let slot = self.fill_slot(token, outbuf)?;
        locked(&self.state).composed = Some(slot);
        Ok(gst::FlowSuccess::Ok)
    }
}

impl DitMixer {
    /// Lets the next frame begin a transition to the neighbouring stream; false if there is none or one is
    /// under way. `duration` in nanoseconds, 0 for that of the property.
    fn ask_for_transition(&self, duration: u64) -> bool {
        let usual = locked(&self.settings).transition_duration;
        let enough = self.obj().num_sink_pads() > 1;
        let mut state = locked(&self.state);
        if !enough || state.transition.is_some() || state.wanted.is_some() {
            return false;
        }
        state.wanted = Some(if duration == 0 { usual } else { duration });
        true
    }
}
