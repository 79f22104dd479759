//! Some four hundred malformed and smuggling HTTP/1.1 requests on raw sockets, before `souk proxy`: each on a path that
//! nothing is known of, and on one whose answer is stored. None may be accepted, mended, or be two requests in anybody's
//! reading.
//!
//! Accepted is what gets an answer below 400, or reaches the upstream. Smuggled is what makes a second answer come, however
//! late, or the upstream see a path that no well-formed request named. Answers come in the order of requests, so a
//! well-formed request behind each probe shows where its answers end: with the answer to that one, or with the connection.

mod probes;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::probes::probes;

/// What a request names that is meant to be read out of another one.
const SMUGGLED: &str = "/smuggled";
const STORED: &str = "/stored";
/// What is asked for behind each probe.
const BEHIND: &str = "/behind";
const HOST: &str = "shop.example";
/// Longer than a head may take, after which the server closes, and than a busy machine may.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Connections at once: fewer than a proxy minds.
const AT_ONCE: usize = 64;

/// What is wrong with a probe decides how far it may get.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    /// The head: nothing of it may reach the upstream.
    Head,
    /// The body: its head was right, so the upstream may have seen that.
    Body,
}

struct Probe {
    name: String,
    wrong: Wrong,
    /// With `PATH` where the path goes.
    bytes: Vec<u8>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_accepted_and_none_is_two() -> Result<()> {
    let upstream = Upstream::start().await?;
    let proxy = Proxy::start(upstream.addr).await?;
    let primed = ask(proxy.addr, &get(STORED)).await?;
    ensure!(primed.starts_with(b"HTTP/1.1 200"), "{}", shown(&primed));

    let probes = probes();
    let runs = probes
        .iter()
        .enumerate()
        .flat_map(|(number, probe)| [(probe, format!("/cold-{number}")), (probe, STORED.to_owned())]);
    let addr = proxy.addr;
    let judged: Vec<_> = futures_util::stream::iter(runs)
        .map(|(probe, path)| async move {
            let seen = exchange(addr, &probe.at(&path)).await;
            (probe, path, seen)
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;

    let reached = upstream.asked();
    let mut wrong: Vec<String> = Vec::new();
    for (probe, path, seen) in &judged {
        if let Some(fault) = match seen {
            Err(error) => Some(format!("{error:#}")),
            Ok(_) if probe.wrong == Wrong::Head && reached.contains(path) && path != STORED => {
                Some("reached the upstream".to_owned())
            }
            Ok(answers) => accepted(answers),
        } {
            wrong.push(format!("{} on {path}: {fault}", probe.name));
        }
    }
    let known = |path: &str| [STORED, BEHIND].contains(&path) || path.starts_with("/cold-");
    let strange: Vec<_> = reached.iter().filter(|path| !known(path)).collect();
    let again = ask(proxy.addr, &get(STORED)).await?;
    say(&format!(
        "{} malformed requests, {} exchanges: {} accepted or ambiguous",
        probes.len(),
        judged.len(),
        wrong.len()
    ));
    wrong.sort();
    ensure!(wrong.is_empty(), "{} accepted or ambiguous:\n{}", wrong.len(), wrong.join("\n"));
    ensure!(strange.is_empty(), "the upstream was asked for {strange:?}");
    ensure!(again.ends_with(STORED.as_bytes()) && upstream.gets(STORED) == 1, "{}", shown(&again));
    Ok(())
}

/// What is wrong with what came back; nothing if it was refused, once and in words.
fn accepted(answers: &[u8]) -> Option<String> {
    let heads: Vec<_> = answers
        .windows(12)
        .enumerate()
        // A status line: bodies speak of versions too.
        .filter(|(_, line)| {
            line.starts_with(b"HTTP/1.") && line[8] == b' ' && line[9..].iter().all(u8::is_ascii_digit)
        })
        .map(|(at, _)| at)
        .collect();
    let own = &answers[..heads.get(1).copied().unwrap_or(answers.len())];
    let status = own.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    match (status, &heads[..]) {
        (None, _) => Some(format!("no answer: {}", shown(answers))),
        (Some(..400), _) => Some(format!("accepted: {}", shown(answers))),
        (Some(_), [_]) => None,
        // The one behind it.
        (Some(_), [_, at]) if answers[*at..].ends_with(BEHIND.as_bytes()) => None,
        _ => Some(format!("{} answers: {}", heads.len(), shown(answers))),
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(120)]))
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").into_bytes()
}

async fn ask(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    timeout(ANSWER_MAX, stream.read_to_end(&mut answer)).await??;
    Ok(answer)
}

/// Everything that comes back, up to the end of the connection. When the first of it is there, a well-formed request goes
/// after it, which closes the connection if nothing else has. An error if the server does not.
async fn exchange(addr: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    // A server that refuses what it has read may close before the rest is written.
    let _ = timeout(ANSWER_MAX, stream.write_all(request)).await?;
    let mut answers = Vec::new();
    let mut behind = false;
    loop {
        match timeout(ANSWER_MAX, stream.read_buf(&mut answers)).await {
            Ok(Ok(0) | Err(_)) => return Ok(answers),
            Ok(Ok(_)) if !behind => {
                behind = true;
                let _ = stream.write_all(&get(BEHIND)).await;
            }
            Ok(Ok(_)) => {}
            Err(_) => bail!("open after {ANSWER_MAX:?}: {}", shown(&answers)),
        }
    }
}

/// The merchant's server: writes down what it is asked for, and answers what may be stored.
struct Upstream {
    addr: SocketAddr,
    asked: Arc<Mutex<Vec<(Method, String)>>>,
    task: JoinHandle<()>,
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let task = tokio::spawn({
            let asked = Arc::clone(&asked);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let asked = Arc::clone(&asked);
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let path = request.uri().path().to_owned();
                        asked.lock().push((request.method().clone(), path.clone()));
                        async move {
                            // The whole of it, as a server does that makes something of it.
                            let _ = request.into_body().collect().await;
                            let body = Full::new(Bytes::from(path));
                            let response = Response::builder().header(header::CACHE_CONTROL, "max-age=600");
                            Ok::<_, Infallible>(response.body(body).expect("a valid head"))
                        }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    tokio::spawn(async { drop(served.await) });
                }
            }
        });
        Ok(Self { addr, asked, task })
    }

    fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().iter().map(|(_, path)| path.clone()).collect()
    }

    fn gets(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|(method, asked)| *method == Method::GET && asked == path).count()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probe {
    fn at(&self, path: &str) -> Vec<u8> {
        let text = &self.bytes;
        let at = text.windows(4).position(|window| window == b"PATH");
        at.map_or_else(|| text.clone(), |at| [&text[..at], path.as_bytes(), &text[at + 4..]].concat())
    }
}
