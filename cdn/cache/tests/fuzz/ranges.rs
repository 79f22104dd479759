//! What is said about parts, by clients and by upstreams, against sums without bounds.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, response};
use souk_cache::conditional::if_range_holds;
use souk_cache::freshness::Exchanged;
use souk_cache::part::Span;
use souk_cache::range::{Part, is_single, part};
use souk_cache::slices::{Answer, Version};
use souk_cache::{Asked, Key, Scheme, admit};

use crate::dates;
use crate::message::{fields, holds, lines, same};

const LENGTHS: [u64; 5] = [0, 1, 10, 1 << 32, u64::MAX - 1];
const RANGE_BYTES_MAX: usize = 256;
const CONTENT_RANGE_BYTES_MAX: usize = 80;

pub(crate) fn of_client(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let mut out = String::new();
    for line in lines(&head, "range") {
        let spec = spec(line);
        same("whether it is one range", is_single(line), spec.is_some())?;
        for length in LENGTHS {
            let got = part(line, length);
            same(&format!("the part of {length}"), got, wanted(spec, length))?;
            out.push_str(&format!("{got:?}"));
        }
    }
    let got = if_range_holds(&head, &head);
    same("whether the range counts", got, range_counts(&head))?;
    Ok(format!("{out}{got}"))
}

/// One range: its two numbers, either of which may be missing.
fn spec(line: &[u8]) -> Option<(Option<u128>, Option<u128>)> {
    let text: String = line.iter().map(|byte| char::from(*byte)).collect();
    if line.len() > RANGE_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let blank = |c: char| c == ' ' || c == '\t';
    let (unit, set) = text.trim_matches(blank).split_once('=')?;
    let (first, last) = set.split_once('-')?;
    let number = |text: &str| {
        let text = text.trim_matches(blank);
        match text {
            "" => Some(None),
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                // No representation is longer than 64 bits say.
                let seen = text
                    .bytes()
                    .fold(0_u128, |sum, byte| (sum * 10 + u128::from(byte - b'0')).min(u128::from(u64::MAX)));
                Some(Some(seen))
            }
            _ => None,
        }
    };
    let (first, last) = (number(first)?, number(last)?);
    let is_some = match (first, last) {
        (None, None) => false,
        (Some(first), Some(last)) => first <= last,
        _ => true,
    };
    (unit.trim_end_matches(blank).eq_ignore_ascii_case("bytes") && is_some).then_some((first, last))
}

fn wanted(spec: Option<(Option<u128>, Option<u128>)>, length: u64) -> Part {
    let whole = u128::from(length);
    let slice = |first: u128, last: u128| Part::Slice {
        first: u64::try_from(first).expect("within the length"),
        last: u64::try_from(last).expect("within the length"),
    };
    match spec {
        None => Part::Whole,
        Some((Some(first), _)) if first >= whole => Part::Unsatisfiable,
        Some((Some(first), last)) => slice(first, last.unwrap_or(whole - 1).min(whole - 1)),
        Some((None, last)) => match last.unwrap_or(0).min(whole) {
            0 => Part::Unsatisfiable,
            suffix => slice(whole - suffix, whole - 1),
        },
    }
}

fn range_counts(head: &HeaderMap) -> bool {
    let Some(said) = head.get("if-range") else { return true };
    let said = said.as_bytes().trim_ascii();
    match said {
        [b'W', b'/', ..] => false,
        [b'"', ..] => head.get("etag").is_some_and(|tag| tag.as_bytes() == said),
        _ => {
            let changed = head.get("last-modified").and_then(|date| dates::read(date.as_bytes()));
            changed.is_some() && changed == dates::read(said)
        }
    }
}

pub(crate) fn of_upstream(input: &[u8]) -> Result<String, String> {
    let head = fields(input);
    let mut out = String::new();
    for length in [None, Some(0), Some(1), Some(5), Some(u64::MAX)] {
        let got = Span::of(&head, length).map(|span| (span.first, span.end, span.complete));
        same(&format!("the span with {length:?}"), got, span(&head, length))?;
        if let Some((first, end, complete)) = got {
            holds("a span lies inside of the whole", first < end && end <= complete)?;
            holds("it has the length of its content", length.is_none_or(|length| length == end - first))?;
        }
        out.push_str(&format!("{got:?}"));
    }
    let length = admitted_length(&head);
    same("the length", length, digits_that_agree(&lines(&head, "content-length")))?;
    Ok(format!("{out}{length:?}"))
}

fn span(head: &HeaderMap, length: Option<u64>) -> Option<(u64, u64, u64)> {
    let [line] = lines(head, "content-range")[..] else { return None };
    let kind = head.get("content-type").map(|kind| kind.as_bytes().to_ascii_lowercase());
    let is_several = kind.is_some_and(|kind| kind.starts_with(b"multipart/byteranges"));
    if is_several || line.len() > CONTENT_RANGE_BYTES_MAX || !line.is_ascii() {
        return None;
    }
    let text = std::str::from_utf8(line).ok()?.trim_matches([' ', '\t']);
    let (unit, rest) = text.split_once(' ')?;
    let (range, complete) = rest.trim_start_matches([' ', '\t']).split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, complete) = (digits(first)?, digits(last)?, digits(complete)?);
    if !unit.eq_ignore_ascii_case("bytes") || first > last || last >= complete {
        return None;
    }
    let said = last - first + 1;
    match length {
        None => Some((first, last + 1, complete)),
        Some(0) => None,
        Some(length) if length == said => Some((first, last + 1, complete)),
        // What was to reach the end ends where its content does.
        Some(length) if length < said && last + 1 == complete => {
            Some((first, first + length, first + length))
        }
        Some(_) => None,
    }
}

fn digits(text: &str) -> Option<u64> {
    let are_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    are_digits.then(|| text.parse().ok()).flatten()
}

fn digits_that_agree(lines: &[&[u8]]) -> Option<u64> {
    let numbers: Option<Vec<u64>> =
        lines.iter().map(|line| digits(std::str::from_utf8(line).ok()?)).collect();
    let numbers = numbers?;
    let first = *numbers.first()?;
    numbers.iter().all(|number| *number == first).then_some(first)
}

/// The length that a response would be stored with.
fn admitted_length(head: &HeaderMap) -> Option<u64> {
    let key = Key::new("site", Scheme::Http, "shop.example", "/a").expect("a key");
    let asked = Asked::new(key, Method::GET, HeaderMap::new());
    let mut whole = Response::new(()).into_parts().0;
    let lengths = head.get_all("content-length").iter().cloned();
    whole.headers = lengths.map(|length| (HeaderName::from_static("content-length"), length)).collect();
    whole.headers.insert("cache-control", HeaderValue::from_static("max-age=1"));
    let when = Exchanged { asked_ms: 0, answered_ms: 0 };
    admit::admit(&whole, &asked, u64::MAX, when).ok().and_then(|admitted| admitted.length)
}

pub(crate) fn of_slices(input: &[u8]) -> Result<String, String> {
    const FROM: u64 = 20;
    const SLICE: u64 = 8;
    let headers = fields(input);
    let whole = head(200, &headers);
    let Some(version) = Version::of(&whole, FROM, SLICE) else { return Ok("none".to_owned()) };
    let length = version.length();
    holds("it is longer than what is kept whole", length > FROM)?;
    let said = digits_that_agree(&lines(&headers, "content-length"));
    same("its length", Some(length), said)?;
    let tag = headers.get("etag").map(HeaderValue::as_bytes).unwrap_or_default();
    holds("its tag is a strong one", tag.len() > 2 && tag.starts_with(b"\"") && tag.ends_with(b"\""))?;
    let stored = version.to_head(&whole);
    same(
        "the version of its stored head",
        Version::of_stored(&stored.headers, SLICE),
        Some(version.clone()),
    )?;
    let mut out = format!("{length}");
    for slice in [0, (length - 1) / SLICE] {
        let (first, last) = version.bytes_of(slice);
        holds("a slice lies inside", first <= last && last < length)?;
        // The upstream says anything in its answer.
        let judged = version.judge(slice, &head(206, &headers));
        if judged == Answer::Slice {
            let range = span(&headers, digits_that_agree(&lines(&headers, "content-length")));
            same("its place", range, Some((first, last + 1, length)))?;
        }
        // And this is what it says when it answers what was asked.
        let mut answer = headers.clone();
        let range = format!("bytes {first}-{last}/{length}");
        answer.insert("content-range", range.parse().expect("numbers"));
        answer.insert("content-length", HeaderValue::from(last - first + 1));
        answer.remove("content-type");
        answer.remove("cache-control");
        answer.remove("cdn-cache-control");
        same("the slice itself", version.judge(slice, &head(206, &answer)), Answer::Slice)?;
        out.push_str(&format!("{judged:?}"));
    }
    Ok(out)
}

fn head(status: u16, headers: &HeaderMap) -> response::Parts {
    let mut head = Response::builder().status(status).body(()).expect("a status").into_parts().0;
    head.headers = headers.clone();
    head
}
