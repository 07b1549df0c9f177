// SPDX-License-Identifier: MPL-2.0
//! One element's endless stream of frames: what to generate, a bounded queue of finished chunks, and the
//! flags that end a wait or a computation early.
//!
//! Two threads meet here: the element's streaming thread takes frames by number, the model's thread asks
//! for jobs and hands in chunks. Every job carries the epoch it was made in; a restart raises the epoch,
//! and what comes from an older one is dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::pipeline::{Chunk, Controls, Pipeline, Request, RgbFrame, Rollout};
use crate::torch;

use super::ladder::Ladder;
use super::locked;
use super::model::Client;
use super::signal::Signal;

/// Finished or half-used chunks that may lie in the queue before generation pauses.
const QUEUED_CHUNKS: usize = 2;

/// What a session tells its owner; always sent from a thread that holds no lock of the session.
#[derive(Debug, Clone)]
pub enum Event {
    /// Loading has come to another phase.
    Loading(String),
    /// The model is loaded and generation can begin.
    Loaded,
    /// Loading or generation failed; the stream yields nothing more.
    Failed(Arc<Error>),
}

/// Why [`Stream::frame`] returned without a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The stream is flushing or closed.
    Flushing,
    /// The stream failed; the owner has been told by [`Event::Failed`], and `Session::failure` says it again.
    Failed,
}

/// What all frames of a chunk have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkInfo {
    /// The prompts, guidance and seed it was made with.
    pub controls: Controls,
    /// The denoising steps it was made with.
    pub steps: u32,
    /// The rung of the ladder it was made on; 0 is full quality.
    pub level: u32,
}

/// A frame taken from the stream.
#[derive(Clone)]
pub struct Picked {
    pub frame: Arc<RgbFrame>,
    pub chunk: Arc<ChunkInfo>,
    /// The wanted frame was not there in time, this is the one before it again.
    pub repeated: bool,
}

/// What to generate; a change of it starts the stream anew.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The checked request.
    pub request: Request,
    /// Only one picture is wanted.
    pub still: bool,
}

/// Figures of a stream since it was opened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Frames handed out.
    pub frames: u64,
    /// Chunks generated.
    pub chunks: u64,
    /// Frames generated a second of the model's time.
    pub fps: f64,
    /// Time of the last chunk's stages.
    pub encode_prompt: Duration,
    pub denoise: Duration,
    pub decode: Duration,
    /// Frames that are ready and not yet handed out.
    pub queue_level: u64,
    /// Frames handed out a second time because the next was not there in time.
    pub repeated: u64,
    /// Steps of the last chunk and its rung of the ladder.
    pub steps: u32,
    pub level: u32,
    /// From opening the session to the first frame handed out.
    pub first_frame: Option<Duration>,
}

/// One unit of work for the model's thread.
struct Job {
    epoch: u64,
    plan: Plan,
    controls: Controls,
    steps: u32,
    level: u32,
}

struct Ready {
    first: u64,
    frames: Vec<Arc<RgbFrame>>,
    info: Arc<ChunkInfo>,
}

impl Ready {
    fn end(&self) -> u64 {
        self.first + self.frames.len() as u64
    }
}

struct State {
    plan: Option<Plan>,
    /// Number of the first frame that this plan generates.
    origin: u64,
    /// Generation stops at the first chunk that would begin at or after this frame.
    limit: Option<u64>,
    controls: Controls,
    ladder: Ladder,
    /// The playing time of a frame where the stream must keep up with the clock.
    live_period: Option<Duration>,
    chunks: VecDeque<Ready>,
    /// First frame that is not generated yet.
    generated: u64,
    /// The frame handed out last, with its number.
    last: Option<(u64, Picked)>,
    flushing: bool,
    failed: Option<Arc<Error>>,
    stats: Stats,
    busy: Duration,
    generated_total: u64,
}

/// The shared part of a session; see the module's documentation.
pub struct Stream {
    threads: u32,
    opened: Instant,
    state: Mutex<State>,
    changed: Condvar,
    epoch: AtomicU64,
    closed: AtomicBool,
    /// The temporal state with the epoch it belongs to; locked only while at work.
    rollout: Mutex<Option<(u64, Rollout)>>,
    /// Held while an event is sent, so that none is sent after [`Stream::close`] has returned.
    sending: Mutex<()>,
    events: Box<dyn Fn(Event) + Send + Sync>,
    /// Raised whenever the model's thread may have something to do for this stream.
    work: Arc<Signal>,
}

impl Stream {
    pub(super) fn new(
        controls: Controls,
        steps: u32,
        threads: u32,
        events: Box<dyn Fn(Event) + Send + Sync>,
        work: Arc<Signal>,
    ) -> Self {
        Self {
            threads,
            opened: Instant::now(),
            state: Mutex::new(State {
                plan: None,
                origin: 0,
                limit: None,
                controls,
                ladder: Ladder::new(steps),
                live_period: None,
                chunks: VecDeque::new(),
                generated: 0,
                last: None,
                flushing: false,
                failed: None,
                stats: Stats::default(),
                busy: Duration::ZERO,
                generated_total: 0,
            }),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            rollout: Mutex::default(),
            sending: Mutex::new(()),
            events,
            work,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    // The owner's side.

    /// Starts over with a plan, its first frame having the number `origin`.
    pub(super) fn begin(&self, plan: Plan, origin: u64) {
        let mut state = self.lock();
        state.plan = Some(plan);
        self.restart_locked(&mut state, origin);
    }

    /// Generates the present plan anew, its first frame having the number `origin`.
    pub(super) fn restart(&self, origin: u64) {
        self.restart_locked(&mut self.lock(), origin);
    }

    /// Whether [`Stream::frame`] would return at once.
    pub(super) fn is_ready(&self, index: u64) -> bool {
        let state = self.lock();
        let last = state.last.as_ref().is_some_and(|(number, _)| *number == index);
        let queued = state.chunks.iter().any(|chunk| (chunk.first..chunk.end()).contains(&index));
        last || queued || state.failed.is_some() || state.flushing || self.is_closed()
    }

    fn restart_locked(&self, state: &mut State, origin: u64) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        state.origin = origin;
        state.generated = origin;
        state.chunks.clear();
        state.last = None;
        self.work.raise();
    }

    /// What the stream failed with, until it is forgiven.
    pub(super) fn failure(&self) -> Option<Arc<Error>> {
        self.lock().failed.clone()
    }

    /// Lets generation begin again after an error.
    pub(super) fn forgive(&self) {
        self.lock().failed = None;
    }

    pub(super) fn set_controls(&self, controls: Controls, steps: u32) {
        let mut state = self.lock();
        state.controls = controls;
        if state.ladder.full() != steps.max(1) {
            state.ladder = Ladder::new(steps);
        }
    }

    pub(super) fn set_live_period(&self, period: Option<Duration>) {
        self.lock().live_period = period;
    }

    pub(super) fn set_limit(&self, limit: Option<u64>) {
        self.lock().limit = limit;
        self.work.raise();
    }

    pub(super) fn set_flushing(&self, flushing: bool) {
        self.lock().flushing = flushing;
        self.changed.notify_all();
    }

    /// The first frame that has not been handed out, and whether only one picture is generated.
    pub(super) fn position(&self) -> (u64, bool) {
        let state = self.lock();
        let next = state.last.as_ref().map_or(state.origin, |(number, _)| number + 1);
        (next, state.plan.as_ref().is_some_and(|plan| plan.still))
    }

    /// Wakes a waiting [`Stream::frame`] so that it looks at its `late` flag.
    pub(super) fn nudge(&self) {
        // The lock keeps this from falling between the waiter's look at the flag and its wait.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// The frame with a number, waiting for it; numbers may skip forward but not back.
    ///
    /// Asking again for the number handed out last gives the same frame. `late` turning true ends the
    /// wait with the last frame repeated, if there is one.
    pub(super) fn frame(&self, index: u64, late: &AtomicBool) -> Result<Picked, Stop> {
        let mut state = self.lock();
        self.reopen(&mut state, index);
        loop {
            if state.flushing || self.is_closed() {
                return Err(Stop::Flushing);
            }
            if let Some(picked) = self.take(&mut state, index) {
                state.stats.frames += 1;
                state.stats.first_frame.get_or_insert_with(|| self.opened.elapsed());
                return Ok(picked);
            }
            if state.failed.is_some() {
                return Err(Stop::Failed);
            }
            if late.load(Ordering::SeqCst)
                && let Some((_, picked)) = &state.last
            {
                let picked = Picked { repeated: true, ..picked.clone() };
                state.stats.frames += 1;
                state.stats.repeated += 1;
                return Ok(picked);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets generation go on past a limit or a single picture that the wanted frame lies behind, and
    /// starts over when it lies before everything that is still to come.
    fn reopen(&self, state: &mut State, index: u64) {
        let passed = state.last.as_ref().is_some_and(|(number, _)| index < *number);
        if passed || index < state.origin {
            self.restart_locked(state, 0);
        }
        if state.limit.is_some_and(|limit| index >= limit) {
            state.limit = None;
            self.work.raise();
        }
        let origin = state.origin;
        if index > origin
            && let Some(plan) = state.plan.as_mut().filter(|plan| plan.still)
        {
            plan.still = false;
            self.restart_locked(state, origin);
        }
    }

    /// Takes a frame out of the queue if it is there, letting go of what lies before it.
    fn take(&self, state: &mut State, index: u64) -> Option<Picked> {
        if let Some((number, picked)) = &state.last
            && *number == index
        {
            return Some(picked.clone());
        }
        let mut picked = None;
        while let Some(chunk) = state.chunks.front() {
            if let Some(frame) = index.checked_sub(chunk.first).map(|offset| offset as usize) {
                picked = chunk.frames.get(frame).map(|frame| Picked {
                    frame: frame.clone(),
                    chunk: chunk.info.clone(),
                    repeated: false,
                });
            }
            if index + 1 < chunk.end() {
                break;
            }
            state.chunks.pop_front();
            self.work.raise();
            if picked.is_some() {
                break;
            }
        }
        state.last = picked.clone().map(|picked| (index, picked)).or(state.last.take());
        picked
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        let next = state.last.as_ref().map_or(0, |(number, _)| number + 1);
        let queue_level =
            state.chunks.iter().map(|chunk| chunk.end() - chunk.first.max(next)).sum();
        Stats { queue_level, ..state.stats.clone() }
    }

    /// Ends every wait and computation for this stream; no event is sent once this has returned.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.nudge();
        self.work.raise();
        drop(locked(&self.sending));
    }

    /// Whether a job has been overtaken by a restart or by the end of its stream.
    fn is_stale(&self, epoch: u64) -> bool {
        self.is_closed() || self.epoch.load(Ordering::SeqCst) != epoch
    }

    /// The next chunk to generate, if there is room for one and it is wanted.
    fn job(&self) -> Option<Job> {
        let state = self.lock();
        let plan = state.plan.as_ref()?;
        let done = (plan.still && state.generated > state.origin)
            || state.limit.is_some_and(|limit| state.generated >= limit);
        if done || state.failed.is_some() || self.is_closed() || state.chunks.len() >= QUEUED_CHUNKS
        {
            return None;
        }
        let live = state.live_period.is_some();
        let ladder = &state.ladder;
        Some(Job {
            epoch: self.epoch.load(Ordering::SeqCst),
            plan: plan.clone(),
            controls: state.controls.clone(),
            steps: if live { ladder.steps() } else { ladder.full() },
            level: if live { ladder.level() } else { 0 },
        })
    }

    /// Takes in a finished chunk unless its job is stale.
    fn finish(&self, job: &Job, chunk: Chunk, spent: Duration) {
        let mut state = self.lock();
        if self.is_stale(job.epoch) || chunk.frames.is_empty() {
            return;
        }
        let count = chunk.frames.len();
        // The first chunk also pays for warming up and delays nobody: nothing plays before it is there.
        let warm = state.generated > state.origin;
        if let Some(period) = state.live_period.filter(|_| warm) {
            state.ladder.observe(spent, period * count as u32);
        }
        state.busy += spent;
        state.generated_total += count as u64;
        let fps = state.generated_total as f64 / state.busy.as_secs_f64().max(1e-9);
        state.stats = Stats {
            chunks: state.stats.chunks + 1,
            fps,
            encode_prompt: chunk.timings.encode_prompt,
            denoise: chunk.timings.denoise,
            decode: chunk.timings.decode,
            steps: job.steps,
            level: job.level,
            ..state.stats.clone()
        };
        let first = state.generated;
        state.generated += count as u64;
        let info = ChunkInfo { controls: job.controls.clone(), steps: job.steps, level: job.level };
        state.chunks.push_back(Ready {
            first,
            frames: chunk.frames.into_iter().map(Arc::new).collect(),
            info: Arc::new(info),
        });
        self.changed.notify_all();
    }

    fn chunk(&self, pipeline: &Pipeline, job: &Job, quit: &AtomicBool) -> Result<Chunk, Error> {
        let cancel = || self.is_stale(job.epoch) || quit.load(Ordering::SeqCst);
        let mut kept = locked(&self.rollout);
        if kept.as_ref().is_none_or(|(epoch, _)| *epoch != job.epoch) {
            *kept = None;
            // The plan's steps are those of its beginning, which may be why an earlier attempt failed.
            let request = job.plan.request.clone().with_num_inference_steps(job.steps);
            *kept = Some((job.epoch, Rollout::new(pipeline, request)?));
        }
        let Some((_, rollout)) = kept.as_mut() else { return Err(Error::Cancelled) };
        rollout.set_num_inference_steps(pipeline, job.steps)?;
        let chunk = if job.plan.still {
            rollout.still(pipeline, &job.controls, &cancel)
        } else {
            rollout.next_chunk(pipeline, &job.controls, &cancel)
        };
        if chunk.as_ref().is_err_and(|error| !matches!(error, Error::Cancelled)) {
            // Its caches may be half written.
            *kept = None;
        }
        chunk
    }
}

impl Client for Stream {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn threads(&self) -> u32 {
        self.threads
    }

    fn has_work(&self) -> bool {
        self.job().is_some()
    }

    fn work(&self, pipeline: &Pipeline, quit: &AtomicBool) {
        let Some(job) = self.job() else { return };
        let started = Instant::now();
        match torch::guarded(|| self.chunk(pipeline, &job, quit)) {
            Ok(chunk) => self.finish(&job, chunk, started.elapsed()),
            Err(Error::Cancelled) => (),
            Err(error) => self.fail(Arc::new(error)),
        }
    }

    fn send(&self, event: Event) {
        let _sending = locked(&self.sending);
        if !self.is_closed() {
            (self.events)(event);
        }
    }

    fn fail(&self, error: Arc<Error>) {
        // First of all, so that whoever seeks on being told finds it.
        self.lock().failed = Some(error.clone());
        self.send(Event::Failed(error));
        self.changed.notify_all();
    }
}
