//! Tables `product`, `price` and `stock`: what is sold, for how much, and how many there are.
//!
//! Content, price and stock change in the same transaction when one call changes them, each with an entry in the log of its
//! own. A row that would not change writes nothing at all: an import that runs twice is an import that ran once.

use souk_commerce::feed::{PriceChange, ProductChange, StockChange};
use souk_commerce::id::{SiteId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::product::{InvalidProduct, PriceRow, Product, StockHint};
use souk_replication::{Log, Record};

use super::audit::{self, Actor, Deed};
use super::engine::{Row, Session, params};
use super::escrow::{self, StockRow};
use super::log::{self, PageMax};
use super::{Decision, Store, StoreError, Tx};

/// At or under this many, nodes are told the number. Above it the hint does not move with each unit sold, so that a
/// busy shop does not write a log entry per order line.
pub(crate) const LOW_STOCK_MAX: u64 = 10;

/// What an upsert wants of one product. `None` leaves that part as it is.
#[derive(Debug, Clone)]
pub(crate) struct GoodsRow {
    pub(crate) product: Product,
    pub(crate) price: Option<PricePut>,
    pub(crate) stock: Option<Available>,
}

/// A price beside which the rest may stay as it is: the outer `None` keeps, the inner one takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PricePut {
    pub(crate) price: Minor,
    pub(crate) compare_at: Option<Option<Minor>>,
    pub(crate) floor: Option<Option<Minor>>,
}

impl PricePut {
    /// The row that comes of it where `before` was.
    pub(crate) fn over(self, before: Option<PriceRow>) -> PriceRow {
        PriceRow {
            price: self.price,
            compare_at: self.compare_at.unwrap_or_else(|| before.and_then(|row| row.compare_at)),
            floor: self.floor.unwrap_or_else(|| before.and_then(|row| row.floor)),
        }
    }
}

impl From<PriceRow> for PricePut {
    fn from(row: PriceRow) -> Self {
        Self { price: row.price, compare_at: Some(row.compare_at), floor: Some(row.floor) }
    }
}

/// Units left. `None` is not counted.
pub(crate) type Available = Option<u64>;

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Imported {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) unchanged: u64,
    /// Rows of which nothing was written.
    pub(crate) misfits: Vec<Misfit>,
}

/// A row that is right in itself and does not go with what stays of the product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Its index among the rows that were handed in.
    pub(crate) row: usize,
    pub(crate) error: InvalidProduct,
}

/// The answer to a change of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    Written {
        version: u64,
    },
    Unchanged {
        version: u64,
    },
    NoSite,
    NoProduct,
    /// The number of units is not the one that the caller knew. Nothing was changed.
    Moved {
        available: Available,
    },
}

/// Everything about one product.
#[derive(Debug, Clone)]
pub(crate) struct Goods {
    pub(crate) product: Product,
    pub(crate) product_version: u64,
    pub(crate) price: Option<PriceRow>,
    pub(crate) price_version: u64,
    /// `None`: nothing was ever said about it.
    pub(crate) stock: Option<Available>,
    pub(crate) hint: StockHint,
}

/// The versions on which a computed price rests: 0 where there is no row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GoodsVersions {
    pub(crate) product: u64,
    pub(crate) price: u64,
}

/// What nodes are told about a number of units that a shopper may still get.
pub(crate) fn hint(stock: Option<Available>) -> StockHint {
    match stock {
        None => StockHint::Unknown,
        Some(Some(0)) => StockHint::Out,
        Some(Some(units)) if units <= LOW_STOCK_MAX => {
            StockHint::Low(u32::try_from(units).unwrap_or(u32::MAX))
        }
        Some(_) => StockHint::InStock,
    }
}

fn find_product(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<Option<(Product, u64)>, StoreError> {
    let sql = "SELECT content, version FROM product WHERE site = ?1 AND sku = ?2 AND content IS NOT NULL";
    let found: Option<(Vec<u8>, u64)> =
        conn.find(sql, params![site.as_str(), sku.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    found.map(|(content, version)| Ok((decode(&content)?, version))).transpose()
}

pub(super) fn decode(content: &[u8]) -> Result<Product, StoreError> {
    minicbor::decode(content).map_err(|e| StoreError::corrupt("product", e))
}

fn encode(product: &Product) -> Vec<u8> {
    minicbor::to_vec(product).expect("writing into a Vec cannot fail, and no field of a product refuses")
}

fn find_price(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<Option<(PriceRow, u64)>, StoreError> {
    let sql = "SELECT price, compare_at, floor, version FROM price WHERE site = ?1 AND sku = ?2 AND price IS NOT NULL";
    conn.find(sql, params![site.as_str(), sku.as_str()], |row| Ok((price_row(row, 0)?, row.get(3)?)))
}

fn price_row(row: &Row<'_>, first: usize) -> Result<PriceRow, StoreError> {
    Ok(PriceRow {
        price: Minor(row.get(first)?),
        compare_at: row.get::<Option<i64>>(first + 1)?.map(Minor),
        floor: row.get::<Option<i64>>(first + 2)?.map(Minor),
    })
}

fn find_stock(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<Option<Available>, StoreError> {
    conn.find(
        "SELECT available FROM stock WHERE site = ?1 AND sku = ?2",
        params![site.as_str(), sku.as_str()],
        |row| row.get(0),
    )
}

pub(super) fn find(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<Option<Goods>, StoreError> {
    let Some((product, product_version)) = find_product(conn, site, sku)? else { return Ok(None) };
    let price = find_price(conn, site, sku)?;
    let stock = escrow::load(conn, site, sku)?;
    Ok(Some(Goods {
        product,
        product_version,
        price: price.map(|(row, _)| row),
        price_version: price.map_or(0, |(_, version)| version),
        stock: stock.as_ref().map(StockRow::available),
        hint: hint(stock.as_ref().map(StockRow::open)),
    }))
}

pub(super) fn versions(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<GoodsVersions, StoreError> {
    let key = params![site.as_str(), sku.as_str()];
    let sql = "SELECT version FROM product WHERE site = ?1 AND sku = ?2 AND content IS NOT NULL";
    let product = conn.find(sql, key, |row| row.get(0))?;
    let sql = "SELECT version FROM price WHERE site = ?1 AND sku = ?2 AND price IS NOT NULL";
    let price = conn.find(sql, key, |row| row.get(0))?;
    Ok(GoodsVersions { product: product.unwrap_or(0), price: price.unwrap_or(0) })
}

/// Writes a product's content if it differs. None: it did not.
fn write_product(tx: &Tx<'_>, site: &SiteId, product: &Product) -> Result<Option<u64>, StoreError> {
    let content = encode(product);
    let sql = "SELECT content = ?3 FROM product WHERE site = ?1 AND sku = ?2 AND content IS NOT NULL";
    let same: Option<bool> =
        tx.sql.find(sql, params![site.as_str(), product.sku.as_str(), content], |row| row.get(0))?;
    if same == Some(true) {
        return Ok(None);
    }
    let change =
        ProductChange { site: site.clone(), sku: product.sku.clone(), product: Some(product.clone()) };
    let version = log::append(tx, Log::Catalog, &change.to_bytes())?;
    let sql = "INSERT INTO product (site, sku, content, version) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (site, sku) DO UPDATE SET content = ?3, version = ?4";
    tx.sql.execute(sql, params![site.as_str(), product.sku.as_str(), content, version])?;
    Ok(Some(version))
}

fn write_price(tx: &Tx<'_>, site: &SiteId, sku: &Sku, row: PriceRow) -> Result<Put, StoreError> {
    if let Some((before, version)) = find_price(tx.sql, site, sku)?
        && before == row
    {
        return Ok(Put::Unchanged { version });
    }
    let change = PriceChange { site: site.clone(), sku: sku.clone(), price: Some(row) };
    let version = log::append(tx, Log::Price, &change.to_bytes())?;
    let sql =
        "INSERT INTO price (site, sku, price, compare_at, floor, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (site, sku) DO UPDATE SET price = ?3, compare_at = ?4, floor = ?5, version = ?6";
    tx.sql.execute(
        sql,
        params![
            site.as_str(),
            sku.as_str(),
            row.price.0,
            row.compare_at.map(|amount| amount.0),
            row.floor.map(|amount| amount.0),
            version
        ],
    )?;
    Ok(Put::Written { version })
}

/// What a number of units says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    /// So many are not sold: somebody has counted, and what is promised or lent was counted too.
    Unsold,
    /// So many are free to be sold, beside those.
    Available,
}

/// Sets the number of units; tells the nodes if what they know of it changes. False: it was so already.
fn write_stock(
    tx: &Tx<'_>,
    site: &SiteId,
    sku: &Sku,
    units: Available,
    says: Says,
) -> Result<bool, StoreError> {
    let before = escrow::load(tx.sql, site, sku)?;
    let is_so = before.is_some_and(|row| match (row.available(), units) {
        (None, None) => true,
        (Some(available), Some(units)) => match says {
            Says::Unsold => row.ledger.unsold() == units.saturating_add(row.ledger.short),
            Says::Available => available == units && row.ledger.short == 0,
        },
        _ => false,
    });
    if is_so {
        return Ok(false);
    }
    let mut after = before.unwrap_or_default();
    after.is_counted = units.is_some();
    match (units, says) {
        (Some(units), Says::Unsold) => after.ledger.recount(units),
        (Some(units), Says::Available) => after.ledger.set_available(units),
        (None, _) => {}
    }
    escrow::save(tx, site, sku, before.as_ref(), after)?;
    Ok(true)
}

pub(super) fn tell_stock(tx: &Tx<'_>, site: &SiteId, sku: &Sku, hint: StockHint) -> Result<u64, StoreError> {
    log::append(tx, Log::Stock, &StockChange { site: site.clone(), sku: sku.clone(), hint }.to_bytes())
}

/// Puts units back that an order has taken. A product that is not counted any more needs none.
pub(super) fn put_back(tx: &Tx<'_>, site: &SiteId, sku: &Sku, units: u64) -> Result<(), StoreError> {
    if let Some(before) = escrow::load(tx.sql, site, sku)?.filter(|row| row.is_counted) {
        let mut after = before;
        after.ledger.unsell(units);
        escrow::save(tx, site, sku, Some(&before), after)?;
    }
    Ok(())
}

fn import(
    tx: &Tx<'_>,
    site: &SiteId,
    rows: &[GoodsRow],
    actor: &Actor,
) -> Result<Option<Imported>, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(None);
    }
    let mut counts = Imported::default();
    for (index, row) in rows.iter().enumerate() {
        let sku = &row.product.sku;
        let price = match row.price {
            Some(put) => Some(put.over(find_price(tx.sql, site, sku)?.map(|(before, _)| before))),
            None => None,
        };
        // A floor that stays may lie above the price that comes: better the old price than one below the floor.
        if let Some(Err(error)) = price.map(|price| price.check()) {
            counts.misfits.push(Misfit { row: index, error });
            continue;
        }
        let is_new = find_product(tx.sql, site, sku)?.is_none();
        let mut changed = write_product(tx, site, &row.product)?.is_some();
        if let Some(price) = price {
            changed |= matches!(write_price(tx, site, sku, price)?, Put::Written { .. });
        }
        if let Some(available) = row.stock {
            changed |= write_stock(tx, site, &row.product.sku, available, Says::Unsold)?;
        }
        match (is_new, changed) {
            (true, _) => counts.created += 1,
            (false, true) => counts.updated += 1,
            (false, false) => counts.unchanged += 1,
        }
    }
    if counts.created + counts.updated > 0 {
        let detail = serde_json::json!({ "created": counts.created, "updated": counts.updated });
        audit::record(tx, actor, &Deed { action: "products.import", subject: site.to_string(), detail })?;
    }
    Ok(Some(counts))
}

/// The subject of a deed about one product.
fn about(site: &SiteId, sku: &Sku) -> String {
    format!("{site}/{sku}")
}

fn put_price(tx: &Tx<'_>, site: &SiteId, sku: &Sku, row: PriceRow, actor: &Actor) -> Result<Put, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(Put::NoSite);
    }
    if find_product(tx.sql, site, sku)?.is_none() {
        return Ok(Put::NoProduct);
    }
    let before = find_price(tx.sql, site, sku)?.map(|(row, _)| row);
    let put = write_price(tx, site, sku, row)?;
    if let Put::Written { version } = put {
        let detail = serde_json::json!({ "version": version, "before": before, "after": row });
        audit::record(tx, actor, &Deed { action: "price.put", subject: about(site, sku), detail })?;
    }
    Ok(put)
}

fn put_stock(
    tx: &Tx<'_>,
    site: &SiteId,
    sku: &Sku,
    available: Available,
    expected: Option<Available>,
    actor: &Actor,
) -> Result<Put, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(Put::NoSite);
    }
    if find_product(tx.sql, site, sku)?.is_none() {
        return Ok(Put::NoProduct);
    }
    let before = find_stock(tx.sql, site, sku)?;
    if expected.is_some_and(|expected| before.flatten() != expected) {
        return Ok(Put::Moved { available: before.flatten() });
    }
    let changed = write_stock(tx, site, sku, available, Says::Available)?;
    if changed {
        let detail = serde_json::json!({ "before": before.flatten(), "after": available });
        audit::record(tx, actor, &Deed { action: "stock.put", subject: about(site, sku), detail })?;
    }
    let version = tx.sql.one(
        "SELECT version FROM stock WHERE site = ?1 AND sku = ?2",
        params![site.as_str(), sku.as_str()],
        |row| row.get(0),
    )?;
    Ok(if changed { Put::Written { version } } else { Put::Unchanged { version } })
}

/// The rows of `log` that changed after `from`, oldest change first. A node that begins at 0 has nothing that a tombstone
/// could take away.
pub(super) fn changed(
    conn: &dyn Session,
    log: Log,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = match log {
        Log::Catalog => {
            "SELECT version, site, sku, content FROM product
             WHERE version > ?1 AND content IS NOT NULL ORDER BY version LIMIT ?2"
        }
        Log::Price => {
            "SELECT version, site, sku, price, compare_at, floor FROM price
             WHERE version > ?1 AND price IS NOT NULL ORDER BY version LIMIT ?2"
        }
        // As [`StockRow::open`]; what is not counted stays NULL.
        _ => {
            "SELECT version, site, sku, available + granted FROM stock
             WHERE version > ?1 ORDER BY version LIMIT ?2"
        }
    };
    page.read(conn, sql, &[], from, |row| {
        let site: SiteId = row.get::<String>(1)?.parse().map_err(|e| StoreError::corrupt("product", e))?;
        let sku: Sku = row.get::<String>(2)?.parse().map_err(|e| StoreError::corrupt("product", e))?;
        let body = match log {
            Log::Catalog => {
                let product = decode(&row.get::<Vec<u8>>(3)?)?;
                ProductChange { site, sku, product: Some(product) }.to_bytes()
            }
            Log::Price => PriceChange { site, sku, price: Some(price_row(row, 3)?) }.to_bytes(),
            _ => StockChange { site, sku, hint: hint(Some(row.get(3)?)) }.to_bytes(),
        };
        Ok(Record { version: row.get(0)?, body })
    })
}

impl Store {
    /// Upserts a list of products in one transaction. None: there is no such site.
    pub(crate) async fn import(
        &self,
        site: SiteId,
        rows: Vec<GoodsRow>,
        actor: Actor,
    ) -> Result<Option<Imported>, StoreError> {
        self.write(move |tx| import(tx, &site, &rows, &actor).map(Decision::Keep)).await
    }

    pub(crate) async fn put_price(
        &self,
        site: SiteId,
        sku: Sku,
        row: PriceRow,
        actor: Actor,
    ) -> Result<Put, StoreError> {
        self.write(move |tx| put_price(tx, &site, &sku, row, &actor).map(Decision::Keep)).await
    }

    pub(crate) async fn put_stock(
        &self,
        site: SiteId,
        sku: Sku,
        available: Available,
        actor: Actor,
    ) -> Result<Put, StoreError> {
        self.write(move |tx| put_stock(tx, &site, &sku, available, None, &actor).map(Decision::Keep)).await
    }

    /// Sets the number of units if it is still the one that the caller knows: what was sold meanwhile is not put back.
    pub(crate) async fn swap_stock(
        &self,
        site: SiteId,
        sku: Sku,
        expected: Available,
        available: Available,
        actor: Actor,
    ) -> Result<Put, StoreError> {
        self.write(move |tx| {
            put_stock(tx, &site, &sku, available, Some(expected), &actor).map(Decision::Keep)
        })
        .await
    }

    pub(crate) async fn goods(&self, site: SiteId, sku: Sku) -> Result<Option<Goods>, StoreError> {
        self.read(move |conn| find(conn, &site, &sku)).await
    }
}
