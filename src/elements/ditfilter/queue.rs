// SPDX-License-Identifier: MPL-2.0
//! What lies between the two pads: frames and events in order, and the chunk that is being gathered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::elements::report::When;
use crate::pipeline::{Controls, RgbFrame};

use super::degrading::Action;
use super::report::Counters;

/// What the frames of a chunk have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkNote {
    pub controls: Controls,
    pub strength: f64,
    /// Steps asked for, and steps taken.
    pub wanted_steps: u32,
    pub steps: u32,
    pub action: Action,
    pub level: u32,
}

/// Where a frame's picture is.
#[derive(Debug, Clone)]
pub enum Picture {
    /// Among the frames gathered, with its place in the chunk.
    Gathering(usize),
    /// In the job with this ticket, at this place.
    Waiting(u64, usize),
    /// Restyled.
    Ready(Arc<RgbFrame>, Arc<ChunkNote>),
    /// As it came; true where something else was wanted.
    Original { degraded: bool },
}

/// One frame on its way through.
#[derive(Debug)]
pub struct Slot {
    pub buffer: gst::Buffer,
    pub when: When,
    /// Running time by which it has to go out, in a live pipeline.
    pub deadline: Option<gst::ClockTime>,
    pub picture: Picture,
}

/// What goes out in this order.
#[derive(Debug)]
pub enum Entry {
    Frame(Slot),
    Event(gst::Event),
}

/// A job on its way.
#[derive(Debug)]
pub struct Submitted {
    pub ticket: u64,
    pub at: Instant,
    /// Frames that were gathered for it.
    pub frames: usize,
    /// Frames that were submitted.
    pub restyled: usize,
    pub playing: Duration,
    pub note: Arc<ChunkNote>,
}

/// Frames for the next job.
#[derive(Debug, Default)]
pub struct Gathered {
    pub frames: Vec<Arc<RgbFrame>>,
    /// How they are to be restyled: said by the first of them.
    pub plan: Option<Plan>,
}

/// How a chunk is to be made, settled when its first frame comes.
#[derive(Debug, Clone)]
pub struct Plan {
    pub settings: crate::session::RestyleSettings,
    pub note: Arc<ChunkNote>,
    pub every: u32,
    /// Frames it has when it is complete.
    pub target: usize,
    /// Frames in one latent frame.
    pub group: usize,
}

/// The shared state of the two threads.
#[derive(Debug)]
pub struct State {
    pub entries: VecDeque<Entry>,
    /// Frames among the entries.
    pub frames: usize,
    pub gathered: Gathered,
    pub submitted: VecDeque<Submitted>,
    /// When the model's thread was last known to begin something new.
    pub busy_since: Option<Instant>,
    /// The last restyled picture and how often it was repeated since.
    pub last: Option<(Arc<RgbFrame>, usize)>,
    /// The next chunk does not continue the last.
    pub fresh: bool,
    pub flushing: bool,
    pub eos: bool,
    /// What downstream said last, or that the model failed.
    pub flow: Result<gst::FlowSuccess, gst::FlowError>,
    pub loaded: bool,
    pub degrading: Option<super::degrading::Degrading>,
    /// Chunks to pass through before the next try after an error, and after the one behind it.
    pub error_pause: u32,
    pub next_error_pause: u32,
    /// Frames that passed during pauses.
    pub passed_in: u64,
    pub counters: Counters,
}

impl Default for State {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            frames: 0,
            gathered: Gathered::default(),
            submitted: VecDeque::new(),
            busy_since: None,
            last: None,
            fresh: true,
            flushing: false,
            eos: false,
            flow: Ok(gst::FlowSuccess::Ok),
            loaded: false,
            degrading: None,
            error_pause: 0,
            next_error_pause: 0,
            passed_in: 0,
            counters: Counters::default(),
        }
    }
}

impl State {
    /// Forgets the stream; what is known about model and speed stays.
    pub fn flush(&mut self) {
        self.entries.clear();
        self.frames = 0;
        self.gathered = Gathered::default();
        self.submitted.clear();
        self.busy_since = None;
        self.last = None;
        self.fresh = true;
        self.eos = false;
        self.flow = Ok(gst::FlowSuccess::Ok);
    }

    pub fn push_frame(&mut self, slot: Slot) {
        self.frames += 1;
        self.entries.push_back(Entry::Frame(slot));
    }

    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front();
        self.frames -= usize::from(matches!(entry, Some(Entry::Frame(_))));
        entry
    }

    /// Gives each frame whose picture is at `from(picture)` another picture.
    fn settle(&mut self, to: impl Fn(&Picture) -> Option<Picture>) {
        for entry in &mut self.entries {
            if let Entry::Frame(slot) = entry
                && let Some(picture) = to(&slot.picture)
            {
                slot.picture = picture;
            }
        }
    }

    /// The gathered frames now wait for a job.
    pub fn gathered_wait(&mut self, ticket: u64) {
        self.settle(|picture| match picture {
            Picture::Gathering(index) => Some(Picture::Waiting(ticket, *index)),
            _ => None,
        });
    }

    /// The gathered frames pass as they are.
    pub fn gathered_pass(&mut self) {
        self.settle(|picture| match picture {
            Picture::Gathering(_) => Some(Picture::Original { degraded: true }),
            _ => None,
        });
    }

    /// The frames of a job have their pictures; fewer than frames are shown longer.
    pub fn finish(&mut self, job: &Submitted, frames: &[Arc<RgbFrame>]) {
        self.settle(|picture| match picture {
            Picture::Waiting(ticket, index) if *ticket == job.ticket => {
                let frame = frames.get(index * frames.len() / job.frames.max(1))?;
                Some(Picture::Ready(frame.clone(), job.note.clone()))
            }
            _ => None,
        });
    }

    /// The frames of a job pass as they are.
    pub fn give_up(&mut self, job: &Submitted) {
        self.settle(|picture| match picture {
            Picture::Waiting(ticket, _) if *ticket == job.ticket => {
                Some(Picture::Original { degraded: true })
            }
            _ => None,
        });
    }
}

/// The frames to restyle where only one of `every` is: as many whole groups as that leaves, spread evenly.
pub fn thinned(frames: &[Arc<RgbFrame>], every: u32, group: usize) -> Vec<Arc<RgbFrame>> {
    let count = frames.len();
    if every < 2 || count <= group {
        return frames.to_vec();
    }
    // The first chunk of a stream has one frame more than whole groups.
    let head = count % group;
    let groups = (count / group / every as usize).max(1);
    let kept =
        if head == 1 && count / group / (every as usize) < 1 { 1 } else { head + groups * group };
    (0..kept).map(|index| frames[index * count / kept].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: u8) -> Vec<Arc<RgbFrame>> {
        (0..count).map(|n| Arc::new(RgbFrame { width: 1, height: 1, data: vec![n; 3] })).collect()
    }

    #[test]
    fn thinning_keeps_whole_groups() {
        let kept = |count, every| {
            let thin = thinned(&numbered(count), every, 4);
            thin.iter().map(|frame| frame.data[0]).collect::<Vec<_>>()
        };
        assert_eq!(kept(12, 1).len(), 12);
        assert_eq!(kept(8, 2), [0, 2, 4, 6]);
        assert_eq!(kept(12, 2), [0, 3, 6, 9]);
        assert_eq!(kept(9, 2), [0, 1, 3, 5, 7]);
        assert_eq!(kept(5, 2), [0]);
        assert_eq!(kept(4, 2).len(), 4);
    }
}
