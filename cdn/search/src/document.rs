//! Pure: a product as it is found.

use std::collections::BTreeSet;
use std::ops::Bound;

use souk_commerce::id::Digest;
use souk_commerce::product::Product;

use crate::query::beginning;
use crate::text;

/// Where every word of a query was found, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// In the title alone.
    Title,
    /// With the sku.
    Sku,
    /// With tags and the values of attributes. Names of attributes are the merchant's columns, and every product has them.
    Labels,
    /// With the description.
    Description,
}

pub const TIERS: [Tier; 4] = [Tier::Title, Tier::Sku, Tier::Labels, Tier::Description];

impl Tier {
    fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn before(self) -> Option<Self> {
        TIERS.get(self.index().checked_sub(1)?).copied()
    }

    /// The columns of an FTS5 table that count up to here.
    pub(crate) fn columns(self) -> &'static [&'static str] {
        const COLUMNS: &[&str] = &["title", "sku", "labels", "description"];
        &COLUMNS[..=self.index()]
    }

    /// The weights of a `tsvector` that count up to here.
    pub(crate) fn weights(self) -> &'static str {
        &"ABCD"[..=self.index()]
    }
}

/// The place of a product in the answer to a query: a page goes on after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub tier: Tier,
    pub rank: i64,
}

impl Position {
    /// Seventeen hexadecimal digits.
    pub fn cursor(self) -> String {
        format!("{:x}{:016x}", self.tier.index(), self.rank)
    }

    pub fn from_cursor(text: &str) -> Option<Self> {
        let is_hex = text.len() == 17 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let (tier, rank) = text.split_at_checked(1).filter(|_| is_hex)?;
        let tier = *TIERS.get(usize::from_str_radix(tier, 16).ok()?)?;
        Some(Self { tier, rank: i64::from_str_radix(rank, 16).ok()? })
    }
}

/// Words of a title that are counted; more are as many.
const TITLE_WORDS_MAX: i64 = 255;
/// Bits that the sku decides, below those of the title's length.
const SKU_BITS: u32 = 48;

/// What a product is found by: the terms of each of its fields, once each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    fields: [BTreeSet<String>; TIERS.len()],
    rank: i64,
}

impl Document {
    pub fn of(product: &Product) -> Self {
        let Product { sku, title, description, tags, attributes, image: _ } = product;
        let title_terms = text::terms(title);
        let words = i64::try_from(title_terms.len()).unwrap_or(TITLE_WORDS_MAX).min(TITLE_WORDS_MAX);
        let mut of_sku = text::terms(sku.as_str());
        // Without its hyphens, as people read it out.
        let whole: String = of_sku.concat().chars().take(text::TERM_CHARS_MAX).collect();
        of_sku.extend((!whole.is_empty()).then_some(whole));
        let labels = tags.iter().chain(attributes.iter().map(|(_, value)| value));
        let fields = [
            title_terms.into_iter().collect(),
            of_sku.into_iter().collect(),
            labels.flat_map(|label| text::terms(label)).collect(),
            text::terms(description).into_iter().collect(),
        ];
        Self { fields, rank: (words << SKU_BITS) | spread(sku.as_str()) }
    }

    /// Its place among the products of its tier, the same at every node and at the region: whoever has the shorter title comes
    /// first, for more of it is what was looked for; then an order that means nothing. Not negative, and two skus of 100,000 have
    /// the same once in 50,000 catalogues.
    pub fn rank(&self) -> i64 {
        self.rank
    }

    /// Whether a word is there, up to the fields of this tier.
    pub(crate) fn has(&self, term: &str, is_beginning: bool, tier: Tier) -> bool {
        let within = |field: &BTreeSet<String>| match is_beginning {
            true => {
                let from = (Bound::Included(term), Bound::Unbounded);
                field.range::<str, _>(from).next().is_some_and(|word| word.starts_with(term))
            }
            false => field.contains(term),
        };
        self.fields[..=tier.index()].iter().any(within)
    }

    /// The fields for FTS5, in the order of [`Tier::columns`]: terms with spaces between them.
    pub fn columns(&self) -> [String; TIERS.len()] {
        self.fields.each_ref().map(|field| {
            let mut column = String::new();
            for term in field {
                if !column.is_empty() {
                    column.push(' ');
                }
                column.push_str(term);
            }
            column
        })
    }

    /// The text of a `tsvector`. Each field has a position and a weight of its own; terms are quoted, and hold no quote.
    pub fn tsvector(&self) -> String {
        let mut vector = String::new();
        for (position, (field, weight)) in self.fields.iter().zip("ABCD".chars()).enumerate() {
            for term in field {
                if !vector.is_empty() {
                    vector.push(' ');
                }
                vector.push('\'');
                vector.push_str(term);
                vector.push_str("':");
                vector.push_str(&(position + 1).to_string());
                vector.push(weight);
            }
        }
        vector
    }

    /// The first letter and the first two letters of each of its words. Whatever query matches has one of them as its
    /// [`crate::Query::beginning`].
    pub fn beginnings(&self) -> impl Iterator<Item = String> + '_ {
        let words = self.fields.iter().flatten();
        words.flat_map(|word| [beginning(word, 1), beginning(word, 2)])
    }
}

/// A number that a sku always has, and neighbours do not share.
fn spread(sku: &str) -> i64 {
    let [a, b, c, d, e, f, ..] = Digest::of(sku.as_bytes()).0;
    i64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Query;

    pub(crate) fn product(sku: &str, title: &str, tags: &[&str], description: &str) -> Product {
        Product {
            sku: sku.parse().expect("a sku"),
            title: title.to_owned(),
            description: description.to_owned(),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            attributes: vec![("Colour".to_owned(), "Bleu".to_owned())],
            image: None,
        }
    }

    #[test]
    fn a_query_is_found_in_the_best_tier() {
        let mug = Document::of(&product("MUG-7-b", "Tall mug", &["Kitchen"], "Holds tea."));
        let tier = |typed: &str| Query::parse(typed).expect("a query").tier(&mug);
        for (typed, is) in [
            ("mug", Some(Tier::Title)),
            ("tall mu", Some(Tier::Title)),
            ("mug-7", Some(Tier::Sku)),
            ("mug7b", Some(Tier::Sku)),
            ("kitchen tall", Some(Tier::Labels)),
            ("bleu", Some(Tier::Labels)),
            ("colour", None),
            ("tea mug", Some(Tier::Description)),
            ("ug", None),
            ("tal mug", None),
        ] {
            assert_eq!(tier(typed), is, "{typed}");
        }
    }

    #[test]
    fn a_cursor_comes_back_and_nothing_else_is_one() {
        let rank = Document::of(&product("A", "b", &[], "")).rank();
        for tier in TIERS {
            let position = Position { tier, rank };
            assert_eq!(Position::from_cursor(&position.cursor()), Some(position));
        }
        for text in [
            "",
            "0",
            "4153",
            "4000000000000000a",
            "0ffffffffffffffff",
            "00000000000000é",
            "+0000000000000001",
        ] {
            assert_eq!(Position::from_cursor(text), None, "{text}");
        }
    }

    proptest! {
        /// What a change takes back is enough: an answer is named by one beginning, and a product that matches has it.
        #[test]
        fn whatever_matches_has_the_querys_beginning(title in "\\PC{0,40}", typed in "\\PC{1,12}", from in 0_usize..40, to in 0_usize..12) {
            let document = Document::of(&product("A-1", &title, &[], "and"));
            // Queries that match now and then: a part of the title, and what comes.
            let part: String = title.chars().skip(from).take(to).collect();
            for typed in [typed, part] {
                let Ok(query) = Query::parse(&typed) else { continue };
                if query.tier(&document).is_some() {
                    prop_assert!(document.beginnings().any(|b| b == query.beginning()), "{typed:?} in {title:?}");
                }
            }
        }

        /// Engines are told terms within quotes and spaces.
        #[test]
        fn a_term_is_letters_digits_and_marks(text in "\\PC{0,60}") {
            for term in text::terms(&text) {
                prop_assert!(!term.is_empty());
                prop_assert!(term.chars().all(|c| !c.is_ascii() || c.is_ascii_lowercase() || c.is_ascii_digit()), "{term:?}");
                prop_assert!(!term.chars().any(|c| c.is_whitespace() || c.is_control()), "{term:?}");
            }
        }
    }
}
