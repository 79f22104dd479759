//! What the platform adds to a plugin call: a cart of 20 lines priced through [`Chain::price`] (budgets, breaker,
//! metrics, answer checks, quote arithmetic, price guard) beside a bare wasmtime loop that only instantiates, calls
//! and drops. Same component, same arguments, same engine settings; alternating rounds in the same minute.
//!
//! `cargo bench -p souk-tests --bench hook [-- --rounds 20 --json]`
//!
//! Times are this thread's processor time, so that a neighbour on the machine does not count. The component is the
//! first-party pricing plugin: taken from `SOUK_PRICING_COMPONENT`, else built by `souk plugin build`.

use std::hint::black_box;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::time::ClockId;
use prometheus_client::registry::Registry;
use souk_commerce::cart::LineKey;
use souk_commerce::id::PluginName;
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{Guard, OnFault, Release};
use souk_sandbox::{Call, Chain, HookEngine, HookLimits, HookPlugin, Level, Metrics, SiteData};

/// A typical large cart; the target of 1.3 is stated for it.
const LINES: usize = 20;
/// Processor time of one round of one side.
const ROUND: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let options = options();
    let component = component()?;
    let limits = HookLimits::default();
    let mut bare = bare::Loop::new(&component, &limits)?;
    let mut whole = Whole::new(&component, limits)?;

    let adjustments = bare.call()?;
    let applied = whole.price()?;
    ensure!(adjustments == applied, "bare answered {adjustments} adjustments, the chain applied {applied}");

    // Warm: pools, allocator, branch predictors.
    measure(|| bare.call().map(drop), ROUND)?;
    measure(|| whole.price().map(drop), ROUND)?;
    let mut rounds = Vec::new();
    for round in 0..options.rounds {
        // Whoever goes first in a round has the colder caches.
        let (bare_ns, whole_ns) = if round % 2 == 0 {
            let bare_ns = measure(|| bare.call().map(drop), ROUND)?;
            (bare_ns, measure(|| whole.price().map(drop), ROUND)?)
        } else {
            let whole_ns = measure(|| whole.price().map(drop), ROUND)?;
            (measure(|| bare.call().map(drop), ROUND)?, whole_ns)
        };
        rounds.push((bare_ns, whole_ns));
    }
    report(&options, adjustments, &rounds);
    Ok(())
}

struct Options {
    rounds: u32,
    json: bool,
}

fn options() -> Options {
    let mut options = Options { rounds: 20, json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => {
                options.rounds = words.next().and_then(|n| n.parse().ok()).unwrap_or(options.rounds).max(1)
            }
            "--json" => options.json = true,
            // `cargo bench` adds `--bench`; `cargo test --benches` asks for a quick look.
            "--test" => options.rounds = 1,
            _ => {}
        }
    }
    options
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
fn report(options: &Options, adjustments: usize, rounds: &[(f64, f64)]) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let bare = median(rounds.iter().map(|round| round.0).collect());
    let whole = median(rounds.iter().map(|round| round.1).collect());
    // Of pairs from the same moment, so that a slow minute of the machine slows both sides of a ratio.
    let ratio = median(rounds.iter().map(|(bare, whole)| whole / bare).collect());
    if options.json {
        let line = serde_json::json!({
            "lines": LINES, "adjustments": adjustments, "rounds": rounds.len(),
            "bare_ns_per_call": bare.round(), "chain_ns_per_call": whole.round(), "ratio": (ratio * 1e3).round() / 1e3,
        });
        println!("{line}");
    } else {
        println!("pricing hook, {LINES} lines, {adjustments} adjustments, median of {} rounds", rounds.len());
        println!("  bare wasmtime loop  {bare:>10.0} ns/call");
        println!("  Chain::price        {whole:>10.0} ns/call");
        println!("  ratio               {ratio:>10.3}  (target: at most 1.3)");
        if cfg!(debug_assertions) {
            println!("  a debug build: run it with `cargo bench`");
        }
    }
}

/// Processor nanoseconds per call.
fn measure(mut call: impl FnMut() -> Result<()>, at_least: Duration) -> Result<f64> {
    let now = || ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from);
    let start = now()?;
    let mut calls = 0_u32;
    loop {
        for _ in 0..50 {
            call()?;
        }
        calls += 50;
        let elapsed = now()? - start;
        if elapsed >= at_least {
            return Ok(elapsed.as_nanos() as f64 / f64::from(calls));
        }
    }
}

fn component() -> Result<Vec<u8>> {
    let path = match std::env::var_os("SOUK_PRICING_COMPONENT") {
        Some(path) => PathBuf::from(path),
        None => {
            let path = souk_tests::root().join("target").join("souk-bench-pricing.wasm");
            let built = Command::new(souk_tests::souk())
                .current_dir(souk_tests::root())
                .args(["plugin", "build", "plugins/pricing", "--out"])
                .arg(&path)
                .stdout(std::process::Stdio::null())
                .status()
                .context("run souk plugin build")?;
            ensure!(built.success(), "souk plugin build plugins/pricing failed");
            path
        }
    };
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Breaks by tag, a segment, a country and a coupon: each line gets two or three adjustments.
fn settings() -> serde_json::Value {
    serde_json::json!({
        "quantity_breaks": [
            { "tag": "mug", "breaks": [ { "at": 12, "off_bp": 500 }, { "at": 48, "off_bp": 1000 } ] },
            { "breaks": [ { "at": 240, "off_bp": 300 } ], "label": "Case price" },
        ],
        "segments": [ { "segment": "trade", "off_bp": 1250 } ],
        "countries": [ { "country": "FR", "tag": "heavy", "change_bp": 450, "label": "Heavy goods to France" } ],
        "coupons": [ { "code": "WELCOME10", "off_bp": 1000, "min_total": 2000 } ],
    })
}

fn lines() -> Vec<(LineKey, u32, Listed)> {
    (0..LINES)
        .map(|i| {
            let sku = format!("{}", 84_879 + i);
            let tags = if i % 2 == 0 { ["mug", "kitchen"] } else { ["heavy", "garden"] };
            let product = Product {
                sku: sku.parse().expect("digits are a sku"),
                title: format!("White hanging heart T-light holder, no. {i}"),
                description: String::new(),
                tags: tags.map(str::to_owned).to_vec(),
                attributes: vec![
                    ("colour".to_owned(), "white".to_owned()),
                    ("material".to_owned(), "tin".to_owned()),
                ],
                image: None,
            };
            let listed = Listed {
                price: PriceRow {
                    price: Minor(255 + 10 * i as i64),
                    compare_at: None,
                    floor: Some(Minor(100)),
                },
                product: Arc::new(product),
                price_version: 1,
                stock: StockHint::InStock,
            };
            (LineKey::of(listed.product.sku.clone()), 1 + 3 * (i as u32 % 6), listed)
        })
        .collect()
}

struct NoData;

impl SiteData for NoData {
    fn product(&self, _: &str) -> Option<Listed> {
        None
    }

    fn kv(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn log(&self, _: &PluginName, _: Level, _: &str) {}
}

/// The platform's way: as the node prices a cart.
struct Whole {
    chain: Chain,
    lines: Vec<(LineKey, u32, Listed)>,
    data: Arc<dyn SiteData>,
}

impl Whole {
    fn new(component: &[u8], limits: HookLimits) -> Result<Self> {
        let plugin: Arc<HookPlugin> = HookEngine::new(limits)?.load(component)?;
        let release = Release {
            plugin: "pricing".parse()?,
            number: 1,
            component: plugin.digest(),
            hooks: plugin.hooks().to_vec(),
            settings: settings(),
            on_fault: OnFault::Open,
            kind: Default::default(),
            grants: Default::default(),
            route: None,
            reuse: 0,
            record_bp: 0,
            seal: None,
        };
        let metrics = Metrics::register(&mut Registry::default());
        let chain = Chain::with_metrics(&"shop".parse()?, vec![(release, plugin)], &metrics);
        Ok(Self { chain, lines: lines(), data: Arc::new(NoData) })
    }

    /// How many adjustments the quote has.
    fn price(&mut self) -> Result<usize> {
        let call = Call {
            now_ms: 1_795_910_400_000,
            currency: "GBP".parse()?,
            country: Some("FR".parse()?),
            region: None,
            language: "fr".to_owned(),
            segments: vec!["trade".to_owned()],
            customer: None,
            coupons: vec!["WELCOME10".parse()?],
            seed: 7,
            data: &self.data,
        };
        let quote = self.chain.price(&call, &Guard::default(), self.lines.clone())?;
        ensure!(quote.fallbacks.is_empty(), "the plugin fell back: {:?}", quote.fallbacks);
        let quote = black_box(quote);
        Ok(quote.adjustments.len() + quote.lines.iter().map(|line| line.adjustments.len()).sum::<usize>())
    }
}

/// The least that wasmtime asks for: a store, an instance, a typed call. Arguments are made once, outside the loop.
mod bare {
    use wasmtime::component::{Component, HasSelf, InstancePre, Linker};
    use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

    use super::*;
    use exports::souk::plugin::pricing::GuestIndices;
    use souk::plugin::{host, types};

    mod bindings {
        wasmtime::component::bindgen!({
            path: "../sdk/wit",
            world: "souk:plugin/pricing-plugin",
            imports: { default: trappable },
            ownership: Borrowing { duplicate_if_necessary: true },
        });
    }
    use bindings::{exports, souk};

    struct Nothing;

    impl host::Host for Nothing {
        fn log(&mut self, _: host::Level, _: String) -> wasmtime::Result<()> {
            Ok(())
        }

        fn lookup_product(&mut self, _: String) -> wasmtime::Result<Option<types::ProductResult>> {
            Ok(None)
        }

        fn kv_get(&mut self, _: String) -> wasmtime::Result<Option<Vec<u8>>> {
            Ok(None)
        }
    }

    impl types::Host for Nothing {}

    pub(super) struct Loop {
        engine: Engine,
        pre: InstancePre<Nothing>,
        indices: GuestIndices,
        context: types::Context<'static>,
        lines: Vec<types::Line<'static>>,
    }

    impl Loop {
        pub(super) fn new(component: &[u8], limits: &HookLimits) -> Result<Self> {
            // As the hook engine sets them; see `souk-sandbox`.
            let mut pool = PoolingAllocationConfig::new();
            pool.max_memory_size(limits.memory_bytes_max)
                .table_elements(limits.table_elements_max)
                .linear_memory_keep_resident(64 << 10)
                .table_keep_resident(64 << 10);
            let mut config = Config::new();
            config
                .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
                .memory_init_cow(true)
                .epoch_interruption(true)
                .max_wasm_stack(limits.stack_bytes_max)
                .concurrency_support(false)
                .cranelift_nan_canonicalization(true)
                .relaxed_simd_deterministic(true)
                .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
            let engine = Engine::new(&config).map_err(plain)?;
            let mut linker = Linker::new(&engine);
            host::add_to_linker::<Nothing, HasSelf<Nothing>>(&mut linker, |nothing| nothing)
                .map_err(plain)?;
            let pre =
                linker.instantiate_pre(&Component::new(&engine, component).map_err(plain)?).map_err(plain)?;
            let indices = GuestIndices::new(&pre).map_err(plain)?;
            Ok(Self { engine, pre, indices, context: context(), lines: arguments() })
        }

        /// How many adjustments the guest answered.
        pub(super) fn call(&mut self) -> Result<usize> {
            let mut store = Store::new(&self.engine, Nothing);
            store.set_epoch_deadline(1_000_000);
            let instance = self.pre.instantiate(&mut store).map_err(plain)?;
            let guest = self.indices.load(&mut store, &instance).map_err(plain)?;
            let answer = guest.call_adjust(&mut store, self.context.clone(), &self.lines).map_err(plain)?;
            let adjustments = answer.map_err(|refusal| anyhow!("refused: {}", refusal.message))?;
            Ok(black_box(adjustments).len())
        }
    }

    fn context() -> types::Context<'static> {
        types::Context {
            now_ms: 1_795_910_400_000,
            currency: "GBP",
            country: "FR",
            region: None,
            language: "fr",
            segments: &["trade"],
            customer: None,
            coupons: &["WELCOME10"],
            seed: 7,
            settings: settings().to_string().leak(),
        }
    }

    /// Leaked: they borrow for as long as the process lives.
    fn arguments() -> Vec<types::Line<'static>> {
        let line = |((_, quantity, listed), id): (&'static (LineKey, u32, Listed), u32)| {
            let words =
                |words: &'static [String]| words.iter().map(String::as_str).collect::<Vec<_>>().leak();
            let pairs = listed.product.attributes.iter().map(|(name, value)| (&**name, &**value));
            types::Line {
                id,
                product: types::ProductParam {
                    sku: listed.product.sku.as_str(),
                    title: &listed.product.title,
                    price: listed.price.price.0,
                    compare_at: None,
                    tags: words(&listed.product.tags),
                    attributes: pairs.collect::<Vec<_>>().leak(),
                    stock: types::StockHint::InStock,
                },
                quantity: *quantity,
                amount: listed.price.price.0 * i64::from(*quantity),
                added_by: None,
            }
        };
        lines().leak().iter().zip(0..).map(line).collect()
    }

    fn plain(error: wasmtime::Error) -> anyhow::Error {
        anyhow!("{error:#}")
    }
}
