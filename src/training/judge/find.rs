// SPDX-License-Identifier: MPL-2.0
//! Which of the things in a clip is its object.
//!
//! First what is not of the background's colours. Where that is no shape, there are other ways to see an object that a
//! viewer sees at once: it is so like its background that little but its rim shows, in pieces; or its background has
//! its colour too, elsewhere, or so many colours that what is foreign to them is more than the object. Each way has to
//! lead to a shape, and to a thing that can be an object, or it is left.

use super::look::Seen;
use super::object::{self, Track};
use super::shape::{self, Fit};
use super::{FOLLOWED, mask, motion};
use crate::training::world::{Colour, Motion, Shape, Style};

/// Colours nearer than this to one of the background's are background.
const TOLERANCE: f32 = 20.0;
/// The same where a style has its own wide range of colours, or few levels, and for faint rims.
const SMALL_TOLERANCE: f32 = 13.0;
/// Half the widest gaps in a rim that are closed, in pixels.
const GAPS: [usize; 3] = [0, 2, 4];

/// The least agreement with a shape (intersection over union).
const LEAST: f32 = 0.62;
/// The same for a thing found by its colour, which a piece of the background may be.
const LEAST_OF_COLOUR: f32 = 0.7;
/// No other way to see an object is tried where the first one agrees as much with a shape.
const SURE: f32 = 0.8;
/// By how much a rim in pieces has to agree better with a shape.
const BETTER: f32 = 0.1;
/// The least agreement of a thing's outlines with their mean.
const STEADY: f32 = 0.6;
/// The least colour distances between what is around a thing and a rim, or a thing by its colour.
const RIM_CONTRAST: f32 = 12.0;
const COLOUR_CONTRAST: f32 = 75.0;
/// Radii that objects have, in heights: the largest of a clip is larger than the one, none is larger than the other.
const RADII: [f32; 2] = [0.09, 0.5];

/// A thing followed through a clip.
pub(super) struct Thing {
    pub(super) track: Track,
    fit: Option<Fit>,
}

impl Thing {
    fn new(seen: &Seen, masks: Vec<Vec<bool>>) -> Self {
        let track = object::follow(&seen.flattened, masks, seen.style);
        let fit = shape::recognise(&track);
        Self { track, fit }
    }

    fn agreement(&self) -> f32 {
        self.fit.map_or(0.0, |fit| fit.agreement)
    }

    /// The shape, where it is one, is there nearly always and gets as large as objects do.
    pub(super) fn shape(&self) -> Option<Shape> {
        let radii = || self.track.blobs.iter().flatten().map(|blob| blob.radius);
        let there = radii().count() * 3 >= self.track.blobs.len() * 2;
        // One that is about to grow may be smaller.
        let grown = radii().any(|radius| radius > RADII[0]) || self.track.blobs.len() < FOLLOWED;
        let fit = self.fit.filter(|fit| fit.agreement > LEAST)?;
        (there && grown).then_some(fit.shape)
    }

    /// What it does.
    pub(super) fn motion(&self) -> Option<Motion> {
        motion(&self.track)
    }

    /// Whether it can be an object: no larger than objects get, and moving as they do.
    fn is_plausible(&self) -> bool {
        let large = self.track.blobs.iter().flatten().any(|blob| blob.radius >= RADII[1]);
        let moves = self.motion().is_some() || self.track.blobs.len() < FOLLOWED;
        !large && moves
    }

    /// Whether it is a thing of its own beyond doubt, whatever its shape.
    pub(super) fn is_clear(&self, seen: &Seen) -> bool {
        let cut = self.track.blobs.iter().flatten().filter(|blob| blob.cut).count();
        self.is_plausible()
            && self.fit.is_some_and(|fit| fit.steadiness > STEADY)
            && cut * 2 < self.track.blobs.len()
            && object::contrast(&seen.flattened, &self.track) > COLOUR_CONTRAST
    }
}

/// The likeliest object; what is not of the background's colours where nothing is likely.
pub(super) fn object(seen: &Seen) -> Thing {
    let usual = match seen.style {
        Style::Rainbow | Style::PixelArt | Style::Jungle => SMALL_TOLERANCE,
        _ => TOLERANCE,
    };
    let first = Thing::new(seen, mask::foreign(&seen.flattened, &seen.palette, usual));
    if first.shape().is_some() && first.agreement() > SURE {
        return first;
    }
    let rim = rims(seen, usual).max_by(|a, b| a.agreement().total_cmp(&b.agreement()));
    let rim = rim.filter(|rim| rim.agreement() > first.agreement() + BETTER);
    let best = rim.unwrap_or(first);
    if best.shape().is_some() || seen.style == Style::Film {
        return best;
    }
    let colour = of_colours(seen).max_by(|a, b| a.agreement().total_cmp(&b.agreement()));
    colour.filter(|thing| thing.agreement() > best.agreement()).unwrap_or(best)
}

/// Shapes whose rims show faintly, or in pieces only.
fn rims(seen: &Seen, usual: f32) -> impl Iterator<Item = Thing> + '_ {
    let clip = &seen.flattened;
    let faint = (usual > SMALL_TOLERANCE).then_some(SMALL_TOLERANCE);
    let things = std::iter::once(usual).chain(faint).flat_map(move |tolerance| {
        let masks = mask::foreign(clip, &seen.palette, tolerance);
        // Without a gap closed the usual one has been looked at.
        let gaps = GAPS.into_iter().filter(move |gap| (tolerance, *gap) != (usual, 0));
        gaps.map(move |gap| {
            let closed = masks.iter().map(|mask| mask::closed(mask, gap, clip.width, clip.height));
            Thing::new(seen, closed.collect())
        })
    });
    things.filter(|thing| {
        thing.shape().is_some()
            && thing.is_plausible()
            && object::contrast(&seen.flattened, &thing.track) > RIM_CONTRAST
    })
}

/// Shapes of one of the objects' colours that stand out from what is around them.
fn of_colours(seen: &Seen) -> impl Iterator<Item = Thing> + '_ {
    let masks = mask::of_colours(&seen.flattened, seen.style);
    let things = Colour::ALL.iter().zip(masks).map(|(c, masks)| (*c, Thing::new(seen, masks)));
    let things = things.filter(|(colour, thing)| {
        thing.shape().is_some()
            && thing.agreement() > LEAST_OF_COLOUR
            && thing.is_clear(seen)
            && object::colour(&seen.flattened, &thing.track, seen.style) == Some(*colour)
    });
    things.map(|(_, thing)| thing)
}
