// SPDX-License-Identifier: MPL-2.0
//! Masks of frames, `height * width`: which pixels may be an object's by their colour, and what is done to masks.

use super::Clip;
use crate::training::world::draw::rim_of;
use crate::training::world::style::Look;
use crate::training::world::{Colour, Style};

/// Cells per channel of the tables of colours.
const CELLS: usize = 32;
/// Levels per cell.
const CELL: f32 = 256.0 / CELLS as f32;
/// Colours nearer than this to an object's, or to what lies between it and its rim's, are the object's.
const OBJECT_TOLERANCE: f32 = 50.0;

/// Pixels of every frame that are not of the background's colours.
pub(super) fn foreign(clip: &Clip, palette: &[[f32; 3]], tolerance: f32) -> Vec<Vec<bool>> {
    let table = Table::new(palette, tolerance);
    let mask = |frame: &Vec<[f32; 3]>| frame.iter().map(|c| !table.holds(*c)).collect();
    clip.frames.iter().map(mask).collect()
}

/// Pixels of every frame that are of each of [`Colour::ALL`], in that order.
pub(super) fn of_colours(clip: &Clip, style: Style) -> Vec<Vec<Vec<bool>>> {
    let nearest = nearest_colours(style, clip.aspect());
    let of = |colour: &Colour| {
        let mask = |frame: &Vec<[f32; 3]>| {
            frame.iter().map(|c| nearest[cell(*c)] == Some(*colour)).collect()
        };
        clip.frames.iter().map(mask).collect()
    };
    Colour::ALL.iter().map(of).collect()
}

/// The object's colour that each cell of colours is nearest to.
fn nearest_colours(style: Style, aspect: f32) -> Vec<Option<Colour>> {
    let look = Look::new(style, 0, aspect);
    let ends: Vec<[[f32; 3]; 2]> = Colour::ALL
        .iter()
        .map(|colour| {
            let body = colour.rgb().map(f32::from);
            [body, rim_of(body)].map(|c| look.cast_object(c, [0.0; 3]))
        })
        .collect();
    (0..CELLS * CELLS * CELLS)
        .map(|at| {
            let c = [at / CELLS / CELLS, at / CELLS % CELLS, at % CELLS]
                .map(|v| (v as f32 + 0.5) * CELL);
            let off = ends.iter().map(|[body, rim]| from_line(c, *body, *rim));
            let (best, off) = off.enumerate().min_by(|a, b| a.1.total_cmp(&b.1))?;
            (off < OBJECT_TOLERANCE).then_some(Colour::ALL[best])
        })
        .collect()
}

/// Distance from what lies between two colours.
fn from_line(c: [f32; 3], a: [f32; 3], b: [f32; 3]) -> f32 {
    let dot = |u: [f32; 3], v: [f32; 3]| u[0] * v[0] + u[1] * v[1] + u[2] * v[2];
    let minus = |u: [f32; 3], v: [f32; 3]| -> [f32; 3] { std::array::from_fn(|k| u[k] - v[k]) };
    let (along, to) = (minus(b, a), minus(c, a));
    let share = (dot(to, along) / dot(along, along).max(1e-6)).clamp(0.0, 1.0);
    let off = minus(to, along.map(|v| v * share));
    dot(off, off).sqrt()
}

/// Place of a colour's cell.
fn cell(c: [f32; 3]) -> usize {
    let [r, g, b] = c.map(|v| ((v.clamp(0.0, 255.0) / CELL) as usize).min(CELLS - 1));
    (r * CELLS + g) * CELLS + b
}

/// Which colours are near those of a palette.
struct Table {
    near: Vec<bool>,
}

impl Table {
    fn new(palette: &[[f32; 3]], tolerance: f32) -> Self {
        let mut near = vec![false; CELLS * CELLS * CELLS];
        let reach = (tolerance / CELL).ceil() as i32;
        for c in palette {
            let cell = c.map(|v| (v.clamp(0.0, 255.0) / CELL) as i32);
            for r in cell[0] - reach..=cell[0] + reach {
                for g in cell[1] - reach..=cell[1] + reach {
                    for b in cell[2] - reach..=cell[2] + reach {
                        let at = [r, g, b];
                        let inside = at.iter().all(|v| (0..CELLS as i32).contains(v));
                        let d: f32 = (0..3)
                            .map(|k| ((at[k] as f32 + 0.5) * CELL - c[k].clamp(0.0, 255.0)).powi(2))
                            .sum();
                        if inside && d <= tolerance * tolerance {
                            near[(r as usize * CELLS + g as usize) * CELLS + b as usize] = true;
                        }
                    }
                }
            }
        }
        Self { near }
    }

    fn holds(&self, c: [f32; 3]) -> bool {
        self.near[cell(c)]
    }
}

/// A mask in which gaps of up to twice as many pixels are closed.
pub(super) fn closed(mask: &[bool], gap: usize, width: usize, height: usize) -> Vec<bool> {
    let mut mask = mask.to_vec();
    for value in [true, false] {
        for _ in 0..gap {
            mask = grown(&mask, value, width, height);
        }
    }
    mask
}

/// A mask whose parts of a value are a pixel wider.
pub(super) fn grown(mask: &[bool], value: bool, width: usize, height: usize) -> Vec<bool> {
    let mut grown = mask.to_vec();
    for at in (0..mask.len()).filter(|at| mask[*at] == value) {
        neighbours(at, width, height).for_each(|next| grown[next] = value);
    }
    grown
}

/// The pixels left, right, above and below.
pub(super) fn neighbours(at: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
    let (x, y) = (at % width, at / width);
    let candidates = [
        (x > 0).then(|| at - 1),
        (x + 1 < width).then_some(at + 1),
        (y > 0).then(|| at - width),
        (y + 1 < height).then_some(at + width),
    ];
    candidates.into_iter().flatten()
}

/// A mask together with all that it encloses.
pub(super) fn fill_holes(mask: &[bool], width: usize, height: usize) -> Vec<bool> {
    let mut filled = vec![true; mask.len()];
    let border = |at: usize| {
        let (x, y) = (at % width, at / width);
        x == 0 || y == 0 || x + 1 == width || y + 1 == height
    };
    let mut stack: Vec<usize> = (0..mask.len()).filter(|at| border(*at) && !mask[*at]).collect();
    stack.iter().for_each(|at| filled[*at] = false);
    while let Some(at) = stack.pop() {
        for next in neighbours(at, width, height) {
            if !mask[next] && filled[next] {
                filled[next] = false;
                stack.push(next);
            }
        }
    }
    filled
}
