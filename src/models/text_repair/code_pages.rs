// SPDX-License-Identifier: MPL-2.0
//! Single-byte code pages in which UTF-8 is commonly misread, and the character sets that follow from them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

/// The table of bytes 80 to FF for each page; see its first lines.
const TABLES: &str = include_str!("code_pages.txt");

/// Stands for a byte that was lost; lenient pages encode it as [`LOST_BYTE`].
const REPLACEMENT: char = '\u{FFFD}';
/// The byte for a character that was lost (SUBSTITUTE).
pub(super) const LOST_BYTE: u8 = 0x1A;

/// One code page.
pub(super) struct CodePage {
    pub(super) name: &'static str,
    /// Whether undefined bytes pass and lost characters have a byte, as in the Windows pages.
    pub(super) lenient: bool,
    /// What bytes 80 to FF stand for.
    upper: Vec<char>,
    bytes: HashMap<char, u8>,
}

impl CodePage {
    fn new(name: &'static str, upper: Vec<char>) -> Self {
        let lenient = name.starts_with("windows");
        let mut bytes: HashMap<char, u8> =
            (0x80..=0xFF).zip(&upper).map(|(byte, &c)| (c, byte)).collect();
        if lenient {
            bytes.insert(REPLACEMENT, LOST_BYTE);
        }
        Self { name, lenient, upper, bytes }
    }

    /// The bytes of `text`, or `None` if it holds a character that the page has no byte for.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.byte(c)).collect()
    }

    fn byte(&self, c: char) -> Option<u8> {
        match u8::try_from(c) {
            Ok(LOST_BYTE) if self.lenient => None,
            Ok(byte) if byte < 0x80 => Some(byte),
            _ => self.bytes.get(&c).copied(),
        }
    }

    /// What `byte`, 80 or above, stands for.
    pub(super) fn decode_upper(&self, byte: u8) -> char {
        self.upper[usize::from(byte - 0x80)]
    }
}

/// ISO 8859-1 and the pages of the table, likeliest first.
pub(super) static CODE_PAGES: LazyLock<Vec<CodePage>> = LazyLock::new(|| {
    let mut pages = vec![CodePage::new("latin-1", ('\u{80}'..='\u{FF}').collect())];
    for block in TABLES.split("\npage ").skip(1) {
        let (name, rows) = block.split_once('\n').unwrap_or((block, ""));
        let upper = rows.split_whitespace().map(code_point).collect();
        pages.push(CodePage::new(name, upper));
    }
    pages
});

/// The page that browsers read ISO 8859-1 as.
pub(super) fn windows_1252() -> &'static CodePage {
    &CODE_PAGES[1]
}

fn code_point(hex: &str) -> char {
    u32::from_str_radix(hex, 16).ok().and_then(char::from_u32).unwrap_or(REPLACEMENT)
}

/// What the bytes of UTF-8 sequences look like when read in ISO 8859-1 or a Windows page.
pub(super) struct Utf8Clues {
    /// First characters of sequences of 2, 3 and 4.
    pub(super) first: [HashSet<char>; 3],
    /// Characters after the first; a space may stand for a no-break space.
    pub(super) continuation: HashSet<char>,
    /// Those of them that are not common punctuation.
    pub(super) rare_continuation: HashSet<char>,
}

/// The clues of all pages.
pub(super) static UTF8_CLUES: LazyLock<Utf8Clues> = LazyLock::new(|| {
    let images = |bytes: &[u8]| -> HashSet<char> {
        let pages = CODE_PAGES.iter().filter(|page| page.lenient || page.name == "latin-1");
        pages.flat_map(|page| bytes.iter().map(|&byte| page.decode_upper(byte))).collect()
    };
    let range = |from: u8, to: u8| images(&(from..=to).collect::<Vec<u8>>());
    // Of the first bytes of four, only those of emoji and of rare ideographs are worth a guess.
    let first = [range(0xC2, 0xDF), range(0xE0, 0xEF), images(&[0xF0, 0xF3])];
    let mut continuation = range(0x80, 0xBF);
    let rare_continuation =
        continuation.iter().copied().filter(|c| !COMMON_PUNCTUATION.contains(c)).collect();
    continuation.insert(' ');
    Utf8Clues { first, continuation, rare_continuation }
});

/// Dashes, quotation marks, the bullet and the ellipsis: likely to be meant as they stand.
const COMMON_PUNCTUATION: [char; 11] = [
    '\u{2013}', '\u{2014}', '\u{2015}', '\u{2018}', '\u{2019}', '\u{201A}', '\u{201C}', '\u{201D}',
    '\u{201E}', '\u{2022}', '\u{2026}',
];
