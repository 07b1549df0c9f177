// SPDX-License-Identifier: MPL-2.0
//! The default model's tokenizer: a unigram model in the layout of T5 and UMT5.
//!
//! Every word of the captions is a piece of its own; single characters take up what else is typed, so only
//! what is not ASCII is unknown. Text is brought to lower case first.

use super::words::{self, Phrases};
use crate::training::world::{Background, Colour, Motion, Shape, Style};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The most tokens a prompt has, the closing one included.
pub const MAX_TOKENS: usize = 64;

/// Marks the beginning of a word within a piece.
const BOUNDARY: char = '\u{2581}';
/// Ids 0 to 3.
const SPECIAL: [&str; 4] = ["<pad>", "</s>", "<s>", "<unk>"];
/// Endings that let forms of known words stay short.
const ENDINGS: [&str; 6] = ["s", "es", "ed", "er", "ing", "ly"];

/// Logarithms of probabilities: a word always beats its spelling.
const WORD_SCORE: f64 = -5.0;
const ENDING_SCORE: f64 = -7.5;
const CHARACTER_SCORE: f64 = -10.0;

/// The contents of `tokenizer.json`.
pub fn build_tokenizer_json() -> Value {
    let vocabulary: Vec<Value> =
        vocabulary().into_iter().map(|(piece, score)| json!([piece, score])).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let metaspace = json!({
        "type": "Metaspace", "replacement": BOUNDARY, "prepend_scheme": "always", "split": true,
    });
    let first = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let second = json!({ "Sequence": { "id": "B", "type_id": 0 } });
    let end = json!({ "SpecialToken": { "id": "</s>", "type_id": 0 } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence", "normalizers": [{ "type": "NFKC" }, { "type": "Lowercase" }],
        },
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": { "</s>": { "id": "</s>", "ids": [1], "tokens": ["</s>"] } },
        },
        "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": false },
    })
}

/// The contents of `tokenizer_config.json`.
pub fn tokenizer_config_json() -> Value {
    json!({
        "tokenizer_class": "T5TokenizerFast",
        "model_max_length": MAX_TOKENS,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "unk_token": "<unk>",
        "extra_ids": 0,
    })
}

/// Pieces and their scores, in the order of their ids.
fn vocabulary() -> Vec<(String, f64)> {
    let mut pieces: Vec<(String, f64)> =
        SPECIAL.iter().map(|piece| ((*piece).to_owned(), 0.0)).collect();
    let words = all_words();
    pieces.extend(words.iter().map(|word| (format!("{BOUNDARY}{word}"), WORD_SCORE)));
    pieces.extend(ENDINGS[1..].iter().map(|ending| ((*ending).to_owned(), ENDING_SCORE)));
    pieces.push((BOUNDARY.to_string(), ENDING_SCORE));
    // Upper case never comes here.
    let characters = ('!'..='~').filter(|c| !c.is_ascii_uppercase());
    for character in characters {
        let score = match character {
            '.' | ',' | ':' => WORD_SCORE,
            's' => ENDING_SCORE,
            _ => CHARACTER_SCORE,
        };
        pieces.push((character.to_string(), score));
    }
    pieces
}

/// Every word that a caption can have, in alphabetical order.
fn all_words() -> BTreeSet<&'static str> {
    fn of<T: Copy>(values: &'static [T], table: fn(T) -> Phrases) -> Vec<&'static str> {
        values.iter().flat_map(|value| table(*value).iter().copied()).collect()
    }
    let mut phrases = [
        of(Colour::ALL, words::colour),
        of(Shape::ALL, words::shape),
        of(Motion::ALL, words::doing),
        of(Motion::ALL, words::does),
        of(Motion::ALL, words::motion_sentences),
        of(Background::ALL, words::place),
        of(Background::ALL, words::scenery),
        of(Background::ALL, words::place_sentences),
        of(Style::ALL, words::look),
        of(Style::ALL, words::look_sentences),
    ]
    .concat();
    phrases.extend(words::OBJECTS.iter().chain(words::OPENINGS).chain(words::SMALL_WORDS));
    phrases.extend(words::TEMPLATES.iter().flat_map(|(segments, _)| segments.iter()));
    phrases
        .into_iter()
        .flat_map(|phrase| phrase.split(' '))
        // Slots of templates are no words.
        .filter(|word| !word.is_empty() && !word.starts_with('{'))
        .collect()
}
