// SPDX-License-Identifier: MPL-2.0
//! Sessions: one element's use of a shared model, with the model's work on a thread of its own.
//!
//! | file | holds |
//! |---|---|
//! | `registry.rs` | one model per folder, LoRA, device and precision in the process, by weak reference |
//! | `model.rs` | the model's thread: loading, then unit after unit of work for its clients in turn |
//! | `signal.rs` | how that thread is woken |
//! | `stream.rs` | frames that are pulled: one session's queue of frames, epochs, flushing, statistics |
//! | `feed.rs` | jobs that are pushed, for elements with input |
//! | `restyling.rs` | the jobs of `ditfilter`: a chunk of frames in, as many restyled frames out |
//! | `mixing.rs` | what `ditmixer` pushes: pairs of frames, and the frames between them |
//! | `ladder.rs` | fewer steps when a live stream is too slow, and back again |
//!
//! Nothing here knows GStreamer; nothing here computes. Waits end early by [`Session::set_flushing`],
//! computations by [`Session::restart`] or by dropping the session.

mod feed;
mod ladder;
mod mixing;
mod model;
mod registry;
mod restyling;
mod signal;
mod stream;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tch::Device;

use crate::error::{Error, Result};
use crate::pipeline::{Controls, FolderInfo, Request, Settings};
use crate::torch::Precision;

pub use feed::{Feed, Finished, Process};
pub use ladder::Ladder;
pub use mixing::{MixFeed, MixJob, MixStop, MixedFrames};
use model::Client;
pub use model::Model;
pub use registry::loaded_models;
pub use restyling::{RestyleJob, RestyleSettings, RestyledFrames, Restyling, Words};
pub use stream::{ChunkInfo, Event, Picked, Plan, Stats, Stop, Stream};

/// Locks what a panic under the lock may have left: that panic has been reported by whoever caught it, and the data behind
/// the lock is plain.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to open a session.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The checkpoint folder.
    pub info: Arc<FolderInfo>,
    pub device: Device,
    pub precision: Precision,
    /// CPU threads for this session's work; 0 for libtorch's default.
    pub threads: u32,
}

/// One consumer of an endless stream of frames; dropping it ends the stream.
pub struct Session {
    model: Arc<Model>,
    stream: Arc<Stream>,
}

impl Session {
    /// Joins the model that the opening names, which begins to load if no other session has it; `steps` is None for the
    /// model's own number.
    ///
    /// `events` is called from the model's thread, or from this call when the model is loaded already.
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when the system gives no thread.
    pub fn open(
        opening: Opening,
        (controls, steps): (Controls, Option<u32>),
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Self> {
        let Opening { info, device, precision, threads } = opening;
        let steps = steps.unwrap_or(info.native.num_inference_steps);
        let events = Box::new(events);
        let (model, stream, ready) = registry::attach(info, device, precision, |work| {
            Stream::new(controls, steps, threads, events, work)
        })?;
        if ready {
            stream.send(Event::Loaded);
        }
        Ok(Self { model, stream })
    }

    /// The model behind the session; holding on to it keeps the weights for the next session.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What the folder holds.
    pub fn info(&self) -> &Arc<FolderInfo> {
        self.model.info()
    }

    /// Begins to generate frames of `settings`' size, the first of them having the number `origin`; with
    /// `still` only that one.
    ///
    /// # Errors
    /// What [`Request::new`] says about the size, or `OutOfMemory` with the arithmetic.
    pub fn begin(&self, settings: &Settings, still: bool, origin: u64) -> Result<()> {
        let request = Request::new(settings, self.info())?;
        self.model.check_memory((settings.width, settings.height))?;
        self.forgive();
        self.stream.begin(Plan { request, still }, origin);
        Ok(())
    }

    /// Generates anew, the first frame having the number `origin`; after an error of generation this tries again.
    pub fn restart(&self, origin: u64) {
        self.forgive();
        self.stream.restart(origin);
    }

    /// What ended the stream; None while it goes on.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.stream.failure()
    }

    /// A loaded model can generate again; one that could not be loaded never will.
    fn forgive(&self) {
        if self.model.is_ready() {
            self.stream.forgive();
        }
    }

    /// Whether [`Session::frame`] would return at once.
    pub fn is_ready(&self, index: u64) -> bool {
        self.stream.is_ready(index)
    }

    /// Ends every wait and computation of this session for good; no event is sent afterwards.
    pub fn close(&self) {
        self.stream.close();
    }

    /// New prompts, guidance, seed and steps from the next chunk on that is not begun yet.
    pub fn set_controls(&self, controls: Controls, steps: Option<u32>) {
        let steps = steps.unwrap_or(self.info().native.num_inference_steps);
        self.stream.set_controls(controls, steps);
    }

    /// The playing time of one frame where generation must keep up with a clock, None where it need not.
    pub fn set_live_period(&self, period: Option<Duration>) {
        self.stream.set_live_period(period);
    }

    /// Promises that no frame from `limit` on will be asked for, so that none is generated in vain.
    pub fn set_limit(&self, limit: Option<u64>) {
        self.stream.set_limit(limit);
    }

    /// Makes every [`Session::frame`] return at once while true.
    pub fn set_flushing(&self, flushing: bool) {
        self.stream.set_flushing(flushing);
    }

    /// The first frame not handed out yet, and whether only one picture is generated.
    pub fn position(&self) -> (u64, bool) {
        self.stream.position()
    }

    /// The frame with a number, waiting for it; numbers may skip forward but not back without a restart.
    /// The same number again gives the same frame. When `late` turns true (and [`Session::nudge`] is
    /// called) the wait ends with the last frame repeated, if there is one.
    ///
    /// # Errors
    /// [`Stop`] says why there is no frame.
    pub fn frame(&self, index: u64, late: &AtomicBool) -> std::result::Result<Picked, Stop> {
        self.stream.frame(index, late)
    }

    /// A handle to call [`Nudge::nudge`] on from another thread.
    pub fn nudge(&self) -> Nudge {
        Nudge(self.stream.clone())
    }

    /// Figures since the session was opened.
    pub fn stats(&self) -> Stats {
        self.stream.stats()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stream.close();
    }
}

/// Makes a waiting [`Session::frame`] look at its `late` flag.
pub struct Nudge(Arc<Stream>);

impl Nudge {
    pub fn nudge(&self) {
        self.0.nudge();
    }
}
