// SPDX-License-Identifier: MPL-2.0
//! The styles: a cast on colours, and fields over the frame that light and tint them.
//!
//! A style turns a colour `c` at a place into `cast(c) * gain + tint`. The cast is the same everywhere (so an
//! object's few colours are cast once); gain and tint vary softly, so a coarse grid holds them. Pixel art,
//! which changes the frame's sampling, is done by the renderer.

use super::Style;
use super::draw::{Draws, blend, luminance, mix64, noise, smoothstep};
use std::f32::consts::TAU;

/// What a style does at one place: colour times `gain` plus `tint`.
#[derive(Clone, Copy)]
pub(in crate::training) struct Field {
    pub(in crate::training) gain: f32,
    pub(in crate::training) tint: [f32; 3],
}

/// A leaf: base and tip in heights, greatest half width relative to its length, colour.
#[derive(Clone, Copy)]
pub(in crate::training) struct Leaf {
    pub(in crate::training) base: [f32; 2],
    pub(in crate::training) tip: [f32; 2],
    pub(in crate::training) width: f32,
    pub(in crate::training) colour: [f32; 3],
    sway: f32,
}

/// A style with its free numbers.
pub(in crate::training) struct Look {
    style: Style,
    seed: u32,
    /// Phases and the like, each -1 to 1.
    free: [f32; 4],
    leaves: Vec<Leaf>,
}

impl Look {
    pub(in crate::training) fn new(style: Style, seed: u64, aspect: f32) -> Self {
        let mut draws = Draws::new(mix64(seed ^ 0x57_11e5));
        let free = std::array::from_fn(|_| draws.between(-1.0, 1.0));
        let leaves = if style == Style::Jungle { leaves(&mut draws, aspect) } else { Vec::new() };
        Self { style, seed: draws.next() as u32, free, leaves }
    }

    /// The background's colours in this style.
    pub(in crate::training) fn cast(&self, c: [f32; 3]) -> [f32; 3] {
        match self.style {
            Style::None | Style::PixelArt | Style::Rainbow => c,
            Style::Film => self.sepia(luminance(c)),
            Style::Underwater => {
                let dimmed = [0.42 * c[0], 0.78 * c[1], 0.82 * c[2]];
                blend(dimmed, [8.0, 118.0, 138.0], 0.34)
            }
            Style::Jungle => {
                blend([0.74 * c[0], 0.93 * c[1], 0.68 * c[2]], [24.0, 84.0, 30.0], 0.16)
            }
        }
    }

    /// The object's colours in this style: the cast is lighter, so that they can be told.
    pub(in crate::training) fn cast_object(&self, c: [f32; 3], behind: [f32; 3]) -> [f32; 3] {
        match self.style {
            Style::Film => {
                // Grey has lost the colours' contrast; the film keeps object and background apart.
                let (light, back) = (luminance(c), luminance(behind));
                let apart = light - back;
                let light = if apart.abs() >= 75.0 {
                    light
                } else if back > 128.0 || (apart < 0.0 && back > 80.0) {
                    back - 75.0
                } else {
                    back + 75.0
                };
                self.sepia(light)
            }
            Style::Underwater => {
                blend([0.62 * c[0], 0.88 * c[1], 0.92 * c[2]], [8.0, 118.0, 138.0], 0.16)
            }
            Style::Jungle => {
                blend([0.9 * c[0], 0.98 * c[1], 0.86 * c[2]], [24.0, 84.0, 30.0], 0.06)
            }
            Style::None | Style::PixelArt | Style::Rainbow => c,
        }
    }

    fn sepia(&self, light: f32) -> [f32; 3] {
        let lifted = 14.0 + 0.9 * light;
        let tone = 0.5 + 0.5 * self.free[0];
        blend([lifted; 3], [1.06 * lifted + 4.0, 0.94 * lifted, 0.72 * lifted], tone)
    }

    /// What is done at a place (x, y in heights) at a time in seconds.
    pub(in crate::training) fn field(&self, x: f32, y: f32, aspect: f32, t: f32) -> Field {
        let plain = Field { gain: 1.0, tint: [0.0; 3] };
        match self.style {
            Style::Film => {
                let flicker = 0.035 * (TAU * (2.3 * t + self.free[1])).sin()
                    + 0.03 * (TAU * (3.7 * t + self.free[2])).sin();
                Field { gain: vignette(x, y, aspect) * (1.0 + flicker), ..plain }
            }
            Style::Underwater => {
                let light = self.caustic(x, y, t);
                Field { gain: 1.0, tint: [34.0 * light, 62.0 * light, 56.0 * light] }
            }
            Style::Rainbow => Field { gain: 0.58, tint: self.rainbow(x / aspect.min(1.0), y, t) },
            Style::None | Style::PixelArt | Style::Jungle => plain,
        }
    }

    /// The field on the object, relative to that of the background.
    pub(in crate::training) fn object_share(&self) -> f32 {
        match self.style {
            Style::Rainbow => 0.25,
            Style::Underwater => 0.6,
            _ => 1.0,
        }
    }

    /// Bright lines where a warped noise passes its middle value: a net that moves.
    fn caustic(&self, x: f32, y: f32, t: f32) -> f32 {
        let warp = noise(2.1 * x + 0.35 * t, 2.1 * y, self.seed ^ 0x55);
        let a = noise(3.1 * x + 0.9 * warp + 0.5 * t, 3.1 * y - 0.3 * t, self.seed);
        let b = noise(3.4 * x - 0.45 * t, 3.4 * y + 0.9 * warp + 0.35 * t, self.seed ^ 0xaa);
        let line = 1.0 - (3.2 * (a - b)).abs().min(1.0);
        line * line
    }

    fn rainbow(&self, x: f32, y: f32, t: f32) -> [f32; 3] {
        let slant = 0.45 * self.free[0];
        let hue = 0.8 * x + slant * y + self.free[1] - 0.4 * t * self.free[2].signum();
        let wave = |shift: f32| 0.42 * 255.0 * (0.5 + 0.5 * (TAU * (hue + shift)).cos());
        [wave(0.0), wave(1.0 / 3.0), wave(2.0 / 3.0)]
    }

    /// The leaves at a time in seconds.
    pub(in crate::training) fn leaves_at(&self, t: f32) -> impl Iterator<Item = Leaf> + '_ {
        self.leaves.iter().map(move |leaf| {
            let turn = 0.09 * (TAU * (0.4 * t + leaf.sway)).sin();
            let (sin, cos) = turn.sin_cos();
            let (dx, dy) = (leaf.tip[0] - leaf.base[0], leaf.tip[1] - leaf.base[1]);
            let tip = [leaf.base[0] + dx * cos - dy * sin, leaf.base[1] + dx * sin + dy * cos];
            Leaf { tip, ..*leaf }
        })
    }
}

/// How much light a film has at a place (x, y in heights): all in the middle, little in the corners.
pub(in crate::training) fn vignette(x: f32, y: f32, aspect: f32) -> f32 {
    let (dx, dy) = (2.0 * x / aspect - 1.0, 2.0 * y - 1.0);
    1.0 - 0.72 * smoothstep(0.5, 1.9, dx * dx + dy * dy)
}

/// Leaves all round the border, pointing inwards.
fn leaves(draws: &mut Draws, aspect: f32) -> Vec<Leaf> {
    let around = 2.0 * (1.0 + aspect);
    let count = (around * 3.4).round() as usize;
    let mut leaves: Vec<Leaf> = (0..count)
        .map(|i| {
            let along = around * (i as f32 + draws.between(0.1, 0.9)) / count as f32;
            // Bases lie a little outside the frame; clockwise from the upper left corner.
            let (base, inwards) = if along < aspect {
                ([along, -0.05], [0.0, 1.0])
            } else if along < aspect + 1.0 {
                ([aspect + 0.05, along - aspect], [-1.0, 0.0])
            } else if along < 2.0 * aspect + 1.0 {
                ([2.0 * aspect + 1.0 - along, 1.05], [0.0, -1.0])
            } else {
                ([-0.05, around - along], [1.0, 0.0])
            };
            let length = draws.between(0.2, 0.31) * aspect.min(1.0);
            let lean = draws.between(-0.7, 0.7);
            let (sin, cos): (f32, f32) = lean.sin_cos();
            let tip = [
                base[0] + length * (inwards[0] * cos - inwards[1] * sin),
                base[1] + length * (inwards[0] * sin + inwards[1] * cos),
            ];
            let light = draws.between(0.0, 1.0);
            let colour = blend([10.0, 48.0, 16.0], [34.0, 104.0, 34.0], light);
            Leaf { base, tip, width: draws.between(0.2, 0.3), colour, sway: draws.unit() }
        })
        .collect();
    // Dark leaves behind, light ones in front.
    leaves.sort_by(|a, b| a.colour[1].total_cmp(&b.colour[1]));
    leaves
}
