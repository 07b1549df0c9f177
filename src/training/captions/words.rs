// SPDX-License-Identifier: MPL-2.0
//! The words of the captions: synonyms for every attribute, the canonical one first, and the templates.
//!
//! All text of captions is in these tables, so the tokenizer's vocabulary is read off them.

use crate::training::world::{Background, Colour, Motion, Shape, Style};

/// Ways to say a thing.
pub(super) type Phrases = &'static [&'static str];

pub(super) fn colour(value: Colour) -> Phrases {
    match value {
        Colour::Red => &["red", "red", "crimson", "bright red"],
        Colour::Orange => &["orange", "orange", "bright orange"],
        Colour::Yellow => &["yellow", "yellow", "golden", "bright yellow"],
        Colour::Green => &["green", "green", "emerald", "bright green"],
        Colour::Cyan => &["cyan", "cyan", "turquoise", "light blue"],
        Colour::Blue => &["blue", "blue", "dark blue"],
        Colour::Purple => &["purple", "purple", "violet"],
        Colour::Pink => &["pink", "pink", "rose"],
        Colour::White => &["white", "white", "bright white"],
        Colour::Black => &["black", "black", "deep black"],
    }
}

pub(super) fn shape(value: Shape) -> Phrases {
    match value {
        Shape::Circle => &["circle", "ball", "disc", "round ball"],
        Shape::Square => &["square", "box", "block"],
        Shape::Triangle => &["triangle", "pyramid", "pointed triangle"],
        Shape::Star => &["star", "five pointed star"],
        Shape::Ring => &["ring", "donut", "hoop"],
        Shape::Heart => &["heart", "love heart"],
    }
}

/// What stands for a shape that is left out.
pub(super) const OBJECTS: Phrases = &["object", "shape", "thing"];

/// What it is doing: `moving right`.
pub(super) fn doing(value: Motion) -> Phrases {
    match value {
        Motion::MovingRight => &[
            "moving right",
            "going right",
            "moving to the right",
            "sliding to the right",
            "travelling from left to right",
        ],
        Motion::MovingLeft => &[
            "moving left",
            "going left",
            "moving to the left",
            "sliding to the left",
            "travelling from right to left",
        ],
        Motion::Rising => &["rising", "going up", "moving up", "floating upwards", "climbing"],
        Motion::Falling => {
            &["falling", "going down", "moving down", "dropping", "sinking downwards"]
        }
        Motion::Bouncing => {
            &["bouncing", "bouncing up and down", "jumping up and down", "hopping up and down"]
        }
        Motion::Circling => {
            &["circling", "going round in circles", "moving in a circle", "orbiting"]
        }
        Motion::Growing => {
            &["growing", "getting bigger", "getting larger", "becoming larger", "expanding"]
        }
        Motion::Shrinking => &["shrinking", "getting smaller", "becoming smaller"],
        Motion::Still => &["still", "standing still", "not moving", "staying in place", "resting"],
    }
}

/// What it does: `moves right`.
pub(super) fn does(value: Motion) -> Phrases {
    match value {
        Motion::MovingRight => {
            &["moves right", "goes right", "moves to the right", "slides to the right"]
        }
        Motion::MovingLeft => {
            &["moves left", "goes left", "moves to the left", "slides to the left"]
        }
        Motion::Rising => &["rises", "goes up", "moves up", "floats upwards"],
        Motion::Falling => &["falls", "goes down", "moves down", "drops"],
        Motion::Bouncing => &["bounces", "bounces up and down", "jumps up and down"],
        Motion::Circling => &["circles", "goes round in circles", "moves in a circle"],
        Motion::Growing => &["grows", "gets bigger", "gets larger", "becomes larger"],
        Motion::Shrinking => &["shrinks", "gets smaller", "becomes smaller"],
        Motion::Still => &["stands still", "does not move", "stays still", "stays in place"],
    }
}

/// Whole sentences on the motion.
pub(super) fn motion_sentences(value: Motion) -> Phrases {
    match value {
        Motion::MovingRight => &[
            "it starts on the left and moves steadily to the right",
            "it travels smoothly from the left side to the right side",
        ],
        Motion::MovingLeft => &[
            "it starts on the right and moves steadily to the left",
            "it travels smoothly from the right side to the left side",
        ],
        Motion::Rising => &[
            "it starts near the bottom and rises steadily to the top",
            "it floats slowly upwards through the frame",
        ],
        Motion::Falling => &[
            "it starts near the top and falls steadily to the bottom",
            "it drops slowly downwards through the frame",
        ],
        Motion::Bouncing => {
            &["it bounces up and down again and again", "it jumps up and comes down again"]
        }
        Motion::Circling => &[
            "it goes once round in a circle in the middle of the frame",
            "it moves smoothly in a wide circle",
        ],
        Motion::Growing => &[
            "it starts small and grows until it is large",
            "it becomes bigger and bigger in the middle of the frame",
        ],
        Motion::Shrinking => &[
            "it starts large and shrinks until it is small",
            "it becomes smaller and smaller in the middle of the frame",
        ],
        Motion::Still => {
            &["it stays still in one place and does not move", "it rests there without any motion"]
        }
    }
}

/// Where it is: `over the sea`.
pub(super) fn place(value: Background) -> Phrases {
    match value {
        Background::Sky => &[
            "over the sky",
            "in the sky",
            "in the blue sky",
            "among the clouds",
            "in a cloudy sky",
        ],
        Background::Sea => &["over the sea", "on the sea", "over the ocean", "above the waves"],
        Background::Grass => {
            &["over the grass", "on the grass", "over a green meadow", "above the green grass"]
        }
        Background::Desert => {
            &["over the desert", "in the desert", "above the sand", "over the sand dunes"]
        }
        Background::Night => &["over the night", "at night", "in the night", "under the stars"],
        Background::Snow => &["over the snow", "in the snow", "on the snow", "above white snow"],
    }
}

/// The background as a noun.
pub(super) fn scenery(value: Background) -> Phrases {
    match value {
        Background::Sky => &["sky", "blue sky", "clouds"],
        Background::Sea => &["sea", "ocean", "waves"],
        Background::Grass => &["grass", "meadow", "green grass"],
        Background::Desert => &["desert", "sand dunes", "sand"],
        Background::Night => &["night", "night sky", "stars at night"],
        Background::Snow => &["snow", "white snow"],
    }
}

/// Whole sentences on the background.
pub(super) fn place_sentences(value: Background) -> Phrases {
    match value {
        Background::Sky => &[
            "behind it is a bright blue sky with soft white clouds",
            "the background is the sky where white clouds drift",
        ],
        Background::Sea => &[
            "behind it is the dark blue sea with gentle waves",
            "the background is the deep ocean with moving waves",
        ],
        Background::Grass => &[
            "behind it is a meadow of soft green grass",
            "the background is green grass that moves in the wind",
        ],
        Background::Desert => &[
            "behind it is the desert with long dunes of warm sand",
            "the background is a dry desert with yellow sand dunes",
        ],
        Background::Night => &[
            "behind it is a dark night sky with a few bright stars",
            "the background is the night with small shining stars",
        ],
        Background::Snow => &[
            "behind it is a field of bright white snow",
            "the background is cold white snow in winter",
        ],
    }
}

/// The style as an addition: `pixel art`.
pub(super) fn look(value: Style) -> Phrases {
    match value {
        Style::None => &[""],
        Style::PixelArt => &[
            "pixel art",
            "in the style of pixel art",
            "as pixel art",
            "in pixel art style",
            "made of large pixels",
        ],
        Style::Film => &[
            "1920s film",
            "in the style of a 1920s film",
            "as an old film",
            "like an old black and white movie",
            "vintage film",
            "in 1920s film style",
        ],
        Style::Underwater => &[
            "underwater",
            "under water",
            "in the style of underwater",
            "deep under water",
            "in underwater style",
        ],
        Style::Rainbow => &[
            "rainbow",
            "in the style of a rainbow",
            "in rainbow colours",
            "with all the colours of the rainbow",
            "in rainbow style",
        ],
        Style::Jungle => &[
            "jungle",
            "in the jungle",
            "in the style of a jungle",
            "among the leaves of a jungle",
            "in jungle style",
        ],
    }
}

/// Whole sentences on the style.
pub(super) fn look_sentences(value: Style) -> Phrases {
    match value {
        Style::None => &[""],
        Style::PixelArt => &[
            "everything is drawn as pixel art with large blocks",
            "the picture is made of large square pixels in few colours",
        ],
        Style::Film => &[
            "it looks like an old 1920s film in grey and sepia",
            "the picture is vintage film with dark corners and a light flicker",
        ],
        Style::Underwater => &[
            "the whole scene is underwater in blue green light",
            "everything is deep under water with moving patterns of light",
        ],
        Style::Rainbow => &[
            "a rainbow of all colours moves over the whole picture",
            "the whole scene shines in the colours of the rainbow",
        ],
        Style::Jungle => &[
            "it is in a green jungle with leaves all around",
            "green leaves of the jungle are in the front of the picture",
        ],
    }
}

/// Templates: segments and what joins them. A segment whose slots are all empty is left out.
///
/// Slots: `{n}` the object with its article, `{o}` without, `{m}` what it is doing, `{v}` what it does, `{t}`
/// the same after `that`, `{b}` where, `{g}` the background as a noun, `{y}` the style.
pub(super) const TEMPLATES: &[(&[&str], &str)] = &[
    (&["{n} {v} {b}", "{y}"], ", "),
    (&["{y}", "{n} {m} {b}"], ": "),
    (&["{b} {n} {v}", "{y}"], ", "),
    (&["a video of {n} {m} {b}", "{y}"], ", "),
    (&["{o}", "{m}", "{g}", "{y}"], ", "),
    (&["there is {n} {b}", "it {v}", "{y}"], ". "),
    (&["{n} {t} {b}", "{y}"], ", "),
    (&["{n} {b} {m}", "{y}"], ", "),
    (&["{y}", "{g}", "{n} {m}"], ", "),
];

/// The canonical template.
pub(super) const CANONICAL: (&[&str], &str) = (&["{n} {m} {b}", "{y}"], ", ");

/// First sentences of long captions.
pub(super) const OPENINGS: Phrases = &[
    "this short video shows {n}",
    "a clip of {n}",
    "in this scene there is {n}",
    "we see one {o} in the frame",
    "the video shows {n} with soft light on it",
    "a colourful animation of {n}",
];

/// Articles and words that the templates put in by themselves.
pub(super) const SMALL_WORDS: Phrases = &["a an that something"];
