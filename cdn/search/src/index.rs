//! An index of one catalogue in a file of SQLite's, by its full-text engine.
//!
//! It is a cache of something else and says of what: each product's row has the fingerprint of the texts that it was made of. A file
//! that cannot be read is removed and made anew ([`Fault::Broken`]). It holds terms, and none of the texts.
//!
//! A product's row number is its rank, so that the engine's own order is the order of the answer: a page is the first rows that it
//! finds, and how many match beyond them costs nothing.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use sha2::{Digest as _, Sha256};
use souk_commerce::product::Product;

use crate::document::{Document, Position, TIERS, Tier};
use crate::query::Query;

/// What a text comes to, and the tables. Counted up when either changes: a file of another format is made anew.
pub const FORMAT: i32 = 1;
/// Pages that a connection keeps, beside those of the operating system.
const CACHE_KIB: i64 = 2 * 1024;
/// After a checkpoint the write-ahead log is cut back to this.
const WAL_BYTES_KEPT: i64 = 4 << 20;
/// The number of distinct statements here, and some.
const STATEMENTS_CACHED: usize = 16;
/// Products whose rank is one that another has already go to the next that is free. One in 50,000 catalogues has two such.
const PROBES_MAX: i64 = 64;

/// No rank is negative.
const BEFORE_ALL: i64 = -1;
/// Matches outside of titles that are looked at before it is asked where they are: some pages' worth.
const REST_MAX: usize = 64;

const TABLES: &str = "
CREATE TABLE goods (rank INTEGER PRIMARY KEY, sku TEXT NOT NULL UNIQUE, fingerprint BLOB NOT NULL) STRICT;
-- Terms come folded and with spaces between them; `ascii` takes every other byte as a part of one. Only in which fields a
-- term is counts, not where. As somebody types, the first three letters are asked for one by one.
CREATE VIRTUAL TABLE words USING fts5(
    title, sku, labels, description,
    content='', contentless_delete=1, detail=column, tokenize='ascii', prefix='1 2 3'
);
";

/// Why an index did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The file is not an index of this format, or not whole: remove it ([`Index::remove`]), and make another.
    #[error("the index is broken: {0}")]
    Broken(String),
    #[error("the index cannot be used: {0}")]
    Failed(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Broken(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// A product as it is from now on; none: it is gone.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    pub sku: &'a str,
    pub product: Option<&'a Product>,
}

/// A file that answers queries. Everything here blocks.
#[derive(Debug)]
pub struct Index {
    conn: Connection,
    is_whole: bool,
}

/// What a product's terms depend on, in 16 bytes.
pub fn fingerprint(product: &Product) -> [u8; 16] {
    let Product { sku, title, description, tags, attributes, image: _ } = product;
    let mut hash = Sha256::new();
    let mut part = |text: &str| {
        // Each length goes first: no two products read the same.
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    };
    for text in [sku.as_str(), title, description] {
        part(text);
    }
    for tag in tags {
        part(tag);
    }
    part("attributes");
    for (_, value) in attributes {
        part(value);
    }
    let digest: [u8; 32] = hash.finalize().into();
    *digest.first_chunk().expect("32 bytes begin with 16")
}

impl Index {
    /// Opens the file at `path`, or makes it. One process may have it open.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let conn = Connection::open(path)?;
        conn.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
        conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        // After a power cut the newest changes may be missing, which the fingerprints show; the file is whole.
        conn.pragma_update(None, "synchronous", "normal")?;
        conn.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES_KEPT, |_| Ok(()))?;
        conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
        conn.pragma_update(None, "temp_store", "memory")?;
        // A file that somebody prepared must not run code of its own choosing.
        conn.pragma_update(None, "trusted_schema", false)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
        let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let format: i32 = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if tables == 0 {
            let tx = conn.unchecked_transaction()?;
            tx.execute_batch(TABLES)?;
            tx.pragma_update(None, "user_version", FORMAT)?;
            tx.commit()?;
        } else if format != FORMAT {
            return Err(Fault::Broken(format!("it is of format {format}, and this is {FORMAT}")));
        }
        // A number of ours in a place that SQLite keeps for such: whether it has once held the whole catalogue.
        let whole: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0))?;
        Ok(Self { conn, is_whole: whole == 1 })
    }

    /// Removes what was at `path`, if there was anything.
    pub fn remove(path: &Path) -> std::io::Result<()> {
        for suffix in ["-wal", "-shm", "-journal", ""] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            match std::fs::remove_file(PathBuf::from(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether it has held the whole catalogue at some time: what it does not find is then not there, or new.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Notes that it holds the whole catalogue now, and puts its pieces together.
    pub fn set_whole(&mut self) -> Result<(), Fault> {
        if !self.is_whole {
            self.conn.execute("INSERT INTO words (words) VALUES ('optimize')", [])?;
            self.conn.pragma_update(None, "application_id", 1)?;
            self.is_whole = true;
        }
        Ok(())
    }

    /// Every product that it holds, with the fingerprint of what it was made of.
    pub fn held(&self, mut each: impl FnMut(&str, [u8; 16])) -> Result<(), Fault> {
        let mut select = self.conn.prepare("SELECT sku, fingerprint FROM goods")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let of = row.get_ref(0)?.as_str().map_err(|error| Fault::Broken(error.to_string()))?;
            each(of, row.get(1)?);
        }
        Ok(())
    }

    /// Takes changes in: all of them, or none.
    pub fn apply<'a>(&mut self, changes: impl IntoIterator<Item = Change<'a>>) -> Result<usize, Fault> {
        let tx = self.conn.transaction()?;
        let mut count = 0;
        {
            let mut find = tx.prepare_cached("SELECT rank, fingerprint FROM goods WHERE sku = ?1")?;
            let mut unname = tx.prepare_cached("DELETE FROM goods WHERE rank = ?1")?;
            let mut unword = tx.prepare_cached("DELETE FROM words WHERE rowid = ?1")?;
            let mut taken = tx.prepare_cached("SELECT 1 FROM goods WHERE rank = ?1")?;
            let mut name =
                tx.prepare_cached("INSERT INTO goods (rank, sku, fingerprint) VALUES (?1, ?2, ?3)")?;
            let mut word = tx.prepare_cached(
                "INSERT INTO words (rowid, title, sku, labels, description) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for Change { sku, product } in changes {
                let print = product.map(fingerprint);
                let before: Option<(i64, [u8; 16])> =
                    find.query_row([sku], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
                if before.map(|(_, print)| print) == print {
                    continue;
                }
                count += 1;
                if let Some((rank, _)) = before {
                    unword.execute([rank])?;
                    unname.execute([rank])?;
                }
                let Some((product, print)) = product.zip(print) else { continue };
                let document = Document::of(product);
                let mut rank = document.rank();
                let end = rank.saturating_add(PROBES_MAX);
                while rank < end && taken.exists([rank])? {
                    rank += 1;
                }
                name.execute(params![rank, sku, print])?;
                let [title, of_sku, labels, description] = document.columns();
                word.execute(params![rank, title, of_sku, labels, description])?;
            }
        }
        tx.commit()?;
        Ok(count)
    }

    /// Hands out what matches, the best first, until `each` has enough: from the beginning, or after a place of an answer
    /// before.
    pub fn find(
        &self,
        query: &Query,
        after: Option<Position>,
        mut each: impl FnMut(&str, Position) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let Some(after) = after else { return self.find_first(query, &mut each) };
        for tier in TIERS.into_iter().filter(|tier| *tier >= after.tier) {
            let from = if tier == after.tier { after.rank } else { BEFORE_ALL };
            // What the better tiers have was on pages before.
            let found = self
                .rows(&query.fts5_alone(tier), from, &mut |rank, sku| each(sku, Position { tier, rank }))?;
            if found.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// From the beginning. Each question costs as much as its words are frequent, so no more are asked than are needed: one if the
    /// titles fill the page, two if nothing else matches, and what is known by then is not asked again.
    fn find_first(
        &self,
        query: &Query,
        each: &mut dyn FnMut(&str, Position) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        let mut seen = HashSet::new();
        let mut tell = |tier, seen: &mut HashSet<i64>, rank, sku: &str| match seen.insert(rank) {
            true => each(sku, Position { tier, rank }),
            false => ControlFlow::Continue(()),
        };
        let mut ask = |tier, seen: &mut HashSet<i64>| {
            self.rows(&query.fts5(tier), BEFORE_ALL, &mut |rank, sku| tell(tier, seen, rank, sku))
        };
        if ask(Tier::Title, &mut seen)?.is_break() {
            return Ok(());
        }
        let mut rest: Vec<(i64, String)> = Vec::new();
        let is_all = self.rows(&query.fts5(Tier::Description), BEFORE_ALL, &mut |rank, sku| {
            if !seen.contains(&rank) {
                rest.push((rank, sku.to_owned()));
            }
            if rest.len() < REST_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let is_all = is_all.is_continue();
        for tier in [Tier::Sku, Tier::Labels] {
            if is_all && rest.iter().all(|(rank, _)| seen.contains(rank)) {
                return Ok(());
            }
            if ask(tier, &mut seen)?.is_break() {
                return Ok(());
            }
        }
        if !is_all {
            let _ended = ask(Tier::Description, &mut seen)?;
            return Ok(());
        }
        for (rank, sku) in &rest {
            if tell(Tier::Description, &mut seen, *rank, sku).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// What the engine finds, in its order.
    fn rows(
        &self,
        question: &str,
        from: i64,
        each: &mut dyn FnMut(i64, &str) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let mut select = self.conn.prepare_cached(
            "SELECT words.rowid, goods.sku FROM words CROSS JOIN goods ON goods.rank = words.rowid
             WHERE words MATCH ?1 AND words.rowid > ?2 ORDER BY words.rowid",
        )?;
        let mut rows = select.query(params![question, from])?;
        while let Some(row) = rows.next()? {
            let sku = row.get_ref(1)?.as_str().map_err(|error| Fault::Broken(error.to_string()))?;
            if each(row.get(0)?, sku).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Bytes of the file, without its log.
    pub fn bytes(&self) -> Result<u64, Fault> {
        let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        Ok(self.conn.query_row(size, [], |row| row.get(0))?)
    }

    /// Products that it holds.
    pub fn count(&self) -> Result<u64, Fault> {
        Ok(self.conn.query_row("SELECT count(*) FROM goods", [], |row| row.get(0))?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::tests::product;

    fn open() -> (tempfile::TempDir, PathBuf, Index) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("shop.db");
        let index = Index::open(&path).expect("an index");
        (dir, path, index)
    }

    fn put(index: &mut Index, products: &[Product]) -> usize {
        let changes = products.iter().map(|p| Change { sku: p.sku.as_str(), product: Some(p) });
        index.apply(changes).expect("applied")
    }

    fn all(index: &Index, typed: &str) -> Vec<String> {
        let query = Query::parse(typed).expect("a query");
        let mut found = Vec::new();
        index
            .find(&query, None, |sku, _| {
                found.push(sku.to_owned());
                ControlFlow::Continue(())
            })
            .expect("found");
        found
    }

    fn shop() -> Vec<Product> {
        vec![
            product("MUG-1", "Mug", &["kitchen"], "Holds tea."),
            product("MUG-2", "Very tall red mug", &["kitchen"], ""),
            product("TEA-1", "Crème de thé", &[], "For a mug."),
            product("POT-1", "Teapot 急須", &["mug tree"], ""),
            product("X9", "Plain thing", &[], ""),
        ]
    }

    #[test]
    fn the_title_goes_before_the_sku_the_labels_and_the_description_and_the_shorter_before_the_longer() {
        let (_dir, _, mut index) = open();
        assert_eq!(put(&mut index, &shop()), 5);
        assert_eq!(all(&index, "mug"), ["MUG-1", "MUG-2", "POT-1", "TEA-1"]);
        assert_eq!(all(&index, "mu"), ["MUG-1", "MUG-2", "POT-1", "TEA-1"]);
        assert_eq!(all(&index, "creme"), ["TEA-1"]);
        assert_eq!(all(&index, "須"), ["POT-1"]);
        assert_eq!(all(&index, "tea1"), ["TEA-1"]);
        assert_eq!(all(&index, "mug OR nothing"), [""; 0]);
        assert_eq!(all(&index, "kitchen mug red"), ["MUG-2"]);
    }

    #[test]
    fn a_product_is_found_as_it_is_now_and_a_page_goes_on_where_it_ended() {
        let (_dir, path, mut index) = open();
        let mut shop = shop();
        put(&mut index, &shop);
        assert_eq!(put(&mut index, &shop), 0, "nothing changed");
        shop[0].title = "Cup".to_owned();
        assert_eq!(put(&mut index, &shop[..1]), 1);
        // By its sku now.
        assert_eq!(all(&index, "mug"), ["MUG-2", "MUG-1", "POT-1", "TEA-1"]);
        assert_eq!(all(&index, "cup"), ["MUG-1"]);
        index.apply([Change { sku: "MUG-2", product: None }]).expect("applied");
        assert_eq!(all(&index, "mug"), ["MUG-1", "POT-1", "TEA-1"]);
        index.set_whole().expect("noted");
        drop(index);

        let index = Index::open(&path).expect("opens again");
        assert!(index.is_whole());
        assert_eq!((index.count().expect("counted"), index.bytes().expect("asked") > 0), (4, true));
        let query = Query::parse("mug").expect("a query");
        let (mut after, mut pages) = (None, Vec::new());
        loop {
            let before = pages.len();
            index
                .find(&query, after, |sku, position| {
                    pages.push(sku.to_owned());
                    after = Position::from_cursor(&position.cursor());
                    ControlFlow::Break(())
                })
                .expect("found");
            if pages.len() == before {
                break;
            }
        }
        assert_eq!(pages, ["MUG-1", "POT-1", "TEA-1"]);
        let mut held = Vec::new();
        index.held(|sku, print| held.push((sku.to_owned(), print))).expect("read");
        held.sort();
        assert_eq!(held[0], ("MUG-1".to_owned(), fingerprint(&shop[0])));
    }

    #[test]
    fn what_many_descriptions_hold_comes_in_order_after_what_the_labels_do() {
        let (_dir, _, mut index) = open();
        let of = |n: usize| match n % 4 {
            0 => product(&format!("P{n}"), "Plate", &["mug"], ""),
            1 => product(&format!("MUG-{n}"), "Plate", &[], ""),
            _ => product(&format!("P{n}"), "Plate", &[], "Goes with a mug."),
        };
        let shop: Vec<_> = (0..4 * REST_MAX).map(of).collect();
        put(&mut index, &shop);
        let query = Query::parse("mug").expect("a query");
        let mut means: Vec<_> = shop
            .iter()
            .filter_map(|p| {
                let document = Document::of(p);
                Some((query.tier(&document)?, document.rank(), p.sku.to_string()))
            })
            .collect();
        means.sort();
        let means: Vec<_> = means.into_iter().map(|(_, _, sku)| sku).collect();
        assert_eq!((means.len(), all(&index, "mug")), (4 * REST_MAX, means));
    }

    #[test]
    fn a_file_that_is_no_index_is_said_to_be_broken_and_can_be_made_anew() {
        let (_dir, path, index) = open();
        drop(index);
        Index::remove(&path).expect("removed");
        std::fs::write(&path, vec![7; 9_000]).expect("written");
        assert!(matches!(Index::open(&path), Err(Fault::Broken(_))));
        Index::remove(&path).expect("removed");
        let index = Index::open(&path).expect("made anew");
        index.conn.pragma_update(None, "user_version", FORMAT + 1).expect("written");
        drop(index);
        assert!(matches!(Index::open(&path), Err(Fault::Broken(_))));
        Index::remove(&path).expect("removed");
        assert!(!Index::open(&path).expect("made anew").is_whole());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// The engine finds what a query means, in the order that it means, whatever is typed.
        #[test]
        fn an_index_answers_what_a_query_means(
            titles in proptest::collection::vec("[a-cÄéß急須 '\"*(){}:^+-]{1,14}", 1..12),
            texts in proptest::collection::vec("[a-cÄéß急須 .]{0,14}", 12),
            typed in proptest::collection::vec("[a-cÄEß急須 '\"*(){}:^+-]{1,6}|\\PC{1,9}", 8),
        ) {
            let (_dir, _, mut index) = open();
            let of = |(n, title): (usize, &String)| product(&format!("A{n}"), title, &[&texts[n][..0]], &texts[n]);
            let shop: Vec<_> = titles.iter().enumerate().map(of).collect();
            put(&mut index, &shop);
            for typed in &typed {
                let Ok(query) = Query::parse(typed) else { continue };
                let mut expected: Vec<_> = shop.iter().filter_map(|p| {
                    let document = Document::of(p);
                    Some((query.tier(&document)?, document.rank(), p.sku.to_string()))
                }).collect();
                expected.sort();
                let expected: Vec<_> = expected.into_iter().map(|(_, _, sku)| sku).collect();
                prop_assert_eq!(all(&index, typed), expected, "{:?} {:?}", typed, titles);
            }
        }
    }
}
