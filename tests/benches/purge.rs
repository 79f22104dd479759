//! How long a purge takes from the region to the word of every node that it is obeyed: eight real nodes on this machine,
//! over their links, each with its own disk.
//!
//! `cargo bench -p souk-tests --bench purge [-- --purges 1000 --nodes 8 --json]`
//!
//! Counted by the region, from before it writes the purge until the last node's acknowledgement arrives: what
//! `souk purge --wait` shows. All nodes and the region share this machine's processors and its disk.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::demo::Demo;

struct Options {
    purges: usize,
    nodes: usize,
    json: bool,
}

fn main() -> Result<()> {
    let options = options();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(&options))
}

async fn run(options: &Options) -> Result<()> {
    let nodes = options.nodes.to_string();
    let demo = Demo::start_with(&["--nodes", &nodes]).await?;
    let region = demo.operator();
    let (mut slowest, mut each) = (Vec::new(), Vec::new());
    for n in 0..options.purges {
        let told = region.post(&demo.site("/purges"), json!({"tags": [format!("tag-{n}")]})).await?;
        ensure!(told.status == 200, "{}", told.text());
        let version = told.json()["version"].as_u64().context("a purge has a version")?;
        let path = demo.site(&format!("/purges/{version}?wait_ms=10000"));
        let obeyed = region.get(&path).await?.json();
        ensure!(obeyed["done"] == true, "{obeyed}");
        let times: Vec<f64> = times(&obeyed)?;
        ensure!(times.len() == options.nodes, "{obeyed}");
        slowest.push(times.iter().copied().fold(0.0, f64::max));
        each.extend(times);
        // Not in step with anything that comes by the clock.
        tokio::time::sleep(Duration::from_micros(u64::try_from(n * 7_919 % 5_000)?)).await;
    }
    let [last_p50, last_p99] = percentiles(&mut slowest);
    let [node_p50, node_p99] = percentiles(&mut each);
    if options.json {
        println(&json!({
            "purges": options.purges, "nodes": options.nodes, "all_nodes_p50_ms": last_p50, "all_nodes_p99_ms": last_p99,
            "node_p50_ms": node_p50, "node_p99_ms": node_p99,
        })
        .to_string());
    } else {
        println(&format!(
            "{} purges, {} nodes: obeyed by all in p50 {last_p50:.1} ms, p99 {last_p99:.1} ms; by one in p50 {node_p50:.1} ms, p99 {node_p99:.1} ms",
            options.purges, options.nodes
        ));
    }
    demo.stop().await
}

fn times(obeyed: &Value) -> Result<Vec<f64>> {
    let nodes = obeyed["nodes"].as_array().context("the nodes are listed")?;
    nodes
        .iter()
        .map(|node| node["after_ms"].as_f64().context("the region has counted each node's time"))
        .collect()
}

fn percentiles(values: &mut [f64]) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len() - 1));
    [at(0.5), at(0.99)].map(|value| value.copied().unwrap_or_default())
}

/// Under `cargo test` a few purges, so that the bench cannot rot.
fn options() -> Options {
    let args: Vec<String> = std::env::args().collect();
    let number = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag)?;
        args.get(at + 1)?.parse().ok()
    };
    let measured = args.iter().any(|arg| arg == "--bench");
    let purges = if measured { 1_000 } else { 3 };
    let nodes = if measured { 8 } else { 2 };
    Options {
        purges: number("--purges").unwrap_or(purges),
        nodes: number("--nodes").unwrap_or(nodes),
        json: args.iter().any(|arg| arg == "--json"),
    }
}

#[expect(clippy::print_stdout, reason = "a bench speaks through its output")]
fn println(line: &str) {
    println!("{line}");
}
