//! Pure: what somebody typed, as what is looked for.
//!
//! Every word must be there. The last one is the beginning of a word, for whoever searches is still typing. There are no
//! operators: whatever is neither letter nor digit separates, quotes and all.

use crate::document::{Document, TIERS, Tier};
use crate::text::{self, Piece};

/// Bytes of a query. The longest title that a product may have is 500; nobody types more than a fifth of one, and in most scripts
/// that is three bytes a letter.
pub const QUERY_BYTES_MAX: usize = 300;
/// Terms of a query. A pasted title of ten words fits, and twenty letters of Chinese; each is a list to go through.
pub const TERMS_MAX: usize = 24;

/// Why a query cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    #[error("q has {0} bytes, more than {QUERY_BYTES_MAX}: search for fewer words")]
    TooLong(usize),
    #[error("q has {0} words, more than {TERMS_MAX}: search for fewer")]
    TooManyTerms(usize),
    #[error("q holds no letter and no digit: leave it away for the whole catalogue")]
    Empty,
}

/// One thing that must be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// Folded ([`crate::text`]): letters, digits and marks only.
    pub text: String,
    /// Whether a longer word that begins so is one too.
    pub is_beginning: bool,
}

/// What is looked for: at least one term. Two queries that are equal have the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// In order, each once.
    terms: Vec<Term>,
}

impl Query {
    pub fn parse(typed: &str) -> Result<Self, BadQuery> {
        if typed.len() > QUERY_BYTES_MAX {
            return Err(BadQuery::TooLong(typed.len()));
        }
        let pieces = text::pieces(typed);
        let end = pieces.len().checked_sub(1).ok_or(BadQuery::Empty)?;
        let mut terms: Vec<Term> = Vec::new();
        for (at, piece) in pieces.into_iter().enumerate() {
            let (text, is_beginning) = match piece {
                Piece::Word(word) => (word, at == end),
                Piece::Pair(pair) => (pair, false),
                // One letter alone is looked for in every pair that begins with it.
                Piece::Last(letter, 1) => (letter, true),
                // The pair before has it.
                Piece::Last(..) => continue,
            };
            terms.push(Term { text, is_beginning });
        }
        terms.sort_unstable();
        terms.dedup();
        if terms.len() > TERMS_MAX {
            return Err(BadQuery::TooManyTerms(terms.len()));
        }
        Ok(Self { terms })
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// One spelling for all queries that are equal: terms with `+` between them, beginnings with `*` behind.
    pub fn spelled(&self) -> String {
        let term = |term: &Term| format!("{}{}", term.text, if term.is_beginning { "*" } else { "" });
        self.terms.iter().map(term).collect::<Vec<_>>().join("+")
    }

    /// The letters with which a word of every match begins, at most two: one of [`Document::beginnings`] of each.
    pub fn beginning(&self) -> String {
        let longest = self.terms.iter().max_by_key(|term| term.text.len());
        longest.map_or_else(String::new, |term| beginning(&term.text, 2))
    }

    /// The best tier in which a document matches. This is the meaning of a query; what engines are asked must come to the same.
    pub fn tier(&self, document: &Document) -> Option<Tier> {
        let has = |term: &Term, tier: Tier| document.has(&term.text, term.is_beginning, tier);
        TIERS.into_iter().find(|&tier| self.terms.iter().all(|term| has(term, tier)))
    }

    /// For FTS5: what is of this tier or of one before it. Terms are quoted, and hold no quote.
    pub fn fts5(&self, tier: Tier) -> String {
        let term = |term: &Term| format!("\"{}\"{}", term.text, if term.is_beginning { " *" } else { "" });
        let all = self.terms.iter().map(term).collect::<Vec<_>>().join(" AND ");
        if tier == Tier::Description {
            // Wherever it is: no column has to be looked at.
            return all;
        }
        format!("{{{}}} : ({all})", tier.columns().join(" "))
    }

    /// For FTS5: what is of this tier and of none before it.
    pub fn fts5_alone(&self, tier: Tier) -> String {
        match tier.before() {
            None => self.fts5(tier),
            Some(before) => format!("({}) NOT ({})", self.fts5(tier), self.fts5(before)),
        }
    }

    /// For PostgreSQL, as the text of a `tsquery`: the same as [`Self::fts5_alone`]. Terms are quoted, and hold no quote.
    pub fn tsquery(&self, tier: Tier) -> String {
        let within = |tier: Tier| {
            let weights = tier.weights();
            let term = |term: &Term| {
                format!("'{}':{}{weights}", term.text, if term.is_beginning { "*" } else { "" })
            };
            self.terms.iter().map(term).collect::<Vec<_>>().join(" & ")
        };
        match tier.before() {
            None => within(tier),
            Some(before) => format!("{} & !({})", within(tier), within(before)),
        }
    }
}

/// The first letters of a term.
pub(crate) fn beginning(term: &str, letters: usize) -> String {
    term.chars().take(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(typed: &str) -> Result<String, BadQuery> {
        Query::parse(typed).map(|query| query.spelled())
    }

    #[test]
    fn the_last_word_is_a_beginning_and_the_order_of_the_others_is_nothing() {
        for (typed, is) in [
            ("mug", "mug*"),
            ("  Red   MUG ", "mug*+red"),
            ("red red mug", "mug*+red"),
            ("red mug blue", "blue*+mug+red"),
            ("mug mug", "mug+mug*"),
            ("crème", "creme*"),
            ("急須", "急須"),
            ("茶", "茶*"),
            ("茶 mug", "mug*+茶*"),
            ("mug 急須セット", "mug+セッ+ット+急須+須セ"),
            (r#""mug" OR (tea* NOT ^x) {title}: NEAR/2"#, "2*+mug+near+not+or+tea+title+x"),
            ("'; DROP TABLE text; --", "drop+table+text*"),
        ] {
            assert_eq!(spelled(typed).as_deref(), Ok(is), "{typed}");
        }
    }

    #[test]
    fn what_cannot_be_looked_for_is_refused_by_name() {
        assert_eq!(spelled(""), Err(BadQuery::Empty));
        assert_eq!(spelled(" \"*\" \u{0}"), Err(BadQuery::Empty));
        assert_eq!(
            spelled(&"x".repeat(QUERY_BYTES_MAX)),
            Ok(format!("{}*", "x".repeat(text::TERM_CHARS_MAX)))
        );
        assert_eq!(spelled(&"x".repeat(QUERY_BYTES_MAX + 1)), Err(BadQuery::TooLong(QUERY_BYTES_MAX + 1)));
        let words: Vec<_> = (0..=TERMS_MAX).map(|n| format!("w{n}")).collect();
        assert_eq!(spelled(&words.join(" ")), Err(BadQuery::TooManyTerms(TERMS_MAX + 1)));
        assert!(spelled(&words[1..].join(" ")).is_ok());
    }

    #[test]
    fn engines_are_told_terms_and_tiers() {
        let query = Query::parse("red mug").expect("a query");
        assert_eq!(query.fts5(Tier::Title), r#"{title} : ("mug" * AND "red")"#);
        assert_eq!(
            query.fts5_alone(Tier::Sku),
            r#"({title sku} : ("mug" * AND "red")) NOT ({title} : ("mug" * AND "red"))"#
        );
        assert_eq!(query.fts5(Tier::Description), r#""mug" * AND "red""#);
        assert_eq!(query.tsquery(Tier::Title), "'mug':*A & 'red':A");
        assert_eq!(query.tsquery(Tier::Labels), "'mug':*ABC & 'red':ABC & !('mug':*AB & 'red':AB)");
        assert_eq!(query.beginning(), "re");
        assert_eq!(Query::parse("x").expect("a query").beginning(), "x");
    }
}
