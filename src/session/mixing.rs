// SPDX-License-Identifier: MPL-2.0
//! What `ditmixer` pushes to a model's thread: pairs of frames in, the frames between them out.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::pipeline::{
    EmbeddingCache, LatentMixer, MixControls, MixFrame, Pipeline, RgbFrame, Timings, bridge,
};

use super::feed::{Feed, Finished, Process};
use super::stream::Event;
use super::{Model, Opening, locked};

/// One unit of work; all frames of one size.
#[derive(Debug, Clone)]
pub enum MixJob {
    /// Frames between two streams, as many as go in: 1 + 4k of them after a restart, else 4k.
    Mix {
        frames: Vec<MixFrame>,
        controls: MixControls,
        /// Whether the frames do not continue those of the job before.
        restart: bool,
    },
    /// The `gap` frames between two clips.
    Bridge {
        before: Vec<Arc<RgbFrame>>,
        gap: usize,
        after: Vec<Arc<RgbFrame>>,
        controls: MixControls,
    },
}

/// What became of it.
#[derive(Debug, Clone)]
pub struct MixedFrames {
    pub frames: Vec<Arc<RgbFrame>>,
    pub timings: Timings,
    /// Time on the model's thread.
    pub spent: Duration,
}

/// The temporal state of one mix.
#[derive(Debug, Default)]
struct Mixing {
    texts: EmbeddingCache,
    mixer: Option<((usize, usize), LatentMixer)>,
}

impl Process for Mixing {
    type Job = MixJob;
    type Output = (Vec<Arc<RgbFrame>>, Timings);

    fn process(
        &mut self,
        pipeline: &Pipeline,
        job: MixJob,
        cancel: &dyn Fn() -> bool,
    ) -> Result<Vec<Self::Output>> {
        let made = match job {
            MixJob::Mix { frames, controls, restart } => {
                let size = frames.first().map_or((0, 0), |it| (it.a.width, it.a.height));
                let kept = self.mixer.take().filter(|(of, _)| *of == size && !restart);
                let mut mixer = match kept {
                    Some((_, mixer)) => mixer,
                    None => LatentMixer::new(pipeline, (size.0 as i64, size.1 as i64))?,
                };
                let help = (&mut self.texts, cancel);
                let mixed = mixer.next_chunk(pipeline, &frames, &controls, help)?;
                self.mixer = Some((size, mixer));
                (mixed.frames, mixed.timings)
            }
            MixJob::Bridge { before, gap, after, controls } => {
                let size = before.first().map_or((0, 0), |it| (it.width as i64, it.height as i64));
                let help = (&mut self.texts, cancel);
                let begun = Instant::now();
                let frames = bridge(pipeline, (&before, &after), (gap, size), &controls, help)?;
                (frames, Timings { denoise: begun.elapsed(), ..Timings::default() })
            }
        };
        Ok(vec![(made.0.into_iter().map(Arc::new).collect(), made.1)])
    }

    fn reset(&mut self) {
        self.mixer = None;
    }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MixStop {
    /// Waiting was given up: the feed is flushing or the time was over.
    Interrupted,
    /// The job or the model failed; the owner of the feed has been told.
    Failed,
}

#[derive(Default)]
struct Desk {
    results: BTreeMap<u64, Result<MixedFrames>>,
    flushing: bool,
    failed: bool,
}

/// Jobs of one mixer and the results that wait to be taken.
pub struct MixFeed {
    feed: Feed<Mixing>,
    desk: Arc<(Mutex<Desk>, Condvar)>,
}

impl MixFeed {
    /// Joins the model that the opening names; `events` as for [`Feed::open`].
    ///
    /// # Errors
    /// [`crate::error::Error::Io`] when the system gives no thread.
    pub fn open(opening: Opening, events: impl Fn(Event) + Send + Sync + 'static) -> Result<Self> {
        let desk = Arc::new((Mutex::new(Desk::default()), Condvar::new()));
        let (told, filled) = (desk.clone(), desk.clone());
        let on_event = move |event: Event| {
            let failed = matches!(event, Event::Failed(_));
            // Why it failed is told before anything stops for it.
            events(event);
            if failed {
                locked(&told.0).failed = true;
                told.1.notify_all();
            }
        };
        let on_result = move |finished: Finished<(Vec<Arc<RgbFrame>>, Timings)>| {
            let spent = finished.spent;
            let result =
                finished.result.map(|(frames, timings)| MixedFrames { frames, timings, spent });
            locked(&filled.0).results.insert(finished.ticket, result);
            filled.1.notify_all();
        };
        Ok(Self { feed: Feed::open(opening, Mixing::default(), on_event, on_result)?, desk })
    }

    /// The model behind the feed; holding on to it keeps the weights for the next one.
    pub fn model(&self) -> &Arc<Model> {
        self.feed.model()
    }

    /// Adds a job; None when the model cannot be used, of which the owner has been told by then, or when flushing.
    pub fn submit(&self, job: MixJob) -> Option<u64> {
        let ticket = self.feed.submit(job);
        if ticket.is_none() {
            // Who stops for it must not be faster than the message that says why.
            let mut desk = locked(&self.desk.0);
            while !desk.failed && !desk.flushing {
                desk = self.desk.1.wait(desk).unwrap_or_else(PoisonError::into_inner);
            }
        }
        ticket
    }

    /// Jobs without a result.
    pub fn pending(&self) -> usize {
        self.feed.pending()
    }

    /// Every result that is there, by ticket.
    pub fn take_all(&self) -> BTreeMap<u64, Result<MixedFrames>> {
        std::mem::take(&mut locked(&self.desk.0).results)
    }

    /// Waits for the result of a job, `patience` long where that is given.
    ///
    /// # Errors
    /// [`MixStop`] says why there is none.
    pub fn wait(
        &self,
        ticket: u64,
        patience: Option<Duration>,
    ) -> std::result::Result<Result<MixedFrames>, MixStop> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut desk = locked(&self.desk.0);
        loop {
            if let Some(result) = desk.results.remove(&ticket) {
                return Ok(result);
            }
            if desk.failed {
                return Err(MixStop::Failed);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if desk.flushing || left.is_some_and(|left| left.is_zero()) {
                return Err(MixStop::Interrupted);
            }
            desk = match left {
                Some(left) => {
                    let waited = self.desk.1.wait_timeout(desk, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.desk.1.wait(desk).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Ends every wait while true.
    pub fn set_flushing(&self, flushing: bool) {
        locked(&self.desk.0).flushing = flushing;
        self.desk.1.notify_all();
    }

    /// Drops all jobs and results; the next job begins anew.
    pub fn flush(&self) {
        self.feed.flush();
        locked(&self.desk.0).results.clear();
    }

    /// Whether the model failed to load.
    pub fn has_failed(&self) -> bool {
        locked(&self.desk.0).failed
    }

    /// Ends everything for good.
    pub fn close(&self) {
        self.set_flushing(true);
        self.feed.close();
    }
}
