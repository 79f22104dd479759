//! What one request spends its time on, for `Server-Timing`, the access log and its spans.

use std::time::{Duration, Instant};

use http::header::{HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Version};

use crate::access::{HOST_BYTES_MAX, METHOD_BYTES_MAX, Told, cut};
use crate::http::Body;
use crate::trace::{PATH_BYTES_MAX, Place, Spans, Traced};

/// From the head of a request to the head of its answer.
#[derive(Debug)]
pub(super) struct Spent {
    started: Instant,
    /// The client asked for it with `X-Souk-Timing: 1`, as at a node.
    told: bool,
    in_cache: Option<Duration>,
    at_upstream: Option<Duration>,
}

impl Spent {
    pub(super) fn begin(headers: &HeaderMap) -> Self {
        let told = headers.get("x-souk-timing").is_some_and(|value| value == "1");
        Self { started: Instant::now(), told, in_cache: None, at_upstream: None }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The cache has been asked: with what it waited for another's fetch.
    pub(super) fn looked_up(&mut self) {
        self.in_cache = Some(self.started.elapsed());
    }

    /// The upstream has answered, with a head or not at all.
    pub(super) fn fetched(&mut self) {
        self.at_upstream = Some(self.started.elapsed() - self.in_cache.unwrap_or_default());
    }

    pub(super) fn at_upstream(&self) -> Option<Duration> {
        self.at_upstream
    }

    /// The same as spans tell it.
    pub(super) fn spans(&self) -> Spans {
        let Self { started, in_cache, at_upstream, .. } = *self;
        Spans { total: started.elapsed(), in_cache, at_upstream }
    }

    /// The value of `Server-Timing`, for a client that asked.
    pub(super) fn server_timing(&self) -> Option<HeaderValue> {
        if !self.told {
            return None;
        }
        let ms = |spent: Duration| spent.as_secs_f64() * 1e3;
        let mut text = format!("total;dur={:.3}", ms(self.started.elapsed()));
        for (name, spent) in [("cache", self.in_cache), ("upstream", self.at_upstream)] {
            if let Some(spent) = spent {
                text.push_str(&format!(", {name};dur={:.3}", ms(spent)));
            }
        }
        HeaderValue::from_str(&text).ok()
    }
}

/// What of a traced request is still known when it is answered.
pub(super) struct Witness {
    place: Place,
    at_ms: u64,
    method: Method,
    path: String,
    host: String,
    version: Version,
}

impl Witness {
    pub(super) fn of<B>(request: &Request<B>, place: Place, at_ms: u64) -> Self {
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = request.uri().authority().map_or(host, |authority| Some(authority.as_str()));
        let method = request.method();
        let method = if method.as_str().len() <= METHOD_BYTES_MAX { method.clone() } else { other() };
        Self {
            place,
            at_ms,
            method,
            path: cut(request.uri().path(), PATH_BYTES_MAX).to_owned(),
            host: cut(host.unwrap_or_default(), HOST_BYTES_MAX).to_owned(),
            version: request.version(),
        }
    }

    pub(super) fn testify(self, spans: Spans, response: &Response<Body>) -> Traced {
        let Self { place, at_ms, method, path, host, version } = self;
        let told = response.extensions().get::<Told>();
        let (outcome, reason) = told.map_or(("unknown", None), |told| (told.outcome, told.reason));
        let status = response.status();
        Traced { place, at_ms, spans, method, path, host, version, status, outcome, reason }
    }
}

/// What OpenTelemetry calls a method that nobody knows.
fn other() -> Method {
    Method::from_bytes(b"_OTHER").expect("a token")
}
