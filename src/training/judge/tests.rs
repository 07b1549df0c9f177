// SPDX-License-Identifier: MPL-2.0
//! What the judge promises: true clips are judged true, wrong words wrong, and nothing is seen in nothing.

use super::*;
use crate::training::world::draw::Draws;
use crate::training::world::{Scene, Split};

const SIDE: usize = 96;

fn clip(scene: &Scene) -> Vec<u8> {
    scene.render(SIDE, SIDE, 17, 0, 16.0)
}

/// How many of the clips are judged wrong, per attribute, after `change` has been at their pixels.
fn mistakes(indices: std::ops::Range<u64>, change: fn(Vec<u8>) -> Vec<u8>) -> [usize; 5] {
    let mut wrong = [0; 5];
    for index in indices {
        let scene = Scene::from_index(index, Split::Any);
        let verdict = judge(&change(clip(&scene)), SIDE, SIDE);
        for (count, right) in wrong.iter_mut().zip(verdict.compare(&scene.attributes)) {
            *count += usize::from(right == Some(false));
        }
    }
    wrong
}

/// Every pixel the mean of its neighbourhood, with a little noise: what a decoder may do to a clip.
fn soften(pixels: Vec<u8>) -> Vec<u8> {
    let mut draws = Draws::new(5);
    let line = SIDE * 3;
    (0..pixels.len())
        .map(|at| {
            let (frame, within) = (at / (line * SIDE), at % (line * SIDE));
            let (y, x, k) = (within / line, within % line / 3, within % 3);
            let mut sum = 0.0;
            for dy in [y.saturating_sub(1), y, (y + 1).min(SIDE - 1)] {
                for dx in [x.saturating_sub(1), x, (x + 1).min(SIDE - 1)] {
                    sum += f32::from(pixels[(frame * SIDE + dy) * line + dx * 3 + k]);
                }
            }
            (sum / 9.0 + draws.between(-5.0, 5.0)).clamp(0.0, 255.0) as u8
        })
        .collect()
}

#[test]
fn true_clips_are_judged_true() {
    let wrong = mistakes(0..50, |pixels| pixels);
    assert!(wrong.iter().all(|count| *count <= 1), "{ATTRIBUTES:?}: {wrong:?} of 50 wrong");
}

#[test]
fn soft_and_noisy_clips_are_mostly_judged_true() {
    let wrong = mistakes(100..130, soften);
    assert!(wrong.iter().all(|count| *count <= 3), "{ATTRIBUTES:?}: {wrong:?} of 30 wrong");
}

/// Size of the default model's clips.
const NATIVE: (usize, usize) = (224, 128);

/// A held-out clip at the default model's size, and what it shows.
fn held_out(index: u64) -> (Attributes, Vec<u8>) {
    let scene = Scene::from_index(index, Split::HeldOut);
    (scene.attributes, scene.render(NATIVE.0, NATIVE.1, 17, 0, 16.0))
}

/// Blocks of the pitch of pixel art, a little lighter and darker by turns: the grid that a decoder may leave.
fn with_faint_grid(pixels: Vec<u8>) -> Vec<u8> {
    let block = |at: usize| at * 16 / SIDE;
    let shade = |at: usize| [-2i16, 2][(block(at / 3 % SIDE) + block(at / 3 / SIDE % SIDE)) % 2];
    let shaded = pixels.iter().enumerate().map(|(at, v)| (i16::from(*v) + shade(at)).clamp(0, 255));
    shaded.map(|v| v as u8).collect()
}

#[test]
fn a_faint_grid_is_no_pixel_art() {
    let wrong = mistakes(0..30, |pixels| with_faint_grid(soften(pixels)));
    assert!(wrong[3..].iter().all(|count| *count <= 1), "{ATTRIBUTES:?}: {wrong:?} of 30 wrong");
}

#[test]
fn held_out_clips_are_judged_true_98_times_in_100() {
    const CLIPS: u64 = 100;
    let mut wrong = [0; 5];
    for index in 0..CLIPS {
        let (wanted, pixels) = held_out(index);
        for (count, right) in
            wrong.iter_mut().zip(judge(&pixels, NATIVE.0, NATIVE.1).compare(&wanted))
        {
            *count += u64::from(right == Some(false));
        }
    }
    assert!(wrong.iter().all(|count| *count * 50 <= CLIPS), "{ATTRIBUTES:?}: {wrong:?} of {CLIPS}");
}

#[test]
fn clips_of_other_attributes_are_judged_wrong() {
    // Every attribute of a clip against those of the next one: what differs must not pass.
    let (mut differ, mut passed) = ([0; 5], [0; 5]);
    for index in 300..330 {
        let (_, pixels) = held_out(index);
        let (shown, wanted) = (held_out(index).0, held_out(index + 1).0);
        let judged = judge(&pixels, NATIVE.0, NATIVE.1).compare(&wanted);
        let differs = [
            shown.colour != wanted.colour && wanted.style != Style::Film,
            shown.shape != wanted.shape,
            shown.motion != wanted.motion,
            shown.background != wanted.background,
            shown.style != wanted.style,
        ];
        for k in (0..5).filter(|k| differs[*k]) {
            differ[k] += 1;
            passed[k] += usize::from(judged[k] == Some(true));
        }
    }
    assert!(differ.iter().all(|count| *count > 10), "{differ:?}");
    assert!(passed.iter().all(|count| *count <= 1), "{ATTRIBUTES:?}: {passed:?} of {differ:?}");
}

#[test]
fn a_frozen_clip_moves_no_object() {
    for index in 400..412 {
        let (wanted, pixels) = held_out(index);
        let frame = &pixels[..NATIVE.0 * NATIVE.1 * 3];
        let seen = judge(&frame.repeat(17), NATIVE.0, NATIVE.1);
        assert!(matches!(seen.motion, None | Some(Motion::Still)), "{wanted:?}: {seen:?}");
    }
}

#[test]
fn wrong_words_are_judged_wrong() {
    for index in 200..212 {
        let scene = Scene::from_index(index, Split::Any);
        let verdict = judge(&clip(&scene), SIDE, SIDE);
        let true_words = scene.attributes;
        for other in 0..40 {
            let words = Attributes::from_number(other * 487 + index);
            let judged = verdict.compare(&words);
            let differ = [
                words.colour != true_words.colour,
                words.shape != true_words.shape,
                words.motion != true_words.motion,
                words.background != true_words.background,
                words.style != true_words.style,
            ];
            for k in 0..5 {
                let film = k == 0 && words.style == Style::Film;
                assert!(
                    !differ[k] || film || judged[k] == Some(false),
                    "{true_words:?}, {words:?}"
                );
            }
        }
    }
}

#[test]
fn time_runs_forwards() {
    for (motion, backwards) in [
        (Motion::MovingRight, Motion::MovingLeft),
        (Motion::Rising, Motion::Falling),
        (Motion::Growing, Motion::Shrinking),
    ] {
        let attributes = Attributes {
            colour: Colour::Red,
            shape: Shape::Heart,
            motion,
            background: Background::Sky,
            style: Style::None,
        };
        let pixels = clip(&Scene::with_attributes(attributes, 3));
        assert_eq!(judge(&pixels, SIDE, SIDE).motion, Some(motion));
        let frames = pixels.chunks_exact(SIDE * SIDE * 3);
        let reversed: Vec<u8> = frames.rev().flatten().copied().collect();
        assert_eq!(judge(&reversed, SIDE, SIDE).motion, Some(backwards));
    }
}

/// The same scene without its object, which is far outside of the frame.
fn without_object(mut scene: Scene) -> Scene {
    scene.nearness = 0.01;
    scene.start = [0.9, 0.9];
    scene
}

#[test]
fn where_no_object_is_none_is_seen() {
    let mut seen = 0;
    for index in 0..60 {
        let scene = without_object(Scene::from_index(5_000 + index, Split::HeldOut));
        let verdict = judge(&scene.render(NATIVE.0, NATIVE.1, 17, 0, 16.0), NATIVE.0, NATIVE.1);
        assert_eq!(verdict.background, Some(scene.attributes.background), "{:?}", scene.attributes);
        seen += u64::from(verdict.shape.is_some() || verdict.colour.is_some());
    }
    assert!(seen <= 1, "{seen} of 60");
}

#[test]
fn an_object_that_vanishes_has_neither_shape_nor_colour() {
    let mut seen = 0;
    for index in 600..612 {
        let scene = Scene::from_index(index, Split::HeldOut);
        let (there, gone) = (held_out(index).1, without_object(scene));
        let gone = gone.render(NATIVE.0, NATIVE.1, 17, 0, 16.0);
        let half = 8 * NATIVE.0 * NATIVE.1 * 3;
        let verdict = judge(&[&there[..half], &gone[half..]].concat(), NATIVE.0, NATIVE.1);
        seen += u64::from(verdict.shape.is_some() || verdict.colour.is_some());
    }
    // A star of a night in blocks may take its place.
    assert!(seen <= 1, "{seen} of 12");
}

#[test]
fn objects_like_their_background_are_found() {
    use Background::{Night, Snow};
    use Motion::{Bouncing, Falling, MovingLeft, Still};
    // Little but a rim shows, or every hue is about.
    for (colour, shape, motion, background, style) in [
        (Colour::Black, Shape::Ring, Bouncing, Night, Style::Underwater),
        (Colour::Black, Shape::Circle, Falling, Night, Style::None),
        (Colour::White, Shape::Circle, Falling, Snow, Style::None),
        (Colour::Cyan, Shape::Square, Still, Night, Style::PixelArt),
        (Colour::White, Shape::Triangle, MovingLeft, Night, Style::Rainbow),
    ] {
        let wanted = Attributes { colour, shape, motion, background, style };
        let mut wrong = 0;
        for seed in 0..5 {
            let scene = Scene::with_attributes(wanted, seed);
            let pixels = scene.render(NATIVE.0, NATIVE.1, 17, 0, 16.0);
            let answers = judge(&pixels, NATIVE.0, NATIVE.1).compare(&wanted);
            wrong += usize::from(answers.contains(&Some(false)));
        }
        assert!(wrong <= 1, "{wanted:?}: {wrong} of 5 wrong");
    }
}

#[test]
fn what_has_no_shape_of_ours_keeps_its_colour() {
    let anything = Scene::from_index(0, Split::Any).attributes;
    let sky = Attributes { background: Background::Sky, style: Style::None, ..anything };
    let scene = without_object(Scene::with_attributes(sky, 3));
    let (width, height) = NATIVE;
    let mut pixels = scene.render(width, height, 17, 0, 16.0);
    // Two discs with a bridge between them.
    for (at, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((at % width) as f32, (at / width % height) as f32);
        let disc = |cx: f32| (x - cx).hypot(y - 64.0) < 20.0;
        if disc(80.0) || disc(140.0) || ((80.0..140.0).contains(&x) && (y - 64.0).abs() < 6.0) {
            pixel.copy_from_slice(&Colour::Red.rgb());
        }
    }
    let seen = judge(&pixels, width, height);
    assert_eq!(
        (seen.colour, seen.shape, seen.motion),
        (Some(Colour::Red), None, Some(Motion::Still))
    );
}

#[test]
fn nothing_is_seen_in_nothing() {
    let mut draws = Draws::new(9);
    let noise: Vec<u8> = (0..17 * SIDE * SIDE * 3).map(|_| draws.next() as u8).collect();
    let seen = judge(&noise, SIDE, SIDE);
    assert_eq!((seen.shape, seen.motion, seen.background), (None, None, None), "noise");
    for level in [0, 128, 255] {
        let seen = judge(&vec![level; 17 * SIDE * SIDE * 3], SIDE, SIDE);
        assert_eq!((seen.colour, seen.shape, seen.motion), (None, None, None), "grey {level}");
    }
    let seen = judge(&[], SIDE, SIDE);
    assert_eq!(seen.style, None);
}

#[test]
fn large_frames_are_judged_alike() {
    let scene = Scene::from_index(0, Split::Any);
    let pixels = scene.render(448, 256, 9, 0, 8.0);
    let right = judge(&pixels, 448, 256).compare(&scene.attributes);
    assert_eq!(right.iter().filter(|right| **right == Some(false)).count(), 0, "{right:?}");
}

#[test]
fn what_fills_the_frame_has_a_colour_too() {
    let (width, height) = (32, 24);
    let all = vec![true; width * height];
    let [open, filled, between] = std::array::from_fn(|_| all.clone());
    let blob = object::Blob { x: 0.5, y: 0.5, radius: 0.5, cut: true, open, filled, between };
    let track = Track { width, height, aspect: 4.0 / 3.0, blobs: vec![Some(blob)] };
    let frames = vec![vec![Colour::Red.rgb().map(f32::from); width * height]];
    let clip = Clip { width, height, frames };
    assert_eq!(object::colour(&clip, &track, Style::None), Some(Colour::Red));
}
