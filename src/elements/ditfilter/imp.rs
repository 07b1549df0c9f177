// SPDX-License-Identifier: MPL-2.0
//! The element behind `ditfilter`: properties, states, pads, events and queries.
//!
//! Locks, in the order in which they may be held together: `input`, `state`, `reporter`; the others are each taken alone.
//! None is held over a push, a message, a query, the setting of a property or a flush of the feed, except `input` by the
//! sink pad's own thread. The feed's results wait for `state`.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::DitLatePolicy;
use super::input::Input;
use super::output::Output;
use super::queue::State;
use super::report::Reporter;
use super::settings::FilterSettings;
use crate::elements::loading::{self, Progress, Purpose};
use crate::elements::metadata;
use crate::elements::report::stats_pspec;
use crate::elements::settings::Effect;
use crate::frames;
use crate::session::{Event, Feed, Model, Restyling, locked};

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "ditfilter",
        gst::DebugColorFlags::empty(),
        Some("Video restyled by a diffusion transformer"),
    )
});

/// Least and greatest width and height in pixels.
const SIZES: (i32, i32) = (16, 8192);
/// Before caps are known; no buffer is timed by it.
const ANY_FRAME_NS: u64 = 40_000_000;

/// What lives from READY to PAUSED and back.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) feed: Arc<Feed<Restyling>>,
    /// Chunks denoised together.
    pub(super) depth: usize,
    progress: Arc<Progress>,
}

pub struct DitFilter {
    pub(super) sink_pad: gst::Pad,
    pub(super) src_pad: gst::Pad,
    pub(super) settings: Mutex<FilterSettings>,
    running: Mutex<Option<Running>>,
    /// Keeps the weights while the element is not in NULL.
    model: Mutex<Option<Arc<Model>>>,
    pub(super) input: Mutex<Input>,
    pub(super) state: Mutex<State>,
    /// Something in `state` is different.
    pub(super) changed: Condvar,
    pub(super) output: Mutex<Output>,
    pub(super) reporter: Mutex<Reporter>,
    /// Whether upstream is live, and its latency; None until asked.
    pub(super) upstream: Mutex<Option<(bool, gst::ClockTime)>>,
    pub(super) frame_ns: AtomicU64,
    /// The latency that was last announced.
    announced: Mutex<Option<gst::ClockTime>>,
}

#[glib::object_subclass]
impl ObjectSubclass for DitFilter {
    const NAME: &'static str = "GstDitFilter";
    type Type = super::DitFilter;
    type ParentType = gst::Element;
    type Interfaces = (gst::Preset,);

    fn with_class(klass: &Self::Class) -> Self {
        // The class has got the templates of `pad_templates` before its first element is made, and an element without pads
        // would be none.
        let template = |name: &str| {
            klass.pad_template(name).unwrap_or_else(|| unreachable!("the template {name} is below"))
        };
        let sink_pad = gst::Pad::builder_from_template(&template("sink"))
            .activatemode_function(|_pad, parent, _mode, active| {
                let nothing = || Err(gst::loggable_error!(CAT, "panicked"));
                Self::catch_panic_pad_function(parent, nothing, |imp| imp.activate_sink(active))
            })
            .chain_function(|_pad, parent, buffer| {
                let nothing = || Err(gst::FlowError::Error);
                Self::catch_panic_pad_function(parent, nothing, |imp| imp.take_in(buffer))
            })
            .event_function(|_pad, parent, event| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_event(event))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.sink_query(pad, query))
            })
            .flags(gst::PadFlags::PROXY_CAPS)
            .build();
        let src_pad = gst::Pad::builder_from_template(&template("src"))
            .activatemode_function(|_pad, parent, _mode, active| {
                let nothing = || Err(gst::loggable_error!(CAT, "panicked"));
                Self::catch_panic_pad_function(parent, nothing, |imp| imp.activate_src(active))
            })
            .query_function(|pad, parent, query| {
                Self::catch_panic_pad_function(parent, || false, |imp| imp.src_query(pad, query))
            })
            .flags(gst::PadFlags::PROXY_CAPS)
            .build();
        Self {
            sink_pad,
            src_pad,
            settings: Mutex::default(),
            running: Mutex::default(),
            model: Mutex::default(),
            input: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            output: Mutex::default(),
            reporter: Mutex::default(),
            upstream: Mutex::default(),
            frame_ns: AtomicU64::new(ANY_FRAME_NS),
            announced: Mutex::default(),
        }
    }
}

impl ObjectImpl for DitFilter {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut specs = FilterSettings::pspecs();
            specs.push(
                stats_pspec("Frames in, restyled, repeated, passed and bypassed, chunks, errors, frames a second, milliseconds of each stage of the last chunk, frames waiting, what is given up"),
            );
            specs
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = pspec.name();
        let effect = locked(&self.settings).set(name, value);
        match effect {
            Some(Effect::NextChunk | Effect::NextStart) => {
                gst::debug!(CAT, imp = self, "{name} is now {value:?}");
            }
            None => gst::warning!(CAT, imp = self, "no writable property {name}"),
        }
        match name {
            "latency-budget" => self.announce_latency(),
            "steps" => self.prepare_degrading(),
            // The thread that puts out may be waiting by another rule.
            "late-policy" => self.changed.notify_all(),
            _ => (),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            let state = locked(&self.state);
            return locked(&self.reporter).stats(&state.counters, state.frames).to_value();
        }
        let value = locked(&self.settings).get(pspec.name());
        value.unwrap_or_else(|| pspec.default_value().clone())
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        for pad in [&self.sink_pad, &self.src_pad] {
            if let Err(error) = obj.add_pad(pad) {
                gst::error!(CAT, imp = self, "{error}");
            }
        }
    }
}

impl GstObjectImpl for DitFilter {}

impl PresetImpl for DitFilter {}

impl ElementImpl for DitFilter {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "Diffusion transformer video filter",
                "Filter/Effect/Video",
                "Restyles video from a prompt with a latent diffusion transformer",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let template = |name, direction, caps: &gst::Caps| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, caps)
            };
            // Interlaced video is let in to be refused with a word on what to do.
            let sink =
                template("sink", gst::PadDirection::Sink, &frames::input_caps(SIZES.0, SIZES.1));
            let src =
                template("src", gst::PadDirection::Src, &frames::output_caps(SIZES.0, SIZES.1));
            [sink, src].into_iter().flatten().collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::ReadyToPaused => self.start().map_err(|error| {
                self.obj().post_error_message(loading::error_message(&error));
                gst::StateChangeError
            })?,
            gst::StateChange::PausedToReady => self.cancel(),
            _ => (),
        }
        let success = self.parent_change_state(transition)?;
        match transition {
            gst::StateChange::PausedToReady => self.stop(),
            gst::StateChange::ReadyToNull => {
                let model = locked(&self.model).take();
                drop(model);
            }
            _ => (),
        }
        Ok(success)
    }
}

impl DitFilter {
    pub(super) fn running(&self) -> Option<Running> {
        locked(&self.running).clone()
    }

    pub(super) fn late_policy(&self) -> DitLatePolicy {
        locked(&self.settings).late_policy
    }

    fn start(&self) -> Result<(), crate::error::Error> {
        let settings = locked(&self.settings).clone();
        let opening = loading::opening(&settings.common, Purpose::Restyling)?;
        *locked(&self.state) = State::default();
        *locked(&self.input) = Input::default();
        *locked(&self.reporter) = Reporter::default();
        *locked(&self.upstream) = None;
        *locked(&self.announced) = None;
        let kept = locked(&self.model).take();
        let progress = Progress::start(&*self.obj(), &opening.info.folder);
        let (events, weak) = (progress.clone(), self.downgrade());
        let on_event = move |event: Event| {
            let imp = weak.upgrade();
            // Whoever reads that the model is loaded may count on the next picture being restyled; a failure is
            // told before streaming stops for it.
            if let (Event::Loaded, Some(imp)) = (&event, &imp) {
                imp.model_event(&event);
            }
            events.handle(&event);
            if let (Event::Failed(_), Some(imp)) = (&event, &imp) {
                imp.model_event(&event);
            }
        };
        let weak = self.downgrade();
        let on_result = move |finished| {
            if let Some(imp) = weak.upgrade() {
                imp.finished(finished);
            }
        };
        let feed = Feed::open(opening, Restyling::default(), on_event, on_result)
            .inspect_err(|_| progress.cancel())?;
        *locked(&self.model) = Some(feed.model().clone());
        // The same model has been found again by now.
        drop(kept);
        let depth = match settings.stream_batch as usize {
            wanted if wanted > 1 && !feed.info().can_stagger() => {
                gst::warning!(
                    CAT,
                    imp = self,
                    "stream-batch={wanted}: this model knows one noise level at a time, chunks are made one after the other"
                );
                1
            }
            wanted => wanted,
        };
        *locked(&self.running) = Some(Running { feed: Arc::new(feed), depth, progress });
        self.prepare_degrading();
        Ok(())
    }

    fn model_event(&self, event: &Event) {
        {
            let mut state = locked(&self.state);
            match event {
                Event::Loading(_) => return,
                Event::Loaded => state.loaded = true,
                Event::Failed(_) => state.flow = Err(gst::FlowError::Error),
            }
        }
        self.changed.notify_all();
    }

    /// Ends waits and computations on the way down.
    fn cancel(&self) {
        if let Some(running) = self.running() {
            running.feed.close();
            running.progress.cancel();
        }
        locked(&self.state).flushing = true;
        self.changed.notify_all();
    }

    fn stop(&self) {
        let running = locked(&self.running).take();
        drop(running);
        *locked(&self.output) = Output::default();
        *locked(&self.input) = Input::default();
        locked(&self.state).flush();
    }

    fn activate_sink(&self, active: bool) -> Result<(), gst::LoggableError> {
        if !active {
            locked(&self.state).flushing = true;
            self.changed.notify_all();
        }
        Ok(())
    }

    fn activate_src(&self, active: bool) -> Result<(), gst::LoggableError> {
        locked(&self.state).flushing = !active;
        self.changed.notify_all();
        if active {
            return self.start_output();
        }
        self.src_pad
            .stop_task()
            .map_err(|_| gst::loggable_error!(CAT, "the source pad's thread does not stop"))
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        let Some(running) = self.running() else {
            return gst::Pad::event_default(&self.sink_pad, Some(&*self.obj()), event);
        };
        match event.view() {
            gst::EventView::FlushStart(_) => return self.flush_start(&running, event),
            gst::EventView::FlushStop(_) => return self.flush_stop(event),
            gst::EventView::Caps(caps) => {
                if let Err(error) = self.new_caps(&running, caps.caps()) {
                    self.fail(&error);
                    return false;
                }
            }
            gst::EventView::Segment(segment) => {
                self.cut(&running, true);
                let Some(segment) = segment.segment().downcast_ref::<gst::ClockTime>() else {
                    gst::element_imp_error!(
                        self,
                        gst::StreamError::Format,
                        ("Only streams that are timed can be restyled"),
                        ["a segment in {:?}", segment.segment().format()]
                    );
                    return false;
                };
                let mut input = locked(&self.input);
                input.segment = segment.clone();
                input.expected = None;
            }
            gst::EventView::Eos(_) => {
                self.cut(&running, true);
                locked(&self.state).eos = true;
            }
            gst::EventView::StreamStart(_) => {
                self.cut(&running, true);
                locked(&self.state).eos = false;
            }
            gst::EventView::Gap(_) => self.cut(&running, true),
            _ if !event.is_serialized() => {
                return gst::Pad::event_default(&self.sink_pad, Some(&*self.obj()), event);
            }
            _ => (),
        }
        self.enqueue(event);
        locked(&self.state).flow.is_ok()
    }

    fn flush_start(&self, running: &Running, event: gst::Event) -> bool {
        locked(&self.state).flushing = true;
        self.changed.notify_all();
        running.feed.flush();
        let pushed = self.src_pad.push_event(event);
        let _ = self.src_pad.pause_task();
        pushed
    }

    fn flush_stop(&self, event: gst::Event) -> bool {
        {
            let mut input = locked(&self.input);
            input.segment = gst::FormattedSegment::new();
            input.expected = None;
        }
        locked(&self.state).flush();
        let pushed = self.src_pad.push_event(event);
        locked(&self.state).flushing = false;
        if let Err(error) = self.start_output() {
            gst::error!(CAT, imp = self, "{error}");
            return false;
        }
        pushed
    }

    fn new_caps(&self, running: &Running, caps: &gst::CapsRef) -> Result<(), crate::error::Error> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|error| crate::error::Error::setting("caps", error, "raw video"))?;
        frames::check_readable(&info)?;
        self.cut(running, true);
        gst::info!(CAT, imp = self, "negotiated {caps}");
        self.set_frame_duration(&info);
        {
            let mut input = locked(&self.input);
            input.reader = None;
            input.info = Some(info);
        }
        *locked(&self.upstream) = None;
        self.announce_latency();
        Ok(())
    }

    /// Tells the pipeline of a latency that is new.
    fn announce_latency(&self) {
        if locked(&self.input).info.is_none() {
            return;
        }
        let latency = self.latency();
        if locked(&self.announced).replace(latency) != Some(latency) {
            gst::debug!(CAT, imp = self, "latency {latency}");
            let message = gst::message::Latency::builder().src(&*self.obj()).build();
            let _ = self.obj().post_message(message);
        }
    }

    fn sink_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        match query.view_mut() {
            // What is held is read at once where it can be, and held as it is where it may have to pass.
            gst::QueryViewMut::Allocation(query) => {
                let size =
                    query.get().0.and_then(|caps| gst_video::VideoInfo::from_caps(caps).ok());
                let Some(info) = size else { return false };
                query.add_allocation_meta::<gst_video::VideoMeta>(None);
                let held = 2 * self.chunk_frames() as u32;
                query.add_allocation_pool(gst::BufferPool::NONE, info.size() as u32, held, 0);
                true
            }
            gst::QueryViewMut::Drain(_) => {
                let Some(running) = self.running() else { return false };
                self.cut(&running, true);
                let mut state = locked(&self.state);
                while !state.entries.is_empty() && !state.flushing && state.flow.is_ok() {
                    state = self.wait(state);
                }
                state.entries.is_empty()
            }
            _ => gst::Pad::query_default(pad, Some(&*self.obj()), query),
        }
    }

    fn src_query(&self, pad: &gst::Pad, query: &mut gst::QueryRef) -> bool {
        let gst::QueryViewMut::Latency(latency) = query.view_mut() else {
            return gst::Pad::query_default(pad, Some(&*self.obj()), query);
        };
        let mut upstream = gst::query::Latency::new();
        if !self.sink_pad.peer_query(&mut upstream) {
            return false;
        }
        let (live, least, most) = upstream.result();
        *locked(&self.upstream) = Some((live, least));
        if locked(&self.input).info.is_none() {
            latency.set(live, least, most);
            return true;
        }
        let most = most.map(|most| most + self.most_latency());
        latency.set(live, least + self.latency(), most);
        true
    }
}
