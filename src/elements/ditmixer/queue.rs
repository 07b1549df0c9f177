// SPDX-License-Identifier: MPL-2.0
//! Output frames that wait for the model, and when they go out without it.
//!
//! Every frame has the crossfade in it from the start; what the model makes is painted over it. A file waits for the
//! model. A live stream does not: a frame goes out when it is due, with what is there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::DitMixMode;
use super::bridge::{Bridge, Tail, sides};
use super::imp::{CAT, DitMixer};
use super::picture::lay_over;
use super::report::Reporter;
use super::run::{Chunk, Moment, Run};
use super::slot::{Shown, Slot};
use crate::elements::loading;
use crate::error::Error;
use crate::frames::{self, Painter, Reader};
use crate::pipeline::{MixControls, MixFrame, RgbFrame};
use crate::session::{Ladder, MixFeed, MixJob, MixStop, MixedFrames, locked};

/// A share of the way from either end on which the stream itself shines through the mix, so that nothing jumps.
const ENDS: f64 = 0.12;

/// What a frame waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Ask {
    /// It is as it is.
    #[default]
    Nothing,
    /// Its chunk is not complete.
    Chunk,
    /// A frame of a job.
    Job { ticket: u64, index: usize },
}

/// A composed frame that has not gone out.
struct Held {
    buffer: gst::Buffer,
    slot: Slot,
    ask: Ask,
}

/// What is between the base class and the source pad.
#[derive(Default)]
pub(super) struct Flow {
    held: VecDeque<Held>,
    /// Number of the first held frame since the start.
    first: u64,
    run: Run,
    /// The stream that the last frame showed exactly, by its pad.
    before: Option<(String, gst::Buffer)>,
    /// Of the streams in the run.
    prompts: [String; 2],
    tail: Tail,
    bridge: Option<Bridge>,
    done: BTreeMap<u64, MixedFrames>,
    ladder: Option<Ladder>,
    pub reporter: Reporter,
}

impl Flow {
    /// Running time of the first held frame, in nanoseconds.
    pub fn head(&self) -> Option<u64> {
        self.held.front().map(|held| held.slot.running_time())
    }

    fn ask_of(&mut self, number: u64) -> Option<&mut Ask> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.held.get_mut(index).map(|held| &mut held.ask)
    }
}

/// What is to be done with the first held frame.
enum Next {
    Emit(Held, Option<Arc<RgbFrame>>),
    Wait(u64, Option<Duration>),
    Later,
}

/// The time as it concerns a live stream.
#[derive(Clone, Copy)]
struct Live {
    now: u64,
    /// From a frame's running time to when it has to be out.
    allowance: u64,
}

impl DitMixer {
    /// Takes in a composed frame and lets out what may go.
    pub(super) fn enqueue(
        &self,
        buffer: gst::Buffer,
        slot: Slot,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let feed = self.feed();
        let bridging = locked(&self.settings).mode == DitMixMode::Bridge;
        let chunks = {
            let mut flow = locked(&self.flow);
            let number = flow.first + flow.held.len() as u64;
            let chunks = match &feed {
                Some(feed) if bridging => {
                    self.extend_bridge(&mut flow, number, &slot, feed).map(|()| Vec::new())
                }
                Some(feed) => self.collect(&mut flow, number, &slot, feed),
                None => Ok(Vec::new()),
            };
            let ask = match (&feed, slot.pair()) {
                (Some(_), Some(_)) => Ask::Chunk,
                _ => Ask::Nothing,
            };
            flow.held.push_back(Held { buffer, slot, ask });
            chunks
        }
        .map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::FlowError::Error
        })?;
        if let Some(feed) = &feed {
            for chunk in chunks {
                self.submit(feed, chunk)?;
            }
            self.submit_bridge(feed, false)?;
        }
        self.pump(false)
    }

    /// Lets out everything, waiting for the model where a stream is not live.
    pub(super) fn drain(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let Some(feed) = self.feed() {
            let rest = locked(&self.flow).run.finish(self.chunk_frames(&feed));
            if let Some(chunk) = rest {
                self.submit(&feed, chunk)?;
            }
            self.submit_bridge(&feed, true)?;
        } else {
            let mut flow = locked(&self.flow);
            flow.run.stop();
            flow.bridge = None;
        }
        self.pump(true)
    }

    /// Forgets all frames; nothing goes out.
    pub(super) fn discard(&self) {
        if let Some(feed) = self.feed() {
            feed.flush();
        }
        let mut flow = locked(&self.flow);
        let reporter = std::mem::take(&mut flow.reporter);
        *flow = Flow { reporter, ..Flow::default() };
    }

    /// Frames of a whole chunk.
    pub(super) fn chunk_frames(&self, feed: &MixFeed) -> usize {
        /// More would only be later.
        const MOST: i64 = 4;
        let info = feed.model().info();
        // A causal folder's single frames would leave the model too little time for each.
        let latents = info.later_chunk_latent_frames().max(info.staggered_latent_frames(1));
        let latents = latents.clamp(1, MOST);
        (latents * info.vae.temporal_factor()) as usize
    }

    fn collect(
        &self,
        flow: &mut Flow,
        number: u64,
        slot: &Slot,
        feed: &MixFeed,
    ) -> crate::error::Result<Vec<Chunk>> {
        let length = self.chunk_frames(feed);
        let before = flow.before.take();
        match &slot.shown {
            Shown::Pair(pair) => {
                let [a, b] = [(0, &pair.from), (1, &pair.to)]
                    .map(|(side, picture)| self.read(side, picture, &pair.output, feed));
                let before = match before.filter(|_| !flow.run.is_of(&pair.pads)) {
                    Some((pad, picture)) => {
                        Some((pad, self.read(2, &picture, &pair.output, feed)?))
                    }
                    None => None,
                };
                let frame = MixFrame { a: a?, b: b?, share: pair.share };
                let moment = Moment::Pair { pads: pair.pads.clone(), frame };
                flow.prompts = pair.prompts.clone();
                let before = before.as_ref().map(|(pad, it)| (pad.as_str(), it.clone()));
                Ok(flow.run.add(number, &moment, before, length))
            }
            Shown::One { pad, picture } => {
                flow.before = Some((pad.clone(), picture.clone()));
                let output = locked(&self.output).clone();
                let (true, Some(output)) = (flow.run.is_on(), output) else {
                    return Ok(Vec::new());
                };
                let picture = self.read(2, picture, &output, feed)?;
                let moment = Moment::One { pad: pad.clone(), picture };
                Ok(flow.run.add(number, &moment, None, length))
            }
            Shown::Nothing => Ok(flow.run.finish(length).into_iter().collect()),
        }
    }

    /// Puts what a frame shows into the bridge that is under way, or keeps it for one to come.
    fn extend_bridge(
        &self,
        flow: &mut Flow,
        number: u64,
        slot: &Slot,
        feed: &MixFeed,
    ) -> crate::error::Result<()> {
        match &slot.shown {
            Shown::Pair(pair) => {
                if flow.bridge.is_none() {
                    let mut before = flow.tail.pictures();
                    if before.is_empty() {
                        before.push(self.read(0, &pair.from, &pair.output, feed)?);
                    }
                    let prompts = pair.prompts.clone();
                    flow.bridge = Some(Bridge { before, prompts, ..Bridge::default() });
                }
                let last = self.read(1, &pair.to, &pair.output, feed)?;
                if let Some(bridge) = &mut flow.bridge {
                    bridge.gap.push(number);
                    // Stands in for frames that never come.
                    bridge.last = Some(last);
                }
            }
            Shown::One { pad, picture } => {
                let output = locked(&self.output).clone();
                let Some(output) = output else { return Ok(()) };
                let picture = self.read(2, picture, &output, feed)?;
                if let Some(bridge) = &mut flow.bridge {
                    bridge.after.push(picture.clone());
                }
                let factor = feed.model().info().vae.temporal_factor() as usize;
                flow.tail.push(pad, picture, 1 + factor);
            }
            Shown::Nothing => (),
        }
        Ok(())
    }

    /// Hands a bridge to the model once both sides are there, or `now` with what there is.
    fn submit_bridge(&self, feed: &MixFeed, now: bool) -> Result<(), gst::FlowError> {
        let info = feed.model().info();
        let ready = |bridge: &Bridge| now || bridge.after.len() >= sides(info, bridge.gap.len()).1;
        let bridge = {
            let mut flow = locked(&self.flow);
            if !flow.bridge.as_ref().is_some_and(ready) {
                return Ok(());
            }
            flow.bridge.take()
        };
        let Some(bridge) = bridge else { return Ok(()) };
        let (before, after) = sides(info, bridge.gap.len());
        let (gap, job) = bridge.into_job(before, after, |prompts| self.controls(feed, prompts));
        let Some(ticket) = feed.submit(job) else { return Err(self.refusal()) };
        let mut flow = locked(&self.flow);
        for (index, number) in gap.into_iter().enumerate() {
            if let Some(ask) = flow.ask_of(number) {
                *ask = Ask::Job { ticket, index };
            }
        }
        Ok(())
    }

    /// What a job that the feed did not take means for the stream.
    fn refusal(&self) -> gst::FlowError {
        if self.is_flushing() { gst::FlowError::Flushing } else { gst::FlowError::Error }
    }

    /// A picture of the output's kind as the model takes it.
    fn read(
        &self,
        side: usize,
        picture: &gst::Buffer,
        output: &gst_video::VideoInfo,
        feed: &MixFeed,
    ) -> crate::error::Result<Arc<RgbFrame>> {
        let info = feed.model().info();
        let (width, height) =
            info.generation_size(frames::square_width(output), i64::from(output.height()));
        let size = (width as usize, height as usize);
        let mut reader = locked(&self.reader);
        if !reader.as_ref().is_some_and(|(of, reader)| of == output && reader.size() == size) {
            *reader = Some((output.clone(), Reader::new(output.clone(), size)?));
        }
        let (_, reader) = reader.as_ref().ok_or_else(|| Error::setting("caps", "none", "caps"))?;
        let mut read = locked(&self.read);
        if let Some((of, frame)) = &read[side]
            && of.as_ptr() == picture.as_ptr()
            && (frame.width, frame.height) == size
        {
            return Ok(frame.clone());
        }
        let frame = Arc::new(reader.read(picture)?);
        read[side] = Some((picture.clone(), frame.clone()));
        Ok(frame)
    }

    fn submit(&self, feed: &MixFeed, chunk: Chunk) -> Result<(), gst::FlowError> {
        /// As many chunks as may wait for a model that does not keep up with a live stream.
        const BACKLOG: usize = 2;
        let prompts = locked(&self.flow).prompts.clone();
        let controls = self.controls(feed, prompts);
        let live = self.obj().latency().is_some();
        let mut flow = locked(&self.flow);
        if live && feed.pending() >= BACKLOG {
            // The crossfade it is; a new run begins with what comes next.
            flow.run.stop();
            for number in chunk.shown_by.into_iter().flatten() {
                flow.ask_of(number).into_iter().for_each(|ask| *ask = Ask::Nothing);
            }
            let waited_for = |held: &Held| matches!(held.ask, Ask::Job { .. });
            if !flow.held.iter().any(waited_for) {
                // Whatever is being made comes too late for all; the next try is for less.
                feed.flush();
                let playing = Duration::from_nanos(self.frame_duration());
                flow.ladder.iter_mut().for_each(|ladder| ladder.observe(playing * 3, playing));
            }
            return Ok(());
        }
        let job = MixJob::Mix { frames: chunk.frames, controls, restart: chunk.restart };
        let Some(ticket) = feed.submit(job) else { return Err(self.refusal()) };
        for (index, number) in chunk.shown_by.into_iter().enumerate() {
            if let Some(ask) = number.and_then(|number| flow.ask_of(number)) {
                *ask = Ask::Job { ticket, index };
            }
        }
        Ok(())
    }

    fn controls(&self, feed: &MixFeed, prompts: [String; 2]) -> MixControls {
        let live = self.obj().latency().is_some();
        let settings = locked(&self.settings).clone();
        let own = feed.model().info().native.num_inference_steps;
        let steps = settings.common.steps().unwrap_or(own);
        let mut flow = locked(&self.flow);
        if flow.ladder.as_ref().is_none_or(|ladder| ladder.full() != steps) {
            flow.ladder = Some(Ladder::new(steps));
        }
        let laddered = flow.ladder.as_ref().map_or(steps, Ladder::steps);
        let controls = settings.common.controls();
        MixControls {
            prompts,
            negative_prompt: controls.negative_prompt,
            guidance_scale: controls.guidance_scale,
            seed: controls.seed,
            num_inference_steps: if live { laddered } else { steps },
            creativity: settings.creativity,
        }
    }

    /// Lets out every frame that may go.
    pub(super) fn pump(&self, drain: bool) -> Result<gst::FlowSuccess, gst::FlowError> {
        let feed = self.feed();
        let mut last = Ok(gst::FlowSuccess::Ok);
        loop {
            let live = self.live();
            let next = {
                let mut flow = locked(&self.flow);
                self.next(&mut flow, feed.as_deref(), live, drain)
            };
            match next {
                Next::Later => return last,
                Next::Wait(ticket, patience) => {
                    let Some(feed) = &feed else { return Err(gst::FlowError::Error) };
                    match feed.wait(ticket, patience) {
                        Ok(result) => self.take_in(&mut locked(&self.flow), ticket, result),
                        Err(MixStop::Interrupted) if live.is_some() && self.live().is_some() => {
                            // Its time is over; the next look lets it go.
                            if self.is_flushing() {
                                return Err(gst::FlowError::Flushing);
                            }
                        }
                        Err(MixStop::Interrupted) => return Err(gst::FlowError::Flushing),
                        Err(MixStop::Failed) => return Err(gst::FlowError::Error),
                    }
                }
                Next::Emit(held, mixed) => {
                    last = self.emit(held, mixed);
                    last?;
                }
            }
        }
    }

    fn next(
        &self,
        flow: &mut Flow,
        feed: Option<&MixFeed>,
        live: Option<Live>,
        drain: bool,
    ) -> Next {
        if let Some(feed) = feed {
            // Those that are too late as well: their time says how much the model can do.
            for (ticket, result) in feed.take_all() {
                self.take_in(flow, ticket, result);
            }
        }
        let held = flow.held.len();
        let Some(head) = flow.held.front() else { return Next::Later };
        let (ask, due) =
            (head.ask, live.map(|live| (live.now, head.slot.running_time() + live.allowance)));
        let overdue = due.is_some_and(|(now, due)| now >= due);
        if let Some((now, due)) = due
            && !drain
        {
            // A frame that goes out waits in the sink for its time, and this thread with it, which has streams to take in:
            // none goes before it is due, and what has come in comes first as long as there is time for it.
            let slack = if self.inputs_wait() { self.frame_duration() / 2 } else { 0 };
            if now < due + slack {
                return Next::Later;
            }
        }
        let (Some(feed), Ask::Job { ticket, index }) = (feed, ask) else {
            let waits = ask == Ask::Chunk && !overdue && feed.is_some();
            return if waits && !drain { Next::Later } else { self.pop(flow, None) };
        };
        if let Some(done) = flow.done.get(&ticket) {
            let mixed = done.frames.get(index).cloned();
            return self.pop(flow, mixed);
        }
        if feed.has_failed() || overdue {
            return self.pop(flow, None);
        }
        // A second chunk may be collected while the first is made.
        let enough = held > 2 * self.chunk_frames(feed);
        match due {
            None if drain || enough => Next::Wait(ticket, None),
            None => Next::Later,
            Some((now, due)) => Next::Wait(ticket, Some(Duration::from_nanos(due - now))),
        }
    }

    fn pop(&self, flow: &mut Flow, mixed: Option<Arc<RgbFrame>>) -> Next {
        let Some(held) = flow.held.pop_front() else { return Next::Later };
        flow.first += 1;
        if let Ask::Job { ticket, .. } = held.ask {
            flow.done = flow.done.split_off(&ticket);
        }
        Next::Emit(held, mixed)
    }

    /// A finished job: its frames wait for those that they are for.
    fn take_in(&self, flow: &mut Flow, ticket: u64, result: crate::error::Result<MixedFrames>) {
        match result {
            Ok(mixed) => self.note_time(flow, ticket, mixed),
            Err(error) => self.job_failed(flow, ticket, &error),
        }
    }

    fn note_time(&self, flow: &mut Flow, ticket: u64, mixed: MixedFrames) {
        gst::debug!(CAT, imp = self, "{} frames in {:?}", mixed.frames.len(), mixed.spent);
        let playing = Duration::from_nanos(self.frame_duration()) * mixed.frames.len() as u32;
        // The single frame of a run's start says nothing about the pace.
        if let Some(ladder) = flow.ladder.as_mut().filter(|_| mixed.frames.len() > 1) {
            ladder.observe(mixed.spent, playing);
        }
        let waits = |held: &Held| matches!(held.ask, Ask::Job { ticket: of, .. } if of == ticket);
        if flow.held.iter().any(waits) {
            flow.done.insert(ticket, mixed);
        }
    }

    /// Frames of a job without a result stay crossfades; what is wrong with it is told once.
    fn job_failed(&self, flow: &mut Flow, ticket: u64, error: &Error) {
        for held in &mut flow.held {
            if matches!(held.ask, Ask::Job { ticket: of, .. } if of == ticket) {
                held.ask = Ask::Nothing;
            }
        }
        flow.run.stop();
        if !matches!(error, Error::Cancelled) {
            gst::error!(CAT, imp = self, "{error}");
            let obj = self.obj().clone();
            let message = loading::error_message(error);
            obj.call_async(move |obj| obj.post_error_message(message));
        }
    }

    fn emit(
        &self,
        held: Held,
        mixed: Option<Arc<RgbFrame>>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let Held { mut buffer, slot, .. } = held;
        if let Some(frame) = &mixed {
            self.paint_over(&mut buffer, &slot, frame).map_err(|error| {
                gst::element_imp_error!(self, gst::LibraryError::Failed, ("{error}"));
                gst::FlowError::Error
            })?;
        }
        let missed = mixed.is_none() && slot.pair().is_some();
        let messages = {
            let mut flow = locked(&self.flow);
            let ladder = flow.ladder.as_ref().map_or((0, 0), |it| (it.level(), it.steps()));
            flow.reporter.frame_out(&*self.obj(), &slot.when, missed, ladder)
        };
        if slot.mix_moved {
            self.obj().notify("mix");
        }
        let notes = slot
            .notes
            .into_iter()
            .map(|note| gst::message::Element::builder(note).src(&*self.obj()).build());
        for message in notes.chain(messages) {
            gst::debug!(CAT, imp = self, "{message:?}");
            // Without a bus there is nobody to tell.
            let _ = self.obj().post_message(message);
        }
        self.parent_finish_buffer(buffer)
    }

    fn paint_over(
        &self,
        buffer: &mut gst::Buffer,
        slot: &Slot,
        frame: &Arc<RgbFrame>,
    ) -> crate::error::Result<()> {
        let Some(pair) = slot.pair() else { return Ok(()) };
        let writable = buffer.make_mut();
        {
            let mut painter = locked(&self.painter);
            let fits = painter.as_ref().is_some_and(|painter| *painter.output() == pair.output);
            if !fits {
                *painter = Some(Painter::new(pair.output.clone()));
            }
            if let Some(painter) = painter.as_mut() {
                painter.paint(frame, writable)?;
            }
        }
        let share = pair.share;
        let (nearer, distance) =
            if share < 0.5 { (&pair.from, share) } else { (&pair.to, 1.0 - share) };
        if distance < ENDS && !pair.bridged {
            lay_over(nearer, 1.0 - distance / ENDS, &pair.output, writable)?;
        }
        Ok(())
    }

    /// Whether every stream that goes on has a frame that was not taken in yet.
    fn inputs_wait(&self) -> bool {
        let mut playing = self.pads().into_iter().filter(|pad| !pad.is_eos()).peekable();
        playing.peek().is_some() && playing.all(|pad| pad.has_buffer())
    }

    /// The clock, where the stream is live and plays.
    fn live(&self) -> Option<Live> {
        let obj = self.obj();
        let latency = obj.latency()?;
        let now = obj.current_running_time()?.nseconds();
        let allowance = latency.nseconds().saturating_sub(self.frame_duration());
        Some(Live { now, allowance })
    }

    /// The model's feed where the mode needs it.
    pub(super) fn feed(&self) -> Option<Arc<MixFeed>> {
        if locked(&self.settings).mode == DitMixMode::Crossfade {
            return None;
        }
        locked(&self.engine).as_ref().map(|engine| engine.feed.clone())
    }
}
