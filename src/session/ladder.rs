// SPDX-License-Identifier: MPL-2.0
//! What a live stream gives up when the machine is too slow, and when it takes it back.
//!
//! For a source the first rung is the full number of denoising steps; each further rung has three quarters of the
//! steps of the one before, down to a quarter of the full number. A stream that is too slow on the last
//! rung repeats its last frame until the next chunk is there; that needs no decision here. A filter has rungs
//! of its own.

use std::time::Duration;

/// A chunk that takes more than this part of its playing time is too slow.
const TOO_SLOW: f64 = 0.95;
/// The rung aimed at is the first one expected to take less than this part.
const AIM: f64 = 0.85;
/// Going back up needs the higher rung to be expected below this part, this many times in a row.
const COMFORTABLE: f64 = 0.7;
const CALM_CHUNKS: u32 = 2;

/// What is done on one rung, and its part of the full rung's time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rung<R> {
    what: R,
    cost: f64,
}

/// The rungs of one stream and where it stands on them.
#[derive(Debug, Clone)]
pub struct Ladder<R = u32> {
    /// Never empty.
    rungs: Vec<Rung<R>>,
    level: usize,
    calm: u32,
}

impl Ladder<u32> {
    /// A ladder of denoising steps that starts with `steps` (at least 1), taking the time to be in proportion to the steps.
    pub fn new(steps: u32) -> Self {
        let steps = steps.max(1);
        let lowest = (steps / 4).max(1);
        let mut rungs = vec![steps];
        let mut rung = steps;
        while rung > lowest {
            rung = (rung * 3 / 4).clamp(lowest, rung - 1);
            rungs.push(rung);
        }
        let cost = |&rung: &u32| (rung, f64::from(rung) / f64::from(steps));
        let rest: Vec<_> = rungs[1..].iter().map(cost).collect();
        Self::with_rungs(steps, rest)
    }

    /// The steps to use now.
    pub fn steps(&self) -> u32 {
        self.rung()
    }
}

impl<R: Copy> Ladder<R> {
    /// A ladder from full quality down over `rest`, each with the part of the full time that it is expected to take.
    pub fn with_rungs(full: R, rest: impl IntoIterator<Item = (R, f64)>) -> Self {
        let rest = rest.into_iter().map(|(what, cost)| Rung { what, cost });
        let rungs = std::iter::once(Rung { what: full, cost: 1.0 }).chain(rest).collect();
        Self { rungs, level: 0, calm: 0 }
    }

    /// What full quality is.
    pub fn full(&self) -> R {
        self.rungs[0].what
    }

    /// What to do now.
    pub fn rung(&self) -> R {
        self.rungs[self.level].what
    }

    /// The rung in use; 0 is full quality.
    pub fn level(&self) -> u32 {
        self.level as u32
    }

    /// Goes to another rung, at most the last.
    pub fn set_level(&mut self, level: u32) {
        self.calm = 0;
        self.level = (level as usize).min(self.rungs.len() - 1);
    }

    /// How many rungs there are.
    pub fn len(&self) -> usize {
        self.rungs.len()
    }

    /// Never: there is always full quality.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Learns how long a chunk on the present rung took, and how long it plays.
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

    /// The load to be expected on another rung.
    fn expected(&self, load: f64, rung: usize) -> f64 {
        load * self.rungs[rung].cost / self.rungs[self.level].cost.max(1e-9)
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
