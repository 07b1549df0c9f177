// SPDX-License-Identifier: MPL-2.0
//! Work that is pushed to a model's thread, for elements that have input: jobs in, results out, in order.
//!
//! A [`Feed`] stands beside [`super::Session`], which is pulled from. What is done with a job is a [`Process`]: a plain
//! struct that holds the temporal state of one stream (encoders, a restyler, statistics) and sees the model only while it
//! is at work on the model's thread: [`super::Restyling`] for `ditfilter`, and the one behind [`super::MixFeed`] for
//! `ditmixer`.
//!
//! A process that fails or is cancelled half-way is reset, unless it leaves no trace by itself: take clones, and put them
//! back when everything has succeeded. Tickets count up, results come in their order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::pipeline::{FolderInfo, Pipeline};
use crate::torch;

use super::model::{Client, Model};
use super::signal::Signal;
use super::stream::Event;
use super::{Opening, locked, registry};

/// What is done with each job, and what that remembers from job to job.
pub trait Process: Send + 'static {
    type Job: Send + 'static;
    type Output: Send + 'static;

    /// Takes one job, on the model's thread and without gradients, and gives the results of the oldest jobs that have none
    /// yet, in order: that of this one, or, where jobs are worked on together, any number.
    ///
    /// # Errors
    /// [`Error::Cancelled`] soon after `cancel` turns true; any other error is delivered in the place of the result, and as
    /// [`Error::Cancelled`] for older jobs without one; then the process is reset and the next job begins.
    fn process(
        &mut self,
        pipeline: &Pipeline,
        job: Self::Job,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Self::Output>>;

    /// Forgets the stream so far; the next job begins another.
    fn reset(&mut self);
}

/// A finished job.
pub struct Finished<T> {
    /// What [`Feed::submit`] returned.
    pub ticket: u64,
    pub result: Result<T>,
    /// Time on the model's thread, of the job that brought the result.
    pub spent: Duration,
}

/// One stream of jobs for a shared model; dropping it cancels what is under way.
pub struct Feed<P: Process> {
    model: Arc<Model>,
    queue: Arc<Queue<P>>,
}

impl<P: Process> Feed<P> {
    /// Joins the model that the opening names, which begins to load if no one else has it. Jobs wait for it.
    ///
    /// `events` tells of loading, `results` of finished jobs, both from the model's thread (`events` from this call too, when
    /// the model is loaded already); they must return soon, and what they lock must not be held while calling
    /// [`Feed::flush`] or [`Feed::close`].
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub fn open(
        opening: Opening,
        process: P,
        events: impl Fn(Event) + Send + Sync + 'static,
        results: impl Fn(Finished<P::Output>) + Send + Sync + 'static,
    ) -> Result<Self> {
        let Opening { info, device, precision, threads } = opening;
        let (model, queue, ready) = registry::attach(info, device, precision, |work| Queue {
            threads,
            state: Mutex::new(State { jobs: VecDeque::new(), next_ticket: 0, failed: false }),
            process: Mutex::new(AtWork { epoch: 0, process, open: VecDeque::new() }),
            epoch: AtomicU64::new(0),
            working: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            sending: Mutex::new(()),
            events: Box::new(events),
            results: Box::new(results),
            work,
        })?;
        if ready {
            queue.send(Event::Loaded);
        }
        Ok(Self { model, queue })
    }

    /// The model behind the feed; holding on to it keeps the weights for the next one.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What the folder holds.
    pub fn info(&self) -> &Arc<FolderInfo> {
        self.model.info()
    }

    /// Adds a job and returns its ticket at once; None when the model could not be loaded or the feed is closed, and no
    /// result will come.
    pub fn submit(&self, job: P::Job) -> Option<u64> {
        let mut state = self.queue.lock();
        if state.failed || self.queue.is_closed() {
            return None;
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        // Read under the lock, as a flush raises it.
        let epoch = self.queue.epoch.load(Ordering::SeqCst);
        state.jobs.push_back(Submitted { ticket, epoch, job });
        drop(state);
        self.queue.work.raise();
        Some(ticket)
    }

    /// Jobs that wait or are being worked on.
    pub fn pending(&self) -> usize {
        let queued = self.queue.lock().jobs.len();
        queued + usize::from(self.queue.working.load(Ordering::SeqCst))
    }

    /// Drops all jobs, cancels the one under way, and lets the process forget its stream before the next. Once this has
    /// returned, no result of an earlier job is delivered.
    pub fn flush(&self) {
        let dropped = {
            let mut state = self.queue.lock();
            self.queue.epoch.fetch_add(1, Ordering::SeqCst);
            std::mem::take(&mut state.jobs)
        };
        drop(dropped);
        drop(locked(&self.queue.sending));
    }

    /// Ends everything for good; nothing is called once this has returned.
    pub fn close(&self) {
        self.queue.closed.store(true, Ordering::SeqCst);
        self.flush();
        self.queue.work.raise();
    }
}

impl<P: Process> Drop for Feed<P> {
    fn drop(&mut self) {
        self.close();
    }
}

struct Submitted<J> {
    ticket: u64,
    epoch: u64,
    job: J,
}

struct State<J> {
    jobs: VecDeque<Submitted<J>>,
    next_ticket: u64,
    failed: bool,
}

/// A process with what it has been given.
struct AtWork<P> {
    /// The epoch it has seen last.
    epoch: u64,
    process: P,
    /// Tickets of the jobs that have no result yet.
    open: VecDeque<u64>,
}

/// The shared part of a feed.
struct Queue<P: Process> {
    threads: u32,
    state: Mutex<State<P::Job>>,
    /// Locked only while at work.
    process: Mutex<AtWork<P>>,
    epoch: AtomicU64,
    working: AtomicBool,
    closed: AtomicBool,
    /// Held while something is delivered, so that nothing is after a flush or the end.
    sending: Mutex<()>,
    events: Box<dyn Fn(Event) + Send + Sync>,
    results: Box<dyn Fn(Finished<P::Output>) + Send + Sync>,
    work: Arc<Signal>,
}

impl<P: Process> Queue<P> {
    fn lock(&self) -> MutexGuard<'_, State<P::Job>> {
        locked(&self.state)
    }

    fn is_stale(&self, epoch: u64) -> bool {
        self.is_closed() || self.epoch.load(Ordering::SeqCst) != epoch
    }

    fn deliver(&self, epoch: u64, finished: Vec<Finished<P::Output>>) {
        let _sending = locked(&self.sending);
        self.working.store(false, Ordering::SeqCst);
        for finished in finished {
            if !self.is_stale(epoch) {
                (self.results)(finished);
            }
        }
    }
}

impl<P: Process> Client for Queue<P> {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn threads(&self) -> u32 {
        self.threads
    }

    fn has_work(&self) -> bool {
        !self.is_closed() && !self.lock().jobs.is_empty()
    }

    fn work(&self, pipeline: &Pipeline, quit: &AtomicBool) {
        let taken = {
            let mut state = self.lock();
            let taken = state.jobs.pop_front();
            self.working.store(taken.is_some(), Ordering::SeqCst);
            taken
        };
        let Some(Submitted { ticket, epoch, job }) = taken else { return };
        let started = Instant::now();
        let cancel = || self.is_stale(epoch) || quit.load(Ordering::SeqCst);
        let mut at_work = locked(&self.process);
        let AtWork { epoch: seen, process, open } = &mut *at_work;
        if std::mem::replace(seen, epoch) != epoch {
            process.reset();
            open.clear();
        }
        open.push_back(ticket);
        let result = torch::guarded(|| process.process(pipeline, job, &cancel));
        let spent = started.elapsed();
        let results: Vec<Result<P::Output>> = match result {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            Err(error) => {
                process.reset();
                let older = (1..open.len()).map(|_| Err(Error::Cancelled));
                older.chain([Err(error)]).collect()
            }
        };
        let finished: Vec<_> = results
            .into_iter()
            .map_while(|result| Some(Finished { ticket: open.pop_front()?, result, spent }))
            .collect();
        self.deliver(epoch, finished);
    }

    fn send(&self, event: Event) {
        let _sending = locked(&self.sending);
        if !self.is_closed() {
            (self.events)(event);
        }
    }

    fn fail(&self, error: Arc<Error>) {
        // No result comes any more; the owner is told of it once.
        let dropped = {
            let mut state = self.lock();
            state.failed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(dropped);
        self.send(Event::Failed(error));
    }
}
