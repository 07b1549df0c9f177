// SPDX-License-Identifier: MPL-2.0
//! Right answers and what they say about a model: accuracies with their intervals.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::training::judge::{ATTRIBUTES, Verdict};
use crate::training::world::Attributes;

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

/// What was seen where a word was wanted, for every word of every attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// By attribute (a place in [`ATTRIBUTES`]) and wanted word: how often each word was seen.
    seen: BTreeMap<(usize, &'static str), BTreeMap<&'static str, u64>>,
}

impl Words {
    /// Adds one clip, as far as `answers` has its attributes judged.
    pub fn add(
        &mut self,
        wanted: &Attributes,
        verdict: &Verdict,
        answers: [Option<bool>; ATTRIBUTES.len()],
    ) {
        let pairs = wanted.names().into_iter().zip(verdict.names());
        for (at, (wanted, seen)) in pairs.enumerate().filter(|(at, _)| answers[*at].is_some()) {
            *self.seen.entry((at, wanted)).or_default().entry(seen).or_default() += 1;
        }
    }

    fn scores(&self) -> impl Iterator<Item = (usize, &'static str, Score)> + '_ {
        self.seen.iter().map(|((at, word), seen)| {
            let right = seen.get(word).copied().unwrap_or(0);
            (*at, *word, Score { right, judged: seen.values().sum() })
        })
    }

    /// The words that are least often right, as tables show them.
    pub fn weakest(&self, count: usize) -> String {
        let mut scores: Vec<(&str, Score)> =
            self.scores().map(|(_, word, score)| (word, score)).collect();
        scores.sort_by(|(_, a), (_, b)| a.interval().0.total_cmp(&b.interval().0));
        let worst = scores.iter().take(count);
        let worst = worst.map(|(word, s)| format!("{word} {} of {}", s.right, s.judged));
        worst.collect::<Vec<_>>().join(", ")
    }

    /// By attribute and word: right answers, judged ones, and what was seen how often.
    pub fn json(&self) -> Value {
        let mut json = Map::new();
        for (at, word, score) in self.scores() {
            let of_attribute = json.entry(ATTRIBUTES[at]).or_insert_with(|| json!({}));
            of_attribute[word] = json!({ "right": score.right, "judged": score.judged, "seen": self.seen[&(at, word)] });
        }
        Value::Object(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::world::{Scene, Split};

    #[test]
    fn words_tell_what_was_seen_instead() {
        let wanted = Scene::from_index(0, Split::Any).attributes;
        let mut verdict = Verdict {
            colour: Some(wanted.colour),
            shape: None,
            motion: Some(wanted.motion),
            background: Some(wanted.background),
            style: Some(wanted.style),
        };
        let mut words = Words::default();
        words.add(&wanted, &verdict, verdict.compare(&wanted));
        verdict.shape = Some(wanted.shape);
        words.add(&wanted, &verdict, [None, Some(true), None, None, None]);
        let json = words.json();
        let shape = &json["shape"][wanted.shape.name()];
        assert_eq!((&shape["right"], &shape["judged"]), (&json!(1), &json!(2)));
        assert_eq!(shape["seen"]["nothing"], json!(1));
        assert_eq!(json["motion"][wanted.motion.name()]["judged"], json!(1));
        assert_eq!(words.weakest(1), format!("{} 1 of 2", wanted.shape.name()));
    }

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
