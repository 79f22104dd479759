//! Lists: entity tags, tags to purge by, options of a connection, and what caches say of themselves.

use std::collections::BTreeSet;

use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response};
use souk_cache::fields::remove_hop_by_hop;
use souk_cache::freshness::Exchanged;
use souk_cache::status::{append_pass, name_own};
use souk_cache::{
    Asked, Cache, CacheLimits, Key, Lookup, PassReason, Scheme, Stored, Tag, conditional, tags,
};

use crate::dates;
use crate::message::{fields, holds, lines, only, same};

const TAGS_MAX: usize = 1_024;
const OPTIONS_MAX: usize = 32;

pub(crate) fn conditions(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let got = conditional::not_modified(&head, &head);
    same("whether the client has it", got, not_modified(&head))?;
    let confirms = conditional::confirms(&head, &head);
    holds("a response confirms itself", confirms)?;
    // What asks the upstream is answered with 304 by whoever has the same.
    let question = conditional::validators(&head);
    let is_datable = |name: &str| head.get(name).is_some_and(|date| dates::read(date.as_bytes()).is_some());
    let tag = head.get("etag").map(HeaderValue::as_bytes);
    let has_plain_tag = tag.is_some_and(|tag| tag.len() > 1 && is_plain_tag(tag));
    if has_plain_tag || (tag.is_none() && is_datable("last-modified")) {
        holds("its own validators find it", conditional::not_modified(&question, &head))?;
    }
    Ok(format!("{got}{has_plain_tag}"))
}

fn is_plain_tag(tag: &[u8]) -> bool {
    let opaque = tag.strip_prefix(b"W/").unwrap_or(tag);
    let inside = opaque.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inside.is_some_and(|inside| !inside.contains(&b'"'))
}

fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

fn not_modified(head: &HeaderMap) -> bool {
    let listed = lines(head, "if-none-match");
    if let [_, ..] = listed[..] {
        let Some(tag) = head.get("etag") else {
            return listed.iter().any(|line| line.trim_ascii() == b"*");
        };
        let wanted = opaque(tag.as_bytes());
        return listed.iter().any(|line| {
            line.trim_ascii() == b"*" || entity_tags(line).iter().any(|tag| opaque(tag) == wanted)
        });
    }
    let since = head.get("if-modified-since").and_then(|date| dates::read(date.as_bytes()));
    let changed = head.get("last-modified").or_else(|| head.get("date"));
    let changed = changed.and_then(|date| dates::read(date.as_bytes()));
    since.zip(changed).is_some_and(|(since, changed)| changed <= since)
}

/// Letter by letter: a quote opens where a tag begins, and what is not quoted goes to the next comma.
fn entity_tags(line: &[u8]) -> Vec<Vec<u8>> {
    let (mut found, mut tag, mut in_quotes) = (Vec::new(), Vec::new(), false);
    for byte in line.trim_ascii() {
        if in_quotes {
            tag.push(*byte);
            if *byte == b'"' {
                in_quotes = false;
                found.push(std::mem::take(&mut tag));
            }
        } else if *byte == b'"' && (tag.is_empty() || tag == b"W/") {
            tag.push(*byte);
            in_quotes = true;
        } else if *byte == b',' {
            found.push(std::mem::take(&mut tag));
        } else if !(tag.is_empty() && byte.is_ascii_whitespace()) {
            tag.push(*byte);
        }
    }
    found.push(tag);
    found.retain(|tag| !tag.is_empty());
    found
}

fn limits() -> CacheLimits {
    CacheLimits { memory_bytes_max: 1 << 20, object_bytes_max: 1 << 16, fill_bytes_max: 1 << 20 }
}

thread_local! {
    /// Nothing is ever whole in it, and so nothing is stored.
    static CACHE: Cache = Cache::new(limits());
}

pub(crate) fn tags(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let key = Key::new("site", Scheme::Http, "shop.example", "/a").expect("a key");
    let mut named = BTreeSet::new();
    let mut is_too_much = false;
    for (field, apart) in [("surrogate-key", &b" \t\n\x0c\r,"[..]), ("cache-tag", b",")] {
        let all = lines(&head, field).into_iter().flat_map(|line| line.split(|byte| apart.contains(byte)));
        let all: Vec<_> = all.map(<[u8]>::trim_ascii).filter(|text| !text.is_empty()).collect();
        is_too_much |= all.len() > TAGS_MAX || all.iter().any(|text| text.len() > 1_024);
        named.extend(all.into_iter().map(|text| String::from_utf8_lossy(text).into_owned()));
    }
    // One list, whichever field it is in.
    let groups = only(&head, &["cache-groups"]);
    let groups: HeaderMap = groups
        .iter()
        .map(|(_, value)| (HeaderName::from_static("cache-group-invalidation"), value.clone()))
        .collect();
    let groups = tags::changed_groups(&groups, &key);
    let got = stored_tags(&head, &key);
    let Some(got) = got else {
        let many = named.len() + groups.len() > TAGS_MAX;
        holds("what can be kept is kept", is_too_much || many)?;
        return Ok("too many".to_owned());
    };
    holds("too many are not kept", !is_too_much)?;
    let expected: BTreeSet<u64> =
        named.iter().map(|text| Tag::named("site", text)).chain(groups).map(Tag::to_u64).collect();
    let extra: BTreeSet<u64> = got.difference(&expected).copied().collect();
    holds("every name is kept", expected.is_subset(&got))?;
    same("and those of its place", extra.len(), 3)?;
    Ok(format!("{}", expected.len().min(9)))
}

/// What a response with these fields would be known by; none if it may not be stored.
fn stored_tags(head: &HeaderMap, key: &Key) -> Option<BTreeSet<u64>> {
    let asked = Asked::new(key.clone(), Method::GET, HeaderMap::new());
    let mut whole = Response::new(()).into_parts().0;
    whole.headers = only(head, &["surrogate-key", "cache-tag", "cache-groups"]);
    whole.headers.insert("cache-control", HeaderValue::from_static("max-age=1"));
    CACHE.with(|cache| {
        cache.forget_uncacheable(key);
        let Some(Lookup::Miss(permit)) = cache.look_up(0, &asked).now_or_never() else {
            panic!("nothing is stored, and nothing fetched");
        };
        match permit.store(&whole, &asked, Exchanged { asked_ms: 0, answered_ms: 0 }) {
            Stored::Filling(hit, _) => Some(hit.tags().iter().map(|tag| tag.to_u64()).collect()),
            Stored::Pass(PassReason::TooManyTags) => None,
            _ => panic!("it is cacheable"),
        }
    })
}

pub(crate) fn hop_by_hop(input: &[u8]) -> Result<String, String> {
    const ALWAYS: [&str; 11] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "http2-settings",
    ];
    let head = fields(input);
    let options = lines(&head, "connection").into_iter().flat_map(|line| line.split(|byte| *byte == b','));
    let options = options.filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok());
    let named: BTreeSet<String> = options.take(OPTIONS_MAX).map(|name| name.as_str().to_owned()).collect();
    let stays = |name: &HeaderName| !named.contains(name.as_str()) && !ALWAYS.contains(&name.as_str());
    let expected: Vec<_> = head.iter().filter(|(name, _)| stays(name)).collect();
    let mut got = head.clone();
    remove_hop_by_hop(&mut got);
    // A map moves names when others go; lines of one name keep their order.
    let sorted = |mut all: Vec<(&HeaderName, &HeaderValue)>| {
        all.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        all.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    same("what travels on", sorted(got.iter().collect()), sorted(expected))?;
    Ok(format!("{} {}", named.len().min(9), got.len().min(9)))
}

pub(crate) fn cache_status(input: &[u8]) -> Result<String, String> {
    let mut head = only(&fields(input), &["cache-status"]);
    let name = String::from_utf8_lossy(input);
    let before = head.clone();
    append_pass(&mut head, PassReason::NoStore, Some(200));
    name_own(&mut head, &name);
    let got = lines(&head, "cache-status");
    same("those of others", &got[..got.len() - 1], &lines(&before, "cache-status"))?;
    let own = got.last().copied().unwrap_or_default();
    let parsed = sfv::Parser::new(own).parse::<sfv::List>();
    let list = parsed.map_err(|error| format!("not a list: {error}: {}", String::from_utf8_lossy(own)))?;
    same("members of its own", list.len(), 1)?;
    holds("it is still of this make", own.starts_with(b"Souk/"))?;
    Ok(format!("{}", name.len().min(64)))
}
