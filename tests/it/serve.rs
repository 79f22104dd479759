//! `souk serve` from the outside, on raw sockets: what is cut short never looks whole, and what a guest writes frames
//! nothing. The guests are WebAssembly text, so nothing here is ever skipped; `tour` serves components that were made
//! with the tools of other languages.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http_guests::{COUNTS, HttpGuest, STREAMS};
use souk_tests::souk;

const PATIENCE: Duration = Duration::from_secs(60);
/// A connection on which nothing comes for so long stays open: a guest that is interpreted takes seconds on a busy machine.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A debug build's compiler, on one thread, takes half a minute for an engine of JavaScript; others compile beside it.
const COMPILED_WITHIN: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Ready {
    http: SocketAddr,
    admin: Option<SocketAddr>,
}

/// A running `souk serve`. Dropping it ends it.
pub(crate) struct Serve {
    child: Child,
    pub(crate) address: SocketAddr,
    admin: Option<SocketAddr>,
    _dir: TempDir,
}

impl Serve {
    async fn start(guest: HttpGuest, arguments: &[&str]) -> Result<Self> {
        Self::component(&guest.component(), arguments).await
    }

    pub(crate) async fn component(bytes: &[u8], arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let component = dir.path().join("guest.wasm");
        std::fs::write(&component, bytes)?;
        let ready = dir.path().join("ready.json");
        let mut child = Command::new(souk())
            .arg("serve")
            .arg(&component)
            // An answer that breaks off is explained there.
            .args(["--listen", "127.0.0.1:0", "--log", "warn", "--ready-file"])
            .arg(&ready)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .context("start `souk serve`")?;
        let Ready { http: address, admin } = wait_for(&ready, &mut child).await?;
        Ok(Self { child, address, admin, _dir: dir })
    }

    /// Everything that comes for one HTTP/1.1 request until the server closes the connection, or is silent for a while.
    pub(crate) async fn raw(&self, request: &str) -> Result<(Vec<u8>, bool)> {
        raw(self.address, request).await
    }

    async fn get(&self) -> Result<String> {
        get(self.address, "/").await
    }

    /// The frames of one HTTP/2 request by prior knowledge: (type, flags, stream, payload).
    async fn frames(&self) -> Result<Vec<(u8, u8, u32, Vec<u8>)>> {
        let mut stream = TcpStream::connect(self.address).await?;
        let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        request.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        // :method GET, :scheme http, :path / from the static table, :authority as a literal.
        let mut fields = vec![0x82, 0x86, 0x84, 0x41, 12];
        fields.extend_from_slice(b"shop.example");
        request.extend_from_slice(&[0, 0, u8::try_from(fields.len())?, 1, 0x05, 0, 0, 0, 1]);
        request.extend_from_slice(&fields);
        stream.write_all(&request).await?;
        let mut frames = Vec::new();
        let mut head = [0; 9];
        while let Ok(Ok(_)) = timeout(Duration::from_secs(3), stream.read_exact(&mut head)).await {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).await?;
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let (kind, flags) = (head[3], head[4]);
            frames.push((kind, flags, id, payload));
            if id == 1 && (kind == RST_STREAM || flags & END_STREAM != 0) {
                break;
            }
        }
        Ok(frames)
    }
}

async fn raw(address: SocketAddr, request: &str) -> Result<(Vec<u8>, bool)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::new();
    loop {
        match timeout(SILENCE_MAX, stream.read_buf(&mut read)).await {
            Ok(Ok(0)) | Ok(Err(_)) => return Ok((read, true)),
            Ok(Ok(_)) => {}
            Err(_) => return Ok((read, false)),
        }
    }
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n");
    let (read, _) = raw(address, &request).await?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn wait_for(file: &Path, child: &mut Child) -> Result<Ready> {
    let began = Instant::now();
    loop {
        if let Some(ready) =
            std::fs::read(file).ok().and_then(|text| serde_json::from_slice::<Ready>(&text).ok())
        {
            return Ok(ready);
        }
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("`souk serve` ended: {status}");
        }
        ensure!(began.elapsed() < COMPILED_WITHIN, "`souk serve` did not come up in {COMPILED_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn operators_read_health_and_metrics() -> Result<()> {
    let serve = Serve::start(HttpGuest::GOOD, &["--admin", "127.0.0.1:0"]).await?;
    let admin = serve.admin.context("an address of its own")?;
    for _ in 0..3 {
        ensure!(serve.get().await?.starts_with("HTTP/1.1 200"));
    }
    for path in ["/healthz", "/readyz"] {
        ensure!(get(admin, path).await?.starts_with("HTTP/1.1 200"), "{path}");
    }
    let metrics = get(admin, "/metrics").await?;
    // Compiled once, and by a child: only a child is held by layers of the kernel.
    for line in [
        "souk_http_requests_total{} 3",
        "souk_compilations_total{outcome=\"done\"} 1",
        "souk_compiler_held_by{",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    ensure!(get(admin, "/elsewhere").await?.starts_with("HTTP/1.1 404"));
    Ok(())
}

const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// Guests that fail after the head, each in its way.
fn partial() -> [(&'static str, HttpGuest); 5] {
    let mid = |mid_body| HttpGuest { mid_body, ..HttpGuest::GOOD };
    [
        ("trap", mid("unreachable")),
        ("endless loop", mid("(loop $l (br $l))")),
        ("stack overflow", mid("(call $deep)")),
        ("never finishes", mid("return")),
        // One byte in all, of nine that were promised.
        (
            "short of its length",
            HttpGuest {
                fields: "(call $append (local.get $fields) (i32.const 2112) (i32.const 14) (i32.const 2128) (i32.const 1) (i32.const 96))",
                ..HttpGuest::GOOD
            },
        ),
    ]
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_cut_short_on_http_1() -> Result<()> {
    for (name, guest) in partial() {
        let serve = Serve::start(guest, &[]).await?;
        let (read, closed) = serve.raw("GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n").await?;
        let text = String::from_utf8_lossy(&read).into_owned();
        // A guest that fails soon enough has no answer but an error; what it has must not look whole.
        let is_error = text.starts_with("HTTP/1.1 50");
        ensure!(is_error || name != "trap", "failed before anything was sent, and nobody is told: {text}");
        // Nothing at all is a broken connection too: the head had not left when the guest failed.
        ensure!(is_error || text.is_empty() || text.starts_with("HTTP/1.1 200"), "{name}: {text}");
        if !is_error {
            ensure!(closed, "{name}: the connection stays open: {text}");
            ensure!(!read.ends_with(b"0\r\n\r\n"), "{name}: ends as if it were whole: {text}");
            if let Some((_, length)) = text.split_once("content-length: ") {
                let said: usize = length.split("\r\n").next().unwrap_or_default().parse()?;
                let body = text.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
                ensure!(body < said, "{name}: {body} bytes of {said}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_cut_short_is_reset_on_http_2() -> Result<()> {
    for (name, guest) in partial() {
        let serve = Serve::start(guest, &[]).await?;
        let frames = serve.frames().await?;
        let of_stream: Vec<_> = frames.iter().filter(|(_, _, id, _)| *id == 1).collect();
        let reset = of_stream.iter().any(|(kind, ..)| *kind == RST_STREAM);
        // `:status 500` and `504` are not in the way of a guest that failed before its head was sent.
        let whole = of_stream.iter().any(|(kind, flags, ..)| *kind == DATA && flags & END_STREAM != 0);
        let problem = of_stream.iter().any(|(kind, _, _, body)| *kind == DATA && body.starts_with(b"{"));
        ensure!(reset || problem, "{name}: neither reset nor a problem: {frames:?}");
        ensure!(!whole || problem, "{name}: ends as if it were whole: {frames:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_guest_writes_frames_nothing() -> Result<()> {
    let append = |name: (u32, u32), value: (u32, u32)| {
        format!(
            "(call $append (local.get $fields) (i32.const {}) (i32.const {}) (i32.const {}) (i32.const {}) (i32.const 96))",
            name.0, name.1, value.0, value.1
        )
    };
    let (hello, length) = ((1024, 5), (2112, 14));
    let names = [(2064, 17), (2136, 10), (2152, 7), (2160, 4)];
    let mut fields: String = names.into_iter().map(|name| append(name, hello)).collect();
    // Two lengths, and a value with a line break.
    fields += &append((2048, 6), (2168, 16));
    let serve = Serve::start(HttpGuest { fields: fields.leak(), ..HttpGuest::GOOD }, &[]).await?;
    let answer = serve.get().await?;
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    let mut names: Vec<_> = head.lines().skip(1).filter_map(|line| line.split(':').next()).collect();
    names.sort_unstable();
    ensure!(names == ["connection", "date", "transfer-encoding"], "{answer}");
    ensure!(head.contains("transfer-encoding: chunked") && head.contains("connection: close"), "{answer}");
    ensure!(answer.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{answer}");

    let twice = append(length, (2128, 1)) + &append(length, (2128, 1));
    let serve = Serve::start(HttpGuest { fields: twice.leak(), ..HttpGuest::GOOD }, &[]).await?;
    let answer = serve.get().await?;
    ensure!(!answer.contains("hello") || !answer.contains("content-length: 9"), "{answer}");
    Ok(())
}

/// Connections that pipeline, and requests of each: two for each thread of a small machine, and so many that hyper
/// always has the next one at hand.
const PIPELINES: usize = 4;
const PIPELINED: usize = 96;
/// Some milliseconds of work, whatever the machine.
const WORKS: HttpGuest = HttpGuest {
    before_head: "(loop $l (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 4000000))))",
    ..HttpGuest::GOOD
};

#[tokio::test]
async fn whoever_asks_beside_pipelining_clients_is_answered_between_their_requests() -> Result<()> {
    let serve = Serve::start(WORKS, &[]).await?;
    let address = serve.address;
    let answered = Arc::new(AtomicUsize::new(0));
    let pipelines: Vec<_> =
        (0..PIPELINES).map(|_| tokio::spawn(pipeline(address, Arc::clone(&answered)))).collect();
    // An answer that needs no guest: it waits for nothing but the threads.
    let mut beside = TcpStream::connect(address).await?;
    let mut waits = Vec::new();
    loop {
        let before = answered.load(Ordering::Relaxed);
        beside.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        read_refusal(&mut beside).await?;
        let after = answered.load(Ordering::Relaxed);
        waits.push(after - before);
        if after == PIPELINES * PIPELINED {
            break;
        }
    }
    for pipeline in pipelines {
        pipeline.await??;
    }
    waits.sort_unstable();
    // The wait into which the median guest fell: one long wait hides neither behind many short ones, nor does one
    // hiccup of the machine count for more than it is. Fair is one guest of each connection, and what else ends while
    // question and answer are on their way.
    let mut ended = 0;
    let usual = waits.iter().find(|wait| {
        ended += **wait;
        ended * 2 >= PIPELINES * PIPELINED
    });
    ensure!(
        usual.is_some_and(|wait| *wait <= 4 * PIPELINES),
        "guests that ended while one waited: {waits:?}"
    );
    Ok(())
}

/// Asks for everything at once and counts what comes.
async fn pipeline(address: SocketAddr, answered: Arc<AtomicUsize>) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let requests = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n".repeat(PIPELINED);
    stream.write_all(requests.as_bytes()).await?;
    let mut read = Vec::new();
    let mut seen = 0;
    while seen < PIPELINED {
        ensure!(timeout(PATIENCE, stream.read_buf(&mut read)).await?? > 0, "closed after {seen} answers");
        let whole = read.windows(5).filter(|window| window == b"hello").count();
        answered.fetch_add(whole - seen, Ordering::Relaxed);
        seen = whole;
    }
    Ok(())
}

/// A request that names no host is refused, and its connection goes on.
async fn read_refusal(stream: &mut TcpStream) -> Result<()> {
    let mut read = Vec::new();
    loop {
        ensure!(timeout(PATIENCE, stream.read_buf(&mut read)).await?? > 0, "closed");
        let text = String::from_utf8_lossy(&read);
        ensure!(text.starts_with("HTTP/1.1 400"), "{text}");
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).context("a length")?;
            let length: usize = length.split("\r\n").next().unwrap_or_default().parse()?;
            if body.len() >= length {
                return Ok(());
            }
        }
    }
}

#[tokio::test]
async fn a_mebibyte_streams_and_instances_serve_as_often_as_they_are_told() -> Result<()> {
    let serve = Serve::start(STREAMS, &[]).await?;
    let answer = serve.get().await?;
    ensure!(answer.len() > 5 + 256 * 4096 && answer.ends_with("0\r\n\r\n"), "{} bytes", answer.len());

    for (reuse, expected) in [("1", "aaaa"), ("3", "abca")] {
        let serve = Serve::start(COUNTS, &["--reuse", reuse]).await?;
        let mut said = String::new();
        for _ in 0..4 {
            let answer = serve.get().await?;
            said += answer.split("5\r\n").nth(1).and_then(|body| body.get(..1)).context("a body")?;
        }
        ensure!(said == expected, "--reuse {reuse}: {said}");
    }
    Ok(())
}
