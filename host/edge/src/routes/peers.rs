//! The door for the other nodes of this place: each of their questions is for one site's upstream, and answered by its cache.
//!
//! Whoever is here has shown the certificate of a node that the settings name, so what it says of itself is believed: for whom it
//! asks, and what it has heard that must be forgotten. A question is for the site that it names, on a route of that site;
//! which host it was asked under decides nothing else. What is not a question gets no answer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use rustls::ServerConfig;
use souk_commerce::id::SiteId;

use super::{Inner, Routes};
use crate::admission::authority;
use crate::http::{Body, RequestBody, now_ms};
use crate::http2::STREAMS_MAX;
use crate::listen::{Answer, DOWNLOAD_WAIT_MAX, ListenLimits, Peer};
use crate::rescue::Problem;
use crate::route::Route;
use crate::upstream::spent::Spent;
use crate::upstream::{Decline, OfPeer, Proxy, Question, STREAM_WINDOW_BYTES, Shield};
use crate::wire::{BYTES_PER_S_MIN, Forbearance};

/// Connections of peers: 32 nodes, each with as many as it opens when all of them are full.
const CONNECTIONS_MAX: usize = 32 * 16;
/// Peers keep connections for a minute, and ask each second whether anybody is there.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// How long a peer may give a stream no window. Behind it is a shopper whose own clock runs at the peer: he may rest for
/// [`DOWNLOAD_WAIT_MAX`] there, and whoever reads as slowly as is allowed has the peer give back a window of its streams once in
/// eighteen minutes. So the peer always ends such a stream first, and the connection, with every other shopper's answer on it,
/// is never ended for one of them. A peer that hangs answers no ping, and that ends it.
const STALLED_MAX: Duration =
    DOWNLOAD_WAIT_MAX.saturating_add(Duration::from_secs(STREAM_WINDOW_BYTES as u64 / BYTES_PER_S_MIN));
/// Streams that may be cancelled before they are looked at: all that a peer has open on a connection, because a node that had no
/// turn for a second is given up by all who wait for it; and as many that were opened in their place by then.
const PENDING_RESETS_MAX: usize = 2 * STREAMS_MAX as usize;

/// See the module.
pub(crate) struct PeerDoor {
    routes: Arc<Inner>,
    shield: Arc<Shield>,
}

impl Routes {
    /// What answers the other nodes, and what it is shut by, if there are others.
    pub(crate) fn peer_door(&self) -> Option<(Arc<PeerDoor>, Arc<ServerConfig>)> {
        let routes = self.0.as_ref()?;
        let (shield, tls) = routes.shield.as_ref()?;
        let door = PeerDoor { routes: Arc::clone(routes), shield: Arc::clone(shield) };
        Some((Arc::new(door), Arc::clone(tls)))
    }
}

impl PeerDoor {
    pub(crate) fn limits(shoppers: ListenLimits) -> ListenLimits {
        // A peer cancels what its shoppers have left. Nodes of a place are alike: it has no more requests in flight than may be
        // here, and may lose them all at once, each second. A cancellation costs less than the request that it takes back.
        let resets_max = u32::try_from(shoppers.requests_in_flight_max).unwrap_or(u32::MAX);
        ListenLimits {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: CONNECTIONS_MAX,
            idle_deadline: IDLE_MAX,
            http2: Forbearance {
                stalled_max: STALLED_MAX,
                resets_max,
                resets_per_s: resets_max,
                pending_resets_max: PENDING_RESETS_MAX,
            },
            ..shoppers
        }
    }

    async fn decide(&self, request: Request<RequestBody>, peer: Peer) -> Result<Response<Body>, Problem> {
        let (mut head, body) = request.into_parts();
        if head.method != Method::GET {
            return Err(Problem::method("GET"));
        }
        let (site, heard) = match Question::read(&head.headers) {
            Some(Question::Alive) => return Ok(self.shield.alive()),
            Some(Question::Page { site, heard }) => (site, heard),
            None => return Ok(self.shield.decline(Decline::Elsewhere)),
        };
        // Before anything is looked up: what is found then holds against all of it.
        if !self.shield.obeyed().is_some_and(|obeyed| obeyed.has_obeyed(heard)) {
            return Ok(self.shield.decline(Decline::Behind));
        }
        let host = authority(head.version, &head.uri, &head.headers)?;
        let Some(path) = Route::beside_the_api(head.uri.path())? else {
            return Ok(self.shield.decline(Decline::Elsewhere));
        };
        let Some(proxy) = self.proxy_of(&site, &host, &path) else {
            return Ok(self.shield.decline(Decline::Elsewhere));
        };
        head.extensions.insert(OfPeer);
        let mut spent = Spent::begin(&head.headers);
        Ok(proxy.serve(Request::from_parts(head, body), peer, now_ms(), &mut spent).await)
    }

    fn proxy_of(&self, site: &str, host: &str, path: &str) -> Option<&Proxy> {
        self.routes.way(&site.parse::<SiteId>().ok()?, host, path)
    }
}

impl Answer for PeerDoor {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { self.decide(request, peer).await.unwrap_or_else(Problem::into_response) })
    }
}
