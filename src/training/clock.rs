// SPDX-License-Identifier: MPL-2.0
//! How far a training is.

use std::time::Instant;

use anyhow::{Result, ensure};

/// How far a training is, in steps or in time.
pub(super) struct Clock {
    started: Instant,
    steps: u64,
    seconds: Option<f64>,
}

impl Clock {
    /// Begins now.
    ///
    /// # Errors
    /// When the time is not one.
    pub fn new(steps: u64, seconds: Option<f64>) -> Result<Self> {
        if let Some(found) = seconds {
            let is_time = found.is_finite() && found > 0.0;
            ensure!(is_time, "--seconds: found {found}, expected more than 0");
        }
        Ok(Self { started: Instant::now(), steps, seconds })
    }

    /// The step itself, or, where the time is given, the one that should have been reached by now.
    pub fn at(&self, step: u64) -> u64 {
        let elapsed = self.started.elapsed().as_secs_f64();
        self.seconds.map_or(step, |seconds| (elapsed / seconds * self.steps as f64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_ends_a_training_in_time() {
        assert_eq!(Clock::new(8, None).unwrap().at(3), 3);
        assert!(Clock::new(8, Some(1e-9)).unwrap().at(3) > 8);
        assert_eq!(Clock::new(8, Some(1e9)).unwrap().at(3), 0);
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Clock::new(8, Some(wrong)).err().unwrap().to_string();
            assert!(error.starts_with("--seconds: found"), "{error}");
        }
    }
}
