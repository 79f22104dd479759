//! `souk proxy` gets its certificates by itself, from a small authority of the test's own.

mod ca;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use tokio::net::{TcpListener, TcpStream};

use self::ca::{Ca, shake};

const DOMAIN: &str = "shop.example";
/// Where an authority looks for a token.
const IN_CLEAR: [&str; 2] = ["--listen", "127.0.0.1:0"];
/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy whose names an authority can look at.
struct World {
    ca: Ca,
    origin: SocketAddr,
    proxy: Proxy,
    dir: tempfile::TempDir,
}

impl World {
    /// With an authority that is up or down, and looks at the proxy.
    async fn start(is_up: bool) -> Result<Self> {
        Self::start_at(is_up, &IN_CLEAR).await
    }

    /// The same with these doors.
    async fn start_at(is_up: bool, doors: &[&str]) -> Result<Self> {
        let (dir, origin) = (tempfile::tempdir()?, origin().await?);
        let ca = Ca::start(origin).await?;
        ca.set_up(is_up);
        std::fs::write(dir.path().join("ca.pem"), ca.root_pem())?;
        let proxy = start(&ca, origin, dir.path(), doors).await?;
        Ok(Self { ca, origin, proxy, dir })
    }

    /// The certificate that is shown to whoever trusts the authority, and the page behind it.
    async fn page(&self) -> Result<CertificateDer<'static>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.root().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let https = self.proxy.https.context("no door with TLS")?;
        let stream = TcpStream::connect(https).await?;
        let name = ServerName::try_from(DOMAIN)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/").header(header::HOST, DOMAIN).body(Empty::<Bytes>::new())?;
        let body = send.send_request(request).await?.into_body().collect().await?.to_bytes();
        ensure!(body == "a page", "{body:?}");
        shown.context("no certificate")
    }

    async fn metric(&self, name: &str) -> Result<i64> {
        let page = Client::new(self.proxy.admin).get("/metrics").await?.text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    async fn ordered(&self, outcome: &str) -> Result<i64> {
        self.metric(&format!("souk_acme_orders_total{{outcome=\"{outcome}\"}}")).await
    }

    async fn good_for_s(&self) -> Result<i64> {
        self.metric(&format!("souk_acme_seconds_until_expiry{{domain=\"{DOMAIN}\"}}")).await
    }

    /// Waits for more orders with an outcome than there were.
    async fn until(&self, outcome: &str, more_than: i64) -> Result<()> {
        let waits = async {
            while self.ordered(outcome).await? <= more_than {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, waits).await.with_context(|| format!("no order ends as {outcome}"))?
    }
}

async fn start(ca: &Ca, origin: SocketAddr, dir: &Path, doors: &[&str]) -> Result<Proxy> {
    let path = |name: &str| dir.join(name).to_str().map(str::to_owned).context("a plain path");
    let (directory, root, cache) = (ca.directory(), path("ca.pem")?, path("cache")?);
    let flags = [
        ["--tls", "127.0.0.1:0"],
        ["--acme-directory", &directory],
        ["--acme-ca", &root],
        ["--acme-cache", &cache],
        ["--acme-domain", DOMAIN],
        ["--acme-contact", "mailto:operator@shop.example"],
    ];
    Proxy::with(origin, &[doors, &flags.concat()].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_got_renewed_and_kept_whatever_the_authority_does() -> Result<()> {
    let mut world = World::start(false).await?;
    world.ca.look_at(world.proxy.addr);
    // The authority is away: the node starts and serves, and refuses a handshake rather than show what it has not.
    ensure!(Client::new(world.proxy.addr).get("/").await?.text() == "a page");
    world.until("away", 0).await?;
    ensure!(world.page().await.is_err() && world.good_for_s().await? == 0);

    world.ca.set_up(true);
    world.until("issued", 0).await?;
    let first = world.page().await.context("the first certificate")?;
    ensure!((1..=30).contains(&world.good_for_s().await?), "{}", world.good_for_s().await?);
    let kept: Vec<_> = std::fs::read_dir(world.dir.path().join("cache"))?.collect::<Result<_, _>>()?;
    ensure!(kept.len() == 1, "a folder for the one directory");
    for file in std::fs::read_dir(kept[0].path())? {
        let file = file?;
        ensure!(file.metadata()?.permissions().mode() & 0o777 == 0o600, "{}", file.path().display());
    }

    // Due again, and the authority away: what is in use stays.
    world.ca.set_up(false);
    let away = world.ordered("away").await?;
    world.until("away", away).await?;
    ensure!(world.page().await.context("the old certificate stays")? == first);
    world.ca.set_up(true);
    world.until("issued", 1).await?;
    let second = world.page().await.context("the renewed certificate")?;
    ensure!(second != first, "the certificate is not renewed");
    let (accounts, _, refused) = world.ca.counts();
    ensure!(accounts == 1 && refused > 0, "{accounts} accounts, {refused} nonces refused for nothing");

    // A new process has it at once, whoever is away.
    world.ca.set_up(false);
    world.proxy = start(&world.ca, world.origin, world.dir.path(), &IN_CLEAR).await?;
    ensure!(world.page().await.context("after a restart")? == second);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_does_not_find_the_name_gives_nothing() -> Result<()> {
    // Its names lead to the shop's own server, which knows of no token.
    let world = World::start(true).await?;
    world.until("challenge", 0).await?;
    ensure!(world.page().await.is_err() && world.ordered("issued").await? == 0);
    let (accounts, orders, _) = world.ca.counts();
    ensure!(
        (accounts, orders) == (1, 1),
        "it is not asked again at once: {accounts} accounts, {orders} orders"
    );
    // What is asked in clear text goes on, to the shop where the token is none.
    let client = Client::new(world.proxy.addr);
    ensure!(client.get("/.well-known/acme-challenge/a-token").await?.text() == "a page");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_proven_over_tls_where_nothing_listens_in_clear_text() -> Result<()> {
    let world = World::start_at(false, &["--acme-challenge", "tls-alpn-01"]).await?;
    let https = world.proxy.https.context("no door with TLS")?;
    ensure!(world.proxy.addr == https, "there is one door");
    world.until("away", 0).await?;
    // Nobody has asked for a proof: whoever looks for one is shown nothing at all.
    ensure!(shake(https, DOMAIN).await.is_err());
    world.ca.look_at(https);
    world.ca.set_up(true);
    world.until("issued", 0).await?;
    let first = world.page().await.context("the certificate")?;
    world.until("issued", 1).await?;
    ensure!(world.page().await.context("the renewed certificate")? != first);
    world.ca.set_up(false);
    let away = world.ordered("away").await?;
    world.until("away", away).await?;
    // Nor is a proof shown when its order has ended, nor a shopper's certificate in its place.
    ensure!(shake(https, DOMAIN).await.is_err());
    ensure!(shake(https, "other.example").await.is_err());
    Ok(())
}

/// The shop's server, which has one page for everything.
async fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"a page"))))
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(async { drop(served.await) });
        }
    });
    Ok(addr)
}
