// SPDX-License-Identifier: MPL-2.0
//! Jobs pushed to a model's thread: order, cancelling, flushing, failing, and sharing the model.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use common::fixture;
use gstdit::error::{Error, Result};
use gstdit::pipeline::{FolderInfo, Pipeline};
use gstdit::session::{Event, Feed, Finished, Opening, Process};
use gstdit::torch::Precision;
use tch::Device;

const PATIENCE: Duration = Duration::from_secs(120);

/// Counts what it has done, waits where it is told to, and fails on odd numbers above 100.
struct Counting {
    done: u64,
    /// Numbers that wait for the next.
    held: Vec<u64>,
    resets: Arc<AtomicUsize>,
}

enum Task {
    Number(u64),
    /// Has its result with the next number's.
    Held(u64),
    /// Says that it is under way, then waits to be cancelled.
    Wait(Sender<()>),
}

impl Process for Counting {
    type Job = Task;
    type Output = (u64, u64);

    fn process(
        &mut self,
        pipeline: &Pipeline,
        task: Task,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<(u64, u64)>> {
        match task {
            Task::Number(number) if number > 100 && number % 2 == 1 => {
                Err(Error::setting("number", number, "an even one"))
            }
            Task::Number(number) => {
                // The model is there to be used.
                let _ = pipeline.encode_prompt("a fox")?;
                let numbers: Vec<u64> = self.held.drain(..).chain([number]).collect();
                let counted = numbers.into_iter().map(|number| {
                    self.done += 1;
                    (number, self.done)
                });
                Ok(counted.collect())
            }
            Task::Held(number) => {
                self.held.push(number);
                Ok(Vec::new())
            }
            Task::Wait(started) => {
                let _ = started.send(());
                while !cancel() {
                    std::thread::yield_now();
                }
                Err(Error::Cancelled)
            }
        }
    }

    fn reset(&mut self) {
        self.done = 0;
        self.held.clear();
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

fn opening(folder: &Path) -> Opening {
    Opening {
        info: Arc::new(FolderInfo::open(folder).unwrap()),
        device: Device::Cpu,
        precision: Precision::F32,
        threads: 1,
    }
}

struct Rig {
    feed: Feed<Counting>,
    results: Receiver<Finished<(u64, u64)>>,
    events: Receiver<Event>,
    resets: Arc<AtomicUsize>,
}

fn rig(folder: &Path) -> Rig {
    let (to_results, results) = channel();
    let (to_events, events) = channel();
    let resets = Arc::new(AtomicUsize::new(0));
    let process = Counting { done: 0, held: Vec::new(), resets: resets.clone() };
    let feed = Feed::open(
        opening(folder),
        process,
        move |event| to_events.send(event).unwrap_or_default(),
        move |finished| to_results.send(finished).unwrap_or_default(),
    )
    .unwrap();
    Rig { feed, results, events, resets }
}

#[test]
fn results_come_in_order() {
    let rig = rig(&fixture("t2v_public"));
    let tickets: Vec<u64> = (0..5).map(|n| rig.feed.submit(Task::Number(n)).unwrap()).collect();
    for (n, ticket) in tickets.iter().enumerate() {
        let finished = rig.results.recv_timeout(PATIENCE).unwrap();
        assert_eq!(finished.ticket, *ticket);
        assert_eq!(finished.result.unwrap(), (n as u64, n as u64 + 1));
    }
    assert_eq!((rig.feed.pending(), rig.resets.load(Ordering::SeqCst)), (0, 0));
    assert!(rig.events.try_iter().any(|event| matches!(event, Event::Loaded)));
}

#[test]
fn an_error_takes_the_place_of_its_result() {
    let rig = rig(&fixture("t2v_public"));
    for n in [1, 101, 2] {
        rig.feed.submit(Task::Number(n)).unwrap();
    }
    let next = || rig.results.recv_timeout(PATIENCE).unwrap().result;
    assert_eq!(next().unwrap(), (1, 1));
    assert!(next().unwrap_err().to_string().contains("an even one"));
    // The stream begins anew.
    assert_eq!(next().unwrap(), (2, 1));
}

#[test]
fn jobs_worked_on_together_keep_their_order() {
    let rig = rig(&fixture("t2v_public"));
    for task in [Task::Held(1), Task::Held(2), Task::Number(3), Task::Held(4), Task::Number(101)] {
        rig.feed.submit(task).unwrap();
    }
    for n in 1..=3 {
        let finished = rig.results.recv_timeout(PATIENCE).unwrap();
        assert_eq!((finished.ticket, finished.result.unwrap()), (n - 1, (n, n)));
    }
    // An error ends what was held; only the job that made it has it.
    let ended = rig.results.recv_timeout(PATIENCE).unwrap();
    assert!(ended.ticket == 3 && matches!(ended.result, Err(Error::Cancelled)));
    let failed = rig.results.recv_timeout(PATIENCE).unwrap();
    assert!(failed.ticket == 4 && failed.result.unwrap_err().to_string().contains("an even one"));
    // What a flush drops has no result.
    rig.feed.submit(Task::Held(5)).unwrap();
    rig.feed.submit(Task::Number(6)).unwrap();
    for n in 5..=6 {
        assert_eq!(rig.results.recv_timeout(PATIENCE).unwrap().ticket, n);
    }
    rig.feed.submit(Task::Held(7)).unwrap();
    rig.feed.flush();
    let ticket = rig.feed.submit(Task::Number(8)).unwrap();
    let finished = rig.results.recv_timeout(PATIENCE).unwrap();
    assert_eq!((finished.ticket, finished.result.unwrap()), (ticket, (8, 1)));
}

#[test]
fn a_flush_cancels_and_forgets() {
    let rig = rig(&fixture("t2v_public"));
    let (started, running) = channel();
    rig.feed.submit(Task::Number(1)).unwrap();
    rig.feed.submit(Task::Wait(started)).unwrap();
    rig.feed.submit(Task::Number(2)).unwrap();
    running.recv_timeout(PATIENCE).unwrap();
    rig.feed.flush();
    assert_eq!(rig.results.try_iter().count(), 1);
    let ticket = rig.feed.submit(Task::Number(3)).unwrap();
    let finished = rig.results.recv_timeout(PATIENCE).unwrap();
    assert_eq!((finished.ticket, finished.result.unwrap()), (ticket, (3, 1)));
}

#[test]
fn feeds_share_a_model_and_end_by_themselves() {
    let folder = fixture("ti2v_public");
    let first = rig(&folder);
    let second = rig(&folder);
    assert!(Arc::ptr_eq(first.feed.model(), second.feed.model()));
    let (started, running) = channel();
    first.feed.submit(Task::Wait(started)).unwrap();
    running.recv_timeout(PATIENCE).unwrap();
    second.feed.submit(Task::Number(7)).unwrap();
    drop(first.feed);
    assert_eq!(second.results.recv_timeout(PATIENCE).unwrap().result.unwrap(), (7, 1));
    second.feed.close();
    assert_eq!(second.feed.submit(Task::Number(8)), None);
}

#[test]
fn a_model_that_cannot_be_loaded_fails_the_feed_once() {
    let folder = tempfile::tempdir().unwrap();
    for part in ["scheduler", "text_encoder", "tokenizer", "transformer"] {
        let source = fixture("t2v_public").join(part);
        std::os::unix::fs::symlink(source, folder.path().join(part)).unwrap();
    }
    std::fs::create_dir(folder.path().join("vae")).unwrap();
    for file in ["model_index.json", "vae/config.json"] {
        std::fs::copy(fixture("t2v_public").join(file), folder.path().join(file)).unwrap();
    }
    let rig = rig(folder.path());
    rig.feed.submit(Task::Number(1));
    let failed = loop {
        match rig.events.recv_timeout(PATIENCE).unwrap() {
            Event::Failed(error) => break error,
            Event::Loading(_) | Event::Loaded => (),
        }
    };
    assert!(failed.to_string().contains("vae"), "{failed}");
    assert_eq!(rig.feed.submit(Task::Number(2)), None);
    assert!(rig.results.try_recv().is_err());
}
