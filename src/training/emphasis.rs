// SPDX-License-Identifier: MPL-2.0
//! Where a loss looks closer: the object covers about a sixth of a frame, but three of the five attributes are its.

use super::world::Scene;
use super::world::draw::{REACH, distance};

/// How much of each cell of one frame, row by row, `width` in a row, the object covers at that time, 0 to 255.
pub(super) fn outline(plane: &mut [u8], width: usize, scene: &Scene, seconds: f64) {
    let rows = (plane.len() / width.max(1)) as f32;
    let aspect = width as f32 / rows;
    let place = scene.placement(seconds, aspect);
    let (sin, cos) = scene.tilt.sin_cos();
    for (at, cell) in plane.iter_mut().enumerate() {
        let (row, column) = (at / width, at % width);
        let x = ((column as f32 + 0.5) / rows - place.x * aspect) / place.radius;
        let y = ((row as f32 + 0.5) / rows - place.y) / place.radius;
        if x.abs().max(y.abs()) > REACH + 1.0 / (rows * place.radius) {
            *cell = 0;
            continue;
        }
        let off = distance(scene.attributes.shape, x * cos + y * sin, y * cos - x * sin);
        *cell = (255.0 * (0.5 - off * rows * place.radius).clamp(0.0, 1.0)) as u8;
    }
}

/// Weights of the cells (pixels, latents) of one frame, row by row, `width` in a row: those of the square around the object
/// at that time become `weight`.
pub(super) fn mark(plane: &mut [f32], width: usize, scene: &Scene, seconds: f64, weight: f32) {
    let height = plane.len() / width.max(1);
    let place = scene.placement(seconds, width as f32 / height as f32);
    // Half a cell more, as cells are touched that hardly hold any of it.
    let reach = place.radius * REACH * height as f32 + 0.5;
    let span = |centre: f32, cells: usize| {
        let centre = centre * cells as f32 - 0.5;
        let last = (centre + reach).floor().min(cells as f32 - 1.0);
        ((centre - reach).ceil().max(0.0) as usize)..((last + 1.0).max(0.0) as usize)
    };
    for row in span(place.y, height) {
        for column in span(place.x, width) {
            plane[row * width + column] = weight;
        }
    }
}
