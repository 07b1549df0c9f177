// SPDX-License-Identifier: MPL-2.0
//! Pixels of a scene: the soft background on a coarse grid, interpolated; stars, leaves and the object, each
//! drawn within its own bounding box.

use super::background::{Backdrop, Star};
use super::collage::Collage;
use super::draw::{REACH, blend, distance, luminance, rim_of, smoothstep};
use super::style::{Field, Leaf, Look};
use super::{Scene, Style};

/// Grid cells per height of frame: the textures have no detail finer than this.
const CELLS: usize = 32;
/// Blocks per height of frame in pixel art.
const BLOCKS: usize = 16;
/// Samples per side of a block in pixel art.
const BLOCK_SAMPLES: usize = 5;
/// Distance between the levels of a channel in pixel art.
const LEVEL: f32 = 255.0 / 7.0;

impl Scene {
    /// Renders frames `first_frame` and following: `[num_frames, height, width, 3]`, RGB, 0 to 255.
    pub fn render(
        &self,
        width: usize,
        height: usize,
        num_frames: usize,
        first_frame: i64,
        fps: f64,
    ) -> Vec<u8> {
        let bytes = width * height * 3;
        let mut pixels = vec![0; num_frames * bytes];
        if bytes == 0 {
            return pixels;
        }
        let mut painter = Painter::new(self, width, height);
        for (frame, out) in pixels.chunks_exact_mut(bytes).enumerate() {
            painter.paint((first_frame + frame as i64) as f64 / fps, out);
        }
        pixels
    }

    /// Renders the moment `seconds` into `out`, `[height, width, 3]`, RGB, 0 to 255.
    ///
    /// # Panics
    /// If `out` is not of `width * height * 3` bytes.
    pub fn render_frame(&self, seconds: f64, width: usize, height: usize, out: &mut [u8]) {
        assert_eq!(out.len(), width * height * 3, "bytes of a {width}x{height} RGB frame");
        if !out.is_empty() {
            Painter::new(self, width, height).paint(seconds, out);
        }
    }
}

/// Draws the frames of one scene at one size; keeps its buffers from frame to frame.
struct Painter<'a> {
    scene: &'a Scene,
    width: usize,
    height: usize,
    canvas: Canvas,
}

impl<'a> Painter<'a> {
    fn new(scene: &'a Scene, width: usize, height: usize) -> Self {
        let aspect = width as f32 / height as f32;
        let canvas = if scene.attributes.style == Style::PixelArt {
            let columns = (width * BLOCKS).div_ceil(height);
            Canvas::new(scene, [columns * BLOCK_SAMPLES, BLOCKS * BLOCK_SAMPLES], aspect)
        } else {
            Canvas::new(scene, [width, height], aspect)
        };
        Self { scene, width, height, canvas }
    }

    fn paint(&mut self, seconds: f64, out: &mut [u8]) {
        self.canvas.paint(self.scene, seconds);
        if self.scene.attributes.style == Style::PixelArt {
            self.blocks(out);
        } else {
            for (to, from) in out.iter_mut().zip(&self.canvas.pixels) {
                *to = (from + 0.5) as u8;
            }
        }
    }

    /// Blocks of even colour, of few levels.
    fn blocks(&self, out: &mut [u8]) {
        let columns = self.canvas.width / BLOCK_SAMPLES;
        let stride = self.canvas.width * 3;
        let mut blocks = vec![[0u8; 3]; columns * BLOCKS];
        for (i, block) in blocks.iter_mut().enumerate() {
            let (row, column) = (i / columns * BLOCK_SAMPLES, i % columns * BLOCK_SAMPLES);
            let mut sum = [0.0f32; 3];
            for y in row..row + BLOCK_SAMPLES {
                let line = &self.canvas.pixels[y * stride + column * 3..][..BLOCK_SAMPLES * 3];
                for pixel in line.chunks_exact(3) {
                    for (total, value) in sum.iter_mut().zip(pixel) {
                        *total += value;
                    }
                }
            }
            let count = (BLOCK_SAMPLES * BLOCK_SAMPLES) as f32;
            *block = sum.map(|total| ((total / count / LEVEL).round() * LEVEL + 0.5) as u8);
        }
        for y in 0..self.height {
            let row = &blocks[y * BLOCKS / self.height * columns..][..columns];
            let line = &mut out[y * self.width * 3..][..self.width * 3];
            for (x, pixel) in line.chunks_exact_mut(3).enumerate() {
                pixel.copy_from_slice(&row[x * BLOCKS / self.height]);
            }
        }
    }
}

/// A position between two grid points.
#[derive(Clone, Copy)]
struct Between {
    first: usize,
    share: f32,
}

/// A frame of `f32` RGB, 0 to 255, and the coarse grid under it.
struct Canvas {
    width: usize,
    height: usize,
    aspect: f32,
    backdrop: Backdrop,
    look: Look,
    /// What is filmed instead of the world.
    collage: Option<Collage>,
    grid_width: usize,
    grid_height: usize,
    /// Colour of the background, per grid point.
    grid: Vec<[f32; 3]>,
    /// What the style does, per grid point.
    fields: Vec<Field>,
    columns: Vec<Between>,
    rows: Vec<Between>,
    line: Vec<[f32; 3]>,
    pixels: Vec<f32>,
}

impl Canvas {
    fn new(scene: &Scene, [width, height]: [usize; 2], aspect: f32) -> Self {
        // One point more than cells, and one beyond for the interpolation's second neighbour.
        let grid_width = (aspect * CELLS as f32).ceil() as usize + 2;
        let grid_height = CELLS + 2;
        let scale = CELLS as f32 / height as f32;
        let between = |i: usize| {
            let place = (i as f32 + 0.5) * scale;
            Between { first: place as usize, share: place.fract() }
        };
        Self {
            width,
            height,
            aspect,
            backdrop: Backdrop::new(scene.attributes.background, scene.seed, aspect),
            look: Look::new(scene.attributes.style, scene.seed, aspect),
            collage: scene.collage.then(|| Collage::new(scene.seed, aspect)),
            grid_width,
            grid_height,
            grid: vec![[0.0; 3]; grid_width * grid_height],
            fields: vec![Field { gain: 1.0, tint: [0.0; 3] }; grid_width * grid_height],
            columns: (0..width)
                .map(between)
                .map(|b| Between { first: b.first.min(grid_width - 2), ..b })
                .collect(),
            rows: (0..height).map(between).collect(),
            line: vec![[0.0; 3]; grid_width],
            pixels: vec![0.0; width * height * 3],
        }
    }

    fn paint(&mut self, scene: &Scene, seconds: f64) {
        let t = seconds as f32;
        self.fill_grid(t);
        self.fill_pixels(t);
        let leaves: Vec<Leaf> = self.look.leaves_at(t).collect();
        for leaf in leaves {
            self.leaf(leaf);
        }
        if self.collage.is_none() {
            self.object(scene, seconds);
        }
        for value in &mut self.pixels {
            *value = value.clamp(0.0, 255.0);
        }
    }

    fn fill_grid(&mut self, t: f32) {
        for j in 0..self.grid_height {
            let y = j as f32 / CELLS as f32;
            for i in 0..self.grid_width {
                let x = i as f32 / CELLS as f32;
                let field = self.look.field(x, y, self.aspect, t);
                let c = self.look.cast(self.backdrop.colour(x, y, t));
                let at = j * self.grid_width + i;
                self.grid[at] = std::array::from_fn(|k| c[k] * field.gain + field.tint[k]);
                self.fields[at] = field;
            }
        }
    }

    /// All but leaves and object.
    fn fill_pixels(&mut self, t: f32) {
        if let Some(collage) = &self.collage {
            collage.paint(t, (self.width, self.height), &mut self.pixels);
            return self.restyle();
        }
        self.interpolate();
        let stars: Vec<Star> = self.backdrop.stars().to_vec();
        for star in stars {
            self.star(star, t);
        }
    }

    /// Gives every pixel what the style makes of a background.
    fn restyle(&mut self) {
        for y in 0..self.height {
            for x in 0..self.width {
                let field = self.field_at(x, y);
                let at = (y * self.width + x) * 3;
                let c = self.look.cast(std::array::from_fn(|k| self.pixels[at + k]));
                for (k, value) in self.pixels[at..at + 3].iter_mut().enumerate() {
                    *value = c[k] * field.gain + field.tint[k];
                }
            }
        }
    }

    fn interpolate(&mut self) {
        for (y, row) in self.rows.iter().enumerate() {
            let (upper, lower) = self.grid[row.first * self.grid_width..].split_at(self.grid_width);
            for ((to, a), b) in self.line.iter_mut().zip(upper).zip(lower) {
                *to = blend(*a, *b, row.share);
            }
            let out = &mut self.pixels[y * self.width * 3..][..self.width * 3];
            for (pixel, column) in out.chunks_exact_mut(3).zip(&self.columns) {
                let c = blend(self.line[column.first], self.line[column.first + 1], column.share);
                pixel.copy_from_slice(&c);
            }
        }
    }

    /// What the style does at a pixel.
    fn field_at(&self, x: usize, y: usize) -> Field {
        let (column, row) = (self.columns[x], self.rows[y]);
        let corner = row.first * self.grid_width + column.first;
        let pair = |at: usize| {
            let (a, b) = (self.fields[at], self.fields[at + 1]);
            Field {
                gain: a.gain + (b.gain - a.gain) * column.share,
                tint: blend(a.tint, b.tint, column.share),
            }
        };
        let (a, b) = (pair(corner), pair(corner + self.grid_width));
        Field {
            gain: a.gain + (b.gain - a.gain) * row.share,
            tint: blend(a.tint, b.tint, row.share),
        }
    }

    /// The pixels of a box given in heights, as half-open ranges.
    fn bounds(&self, low: [f32; 2], high: [f32; 2]) -> [std::ops::Range<usize>; 2] {
        let range = |low: f32, high: f32, size: usize| {
            let scale = self.height as f32;
            let from = (low * scale).floor().clamp(0.0, size as f32) as usize;
            let to = (high * scale).ceil().clamp(0.0, size as f32) as usize;
            from..to.max(from)
        };
        [range(low[0], high[0], self.width), range(low[1], high[1], self.height)]
    }

    fn mix(&mut self, x: usize, y: usize, c: [f32; 3], share: f32) {
        let at = (y * self.width + x) * 3;
        for (value, c) in self.pixels[at..at + 3].iter_mut().zip(c) {
            *value += (c - *value) * share;
        }
    }

    fn star(&mut self, star: Star, t: f32) {
        let reach = 2.0 * star.radius;
        let light = star.light_at(t);
        let c = self.look.cast([0.96 * light, 0.97 * light, light]);
        let [xs, ys] =
            self.bounds([star.x - reach, star.y - reach], [star.x + reach, star.y + reach]);
        for y in ys {
            let dy = (y as f32 + 0.5) / self.height as f32 - star.y;
            for x in xs.clone() {
                let dx = (x as f32 + 0.5) / self.height as f32 - star.x;
                let fall = 1.0 - ((dx * dx + dy * dy) / (reach * reach)).min(1.0);
                let field = self.field_at(x, y);
                let lit = std::array::from_fn(|k| c[k] * field.gain + field.tint[k]);
                self.mix(x, y, lit, fall * fall);
            }
        }
    }

    fn leaf(&mut self, leaf: Leaf) {
        let along = [leaf.tip[0] - leaf.base[0], leaf.tip[1] - leaf.base[1]];
        let length = along[0].hypot(along[1]);
        let along = along.map(|v| v / length);
        let half = leaf.width * length;
        let low = std::array::from_fn(|k| leaf.base[k].min(leaf.tip[k]) - half);
        let high = std::array::from_fn(|k| leaf.base[k].max(leaf.tip[k]) + half);
        let [xs, ys] = self.bounds(low, high);
        let scale = self.height as f32;
        for y in ys {
            let dy = (y as f32 + 0.5) / scale - leaf.base[1];
            for x in xs.clone() {
                let dx = (x as f32 + 0.5) / scale - leaf.base[0];
                let u = (dx * along[0] + dy * along[1]) / length;
                if !(0.0..=1.0).contains(&u) {
                    continue;
                }
                let side = (dx * along[1] - dy * along[0]).abs();
                let inside = half * 4.0 * u * (1.0 - u) - side;
                let share = (0.5 + inside * scale * 0.8).clamp(0.0, 1.0);
                // The rib is a little lighter than the blade.
                let rib = 1.0 + 0.5 * (1.0 - side / (0.35 * half)).max(0.0);
                self.mix(x, y, leaf.colour.map(|v| v * rib), share);
            }
        }
    }

    fn object(&mut self, scene: &Scene, seconds: f64) {
        let place = scene.placement(seconds, self.aspect);
        let base = scene.attributes.colour.rgb().map(f32::from);
        let behind = self.backdrop.typical();
        let body = self.look.cast_object(base, behind);
        let rim = self.look.cast_object(rim_of(base), behind);
        // A film's grey edge must not look like the background either.
        let lighter = luminance(body) > luminance(self.look.cast(behind));
        let rim = match scene.attributes.style {
            Style::Film if lighter => body.map(|v| (v + 45.0).min(255.0)),
            Style::Film => rim_of(body),
            _ => rim,
        };
        let share = self.look.object_share();
        let (cx, cy) = (place.x * self.aspect, place.y);
        let reach = REACH * place.radius + 1.5 / self.height as f32;
        let [xs, ys] = self.bounds([cx - reach, cy - reach], [cx + reach, cy + reach]);
        let (sin, cos) = scene.tilt.sin_cos();
        let pixel = 1.0 / (self.height as f32 * place.radius);
        for y in ys {
            let dy = ((y as f32 + 0.5) / self.height as f32 - cy) / place.radius;
            for x in xs.clone() {
                let dx = ((x as f32 + 0.5) / self.height as f32 - cx) / place.radius;
                let d = distance(scene.attributes.shape, dx * cos + dy * sin, dy * cos - dx * sin);
                let cover = (0.5 - d / pixel).clamp(0.0, 1.0);
                if cover == 0.0 {
                    continue;
                }
                let light = 1.0 - 0.05 * (dx + dy);
                let edge = smoothstep(-0.2, -0.04, d);
                let c = blend(body.map(|v| v * light), rim, 0.85 * edge);
                let field = self.field_at(x, y);
                let gain = 1.0 + (field.gain - 1.0) * share;
                let lit = std::array::from_fn(|k| c[k] * gain + field.tint[k] * share);
                self.mix(x, y, lit, cover);
            }
        }
    }
}
