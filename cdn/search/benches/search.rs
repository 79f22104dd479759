//! A node's index beside a bare query of SQLite's full-text engine, over the same products in the same run.
//!
//! `cargo bench -p souk-search --bench search [-- --products 4000 --products 100000]`
//!
//! Ours is what a search of a node does below HTTP: the query is parsed, and the first 24 products are handed out in order (title,
//! sku, labels, description). Bare is what one would write without it: a table with the texts, `unicode61`, the same prefixes, the same
//! words quoted, `ORDER BY rank LIMIT 24` by bm25 with weights. The words of a catalogue are spread as words are (the n-th as often as
//! 1/n); queries are one to three of them, the last cut short as somebody types it.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use souk_commerce::product::Product;
use souk_search::{Change, Index, Query};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const WORDS: usize = 20_000;
const QUERIES: usize = 2_000;
const PAGE: usize = 24;

/// A sequence that is the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// The n-th word as often as 1/n.
    fn word(&mut self) -> String {
        let uniform = self.next() as f64 / u64::MAX as f64;
        let place = (WORDS as f64).powf(uniform) as usize;
        // Letters that look like a word's, and are always the same for one place.
        let mut word = String::new();
        let mut left = place * 7_919 + 31;
        while left > 0 {
            word.push(char::from(b"tarnesilodugmkbp"[left % 16]));
            left /= 16;
        }
        word
    }

    fn words(&mut self, count: usize) -> String {
        (0..count).map(|_| self.word()).collect::<Vec<_>>().join(" ")
    }
}

fn catalogue(products: usize) -> Vec<Product> {
    let mut chance = Chance(0x5eed_0001);
    let product = |n: usize| {
        let (title, tags, description) = (2 + chance.below(7), chance.below(4), 10 + chance.below(50));
        Product {
            sku: format!("SKU-{n}").parse().expect("a sku"),
            title: chance.words(title),
            description: chance.words(description),
            tags: (0..tags).map(|_| chance.word()).collect(),
            attributes: Vec::new(),
            image: None,
        }
    };
    (0..products).map(product).collect()
}

fn queries() -> Vec<String> {
    let mut chance = Chance(0x5eed_0002);
    let query = |_| {
        let count = 1 + chance.below(3);
        let words = chance.words(count);
        let cut = chance.below(3).min(words.len() - words.rfind(' ').map_or(0, |at| at + 1) - 1);
        words[..words.len() - cut].to_owned()
    };
    (0..QUERIES).map(query).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut sizes: Vec<usize> = arguments
        .windows(2)
        .filter(|pair| pair[0] == "--products")
        .map(|pair| pair[1].parse())
        .collect::<std::result::Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = vec![4_000, 100_000];
    }
    for size in sizes {
        measure(size)?;
    }
    Ok(())
}

fn measure(size: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (products, queries) = (catalogue(size), queries());
    let empty = resident();

    let began = Instant::now();
    let mut ours = Index::open(&dir.path().join("ours.db"))?;
    for batch in products.chunks(256) {
        ours.apply(batch.iter().map(|p| Change { sku: p.sku.as_str(), product: Some(p) }))?;
    }
    ours.set_whole()?;
    let built = began.elapsed();
    let grown = resident().saturating_sub(empty);
    let began = Instant::now();
    let changed = 1_000.min(size);
    for product in &products[..changed] {
        let renamed = Product { title: format!("{} anew", product.title), ..product.clone() };
        ours.apply([Change { sku: renamed.sku.as_str(), product: Some(&renamed) }])?;
        ours.apply([Change { sku: product.sku.as_str(), product: Some(product) }])?;
    }
    let change = began.elapsed() / u32::try_from(2 * changed)?;

    let bare = bare(&dir.path().join("bare.db"), &products)?;
    let mut select = bare.prepare(
        "SELECT rowid FROM bare WHERE bare MATCH ?1 ORDER BY bm25(bare, 10.0, 8.0, 3.0, 1.0) LIMIT 24",
    )?;
    // In turns, so that whatever else the machine does meets both.
    let (mut took_ours, mut took_bare, mut found) = (Vec::new(), Vec::new(), 0);
    for _ in 0..3 {
        for typed in &queries {
            let began = Instant::now();
            let query = Query::parse(typed)?;
            let mut page = Vec::with_capacity(PAGE);
            ours.find(&query, None, |sku, _| {
                page.push(sku.to_owned());
                if page.len() == PAGE { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            took_ours.push(began.elapsed());
            found += usize::from(!black_box(page).is_empty());

            let began = Instant::now();
            let quoted: Vec<_> = typed.split(' ').map(|word| format!("\"{word}\"")).collect();
            let rows =
                select.query_map([format!("{} *", quoted.join(" AND "))], |row| row.get::<_, i64>(0))?;
            let page: Vec<i64> = rows.collect::<std::result::Result<_, _>>()?;
            took_bare.push(began.elapsed());
            black_box(page);
        }
    }
    let ours_at = percentiles(&mut took_ours);
    let bare_at = percentiles(&mut took_bare);
    let (ours_bytes, bare_bytes) = (ours.bytes()?, std::fs::metadata(dir.path().join("bare.db"))?.len());
    println(&format!(
        "{size} products: ours p50 {:.0} us, p99 {:.0} us; bare FTS5 with bm25 p50 {:.0} us, p99 {:.0} us; ratio {:.2} and {:.2}; {} of {} queries find something; \
         built in {built:.2?}, a change {change:.0?}; on the disk {} KiB (bare {} KiB), memory while building +{} KiB",
        ours_at[0],
        ours_at[1],
        bare_at[0],
        bare_at[1],
        bare_at[0] / ours_at[0],
        bare_at[1] / ours_at[1],
        found / 3,
        queries.len(),
        ours_bytes >> 10,
        bare_bytes >> 10,
        grown >> 10
    ));
    Ok(())
}

fn bare(path: &std::path::Path, products: &[Product]) -> Result<Connection> {
    let mut conn = Connection::open(path)?;
    conn.execute_batch(
        "PRAGMA synchronous = off;
         CREATE VIRTUAL TABLE bare USING fts5(title, sku, labels, description, tokenize='unicode61 remove_diacritics 2', prefix='1 2 3');",
    )?;
    let tx = conn.transaction()?;
    for p in products {
        tx.prepare_cached("INSERT INTO bare (title, sku, labels, description) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![p.title, p.sku.as_str(), p.tags.join(" "), p.description])?;
    }
    tx.commit()?;
    conn.execute("INSERT INTO bare (bare) VALUES ('optimize')", [])?;
    Ok(conn)
}

/// p50 and p99 in microseconds.
fn percentiles(took: &mut [Duration]) -> [f64; 2] {
    took.sort_unstable();
    [0.5, 0.99].map(|share| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e6)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() << 10
}

#[expect(clippy::print_stdout, reason = "a bench speaks through its output")]
fn println(line: &str) {
    println!("{line}");
}
