// SPDX-License-Identifier: MPL-2.0
//! What captions promise: the canonical form, shares of each kind, words the tokenizer knows.

use super::*;
use crate::training::world::{Background, Colour, Motion, Scene, Shape, Split};
use std::collections::HashSet;
use tokenizers::Tokenizer;

const COUNT: u64 = 10_000;

fn attributes() -> Attributes {
    Attributes {
        colour: Colour::Red,
        shape: Shape::Circle,
        motion: Motion::MovingRight,
        background: Background::Sea,
        style: Style::PixelArt,
    }
}

fn many() -> impl Iterator<Item = (Attributes, Captioned)> {
    (0..COUNT).map(|index| {
        let attributes = Scene::from_index(index, Split::Train).attributes;
        (attributes, captioned(&attributes, index))
    })
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(build_tokenizer_json().to_string()).expect("the tokenizer we write")
}

#[test]
fn canonical_has_the_documented_form() {
    let mut it = attributes();
    assert_eq!(canonical(&it), "a red circle moving right over the sea, pixel art");
    it.style = Style::None;
    it.colour = Colour::Orange;
    assert_eq!(canonical(&it), "an orange circle moving right over the sea");
    it.background = Background::Night;
    assert_eq!(canonical(&it), "an orange circle moving right over the night");
}

#[test]
fn the_same_seed_gives_the_same_caption() {
    let it = attributes();
    assert_eq!(captioned(&it, 7), captioned(&it, 7));
    let distinct: HashSet<String> = (0..200).map(|seed| caption(&it, seed)).collect();
    assert!(distinct.len() > 80, "{} distinct captions of 200", distinct.len());
}

#[test]
fn each_kind_has_its_share() {
    let (mut empty, mut partial, mut canon, mut lengthy) = (0, 0, 0, 0);
    for (attributes, it) in many() {
        if it.caption.is_empty() {
            empty += 1;
        } else if it.mentioned != Mentioned::ALL {
            partial += 1;
        } else if it.caption.replacen("a ", "an ", 1)
            == canonical(&attributes).replacen("a ", "an ", 1)
        {
            canon += 1;
        } else if it.caption.split(' ').count() > 24 {
            lengthy += 1;
        }
    }
    let share = |count: i32| f64::from(count) / COUNT as f64;
    assert!((share(empty) - 0.1).abs() < 0.01, "empty: {empty}");
    assert!((share(partial) - 1.0 / 3.0).abs() < 0.02, "partial: {partial}");
    assert!((share(canon) - 0.19).abs() < 0.03, "canonical: {canon}");
    assert!(share(lengthy) > 0.1, "long: {lengthy}");
}

#[test]
fn captions_are_clean_lower_case_ascii() {
    for (attributes, it) in many() {
        let text = &it.caption;
        assert!(text.is_ascii() && !text.chars().any(|c| c.is_ascii_uppercase()), "{text:?}");
        for bad in ["  ", " ,", " .", ",,", "{", "}", "..", " :"] {
            assert!(!text.contains(bad), "{text:?} of {attributes:?} contains {bad:?}");
        }
        assert!(
            !text.starts_with(['.', ',', ':', ' ']) && !text.ends_with([',', ':', ' ']),
            "{text:?}"
        );
        assert_eq!(text.is_empty(), it.mentioned == Mentioned::NONE, "{text:?}");
    }
}

#[test]
fn what_is_left_out_is_not_named() {
    for (attributes, it) in many().filter(|(_, it)| it.mentioned != Mentioned::ALL) {
        let words: Vec<&str> = it.caption.split([' ', ',', '.', ':']).collect();
        // Words that no other attribute uses.
        if !it.mentioned.shape && attributes.shape == Shape::Triangle {
            assert!(!words.contains(&"triangle"), "{:?}", it.caption);
        }
        if !it.mentioned.colour && attributes.colour == Colour::Purple {
            assert!(!words.contains(&"purple"), "{:?}", it.caption);
        }
        if !it.mentioned.background && attributes.background == Background::Desert {
            assert!(!words.contains(&"desert"), "{:?}", it.caption);
        }
        if !it.mentioned.style && attributes.style == Style::Jungle {
            assert!(!words.contains(&"jungle"), "{:?}", it.caption);
        }
    }
}

#[test]
fn the_tokenizer_knows_every_caption() {
    let tokenizer = tokenizer();
    let mut longest = 0;
    for (_, it) in many() {
        let encoding = tokenizer.encode(it.caption.as_str(), true).expect("encodes");
        let ids = encoding.get_ids();
        assert!(
            !ids.contains(&3),
            "unknown piece in {:?}: {:?}",
            it.caption,
            encoding.get_tokens()
        );
        assert_eq!(ids.last(), Some(&1), "closing token of {:?}", it.caption);
        // Whole words and punctuation: no caption is spelt.
        let words = it.caption.split(' ').filter(|word| !word.is_empty()).count();
        let marks = it.caption.chars().filter(char::is_ascii_punctuation).count();
        assert_eq!(ids.len(), words + marks + 1, "{:?}", encoding.get_tokens());
        longest = longest.max(ids.len());
    }
    assert!(longest <= MAX_TOKENS, "{longest} tokens");
}

#[test]
fn the_tokenizer_has_the_layout_of_t5() {
    let tokenizer = tokenizer();
    for (id, piece) in ["<pad>", "</s>", "<s>", "<unk>"].into_iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(piece), Some(id as u32));
    }
    let size = tokenizer.get_vocab_size(true);
    assert!((256..=512).contains(&size), "{size} pieces");
    let encoding = tokenizer.encode("A Red KITTEN!", true).expect("encodes");
    assert!(!encoding.get_ids().contains(&3), "{:?}", encoding.get_tokens());
    assert_eq!(tokenizer.encode("", true).expect("encodes").get_ids(), [1]);
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).expect("decodes"), "a red kitten!");
}
