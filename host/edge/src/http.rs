//! From a connection's bytes to an [`Exchange`], and the small words for building answers.
//!
//! Owns the limits of one request's body: how large and how slow it may be. Whether there is one at all, [`crate::admission`]
//! has said. Knows no shop, no route and no state; called by [`crate::serve`] and by whoever builds a response.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{Response, StatusCode, request};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::listen::Peer;
use crate::rescue::{Problem, Refusal};

mod date;
mod outgoing;
mod request_body;

pub(crate) use outgoing::{Outgoing, Torn, may_have_length};
pub use request_body::RequestBody;

/// What can go wrong in the middle of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The longest pause inside a request body: two round trips over a bad mobile link and a retransmission.
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(5);
/// The longest that one request body may take altogether; at 64 KiB this is a minimum rate of 3.2 KiB/s.
pub const BODY_WHOLE_MAX: Duration = Duration::from_secs(20);

/// Fields that speak of one connection of HTTP/1.1.
pub(crate) const OF_A_CONNECTION: [HeaderName; 5] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// One entry of `Server-Timing`.
#[derive(Debug)]
struct Timed {
    name: Cow<'static, str>,
    description: Option<String>,
    spent: Duration,
}

/// One request on its way through the node. Its configuration is what it was when the request arrived.
#[derive(Debug)]
pub struct Exchange {
    pub head: request::Parts,
    pub peer: Peer,
    /// Wall clock at arrival: the `now` of every decision made for this request.
    pub now_ms: u64,
    pub started: Instant,
    timing: Option<Vec<Timed>>,
}

impl Exchange {
    pub fn new(head: request::Parts, peer: Peer, now_ms: u64) -> Self {
        let timed = head.headers.get("x-souk-timing").is_some_and(|v| v == "1");
        Self { head, peer, now_ms, started: Instant::now(), timing: timed.then(Vec::new) }
    }

    /// Times `work` under `name` for `Server-Timing`, if the client asked for it.
    pub async fn timed<T>(&mut self, name: &'static str, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let value = work.await;
        self.note(name, started);
        value
    }

    /// Notes that `name` took from `started` until now.
    pub fn note(&mut self, name: &'static str, started: Instant) {
        if let Some(timing) = &mut self.timing {
            timing.push(Timed { name: name.into(), description: None, spent: started.elapsed() });
        }
    }

    /// Notes that `name` took so long.
    pub fn note_spent(&mut self, name: &'static str, spent: Duration) {
        if let Some(timing) = &mut self.timing {
            timing.push(Timed { name: name.into(), description: None, spent });
        }
    }

    /// Whether the client wants to know what took how long.
    pub fn is_timed(&self) -> bool {
        self.timing.is_some()
    }

    /// Notes what took so long, with a word about it. `name` is a token of RFC 9110; the description is quoted.
    pub fn note_described(&mut self, name: String, description: &str, spent: Duration) {
        if let Some(timing) = &mut self.timing {
            let description = description.replace(['"', '\\'], "'");
            timing.push(Timed { name: name.into(), description: Some(description), spent });
        }
    }

    /// A copy for a task of its own; [`Self::join`] takes back what it noted.
    pub fn fork(&self) -> Self {
        Self {
            head: self.head.clone(),
            peer: self.peer,
            now_ms: self.now_ms,
            started: self.started,
            timing: self.timing.as_ref().map(|_| Vec::new()),
        }
    }

    pub fn join(&mut self, other: Self) {
        if let (Some(timing), Some(more)) = (&mut self.timing, other.timing) {
            timing.extend(more);
        }
    }

    /// The value of `Server-Timing`, for a client that asked.
    pub fn server_timing(&self) -> Option<HeaderValue> {
        let timing = self.timing.as_ref()?;
        let mut text = format!("total;dur={:.3}", self.started.elapsed().as_secs_f64() * 1e3);
        for Timed { name, description, spent } in timing {
            text.push_str(&format!(", {name}"));
            if let Some(description) = description {
                text.push_str(&format!(";desc=\"{description}\""));
            }
            text.push_str(&format!(";dur={:.3}", spent.as_secs_f64() * 1e3));
        }
        HeaderValue::from_str(&text).ok()
    }
}

/// Clients of HTTP/2 and HTTP/3 may cut `Cookie` into several lines, which HTTP/1.1 does not know (RFC 9113 section 8.2.3,
/// RFC 9114 section 4.2.1): whoever is asked next gets one.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// Reads a JSON body of at most `bytes_max`, naming whatever is wrong with it.
///
/// Not cancel safe: what was read of the body is lost with the future, and the request with it.
pub async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: RequestBody,
    bytes_max: usize,
) -> Result<T, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        // A form on another site can post text and forms with the shopper's cookies, but not JSON.
        let said = if kind.is_empty() { "nothing".to_owned() } else { format!("{essence:?}") };
        let why = format!("send Content-Type: application/json; the request says {said}");
        return Err(Problem::new(Refusal::NotJson, why));
    }
    let bytes = read_body(body, bytes_max).await?;
    parse_json(&bytes)
}

/// The parsing half of [`read_json`], for bytes that are there.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Serde would take a list for a structure, its fields by their places, which nobody means.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::new(Refusal::BadJson, "a JSON object is needed, and this is a list"));
    }
    // Serde names the field, the line and the column: exactly what a merchant's developer needs to see.
    serde_json::from_slice(bytes).map_err(|e| Problem::new(Refusal::BadJson, e.to_string()))
}

/// Reads a body of at most `bytes_max`, no slower than the limits of this module allow.
pub async fn read_body(mut body: RequestBody, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(Refusal::BodyTooLarge, format!("at most {bytes_max} bytes are read here"));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let whole = async {
        let mut read = BytesMut::new();
        loop {
            let frame = match tokio::time::timeout(BODY_IDLE_MAX, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(_))) => {
                    return Err(Problem::new(Refusal::BodyLost, "the connection broke inside the body"));
                }
                Ok(None) => return Ok(read.freeze()),
                Err(_) => {
                    let why = format!("nothing came for {} s", BODY_IDLE_MAX.as_secs());
                    return Err(Problem::new(Refusal::BodyTooSlow, why));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if read.len() + data.len() > bytes_max {
                return Err(too_large());
            }
            read.extend_from_slice(&data);
        }
    };
    tokio::time::timeout(BODY_WHOLE_MAX, whole).await.unwrap_or_else(|_| {
        let why = format!("it was not complete after {} s", BODY_WHOLE_MAX.as_secs());
        Err(Problem::new(Refusal::BodyTooSlow, why))
    })
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

/// A JSON answer that no cache may keep: carts, quotes and orders belong to one shopper.
pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Response<Body>, Problem> {
    let bytes = serde_json::to_vec(value).map_err(Problem::internal)?;
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// What is called "now" in the node: milliseconds since 1970, read once per request or event.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock after the time that passed since `started`: a clock that is set back makes no time negative.
pub(crate) fn later(now_ms: u64, started: Instant) -> u64 {
    now_ms.saturating_add(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[test]
    fn cookies_become_one_line() {
        let mut headers = HeaderMap::new();
        for line in ["a=1", "b=2; c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        join_cookies(&mut headers);
        let lines: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(lines, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn json_errors_say_where_and_what() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line {
            #[expect(dead_code, reason = "only parsed")]
            sku: String,
        }
        let problem = parse_json::<Line>(br#"{"sku":"A","qty":1}"#).expect_err("an unknown field");
        assert_eq!(problem.refusal, Refusal::BadJson);
        assert_eq!(problem.detail, "unknown field `qty`, expected `sku` at line 1 column 16");
        for garbage in [&b"{"[..], b"", b"[]", b"\xff", b"{\"sku\":1}", b"{\"sku\":\"A\"}x"] {
            assert!(parse_json::<Line>(garbage).is_err());
        }
    }
}
