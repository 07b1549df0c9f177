// SPDX-License-Identifier: MPL-2.0
//! What a live filter gives up when it is too slow, in which order, and how it finds out that it may take it back.

use std::time::Duration;

use crate::session::Ladder;

/// What is given up on a rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    #[default]
    None,
    FewerSteps,
    SmallerPicture,
    FewerFrames,
    RepeatFrame,
    PassThrough,
}

impl Action {
    /// The field `action` of messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FewerSteps => "fewer-steps",
            Self::SmallerPicture => "smaller-picture",
            Self::FewerFrames => "fewer-frames",
            Self::RepeatFrame => "repeat-frame",
            Self::PassThrough => "pass-through",
        }
    }
}

/// How chunks are made on a rung.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rung {
    pub action: Action,
    pub steps: u32,
    /// Part of the processing size, by side.
    pub size: f64,
    /// One frame of so many is restyled and shown that often.
    pub every: u32,
}

/// Part of a chunk's time that does not go with the steps: encoding and decoding.
const FIXED: f64 = 0.5;
/// Chunks between two tries on the last rung: at first, and at most.
const TRIES: (u32, u32) = (2, 32);

/// Where a stream stands.
#[derive(Debug)]
pub struct Degrading {
    ladder: Ladder<Rung>,
    /// Chunks to pass before the next try, when everything passes through.
    pause: u32,
    next_pause: u32,
    /// The first chunk also pays for warming up and says nothing.
    warm: bool,
}

impl Degrading {
    /// A ladder from `steps` denoising steps down; `divisible`: whether a chunk has more than one latent frame.
    pub fn new(steps: u32, divisible: bool) -> Self {
        let full = Rung { action: Action::None, steps, size: 1.0, every: 1 };
        let mut rungs = Vec::new();
        let mut lowest = steps;
        for part in [0.75, 0.5, 0.25] {
            let fewer = ((f64::from(steps) * part).round() as u32).max(1);
            if fewer < lowest {
                lowest = fewer;
                rungs.push(Rung { action: Action::FewerSteps, steps: fewer, ..full });
            }
        }
        let smaller = Rung { action: Action::SmallerPicture, steps: lowest, ..full };
        rungs.extend([0.75, 0.5].map(|size| Rung { size, ..smaller }));
        if divisible {
            let every = 2;
            rungs.push(Rung { action: Action::FewerFrames, every, size: 0.5, ..smaller });
        }
        rungs.push(Rung { action: Action::PassThrough, size: 0.5, ..smaller });
        let cost = |rung: &Rung| {
            let by_steps = FIXED + (1.0 - FIXED) * f64::from(rung.steps) / f64::from(steps.max(1));
            by_steps * rung.size * rung.size / f64::from(rung.every)
        };
        let rungs: Vec<_> = rungs.into_iter().map(|rung| (rung, cost(&rung))).collect();
        Self { ladder: Ladder::with_rungs(full, rungs), pause: 0, next_pause: TRIES.0, warm: false }
    }

    /// Steps of full quality.
    pub fn full_steps(&self) -> u32 {
        self.ladder.full().steps
    }

    /// How to make the next chunk, and the rung's number.
    pub fn rung(&self) -> (Rung, u32) {
        (self.ladder.rung(), self.ladder.level())
    }

    /// Says that a chunk passes through; now and then the next one is to be tried.
    pub fn passed(&mut self) {
        self.pause = self.pause.saturating_sub(1);
        if self.pause == 0 {
            self.ladder.set_level(self.ladder.level().saturating_sub(1));
        }
    }

    /// Learns how long a chunk took and how long it plays.
    pub fn observe(&mut self, level: u32, spent: Duration, playing: Duration) {
        if !std::mem::replace(&mut self.warm, true) || level != self.ladder.level() {
            return;
        }
        let last = self.ladder.len() as u32 - 1;
        self.ladder.observe(spent, playing);
        if self.ladder.level() == last {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(TRIES.1);
        } else if self.ladder.level() + 1 < last {
            self.next_pause = TRIES.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn slow(degrading: &mut Degrading, factor: u32) {
        let (_, level) = degrading.rung();
        degrading.observe(level, SECOND * factor, SECOND);
    }

    #[test]
    fn the_order_is_declared() {
        let mut degrading = Degrading::new(8, true);
        // The first chunk warms up.
        slow(&mut degrading, 9);
        assert_eq!(degrading.rung().0.action, Action::None);
        let mut seen = Vec::new();
        for _ in 0..20 {
            let (rung, level) = degrading.rung();
            if seen.last() != Some(&rung.action) {
                seen.push(rung.action);
            }
            // Just too slow, so that every rung is tried.
            degrading.observe(level, SECOND * 96 / 100, SECOND);
        }
        let order = [
            Action::None,
            Action::FewerSteps,
            Action::SmallerPicture,
            Action::FewerFrames,
            Action::PassThrough,
        ];
        let expected: Vec<_> = order.into_iter().filter(|action| seen.contains(action)).collect();
        assert_eq!(seen, expected);
        assert_eq!(seen.last(), Some(&Action::PassThrough));
    }

    #[test]
    fn what_passes_through_is_tried_again_ever_less_often() {
        let mut degrading = Degrading::new(4, true);
        slow(&mut degrading, 1);
        slow(&mut degrading, 100);
        let mut tries = Vec::new();
        for chunk in 0..60 {
            if degrading.rung().0.action == Action::PassThrough {
                degrading.passed();
            } else {
                tries.push(chunk);
                slow(&mut degrading, 100);
            }
        }
        let gaps: Vec<i32> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.windows(2).all(|pair| pair[0] <= pair[1]) && gaps.len() >= 2, "{tries:?}");
        // The load has fallen.
        for _ in 0..200 {
            if degrading.rung().0.action == Action::PassThrough {
                degrading.passed();
            } else {
                let level = degrading.rung().1;
                degrading.observe(level, SECOND / 100, SECOND);
            }
        }
        assert_eq!(degrading.rung().0.action, Action::None);
    }

    #[test]
    fn what_was_begun_on_another_rung_says_nothing() {
        let mut degrading = Degrading::new(4, false);
        slow(&mut degrading, 1);
        degrading.observe(3, SECOND * 100, SECOND);
        assert_eq!(degrading.rung().1, 0);
    }
}
