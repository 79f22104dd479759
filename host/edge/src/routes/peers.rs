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
use crate::http::{Body, RequestBody, authority, now_ms};
use crate::listen::{Answer, ListenLimits, Peer};
use crate::rescue::Problem;
use crate::route::Route;
use crate::upstream::spent::Spent;
use crate::upstream::{Decline, OfPeer, Proxy, Question, Shield};

/// Connections of peers: 32 nodes, each with as many as it opens when all of them are full.
const CONNECTIONS_MAX: usize = 32 * 16;
/// Peers keep connections for a minute, and ask each second whether anybody is there.
const IDLE_MAX: Duration = Duration::from_secs(75);

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
        ListenLimits {
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: CONNECTIONS_MAX,
            idle_deadline: IDLE_MAX,
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
