//! Pure: a text to the terms by which it is found.
//!
//! No language is assumed. Letters lose their accents and their case (Unicode's compatibility decomposition, without the marks that
//! people leave away when they type); what is neither letter nor digit separates. Where a script writes no spaces (Chinese, Japanese,
//! Thai, Lao, Khmer, Burmese), every two letters that follow each other are a term, and so is the last letter: any part of a phrase
//! is found, and a little more than that. Nothing is stemmed: `mugs` is not found by what finds only `mug`, though `mug` finds both,
//! for the last word of a query is the beginning of one.
//!
//! Whoever changes what a text comes to counts [`crate::FORMAT`] up.

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::{canonical_combining_class, is_combining_mark};

/// Letters of one term. What is longer is cut, in products and in queries alike: it is a number or a mistake.
pub const TERM_CHARS_MAX: usize = 40;

/// One word, or a run of a script without spaces, cut into what is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Word(String),
    /// Every two letters of a run that has at least two.
    Pair(String),
    /// The last letter of a run, which may be its only one.
    Last(String, usize),
}

/// The terms of a text, in its order, with repetitions.
pub fn terms(text: &str) -> Vec<String> {
    let term = |piece| match piece {
        Piece::Word(term) | Piece::Pair(term) | Piece::Last(term, _) => term,
    };
    pieces(text).into_iter().map(term).collect()
}

/// A text as it is compared: without accents and case.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    let bare = text.nfkd().filter(|&c| !is_left_away(c)).flat_map(char::to_lowercase);
    // What is written with other letters where a keyboard lacks it, and no decomposition says so.
    let mut plain = String::with_capacity(text.len());
    for c in bare {
        match c {
            'ß' => plain.push_str("ss"),
            'æ' => plain.push_str("ae"),
            'œ' => plain.push_str("oe"),
            'þ' => plain.push_str("th"),
            'ø' => plain.push('o'),
            'ł' => plain.push('l'),
            'đ' | 'ð' => plain.push('d'),
            'ħ' => plain.push('h'),
            'ı' => plain.push('i'),
            'ς' => plain.push('σ'),
            // The Persian and the Arabic keyboard's ye and kaf; a ye without dots.
            '\u{6cc}' | '\u{649}' => plain.push('\u{64a}'),
            '\u{6a9}' => plain.push('\u{643}'),
            other => plain.push(other),
        }
    }
    // Together again where nothing was left away: a Hangul syllable, or a kana with its voicing mark, is one letter.
    plain.nfc().collect()
}

/// Marks that are no letters of their own: accents above and below (also of Cyrillic and Greek), the points of Hebrew and Arabic;
/// and what is not seen at all. The signs of Indic and Thai vowels are letters in all but name, and stay.
fn is_left_away(c: char) -> bool {
    match c {
        // Soft hyphen, joiners, the byte order mark, and the Arabic letter stretcher.
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{640}' => true,
        c => matches!(canonical_combining_class(c), 1 | 10..=36 | 200..=240),
    }
}

/// Whether a letter is of a script that writes words without spaces between them.
fn is_unspaced(c: char) -> bool {
    matches!(
        u32::from(c),
        // Thai, Lao; Burmese; Khmer.
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff
        // Kana; Han with its extensions.
        | 0x3040..=0x30ff | 0x31f0..=0x31ff
        | 0x3005 | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x2_0000..=0x3_ffff
    )
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Between,
    Word,
    Run,
}

fn kind(c: char, before: Kind) -> Kind {
    if c.is_alphanumeric() {
        if is_unspaced(c) { Kind::Run } else { Kind::Word }
    } else if is_combining_mark(c) {
        // It belongs to the letter that it stands on.
        before
    } else {
        Kind::Between
    }
}

pub(crate) fn pieces(text: &str) -> Vec<Piece> {
    let folded = fold(text);
    let mut pieces = Vec::new();
    let mut letters: Vec<char> = Vec::new();
    let mut of = Kind::Between;
    for c in folded.chars() {
        let now = kind(c, of);
        if now != of {
            flush(of, &mut letters, &mut pieces);
            of = now;
        }
        if now != Kind::Between {
            letters.push(c);
        }
    }
    flush(of, &mut letters, &mut pieces);
    pieces
}

fn flush(of: Kind, letters: &mut Vec<char>, pieces: &mut Vec<Piece>) {
    match of {
        Kind::Between => {}
        Kind::Word => pieces.push(Piece::Word(letters.iter().take(TERM_CHARS_MAX).collect())),
        Kind::Run => {
            pieces.extend(letters.windows(2).map(|pair| Piece::Pair(pair.iter().collect())));
            if let Some(last) = letters.last() {
                pieces.push(Piece::Last(last.to_string(), letters.len()));
            }
        }
    }
    letters.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(text: &str) -> String {
        terms(text).join(" ")
    }

    #[test]
    fn accents_case_and_punctuation_do_not_count() {
        for (text, is) in [
            ("Crème brûlée, 2 × 100 g!", "creme brulee 2 100 g"),
            ("MEN'S \"T-Shirt\"", "men s t shirt"),
            ("Größe XL/Straße", "grosse xl strasse"),
            ("Ærø Łódź ĳ ﬁne Ⅳ", "aero lodz ij fine iv"),
            ("İstanbul ıspanak", "istanbul ispanak"),
            ("ΟΔΟΣ οδός", "οδοσ οδοσ"),
            ("Чёрный йогурт", "черныи иогурт"),
            ("ﻛِﺘَﺎب كـتاب أحمد", "كتاب كتاب احمد"),
            ("שָׁלוֹם", "שלום"),
            ("full\u{ad}width ＡＢＣ１２", "fullwidth abc12"),
            ("85123A-RED_x", "85123a red x"),
            ("", ""),
            ("?! — …", ""),
        ] {
            assert_eq!(joined(text), is, "{text}");
        }
    }

    #[test]
    fn a_script_without_spaces_is_cut_into_pairs() {
        assert_eq!(joined("急須セット"), "急須 須セ セッ ット ト");
        assert_eq!(joined("赤い mug 茶"), "赤い い mug 茶");
        assert_eq!(joined("ガラス ｶﾞﾗｽ"), "ガラ ラス ス ガラ ラス ス");
        assert_eq!(joined("찻잔 세트"), "찻잔 세트", "Hangul has spaces");
        assert_eq!(joined("नीला कप"), "नीला कप", "a vowel's sign is a letter");
        assert!(joined("ถ้วยชา").contains("ชา"));
    }

    #[test]
    fn folding_twice_is_folding_once() {
        for text in ["Größe", "İI", "ﬁ", "が", "각", "ϓ", "ṩ̇", "Å"] {
            assert_eq!(fold(&fold(text)), fold(text), "{text}");
        }
    }

    #[test]
    fn a_word_is_cut_where_nobody_types_on() {
        let long = "x".repeat(500);
        assert_eq!(terms(&long), ["x".repeat(TERM_CHARS_MAX)]);
    }
}
