//! One answer, from head to foot: the story that every request of a shop goes through.
//!
//! Owns the order of the steps, the deadline over all of them, and what is added to each answer on its way out. The
//! steps themselves are elsewhere: [`crate::admission`] checks, [`crate::route`] reads the path, [`crate::api`] and
//! [`crate::assets`] know the resources, `routes` the merchants' own servers, [`crate::rescue`] makes answers of errors.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderName};
use http::{Request, Response};

use crate::access::client_left;
use crate::admission::admit;
use crate::api::Ask;
use crate::api::carts::Wish;
use crate::http::{Body, Exchange, RequestBody, empty, now_ms};
use crate::listen::{Answer, Peer};
use crate::mount;
use crate::node::Node;
use crate::page_cache::catalogue;
use crate::rescue::{Problem, Refusal};
use crate::route::{self, Route};
use crate::state::Site;
use crate::telemetry::AccessLine;
use crate::trace::Spans;
use crate::upstream::spent::Spent;
use crate::upstream::{Proxy, forwarded};

const NODE: HeaderName = HeaderName::from_static("x-souk-node");
const TIMING: HeaderName = HeaderName::from_static("server-timing");

impl Answer for Node {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            let now_ms = now_ms();
            let client = forwarded::client(&head.headers, peer, &self.trusted);
            let note = self.access.as_ref().map(|log| {
                let shown = route::shown(head.uri.path()).into_owned();
                log.note(&head, Some(shown), client.addr.ip(), now_ms)
            });
            let watched = self.watcher.begin(&mut head, now_ms, route::shown);
            let exchange = Exchange::new(head, client, now_ms);
            let mut story = Story {
                node: &self,
                exchange,
                connection: peer,
                host: None,
                route: "none",
                in_cache: None,
                at_upstream: None,
                is_answered: false,
            };
            let decided = AssertUnwindSafe(Box::pin(story.decide(body))).catch_unwind();
            let mut response = match tokio::time::timeout(self.limits.request_deadline, decided).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Ok(Err(problem))) => problem.into_response(),
                Ok(Err(_)) => {
                    // A panic ends one exchange, not the node. The hook has written where it was.
                    self.telemetry.panics.inc();
                    Problem::internal("a request ended in a panic").into_response()
                }
                Err(_) => {
                    let seconds = self.limits.request_deadline.as_secs();
                    Problem::new(Refusal::DeadlinePassed, format!("it was not done after {seconds} s"))
                        .into_response()
                }
            };
            self.watcher.end(watched, story.spans(), &mut response);
            let response = story.finish(response);
            match note {
                Some(note) => note.answered(response),
                None => response,
            }
        })
    }

    fn passes_interims(&self) -> bool {
        // Nothing else of a node has any to pass.
        !self.routes.is_empty()
    }
}

/// One exchange with what is learnt about it on the way, for the log. Dropped before its end, its shopper has left.
struct Story<'a> {
    node: &'a Arc<Node>,
    exchange: Exchange,
    /// The other end, which is not the client where a proxy stands between.
    connection: Peer,
    host: Option<String>,
    route: &'static str,
    /// What the cache of upstreams took, and then the upstream.
    in_cache: Option<Duration>,
    at_upstream: Option<Duration>,
    is_answered: bool,
}

impl Story<'_> {
    fn spans(&self) -> Spans {
        let (total, in_cache, at_upstream) =
            (self.exchange.started.elapsed(), self.in_cache, self.at_upstream);
        Spans { total, in_cache, at_upstream }
    }

    async fn decide(&mut self, body: RequestBody) -> Result<Response<Body>, Problem> {
        let node = self.node;
        let head = &self.exchange.head;
        let admitted = admit(head);
        self.host = admitted.as_ref().ok().cloned();
        // Before it is refused for what it is: what is no request counts, too.
        node.rates.check_address(self.exchange.peer.addr.ip())?;
        let host = &admitted?;
        let world = node.replica.world();
        let Some(site) = world.site_of_host(host) else {
            return Err(if node.replica.is_synced() {
                Problem::new(Refusal::UnknownHost, format!("this node has no shop for {host}"))
            } else {
                Problem::new(Refusal::NotSynced, "the node waits for its region's first word")
            });
        };
        if !node.replica.is_synced() {
            // Settings may be here and rules, prices or files not: half a shop sells at wrong prices.
            return Err(Problem::new(Refusal::NotSynced, "the node has received a part of its shops only"));
        }
        node.rates.check_site(site.id.as_str())?;
        if let Some(token) = head.headers.get(AUTHORIZATION) {
            node.rates.check_token(token.as_bytes())?;
        }
        if let Some(mount) = mount::find(&node.chains, site, head).await? {
            self.route = "http_plugin";
            return mount::answer(node, site, mount, &self.exchange, host, body).await;
        }
        if let Some(proxy) = node.routes.find(site, host, head)? {
            self.route = "upstream";
            return Ok(self.fetch(proxy, body).await);
        }
        let route = Route::find(&head.method, head.uri.path())?;
        self.route = route.name();
        match route {
            Route::Asset(path) => node.assets.answer(site, &path, head, self.connection.tls).await,
            Route::Checkout => self.check_out(site, body).await,
            route @ (Route::ListProducts | Route::ShowProduct(_)) => {
                catalogue::answer(node, site, &mut self.exchange, host, &route).await
            }
            route => answer(Ask::new(node, site, &mut self.exchange)?, route, body).await,
        }
    }

    /// The merchant's own server answers, or what is kept of it.
    async fn fetch(&mut self, proxy: &Proxy, body: RequestBody) -> Response<Body> {
        let Exchange { head, now_ms, .. } = &mut self.exchange;
        let mut request = Request::new(body);
        request.method_mut().clone_from(&head.method);
        request.uri_mut().clone_from(&head.uri);
        *request.version_mut() = head.version;
        // Nobody reads them after this.
        *request.headers_mut() = std::mem::take(&mut head.headers);
        *request.extensions_mut() = std::mem::take(&mut head.extensions);
        let mut spent = Spent::begin(request.headers());
        let response = proxy.serve(request, self.connection, *now_ms, &mut spent).await;
        for (name, took) in spent.parts() {
            self.exchange.note_spent(name, took);
        }
        let Spans { in_cache, at_upstream, .. } = spent.spans();
        (self.in_cache, self.at_upstream) = (in_cache, at_upstream);
        response
    }

    /// In a task of its own: a shopper who goes away must not release the cart's lock in the middle of an order.
    async fn check_out(&mut self, site: &Arc<Site>, body: RequestBody) -> Result<Response<Body>, Problem> {
        let (node, site) = (self.node.clone(), site.clone());
        let mut exchange = self.exchange.fork();
        let task = tokio::spawn(async move {
            let answered = match Ask::new(&node, &site, &mut exchange) {
                Ok(mut ask) => ask.check_out(body).await,
                Err(problem) => Err(problem),
            };
            (exchange, answered)
        });
        let (exchange, answered) = task.await.map_err(Problem::internal)?;
        self.exchange.join(exchange);
        answered
    }

    fn finish(mut self, mut response: Response<Body>) -> Response<Body> {
        self.is_answered = true;
        let headers = response.headers_mut();
        headers.insert(NODE, self.node.tag.clone());
        if let Some(timing) = self.exchange.server_timing() {
            // Beside what an upstream or a plugin says of its own.
            headers.append(TIMING, timing);
        }
        self.tell(&response);
        response
    }

    /// Counts the answer and writes its line of the log.
    fn tell(&self, response: &Response<Body>) {
        let Exchange { head, peer, started, .. } = &self.exchange;
        let line = AccessLine {
            method: &head.method,
            route: self.route,
            host: self.host.as_deref(),
            version: head.version,
            peer: peer.addr.ip(),
            spent: started.elapsed(),
        };
        self.node.telemetry.answered(&line, response);
    }
}

impl Drop for Story<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let mut nobodys = Response::new(empty());
            *nobodys.status_mut() = client_left();
            self.tell(&nobodys);
        }
    }
}

async fn answer(mut ask: Ask<'_>, route: Route, body: RequestBody) -> Result<Response<Body>, Problem> {
    match route {
        Route::CreateCart => ask.create_cart(body).await,
        Route::ShowCart(cart) => ask.show_cart(cart).await,
        Route::EmptyCart(cart) => ask.change(cart, Wish::Empty).await,
        Route::ChangeCart(cart) => ask.set_country(cart, body).await,
        Route::AddLine(cart) => ask.add_line(cart, body).await,
        Route::SetLine(cart, line) => ask.set_line(cart, line, body).await,
        Route::RemoveLine(cart, line) => ask.change(cart, Wish::Remove { line }).await,
        Route::PutCoupon(cart, coupon) => ask.change(cart, Wish::PutCoupon(coupon)).await,
        Route::RemoveCoupon(cart, coupon) => ask.change(cart, Wish::RemoveCoupon(coupon)).await,
        Route::ShowQuote(cart) => ask.show_quote(cart).await,
        Route::ShowReservation(cart) => ask.show_reservation(cart).await,
        Route::Reserve(cart) => ask.reserve(cart).await,
        Route::GiveUpReservation(cart) => ask.give_up_reservation(cart).await,
        Route::ShowOrder(order) => ask.show_order(order).await,
        Route::ListProducts | Route::ShowProduct(_) | Route::Checkout | Route::Asset(_) => {
            Err(Problem::internal("a route went to the wrong place"))
        }
    }
}
