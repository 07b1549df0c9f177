// SPDX-License-Identifier: MPL-2.0
//! A loaded model and the one thread that owns its tensors.
//!
//! The thread loads the weights, then serves the clients attached to it in turn, one chunk at a time. It
//! ends when the last handle is dropped; loading ends early when nobody waits for it any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch::Device;

use crate::error::{Error, Result};
use crate::pipeline::{FolderInfo, Pipeline};
use crate::torch::{self, Precision};

use super::locked;
use super::signal::Signal;
use super::stream::Event;

/// Least time between two times that freed memory is given back.
const TRIM_PERIOD: Duration = Duration::from_secs(5);

/// One user of a model, as the model's thread sees it.
pub(super) trait Client: Send + Sync {
    /// Whether it is gone for good.
    fn is_closed(&self) -> bool;
    /// CPU threads for its work; 0 for libtorch's default.
    fn threads(&self) -> u32;
    /// Whether there is something to do.
    fn has_work(&self) -> bool;
    /// Does one unit of work, which ends early when `quit` turns true; errors are the client's to report.
    fn work(&self, pipeline: &Pipeline, quit: &AtomicBool);
    /// Tells the owner something, unless the client is closed.
    fn send(&self, event: Event);
    /// Tells the owner of an error that ends the client.
    fn fail(&self, error: Arc<Error>);
}

/// A model shared by all sessions with the same folder, LoRAs, device and precision.
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
    clients: Vec<Weak<dyn Client>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Loading,
    Ready,
    /// Loading failed or was abandoned; this instance will never be usable.
    Ended,
}

impl Model {
    /// Starts the model's thread, which begins to load at once for the given client's sake.
    ///
    /// # Errors
    /// [`Error::Io`] when the system gives no thread.
    pub(super) fn start(
        info: Arc<FolderInfo>,
        device: Device,
        precision: Precision,
        work: Arc<Signal>,
        client: Weak<dyn Client>,
    ) -> Result<Self> {
        let state = State { status: Status::Loading, clients: vec![client] };
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

    /// Adds a client, or says why not: true when loaded already, false while loading, None when the
    /// model will never be usable.
    pub(super) fn attach(&self, client: Weak<dyn Client>) -> Option<bool> {
        let mut state = self.shared.lock();
        if state.status == Status::Ended {
            return None;
        }
        state.clients.push(client);
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

    /// Refuses work on `width` x `height` pixels that does not fit beside what is loaded.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the arithmetic.
    pub fn check_memory(&self, (width, height): (i64, i64)) -> Result<()> {
        let (device, precision) = (self.device(), self.precision());
        if !self.is_ready() {
            return match self.info().check_memory(width, height, device, precision) {
                // Damaged files are the loader's to report.
                Err(error) if !matches!(error, Error::OutOfMemory { .. }) => Ok(()),
                checked => checked,
            };
        }
        let estimate = self.info().estimate_memory(width, height, device, precision)?;
        let needed = estimate.total() - estimate.weights;
        match torch::available_memory(device) {
            Some(available) if needed > available => Err(Error::OutOfMemory {
                device: torch::device_name(device),
                needed_mib: needed >> 20,
                available_mib: available >> 20,
                breakdown: "caches and activations beside the loaded weights".into(),
                advice: "choose a smaller width and height".into(),
            }),
            _ => Ok(()),
        }
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
        let thread = locked(&self.thread).take();
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
        locked(&self.state)
    }

    fn quits(&self) -> bool {
        self.quit.load(Ordering::SeqCst)
    }

    /// The clients that are still there; the others are forgotten.
    fn clients(&self) -> Vec<Arc<dyn Client>> {
        open_clients(&mut self.lock())
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
                waiting.iter().for_each(|client| client.send(Event::Loading(phase.to_owned())));
            }
            true
        };
        Pipeline::load(&self.info, self.device, self.precision, &mut progress)
    }

    /// The clients that wait for the model; None, and the end of this instance, when there are none.
    fn waiting(&self) -> Option<Vec<Arc<dyn Client>>> {
        let mut state = self.lock();
        let clients = open_clients(&mut state);
        if clients.is_empty() || self.quits() {
            state.status = Status::Ended;
            return None;
        }
        Some(clients)
    }

    fn end(&self, error: Error) {
        let clients = {
            let mut state = self.lock();
            state.status = Status::Ended;
            open_clients(&mut state)
        };
        let error = Arc::new(error);
        clients.iter().for_each(|client| client.fail(error.clone()));
    }

    fn serve(&self, pipeline: &Pipeline) {
        let clients = {
            let mut state = self.lock();
            state.status = Status::Ready;
            open_clients(&mut state)
        };
        clients.iter().for_each(|client| client.send(Event::Loaded));
        drop(clients);
        let default_threads = tch::get_num_threads();
        let mut turn = 0;
        let mut trimmed = Instant::now();
        while !self.quits() {
            let seen = self.work.count();
            let clients = self.clients();
            let count = clients.len();
            // Each has its turn.
            let next = (turn..turn + count).map(|index| index % count);
            match next.into_iter().find(|&index| clients[index].has_work()) {
                Some(index) => {
                    turn = index + 1;
                    let client = &clients[index];
                    tch::set_num_threads(match client.threads() {
                        0 => default_threads,
                        threads => threads as i32,
                    });
                    client.work(pipeline, &self.quit);
                    // Activations are freed by now; the allocator would keep them, and more from chunk to chunk.
                    if self.device == Device::Cpu && trimmed.elapsed() >= TRIM_PERIOD {
                        torch::trim_memory();
                        trimmed = Instant::now();
                    }
                }
                None => {
                    drop(clients);
                    self.work.wait_past(seen);
                }
            }
        }
    }
}

fn open_clients(state: &mut State) -> Vec<Arc<dyn Client>> {
    state.clients.retain(|client| client.upgrade().is_some_and(|client| !client.is_closed()));
    state.clients.iter().filter_map(Weak::upgrade).collect()
}
