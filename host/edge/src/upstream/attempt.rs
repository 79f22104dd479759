//! One request at one server, from a connection to the head of the response.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{HOST, VIA};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::connect::ConnectError;
use super::error::{UpstreamError, chain};
use super::fleet::{Name, Outcome, Visit};
use super::forward;
use super::pace::{Held, Paced, Upload};
use super::pool::{Line, Lost, Out};
use super::retry::{self, Left, Setback};
use crate::interim::Interims;

/// Idle connections that one try may find closed before it opens a new one. A server that restarts closes all of them.
const CLOSED_MAX: usize = 1;

/// A request that can be sent as often as its body allows.
pub(super) struct Letter {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    /// Path and query as they are on the wire.
    pub(super) target: String,
    pub(super) upload: Option<Arc<Upload>>,
    pub(super) interims: Option<Interims>,
}

/// A try without a response.
pub(super) struct Failed {
    pub(super) setback: Setback,
    pub(super) error: UpstreamError,
}

/// How long a try may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) first_byte: Duration,
    pub(super) idle: Duration,
}

impl Letter {
    pub(super) fn left(&self) -> Left {
        self.upload.as_ref().map_or(Left::Whole, |upload| upload.left())
    }

    /// The request for one connection. A `Host` that is there already is the one that the server shall see.
    fn request(&self, name: &Name, is_h2: bool) -> Result<Request<Out>, http::Error> {
        let mut request = Request::new(match &self.upload {
            Some(upload) => upload.lend().boxed_unsync(),
            None => Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync(),
        });
        *request.method_mut() = self.method.clone();
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            headers.insert(HOST, name.authority.as_str().try_into()?);
        }
        let uri = Uri::builder().path_and_query(self.target.as_str());
        *request.uri_mut() = if is_h2 {
            // HTTP/2 says it in `:authority`.
            let host = headers.remove(HOST).expect("put there above");
            uri.scheme(name.scheme.clone()).authority(host.as_bytes()).build()?
        } else {
            uri.build()?
        };
        if let Some(interims) = self.interims.clone() {
            hyper::ext::on_informational(&mut request, move |interim| {
                interims.send(interim.status(), interim.headers());
            });
        }
        Ok(request)
    }
}

/// Sends the letter to the visited server. What happens is told to the visit.
///
/// Dropping the future ends the exchange; a connection of HTTP/1.1 is not used again.
pub(super) async fn attempt(
    visit: Visit,
    letter: &Letter,
    patience: Patience,
    place: Arc<OwnedSemaphorePermit>,
) -> Result<Response<Paced>, Failed> {
    let mut closed = 0;
    let (response, line) = loop {
        let connected = visit.server().pool.line(closed > CLOSED_MAX).await;
        let mut line = connected.map_err(|why| no_connection(&visit, &why))?;
        let request = letter.request(visit.name(), line.is_h2());
        let request = request.map_err(|why| Failed {
            setback: Setback::TimedOut,
            error: UpstreamError::Broke(why.to_string()),
        })?;
        match wait_for_head(&mut line, request, letter, patience.first_byte).await {
            Ok(response) => break (response, line),
            // The pool cannot know that a connection is being closed until a request has met the closing.
            Err(Lapse::Lost(Lost::Unsent(_))) if line.reused => closed += 1,
            Err(lapse) => return Err(failed(&visit, &line, letter, lapse, patience)),
        }
    };
    if retry::is_servers_fault(response.status()) {
        visit.answered(Outcome::ServersFault);
        if let Some(pause) = retry::retry_after(response.headers(), SystemTime::now()) {
            visit.retry_after(pause);
        }
    } else {
        visit.answered(Outcome::Answered);
    }
    let held = Held { _place: place, visit, _line: line.keep() };
    Ok(response.map(|body| Paced::new(body, patience.idle, held)))
}

enum Lapse {
    Lost(Lost),
    TimedOut,
}

/// Waits as long as the upload moves, and then for the first byte.
async fn wait_for_head(
    line: &mut Line,
    request: Request<Out>,
    letter: &Letter,
    first_byte_max: Duration,
) -> Result<Response<Incoming>, Lapse> {
    let mut asking = std::pin::pin!(line.exchange(request));
    let frames = || letter.upload.as_ref().map_or(0, |upload| upload.frames());
    let mut seen = 0;
    loop {
        if let Ok(answer) = tokio::time::timeout(first_byte_max, &mut asking).await {
            let mut answer = answer.map_err(Lapse::Lost)?;
            let via = forward::via(answer.version());
            answer.headers_mut().append(VIA, via);
            // An intermediary speaks its own version (RFC 9110 section 2.5), whatever the upstream speaks.
            *answer.version_mut() = Version::HTTP_11;
            return Ok(answer);
        }
        let sent = frames();
        if sent == seen {
            return Err(Lapse::TimedOut);
        }
        seen = sent;
    }
}

fn no_connection(visit: &Visit, why: &ConnectError) -> Failed {
    let text = format!("{}: {}", visit.server().address, chain(why));
    let (outcome, error) = match why {
        ConnectError::Tls(_) => (Outcome::Tls, UpstreamError::Tls(text)),
        ConnectError::TimedOut(_) | ConnectError::Tcp(_) | ConnectError::Http(_) => {
            (Outcome::Unreachable, UpstreamError::Unreachable(text))
        }
    };
    visit.answered(outcome);
    Failed { setback: Setback::NoConnection, error }
}

fn failed(visit: &Visit, line: &Line, letter: &Letter, lapse: Lapse, patience: Patience) -> Failed {
    let clients_fault = letter.upload.as_ref().is_some_and(|upload| upload.keeps_waiting());
    let (outcome, setback, error) = match lapse {
        Lapse::TimedOut => {
            if !clients_fault {
                // A peer that vanished takes every request of its connection along; nobody else shall wait for it.
                line.retire();
            }
            let error = UpstreamError::TimedOut(patience.first_byte);
            (Outcome::TimedOut, Setback::TimedOut, error)
        }
        Lapse::Lost(lost) => {
            let (outcome, setback) = match &lost {
                Lost::NotProcessed(_) => (Outcome::NotProcessed, Setback::NotProcessed),
                Lost::Unsent(_) => (Outcome::Broke, Setback::NotProcessed),
                Lost::Broke(_) if line.reused && !line.is_h2() => (Outcome::IdleBroke, Setback::Broke),
                Lost::Broke(_) => (Outcome::Broke, Setback::Broke),
            };
            let text = format!("{}: {}", visit.server().address, chain(lost.error()));
            (outcome, setback, UpstreamError::Broke(text))
        }
    };
    // A stranger must not take a server away from everybody by uploads that break off.
    visit.answered(if clients_fault { Outcome::ClientsFault } else { outcome });
    Failed { setback, error }
}
