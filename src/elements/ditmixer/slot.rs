// SPDX-License-Identifier: MPL-2.0
//! One output frame: which streams are mixed for it, where a transition stands, and its picture.

use std::sync::Arc;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::AggregateFramesToken;

use super::imp::{CAT, DitMixer};
use super::mixing::{Place, Transition};
use super::picture::compose;
use super::report;
use super::{DitMissing, DitMixMode, DitMixerPad};
use crate::elements::report::When;
use crate::error::Result;
use crate::frames::Painter;
use crate::pipeline::RgbFrame;
use crate::session::locked;

/// What is known of an output frame before it goes out.
pub(super) struct Slot {
    pub when: When,
    /// Messages to post with it.
    pub notes: Vec<gst::Structure>,
    /// `mix` changed because a transition ended.
    pub mix_moved: bool,
    pub shown: Shown,
}

/// The pictures of an output frame, in the output's format.
#[derive(Default)]
pub(super) enum Shown {
    #[default]
    Nothing,
    /// One stream exactly, by its pad's name.
    One {
        pad: String,
        picture: gst::Buffer,
    },
    Pair(Box<Pair>),
}

/// Two streams between which a frame lies.
pub(super) struct Pair {
    pub pads: [String; 2],
    pub prompts: [String; 2],
    pub from: gst::Buffer,
    pub to: gst::Buffer,
    pub share: f64,
    /// The frame belongs to a bridge, which no stream shines through.
    pub bridged: bool,
    pub output: gst_video::VideoInfo,
}

impl Slot {
    pub fn running_time(&self) -> u64 {
        self.when.running_time.map_or(0, gst::ClockTime::nseconds)
    }

    /// Whether it lies between two streams.
    pub fn pair(&self) -> Option<&Pair> {
        match &self.shown {
            Shown::Pair(pair) => Some(pair),
            _ => None,
        }
    }
}

impl DitMixer {
    /// The sink pads in their order.
    pub(super) fn pads(&self) -> Vec<DitMixerPad> {
        self.obj().sink_pads().into_iter().filter_map(|pad| pad.downcast().ok()).collect()
    }

    /// Paints the output frame of the present time into `buffer`.
    pub(super) fn fill_slot(
        &self,
        token: &AggregateFramesToken,
        buffer: &mut gst::BufferRef,
    ) -> Result<Slot, gst::FlowError> {
        let obj = self.obj();
        let output =
            VideoAggregatorExtManual::video_info(&*obj).ok_or(gst::FlowError::NotNegotiated)?;
        let when = When::new(buffer, &obj.src_pad().segment());
        if let Some(stream_time) = when.stream_time
            && let Err(error) = obj.sync_values(stream_time)
        {
            gst::debug!(CAT, imp = self, "{error}");
        }
        let pads = self.pads();
        let mut slot = Slot { when, notes: Vec::new(), mix_moved: false, shown: Shown::default() };
        let place = self.place(token, &pads, &mut slot);
        slot.shown = self.paint(token, &pads, place, (&output, buffer)).map_err(|error| {
            gst::element_imp_error!(self, gst::StreamError::Format, ("{error}"));
            gst::FlowError::Error
        })?;
        Ok(slot)
    }

    /// Where the output lies now; begins and ends transitions.
    fn place(&self, token: &AggregateFramesToken, pads: &[DitMixerPad], slot: &mut Slot) -> Place {
        let now = slot.running_time();
        let (mode, mix, at, duration) = {
            let settings = locked(&self.settings);
            (settings.mode, settings.mix, settings.transition_at, settings.transition_duration)
        };
        {
            let mut state = locked(&self.state);
            if at.is_some_and(|at| now >= at) && state.started_at != at {
                state.started_at = at;
                state.wanted.get_or_insert(duration);
            }
        }
        let before = locked(&self.state).transition;
        let place = match mode {
            DitMixMode::Bridge => self.bridge_place(token, pads, &slot.when),
            _ => self.mix_place(Place::of(mix, pads.len()), pads.len(), now),
        };
        let weight = |stream: usize| pads.get(stream).map_or(1.0, |pad| pad.imp().weight());
        let weighted = |place: Place| place.weighted(weight(place.from), weight(place.to));
        let transition = locked(&self.state).transition;
        let Some(transition) = transition else { return weighted(place) };
        if before.is_none() {
            slot.notes.push(note("dit-transition-start", &transition, pads, &slot.when));
        }
        let place = transition.place(now).unwrap_or_else(|| {
            slot.notes.push(note("dit-transition-end", &transition, pads, &slot.when));
            slot.mix_moved = true;
            Place::at(transition.to.min(pads.len().saturating_sub(1)))
        });
        if slot.mix_moved {
            let mut state = locked(&self.state);
            state.transition = None;
            state.current = Some(transition.to);
            drop(state);
            locked(&self.settings).mix = Place::mix_of(transition.to, pads.len());
        }
        weighted(place)
    }

    /// Where `mix` puts it; begins a transition that was asked for.
    fn mix_place(&self, place: Place, count: usize, now: u64) -> Place {
        let easing = locked(&self.settings).easing;
        let mut state = locked(&self.state);
        if state.transition.is_none()
            && let Some(duration) = state.wanted.take()
            && let Some(to) = Transition::target(place.nearest(), count)
        {
            let from = place.nearest();
            state.transition = Some(Transition { from, to, start: now, duration, easing, lead: 0 });
        }
        place
    }

    /// The crossfade of a place; of one stream where the other shows nothing.
    fn paint(
        &self,
        token: &AggregateFramesToken,
        pads: &[DitMixerPad],
        place: Place,
        (output, buffer): (&gst_video::VideoInfo, &mut gst::BufferRef),
    ) -> Result<Shown> {
        let (hold, bridging) = {
            let settings = locked(&self.settings);
            (settings.on_missing == DitMissing::Hold, settings.mode == DitMixMode::Bridge)
        };
        // On a bridge both sides stand still where they have nothing else to show.
        let hold = hold || (bridging && place.from != place.to);
        let picture = |stream: usize| {
            let pad = pads.get(stream)?.imp();
            let coming = || if bridging { pad.coming(output) } else { None };
            pad.picture(token, output, hold).or_else(coming)
        };
        let from = picture(place.from);
        let to = if place.to == place.from { None } else { picture(place.to) };
        let one = |stream: usize, picture: gst::Buffer, buffer: &mut gst::BufferRef| {
            compose(&picture, None, output, buffer)?;
            Ok(Shown::One { pad: name_of(pads, stream), picture })
        };
        match (from, to) {
            (Some(from), Some(to)) => {
                compose(&from, Some((&to, place.share)), output, buffer)?;
                let streams = [place.from, place.to];
                Ok(Shown::Pair(Box::new(Pair {
                    pads: streams.map(|stream| name_of(pads, stream)),
                    prompts: streams.map(|stream| self.prompt_of(pads, stream)),
                    from,
                    to,
                    share: place.share,
                    bridged: bridging,
                    output: output.clone(),
                })))
            }
            (Some(only), None) => one(place.from, only, buffer),
            (None, Some(only)) => one(place.to, only, buffer),
            (None, None) => {
                let mut others: Vec<usize> = (0..pads.len()).collect();
                others.sort_by_key(|stream| stream.abs_diff(place.nearest()));
                match others.into_iter().find_map(|it| picture(it).map(|picture| (it, picture))) {
                    Some((stream, only)) => one(stream, only, buffer),
                    None => black(output, buffer).map(|()| Shown::Nothing),
                }
            }
        }
    }

    /// What a stream is said to show: its pad's prompt, else that of the element.
    fn prompt_of(&self, pads: &[DitMixerPad], stream: usize) -> String {
        let own = pads.get(stream).map(|pad| pad.imp().prompt()).unwrap_or_default();
        if own.is_empty() { locked(&self.settings).common.prompt.clone() } else { own }
    }
}

fn name_of(pads: &[DitMixerPad], stream: usize) -> String {
    pads.get(stream).map(|pad| pad.name().to_string()).unwrap_or_default()
}

fn note(name: &str, transition: &Transition, pads: &[DitMixerPad], when: &When) -> gst::Structure {
    let names = [name_of(pads, transition.from), name_of(pads, transition.to)];
    report::transition(name, when, [&names[0], &names[1]], transition.duration)
}

fn black(output: &gst_video::VideoInfo, buffer: &mut gst::BufferRef) -> Result<()> {
    let size = 16;
    let frame = RgbFrame { width: size, height: size, data: vec![0; size * size * 3] };
    Painter::new(output.clone()).paint(&Arc::new(frame), buffer)
}
