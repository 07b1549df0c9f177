// SPDX-License-Identifier: MPL-2.0
//! From caps, seeks and queries to what the session is asked to generate.

use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use super::imp::{CAT, DitSrc, SIZES};
use super::timeline::{Rate, Timeline};
use crate::error::Error;
use crate::frames;
use crate::pipeline::{self, FolderInfo, NoiseKind};
use crate::session::{Session, locked};

impl DitSrc {
    pub(super) fn native_rate(info: &FolderInfo) -> Option<Rate> {
        Rate::new(info.native.framerate.0, info.native.framerate.1)
    }

    /// Takes the timing from new caps; whether the latency changed.
    pub(super) fn adopt(&self, info: &gst_video::VideoInfo, session: &Session) -> bool {
        let fallback = Self::native_rate(session.info()).unwrap_or(Rate::DEFAULT);
        // A variable rate means the model's own: frames keep the times that they were made for.
        let rate = Rate::new(info.fps().numer(), info.fps().denom()).unwrap_or(fallback);
        let mut state = locked(&self.state);
        let before = state.timeline.map(|timeline| timeline.rate());
        let begin_at = state.begin_at;
        match &mut state.timeline {
            Some(timeline) => timeline.change_rate(rate),
            None => {
                let mut timeline = Timeline::new(rate, fallback);
                timeline.seek(begin_at);
                state.timeline = Some(timeline);
            }
        }
        state.info = Some(info.clone());
        before != Some(rate)
    }

    /// Makes the session generate what these caps need, if it does not already.
    pub(super) fn generate_for(
        &self,
        info: &gst_video::VideoInfo,
        session: &Session,
    ) -> Result<(), Error> {
        let size =
            session.info().generation_size(frames::square_width(info), i64::from(info.height()));
        let live = self.obj().is_live();
        let period = Self::native_rate(session.info())
            .map(|rate| Duration::from_nanos(rate.time_of(1)))
            .filter(|_| live);
        session.set_live_period(period);
        let (changed, origin) = {
            let state = locked(&self.state);
            let origin = state.timeline.map_or(0, |timeline| timeline.next().native);
            (state.generating != Some(size), origin)
        };
        if changed {
            gst::debug!(CAT, imp = self, "generating {size:?} from frame {origin}");
            let still = self.obj().property::<i32>("num-buffers") == 1;
            let settings = pipeline::Settings {
                width: size.0,
                height: size.1,
                num_inference_steps: locked(&self.settings).common.steps(),
                noise: NoiseKind::Counter,
            };
            // After a seek the frames before the wanted one have to be made as well.
            let seeked = locked(&self.state).generating.is_none();
            session.begin(&settings, still, if seeked { 0 } else { origin })?;
            locked(&self.state).generating = Some(size);
        }
        self.update_limit(session);
        Ok(())
    }

    /// Tells the session which frame is the last that can be wanted.
    pub(super) fn update_limit(&self, session: &Session) {
        let count = u64::try_from(self.obj().property::<i32>("num-buffers")).ok();
        let state = locked(&self.state);
        let Some(timeline) = state.timeline else { return };
        let to_stop = state
            .stop
            .map(|stop| timeline.rate().frames_before(stop.saturating_sub(timeline.next().pts)));
        let frames = [count, to_stop].into_iter().flatten().min();
        let limit = frames.map(|frames| timeline.native_after(frames.saturating_sub(1)) + 1);
        drop(state);
        session.set_limit(limit);
    }

    /// Whether this is a seek that can't be followed.
    ///
    /// The base class asks for it only once it has flushed, and then pushes on without a segment.
    pub(super) fn refuses(&self, event: &gst::Event) -> bool {
        let gst::EventView::Seek(seek) = event.view() else { return false };
        let (rate, _, start_type, start, stop_type, _) = seek.get();
        let from_end = [start_type, stop_type].contains(&gst::SeekType::End);
        let why = if rate < 0.0 {
            "no playing backwards: every chunk continues the last"
        } else if from_end && start.format() != gst::Format::Time {
            "from the end only in time"
        } else {
            return false;
        };
        gst::warning!(CAT, imp = self, "refusing {event:?}: {why}");
        true
    }

    pub(super) fn seek(&self, time: u64, stop: Option<u64>) {
        let target = {
            let mut state = locked(&self.state);
            state.begin_at = time;
            state.stop = stop;
            state.discont = true;
            state.filled = None;
            state.last_push = None;
            state.timeline.as_mut().map(|timeline| {
                timeline.seek(time);
                timeline.next().native
            })
        };
        let (Some(running), Some(target)) = (self.running(), target) else { return };
        self.first_error.forget();
        if target < running.session.position().0 || running.session.failure().is_some() {
            gst::debug!(CAT, imp = self, "seek to frame {target}: generating from the start");
            running.session.restart(0);
        }
        self.update_limit(&running.session);
    }

    /// Whether the element is live and how late its frames are at least.
    pub(super) fn latency(&self) -> Option<(bool, gst::ClockTime)> {
        if !self.obj().is_live() {
            return Some((false, gst::ClockTime::ZERO));
        }
        let rate = locked(&self.state).timeline?.rate();
        Some((true, gst::ClockTime::from_nseconds(rate.time_of(1))))
    }

    /// Length of the stream, where something limits it.
    pub(super) fn duration(&self) -> Option<(gst::ClockTime, gst::format::Default)> {
        let count = u64::try_from(self.obj().property::<i32>("num-buffers")).ok();
        let (rate, stop) = {
            let state = locked(&self.state);
            (state.timeline.map(|timeline| timeline.rate()), state.stop)
        };
        let rate = match rate {
            Some(rate) => rate,
            None => Self::native_rate(&*self.folder()?)?,
        };
        let to_stop = stop.map(|stop| rate.frames_before(stop));
        let frames = [count, to_stop].into_iter().flatten().min()?;
        let counted = gst::ClockTime::from_nseconds(rate.time_of(frames));
        let time =
            stop.map(gst::ClockTime::from_nseconds).map_or(counted, |stop| counted.min(stop));
        Some((time, gst::format::Default::from_u64(frames)))
    }

    pub(super) fn converted(
        &self,
        value: gst::GenericFormattedValue,
        target: gst::Format,
    ) -> Option<gst::GenericFormattedValue> {
        let (info, rate) = {
            let state = locked(&self.state);
            (state.info.clone()?, state.timeline?.rate())
        };
        frames::convert(&info, rate.fraction(), value, target)
    }
}

/// The model's own size where nothing is asked for, its shape where one side is.
pub(super) fn fixate_size(structure: &mut gst::StructureRef, width: i32, height: i32) {
    let fixed = |structure: &gst::StructureRef, name: &str| structure.get::<i32>(name).ok();
    let scaled = |side: i32, part: i32, whole: i32| {
        let even = i64::from(side) * i64::from(part) / i64::from(whole.max(1)) / 2 * 2;
        i32::try_from(even).unwrap_or(SIZES.1).clamp(SIZES.0, SIZES.1)
    };
    let (width, height) = match (fixed(structure, "width"), fixed(structure, "height")) {
        (Some(fixed), None) => (fixed, scaled(fixed, height, width)),
        (None, Some(fixed)) => (scaled(fixed, width, height), fixed),
        _ => (width, height),
    };
    structure.fixate_field_nearest_int("width", width);
    structure.fixate_field_nearest_int("height", height);
}

/// Writes the colorimetry and chroma siting that the format and size imply into caps without them.
pub(super) fn state_colours(caps: &mut gst::Caps) {
    let Ok(info) = gst_video::VideoInfo::from_caps(caps) else { return };
    let Some(structure) = caps.make_mut().structure_mut(0) else { return };
    if !structure.has_field("colorimetry") {
        structure.set("colorimetry", info.colorimetry().to_string().as_str());
    }
    let site = info.chroma_site();
    if info.format_info().is_yuv() && !site.is_empty() && !structure.has_field("chroma-site") {
        structure.set("chroma-site", site.to_str().as_str());
    }
}
