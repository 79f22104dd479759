//! HTTP/3 as clients that are not ours speak it: aioquic (Python) and a real browser load a page through `souk proxy`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::PublicKeyData as _;
use sha2::{Digest as _, Sha256};
use souk_tests::proxy::Proxy;
use souk_tests::tools::python;
use souk_tests::{say, skip};
use tokio::net::TcpListener;

use crate::browser::{FLAGS, chromium};

/// A page that asks for two more things, as pages do, and says by which protocol everything came.
const PAGE: &str = "<!doctype html><title>shop</title><body><p id=said></p><script>\
    (async () => {\
      await fetch('/there');\
      const up = await fetch('/length', {method: 'POST', body: 'x'.repeat(200000)});\
      const used = performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'));\
      const versions = [...new Set(used.map(entry => entry.nextHopProtocol))].join();\
      document.getElementById('said').textContent = 'loaded by ' + versions + ', sent ' + await up.text();\
    })()</script></body>";

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A proxy with HTTP/3, and the certificate that it shows.
struct World {
    proxy: Proxy,
    dir: tempfile::TempDir,
    /// SHA-256 of the key, as browsers pin it.
    pin: String,
}

impl World {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let own = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()])?;
        // As a public authority would give it: neither for ever nor from the past century.
        let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
        (params.not_before, params.not_after) = (now - DAY, now + 90 * DAY);
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        std::fs::write(&cert, params.self_signed(&own)?.pem())?;
        std::fs::write(&key, own.serialize_pem())?;
        let pin =
            base64::engine::general_purpose::STANDARD.encode(Sha256::digest(own.subject_public_key_info()));
        let shown = |path: &Path| path.to_str().map(str::to_owned).context("a plain path");
        let (cert, key) = (shown(&cert)?, shown(&key)?);
        let doors = ["--tls", "127.0.0.1:0", "--http3", "--cert", &cert, "--key", &key];
        Ok(Self { proxy: Proxy::with(origin().await?, &doors).await?, dir, pin })
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.proxy.addr.port())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aioquic_loads_a_page_over_http3() -> Result<()> {
    let tools = match tokio::task::spawn_blocking(|| python("aioquic", &["aioquic==1.7.2"])).await?? {
        Ok(tools) => tools,
        Err(why) => {
            skip("aioquic loads a page over HTTP/3", &why);
            return Ok(());
        }
    };
    let world = World::start().await?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/http3_client.py");
    let mut client = Command::new(tools.join("bin/python"));
    client.arg(script).arg(world.dir.path().join("cert.pem")).args([world.url("/"), world.url("/length")]);
    let said = tokio::task::spawn_blocking(move || run(&mut client)).await??;
    let said: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(said["alpn"] == "h3", "{said}");
    ensure!(said["page"]["status"] == "200" && said["page"]["body"] == PAGE, "{said}");
    ensure!(said["upload"]["status"] == "200" && said["upload"]["body"] == "200000", "{said}");
    say(&format!("aioquic: {} bytes of the page and an upload of 200,000 over HTTP/3", PAGE.len()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_loads_a_page_over_http3() -> Result<()> {
    let Some(chromium) = chromium() else {
        skip("Chromium loads a page over HTTP/3", "no chromium");
        return Ok(());
    };
    let world = World::start().await?;
    let mut browser = Command::new(chromium);
    browser
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", world.dir.path().join("profile").display()))
        .arg(format!("--origin-to-force-quic-on=localhost:{}", world.proxy.addr.port()))
        .arg(format!("--ignore-certificate-errors-spki-list={}", world.pin))
        .args(["--virtual-time-budget=20000", "--timeout=30000", "--dump-dom"])
        .arg(world.url("/"));
    let dom = tokio::task::spawn_blocking(move || run(&mut browser)).await??;
    // Its own word for it, of the page and of all that the page asked for.
    ensure!(dom.contains("loaded by h3, sent 200000"), "{dom}");
    say("Chromium: a page, a script's GET and a POST of 200,000 bytes over HTTP/3");
    Ok(())
}

/// What sslyze says of the certificate, which no public authority has signed.
const OF_THE_TEST: &[&str] = &["certificate_path_validation"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sslyze_finds_mozillas_intermediate_configuration() -> Result<()> {
    let tools = match tokio::task::spawn_blocking(|| python("sslyze", &["sslyze==6.3.1"])).await?? {
        Ok(tools) => tools,
        Err(why) => {
            skip("sslyze looks at TLS", &why);
            return Ok(());
        }
    };
    let world = World::start().await?;
    let mut scan = Command::new(tools.join("bin/sslyze"));
    scan.arg("--mozilla_config=intermediate")
        .arg(format!("localhost:{}{{127.0.0.1}}", world.proxy.addr.port()))
        .stdin(Stdio::null());
    let said = tokio::task::spawn_blocking(move || scan.output()).await??;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (_, verdict) = said.split_once("COMPLIANCE AGAINST").with_context(|| said.clone())?;
    let deviations: Vec<_> = verdict
        .lines()
        .filter_map(|line| line.trim().strip_prefix("* "))
        .filter(|line| !OF_THE_TEST.iter().any(|known| line.starts_with(known)))
        .collect();
    ensure!(verdict.contains("ompliant") && deviations.is_empty(), "{verdict}");
    say("sslyze: Mozilla's intermediate configuration, but for the authority of the test's certificate");
    Ok(())
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().context("start it")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}\n{errors}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// The merchant's server.
async fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(async { drop(served.await) });
        }
    });
    Ok(addr)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = match path.as_str() {
        "/length" => {
            let read = request.into_body().collect().await;
            Bytes::from(read.map_or_else(|_| "broken".to_owned(), |body| body.to_bytes().len().to_string()))
        }
        "/" => Bytes::from_static(PAGE.as_bytes()),
        _ => Bytes::from_static(b"there"),
    };
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
        .header(header::CACHE_CONTROL, "max-age=60");
    Ok(response.body(Full::new(body)).expect("a valid head"))
}
