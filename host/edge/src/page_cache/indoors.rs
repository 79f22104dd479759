//! What an HTTP plugin may read of its own shop: `http://souk.internal/api/products` (searched too) and `/api/products/{sku}`.
//!
//! The same answers as a stranger gets of the shop's API: no shopper, no token, no cookie goes in, whoever the page is for.
//! They are made for this very page from the world of one moment, and what they read is noted as what the page is made
//! from. Reading only; carts and orders are nobody's here.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT_LANGUAGE, CACHE_CONTROL, HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use souk_sandbox::http::Indoors;

use super::Reads;
use super::catalogue::Degraded;
use crate::api::Ask;
use crate::http::{Body, Exchange};
use crate::listen::Peer;
use crate::node::Node;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::state::Site;

/// One page's view of its shop.
pub(crate) struct Room {
    pub(crate) node: Arc<Node>,
    /// At the moment when the page was begun.
    pub(crate) site: Arc<Site>,
    pub(crate) reads: Arc<Reads>,
    pub(crate) peer: Peer,
    pub(crate) now_ms: u64,
}

impl Indoors for Room {
    fn answer(&self, request: Request<()>) -> BoxFuture<'static, Response<Bytes>> {
        let Self { node, site, reads, peer, now_ms } = self;
        let (node, site, reads) = (Arc::clone(node), Arc::clone(site), Arc::clone(reads));
        let (peer, now_ms) = (*peer, *now_ms);
        Box::pin(async move {
            let (mut head, ()) = request.into_parts();
            let language = head.headers.remove(ACCEPT_LANGUAGE);
            head.headers = HeaderMap::new();
            head.headers.extend(language.map(|language| (ACCEPT_LANGUAGE, language)));
            let is_head = head.method == Method::HEAD;
            let mut exchange = Exchange::new(head, peer, now_ms);
            let answered = read(&node, &site, &mut exchange, Arc::clone(&reads)).await;
            let answered = answered.unwrap_or_else(Problem::into_response);
            if answered.status().is_server_error() {
                // Nothing that changes later takes back what was made of a refusal.
                reads.degrade();
            }
            let answer = whole(answered).await;
            answer.map(|body| if is_head { Bytes::new() } else { body })
        })
    }
}

async fn read(
    node: &Arc<Node>,
    site: &Arc<Site>,
    exchange: &mut Exchange,
    reads: Arc<Reads>,
) -> Result<Response<Body>, Problem> {
    let route = Route::find(&exchange.head.method, exchange.head.uri.path())?;
    if !matches!(route, Route::ListProducts | Route::ShowProduct(_)) {
        let why = "a plugin may read /api/products and /api/products/{sku} of its shop";
        return Err(Problem::new(Refusal::NoRoute, why));
    }
    let mut ask = Ask::new(node, site, exchange)?;
    ask.reads = Some(Arc::clone(&reads));
    let answer = ask.catalogue(&route).await?;
    if answer.extensions().get::<Degraded>().is_some() {
        // Nor is what is made of it.
        reads.degrade();
    }
    Ok(answer)
}

/// The API's bodies are in memory already.
async fn whole(response: Response<Body>) -> Response<Bytes> {
    let (mut head, body) = response.into_parts();
    head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head.extensions.clear();
    match body.collect().await {
        Ok(body) => Response::from_parts(head, body.to_bytes()),
        Err(error) => {
            tracing::error!(%error, "an answer in memory broke off");
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}
