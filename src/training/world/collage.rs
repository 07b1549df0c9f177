// SPDX-License-Identifier: MPL-2.0
//! Footage of no world: textured things of all sizes that hide one another, alone or with smaller ones on them, before a camera
//! that may move.
//!
//! Such "dead leaves" have the statistics of photographs (Lee, Mumford and Huang, IJCV 41, 2001), and models that have seen nothing
//! else know photographs (Baradad et al., arXiv 2106.05963). What restyles them learns to keep what it has no word for.

use std::f32::consts::TAU;

use super::draw::{Draws, blend, mix64, noise, noise2};

/// How many things there are, at least and fewer than, beside those on others, and how many smaller ones a large one has on it at
/// most.
const THINGS: [usize; 2] = [8, 60];
const FEATURES: usize = 7;
/// Radii of the smallest and the largest thing, in heights, and from which on one has others on it.
const SMALLEST: f32 = 0.03;
const LARGEST: f32 = 0.55;
const WITH_FEATURES: f32 = 0.1;
/// Shares of collages in which nothing moves, and in which the camera does.
const STILL: f32 = 0.2;
const PANNED: f32 = 0.5;
/// How far beyond its radius an outline reaches.
const REACH: f32 = 1.5;

/// A way through the frame, in heights and seconds.
#[derive(Clone, Copy)]
struct Way {
    start: [f32; 2],
    velocity: [f32; 2],
    sway: [f32; 2],
    rate: f32,
    phase: f32,
    turn: f32,
    spin: f32,
}

impl Way {
    fn at(&self, t: f32) -> ([f32; 2], f32) {
        let (sin, cos) = (TAU * (self.rate * t + self.phase)).sin_cos();
        let swing = [self.sway[0] * sin, self.sway[1] * cos];
        let place = [0, 1].map(|k| self.start[k] + self.velocity[k] * t + swing[k]);
        (place, self.turn + self.spin * sin)
    }
}

/// One thing.
struct Thing {
    way: Way,
    /// Its centre beside its way's place, turned with it.
    offset: [f32; 2],
    radius: f32,
    /// Width by height.
    stretch: f32,
    /// Cosine and sine parts of the outline's waves, two to four on the way round; none: a box.
    waves: Option<[[f32; 2]; 3]>,
    colour: [f32; 3],
    /// How much lighter it gets along each side.
    shade: [f32; 2],
    /// How strong its texture is, features per radius, and of how many stripes instead.
    texture: f32,
    grain: f32,
    stripes: f32,
    /// Width of its edge in heights.
    softness: f32,
    seed: u32,
}

/// A clip of such things.
pub(super) struct Collage {
    things: Vec<Thing>,
    sky: [[f32; 3]; 2],
    texture: f32,
    seed: u32,
    pan: [f32; 2],
    zoom: f32,
}

impl Collage {
    /// The seed decides everything.
    pub(super) fn new(seed: u64, aspect: f32) -> Self {
        let mut draws = Draws::new(mix64(seed ^ 0xc011_a6e5));
        let palette = Palette { hue: draws.unit(), vivid: draws.unit() };
        let still = draws.unit() < STILL;
        let panned = !still && draws.unit() < PANNED;
        let speed = |most: f32, moves: bool, draws: &mut Draws| {
            let speed = draws.between(-most, most);
            if moves { speed } else { 0.0 }
        };
        let pan = [speed(0.35, panned, &mut draws), speed(0.15, panned, &mut draws)];
        let zoom = speed(0.2, panned, &mut draws);
        let count = THINGS[0] + draws.below(THINGS[1] - THINGS[0]);
        let mut things = Vec::new();
        for number in 0..count {
            // Many small ones for each large one, and those in front more often.
            let size = draws.unit().powi(2).max(0.6 * (1.0 - number as f32 / count as f32).powi(4));
            let radius = SMALLEST * (LARGEST / SMALLEST).powf(size);
            let moves = !still && draws.unit() < 0.5;
            let way = Way {
                start: [draws.between(-0.1, 1.1) * aspect, draws.between(-0.1, 1.1)],
                velocity: [speed(0.4, moves, &mut draws), speed(0.25, moves, &mut draws)],
                sway: [speed(0.08, moves, &mut draws), speed(0.08, moves, &mut draws)],
                rate: draws.between(0.3, 1.2),
                phase: draws.unit(),
                turn: draws.between(-0.6, 0.6),
                spin: speed(0.4, moves, &mut draws),
            };
            things.push(Thing::new(way, [0.0; 2], radius, &palette, &mut draws));
            if radius > WITH_FEATURES {
                for _ in 0..draws.below(FEATURES + 1) {
                    let place = [0, 1].map(|_| draws.between(-0.75, 0.75) * radius);
                    let radius = radius * draws.between(0.08, 0.4);
                    things.push(Thing::new(way, place, radius, &palette, &mut draws));
                }
            }
        }
        let sky = [palette.colour(&mut draws), palette.colour(&mut draws)];
        let sky = [sky[0], blend(sky[0], sky[1], draws.unit())];
        let texture = 60.0 * draws.unit() * draws.unit();
        Self { things, sky, texture, seed: draws.next() as u32, pan, zoom }
    }

    /// Paints the moment `t` in seconds: `[height, width, 3]`, RGB, 0 to 255.
    pub(super) fn paint(&self, t: f32, (width, height): (usize, usize), pixels: &mut [f32]) {
        let scale = height as f32;
        let aspect = width as f32 / scale;
        let zoom = (self.zoom * t).exp();
        // Where a point of the collage is seen, and the other way round.
        let middle = [0.5 * aspect, 0.5];
        let seen =
            |p: [f32; 2]| [0, 1].map(|k| middle[k] + (p[k] + self.pan[k] * t - middle[k]) * zoom);
        let back =
            |p: [f32; 2]| [0, 1].map(|k| middle[k] + (p[k] - middle[k]) / zoom - self.pan[k] * t);
        for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let place = [(i % width) as f32 + 0.5, (i / width) as f32 + 0.5].map(|v| v / scale);
            let [x, y] = back(place);
            let light = self.texture * (noise2(3.1 * x, 3.1 * y, self.seed) - 0.5);
            let base = blend(self.sky[0], self.sky[1], place[1]);
            pixel.copy_from_slice(&base.map(|v| v + light));
        }
        for thing in &self.things {
            let (place, turn) = thing.way.at(t);
            let (sin, cos) = turn.sin_cos();
            let [dx, dy] = thing.offset;
            let centre = seen([place[0] + dx * cos - dy * sin, place[1] + dx * sin + dy * cos]);
            thing.paint(centre, [sin, cos], zoom, (width, height), pixels);
        }
        for value in pixels {
            *value = value.clamp(0.0, 255.0);
        }
    }
}

impl Thing {
    fn new(way: Way, offset: [f32; 2], radius: f32, palette: &Palette, draws: &mut Draws) -> Self {
        let boxed = draws.unit() < 0.25;
        let waves = [0.16, 0.12, 0.08].map(|most| {
            let (amplitude, phase) = (draws.between(0.0, most), TAU * draws.unit());
            [amplitude * phase.cos(), amplitude * phase.sin()]
        });
        let soft = draws.unit();
        Self {
            way,
            offset,
            radius,
            stretch: draws.between(-0.8, 0.8).exp(),
            waves: (!boxed).then_some(waves),
            colour: palette.colour(draws),
            shade: [draws.between(-45.0, 45.0), draws.between(-45.0, 45.0)],
            texture: 110.0 * draws.unit() * draws.unit(),
            grain: draws.between(1.0, 6.0),
            stripes: if draws.unit() < 0.12 { draws.between(1.0, 4.0) } else { 0.0 },
            softness: 0.004 + 0.05 * soft * soft * soft,
            seed: draws.next() as u32,
        }
    }

    /// Paints it with its centre in a place, turned by an angle of that sine and cosine, over what is there.
    fn paint(
        &self,
        centre: [f32; 2],
        [sin, cos]: [f32; 2],
        zoom: f32,
        (width, height): (usize, usize),
        pixels: &mut [f32],
    ) {
        let scale = height as f32;
        let reach = REACH * zoom * self.radius * self.stretch.max(1.0) + self.softness;
        let range = |at: f32, size: usize| {
            let end = |v: f32| (v * scale).clamp(0.0, size as f32) as usize;
            end(at - reach)..end(at + reach + 1.0 / scale)
        };
        let edge = self.softness.max(1.0 / scale);
        for row in range(centre[1], height) {
            for column in range(centre[0], width) {
                let x = ((column as f32 + 0.5) / scale - centre[0]) / zoom;
                let y = ((row as f32 + 0.5) / scale - centre[1]) / zoom;
                let local = [x * cos + y * sin, y * cos - x * sin].map(|v| v / self.radius);
                let cover = (0.5 - self.outside(local) * self.radius / edge).clamp(0.0, 1.0);
                if cover == 0.0 {
                    continue;
                }
                let pixel = &mut pixels[(row * width + column) * 3..][..3];
                for (value, c) in pixel.iter_mut().zip(self.colour_at(local)) {
                    *value += (c - *value) * cover;
                }
            }
        }
    }

    /// How far outside its outline a place is, both in radii; negative within.
    fn outside(&self, [x, y]: [f32; 2]) -> f32 {
        let x = x / self.stretch;
        match self.waves {
            Some(waves) => {
                let far = (x * x + y * y).sqrt().max(1e-6);
                let (c, s) = (x / far, y / far);
                // The way round, multiplied as complex numbers are.
                let (mut turned, mut wave) = ([c, s], 0.0);
                for [cosine, sine] in waves {
                    turned = [turned[0] * c - turned[1] * s, turned[0] * s + turned[1] * c];
                    wave += cosine * turned[0] - sine * turned[1];
                }
                far - 1.0 - wave
            }
            None => x.abs().max(y.abs()) - 0.9,
        }
    }

    fn colour_at(&self, [x, y]: [f32; 2]) -> [f32; 3] {
        let pattern = match self.stripes > 0.0 {
            true => 0.5 + 0.5 * (TAU * self.stripes * x).sin().clamp(-0.5, 0.5),
            false => noise(self.grain * x, self.grain * y, self.seed),
        };
        let light = self.shade[0] * x + self.shade[1] * y + self.texture * (pattern - 0.5);
        self.colour.map(|v| v + light)
    }
}

/// Colours that go together, most of them pale.
struct Palette {
    hue: f32,
    vivid: f32,
}

impl Palette {
    fn colour(&self, draws: &mut Draws) -> [f32; 3] {
        let own = draws.unit() < 0.6;
        let hue = if own { self.hue + draws.between(-0.1, 0.1) } else { draws.unit() };
        let saturation = draws.unit() * (0.35 + 0.65 * self.vivid * draws.unit());
        let light = 255.0 * draws.between(0.04, 1.0);
        [0.0, 1.0 / 3.0, 2.0 / 3.0].map(|shift| {
            let wave = 0.5 + 0.5 * (TAU * (hue - shift)).cos();
            light * (1.0 - saturation * (1.0 - wave))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Attributes, Scene, Split, Style};
    use super::*;

    fn frame(seed: u64, t: f32) -> Vec<f32> {
        let mut pixels = vec![0.0; 56 * 32 * 3];
        Collage::new(seed, 1.75).paint(t, (56, 32), &mut pixels);
        pixels
    }

    #[test]
    fn a_seed_decides_all_and_most_of_them_move() {
        let change = |a: &[f32], b: &[f32]| {
            let sum: f32 = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum();
            sum / a.len() as f32
        };
        let mut moving = 0;
        for seed in 0..40 {
            let first = frame(seed, 0.0);
            assert_eq!(first, frame(seed, 0.0));
            assert!(first.iter().all(|value| (0.0..=255.0).contains(value)));
            assert!(change(&first, &frame(seed + 1, 0.0)) > 5.0);
            moving += usize::from(change(&first, &frame(seed, 1.0)) > 0.5);
        }
        assert!((24..40).contains(&moving), "{moving}");
    }

    #[test]
    fn its_scene_shows_it_in_every_style() {
        let scene = Scene { collage: true, ..Scene::from_index(5, Split::Train) };
        let rendered = |style| {
            let attributes = Attributes { style, ..scene.attributes };
            Scene { attributes, ..scene }.render(56, 32, 1, 0, 16.0)
        };
        let plain = rendered(Style::None);
        let own: Vec<f32> = frame(scene.seed, 0.0);
        assert!(plain.iter().zip(own).all(|(a, b)| (f32::from(*a) - b).abs() <= 0.51));
        let off = |other: &[u8]| {
            let sum: u64 = plain.iter().zip(other).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            sum as f64 / plain.len() as f64
        };
        for style in Style::ALL.iter().copied().filter(|style| *style != Style::None) {
            assert!(off(&rendered(style)) > 4.0, "{style:?} {}", off(&rendered(style)));
        }
    }
}
