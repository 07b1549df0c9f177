// SPDX-License-Identifier: MPL-2.0
//! The sink pad's thread: frames to chunks to jobs for the model's thread.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::elements::loading;
use crate::elements::report::When;
use crate::error::Error;
use crate::frames::{self, Reader};
use crate::pipeline::{FolderInfo, RgbFrame};
use crate::session::{Finished, RestyleJob, RestyledFrames, Words, locked};

use super::degrading::{Action, Degrading, Rung};
use super::imp::{CAT, DitFilter, Running};
use super::queue::{ChunkNote, Entry, Gathered, Picture, Plan, Slot, State, Submitted, thinned};
use super::settings::FilterSettings;
use super::{DitLatePolicy, DitOnError};

/// Chunks that may lie in the element before upstream has to wait.
const WINDOW_CHUNKS: usize = 3;
/// Jobs that a live stream may have on their way before the next chunk passes through.
const LIVE_JOBS: usize = 2;
/// Most chunks that pass between two tries after errors.
const MOST_ERROR_PAUSE: u32 = 32;

/// What the sink pad's thread knows.
#[derive(Default)]
pub(super) struct Input {
    pub(super) info: Option<gst_video::VideoInfo>,
    pub(super) segment: gst::FormattedSegment<gst::ClockTime>,
    pub(super) reader: Option<Reader>,
    /// Words of the last chunk, those it came from, and the running time at which the change began.
    words: Option<Words>,
    transition: Option<(Words, gst::ClockTime)>,
    /// End of the last frame.
    pub(super) expected: Option<gst::ClockTime>,
}

/// What a frame is to become.
enum Treatment {
    Restyle,
    Pass { degraded: bool },
}

impl DitFilter {
    pub(super) fn take_in(&self, buffer: gst::Buffer) -> Result<gst::FlowSuccess, gst::FlowError> {
        let running = self.running().ok_or(gst::FlowError::Flushing)?;
        self.wait_for_room(&running)?;
        let mut input = locked(&self.input);
        let info = input.info.clone().ok_or(gst::FlowError::NotNegotiated)?;
        let when = When::new(&buffer, input.segment.upcast_ref());
        // Only now, without any lock: it sets properties.
        drop(input);
        if let Some(stream_time) = when.stream_time
            && let Err(error) = self.obj().sync_values(stream_time)
        {
            gst::warning!(CAT, imp = self, "controlled properties: {error}");
        }
        let live = self.is_live();
        input = locked(&self.input);
        let settings = locked(&self.settings).clone();
        if self.jumps(&mut input, &buffer) {
            gst::debug!(CAT, imp = self, "a jump at {:?}", buffer.pts());
            self.cut(&running, true);
        }
        let deadline = if live { self.deadline(&when) } else { None };
        let treatment = {
            let mut state = locked(&self.state);
            state.counters.received += 1;
            self.treatment(&mut state, &settings, (&buffer, live))
        };
        let frame = match treatment {
            Treatment::Pass { .. } => None,
            Treatment::Restyle => {
                self.read(&running, &settings, (&mut input, &info), (&buffer, &when))
            }
        };
        drop(input);
        let Some(frame) = frame else {
            // What was gathered before is done first; what comes later does not continue it.
            self.cut(&running, true);
            let degraded = !matches!(treatment, Treatment::Pass { degraded: false });
            let picture = Picture::Original { degraded };
            locked(&self.state).push_frame(Slot { buffer, when, deadline, picture });
            self.changed.notify_all();
            return Ok(gst::FlowSuccess::Ok);
        };
        let complete = {
            let mut state = locked(&self.state);
            let picture = Picture::Gathering(state.gathered.frames.len());
            state.gathered.frames.push(frame);
            state.push_frame(Slot { buffer, when, deadline, picture });
            let gathered = &state.gathered;
            gathered.plan.as_ref().is_some_and(|plan| gathered.frames.len() >= plan.target)
        };
        self.changed.notify_all();
        if complete {
            self.cut(&running, false);
        }
        Ok(gst::FlowSuccess::Ok)
    }

    /// The picture in a buffer, at the size at which it is restyled; None, with the reason told, where it has to pass.
    fn read(
        &self,
        running: &Running,
        settings: &FilterSettings,
        (input, info): (&mut Input, &gst_video::VideoInfo),
        (buffer, when): (&gst::BufferRef, &When),
    ) -> Option<Arc<RgbFrame>> {
        let begins = {
            let mut state = locked(&self.state);
            state.gathered.plan.is_none().then(|| {
                state.gathered.plan = Some(self.plan(&state, running, settings, (input, when)));
                self.size(&state, running.feed.info(), settings, info)
            })
        };
        let prepared =
            begins.map_or(Ok(()), |size| self.prepare_reader(running, input, info, size));
        if let Err(error) = prepared {
            locked(&self.state).gathered.plan = None;
            self.model_failed(&error);
            return None;
        }
        match input.reader.as_ref()?.read(buffer) {
            Ok(frame) => Some(Arc::new(frame)),
            Err(error) => {
                gst::warning!(CAT, imp = self, "passing a frame on: {error}");
                None
            }
        }
    }

    /// Keeps upstream from filling the memory; a live stream only waits where downstream does not take anything.
    fn wait_for_room(&self, running: &Running) -> Result<(), gst::FlowError> {
        let window = (WINDOW_CHUNKS + running.depth - 1) * self.chunk_frames();
        let mut state = locked(&self.state);
        loop {
            if state.flushing {
                return Err(gst::FlowError::Flushing);
            }
            if state.eos {
                return Err(gst::FlowError::Eos);
            }
            state.flow?;
            // Frames that gather can only leave when more come.
            let leaving = state.frames - state.gathered.frames.len().min(state.frames);
            if state.frames < window || leaving == 0 {
                return Ok(());
            }
            gst::trace!(
                CAT,
                imp = self,
                "{} frames, {} jobs",
                state.frames,
                running.feed.pending()
            );
            state = self.wait(state);
        }
    }

    /// Whether a frame does not follow the one before.
    fn jumps(&self, input: &mut Input, buffer: &gst::BufferRef) -> bool {
        let pts = buffer.pts();
        let duration = buffer.duration().unwrap_or(self.frame_duration());
        let expected = input.expected;
        input.expected = pts.map(|pts| pts + duration);
        let (Some(pts), Some(expected)) = (pts, expected) else { return false };
        let limit = if buffer.flags().contains(gst::BufferFlags::DISCONT) {
            duration * 2
        } else {
            // Live sources are irregular, and a lost frame is no cut.
            (duration * 8).max(gst::ClockTime::SECOND)
        };
        pts + duration * 2 < expected || pts > expected + limit
    }

    /// What is to be done with a frame.
    fn treatment(
        &self,
        state: &mut State,
        settings: &FilterSettings,
        (buffer, live): (&gst::BufferRef, bool),
    ) -> Treatment {
        let empty = buffer.size() == 0 || buffer.flags().contains(gst::BufferFlags::GAP);
        if settings.leaves_pictures() || empty {
            return Treatment::Pass { degraded: false };
        }
        if !state.gathered.frames.is_empty() {
            return Treatment::Restyle;
        }
        if live && !state.loaded {
            return Treatment::Pass { degraded: true };
        }
        // Pauses are counted in chunks, that is in the frames that pass meanwhile.
        let chunk = self.chunk_frames() as u64;
        let tried_less = live && settings.late_policy == DitLatePolicy::Degrade;
        let passes = |degrading: &Degrading| degrading.rung().0.action == Action::PassThrough;
        let too_slow = tried_less && state.degrading.as_ref().is_some_and(passes);
        if state.error_pause == 0 && !too_slow {
            return Treatment::Restyle;
        }
        state.passed_in += 1;
        if state.passed_in.is_multiple_of(chunk) {
            match &mut state.degrading {
                _ if state.error_pause > 0 => state.error_pause -= 1,
                Some(degrading) => degrading.passed(),
                None => (),
            }
        }
        Treatment::Pass { degraded: true }
    }

    /// How the chunk that begins with this frame is to be made.
    fn plan(
        &self,
        state: &State,
        running: &Running,
        settings: &FilterSettings,
        (input, when): (&mut Input, &When),
    ) -> Plan {
        let (rung, level) = self.rung(state, running.feed.info(), settings);
        let from = self.transition(input, settings, when);
        let restyle = settings.restyle(rung.steps, from);
        let note = ChunkNote {
            controls: settings.common.controls(),
            strength: settings.strength,
            wanted_steps: self.full_steps(running.feed.info(), settings),
            steps: rung.steps,
            action: rung.action,
            level,
        };
        let group = running.feed.info().vae.temporal_factor() as usize;
        let chunk = self.chunk_frames();
        Plan {
            settings: restyle,
            note: Arc::new(note),
            every: rung.every,
            // The model's first latent frame of a stream is one frame.
            target: if state.fresh { chunk + 1 - group } else { chunk },
            group,
        }
    }

    fn full_steps(&self, info: &FolderInfo, settings: &FilterSettings) -> u32 {
        settings.common.steps().unwrap_or(info.native.num_inference_steps)
    }

    /// The rung of the moment; full quality where nothing is to be given up.
    fn rung(&self, state: &State, info: &FolderInfo, settings: &FilterSettings) -> (Rung, u32) {
        match &state.degrading {
            Some(degrading) if settings.late_policy == DitLatePolicy::Degrade => degrading.rung(),
            _ => {
                let steps = self.full_steps(info, settings);
                (Rung { action: Action::None, steps, size: 1.0, every: 1 }, 0)
            }
        }
    }

    /// The words that the chunk comes from and how far it is from them, while a change of words is under way.
    fn transition(
        &self,
        input: &mut Input,
        settings: &FilterSettings,
        when: &When,
    ) -> Option<(Words, f64)> {
        let words = settings.words();
        let now = when.running_time.unwrap_or_default();
        if input.words.as_ref().is_some_and(|before| *before != words) {
            let before = input.words.replace(words);
            input.transition = before.map(|before| (before, now));
        } else {
            input.words = Some(words);
        }
        let (from, since) = input.transition.clone()?;
        let passed = now.saturating_sub(since).nseconds() as f64;
        // The middle of the chunk stands for all of it.
        let half = self.chunk_frames() as f64 * self.frame_duration().nseconds() as f64 / 2.0;
        let amount = (passed + half) / settings.style_transition.max(1) as f64;
        if amount >= 1.0 {
            input.transition = None;
            return None;
        }
        Some((from, amount))
    }

    /// The size to restyle pictures at.
    fn size(
        &self,
        state: &State,
        folder: &FolderInfo,
        settings: &FilterSettings,
        info: &gst_video::VideoInfo,
    ) -> (usize, usize) {
        let square = (frames::square_width(info), i64::from(info.height()));
        let (width, height) = settings.processing_size(folder, square);
        let (rung, _) = self.rung(state, folder, settings);
        let scaled = |side: usize| ((side as f64 * rung.size).round() as usize).max(16);
        (scaled(width), scaled(height))
    }

    /// Makes pictures of a size, for which there has to be memory.
    fn prepare_reader(
        &self,
        running: &Running,
        input: &mut Input,
        info: &gst_video::VideoInfo,
        size: (usize, usize),
    ) -> Result<(), Error> {
        if input.reader.as_ref().is_some_and(|reader| reader.size() == size) {
            return Ok(());
        }
        input.reader = None;
        running.feed.model().check_memory((size.0 as i64, size.1 as i64))?;
        gst::info!(CAT, imp = self, "restyling at {}x{}", size.0, size.1);
        input.reader = Some(Reader::new(info.clone(), size)?);
        Ok(())
    }

    /// Submits what was gathered; `ends` when nothing that follows continues it.
    pub(super) fn cut(&self, running: &Running, ends: bool) {
        let live = self.is_live();
        let settings = locked(&self.settings).clone();
        let mut state = locked(&self.state);
        let Gathered { frames, plan } = std::mem::take(&mut state.gathered);
        let restart = state.fresh;
        state.fresh |= ends;
        let depth = running.depth;
        let Some(plan) = plan.filter(|_| !frames.is_empty()) else {
            if ends {
                self.end_batch(running, &state, &settings);
            }
            return;
        };
        let last = ends || frames.len() < plan.target;
        state.fresh = last;
        let patient = settings.late_policy == DitLatePolicy::Wait;
        if live && !patient && state.submitted.len() >= LIVE_JOBS + depth - 1 {
            gst::debug!(CAT, imp = self, "{} frames pass: too many jobs", frames.len());
            state.gathered_pass();
            state.fresh |= restart;
            if last {
                self.end_batch(running, &state, &settings);
            }
            drop(state);
            self.changed.notify_all();
            return;
        }
        let count = frames.len();
        let frames = thinned(&frames, plan.every, plan.group);
        let restyled = frames.len();
        let job = RestyleJob { frames, restart, last, depth, settings: plan.settings };
        // The result waits for the lock that is held here.
        let Some(ticket) = running.feed.submit(job) else {
            state.gathered_pass();
            drop(state);
            self.changed.notify_all();
            return;
        };
        gst::log!(CAT, imp = self, "job {ticket}: {count} frames, restart: {restart}");
        state.gathered_wait(ticket);
        let now = Instant::now();
        state.busy_since.get_or_insert(now);
        let frame = Duration::from_nanos(self.frame_duration().nseconds());
        state.submitted.push_back(Submitted {
            ticket,
            at: now,
            frames: count,
            restyled,
            playing: frame * count as u32,
            note: plan.note,
        });
        drop(state);
        self.changed.notify_all();
    }

    /// Lets chunks come out that are denoised together with one that does not come.
    fn end_batch(&self, running: &Running, state: &State, settings: &FilterSettings) {
        if running.depth == 1 || state.submitted.is_empty() {
            return;
        }
        let (frames, settings) = (Vec::new(), settings.restyle(1, None));
        let depth = running.depth;
        // Nothing waits for its own result.
        let _ =
            running.feed.submit(RestyleJob { frames, restart: false, last: true, depth, settings });
    }

    /// Takes in a result, on the model's thread.
    pub(super) fn finished(&self, finished: Finished<RestyledFrames>) {
        let Finished { ticket, result, spent } = finished;
        let live = self.is_live();
        let mut state = locked(&self.state);
        let Some(at) = state.submitted.iter().position(|job| job.ticket == ticket) else { return };
        let Some(job) = state.submitted.remove(at) else { return };
        let now = Instant::now();
        // The job that brought the result came after those that it was made together with.
        let came = match self.running().map_or(1, |running| running.depth) {
            1 => Some(job.at),
            depth => state.submitted.get(at + depth - 2).map(|other| other.at),
        };
        let came = came.or(now.checked_sub(spent)).unwrap_or(now);
        let begun = state.busy_since.map_or(came, |since| since.max(came));
        state.busy_since = Some(now);
        match result {
            Ok(restyled) => {
                gst::log!(CAT, imp = self, "job {ticket}: {spent:?}, still: {}", restyled.still);
                state.finish(&job, &restyled.frames);
                state.next_error_pause = 0;
                let counters = &mut state.counters;
                counters.chunks += 1;
                counters.still += u64::from(restyled.still);
                if !restyled.still {
                    counters.timings = restyled.timings;
                    counters.busy += spent;
                    counters.chunk_frames += job.restyled as u64;
                    if live && let Some(degrading) = &mut state.degrading {
                        degrading.observe(job.note.level, now - begun, job.playing);
                    }
                }
                drop(state);
            }
            // What it was made together with failed, which is told of by itself.
            Err(Error::Cancelled) => state.give_up(&job),
            Err(error) => {
                state.give_up(&job);
                drop(state);
                self.model_failed(&error);
            }
        }
        self.changed.notify_all();
    }

    /// The model failed on the way.
    fn model_failed(&self, error: &Error) {
        let on_error = locked(&self.settings).on_error;
        if on_error == DitOnError::Error {
            self.fail(error);
            return;
        }
        let first = {
            let mut state = locked(&self.state);
            state.counters.errors += 1;
            state.fresh = true;
            let first = state.next_error_pause == 0;
            state.next_error_pause = (state.next_error_pause * 2).clamp(1, MOST_ERROR_PAUSE);
            state.error_pause = state.next_error_pause;
            state.passed_in = 0;
            first
        };
        self.changed.notify_all();
        if first {
            gst::element_imp_warning!(
                self,
                gst::LibraryError::Failed,
                ("Pictures pass as they are: {}", error),
                [
                    "{error:?}; the next try comes after a pause, on-error=error would end the stream"
                ]
            );
        } else {
            gst::info!(CAT, imp = self, "failed again: {error}");
        }
    }

    /// Ends the stream with an error message.
    pub(super) fn fail(&self, error: &Error) {
        self.obj().post_error_message(loading::error_message(error));
        locked(&self.state).flow = Err(gst::FlowError::Error);
        self.changed.notify_all();
    }

    /// Running time by which a frame has to go out.
    fn deadline(&self, when: &When) -> Option<gst::ClockTime> {
        let (_, upstream) = (*locked(&self.upstream))?;
        // Painting takes a moment too.
        let latency = self.latency();
        let margin = self.frame_duration().min(gst::ClockTime::from_mseconds(20)) / 2;
        Some(when.running_time? + upstream + latency.saturating_sub(margin))
    }

    /// Whether upstream is live; asks once for each stream.
    pub(super) fn is_live(&self) -> bool {
        if let Some((live, _)) = locked(&self.upstream).as_ref() {
            return *live;
        }
        let mut query = gst::query::Latency::new();
        let upstream = if self.sink_pad.peer_query(&mut query) {
            let (live, least, _) = query.result();
            (live, least)
        } else {
            (false, gst::ClockTime::ZERO)
        };
        *locked(&self.upstream) = Some(upstream);
        upstream.0
    }

    /// Frames of a chunk that is not the first of a stream.
    pub(super) fn chunk_frames(&self) -> usize {
        let wanted = locked(&self.settings).chunk_frames as usize;
        let Some(running) = self.running() else { return wanted.max(1) };
        let info = running.feed.info();
        let group = info.vae.temporal_factor() as usize;
        let wanted = match running.depth {
            _ if wanted > 0 => wanted,
            // Two latent frames at least, so that a slow machine can leave one out.
            1 => (info.later_chunk_frames() as usize).max(2 * group),
            depth => info.staggered_latent_frames(depth as i64) as usize * group,
        };
        wanted.div_ceil(group).max(1) * group
    }

    /// The time that one frame plays.
    pub(super) fn frame_duration(&self) -> gst::ClockTime {
        gst::ClockTime::from_nseconds(self.frame_ns.load(Ordering::SeqCst))
    }

    /// Takes it from caps; where the rate is variable, the model's own counts.
    pub(super) fn set_frame_duration(&self, info: &gst_video::VideoInfo) {
        let native = self.running().map(|it| it.feed.info().native.framerate);
        let of = |(num, den): (i32, i32)| {
            (num > 0 && den > 0).then(|| den as u64 * 1_000_000_000 / num as u64)
        };
        let stated = of((info.fps().numer(), info.fps().denom()));
        if let Some(frame) = stated.or_else(|| native.and_then(of)) {
            self.frame_ns.store(frame.max(1), Ordering::SeqCst);
        }
    }

    /// What this element adds to the latency: the rest of the chunk and of those it is made together with, and the time it
    /// takes.
    pub(super) fn latency(&self) -> gst::ClockTime {
        let (chunk, frame) = (self.chunk_frames() as u64, self.frame_duration());
        let length = Duration::from_nanos(frame.nseconds() * chunk);
        let allowance = locked(&self.settings).allowance(length);
        let depth = self.running().map_or(1, |running| running.depth as u64);
        frame * (chunk * depth - 1) + gst::ClockTime::from_nseconds(allowance.as_nanos() as u64)
    }

    /// The most that it can hold without keeping upstream waiting.
    pub(super) fn most_latency(&self) -> gst::ClockTime {
        let depth = self.running().map_or(1, |running| running.depth);
        let held =
            self.frame_duration() * ((WINDOW_CHUNKS + depth - 1) * self.chunk_frames()) as u64;
        held.max(self.latency())
    }

    /// Begins a ladder for the steps asked for, unless it stands on one already.
    pub(super) fn prepare_degrading(&self) {
        let Some(running) = self.running() else { return };
        let steps = self.full_steps(running.feed.info(), &locked(&self.settings).clone());
        let divisible = self.chunk_frames() > running.feed.info().vae.temporal_factor() as usize;
        let mut state = locked(&self.state);
        if state.degrading.as_ref().is_none_or(|degrading| degrading.full_steps() != steps) {
            state.degrading = Some(Degrading::new(steps, divisible));
        }
    }

    pub(super) fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts a serialized event behind the frames.
    pub(super) fn enqueue(&self, event: gst::Event) {
        locked(&self.state).entries.push_back(Entry::Event(event));
        self.changed.notify_all();
    }
}
