//! Who looks at requests: an access log, a collector, both or nobody.
//!
//! Owns what is noted of a request between its head and its answer on their behalf, and costs nothing where nobody looks.

use std::borrow::Cow;

use http::header::HOST;
use http::{Method, Response, Version, request};

use super::{PATH_BYTES_MAX, Place, Spans, Traced, Tracer};
use crate::access::{HOST_BYTES_MAX, METHOD_BYTES_MAX, Told, TraceId, UpstreamTook, cut};
use crate::http::Body;

/// See the module. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watcher {
    logged: bool,
    tracer: Option<Tracer>,
}

/// What is known of a request when it comes.
pub(crate) struct Watched {
    place: Option<Place>,
    witness: Option<Witness>,
}

impl Watcher {
    /// `logged`: whether somebody writes down each request.
    pub(crate) fn new(logged: bool, tracer: Option<Tracer>) -> Self {
        Self { logged, tracer }
    }

    /// Whether anybody reads what is told of an answer.
    pub(crate) fn looks(&self) -> bool {
        self.logged || self.tracer.is_some()
    }

    /// Whether some requests are told to a collector. Which ones, is found out as each of them begins.
    pub(crate) fn traces(&self) -> bool {
        self.tracer.is_some()
    }

    /// Whether somebody writes down each request.
    pub(crate) fn logs(&self) -> bool {
        self.logged
    }

    /// Puts the node into the request's trace, if it has one or one begins here. `shown`: what a trace may have of its path.
    pub(crate) fn begin(
        &self,
        head: &mut request::Parts,
        now_ms: u64,
        shown: impl Fn(&str) -> Cow<'_, str>,
    ) -> Watched {
        let sampled = self.tracer.as_ref().is_some_and(Tracer::samples);
        let place = Place::take(&mut head.headers, sampled || self.logged, sampled);
        let sampled = place.filter(Place::is_sampled);
        let witness =
            sampled.map(|place| Witness::of(head, shown(head.uri.path()).into_owned(), place, now_ms));
        Watched { place, witness }
    }

    /// Tells of the answer whoever looks.
    pub(crate) fn end(&self, watched: Watched, spans: Spans, response: &mut Response<Body>) {
        let Watched { place, witness } = watched;
        if self.logged {
            let told = response.extensions_mut();
            place.map(|place| told.insert(TraceId(place.id())));
            spans.at_upstream.map(|took| told.insert(UpstreamTook(took)));
        }
        if let (Some(tracer), Some(witness)) = (&self.tracer, witness) {
            tracer.offer(witness.testify(spans, response));
        }
    }
}

/// What of a traced request is still known when it is answered.
struct Witness {
    place: Place,
    at_ms: u64,
    method: Method,
    path: String,
    host: String,
    version: Version,
}

impl Witness {
    fn of(head: &request::Parts, path: String, place: Place, at_ms: u64) -> Self {
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = head.uri.authority().map_or(host, |authority| Some(authority.as_str()));
        let method =
            if head.method.as_str().len() <= METHOD_BYTES_MAX { head.method.clone() } else { other() };
        Self {
            place,
            at_ms,
            method,
            path: cut(&path, PATH_BYTES_MAX).to_owned(),
            host: cut(host.unwrap_or_default(), HOST_BYTES_MAX).to_owned(),
            version: head.version,
        }
    }

    fn testify(self, spans: Spans, response: &Response<Body>) -> Traced {
        let Self { place, at_ms, method, path, host, version } = self;
        let told = response.extensions().get::<Told>();
        let (outcome, reason) = told.map_or(("none", None), |told| (told.outcome, told.reason));
        let status = response.status();
        Traced { place, at_ms, spans, method, path, host, version, status, outcome, reason }
    }
}

/// What OpenTelemetry calls a method that nobody knows.
fn other() -> Method {
    Method::from_bytes(b"_OTHER").expect("a token")
}
