// SPDX-License-Identifier: MPL-2.0
//! What the world promises: the same clip from the same index, the split, motions, colours in pixels.

use super::*;
use std::collections::HashSet;

const FPS: f64 = 16.0;

fn every_motion(motion: Motion) -> impl Iterator<Item = Scene> {
    (0..40).map(move |seed| {
        let attributes = Attributes { motion, ..Attributes::from_number(seed * 7919) };
        Scene::with_attributes(attributes, seed)
    })
}

/// Placements of the 17 frames of the first second.
fn track(scene: &Scene, aspect: f32) -> Vec<Placement> {
    (0..17).map(|frame| scene.placement(f64::from(frame) / FPS, aspect)).collect()
}

fn range(values: impl Iterator<Item = f32>) -> f32 {
    let (low, high) = values.fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(v), h.max(v)));
    high - low
}

#[test]
fn the_same_index_gives_the_same_clip() {
    let scene = Scene::from_index(12, Split::Train);
    assert_eq!(scene, Scene::from_index(12, Split::Train));
    let clip = scene.render(56, 32, 5, 3, FPS);
    assert_eq!(clip, scene.render(56, 32, 5, 3, FPS));
    assert_eq!(clip.len(), 5 * 32 * 56 * 3);
    // A frame is the same alone and within a clip.
    let mut frame = vec![0; 32 * 56 * 3];
    scene.render_frame(5.0 / FPS, 56, 32, &mut frame);
    assert_eq!(frame, clip[2 * frame.len()..3 * frame.len()]);
    assert_ne!(scene, Scene::from_index(13, Split::Train));
}

#[test]
fn numbers_and_combinations_correspond() {
    let all: HashSet<Attributes> = (0..Attributes::COUNT).map(Attributes::from_number).collect();
    assert_eq!(all.len() as u64, Attributes::COUNT);
    assert!((0..Attributes::COUNT).all(|n| Attributes::from_number(n).number() == n));
    for colour in Colour::ALL {
        assert_eq!(Colour::from_name(colour.name()), Some(*colour));
    }
    assert_eq!(Style::from_name("charcoal"), None);
}

#[test]
fn one_combination_in_twenty_is_held_out_for_ever() {
    let held: Vec<u64> =
        (0..Attributes::COUNT).filter(|n| Attributes::from_number(*n).held_out()).collect();
    let share = held.len() as f64 / Attributes::COUNT as f64;
    assert!((share - 0.05).abs() < 0.005, "{share}");
    // A trained model's evaluation rests on this rule: these must not change.
    assert_eq!(held.len(), 1000);
    assert_eq!(held[..4], [44, 51, 151, 167]);
    for index in 0..300 {
        assert!(!Scene::from_index(index, Split::Train).attributes.held_out());
        assert!(Scene::from_index(index, Split::HeldOut).attributes.held_out());
    }
}

#[test]
fn every_word_is_drawn_about_as_often() {
    let mut counts = [0u32; 10];
    let mut plain = 0;
    for index in 0..3000 {
        let attributes = Scene::from_index(index, Split::Train).attributes;
        counts[attributes.colour as usize] += 1;
        plain += u32::from(attributes.style == Style::None);
    }
    assert!(counts.iter().all(|count| (230..370).contains(count)), "{counts:?}");
    assert!((900..1100).contains(&plain), "{plain} plain of 3000");
}

#[test]
fn straight_motions_travel_half_the_frame() {
    for aspect in [1.0, 1.75, 128.0 / 224.0] {
        for motion in [Motion::MovingRight, Motion::MovingLeft, Motion::Rising, Motion::Falling] {
            for scene in every_motion(motion) {
                let track = track(&scene, aspect);
                let (dx, dy) = (track[16].x - track[0].x, track[16].y - track[0].y);
                let (along, across) = match motion {
                    Motion::MovingRight => (dx, dy),
                    Motion::MovingLeft => (-dx, dy),
                    Motion::Falling => (dy, dx),
                    _ => (-dy, dx),
                };
                assert!((0.45..=0.6).contains(&along), "{motion:?} travels {along}");
                assert!(across.abs() < 1e-3, "{motion:?} strays {across}");
            }
        }
    }
}

#[test]
fn bouncing_and_circling_repeat() {
    for scene in every_motion(Motion::Bouncing) {
        let track = track(&scene, 1.75);
        assert!(range(track.iter().map(|p| p.y)) >= 0.25);
        assert!(range(track.iter().map(|p| p.x)) < 1e-3);
        let ways: HashSet<bool> = track.windows(2).map(|pair| pair[1].y > pair[0].y).collect();
        assert_eq!(ways.len(), 2, "up and down");
    }
    for scene in every_motion(Motion::Circling) {
        let track = track(&scene, 1.75);
        let (wide, high) =
            (range(track.iter().map(|p| p.x)) * 1.75, range(track.iter().map(|p| p.y)));
        assert!((0.42..=0.56).contains(&wide) && (0.42..=0.56).contains(&high), "{wide} {high}");
        assert!((track[16].x - track[0].x).abs() < 1e-3 && (track[16].y - track[0].y).abs() < 1e-3);
    }
}

#[test]
fn growth_is_by_a_factor_of_three_and_still_is_still() {
    for motion in [Motion::Growing, Motion::Shrinking, Motion::Still] {
        for scene in every_motion(motion) {
            let track = track(&scene, 1.0);
            let factor = track[16].radius / track[0].radius;
            match motion {
                Motion::Growing => assert!((2.5..=3.5).contains(&factor), "{factor}"),
                Motion::Shrinking => assert!((2.5..=3.5).contains(&(1.0 / factor)), "{factor}"),
                _ => assert_eq!(factor, 1.0),
            }
            assert!(range(track.iter().map(|p| p.x)) < 1e-6);
            assert!(range(track.iter().map(|p| p.y)) < 1e-6);
        }
    }
}

#[test]
fn radii_are_within_the_documented_range() {
    for index in 0..500 {
        let scene = Scene::from_index(index, Split::Any);
        for aspect in [1.0, 1.75, 128.0 / 224.0] {
            if !matches!(scene.attributes.motion, Motion::Growing | Motion::Shrinking) {
                let radius = scene.placement(0.3, aspect).radius;
                assert!((0.12..=0.22).contains(&radius), "{radius} at aspect {aspect}");
            }
        }
    }
}

#[test]
fn objects_never_stay_away_for_long() {
    for index in 0..100 {
        let scene = Scene::from_index(index, Split::Any);
        let mut away = 0;
        for frame in 0..960 {
            let place = scene.placement(f64::from(frame) / FPS, 1.75);
            let seen = (0.0..1.0).contains(&place.x) && (0.0..1.0).contains(&place.y);
            away = if seen { 0 } else { away + 1 };
            assert!(away < 20, "{scene:?} is away at frame {frame}");
        }
    }
}

#[test]
fn plain_objects_have_their_colour_in_pixels() {
    for (n, colour) in Colour::ALL.iter().enumerate() {
        let attributes = Attributes {
            colour: *colour,
            shape: Shape::Circle,
            motion: Motion::Still,
            background: Background::ALL[n % Background::ALL.len()],
            style: Style::None,
        };
        let scene = Scene::with_attributes(attributes, n as u64);
        let (width, height) = (112, 64);
        let pixels = scene.render(width, height, 1, 0, FPS);
        let place = scene.placement(0.0, width as f32 / height as f32);
        let (x, y) = ((place.x * width as f32) as usize, (place.y * height as f32) as usize);
        let pixel = &pixels[(y * width + x) * 3..][..3];
        for (seen, base) in pixel.iter().zip(colour.rgb()) {
            assert!(seen.abs_diff(base) < 12, "{colour:?} looks {pixel:?}");
        }
    }
}

#[test]
fn any_size_is_drawn() {
    for number in 0..72 {
        let scene = Scene::with_attributes(Attributes::from_number(number * 271), number);
        for (width, height) in [(1, 1), (3, 17), (224, 16), (33, 95)] {
            assert_eq!(scene.render(width, height, 2, -5, 16.0).len(), 2 * width * height * 3);
        }
        assert!(scene.render(0, 8, 1, 0, 16.0).is_empty());
    }
}

#[test]
fn every_second_scene_shows_a_favoured_word() {
    let words = [word("star").unwrap(), word("pixel art").unwrap()];
    let shows = |index: u64| {
        let scene = Scene::favouring(index, Split::Train, &words);
        assert!(!scene.attributes.held_out());
        assert!(index % 2 == 1 || scene == Scene::from_index(index, Split::Train));
        scene.attributes.names().iter().any(|name| words.contains(name))
    };
    assert!((0..100).all(|i| shows(2 * i + 1)));
    let others = (0..100).filter(|i| shows(2 * i)).count();
    assert!((10..50).contains(&others), "{others}");
    assert_eq!(Scene::favouring(7, Split::Train, &[]), Scene::from_index(7, Split::Train));
    assert!(word("hexagon").unwrap_err().to_string().contains("hexagon"));
}
