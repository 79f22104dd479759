//! How far a cache goes, and where: the policies, and the routes that have another one.
//!
//! Owns their names and which paths a route holds. What a policy switches on is the cache crate's.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How far a cache goes in what RFC 9111 leaves to it. `docs/CACHE.md` tells the two apart rule by rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// For shops: what one careless field of an upstream could turn into a leak is off, and clients do not steer what
    /// the cache does.
    #[default]
    Safe,
    /// Safe, but a lifetime that nobody states is guessed: for files of a server that says `Last-Modified` and no more.
    Heuristic,
    /// All that the RFC lets a shared cache do, for upstreams whose every field is meant.
    Strict,
    /// Nothing is kept, whatever a response says, and nobody waits for another's answer: for accounts, carts, checkouts.
    Pass,
}

impl CachePolicy {
    /// The name in settings and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Heuristic => "heuristic",
            Self::Strict => "strict",
            Self::Pass => "pass",
        }
    }
}

impl FromStr for CachePolicy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        [Self::Safe, Self::Heuristic, Self::Strict, Self::Pass]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| UnknownPolicy { given: text.to_owned() })
    }
}

/// The policy of everything under one path, as `PREFIX=POLICY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRoute {
    prefix: String,
    policy: CachePolicy,
}

/// Why there is no route in a text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyRouteError {
    #[error("{given:?} names no policy: write it like /assets=strict")]
    Form { given: String },
    #[error("{prefix:?} is no path to compare with: begin it with '/', without '?', '..', '//', ';' and '%'")]
    Prefix { prefix: String },
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
}

impl PolicyRoute {
    /// `prefix` is a path that nobody reads in two ways.
    pub(crate) fn new(prefix: String, policy: CachePolicy) -> Self {
        Self { prefix, policy }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn policy(&self) -> CachePolicy {
        self.policy
    }

    /// Whole segments only: `/a` holds `/a` and `/a/b`, and not `/ab`.
    pub(crate) fn holds(&self, path: &str) -> bool {
        let rest = path.strip_prefix(self.prefix.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for PolicyRoute {
    type Err = PolicyRouteError;

    fn from_str(text: &str) -> Result<Self, PolicyRouteError> {
        let (prefix, policy) =
            text.rsplit_once('=').ok_or_else(|| PolicyRouteError::Form { given: text.to_owned() })?;
        if !prefix.starts_with('/') || prefix.contains('?') || is_ambiguous(prefix) {
            return Err(PolicyRouteError::Prefix { prefix: prefix.to_owned() });
        }
        Ok(Self { prefix: prefix.to_owned(), policy: policy.parse()? })
    }
}

impl fmt::Display for PolicyRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.prefix, self.policy.name())
    }
}

/// Whether a path may be another one to whoever normalises it. An encoded letter may be, too.
pub(crate) fn is_ambiguous(path: &str) -> bool {
    path.contains("//")
        || path.contains(['%', ';', '\\'])
        || path.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// A policy that is none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no cache policy {given:?}: choose safe, heuristic, strict or pass")]
pub struct UnknownPolicy {
    pub given: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_known_by_their_names() {
        assert_eq!("safe".parse(), Ok(CachePolicy::Safe));
        assert_eq!("heuristic".parse(), Ok(CachePolicy::Heuristic));
        assert_eq!("strict".parse(), Ok(CachePolicy::Strict));
        assert_eq!("pass".parse(), Ok(CachePolicy::Pass));
        let unknown = "Strict".parse::<CachePolicy>().expect_err("names are lower case");
        assert!(unknown.to_string().contains("safe, heuristic, strict or pass"), "{unknown}");
    }

    #[test]
    fn routes_that_are_none_are_refused_by_name() {
        let refused = |text: &str| text.parse::<PolicyRoute>().expect_err(text);
        assert!(matches!(refused("/a"), PolicyRouteError::Form { .. }));
        assert!(matches!(refused("/a=lax"), PolicyRouteError::Policy(_)));
        for text in ["a=safe", "=safe", "/a?b=safe", "/a/../b=safe", "/%61=safe", "//a=safe"] {
            assert!(matches!(refused(text), PolicyRouteError::Prefix { .. }), "{text}");
        }
    }
}
