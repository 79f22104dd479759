//! Whether one site's plugins can slow another's: a neighbour's calls, timed by its clients, while a greedy site
//! keeps 32 callers busy with plugins that compute for 4 ms each.
//!
//! `cargo bench -p souk-tests --bench share [-- --rounds 7 --json]`
//!
//! Three rounds alternate on one runtime with a worker for each processor, as on a node: **quiet** (the neighbour
//! alone), **shared** (the greedy site beside it, every call in its turn: `souk_sandbox::Share`), **unshared** (the
//! same without turns, each call on the worker that took the request, as it would be without this part). The
//! neighbour's clients are threads of their own that hand over a request and wait for the answer, so the time that a
//! request waits for a worker counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{Guard, Hook, Release};
use souk_sandbox::{
    Call, Chain, HookEngine, HookLimits, Level, Share, ShareLimits, ShareMetrics, SiteData, Task,
};
use tokio::runtime::{Builder, Runtime};

#[path = "../guests/wat.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with tests that use the rest")]
mod guests;

use guests::{GOOD, Guest};

const ROUND: Duration = Duration::from_secs(2);
const GREEDY_CALLERS: usize = 32;
/// Two clients that pause between calls: an ordinary shop, far from its share.
const CLIENTS: u64 = 2;
const PAUSE: Duration = Duration::from_millis(2);
const GREEDY_CALL: Duration = Duration::from_millis(4);
const NEIGHBOUR_CALL: Duration = Duration::from_micros(100);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Quiet,
    Shared,
    Unshared,
}

fn main() -> Result<()> {
    let (rounds, json) = options();
    let workers = std::thread::available_parallelism()?.get();
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    // Two processors that share a core are slower together than alone, and 4 ms become 6: the load must stay legal.
    let limits = HookLimits { deadline: Duration::from_millis(50), ..HookLimits::default() };
    let engine = HookEngine::new(limits)?;
    let share = Share::new(&ShareLimits::default(), ShareMetrics::default())?;
    let per_ms = speed(&engine)?;
    let shop = |name, call: Duration| Shop::new(&engine, name, &share, turns(per_ms, call));
    let neighbour = shop("neighbour", NEIGHBOUR_CALL)?;
    let greedy = shop("greedy", GREEDY_CALL)?;

    // Warm: pools, code pages, the share's idea of what each site's calls cost.
    round(&runtime, &neighbour, &greedy, Mode::Shared, ROUND / 4)?;
    let mut figures = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (mode, figures) in [Mode::Quiet, Mode::Shared, Mode::Unshared].into_iter().zip(&mut figures) {
            figures.push(round(&runtime, &neighbour, &greedy, mode, ROUND)?);
        }
    }
    report(&mut figures, json);
    Ok(())
}

struct Shop {
    site: SiteId,
    chain: Arc<Chain>,
    share: Share,
}

impl Shop {
    fn new(engine: &HookEngine, name: &str, share: &Share, turns: u64) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { site: name.parse()?, chain: spinning(engine, turns)?, share: share.clone() }))
    }

    async fn ask(&self, mode: Mode) -> Result<()> {
        let chain = Arc::clone(&self.chain);
        let price = move || price(&chain);
        match mode {
            Mode::Unshared => price(),
            Mode::Quiet | Mode::Shared => {
                self.share.enter(&self.site, Task::Hook(Hook::Pricing)).await?.run(price).await
            }
        }
    }
}

struct Figures {
    p50: Duration,
    p99: Duration,
    calls: usize,
    greedy_calls: u64,
}

fn round(
    runtime: &Runtime,
    neighbour: &Arc<Shop>,
    greedy: &Arc<Shop>,
    mode: Mode,
    time: Duration,
) -> Result<Figures> {
    let (stop, greedy_calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers = if mode == Mode::Quiet { 0 } else { GREEDY_CALLERS };
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let (greedy, stop, calls) = (Arc::clone(greedy), Arc::clone(&stop), Arc::clone(&greedy_calls));
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    greedy.ask(mode).await?;
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let end = Instant::now() + time;
    let mut latencies = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || call(runtime, neighbour, mode, client, end)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no panic in a client"))
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        runtime.block_on(caller)??;
    }
    latencies.sort_unstable();
    let calls = latencies.len();
    // Without turns a call waits for the greedy site's callers one after the other: few end, and their p99 is the worst.
    ensure!(calls > 100 || mode == Mode::Unshared, "{calls} calls of the neighbour say nothing about a p99");
    let greedy_calls = greedy_calls.load(Ordering::Relaxed);
    Ok(Figures { p50: latencies[calls / 2], p99: latencies[calls * 99 / 100], calls, greedy_calls })
}

/// One client of the neighbour: asks, waits, pauses.
fn call(runtime: &Runtime, shop: &Arc<Shop>, mode: Mode, client: u64, end: Instant) -> Result<Vec<Duration>> {
    let mut latencies = Vec::new();
    // Pauses of different lengths, so that clients and ticks do not fall into step.
    let mut pauses = (0..).map(|n: u64| PAUSE + Duration::from_micros((n * 377 + client * 131) % 1_000));
    while Instant::now() < end {
        let began = Instant::now();
        let (tell, told) = sync_channel(1);
        let shop = Arc::clone(shop);
        runtime.spawn(async move {
            // Nobody has gone: the client waits for this.
            let _ = tell.send(shop.ask(mode).await);
        });
        told.recv()??;
        latencies.push(began.elapsed());
        std::thread::sleep(pauses.next().context("the pauses never end")?);
    }
    Ok(latencies)
}

fn report(figures: &mut [Vec<Figures>; 3], json: bool) {
    let median = |figures: &mut Vec<Figures>, of: fn(&Figures) -> Duration| {
        figures.sort_by_key(of);
        of(&figures[figures.len() / 2]).as_secs_f64() * 1e6
    };
    let names = ["quiet", "shared", "unshared"];
    let mut rows = Vec::new();
    for (name, figures) in names.iter().zip(figures) {
        let calls: usize = figures.iter().map(|figures| figures.calls).sum();
        let greedy: u64 = figures.iter().map(|figures| figures.greedy_calls).sum();
        let greedy = greedy as f64 / (figures.len() as f64 * ROUND.as_secs_f64());
        let p50 = median(figures, |figures| figures.p50);
        let p99 = median(figures, |figures| figures.p99);
        let (least, most) = (figures[0].p99, figures[figures.len() - 1].p99);
        rows.push((name, calls, p50, p99, least, most, greedy));
    }
    let quiet = rows[0].3;
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, calls, p50, p99, _, _, greedy)| {
                serde_json::json!({"round": name, "calls": calls, "p50_us": p50, "p99_us": p99, "greedy_per_s": greedy})
            })
            .collect();
        say(&serde_json::Value::from(rows).to_string());
        return;
    }
    say("neighbour's calls, medians over the rounds; greedy site: 32 callers, 4 ms each");
    for (name, calls, p50, p99, least, most, greedy) in rows {
        say(&format!(
            "{name:<9} {calls:>6} calls  p50 {p50:>8.1} us  p99 {p99:>8.1} us ({:+.1} %; {least:.0?} to {most:.0?})  greedy {greedy:>6.1} calls/s",
            (p99 / quiet - 1.0) * 100.0,
        ));
    }
}

/// A chain of one pricing plugin that counts so far before it answers.
fn spinning(engine: &HookEngine, turns: u64) -> Result<Arc<Chain>> {
    let run = format!(
        "(local $n i64) (local.set $n (i64.const {}))
         (loop $l (br_if $l (i64.ne (local.tee $n (i64.sub (local.get $n) (i64.const 1))) (i64.const 0))))
         (i32.const 64)",
        turns.max(1)
    );
    let loaded = engine.load(&Guest { run: run.leak(), ..GOOD }.component())?;
    let release: Release = serde_json::from_value(serde_json::json!({
        "plugin": "spin", "number": 1, "component": loaded.digest().to_string(), "hooks": ["pricing"],
    }))?;
    Ok(Arc::new(Chain::new(vec![(release, loaded)])))
}

/// Turns of the guest's loop in a millisecond of this machine.
fn speed(engine: &HookEngine) -> Result<u64> {
    const TURNS: u64 = 2_000_000;
    let chain = spinning(engine, TURNS)?;
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let began = Instant::now();
        price(&chain)?;
        best = best.min(began.elapsed());
    }
    Ok((TURNS as f64 / (best.as_secs_f64() * 1e3)) as u64)
}

fn turns(per_ms: u64, time: Duration) -> u64 {
    (per_ms as f64 * time.as_secs_f64() * 1e3) as u64
}

fn price(chain: &Chain) -> Result<()> {
    let data: Arc<dyn SiteData> = Arc::new(Nothing);
    let call = Call {
        now_ms: 1_000_000,
        currency: "GBP".parse()?,
        country: None,
        region: None,
        language: String::new(),
        segments: Vec::new(),
        customer: None,
        coupons: Vec::new(),
        seed: 0,
        data: &data,
    };
    let product = Product {
        sku: "MUG".parse()?,
        title: "A mug".to_owned(),
        description: String::new(),
        tags: Vec::new(),
        attributes: Vec::new(),
        image: None,
    };
    let listed = Listed {
        product: Arc::new(product),
        price: PriceRow { price: Minor(500), compare_at: None, floor: None },
        price_version: 1,
        stock: StockHint::InStock,
    };
    let quote = chain.price(&call, &Guard::default(), vec![(LineKey::of("MUG".parse()?), 2, listed)])?;
    // Neither a call that was cut short nor one that a breaker kept out would be the load that this is about.
    ensure!(quote.fallbacks.is_empty(), "{:?}", quote.fallbacks);
    Ok(())
}

struct Nothing;

impl SiteData for Nothing {
    fn product(&self, _: &str) -> Option<Listed> {
        None
    }

    fn kv(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn log(&self, _: &PluginName, _: Level, _: &str) {}
}

fn options() -> (usize, bool) {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let rounds = after("--rounds").and_then(|text| text.parse().ok()).unwrap_or(7);
    (rounds, arguments.iter().any(|argument| argument == "--json"))
}

#[expect(clippy::print_stdout, reason = "a benchmark's answer")]
fn say(line: &str) {
    println!("{line}");
}
