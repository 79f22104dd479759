//! What thousands of plugins cost a node: memory of one that sleeps and of one that is loaded but idle, and the time
//! that a sleeping one takes to answer its first call.
//!
//! Each plugin is the first-party pricing plugin with a number in a section of its own: another digest, another
//! artefact, another mapping, as different plugins of that size would have. They are compiled once into `--dir` (by
//! default a folder under the system's temporary one), so that a second run measures only.
//!
//! `cargo bench -p souk-tests --bench plugins -- [--plugins N] [--dir DIR] [--json]`

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use souk_commerce::cart::LineKey;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{Guard, Hook, OnFault, Release, ReleaseSet};
use souk_sandbox::{
    Call, Chain, CompileLimits, Compiler, Confinement, HookEngine, HookLimits, HookPlugin, Level, Loader,
    LoaderMetrics, LoaderSettings, Metrics, SiteData,
};
use souk_tests::{root, souk};

/// Of the target: beside its code, an idle plugin takes at most this.
const TARGET_BYTES: usize = 64 << 10;
const ARTEFACT_BYTES_MAX: u64 = 64 << 30;

struct Options {
    plugins: usize,
    dir: PathBuf,
    json: bool,
}

fn options() -> Options {
    let mut options =
        Options { plugins: 5_000, dir: std::env::temp_dir().join("souk-bench-plugins"), json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--plugins" => {
                options.plugins = words.next().and_then(|n| n.parse().ok()).unwrap_or(options.plugins)
            }
            "--dir" => options.dir = words.next().map_or(options.dir, PathBuf::from),
            "--json" => options.json = true,
            // `cargo bench` adds `--bench`; `cargo test --benches` asks for a quick look.
            "--test" => options.plugins = 20,
            _ => {}
        }
    }
    options
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = options();
    let component = pricing_plugin()?;
    let engine = HookEngine::new(HookLimits::default())?;
    let metrics = LoaderMetrics::default();
    let loader = open(&options, metrics)?;
    let compiled = prepare(&loader, &engine, &component, options.plugins).await?;

    let start = resident_bytes()?;
    let sites = sites(&component, options.plugins)?;
    let asleep = resident_bytes()?.saturating_sub(start) / sites.len().max(1);

    let before = resident_bytes()?;
    let hook_metrics = Metrics::default();
    let mut awake: HashMap<SiteId, (Chain, Arc<HookPlugin>)> = HashMap::new();
    let mut loads = Vec::with_capacity(sites.len());
    let mut code_bytes = 0;
    for set in &sites {
        let release = &set.releases[0];
        let began = Instant::now();
        let plugin = loader.hooks(&engine, release.component, never()).await?;
        let chain =
            Chain::with_metrics(&set.site, vec![(release.clone(), Arc::clone(&plugin))], &hook_metrics);
        loads.push(began.elapsed());
        code_bytes += plugin.code_bytes();
        awake.insert(set.site.clone(), (chain, plugin));
    }
    let loaded = resident_bytes()?.saturating_sub(before);
    let beside_code = loaded.saturating_sub(code_bytes) / sites.len().max(1);

    // The slots' memory of the first calls is the pool's, not the plugins'.
    let data: Arc<dyn SiteData> = Arc::new(NoData);
    let mut calls = Vec::with_capacity(sites.len());
    for (chain, _) in awake.values() {
        let began = Instant::now();
        chain.price(&call(&data), &Guard::default(), lines())?;
        calls.push(began.elapsed());
    }
    report(&options, compiled, asleep, code_bytes / sites.len().max(1), beside_code, loads, calls);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a benchmark's result is its output")]
fn report(
    options: &Options,
    compiled: usize,
    asleep: usize,
    code: usize,
    beside_code: usize,
    loads: Vec<Duration>,
    calls: Vec<Duration>,
) {
    let micros = |mut values: Vec<Duration>, percent: usize| {
        values.sort();
        values
            .get((values.len() * percent / 100).min(values.len().saturating_sub(1)))
            .map_or(0, Duration::as_micros)
    };
    let figures = [
        ("plugins", options.plugins as u128),
        ("compiled_in_this_run", compiled as u128),
        ("asleep_bytes_each", asleep as u128),
        ("code_bytes_each", code as u128),
        ("idle_bytes_beside_code_each", beside_code as u128),
        ("load_us_p50", micros(loads.clone(), 50)),
        ("load_us_p99", micros(loads, 99)),
        ("first_call_us_p50", micros(calls.clone(), 50)),
        ("first_call_us_p99", micros(calls, 99)),
    ];
    if options.json {
        let object: serde_json::Map<_, _> =
            figures.iter().map(|(name, value)| ((*name).to_owned(), serde_json::json!(value))).collect();
        println!("{}", serde_json::Value::Object(object));
        return;
    }
    for (name, value) in figures {
        println!("  {name:<30} {value:>10}");
    }
    println!("  target: at most {TARGET_BYTES} bytes beside code, idle");
}

fn open(options: &Options, metrics: LoaderMetrics) -> Result<Loader> {
    let settings = LoaderSettings {
        // The pricing plugin is ours; a child process for each of thousands would only take longer.
        compiler: Compiler::InProcess,
        limits: CompileLimits::default(),
        confinement: Confinement::Required,
        artefacts: Some((options.dir.clone(), ARTEFACT_BYTES_MAX)),
    };
    Loader::open(settings, metrics).with_context(|| format!("open {}", options.dir.display()))
}

/// Compiles what is not compiled yet.
async fn prepare(loader: &Loader, engine: &HookEngine, component: &[u8], plugins: usize) -> Result<usize> {
    let mut compiled = 0;
    for number in 0..plugins {
        let bytes = numbered(component, number);
        let digest = Digest::of(&bytes);
        if !loader.has_hooks(engine, digest) {
            loader.hooks(engine, digest, async { Ok::<_, Infallible>(Bytes::from(bytes)) }).await?;
            compiled += 1;
        }
    }
    Ok(compiled)
}

/// A custom section with the number: `0`, its length, the length of its name, its name, the number.
fn numbered(component: &[u8], number: usize) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend([0, 13, 4]);
    bytes.extend(b"numb");
    bytes.extend((number as u64).to_le_bytes());
    bytes
}

fn sites(component: &[u8], plugins: usize) -> Result<Vec<Arc<ReleaseSet>>> {
    let set = |number| {
        let release = Release {
            plugin: "pricing".parse()?,
            number: 1,
            component: Digest::of(&numbered(component, number)),
            hooks: vec![Hook::Pricing],
            settings: serde_json::json!({"quantity_breaks": [{"breaks": [{"at": 12, "off_bp": 500}]}]}),
            on_fault: OnFault::Open,
            kind: Default::default(),
            grants: Default::default(),
            route: None,
            reuse: 0,
            record_bp: 0,
            seal: None,
        };
        let site: SiteId = format!("site-{number}").parse()?;
        Ok(Arc::new(ReleaseSet { version: 1, releases: vec![release], ..ReleaseSet::empty(site) }))
    };
    (0..plugins).map(set).collect()
}

async fn never() -> Result<Bytes, Infallible> {
    unreachable!("every plugin was compiled before")
}

fn pricing_plugin() -> Result<Vec<u8>> {
    let out = tempfile::NamedTempFile::new()?;
    let build = Command::new(souk())
        .args(["plugin", "build", "plugins/pricing", "--out"])
        .arg(out.path())
        .current_dir(root())
        .output()?;
    ensure!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    Ok(std::fs::read(out.path())?)
}

/// Memory of this process that is in use now.
fn resident_bytes() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: usize = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(kib << 10)
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

fn lines() -> Vec<(LineKey, u32, Listed)> {
    let line = |i: i64| {
        let sku: souk_commerce::id::Sku = format!("SKU-{i}").parse().expect("a sku");
        let product = Product {
            sku: sku.clone(),
            title: format!("Product {i}"),
            description: String::new(),
            tags: Vec::new(),
            attributes: Vec::new(),
            image: None,
        };
        let price = PriceRow { price: Minor(100 + i), compare_at: None, floor: None };
        (
            LineKey::of(sku),
            12,
            Listed { product: Arc::new(product), price, price_version: 1, stock: StockHint::InStock },
        )
    };
    (0..20).map(line).collect()
}

fn call(data: &Arc<dyn SiteData>) -> Call<'_> {
    Call {
        now_ms: 1_700_000_000_000,
        currency: "GBP".parse().expect("a currency"),
        country: None,
        region: None,
        language: "en".to_owned(),
        segments: Vec::new(),
        customer: None,
        coupons: Vec::new(),
        seed: 1,
        data,
    }
}
