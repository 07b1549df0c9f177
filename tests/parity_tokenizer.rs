// SPDX-License-Identifier: MPL-2.0
//! Cleaning and encoding of every text in `tokenizer_cases.json` of the pipeline fixtures.

mod common;

use gstdit::models::tokenizer::PromptTokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct TokenizerCase {
    text: String,
    cleaned: String,
    ids_16: Vec<i64>,
    len_16: usize,
    ids_64: Vec<i64>,
    len_64: usize,
}

fn check_folder(name: &str) {
    let folder = common::fixture(name);
    let tokenizer = PromptTokenizer::from_folder(&folder.join("tokenizer")).unwrap();
    let json = std::fs::read_to_string(folder.join("tokenizer_cases.json")).unwrap();
    let cases: Vec<TokenizerCase> = serde_json::from_str(&json).unwrap();
    assert!(!cases.is_empty());
    for case in &cases {
        assert_eq!(PromptTokenizer::clean(&case.text), case.cleaned, "{:?}", case.text);
        for (max_length, ids, len) in
            [(16, &case.ids_16, case.len_16), (64, &case.ids_64, case.len_64)]
        {
            let tokens = tokenizer.encode(&case.text, max_length).unwrap();
            let (padded, mask) = tokens.padded(max_length);
            assert_eq!(&padded, ids, "{:?} at {max_length}", case.text);
            assert_eq!(tokens.len(), len, "{:?} at {max_length}", case.text);
            assert_eq!(mask.iter().sum::<i64>(), len as i64, "{:?} at {max_length}", case.text);
        }
    }
    println!("{name}: {} texts", cases.len());
}

#[test]
fn t2v_texts_match_the_reference() {
    check_folder("t2v_public");
}

#[test]
fn ti2v_texts_match_the_reference() {
    check_folder("ti2v_public");
}

#[test]
fn no_room_for_the_end_token_is_an_error() {
    let tokenizer =
        PromptTokenizer::from_folder(&common::fixture("t2v_public").join("tokenizer")).unwrap();
    assert!(tokenizer.encode("a fox", 0).is_err());
    assert_eq!(tokenizer.encode("a fox", 1).unwrap().ids, [1]);
}
