//! What of a query is a request's own: parameters that only an advertiser reads, and the order of the rest.
//!
//! Owns the rules and what they make of a target. What a rule takes away is neither in the cache's key nor sent to the
//! upstream: a parameter that the upstream sees and the key does not have would let one client write another one's page.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::error::Said;

/// Names of one upstream. The lists of ad blockers have some forty.
pub const DROPPED_MAX: usize = 64;

/// Parameters of a query that rules are about: one with more is left as it is. Forms of shops have some fifty; a head of 8 KiB
/// has room for thousands, each to be read and compared.
pub const PAIRS_MAX: usize = 256;

/// The rules of one upstream. None of them by default: a cache cannot know what a server reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRules {
    drop: Vec<QueryName>,
    sort: bool,
}

/// The name of a parameter, or, with a `*` at its end, the beginning of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryName {
    text: String,
    is_beginning: bool,
}

/// Why rules are none.
#[derive(Debug, PartialEq, Eq)]
pub enum QueryRulesError {
    /// One of the names, counted from 0.
    Name {
        index: usize,
        given: String,
    },
    TooMany {
        given: usize,
    },
}

impl QueryRulesError {
    pub(crate) fn said(&self) -> Said {
        match self {
            Self::Name { index, given } => Said::new(
                "--query-drop",
                format!("query_drop[{index}]"),
                format!("{given:?} names no parameter"),
                "write one like \"gclid\", or \"utm_*\" for all that begin so",
            ),
            Self::TooMany { given } => Said::new(
                "--query-drop",
                "query_drop",
                format!("{given} names are too many"),
                format!("write at most {DROPPED_MAX}; a * at the end of a name stands for many"),
            ),
        }
    }
}

impl fmt::Display for QueryRulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.said(), f)
    }
}

impl std::error::Error for QueryRulesError {}

impl FromStr for QueryName {
    type Err = QueryRulesError;

    fn from_str(text: &str) -> Result<Self, QueryRulesError> {
        let name = text.strip_suffix('*').unwrap_or(text);
        // `*` alone is all of the query, and whoever means that writes it for the upstream to see.
        if name.is_empty()
            || name.contains(['*', '&', '=', '#', '?', '%'])
            || name.contains(char::is_whitespace)
        {
            return Err(QueryRulesError::Name { index: 0, given: text.to_owned() });
        }
        Ok(Self { text: name.to_owned(), is_beginning: name.len() < text.len() })
    }
}

impl QueryName {
    fn holds(&self, name: &str) -> bool {
        if self.is_beginning { name.starts_with(&self.text) } else { name == self.text }
    }
}

impl QueryRules {
    /// Leaves out every parameter that one of these names; `sort` puts the others into the order of their names, those of
    /// one name in theirs.
    pub fn new(names: &[String], sort: bool) -> Result<Self, QueryRulesError> {
        if names.len() > DROPPED_MAX {
            return Err(QueryRulesError::TooMany { given: names.len() });
        }
        let parse = |(index, text): (usize, &String)| {
            let name = text.parse::<QueryName>();
            name.map_err(|_| QueryRulesError::Name { index, given: text.clone() })
        };
        Ok(Self { drop: names.iter().enumerate().map(parse).collect::<Result<_, _>>()?, sort })
    }

    /// The target that the cache knows and the upstream gets. A path is left as it is, and so is a query that no rule is
    /// about, byte by byte.
    pub fn settle<'a>(&self, target: &'a str) -> Cow<'a, str> {
        if self.drop.is_empty() && !self.sort {
            return Cow::Borrowed(target);
        }
        let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
        if query.split('&').nth(PAIRS_MAX).is_some() {
            return Cow::Borrowed(target);
        }
        let mut kept: Vec<&str> = query.split('&').filter(|pair| !self.drops(pair)).collect();
        if self.sort {
            kept.sort_by_cached_key(|pair| name(pair).into_owned());
        }
        if kept.is_empty() {
            return Cow::Borrowed(path);
        }
        let settled = kept.join("&");
        if settled == query { Cow::Borrowed(target) } else { Cow::Owned(format!("{path}?{settled}")) }
    }

    fn drops(&self, pair: &str) -> bool {
        let name = name(pair);
        self.drop.iter().any(|dropped| dropped.holds(&name))
    }
}

/// As a server reads it: `%75tm_source` is `utm_source`.
fn name(pair: &str) -> Cow<'_, str> {
    url::form_urlencoded::parse(pair.as_bytes()).next().map_or(Cow::Borrowed(""), |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(drop: &[&str], sort: bool) -> QueryRules {
        let names: Vec<String> = drop.iter().map(|name| (*name).to_owned()).collect();
        QueryRules::new(&names, sort).expect("names")
    }

    #[test]
    fn what_an_advertiser_reads_is_taken_away_and_the_rest_stays_byte_by_byte() {
        let rules = rules(&["utm_*", "gclid"], false);
        for (given, settled) in [
            ("/tea", "/tea"),
            ("/tea?", "/tea?"),
            ("/tea?b=1&a=2", "/tea?b=1&a=2"),
            ("/tea?utm_source=x", "/tea"),
            ("/tea?%75tm_source=x&gclid", "/tea"),
            ("/tea?b=%20&utm_x=1&&a=+&gclid=2&gclide=3", "/tea?b=%20&&a=+&gclide=3"),
            ("/utm_x?UTM_X=1&xutm_=2", "/utm_x?UTM_X=1&xutm_=2"),
            ("/a?b=utm_source=1?utm_source=2", "/a?b=utm_source=1?utm_source=2"),
        ] {
            assert_eq!(rules.settle(given), settled, "{given}");
        }
    }

    #[test]
    fn sorted_queries_are_one_and_values_of_a_name_keep_their_order() {
        let rules = rules(&["x"], true);
        for given in ["/?b=1&a=2&a=1", "/?a=2&b=1&a=1", "/?a=2&x=9&a=1&b=1", "/?b=1&x&a=2&a=1"] {
            assert_eq!(rules.settle(given), "/?a=2&a=1&b=1", "{given}");
        }
        assert_eq!(rules.settle("/?a=1&a=2&b=1"), "/?a=1&a=2&b=1");
        assert_eq!(QueryRules::default().settle("/?b=1&a=2"), "/?b=1&a=2");
    }

    #[test]
    fn a_query_of_very_many_parameters_is_left_as_it_is() {
        let rules = rules(&["x"], true);
        let query = |pairs: usize| format!("/?b&{}", vec!["x"; pairs - 1].join("&"));
        assert_eq!(rules.settle(&query(PAIRS_MAX)), "/?b");
        assert_eq!(rules.settle(&query(PAIRS_MAX + 1)), query(PAIRS_MAX + 1));
    }

    #[test]
    fn what_was_settled_stays() {
        let rules = rules(&["a", "b*"], true);
        let pairs = ["a=1", "b", "bc=2", "c=3", "", "%62=4", "d=5&c=1", "é=6", "%E9"];
        for first in pairs {
            for second in pairs {
                for third in pairs {
                    let target = format!("/p?{first}&{second}&{third}");
                    let once = rules.settle(&target).into_owned();
                    assert_eq!(rules.settle(&once), once, "{target}");
                }
            }
        }
    }

    #[test]
    fn a_name_that_is_none_is_told_by_its_place() {
        for text in ["", "*", "a*b", "a&b", "a=b", "a b", "%61"] {
            let refused = QueryRules::new(&["ok".to_owned(), text.to_owned()], false);
            assert_eq!(refused, Err(QueryRulesError::Name { index: 1, given: text.to_owned() }));
        }
        let many = vec!["a".to_owned(); DROPPED_MAX + 1];
        let refused = QueryRules::new(&many, false).expect_err("one too many").to_string();
        assert!(refused.starts_with("--query-drop 65 names") && refused.contains("at most 64"), "{refused}");
    }
}
