//! What `souk proxy` does where caches differ: one probe for each row of the table in `docs/CACHE.md`, black box, before an
//! origin that answers when the probe lets it. What a probe claims follows from counts and from gates: a reader that has
//! bytes while the origin still holds the rest did not wait for the end. Times are printed and decide nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the origin of the published probes takes for an answer that nobody may store.
const UPSTREAM_TIME: Duration = Duration::from_millis(300);
const STAMPEDE: usize = 100;
const PASSING: u32 = 20;
const HALF: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_of_the_behaviour_table() -> Result<()> {
    let origin = Origin::start().await?;
    let running = Proxy::start_with(origin.addr, &["--policy-route", "/account=pass"]).await?;
    let proxy = Client(running.addr);
    let mut rows = vec![
        ("100 cold requests at once", stampede(&origin, &proxy).await.context("stampede")?),
        ("20 cold uncacheable at once, 0.3 s upstream", passing(&origin, &proxy).await.context("passing")?),
        ("a second reader of what is still filled", joins(&origin, &proxy).await.context("joins")?),
        ("a range of a cold object", range(&origin, &proxy).await.context("range")?),
        ("six spellings of Accept-Encoding", spellings(&origin, &proxy).await.context("spellings")?),
        ("Set-Cookie of another", cookie(&origin, &proxy).await.context("cookie")?),
    ];
    rows.extend(stale(origin, &proxy).await.context("stale")?);
    for (probe, seen) in rows {
        say(&format!("| {probe:<44} | {seen} |"));
    }
    Ok(())
}

async fn stampede(origin: &Origin, proxy: &Client) -> Result<String> {
    let path = "/stampede";
    let asked = (0..STAMPEDE).map(|_| tokio::spawn(proxy.get(path, &[])));
    let asked: Vec<_> = asked.collect();
    origin.until_asked(path, 1).await?;
    // For the others to arrive; whoever comes later finds the entry, and must not ask either.
    sleep(UPSTREAM_TIME).await;
    let opened = Instant::now();
    origin.open(path);
    let mut slowest = Duration::ZERO;
    for answer in asked {
        let answer = answer.await??;
        ensure!(answer.body == "x", "{answer:?}");
        slowest = slowest.max(answer.ended - opened);
    }
    ensure!(origin.asked(path) == 1, "the origin was asked {} times", origin.asked(path));
    Ok(format!("1 fetch; the slowest {} ms after the answer", slowest.as_millis()))
}

/// The origin answers only when all of them are there, or all but the first where of the key nothing is known: whoever
/// lines them up never gets an answer.
async fn passing(origin: &Origin, proxy: &Client) -> Result<String> {
    let mut took = Vec::new();
    // A key that nobody has asked for, under a route that passes; one under none; and that one again.
    for (path, fetches) in [("/account/passing", PASSING), ("/passing", PASSING), ("/passing", 2 * PASSING)] {
        let began = Instant::now();
        let answers = try_join_all((0..PASSING).map(|_| proxy.get(path, &[]))).await?;
        took.push(began.elapsed().as_millis());
        for answer in answers {
            ensure!(answer.status == 200, "{path}: {} for whom nobody came", answer.status);
        }
        ensure!(origin.asked(path) == fetches, "{path}: {} fetches", origin.asked(path));
    }
    Ok(format!(
        "{} ms under a route that passes; {} ms where nothing says so, once: nobody waits for more than the head of the first; {} ms from then on",
        took[0], took[1], took[2]
    ))
}

async fn joins(origin: &Origin, proxy: &Client) -> Result<String> {
    let path = "/growing";
    let mut first = proxy.begin(path, &[]).await?;
    first.read(HALF).await?;
    let mut second = proxy.begin(path, &[]).await?;
    let began = Instant::now();
    second.read(HALF).await.context("the second reader waits for the end")?;
    let took = began.elapsed();
    origin.open(path);
    for reader in [&mut first, &mut second] {
        reader.read(HALF).await?;
        ensure!(reader.end().await?, "more than was sent");
    }
    ensure!(origin.asked(path) == 1, "the origin was asked {} times", origin.asked(path));
    Ok(format!("1 fetch; streams at once, its half after {} ms", took.as_millis()))
}

async fn range(origin: &Origin, proxy: &Client) -> Result<String> {
    let path = "/range";
    let began = Instant::now();
    let front = proxy.get(path, &[("range", "bytes=10-19")]).await?;
    let took = began.elapsed();
    ensure!(front.status == 206 && front.body == pattern(10..20), "{front:?}");
    let end = format!("bytes={}-{}", 2 * HALF - 10, 2 * HALF - 1);
    let tail = tokio::spawn(proxy.get(path, &[("range", end.as_str())]));
    sleep(Duration::from_millis(50)).await;
    ensure!(!tail.is_finished(), "an end that the origin has not sent");
    origin.open(path);
    let tail = tail.await??;
    ensure!(tail.status == 206 && tail.body == pattern(2 * HALF - 10..2 * HALF), "{tail:?}");
    ensure!(origin.asked(path) == 1, "the origin was asked {} times", origin.asked(path));
    Ok(format!("206 from the growing body after {} ms, 1 fetch for two ranges", took.as_millis()))
}

async fn spellings(origin: &Origin, proxy: &Client) -> Result<String> {
    let spelled =
        ["gzip, br", "br, gzip", "gzip,br", "BR, GZIP", "br;q=1.0, gzip;q=1.0", "gzip;q=1, br, deflate;q=0"];
    for spelling in spelled {
        let answer = proxy.get("/spellings", &[("accept-encoding", spelling)]).await?;
        ensure!(answer.status == 200, "{spelling}: {answer:?}");
    }
    ensure!(origin.asked("/spellings") == 1, "{} fetches", origin.asked("/spellings"));
    Ok("1 fetch".to_owned())
}

async fn cookie(origin: &Origin, proxy: &Client) -> Result<String> {
    let mut cookies = Vec::new();
    for _ in 0..3 {
        let answer = proxy.get("/cookie", &[]).await?;
        cookies.extend(answer.headers.get(header::SET_COOKIE).cloned());
    }
    let asked = origin.asked("/cookie");
    ensure!(cookies == ["id=1", "id=2", "id=3"] && asked == 3, "{cookies:?} of {asked} fetches");
    Ok("never stored: each has its own".to_owned())
}

async fn stale(origin: Origin, proxy: &Client) -> Result<Vec<(&'static str, String)>> {
    let dying = Origin::start().await?;
    let running = Proxy::start(dying.addr).await?;
    let before_dying = Client(running.addr);
    ensure!(proxy.get("/swr", &[]).await?.body == "old");
    ensure!(before_dying.get("/sie", &[]).await?.body == "kept");
    drop(dying);
    // Both were fresh for a second.
    sleep(Duration::from_millis(2_200)).await;

    let began = Instant::now();
    let answer = proxy.get("/swr", &[]).await?;
    let took = began.elapsed();
    ensure!(answer.body == "old", "{answer:?}");
    origin.until_asked("/swr", 2).await.context("nobody refreshes it")?;
    origin.open("/swr");
    timeout(PATIENCE, async {
        while proxy.get("/swr", &[]).await?.body != "new" {
            sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    })
    .await
    .context("the refresh is never seen")??;
    ensure!(origin.asked("/swr") == 2, "{} fetches", origin.asked("/swr"));
    let revalidated = format!("stale after {} ms, one refresh behind it", took.as_millis());

    let answer = before_dying.get("/sie", &[]).await?;
    ensure!(answer.status == 200 && answer.body == "kept", "{answer:?}");
    let says = answer.headers.get("cache-status").and_then(|said| said.to_str().ok()).unwrap_or_default();
    ensure!(says.contains("stale_if_error"), "it does not say so: {says}");
    let survived = format!("yes, and says so: {says}");
    Ok(vec![("stale-while-revalidate", revalidated), ("stale-if-error, upstream dead", survived)])
}

fn pattern(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|at| (at % 251) as u8).collect()
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    ended: Instant,
}

/// Asks a proxy.
struct Client(SocketAddr);

impl Client {
    /// One request on a connection of its own, read to the end.
    fn get(
        &self,
        path: &str,
        fields: &[(&str, &str)],
    ) -> impl Future<Output = Result<Answer>> + Send + use<> {
        let begun = self.begin(path, fields);
        async {
            let Reader { head, body, _connection } = begun.await?;
            let body = timeout(PATIENCE, body.collect()).await.context("no end of the answer")??.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body, ended: Instant::now() })
        }
    }

    /// The same up to the head, which always says what the cache did.
    fn begin(
        &self,
        path: &str,
        fields: &[(&str, &str)],
    ) -> impl Future<Output = Result<Reader>> + Send + use<> {
        let addr = self.0;
        let mut request = Request::get(path).header(header::HOST, "shop.example");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        async move {
            let io = TokioIo::new(TcpStream::connect(addr).await?);
            let (mut send, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(async { drop(connection.await) });
            let request = request.body(Empty::<Bytes>::new())?;
            let response = timeout(PATIENCE, send.send_request(request)).await.context("no head")??;
            let (head, body) = response.into_parts();
            ensure!(head.headers.contains_key("cache-status"), "without Cache-Status: {head:?}");
            Ok(Reader { head, body, _connection: connection })
        }
    }
}

/// An answer that is being read.
struct Reader {
    head: http::response::Parts,
    body: Incoming,
    _connection: JoinHandle<()>,
}

impl Reader {
    /// So many bytes more, which must come without the origin's help.
    async fn read(&mut self, bytes: usize) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let frame = timeout(PATIENCE, self.body.frame())
                .await
                .with_context(|| format!("{left} bytes missing"))?;
            let data = frame.context("the answer ends early")??;
            let data = data.into_data().ok().context("data")?;
            left = left.checked_sub(data.len()).context("more than the origin has sent")?;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<bool> {
        Ok(timeout(PATIENCE, self.body.frame()).await?.transpose()?.is_none())
    }
}

/// The merchant's server: counts who asks, and holds back what it is told to.
struct Origin {
    addr: SocketAddr,
    desk: Arc<Desk>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Desk {
    asked: parking_lot::Mutex<HashMap<String, watch::Sender<u32>>>,
    gates: parking_lot::Mutex<HashMap<String, watch::Sender<bool>>>,
}

type OriginBody = UnsyncBoxBody<Bytes, Infallible>;

impl Origin {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let desk = Arc::new(Desk::default());
        let barriers = Arc::new([Barrier::new(PASSING as usize - 1), Barrier::new(PASSING as usize)]);
        let task = tokio::spawn({
            let desk = Arc::clone(&desk);
            async move {
                // Ends with the listener, so that a dead origin has no connection left.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (desk, barriers) = (Arc::clone(&desk), Arc::clone(&barriers));
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let (desk, barriers) = (Arc::clone(&desk), Arc::clone(&barriers));
                        async move { Ok::<_, Infallible>(desk.answer(request.uri().path(), &barriers).await) }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    connections.spawn(async { drop(served.await) });
                }
            }
        });
        Ok(Self { addr, desk, task })
    }

    fn asked(&self, path: &str) -> u32 {
        *self.desk.counter(path).borrow()
    }

    async fn until_asked(&self, path: &str, times: u32) -> Result<()> {
        let mut counter = self.desk.counter(path);
        timeout(PATIENCE, counter.wait_for(|seen| *seen >= times))
            .await
            .context("nobody asks the origin")??;
        Ok(())
    }

    /// Lets out what is held back of a path.
    fn open(&self, path: &str) {
        self.desk.gate(path, |gate| gate.send_replace(true));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    fn counter(&self, path: &str) -> watch::Receiver<u32> {
        self.asked.lock().entry(path.to_owned()).or_insert_with(|| watch::channel(0).0).subscribe()
    }

    fn count(&self, path: &str) -> u32 {
        let mut asked = self.asked.lock();
        let counter = asked.entry(path.to_owned()).or_insert_with(|| watch::channel(0).0);
        counter.send_modify(|seen| *seen += 1);
        *counter.borrow()
    }

    fn gate<R>(&self, path: &str, with: impl FnOnce(&watch::Sender<bool>) -> R) -> R {
        with(self.gates.lock().entry(path.to_owned()).or_insert_with(|| watch::channel(false).0))
    }

    async fn passed(&self, path: &str) {
        let mut gate = self.gate(path, watch::Sender::subscribe);
        // The desk outlives whoever waits at it.
        let _ = gate.wait_for(|open| *open).await;
    }

    async fn answer(self: Arc<Self>, path: &str, barriers: &[Barrier; 2]) -> Response<OriginBody> {
        let seen = self.count(path);
        let say = |control: &str, text: &'static str| {
            let body = Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync();
            Response::builder().header(header::CACHE_CONTROL, control).body(body).expect("a valid head")
        };
        match path {
            "/stampede" => {
                self.passed(path).await;
                say("max-age=60", "x")
            }
            "/passing" | "/account/passing" => {
                sleep(UPSTREAM_TIME).await;
                let barrier = match (path, seen) {
                    ("/passing", 1) => None,
                    ("/passing", 2..=PASSING) => Some(&barriers[0]),
                    _ => Some(&barriers[1]),
                };
                let all_here = match barrier {
                    Some(barrier) => timeout(PATIENCE / 4, barrier.wait()).await.is_ok(),
                    None => true,
                };
                let mut response = say("no-store", "yours");
                if !all_here {
                    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
                }
                response
            }
            "/growing" | "/range" => {
                let (desk, path) = (Arc::clone(&self), path.to_owned());
                let chunks = futures_util::stream::iter([0..HALF, HALF..2 * HALF]).then(move |range| {
                    let (desk, path) = (Arc::clone(&desk), path.clone());
                    async move {
                        if range.start > 0 {
                            desk.passed(&path).await;
                        }
                        Ok(Frame::data(Bytes::from(pattern(range))))
                    }
                });
                let response = Response::builder()
                    .header(header::CACHE_CONTROL, "max-age=60")
                    .header(header::ETAG, "\"1\"")
                    .header(header::CONTENT_LENGTH, 2 * HALF);
                response.body(StreamBody::new(chunks).boxed_unsync()).expect("a valid head")
            }
            "/spellings" => {
                let mut response = say("max-age=60", "plain");
                response
                    .headers_mut()
                    .insert(header::VARY, header::HeaderValue::from_static("accept-encoding"));
                response
            }
            "/cookie" => {
                let mut response = say("max-age=60", "hello");
                let cookie = format!("id={seen}").parse().expect("a valid value");
                response.headers_mut().insert(header::SET_COOKIE, cookie);
                response
            }
            "/swr" if seen == 1 => say("max-age=1, stale-while-revalidate=60", "old"),
            "/swr" => {
                self.passed(path).await;
                say("max-age=60", "new")
            }
            "/sie" => say("max-age=1, stale-if-error=60", "kept"),
            _ => say("no-store", "no such probe"),
        }
    }
}
