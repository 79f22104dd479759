//! Tables `search_goods` and, where it is one, `search_words`: what products say, in the words that queries are made of.
//!
//! Made from `product`, and never the other way: they follow it by its versions, in transactions of their own, so that an import does
//! not wait for them; `search_mark` says how far they are. No backup has them, and no standby: whoever becomes home makes them. What a query means and which words a product has
//! is `souk_search`'s, for both engines and for the nodes; SQLite keeps them by its full-text engine, PostgreSQL as a `tsvector`
//! under an index ([`super::engine::Dialect`]).

use souk_commerce::id::{SiteId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::product::Product;
use souk_replication::Log;
use souk_search::{Document, Position, Query, TIERS, Tier};

use super::engine::{Dialect, Session, params};
use super::{Decision, Store, StoreError, Tx, goods, log};

/// Products of one transaction, during which no other writes: each is three statements, a third of a second in all over a network of
/// a millisecond, and a hundredth in a file.
const STEP_MAX: usize = 100;
/// The most that one answer lists.
pub(crate) const MATCHES_MAX: usize = 100;

/// Digits of a [`Position`]'s cursor.
const POSITION_DIGITS: usize = 17;

/// Where the words are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed {
    /// Up to here of the catalogue log.
    pub(crate) version: u64,
    pub(crate) is_current: bool,
}

/// A product that matches.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) product: Product,
    /// None: it is not on sale.
    pub(crate) price: Option<Minor>,
}

/// A product's place in an answer: a page goes on after it. Two products may have one rank here, so the order goes on by sku.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    position: Position,
    sku: Sku,
}

impl Place {
    /// The position's digits, and then the sku's.
    pub(crate) fn cursor(&self) -> String {
        self.position.cursor() + &hex::encode(self.sku.as_str())
    }

    pub(crate) fn from_cursor(text: &str) -> Option<Self> {
        let (position, sku) = text.split_at_checked(POSITION_DIGITS)?;
        let sku = String::from_utf8(hex::decode(sku).ok()?).ok()?;
        Some(Self { position: Position::from_cursor(position)?, sku: sku.parse().ok()? })
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Matches {
    /// The best first.
    pub(crate) found: Vec<Match>,
    pub(crate) next: Option<Place>,
    /// Products have changed that are not taken in yet.
    pub(crate) is_behind: bool,
}

fn indexed(conn: &dyn Session) -> Result<Indexed, StoreError> {
    let version = conn.one("SELECT version FROM search_mark WHERE one = 1", &[], |row| row.get(0))?;
    Ok(Indexed { version, is_current: version >= log::heads(conn)?.get(Log::Catalog) })
}

/// A product that has changed: its version, site, sku and content.
type Changed = (u64, String, String, Option<Vec<u8>>);

fn step(tx: &Tx<'_>) -> Result<Indexed, StoreError> {
    let Indexed { version, is_current } = indexed(tx.sql)?;
    if is_current {
        return Ok(Indexed { version, is_current });
    }
    let sql = "SELECT version, site, sku, content FROM product WHERE version > ?1 ORDER BY version LIMIT ?2";
    let changed: Vec<Changed> = tx.sql.list(sql, params![version, STEP_MAX], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    })?;
    for (_, site, sku, content) in &changed {
        remove(tx.sql, site, sku)?;
        if let Some(content) = content {
            insert(tx.sql, site, sku, &Document::of(&goods::decode(content)?))?;
        }
    }
    // The log may have entries of products that have changed since.
    let head = log::heads(tx.sql)?.get(Log::Catalog);
    let to = match changed.last() {
        Some((last, ..)) if changed.len() == STEP_MAX => *last,
        _ => head,
    };
    tx.sql.execute("UPDATE search_mark SET version = ?1 WHERE one = 1", params![to])?;
    Ok(Indexed { version: to, is_current: to >= head })
}

/// Takes every word away: other products are about to take the place of those that they were made from.
pub(in crate::store) fn begin_anew(conn: &dyn Session) -> Result<(), StoreError> {
    if conn.dialect() == Dialect::Sqlite {
        conn.execute("DELETE FROM search_words", &[])?;
    }
    conn.execute("DELETE FROM search_goods", &[])?;
    conn.execute("UPDATE search_mark SET version = 0 WHERE one = 1", &[])?;
    Ok(())
}

fn remove(conn: &dyn Session, site: &str, sku: &str) -> Result<(), StoreError> {
    if conn.dialect() == Dialect::Sqlite {
        let sql = "DELETE FROM search_words WHERE rowid = (SELECT id FROM search_goods WHERE site = ?1 AND sku = ?2)";
        conn.execute(sql, params![site, sku])?;
    }
    conn.execute("DELETE FROM search_goods WHERE site = ?1 AND sku = ?2", params![site, sku])?;
    Ok(())
}

fn insert(conn: &dyn Session, site: &str, sku: &str, document: &Document) -> Result<(), StoreError> {
    match conn.dialect() {
        Dialect::Sqlite => {
            let sql = "INSERT INTO search_goods (site, sku, rank) VALUES (?1, ?2, ?3)";
            conn.execute(sql, params![site, sku, document.rank()])?;
            let [title, of_sku, labels, description] = document.columns();
            let sql = "INSERT INTO search_words (rowid, site, title, sku, labels, description)
                       SELECT id, ?3, ?4, ?5, ?6, ?7 FROM search_goods WHERE site = ?1 AND sku = ?2";
            let word = word_of_site(site);
            conn.execute(sql, params![site, sku, word, title, of_sku, labels, description])?;
        }
        Dialect::Postgres => {
            let sql = "INSERT INTO search_goods (site, sku, rank, words)
                       VALUES (?1, ?2, ?3, CAST(CAST(?4 AS TEXT) AS tsvector))";
            let words = format!("'{}' {}", word_of_site(site), document.tsvector());
            conn.execute(sql, params![site, sku, document.rank(), words])?;
        }
    }
    Ok(())
}

/// The site as a word that no text has: a look into the index passes over what is of other sites.
fn word_of_site(site: &str) -> String {
    format!("_{}", hex::encode(site))
}

/// What is of a site and of this tier, as the engine is asked for it.
fn question(dialect: Dialect, site: &SiteId, query: &Query, tier: Tier) -> (&'static str, String) {
    let word = word_of_site(site.as_str());
    match dialect {
        Dialect::Sqlite => (
            "SELECT g.rank, p.content, r.price FROM search_words
             JOIN search_goods g ON g.id = search_words.rowid
             JOIN product p ON p.site = g.site AND p.sku = g.sku
             LEFT JOIN price r ON r.site = g.site AND r.sku = g.sku
             WHERE search_words MATCH ?1 AND g.site = ?2 AND (g.rank > ?3 OR g.rank = ?3 AND g.sku > ?5) AND p.content IS NOT NULL
             ORDER BY g.rank, g.sku LIMIT ?4",
            format!("(site : \"{word}\") AND ({})", query.fts5_alone(tier)),
        ),
        Dialect::Postgres => (
            "SELECT g.rank, p.content, r.price FROM search_goods g
             JOIN product p ON p.site = g.site AND p.sku = g.sku
             LEFT JOIN price r ON r.site = g.site AND r.sku = g.sku
             WHERE g.words @@ CAST(CAST(?1 AS TEXT) AS tsquery) AND g.site = ?2 AND (g.rank > ?3 OR g.rank = ?3 AND g.sku > ?5)
             AND p.content IS NOT NULL
             ORDER BY g.rank, g.sku LIMIT ?4",
            format!("'{word}' & ({})", query.tsquery(tier)),
        ),
    }
}

fn matches(
    conn: &dyn Session,
    site: &SiteId,
    query: &Query,
    after: Option<&Place>,
    limit: usize,
) -> Result<Matches, StoreError> {
    let mut matches = Matches { is_behind: !indexed(conn)?.is_current, ..Matches::default() };
    let mut last = None;
    for tier in TIERS {
        let (from, after_sku) = match after {
            Some(Place { position, .. }) if tier < position.tier => continue,
            Some(Place { position, sku }) if tier == position.tier => (position.rank, sku.as_str()),
            // Before every rank.
            _ => (-1, ""),
        };
        let (sql, question) = question(conn.dialect(), site, query, tier);
        // One more than asked for says whether there is a next page.
        let wanted = limit + 1 - matches.found.len();
        type Row = (i64, Vec<u8>, Option<i64>);
        let rows: Vec<Row> =
            conn.list(sql, params![question, site.as_str(), from, wanted, after_sku], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
        for (rank, content, price) in rows {
            if matches.found.len() == limit {
                matches.next = last;
                return Ok(matches);
            }
            let product = goods::decode(&content)?;
            last = Some(Place { position: Position { tier, rank }, sku: product.sku.clone() });
            matches.found.push(Match { product, price: price.map(Minor) });
        }
    }
    Ok(matches)
}

impl Store {
    /// Takes in some of the products that have changed.
    pub(crate) async fn index_products(&self) -> Result<Indexed, StoreError> {
        let indexed = self.read(indexed).await?;
        // Nobody who writes waits for nothing.
        if indexed.is_current { Ok(indexed) } else { self.write(|tx| step(tx).map(Decision::Keep)).await }
    }

    /// A page of a site's products that match, after a place of an answer before. None: there is no such site.
    pub(crate) async fn matches(
        &self,
        site: SiteId,
        query: Query,
        after: Option<Place>,
        limit: usize,
    ) -> Result<Option<Matches>, StoreError> {
        self.read(move |conn| {
            if !super::site::exists(conn, &site)? {
                return Ok(None);
            }
            matches(conn, &site, &query, after.as_ref(), limit.clamp(1, MATCHES_MAX)).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests;
