// SPDX-License-Identifier: MPL-2.0
//! Captions of the procedural world, in lower-case ASCII, and the tokenizer that knows their words.
//!
//! One caption in ten is empty (the unconditional case of guidance). The rest are in equal parts the
//! canonical template, one of the other short templates with synonyms, and a long description. A third of
//! all captions leave attributes out; the picture is free in what a caption does not say.

mod tokenizer;
mod words;

pub use tokenizer::{MAX_TOKENS, build_tokenizer_json, tokenizer_config_json};

use super::world::draw::{Draws, mix64};
use super::world::{Attributes, Style};
use words::Phrases;

/// Which attributes a caption names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mentioned {
    /// The object's colour.
    pub colour: bool,
    /// The object's shape.
    pub shape: bool,
    /// What the object does.
    pub motion: bool,
    /// What is behind it.
    pub background: bool,
    /// The style; the plain look, which has no word, counts where a caption names all the rest.
    pub style: bool,
}

impl Mentioned {
    /// All attributes.
    pub const ALL: Self =
        Self { colour: true, shape: true, motion: true, background: true, style: true };
    /// No attribute.
    pub const NONE: Self =
        Self { colour: false, shape: false, motion: false, background: false, style: false };

    /// At least one named and at least one not; the rest by chance.
    fn some(draws: &mut Draws, style: Style) -> Self {
        loop {
            let bits = draws.below(32);
            let bit = |at: usize| bits >> at & 1 == 1;
            let drawn = Self {
                colour: bit(0),
                shape: bit(1),
                motion: bit(2),
                background: bit(3),
                style: bit(4) && style != Style::None,
            };
            let named = [drawn.colour, drawn.shape, drawn.motion, drawn.background];
            if (named.contains(&true) || drawn.style)
                && (named.contains(&false) || (style != Style::None && !drawn.style))
            {
                return drawn;
            }
        }
    }
}

/// A caption and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captioned {
    /// The text; empty in the unconditional case.
    pub caption: String,
    /// What it names.
    pub mentioned: Mentioned,
}

/// The caption `a <colour> <shape> <motion> over the <background>[, <style>]`, with `an` before a vowel.
pub fn canonical(attributes: &Attributes) -> String {
    Writer::canonical(attributes, Mentioned::ALL).fill(words::CANONICAL)
}

/// A caption for a scene with these attributes; the seed decides which.
pub fn caption(attributes: &Attributes, seed: u64) -> String {
    captioned(attributes, seed).caption
}

/// The same as [`caption`], together with what it names.
pub fn captioned(attributes: &Attributes, seed: u64) -> Captioned {
    let mut draws = Draws::new(mix64(seed ^ 0xca97_1095));
    // Out of thirty: three empty, ten with something left out, seventeen complete.
    let mentioned = match draws.below(30) {
        0..3 => return Captioned { caption: String::new(), mentioned: Mentioned::NONE },
        3..13 => Mentioned::some(&mut draws, attributes.style),
        _ => Mentioned::ALL,
    };
    let caption = match draws.below(3) {
        0 => {
            let mut writer = Writer::canonical(attributes, mentioned);
            // Both articles are met before a vowel: prompts made by rule have `a` there.
            writer.plain_article = draws.below(2) == 0;
            writer.fill(words::CANONICAL)
        }
        1 => {
            let template = words::TEMPLATES[draws.below(words::TEMPLATES.len())];
            Writer::varied(attributes, mentioned, &mut draws).fill(template)
        }
        _ => long(attributes, mentioned, &mut draws),
    };
    Captioned { caption, mentioned }
}

/// Words that name a style and nothing else, as one restyles with; the seed decides which.
pub fn look(style: Style, seed: u64) -> &'static str {
    pick(words::look(style), &mut Draws::new(mix64(seed ^ 0x100c)))
}

/// A caption that names every attribute, in one of the many ways to say it; the seed decides which.
pub fn complete(attributes: &Attributes, seed: u64) -> String {
    // Two in three of all captions are complete, so the canonical one at the end is for form's sake.
    (0..64)
        .map(|attempt| captioned(attributes, seed * 64 + attempt))
        .find(|captioned| captioned.mentioned == Mentioned::ALL)
        .map_or_else(|| canonical(attributes), |captioned| captioned.caption)
}

/// An opening and a sentence for each further attribute, in any order.
fn long(attributes: &Attributes, mentioned: Mentioned, draws: &mut Draws) -> String {
    let writer = Writer::varied(attributes, mentioned, draws);
    let mut sentences = vec![writer.segment(pick(words::OPENINGS, draws))];
    let mut rest = Vec::new();
    if mentioned.motion {
        rest.push(pick(words::motion_sentences(attributes.motion), draws));
    }
    if mentioned.background {
        rest.push(pick(words::place_sentences(attributes.background), draws));
    }
    if mentioned.style && attributes.style != Style::None {
        rest.push(pick(words::look_sentences(attributes.style), draws));
    }
    while !rest.is_empty() {
        sentences.push(rest.swap_remove(draws.below(rest.len())).to_owned());
    }
    sentences.retain(|sentence| !sentence.is_empty());
    let mut text = sentences.join(". ");
    if draws.below(2) == 0 {
        text.push('.');
    }
    text
}

fn pick(phrases: Phrases, draws: &mut Draws) -> &'static str {
    phrases[draws.below(phrases.len())]
}

/// The phrases chosen for one caption; empty where an attribute is left out.
struct Writer {
    colour: &'static str,
    shape: &'static str,
    doing: &'static str,
    does: &'static str,
    place: &'static str,
    scenery: &'static str,
    look: &'static str,
    /// What stands for the shape where that is left out.
    object: &'static str,
    /// `a` even before a vowel.
    plain_article: bool,
}

impl Writer {
    fn new(
        attributes: &Attributes,
        mentioned: Mentioned,
        mut choose: impl FnMut(Phrases) -> &'static str,
    ) -> Self {
        let mut named = |named: bool, phrases: Phrases| if named { choose(phrases) } else { "" };
        Self {
            colour: named(mentioned.colour, words::colour(attributes.colour)),
            shape: named(mentioned.shape, words::shape(attributes.shape)),
            doing: named(mentioned.motion, words::doing(attributes.motion)),
            does: named(mentioned.motion, words::does(attributes.motion)),
            place: named(mentioned.background, words::place(attributes.background)),
            scenery: named(mentioned.background, words::scenery(attributes.background)),
            look: named(mentioned.style, words::look(attributes.style)),
            object: named(true, words::OBJECTS),
            plain_article: false,
        }
    }

    fn canonical(attributes: &Attributes, mentioned: Mentioned) -> Self {
        Self::new(attributes, mentioned, |phrases| phrases[0])
    }

    fn varied(attributes: &Attributes, mentioned: Mentioned, draws: &mut Draws) -> Self {
        Self::new(attributes, mentioned, |phrases| pick(phrases, draws))
    }

    /// Colour and shape without an article.
    fn object(&self) -> String {
        match (self.colour, self.shape) {
            ("", "") => String::new(),
            ("", shape) => shape.to_owned(),
            (colour, "") => format!("{colour} {}", self.object),
            (colour, shape) => format!("{colour} {shape}"),
        }
    }

    /// Colour and shape with an article.
    fn noun(&self) -> String {
        let object = self.object();
        match object.chars().next() {
            None => "something".to_owned(),
            Some('a' | 'e' | 'i' | 'o' | 'u') if !self.plain_article => format!("an {object}"),
            Some(_) => format!("a {object}"),
        }
    }

    fn slot(&self, name: &str) -> String {
        match name {
            "n" => self.noun(),
            "o" => self.object(),
            "m" => self.doing.to_owned(),
            "v" => self.does.to_owned(),
            "t" if self.does.is_empty() => String::new(),
            "t" => format!("that {}", self.does),
            "b" => self.place.to_owned(),
            "g" => self.scenery.to_owned(),
            _ => self.look.to_owned(),
        }
    }

    /// A segment with its slots filled; empty if it has slots and none of them holds anything.
    fn segment(&self, template: &str) -> String {
        let mut slots = 0;
        let mut filled = 0;
        let mut said: Vec<String> = Vec::new();
        for word in template.split(' ') {
            match word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                None => said.push(word.to_owned()),
                Some(name) => {
                    slots += 1;
                    let text = self.slot(name);
                    if !text.is_empty() {
                        filled += 1;
                        said.push(text);
                    }
                }
            }
        }
        if slots > 0 && filled == 0 { String::new() } else { said.join(" ") }
    }

    fn fill(&self, (segments, separator): (&[&str], &str)) -> String {
        let said = segments.iter().map(|segment| self.segment(segment));
        said.filter(|segment| !segment.is_empty()).collect::<Vec<_>>().join(separator)
    }
}

#[cfg(test)]
mod tests;
