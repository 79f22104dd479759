//! The nodes of one place, which fetch each thing once for all of them.
//!
//! A node that misses asks the key's home node among them, which fills from the upstream and answers the others from what
//! it has. Owns who is asked, and the word by which nodes know each other: a request with a valid [`MARK`] came from a
//! peer and is never sent to another one, so there is one hop and no loop. Everything else about such a request is what
//! it is for any client. Where the home is away or has too much to do, the next in the key's order is asked, and the
//! upstream itself when it is this node's turn: the shield saves fetches and must never cost an answer.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use souk_cache::{Asked, Key};
use souk_config::{PeersConfig, UpstreamConfig, UpstreamServer};

use super::client::Upstream;
use super::error::SetupError;
use super::pace::Paced;
use super::rendezvous;
use super::telemetry::ProxyMetrics;
use crate::interim::Interims;

/// Says that a request came from a peer. Clients cannot say it: fields of this family are taken out of what they send.
pub(super) const MARK: HeaderName = HeaderName::from_static("x-souk-peer");
/// How far a peer's clock may be from ours. Nodes keep their clocks by NTP; a second-hand mark is worth nothing to anybody.
const MARK_AGE_MAX: Duration = Duration::from_secs(30);
/// A peer that could not be reached is not asked for this long: a machine that is off costs one time-out, not all.
const AWAY: Duration = Duration::from_secs(5);
/// A neighbour answers a SYN at once; two lost ones are a neighbour that is away.
const CONNECT_MAX: Duration = Duration::from_secs(1);
const SECRET_BYTES_MIN: usize = 32;
/// How long after a purge the peers are not asked: until then it is to be sent to every node of the place.
const BEHIND_MS: u64 = 60_000;
/// How long they are not asked for what an unsafe request has changed. Most pages live no longer.
const TAKEN_BACK_FOR: Duration = Duration::from_secs(3_600);
/// Bytes of such keys.
const TAKEN_BACK_BYTES_MAX: u64 = 8 * 1024 * 1024;

pub(super) struct Shield {
    key: hmac::Key,
    /// The hashes of all nodes, this one first.
    nodes: Vec<u64>,
    others: Vec<Node>,
    began: Instant,
    metrics: ProxyMetrics,
    /// When something was last purged here.
    purged_ms: AtomicU64,
    /// Keys that an unsafe request has changed: a peer may have them as they were.
    taken_back: moka::sync::Cache<Key, ()>,
}

struct Node {
    upstream: Upstream,
    /// In milliseconds since the beginning.
    away_until_ms: AtomicU64,
}

impl Shield {
    pub(super) fn new(
        peers: &PeersConfig,
        config: &UpstreamConfig,
        metrics: ProxyMetrics,
    ) -> Result<Self, SetupError> {
        let refuse = |why: String| SetupError::PeerSecret { path: peers.secret.clone(), why };
        let secret = std::fs::read(&peers.secret).map_err(|why| refuse(why.to_string()))?;
        let secret = secret.trim_ascii();
        if secret.len() < SECRET_BYTES_MIN {
            return Err(refuse(format!(
                "it has {} bytes, and at least {SECRET_BYTES_MIN} are needed",
                secret.len()
            )));
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let hash = |server: &UpstreamServer| keyed(&key, "node", server.url.as_str(), "");
        let nodes: Vec<u64> = std::iter::once(&peers.own).chain(&peers.others).map(hash).collect();
        let node = |server: &UpstreamServer| {
            let config = UpstreamConfig {
                servers: vec![server.clone()],
                connect_timeout: config.connect_timeout.min(CONNECT_MAX),
                health_check: None,
                hedge_after: None,
                // An idle connection that the peer was just closing.
                retries_max: 1,
                // The home gives up first, and says of what.
                first_byte_timeout: config.first_byte_timeout + CONNECT_MAX,
                ..config.clone()
            };
            // What is counted of peers is counted here.
            let upstream = Upstream::new(&config, ProxyMetrics::default())?;
            Ok(Node { upstream, away_until_ms: AtomicU64::new(0) })
        };
        let others = peers.others.iter().map(node).collect::<Result<_, SetupError>>()?;
        let taken_back = moka::sync::Cache::builder()
            .max_capacity(TAKEN_BACK_BYTES_MAX)
            .weigher(|key: &Key, ()| u32::try_from(key.bytes()).unwrap_or(u32::MAX))
            .time_to_live(TAKEN_BACK_FOR)
            .build();
        let purged_ms = AtomicU64::new(0);
        Ok(Self { key, nodes, others, began: Instant::now(), metrics, purged_ms, taken_back })
    }

    /// Something was purged at this node.
    pub(super) fn purged(&self, now_ms: u64) {
        self.purged_ms.store(now_ms, Ordering::Relaxed);
    }

    /// An unsafe request has changed this.
    pub(super) fn took_back(&self, key: Key) {
        self.taken_back.insert(key, ());
    }

    /// Whether what a peer has of this is what it should be, as far as this node knows.
    pub(super) fn may_have(&self, key: &Key, now_ms: u64) -> bool {
        let purged_ago_ms = now_ms.saturating_sub(self.purged_ms.load(Ordering::Relaxed));
        purged_ago_ms >= BEHIND_MS && !self.taken_back.contains_key(key)
    }

    /// Whether a request is a peer's. `target` is the one that the peer wrote.
    pub(super) fn is_peer(&self, headers: &HeaderMap, host: &str, target: &str, now_ms: u64) -> bool {
        let Some((at, tag)) = headers.get(MARK).and_then(|mark| mark.to_str().ok()?.split_once(';')) else {
            return false;
        };
        let (Ok(at_ms), Ok(tag)) = (at.parse::<u64>(), hex::decode(tag)) else { return false };
        let fresh = u128::from(now_ms.abs_diff(at_ms)) <= MARK_AGE_MAX.as_millis();
        fresh && hmac::verify(&self.key, text(at_ms, host, target).as_bytes(), &tag).is_ok()
    }

    /// Asks the key's home, if that is another node. `upstream` is this node's own.
    pub(super) async fn ask(
        &self,
        asked: &Asked,
        upstream: &Upstream,
        mut request: Request<()>,
        interims: Option<Interims>,
        now_ms: u64,
    ) -> Option<Response<Paced>> {
        let node = self.choose(&asked.key, upstream.in_flight())?;
        // The home puts the path of the upstream before it.
        let target = asked.key.target();
        let host = asked.key.authority();
        let tag = hmac::sign(&self.key, text(now_ms, host, target).as_bytes());
        let mark = HeaderValue::from_str(&format!("{now_ms};{}", hex::encode(tag)));
        request.headers_mut().insert(MARK, mark.expect("digits and hexadecimals"));
        request.headers_mut().insert(HOST, HeaderValue::from_str(host).ok()?);
        match node.upstream.ask(target, request, None, interims, &AtomicU32::new(0)).await {
            Ok(response) if is_peers_trouble(&response) => {
                self.metrics.peer("overloaded");
                None
            }
            Ok(response) => {
                self.metrics.peer("answered");
                Some(response)
            }
            Err(why) => {
                let until = self.began.elapsed() + AWAY;
                node.away_until_ms.store(millis(until), Ordering::Relaxed);
                self.metrics.peer("failed");
                tracing::warn!(%why, "a peer did not answer; asking the upstream instead");
                None
            }
        }
    }

    /// The first node of the key's order that is there and has room; none if that is this one.
    fn choose(&self, key: &Key, own: usize) -> Option<&Node> {
        let load = |index: usize| match index.checked_sub(1) {
            None => own,
            Some(other) => self.others[other].upstream.in_flight(),
        };
        let all: usize = (0..self.nodes.len()).map(load).sum();
        // Keyed with the secret, so that nobody can choose keys that all have one home.
        let hash = keyed(&self.key, "key", key.authority(), key.target());
        for index in rendezvous::order(hash, &self.nodes) {
            let Some(other) = index.checked_sub(1) else {
                self.metrics.peer("own");
                return None;
            };
            let node = &self.others[other];
            if millis(self.began.elapsed()) < node.away_until_ms.load(Ordering::Relaxed) {
                self.metrics.peer("away");
            } else if !rendezvous::has_room(load(index), all, self.nodes.len()) {
                self.metrics.peer("full");
            } else {
                return Some(node);
            }
        }
        None
    }
}

fn text(at_ms: u64, host: &str, target: &str) -> String {
    format!("peer\n{at_ms}\n{host}\n{target}")
}

fn keyed(key: &hmac::Key, what: &str, authority: &str, target: &str) -> u64 {
    let tag = hmac::sign(key, format!("{what}\n{authority}\n{target}").as_bytes());
    u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("a tag has more than eight bytes"))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a response is the peer's own refusal, so that the upstream may well answer. What the peer says of the upstream
/// (502, 504) is taken for the answer: asking again would double the load of an upstream that fails.
fn is_peers_trouble(response: &Response<Paced>) -> bool {
    let own = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
    own && matches!(response.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::LOOP_DETECTED)
}
