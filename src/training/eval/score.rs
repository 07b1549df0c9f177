// SPDX-License-Identifier: MPL-2.0
//! Right answers and what they say about a model: accuracies with their intervals.

use serde_json::{Map, Value, json};

use crate::training::judge::ATTRIBUTES;

/// Right answers out of those the judge decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Score {
    pub right: u64,
    pub judged: u64,
}

impl Score {
    pub fn add(&mut self, verdict: Option<bool>) {
        if let Some(right) = verdict {
            self.judged += 1;
            self.right += u64::from(right);
        }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { right: self.right + other.right, judged: self.judged + other.judged }
    }

    /// Accuracy and its 95 % interval (Wilson, JASA 22, 1927), as fractions; the whole range when nothing was judged.
    pub fn interval(self) -> (f64, f64, f64) {
        if self.judged == 0 {
            return (0.0, 0.0, 1.0);
        }
        let (n, z) = (self.judged as f64, 1.96);
        let p = self.right as f64 / n;
        let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / (1.0 + z * z / n);
        (p, (centre - half).max(0.0), (centre + half).min(1.0))
    }

    /// As tables show it.
    pub fn cell(self) -> String {
        if self.judged == 0 {
            return "-".to_owned();
        }
        let (p, low, high) = self.interval();
        format!("{:.1} % ({:.0} to {:.0})", 100.0 * p, 100.0 * low, 100.0 * high)
    }

    pub fn json(self) -> Value {
        let (accuracy, low, high) = self.interval();
        json!({ "right": self.right, "judged": self.judged, "accuracy": accuracy, "low": low, "high": high })
    }
}

/// A score for each attribute, in the order of [`ATTRIBUTES`], and one for clips in which all of them are right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Scores {
    pub each: [Score; ATTRIBUTES.len()],
    pub all: Score,
}

impl Scores {
    /// Adds one clip; true when nothing in it was judged wrong.
    pub fn add(&mut self, answers: [Option<bool>; ATTRIBUTES.len()]) -> bool {
        for (score, answer) in self.each.iter_mut().zip(answers) {
            score.add(answer);
        }
        let all = answers.iter().all(|answer| *answer != Some(false));
        self.all.add(Some(all));
        all
    }

    /// Names and scores, that of whole clips last.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, Score)> {
        let each = ATTRIBUTES.iter().copied().zip(self.each);
        each.chain(std::iter::once(("all", self.all)))
    }

    pub fn json(&self) -> Value {
        Value::Object(
            self.named()
                .map(|(name, score)| (name.to_owned(), score.json()))
                .collect::<Map<_, _>>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_wilsons() {
        // 8 of 10: 0.490 to 0.943 in Wilson's formula with z = 1.96.
        let (p, low, high) = Score { right: 8, judged: 10 }.interval();
        assert!(
            (p - 0.8).abs() < 1e-12 && (low - 0.490).abs() < 1e-3 && (high - 0.943).abs() < 1e-3
        );
        let (_, low, high) = Score { right: 0, judged: 50 }.interval();
        assert!(low == 0.0 && (high - 0.0713).abs() < 1e-3, "{high}");
        assert_eq!(Score::default().interval(), (0.0, 0.0, 1.0));
    }

    #[test]
    fn undecided_attributes_count_neither_way() {
        let mut scores = Scores::default();
        assert!(scores.add([None, Some(true), Some(true), Some(true), Some(true)]));
        assert!(!scores.add([Some(false), Some(true), Some(true), Some(true), Some(true)]));
        assert_eq!(scores.each[0], Score { right: 0, judged: 1 });
        assert_eq!(scores.all, Score { right: 1, judged: 2 });
    }
}
