//! `souk proxy` is replaced by a new process under load: nobody is refused, and nothing that was begun is lost.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients that connect for each request, and as many that keep their connection.
const CLIENTS: usize = 4;
/// Requests that are answered after each step before the next.
const STEP: u64 = 200;

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
            let path = if number % 2 == 0 { "/stored" } else { "/slow" };
            let asked = ask(send, path, !keeps);
            kept =
                timeout(PATIENCE, asked).await?.with_context(|| format!("request {number}, kept {keeps}"))?;
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        Ok(number)
    }
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
    ensure!(body == "x", "{body:?}");
    if closes || last {
        return Ok(None);
    }
    send.ready().await?;
    Ok(Some(send))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_takes_over_and_no_request_fails() -> Result<()> {
    let origin = origin().await?;
    let old = Proxy::with(origin, &["--listen", "127.0.0.1:0", "--reuse-port"]).await?;
    let addr = old.addr;
    let load = Arc::new(Load::default());
    let clients = (0..2 * CLIENTS).map(|i| tokio::spawn(Arc::clone(&load).client(addr, i % 2 == 0)));
    let clients: Vec<_> = clients.collect();
    load.goes_on().await?;
    let new = Proxy::with(origin, &["--listen", &addr.to_string(), "--reuse-port"]).await?;
    ensure!(new.addr == addr, "they share a port");
    load.goes_on().await?;
    old.stop().await?;
    load.goes_on().await?;
    load.stop.store(true, Ordering::SeqCst);
    let mut sent = 0;
    for client in clients {
        sent += client.await??;
    }
    say(&format!("{sent} requests while one process took over from another; none failed"));
    Ok(())
}

/// Operators' door has places for a few; whoever leaves connections lying there loses the oldest of them, and shuts nobody out.
#[tokio::test]
async fn operators_have_a_few_connections_and_always_one_more() -> Result<()> {
    let proxy = Proxy::start(origin().await?).await?;
    let mut idle = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(proxy.admin).await?;
        is_alive(&mut stream).await?;
        idle.push(stream);
    }
    // 80 less the 64 that have a place. Which is idle first is told by the node: a connection whose task is held up after its
    // answer has gone is idle after its neighbours, so a few more than the sixteen oldest are looked at.
    let closed: FuturesUnordered<_> = idle[..24]
        .iter_mut()
        .map(async |stream| {
            // In order or not: it is closed.
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .collect();
    let closed = timeout(PATIENCE, closed.take(16).count()).await;
    ensure!(closed.context("fewer than sixteen of the oldest are closed")? == 16);
    for stream in &mut idle[56..] {
        is_alive(stream).await?;
    }
    Ok(())
}

/// Asks on a connection and reads the answer to its end.
async fn is_alive(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.context("an operator waits")??;
        ensure!(read > 0, "the connection is closed after {:?}", String::from_utf8_lossy(&answer));
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Answers "x".
async fn origin() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: Request<Incoming>| async move {
                let stored = request.uri().path() == "/stored";
                if !stored {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                let control = if stored { "max-age=60" } else { "no-store" };
                let response = Response::builder().header(header::CACHE_CONTROL, control);
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(b"x"))).expect("a valid head"))
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            tokio::spawn(async { drop(served.await) });
        }
    });
    Ok(addr)
}
