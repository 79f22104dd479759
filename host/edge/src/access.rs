//! The access log of `souk proxy` and of a node: one line a request, when its answer has ended.
//!
//! Owns what is said of a request and the way of a line to its file. A request never waits for it: lines go to a bounded
//! queue before a thread of its own, and what does not fit is counted. Queries are left out unless they are asked for;
//! neither cookies nor any other field of a shopper is ever written. How a line looks is [`line`]'s, where it ends
//! [`file`]'s. A node's log has an event of each request, too ([`crate::telemetry`]), without paths; here its API's paths are
//! without what names a shopper's cart.

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
use http::{Method, Response, StatusCode, Uri, Version, request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use souk_config::{AccessConfig, AccessFormat, AccessTo};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use self::file::Following;
use crate::http::{Body, BodyError};
use crate::wire::Plain;

/// Lines that wait to be written: a tenth of a second of the fastest node. A line is some 300 bytes and at most
/// [`LINE_BYTES_MAX`], if everything that a client writes is as long as it is kept: 160 MiB at the very most.
const LINES_MAX: usize = 8 << 10;
/// What is kept of a client's words, each four times as long where all of it has to be escaped: 18.7 KiB, and what the node
/// says itself.
#[cfg(test)]
const LINE_BYTES_MAX: usize = 20 * 1024;
/// The longest registered method has 17 letters.
pub(crate) const METHOD_BYTES_MAX: usize = 32;
/// A name has at most 253 bytes, and a port five and a colon.
pub(crate) const HOST_BYTES_MAX: usize = 259;
/// What is longer leads nowhere that an operator could tell apart.
const PATH_BYTES_MAX: usize = 1024;
/// What browsers and advertisers add to a link is some hundred bytes.
const QUERY_BYTES_MAX: usize = 2 * 1024;
/// With its query, if that is written at all.
const REFERER_BYTES_MAX: usize = 1024;
/// Twice what the longest browser says.
const AGENT_BYTES_MAX: usize = 512;
/// The client has left before it was answered: nginx's number, which every tool knows.
const CLIENT_LEFT: u16 = 499;

/// An open access log. What was said is written when it is dropped.
#[derive(Debug)]
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
#[derive(Debug)]
struct Visit {
    log: Arc<AccessLog>,
    at_ms: u64,
    started: Instant,
    method: Method,
    uri: Uri,
    /// What stands for its path.
    shown: Option<String>,
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

    /// Notes a request, which is answered or left by its client. `shown`: what is written for the path, if not the path itself.
    pub(crate) fn note(
        self: &Arc<Self>,
        head: &request::Parts,
        shown: Option<String>,
        peer: IpAddr,
        at_ms: u64,
    ) -> Noted {
        let text = |name: HeaderName| text_of(&head.headers, &name);
        let combined = self.format == AccessFormat::Combined;
        let host = head.uri.authority().map(ToString::to_string).or_else(|| text(HOST)).map(without_user);
        Noted(Some(Visit {
            log: Arc::clone(self),
            at_ms,
            started: Instant::now(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            shown,
            version: head.version,
            peer,
            host: host.map(|host| cut(&host, HOST_BYTES_MAX).to_owned()),
            referer: combined.then(|| text(REFERER)).flatten().map(|url| self.kept_of(&url)),
            agent: combined
                .then(|| text(USER_AGENT))
                .flatten()
                .map(|agent| cut(&agent, AGENT_BYTES_MAX).to_owned()),
        }))
    }

    /// The line of a plain request that is answered out of the cache. None where the request cannot be written down as a
    /// [`Uri`].
    pub(crate) fn line_of(
        self: &Arc<Self>,
        plain: &Plain<'_>,
        peer: IpAddr,
        at_ms: u64,
        trace: Option<String>,
    ) -> Option<Line> {
        let combined = self.format == AccessFormat::Combined;
        let text = |name: &HeaderName| {
            let value = combined.then(|| plain.field(name.as_str())).flatten()?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let visit = Visit {
            log: Arc::clone(self),
            at_ms,
            started: Instant::now(),
            method: Method::GET,
            uri: plain.target.parse().ok()?,
            shown: None,
            version: Version::HTTP_11,
            peer,
            host: Some(cut(plain.host, HOST_BYTES_MAX).to_owned()),
            referer: text(&REFERER).map(|url| self.kept_of(&url)),
            agent: text(&USER_AGENT).map(|agent| cut(&agent, AGENT_BYTES_MAX).to_owned()),
        };
        let told = Some(Told { outcome: "hit", reason: None });
        let (refusal, upstream) = (None, None);
        let (bytes, complete) = (0, false);
        Some(Line(Written { visit, status: 200, told, refusal, upstream, trace, bytes, complete }))
    }

    /// A referer is mostly a page of the same shop, whose query is no less secret than that of a target.
    fn kept_of(&self, url: &str) -> String {
        let kept = if self.with_query { url.len() } else { url.find(['?', '#']).unwrap_or(url.len()) };
        cut(&url[..kept], REFERER_BYTES_MAX).to_owned()
    }
}

/// What is written where a client has left before its answer.
pub(crate) fn client_left() -> StatusCode {
    StatusCode::from_u16(CLIENT_LEFT).expect("three digits")
}

/// No more of a text than is kept of it.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// A name and a password before the host are refused, and not to be read by operators either.
fn without_user(host: String) -> String {
    host.rsplit_once('@').map_or_else(|| host.clone(), |(_, host)| host.to_owned())
}

fn text_of(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

impl Visit {
    fn path(&self) -> &str {
        self.shown.as_deref().unwrap_or_else(|| self.uri.path())
    }
}

/// A request that has been noted and not answered yet. If it is dropped, nobody waits for the answer any more, and its line
/// says so.
pub(crate) struct Noted(Option<Visit>);

impl Noted {
    /// The line is written when the body of the answer has ended.
    pub(crate) fn answered(mut self, response: Response<Body>) -> Response<Body> {
        let Some(visit) = self.0.take() else { return response };
        let (head, body) = response.into_parts();
        let line = Line(Written {
            status: head.status.as_u16(),
            told: head.extensions.get().copied(),
            refusal: head.extensions.get::<crate::rescue::Refusal>().map(|refusal| refusal.code()),
            upstream: head.extensions.get().map(|UpstreamTook(took)| *took),
            trace: head.extensions.get().map(|TraceId(id)| id.clone()),
            bytes: 0,
            complete: body.is_end_stream(),
            visit,
        });
        Response::from_parts(head, Logged { body, line }.boxed_unsync())
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let Some(visit) = self.0.take() else { return };
        // A panic is not the client's.
        let status = if std::thread::panicking() { 500 } else { CLIENT_LEFT };
        let (told, refusal, upstream, trace) = (None, None, None, None);
        drop(Line(Written { visit, status, told, refusal, upstream, trace, bytes: 0, complete: false }));
    }
}

/// All that a line says.
#[derive(Debug)]
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

/// A line that is written when nobody has anything to add to it any longer: when it is dropped.
#[derive(Debug)]
pub(crate) struct Line(Written);

impl Line {
    /// So many more bytes of the body were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.0.bytes += bytes as u64;
    }

    /// The body came to its end.
    pub(crate) fn complete(&mut self) {
        self.0.complete = true;
    }
}

impl Drop for Line {
    /// Never waits.
    fn drop(&mut self) {
        let log = &self.0.visit.log;
        let line = line::of(&self.0, log.format, log.with_query);
        // A handle of its own for each line: cheap.
        let _ = log.queue.clone().write_all(line.as_bytes());
    }
}

/// A body that is counted, and logged when nobody reads it any longer.
struct Logged {
    body: Body,
    line: Line,
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
                self.line.sent(frame.data_ref().map_or(0, Bytes::len));
                self.line.0.complete = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.line.complete(),
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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[tokio::test]
    async fn no_line_is_longer_than_it_may_be() {
        let dir = tempfile::tempdir().expect("a folder");
        // Two bytes that are four each where they are escaped; one that is two in JSON.
        for (letter, format) in [
            ("\u{e9}", AccessFormat::Common),
            ("\u{e9}", AccessFormat::Combined),
            ("\u{e9}", AccessFormat::Json),
            ("\\", AccessFormat::Json),
        ] {
            let to = AccessTo::File(dir.path().join("access.log"));
            let log = AccessLog::open(&AccessConfig { to, format, with_query: true }).expect("a log");
            let long = letter.repeat(30_000 / letter.len());
            let request = Request::builder()
                .method("M".repeat(60_000).as_str())
                .uri(format!("/{long}?{long}"))
                .header("host", long.as_bytes())
                .header("referer", long.as_bytes())
                .header("user-agent", long.as_bytes())
                .body(())
                .expect("a request");
            let peer = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff".parse().expect("an address");
            let mut noted = log.note(&request.into_parts().0, None, peer, u64::MAX);
            let written = Written {
                visit: noted.0.take().expect("noted"),
                status: 200,
                told: Some(Told { outcome: "revalidated", reason: Some("authorization_without_public") }),
                refusal: None,
                upstream: Some(Duration::MAX),
                trace: Some("f".repeat(32)),
                bytes: u64::MAX,
                complete: false,
            };
            let line = line::of(&written, format, true);
            assert!(line.len() <= LINE_BYTES_MAX, "{format:?}: {}", line.len());
            assert!(line.len() > 3 * 1024 && line.ends_with('\n'), "{format:?}: {}", line.len());
        }
    }
}
