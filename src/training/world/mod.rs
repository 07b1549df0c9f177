// SPDX-License-Identifier: MPL-2.0
//! The procedural world that the default model learns: one object before one background in one style.
//!
//! Everything is a pure function of an index (or of attributes and a seed): there is no state, no file and
//! no clock, so any clip can be made again anywhere. Coordinates are fractions of the frame, x to the right,
//! y downwards; radii are fractions of the height; time is in seconds and continuous, so that a still
//! picture at any moment and a clip of any length come from the same functions. Frames are RGB, 8 bits a
//! channel, interleaved `[F, H, W, 3]`.
//!
//! Motions are defined over the first second and go on alike: what moves in a direction leaves the frame and
//! comes in again at the opposite side, bouncing and circling repeat, and what grows (or shrinks) does so
//! over one second, goes back within half a second and begins again.

pub(super) mod background;
mod collage;
pub(super) mod draw;
pub mod export;
mod render;
pub(super) mod style;

use draw::{Draws, mix64};

/// Seconds over which growing and shrinking take place.
const GROWTH: f64 = 1.0;
/// Seconds after which growing and shrinking begin again.
const GROWTH_PERIOD: f64 = 1.5;
/// One in so many combinations of attributes is held out of training.
const HELD_OUT_ONE_IN: u64 = 20;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $(#[doc = concat!("The word `", $word, "`.")] $variant,)+
        }

        impl $name {
            /// Every value, in the order of the world's table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The canonical word, as captions have it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The value of that canonical word, if there is one.
            pub fn from_name(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == word)
            }
        }
    };
}

words! {
    /// The object's colour.
    Colour {
        Red = "red", Orange = "orange", Yellow = "yellow", Green = "green", Cyan = "cyan",
        Blue = "blue", Purple = "purple", Pink = "pink", White = "white", Black = "black",
    }
}

words! {
    /// The object's shape.
    Shape {
        Circle = "circle", Square = "square", Triangle = "triangle",
        Star = "star", Ring = "ring", Heart = "heart",
    }
}

words! {
    /// What the object does.
    Motion {
        MovingRight = "moving right", MovingLeft = "moving left", Rising = "rising",
        Falling = "falling", Bouncing = "bouncing", Circling = "circling",
        Growing = "growing", Shrinking = "shrinking", Still = "still",
    }
}

words! {
    /// What is behind the object.
    Background {
        Sky = "sky", Sea = "sea", Grass = "grass", Desert = "desert", Night = "night", Snow = "snow",
    }
}

words! {
    /// How the whole frame is drawn; `None` is the plain look, which captions do not name.
    Style {
        None = "none", PixelArt = "pixel art", Film = "1920s film", Underwater = "underwater",
        Rainbow = "rainbow", Jungle = "jungle",
    }
}

impl Colour {
    /// The object's base colour as RGB, 0 to 255.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [219, 31, 31],
            Self::Orange => [242, 140, 26],
            Self::Yellow => [242, 224, 38],
            Self::Green => [38, 179, 51],
            Self::Cyan => [38, 204, 217],
            Self::Blue => [38, 64, 217],
            Self::Purple => [140, 51, 191],
            Self::Pink => [242, 128, 179],
            Self::White => [242, 242, 242],
            Self::Black => [13, 13, 13],
        }
    }
}

/// What a clip shows, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// The object's colour.
    pub colour: Colour,
    /// The object's shape.
    pub shape: Shape,
    /// What the object does.
    pub motion: Motion,
    /// What is behind it.
    pub background: Background,
    /// How the frame is drawn.
    pub style: Style,
}

impl Attributes {
    /// How many combinations there are.
    pub const COUNT: u64 = (Colour::ALL.len()
        * Shape::ALL.len()
        * Motion::ALL.len()
        * Background::ALL.len()
        * Style::ALL.len()) as u64;

    /// The combination of that number; numbers from [`Self::COUNT`] on begin again.
    pub fn from_number(number: u64) -> Self {
        let mut rest = number;
        let mut digit = |base: usize| {
            let value = (rest % base as u64) as usize;
            rest /= base as u64;
            value
        };
        Self {
            colour: Colour::ALL[digit(Colour::ALL.len())],
            shape: Shape::ALL[digit(Shape::ALL.len())],
            motion: Motion::ALL[digit(Motion::ALL.len())],
            background: Background::ALL[digit(Background::ALL.len())],
            style: Style::ALL[digit(Style::ALL.len())],
        }
    }

    /// The combination's number, 0 to [`Self::COUNT`] - 1.
    pub fn number(&self) -> u64 {
        let mut number = self.style as u64;
        number = number * Background::ALL.len() as u64 + self.background as u64;
        number = number * Motion::ALL.len() as u64 + self.motion as u64;
        number = number * Shape::ALL.len() as u64 + self.shape as u64;
        number * Colour::ALL.len() as u64 + self.colour as u64
    }

    /// The canonical words: colour, shape, motion, background, style.
    pub fn names(&self) -> [&'static str; 5] {
        let Self { colour, shape, motion, background, style } = self;
        [colour.name(), shape.name(), motion.name(), background.name(), style.name()]
    }

    /// Whether training must not see this combination (about one in twenty, by a fixed hash of its number).
    pub fn held_out(&self) -> bool {
        mix64(self.number() ^ 0x005e_ed0f_4e1d_0a7a).is_multiple_of(HELD_OUT_ONE_IN)
    }

    /// Even over every attribute, but for the plain look, which is one clip in three.
    fn draw(draws: &mut Draws) -> Self {
        let style = if draws.below(3) == 0 {
            Style::None
        } else {
            Style::ALL[1 + draws.below(Style::ALL.len() - 1)]
        };
        Self {
            colour: Colour::ALL[draws.below(Colour::ALL.len())],
            shape: Shape::ALL[draws.below(Shape::ALL.len())],
            motion: Motion::ALL[draws.below(Motion::ALL.len())],
            background: Background::ALL[draws.below(Background::ALL.len())],
            style,
        }
    }
}

/// The world's own word of that spelling, as [`Attributes::names`] has it.
///
/// # Errors
/// When there is none.
pub fn word(text: &str) -> anyhow::Result<&'static str> {
    let names = Colour::ALL.iter().map(|v| v.name());
    names
        .chain(Shape::ALL.iter().map(|v| v.name()))
        .chain(Motion::ALL.iter().map(|v| v.name()))
        .chain(Background::ALL.iter().map(|v| v.name()))
        .chain(Style::ALL.iter().map(|v| v.name()))
        .find(|name| *name == text)
        .ok_or_else(|| {
            anyhow::anyhow!(
                "found \"{text}\", expected a colour, shape, motion, background or style of the drawn world, as in \"star\" or \"pixel art\""
            )
        })
}

/// Which combinations of attributes a scene may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Those that are not held out.
    Train,
    /// Only those that are held out.
    HeldOut,
    /// All.
    Any,
}

impl Split {
    fn admits(self, attributes: &Attributes) -> bool {
        match self {
            Self::Train => !attributes.held_out(),
            Self::HeldOut => attributes.held_out(),
            Self::Any => true,
        }
    }
}

/// Where the object is and how large: centre as fractions of the frame, radius as a fraction of its height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Centre, fraction of the width.
    pub x: f32,
    /// Centre, fraction of the height.
    pub y: f32,
    /// Radius, fraction of the height.
    pub radius: f32,
}

/// One clip: its attributes and every number that they leave free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scene {
    /// What it shows.
    pub attributes: Attributes,
    /// Radius of the object (of its middle size where that changes), fraction of the height.
    pub radius: f32,
    /// Centre at time 0, or the centre of the motion where it is periodic; fractions of the frame.
    pub start: [f32; 2],
    /// How far it travels in one second (fraction of the frame), or the height of a bounce, the radius of the
    /// circle (fractions of the height), or the factor by which it grows or shrinks.
    pub amount: f32,
    /// Where in its period a periodic motion begins, 0 to 1.
    pub phase: f32,
    /// Periods per second; negative runs anticlockwise.
    pub frequency: f32,
    /// Rotation of the object in radians.
    pub tilt: f32,
    /// How many times nearer than usual the object is seen: 1 in the world itself, more where a training begins with what is
    /// easy to see.
    pub nearness: f32,
    /// Seconds that an object which left the frame stays away beyond those of its way: 0 in the world itself, more where a
    /// training is to find it gone.
    pub absence: f32,
    /// Whether what is filmed is no scene of the world but a collage that the seed decides, in the style of the attributes, of which
    /// nothing else is to be seen.
    pub collage: bool,
    /// Seed of the textures.
    pub seed: u64,
}

impl Scene {
    /// The scene of that index within that split: the same index always gives the same scene.
    pub fn from_index(index: u64, split: Split) -> Self {
        let mut draws = Draws::new(mix64(index.wrapping_add(0x0d17_c11b)));
        let attributes = loop {
            let drawn = Attributes::draw(&mut draws);
            if split.admits(&drawn) {
                break drawn;
            }
        };
        Self::with_attributes(attributes, draws.next())
    }

    /// As [`Self::from_index`], but every second scene shows one of these words, where there are any.
    pub fn favouring(index: u64, split: Split, words: &[&'static str]) -> Self {
        let mut scene = Self::from_index(index, split);
        let shows = |scene: &Self| scene.attributes.names().iter().any(|name| words.contains(name));
        let mut other = index;
        while index % 2 == 1 && !words.is_empty() && !shows(&scene) {
            other = mix64(other);
            scene = Self::from_index(other, split);
        }
        scene
    }

    /// A scene that shows these attributes; the seed decides all the rest.
    pub fn with_attributes(attributes: Attributes, seed: u64) -> Self {
        let mut draws = Draws::new(mix64(seed ^ 0x57ce_11e5));
        // Blocks of a sixteenth of the height leave no shape to an object much smaller than this.
        let smallest = if attributes.style == Style::PixelArt { 0.18 } else { 0.13 };
        let mut scene = Self {
            attributes,
            radius: draws.between(smallest, 0.215),
            start: [draws.between(0.27, 0.73), draws.between(0.32, 0.68)],
            amount: 0.0,
            phase: draws.unit(),
            frequency: 0.0,
            tilt: draws.between(-0.16, 0.16),
            nearness: 1.0,
            absence: 0.0,
            collage: false,
            seed: draws.next(),
        };
        scene.draw_motion(&mut draws);
        scene
    }

    fn draw_motion(&mut self, draws: &mut Draws) {
        match self.attributes.motion {
            Motion::MovingRight | Motion::MovingLeft | Motion::Rising | Motion::Falling => {
                self.amount = draws.between(0.47, 0.58);
                let from = draws.between(0.2, 0.8 - self.amount);
                match self.attributes.motion {
                    Motion::MovingRight => self.start[0] = from,
                    Motion::MovingLeft => self.start[0] = 1.0 - from,
                    Motion::Falling => self.start[1] = from,
                    _ => self.start[1] = 1.0 - from,
                }
            }
            Motion::Bouncing => {
                self.amount = draws.between(0.32, 0.38);
                self.frequency = draws.between(1.0, 1.3);
                self.start[1] = draws.between(0.68, 0.75);
            }
            Motion::Circling => {
                self.amount = draws.between(0.23, 0.27);
                self.frequency = if draws.below(2) == 0 { 1.0 } else { -1.0 };
                self.start = [draws.between(0.44, 0.56), draws.between(0.47, 0.53)];
            }
            Motion::Growing | Motion::Shrinking => {
                self.amount = draws.between(2.7, 3.3);
                let smallest = if self.attributes.style == Style::PixelArt { 0.16 } else { 0.145 };
                self.radius = draws.between(smallest, 0.17);
                self.start = [draws.between(0.4, 0.6), draws.between(0.43, 0.57)];
            }
            Motion::Still => {}
        }
    }

    /// Where the object is at a time in seconds, in frames of that aspect ratio (width by height).
    ///
    /// In frames higher than wide the object and its circle are kept small enough for the width.
    pub fn placement(&self, seconds: f64, aspect: f32) -> Placement {
        let scale = self.scale(seconds);
        // The middle radius, so that the factor of growth stays what it is.
        let widest = if self.amount > 1.0 { 0.42 / self.amount.sqrt() } else { 0.3 };
        let middle = self.radius.min(widest * aspect).max(0.06);
        let radius = middle * scale;
        let [mut x, mut y] = self.start;
        let wrapped = |at, speed, margin| wrapped(at, speed, seconds, (margin, self.absence));
        let inset = (0.95 * middle / aspect).min(0.4);
        x = match self.attributes.motion {
            Motion::MovingRight => wrapped(x, self.amount, 1.15 * radius / aspect),
            Motion::MovingLeft => wrapped(x, -self.amount, 1.15 * radius / aspect),
            _ => x.clamp(inset, 1.0 - inset),
        };
        match self.attributes.motion {
            Motion::Falling => y = wrapped(y, self.amount, 1.15 * radius),
            Motion::Rising => y = wrapped(y, -self.amount, 1.15 * radius),
            Motion::Bouncing => {
                let u = self.turn(seconds);
                y -= self.amount * 4.0 * u * (1.0 - u);
            }
            Motion::Circling => {
                let orbit = self.amount.min(0.5 * aspect - 0.6 * middle);
                let (sin, cos) = (self.turn(seconds) * std::f32::consts::TAU).sin_cos();
                x += orbit * cos / aspect;
                y += orbit * sin;
            }
            _ => {}
        }
        let near = |at: f32| 0.5 + (at - 0.5) / self.nearness;
        let largest = radius.max(0.42 * aspect.min(1.0));
        Placement { x: near(x), y: near(y), radius: (radius * self.nearness).min(largest) }
    }

    /// How far through its period a periodic motion is, 0 to 1.
    fn turn(&self, seconds: f64) -> f32 {
        (f64::from(self.phase) + f64::from(self.frequency) * seconds).rem_euclid(1.0) as f32
    }

    /// Size relative to the middle size.
    fn scale(&self, seconds: f64) -> f32 {
        let up = match self.attributes.motion {
            Motion::Growing => true,
            Motion::Shrinking => false,
            _ => return 1.0,
        };
        let u = seconds.rem_euclid(GROWTH_PERIOD);
        let grown = if u <= GROWTH {
            u / GROWTH
        } else {
            let back = (u - GROWTH) / (GROWTH_PERIOD - GROWTH);
            1.0 - back * back * (3.0 - 2.0 * back)
        };
        let exponent = if up { grown - 0.5 } else { 0.5 - grown };
        self.amount.powf(exponent as f32)
    }
}

/// A position that leaves at one side and comes in again at the other, both a margin outside the frame, after an absence in
/// seconds.
fn wrapped(start: f32, speed: f32, seconds: f64, (margin, absence): (f32, f32)) -> f32 {
    let away = speed.abs() * absence;
    let span = 1.0 + 2.0 * f64::from(margin) + f64::from(away);
    // What moves backwards waits in front of where it comes in, not behind where it left.
    let before = if speed < 0.0 { margin + away } else { margin };
    let moved = f64::from(start + before) + f64::from(speed) * seconds;
    (moved.rem_euclid(span)) as f32 - before
}

#[cfg(test)]
mod tests;
