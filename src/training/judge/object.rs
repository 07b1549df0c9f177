// SPDX-License-Identifier: MPL-2.0
//! The object of a clip: in every frame the largest thing whose colours are not the background's.

use super::Clip;
use crate::training::world::style::Look;
use crate::training::world::{Colour, Style};

/// Colours nearer than this to one of the background's are background.
const TOLERANCE: f32 = 20.0;
/// The same where a style has its own wide range of colours, or few levels.
const SMALL_TOLERANCE: f32 = 13.0;
/// Cells per channel of the table of colours.
const CELLS: usize = 32;
/// Smallest object, as a part of the squared height.
const SMALLEST: f32 = 0.005;

/// An object in one frame; lengths in heights.
pub(super) struct Blob {
    /// Centre of the outline.
    pub(super) x: f32,
    pub(super) y: f32,
    /// Radius of a disc as large as the outline.
    pub(super) radius: f32,
    /// Whether it touches the border of the frame.
    pub(super) cut: bool,
    /// Pixels of the frame that are the object's, holes left open: `height * width`.
    pub(super) open: Vec<bool>,
    /// The same with holes filled.
    pub(super) filled: Vec<bool>,
    /// What the outer edge encloses, without the hole of a ring: the object where only its edges could be
    /// seen.
    pub(super) between: Vec<bool>,
}

/// An object through the frames of a clip.
pub(super) struct Track {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) aspect: f32,
    pub(super) blobs: Vec<Option<Blob>>,
}

/// Finds the object in every frame.
pub(super) fn follow(clip: &Clip, palette: &[[f32; 3]], style: Style) -> Track {
    let tolerance = match style {
        Style::Rainbow | Style::PixelArt | Style::Jungle => SMALL_TOLERANCE,
        _ => TOLERANCE,
    };
    let table = Table::new(palette, tolerance);
    let blobs = clip.frames.iter().map(|frame| {
        let open: Vec<bool> = frame.iter().map(|c| !table.holds(*c)).collect();
        let mut blob = largest(&open, clip.width, clip.height)?;
        if style == Style::PixelArt {
            sharpen(&mut blob, frame, clip);
        }
        Some(blob)
    });
    Track { width: clip.width, height: clip.height, aspect: clip.aspect(), blobs: blobs.collect() }
}

/// Which colours are near those of a palette.
struct Table {
    near: Vec<bool>,
}

impl Table {
    fn new(palette: &[[f32; 3]], tolerance: f32) -> Self {
        let mut near = vec![false; CELLS * CELLS * CELLS];
        let size = 256.0 / CELLS as f32;
        let reach = (tolerance / size).ceil() as i32;
        for c in palette {
            let cell = c.map(|v| (v.clamp(0.0, 255.0) / size) as i32);
            for r in cell[0] - reach..=cell[0] + reach {
                for g in cell[1] - reach..=cell[1] + reach {
                    for b in cell[2] - reach..=cell[2] + reach {
                        let at = [r, g, b];
                        let inside = at.iter().all(|v| (0..CELLS as i32).contains(v));
                        let d: f32 = (0..3)
                            .map(|k| ((at[k] as f32 + 0.5) * size - c[k].clamp(0.0, 255.0)).powi(2))
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
        let size = 256.0 / CELLS as f32;
        let [r, g, b] = c.map(|v| ((v.clamp(0.0, 255.0) / size) as usize).min(CELLS - 1));
        self.near[(r * CELLS + g) * CELLS + b]
    }
}

/// The connected part of a mask that is largest with its holes filled.
fn largest(mask: &[bool], width: usize, height: usize) -> Option<Blob> {
    let mut label = vec![0u32; mask.len()];
    let mut best: Option<(usize, Vec<bool>, Vec<bool>)> = None;
    let mut stack = Vec::new();
    for start in 0..mask.len() {
        if !mask[start] || label[start] != 0 {
            continue;
        }
        let mut part = vec![false; mask.len()];
        let mut count = 0;
        label[start] = 1;
        stack.push(start);
        while let Some(at) = stack.pop() {
            part[at] = true;
            count += 1;
            for next in neighbours(at, width, height) {
                if mask[next] && label[next] == 0 {
                    label[next] = 1;
                    stack.push(next);
                }
            }
        }
        // A thin outline still has this many pixels.
        if (count as f32) < 0.25 * SMALLEST * (height * height) as f32 {
            continue;
        }
        let filled = fill_holes(&part, width, height);
        let area = filled.iter().filter(|inside| **inside).count();
        if best.as_ref().is_none_or(|(most, ..)| area > *most) {
            best = Some((area, part, filled));
        }
    }
    let (area, open, filled) = best?;
    let scale = height as f32;
    if (area as f32) < SMALLEST * scale * scale {
        return None;
    }
    let (mut x, mut y, mut cut) = (0.0f32, 0.0f32, false);
    for at in (0..filled.len()).filter(|at| filled[*at]) {
        let (column, row) = (at % width, at / width);
        x += column as f32 + 0.5;
        y += row as f32 + 0.5;
        cut |= column == 0 || row == 0 || column + 1 == width || row + 1 == height;
    }
    let radius = (area as f32 / std::f32::consts::PI).sqrt() / scale;
    let count = area as f32 * scale;
    let centre = [x / area as f32, y / area as f32];
    let between = between_edges(mask, &filled, centre, width);
    Some(Blob { x: x / count, y: y / count, radius, cut, open, filled, between })
}

/// Takes away the blocks that are more of the background's colour than of the object's.
fn sharpen(blob: &mut Blob, frame: &[[f32; 3]], clip: &Clip) {
    let scale = clip.height as f32;
    let near = |at: &usize| {
        let dx = (at % clip.width) as f32 / scale - blob.x;
        let dy = (at / clip.width) as f32 / scale - blob.y;
        dx.abs().max(dy.abs()) < 1.9 * blob.radius
    };
    let behind: Vec<usize> = (0..frame.len()).filter(|at| !blob.filled[*at]).filter(near).collect();
    let mean = |places: &[usize]| -> [f32; 3] {
        let sum = |k: usize| places.iter().map(|at| frame[*at][k]).sum::<f32>();
        std::array::from_fn(|k| sum(k) / places.len().max(1) as f32)
    };
    let back = mean(&behind);
    let off = |at: usize| -> f32 { (0..3).map(|k| (frame[at][k] - back[k]).powi(2)).sum() };
    let mut places: Vec<usize> = (0..frame.len()).filter(|at| blob.open[*at]).collect();
    places.sort_by(|a, b| off(*a).total_cmp(&off(*b)));
    // The colours that differ most, but for some of the darker edge.
    let body = mean(&places[places.len() * 6 / 10..places.len() * 9 / 10]);
    let apart: f32 = (0..3).map(|k| (body[k] - back[k]).powi(2)).sum();
    for at in places {
        blob.open[at] = off(at) > 0.2 * apart;
    }
}

/// What is enclosed by the outer edge of a thing, but not by a second edge within it, if there is one in most
/// directions from the centre.
fn between_edges(mask: &[bool], filled: &[bool], centre: [f32; 2], width: usize) -> Vec<bool> {
    const DIRECTIONS: usize = 24;
    let mut between = filled.to_vec();
    let mut holes = Vec::new();
    for direction in 0..DIRECTIONS {
        let angle = direction as f32 / DIRECTIONS as f32 * std::f32::consts::TAU;
        let (sin, cos) = angle.sin_cos();
        let (mut edges, mut first, mut on_edge) = (0, 0.0, false);
        for step in 0..width + filled.len() / width {
            let (x, y) = (centre[0] + step as f32 * cos, centre[1] + step as f32 * sin);
            let inside = x >= 0.0 && y >= 0.0 && (x as usize) < width;
            let at = if inside { y as usize * width + x as usize } else { filled.len() };
            if at >= filled.len() || !filled[at] {
                break;
            }
            if mask[at] && !on_edge {
                edges += 1;
                first = if edges == 1 { step as f32 } else { first };
            }
            on_edge = mask[at];
        }
        if edges >= 2 && first > 1.0 {
            holes.push(first);
        }
    }
    if holes.len() * 2 > DIRECTIONS {
        holes.sort_by(f32::total_cmp);
        let radius = holes[holes.len() / 2];
        for (at, inside) in between.iter_mut().enumerate() {
            let (dx, dy) = ((at % width) as f32 - centre[0], (at / width) as f32 - centre[1]);
            *inside &= dx.hypot(dy) >= radius;
        }
    }
    between
}

/// The pixels left, right, above and below.
fn neighbours(at: usize, width: usize, height: usize) -> impl Iterator<Item = usize> {
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
fn fill_holes(mask: &[bool], width: usize, height: usize) -> Vec<bool> {
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

/// The object's colour: that of its inside, whatever the style has done to it.
pub(super) fn colour(clip: &Clip, track: &Track, style: Style) -> Option<Colour> {
    let look = Look::new(style, 0, track.aspect);
    let mut votes = [0.0f32; Colour::ALL.len()];
    for (frame, blob) in clip.frames.iter().zip(&track.blobs) {
        let Some(blob) = blob else { continue };
        let c = inside(frame, blob, track)?;
        let distance = |colour: &Colour| {
            let wanted = look.cast_object(colour.rgb().map(f32::from), [0.0; 3]);
            (0..3).map(|k| (c[k] - wanted[k]).powi(2)).sum::<f32>()
        };
        let best = Colour::ALL.iter().min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        votes[*best as usize] += blob.radius;
    }
    let most = (0..votes.len()).max_by(|a, b| votes[*a].total_cmp(&votes[*b]))?;
    (votes[most] > 0.0).then(|| Colour::ALL[most])
}

/// The middle colour of the pixels that are farthest from the object's edges.
fn inside(frame: &[[f32; 3]], blob: &Blob, track: &Track) -> Option<[f32; 3]> {
    let mut mask = if is_outline(blob) { blob.between.clone() } else { blob.open.clone() };
    let count = |mask: &[bool]| mask.iter().filter(|inside| **inside).count();
    let enough = count(&mask) / 4;
    loop {
        let eroded: Vec<bool> = (0..mask.len())
            .map(|at| {
                let mut near = neighbours(at, track.width, track.height);
                mask[at] && near.all(|next| mask[next])
            })
            .collect();
        // What fills the whole frame has no edges to come nearer from.
        if count(&eroded) < enough.max(4) || eroded == mask {
            break;
        }
        mask = eroded;
    }
    let mut middle = [0.0; 3];
    for (k, value) in middle.iter_mut().enumerate() {
        let mut values: Vec<f32> =
            (0..mask.len()).filter(|at| mask[*at]).map(|at| frame[at][k]).collect();
        values.sort_by(f32::total_cmp);
        *value = *values.get(values.len() / 2)?;
    }
    Some(middle)
}

/// Whether only an object's edge was seen, its inside being of the background's colour.
pub(super) fn is_outline(blob: &Blob) -> bool {
    hole(blob) > 0.42
}

/// The part of the outline's area that is open.
pub(super) fn hole(blob: &Blob) -> f32 {
    let open = blob.open.iter().filter(|inside| **inside).count();
    let filled = blob.filled.iter().filter(|inside| **inside).count();
    1.0 - open as f32 / filled.max(1) as f32
}
