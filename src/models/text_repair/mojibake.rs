// SPDX-License-Identifier: MPL-2.0
//! UTF-8 that was read in a single-byte code page, and how to read it again.

use super::badness::looks_misread;
use super::code_pages::{CODE_PAGES, CodePage, LOST_BYTE, UTF8_CLUES, windows_1252};

/// The UTF-8 bytes of the replacement character.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// Reads misread text again until it no longer looks misread or no way to read it is found.
pub(super) fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        match reread(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => return text,
        }
    }
}

/// Reads C1 controls as Windows-1252, as browsers do.
pub(super) fn fix_c1_controls(text: &str) -> String {
    let fix = |c| if is_c1_control(c) { windows_1252().decode_upper(c as u8) } else { c };
    text.chars().map(fix).collect()
}

/// One way to read `text` better, if it looks misread.
fn reread(text: &str) -> Option<String> {
    if text.is_ascii() || !looks_misread(text) {
        return None;
    }
    let whole = CODE_PAGES.iter().find_map(|page| from_utf8_variants(&utf8_bytes(text, page)?));
    if whole.is_some() {
        return whole;
    }
    let in_parts = fix_embedded(text);
    if in_parts != text {
        return Some(in_parts);
    }
    text.contains(is_c1_control).then(|| fix_c1_controls(text))
}

fn is_c1_control(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9F}')
}

/// The bytes that `text` has in `page`, with what was altered or lost on the way made valid UTF-8 where possible.
fn utf8_bytes(text: &str, page: &CodePage) -> Option<Vec<u8>> {
    let mut bytes = page.encode(text)?;
    // In Mac Roman a dash before a space would look the same.
    if page.name != "macroman" {
        bytes = restore_no_break_spaces(&bytes);
    }
    if page.lenient {
        bytes = replace(&bytes, lost_sequence, |_| REPLACEMENT.to_vec());
    }
    Some(bytes)
}

/// Replaces each stretch of `bytes` whose length `find` tells from what follows.
fn replace(
    bytes: &[u8],
    find: impl Fn(&[u8]) -> Option<usize>,
    by: impl Fn(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        match find(rest) {
            Some(len) => {
                replaced.extend(by(&rest[..len]));
                at += len;
            }
            None => {
                replaced.push(bytes[at]);
                at += 1;
            }
        }
    }
    replaced
}

/// Puts A0 back where a space stands inside a UTF-8 sequence.
fn restore_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    if (0..bytes.len()).all(|at| altered_sequence(&bytes[at..]).is_none()) {
        return bytes.to_vec();
    }
    let with_words = replace(bytes, a_grave_word, |_| b"\xC3\xA0 ".to_vec());
    let restore = |found: &[u8]| found.iter().map(|&b| if b == b' ' { 0xA0 } else { b }).collect();
    replace(&with_words, altered_sequence, restore)
}

/// The letter a with grave accent as a word of its own: its A0 became a space, and the space after it fell away. Some
/// Portuguese words begin with it; for them the space is the A0 alone.
fn a_grave_word(bytes: &[u8]) -> Option<usize> {
    let rest = bytes.strip_prefix(b"\xC3 ")?;
    let part_of_word = [&b" "[..], b"quele", b"quela", b"quilo", b"s "];
    (!part_of_word.iter().any(|word| rest.starts_with(word))).then_some(2)
}

/// The length of a UTF-8 sequence at the start of `bytes` one of whose bytes is a space.
fn altered_sequence(bytes: &[u8]) -> Option<usize> {
    // Neither a line break (85) nor A0 itself is worth a guess next to a space.
    let likely = |b: u8| matches!(b, 0x80..=0x84 | 0x86..=0x9F | 0xA1..=0xBF);
    let following = |b: u8| matches!(b, 0x80..=0xBF);
    let found = match *bytes {
        [0xC2 | 0xC3 | 0xC5 | 0xCE | 0xD0 | 0xD9, b' ', ..] => 2,
        [0xE2 | 0xE3, b' ', b, ..] if likely(b) => 3,
        [0xE0..=0xE3, a, b' ', ..] if likely(a) => 3,
        [0xF0, b' ', b, c, ..] if following(b) && following(c) => 4,
        [0xF0, a, b' ', c, ..] if following(a) && following(c) => 4,
        [0xF0, a, b, b' ', ..] if following(a) && following(b) => 4,
        _ => return None,
    };
    Some(found)
}

/// The length of a UTF-8 sequence at the start of `bytes` that lost one of its bytes.
fn lost_sequence(bytes: &[u8]) -> Option<usize> {
    const ASKED: u8 = b'?';
    let known = |b: u8| matches!(b, 0x80..=0xBF);
    let lost = |b: u8| b == LOST_BYTE || b == ASKED;
    // One question mark at most: more of them are likely meant.
    let incomplete = |following: &[u8]| {
        following.iter().all(|&b| known(b) || lost(b))
            && following.iter().any(|&b| lost(b))
            && following.iter().filter(|&&b| b == ASKED).count() <= 1
    };
    let found = match *bytes {
        [0xC2..=0xDF, LOST_BYTE, ..] | [0xC2 | 0xC3, ASKED, ..] => 2,
        [0xED, 0xA0..=0xAF, a, 0xED, 0xB0..=0xBF, b, ..]
            if (known(a) || lost(a)) && (known(b) || lost(b)) && (lost(a) || lost(b)) =>
        {
            6
        }
        [0xE0..=0xEF, a, b, ..] if incomplete(&[a, b]) => 3,
        [0xF0..=0xF4, a, b, c, ..] if incomplete(&[a, b, c]) => 4,
        [LOST_BYTE, ..] => 1,
        _ => return None,
    };
    Some(found)
}

/// Decodes UTF-8, also with surrogate pairs written as two sequences and with NUL written as two bytes.
fn from_utf8_variants(bytes: &[u8]) -> Option<String> {
    let find = |rest: &[u8]| match *rest {
        [0xC0, 0x80, ..] => Some(2),
        [0xED, 0xA0..=0xAF, 0x80..=0xBF, 0xED, 0xB0..=0xBF, 0x80..=0xBF, ..] => Some(6),
        _ => None,
    };
    let by = |found: &[u8]| match *found {
        [_, a, b, _, c, d] => {
            let bits = |byte: u8, mask: u8| u32::from(byte & mask);
            let code = (bits(a, 0x0F) << 16)
                + (bits(b, 0x3F) << 10)
                + (bits(c, 0x0F) << 6)
                + bits(d, 0x3F);
            char::from_u32(code + 0x1_0000).map(|c| c.to_string().into_bytes()).unwrap_or_default()
        }
        _ => vec![0],
    };
    String::from_utf8(replace(bytes, find, by)).ok()
}

/// Fixes stretches that look like UTF-8 sequences inside text that as a whole is in no one code page.
fn fix_embedded(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut at = 0;
    while at < characters.len() {
        let inside = at > 0 && UTF8_CLUES.rare_continuation.contains(&characters[at - 1]);
        let len = if inside { 0 } else { sequences(&characters[at..]) };
        let found: String = characters[at..at + len.max(1)].iter().collect();
        // The whole text was tried already.
        if len > 0 && len < characters.len() && looks_misread(&found) {
            fixed.push_str(&fix_encoding(&found));
        } else {
            fixed.push_str(&found);
        }
        at += len.max(1);
    }
    fixed
}

/// How many characters at the start look like a run of UTF-8 sequences.
fn sequences(characters: &[char]) -> usize {
    let mut at = 0;
    'run: while at < characters.len() {
        for (first, len) in UTF8_CLUES.first.iter().zip(2..) {
            let rest = &characters[at..];
            let complete = rest.len() >= len
                && first.contains(&rest[0])
                && rest[1..len].iter().all(|c| UTF8_CLUES.continuation.contains(c));
            if complete {
                at += len;
                continue 'run;
            }
        }
        break;
    }
    at
}
