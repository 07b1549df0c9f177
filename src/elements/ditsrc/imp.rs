// SPDX-License-Identifier: MPL-2.0
//! The element behind `ditsrc`.
//!
//! Locks: `settings`, `running`, `state` and `painter` are each taken alone and never held over a push, a
//! message, a query or a wait for frames.
//!
//! A frame counts as delivered when it passes the source pad, not when it was filled: base classes from
//! 1.24 on throw a filled buffer away when a live source is paused, and it is then made again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_src::CreateSuccess;
use gst_base::subclass::prelude::*;

use super::negotiation::{fixate_size, state_colours};
use super::report::{Reporter, stats_structure, tags};
use super::timeline::{Slot, Timeline};
use crate::elements::loading::{self, Progress, Purpose};
use crate::elements::metadata;
use crate::elements::report::{FirstError, When, stats_pspec};
use crate::elements::settings::{Effect, Settings};
use crate::error::Error;
use crate::frames::{self, Painter};
use crate::pipeline::FolderInfo;
use crate::session::{ChunkInfo, Model, Picked, Session, Stats, Stop, locked};

pub(super) static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "ditsrc",
        gst::DebugColorFlags::empty(),
        Some("Video from a prompt by a diffusion transformer"),
    )
});

/// Least and greatest width and height in pixels.
pub(super) const SIZES: (i32, i32) = (16, 8192);

/// What lives from READY to PAUSED and back.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) session: Arc<Session>,
    progress: Arc<Progress>,
}

/// A frame that was filled and has not passed the pad yet.
pub(super) struct Filled {
    chunk: Arc<ChunkInfo>,
    repeated: bool,
}

/// What the negotiated caps and the frames so far amount to.
#[derive(Default)]
pub(super) struct State {
    pub(super) info: Option<gst_video::VideoInfo>,
    pub(super) timeline: Option<Timeline>,
    /// Time to begin at once the rate is known, in nanoseconds.
    pub(super) begin_at: u64,
    /// End of the segment in nanoseconds.
    pub(super) stop: Option<u64>,
    /// Width and height that the session generates.
    pub(super) generating: Option<(i64, i64)>,
    pub(super) filled: Option<Filled>,
    /// The next frame follows a jump.
    pub(super) discont: bool,
    /// When the last frame went out, since the element plays.
    pub(super) last_push: Option<gst::ClockTime>,
    tagged: Option<Arc<ChunkInfo>>,
    reporter: Reporter,
}

#[derive(Default)]
pub(super) struct Properties {
    pub(super) common: Settings,
    is_live: bool,
}

#[derive(Default)]
pub struct DitSrc {
    pub(super) settings: Mutex<Properties>,
    running: Mutex<Option<Running>>,
    /// Keeps the weights while the element is not in NULL.
    model: Mutex<Option<Arc<Model>>>,
    pub(super) state: Mutex<State>,
    painter: Mutex<Option<Painter>>,
    pub(super) first_error: FirstError,
}

#[glib::object_subclass]
impl ObjectSubclass for DitSrc {
    const NAME: &'static str = "GstDitSrc";
    type Type = super::DitSrc;
    type ParentType = gst_base::PushSrc;
}

impl ObjectImpl for DitSrc {
    fn properties() -> &'static [glib::ParamSpec] {
        static PROPERTIES: LazyLock<Vec<glib::ParamSpec>> = LazyLock::new(|| {
            let mut specs = Settings::pspecs(&Settings::default(), glib::ParamFlags::empty());
            specs.push(
                glib::ParamSpecBoolean::builder("is-live")
                    .nick("Is live")
                    .blurb("Whether to follow the clock: frames keep their time, with fewer steps and then repeated frames where the machine is too slow")
                    .default_value(Properties::default().is_live)
                    .mutable_ready()
                    .build(),
            );
            specs.push(
                stats_pspec("Frames, chunks, frames a second, milliseconds of each stage of the last chunk, frames queued and repeated, milliseconds to the first frame"),
            );
            specs
        });
        &PROPERTIES
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let name = pspec.name();
        let mut settings = locked(&self.settings);
        if name == "is-live" {
            if let Ok(is_live) = value.get() {
                settings.is_live = is_live;
            }
            return;
        }
        let effect = settings.common.set(name, value);
        let (controls, steps) = (settings.common.controls(), settings.common.steps());
        drop(settings);
        gst::info!(CAT, imp = self, "{name} is now {value:?}");
        match effect {
            Some(Effect::NextChunk) => {
                if let Some(running) = self.running() {
                    running.session.set_controls(controls, steps);
                }
            }
            Some(Effect::NextStart) => (),
            None => gst::warning!(CAT, imp = self, "no writable property {name}"),
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        match pspec.name() {
            "is-live" => locked(&self.settings).is_live.to_value(),
            "stats" => {
                let stats = self.running().map_or_else(Stats::default, |it| it.session.stats());
                stats_structure(&stats).to_value()
            }
            name => locked(&self.settings)
                .common
                .get(name)
                .unwrap_or_else(|| pspec.default_value().clone()),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        let obj = self.obj();
        obj.set_format(gst::Format::Time);
        let weak = self.downgrade();
        obj.src_pad().add_probe(gst::PadProbeType::BUFFER, move |_pad, info| {
            if let (Some(imp), Some(buffer)) = (weak.upgrade(), info.buffer()) {
                imp.frame_out(buffer);
            }
            gst::PadProbeReturn::Ok
        });
    }
}

impl GstObjectImpl for DitSrc {}

impl ElementImpl for DitSrc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            metadata(
                "Diffusion transformer video source",
                "Source/Video",
                "Generates endless video from a prompt with a latent diffusion transformer",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let caps = frames::output_caps(SIZES.0, SIZES.1);
            gst::PadTemplate::new("src", gst::PadDirection::Src, gst::PadPresence::Always, &caps)
                .into_iter()
                .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::ReadyToPaused => {
                self.first_error.forget();
                self.obj().set_live(locked(&self.settings).is_live);
            }
            // The base class finds its offset to the clock anew.
            gst::StateChange::PausedToPlaying => locked(&self.state).last_push = None,
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

    fn send_event(&self, event: gst::Event) -> bool {
        !self.refuses(&event) && self.parent_send_event(event)
    }

    fn post_message(&self, message: gst::Message) -> bool {
        if self.first_error.precedes(&message) {
            gst::debug!(CAT, imp = self, "not posting a consequence: {message:?}");
            return true;
        }
        self.parent_post_message(message)
    }
}

impl BaseSrcImpl for DitSrc {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = locked(&self.settings).common.clone();
        let opening = loading::opening(&settings, Purpose::Making)
            .map_err(|error| loading::error_message(&error))?;
        gst::info!(
            CAT,
            imp = self,
            "{} on {:?} in {:?}",
            opening.info.folder.display(),
            opening.device,
            opening.precision
        );
        let kept = locked(&self.model).take().filter(|model| {
            model.info().folder == opening.info.folder
                && model.device() == opening.device
                && model.precision() == opening.precision
        });
        *locked(&self.state) = State { discont: true, ..State::default() };
        let progress = Progress::start(&*self.obj(), &opening.info.folder);
        let controls = (settings.controls(), settings.steps());
        let events = progress.clone();
        let session = Session::open(opening, controls, move |event| events.handle(&event))
            .map_err(|error| {
                progress.cancel();
                loading::error_message(&error)
            })?;
        *locked(&self.model) = Some(session.model().clone());
        drop(kept);
        let running = Running { session: Arc::new(session), progress };
        *locked(&self.running) = Some(running.clone());
        // What was set since the copy above.
        let settings = locked(&self.settings).common.clone();
        running.session.set_controls(settings.controls(), settings.steps());
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.cancel();
        let running = locked(&self.running).take();
        drop(running);
        *locked(&self.painter) = None;
        *locked(&self.state) = State::default();
        Ok(())
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn event(&self, event: &gst::Event) -> bool {
        !self.refuses(event) && self.parent_event(event)
    }

    fn do_seek(&self, segment: &mut gst::Segment) -> bool {
        let Some(segment) = segment.downcast_mut::<gst::ClockTime>() else {
            gst::warning!(CAT, imp = self, "only TIME segments");
            return false;
        };
        segment.set_time(segment.start());
        let time = segment.position().or(segment.start()).map_or(0, gst::ClockTime::nseconds);
        let stop = segment.stop().map(gst::ClockTime::nseconds);
        self.seek(time, stop);
        true
    }

    fn fixate(&self, caps: gst::Caps) -> gst::Caps {
        let Some(info) = self.folder() else { return self.parent_fixate(caps) };
        let native = &info.native;
        let mut caps = caps;
        caps.truncate();
        if let Some(structure) = caps.make_mut().structure_mut(0) {
            fixate_size(structure, native.width as i32, native.height as i32);
            let rate = gst::Fraction::new(native.framerate.0, native.framerate.1);
            structure.fixate_field_nearest_fraction("framerate", rate);
            if structure.has_field("pixel-aspect-ratio") {
                let square = gst::Fraction::new(1, 1);
                structure.fixate_field_nearest_fraction("pixel-aspect-ratio", square);
            } else {
                structure.set("pixel-aspect-ratio", gst::Fraction::new(1, 1));
            }
        }
        let mut caps = self.parent_fixate(caps);
        state_colours(&mut caps);
        caps
    }

    fn set_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|_| gst::loggable_error!(CAT, "no video caps: {caps}"))?;
        gst::info!(CAT, imp = self, "negotiated {caps}");
        let Some(running) = self.running() else {
            return Err(gst::loggable_error!(CAT, "caps while stopped"));
        };
        let latency_changed = self.adopt(&info, &running.session);
        self.generate_for(&info, &running.session).map_err(|error| {
            self.obj().post_error_message(loading::error_message(&error));
            gst::loggable_error!(CAT, "{error}")
        })?;
        *locked(&self.painter) = Some(Painter::new(info));
        if latency_changed && self.obj().is_live() {
            let message = gst::message::Latency::builder().src(&*self.obj()).build();
            let _ = self.obj().post_message(message);
        }
        Ok(())
    }

    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        frames::decide_pool(query).map_err(|error| gst::loggable_error!(CAT, "{error}"))?;
        self.parent_decide_allocation(query)
    }

    fn times(&self, buffer: &gst::BufferRef) -> (Option<gst::ClockTime>, Option<gst::ClockTime>) {
        if !self.obj().is_live() {
            return (None, None);
        }
        let start = buffer.pts();
        (start, start.zip(buffer.duration()).map(|(start, duration)| start + duration))
    }

    fn query(&self, query: &mut gst::QueryRef) -> bool {
        let answered = match query.view_mut() {
            gst::QueryViewMut::Latency(query) => self.latency().map(|(live, latency)| {
                query.set(live, latency, gst::ClockTime::NONE);
            }),
            gst::QueryViewMut::Duration(query) => match query.format() {
                gst::Format::Time => self.duration().map(|(time, _)| query.set(time)),
                gst::Format::Default => self.duration().map(|(_, frames)| query.set(frames)),
                _ => None,
            },
            gst::QueryViewMut::Convert(query) => {
                let (value, target) = query.get();
                self.converted(value, target).map(|converted| query.set(value, converted))
            }
            _ => return BaseSrcImplExt::parent_query(self, query),
        };
        answered.is_some()
    }

    fn unlock(&self) -> Result<(), gst::ErrorMessage> {
        if let Some(running) = self.running() {
            running.session.set_flushing(true);
        }
        Ok(())
    }

    fn unlock_stop(&self) -> Result<(), gst::ErrorMessage> {
        if let Some(running) = self.running() {
            running.session.set_flushing(false);
        }
        Ok(())
    }
}

impl PushSrcImpl for DitSrc {
    fn create(&self, buffer: Option<&mut gst::BufferRef>) -> Result<CreateSuccess, gst::FlowError> {
        let running = self.running().ok_or(gst::FlowError::Flushing)?;
        let (slot, last_push, discont) = {
            let state = locked(&self.state);
            let timeline = state.timeline.ok_or(gst::FlowError::NotNegotiated)?;
            (timeline.next(), state.last_push, state.discont)
        };
        let picked = self.pick(&running.session, &slot, last_push).map_err(|stop| match stop {
            Stop::Flushing => gst::FlowError::Flushing,
            Stop::Failed => self.say_why(&running.session),
        })?;
        let made = match buffer {
            Some(buffer) => {
                self.fill_buffer(buffer, &picked, &slot, discont)?;
                CreateSuccess::FilledBuffer
            }
            None => {
                let mut buffer = self.acquire()?;
                let writable = buffer.get_mut().ok_or(gst::FlowError::Error)?;
                self.fill_buffer(writable, &picked, &slot, discont)?;
                CreateSuccess::NewBuffer(buffer)
            }
        };
        gst::trace!(CAT, imp = self, "made {slot:?}, repeated: {}", picked.repeated);
        self.send_tags(&picked.chunk);
        let filled = Filled { chunk: picked.chunk, repeated: picked.repeated };
        locked(&self.state).filled = Some(filled);
        Ok(made)
    }
}

impl DitSrc {
    pub(super) fn running(&self) -> Option<Running> {
        locked(&self.running).clone()
    }

    pub(super) fn folder(&self) -> Option<Arc<FolderInfo>> {
        self.running().map(|running| running.session.info().clone())
    }

    /// Ends waits and computations on the way down.
    fn cancel(&self) {
        if let Some(running) = self.running() {
            running.session.close();
            running.progress.cancel();
        }
    }

    /// Posts what the session failed with, unless it has been since the last start or seek.
    fn say_why(&self, session: &Session) -> gst::FlowError {
        if let Some(error) = session.failure() {
            self.obj().post_error_message(loading::error_message(&error));
        }
        gst::FlowError::Error
    }

    /// Waits for a frame; a live stream waits no longer than until the frame is due.
    fn pick(
        &self,
        session: &Session,
        slot: &Slot,
        last_push: Option<gst::ClockTime>,
    ) -> Result<Picked, Stop> {
        let late = Arc::new(AtomicBool::new(false));
        let due = last_push.map(|last| last + gst::ClockTime::from_nseconds(slot.duration));
        let (Some(due), Some(clock), true) = (due, self.obj().clock(), self.obj().is_live()) else {
            return session.frame(slot.native, &late);
        };
        if session.is_ready(slot.native) {
            return session.frame(slot.native, &late);
        }
        let alarm = clock.new_single_shot_id(due);
        let (flag, nudge) = (late.clone(), session.nudge());
        let ring = move || {
            flag.store(true, Ordering::SeqCst);
            nudge.nudge();
        };
        if alarm.wait_async(move |_, _, _| ring()).is_err() {
            late.store(true, Ordering::SeqCst);
        }
        let picked = session.frame(slot.native, &late);
        alarm.unschedule();
        picked
    }

    /// A buffer of the pool that was settled on.
    fn acquire(&self) -> Result<gst::Buffer, gst::FlowError> {
        if let Some(pool) = self.obj().buffer_pool() {
            return pool.acquire_buffer(None);
        }
        let size = locked(&self.state).info.as_ref().map(gst_video::VideoInfo::size);
        gst::Buffer::with_size(size.unwrap_or_default()).map_err(|_| gst::FlowError::Error)
    }

    fn fill_buffer(
        &self,
        buffer: &mut gst::BufferRef,
        picked: &Picked,
        slot: &Slot,
        discont: bool,
    ) -> Result<(), gst::FlowError> {
        let painted = match locked(&self.painter).as_mut() {
            Some(painter) => painter.paint(&picked.frame, buffer),
            None => Err(Error::setting("caps", "none", "negotiated caps")),
        };
        painted.map_err(|error| {
            self.obj().post_error_message(loading::error_message(&error));
            gst::FlowError::Error
        })?;
        buffer.set_pts(gst::ClockTime::from_nseconds(slot.pts));
        buffer.set_duration(gst::ClockTime::from_nseconds(slot.duration));
        buffer.set_offset(slot.offset);
        buffer.set_offset_end(slot.offset + 1);
        if discont {
            buffer.set_flags(gst::BufferFlags::DISCONT);
        } else {
            buffer.unset_flags(gst::BufferFlags::DISCONT);
        }
        Ok(())
    }

    fn send_tags(&self, chunk: &Arc<ChunkInfo>) {
        let Some(info) = self.folder() else { return };
        {
            let mut state = locked(&self.state);
            if state.tagged.as_ref().is_some_and(|tagged| tagged == chunk) {
                return;
            }
            state.tagged = Some(chunk.clone());
        }
        // The base class sends it after caps and segment, before the buffer.
        self.obj().send_event(gst::event::Tag::new(tags(chunk, &info)));
    }

    /// A frame passes the pad: only now it counts.
    fn frame_out(&self, buffer: &gst::Buffer) {
        let obj = self.obj();
        let Some(info) = self.folder() else { return };
        let when = When::new(buffer, &obj.segment());
        let now = obj.current_clock_time();
        let mut messages = Vec::new();
        {
            let mut state = locked(&self.state);
            let Some(filled) = state.filled.take() else { return };
            if let Some(timeline) = &mut state.timeline {
                timeline.advance(filled.repeated);
            }
            state.discont = false;
            state.last_push = now;
            for structure in state.reporter.frame_out(&filled.chunk, filled.repeated, &when, &info)
            {
                messages.push(gst::message::Element::builder(structure).src(&*obj).build());
            }
            if filled.repeated {
                messages.push(state.reporter.qos(&*obj, &when));
            }
        }
        for message in messages {
            gst::debug!(CAT, imp = self, "{message:?}");
            let _ = obj.post_message(message);
        }
    }
}
