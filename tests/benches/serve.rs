//! `souk serve` beside `wasmtime serve`, the same component, one core each for server and load.
//!
//! `cargo bench -p souk-tests --bench serve -- [--rounds 3] [--seconds 3] [--js FILE] [--component FILE]`
//!
//! The peer is the command that `WASMTIME` names (`cargo install wasmtime-cli --version 48.0.8 --locked`); without it
//! only our own figures are shown. Servers take turns within each round, so that a machine that grows slower is slower
//! for all; a ratio is between the medians. Processor time per request is the steadier one of the two where a machine
//! has other tenants. The load is 64 connections that send the next request when the last answer
//! is whole. Without a component the guest is the smallest one that answers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[path = "../guests/wat.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the sandbox's own tests, which use the rest")]
mod guests;

#[path = "../guests/http.rs"]
#[allow(dead_code, unreachable_pub, reason = "as above")]
mod http_guests;

const CONNECTIONS: usize = 64;
const WARM: Duration = Duration::from_millis(500);
const START_MAX: Duration = Duration::from_secs(120);

struct Options {
    rounds: usize,
    time: Duration,
    js: Option<PathBuf>,
    component: Option<PathBuf>,
}

/// One server and what it is started with, `PORT` and `FILE` left open.
struct Side {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
}

const SOUK_FRESH: &[&str] = &["serve", "FILE", "--listen", "127.0.0.1:PORT", "--log", "error"];
const SOUK_REUSE: &[&str] =
    &["serve", "FILE", "--listen", "127.0.0.1:PORT", "--log", "error", "--reuse", "1000000"];
const PEER_DEFAULT: &[&str] =
    &["serve", "-Scli", "--addr", "127.0.0.1:PORT", "FILE", "--max-instance-reuse-count", "1"];
/// What its guide to fast instantiation names: the pool, and 64 KiB of each memory kept.
const PEER_POOLED: &[&str] = &[
    "serve",
    "-Scli",
    "--addr",
    "127.0.0.1:PORT",
    "--max-instance-reuse-count",
    "1",
    "-Opooling-allocator=y",
    "-Opooling-memory-keep-resident=65536",
    "FILE",
];
/// The fastest flags found for a fresh instance per request: tables and stacks kept too.
const PEER_ALL_KEPT: &[&str] = &[
    "serve",
    "-Scli",
    "--addr",
    "127.0.0.1:PORT",
    "--max-instance-reuse-count",
    "1",
    "-Opooling-allocator=y",
    "-Opooling-memory-keep-resident=65536",
    "-Opooling-table-keep-resident=65536",
    "-Opooling-async-stack-keep-resident=65536",
    "-Omemory-init-cow=y",
    "FILE",
];
const PEER_REUSE: &[&str] = &[
    "serve",
    "-Scli",
    "--addr",
    "127.0.0.1:PORT",
    "--max-instance-reuse-count",
    "1000000",
    "-Opooling-allocator=y",
    "-Opooling-memory-keep-resident=65536",
    "-Opooling-table-keep-resident=65536",
    "-Opooling-async-stack-keep-resident=65536",
    "FILE",
];

fn main() -> Result<()> {
    let options = options()?;
    // The load on core 1, each server on core 0.
    let pinned = Command::new("taskset").args(["-cp", "1", &std::process::id().to_string()]).output();
    ensure!(pinned.is_ok_and(|done| done.status.success()), "taskset is needed, and a second core");
    let dir = tempfile::tempdir()?;
    let hello = match &options.component {
        Some(file) => file.clone(),
        None => {
            let file = dir.path().join("hello.wasm");
            std::fs::write(&file, http_guests::HttpGuest::GOOD.component())?;
            file
        }
    };
    let souk = souk_tests::souk().to_path_buf();
    let peer = std::env::var_os("WASMTIME").map(PathBuf::from);
    let ours = |name, arguments| Side { name, program: souk.clone(), arguments };
    let theirs = |name, arguments| peer.clone().map(|program| Side { name, program, arguments });

    let mut sides = vec![ours("souk serve, fresh", SOUK_FRESH), ours("souk serve, reuse", SOUK_REUSE)];
    sides.extend(theirs("wasmtime serve, default", PEER_DEFAULT));
    sides.extend(theirs("wasmtime serve, pooled, memory kept", PEER_POOLED));
    sides.extend(theirs("wasmtime serve, pooled, all kept", PEER_ALL_KEPT));
    sides.extend(theirs("wasmtime serve, reuse", PEER_REUSE));
    compare("smallest guest", &sides, &hello, &options)?;
    if let Some(js) = &options.js {
        let mut sides = vec![ours("souk serve, fresh", SOUK_FRESH)];
        sides.extend(theirs("wasmtime serve, pooled, memory kept", PEER_POOLED));
        sides.extend(theirs("wasmtime serve, pooled, all kept", PEER_ALL_KEPT));
        compare("JavaScript", &sides, js, &options)?;
    }
    Ok(())
}

fn compare(what: &str, sides: &[Side], component: &Path, options: &Options) -> Result<()> {
    let mut rates = vec![Vec::new(); sides.len()];
    let mut slow = vec![Duration::ZERO; sides.len()];
    let mut servers = Vec::new();
    for side in sides {
        servers.push(Server::start(side, component)?);
    }
    for _ in 0..options.rounds {
        for (at, server) in servers.iter().enumerate() {
            load(server.address, WARM)?;
            let before = server.processor()?;
            let (answers, p99) = load(server.address, options.time)?;
            let spent = server.processor()? - before;
            rates[at].push((
                answers as f64 / options.time.as_secs_f64(),
                spent.as_secs_f64() * 1e6 / answers as f64,
            ));
            slow[at] = slow[at].max(p99);
        }
    }
    souk_tests::say(&format!(
        "\n{what}: {CONNECTIONS} connections, {} rounds of {:?}",
        options.rounds, options.time
    ));
    souk_tests::say("Ratios: requests/s of ours by its, then its processor time per request by ours.");
    souk_tests::say("| server | requests/s | CPU per request | p99 | souk fresh to it | souk reuse to it |");
    souk_tests::say("|---|---|---|---|---|---|");
    let median = |at: usize, pick: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = rates[at].iter().map(pick).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let reuse_at = sides.iter().position(|side| side.name == "souk serve, reuse");
    for (at, side) in sides.iter().enumerate() {
        let rate = median(at, |round| round.0);
        let spent = median(at, |round| round.1);
        let ratio = |of: Option<usize>| {
            of.map_or_else(
                || "-".to_owned(),
                |of| {
                    let (our_rate, our_spent) = (median(of, |round| round.0), median(of, |round| round.1));
                    format!("{:.2} x, {:.2} x", our_rate / rate, spent / our_spent)
                },
            )
        };
        souk_tests::say(&format!(
            "| {} | {:.0} | {:.1} us | {:.2} ms | {} | {} |",
            side.name,
            rate,
            spent,
            slow[at].as_secs_f64() * 1e3,
            ratio(Some(0)),
            ratio(reuse_at),
        ));
    }
    Ok(())
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(side: &Side, component: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let fill = |argument: &&str| {
            argument.replace("PORT", &port.to_string()).replace("FILE", &component.to_string_lossy())
        };
        let child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(&side.program)
            .args(side.arguments.iter().map(fill))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", side.name))?;
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        let began = Instant::now();
        while std::net::TcpStream::connect(server.address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{} ended: {status}", side.name);
            }
            ensure!(began.elapsed() < START_MAX, "{} does not listen", side.name);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Processor time that the server has used.
    fn processor(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = fields.get(11).context("utime")?.parse::<u64>()?
            + fields.get(12).context("stime")?.parse::<u64>()?;
        // USER_HZ is 100 on every Linux that runs this.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How many answers came in `time`, and how late the slowest hundredth was.
fn load(address: SocketAddr, time: Duration) -> Result<(usize, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let until = Instant::now() + time;
        let clients: Vec<_> = (0..CONNECTIONS).map(|_| tokio::spawn(client(address, until))).collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await??);
        }
        ensure!(!latencies.is_empty(), "no answer came");
        let slow = latencies.len() * 99 / 100;
        let (_, p99, _) = latencies.select_nth_unstable(slow);
        let p99 = *p99;
        Ok((latencies.len(), p99))
    })
}

async fn client(address: SocketAddr, until: Instant) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let (mut latencies, mut read) = (Vec::new(), Vec::with_capacity(4096));
    loop {
        let began = Instant::now();
        if began >= until {
            return Ok(latencies);
        }
        stream.write_all(request.as_bytes()).await?;
        read.clear();
        while !is_whole(&read)? {
            ensure!(stream.read_buf(&mut read).await? > 0, "the server closed the connection");
        }
        latencies.push(began.elapsed());
    }
}

/// Whether an answer is here to its end; an answer that is not 200 is an error.
fn is_whole(read: &[u8]) -> Result<bool> {
    let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(false) };
    ensure!(read.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(read));
    let head = read[..end].to_ascii_lowercase();
    let body = &read[end + 4..];
    let length = head.windows(16).position(|name| name == b"content-length: ").map(|at| {
        head[at + 16..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .fold(0, |n, b| n * 10 + usize::from(b - b'0'))
    });
    Ok(match length {
        Some(length) => body.len() >= length,
        None => body.ends_with(b"0\r\n\r\n"),
    })
}

fn options() -> Result<Options> {
    let mut options = Options { rounds: 3, time: Duration::from_secs(3), js: None, component: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs_f64(value()?.parse()?),
            "--js" => options.js = Some(value()?.into()),
            "--component" => options.component = Some(value()?.into()),
            // cargo says so.
            "--bench" => {}
            other => bail!("{other} is not known"),
        }
    }
    Ok(options)
}
