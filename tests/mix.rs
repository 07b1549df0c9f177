// SPDX-License-Identifier: MPL-2.0
//! Mixing two videos with the real engine: chunks that continue each other, reproducibility, cancelling, bridges.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::{fixture, load, rolling_folders};
use gstdit::error::Error;
use gstdit::pipeline::{
    EmbeddingCache, LatentMixer, MixControls, MixFrame, Pipeline, RgbFrame, bridge, difference,
};

const SIZE: usize = 32;

fn never() -> bool {
    false
}

/// A gradient with a square that moves; `kind` tells clips apart.
fn frame(kind: u8, number: usize) -> Arc<RgbFrame> {
    let mut data = Vec::with_capacity(SIZE * SIZE * 3);
    for y in 0..SIZE {
        for x in 0..SIZE {
            let inside = (number..number + 8).contains(&x) && (4..20).contains(&y);
            data.extend([if inside { 255 - kind } else { kind }, (x * 7) as u8, (y * 7) as u8]);
        }
    }
    Arc::new(RgbFrame { width: SIZE, height: SIZE, data })
}

fn pairs(frames: std::ops::Range<usize>, share: f64) -> Vec<MixFrame> {
    frames.map(|number| MixFrame { a: frame(20, number), b: frame(200, number), share }).collect()
}

fn controls(seed: u64) -> MixControls {
    MixControls {
        prompts: ["a fox".into(), "a boat on the sea".into()],
        negative_prompt: String::new(),
        guidance_scale: Some(1.0),
        seed,
        num_inference_steps: 3,
        creativity: 0.7,
    }
}

/// Chunks of these lengths.
fn mixed(pipeline: &Pipeline, lengths: &[usize], share: f64, seed: u64) -> Vec<RgbFrame> {
    let mut mixer = LatentMixer::new(pipeline, (SIZE as i64, SIZE as i64)).unwrap();
    let mut texts = EmbeddingCache::default();
    let mut start = 0;
    let mut frames = Vec::new();
    for length in lengths {
        let chunk = pairs(start..start + length, share);
        let made = mixer.next_chunk(pipeline, &chunk, &controls(seed), (&mut texts, &never));
        frames.extend(made.unwrap().frames);
        start += length;
    }
    frames
}

/// The largest difference of a byte.
fn apart(one: &[RgbFrame], other: &[RgbFrame]) -> u8 {
    assert_eq!(one.len(), other.len());
    let bytes =
        |frames: &[RgbFrame]| frames.iter().flat_map(|it| it.data.clone()).collect::<Vec<_>>();
    let (one, other) = (bytes(one), bytes(other));
    one.iter().zip(&other).map(|(one, other)| one.abs_diff(*other)).max().unwrap_or(0)
}

#[test]
fn every_kind_of_folder_mixes_and_the_seed_decides() {
    let _guard = tch::no_grad_guard();
    for folder in rolling_folders() {
        let pipeline = load(folder.path());
        let once = mixed(&pipeline, &[1, 4, 4], 0.4, 1);
        assert_eq!(once.len(), 9);
        assert_eq!(once, mixed(&pipeline, &[1, 4, 4], 0.4, 1));
        assert_ne!(once, mixed(&pipeline, &[1, 4, 4], 0.4, 2));
        assert_ne!(once, mixed(&pipeline, &[1, 4, 4], 0.6, 1));
    }
}

#[test]
fn a_causal_stream_mixes_as_the_whole() {
    let _guard = tch::no_grad_guard();
    for folder in rolling_folders() {
        let pipeline = load(folder.path());
        if pipeline.info().native.causal {
            let whole = mixed(&pipeline, &[9], 0.4, 1);
            // Sums in another order may round to the next byte.
            assert!(apart(&whole, &mixed(&pipeline, &[1, 4, 4], 0.4, 1)) <= 1);
        }
    }
}

#[test]
fn a_cancelled_chunk_leaves_no_trace() {
    let _guard = tch::no_grad_guard();
    let pipeline = load(&fixture("t2v_public"));
    let expected = mixed(&pipeline, &[1, 4], 0.5, 1);
    let mut mixer = LatentMixer::new(&pipeline, (SIZE as i64, SIZE as i64)).unwrap();
    let mut texts = EmbeddingCache::default();
    let first = pairs(0..1, 0.5);
    let mut frames =
        mixer.next_chunk(&pipeline, &first, &controls(1), (&mut texts, &never)).unwrap().frames;
    let second = pairs(1..5, 0.5);
    for patience in [0, 1, 3, 6] {
        let asked = Cell::new(0);
        let cancel = || {
            asked.set(asked.get() + 1);
            asked.get() > patience
        };
        let result = mixer.next_chunk(&pipeline, &second, &controls(1), (&mut texts, &cancel));
        assert!(matches!(result, Err(Error::Cancelled)), "patience {patience}");
    }
    let made = mixer.next_chunk(&pipeline, &second, &controls(1), (&mut texts, &never));
    frames.extend(made.unwrap().frames);
    assert_eq!(frames, expected);
}

#[test]
fn a_bridge_has_as_many_frames_as_are_missing() {
    let _guard = tch::no_grad_guard();
    let size = (SIZE as i64, SIZE as i64);
    let before: Vec<_> = (0..7).map(|number| frame(20, number)).collect();
    let after: Vec<_> = (0..5).map(|number| frame(200, number)).collect();
    for name in common::FOLDERS {
        let pipeline = load(&fixture(name));
        for gap in [1, 4, 6] {
            let make = |seed| {
                let mut texts = EmbeddingCache::default();
                let help: (&mut EmbeddingCache, &dyn Fn() -> bool) = (&mut texts, &never);
                bridge(&pipeline, (&before, &after), (gap, size), &controls(seed), help).unwrap()
            };
            let frames = make(1);
            assert_eq!(frames.len(), gap);
            assert_eq!(frames, make(1));
            assert_ne!(frames, make(2));
        }
        let mut texts = EmbeddingCache::default();
        let help: (&mut EmbeddingCache, &dyn Fn() -> bool) = (&mut texts, &never);
        let none = bridge(&pipeline, (&[], &after), (4, size), &controls(1), help);
        assert!(matches!(none, Err(Error::Setting { .. })));
    }
}

#[test]
fn a_bridge_begins_and_ends_beside_what_is_known() {
    let _guard = tch::no_grad_guard();
    let pipeline = load(&fixture("ti2v_public"));
    let before: Vec<_> = (0..5).map(|number| frame(20, number)).collect();
    let after: Vec<_> = (0..4).map(|number| frame(200, number)).collect();
    let mut texts = EmbeddingCache::default();
    let help: (&mut EmbeddingCache, &dyn Fn() -> bool) = (&mut texts, &never);
    let size = (SIZE as i64, SIZE as i64);
    let made = bridge(&pipeline, (&before, &after), (8, size), &controls(1), help).unwrap();
    // Such weights make no pictures, near to what is known or not: what is nearer there is what was given back.
    let middle = &made[4];
    for (known, beside) in [(&before[4], &made[0]), (&after[0], &made[7])] {
        let (step, far) = (difference(known, beside), difference(known, middle));
        assert!(step < 0.85 * far, "{step} beside it, {far} half-way");
    }
}

#[test]
fn frames_that_do_not_fit_are_an_error() {
    let _guard = tch::no_grad_guard();
    let pipeline = load(&fixture("t2v_public"));
    let mut mixer = LatentMixer::new(&pipeline, (SIZE as i64, SIZE as i64)).unwrap();
    let mut texts = EmbeddingCache::default();
    let three = pairs(0..3, 0.5);
    let result = mixer.next_chunk(&pipeline, &three, &controls(1), (&mut texts, &never));
    assert!(matches!(result, Err(Error::Setting { .. })));
}
