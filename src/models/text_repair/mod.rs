// SPDX-License-Identifier: MPL-2.0
//! Repair of text as pasted from the web: HTML escapes, misread encodings, typographic variants.
//!
//! Text encoders of the Wan family were trained on captions that went through ftfy's `fix_text` with its defaults and
//! then twice through HTML unescaping; prompts must take the same way. This is that behaviour (ftfy 6.3), written anew
//! for `char` strings, in which surrogates cannot occur.

mod badness;
mod code_pages;
mod html;
mod mojibake;

use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

pub use html::unescape;

/// Terminal escape sequences such as those that set colours.
static TERMINAL_ESCAPE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\x1B\[[\d;]*[a-zA-Z]").expect("constant pattern, covered by tests")
});

/// Undoes what commonly goes wrong with text between people; text that is well stays as it is, but for typographic
/// variants (quotes, widths, ligatures), which become plain, and normalisation to NFC.
pub fn fix_text(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    let mut may_be_html = true;
    for line in text.split_inclusive('\n') {
        // Text with tags is HTML on purpose; its escapes are meant, here and in all that follows.
        may_be_html &= !line.contains('<');
        fixed.push_str(&fix_line(line, may_be_html));
    }
    fixed
}

/// Repeats all repairs until nothing changes any more.
fn fix_line(line: &str, may_be_html: bool) -> String {
    let mut text = line.to_owned();
    loop {
        let mut fixed = if may_be_html { html::unescape_complete(&text) } else { text.clone() };
        fixed = mojibake::fix_encoding(&fixed);
        fixed = mojibake::fix_c1_controls(&fixed);
        fixed = plain_characters(&fixed);
        fixed = fixed.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        fixed = TERMINAL_ESCAPE.replace_all(&fixed, "").into_owned();
        fixed = fixed.chars().filter(|&c| !is_stray_control(c)).nfc().collect();
        if fixed == text {
            return text;
        }
        text = fixed;
    }
}

/// Latin ligatures as letters, full and half width forms as ordinary ones, curly quotes as straight ones.
fn plain_characters(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{3000}' => plain.push(' '),
            '\u{FF01}'..='\u{FFEF}' => plain.extend(std::iter::once(c).nfkc()),
            _ => match ligature(c) {
                Some(letters) => plain.push_str(letters),
                None => plain.push(c),
            },
        }
    }
    straight_quotes(&plain)
}

fn straight_quotes(text: &str) -> String {
    let straight = |c| match c {
        '\u{2BC}' | '\u{2018}'..='\u{201B}' => '\'',
        '\u{201C}'..='\u{201F}' => '"',
        _ => c,
    };
    text.chars().map(straight).collect()
}

/// The letters that a Latin ligature or digraph stands for.
fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        '\u{132}' => "IJ",
        '\u{133}' => "ij",
        '\u{149}' => "\u{2BC}n",
        '\u{1C4}' => "D\u{17D}",
        '\u{1C5}' => "D\u{17E}",
        '\u{1C6}' => "d\u{17E}",
        '\u{1C7}' => "LJ",
        '\u{1C8}' => "Lj",
        '\u{1C9}' => "lj",
        '\u{1CA}' => "NJ",
        '\u{1CB}' => "Nj",
        '\u{1CC}' => "nj",
        '\u{1F1}' => "DZ",
        '\u{1F2}' => "Dz",
        '\u{1F3}' => "dz",
        '\u{FB00}' => "ff",
        '\u{FB01}' => "fi",
        '\u{FB02}' => "fl",
        '\u{FB03}' => "ffi",
        '\u{FB04}' => "ffl",
        '\u{FB05}' => "\u{17F}t",
        '\u{FB06}' => "st",
        _ => return None,
    })
}

/// Controls that carry no text: not tab, line feed, form feed and carriage return, and not the C1 range, which
/// hints at misread encodings.
fn is_stray_control(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{B}' | '\u{E}'..='\u{1F}' | '\u{7F}'
        | '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFC}')
}

#[cfg(test)]
mod tests;
