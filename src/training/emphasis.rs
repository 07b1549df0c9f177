// SPDX-License-Identifier: MPL-2.0
//! Where a loss looks closer: the object covers about a sixth of a frame, but three of the five attributes are its.

use super::world::draw::{REACH, distance};
use super::world::{Placement, Scene};

/// How much of each cell of one frame, row by row, `width` in a row, the object covers at that time, 0 to 255.
pub(super) fn outline(plane: &mut [u8], width: usize, scene: &Scene, seconds: f64) {
    plane.fill(0);
    near(plane.len(), width, scene, seconds, 1.0, |at, off| {
        plane[at] = (255.0 * (0.5 - off).clamp(0.0, 1.0)) as u8;
    });
}

/// Weights of the cells of one frame, row by row, `width` in a row: those at most `reach` from where the object ends at that time
/// become `weight`.
pub(super) fn mark_outline(
    plane: &mut [f32],
    width: usize,
    scene: &Scene,
    seconds: f64,
    (reach, weight): (f32, f32),
) {
    near(plane.len(), width, scene, seconds, reach, |at, off| {
        if off.abs() <= reach {
            plane[at] = weight;
        }
    });
}

/// Tells `each` of the `cells` of one frame that may lie within `reach` of the object, and how far it is from where that ends, less
/// than 0 inside; distances are in cells.
fn near(
    cells: usize,
    width: usize,
    scene: &Scene,
    seconds: f64,
    reach: f32,
    mut each: impl FnMut(usize, f32),
) {
    let rows = (cells / width.max(1)) as f32;
    let aspect = width as f32 / rows;
    let place = scene.placement(seconds, aspect);
    let (sin, cos) = scene.tilt.sin_cos();
    for at in around(&place, cells, width, reach) {
        let (row, column) = (at / width, at % width);
        let x = ((column as f32 + 0.5) / rows - place.x * aspect) / place.radius;
        let y = ((row as f32 + 0.5) / rows - place.y) / place.radius;
        let off = distance(scene.attributes.shape, x * cos + y * sin, y * cos - x * sin);
        each(at, off * rows * place.radius);
    }
}

/// Those of the `cells` of one frame, row by row, `width` in a row, that lie in the square around an object, `more` cells larger on
/// each side.
fn around(
    place: &Placement,
    cells: usize,
    width: usize,
    more: f32,
) -> impl Iterator<Item = usize> + use<> {
    let height = cells / width.max(1);
    let reach = place.radius * REACH * height as f32 + more;
    let span = |centre: f32, cells: usize| {
        let centre = centre * cells as f32 - 0.5;
        let last = (centre + reach).floor().min(cells as f32 - 1.0);
        ((centre - reach).ceil().max(0.0) as usize)..((last + 1.0).max(0.0) as usize)
    };
    let columns = span(place.x, width);
    span(place.y, height)
        .flat_map(move |row| columns.clone().map(move |column| row * width + column))
}

/// Weights of the cells (pixels, latents) of one frame, row by row, `width` in a row: those of the square around the object
/// at that time become `weight`.
pub(super) fn mark(plane: &mut [f32], width: usize, scene: &Scene, seconds: f64, weight: f32) {
    let height = plane.len() / width.max(1);
    let place = scene.placement(seconds, width as f32 / height as f32);
    // Half a cell more, as cells are touched that hardly hold any of it.
    for at in around(&place, plane.len(), width, 0.5) {
        plane[at] = weight;
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::{Shape, Split};
    use super::*;

    #[test]
    fn what_lies_around_the_end_of_a_disc_is_marked_on_both_sides() {
        let mut scene = Scene::from_index(3, Split::Train);
        scene.attributes.shape = Shape::Circle;
        let (width, height) = (224, 128);
        let place = scene.placement(0.5, width as f32 / height as f32);
        let mut plane = vec![1.0; width * height];
        mark_outline(&mut plane, width, &scene, 0.5, (2.0, 9.0));
        let (mut marked, mut inside) = (0, 0);
        for (at, weight) in plane.iter().enumerate() {
            let x = (at % width) as f32 + 0.5 - place.x * width as f32;
            let y = (at / width) as f32 + 0.5 - place.y * height as f32;
            let off = x.hypot(y) - place.radius * height as f32;
            assert_eq!(*weight, if off.abs() <= 2.0 { 9.0 } else { 1.0 }, "{off}");
            marked += usize::from(*weight > 1.0);
            inside += usize::from(*weight > 1.0 && off < 0.0);
        }
        assert!(marked > 100 && inside > marked / 3, "{inside} of {marked}");
    }
}
