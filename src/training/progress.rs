// SPDX-License-Identifier: MPL-2.0
//! What long work shows: a bar with time left on a terminal, plain lines in a log.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of a training run.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last_line: Cell<Instant>,
    started: Instant,
    first: u64,
    total: u64,
    seconds: Option<f64>,
}

/// How often a log gets a line.
const LINE_EVERY: Duration = Duration::from_secs(20);

impl Progress {
    /// Starts at step `done` of `total`, of a model of `parameters` elements; 0 where nothing is trained.
    pub fn new(name: &str, total: u64, done: u64, parameters: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        let template = "{prefix} {bar:30} {pos}/{len} {per_sec} {msg}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_prefix(name.to_owned());
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        let last_line = Cell::new(now);
        let this =
            Self { bar, terminal, last_line, started: now, first: done, total, seconds: None };
        let what = match parameters {
            0 => String::new(),
            _ => format!("{:.2} M parameters, ", parameters as f64 / 1e6),
        };
        this.note(&format!("{name}: {what}step {done} of {total}"));
        this
    }

    /// The same where the work ends after this time, counted from now, if it has not come to its last step before.
    pub fn within(self, seconds: Option<f64>) -> Self {
        Self { seconds, started: Instant::now(), ..self }
    }

    /// Minutes that the rest takes, after `step` steps at `rate` steps a second.
    fn minutes_left(&self, step: u64, rate: f64) -> f64 {
        let left = self.total.saturating_sub(step) as f64 / rate.max(1e-9);
        let time = |seconds: f64| (seconds - self.started.elapsed().as_secs_f64()).max(0.0);
        self.seconds.map_or(left, |seconds| left.min(time(seconds))) / 60.0
    }

    /// Reports a finished step and its figures.
    pub fn step(&self, step: u64, figures: &[(&str, f64)]) {
        let text: Vec<String> =
            figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let text = text.join(", ");
        let rate = (step - self.first) as f64 / self.started.elapsed().as_secs_f64();
        let left = self.minutes_left(step, rate);
        self.bar.set_position(step);
        self.bar.set_message(format!("{left:.0} min left: {text}"));
        if !self.terminal && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            eprintln!("step {step}/{} ({rate:.2}/s, {left:.0} min left): {text}", self.total);
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        if self.terminal { self.bar.println(text) } else { eprintln!("{text}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_time_has_no_more_left_than_that() {
        let progress = Progress::new("work", 100, 10, 0);
        assert_eq!(progress.minutes_left(40, 0.5), 2.0);
        let progress = progress.within(Some(60.0));
        assert!((0.9..=1.0).contains(&progress.minutes_left(40, 0.5)));
        assert_eq!(progress.minutes_left(100, 0.5), 0.0);
        assert_eq!(progress.within(Some(0.0)).minutes_left(40, 0.5), 0.0);
    }
}
