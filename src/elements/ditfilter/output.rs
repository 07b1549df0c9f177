// SPDX-License-Identifier: MPL-2.0
//! The source pad's thread: finished, late and untouched pictures and events, in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;
use gst::subclass::prelude::*;

use crate::elements::loading;
use crate::elements::report::When;
use crate::error::Error;
use crate::frames::{self, Painter};
use crate::pipeline::RgbFrame;
use crate::session::locked;

use super::DitLatePolicy;
use super::imp::{CAT, DitFilter};
use super::queue::{ChunkNote, Entry, Picture, Slot, State};
use super::report::Shown;

/// What the source pad's thread keeps.
#[derive(Default)]
pub(super) struct Output {
    painter: Option<Painter>,
    pool: Option<gst::BufferPool>,
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let _ = pool.set_active(false);
        }
    }
}

/// What goes out next.
enum Next {
    Event(gst::Event),
    Restyled(Slot, Arc<RgbFrame>, Option<Arc<ChunkNote>>),
    Original(Slot, bool),
}

impl DitFilter {
    /// Runs the source pad's thread.
    pub(super) fn start_output(&self) -> Result<(), gst::LoggableError> {
        let weak = self.downgrade();
        self.src_pad
            .start_task(move || {
                let Some(imp) = weak.upgrade() else { return };
                // A panic here must not leave the pipeline waiting.
                let outcome =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| imp.put_out()));
                if outcome.is_err() {
                    let error = Error::Torch("the output thread panicked; this is a bug".into());
                    imp.fail(&error);
                    let _ = imp.src_pad.pause_task();
                }
            })
            .map_err(|_| gst::loggable_error!(CAT, "the source pad's thread cannot be started"))
    }

    /// One turn of the thread.
    fn put_out(&self) {
        let flow = match self.next() {
            None => Err(gst::FlowError::Flushing),
            Some(Next::Event(event)) => {
                self.event_out(event);
                return;
            }
            Some(Next::Original(slot, degraded)) => {
                let shown = if degraded { Shown::Passed } else { Shown::Bypassed };
                self.report(&shown, &slot.when);
                self.src_pad.push(slot.buffer)
            }
            Some(Next::Restyled(slot, frame, note)) => {
                self.paint(&slot, &frame).and_then(|buffer| {
                    let shown = note.as_deref().map_or(Shown::Repeated, Shown::Restyled);
                    self.report(&shown, &slot.when);
                    self.src_pad.push(buffer)
                })
            }
        };
        let Err(error) = flow else { return };
        gst::debug!(CAT, imp = self, "pausing: {error:?}");
        let eos = {
            let mut state = locked(&self.state);
            if !state.flushing && state.flow.is_ok() {
                state.flow = Err(error);
            }
            state.eos
        };
        self.changed.notify_all();
        if eos
            && matches!(
                error,
                gst::FlowError::Error | gst::FlowError::NotNegotiated | gst::FlowError::NotLinked
            )
        {
            // Nothing flows in any more that could carry it upstream.
            gst::element_imp_error!(
                self,
                gst::StreamError::Failed,
                ("Pictures could not be passed on"),
                ["streaming stopped: {error:?}"]
            );
        }
        let _ = self.src_pad.pause_task();
    }

    /// The next thing to put out, waiting for it; None when flushing or failed.
    fn next(&self) -> Option<Next> {
        let mut state = locked(&self.state);
        loop {
            if state.flushing || state.flow.is_err() {
                return None;
            }
            let slot = match state.entries.front() {
                Some(Entry::Event(_)) => match state.pop() {
                    Some(Entry::Event(event)) => {
                        self.changed.notify_all();
                        return Some(Next::Event(event));
                    }
                    _ => continue,
                },
                Some(Entry::Frame(slot)) => slot,
                None => {
                    state = self.wait(state);
                    continue;
                }
            };
            match slot.picture.clone() {
                Picture::Ready(frame, note) => {
                    state.last = Some((frame.clone(), 0));
                    return self
                        .take(&mut state)
                        .map(|slot| Next::Restyled(slot, frame, Some(note)));
                }
                Picture::Original { degraded } => {
                    return self.take(&mut state).map(|slot| Next::Original(slot, degraded));
                }
                Picture::Gathering(_) | Picture::Waiting(..) => {
                    let deadline =
                        slot.deadline.filter(|_| self.late_policy() != DitLatePolicy::Wait);
                    let Some(deadline) = deadline else {
                        state = self.wait(state);
                        continue;
                    };
                    if self.obj().current_running_time().is_some_and(|now| now >= deadline) {
                        return self.late(&mut state);
                    }
                    state = self.wait_until(state, deadline);
                }
            }
        }
    }

    fn take(&self, state: &mut State) -> Option<Slot> {
        let entry = state.pop();
        self.changed.notify_all();
        match entry {
            Some(Entry::Frame(slot)) => Some(slot),
            _ => None,
        }
    }

    /// What is shown for a frame whose time has come without a picture.
    fn late(&self, state: &mut State) -> Option<Next> {
        let longest = self.chunk_frames();
        let repeat = state
            .last
            .as_mut()
            .filter(|(_, times)| {
                *times < longest && self.late_policy() != DitLatePolicy::Passthrough
            })
            .map(|(frame, times)| {
                *times += 1;
                frame.clone()
            });
        let slot = self.take(state)?;
        gst::debug!(CAT, imp = self, "late: {:?}", slot.when.pts);
        Some(match repeat {
            Some(frame) => Next::Restyled(slot, frame, None),
            None => Next::Original(slot, true),
        })
    }

    /// Waits for a change, at most until the clock says that a frame is due.
    fn wait_until<'a>(
        &'a self,
        state: std::sync::MutexGuard<'a, State>,
        deadline: gst::ClockTime,
    ) -> std::sync::MutexGuard<'a, State> {
        let obj = self.obj();
        let (Some(clock), Some(base)) = (obj.clock(), obj.base_time()) else {
            return self.wait(state);
        };
        let alarm = clock.new_single_shot_id(base + deadline);
        let weak = self.downgrade();
        let rung = Arc::new(AtomicBool::new(false));
        let ring = rung.clone();
        let asked = alarm.wait_async(move |_, _, _| {
            ring.store(true, Ordering::SeqCst);
            if let Some(imp) = weak.upgrade() {
                // The lock keeps this from falling between the waiter's look and its wait.
                drop(locked(&imp.state));
                imp.changed.notify_all();
            }
        });
        if asked.is_err() || rung.load(Ordering::SeqCst) {
            return state;
        }
        let state = self.wait(state);
        // Without the lock: the callback may be about to take it.
        drop(state);
        alarm.unschedule();
        locked(&self.state)
    }

    fn event_out(&self, event: gst::Event) {
        if let gst::EventView::Caps(caps) = event.view() {
            let caps = caps.caps_owned();
            // Downstream has to know the caps before it is asked for a pool.
            self.src_pad.push_event(event);
            if let Err(error) = self.adopt(&caps) {
                self.fail(&error);
            }
            return;
        }
        self.src_pad.push_event(event);
    }

    fn adopt(&self, caps: &gst::Caps) -> Result<(), Error> {
        let info = gst_video::VideoInfo::from_caps(caps)
            .map_err(|error| Error::setting("caps", error, "raw video"))?;
        let mut query = gst::query::Allocation::new(Some(caps), true);
        if !self.src_pad.peer_query(&mut query) {
            gst::debug!(CAT, imp = self, "downstream proposes no pool");
        }
        frames::decide_pool(&mut query)?;
        let pool = query.allocation_pools().next().and_then(|(pool, ..)| pool);
        if let Some(pool) = &pool {
            pool.set_active(true).map_err(|error| {
                Error::setting("buffer pool", error, "one that can be activated")
            })?;
        }
        let output = Output { painter: Some(Painter::new(info)), pool };
        let before = std::mem::replace(&mut *locked(&self.output), output);
        drop(before);
        Ok(())
    }

    /// A buffer with a picture and everything else of the one that came in.
    fn paint(&self, slot: &Slot, frame: &Arc<RgbFrame>) -> Result<gst::Buffer, gst::FlowError> {
        let mut output = locked(&self.output);
        let Output { painter: Some(painter), pool } = &mut *output else {
            return Err(gst::FlowError::NotNegotiated);
        };
        let mut buffer = match pool {
            Some(pool) => pool.acquire_buffer(None)?,
            None => gst::Buffer::with_size(painter.output().size())
                .map_err(|_| gst::FlowError::Error)?,
        };
        let painted = match buffer.get_mut() {
            Some(writable) => {
                frames::copy_metadata(&slot.buffer, writable);
                painter.paint(frame, writable)
            }
            None => Err(Error::setting("buffer pool", "a shared buffer", "writable buffers")),
        };
        drop(output);
        painted.map_err(|error| {
            self.obj().post_error_message(loading::error_message(&error));
            gst::FlowError::Error
        })?;
        Ok(buffer)
    }

    fn report(&self, shown: &Shown<'_>, when: &When) {
        let info = self.running().map(|running| running.feed.info().clone());
        let obj = self.obj();
        let messages = {
            let mut state = locked(&self.state);
            let mut reporter = locked(&self.reporter);
            reporter.frame_out(&*obj, shown, when, (&mut state.counters, info.as_deref()))
        };
        for message in messages {
            gst::debug!(CAT, imp = self, "{message:?}");
            // Without a bus there is nobody to tell.
            let _ = obj.post_message(message);
        }
    }
}
