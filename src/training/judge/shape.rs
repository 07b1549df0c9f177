// SPDX-License-Identifier: MPL-2.0
//! The shape of the followed object: all frames' outlines laid over each other, compared with each shape.

use super::object::{Blob, Track, is_outline};
use crate::training::world::Shape;
use crate::training::world::draw::distance;
use std::sync::OnceLock;

/// Points per side of a normalised outline.
const SIDE: usize = 40;
/// Half the side, in radii of a disc of the outline's area.
const EXTENT: f32 = 1.7;

/// How an outline compares with the shapes and with itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fit {
    /// The likeliest shape.
    pub(super) shape: Shape,
    /// Agreement with it (intersection over union, 0 to 1).
    pub(super) agreement: f32,
    /// Mean agreement of the frames' outlines with their mean.
    pub(super) steadiness: f32,
}

/// The shape that fits best, and how well.
pub(super) fn recognise(track: &Track) -> Option<Fit> {
    let seen = normalised(track)?;
    let fits = templates().iter().map(|(shape, template)| (*shape, agreement(&seen, template)));
    let best = fits.max_by(|a, b| a.1.total_cmp(&b.1))?;
    // Coarse blocks make a ring's hole too small for its template, but no other shape has any.
    let middle: Vec<f32> = (0..SIDE * SIDE)
        .filter(|at| point(*at)[0].hypot(point(*at)[1]) < 0.2)
        .map(|at| seen[at])
        .collect();
    let open = middle.iter().sum::<f32>() < 0.5 * middle.len() as f32;
    let shape = if open && best.0 == Shape::Circle { Shape::Ring } else { best.0 };
    let each: Vec<f32> =
        track.blobs.iter().flatten().map(|blob| agreement(&outline(blob, track), &seen)).collect();
    let steadiness = each.iter().sum::<f32>() / each.len() as f32;
    Some(Fit { shape, agreement: best.1, steadiness })
}

/// Mean outline over the frames, in units of its own size; large ones count more.
fn normalised(track: &Track) -> Option<Vec<f32>> {
    let whole = track.blobs.iter().flatten().any(|blob| !blob.cut);
    let largest = track.blobs.iter().flatten().map(|blob| blob.radius).fold(0.0, f32::max);
    let mut sum = vec![0.0f32; SIDE * SIDE];
    let mut weights = 0.0;
    for blob in track.blobs.iter().flatten().filter(|blob| !(whole && blob.cut)) {
        let weight = (blob.radius / largest).powi(4);
        for (total, share) in sum.iter_mut().zip(outline(blob, track)) {
            *total += weight * share;
        }
        weights += weight;
    }
    (weights > 0.0).then(|| sum.iter().map(|total| total / weights).collect())
}

/// One frame's outline in units of its own size.
fn outline(blob: &Blob, track: &Track) -> Vec<f32> {
    let mask = if is_outline(blob) { &blob.between } else { &blob.open };
    (0..SIDE * SIDE).map(|at| sampled(mask, blob, track, point(at))).collect()
}

/// The place of a point of the normalised outline.
fn point(at: usize) -> [f32; 2] {
    let place = |i: usize| ((i as f32 + 0.5) / SIDE as f32 * 2.0 - 1.0) * EXTENT;
    [place(at % SIDE), place(at / SIDE)]
}

/// A mask at a place relative to the blob, interpolated.
fn sampled(mask: &[bool], blob: &Blob, track: &Track, [u, v]: [f32; 2]) -> f32 {
    let scale = track.height as f32;
    let x = (blob.x + u * blob.radius) * scale - 0.5;
    let y = (blob.y + v * blob.radius) * scale - 0.5;
    let value = |x: f32, y: f32| {
        let inside = x >= 0.0 && y >= 0.0 && x < track.width as f32 && y < track.height as f32;
        f32::from(u8::from(inside && mask[y as usize * track.width + x as usize]))
    };
    let (fx, fy) = (x.floor(), y.floor());
    let (a, b) = (x - fx, y - fy);
    let top = value(fx, fy) * (1.0 - a) + value(fx + 1.0, fy) * a;
    let bottom = value(fx, fy + 1.0) * (1.0 - a) + value(fx + 1.0, fy + 1.0) * a;
    top + (bottom - top) * b
}

/// Intersection over union of two soft masks.
fn agreement(a: &[f32], b: &[f32]) -> f32 {
    let both: f32 = a.iter().zip(b).map(|(a, b)| a.min(*b)).sum();
    let either: f32 = a.iter().zip(b).map(|(a, b)| a.max(*b)).sum();
    both / either.max(1e-6)
}

/// Every shape, slightly turned, about its own centre and in its own size.
fn templates() -> &'static [(Shape, Vec<f32>)] {
    static TEMPLATES: OnceLock<Vec<(Shape, Vec<f32>)>> = OnceLock::new();
    TEMPLATES.get_or_init(|| {
        let tilts = [-0.16f32, -0.08, 0.0, 0.08, 0.16];
        let each = Shape::ALL.iter();
        each.flat_map(|s| tilts.iter().map(|tilt| (*s, template(*s, *tilt)))).collect()
    })
}

fn template(shape: Shape, tilt: f32) -> Vec<f32> {
    const FINE: usize = 200;
    let (sin, cos) = tilt.sin_cos();
    let inside = |x: f32, y: f32, hole_filled: bool| {
        let (u, v) = (x * cos + y * sin, y * cos - x * sin);
        distance(shape, u, v) < 0.0 || (hole_filled && shape == Shape::Ring && u.hypot(v) < 0.74)
    };
    let (mut count, mut x, mut y) = (0.0f32, 0.0f32, 0.0f32);
    let place = |i: usize| (i as f32 + 0.5) / FINE as f32 * 3.0 - 1.5;
    for at in 0..FINE * FINE {
        let (u, v) = (place(at % FINE), place(at / FINE));
        if inside(u, v, true) {
            (count, x, y) = (count + 1.0, x + u, y + v);
        }
    }
    let (x, y) = (x / count, y / count);
    let cell = 3.0 / FINE as f32;
    let radius = (count * cell * cell / std::f32::consts::PI).sqrt();
    let soft = EXTENT / SIDE as f32;
    (0..SIDE * SIDE)
        .map(|at| {
            let [u, v] = point(at);
            let offsets = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]];
            let hits = offsets.iter().filter(|[a, b]| {
                inside(x + (u + a * soft) * radius, y + (v + b * soft) * radius, false)
            });
            hits.count() as f32 / 4.0
        })
        .collect()
}
