// SPDX-License-Identifier: MPL-2.0
//! Which two streams are mixed and by how much: positions, weights, timed transitions. Arithmetic only.

/// The course of a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[repr(C)]
#[enum_type(name = "GstDitEasing")]
pub enum DitEasing {
    #[enum_value(name = "Linear: at an even pace", nick = "linear")]
    Linear,
    #[enum_value(name = "Ease in: slow at the beginning", nick = "ease-in")]
    EaseIn,
    #[enum_value(name = "Ease out: slow at the end", nick = "ease-out")]
    EaseOut,
    #[default]
    #[enum_value(name = "Ease in and out: slow at both ends", nick = "ease-in-out")]
    EaseInOut,
}

impl DitEasing {
    /// Progress in [0, 1] after the share `x` in [0, 1] of the time; 0 and 1 stay themselves exactly.
    pub fn apply(self, x: f64) -> f64 {
        let x = x.clamp(0.0, 1.0);
        match self {
            Self::Linear => x,
            Self::EaseIn => x * x,
            Self::EaseOut => x * (2.0 - x),
            Self::EaseInOut => x * x * (3.0 - 2.0 * x),
        }
    }
}

/// Nearer than this to a stream is that stream.
const EXACT: f64 = 1e-9;

/// A place between two neighbouring streams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// Streams by their order; equal where `share` is 0.
    pub from: usize,
    pub to: usize,
    /// How much of `to`, in [0, 1).
    pub share: f64,
}

impl Place {
    /// Exactly one stream.
    pub fn at(stream: usize) -> Self {
        Self { from: stream, to: stream, share: 0.0 }
    }

    /// Between two streams; exactly one of them at either end.
    pub fn between(from: usize, to: usize, share: f64) -> Self {
        if share <= EXACT || from == to {
            Self::at(from)
        } else if share >= 1.0 - EXACT {
            Self::at(to)
        } else {
            Self { from, to, share }
        }
    }

    /// Where `mix` in [0, 1] lies among `count` streams at equal distances: 0 is the first, 1 the last.
    pub fn of(mix: f64, count: usize) -> Self {
        let last = count.saturating_sub(1);
        let position = mix.clamp(0.0, 1.0) * last as f64;
        let from = (position.floor() as usize).min(last);
        Self::between(from, (from + 1).min(last), position - from as f64)
    }

    /// The `mix` of a stream, the inverse of [`Place::of`].
    pub fn mix_of(stream: usize, count: usize) -> f64 {
        match count.saturating_sub(1) {
            0 => 0.0,
            last => stream.min(last) as f64 / last as f64,
        }
    }

    /// The nearer of the two streams.
    pub fn nearest(self) -> usize {
        if self.share < 0.5 { self.from } else { self.to }
    }

    /// The same between streams of unequal weight: the heavier reaches further.
    pub fn weighted(self, from: f64, to: f64) -> Self {
        let (one, other) = ((1.0 - self.share) * from, self.share * to);
        if self.from == self.to || one + other <= 0.0 {
            return self;
        }
        Self::between(self.from, self.to, other / (one + other))
    }
}

/// A change from one stream to another within a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    pub from: usize,
    pub to: usize,
    /// Running time of its first frame, in nanoseconds.
    pub start: u64,
    /// In nanoseconds.
    pub duration: u64,
    pub easing: DitEasing,
    /// How far it has come before its first frame, in nanoseconds; with 0 that frame is still exactly `from`.
    pub lead: u64,
}

impl Transition {
    /// Where it is at a running time; None once it is over.
    pub fn place(&self, running_time: u64) -> Option<Place> {
        let passed = running_time.saturating_sub(self.start);
        if passed >= self.duration {
            return None;
        }
        let whole = self.duration.saturating_add(self.lead);
        let share = self.easing.apply((passed + self.lead) as f64 / whole as f64);
        Some(Place::between(self.from, self.to, share))
    }

    /// The stream a transition from `stream` leads to: the next, or the one before from the last.
    pub fn target(stream: usize, count: usize) -> Option<usize> {
        match count {
            0 | 1 => None,
            _ if stream + 1 < count => Some(stream + 1),
            _ => Some(count - 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_exactly_a_stream() {
        assert_eq!(Place::of(0.0, 2), Place::at(0));
        assert_eq!(Place::of(1.0, 2), Place::at(1));
        assert_eq!(Place::of(0.5, 3), Place::at(1));
        for count in 2..9 {
            for stream in 0..count {
                assert_eq!(Place::of(Place::mix_of(stream, count), count), Place::at(stream));
            }
        }
        assert_eq!(Place::of(0.7, 1), Place::at(0));
        assert_eq!(Place::of(0.7, 0), Place::at(0));
    }

    #[test]
    fn between_neighbours() {
        let place = Place::of(0.75, 3);
        assert_eq!((place.from, place.to, place.nearest()), (1, 2, 2));
        assert!((place.share - 0.5).abs() < 1e-12);
    }

    #[test]
    fn weights_bend_but_keep_the_ends() {
        assert_eq!(Place::at(1).weighted(0.2, 3.0), Place::at(1));
        let place = Place::of(0.5, 2).weighted(1.0, 3.0);
        assert!((place.share - 0.75).abs() < 1e-12);
        assert_eq!(Place::of(0.5, 2).weighted(1.0, 0.0), Place::at(0));
        assert_eq!(Place::of(0.5, 2).weighted(0.0, 0.0), Place::of(0.5, 2));
    }

    #[test]
    fn easings_begin_and_end_exactly_and_never_go_back() {
        for easing in
            [DitEasing::Linear, DitEasing::EaseIn, DitEasing::EaseOut, DitEasing::EaseInOut]
        {
            assert_eq!((easing.apply(0.0), easing.apply(1.0)), (0.0, 1.0));
            let values: Vec<f64> = (0..=100).map(|x| easing.apply(f64::from(x) / 100.0)).collect();
            assert!(values.windows(2).all(|pair| pair[0] <= pair[1]), "{easing:?}");
        }
    }

    #[test]
    fn a_transition_begins_at_one_stream_and_is_over_at_the_other() {
        let easing = DitEasing::Linear;
        let transition = Transition { from: 0, to: 1, start: 100, duration: 50, easing, lead: 0 };
        let within = Transition { lead: 10, ..transition };
        assert!(within.place(100).is_some_and(|place| place.from != place.to));
        assert_eq!(transition.place(100), Some(Place::at(0)));
        assert_eq!(transition.place(125), Some(Place { from: 0, to: 1, share: 0.5 }));
        assert_eq!(transition.place(150), None);
        assert_eq!(Transition::target(0, 2), Some(1));
        assert_eq!(Transition::target(1, 2), Some(0));
        assert_eq!(Transition::target(0, 1), None);
    }
}
