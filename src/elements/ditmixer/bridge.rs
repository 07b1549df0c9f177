// SPDX-License-Identifier: MPL-2.0
//! `mode=bridge`: one stream, then frames that the model makes between its last and the next stream's first, then that
//! stream.
//!
//! Of a file the next stream waits for the one before it: its segment is moved far into the future, where the base class
//! leaves its frames alone, and moved back to where the bridge ends when the one before it is over. A live stream does
//! not wait; its frames during the bridge are not shown.

use std::collections::VecDeque;
use std::sync::Arc;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::subclass::prelude::*;
use gst_video::subclass::AggregateFramesToken;

use super::imp::{CAT, DitMixer};
use super::mixing::{Place, Transition};
use super::{DitMixMode, DitMixerPad};
use crate::elements::report::When;
use crate::pipeline::{FolderInfo, MixControls, RgbFrame};
use crate::session::{MixJob, locked};

/// Running time of what waits: beyond any stream, and far from where times overflow.
const FAR: gst::ClockTime = gst::ClockTime::from_nseconds(1 << 61);

/// Frames on both sides of a bridge that the model looks at, as far as its window has room: one and then groups before,
/// groups after.
pub(super) fn sides(info: &FolderInfo, gap: usize) -> (usize, usize) {
    let factor = info.vae.temporal_factor() as usize;
    let room = info.window_latent_frames() - gap.div_ceil(factor) as i64;
    let before = if room >= 3 { 1 + factor } else { 1 };
    (before, factor)
}

/// A bridge that is being put together.
#[derive(Debug, Default)]
pub(super) struct Bridge {
    pub before: Vec<Arc<RgbFrame>>,
    /// Numbers of the output frames that it fills.
    pub gap: Vec<u64>,
    pub after: Vec<Arc<RgbFrame>>,
    /// What the second stream showed last.
    pub last: Option<Arc<RgbFrame>>,
    pub prompts: [String; 2],
}

impl Bridge {
    /// The numbers of its frames, and the job that makes them; what is missing of `after` frames is repeated.
    pub fn into_job(
        self,
        before: usize,
        after: usize,
        controls: impl Fn([String; 2]) -> MixControls,
    ) -> (Vec<u64>, MixJob) {
        let start = self.before.len().saturating_sub(before);
        let last = self.after.last().cloned().or(self.last);
        let mut beyond = self.after;
        beyond.extend(std::iter::repeat_n(last, after.saturating_sub(beyond.len())).flatten());
        let job = MixJob::Bridge {
            before: self.before[start..].to_vec(),
            gap: self.gap.len(),
            after: beyond,
            controls: controls(self.prompts),
        };
        (self.gap, job)
    }
}

/// The last pictures of the stream that is shown, at most `length`.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pad: String,
    pictures: VecDeque<Arc<RgbFrame>>,
}

impl Tail {
    pub fn push(&mut self, pad: &str, picture: Arc<RgbFrame>, length: usize) {
        if self.pad != pad {
            *self = Self { pad: pad.to_owned(), pictures: VecDeque::new() };
        }
        self.pictures.push_back(picture);
        while self.pictures.len() > length {
            self.pictures.pop_front();
        }
    }

    pub fn pictures(&self) -> Vec<Arc<RgbFrame>> {
        self.pictures.iter().cloned().collect()
    }
}

impl DitMixer {
    /// The segment that a pad gets: one far away while another stream comes first.
    pub(super) fn parked(&self, pad: &gst_base::AggregatorPad, event: gst::Event) -> gst::Event {
        let gst::EventView::Segment(segment) = event.view() else { return event };
        let Some(own) = segment.segment().downcast_ref::<gst::ClockTime>() else { return event };
        let pads = self.pads();
        let first = self.current(pads.len());
        let is_first = pads
            .get(first)
            .is_some_and(|it| it.upcast_ref::<gst::Pad>() == pad.upcast_ref::<gst::Pad>());
        if locked(&self.settings).mode != DitMixMode::Bridge || is_first || is_live(pad) {
            return event;
        }
        let mut far = own.clone();
        far.set_base(own.base().unwrap_or_default() + FAR);
        gst::debug!(CAT, obj = pad, "waits for its turn");
        let seqnum = event.seqnum();
        locked(&self.state).parked.push((pad.name().to_string(), own.clone()));
        gst::event::Segment::builder(&far).seqnum(seqnum).build()
    }

    /// Lets the frames of a waiting stream begin at a running time.
    fn unpark(&self, pad: &DitMixerPad, begin: u64) {
        let found = {
            let mut state = locked(&self.state);
            let index = state.parked.iter().position(|(name, _)| *name == pad.name());
            index.map(|index| state.parked.remove(index))
        };
        let Some((_, mut segment)) = found else { return };
        let begin = gst::ClockTime::from_nseconds(begin);
        segment.set_base(segment.base().unwrap_or_default() + begin);
        gst::debug!(CAT, obj = pad, "begins at {begin}");
        self.parent_sink_event(pad.upcast_ref(), gst::event::Segment::new(&segment));
    }

    fn is_parked(&self, pad: &DitMixerPad) -> bool {
        locked(&self.state).parked.iter().any(|(name, _)| *name == pad.name())
    }

    /// Forgets a pad that goes away; `mix` says which stream is shown then.
    pub(super) fn unpark_released(&self, pad: &gst::Pad) {
        let mut state = locked(&self.state);
        state.parked.retain(|(name, _)| *name != pad.name());
        state.current = None;
    }

    /// The stream whose turn it is.
    fn current(&self, count: usize) -> usize {
        let nearest = Place::of(locked(&self.settings).mix, count).nearest();
        locked(&self.state).current.unwrap_or(nearest).min(count.saturating_sub(1))
    }

    /// Where the output is in `mode=bridge`: at a stream or on the way to the next, which begins when a stream has ended,
    /// when `mix` has come nearer to another, or when it is asked for.
    pub(super) fn bridge_place(
        &self,
        token: &AggregateFramesToken,
        pads: &[DitMixerPad],
        when: &When,
    ) -> Place {
        let now = when.running_time.map_or(0, gst::ClockTime::nseconds);
        let current = self.current(pads.len());
        let (nearest, duration, easing) = {
            let settings = locked(&self.settings);
            let nearest = Place::of(settings.mix, pads.len()).nearest();
            (nearest, settings.transition_duration, settings.easing)
        };
        let over = pads.get(current).is_some_and(|pad| pad.imp().is_over(token));
        let next = Some(current + 1).filter(|next| *next < pads.len());
        // Behind the last come those that still wait, where `mix` began further on.
        let next = next.or_else(|| pads.iter().position(|pad| self.is_parked(pad)));
        let idle = locked(&self.state).transition.is_none();
        if let Some(pad) = pads.get(current).filter(|pad| idle && self.is_parked(pad)) {
            self.unpark(pad, now);
        }
        let mut begun = None;
        {
            let mut state = locked(&self.state);
            state.current = Some(current);
            let wanted = state.wanted.take();
            if state.transition.is_none() {
                let (to, duration) = match wanted {
                    _ if over => (next, wanted.unwrap_or(duration)),
                    Some(duration) => (Transition::target(current, pads.len()), duration),
                    None => (Some(nearest).filter(|nearest| *nearest != current), duration),
                };
                if let Some(to) = to {
                    let frame = self.frame_duration().max(1);
                    let duration = (duration / frame).max(1) * frame;
                    let transition =
                        Transition { from: current, to, start: now, duration, easing, lead: frame };
                    state.transition = Some(transition);
                    if over && state.mix_before.is_none() {
                        state.mix_before = Some(Place::mix_of(current, pads.len()));
                    }
                    begun = Some(transition);
                }
            }
        }
        if let Some(begun) = begun
            && let Some(pad) = pads.get(begun.to)
        {
            self.unpark(pad, now + self.playing_time(when, begun.duration));
        }
        Place::at(current)
    }
}

impl DitMixer {
    /// The time from the frame at `when` to the one a duration of whole frames later, as the base class counts it.
    fn playing_time(&self, when: &When, duration: u64) -> u64 {
        let rate = locked(&self.output).as_ref().map(gst_video::VideoInfo::fps);
        let (Some(rate), Some(pts)) = (rate.filter(|rate| rate.numer() > 0), when.pts) else {
            return duration;
        };
        let (num, den) = (rate.numer() as u128, rate.denom() as u128);
        let time = |frame: u128| frame * 1_000_000_000 * den / num;
        let pts = u128::from(pts.nseconds());
        let first = (pts * num + 500_000_000 * den) / (1_000_000_000 * den);
        let frames = u128::from(duration / self.frame_duration().max(1));
        // A frame that begins before its time would be taken for the one before.
        let late = u128::from(time(first) != pts);
        (time(first + frames) - time(first) + late) as u64
    }
}

fn is_live(pad: &gst_base::AggregatorPad) -> bool {
    let mut query = gst::query::Latency::new();
    pad.peer_query(&mut query) && query.result().0
}
