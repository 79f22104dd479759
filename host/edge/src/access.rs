//! The access log of `souk proxy`: one line a request, when its answer has ended.
//!
//! Owns what is said of a request and the way of a line to its file. A request never waits for it: lines go to a bounded
//! queue before a thread of its own, and what does not fit is counted. Queries are left out unless they are asked for;
//! neither cookies nor any other field of a shopper is ever written. How a line looks is [`line`]'s, where it ends
//! [`file`]'s. A node's own access log is an event of its log ([`crate::telemetry`]), without paths, for those name carts.

mod file;
mod line;

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, REFERER, USER_AGENT};
use http::{Method, Response, Uri, Version, request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use souk_config::{AccessConfig, AccessFormat, AccessTo};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use self::file::Following;
use crate::http::{Body, BodyError};

/// Lines that wait to be written: a tenth of a second of the fastest node. A line is some 300 bytes and at most 20 KiB, if
/// everything that a client writes is as long as it may be: 160 MiB at the very most.
const LINES_MAX: usize = 8 << 10;

/// An open access log. What was said is written when it is dropped.
pub(crate) struct AccessLog {
    queue: NonBlocking,
    dropped: ErrorCounter,
    format: AccessFormat,
    with_query: bool,
    _writes: WorkerGuard,
}

/// What the proxy tells of an answer, for its line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// `hit`, `fill`, `pass` and so on: the label of the metric.
    pub(crate) outcome: &'static str,
    /// Why it was passed or refused.
    pub(crate) reason: Option<&'static str>,
}

/// How long the upstream took to the head of its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpstreamTook(pub(crate) Duration);

/// By which the lines of other logs are found.
#[derive(Clone, Debug)]
pub(crate) struct TraceId(pub(crate) String);

/// One request, from its head to the end of its answer.
struct Visit {
    log: Arc<AccessLog>,
    at_ms: u64,
    started: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    peer: IpAddr,
    host: Option<String>,
    /// Of the combined form.
    referer: Option<String>,
    agent: Option<String>,
}

impl AccessLog {
    pub(crate) fn open(config: &AccessConfig) -> io::Result<Arc<Self>> {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
        let builder = builder.thread_name("souk-access");
        let (queue, guard) = match &config.to {
            AccessTo::Stdout => builder.finish(io::stdout()),
            AccessTo::File(path) => builder.finish(Following::open(path.clone())?),
        };
        let dropped = queue.error_counter();
        let (format, with_query) = (config.format, config.with_query);
        Ok(Arc::new(Self { queue, dropped, format, with_query, _writes: guard }))
    }

    /// Lines for which there was no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }

    /// Notes a request. The answer is to be given to the result, which writes the line when its body has ended.
    pub(crate) fn note(
        self: &Arc<Self>,
        head: &request::Parts,
        peer: IpAddr,
        at_ms: u64,
    ) -> impl FnOnce(Response<Body>) -> Response<Body> + Send + use<> {
        let text = |name: HeaderName| text_of(&head.headers, &name);
        let combined = self.format == AccessFormat::Combined;
        let visit = Visit {
            log: Arc::clone(self),
            at_ms,
            started: Instant::now(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            peer,
            host: head.uri.authority().map(ToString::to_string).or_else(|| text(HOST)).map(without_user),
            referer: combined.then(|| text(REFERER)).flatten().map(|url| self.cut(url)),
            agent: combined.then(|| text(USER_AGENT)).flatten(),
        };
        move |response| answered(visit, response)
    }

    /// A referer is mostly a page of the same shop, whose query is no less secret than that of a target.
    fn cut(&self, url: String) -> String {
        let kept = if self.with_query { url.len() } else { url.find(['?', '#']).unwrap_or(url.len()) };
        url[..kept].to_owned()
    }
}

/// A name and a password before the host are refused, and not to be read by operators either.
fn without_user(host: String) -> String {
    host.rsplit_once('@').map_or_else(|| host.clone(), |(_, host)| host.to_owned())
}

fn text_of(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn answered(visit: Visit, response: Response<Body>) -> Response<Body> {
    let (head, body) = response.into_parts();
    let written = Written {
        status: head.status.as_u16(),
        told: head.extensions.get().copied(),
        refusal: head.extensions.get::<crate::rescue::Refusal>().map(|refusal| refusal.code()),
        upstream: head.extensions.get().map(|UpstreamTook(took)| *took),
        trace: head.extensions.get().map(|TraceId(id)| id.clone()),
        bytes: 0,
        complete: body.is_end_stream(),
        visit,
    };
    Response::from_parts(head, Logged { body, written }.boxed_unsync())
}

/// All that a line says.
struct Written {
    visit: Visit,
    status: u16,
    told: Option<Told>,
    refusal: Option<&'static str>,
    upstream: Option<Duration>,
    trace: Option<String>,
    bytes: u64,
    /// The body came to its end.
    complete: bool,
}

/// A body that is counted, and logged when nobody reads it any longer.
struct Logged {
    body: Body,
    written: Written,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.written.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.written.complete = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.written.complete = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let log = &self.written.visit.log;
        let line = line::of(&self.written, log.format, log.with_query);
        // A handle of its own for each line: cheap, and it never waits.
        let mut queue = log.queue.clone();
        let _ = queue.write_all(line.as_bytes());
    }
}
