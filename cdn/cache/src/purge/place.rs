//! Where on a site a purge is meant: one target, or all below it, on one host or on each.

use std::borrow::Cow;

use thiserror::Error;

use crate::key::{Scheme, normalise_authority};

/// Where on a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub(super) site: Box<str>,
    /// None: on whichever host of the site.
    pub(super) authority: Option<Box<str>>,
    pub(super) target: Box<str>,
}

/// Why a text is no place.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("write a path such as /tea?size=2, or a whole address such as https://shop.example/tea")]
pub struct BadPlace;

impl Place {
    /// A path on every host of the site, or an address (whose scheme makes no difference).
    pub fn parse(site: &str, text: &str) -> Result<Self, BadPlace> {
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() > crate::key::TARGET_BYTES_MAX || !visible(text) || text.contains('#') {
            return Err(BadPlace);
        }
        let of = |authority, target: &str| Self {
            site: site.into(),
            authority,
            target: spelled(target).into_owned().into(),
        };
        if text.starts_with('/') {
            return Ok(of(None, text));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => return Err(BadPlace),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let authority = normalise_authority(scheme, authority).map_err(|_| BadPlace)?;
        let target =
            if target.starts_with('/') { Cow::Borrowed(target) } else { format!("/{target}").into() };
        Ok(of(Some(authority), &target))
    }
}

/// A target in one spelling: what need not be encoded is not (RFC 3986 section 6.2.2.2), and digits are upper case. For
/// comparing only; what is forwarded and stored keeps its own.
pub(crate) fn spelled(target: &str) -> Cow<'_, str> {
    if !target.contains('%') {
        return Cow::Borrowed(target);
    }
    let (bytes, mut out, mut at) = (target.as_bytes(), String::with_capacity(target.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = bytes
            .get(at + 1..at + 3)
            .filter(|digits| *byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                out.push(char::from(plain));
                at += 3;
            }
            Some(encoded) => {
                out.push_str(&format!("%{encoded:02X}"));
                at += 3;
            }
            None => {
                out.push(char::from(*byte));
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

pub(super) fn is_under(target: &str, prefix: &str) -> bool {
    target.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| {
        rest.starts_with('/') || !prefix.ends_with('/') && (rest.is_empty() || rest.starts_with('?'))
    })
}
