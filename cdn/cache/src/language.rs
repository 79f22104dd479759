//! `Accept-Language` by what it means rather than by how it is written (RFC 9110 section 12.5.4).
//!
//! Owns the weights. Refuses to know whether a site wants its languages compared like this: that is its
//! [`crate::Policy`], for many frameworks take the order of equal weights for a preference, which the RFC does not give
//! them. Called by [`crate::vary`].

use std::fmt::Write as _;

use http::HeaderMap;
use http::header::{ACCEPT_LANGUAGE, CONTENT_LANGUAGE};

/// Languages of one wish. Browsers send a handful; what is longer is compared as it is written.
const LANGUAGES_MAX: usize = 32;
/// A weight of one, in thousandths.
const WHOLE: u16 = 1_000;

/// The wish in one spelling: lower case, the heaviest first, equal weights by the alphabet. None where it cannot be read.
pub(crate) fn canonical(request: &HeaderMap) -> Option<Box<str>> {
    let mut wishes = wishes(request)?;
    wishes.sort_unstable_by(|(a, a_weight), (b, b_weight)| b_weight.cmp(a_weight).then_with(|| a.cmp(b)));
    wishes.dedup();
    let mut out = String::new();
    for (language, weight) in wishes {
        let comma = if out.is_empty() { "" } else { "," };
        write!(out, "{comma}{language};{weight}").expect("a string takes everything");
    }
    Some(out.into())
}

/// The one language that is wanted more than every other.
pub(crate) fn favourite(request: &HeaderMap) -> Option<String> {
    let wishes = wishes(request)?;
    let best = wishes.iter().map(|(_, weight)| *weight).max().filter(|weight| *weight > 0)?;
    let mut heaviest = wishes.into_iter().filter(|(_, weight)| *weight == best);
    let (language, _) = heaviest.next()?;
    (heaviest.next().is_none() && language != "*").then_some(language)
}

/// The language of a response that is in one language.
pub(crate) fn of_content(response: &HeaderMap) -> Option<Box<str>> {
    let mut lines = response.get_all(CONTENT_LANGUAGE).iter();
    let (Some(only), None) = (lines.next(), lines.next()) else { return None };
    let tag = only.as_bytes().trim_ascii();
    is_range(tag).then(|| String::from_utf8_lossy(tag).to_ascii_lowercase().into())
}

fn wishes(request: &HeaderMap) -> Option<Vec<(String, u16)>> {
    let mut out = Vec::new();
    for line in request.get_all(ACCEPT_LANGUAGE) {
        for member in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if member.is_empty() {
                continue;
            }
            let mut parts = member.splitn(2, |byte| *byte == b';').map(<[u8]>::trim_ascii);
            let range = parts.next().filter(|range| is_range(range))?;
            let weight = parts.next().map_or(Some(WHOLE), weight)?;
            if out.len() == LANGUAGES_MAX {
                return None;
            }
            out.push((String::from_utf8_lossy(range).to_ascii_lowercase(), weight));
        }
    }
    (!out.is_empty()).then_some(out)
}

/// A language range, `*` among them.
fn is_range(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'*'))
}

/// `q=0.5` in thousandths. RFC 9110 section 12.4.2: at most three digits after the point, and at most one.
fn weight(parameter: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(parameter).ok()?;
    let (name, value) = text.split_once('=')?;
    if !name.trim_end().eq_ignore_ascii_case("q") {
        return None;
    }
    let value = value.trim_start();
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(WHOLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        map.insert(ACCEPT_LANGUAGE, text.parse().expect("test header"));
        map
    }

    #[test]
    fn order_is_not_a_weight() {
        let one = canonical(&asks("de;q=0.8, EN, fr"));
        assert_eq!(one.as_deref(), Some("en;1000,fr;1000,de;800"));
        for same in ["fr, en, de;q=0.80", "en;q=1, fr;q=1.000, de ; q=0.8", "en,en,fr,de;Q=0.8"] {
            assert_eq!(canonical(&asks(same)), one, "{same}");
        }
        assert_ne!(canonical(&asks("en, fr, de;q=0.7")), one);
        for unreadable in
            ["", ",", "e n", "en;q=2", "en;q=0.1234", "en;q=-1", "en;x=1", "en;q=", &"a,".repeat(33)]
        {
            assert_eq!(canonical(&asks(unreadable)), None, "{unreadable}");
        }
    }

    #[test]
    fn a_favourite_is_alone_at_the_top() {
        assert_eq!(favourite(&asks("fr;q=0.5, de;q=1.0")).as_deref(), Some("de"));
        assert_eq!(favourite(&asks("DE-at")).as_deref(), Some("de-at"));
        for none in ["en, de", "*", "de;q=0", "*, de;q=0.9", "en;q=x"] {
            assert_eq!(favourite(&asks(none)), None, "{none}");
        }
    }

    #[test]
    fn content_in_two_languages_is_in_none() {
        let content = |text: &str| {
            let mut map = HeaderMap::new();
            map.insert(CONTENT_LANGUAGE, text.parse().expect("test header"));
            of_content(&map)
        };
        assert_eq!(content(" De ").as_deref(), Some("de"));
        assert_eq!(content("de, en"), None);
        assert_eq!(content(""), None);
    }
}
