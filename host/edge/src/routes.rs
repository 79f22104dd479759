//! Merchants' own servers on routes of their sites: which of them a request is for, and one cache for all of them.
//!
//! A site's API, its plugins and its files go first; what is left of a route goes to its upstream. Owns that order's last
//! step, and what a purge from the region does here. How an upstream is asked is [`crate::upstream`]'s; called by
//! [`crate::serve`], the link's store and the operators' listener.

mod debt;
mod peers;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Uri, request};
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use serde_json::{Value, json};
use souk_cache::{Purge, Scope};
use souk_commerce::feed::PurgeChange;
use souk_commerce::id::SiteId;
use souk_commerce::purge::Forget;
use souk_config::proxy::{DiskConfig, SLICE_FROM_BYTES_DEFAULT};
use souk_config::{CacheShares, UpstreamConfig, UpstreamRoute};

use self::debt::Debt;
pub(crate) use self::peers::PeerDoor;
use crate::assets;
use crate::chain::is_under;
use crate::page_cache::scopes;
use crate::per_site::PerSite;
use crate::rescue::Problem;
use crate::route::Route;
use crate::running::RunError;
use crate::state::Site;
use crate::trace::Watcher;
use crate::upstream::{Kept, Place, Proxy, ProxyMetrics, PurgeMark, Room, Shield};

/// Where upstreams' responses are kept, in the node's data folder.
const FOLDER: &str = "responses";
/// How long the node waits for the disk to have forgotten before it writes down that it may not have: a disk that syncs takes
/// some milliseconds, one that is overwhelmed a second.
const DURABLE_WITHIN: Duration = Duration::from_secs(5);

/// See the module. Without routes there is no cache either. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Routes(Option<Arc<Inner>>);

struct Inner {
    kept: Kept,
    /// None where there is no disk.
    debt: Option<Debt>,
    /// The other nodes of the place, if there are any, and what the door for them is shut by.
    shield: Option<(Arc<Shield>, Arc<ServerConfig>)>,
    /// Of each site: those of one host name before those of all, and then the longest path first.
    by_site: HashMap<SiteId, Vec<Way>>,
}

/// One route.
struct Way {
    host: Option<String>,
    path: String,
    proxy: Proxy,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.0.as_ref().map_or(0, |inner| inner.by_site.values().map(Vec::len).sum::<usize>());
        f.debug_struct("Routes").field("routes", &routes).finish_non_exhaustive()
    }
}

impl Routes {
    /// Needs a running tokio, and that nobody else has the node's data folder.
    pub(crate) fn open(
        config: &[UpstreamRoute],
        shares: &CacheShares,
        data_dir: &Path,
        own_id: String,
        watcher: Watcher,
        per_site: PerSite,
        place: Option<&Place<'_>>,
    ) -> Result<Self, RunError> {
        if config.is_empty() {
            return Ok(Self::default());
        }
        let dir = data_dir.join(FOLDER);
        let settled = Debt::settle(&dir).inspect_err(|error| {
            tracing::error!(
                folder = %dir.display(), %error,
                "responses are kept in memory alone: what was purged is still on the disk and cannot be removed. Delete the folder, and restart"
            );
        });
        let debt = settled.ok();
        let disk = debt.as_ref().map(|_| DiskConfig { dir, bytes_max: shares.upstreams_disk_bytes_max });
        let room = Room {
            memory_bytes_max: shares.upstreams_memory_bytes_max,
            site_bytes_max: shares.site_memory_bytes_max,
            object_bytes_max: shares.object_bytes_max,
            slice_from_bytes: SLICE_FROM_BYTES_DEFAULT,
            disk,
            compress: config.iter().any(|route| route.upstream.compress),
        };
        let refused = |why: String| RunError::Upstreams(why);
        let kept = Kept::open(&room, ProxyMetrics::default(), own_id, watcher, Some(per_site));
        let kept = kept.map_err(|error| refused(error.to_string()))?;
        let longest = |of: fn(&UpstreamConfig) -> Duration| {
            config.iter().map(|route| of(&route.upstream)).max().unwrap_or_default()
        };
        let (first_byte_max, idle_max) = (longest(|u| u.first_byte_timeout), longest(|u| u.idle_timeout));
        let shield = place
            .map(|place| Shield::of_place(place, first_byte_max, idle_max, kept.metrics().clone()))
            .transpose()
            .map_err(|error| refused(error.to_string()))?;
        let mut by_site = HashMap::<SiteId, Vec<Way>>::new();
        for UpstreamRoute { site, host, path, upstream } in config {
            let of = |why: String| refused(format!("{site}{path}: {why}"));
            let id = site.parse::<SiteId>().map_err(|error| of(error.to_string()))?;
            let shield = shield.as_ref().map(|(shield, _)| Arc::clone(shield));
            let proxy = Proxy::on(kept.clone(), id.as_str(), upstream.clone(), shield);
            let proxy = proxy.map_err(|error| of(error.to_string()))?;
            by_site.entry(id).or_default().push(Way { host: host.clone(), path: path.clone(), proxy });
        }
        for ways in by_site.values_mut() {
            ways.sort_by_key(|way| (way.host.is_none(), Reverse(way.path.len())));
        }
        Ok(Self(Some(Arc::new(Inner { kept, debt, shield, by_site }))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The upstream that a request is for. `host` is the one that it names, checked. None where the site's own parts answer:
    /// what its plugins do not is asked before.
    ///
    /// The path is read as any path of the shop, so that no spelling passes by the API or leaves its route.
    pub(crate) fn find(
        &self,
        site: &Site,
        host: &str,
        head: &request::Parts,
    ) -> Result<Option<&Proxy>, Problem> {
        let Some(inner) = self.0.as_ref().filter(|inner| inner.by_site.contains_key(&site.id)) else {
            return Ok(None);
        };
        let Some(path) = Route::beside_the_api(head.uri.path())? else { return Ok(None) };
        if matches!(head.method, Method::GET | Method::HEAD) && assets::has(site, &path) {
            return Ok(None);
        }
        Ok(inner.way(&site.id, host, &path))
    }

    /// Takes back what purges of the region take, in one step. None: one that nobody can read, and so means everything.
    ///
    /// Answers whether no restart brings any of it back, by the disk's word or because a start will empty the folder; if not,
    /// the purge holds for now and is to be done again. The purges come after version `from` of the log (none: they are all of
    /// it) and end at `to`.
    pub(crate) async fn forget(
        &self,
        changes: &[Option<PurgeChange>],
        from: Option<u64>,
        to: PurgeMark,
    ) -> bool {
        let Some(inner) = &self.0 else { return true };
        let purge = |change: &Option<PurgeChange>| match change {
            None => vec![Purge { scope: Scope::Everything, soft: false }],
            Some(PurgeChange { site, forget, .. }) => {
                let soft = forget.soft;
                let forget = inner.known_as(site, forget);
                scopes(site.as_str(), &forget).into_iter().map(|(_, scope)| Purge { scope, soft }).collect()
            }
        };
        let purges: Vec<Purge> = changes.iter().flat_map(purge).collect();
        // Heard before, obeyed after: in between this node asks no peer for more than it has to, and answers none.
        let obeyed = inner.shield.as_ref().and_then(|(shield, _)| shield.obeyed());
        if let Some(obeyed) = obeyed {
            obeyed.hear(to);
        }
        if !purges.is_empty() {
            inner.kept.purge(&purges);
        }
        if let Some(obeyed) = obeyed {
            obeyed.obey(from, to);
        }
        if purges.is_empty() {
            return true;
        }
        let is_durable = tokio::time::timeout(DURABLE_WITHIN, inner.kept.is_durable()).await.unwrap_or(false);
        match &inner.debt {
            Some(debt) if is_durable => debt.clear().await,
            Some(debt) => return debt.note().await,
            None => {}
        }
        is_durable
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        if let Some(inner) = &self.0 {
            inner.kept.register(registry);
        }
    }

    /// Brings the gauges up to date.
    pub(crate) fn sample(&self) {
        if let Some(inner) = &self.0 {
            let proxies = inner.by_site.values().flatten();
            inner.kept.sample(proxies.map(|way| way.proxy.upstream()));
        }
    }

    /// The servers of every route, for operators.
    pub(crate) fn report(&self) -> Value {
        let Some(inner) = &self.0 else { return json!({"routes": []}) };
        let mut all: Vec<_> = inner.by_site.iter().collect();
        all.sort_by_key(|(site, _)| *site);
        let routes = all.into_iter().flat_map(|(site, ways)| {
            ways.iter().map(move |way| {
                json!({"site": site, "host": way.host, "path": way.path, "upstream": way.proxy.upstreams()})
            })
        });
        json!({"routes": routes.collect::<Vec<_>>()})
    }

    /// Resolves when what an earlier process left on the disk is at hand, or cannot be for now.
    pub(crate) async fn ready(&self) {
        if let Some(inner) = &self.0 {
            inner.kept.ready().await;
        }
    }

    /// Writes what waits for the disk, and lets go of its folder.
    pub(crate) async fn close(&self) {
        if let Some(inner) = &self.0 {
            inner.kept.close().await;
        }
    }
}

impl Inner {
    /// A site's purge with what requests for its URLs would be keyed as, by the rules of each route that they may be on.
    fn known_as(&self, site: &SiteId, forget: &Forget) -> Forget {
        forget.known_as(|address, target| {
            let settled = |proxy: &Proxy| format!("{address}{}", proxy.config().query.settle(target));
            self.ways(site, address, target).into_iter().map(settled).collect()
        })
    }

    /// The upstreams that requests for a target may be for: of an address one at most, of a path one for each host that has
    /// routes of its own, and one for all others.
    fn ways(&self, site: &SiteId, address: &str, target: &str) -> Vec<&Proxy> {
        let path = target.split('?').next().unwrap_or(target);
        // What leads to no path is no request's.
        let Ok(Some(path)) = Route::beside_the_api(path) else { return Vec::new() };
        let Ok(named) = address.parse::<Uri>() else {
            let hosts = self.by_site.get(site).into_iter().flatten().map(|way| way.host.as_deref());
            let hosts: BTreeSet<&str> = hosts.map(Option::unwrap_or_default).chain([""]).collect();
            return hosts.into_iter().filter_map(|host| self.way(site, host, &path)).collect();
        };
        let host = named.host().unwrap_or_default().to_ascii_lowercase();
        self.way(site, &host, &path).into_iter().collect()
    }

    /// The upstream of a site on a path, which is decoded.
    fn way(&self, site: &SiteId, host: &str, path: &str) -> Option<&Proxy> {
        let is_its =
            |way: &&Way| way.host.as_deref().is_none_or(|own| own == host) && is_under(path, &way.path);
        self.by_site.get(site)?.iter().find(is_its).map(|way| &way.proxy)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Request;
    use http_body_util::BodyExt as _;
    use souk_commerce::feed::{Asset, AssetChange};
    use souk_commerce::id::Digest;
    use souk_config::{EdgeLimits, QueryRules, UpstreamConfig};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::http::{RequestBody, now_ms};
    use crate::listen::Peer;
    use crate::state::world::{Row, World};

    /// Routes of `shop`: (host, path), each to a server of that name.
    fn routes(dir: &Path, of: &[(Option<&str>, &str)]) -> Routes {
        let route = |(n, (host, path)): (usize, &(Option<&str>, &str))| UpstreamRoute {
            site: "shop".to_owned(),
            host: host.map(ToOwned::to_owned),
            path: (*path).to_owned(),
            upstream: UpstreamConfig::of(&[format!("http://127.0.0.1:{}", n + 1)]).expect("an upstream"),
        };
        let config: Vec<_> = of.iter().enumerate().map(route).collect();
        let shares = CacheShares::of(&EdgeLimits::default(), &config);
        let own_id = "souk-test".to_owned();
        Routes::open(&config, &shares, dir, own_id, Watcher::default(), PerSite::default(), None)
            .expect("they open")
    }

    /// A shop with one file.
    fn shop() -> Arc<Site> {
        let id: SiteId = "shop".parse().expect("a site");
        let mut world = World::default();
        let asset = Asset {
            digest: Digest::of(b"x"),
            bytes: 1,
            content_type: "text/plain".to_owned(),
            former: Vec::new(),
        };
        let change = AssetChange { site: id.clone(), path: "/robots.txt".to_owned(), asset: Some(asset) };
        world.apply(Row::Asset(change), 1);
        Arc::clone(world.site(&id).expect("the site"))
    }

    /// The port of the upstream that a request is for, which is its number.
    fn asked(routes: &Routes, method: &str, url: &str) -> Result<Option<u64>, &'static str> {
        let (host, path) = url.split_once('/').expect("a host and a path");
        let request = Request::builder().method(method).uri(format!("/{path}")).body(()).expect("a request");
        let found = routes.find(&shop(), host, &request.into_parts().0);
        let server = |proxy: &Proxy| {
            let report = proxy.upstreams();
            let server = report["servers"][0]["server"].as_str().expect("a name").to_owned();
            server.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
        };
        found.map(|proxy| proxy.map(server)).map_err(|problem| problem.refusal.code())
    }

    #[tokio::test]
    async fn the_most_particular_route_is_asked_and_what_the_shop_has_itself_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let routes = routes(
            dir.path(),
            &[(None, "/"), (None, "/blog"), (Some("b.example"), "/"), (None, "/blog/new")],
        );
        for (method, url, port) in [
            ("GET", "a.example/", Some(1)),
            ("GET", "a.example/tea?x=1", Some(1)),
            ("GET", "a.example/blog", Some(2)),
            ("POST", "a.example/blog/x", Some(2)),
            ("GET", "a.example/blogger", Some(1)),
            ("GET", "a.example/%62log/x", Some(2)),
            ("GET", "a.example/blog/new/x", Some(4)),
            // A host of its own is a place of its own.
            ("GET", "b.example/blog/new", Some(3)),
            ("GET", "a.example/robots.txt", None),
            ("GET", "a.example/%72obots.txt", None),
            // Nobody can post to a file.
            ("POST", "a.example/robots.txt", Some(1)),
            ("GET", "a.example/api/products", None),
            ("GET", "a.example/%61pi/products", None),
            ("POST", "a.example/api/carts", None),
            ("OPTIONS", "a.example/tea", Some(1)),
        ] {
            assert_eq!(asked(&routes, method, url), Ok(port), "{method} {url}");
        }
        for url in [
            "a.example/blog/../x",
            "a.example/blog/%2e%2e/x",
            "a.example/blog/..%2fx",
            "a.example/blog/..;a/x",
        ] {
            assert_eq!(asked(&routes, "GET", url), Err("bad_path"), "{url} leaves its route");
        }
        routes.close().await;
    }

    /// An upstream whose pages bear one tag, and how often it was asked.
    async fn upstream() -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                drop(stream.read(&mut head).await);
                counted.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 200 OK\r\ncache-control: max-age=3600\r\nsurrogate-key: red\r\n\
                               connection: close\r\ncontent-length: 4\r\n\r\npage";
                drop(stream.write_all(answer).await);
            }
        });
        (at, asked)
    }

    async fn get(routes: &Routes, path: &str) {
        let request = Request::get(path).header("host", "a.example").body(RequestBody::empty());
        let (head, body) = request.expect("a request").into_parts();
        let proxy = routes.find(&shop(), "a.example", &head).expect("a path").expect("an upstream").clone();
        let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), tls: false };
        let response = proxy.handle(Request::from_parts(head, body), peer, now_ms()).await;
        assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "page", "{path}");
    }

    async fn forget(routes: &Routes, purge: &[Option<PurgeChange>]) -> bool {
        routes.forget(purge, None, PurgeMark::default()).await
    }

    #[tokio::test]
    async fn a_purged_url_is_what_a_request_for_it_is_on_its_route() {
        let dir = tempfile::tempdir().expect("a directory");
        let (server, asked) = upstream().await;
        let route = |host: Option<&str>, path: &str, dropped: &[&str], sort: bool| {
            let mut upstream = UpstreamConfig::of(std::slice::from_ref(&server)).expect("an upstream");
            let dropped: Vec<_> = dropped.iter().map(|name| (*name).to_owned()).collect();
            upstream.query = QueryRules::new(&dropped, sort).expect("rules");
            let (site, host, path) = ("shop".to_owned(), host.map(ToOwned::to_owned), path.to_owned());
            UpstreamRoute { site, host, path, upstream }
        };
        let config = [
            route(None, "/", &["utm_*"], true),
            route(None, "/plain", &[], false),
            route(Some("a.example"), "/blog", &["page"], false),
        ];
        let shares = CacheShares::of(&EdgeLimits::default(), &config);
        let own_id = "souk-test".to_owned();
        let routes =
            Routes::open(&config, &shares, dir.path(), own_id, Watcher::default(), PerSite::default(), None)
                .expect("they open");
        routes.ready().await;
        for (url, stored, is_gone) in [
            ("/tea?size=2&utm_source=mail&a=1", "/tea?a=1&size=2", true),
            ("https://a.example/tea?size=2&%75tm_x=1&a=1", "/tea?a=1&size=2", true),
            ("http://b.example/tea?size=2&a=1", "/tea?a=1&size=2", false),
            // Where a route has no rules, it is what is written and nothing else.
            ("/plain?b=1&a=1", "/plain?b=1&a=1", true),
            ("/plain?a=1&b=1", "/plain?b=1&a=1", false),
            ("/plain?b=1&a=1&utm_x=1", "/plain?b=1&a=1", false),
            // The rules of the host's own route.
            ("/blog/x?page=2", "/blog/x", true),
            ("https://A.example:443/blog/x?page=2&y=1", "/blog/x?y=1", true),
        ] {
            get(&routes, stored).await;
            get(&routes, stored).await;
            let before = asked.load(Ordering::SeqCst);
            let urls = vec![url.to_owned()];
            let change =
                PurgeChange::of("shop".parse().expect("a site"), Forget { urls, ..Forget::default() });
            assert!(forget(&routes, &[Some(change)]).await);
            get(&routes, stored).await;
            assert_eq!(asked.load(Ordering::SeqCst) - before, usize::from(is_gone), "{url}");
        }
        routes.close().await;
    }

    #[tokio::test]
    async fn a_disk_that_does_not_take_a_purge_is_emptied_by_the_next_start_and_holds_up_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (folder, aside) = (dir.path().join(FOLDER), dir.path().join("aside"));
        let (server, asked) = upstream().await;
        let route = UpstreamRoute {
            site: "shop".to_owned(),
            host: None,
            path: "/".to_owned(),
            upstream: UpstreamConfig::of(&[server]).expect("an upstream"),
        };
        let open = async || {
            let (config, own_id) = (vec![route.clone()], "souk-test".to_owned());
            let shares = CacheShares::of(&EdgeLimits::default(), &config);
            let routes = Routes::open(
                &config,
                &shares,
                dir.path(),
                own_id,
                Watcher::default(),
                PerSite::default(),
                None,
            );
            let routes = routes.expect("they open");
            routes.ready().await;
            routes
        };
        let red = Forget { tags: vec!["red".to_owned()], ..Forget::default() };
        let purge = [Some(PurgeChange::of("shop".parse().expect("a site"), red))];

        let first = open().await;
        get(&first, "/old").await;
        first.close().await;
        let second = open().await;
        get(&second, "/old").await;
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it is on the disk");
        // Whatever is written from here on fails, and the folder cannot be emptied either.
        std::fs::rename(&folder, &aside).expect("moved");
        std::fs::write(&folder, b"").expect("a file");
        get(&second, "/new").await;
        assert!(forget(&second, &purge).await, "it holds, and will");
        get(&second, "/old").await;
        assert_eq!(asked.load(Ordering::SeqCst), 3, "purged");
        second.close().await;
        std::fs::remove_file(&folder).expect("removed");
        std::fs::rename(&aside, &folder).expect("moved back");
        let third = open().await;
        get(&third, "/old").await;
        assert_eq!(asked.load(Ordering::SeqCst), 4, "what was purged does not come back");
        assert!(forget(&third, &purge).await);
        third.close().await;
        let fourth = open().await;
        get(&fourth, "/new").await;
        get(&fourth, "/new").await;
        assert_eq!(asked.load(Ordering::SeqCst), 5, "and the disk is one again");
        fourth.close().await;
    }

    #[tokio::test]
    async fn without_routes_nothing_is_different() {
        let none = Routes::default();
        assert!(none.is_empty() && forget(&none, &[None]).await);
        assert_eq!(asked(&none, "GET", "a.example/blog/../x"), Ok(None), "its words are the next reader's");
        assert_eq!(none.report(), json!({"routes": []}));
    }
}
