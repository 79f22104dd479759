//! `Cache-Control` in its two forms, and the lifetimes that come of it, against a reader that counts with big numbers.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use souk_cache::directives::{RequestDirectives, ResponseDirectives};
use souk_cache::freshness::{Exchanged, Freshness, Use};

use crate::dates;
use crate::message::{fields, holds, lines, only, same};

const DIRECTIVES_MAX: usize = 128;
const FIELDS_MAX: usize = 32;
const NOW_MS: u64 = 1_800_000_000_000;
/// RFC 9111 section 1.2.2: what a cache counts to at most.
const AGE_MAX: u128 = (1 << 31) - 1;

/// An argument of a directive.
#[derive(Clone, Debug, PartialEq)]
enum Argument {
    None,
    Text(String),
    Bad,
}

impl Argument {
    /// Digits, as a number without bounds; what cannot be read is none.
    fn seconds(&self) -> Option<u128> {
        match self {
            Self::Text(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(text.bytes().fold(0, |sum: u128, byte| {
                    sum.saturating_mul(10).saturating_add(u128::from(byte - b'0'))
                }))
            }
            _ => None,
        }
    }

    fn seconds_or_zero(&self) -> u32 {
        narrow(self.seconds().unwrap_or(0))
    }

    fn names(&self) -> Option<Vec<HeaderName>> {
        let Self::Text(text) = self else { return None };
        let names = text.split(',').map(str::trim_ascii).filter(|name| !name.is_empty());
        let names: Vec<HeaderName> =
            names.map(|name| HeaderName::from_bytes(&bytes(name)).ok()).collect::<Option<_>>()?;
        (1..=FIELDS_MAX).contains(&names.len()).then_some(names)
    }
}

fn narrow(seconds: u128) -> u32 {
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Letters of Latin-1, so that every byte is one.
fn letters(line: &[u8]) -> String {
    line.iter().map(|byte| char::from(*byte)).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|letter| u8::try_from(u32::from(letter)).expect("Latin-1")).collect()
}

/// Names and arguments in their order, and whether that is all of them.
fn directives(head: &HeaderMap) -> (Vec<(String, Argument)>, bool) {
    let mut members = Vec::new();
    for line in lines(head, "cache-control") {
        let (mut member, mut is_quoted, mut is_escaped) = (String::new(), false, false);
        for letter in letters(line).chars() {
            if letter == ',' && !is_quoted {
                members.push(std::mem::take(&mut member));
                continue;
            }
            if letter == '"' && !is_escaped {
                is_quoted = !is_quoted;
            }
            is_escaped = letter == '\\' && is_quoted && !is_escaped;
            member.push(letter);
        }
        members.push(member);
    }
    let members: Vec<_> =
        members.iter().map(|member| member.trim_ascii()).filter(|m| !m.is_empty()).collect();
    let read = |member: &&str| match member.split_once('=') {
        None => (member.to_ascii_lowercase(), Argument::None),
        Some((name, text)) => {
            let argument = match text.strip_prefix('"') {
                _ if name.ends_with(|c: char| c.is_ascii_whitespace()) => Argument::Bad,
                _ if text.is_empty() || text.starts_with(|c: char| c.is_ascii_whitespace()) => Argument::Bad,
                None => Argument::Text(text.to_owned()),
                Some(inside) => match inside.strip_suffix('"') {
                    Some(inside) if !inside.contains('"') => Argument::Text(inside.to_owned()),
                    _ => Argument::Bad,
                },
            };
            (name.trim_ascii_end().to_ascii_lowercase(), argument)
        }
    };
    let all = members.iter().take(DIRECTIVES_MAX).map(read);
    (all.collect(), members.len() <= DIRECTIVES_MAX)
}

/// Of two lifetimes the shorter.
fn shorter(slot: &mut Option<u32>, seconds: u32) {
    *slot = Some(slot.unwrap_or(u32::MAX).min(seconds));
}

fn untargeted(head: &HeaderMap) -> ResponseDirectives {
    let mut out = ResponseDirectives::default();
    let (all, is_all) = directives(head);
    for (name, argument) in all {
        let forbid = |fields: &mut Vec<HeaderName>| match argument.names() {
            Some(names) if fields.len() + names.len() <= FIELDS_MAX => {
                fields.extend(names);
                false
            }
            _ => true,
        };
        match name.as_str() {
            "no-store" => out.no_store = true,
            "no-cache" => out.no_cache |= forbid(&mut out.fields),
            "private" => out.private |= forbid(&mut out.fields),
            "public" => out.public = true,
            "must-revalidate" => out.must_revalidate = true,
            "proxy-revalidate" => out.proxy_revalidate = true,
            "must-understand" => out.must_understand = true,
            "max-age" => shorter(&mut out.max_age_s, argument.seconds_or_zero()),
            "s-maxage" => shorter(&mut out.s_maxage_s, argument.seconds_or_zero()),
            "stale-while-revalidate" => {
                shorter(&mut out.stale_while_revalidate_s, argument.seconds_or_zero())
            }
            "stale-if-error" => shorter(&mut out.stale_if_error_s, argument.seconds_or_zero()),
            _ => {}
        }
    }
    out.no_store |= !is_all;
    out
}

pub(crate) fn of_response(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let got = ResponseDirectives::of(&head);
    if got.targeted {
        // It takes the place of `Cache-Control` wholly.
        let alone = only(&head, &["cdn-cache-control"]);
        same("what is targeted", &got, &ResponseDirectives::of(&alone))?;
        holds("a dictionary has no unreadable number", got.fields.is_empty())?;
        let joined = lines(&head, "cdn-cache-control").join(&b", "[..]);
        let parsed = sfv::Parser::new(&joined).parse::<sfv::Dictionary>();
        holds("it is a dictionary", parsed.is_ok_and(|dictionary| !dictionary.is_empty()))?;
    } else {
        same("what is said", &got, &untargeted(&head))?;
        // An invalid dictionary is as none.
        let without = only(&head, &["cache-control"]);
        same("what is said without it", &got, &ResponseDirectives::of(&without))?;
    }
    Ok(format!("{got:?}"))
}

pub(crate) fn of_request(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let mut expected = RequestDirectives::default();
    let mut seen = BTreeMap::<String, u32>::new();
    for (name, argument) in directives(&head).0 {
        match name.as_str() {
            "no-store" => expected.no_store = true,
            "no-cache" => expected.no_cache = true,
            "only-if-cached" => expected.only_if_cached = true,
            "max-age" => shorter(&mut expected.max_age_s, argument.seconds_or_zero()),
            "max-stale" if argument == Argument::None => shorter(&mut expected.max_stale_s, u32::MAX),
            "max-stale" => shorter(&mut expected.max_stale_s, argument.seconds_or_zero()),
            "min-fresh" => {
                let seconds = argument.seconds().map_or(u32::MAX, narrow);
                expected.min_fresh_s = Some(expected.min_fresh_s.unwrap_or(0).max(seconds));
            }
            _ => {}
        }
        *seen.entry(name).or_default() += 1;
    }
    if !head.contains_key("cache-control") {
        let members = lines(&head, "pragma").into_iter().flat_map(|line| line.split(|byte| *byte == b','));
        expected.no_cache |=
            members.into_iter().any(|member| member.trim_ascii().eq_ignore_ascii_case(b"no-cache"));
    }
    let got = RequestDirectives::of(&head);
    same("what is asked", got, expected)?;
    Ok(format!("{got:?}"))
}

/// Lifetime and age, where the response states them.
pub(crate) fn lifetime(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let when = Exchanged { asked_ms: NOW_MS - 3_500, answered_ms: NOW_MS };
    let said = ResponseDirectives::of(&head);
    let got = Freshness::of(&head, &said, false, when);
    let now_s = u128::from(NOW_MS / 1_000);
    let date = head.get("date").and_then(|date| dates::read(date.as_bytes())).map(u128::from);
    let lifetime = match (said.s_maxage_s, said.max_age_s, &lines(&head, "expires")[..]) {
        (Some(seconds), ..) | (None, Some(seconds), _) => Some(u128::from(seconds)),
        (None, None, [_, ..]) if said.targeted => said.no_cache.then_some(0),
        (None, None, [only]) => {
            let expires = dates::read(only).map_or(0, u128::from);
            Some(expires.saturating_sub(date.unwrap_or(now_s)).min(AGE_MAX))
        }
        (None, None, [_, _, ..]) => Some(0),
        (None, None, []) => said.no_cache.then_some(0),
    };
    same("whether there is a lifetime", got.is_some(), lifetime.is_some())?;
    let (Some(got), Some(lifetime)) = (got, lifetime) else { return Ok("none".to_owned()) };
    let first = lines(&head, "age").first().and_then(|line| line.split(|byte| *byte == b',').next());
    let age = Argument::Text(letters(first.unwrap_or_default().trim_ascii())).seconds().unwrap_or(0);
    let apparent = date.map_or(0, |date| now_s.saturating_sub(date));
    let age = apparent.max(age.min(u128::from(u32::MAX)) + 3).min(AGE_MAX);
    same("the age", u128::from(got.age_s(NOW_MS)), age)?;
    for later_s in [0, 1, 60, 1 << 31] {
        let later_ms = NOW_MS + later_s * 1_000;
        let is_fresh = !said.no_cache && age + u128::from(later_s) < lifetime;
        same(&format!("whether it is fresh after {later_s} s"), got.is_fresh(later_ms), is_fresh)?;
        let usable = got.usable(later_ms, None);
        holds("what is fresh is used", (usable == Use::Fresh) == is_fresh)?;
        let forbidden = said.must_revalidate || said.proxy_revalidate || said.no_cache;
        holds("what must not be stale is not used so", usable != Use::WhileRevalidating || !forbidden)?;
        holds("nor where the upstream fails", !got.usable_on_error(later_ms) || !forbidden)?;
    }
    Ok(format!("{age} {lifetime}"))
}
