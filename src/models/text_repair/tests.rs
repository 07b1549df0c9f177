// SPDX-License-Identifier: MPL-2.0
//! Repairs one by one; expected values are what ftfy 6.3.1 and Python's `html` give.

use super::*;

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(fix_text(text), *expected, "{text:?}");
    }
}

#[test]
fn sound_text_stays() {
    check(&[
        ("A red fox runs, slowly.", "A red fox runs, slowly."),
        ("caf\u{E9} na\u{EF}ve \u{C5}ngstr\u{F6}m", "caf\u{E9} na\u{EF}ve \u{C5}ngstr\u{F6}m"),
        (
            "\u{41D}\u{456}, \u{457}\u{457} \u{491}\u{430}\u{43D}\u{43E}\u{43A}",
            "\u{41D}\u{456}, \u{457}\u{457} \u{491}\u{430}\u{43D}\u{43E}\u{43A}",
        ),
        ("\u{72D0}\u{72F8} runs", "\u{72D0}\u{72F8} runs"),
        ("\u{1F98A}\u{200D} fox", "\u{1F98A}\u{200D} fox"),
        ("CAF\u{C9}\u{AE}", "CAF\u{C9}\u{AE}"),
    ]);
}

#[test]
fn typography_becomes_plain() {
    check(&[
        ("\u{201C}fox\u{201D}\u{2026} it\u{2019}s", "\"fox\"\u{2026} it's"),
        ("\u{FB01}ne \u{FB02}uff \u{133} \u{1C6}", "fine fluff ij d\u{17E}"),
        ("\u{FF26}\u{FF35}\u{FF2C}\u{FF2C}\u{3000}\u{FF11}\u{FF12}", "FULL 12"),
        ("\u{30BF}\u{FF70}\u{FF9D}", "\u{30BF}\u{30FC}\u{30F3}"),
        ("e\u{301}", "\u{E9}"),
    ]);
}

#[test]
fn controls_and_line_breaks() {
    check(&[
        ("a\u{7}b\u{FEFF}c\u{1C}d", "abcd"),
        ("a\r\nb\rc\u{2028}d", "a\nb\nc\nd"),
        ("\u{1B}[36;44mblue\u{1B}[0m", "blue"),
        ("a\u{85}b", "a\u{2026}b"),
    ]);
}

#[test]
fn html_is_decoded_unless_there_are_tags() {
    check(&[
        ("cat &amp;amp; dog", "cat & dog"),
        ("&lt;b&gt; &#39;sky&#39; &#x1F98A;", "<b> 'sky' \u{1F98A}"),
        ("this&not that", "this&not that"),
        ("P&EACUTE;REZ &SZLIG; &GTDOT;", "P\u{C9}REZ SS &GTDOT;"),
        ("&#128; &#7; &#12ab; &semi;", "\u{20AC}  &#12ab; ;"),
        ("&amp; first\n<b> &amp;\n&amp; later", "& first\n<b> &amp;\n&amp; later"),
    ]);
}

#[test]
fn misread_utf_8() {
    check(&[
        ("s\u{C3}\u{B3}", "s\u{F3}"),
        ("\u{E2}\u{20AC}\u{153}fox\u{E2}\u{20AC}\u{9D}", "\"fox\""),
        ("\u{E2}\u{20AC}\u{153}fox\u{E2}\u{20AC}\u{FFFD}", "\"fox\u{FFFD}"),
        ("voil\u{C3} le travail", "voil\u{E0} le travail"),
        ("\u{C3} la mode", "\u{E0} la mode"),
        (
            "\u{420}\u{45F}\u{421}\u{402}\u{420}\u{451}\u{420}\u{406}\u{420}\u{B5}\u{421}\u{201A}",
            "\u{41F}\u{440}\u{438}\u{432}\u{435}\u{442}",
        ),
        ("\u{C3}\u{192}\u{C2}\u{B3}", "\u{F3}"),
        ("\u{251C}\u{2502}\u{251C}\u{2310}", "\u{F3}\u{E9}"),
        ("\u{F0}\u{178}\u{A6}\u{160}", "\u{1F98A}"),
        ("\u{ED}\u{A0}\u{BE}\u{ED}\u{B6}\u{8A}", "\u{1F98A}"),
    ]);
}

#[test]
fn misread_parts() {
    check(&[
        ("\u{72D0} s\u{C3}\u{B3} \u{72D0}", "\u{72D0} s\u{F3} \u{72D0}"),
        ("\u{4E2D}\u{E2}\u{20AC}\u{2122}s \u{4E2D}", "\u{4E2D}'s \u{4E2D}"),
    ]);
}

#[test]
fn html_references_without_semicolon() {
    let cases =
        [("&ampfoo &notit; &Aacute", "&foo \u{AC}it; \u{C1}"), ("&zzz; &; &#;", "&zzz; &; &#;")];
    for (text, expected) in cases {
        assert_eq!(unescape(text), expected);
    }
}
