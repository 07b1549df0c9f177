// SPDX-License-Identifier: MPL-2.0
//! What a live stream gives up when the machine is too slow, and when it takes it back.
//!
//! The first rung is the full number of denoising steps; each further rung has three quarters of the
//! steps of the one before, down to a quarter of the full number. A stream that is too slow on the last
//! rung repeats its last frame until the next chunk is there; that needs no decision here.

use std::time::Duration;

/// A chunk that takes more than this part of its playing time is too slow.
const TOO_SLOW: f64 = 0.95;
/// The rung aimed at is the first one expected to take less than this part.
const AIM: f64 = 0.85;
/// Going back up needs the higher rung to be expected below this part, this many times in a row.
const COMFORTABLE: f64 = 0.7;
const CALM_CHUNKS: u32 = 2;

/// The rungs of one stream and where it stands on them.
#[derive(Debug, Clone)]
pub struct Ladder {
    rungs: Vec<u32>,
    level: usize,
    calm: u32,
}

impl Ladder {
    /// A ladder that starts with `steps` denoising steps (at least 1).
    pub fn new(steps: u32) -> Self {
        let steps = steps.max(1);
        let lowest = (steps / 4).max(1);
        let mut rungs = vec![steps];
        let mut rung = steps;
        while rung > lowest {
            rung = (rung * 3 / 4).clamp(lowest, rung - 1);
            rungs.push(rung);
        }
        Self { rungs, level: 0, calm: 0 }
    }

    /// The full number of steps.
    pub fn full(&self) -> u32 {
        self.rungs[0]
    }

    /// The steps to use now.
    pub fn steps(&self) -> u32 {
        self.rungs[self.level]
    }

    /// The rung in use; 0 is full quality.
    pub fn level(&self) -> u32 {
        self.level as u32
    }

    /// Learns how long a chunk with the present number of steps took, and how long it plays.
    pub fn observe(&mut self, spent: Duration, playing: Duration) {
        let load = spent.as_secs_f64() / playing.as_secs_f64().max(1e-9);
        if load > TOO_SLOW {
            self.calm = 0;
            let last = self.rungs.len() - 1;
            let lower = (self.level + 1).min(last);
            self.level =
                (lower..last).find(|&rung| self.expected(load, rung) < AIM).unwrap_or(last);
        } else if self.level > 0 && self.expected(load, self.level - 1) < COMFORTABLE {
            self.calm += 1;
            if self.calm >= CALM_CHUNKS {
                self.calm = 0;
                self.level -= 1;
            }
        } else {
            self.calm = 0;
        }
    }

    /// The load on another rung, taking the time to be in proportion to the steps.
    fn expected(&self, load: f64, rung: usize) -> f64 {
        load * f64::from(self.rungs[rung]) / f64::from(self.steps())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn steps_fall_when_too_slow_and_come_back() {
        let mut ladder = Ladder::new(8);
        assert_eq!((ladder.steps(), ladder.level()), (8, 0));
        ladder.observe(SECOND * 2, SECOND);
        let lowered = ladder.steps();
        assert!((2..8).contains(&lowered));
        for _ in 0..20 {
            ladder.observe(SECOND / 10, SECOND);
        }
        assert_eq!((ladder.steps(), ladder.level()), (8, 0));
    }

    #[test]
    fn the_last_rung_is_a_quarter() {
        let mut ladder = Ladder::new(8);
        for _ in 0..20 {
            ladder.observe(SECOND * 100, SECOND);
        }
        assert_eq!(ladder.steps(), 2);
        let mut single = Ladder::new(1);
        single.observe(SECOND * 100, SECOND);
        assert_eq!((single.steps(), single.level()), (1, 0));
    }

    #[test]
    fn a_steady_load_stays_where_it_is() {
        let mut ladder = Ladder::new(10);
        for _ in 0..10 {
            ladder.observe(SECOND * 8 / 10, SECOND);
        }
        assert_eq!(ladder.level(), 0);
    }
}
