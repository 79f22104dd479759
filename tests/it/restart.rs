//! `souk proxy` is replaced by a new process under load, on the same port and with the same folder of stored responses: nobody
//! is refused, nothing that was begun is lost, and what was stored need not be fetched again.

mod node;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that connect for each request, and as many that keep their connection.
const CLIENTS: usize = 4;
/// Requests that are answered after each step before the next.
const STEP: u64 = 200;
/// Pages that are stored before. The load asks for the first of them; the rest is for afterwards.
const PAGES: usize = 300;
const OF_THE_LOAD: usize = 20;
/// Pieces of the answer that is on its way while the processes change.
const PIECES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_takes_over_no_request_fails_and_the_disk_is_warm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("responses");
    let dir = dir.to_str().context("a path that is text")?;
    let origin = Origin::start().await?;
    let start = async |listen: &str| {
        let flags = ["--listen", listen, "--reuse-port", "--disk", dir, "--disk-size", "64 MiB"];
        Proxy::with(origin.addr, &flags).await
    };
    let old = start("127.0.0.1:0").await?;
    let addr = old.addr;
    for page in 0..PAGES {
        let answer = client(addr).get(&format!("/page/{page}")).await?;
        ensure!(answer.text() == format!("/page/{page}"), "{}", answer.text());
    }
    until(&old, "souk_proxy_disk_queued", 0.0).await?;

    let load = Arc::new(Load::default());
    let clients = (0..2 * CLIENTS).map(|i| tokio::spawn(Arc::clone(&load).client(addr, i % 2 == 0)));
    let clients: Vec<_> = clients.collect();
    load.goes_on().await?;
    let long = begin_long(addr).await?;
    let new = start(&addr.to_string()).await?;
    ensure!(new.addr == addr, "they share a port");
    load.goes_on().await?;
    let (began, told) = (Instant::now(), old.tell_to_stop()?);
    load.goes_on().await?;
    // The answer that the old process is at ends well after it was told to end.
    origin.pieces.add_permits(PIECES);
    let pieces = timeout(PATIENCE, long.collect()).await??.to_bytes().len();
    ensure!(pieces == PIECES, "{pieces} pieces of {PIECES}");
    told.has_stopped().await?;
    let drained = began.elapsed();
    until(&new, "souk_proxy_disk_on", 1.0).await?;
    let taken_over = began.elapsed() - drained;
    load.goes_on().await?;
    load.stop.store(true, Ordering::SeqCst);
    let mut sent = 0;
    for client in clients {
        sent += client.await??;
    }

    let before = origin.asked();
    for page in OF_THE_LOAD..PAGES {
        let answer = client(addr).get(&format!("/page/{page}")).await?;
        ensure!(answer.text() == format!("/page/{page}"), "{}", answer.text());
    }
    ensure!(origin.asked() == before, "what was stored before the change is fetched again after it");
    let again = (0..OF_THE_LOAD).map(|page| before[&format!("/page/{page}")] - 1).sum::<u32>();
    say(&format!(
        "{sent} requests while one process took over from another: 0 failed. The old one ended after {} ms, the new one had \
         the disk {} ms later; {} of {} pages stored before came from there, 0 were fetched. {again} of the {OF_THE_LOAD} that \
         were asked for meanwhile were fetched again",
        drained.as_millis(),
        taken_over.as_millis(),
        PAGES - OF_THE_LOAD,
        PAGES - OF_THE_LOAD,
    ));
    new.stop().await
}

#[derive(Default)]
struct Load {
    answered: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    /// Waits for so many more answers.
    async fn goes_on(&self) -> Result<()> {
        let until = self.answered.load(Ordering::SeqCst) + STEP;
        let waits = async {
            while self.answered.load(Ordering::SeqCst) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waits).await.context("the load stands still")
    }

    async fn client(self: Arc<Self>, addr: SocketAddr, keeps: bool) -> Result<u64> {
        let mut kept = None;
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let send = match kept.take() {
                Some(send) => send,
                None => connect(addr).await.with_context(|| format!("request {number}: connect"))?,
            };
            // Every other one passes the cache, and takes its upstream a while.
            let path = match number % 2 {
                0 => format!("/page/{}", number as usize / 2 % OF_THE_LOAD),
                _ => "/slow".to_owned(),
            };
            let asked = ask(send, &path, !keeps);
            kept =
                timeout(PATIENCE, asked).await?.with_context(|| format!("request {number}, kept {keeps}"))?;
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        Ok(number)
    }
}

/// One host, whatever the port: it is a part of what is asked for.
fn client(addr: SocketAddr) -> Client {
    Client::new(addr).with("host", "shop.example")
}

async fn connect(addr: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let (send, connection) = http1::handshake(TokioIo::new(TcpStream::connect(addr).await?)).await?;
    tokio::spawn(connection);
    Ok(send)
}

/// The connection again, if it can be used again.
async fn ask(
    mut send: SendRequest<Empty<Bytes>>,
    path: &str,
    last: bool,
) -> Result<Option<SendRequest<Empty<Bytes>>>> {
    let mut request = Request::get(path).header(header::HOST, "shop.example");
    if last {
        request = request.header(header::CONNECTION, "close");
    }
    let response = send.send_request(request.body(Empty::new())?).await?;
    ensure!(response.status() == 200, "{}", response.status());
    let closes = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
    let body = response.into_body().collect().await?.to_bytes();
    ensure!(body == path, "{body:?} for {path}");
    if closes || last {
        return Ok(None);
    }
    send.ready().await?;
    Ok(Some(send))
}

/// An answer whose head is there, and whose body comes when the origin is let go on.
async fn begin_long(addr: SocketAddr) -> Result<Incoming> {
    let mut send = connect(addr).await?;
    let request = Request::get("/long").header(header::HOST, "shop.example").body(Empty::new())?;
    let response = send.send_request(request).await?;
    ensure!(response.status() == 200, "{}", response.status());
    Ok(response.into_body())
}

async fn until(proxy: &Proxy, name: &str, wanted: f64) -> Result<()> {
    let arrives = async {
        loop {
            let page = Client::new(proxy.admin).get("/metrics").await?.text();
            let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if line.with_context(|| format!("no {name} in {page}"))?.trim().parse::<f64>()? == wanted {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, arrives).await.with_context(|| format!("{name} never gets there"))?
}

/// Answers with the path, and counts.
struct Origin {
    addr: SocketAddr,
    asked: Arc<Mutex<HashMap<String, u32>>>,
    /// One for each piece of a long answer.
    pieces: Arc<Semaphore>,
}

impl Origin {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (addr, asked) = (listener.local_addr()?, Arc::<Mutex<HashMap<_, _>>>::default());
        let pieces = Arc::new(Semaphore::new(0));
        let (counted, gate) = (Arc::clone(&asked), Arc::clone(&pieces));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counted, gate) = (Arc::clone(&counted), Arc::clone(&gate));
                let answer = service_fn(move |request: Request<Incoming>| {
                    let path = request.uri().path().to_owned();
                    *counted.lock().entry(path.clone()).or_insert(0) += 1;
                    answer(path, Arc::clone(&gate))
                });
                let served =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(async { drop(served.await) });
            }
        });
        Ok(Self { addr, asked, pieces })
    }

    fn asked(&self) -> HashMap<String, u32> {
        self.asked.lock().clone()
    }
}

async fn answer(
    path: String,
    gate: Arc<Semaphore>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let stored = path.starts_with("/page/");
    let body = if path == "/long" {
        let pieces = stream::unfold(0, move |sent| {
            let gate = Arc::clone(&gate);
            async move {
                if sent == PIECES {
                    return None;
                }
                gate.acquire().await.expect("it is never closed").forget();
                Some((Ok(Frame::data(Bytes::from_static(b"x"))), sent + 1))
            }
        });
        StreamBody::new(pieces).boxed_unsync()
    } else {
        if !stored {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Full::new(Bytes::from(path)).boxed_unsync()
    };
    let control = if stored { "max-age=3600" } else { "no-store" };
    let response = Response::builder().header(header::CACHE_CONTROL, control);
    Ok(response.body(body).expect("a valid head"))
}
