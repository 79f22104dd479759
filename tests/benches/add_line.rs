//! How many durable, priced-by-plugin cart lines a node takes over HTTP, beside the same number of operations put
//! into a bare redb by one committer with group commit: the limit that the disk and the engine set.
//!
//! `cargo bench -p souk-tests --bench add_line [-- --seconds 10 --in-flight 64 --json]`
//!
//! Both run in the same minute on the same disk, in alternating rounds, and the figure is their ratio. The demo
//! (a region and two nodes, as shipped) is raised for it and ended afterwards.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use redb::{Database, TableDefinition};
use souk_tests::demo::Demo;

/// About what one add-line operation weighs in the outbox.
const OPERATION_BYTES: usize = 200;
/// The committer's batch: as the node's.
const BATCH_OPS_MAX: usize = 1_024;
const ROUNDS: u32 = 3;

struct Options {
    seconds: u64,
    in_flight: usize,
    json: bool,
}

/// What one round showed.
struct Round {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn main() -> Result<()> {
    let options = options();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let demo = runtime.block_on(Demo::start())?;
    let seconds = Duration::from_secs(options.seconds);
    let (mut node, mut bare) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        bare.push(bare_redb(demo.dir(), options.in_flight, seconds)?);
        node.push(runtime.block_on(add_lines(demo.nodes()[0].http, options.in_flight, seconds))?);
        say(&options, round, bare.last().zip(node.last()).context("both rounds ran")?);
    }
    let best = |rounds: &[Round]| rounds.iter().map(|r| r.per_second).fold(0.0, f64::max);
    let p99 = node.iter().map(|r| r.p99).min().context("a round ran")?;
    let (node, bare) = (best(&node), best(&bare));
    if options.json {
        let line = serde_json::json!({
            "in_flight": options.in_flight, "add_line_per_second": node, "bare_redb_per_second": bare,
            "ratio": node / bare, "add_line_p99_ms": p99.as_secs_f64() * 1e3,
        });
        println(&line.to_string());
    } else {
        println(&format!(
            "best of {ROUNDS}: add-line {node:.0}/s, bare redb {bare:.0}/s, ratio {:.2}, add-line p99 {:.1} ms",
            node / bare,
            p99.as_secs_f64() * 1e3
        ));
    }
    runtime.block_on(demo.stop())
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
fn println(line: &str) {
    println!("{line}");
}

fn say(options: &Options, round: u32, (bare, node): (&Round, &Round)) {
    if !options.json {
        let row = |name: &str, r: &Round| {
            format!(
                "round {round}  {name:<10} {:>8.0}/s  p50 {:>7.2?}  p99 {:>7.2?}",
                r.per_second, r.p50, r.p99
            )
        };
        println(&row("bare redb", bare));
        println(&row("add-line", node));
    }
}

fn options() -> Options {
    let mut options = Options { seconds: 5, in_flight: 64, json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse().ok());
        match word.as_str() {
            "--seconds" => options.seconds = number().unwrap_or(options.seconds),
            "--in-flight" => options.in_flight = number().unwrap_or(64) as usize,
            "--json" => options.json = true,
            // `cargo bench` adds `--bench`; `cargo test --benches` asks for a quick look.
            "--test" => options.seconds = 1,
            _ => {}
        }
    }
    options
}

fn summary(mut latencies: Vec<Duration>, elapsed: Duration) -> Result<Round> {
    ensure!(!latencies.is_empty(), "no operation was answered");
    latencies.sort_unstable();
    let at = |q: usize| latencies[(latencies.len() - 1) * q / 100];
    Ok(Round { per_second: latencies.len() as f64 / elapsed.as_secs_f64(), p50: at(50), p99: at(99) })
}

/// Producers that together keep `in_flight` operations waiting for one committer.
fn bare_redb(dir: &std::path::Path, in_flight: usize, seconds: Duration) -> Result<Round> {
    const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");
    const PRODUCERS: usize = 4;
    let path = dir.join("bare.redb");
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let database = Database::create(&path)?;
    let (queue, waiting) = mpsc::sync_channel::<(Vec<u8>, mpsc::SyncSender<()>)>(in_flight);
    let committer = std::thread::spawn(move || -> Result<()> {
        let mut sequence = 0;
        while let Ok(first) = waiting.recv() {
            let mut batch = vec![first];
            batch.extend(std::iter::from_fn(|| waiting.try_recv().ok()).take(BATCH_OPS_MAX - 1));
            let transaction = database.begin_write()?;
            {
                let mut outbox = transaction.open_table(OUTBOX)?;
                for (operation, _) in &batch {
                    sequence += 1;
                    outbox.insert(sequence, operation.as_slice())?;
                }
            }
            transaction.commit()?;
            for (_, answer) in batch {
                // The producer of a finished round is gone; its operation is durable all the same.
                let _ = answer.send(());
            }
        }
        Ok(())
    });
    let began = Instant::now();
    let end = began + seconds;
    let produce = |queue: mpsc::SyncSender<(Vec<u8>, mpsc::SyncSender<()>)>| {
        std::thread::spawn(move || -> Result<Vec<Duration>> {
            let (mut latencies, mut waiting) = (Vec::new(), VecDeque::new());
            while Instant::now() < end {
                while waiting.len() < in_flight.div_ceil(PRODUCERS) {
                    let (answer, answered) = mpsc::sync_channel(1);
                    let sent = Instant::now();
                    queue.send((vec![7; OPERATION_BYTES], answer)).context("the committer ended")?;
                    waiting.push_back((sent, answered));
                }
                if let Some((sent, answered)) = waiting.pop_front() {
                    answered.recv().context("the committer dropped an operation")?;
                    latencies.push(sent.elapsed());
                }
            }
            Ok(latencies)
        })
    };
    let producers: Vec<_> = (0..PRODUCERS).map(|_| produce(queue.clone())).collect();
    drop(queue);
    let mut latencies = Vec::new();
    for producer in producers {
        latencies.extend(producer.join().expect("a producer does not panic")?);
    }
    let elapsed = began.elapsed();
    committer.join().expect("the committer does not panic")?;
    std::fs::remove_file(&path)?;
    summary(latencies, elapsed)
}

/// One connection per operation in flight, each with carts of its own.
async fn add_lines(addr: SocketAddr, in_flight: usize, seconds: Duration) -> Result<Round> {
    let began = Instant::now();
    let end = began + seconds;
    let mut shoppers = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        shoppers.spawn(shopper(addr, end));
    }
    let mut latencies = Vec::new();
    while let Some(shopper) = shoppers.join_next().await {
        latencies.extend(shopper.context("a shopper's task ended")??);
    }
    summary(latencies, began.elapsed())
}

async fn shopper(addr: SocketAddr, end: Instant) -> Result<Vec<Duration>> {
    /// A cart of twenty lines, then another one, as in the data (median 9, p95 62).
    const LINES: usize = 20;
    let stream = tokio::net::TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut latencies = Vec::new();
    let skus = souk_tests::demo::SAMPLE_SKUS;
    while Instant::now() < end {
        let cart = post(&mut sender, "/api/carts", r#"{"country":"GB"}"#).await?;
        let cart = cart["cart"].as_str().context("a new cart has a name")?.to_owned();
        for line in 0..LINES {
            let body = format!(r#"{{"sku":"{}","quantity":1}}"#, skus[line % skus.len()]);
            let sent = Instant::now();
            post(&mut sender, &format!("/api/carts/{cart}/lines"), &body).await?;
            latencies.push(sent.elapsed());
            if Instant::now() >= end {
                break;
            }
        }
    }
    driver.abort();
    Ok(latencies)
}

async fn post(
    sender: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    path: &str,
    body: &str,
) -> Result<serde_json::Value> {
    let request = Request::post(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))?;
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}
