//! Heads of messages, rebuilt: what frames a message, or speaks for a proxy, is the host's to write.
//!
//! wasi:http checks what a guest writes, and is not relied upon here: a field that gets through is one that another
//! hop may read in another way.

use std::sync::{Arc, OnceLock};

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, request};
use wasmtime_wasi_http::{DEFAULT_FORBIDDEN_HEADERS, ForbiddenHeaderFilter};

use super::trailers::{self, Nominated};
use super::{HttpFault, HttpLimits};

/// Fields that no guest writes and none is told: framing, the connection, upgrades, and the words of proxies.
pub(super) fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || matches!(name.as_str(), "forwarded" | "te" | "x-souk-node")
}

/// The same for wasi:http, which asks for it with every set of fields.
pub(super) fn forbidden_filter() -> ForbiddenHeaderFilter {
    static FILTER: OnceLock<ForbiddenHeaderFilter> = OnceLock::new();
    Arc::clone(FILTER.get_or_init(|| Arc::new(is_forbidden)))
}

/// The request as the guest sees it: without what was meant for this hop alone. Answers what its trailers may not say
/// either.
pub(super) fn incoming(parts: &mut request::Parts) -> Nominated {
    let nominated = remove_hop_by_hop(&mut parts.headers);
    // hyper answers it by reading the body.
    parts.headers.remove(EXPECT);
    trailers::rebuild_announcement(&mut parts.headers, &nominated);
    parts.extensions.clear();
    nominated
}

/// Removes the fields that `Connection` names, and says which; the others of this kind are forbidden anyway.
pub(super) fn remove_hop_by_hop(fields: &mut HeaderMap) -> Nominated {
    if !fields.contains_key(CONNECTION) {
        return Nominated::new();
    }
    let named = names_in(fields, &CONNECTION);
    for name in &named {
        fields.remove(name);
    }
    fields.remove(CONNECTION);
    named
}

/// The names that a field lists.
pub(super) fn names_in(fields: &HeaderMap, list: &HeaderName) -> Vec<HeaderName> {
    let lines = fields.get_all(list).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

pub(super) fn remove_forbidden(fields: &mut HeaderMap) {
    // Each removal reads the name anew, and nearly every answer has nothing to remove.
    if !fields.keys().any(is_forbidden) {
        return;
    }
    for name in DEFAULT_FORBIDDEN_HEADERS {
        fields.remove(name);
    }
    fields.remove("forwarded");
    fields.remove("te");
    fields.remove("x-souk-node");
}

/// Takes out the length that a message says it has: one decimal number, or none.
pub(super) fn take_length(fields: &mut HeaderMap) -> Option<u64> {
    let said = one_length(fields);
    fields.remove(CONTENT_LENGTH);
    said
}

fn one_length(fields: &HeaderMap) -> Option<u64> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    let value = values.next()?;
    let digits = value.as_bytes();
    let decimal = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    if values.next().is_some() || !decimal {
        return None;
    }
    value.to_str().ok()?.parse().ok()
}

/// The guest's answer as it may go out, and the length that its body must have.
pub(super) fn outgoing<B>(
    response: Response<B>,
    limits: &HttpLimits,
) -> Result<(Response<B>, Option<u64>), HttpFault> {
    let (mut parts, body) = response.into_parts();
    check(&parts.headers, limits)?;
    if parts.status.is_informational() {
        // 101 would hand the connection to the guest.
        return Err(HttpFault::BadResponse(format!("{} is no final status", parts.status)));
    }
    let length = match parts.headers.get(CONTENT_LENGTH) {
        None => None,
        Some(_) => match take_length(&mut parts.headers) {
            Some(length) => Some(length),
            None => return Err(HttpFault::BadResponse("its length is not one decimal number".to_owned())),
        },
    };
    remove_forbidden(&mut parts.headers);
    trailers::rebuild_announcement(&mut parts.headers, &[]);
    let bodiless = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    parts.version = http::Version::default();
    parts.extensions.clear();
    Ok((Response::from_parts(parts, body), length.filter(|_| !bodiless)))
}

pub(super) fn check(fields: &HeaderMap, limits: &HttpLimits) -> Result<(), HttpFault> {
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if fields.len() > limits.fields_max {
        Err(HttpFault::BadResponse(format!("{} fields are more than {}", fields.len(), limits.fields_max)))
    } else if bytes > limits.field_bytes_max {
        Err(HttpFault::BadResponse(format!(
            "{bytes} bytes of fields are more than {}",
            limits.field_bytes_max
        )))
    } else if !fields.values().all(is_plain) {
        Err(HttpFault::BadResponse("a field holds a control character".to_owned()))
    } else {
        Ok(())
    }
}

/// No line can be broken and no string ended within it.
fn is_plain(value: &HeaderValue) -> bool {
    value.as_bytes().iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fields: &[(&str, &str)]) -> Result<(HeaderMap, Option<u64>), HttpFault> {
        let mut response = Response::builder().status(200);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let (response, length) = outgoing(response.body(()).expect("a response"), &HttpLimits::default())?;
        Ok((response.into_parts().0.headers, length))
    }

    #[test]
    fn what_frames_a_message_is_the_hosts() {
        let (fields, length) = answer(&[
            ("content-length", "5"),
            ("connection", "x-drop, close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("host", "evil.example"),
            ("forwarded", "for=1.2.3.4"),
            ("keep-alive", "timeout=1"),
            ("te", "trailers"),
            ("trailer", "x-sum, content-length, transfer-encoding"),
            ("x-kept", "yes"),
        ])
        .expect("an answer");
        assert_eq!(length, Some(5));
        let names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-kept", "trailer"]);
        assert_eq!(fields["trailer"], "x-sum");
    }

    #[test]
    fn a_length_in_two_ways_is_no_length() {
        for lengths in
            [&["5", "5"][..], &["5", "6"], &["+5"], &[""], &["5, 5"], &["0x5"], &["99999999999999999999"]]
        {
            let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert!(matches!(answer(&fields), Err(HttpFault::BadResponse(_))), "{lengths:?}");
        }
    }

    #[test]
    fn a_guest_gets_no_connection() {
        for status in [100, 101, 103] {
            let response = Response::builder().status(status).body(()).expect("a response");
            assert!(outgoing(response, &HttpLimits::default()).is_err(), "{status}");
        }
    }

    #[test]
    fn what_connection_names_stays_at_this_hop() {
        let mut request = http::Request::new(()).into_parts().0;
        for (name, value) in
            [("connection", "X-Hop , close"), ("x-hop", "1"), ("x-end", "2"), ("expect", "100-continue")]
        {
            request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let nominated = incoming(&mut request);
        assert_eq!(nominated, ["x-hop", "close"]);
        assert_eq!(request.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-end"]);
    }
}
