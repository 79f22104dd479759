//! May this response be stored? RFC 9111 section 3, with the safe reading where a shop could leak a session.
//!
//! Pure: a response head and the request that it answers, with its policy, go in; a freshness record and a variant come out, or
//! the reason why not.

use http::header::{CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LAST_MODIFIED, SET_COOKIE};
use http::{StatusCode, response};

use crate::asked::Asked;
use crate::directives::ResponseDirectives;
use crate::freshness::{Exchanged, Freshness};
use crate::reason::PassReason;
use crate::vary::Variant;

/// What a response may be stored with.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub freshness: Freshness,
    pub variant: Variant,
    /// The fields that `no-cache="…"` and `private="…"` keep out of the store.
    pub forbidden: Vec<http::HeaderName>,
    /// The length of the body, where it is stated.
    pub length: Option<u64>,
}

/// Judges the head of a response to a GET.
pub fn admit(
    head: &response::Parts,
    asked: &Asked,
    object_bytes_max: u64,
    when: Exchanged,
) -> Result<Admitted, PassReason> {
    let policy = asked.policy;
    let said = ResponseDirectives::of(&head.headers);
    if asked.directives.no_store {
        return Err(PassReason::RequestNoStore);
    }
    check_status(head.status, &said)?;
    // RFC 9111 section 5.2.2.3: `no-store` beside `must-understand` is for caches that do not understand the status.
    if said.no_store && !said.must_understand {
        return Err(PassReason::NoStore);
    }
    if said.private {
        return Err(PassReason::Private);
    }
    // RFC 9111 section 3.5.
    if asked.is_authorized() && !(said.public || said.must_revalidate || said.s_maxage_s.is_some()) {
        return Err(PassReason::Authorization);
    }
    let sets_cookie = head.headers.contains_key(SET_COOKIE) && !said.fields.contains(&SET_COOKIE);
    if sets_cookie && !policy.store_set_cookie {
        return Err(PassReason::SetCookie);
    }
    let variant = Variant::of(&head.headers, &asked.headers, policy.negotiate_languages)?;
    let heuristic = policy.heuristic_freshness && (said.public || is_heuristic(head.status));
    let freshness = Freshness::of(&head.headers, &said, heuristic, when).ok_or(PassReason::NoLifetime)?;
    if freshness.needs_validator() && !has_validator(&head.headers) {
        return Err(PassReason::NoValidator);
    }
    let length = content_length(&head.headers);
    if length.is_some_and(|length| length > object_bytes_max) {
        return Err(PassReason::TooLarge);
    }
    Ok(Admitted { freshness, variant, forbidden: said.fields, length })
}

/// Whether a refusal lets the key be remembered as uncacheable for a while, so that the next requests do not wait for
/// each other.
///
/// A server's error says nothing about the page, and a client's error mostly tells of one client: if either were
/// remembered, one 503, or one client with a bad cookie, would switch the cache off for everybody. An error of the
/// client counts where it says itself that it is not to be stored.
pub(crate) fn is_remembered(status: StatusCode, reason: PassReason) -> bool {
    let explicit = matches!(reason, PassReason::NoStore | PassReason::Private | PassReason::NoValidator);
    reason.is_about_the_resource() && !is_passing_error(status) && (explicit || !status.is_client_error())
}

/// Whether a refusal takes away what is stored: what the upstream no longer lets us keep is not kept in its old form
/// either. What one client caused, what memory caused, and errors that are not about the page change nothing.
pub(crate) fn withdraws(status: StatusCode, reason: PassReason) -> bool {
    let said_by_upstream = reason.is_about_the_resource() || reason == PassReason::NotUnderstood;
    // Gone, or no longer for everybody.
    let about_the_page = matches!(status.as_u16(), 401 | 403 | 404 | 410 | 451);
    said_by_upstream && !is_passing_error(status) && (about_the_page || !status.is_client_error())
}

/// Errors that are over when the same question is asked again later. Codes of no class (600 and up) count as such.
fn is_passing_error(status: StatusCode) -> bool {
    status.as_u16() >= 500 || matches!(status.as_u16(), 408 | 421 | 425 | 429)
}

fn check_status(status: StatusCode, said: &ResponseDirectives) -> Result<(), PassReason> {
    let partial = status.is_informational()
        || status == StatusCode::PARTIAL_CONTENT
        || status == StatusCode::RANGE_NOT_SATISFIABLE
        || status == StatusCode::NOT_MODIFIED;
    if partial {
        return Err(PassReason::Partial);
    }
    if said.must_understand && !is_understood(status) {
        return Err(PassReason::NotUnderstood);
    }
    Ok(())
}

/// Statuses whose caching rules this crate implements.
fn is_understood(status: StatusCode) -> bool {
    is_heuristic(status)
        || matches!(status.as_u16(), 302 | 303 | 307 | 400 | 401 | 403 | 500 | 502 | 503 | 504)
}

/// RFC 9110 section 15.1, without 206.
fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

pub(crate) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED)
}

/// One length that every line agrees on.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    let number = |value: &HeaderValue| {
        let text = value.to_str().ok()?;
        // A sign is none of RFC 9110's digits, and all of Rust's.
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    let mut lines = headers.get_all(CONTENT_LENGTH).iter().map(number);
    let first = lines.next()??;
    lines.all(|next| next == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Scheme;
    use crate::{Key, Policy};
    use http::{Method, Response};

    const NOW: u64 = 1_800_000_000_000;

    fn judge(
        status: u16,
        response: &[(&str, &str)],
        request: &[(&str, &str)],
        policy: Policy,
    ) -> Result<Admitted, PassReason> {
        let mut builder = Response::builder().status(status);
        for (name, value) in response {
            builder = builder.header(*name, *value);
        }
        let (head, ()) = builder.body(()).expect("test response").into_parts();
        let mut headers = HeaderMap::new();
        for (name, value) in request {
            headers.append(
                http::HeaderName::from_bytes(name.as_bytes()).expect("name"),
                value.parse().expect("value"),
            );
        }
        let key = Key::new("s", Scheme::Http, "a.example", "/").expect("key");
        admit(
            &head,
            &Asked::new(key, Method::GET, headers).under(policy),
            1_000,
            Exchanged { asked_ms: NOW, answered_ms: NOW },
        )
    }

    #[test]
    fn each_refusal_has_its_name() {
        let fresh = ("cache-control", "max-age=60");
        type Row<'a> = (u16, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], Option<PassReason>);
        let table: &[Row<'_>] = &[
            (200, &[fresh], &[], None),
            (200, &[], &[], Some(PassReason::NoLifetime)),
            (200, &[("cache-control", "max-age=60, no-store")], &[], Some(PassReason::NoStore)),
            (200, &[("cache-control", "private, max-age=60")], &[], Some(PassReason::Private)),
            (200, &[fresh, ("set-cookie", "a=b")], &[], Some(PassReason::SetCookie)),
            (
                200,
                &[("cache-control", "max-age=60, private=\"set-cookie\""), ("set-cookie", "a=b")],
                &[],
                None,
            ),
            (200, &[fresh, ("vary", "*")], &[], Some(PassReason::VaryAny)),
            (200, &[fresh], &[("authorization", "x")], Some(PassReason::Authorization)),
            (200, &[("cache-control", "max-age=60, public")], &[("authorization", "x")], None),
            (200, &[("cache-control", "s-maxage=60")], &[("authorization", "x")], None),
            (200, &[("cache-control", "max-age=60, must-revalidate")], &[("authorization", "x")], None),
            (200, &[fresh], &[("cache-control", "no-store")], Some(PassReason::RequestNoStore)),
            (206, &[fresh], &[], Some(PassReason::Partial)),
            (416, &[fresh], &[], Some(PassReason::Partial)),
            (200, &[("cache-control", "max-age=60, no-store, must-understand")], &[], None),
            (
                599,
                &[("cache-control", "max-age=60, no-store, must-understand")],
                &[],
                Some(PassReason::NotUnderstood),
            ),
            (304, &[fresh], &[], Some(PassReason::Partial)),
            (404, &[], &[], Some(PassReason::NoLifetime)),
            (404, &[fresh], &[], None),
            (999, &[fresh], &[], None),
            (999, &[("cache-control", "max-age=60, must-understand")], &[], Some(PassReason::NotUnderstood)),
            (200, &[fresh, ("content-length", "1001")], &[], Some(PassReason::TooLarge)),
            (200, &[("cache-control", "no-cache")], &[], Some(PassReason::NoValidator)),
            (200, &[("cache-control", "no-cache"), ("etag", "\"a\"")], &[], None),
            (200, &[("cache-control", "max-age=0")], &[], Some(PassReason::NoValidator)),
            (200, &[("cache-control", "max-age=0, stale-while-revalidate=9")], &[], None),
            (200, &[("expires", "0"), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")], &[], None),
            (200, &[("cdn-cache-control", "no-store"), fresh], &[], Some(PassReason::NoStore)),
            (200, &[("cdn-cache-control", "max-age=9"), ("cache-control", "no-store")], &[], None),
        ];
        for (status, response, request, want) in table {
            let got = judge(*status, response, request, Policy::default()).err();
            assert_eq!(got, *want, "{status} {response:?} for {request:?}");
        }
    }

    #[test]
    fn policies_open_what_is_shut_by_default() {
        let cookie = [("cache-control", "max-age=60"), ("set-cookie", "a=b")];
        assert!(judge(200, &cookie, &[], Policy { store_set_cookie: true, ..Policy::default() }).is_ok());
        let old = [("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
        let guessing = Policy { heuristic_freshness: true, ..Policy::default() };
        assert!(judge(200, &old, &[], guessing).is_ok());
        assert_eq!(judge(599, &old, &[], guessing).err(), Some(PassReason::NoLifetime));
    }

    #[test]
    fn errors_are_neither_remembered_nor_evict_what_is_stored() {
        use PassReason::{
            Authorization, FillMemory, NoLifetime, NoStore, NoValidator, Private, RequestNoStore, SetCookie,
            VaryPersonal,
        };
        for (status, reason, remembered, withdrawn) in [
            (200, NoLifetime, true, true),
            (200, Private, true, true),
            (302, NoLifetime, true, true),
            (200, Authorization, false, false),
            (200, RequestNoStore, false, false),
            (200, FillMemory, false, false),
            (500, NoLifetime, false, false),
            (501, NoLifetime, false, false),
            (503, NoStore, false, false),
            (503, SetCookie, false, false),
            (999, NoLifetime, false, false),
            (400, NoLifetime, false, false),
            (400, VaryPersonal, false, false),
            (400, NoStore, true, false),
            (431, NoLifetime, false, false),
            (429, NoStore, false, false),
            (404, NoLifetime, false, true),
            (404, SetCookie, false, true),
            (404, NoStore, true, true),
            (404, NoValidator, true, true),
            (403, Private, true, true),
        ] {
            let code = StatusCode::from_u16(status).expect("a status");
            assert_eq!(
                (is_remembered(code, reason), withdraws(code, reason)),
                (remembered, withdrawn),
                "{status} {reason:?}"
            );
        }
    }

    #[test]
    fn lengths_that_disagree_are_none() {
        let mut map = HeaderMap::new();
        map.append(CONTENT_LENGTH, "5".parse().expect("value"));
        assert_eq!(content_length(&map), Some(5));
        map.append(CONTENT_LENGTH, "6".parse().expect("value"));
        assert_eq!(content_length(&map), None);
    }
}
