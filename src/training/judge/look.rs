// SPDX-License-Identifier: MPL-2.0
//! Style and background of a clip: a few tests on structure, then whose colours these are.

use super::Clip;
use crate::training::world::background::Backdrop;
use crate::training::world::draw::{Draws, luminance};
use crate::training::world::style::{Look, vignette};
use crate::training::world::{Background, Style};
use std::sync::OnceLock;

/// Colours farther than this from all those of a palette count alike (an object is in the way).
const FAR: f32 = 48.0;
/// A clip farther than this from every palette is none of the world.
const STRANGE: f32 = 30.0;

/// Likenesses to palettes that differ by less tell little.
const NEARLY: f32 = 10.0;

/// What a clip looks like.
pub(super) struct Seen {
    pub(super) style: Style,
    pub(super) background: Background,
    /// The frames without what a film does to light, else as they were.
    pub(super) flattened: Clip,
    /// Colours of that background in that style, in the flattened frames.
    pub(super) palette: Vec<[f32; 3]>,
}

/// Style and background, or `None` if the clip resembles none.
pub(super) fn recognise(clip: &Clip) -> Option<Seen> {
    let snapped = is_blocks(clip).then(|| snap(clip));
    let snapped = snapped.filter(|snapped| has_few_levels(snapped, clip)).map(rounded);
    let blocks = snapped.is_some();
    let clip = snapped.as_ref().unwrap_or(clip);
    let samples = samples(clip, 0);
    let styles: &[Style] = if blocks {
        &[Style::PixelArt]
    } else if is_film(clip) {
        &[Style::Film]
    } else if is_rainbow(&samples) {
        &[Style::Rainbow]
    } else if is_jungle(clip) {
        &[Style::Jungle]
    } else {
        &[Style::None, Style::Underwater]
    };
    if styles == [Style::Film] {
        return film(clip);
    }
    let mut best = (STRANGE, None);
    for style in styles {
        for background in Background::ALL {
            let score = likeness(&samples, palette(*style, *background));
            if score < best.0 {
                best = (score, Some((*style, *background)));
            }
        }
    }
    let (style, background) = best.1?;
    let mut palette = palette(style, background).to_vec();
    if style == Style::Jungle {
        with_leaves(&mut palette);
    }
    Some(Seen { style, background, flattened: clip.clone(), palette })
}

/// Colours of a clip, evenly over places and moments, each the mean of pixels up to `around` away.
fn samples(clip: &Clip, around: usize) -> Vec<[f32; 3]> {
    let mut samples = Vec::new();
    let step = (clip.frames.len() / 5).max(1);
    for frame in clip.frames.iter().step_by(step) {
        for j in 0..12 {
            for i in 0..20 {
                let (x, y) = ((2 * i + 1) * clip.width / 40, (2 * j + 1) * clip.height / 24);
                let (mut sum, mut count) = ([0.0f32; 3], 0.0);
                for y in y.saturating_sub(around)..(y + around + 1).min(clip.height) {
                    for x in x.saturating_sub(around)..(x + around + 1).min(clip.width) {
                        let c = frame[y * clip.width + x];
                        sum = std::array::from_fn(|k| sum[k] + c[k]);
                        count += 1.0;
                    }
                }
                samples.push(sum.map(|total| total / count));
            }
        }
    }
    samples
}

/// Colours that a background has in a style, as often as it has them.
fn palette(style: Style, background: Background) -> &'static [[f32; 3]] {
    static PALETTES: OnceLock<Vec<Vec<[f32; 3]>>> = OnceLock::new();
    let all = PALETTES.get_or_init(|| {
        let styles = Style::ALL.iter();
        styles.flat_map(|s| Background::ALL.iter().map(|b| make_palette(*s, *b))).collect()
    });
    &all[style as usize * Background::ALL.len() + background as usize]
}

fn make_palette(style: Style, background: Background) -> Vec<[f32; 3]> {
    let aspect = 1.75;
    let mut draws = Draws::new(0x9a1e77e);
    let mut colours = Vec::new();
    for seed in 0..40 {
        let backdrop = Backdrop::new(background, seed, aspect);
        let look = Look::new(style, seed, aspect);
        for _ in 0..15 {
            let (x, y, t) = (draws.between(0.0, aspect), draws.unit(), draws.unit());
            let c = backdrop.colour(x, y, t);
            colours.push(match style {
                // Films are compared by their light alone.
                Style::Film => [luminance(c); 3],
                Style::PixelArt => c.map(few_levels),
                _ => {
                    let field = look.field(x, y, aspect, t);
                    let c = look.cast(c);
                    std::array::from_fn(|k| c[k] * field.gain + field.tint[k])
                }
            });
        }
    }
    colours
}

/// The nearest of pixel art's eight levels.
fn few_levels(v: f32) -> f32 {
    (v * 7.0 / 255.0).round() * 255.0 / 7.0
}

/// Leaves and their soft edges before the background.
fn with_leaves(palette: &mut Vec<[f32; 3]>) {
    let behind: Vec<[f32; 3]> = palette.iter().step_by(12).copied().collect();
    for light in 0..6 {
        let share = light as f32 / 5.0;
        let leaf = [10.0 + 24.0 * share, 48.0 + 56.0 * share, 16.0 + 18.0 * share];
        for rib in [1.0, 1.3] {
            let leaf = leaf.map(|v| v * rib);
            palette.push(leaf);
            for back in &behind {
                for mix in [0.33, 0.67] {
                    palette.push(std::array::from_fn(|k| leaf[k] + (back[k] - leaf[k]) * mix));
                }
            }
        }
    }
}

/// Mean distance of each colour of one set from the nearest of the other, both ways.
fn likeness(samples: &[[f32; 3]], palette: &[[f32; 3]]) -> f32 {
    let one_way = |from: &[[f32; 3]], to: &[[f32; 3]], step: usize| {
        let from = from.iter().step_by(step);
        let count = from.len() as f32;
        let total: f32 = from.map(|c| nearest(*c, to).min(FAR)).sum();
        total / count
    };
    one_way(samples, palette, 3) + 0.7 * one_way(palette, samples, 2)
}

/// Distance to the nearest colour.
fn nearest(c: [f32; 3], palette: &[[f32; 3]]) -> f32 {
    let squared = |p: &[f32; 3]| {
        let d = [c[0] - p[0], c[1] - p[1], c[2] - p[2]];
        d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    };
    palette.iter().map(squared).fold(f32::MAX, f32::min).sqrt()
}

/// Whether steps between pixels are at the borders of blocks of a sixteenth of the height.
///
/// Lines of pixels are compared by their mean and by their median, so that neither an object's straight edges
/// nor a large object decide.
fn is_blocks(clip: &Clip) -> bool {
    // Mean step into each column from the one before, then the same of rows.
    let mut steps = vec![0.0f32; clip.width + clip.height];
    for frame in clip.frames.iter().step_by((clip.frames.len() / 4).max(1)) {
        let (across, down) = steps.split_at_mut(clip.width);
        add_steps(across, clip.height, |x, y| frame[y * clip.width + x], clip.height);
        add_steps(down, clip.width, |y, x| frame[y * clip.width + x], clip.height);
    }
    let (mut at_border, mut within) = (Vec::new(), Vec::new());
    for (lines, size) in [(&steps[..clip.width], clip.width), (&steps[clip.width..], clip.height)] {
        let begins = |i: usize| i * 16 / clip.height != (i - 1) * 16 / clip.height;
        for (i, line) in lines.iter().enumerate().take(size - 1).skip(2) {
            if begins(i) {
                at_border.push(*line);
            } else if !begins(i - 1) && !begins(i + 1) {
                // Not next to a border: soft edges of generated blocks would count there.
                within.push(*line);
            }
        }
    }
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len().max(1) as f32;
    // Soft borders of generated blocks spread; what else is in steps like these has other colours.
    mean(&at_border) > 1.4 * mean(&within) + 0.3
        && median(&mut at_border) > 1.4 * median(&mut within) + 0.3
}

/// Whether the colours of blocks are those of pixel art, or nearly as much as of any other look: a decoder may leave a
/// faint grid of the same pitch.
fn has_few_levels(snapped: &Clip, clip: &Clip) -> bool {
    let (blocks, all) = (samples(snapped, 0), samples(clip, 0));
    let best = |samples: &[[f32; 3]], pixel_art: bool| {
        let styles = Style::ALL.iter().filter(|style| (**style == Style::PixelArt) == pixel_art);
        let looks = styles.flat_map(|s| Background::ALL.iter().map(|b| palette(*s, *b)));
        looks.map(|palette| likeness(samples, palette)).fold(f32::MAX, f32::min)
    };
    best(&blocks, true) < best(&all, false) + NEARLY
}

/// The clip with every block filled with the mean of its inner part, free of noise and soft borders.
fn snap(clip: &Clip) -> Clip {
    let mut snapped = clip.clone();
    let (width, height) = (clip.width, clip.height);
    let columns = (width * 16).div_ceil(height);
    let span = |block: usize, size: usize| {
        let (from, to) = ((block * height).div_ceil(16), ((block + 1) * height).div_ceil(16));
        from.min(size)..to.min(size)
    };
    for (from, to) in clip.frames.iter().zip(&mut snapped.frames) {
        for block in 0..16 * columns {
            let (xs, ys) = (span(block % columns, width), span(block / columns, height));
            let inset = |range: &std::ops::Range<usize>| {
                let by = range.len() / 4;
                range.start + by..range.end - by
            };
            let (mut sum, mut count) = ([0.0f32; 3], 0.0f32);
            for y in inset(&ys) {
                for x in inset(&xs) {
                    sum = std::array::from_fn(|k| sum[k] + from[y * width + x][k]);
                    count += 1.0;
                }
            }
            let mean = sum.map(|total| total / count.max(1.0));
            for y in ys {
                to[y * width..][xs.clone()].fill(mean);
            }
        }
    }
    snapped
}

/// The clip with every colour the nearest of pixel art's: a decoder is off by less than half a level.
fn rounded(mut clip: Clip) -> Clip {
    let pixels = clip.frames.iter_mut().flatten();
    pixels.for_each(|pixel| *pixel = pixel.map(few_levels));
    clip
}

/// Adds to each line the mean step from the line before, where lines are averaged over runs as long as a
/// block, so that noise does not count as steps.
fn add_steps(
    lines: &mut [f32],
    length: usize,
    at: impl Fn(usize, usize) -> [f32; 3],
    height: usize,
) {
    let runs = length * 16 / height;
    for run in 0..runs {
        let along = run * height / 16..(run + 1) * height / 16;
        let count = along.len() as f32;
        let mean = |line: usize| {
            let mut sum = [0.0f32; 3];
            for place in along.clone() {
                let c = at(line, place);
                sum = std::array::from_fn(|k| sum[k] + c[k] / count);
            }
            sum
        };
        let mut before = mean(0);
        for (line, total) in lines.iter_mut().enumerate() {
            let here = mean(line);
            let step: f32 = (0..3).map(|k| (here[k] - before[k]).abs()).sum();
            *total += step / runs as f32 / 4.0;
            before = here;
        }
    }
}

/// The middle value; 0 of none.
fn median(values: &mut [f32]) -> f32 {
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Whether all colours are shades of one grey or brown, and the corners dark.
fn is_film(clip: &Clip) -> bool {
    let samples = samples(clip, 2);
    let mean: [f32; 3] =
        std::array::from_fn(|k| samples.iter().map(|c| c[k]).sum::<f32>() / samples.len() as f32);
    let light = luminance(mean).max(1.0);
    let (red, blue) = (mean[0] / light, mean[2] / light);
    if !(0.97..1.35).contains(&red) || !(0.6..1.04).contains(&blue) {
        return false;
    }
    let off = |c: &[f32; 3]| {
        let l = luminance(*c);
        (c[0] - red * l).abs() + (c[2] - blue * l).abs()
    };
    let coloured = samples.iter().map(off).sum::<f32>() / samples.len() as f32;
    coloured < 0.07 * light + 2.5 && corners(clip) < 0.7
}

/// Light of the corners relative to that of the inner frame.
fn corners(clip: &Clip) -> f32 {
    let (mut corner, mut inner) = ([0.0f32; 2], [0.0f32; 2]);
    for frame in &clip.frames {
        for y in 0..clip.height {
            let dy = (2 * y + 1) as f32 / clip.height as f32 - 1.0;
            for x in 0..clip.width {
                let dx = (2 * x + 1) as f32 / clip.width as f32 - 1.0;
                let out = dx * dx + dy * dy;
                let sum = if out > 1.5 {
                    &mut corner
                } else if (0.15..0.6).contains(&out) {
                    &mut inner
                } else {
                    continue;
                };
                sum[0] += luminance(frame[y * clip.width + x]);
                sum[1] += 1.0;
            }
        }
    }
    (corner[0] / corner[1]) / (inner[0] / inner[1]).max(1.0)
}

/// Whether hues go all round the mean colour.
fn is_rainbow(samples: &[[f32; 3]]) -> bool {
    let chroma = |c: &[f32; 3]| [0.866 * (c[1] - c[2]), c[0] - 0.5 * (c[1] + c[2])];
    let count = samples.len() as f32;
    let mut mean = [0.0f32; 2];
    for c in samples {
        let c = chroma(c);
        mean = [mean[0] + c[0] / count, mean[1] + c[1] / count];
    }
    let mut sectors = [0.0f32; 8];
    let mut far = 0.0;
    for c in samples {
        let c = chroma(c);
        let (a, b) = (c[0] - mean[0], c[1] - mean[1]);
        let sector = (a.atan2(b) / std::f32::consts::TAU).rem_euclid(1.0) * 8.0;
        if a.hypot(b) > 20.0 {
            sectors[(sector as usize).min(7)] += 1.0 / count;
            far += 1.0 / count;
        }
    }
    far > 0.6 && sectors.iter().all(|share| *share > 0.025)
}

/// Whether the border is full of leaves.
fn is_jungle(clip: &Clip) -> bool {
    let band = (clip.width.min(clip.height) as f32 * 0.07).ceil() as usize;
    let (mut leaves, mut all) = (0.0, 0.0f32);
    for frame in clip.frames.iter().step_by(4) {
        for y in 0..clip.height {
            for x in 0..clip.width {
                let inset = x.min(y).min(clip.width - 1 - x).min(clip.height - 1 - y);
                if inset < band {
                    let [r, g, b] = frame[y * clip.width + x];
                    let leaf = (35.0..145.0).contains(&g) && g > 2.0 * r && g > 2.0 * b;
                    leaves += f32::from(u8::from(leaf));
                    all += 1.0;
                }
            }
        }
    }
    leaves > 0.2 * all
}

/// A film's background: light without vignette and flicker, its spread and how it changes.
fn film(clip: &Clip) -> Option<Seen> {
    let mut flattened = clip.clone();
    let aspect = clip.aspect();
    for frame in &mut flattened.frames {
        for (at, pixel) in frame.iter_mut().enumerate() {
            let (x, y) = ((at % clip.width) as f32 + 0.5, (at / clip.width) as f32 + 0.5);
            let height = clip.height as f32;
            let gain = vignette(x / height, y / height, aspect);
            *pixel = [(luminance(*pixel) / gain - 14.0) / 0.9; 3];
        }
    }
    even_out(&mut flattened);
    let samples = samples(&flattened, 0);
    let mut best = (STRANGE, None);
    for background in Background::ALL {
        let score = likeness(&samples, palette(Style::Film, *background));
        if score < best.0 {
            best = (score, Some(*background));
        }
    }
    let mut background = best.1?;
    // Light clouds and snow differ in spread only; objects, dark before both, are in the lower half.
    let mut lights: Vec<f32> = samples.iter().map(|c| c[0]).collect();
    lights.sort_by(f32::total_cmp);
    let spread = lights[lights.len() * 95 / 100] - lights[lights.len() / 2];
    if background == Background::Sky && spread < 14.0 && lights[lights.len() / 2] > 200.0 {
        background = Background::Snow;
    }
    let palette = palette(Style::Film, background).to_vec();
    Some(Seen { style: Style::Film, background, flattened, palette })
}

/// Takes out what changes the light of whole frames, as it shows towards the corners.
fn even_out(clip: &mut Clip) {
    let (width, height) = (clip.width, clip.height);
    let outer: Vec<usize> = (0..width * height)
        .filter(|at| {
            let dx = (2 * (at % width) + 1) as f32 / width as f32 - 1.0;
            let dy = (2 * (at / width) + 1) as f32 / height as f32 - 1.0;
            (1.0..1.6).contains(&(dx * dx + dy * dy))
        })
        .collect();
    let middles: Vec<f32> = clip
        .frames
        .iter()
        .map(|frame| {
            median(&mut outer.iter().map(|at| frame[*at][0]).collect::<Vec<f32>>()).max(1.0)
        })
        .collect();
    let mean = middles.iter().sum::<f32>() / middles.len() as f32;
    for (frame, middle) in clip.frames.iter_mut().zip(middles) {
        let gain = (mean / middle).clamp(0.9, 1.1);
        frame.iter_mut().for_each(|pixel| *pixel = pixel.map(|v| v * gain));
    }
}
