// SPDX-License-Identifier: MPL-2.0
//! Scenes with one attribute exchanged, to be noised in place of the truth that a caption names.
//!
//! Who is only ever shown noised truth learns to trust what shows through the noise more than the words: what came out wrong at
//! a high level stays wrong, and what is to be restyled keeps its look. Where the noisy picture shows one thing and the
//! caption says another, words have to be heard at every level. It is what a sampler's own mistakes look like (as in DAgger,
//! Ross et al., arXiv 1011.0686), and, for styles, the very task of restyling, its structure kept.

use super::captions::Mentioned;
use super::world::draw::{Draws, mix64};
use super::world::{Attributes, Background, Colour, Scene, Shape, Style};

/// The attribute that is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchanged {
    Colour,
    Shape,
    Background,
    Style,
}

impl Exchanged {
    /// Whether a caption says what it should be.
    pub fn is_said(self, mentioned: Mentioned) -> bool {
        match self {
            Self::Colour => mentioned.colour,
            Self::Shape => mentioned.shape,
            Self::Background => mentioned.background,
            Self::Style => mentioned.style,
        }
    }
}

/// How often a styled still has its style exchanged (a styled clip always), and how often for the plain look, which most of what
/// is restyled has.
const STYLE: f32 = 0.6;
const PLAIN: f32 = 0.8;
/// How often the shape, and how often the shape or the colour, where it is not the style.
const SHAPE: f32 = 0.6;
const OBJECT: f32 = 0.85;

/// The scene with one attribute exchanged, all else in its place, and which; `None` where that combination is held out.
/// The scene's seed decides. What clips can teach beyond stills is how a style stays. Of a collage it is always the style.
pub fn exchanged(scene: &Scene, still: bool) -> Option<(Scene, Exchanged)> {
    let mut draws = Draws::new(mix64(scene.seed ^ 0x7031));
    let before = scene.attributes;
    let styled = before.style != Style::None;
    if scene.collage {
        // Nothing of it is in the world, so nothing is held out either.
        let plain = styled && draws.unit() < PLAIN;
        let style = if plain { Style::None } else { other(Style::ALL, before.style, &mut draws) };
        let attributes = Attributes { style, ..before };
        return Some((Scene { attributes, ..*scene }, Exchanged::Style));
    }
    let (attributes, what) = if styled && (draws.unit() < STYLE || !still) {
        let plain = draws.unit() < PLAIN;
        let style = if plain { Style::None } else { other(Style::ALL, before.style, &mut draws) };
        (Attributes { style, ..before }, Exchanged::Style)
    } else {
        match draws.unit() {
            u if u < SHAPE => {
                let shape = other(Shape::ALL, before.shape, &mut draws);
                (Attributes { shape, ..before }, Exchanged::Shape)
            }
            u if u < OBJECT => {
                let colour = other(Colour::ALL, before.colour, &mut draws);
                (Attributes { colour, ..before }, Exchanged::Colour)
            }
            _ => {
                let background = other(Background::ALL, before.background, &mut draws);
                (Attributes { background, ..before }, Exchanged::Background)
            }
        }
    };
    (!attributes.held_out()).then_some((Scene { attributes, ..*scene }, what))
}

/// One of the values that is not this one.
fn other<T: Copy + PartialEq>(all: &[T], not: T, draws: &mut Draws) -> T {
    loop {
        let drawn = all[draws.below(all.len())];
        if drawn != not {
            return drawn;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::Split;
    use super::*;

    #[test]
    fn of_a_collage_it_is_the_style() {
        let mut plain = 0;
        for index in 0..200 {
            let scene = Scene { collage: true, ..Scene::from_index(index, Split::Train) };
            let (other, what) = exchanged(&scene, false).unwrap();
            assert!(what == Exchanged::Style && other.attributes.style != scene.attributes.style);
            assert_eq!(Scene { attributes: scene.attributes, ..other }, scene);
            plain += usize::from(other.attributes.style == Style::None);
        }
        assert!((80..140).contains(&plain), "{plain}");
    }

    #[test]
    fn one_attribute_is_another_and_nothing_else() {
        let mut counts = [0; 4];
        let mut none = 0;
        for index in 0..1000 {
            let scene = Scene::from_index(index, Split::Train);
            let still = index % 3 > 0;
            let Some((other, what)) = exchanged(&scene, still) else {
                none += 1;
                continue;
            };
            assert!(!other.attributes.held_out());
            assert_eq!(Scene { attributes: scene.attributes, ..other }, scene);
            let (a, b) = (scene.attributes, other.attributes);
            let differs = [
                a.colour != b.colour,
                a.shape != b.shape,
                a.background != b.background,
                a.style != b.style,
            ];
            assert_eq!(a.motion, b.motion);
            let expected = [0, 1, 2, 3].map(|at| at == what as usize);
            assert_eq!(differs, expected);
            counts[what as usize] += 1;
            assert!(a.style != Style::None || what != Exchanged::Style);
            assert!(a.style == Style::None || what == Exchanged::Style || still);
        }
        assert!((20..90).contains(&none), "{none}");
        assert!(counts.iter().all(|&count| count > 40), "{counts:?}");
    }
}
