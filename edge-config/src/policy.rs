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

    /// The path under which it holds, without a slash at its end.
    pub fn prefix(&self) -> &str {
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

/// The paths that whoever normalises this one may read in its place, and itself: decoded, without path parameters, with slashes
/// and dots folded, and all that together. None where the decoding alone leads to more than one: what is encoded there is a
/// slash, a percent or a question mark, cannot be read, or is no UTF-8.
pub(crate) fn readings(path: &str) -> Option<Vec<String>> {
    let decoded = decoded(path)?;
    let mut all = vec![path.to_owned()];
    if decoded != path {
        all.push(decoded);
    }
    for reading in [without_parameters, up_to_a_parameter, with_slashes_folded, with_dots_folded] {
        for at in 0..all.len() {
            let other = reading(&all[at]);
            if !all.contains(&other) {
                all.push(other);
            }
        }
    }
    Some(all)
}

/// Whether a path is encoded, and of it no more than has to be. Who encodes a letter that need not be has a reason.
pub(crate) fn is_encoded_as_needed(path: &str) -> bool {
    let is_needed = |encoded: &str| {
        let byte = encoded.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        byte.is_some_and(|byte| !byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte))
    };
    path.contains('%') && path.split('%').skip(1).all(is_needed)
}

/// Once: what is encoded twice is a percent after the first time.
fn decoded(path: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let byte = u8::try_from(digit()? * 16 + digit()?).ok()?;
                if byte.is_ascii_control() || b"%/\\?#".contains(&byte) {
                    return None;
                }
                byte
            }
            // To some servers it is a slash.
            b'\\' => return None,
            byte => byte,
        };
        decoded.push(byte);
    }
    String::from_utf8(decoded).ok()
}

fn without_parameters(path: &str) -> String {
    let segments: Vec<_> = path.split('/').map(up_to_a_semicolon).collect();
    segments.join("/")
}

fn up_to_a_parameter(path: &str) -> String {
    up_to_a_semicolon(path).to_owned()
}

fn up_to_a_semicolon(text: &str) -> &str {
    text.split(';').next().unwrap_or(text)
}

fn with_slashes_folded(path: &str) -> String {
    let last = if path.ends_with('/') { "/" } else { "" };
    let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    if segments.is_empty() { "/".to_owned() } else { format!("/{}{last}", segments.join("/")) }
}

/// RFC 3986 section 5.2.4. Whether a slash is left behind the last dots makes no difference to what holds the path.
fn with_dots_folded(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
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
    fn a_path_has_the_readings_that_servers_have_of_it() {
        let of = |path: &str| {
            let mut readings = readings(path).unwrap_or_else(|| panic!("{path} cannot be told"));
            assert_eq!(readings.remove(0), path);
            readings
        };
        assert_eq!(of("/caf%C3%A9"), ["/caf\u{e9}"]);
        assert_eq!(of("/img/a%20b.jpg"), ["/img/a b.jpg"]);
        assert_eq!(of("/x;v=2"), ["/x"]);
        assert_eq!(of("/x;/y"), ["/x/y", "/x"]);
        assert_eq!(of("//x//y/"), ["/x/y/"]);
        assert_eq!(of("/a/./b"), ["/a/b"]);
        assert_eq!(of("/../.."), ["/"]);
        for (path, reading) in [
            ("/%61ccount", "/account"),
            ("/x/..;/account", "/account"),
            ("/x/%2e%2E/account", "/account"),
            ("/x//../account", "/account"),
            ("/x//../account", "/x/account"),
            ("/account%3Bx", "/account"),
            ("/x/%2e%2e%3b//account", "/account"),
        ] {
            assert!(of(path).iter().any(|other| other == reading), "{path} is not read as {reading}");
        }
        for path in [
            "/a%2Fb", "/a%5cb", "/a\\b", "/a%252e", "/a%3f", "/a%23", "/a%00", "/a%", "/a%4", "/a%4g",
            "/%E9", "/%C0%AF",
        ] {
            assert_eq!(readings(path), None, "{path}");
        }
    }

    #[test]
    fn nobody_has_to_encode_a_letter() {
        for needed in ["/caf%C3%A9", "/a%20b%3b"] {
            assert!(is_encoded_as_needed(needed), "{needed}");
        }
        for not in ["/a", "/%61", "/a%20%7e", "/%2e", "/%", "/%4"] {
            assert!(!is_encoded_as_needed(not), "{not}");
        }
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
