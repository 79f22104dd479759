//! The operators' listener: is the node alive, is it ready and if not why, what does it hold.
//!
//! Not for shoppers: it has an address of its own and no secrets are needed to read it, so it must not be reachable
//! from outside. Shows cart numbers (for comparing node and region), never their contents.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use souk_link::Log;

use crate::admission::authority;
use crate::http::{self as answers, Body, Exchange, RequestBody, full, now_ms};
use crate::listen::{Answer, Peer};
use crate::mount;
use crate::node::Node;
use crate::page_cache::catalogue;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::state::{CartKey, Gate};
use crate::telemetry::Gauges;
use crate::upstream::explain::{self, Asking, Told};

/// Carts on a page of the list if nobody says otherwise.
const CARTS_DEFAULT: usize = 500;

/// The admin side of a node.
#[derive(Debug)]
pub struct Admin(pub Arc<Node>);

impl Answer for Admin {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            if request.uri().path() == "/explain" {
                return self.explain(request, peer).await.unwrap_or_else(Problem::into_response);
            }
            let uri = request.uri().clone();
            let method = request.method().clone();
            // Lists read the disk.
            let answered =
                tokio::task::spawn_blocking(move || self.decide(&method, uri.path(), uri.query())).await;
            answered.map_err(Problem::internal).flatten().unwrap_or_else(Problem::into_response)
        })
    }
}

impl Admin {
    fn decide(&self, method: &Method, path: &str, query: Option<&str>) -> Result<Response<Body>, Problem> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::method("GET, HEAD"));
        }
        match path {
            "/healthz" => answers::json(StatusCode::OK, &json!({"status": "alive"})),
            "/readyz" => self.ready(),
            "/metrics" => self.metrics(),
            "/v1/status" => answers::json(StatusCode::OK, &self.status()),
            "/v1/digests" => answers::json(StatusCode::OK, &self.digests()),
            "/v1/carts" => self.carts(query.unwrap_or_default()),
            "/upstreams" => answers::json(StatusCode::OK, &self.0.routes.report()),
            _ => Err(Problem::new(
                Refusal::NoRoute,
                "see /healthz, /readyz, /metrics, /v1/status, /v1/digests, /v1/carts, /upstreams, /explain",
            )),
        }
    }

    /// What the caches of this node would do with a request: that of upstreams, or that of its own pages and listings.
    async fn explain(&self, request: Request<RequestBody>, peer: Peer) -> Result<Response<Body>, Problem> {
        let node = &self.0;
        let asking = Asking::read(request).await?;
        let head = asking.head();
        let host = authority(head.version, &head.uri, &head.headers)?;
        let world = node.replica.world();
        let Some(site) = world.site_of_host(&host) else {
            return Err(Problem::new(Refusal::UnknownHost, format!("this node has no shop for {host}")));
        };
        let now_ms = now_ms();
        let told = if let Some((chain, path)) = mount::find(&node.chains, site, head).await? {
            let explained = mount::explain(node, site, head, &host, asking.client(peer).tls, now_ms);
            Told::own(explained, "plugin", mount::name(&chain, &path))
        } else if let Some(proxy) = node.routes.find(site, &host, head)? {
            explain::of_proxy(proxy, &asking, peer, now_ms).await
        } else {
            let route = Route::find(&head.method, head.uri.path())?;
            let exchange = Exchange::new(head.clone(), asking.client(peer), now_ms);
            let Some((explained, why)) = catalogue::explain(node, site, &exchange, &host, &route) else {
                let why = match route {
                    Route::Asset(_) => {
                        "a file of the site answers this, if one was pushed for that path; no cache is asked"
                    }
                    _ => "this is each shopper's own, and no cache is asked",
                };
                return Err(Problem::new(Refusal::NoRoute, why));
            };
            Told::own(explained, "api", why)
        };
        asking.answer(&told)
    }

    /// Ready means: a shopper who comes now can browse, change a cart and be quoted. Not that the region is there.
    fn ready(&self) -> Result<Response<Body>, Problem> {
        let node = &self.0;
        let mut missing = Vec::new();
        if node.state.epoch().is_none() {
            missing.push("not enrolled: no region has given this node an epoch yet".to_owned());
        }
        if !node.replica.is_synced() {
            missing.push("not synced: the shops have not been received completely yet".to_owned());
        }
        for pending in node.chains.pending(&node.replica).into_iter().filter(|p| p.running.is_none()) {
            let why = pending.why.map_or(String::new(), |why| format!(" ({why})"));
            missing.push(format!("plugins of site {} are not loaded{why}", pending.site));
        }
        match node.state.gate() {
            Gate::Open => {}
            Gate::Full => missing.push("the disk is full: writes are refused".to_owned()),
            Gate::Failed(why) => missing.push(format!("the disk fails: writes are refused ({why})")),
        }
        if node.draining.is_cancelled() {
            missing.push("draining".to_owned());
        }
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if missing.is_empty() { "ready" } else { "not ready" };
        answers::json(
            status,
            &json!({"status": word, "missing": missing, "link": node.uplink.status().connected}),
        )
    }

    fn metrics(&self) -> Result<Response<Body>, Problem> {
        let node = &self.0;
        node.pages.sample();
        node.routes.sample();
        // A file that is being opened again has none to show, and the page comes all the same.
        node.stock.sample(&node.state.leases().unwrap_or_default());
        let facts = node.state.facts();
        let stats = node.state.stats();
        let micros = stats.micros.load(Ordering::Relaxed);
        let loaded = node.chains.loaded();
        let gauges = Gauges {
            link_up: node.uplink.status().connected,
            outbox_operations: facts.unacked(),
            outbox_bytes: facts.outbox_bytes,
            unacked: facts.unacked(),
            kept_operations: facts.kept(),
            kept_bytes: facts.kept_bytes,
            commits: stats.commits.load(Ordering::Relaxed),
            changes: stats.changes.load(Ordering::Relaxed),
            commit_seconds: micros as f64 / 1e6,
            commit_failures: stats.failures.load(Ordering::Relaxed),
            carts: stats.carts.load(Ordering::Relaxed),
            cart_bytes: stats.cart_bytes.load(Ordering::Relaxed),
            carts_forgotten: stats.carts_forgotten.load(Ordering::Relaxed),
            state_renewals: stats.renewals.load(Ordering::Relaxed),
            state_renewal_seconds: stats.renewal_micros.load(Ordering::Relaxed) as f64 / 1e6,
            erasures_unfinished: facts.is_erasing(),
            writable: node.state.check_writable().is_ok(),
            cursors: node.replica.cursors().iter().map(|(log, version)| (log.name(), version)).collect(),
            chains_pending: node.chains.pending(&node.replica).len() as u64,
            plugins_loaded: loaded.plugins as u64,
            plugin_code_bytes: loaded.code_bytes as u64,
            access_lines_dropped: node.access.as_ref().map_or(0, |log| log.dropped()),
        };
        let mut response = Response::new(full(node.telemetry.page(&gauges).map_err(Problem::internal)?));
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    fn status(&self) -> Value {
        let node = &self.0;
        let link = node.uplink.status();
        let facts = node.state.facts();
        let world = node.replica.world();
        let logs = Log::ALL.map(|log| {
            (
                log.name().to_owned(),
                json!({"cursor": world.cursors.get(log), "region": link.region_heads.get(log)}),
            )
        });
        let running = node.chains.running();
        let sites = world.sites().map(|site| {
            json!({
                "site": site.id,
                "hosts": site.settings.as_ref().map(|s| &s.hosts),
                "products": site.products.len(),
                "release": site.releases.as_ref().map(|r| r.version),
                "chain": running.iter().find(|(id, _)| *id == site.id).map(|(_, version)| version),
            })
        });
        // A file that is being opened again has nothing to show.
        let leases = node.state.leases().unwrap_or_default();
        let stock = leases.iter().map(|lease| {
            json!({
                "site": lease.site, "sku": lease.sku, "grant": lease.grant, "units": lease.units, "used": lease.used,
                "left": lease.left, "ends_in_ms": lease.ends_in_ms,
            })
        });
        let pending = node.chains.pending(&node.replica);
        let pending = pending
            .iter()
            .map(|p| json!({"site": p.site, "wanted": p.wanted, "running": p.running, "why": p.why}));
        json!({
            "node": node.state.node(),
            "pop": node.pop,
            "software": env!("CARGO_PKG_VERSION"),
            "uptime_ms": u64::try_from(node.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "synced": node.replica.is_synced(),
            "link": {
                "connected": link.connected,
                "region": link.region,
                "address": link.address,
                "since_ms": u64::try_from(link.since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "rtt_ms": link.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                "acked": link.acked,
                "connects": link.connects,
                "redials": link.redials,
                "term": link.term,
                "fault": link.fault.as_ref().map(|fault| json!({"name": fault.name(), "detail": fault.to_string()})),
            },
            "outbox": {
                "epoch": facts.epoch.map(|e| e.0),
                "first": facts.first,
                "last": facts.last(),
                "acked": facts.acked,
                "unacked": facts.unacked(),
                "bytes": facts.outbox_bytes,
                "kept": facts.kept(),
                "kept_bytes": facts.kept_bytes,
                "writes": match node.state.gate() { Gate::Open => "accepted".to_owned(), Gate::Full => "disk_full".to_owned(), Gate::Failed(why) => why },
            },
            "stock": stock.collect::<Vec<_>>(),
            "logs": logs.into_iter().collect::<serde_json::Map<_, _>>(),
            "sites": sites.collect::<Vec<_>>(),
            "chains_pending": pending.collect::<Vec<_>>(),
        })
    }

    /// What the rows of each log come to, to be held beside the region's `/v1/digests`.
    fn digests(&self) -> Value {
        let node = &self.0;
        let cursors = node.replica.cursors();
        let logs = Log::ALL.into_iter().filter(|log| *log != Log::Purge).map(|log| {
            let digest = node.replica.digest(log);
            json!({
                "log": log.name(),
                "version": cursors.get(log),
                "rows": digest.rows(),
                "digest": hex::encode(digest.sum()),
                "compared": node.agreement.last(log),
            })
        });
        logs.collect()
    }

    /// `?after=<site>/<cart>&limit=`: the carts held here, with the digest that the region's copy must equal.
    fn carts(&self, query: &str) -> Result<Response<Body>, Problem> {
        let mut after = None;
        let mut limit = CARTS_DEFAULT;
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let bad = |rule: &str| Problem::new(Refusal::BadQuery, format!("{name} must be {rule}"));
            match &*name {
                "after" if value.is_empty() => {}
                "after" => {
                    let (site, cart) = value.split_once('/').ok_or_else(|| bad("<site>/<cart>"))?;
                    let site = site.parse().map_err(|_| bad("<site>/<cart>"))?;
                    after = Some(CartKey { site, cart: cart.parse().map_err(|_| bad("<site>/<cart>"))? });
                }
                "limit" => {
                    limit = value
                        .parse()
                        .ok()
                        .filter(|n| (1..=1_000).contains(n))
                        .ok_or_else(|| bad("1 to 1000"))?;
                }
                _ => return Err(Problem::new(Refusal::BadQuery, "only after and limit are known")),
            }
        }
        let page = self.0.state.list(after.as_ref(), limit)?;
        let next =
            page.last().filter(|_| page.len() == limit).map(|(key, _)| format!("{}/{}", key.site, key.cart));
        let carts = page.iter().map(|(key, held)| {
            json!({"site": key.site, "cart": key.cart, "digest": held.cart.digest(), "order": held.order})
        });
        answers::json(StatusCode::OK, &json!({"carts": carts.collect::<Vec<_>>(), "next": next}))
    }
}
