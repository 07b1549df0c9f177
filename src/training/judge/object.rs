// SPDX-License-Identifier: MPL-2.0
//! Things in a clip: in every frame the largest one of a mask, and what its colour is.

use super::Clip;
use super::mask::{fill_holes, grown, neighbours};
use crate::training::world::style::Look;
use crate::training::world::{Colour, Style};

/// Smallest object, as a part of the squared height.
const SMALLEST: f32 = 0.005;

/// A thing in one frame; lengths in heights.
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

/// A thing through the frames of a clip.
pub(super) struct Track {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) aspect: f32,
    pub(super) blobs: Vec<Option<Blob>>,
}

/// The largest thing of each frame's mask.
pub(super) fn follow(clip: &Clip, masks: Vec<Vec<bool>>, style: Style) -> Track {
    let blobs = clip.frames.iter().zip(masks).map(|(frame, open)| {
        let mut blob = largest(&open, clip.width, clip.height)?;
        if style == Style::PixelArt {
            sharpen(&mut blob, frame, clip);
        }
        Some(blob)
    });
    Track { width: clip.width, height: clip.height, aspect: clip.aspect(), blobs: blobs.collect() }
}

/// The connected part of a mask that is largest with its holes filled.
fn largest(mask: &[bool], width: usize, height: usize) -> Option<Blob> {
    let mut seen = vec![false; mask.len()];
    let mut best: Option<(usize, Vec<bool>, Vec<bool>)> = None;
    for start in 0..mask.len() {
        if !mask[start] || seen[start] {
            continue;
        }
        seen[start] = true;
        let mut places = vec![start];
        let mut next = 0;
        while let Some(at) = places.get(next).copied() {
            next += 1;
            for other in neighbours(at, width, height) {
                if mask[other] && !seen[other] {
                    seen[other] = true;
                    places.push(other);
                }
            }
        }
        // A thin outline still has this many pixels.
        if (places.len() as f32) < 0.25 * SMALLEST * (height * height) as f32 {
            continue;
        }
        let mut part = vec![false; mask.len()];
        places.iter().for_each(|at| part[*at] = true);
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

/// The object's colour: that of its inside, whatever the style has done to it.
pub(super) fn colour(clip: &Clip, track: &Track, style: Style) -> Option<Colour> {
    let look = Look::new(style, 0, track.aspect);
    let mut votes = [0.0f32; Colour::ALL.len()];
    for (frame, blob) in clip.frames.iter().zip(&track.blobs) {
        let Some(blob) = blob else { continue };
        let Some(c) = inside(frame, blob, track) else { continue };
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

/// How far a thing's colour is from that of what is around it, in levels of 255: the median of the frames.
pub(super) fn contrast(clip: &Clip, track: &Track) -> f32 {
    let wider = |mask: &[bool], by: usize| {
        (0..by).fold(mask.to_vec(), |mask, _| grown(&mask, true, clip.width, clip.height))
    };
    let steps = clip.frames.iter().zip(&track.blobs).filter_map(|(frame, blob)| {
        let blob = blob.as_ref()?;
        // Soft edges are neither.
        let near = wider(&blob.filled, 2);
        let around = wider(&near, 3).into_iter().zip(near).map(|(far, near)| far && !near);
        let around: Vec<bool> = around.collect();
        let (thing, around) = (mean(frame, &blob.open)?, mean(frame, &around)?);
        Some((0..3).map(|k| (thing[k] - around[k]).powi(2)).sum::<f32>().sqrt())
    });
    let mut steps: Vec<f32> = steps.collect();
    steps.sort_by(f32::total_cmp);
    steps.get(steps.len() / 2).copied().unwrap_or(0.0)
}

/// Mean colour within a mask; `None` where it is empty.
fn mean(frame: &[[f32; 3]], mask: &[bool]) -> Option<[f32; 3]> {
    let inside = || frame.iter().zip(mask).filter(|(_, inside)| **inside).map(|(c, _)| c);
    let count = inside().count() as f32;
    let sum = |k: usize| inside().map(|c| c[k]).sum::<f32>();
    (count > 0.0).then(|| std::array::from_fn(|k| sum(k) / count))
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
