// SPDX-License-Identifier: MPL-2.0
//! Says from pixels alone what a clip of the procedural world shows: colour, shape, motion, background, style.
//!
//! The judge is given frames `[F, H, W, 3]` (RGB, 0 to 255, interleaved) that span about one second, and
//! nothing else: no clip's attributes or free numbers. It knows what the words mean, that is the colours that
//! a background has in a style and the outlines of the shapes. First comes the style (blocks, greyness with
//! dark corners, leaves at the border, hues all round, else colours), then the background (whose colours
//! these are), then the object (the largest thing whose colours are not the background's), and from the
//! object's track and outline all the rest.
//!
//! What it does not judge: colours in 1920s film, which has none, and motion in single pictures.

mod find;
mod look;
mod mask;
mod object;
mod shape;

use super::world::{Attributes, Background, Colour, Motion, Shape, Style};
use object::Track;

/// Frames are averaged down by a whole factor to about this height.
const HEIGHT: usize = 128;
/// The least number of frames in which a motion can be told.
const FOLLOWED: usize = 5;

/// What the judge sees; `None` where it cannot tell (or where nothing of the kind is there).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The object's colour.
    pub colour: Option<Colour>,
    /// The object's shape.
    pub shape: Option<Shape>,
    /// What the object does.
    pub motion: Option<Motion>,
    /// What is behind it.
    pub background: Option<Background>,
    /// How the frame is drawn.
    pub style: Option<Style>,
}

/// Names of the attributes, in the order of [`Verdict::compare`].
pub const ATTRIBUTES: [&str; 5] = ["colour", "shape", "motion", "background", "style"];

impl Verdict {
    /// The canonical words in the order of [`ATTRIBUTES`], `nothing` where it cannot tell.
    pub fn names(&self) -> [&'static str; 5] {
        let Self { colour, shape, motion, background, style } = self;
        let names = [
            colour.map(Colour::name),
            shape.map(Shape::name),
            motion.map(Motion::name),
            background.map(Background::name),
            style.map(Style::name),
        ];
        names.map(|name| name.unwrap_or("nothing"))
    }

    /// Whether each attribute is as it should be, in the order of [`ATTRIBUTES`]; `None` where the judge does
    /// not decide (the colour in 1920s film).
    pub fn compare(&self, wanted: &Attributes) -> [Option<bool>; 5] {
        let colour = self.colour == Some(wanted.colour);
        [
            (wanted.style != Style::Film).then_some(colour),
            Some(self.shape == Some(wanted.shape)),
            Some(self.motion == Some(wanted.motion)),
            Some(self.background == Some(wanted.background)),
            Some(self.style == Some(wanted.style)),
        ]
    }
}

/// Judges frames `[num_frames, height, width, 3]` that span about one second.
///
/// # Panics
/// If `pixels` is not of `num_frames * height * width * 3` bytes.
pub fn judge(pixels: &[u8], width: usize, height: usize) -> Verdict {
    let mut verdict =
        Verdict { colour: None, shape: None, motion: None, background: None, style: None };
    let frame_bytes = width * height * 3;
    // Below this there is nothing to be seen of blocks and outlines.
    if width < 32 || height < 32 || pixels.len() < frame_bytes {
        return verdict;
    }
    assert!(pixels.len().is_multiple_of(frame_bytes), "whole frames of {width}x{height} RGB");
    let clip = Clip::new(pixels, width, height);
    let Some(seen) = look::recognise(&clip) else { return verdict };
    verdict.style = Some(seen.style);
    verdict.background = Some(seen.background);
    let thing = find::object(&seen);
    verdict.shape = thing.shape();
    verdict.motion = thing.motion();
    // A thing may have a colour that everyone sees and no shape, but not the other way round.
    if seen.style != Style::Film && (verdict.shape.is_some() || thing.is_clear(&seen)) {
        verdict.colour = object::colour(&seen.flattened, &thing.track, seen.style);
    }
    verdict
}

/// Frames as `f32` RGB, 0 to 255, of a moderate size.
#[derive(Clone)]
struct Clip {
    width: usize,
    height: usize,
    frames: Vec<Vec<[f32; 3]>>,
}

impl Clip {
    fn new(pixels: &[u8], width: usize, height: usize) -> Self {
        let by = (height / HEIGHT).max(1);
        let (small_width, small_height) = (width / by, height / by);
        let frames = pixels.chunks_exact(width * height * 3).map(|frame| {
            let mut small = Vec::with_capacity(small_width * small_height);
            for y in 0..small_height {
                for x in 0..small_width {
                    let mut sum = [0.0f32; 3];
                    for row in y * by..(y + 1) * by {
                        let line = &frame[(row * width + x * by) * 3..][..by * 3];
                        for pixel in line.chunks_exact(3) {
                            for (total, value) in sum.iter_mut().zip(pixel) {
                                *total += f32::from(*value);
                            }
                        }
                    }
                    small.push(sum.map(|total| total / (by * by) as f32));
                }
            }
            small
        });
        Self { width: small_width, height: small_height, frames: frames.collect() }
    }

    fn aspect(&self) -> f32 {
        self.width as f32 / self.height as f32
    }
}

/// What a track of centres (in heights) and sizes is called.
fn motion(track: &Track) -> Option<Motion> {
    let seen: Vec<[f32; 3]> =
        track.blobs.iter().flatten().map(|blob| [blob.x, blob.y, blob.radius]).collect();
    // An object that is missed in many frames is not followed.
    if seen.len() < FOLLOWED || seen.len() * 3 < track.blobs.len() * 2 {
        return None;
    }
    let smooth: Vec<[f32; 3]> = (0..seen.len())
        .map(|at| {
            let near = &seen[at.saturating_sub(1)..(at + 2).min(seen.len())];
            std::array::from_fn(|k| {
                let mut values: Vec<f32> = near.iter().map(|v| v[k]).collect();
                values.sort_by(f32::total_cmp);
                values[values.len() / 2]
            })
        })
        .collect();
    let range = |k: usize| {
        let values = smooth.iter().map(|v| v[k]);
        values.clone().fold(f32::MIN, f32::max) - values.fold(f32::MAX, f32::min)
    };
    let (first, last) = (smooth[0], smooth[smooth.len() - 1]);
    let (dx, dy) = (last[0] - first[0], last[1] - first[1]);
    let (wide, high) = (range(0), range(1));
    let growth = last[2] / first[2];
    let width = track.aspect;
    let turned = high > 0.18 && dy.abs() < 0.8 * high;
    Some(if wide > 0.22 && high > 0.22 && dx.hypot(dy) < 0.75 * wide.max(high) {
        Motion::Circling
    } else if wide > 0.3 * width && wide > 1.5 * high / width.max(1.0) && dx.abs() > 0.8 * wide {
        if dx > 0.0 { Motion::MovingRight } else { Motion::MovingLeft }
    } else if turned && wide < 0.15 {
        Motion::Bouncing
    } else if high > 0.3 && dy.abs() > 0.8 * high {
        if dy > 0.0 { Motion::Falling } else { Motion::Rising }
    } else if wide.max(high) < 0.2 && growth > 1.7 {
        Motion::Growing
    } else if wide.max(high) < 0.2 && growth < 1.0 / 1.7 {
        Motion::Shrinking
    } else if wide.max(high) < 0.1 && (0.8..1.25).contains(&growth) {
        Motion::Still
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests;
