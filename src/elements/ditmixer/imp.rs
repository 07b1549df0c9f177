// SPDX-License-Identifier: MPL-2.0
//! The element behind `ditmixer`.
//!
//! The base class aligns the streams by running time, repeats frames of slower ones, and asks for one output
//! frame after the other. Its lock is held while a frame is composed and free when the frame is finished,
//! which is where frames go out.
//!
//! Locks: all but `flow` are each taken alone; `flow` is taken before others. None is held over a push, a message, a
//! query, a property's change or a wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::subclass::{AggregateFramesToken, prelude::*};

use super::bridge::sides;
use super::mixing::Transition;
use super::negotiation::{sink_caps, source_caps};
use super::properties::{Properties, pspecs};
use super::queue::Flow;
use super::slot::Slot;
use super::{DitMixMode, DitMixerPad};
use crate::elements::loading::{self, Progress, Purpose};
use crate::elements::metadata;
use crate::elements::report::FirstError;
use crate::frames::{self, Painter, Reader};
use crate::pipeline::RgbFrame;
use crate::session::{MixFeed, Model, locked};

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "ditmixer",
        gst::DebugColorFlags::empty(),
        Some("One video turns into another by a diffusion transformer"),
    )
});

/// What lives from READY to PAUSED and back.
#[derive(Default)]
pub(super) struct State {
    /// A transition was asked for, of this duration; it begins with the next frame.
    pub wanted: Option<u64>,
    pub transition: Option<Transition>,
    /// The value of `transition-at` that has been acted on.
    pub started_at: Option<u64>,
    /// The mode of the last frame.
    mode: Option<DitMixMode>,
    /// The frame that was composed and is about to be finished.
    pub composed: Option<Slot>,
    /// In `mode=bridge`: the stream whose turn it is, those that wait with their own segments, and `mix` before the
    /// first stream ended.
    pub current: Option<usize>,
    pub parked: Vec<(String, gst::FormattedSegment<gst::ClockTime>)>,
    pub mix_before: Option<f64>,
    /// The longest bridge that was asked for, in nanoseconds: the latency has to hold it.
    longest: u64,
}

/// A model in use.
pub(super) struct Engine {
    pub feed: Arc<MixFeed>,
    progress: Arc<Progress>,
}

/// A picture and what was read from it for the model.
pub(super) type Read = (gst::Buffer, Arc<RgbFrame>);

#[derive(Default)]
pub struct DitMixer {
    pub(super) settings: Mutex<Properties>,
    pub(super) state: Mutex<State>,
    pub(super) flow: Mutex<Flow>,
    pub(super) engine: Mutex<Option<Engine>>,
    /// Keeps the weights while the element is not in NULL.
    model: Mutex<Option<Arc<Model>>>,
    pub(super) painter: Mutex<Option<Painter>>,
    /// From the output's format to the model's.
    pub(super) reader: Mutex<Option<(gst_video::VideoInfo, Reader)>>,
    /// What was read last, for either side and for single pictures: slower streams repeat theirs.
    pub(super) read: Mutex<[Option<Read>; 3]>,
    /// The output as negotiated.
    pub(super) output: Mutex<Option<gst_video::VideoInfo>>,
    /// Part of the latency that is for the model, in nanoseconds.
    pub(super) ahead: AtomicU64,
    /// There has been a frame since the start.
    begun: AtomicBool,
    flushing: AtomicBool,
    first_error: FirstError,
}

#[glib::object_subclass]
impl ObjectSubclass for DitMixer {
    const NAME: &'static str = "GstDitMixer";
    type Type = super::DitMixer;
    type ParentType = gst_video::VideoAggregator;
    type Interfaces = (gst::ChildProxy,);
}

impl ObjectImpl for DitMixer {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(pspecs);
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
        let taken = locked(&self.settings).set(pspec.name(), value);
        match taken {
            Some(()) => gst::log!(CAT, imp = self, "{} is now {value:?}", pspec.name()),
            None => gst::warning!(CAT, imp = self, "{} cannot be {value:?}", pspec.name()),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "stats" => self.stats().to_value(),
            name => {
                let value = locked(&self.settings).get(name);
                value.unwrap_or_else(|| pspec.default_value().clone())
            }
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // The base class stops its task after it has pushed FLUSH_START, whether a seek or upstream began the flush.
        let weak = self.downgrade();
        let kinds = gst::PadProbeType::EVENT_DOWNSTREAM | gst::PadProbeType::EVENT_FLUSH;
        self.obj().src_pad().add_probe(kinds, move |_pad, info| {
            if let (Some(imp), Some(event)) = (weak.upgrade(), info.event()) {
                match event.type_() {
                    gst::EventType::FlushStart => imp.set_flushing(true),
                    gst::EventType::FlushStop => imp.set_flushing(false),
                    _ => (),
                }
            }
            gst::PadProbeReturn::Ok
        });
    }
}

impl GstObjectImpl for DitMixer {}

impl ElementImpl for DitMixer {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "Diffusion transformer video mixer",
                "Filter/Editor/Video/Compositor",
                "Interpolates between video streams with a latent diffusion transformer",
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

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::ReadyToPaused => self.first_error.forget(),
            gst::StateChange::PausedToReady => self.cancel(),
            _ => (),
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            let model = locked(&self.model).take();
            drop(model);
        }
        Ok(success)
    }

    fn post_message(&self, message: gst::Message) -> bool {
        if self.first_error.precedes(&message) {
            gst::debug!(CAT, imp = self, "not posting a consequence: {message:?}");
            return true;
        }
        self.parent_post_message(message)
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
        self.unpark_released(pad);
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
        self.rewind();
        *locked(&self.flow) = Flow::default();
        self.begun.store(false, Ordering::SeqCst);
        self.flushing.store(false, Ordering::SeqCst);
        if locked(&self.settings).mode != DitMixMode::Crossfade {
            self.open()?;
        }
        self.parent_start()
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.cancel();
        let engine = locked(&self.engine).take();
        drop(engine);
        self.rewind();
        *locked(&self.flow) = Flow::default();
        *locked(&self.painter) = None;
        *locked(&self.output) = None;
        *locked(&self.reader) = None;
        *locked(&self.read) = Default::default();
        self.pads().iter().for_each(|pad| pad.imp().forget());
        self.parent_stop()
    }

    fn flush(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.rewind();
        self.discard();
        self.parent_flush()
    }

    fn sink_event_pre_queue(
        &self,
        pad: &gst_base::AggregatorPad,
        event: gst::Event,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let gst::EventView::Caps(caps) = event.view()
            && let Ok(info) = gst_video::VideoInfo::from_caps(caps.caps())
            && let Err(error) = frames::check_readable(&info)
        {
            self.obj().post_error_message(loading::error_message(&error));
            return Err(gst::FlowError::NotNegotiated);
        }
        self.parent_sink_event_pre_queue(pad, self.parked(pad, event))
    }

    fn next_time(&self) -> Option<gst::ClockTime> {
        // Before the first frame nothing is late; the base class would begin at 0 a second time when it comes.
        if !self.begun.load(Ordering::SeqCst) && !self.pads().iter().any(|pad| pad.has_buffer()) {
            return None;
        }
        // Frames are expected when they are due, not when the model has to be done with them.
        let next = self.parent_next_time()?.nseconds();
        let ahead = self.ahead.load(Ordering::SeqCst);
        let slot = next.saturating_sub(ahead);
        let head = locked(&self.flow).head().map(|head| head.saturating_sub(self.frame_duration()));
        Some(gst::ClockTime::from_nseconds(head.map_or(slot, |head| head.min(slot))))
    }

    fn aggregate(&self, timeout: bool) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.begun.store(true, Ordering::SeqCst);
        self.adopt_mode()?;
        self.pump(false)?;
        if timeout && !self.slot_is_due() {
            return Err(gst_base::AGGREGATOR_FLOW_NEED_DATA);
        }
        match self.parent_aggregate(timeout) {
            Err(gst::FlowError::Eos) => {
                self.drain()?;
                Err(gst::FlowError::Eos)
            }
            other => other,
        }
    }

    fn negotiated_src_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "no video caps: {caps}"))?;
        if locked(&self.output).as_ref() != Some(&info) {
            // What is held is of the caps so far.
            self.drain().map_err(|error| gst::loggable_error!(CAT, "draining: {error}"))?;
            *locked(&self.output) = Some(info);
        }
        self.parent_negotiated_src_caps(caps)?;
        self.set_latency();
        Ok(())
    }

    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        // Frames are held back; a pool with few of them would run dry.
        let offered = query.allocation_pools().next();
        if let Some((Some(_), size, _, max)) = offered
            && max > 0
        {
            query.set_nth_allocation_pool(0, gst::BufferPool::NONE, size, 0, 0);
        }
        self.parent_decide_allocation(query)
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
        let composed = locked(&self.state).composed.take();
        match composed {
            Some(slot) => self.enqueue(buffer, slot),
            None => self.parent_finish_buffer(buffer),
        }
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
    /// Forgets what has been shown; streams that came in turn come in turn again.
    fn rewind(&self) {
        let state = std::mem::take(&mut *locked(&self.state));
        if let Some(mix) = state.mix_before {
            locked(&self.settings).mix = mix;
        }
    }

    /// Opens the model.
    fn open(&self) -> Result<(), gst::ErrorMessage> {
        let settings = locked(&self.settings).common.clone();
        let opening = loading::opening(&settings, Purpose::Making)
            .map_err(|error| loading::error_message(&error))?;
        gst::info!(CAT, imp = self, "{}", opening.info.folder.display());
        let progress = Progress::start(&*self.obj(), &opening.info.folder);
        let events = progress.clone();
        let feed = MixFeed::open(opening, move |event| events.handle(&event)).map_err(|error| {
            progress.cancel();
            loading::error_message(&error)
        })?;
        let kept = locked(&self.model).replace(feed.model().clone());
        drop(kept);
        *locked(&self.engine) = Some(Engine { feed: Arc::new(feed), progress });
        Ok(())
    }

    /// Ends waits and computations on the way down.
    fn cancel(&self) {
        self.flushing.store(true, Ordering::SeqCst);
        if let Some(engine) = &*locked(&self.engine) {
            engine.feed.close();
            engine.progress.cancel();
        }
    }

    /// Ends waits while the source pad is flushing.
    fn set_flushing(&self, flushing: bool) {
        self.flushing.store(flushing, Ordering::SeqCst);
        if let Some(engine) = &*locked(&self.engine) {
            engine.feed.set_flushing(flushing);
        }
    }

    pub(super) fn is_flushing(&self) -> bool {
        self.flushing.load(Ordering::SeqCst)
    }

    /// Follows a changed mode: another may need the model, and another latency.
    fn adopt_mode(&self) -> Result<(), gst::FlowError> {
        let mode = locked(&self.settings).mode;
        let before = locked(&self.state).mode.replace(mode);
        if before.is_some_and(|before| before != mode) {
            self.drain()?;
        }
        if mode != DitMixMode::Crossfade && locked(&self.engine).is_none() {
            self.open().map_err(|message| {
                self.obj().post_error_message(message);
                gst::FlowError::Error
            })?;
        }
        let (ahead, _) = self.latency();
        if ahead != self.ahead.load(Ordering::SeqCst) {
            self.set_latency();
        }
        Ok(())
    }

    /// Playing time of an output frame in nanoseconds.
    pub(super) fn frame_duration(&self) -> u64 {
        let rate = locked(&self.output).as_ref().map(gst_video::VideoInfo::fps);
        let Some(rate) = rate.filter(|rate| rate.numer() > 0) else { return 0 };
        1_000_000_000 * rate.denom() as u64 / rate.numer() as u64
    }

    /// What the model adds to the latency, and the whole, in nanoseconds: frames are collected into a chunk, the chunk
    /// is made, and a frame goes out before it is due.
    fn latency(&self) -> (u64, u64) {
        let frame = self.frame_duration();
        let Some(feed) = self.feed() else { return (0, frame) };
        let (mode, own, duration) = {
            let settings = locked(&self.settings);
            (settings.mode, settings.processing_latency, settings.transition_duration)
        };
        let chunk = match mode {
            DitMixMode::Bridge => {
                // It does not shrink again: frames on their way would be late.
                let duration = duration.max(locked(&self.state).longest);
                let gap = (duration / frame.max(1)).max(1) as usize;
                (gap + sides(feed.model().info(), gap).1) as u64
            }
            _ => self.chunk_frames(&feed) as u64,
        };
        let processing = own.unwrap_or(chunk * frame);
        let ahead = (chunk - 1) * frame + processing + frame;
        (ahead, ahead + frame)
    }

    fn set_latency(&self) {
        let (ahead, whole) = self.latency();
        self.ahead.store(ahead, Ordering::SeqCst);
        let whole = gst::ClockTime::from_nseconds(whole);
        self.obj().set_latency(whole, Some(whole));
    }

    /// Whether the time of the next output frame has come, with or without data.
    fn slot_is_due(&self) -> bool {
        let obj = self.obj();
        let (Some(next), Some(latency)) = (obj.simple_get_next_time(), obj.latency()) else {
            return true;
        };
        let ahead = gst::ClockTime::from_nseconds(self.ahead.load(Ordering::SeqCst));
        let due = next.saturating_sub(ahead) + latency;
        obj.current_running_time().is_none_or(|now| now >= due)
    }

    fn stats(&self) -> gst::Structure {
        let (frames, crossfaded) = locked(&self.flow).reporter.counts();
        let pending = self.feed().map_or(0, |feed| feed.pending() as u64);
        gst::Structure::builder("application/x-dit-stats")
            .field("frames", frames)
            .field("crossfaded", crossfaded)
            .field("chunks-pending", pending)
            .build()
    }

    /// Lets the next frame begin a transition to the neighbouring stream; false if there is none or one is
    /// under way. `duration` in nanoseconds, 0 for that of the property.
    fn ask_for_transition(&self, duration: u64) -> bool {
        let usual = locked(&self.settings).transition_duration;
        let enough = self.obj().num_sink_pads() > 1;
        let mut state = locked(&self.state);
        if !enough || state.transition.is_some() || state.wanted.is_some() {
            return false;
        }
        let duration = if duration == 0 { usual } else { duration };
        state.wanted = Some(duration);
        state.longest = state.longest.max(duration);
        true
    }
}
