//! Requests that are answered before hyper has them: plain ones whose answer is at hand.
//!
//! Owns what *plain* means, and an answer on its way to the client. What is asked is a [`Prompt`]'s to know, who may always
//! say nothing: then the request goes to hyper as if nobody had looked at it. So everything that a request may say beside
//! "this page" needs no mention here but that it is there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use souk_cache::in_file::BodyFile;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Follow, Life, Wire};
use crate::access::Line;
use crate::gate::Work;

/// Slices that are given to the kernel at once: a megabyte in pieces of 64 KiB, and Linux takes 1,024.
const SLICES_MAX: usize = 18;
/// What the cache has of a head, and what the door adds to it.
const HEAD_PIECES: usize = 2;

/// A GET with one host, no body, and nothing about connections, conditions, ranges or loops.
#[derive(Debug)]
pub struct Plain<'a> {
    /// Path and query, in letters that nobody reads in two ways.
    pub target: &'a str,
    /// As it is written.
    pub host: &'a str,
    /// Whether its connection takes an answer's body from a file ([`super::lend`]).
    pub lends: bool,
    /// It says something to caches.
    pub directs: bool,
    /// It says who the client is, as proxies do.
    pub vouches: bool,
    /// It has a place in a trace.
    pub traced: bool,
    fields: Fields<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Fields<'a> {
    Raw(&'a [httparse::Header<'a>]),
    Map(&'a HeaderMap),
}

/// What fields say together.
#[derive(Debug, Default)]
struct Said<'a> {
    host: Option<&'a [u8]>,
    directs: bool,
    vouches: bool,
    traced: bool,
}

impl<'a> Said<'a> {
    /// Takes one more field. Whether the request is plain still.
    fn take(&mut self, name: &str, value: &'a [u8]) -> bool {
        match meaning(name) {
            Meaning::None => {}
            Meaning::Host => return self.host.replace(value).is_none(),
            Meaning::Connection => return value.eq_ignore_ascii_case(b"keep-alive"),
            Meaning::Directs => self.directs = true,
            Meaning::Vouches => self.vouches = true,
            Meaning::Traced => self.traced = true,
            Meaning::Other => return false,
        }
        true
    }
}

impl<'a> Plain<'a> {
    /// A request of HTTP/2 or HTTP/3, which must have no body.
    pub(crate) fn of_stream(head: &'a http::request::Parts) -> Option<Self> {
        let uri = &head.uri;
        let streams = head.version >= http::Version::HTTP_2 && head.method == http::Method::GET;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        if !streams || !known {
            return None;
        }
        let (host, target) = (uri.authority()?.as_str(), uri.path_and_query()?.as_str());
        let mut said = Said::default();
        for (name, value) in &head.headers {
            // Connections have no business here, and who says the host twice is looked at.
            if name == http::header::CONNECTION || !said.take(name.as_str(), value.as_bytes()) {
                return None;
            }
        }
        let plain = target.starts_with('/') && target.bytes().all(is_plain) && said.host.is_none();
        let Said { directs, vouches, traced, .. } = said;
        let fields = Fields::Map(&head.headers);
        plain.then_some(Self { target, host, lends: false, directs, vouches, traced, fields })
    }

    /// `lends`: whether its connection takes a file.
    pub(super) fn of<'b: 'a>(request: &'a httparse::Request<'_, 'b>, lends: bool) -> Option<Self> {
        let (Some("GET"), Some(1), Some(target)) = (request.method, request.version, request.path) else {
            return None;
        };
        if !target.starts_with('/') || !target.bytes().all(is_plain) {
            return None;
        }
        let mut said = Said::default();
        if !request.headers.iter().all(|field| said.take(field.name, field.value)) {
            return None;
        }
        let Said { host, directs, vouches, traced } = said;
        let host = std::str::from_utf8(host?).ok()?;
        let fields = Fields::Raw(request.headers);
        Some(Self { target, host, lends, directs, vouches, traced, fields })
    }

    /// All fields, as hyper reads them.
    pub fn fields(&self) -> HeaderMap {
        let raw = match self.fields {
            Fields::Map(map) => return map.clone(),
            Fields::Raw(raw) => raw,
        };
        let mut map = HeaderMap::with_capacity(raw.len());
        for field in raw {
            // Both of the same parser's making.
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(field.value);
            if let (Ok(name), Ok(value)) = (name, value) {
                map.append(name, value);
            }
        }
        map
    }

    /// The first field of this name, which is in lower case.
    pub(crate) fn field(&self, name: &str) -> Option<&'a [u8]> {
        match self.fields {
            Fields::Map(map) => map.get(name).map(HeaderValue::as_bytes),
            Fields::Raw(raw) => {
                raw.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
            }
        }
    }
}

/// A byte of a target that every reader takes for itself. Percent signs are looked into where the key is made.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@?%".contains(&byte)
}

/// What a field is about, as far as it matters whether there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    None,
    Host,
    Connection,
    Directs,
    Vouches,
    Traced,
    /// A request with such a field is not plain.
    Other,
}

fn meaning(name: &str) -> Meaning {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    let begins =
        |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let one_of = |others: &[&str], meaning| {
        if others.iter().any(|other| is(other)) { meaning } else { Meaning::None }
    };
    match name.as_bytes().first().map(u8::to_ascii_lowercase) {
        Some(b'h') if is("host") => Meaning::Host,
        Some(b'h') => one_of(&["http2-settings"], Meaning::Other),
        // Whoever has a token may be counted by it.
        Some(b'a') => one_of(&["authorization"], Meaning::Other),
        Some(b'c') if is("connection") => Meaning::Connection,
        Some(b'c') if is("cache-control") => Meaning::Directs,
        Some(b'c') => one_of(&["content-length", "cdn-loop"], Meaning::Other),
        Some(b'e') => one_of(&["expect"], Meaning::Other),
        Some(b'f') => one_of(&["forwarded"], Meaning::Vouches),
        Some(b'i') if begins("if-") => Meaning::Other,
        Some(b'k') => one_of(&["keep-alive"], Meaning::Other),
        Some(b'p') if is("pragma") => Meaning::Directs,
        Some(b'p') if begins("proxy-") => Meaning::Other,
        Some(b'r') => one_of(&["range"], Meaning::Other),
        Some(b't') if is("traceparent") => Meaning::Traced,
        Some(b't') => one_of(&["te", "trailer", "transfer-encoding"], Meaning::Other),
        Some(b'u') => one_of(&["upgrade"], Meaning::Other),
        Some(b'x') if begins("x-forwarded") => Meaning::Vouches,
        Some(b'x') if begins("x-souk-") => Meaning::Other,
        _ => Meaning::None,
    }
}

/// Who may have the answer to a plain request at hand.
pub(crate) trait Prompt: Send {
    fn answer(&self, plain: &Plain<'_>) -> Option<Ready>;
}

/// An answer with nothing left to do but to send it.
#[derive(Debug)]
pub struct Ready {
    /// From the status line to the last field but what the door adds.
    pub(crate) head: Bytes,
    /// What the door adds, and the empty line.
    pub(crate) tail: Bytes,
    pub(crate) body: Arc<[Bytes]>,
    /// The body once more, for a connection that takes a file.
    pub(crate) file: Option<Arc<BodyFile>>,
    /// Its line in the access log, which is written when this is dropped.
    pub(crate) line: Option<Line>,
}

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Out {
    ready: Ready,
    /// The piece that is being sent, and how much of it has been. All of a file is one piece.
    piece: usize,
    sent: usize,
    /// Once the client is waited for, it is work in flight.
    work: Option<Work>,
}

impl Out {
    pub(super) fn new(ready: Ready) -> Self {
        let mut out = Self { ready, piece: 0, sent: 0, work: None };
        out.skip_empty();
        out
    }

    pub(super) fn is_sent(&self) -> bool {
        self.piece >= self.pieces()
    }

    fn pieces(&self) -> usize {
        HEAD_PIECES + if self.ready.file.is_some() { 1 } else { self.ready.body.len() }
    }

    /// The file that is to be sent next, and from where.
    pub(super) fn file(&self) -> Option<(&BodyFile, u64)> {
        let file = self.ready.file.as_deref().filter(|_| self.piece == HEAD_PIECES)?;
        Some((file, self.sent as u64))
    }

    /// Whether a file follows what [`Self::show`] shows.
    pub(super) fn precedes_file(&self) -> bool {
        self.ready.file.is_some()
    }

    /// Counts it, from when the client is waited for.
    pub(super) fn counts_as(&mut self, begin: impl FnOnce() -> Work) {
        self.work.get_or_insert_with(begin);
    }

    fn piece(&self, at: usize) -> Option<&Bytes> {
        match at {
            0 => Some(&self.ready.head),
            1 => Some(&self.ready.tail),
            _ if self.ready.file.is_some() => None,
            at => self.ready.body.get(at - HEAD_PIECES),
        }
    }

    /// How long a piece is, if there is such a one.
    fn length(&self, at: usize) -> Option<usize> {
        match &self.ready.file {
            // At most a megabyte.
            Some(file) if at == HEAD_PIECES => usize::try_from(file.length()).ok(),
            _ => self.piece(at).map(Bytes::len),
        }
    }

    fn skip_empty(&mut self) {
        while self.length(self.piece) == Some(self.sent) {
            (self.piece, self.sent) = (self.piece + 1, 0);
        }
    }

    /// Shows what is next to a writer.
    pub(super) fn show<T>(&self, write: impl FnOnce(&[IoSlice<'_>]) -> T) -> T {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, at) in slices.iter_mut().zip(self.piece..) {
            let Some(piece) = self.piece(at) else { break };
            let from = if at == self.piece { self.sent } else { 0 };
            *slice = IoSlice::new(piece.get(from..).unwrap_or_default());
            count += 1;
        }
        write(slices.get(..count).unwrap_or_default())
    }

    /// So many bytes of it have been written.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(length) = self.length(self.piece) {
            let step = bytes.min(length - self.sent);
            (self.sent, bytes) = (self.sent + step, bytes - step);
            let of_body = self.piece >= HEAD_PIECES;
            if of_body && let Some(line) = &mut self.ready.line {
                line.sent(step);
            }
            if length > self.sent {
                return;
            }
            (self.piece, self.sent) = (self.piece + 1, 0);
        }
        if let Some(line) = &mut self.ready.line {
            line.complete();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Whether the request that came, if it is one, is answered without hyper.
    pub(super) fn answer_at_once(&mut self, came: &[u8]) -> bool {
        let (Some(prompt), Follow::Requests(requests)) = (&self.prompt, &mut self.follow) else {
            return false;
        };
        if self.life != Life::Open || self.unflushed || !self.tie.is_ready_after(requests.heads()) {
            return false;
        }
        let lends = self.lend.is_some();
        let ready = requests.alone(came, |request| prompt.answer(&Plain::of(request, lends)?));
        self.out = ready.map(|ready| {
            self.tie.answered_at_once();
            Out::new(ready)
        });
        self.out.is_some()
    }

    /// Sends what hyper does not know of, to its end.
    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(out) = &mut self.out {
            if out.is_sent() {
                let flushed = Pin::new(&mut self.stream).poll_flush(cx);
                ready!(self.moved(cx, flushed))?;
                self.out = None;
                break;
            }
            let polled = match (&self.lend, out.file()) {
                (Some(lend), Some((file, from))) => (lend.file)(&self.stream, cx, file, from),
                (Some(lend), None) if out.precedes_file() => {
                    out.show(|slices| (lend.head)(&self.stream, cx, slices))
                }
                _ => {
                    let stream = Pin::new(&mut self.stream);
                    out.show(|slices| stream.poll_write_vectored(cx, slices))
                }
            };
            if polled.is_pending() {
                out.counts_as(|| self.tie.begin_sending());
            }
            let written = ready!(self.moved(cx, polled))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.earn_download(written);
            if let Some(out) = &mut self.out {
                out.advance(written);
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(head: &str) -> Option<String> {
        let mut fields = [httparse::EMPTY_HEADER; 20];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(head.as_bytes()).expect("a head");
        assert!(parsed.is_complete(), "{head:?}");
        Plain::of(&request, false).map(|plain| format!("{} {}", plain.host, plain.target))
    }

    #[test]
    fn what_says_more_than_a_page_is_not_plain() {
        let of = |fields: &str| plain(&format!("GET /x?y=%20z HTTP/1.1\r\nHost: a:80\r\n{fields}\r\n"));
        for fields in [
            "",
            "Accept: */*\r\nCookie: a=b\r\nUser-Agent: x\r\n",
            "Connection: Keep-Alive\r\n",
            "Cache-Control: no-cache\r\nX-Forwarded-For: x\r\ntraceparent: x\r\n",
            "Range-x: 1\r\nTea: 1\r\nHosts: 1\r\nX-Souk: 1\r\nI: 1\r\n",
        ] {
            assert_eq!(of(fields).as_deref(), Some("a:80 /x?y=%20z"), "{fields:?}");
        }
        for name in [
            "range",
            "If-None-Match",
            "if-x",
            "Expect",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Content-Length",
            "Transfer-Encoding",
            "CDN-Loop",
            "Proxy-Connection",
            "X-Souk-Timing",
            "X-Souk-Peer",
            "HTTP2-Settings",
            "Host",
            "Connection",
        ] {
            assert_eq!(of(&format!("{name}: 1\r\n")), None, "{name}");
        }
        for head in [
            "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\\ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /[ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
            "get / HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(plain(head), None, "{head:?}");
        }
    }

    #[test]
    fn an_answer_is_sent_whole_and_in_order_however_it_is_cut() {
        let pieces = ["head\r\n", "\r\n", "", "body", "", "", "more", ""];
        for step in 1..20 {
            let [head, tail, body @ ..] = pieces.map(|piece| Bytes::from_static(piece.as_bytes()));
            let body: Arc<[Bytes]> = Arc::from(body);
            let mut out = Out::new(Ready { head, tail, body, file: None, line: None });
            let mut said = Vec::new();
            while !out.is_sent() {
                let wrote = out.show(|slices| {
                    let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                    assert!(!all.is_empty());
                    let part = &all[..step.min(all.len())];
                    said.extend_from_slice(part);
                    part.len()
                });
                out.advance(wrote);
            }
            assert_eq!(String::from_utf8_lossy(&said), pieces.concat(), "{step}");
        }
        let many: Arc<[Bytes]> = (0..100).map(|_| Bytes::from_static(b"x")).collect();
        let mut out =
            Out::new(Ready { head: Bytes::new(), tail: "t".into(), body: many, file: None, line: None });
        let mut sent = 0;
        while !out.is_sent() {
            let wrote = out.show(|slices| slices.iter().map(|slice| slice.len()).sum());
            assert!(wrote <= SLICES_MAX);
            sent += wrote;
            out.advance(wrote);
        }
        assert_eq!(sent, 101);
    }
}
