// SPDX-License-Identifier: MPL-2.0
//! Whether text looks misread: neighbours that hardly ever meet in writing but often do in UTF-8 that was read in a
//! single-byte code page.
//!
//! Categories and neighbours are those of ftfy 6.3 (Robyn Speer), on whose output text encoders were trained.

use std::sync::LazyLock;

use regex::Regex;

/// Categories of characters by their letter in [`NEIGHBOURS`], as the inside of a regex class.
const CATEGORIES: &[(char, &str)] = &[
    // Controls 80 to 9F.
    ('C', r"\x80-\x9F"),
    // Common in many places: spaces, dashes, ellipsis, apostrophe.
    ('M', r"\xA0\xAD\xB7\xB4\u{2013}\u{2014}\u{2015}\u{2026}\u{2019}"),
    // Hardly ever meant: stand-alone accents, daggers, ordinal signs, the replacement character.
    (
        'X',
        r"\xA6\xA4\xA8\xAC\xAF\xB8\u{192}\u{2C6}\u{2C7}\u{2D8}\u{2DB}\u{2DC}\u{2020}\u{2021}\u{2030}\u{2310}\u{25CA}\u{FFFD}\xAA\xBA",
    ),
    // Pilcrow and section.
    ('P', r"\xB6\xA7"),
    // Currency.
    ('$', r"\xA2\xA3\xA5\u{20A7}\u{20AC}"),
    // Punctuation that opens.
    (
        '(',
        r"\xA1\xAB\xBF\xA9\u{384}\u{385}\u{2018}\u{201A}\u{201C}\u{201E}\u{2022}\u{2039}\u{F8FF}",
    ),
    // Punctuation that closes.
    (')', r"\xAE\xBB\u{2DD}\u{201D}\u{203A}\u{2122}"),
    // Superscripts, fractions and operators.
    (
        'N',
        r"\xB2\xB3\xB9\xB1\xBC\xBD\xBE\xD7\xB5\xF7\u{2044}\u{2202}\u{2206}\u{220F}\u{2211}\u{221A}\u{221E}\u{2229}\u{222B}\u{2248}\u{2260}\u{2261}\u{2264}\u{2265}\u{2116}",
    ),
    // Round letters that faces are drawn with.
    ('K', r"\xD2-\xD6\xD9-\xDC\xF2-\xF6\xF8-\xFC\u{150}\u{14C}\u{16A}\u{172}\xB0"),
    // Accented capitals.
    (
        'U',
        r"\xC0-\xD1\xD8\xDC\xDD\u{102}\u{100}\u{104}\u{106}\u{10C}\u{10E}\u{110}\u{118}\u{11A}\u{112}\u{116}\u{11E}\u{122}\u{130}\u{12A}\u{136}\u{139}\u{13D}\u{141}\u{13B}\u{143}\u{147}\u{145}\u{152}\u{158}\u{15A}\u{15E}\u{160}\u{162}\u{164}\u{16E}\u{170}\u{178}\u{179}\u{17B}\u{17D}\u{490}",
    ),
    // Accented small letters.
    (
        'L',
        r"\xDF\xE0-\xF1\u{103}\u{105}\u{101}\u{107}\u{10D}\u{10F}\u{111}\u{119}\u{11B}\u{113}\u{117}\u{11F}\u{123}\u{12F}\u{12B}\u{137}\u{13A}\u{13E}\u{142}\u{13C}\u{153}\u{155}\u{15B}\u{15F}\u{161}\u{165}\xFC\u{17A}\u{17C}\u{17E}\u{491}\u{FB01}\u{FB02}",
    ),
    // Capitals of other alphabets.
    (
        'A',
        r"\xDE\u{391}-\u{3A9}\u{386}\u{388}\u{389}\u{38A}\u{38C}\u{38E}\u{38F}\u{3AA}\u{3AB}\u{401}-\u{42F}",
    ),
    // Small letters of other alphabets.
    ('a', r"\u{3B1}-\u{3C9}\u{3AC}\u{3AD}\u{3AE}\u{3AF}\u{3B0}\u{430}-\u{45F}"),
    // Boxes and blocks.
    (
        'B',
        r"\u{2502}\u{250C}\u{2510}\u{2518}\u{251C}\u{2524}\u{252C}\u{253C}\u{2550}-\u{256C}\u{2580}\u{2584}\u{2588}\u{258C}\u{2590}\u{2591}\u{2592}\u{2593}",
    ),
];

/// Regular expressions of neighbours, in which `<...>` is a class: letters of [`CATEGORIES`], then after a colon
/// single characters.
const NEIGHBOURS: &[&str] = &[
    "<C>",
    "<XLUB()$NP><X>",
    "<X><LUB()$NP>",
    "[a-zA-Z]<Aa><X>",
    "<LaB)$N><U>",
    "<B)$N><L>",
    "<LB)><$>",
    r"[\s\x1C-\x1F]<U><$>",
    "<UB><NP>",
    "<LUB$)><(><N>",
    "<LU$NBP><)><(>",
    "<$NB><(>",
    "[a-z]<U><($>",
    "<B><K)>",
    "<LU$N()P><B>",
    r"<LU><()>[\p{L}\p{N}_]",
    // The oe ligature without a plain letter after it; a degree sign after a capital.
    r"[\u{152}\u{153}][^A-Za-z]",
    r"<U>\xB0",
    // Windows-1252: Latin, Greek and Cyrillic letters, then Arabic ones, then those of India.
    r"[\xC2\xC3\xCE\xD0]<():\u{20AC}\u{153}\u{160}\u{161}\xA2\xA3\u{178}\u{17E}\xA0\xAD\xAE\xA9\xB0\xB7\xBB\u{2013}\u{2014}\xB4>",
    r"\xD7[\xB2\xB3]",
    r"(?:[\xD8\xD9]<M$XN(:\u{178}\u{160}\xAE\xB0\xB5\xBB>){2}",
    r"\xE0[\xB2\xB5\xB9\xBC\xBD\xBE]",
    // Mac Roman.
    r"\u{221A}[\xB1\u{2202}\u{2020}\u{2260}\xAE\u{2122}\xB4\u{2264}\u{2265}\xA5\xB5\xF8]",
    r"\u{2248}[\xB0\xA2]",
    r"\u{201A}\xC4[\xEC\xEE\xEF\xF2\xF4\xFA\xF9\xFB\u{2020}\xB0\xA2\u{3C0}]",
    r"\u{201A}[\xE2\xF3][\xE0\xE4\xB0\xEA]",
    // Windows-1251: punctuation, then letters, then letters misread twice.
    r"\u{432}\u{402}",
    r"[\u{412}\u{413}\u{420}\u{421}]<CX()$:\xB0\xB5>[\u{412}\u{413}\u{420}\u{421}]",
    r"\u{413}\u{45E}\u{412}\u{402}\u{412}.[A-Za-z\x20]",
    // The letter a with an accent, and the no-break space, whose second byte often became a space.
    r"\xC3[\xA0\xA1]",
    r"[a-z][\s\x1C-\x1F]?[\xC3\xC2]\x20",
    r"^[\xC3\xC2]\x20",
    r"<):a-z.,?!>\xC2<():\x20>",
    // Windows-1253: punctuation, then letters.
    r"\u{3B2}\u{20AC}[\u{2122}\xA0\u{386}\xAD\xAE\xB0]",
    r"[\u{392}\u{393}\u{39E}\u{39F}]<CX()$:\xB0>[\u{392}\u{393}\u{39E}\u{39F}]",
    // Windows-1257: punctuation.
    r"\u{101}\u{20AC}",
];

static UNLIKELY: LazyLock<Regex> = LazyLock::new(|| {
    let alternatives: Vec<String> = NEIGHBOURS.iter().map(|pattern| expand(pattern)).collect();
    Regex::new(&alternatives.join("|")).expect("constant pattern, covered by tests")
});

/// Whether `text` holds neighbours that hardly ever meet in writing.
pub(super) fn looks_misread(text: &str) -> bool {
    UNLIKELY.is_match(text)
}

/// Writes the `<...>` of a pattern of [`NEIGHBOURS`] out as regex classes.
fn expand(pattern: &str) -> String {
    let mut expanded = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('<') {
        let (class, after) = after.split_once('>').unwrap_or((after, ""));
        let (categories, singles) = class.split_once(':').unwrap_or((class, ""));
        expanded.push_str(before);
        expanded.push('[');
        for (letter, characters) in CATEGORIES {
            if categories.contains(*letter) {
                expanded.push_str(characters);
            }
        }
        expanded.push_str(singles);
        expanded.push(']');
        rest = after;
    }
    expanded + rest
}
