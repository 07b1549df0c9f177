// SPDX-License-Identifier: MPL-2.0
//! The six backgrounds: soft textures of low spatial frequency, as functions of place and time.
//!
//! Places are in units of the frame's height, so a texture looks alike at any size and aspect ratio.

use super::Background;
use super::draw::{Draws, blend, mix64, noise, noise2, smoothstep};
use std::f32::consts::TAU;

/// A background with its free numbers.
pub(in crate::training) struct Backdrop {
    kind: Background,
    seed: u32,
    /// Phases and drifts, each -1 to 1.
    free: [f32; 6],
    stars: Vec<Star>,
}

/// A soft dot: place and radius in units of the height, brightness 0 to 255.
#[derive(Clone, Copy)]
pub(in crate::training) struct Star {
    pub(in crate::training) x: f32,
    pub(in crate::training) y: f32,
    pub(in crate::training) radius: f32,
    pub(in crate::training) light: f32,
    twinkle: f32,
}

impl Star {
    /// Brightness at a time in seconds.
    pub(in crate::training) fn light_at(&self, t: f32) -> f32 {
        self.light * (0.88 + 0.12 * (TAU * (0.5 * t + self.twinkle)).sin())
    }
}

impl Backdrop {
    pub(in crate::training) fn new(kind: Background, seed: u64, aspect: f32) -> Self {
        let mut draws = Draws::new(mix64(seed ^ 0xbac0));
        let free = std::array::from_fn(|_| draws.between(-1.0, 1.0));
        let stars = if kind == Background::Night { stars(&mut draws, aspect) } else { Vec::new() };
        Self { kind, seed: draws.next() as u32, free, stars }
    }

    pub(in crate::training) fn stars(&self) -> &[Star] {
        &self.stars
    }

    /// A typical colour, for contrast.
    pub(in crate::training) fn typical(&self) -> [f32; 3] {
        match self.kind {
            Background::Sky => [130.0, 185.0, 238.0],
            Background::Sea => [24.0, 66.0, 124.0],
            Background::Grass => [84.0, 140.0, 54.0],
            Background::Desert => [216.0, 180.0, 124.0],
            Background::Night => [11.0, 13.0, 30.0],
            Background::Snow => [232.0, 236.0, 243.0],
        }
    }

    /// RGB, 0 to 255, at a place (x, y in heights) and a time in seconds.
    pub(in crate::training) fn colour(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        match self.kind {
            Background::Sky => self.sky(x, y, t),
            Background::Sea => self.sea(x, y, t),
            Background::Grass => self.grass(x, y, t),
            Background::Desert => self.desert(x, y),
            Background::Night => blend([8.0, 9.0, 22.0], [15.0, 18.0, 40.0], y),
            Background::Snow => self.snow(x, y, t),
        }
    }

    fn sky(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        let base = blend([84.0, 150.0, 230.0], [136.0, 190.0, 242.0], y);
        let drift = t * (0.1 + 0.04 * self.free[0]);
        let cloud = noise2(1.9 * (x - drift) + 9.0, 3.3 * y, self.seed);
        blend(base, [246.0, 248.0, 251.0], 0.92 * smoothstep(0.53, 0.76, cloud))
    }

    fn sea(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        let base = blend([14.0, 52.0, 112.0], [26.0, 72.0, 132.0], y);
        let bend = noise(1.6 * x + 0.25 * t, 2.0 * y, self.seed);
        let swell = (TAU * (4.6 * y + 0.9 * bend + 0.4 * self.free[0] * x - 0.55 * t)).sin();
        let cross =
            (TAU * (1.3 * x * self.free[1].signum() + 2.2 * y + self.free[2] - 0.5 * t)).sin();
        let light = smoothstep(-0.2, 1.5, swell + 0.5 * cross);
        blend(base, [78.0, 136.0, 186.0], 0.75 * light)
    }

    fn grass(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        let mottle = noise2(4.2 * x, 5.0 * y, self.seed);
        let wind = noise(1.2 * x - 0.45 * t, 1.6 * y + self.free[0], self.seed ^ 0x77);
        let light = 0.75 * smoothstep(0.2, 0.8, mottle) + 0.25 * wind;
        blend([58.0, 108.0, 36.0], [112.0, 170.0, 72.0], light)
    }

    fn desert(&self, x: f32, y: f32) -> [f32; 3] {
        let bend = noise(1.3 * x + 3.0, 1.1 * y, self.seed);
        let height = 2.6 * y + 0.35 * self.free[0] * x + 1.1 * bend + self.free[1];
        // A dune is bright on its long slope and shaded below its ridge.
        let u = height - height.floor();
        let slope = smoothstep(0.0, 0.28, u) * (1.0 - 0.75 * smoothstep(0.45, 1.0, u));
        blend([186.0, 146.0, 92.0], [240.0, 208.0, 154.0], slope)
    }

    fn snow(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        let drift = noise(1.7 * x - 0.06 * t, 2.6 * y, self.seed);
        blend([222.0, 229.0, 240.0], [243.0, 245.0, 248.0], smoothstep(0.15, 0.85, drift))
    }
}

/// Stars as evenly as a jittered grid spreads them, on about two thirds of its places.
fn stars(draws: &mut Draws, aspect: f32) -> Vec<Star> {
    const CELL: f32 = 0.27;
    let columns = (aspect / CELL).ceil() as usize;
    let mut stars = Vec::new();
    for row in 0..4 {
        for column in 0..columns {
            let star = Star {
                x: CELL * (column as f32 + draws.between(0.15, 0.85)),
                y: CELL * (row as f32 + draws.between(0.15, 0.85)),
                radius: draws.between(0.014, 0.02),
                light: draws.between(150.0, 235.0),
                twinkle: draws.unit(),
            };
            if draws.below(3) != 0 {
                stars.push(star);
            }
        }
    }
    stars
}
