//! Two sites' plugins on the same engine, under load from several threads: nothing of one is ever seen by the other,
//! neither in memory nor in logs, metrics or edge data.
//!
//! Each site has two plugins in its chain: one component that both sites use, and so the same memory slots, and one of
//! its own. A plugin first looks through its memory and its global for anything that a call before it has left, then
//! reads its site's canary from the edge data, fills its memory with it, logs it, and puts it into the quote. The host
//! looks at everything that comes out.
//!
//! A million calls in a release build (`cargo test -p souk-tests --release --test it crossing -- --nocapture`), a
//! hundred thousand in a debug build.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use prometheus_client::registry::Registry;
use souk_commerce::cart::LineKey;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::quote::Quote;
use souk_commerce::site::{Guard, OnFault, Release};
use souk_sandbox::account::{Ended, Outcome};
use souk_sandbox::{Call, Chain, HookEngine, HookLimits, HookPlugin, Level, Metrics, SiteData};

use super::guests::{GOOD, Guest};

const CALLS: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
/// More than there are processors, so that calls of both sites are under way at once and slots change hands.
const THREADS: u64 = 4;
const PLUGINS: [&str; 2] = ["shared", "own"];
const SITES: [&str; 2] = ["alpha", "beta"];

/// The second and third page of its memory hold the canary; the page before them the call itself.
const WITNESS: Guest = Guest {
    memory: "3",
    run: r#"(local $at i32) (local $canary i64)
        ;; Anything that was not there when the instance was made?
        (if (i64.ne (global.get $mark) (i64.const 0)) (then unreachable))
        (local.set $at (i32.const 65536))
        (loop $look
            (if (i64.ne (i64.const 0) (i64.or
                    (i64.or (i64.load (local.get $at)) (i64.load offset=8 (local.get $at)))
                    (i64.or (i64.load offset=16 (local.get $at)) (i64.load offset=24 (local.get $at)))))
                ;; Into the quote with it, as it lies there.
                (then (i32.store (i32.const 288) (local.get $at)) (i32.store (i32.const 292) (i32.const 32))
                      (return (i32.const 64))))
            (br_if $look (i32.lt_u
                (local.tee $at (i32.add (local.get $at) (i32.const 32))) (i32.const 196608))))
        ;; option<list<u8>> at 512.
        (call $kv (i32.const 1024) (i32.const 6) (i32.const 512))
        (if (i32.ne (i32.load (i32.const 520)) (i32.const 16)) (then unreachable))
        (local.set $canary (i64.load (i32.load (i32.const 516))))
        (global.set $mark (local.get $canary))
        (local.set $at (i32.const 65536))
        (loop $fill
            (i64.store (local.get $at) (local.get $canary)) (i64.store offset=8 (local.get $at) (local.get $canary))
            (i64.store offset=16 (local.get $at) (local.get $canary)) (i64.store offset=24 (local.get $at) (local.get $canary))
            (br_if $fill (i32.lt_u
                (local.tee $at (i32.add (local.get $at) (i32.const 32))) (i32.const 196608))))
        (call $log (i32.const 1) (i32.load (i32.const 516)) (i32.const 16))
        ;; The label of the one adjustment.
        (i32.store (i32.const 288) (i32.load (i32.const 516))) (i32.store (i32.const 292) (i32.const 16))
        (i32.const 64)"#,
    fields: SHARED_FIELDS,
    ..GOOD
};

/// ok([{ target: cart, effect: percent(-1000), code: "canary", label: … }])
const SHARED_FIELDS: &str = r#"
    (global $mark (mut i64) (i64.const 0))
    (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
    (data (i32.const 256) "\01\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00\18\fc\ff\ff\00\00\00\00"
                          "\00\04\00\00\06\00\00\00" "\00\00\00\00\00\00\00\00")
    (data (i32.const 1024) "canary")"#;

/// A site's data, which watches what the site's plugins say of it.
struct Site {
    name: SiteId,
    canary: String,
    logged: AtomicU64,
    crossed_logs: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Site {
    fn new(name: &str) -> Result<Self> {
        let canary = format!("{name:-<8}").repeat(2);
        ensure!(canary.len() == 16, "a canary fills whole words");
        let zero = AtomicU64::default;
        Ok(Self {
            name: name.parse()?,
            canary,
            logged: zero(),
            crossed_logs: zero(),
            answered: zero(),
            failed: zero(),
        })
    }
}

impl SiteData for Site {
    fn product(&self, _: &str) -> Option<Listed> {
        None
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        (key == "canary").then(|| self.canary.clone().into_bytes())
    }

    fn log(&self, _: &PluginName, _: Level, text: &str) {
        self.logged.fetch_add(1, Ordering::Relaxed);
        if text != self.canary {
            self.crossed_logs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn ended(&self, ended: &Ended<'_>) {
        let well = ended.outcome == Outcome::Answered;
        if well { &self.answered } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn nothing_crosses_between_two_sites() -> Result<()> {
    // Far from the default deadline: a debug build on a busy machine must not turn a call into a fault.
    let limits = HookLimits { deadline: std::time::Duration::from_millis(200), ..HookLimits::default() };
    let engine = HookEngine::new(limits)?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let shared = engine.load(&WITNESS.component())?;
    let mut sites = Vec::new();
    for name in SITES {
        let site = Arc::new(Site::new(name)?);
        let fields = format!("{SHARED_FIELDS} (data (i32.const 1100) \"only of {name}\")").leak();
        let own = engine.load(&Guest { fields, ..WITNESS }.component())?;
        let steps = PLUGINS.iter().zip([Arc::clone(&shared), own]);
        let steps =
            steps.map(|(name, loaded)| Ok((release(name, &loaded)?, loaded))).collect::<Result<_>>()?;
        sites.push((Arc::clone(&site), Chain::with_metrics(&site.name, steps, &metrics)));
    }

    let quotes = CALLS / PLUGINS.len() as u64 / THREADS;
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn({
                    let sites = &sites;
                    move || price(sites, thread, quotes)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in the host"))
    })?;

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    let mut calls = 0;
    for (site, _) in &sites {
        let [logged, crossed, answered, failed] =
            [&site.logged, &site.crossed_logs, &site.answered, &site.failed]
                .map(|n| n.load(Ordering::Relaxed));
        ensure!((crossed, failed) == (0, 0), "{}: {crossed} logs crossed, {failed} calls failed", site.name);
        ensure!(logged == answered, "{}: {logged} lines of {answered} calls", site.name);
        for plugin in PLUGINS {
            let line = format!(
                "souk_hook_calls_total{{site=\"{}\",plugin=\"{plugin}\",hook=\"pricing\"}} {}\n",
                site.name,
                answered / PLUGINS.len() as u64
            );
            ensure!(text.contains(&line), "{line} is not in\n{text}");
        }
        calls += answered;
    }
    ensure!(calls == CALLS, "{calls} of {CALLS} calls");
    ensure!(!text.contains("souk_hook_faults_total{"), "faults were counted:\n{text}");
    say(&format!("{calls} calls of 2 sites on {THREADS} threads, 0 crossings, in {:.1?}", began.elapsed()));
    Ok(())
}

/// Prices one site's cart or the other's, in an order that no two threads share.
fn price(sites: &[(Arc<Site>, Chain)], thread: u64, quotes: u64) -> Result<()> {
    let mut chance = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(thread + 1);
    let lines = vec![(LineKey::of("MUG".parse()?), 2, mug()?)];
    for _ in 0..quotes {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let (site, chain) = &sites[usize::from(chance & 1 == 1)];
        let data: Arc<dyn SiteData> = Arc::clone(site) as Arc<dyn SiteData>;
        let call = Call {
            now_ms: 1_000_000,
            currency: "GBP".parse()?,
            country: None,
            region: None,
            language: String::new(),
            segments: Vec::new(),
            customer: None,
            coupons: Vec::new(),
            seed: chance,
            data: &data,
        };
        let quote = chain.price(&call, &Guard::default(), lines.clone())?;
        check(&quote, site)?;
    }
    Ok(())
}

fn check(quote: &Quote, site: &Site) -> Result<()> {
    ensure!(quote.fallbacks.is_empty(), "{}: {:?}", site.name, quote.fallbacks);
    ensure!(quote.adjustments.len() == PLUGINS.len(), "{}: {:?}", site.name, quote.adjustments);
    for (adjustment, plugin) in quote.adjustments.iter().zip(PLUGINS) {
        ensure!(adjustment.plugin.as_str() == plugin, "{adjustment:?}");
        ensure!(adjustment.label == site.canary, "{} was told of {:?}", site.name, adjustment.label);
    }
    Ok(())
}

fn release(name: &str, loaded: &HookPlugin) -> Result<Release> {
    // By way of JSON: a release gets new fields, and this test does not care.
    let release = serde_json::json!({
        "plugin": name, "number": 1, "component": loaded.digest().to_string(), "hooks": ["pricing"],
    });
    let release: Release = serde_json::from_value(release).context("a release")?;
    ensure!(release.on_fault == OnFault::Open, "the default");
    Ok(release)
}

fn mug() -> Result<Listed> {
    Ok(Listed {
        product: Arc::new(Product {
            sku: "MUG".parse()?,
            title: "A mug".to_owned(),
            description: String::new(),
            tags: Vec::new(),
            attributes: Vec::new(),
            image: None,
        }),
        price: PriceRow { price: Minor(500), compare_at: None, floor: None },
        price_version: 1,
        stock: StockHint::InStock,
    })
}

#[expect(clippy::print_stderr, reason = "the figure that the reader of the test's output wants")]
fn say(line: &str) {
    eprintln!("{line}");
}
