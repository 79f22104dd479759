//! What the memory tier keeps, and what it costs: ours beside its peers on traces of real shops.
//!
//! `cargo bench -p souk-tests --bench eviction -- TRACE…` (or `EVICTION_TRACES=a:b`); `-- --json` for scripts.
//!
//! A trace is a file of four-byte big-endian numbers, one a request, plain or packed with xz (then the program `xz` is
//! needed). Every object counts as one, so that policies are compared and not sizes. Ours is the very shelf that the
//! proxy uses, with its keys; moka and quick_cache hold the same keys and values. The models are textbook code, for hit
//! ratios only. `optimum` knows the future (Belady).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;
use souk_cache::entry::Resource;
use souk_cache::shelf::{MemoryShelf, Shelf as _};
use souk_cache::{Key, Scheme};
use souk_tests::say;

const PERCENTS: [usize; 3] = [1, 5, 10];
/// Hits are timed over this many keys, all of them held.
const HOT_KEYS: usize = 10_000;
const ROUND: Duration = Duration::from_millis(400);
const ROUNDS: usize = 3;

/// A store under test.
trait Store: Send + Sync {
    fn find(&self, key: &Key) -> bool;
    fn put(&self, key: &Key);
}

struct Ours(MemoryShelf);

impl Store for Ours {
    fn find(&self, key: &Key) -> bool {
        self.0.find(key).is_some()
    }

    fn put(&self, key: &Key) {
        self.0.update(key.clone(), &mut |_| Some(Resource::default()));
    }
}

impl Store for Moka<Key, Arc<Resource>> {
    fn find(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    fn put(&self, key: &Key) {
        self.insert(key.clone(), Arc::default());
    }
}

struct Quick(quick_cache::sync::Cache<Key, Arc<Resource>>);

impl Store for Quick {
    fn find(&self, key: &Key) -> bool {
        self.0.get(key).is_some()
    }

    fn put(&self, key: &Key) {
        self.0.insert(key.clone(), Arc::default());
    }
}

const STORES: [&str; 4] = ["Souk", "moka LRU", "moka TinyLFU", "quick_cache"];

/// A store that holds `objects` keys like `sample`.
fn store(name: &str, objects: usize, sample: &Key) -> Box<dyn Store> {
    let moka = |policy| -> Box<dyn Store> {
        let builder = Moka::<Key, Arc<Resource>>::builder().max_capacity(objects as u64);
        Box::new(builder.eviction_policy(policy).build())
    };
    match name {
        "Souk" => {
            // Weighed by bytes: as many as that many keys weigh.
            let one = MemoryShelf::new(u64::MAX / 4);
            one.update(sample.clone(), &mut |_| Some(Resource::default()));
            Box::new(Ours(MemoryShelf::new(one.size().bytes * objects as u64)))
        }
        "moka LRU" => moka(EvictionPolicy::lru()),
        "moka TinyLFU" => moka(EvictionPolicy::tiny_lfu()),
        _ => Box::new(Quick(quick_cache::sync::Cache::new(objects))),
    }
}

fn main() -> Result<()> {
    let (traces, json) = options()?;
    ensure!(!traces.is_empty(), "name the traces: cargo bench -p souk-tests --bench eviction -- TRACE…");
    say(&format!("{:<28} {:>5} {}", "hit ratio in %", "size", header()));
    let mut rows = Vec::new();
    for path in &traces {
        let trace = Trace::read(path)?;
        for percent in PERCENTS {
            let objects = (trace.keys.len() * percent / 100).max(1);
            let mut figures: Vec<(&str, f64)> = Vec::new();
            for name in STORES {
                let store = store(name, objects, &trace.keys[0]);
                figures.push((
                    name,
                    trace.replay(|n| {
                        let key = &trace.keys[n as usize];
                        let hit = store.find(key);
                        if !hit {
                            store.put(key);
                        }
                        hit
                    }),
                ));
            }
            let mut lru = Lru::new(objects);
            figures.push(("LRU", trace.replay(|n| lru.ask(n))));
            let mut reference = Reference::new(objects);
            figures.push(("S3-FIFO", trace.replay(|n| reference.ask(n))));
            figures.push(("optimum", optimum(&trace.requests, objects)));
            let cells: Vec<String> =
                figures.iter().map(|(_, ratio)| format!("{:>12.1}", ratio * 100.0)).collect();
            say(&format!("{:<28} {percent:>3} % {}", trace.name, cells.join(" ")));
            rows.push(serde_json::json!({
                "trace": trace.name, "percent": percent,
                "ratio": figures.into_iter().collect::<HashMap<_, _>>(),
            }));
        }
    }
    let costs = costs(&Trace::read(&traces[0])?)?;
    if json {
        say(&serde_json::json!({ "ratios": rows, "costs": costs }).to_string());
    }
    Ok(())
}

fn header() -> String {
    let names = STORES.into_iter().chain(["LRU", "S3-FIFO", "optimum"]);
    names.map(|name| format!("{name:>12}")).collect::<Vec<_>>().join(" ")
}

/// Nanoseconds of one thing that is asked of each store.
fn costs(trace: &Trace) -> Result<serde_json::Value> {
    let objects = (trace.keys.len() / 20).max(1);
    say(&format!("{:<28} {:>5} {}", "cost in ns, one thread", "", header().split_at(4 * 13).0));
    let row = |what: &str, measure: &dyn Fn(&str) -> f64| {
        let figures: Vec<f64> = STORES.iter().map(|name| measure(name)).collect();
        let cells: Vec<String> = figures.iter().map(|ns| format!("{ns:>12.0}")).collect();
        say(&format!("{what:<28} {:>5} {}", "", cells.join(" ")));
        figures
    };
    let replayed = row("a request of the trace, 5 %", &|name| {
        best(|| {
            let store = store(name, objects, &trace.keys[0]);
            let began = Instant::now();
            for n in &trace.requests {
                let key = &trace.keys[*n as usize];
                if !store.find(key) {
                    store.put(key);
                }
            }
            began.elapsed().as_nanos() as f64 / trace.requests.len() as f64
        })
    });
    let hot: Vec<Key> = (0..HOT_KEYS).map(key_of).collect::<Result<_>>()?;
    let hits = |name: &str, threads: usize, one: bool| {
        let store = store(name, HOT_KEYS * 2, &hot[0]);
        hot.iter().for_each(|key| store.put(key));
        best(|| time_hits(&*store, if one { &hot[..1] } else { &hot }, threads))
    };
    let alone = row("a hit, 10,000 keys", &|name| hits(name, 1, false));
    let pair = row("the same, two threads", &|name| hits(name, 2, false));
    let same = row("two threads, one key", &|name| hits(name, 2, true));
    Ok(
        serde_json::json!({ "stores": STORES, "replayed_ns": replayed, "hit_ns": alone, "hit_two_ns": pair, "one_key_ns": same }),
    )
}

/// Nanoseconds of a hit for one thread, while so many look up.
fn time_hits(store: &dyn Store, keys: &[Key], threads: usize) -> f64 {
    let stop = AtomicBool::new(false);
    let work = |first: usize| {
        let (mut done, mut at) = (0u64, first);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..256 {
                // A prime step, so that neighbours in memory are not asked for one after the other.
                at = (at + 7_919) % keys.len();
                assert!(store.find(&keys[at]), "all of them are held");
            }
            done += 256;
        }
        began.elapsed().as_nanos() as f64 / done as f64
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n * 13))).collect();
        std::thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        let times = workers.into_iter().map(|worker| worker.join().expect("no panic"));
        times.sum::<f64>() / threads as f64
    })
}

/// The least of several rounds: what else the machine does only ever adds.
fn best(measure: impl Fn() -> f64) -> f64 {
    (0..ROUNDS).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

fn key_of(n: usize) -> Result<Key> {
    // Of one length, so that all weigh the same.
    Ok(Key::new("shop", Scheme::Https, "shop.example", &format!("/products/{n:010}?ref=home"))?)
}

struct Trace {
    name: String,
    /// By object.
    keys: Vec<Key>,
    /// The object of each request.
    requests: Vec<u32>,
}

impl Trace {
    fn read(path: &Path) -> Result<Self> {
        let bytes = if path.extension().is_some_and(|end| end == "xz") {
            let done = Command::new("xz").arg("-dc").arg(path).output().context("the program xz")?;
            ensure!(done.status.success(), "xz: {}", String::from_utf8_lossy(&done.stderr));
            done.stdout
        } else {
            std::fs::read(path).with_context(|| path.display().to_string())?
        };
        let (numbers, rest) = bytes.as_chunks::<4>();
        ensure!(
            rest.is_empty() && !numbers.is_empty(),
            "{} is no trace of four-byte numbers",
            path.display()
        );
        let mut objects: HashMap<u32, u32> = HashMap::new();
        let mut requests = Vec::with_capacity(numbers.len());
        for number in numbers {
            let next = u32::try_from(objects.len())?;
            requests.push(*objects.entry(u32::from_be_bytes(*number)).or_insert(next));
        }
        let keys = (0..objects.len()).map(key_of).collect::<Result<_>>()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self { name: name.trim_end_matches(".xz").to_owned(), keys, requests })
    }

    /// The share of requests for which `asked` is true.
    fn replay(&self, mut asked: impl FnMut(u32) -> bool) -> f64 {
        let hits = self.requests.iter().filter(|n| asked(**n)).count();
        hits as f64 / self.requests.len() as f64
    }
}

struct Lru {
    objects: usize,
    when: HashMap<u32, u64>,
    order: BTreeSet<(u64, u32)>,
    now: u64,
}

impl Lru {
    fn new(objects: usize) -> Self {
        Self { objects, when: HashMap::new(), order: BTreeSet::new(), now: 0 }
    }

    fn ask(&mut self, n: u32) -> bool {
        self.now += 1;
        let before = self.when.insert(n, self.now);
        if let Some(before) = before {
            self.order.remove(&(before, n));
        }
        self.order.insert((self.now, n));
        if self.order.len() > self.objects
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.when.remove(&oldest);
        }
        before.is_some()
    }
}

/// S3-FIFO as its paper has it: two hits in the small queue make an object worth the main one.
struct Reference {
    objects: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    ghost: VecDeque<u32>,
    ghosts: HashSet<u32>,
    uses: HashMap<u32, u8>,
}

impl Reference {
    fn new(objects: usize) -> Self {
        let (small, main, ghost) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { objects, small, main, ghost, ghosts: HashSet::new(), uses: HashMap::new() }
    }

    fn ask(&mut self, n: u32) -> bool {
        if let Some(uses) = self.uses.get_mut(&n) {
            *uses = (*uses + 1).min(3);
            return true;
        }
        let returns = self.ghosts.remove(&n);
        while self.uses.len() >= self.objects {
            self.evict();
        }
        if returns { &mut self.main } else { &mut self.small }.push_back(n);
        self.uses.insert(n, 0);
        false
    }

    fn evict(&mut self) {
        let small_max = (self.objects / 10).max(1);
        if self.small.len() >= small_max || self.main.is_empty() {
            while let Some(n) = self.small.pop_front() {
                if self.uses[&n] > 1 {
                    self.uses.insert(n, 0);
                    self.main.push_back(n);
                    continue;
                }
                self.uses.remove(&n);
                self.remember(n);
                return;
            }
        }
        while let Some(n) = self.main.pop_front() {
            match self.uses[&n] {
                0 => {
                    self.uses.remove(&n);
                    return;
                }
                uses => {
                    self.uses.insert(n, uses - 1);
                    self.main.push_back(n);
                }
            }
        }
    }

    fn remember(&mut self, n: u32) {
        if self.ghosts.insert(n) {
            self.ghost.push_back(n);
        }
        while self.ghost.len() > (self.objects * 9 / 10).max(1) {
            let Some(oldest) = self.ghost.pop_front() else { return };
            self.ghosts.remove(&oldest);
        }
    }
}

/// What leaves is what is asked for again the latest.
fn optimum(requests: &[u32], objects: usize) -> f64 {
    let mut next = vec![u64::MAX; requests.len()];
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for (at, n) in requests.iter().enumerate().rev() {
        if let Some(later) = seen.insert(*n, at) {
            next[at] = later as u64;
        }
    }
    let (mut held, mut order, mut hits) = (HashMap::new(), BTreeSet::new(), 0usize);
    for (n, next) in requests.iter().zip(next) {
        if let Some(due) = held.insert(*n, next) {
            hits += 1;
            order.remove(&(due, *n));
        }
        order.insert((next, *n));
        if order.len() > objects
            && let Some((_, latest)) = order.pop_last()
        {
            held.remove(&latest);
        }
    }
    hits as f64 / requests.len() as f64
}

fn options() -> Result<(Vec<PathBuf>, bool)> {
    let mut traces: Vec<PathBuf> =
        std::env::var_os("EVICTION_TRACES").iter().flat_map(std::env::split_paths).collect();
    let mut json = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--json" => json = true,
            // What cargo adds.
            "--bench" => {}
            other if other.starts_with('-') => bail!("{other} is no option: name traces, or --json"),
            path => traces.push(path.into()),
        }
    }
    Ok((traces, json))
}
