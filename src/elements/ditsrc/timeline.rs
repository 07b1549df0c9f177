// SPDX-License-Identifier: MPL-2.0
//! Which time an output frame has and which generated frame it shows.
//!
//! Everything is counted in frames and turned into nanoseconds by one multiplication and one division, so
//! that nothing drifts: `pts(n) = floor(n * 10^9 * den / num)`. Generated frames come at the model's own
//! rate; where the output has another one they are repeated or left out, so that things move at their own
//! speed: output frame `n` shows generated frame `floor(n * den / num * native_num / native_den)`.

const SECOND: u128 = 1_000_000_000;

/// A frame rate above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    num: u64,
    den: u64,
}

impl Rate {
    /// A rate of `num / den` frames a second, None unless it is above zero.
    pub fn new(num: i32, den: i32) -> Option<Self> {
        let (num, den) = (u64::try_from(num).ok()?, u64::try_from(den).ok()?);
        (num > 0 && den > 0).then_some(Self { num, den })
    }

    /// For a model that names no usable rate.
    pub const DEFAULT: Self = Self { num: 16, den: 1 };

    /// The rate as GStreamer writes it.
    pub fn fraction(self) -> gst::Fraction {
        gst::Fraction::new(self.num as i32, self.den as i32)
    }

    /// When frame `n` begins, in nanoseconds.
    pub fn time_of(self, frame: u64) -> u64 {
        saturated(u128::from(frame) * u128::from(self.den) * SECOND / u128::from(self.num))
    }

    /// The last frame that begins at or before a time in nanoseconds.
    pub fn frame_at(self, time: u64) -> u64 {
        let period = u128::from(self.den) * SECOND;
        let after = (u128::from(time) + 1) * u128::from(self.num);
        saturated(after.div_ceil(period) - 1)
    }

    /// How many frames begin before a time in nanoseconds.
    pub fn frames_before(self, time: u64) -> u64 {
        if time == 0 { 0 } else { self.frame_at(time - 1) + 1 }
    }

    /// The frame at another rate that is shown while frame `n` of this one is.
    fn map(self, frame: u64, other: Self) -> u64 {
        let num = u128::from(self.den) * u128::from(other.num);
        let den = u128::from(self.num) * u128::from(other.den);
        saturated(u128::from(frame).saturating_mul(num) / den)
    }
}

fn saturated(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Everything about the next output frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Presentation time in nanoseconds.
    pub pts: u64,
    /// Nanoseconds to the next frame.
    pub duration: u64,
    /// Number of the output frame.
    pub offset: u64,
    /// Number of the generated frame.
    pub native: u64,
}

/// Where the stream stands.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    rate: Rate,
    native: Rate,
    /// Time, output frame and generated frame at which the present rate began.
    start: (u64, u64, u64),
    /// Output frames since then, and how many of them only repeated the one before for want of a new one.
    frames: u64,
    held: u64,
}

impl Timeline {
    /// A stream that begins now.
    pub fn new(rate: Rate, native: Rate) -> Self {
        Self { rate, native, start: (0, 0, 0), frames: 0, held: 0 }
    }

    /// The rate of the output.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The frame to make next.
    pub fn next(&self) -> Slot {
        let pts = self.rate.time_of(self.frames);
        let shown = self.rate.map(self.frames - self.held, self.native);
        Slot {
            pts: self.start.0.saturating_add(pts),
            duration: self.rate.time_of(self.frames + 1) - pts,
            offset: self.start.1 + self.frames,
            native: self.start.2 + shown,
        }
    }

    /// The generated frame that is shown `frames` output frames from now.
    pub fn native_after(&self, frames: u64) -> u64 {
        let index = (self.frames - self.held).saturating_add(frames);
        self.start.2.saturating_add(self.rate.map(index, self.native))
    }

    /// The frame that [`Timeline::next`] described went out; `repeated` when it showed its predecessor.
    pub fn advance(&mut self, repeated: bool) {
        self.frames += 1;
        self.held += u64::from(repeated);
    }

    /// Goes to the frame shown at a time in nanoseconds.
    pub fn seek(&mut self, time: u64) {
        *self = Self { frames: self.rate.frame_at(time), ..Self::new(self.rate, self.native) };
    }

    /// Goes on at another rate.
    pub fn change_rate(&mut self, rate: Rate) {
        if rate != self.rate {
            let Slot { pts, offset, native, .. } = self.next();
            *self = Self { start: (pts, offset, native), ..Self::new(rate, self.native) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(num: i32, den: i32) -> Rate {
        Rate::new(num, den).unwrap()
    }

    #[test]
    fn broadcast_rates_have_no_gaps_and_no_drift() {
        for (num, den) in [(24000, 1001), (25, 1), (30000, 1001), (60000, 1001), (1, 7)] {
            let mut timeline = Timeline::new(rate(num, den), rate(num, den));
            let mut end = 0;
            for n in 0..2000u64 {
                let slot = timeline.next();
                assert_eq!((slot.pts, slot.offset, slot.native), (end, n, n));
                assert_eq!(slot.pts, n * den as u64 * 1_000_000_000 / num as u64);
                end = slot.pts + slot.duration;
                timeline.advance(false);
            }
        }
    }

    #[test]
    fn a_seek_to_the_time_of_a_frame_finds_it() {
        let ntsc = rate(24000, 1001);
        for n in 0..5000 {
            assert_eq!(ntsc.frame_at(ntsc.time_of(n)), n);
            assert_eq!(ntsc.frame_at(ntsc.time_of(n + 1) - 1), n);
            assert_eq!(ntsc.frames_before(ntsc.time_of(n)), n);
        }
    }

    #[test]
    fn motion_keeps_its_speed_at_another_rate() {
        let shown = |num, count| {
            let mut timeline = Timeline::new(rate(num, 1), rate(16, 1));
            let step = |_| {
                let native = timeline.next().native;
                timeline.advance(false);
                native
            };
            (0..count).map(step).collect::<Vec<_>>()
        };
        assert_eq!(shown(32, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(shown(8, 4), [0, 2, 4, 6]);
        assert_eq!(shown(24, 7), [0, 0, 1, 2, 2, 3, 4]);
    }

    #[test]
    fn a_held_frame_delays_the_content_and_not_the_clock() {
        let mut timeline = Timeline::new(rate(10, 1), rate(10, 1));
        timeline.advance(false);
        timeline.advance(true);
        let slot = timeline.next();
        assert_eq!((slot.pts, slot.offset, slot.native), (200_000_000, 2, 1));
    }

    #[test]
    fn a_change_of_rate_goes_on_where_it_is() {
        let mut timeline = Timeline::new(rate(25, 1), rate(25, 1));
        (0..5).for_each(|_| timeline.advance(false));
        timeline.change_rate(rate(50, 1));
        let slot = timeline.next();
        assert_eq!((slot.pts, slot.duration, slot.native), (200_000_000, 20_000_000, 5));
        timeline.seek(0);
        assert_eq!(timeline.next().pts, 0);
    }

    #[test]
    fn the_far_future_does_not_overflow() {
        let mut timeline = Timeline::new(rate(i32::MAX, 1), rate(60, 1));
        timeline.seek(u64::MAX - 1);
        assert!(timeline.next().pts > 0);
        assert!(Rate::new(0, 1).is_none() && Rate::new(-1, 1).is_none());
    }
}
