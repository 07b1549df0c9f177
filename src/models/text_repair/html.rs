// SPDX-License-Identifier: MPL-2.0
//! HTML character references, decoded as Python's `html.unescape` does and, more carefully, as ftfy does.

use std::sync::LazyLock;

use htmlize::ENTITIES;
use regex::{Captures, Regex};

use super::code_pages::windows_1252;

/// Anything that a browser would try as a character reference.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"&(?:#(?<decimal>[0-9]+);?|#[xX](?<hex>[0-9a-fA-F]+);?|(?<name>[^\t\n\f <&#;]{1,32};?))",
    )
    .expect("constant pattern, covered by tests")
});

/// A reference that ends as it should.
static COMPLETE_REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("&#?[0-9A-Za-z]{1,24};").expect("constant pattern, covered by tests")
});

/// Decodes all references, also those without semicolon where HTML allows it.
pub fn unescape(text: &str) -> String {
    REFERENCE.replace_all(text, |captures: &Captures| decode(captures)).into_owned()
}

/// Decodes references that end in a semicolon, also names that somebody wrote in capitals.
pub(super) fn unescape_complete(text: &str) -> String {
    let decode = |captures: &Captures| {
        let reference = &captures[0];
        if reference.starts_with("&#") {
            let decoded = unescape(reference);
            return if decoded.contains(';') { reference.to_owned() } else { decoded };
        }
        let name = &reference[1..];
        named(name)
            .map(str::to_owned)
            .or_else(|| shouted(name))
            .unwrap_or_else(|| reference.to_owned())
    };
    COMPLETE_REFERENCE.replace_all(text, decode).into_owned()
}

fn decode(captures: &Captures) -> String {
    if let Some(digits) = captures.name("decimal") {
        return numbered(digits.as_str().parse().unwrap_or(u32::MAX));
    }
    if let Some(digits) = captures.name("hex") {
        return numbered(u32::from_str_radix(digits.as_str(), 16).unwrap_or(u32::MAX));
    }
    // The longest known name at the start; names have at least two characters.
    let name = &captures["name"];
    let known = (2..=name.len())
        .rev()
        .filter(|&end| name.is_char_boundary(end))
        .find_map(|end| named(&name[..end]).map(|expansion| (expansion, &name[end..])));
    match known {
        Some((expansion, rest)) => format!("{expansion}{rest}"),
        None => captures[0].to_owned(),
    }
}

/// What the entity `name` stands for; with the semicolon if it has one.
fn named(name: &str) -> Option<&'static str> {
    let expansion = ENTITIES.get(format!("&{name}").as_bytes())?;
    std::str::from_utf8(expansion).ok()
}

/// The capital of what a small-letter entity stands for, where `name` is its name in capitals and means nothing else.
fn shouted(name: &str) -> Option<String> {
    let small = name.to_ascii_lowercase();
    let in_capitals = name == name.to_ascii_uppercase();
    let escaped = format!("&{name}");
    if !in_capitals || unescape(&escaped) != escaped {
        return None;
    }
    named(&small).map(str::to_uppercase)
}

/// What the number `code` stands for: Windows-1252 for C1 controls, and nothing for what is no character.
fn numbered(code: u32) -> String {
    match code {
        0 | 0xD800..=0xDFFF | 0x11_0000.. => "\u{FFFD}".to_owned(),
        0x80..=0x9F => windows_1252().decode_upper(code as u8).to_string(),
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => String::new(),
        _ if code & 0xFFFE == 0xFFFE => String::new(),
        _ => char::from_u32(code).map(String::from).unwrap_or_default(),
    }
}
