// SPDX-License-Identifier: MPL-2.0
//! Text embeddings of the reference, from prompt or from ids, in the pipeline fixtures.

mod common;

use common::{Golden, Report};
use gstdit::models::tokenizer::PromptTokenizer;
use gstdit::models::umt5::{UMT5EncoderModel, Umt5Config};
use gstdit::weights::{Checkpoint, Source};
use tch::{Device, Kind, Tensor};

/// The bar for single stages.
const TOLERANCE: f64 = 2e-5;

fn load(golden: &Golden, kind: Kind) -> UMT5EncoderModel {
    let folder = golden.folder.join("text_encoder");
    let json = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let config: Umt5Config = serde_json::from_str(&json).unwrap();
    let source = Source::frozen(Checkpoint::open(&folder, "model").unwrap());
    let model = UMT5EncoderModel::new(&source.weights(kind, Device::Cpu), &config).unwrap();
    source.check_all_used(UMT5EncoderModel::may_ignore).unwrap();
    model
}

fn check_folder(name: &str) {
    let golden = Golden::load(name);
    let model = load(&golden, Kind::Float);
    let tokenizer = PromptTokenizer::from_folder(&golden.folder.join("tokenizer")).unwrap();
    let mut report = Report::default();
    for case in golden.of_kind("text") {
        let max_length = case.count("max_sequence_length");
        let (ids, mask) = (golden.tensor(&case.key("ids")), golden.tensor(&case.key("mask")));
        let embeds = case.key("embeds");

        let tokens = tokenizer.encode(case.text("text").unwrap(), max_length).unwrap();
        let (padded, padded_mask) = tokens.padded(max_length);
        report.compare(&case.key("ids"), &ids.flatten(0, -1), &Tensor::from_slice(&padded), 0.0);
        report.compare(
            &case.key("mask"),
            &mask.flatten(0, -1),
            &Tensor::from_slice(&padded_mask),
            0.0,
        );
        report.check(&golden, &embeds, &model.encode(&tokens.ids, max_length as i64), TOLERANCE);

        // The same on padded ids, with the rows after the last token set to zero by hand.
        let masked = model.forward(ids, Some(mask)) * mask.unsqueeze(-1);
        report.check(&golden, &embeds, &masked, TOLERANCE);
    }
    report.finish(&format!("{name} text"));
}

#[test]
fn t2v_embeddings_match_the_reference() {
    check_folder("t2v_public");
}

#[test]
fn ti2v_embeddings_match_the_reference() {
    check_folder("ti2v_public");
}

#[test]
fn bfloat16_stays_near_the_reference() {
    let golden = Golden::load("t2v_public");
    let model = load(&golden, Kind::BFloat16);
    for case in golden.of_kind("text") {
        let expected = golden.tensor(&case.key("embeds"));
        let found =
            model.forward(golden.tensor(&case.key("ids")), Some(golden.tensor(&case.key("mask"))));
        let found = found.to_kind(Kind::Float) * golden.tensor(&case.key("mask")).unsqueeze(-1);
        let deviation = common::deviation(expected, &found).unwrap();
        assert!(deviation < 0.05, "{}: {deviation}", case.name);
    }
}
