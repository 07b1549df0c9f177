// SPDX-License-Identifier: MPL-2.0
//! The tools of the drawing: counted random numbers, soft noise, signed distances of the shapes.
//!
//! Distances are in units of the object's radius, negative inside, x to the right, y downwards.

use super::Shape;

/// A one-to-one scrambling of 64 bits (the finaliser of SplitMix64).
pub(crate) fn mix64(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of random numbers that its seed determines.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    state: u64,
}

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let value = mix64(self.state);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        value
    }

    /// 0 (included) to 1 (excluded).
    pub(crate) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    pub(crate) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// 0 to `count` - 1.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.next()) * count as u128) >> 64) as usize
    }
}

/// Smooth step from 0 at `low` to 1 at `high`.
pub(crate) fn smoothstep(low: f32, high: f32, value: f32) -> f32 {
    let u = ((value - low) / (high - low)).clamp(0.0, 1.0);
    u * u * (3.0 - 2.0 * u)
}

/// `a` to `b` by `t`, channel by channel.
pub(crate) fn blend(a: [f32; 3], b: [f32; 3], t: f32) -> [f32; 3] {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

/// Perceived lightness of an RGB colour, in its own range.
pub(crate) fn luminance(c: [f32; 3]) -> f32 {
    0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]
}

/// The colour of an object's edge: darker, or lighter where it is dark already.
pub(in crate::training) fn rim_of(c: [f32; 3]) -> [f32; 3] {
    if luminance(c) > 45.0 { c.map(|v| 0.55 * v) } else { c.map(|v| v + 72.0) }
}

/// Soft noise over the plane, 0 to 1, one feature per unit.
pub(crate) fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (fx, fy) = (x.floor(), y.floor());
    let (ix, iy) = (fx as i32, fy as i32);
    let (u, v) = (x - fx, y - fy);
    let (u, v) = (u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v));
    let top = lattice(ix, iy, seed) * (1.0 - u) + lattice(ix + 1, iy, seed) * u;
    let bottom = lattice(ix, iy + 1, seed) * (1.0 - u) + lattice(ix + 1, iy + 1, seed) * u;
    top + (bottom - top) * v
}

/// Two octaves of [`noise`], 0 to 1.
pub(crate) fn noise2(x: f32, y: f32, seed: u32) -> f32 {
    0.68 * noise(x, y, seed) + 0.32 * noise(2.03 * x + 7.1, 2.03 * y - 3.7, seed ^ 0x9e37)
}

fn lattice(x: i32, y: i32, seed: u32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x85eb_ca6b) ^ (y as u32).wrapping_mul(0xc2b2_ae35) ^ seed;
    h ^= h >> 15;
    h = h.wrapping_mul(0x2c1b_3c6d);
    h ^= h >> 12;
    h = h.wrapping_mul(0x297a_2d39);
    h ^= h >> 15;
    (h >> 8) as f32 / (1u32 << 24) as f32
}

/// How far a shape of radius 1 reaches from its centre.
pub(crate) const REACH: f32 = 1.3;

/// Signed distance from the outline of a shape of radius 1 at the origin.
pub(crate) fn distance(shape: Shape, x: f32, y: f32) -> f32 {
    match shape {
        Shape::Circle => x.hypot(y) - 1.0,
        Shape::Ring => (x.hypot(y) - 0.74).abs() - 0.28,
        Shape::Square => {
            let (dx, dy) = (x.abs() - 0.86, y.abs() - 0.86);
            dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
        }
        Shape::Triangle => triangle(x, y - 0.2),
        Shape::Star => star(x, y - 0.06),
        Shape::Heart => heart(x, y),
    }
}

/// Equilateral triangle with its point upwards: the largest of the three half-plane distances.
fn triangle(x: f32, y: f32) -> f32 {
    const INNER: f32 = 0.62;
    let side = 0.866_025_4 * x.abs() - 0.5 * y;
    side.max(y) - INNER
}

/// Five-pointed star with a point upwards: folded into one tenth, there the distance to one edge.
fn star(x: f32, y: f32) -> f32 {
    const OUTER: f32 = 1.22;
    const INNER: f32 = 0.56;
    // Reflections at the normals of the sectors of 36 degrees leave the wedge around the upper point.
    const N1: [f32; 2] = [0.809_017, -0.587_785_25];
    const N2: [f32; 2] = [-0.809_017, -0.587_785_25];
    let (mut px, mut py) = (x.abs(), -y);
    let k = 2.0 * (N1[0] * px + N1[1] * py).max(0.0);
    (px, py) = (px - k * N1[0], py - k * N1[1]);
    let k = 2.0 * (N2[0] * px + N2[1] * py).max(0.0);
    (px, py) = (px - k * N2[0], py - k * N2[1]);
    px = px.abs();
    // The edge runs from the outer point (0, OUTER) to the inner one, 36 degrees aside.
    let (ex, ey) = (INNER * 0.587_785_25, INNER * 0.809_017 - OUTER);
    let (qx, qy) = (px, py - OUTER);
    let along = ((qx * ex + qy * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
    let apart = (qx - ex * along).hypot(qy - ey * along);
    // Left of the edge (towards the axis) is inside.
    if qx * ey - qy * ex > 0.0 { -apart } else { apart }
}

/// Two round lobes above a right-angled point.
fn heart(x: f32, y: f32) -> f32 {
    const SCALE: f32 = 1.85;
    let (px, py) = (x.abs() / SCALE, 0.54 - y / SCALE);
    let d = if px + py > 1.0 {
        (px - 0.25).hypot(py - 0.75) - 0.353_553_4
    } else {
        let along = 0.5 * (px + py).max(0.0);
        let edge = (px - along).hypot(py - along).min(px.hypot(py - 1.0));
        if px > py { edge } else { -edge }
    };
    d * SCALE
}
