//! The merchant's server of the cache attacks: careless on purpose. It reflects whatever it is sent, answers any path that
//! looks like the account page with the account page, and errs where an attacker wants it to. It counts who asks.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, COOKIE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Barrier, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{ALONE, BIG_BYTES, PATIENCE};

/// What only the victim may read.
pub(super) const SECRET: &str = "secret-of-the-victim";
/// What the origin's own limit of a field is: half of what the node takes.
const FIELD_BYTES_MAX: usize = 8 * 1024;
const FRESH: &str = "max-age=600";

pub(super) struct Origin {
    pub(super) addr: SocketAddr,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
}

struct Desk {
    asked: parking_lot::Mutex<HashMap<String, watch::Sender<u32>>>,
    gate: watch::Sender<bool>,
    /// All but the first who ask for what is nobody else's.
    others: Barrier,
}

impl Origin {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let desk = Arc::new(Desk {
            asked: parking_lot::Mutex::default(),
            gate: watch::channel(false).0,
            others: Barrier::new(ALONE as usize - 1),
        });
        let task = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let desk = Arc::clone(&desk);
                    let answer = service_fn(move |request| {
                        let desk = Arc::clone(&desk);
                        async move { Ok::<_, Infallible>(desk.answer(request).await) }
                    });
                    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                    connections.spawn(async { drop(served.await) });
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Ok(Self { addr, desk, task })
    }

    /// How often `host` and path were asked for.
    pub(super) fn asked(&self, what: &str) -> u32 {
        self.desk.asked.lock().get(what).map_or(0, |seen| *seen.borrow())
    }

    /// Lets out what is held back.
    pub(super) fn open(&self) {
        self.desk.gate.send_replace(true);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    fn counter(&self, what: &str) -> watch::Sender<u32> {
        self.asked.lock().entry(what.to_owned()).or_insert_with(|| watch::channel(0).0).clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        // The node says whom the client asked for; the connection's Host is the origin's own.
        let host = text_of(&head.headers, "x-forwarded-host").to_owned();
        let first = head.uri.path().split('/').nth(1).unwrap_or_default().to_owned();
        if first == "k" {
            // A hundred thousand of them are not worth counting one by one.
            return page(FRESH, "x");
        }
        let counter = self.counter(&format!("{host}{target}"));
        counter.send_modify(|seen| *seen += 1);
        let seen = *counter.borrow();
        if target.contains("account") {
            return account(&host, &head.headers);
        }
        match first.as_str() {
            "cold" => {
                // The desk outlives whoever waits at it.
                let _ = self.gate.subscribe().wait_for(|open| *open).await;
                page(FRESH, "x")
            }
            "alone" => {
                let all_here = seen == 1 || timeout(PATIENCE / 2, self.others.wait()).await.is_ok();
                let mut response = page("no-store", "yours");
                if !all_here {
                    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                }
                response
            }
            "vary" => with(page(FRESH, "a page"), &[(VARY, "accept-language")]),
            "reflect" | "reflect-live" => {
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let control = if first == "reflect" { FRESH } else { "no-store" };
                page(control, &reflection(&head.headers, &body))
            }
            "tenant" => tenant("no-cache", &host, &head.headers),
            "tenant-fresh" => tenant(FRESH, &host, &head.headers),
            "big" => {
                let ranged = head.headers.contains_key(RANGE);
                let body = if ranged { "a range came through".to_owned() } else { "b".repeat(BIG_BYTES) };
                with(page(FRESH, &body), &[(ETAG, "\"big\"")])
            }
            "page" => fragile(&head.headers),
            _ => page(FRESH, "calm"),
        }
    }
}

fn page(control: &str, text: &str) -> Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(text.to_owned()));
    Response::builder().header(CACHE_CONTROL, control).body(body).expect("a valid head")
}

fn with(mut response: Response<Full<Bytes>>, fields: &[(HeaderName, &'static str)]) -> Response<Full<Bytes>> {
    for (name, value) in fields {
        response.headers_mut().append(name, http::HeaderValue::from_static(value));
    }
    response
}

/// A page of one shopper, in the four ways in which servers say so, or do not.
fn account(host: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let known = text_of(headers, COOKIE.as_str()).contains("session=victim");
    let text = if known { SECRET } else { "please log in" };
    let response = match host {
        "private.example" => page("private, max-age=600", text),
        "no-store.example" => page("no-store", text),
        "cookie.example" => with(page(FRESH, text), &[(SET_COOKIE, "seen=1")]),
        _ => {
            let mut silent = page("", text);
            silent.headers_mut().remove(CACHE_CONTROL);
            silent
        }
    };
    with(response, &[(ETAG, "\"account\""), (LAST_MODIFIED, "Fri, 01 Jan 2021 00:00:00 GMT")])
}

/// Everything that it was sent, as a page that everybody may have.
fn reflection(headers: &HeaderMap, body: &[u8]) -> String {
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect();
    lines.sort();
    format!("{}\nbody: {}", lines.join("\n"), body.escape_ascii())
}

/// Two merchants on one server, with the same tag for different pages.
fn tenant(control: &str, host: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let mut response = page(control, &format!("the page of {host}"));
    if text_of(headers, IF_NONE_MATCH.as_str()).contains("\"same\"") {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Full::default();
    }
    with(response, &[(ETAG, "\"same\"")])
}

/// A page that an odd request turns into an error, which says nothing about being stored.
fn fragile(headers: &HeaderMap) -> Response<Full<Bytes>> {
    let oversize = headers.values().any(|value| value.len() > FIELD_BYTES_MAX);
    let many = headers.len() > 60;
    let odd = headers.values().any(|value| value.as_bytes().iter().any(|byte| *byte >= 0x80));
    let overridden = headers.keys().any(|name| name.as_str().contains("method"));
    let status = match () {
        () if oversize || many => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        () if odd => StatusCode::BAD_REQUEST,
        () if overridden => StatusCode::METHOD_NOT_ALLOWED,
        () if headers.contains_key(RANGE) => StatusCode::RANGE_NOT_SATISFIABLE,
        () if headers.contains_key("x-crash") => StatusCode::INTERNAL_SERVER_ERROR,
        () if headers.contains_key("x-missing") => StatusCode::NOT_FOUND,
        () if headers.contains_key(AUTHORIZATION) => StatusCode::UNAUTHORIZED,
        () => return page(FRESH, "a page"),
    };
    let mut response = page("", "an error");
    response.headers_mut().remove(CACHE_CONTROL);
    *response.status_mut() = status;
    response
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
