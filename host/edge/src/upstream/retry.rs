//! What may be sent a second time, and where to. Pure.
//!
//! The rules are RFC 9110 section 9.2.2 and RFC 9113 section 8.7: a request that certainly was not processed may always
//! be sent again, one that may have been only if its method is idempotent, and neither if its body is gone. How often is
//! the settings' and the budget's business. No rule applies once bytes of a response have reached a client: a response
//! whose head is there is the answer, unless its status says that the server could not do it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, StatusCode, header};

/// What is left of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// There is none, or nothing of it has been read yet.
    Whole,
    Begun,
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// There was no connection, so the server saw nothing of the request.
    NoConnection,
    /// An HTTP/2 server said that it did not process the request: REFUSED_STREAM, or GOAWAY below its stream.
    NotProcessed,
    /// The connection broke before there was a head.
    Broke,
    /// No head in time.
    TimedOut,
    /// A head with a status that speaks of the server and not of the request.
    Status(StatusCode),
}

impl Setback {
    /// The label of the metric.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::NotProcessed => "not_processed",
            Self::Broke => "broke",
            Self::TimedOut => "timed_out",
            Self::Status(_) => "status",
        }
    }
}

/// Where a request may go after a setback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// To another server only.
    Elsewhere,
    /// To another server, or to the same one where there is no other: the connection was to blame.
    Anywhere,
    No,
}

/// Statuses by which a server says that it could not do it, and that it is not the request's fault. 500 is not among
/// them: it would fail elsewhere too.
pub(super) fn is_servers_fault(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

pub(super) fn again(method: &Method, left: Left, setback: Setback) -> Again {
    match setback {
        _ if left == Left::Begun => Again::No,
        Setback::NoConnection => Again::Elsewhere,
        Setback::NotProcessed => Again::Anywhere,
        Setback::Broke if method.is_idempotent() => Again::Anywhere,
        Setback::Status(status) if method.is_idempotent() && is_servers_fault(status) => Again::Elsewhere,
        // Who waited for the whole time-out does not wait for a second one.
        Setback::TimedOut | Setback::Broke | Setback::Status(_) => Again::No,
    }
}

/// How long a response asks to be left alone (RFC 9110 section 10.2.3): seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // A number that is too large for its type is a long time.
        return Some(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_sent_again() {
        use Again::{Anywhere, Elsewhere, No};
        let unavailable = Setback::Status(StatusCode::SERVICE_UNAVAILABLE);
        let not_found = Setback::Status(StatusCode::NOT_FOUND);
        let failed = Setback::Status(StatusCode::INTERNAL_SERVER_ERROR);
        let rows = [
            // Setback, GET, PUT, POST: with the body whole.
            (Setback::NoConnection, Elsewhere, Elsewhere, Elsewhere),
            (Setback::NotProcessed, Anywhere, Anywhere, Anywhere),
            (Setback::Broke, Anywhere, Anywhere, No),
            (Setback::TimedOut, No, No, No),
            (unavailable, Elsewhere, Elsewhere, No),
            (not_found, No, No, No),
            (failed, No, No, No),
        ];
        for (setback, get, put, post) in rows {
            for (method, expected) in [(Method::GET, get), (Method::PUT, put), (Method::POST, post)] {
                assert_eq!(again(&method, Left::Whole, setback), expected, "{method} {setback:?}");
                assert_eq!(again(&method, Left::Begun, setback), No, "{method} {setback:?}, body begun");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().expect("a value"));
            retry_after(&headers, now)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(of("Sun, 06 Nov 1994 08:40:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("99999999999999999999999"), Some(Duration::MAX));
        for text in ["", "soon", "-1", "1.5"] {
            assert_eq!(of(text), None, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
