//! The nodes of one place, which fetch each thing once for all of them.
//!
//! A node that misses asks the key's home node among them, which fills from the upstream and answers the others from what
//! it has. Owns who is asked: the home, by rendezvous hashing over the nodes that are there; the next in the key's order where
//! it is away or has too much to do; the upstream itself when it is this node's turn, or when there is no answer to be had. The
//! shield saves fetches and must never cost an answer. A question of a peer is never passed to another one: one hop, no loop.
//!
//! Nodes of a region know each other by their [`certificates`] and ask at a door of their own; proxies know each other by a
//! secret, in a field ([`MARK`]) of requests to the door for everybody. What they say to each other is [`words`]. What may have
//! changed since a peer stored it is known by [`obeyed`] (purges of the region) and [`taken_back`] (unsafe requests).

mod certificates;
mod member;
mod obeyed;
mod taken_back;
pub(super) mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use http::header::{AGE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use rustls::ServerConfig;
use souk_cache::{Asked, Key, Tag, status};
use souk_config::{LinkTls, PeersConfig, PlaceConfig, UpstreamConfig, UpstreamServer};
use tokio::task::JoinSet;

use self::certificates::Certificates;
pub(super) use self::member::Member;
use self::member::Said;
pub(crate) use self::obeyed::{Obeyed, PurgeMark};
use self::taken_back::TakenBack;
pub(crate) use self::words::{Decline, Question};
use super::client::Upstream;
use super::error::SetupError;
use super::pace::Paced;
use super::rendezvous;
use super::setup;
use super::telemetry::ProxyMetrics;
use crate::http::{Body, empty, now_ms};
use crate::interim::Interims;
use crate::rescue::Refusal;

/// Says that a request came from a proxy that knows the secret. Clients cannot say it: fields of this family are taken out of
/// what they send.
pub(super) const MARK: HeaderName = HeaderName::from_static("x-souk-peer");
/// How far a proxy's clock may be from ours. Nodes keep their clocks by NTP; a second-hand mark is worth nothing to anybody.
const MARK_AGE_MAX: Duration = Duration::from_secs(30);
/// A head that a peer is asked with. Its door takes 16 KiB of one, a shopper's may have 64: the rest is for our own fields.
const HEAD_BYTES_MAX: usize = 12 << 10;
/// The names of `:method`, `:scheme`, `:authority` and `:path`, the short values, and 32 for each.
const PSEUDO_BYTES: usize = 4 * 32 + 40;
/// A neighbour answers a SYN at once; two lost ones are a neighbour that is away.
const CONNECT_MAX: Duration = Duration::from_secs(1);
const SECRET_BYTES_MIN: usize = 32;
/// How long after a purge a proxy's peers are not asked: until then it is to be sent to every one of the place.
const BEHIND_MS: u64 = 60_000;
/// Whom a peer is asked for that is only to say whether it is there: nobody's shop.
const PROBED: &str = "peer";
/// Peers that are asked for one thing. Where the second has no room either, the place has none.
const ASKED_MAX: usize = 2;

/// A node's place, and how it is known there.
pub(crate) struct Place<'a> {
    pub(crate) config: &'a PlaceConfig,
    pub(crate) tls: &'a LinkTls,
    pub(crate) region: &'a str,
    pub(crate) pop: &'a str,
    pub(crate) node: u32,
    /// How far the purges of the region had come when the node was stopped.
    pub(crate) purged: PurgeMark,
}

/// See the module.
pub(crate) struct Shield {
    /// By which homes are drawn, so that nobody can choose keys that all have one; of proxies also what they know each other by.
    key: hmac::Key,
    known_by: KnownBy,
    /// What this node is called.
    own: String,
    /// The hashes of all nodes, this one first.
    nodes: Vec<u64>,
    others: Vec<Arc<Member>>,
    began: Instant,
    metrics: ProxyMetrics,
    taken_back: Mutex<TakenBack>,
    /// Questions of peers that are being answered.
    serving: AtomicUsize,
    /// Who asks the others whether they are there. They end with the shield.
    _keepers: JoinSet<()>,
}

enum KnownBy {
    /// With the time at which something was last purged here.
    Secret {
        purged_ms: AtomicU64,
    },
    Certificate(Obeyed),
}

/// A request's extension: it came through the door for peers, where everybody is one.
#[derive(Clone, Copy)]
pub(crate) struct OfPeer;

/// What a peer has answered, and what that was made from.
pub(super) struct Shared {
    pub(super) response: Response<Paced>,
    pub(super) tags: Vec<Tag>,
    pub(super) peer: Arc<Member>,
}

/// While it is held a peer's question is being answered.
pub(super) struct Serving<'a>(&'a AtomicUsize);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shield {
    /// Of proxies that share a secret. Needs a running tokio.
    pub(super) fn of_proxies(
        peers: &PeersConfig,
        config: &UpstreamConfig,
        metrics: ProxyMetrics,
    ) -> Result<Arc<Self>, SetupError> {
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
        let name = |server: &UpstreamServer| server.url.authority().to_owned();
        let member = |server: &UpstreamServer| {
            let config = of_member(server, config.first_byte_timeout, config.idle_timeout, config);
            // What is counted of peers is counted here.
            let upstream = Upstream::new(&config, ProxyMetrics::default())?;
            Ok((server.url.to_string(), Member::new(name(server), upstream, metrics.clone())))
        };
        let others = peers.others.iter().map(member).collect::<Result<_, SetupError>>()?;
        let known_by = KnownBy::Secret { purged_ms: AtomicU64::new(0) };
        let own = (peers.own.url.to_string(), name(&peers.own));
        Ok(Self::new(key, known_by, own, others, metrics))
    }

    /// Of a region's nodes, with what their door for each other is shut by. Needs a running tokio.
    pub(crate) fn of_place(
        place: &Place<'_>,
        first_byte_max: Duration,
        idle_max: Duration,
        metrics: ProxyMetrics,
    ) -> Result<(Arc<Self>, Arc<ServerConfig>), SetupError> {
        let certificates = Certificates::load(place.tls, place.region)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &certificates.seed());
        let name = |id: u32| format!("{}/{id}", place.pop);
        let mut others = Vec::new();
        for node in &place.config.nodes {
            let config = UpstreamConfig::of(&[format!("https://{}", node.addr)])
                .map_err(|error| SetupError::Peers(format!("{}: {error}", node.addr)))?;
            let [server] = config.servers.as_slice() else {
                return Err(SetupError::Peers(format!("{} is not one address", node.addr)));
            };
            let config = of_member(server, first_byte_max, idle_max, &config);
            let trust = certificates.client(node.id)?;
            let none = ProxyMetrics::default();
            let names = vec![setup::dialled_with(server, trust, &none)?];
            let upstream = Upstream::to(names, &config, none);
            others.push((node.id.to_string(), Member::new(name(node.id), upstream, metrics.clone())));
        }
        let ids: Vec<u32> = place.config.nodes.iter().map(|node| node.id).collect();
        let door = certificates.server(&ids)?;
        let known_by = KnownBy::Certificate(Obeyed::at(place.purged));
        let own = (place.node.to_string(), name(place.node));
        Ok((Self::new(key, known_by, own, others, metrics), door))
    }

    /// Each node with that by which it is drawn, and what it is called.
    fn new(
        key: hmac::Key,
        known_by: KnownBy,
        (own_id, own): (String, String),
        others: Vec<(String, Arc<Member>)>,
        metrics: ProxyMetrics,
    ) -> Arc<Self> {
        let ids = std::iter::once(&own_id).chain(others.iter().map(|(id, _)| id));
        let nodes = ids.map(|id| keyed(&key, "node", id, "")).collect();
        let others: Vec<_> = others.into_iter().map(|(_, member)| member).collect();
        let mut keepers = JoinSet::new();
        for member in &others {
            let member = Arc::clone(member);
            let key = matches!(known_by, KnownBy::Secret { .. }).then(|| key.clone());
            keepers.spawn(member.keep(move || {
                let mut request = Request::new(());
                let headers = request.headers_mut();
                headers.insert(HOST, HeaderValue::from_static(PROBED));
                if let Some(key) = &key {
                    sign(headers, key, PROBED, "/", now_ms());
                }
                request
            }));
        }
        Arc::new(Self {
            key,
            known_by,
            own,
            nodes,
            others,
            began: Instant::now(),
            metrics,
            taken_back: Mutex::default(),
            serving: AtomicUsize::new(0),
            _keepers: keepers,
        })
    }

    /// How far the purges of the region have come, where there is one.
    pub(crate) fn obeyed(&self) -> Option<&Obeyed> {
        match &self.known_by {
            KnownBy::Secret { .. } => None,
            KnownBy::Certificate(obeyed) => Some(obeyed),
        }
    }

    /// Something was purged at this proxy.
    pub(super) fn purged(&self, now_ms: u64) {
        if let KnownBy::Secret { purged_ms } = &self.known_by {
            purged_ms.store(now_ms, Ordering::Relaxed);
        }
    }

    /// Something was changed through this node, of which the others have not heard.
    pub(super) fn took_back(&self, names: impl IntoIterator<Item = Tag>) {
        let now_ms = self.elapsed_ms();
        let mut taken_back = self.taken_back.lock();
        names.into_iter().for_each(|name| taken_back.note(name, now_ms));
    }

    /// Whether a request is a peer's. `target` is the one that the peer wrote.
    pub(super) fn is_peer(&self, headers: &HeaderMap, host: &str, target: &str, now_ms: u64) -> bool {
        if !matches!(self.known_by, KnownBy::Secret { .. }) {
            return false;
        }
        let Some((at, tag)) = headers.get(MARK).and_then(|mark| mark.to_str().ok()?.split_once(';')) else {
            return false;
        };
        let (Ok(at_ms), Ok(tag)) = (at.parse::<u64>(), hex::decode(tag)) else { return false };
        let fresh = u128::from(now_ms.abs_diff(at_ms)) <= MARK_AGE_MAX.as_millis();
        fresh && hmac::verify(&self.key, text(at_ms, host, target).as_bytes(), &tag).is_ok()
    }

    /// Begins to answer a peer.
    pub(super) fn serve(&self) -> Serving<'_> {
        self.serving.fetch_add(1, Ordering::Relaxed);
        Serving(&self.serving)
    }

    /// Makes an answer to a peer this node's own word. In `Cache-Status` it goes by its name: the peer adds a member too.
    pub(super) fn sign(&self, response: &mut Response<Body>) {
        // Only the node's own problems have one: what came from an upstream never does.
        let refused = response.extensions().get::<Refusal>().copied();
        let headers = response.headers_mut();
        words::sign(headers, self.serving.load(Ordering::Relaxed));
        if let Some(refusal) = refused {
            words::refuse(headers, refusal.code());
        }
        status::name_own(headers, &self.own);
    }

    /// What the answer to a peer was made from.
    pub(super) fn tell_tags(&self, headers: &mut HeaderMap, tags: &[Tag]) {
        words::write_tags(headers, tags);
    }

    /// The answer to a peer that wants to know whether anybody is there.
    pub(crate) fn alive(&self) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        self.sign(&mut response);
        response
    }

    /// Sends a peer to the upstream.
    pub(crate) fn decline(&self, why: Decline) -> Response<Body> {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        why.write(response.headers_mut());
        self.sign(&mut response);
        self.metrics.peer_question(why.name());
        response
    }

    /// Asks the key's home, if that is another node. `own_load` is what this one is about, and `patience` how long the upstream
    /// may take at the home. The permit of the fill is taken before this is called.
    pub(super) async fn ask(
        &self,
        asked: &Asked,
        own_load: usize,
        patience: Duration,
        request: impl Fn() -> Request<()>,
        interims: Option<&Interims>,
        now_ms: u64,
    ) -> Option<Shared> {
        let key = &asked.key;
        if !self.may_ask(now_ms) {
            return None;
        }
        // A list above what the door takes is an error of the connection, and with it goes everybody else's question.
        if head_bytes(&request(), key) > HEAD_BYTES_MAX {
            self.metrics.peer("large_head");
            return None;
        }
        let asked_ms = self.elapsed_ms();
        let mut asked_of = 0;
        for index in self.order(key) {
            let Some(other) = index.checked_sub(1) else {
                self.metrics.peer("own");
                return None;
            };
            let member = &self.others[other];
            if !member.is_up() {
                self.metrics.peer("away");
                continue;
            }
            if !self.has_room(member.load(), own_load) {
                self.metrics.peer("full");
                continue;
            }
            if asked_of == ASKED_MAX {
                return None;
            }
            asked_of += 1;
            let mut request = request();
            self.introduce(request.headers_mut(), key, now_ms);
            // The home gives up first, and says of what.
            let patience = patience + CONNECT_MAX;
            let interims = interims.cloned();
            match member.ask(key.authority(), key.target(), request, interims, patience).await {
                Said::Answer(response) => return self.believe(key, *response, member, asked_ms),
                Said::Full => {}
                Said::Nothing => return None,
            }
        }
        None
    }

    /// Whether what peers have is what it should be, as far as a proxy knows. Nodes of a region say how far they are.
    fn may_ask(&self, now_ms: u64) -> bool {
        match &self.known_by {
            KnownBy::Secret { purged_ms } => {
                now_ms.saturating_sub(purged_ms.load(Ordering::Relaxed)) >= BEHIND_MS
            }
            KnownBy::Certificate(_) => true,
        }
    }

    /// Says who asks, and what for.
    fn introduce(&self, headers: &mut HeaderMap, key: &Key, now_ms: u64) {
        match &self.known_by {
            KnownBy::Secret { .. } => sign(headers, &self.key, key.authority(), key.target(), now_ms),
            KnownBy::Certificate(obeyed) => {
                Question::Page { site: key.site().to_owned(), heard: obeyed.heard() }.write(headers);
            }
        }
    }

    /// A peer's answer without what was between peers, if it is not older than what this node has seen change.
    fn believe(
        &self,
        key: &Key,
        mut response: Response<Paced>,
        peer: &Arc<Member>,
        asked_ms: u64,
    ) -> Option<Shared> {
        let headers = response.headers_mut();
        let Some(tags) = words::read_tags(headers) else {
            self.metrics.peer("wrong");
            return None;
        };
        words::remove_from(headers);
        let age = headers.get(AGE).and_then(|age| age.to_str().ok());
        // Without one it has just come.
        let age_s = age.map_or(Some(0), |age| age.parse().ok()).unwrap_or(u64::MAX);
        let made_from = tags.iter().copied().chain([Tag::of_key(key)]);
        if !self.taken_back.lock().holds(made_from, asked_ms, age_s) {
            self.metrics.peer("taken_back");
            return None;
        }
        self.metrics.peer("answered");
        Some(Shared { response, tags, peer: Arc::clone(peer) })
    }

    /// Every node, the home first. 0 is this one.
    fn order(&self, key: &Key) -> Vec<usize> {
        // Keyed, so that nobody can choose keys that all have one home.
        rendezvous::order(keyed(&self.key, "key", key.authority(), key.target()), &self.nodes)
    }

    fn has_room(&self, load: usize, own_load: usize) -> bool {
        let others: usize = self.others.iter().map(|member| member.load()).sum();
        rendezvous::has_room(load, others + own_load, self.nodes.len())
    }

    /// The nodes that a key's fill would be asked of, in this order, and how each is. The first that is well is its home.
    pub(super) fn homes(&self, key: &Key) -> Vec<(&str, &'static str)> {
        let home = |index: usize| match index.checked_sub(1).and_then(|other| self.others.get(other)) {
            None => (self.own.as_str(), "this node"),
            Some(member) if !member.is_up() => (member.name.as_str(), "away"),
            Some(member) => (member.name.as_str(), "up"),
        };
        self.order(key).into_iter().map(home).collect()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// A head as HTTP/2 counts it (RFC 9113, section 6.5.2).
fn head_bytes(request: &Request<()>, key: &Key) -> usize {
    let pseudo = key.authority().len() + key.target().len() + PSEUDO_BYTES;
    request.headers().iter().fold(pseudo, |sum, (name, value)| sum + name.as_str().len() + value.len() + 32)
}

/// How one peer is asked.
fn of_member(
    server: &UpstreamServer,
    first_byte_max: Duration,
    idle_max: Duration,
    like: &UpstreamConfig,
) -> UpstreamConfig {
    UpstreamConfig {
        servers: vec![server.clone()],
        connect_timeout: like.connect_timeout.min(CONNECT_MAX),
        health_check: None,
        hedge_after: None,
        // An idle connection that the peer was just closing.
        retries_max: 1,
        first_byte_timeout: first_byte_max + CONNECT_MAX,
        // The home gives up first: a body that pauses at the upstream pauses at the home.
        idle_timeout: idle_max + CONNECT_MAX,
        ..like.clone()
    }
}

/// A mark that is good for one target, and soon for none.
fn sign(headers: &mut HeaderMap, key: &hmac::Key, host: &str, target: &str, now_ms: u64) {
    let tag = hmac::sign(key, text(now_ms, host, target).as_bytes());
    let mark = HeaderValue::from_str(&format!("{now_ms};{}", hex::encode(tag)));
    headers.insert(MARK, mark.expect("digits and hexadecimals"));
}

fn text(at_ms: u64, host: &str, target: &str) -> String {
    format!("peer\n{at_ms}\n{host}\n{target}")
}

fn keyed(key: &hmac::Key, what: &str, authority: &str, target: &str) -> u64 {
    let tag = hmac::sign(key, format!("{what}\n{authority}\n{target}").as_bytes());
    u64::from_be_bytes(tag.as_ref()[..8].try_into().expect("a tag has more than eight bytes"))
}
