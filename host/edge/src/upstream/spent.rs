//! What one request spends its time on, for `Server-Timing`, the access log and its spans.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderValue};

use crate::trace::Spans;

/// From the head of a request to the head of its answer.
#[derive(Debug)]
pub(crate) struct Spent {
    started: Instant,
    /// The client asked for it with `X-Souk-Timing: 1`, as at a node.
    told: bool,
    in_cache: Option<Duration>,
    at_upstream: Option<Duration>,
}

impl Spent {
    pub(crate) fn begin(headers: &HeaderMap) -> Self {
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

    /// How long each part took that there was, by its name.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&'static str, Duration)> + use<> {
        let parts = [("cache", self.in_cache), ("upstream", self.at_upstream)];
        parts.into_iter().filter_map(|(name, took)| Some((name, took?)))
    }

    /// The same as spans tell it.
    pub(crate) fn spans(&self) -> Spans {
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
        for (name, spent) in self.parts() {
            text.push_str(&format!(", {name};dur={:.3}", ms(spent)));
        }
        HeaderValue::from_str(&text).ok()
    }
}
