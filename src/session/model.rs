// SPDX-License-Identifier: MPL-2.0
//! A loaded model and the one thread that owns its tensors.
//!
//! The thread loads the weights, then serves the streams attached to it in turn, one chunk at a time. It
//! ends when the last handle is dropped; loading ends early when nobody waits for it any more.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use tch::Device;

use crate::error::{Error, Result};
use crate::pipeline::{Chunk, FolderInfo, Pipeline, Rollout};
use crate::torch::{self, Precision};

use super::stream::{Event, Job, Signal, Stream};

/// A model shared by all sessions with the same folder, device and precision.
pub struct Model {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    info: Arc<FolderInfo>,
    device: Device,
    precision: Precision,
    state: Mutex<State>,
    work: Arc<Signal>,
    quit: AtomicBool,
}

struct State {
    status: Status,
    streams: Vec<Weak<Stream>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Loading,
    Ready,
    /// Loading failed or was abandoned; this instance will never be usable.
    Ended,
}

impl Model {
    /// Starts the model's thread, which begins to load at once for the given stream's sake.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub(super) fn start(
        info: Arc<FolderInfo>,
        device: Device,
        precision: Precision,
        work: Arc<Signal>,
        stream: &Arc<Stream>,
    ) -> Result<Self> {
        let state = State { status: Status::Loading, streams: vec![Arc::downgrade(stream)] };
        let folder = info.folder.clone();
        let shared = Arc::new(Shared {
            info,
            device,
            precision,
            state: Mutex::new(state),
            work,
            quit: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new()
            .name("dit-model".into())
            .spawn({
                let shared = shared.clone();
                move || shared.run()
            })
            .map_err(|source| Error::io(folder, source))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Adds a stream, or says why not: true when loaded already, false while loading, None when the
    /// model will never be usable.
    pub(super) fn attach(&self, stream: &Arc<Stream>) -> Option<bool> {
        let mut state = self.shared.lock();
        if state.status == Status::Ended {
            return None;
        }
        state.streams.push(Arc::downgrade(stream));
        Some(state.status == Status::Ready)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.shared.lock().status == Status::Ended
    }

    pub(super) fn is_ready(&self) -> bool {
        self.shared.lock().status == Status::Ready
    }

    pub(super) fn work(&self) -> Arc<Signal> {
        self.shared.work.clone()
    }

    /// What the folder holds.
    pub fn info(&self) -> &Arc<FolderInfo> {
        &self.shared.info
    }

    /// Where the model runs.
    pub fn device(&self) -> Device {
        self.shared.device
    }

    /// The arithmetic it runs in.
    pub fn precision(&self) -> Precision {
        self.shared.precision
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        self.shared.work.raise();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            // Its panic was caught and reported on the thread itself.
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quits(&self) -> bool {
        self.quit.load(Ordering::SeqCst)
    }

    /// The streams that are still open; the others are forgotten.
    fn streams(&self) -> Vec<Arc<Stream>> {
        open_streams(&mut self.lock())
    }

    /// The thread's whole life.
    fn run(&self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            torch::init();
            torch::flush_denormals();
            match torch::guarded(|| self.load()) {
                Ok(pipeline) => self.serve(&pipeline),
                Err(error) => self.end(error),
            }
        }));
        if outcome.is_err() {
            self.end(Error::Torch("the model's thread panicked; this is a bug".into()));
        }
    }

    fn load(&self) -> Result<Pipeline> {
        let mut last = String::new();
        let mut progress = |phase: &str, _fraction: f64| {
            let Some(waiting) = self.waiting() else { return false };
            if phase != last {
                last = phase.to_owned();
                waiting.iter().for_each(|stream| stream.send(Event::Loading(phase.to_owned())));
            }
            true
        };
        Pipeline::load(&self.info, self.device, self.precision, &mut progress)
    }

    /// The streams that wait for the model; None, and the end of this instance, when there are none.
    fn waiting(&self) -> Option<Vec<Arc<Stream>>> {
        let mut state = self.lock();
        let streams = open_streams(&mut state);
        if streams.is_empty() || self.quits() {
            state.status = Status::Ended;
            return None;
        }
        Some(streams)
    }

    fn end(&self, error: Error) {
        let streams = {
            let mut state = self.lock();
            state.status = Status::Ended;
            open_streams(&mut state)
        };
        let error = Arc::new(error);
        streams.iter().for_each(|stream| stream.fail(error.clone()));
    }

    fn serve(&self, pipeline: &Pipeline) {
        let streams = {
            let mut state = self.lock();
            state.status = Status::Ready;
            open_streams(&mut state)
        };
        streams.iter().for_each(|stream| stream.send(Event::Loaded));
        drop(streams);
        let mut worker = Worker {
            pipeline,
            quit: &self.quit,
            rollouts: HashMap::new(),
            default_threads: tch::get_num_threads(),
            turn: 0,
        };
        while !self.quits() {
            let seen = self.work.count();
            let streams = self.streams();
            worker.forget_all_but(&streams);
            let job = worker.pick(&streams);
            drop(streams);
            match job {
                Some(job) => worker.generate(&job),
                None => self.work.wait_past(seen),
            }
        }
    }
}

fn open_streams(state: &mut State) -> Vec<Arc<Stream>> {
    state.streams.retain(|stream| stream.upgrade().is_some_and(|stream| !stream.is_closed()));
    state.streams.iter().filter_map(Weak::upgrade).collect()
}

/// What the thread keeps while it serves.
struct Worker<'a> {
    pipeline: &'a Pipeline,
    quit: &'a AtomicBool,
    /// The temporal state of each stream, by its id, with the epoch it belongs to.
    rollouts: HashMap<u64, (u64, Rollout)>,
    default_threads: i32,
    turn: usize,
}

impl Worker<'_> {
    fn forget_all_but(&mut self, streams: &[Arc<Stream>]) {
        self.rollouts.retain(|id, _| streams.iter().any(|stream| stream.id == *id));
    }

    /// The next job, giving each stream its turn.
    fn pick(&mut self, streams: &[Arc<Stream>]) -> Option<Job> {
        for offset in 0..streams.len() {
            let index = (self.turn + offset) % streams.len();
            if let Some(job) = streams[index].job() {
                self.turn = index + 1;
                return Some(job);
            }
        }
        None
    }

    fn generate(&mut self, job: &Job) {
        let started = Instant::now();
        tch::set_num_threads(match job.stream.threads {
            0 => self.default_threads,
            threads => threads as i32,
        });
        match torch::guarded(|| self.chunk(job)) {
            Ok(chunk) => job.stream.finish(job, chunk, started.elapsed()),
            Err(Error::Cancelled) => (),
            Err(error) => {
                // Its caches may be half written.
                self.rollouts.remove(&job.stream.id);
                job.stream.fail(Arc::new(error));
            }
        }
    }

    fn chunk(&mut self, job: &Job) -> Result<Chunk> {
        let cancel = || job.stream.is_stale(job.epoch) || self.quit.load(Ordering::SeqCst);
        let id = job.stream.id;
        if self.rollouts.get(&id).is_none_or(|(epoch, _)| *epoch != job.epoch) {
            self.rollouts.remove(&id);
            // The plan's steps are those of its beginning, which may be why an earlier attempt failed.
            let request = job.plan.request.clone().with_num_inference_steps(job.steps);
            let rollout = Rollout::new(self.pipeline, request)?;
            self.rollouts.insert(id, (job.epoch, rollout));
        }
        let Some((_, rollout)) = self.rollouts.get_mut(&id) else { return Err(Error::Cancelled) };
        rollout.set_num_inference_steps(self.pipeline, job.steps)?;
        if job.plan.still {
            rollout.still(self.pipeline, &job.controls, &cancel)
        } else {
            rollout.next_chunk(self.pipeline, &job.controls, &cancel)
        }
    }
}
