//! Which tables a backup has, and in which order they can be filled: read from the schema itself.
//!
//! The migrations are run in memory, and the tables are looked at there: one that a later migration adds is carried without
//! anybody thinking of it, on both engines, which have the same. What must not be carried is named in [`NEVER`].

use std::collections::BTreeSet;

use rusqlite::Connection;

use crate::store::{StoreError, schema};

/// Tables that no backup has, and why. **Keys that are thrown away to make data unreadable belong here**: one that a backup
/// held would bring back what was erased.
pub(crate) const NEVER: &[(&str, &str)] = &[
    ("meta", "the number of the history and the key of the link's resets: a restored region has its own"),
    ("row_change", "what a standby has yet to be sent: it belongs to one stream of one store"),
    ("search_goods", SEARCHED),
    ("search_mark", SEARCHED),
    ("search_words", SEARCHED),
    ("search_words_config", SEARCHED),
    ("search_words_data", SEARCHED),
    ("search_words_docsize", SEARCHED),
    ("search_words_idx", SEARCHED),
];
const SEARCHED: &str = "made from the products, and made again";

/// What a column of a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Text,
    Bytes,
}

/// A table as it is carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    /// The column that gives out numbers by itself.
    pub(in crate::store) counter: Option<String>,
    /// Its primary key.
    pub(crate) key: Vec<(String, Kind)>,
}

impl Table {
    pub(super) fn select(&self) -> String {
        format!("SELECT {} FROM {}", self.columns.join(", "), self.name)
    }

    /// Puts in so many rows at once.
    pub(super) fn insert(&self, rows: usize) -> String {
        let width = self.columns.len();
        let row = |row: usize| {
            let cells: Vec<_> = (1..=width).map(|column| format!("?{}", row * width + column)).collect();
            format!("({})", cells.join(", "))
        };
        let rows: Vec<_> = (0..rows).map(row).collect();
        format!("INSERT INTO {} ({}) VALUES {}", self.name, self.columns.join(", "), rows.join(", "))
    }
}

/// The tables of a version, each after those that it refers to.
pub(crate) fn at(version: usize) -> Result<Vec<Table>, StoreError> {
    let mut conn = Connection::open_in_memory()?;
    schema::migrate_sqlite(&mut conn, version)?;
    let sql =
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let mut left: Vec<(Table, BTreeSet<String>)> = Vec::new();
    let mut found = conn.prepare(sql)?;
    for row in found.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))? {
        let (name, definition) = row?;
        if NEVER.iter().any(|(never, _)| *never == name) {
            continue;
        }
        let names = |sql: &str| -> Result<Vec<String>, rusqlite::Error> {
            conn.prepare(sql)?.query_map([&name], |row| row.get(0))?.collect()
        };
        let columns = names("SELECT name FROM pragma_table_info(?1) ORDER BY cid")?;
        let parents = names("SELECT \"table\" FROM pragma_foreign_key_list(?1)")?;
        let parents = parents.into_iter().filter(|parent| *parent != name).collect();
        // It is the primary key of its table, and the first column of each that has one.
        let counter = definition.contains(" AUTOINCREMENT").then(|| columns[0].clone());
        let key_sql = "SELECT name, type FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY pk";
        let mut key = conn.prepare(key_sql)?;
        let key = key.query_map([&name], |row| {
            let kind = match row.get::<_, String>(1)?.as_str() {
                "INTEGER" => Kind::Number,
                "BLOB" => Kind::Bytes,
                _ => Kind::Text,
            };
            Ok((row.get(0)?, kind))
        })?;
        let key = key.collect::<Result<_, rusqlite::Error>>()?;
        left.push((Table { name, columns, counter, key }, parents));
    }
    let mut ordered: Vec<Table> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let is_ready = |(_, parents): &(Table, BTreeSet<String>)| {
            parents.iter().all(|parent| ordered.iter().any(|table| table.name == *parent))
        };
        let Some(next) = left.iter().position(is_ready) else {
            return Err(StoreError::corrupt("sqlite_schema", "tables refer to each other in a ring"));
        };
        ordered.push(left.remove(next).0);
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_carried_after_those_that_it_refers_to() {
        let tables = at(schema::NEWEST).expect("the schema is whole");
        let place = |name: &str| tables.iter().position(|table| table.name == name);
        for (child, parent) in
            [("order_line", "orders"), ("orders", "site"), ("log", "log_head"), ("payment_call", "checkout")]
        {
            assert!(place(child) > place(parent) && place(parent).is_some(), "{child} after {parent}");
        }
        assert_eq!(place("meta"), None, "a restored region is another one");
        let derived: Vec<_> = tables.iter().filter(|table| table.name.starts_with("search_")).collect();
        assert!(derived.is_empty(), "what is made from products: {derived:?}");
        let counted: Vec<_> =
            tables.iter().filter_map(|t| Some((t.name.as_str(), t.counter.as_deref()?))).collect();
        assert_eq!(counted, [("event", "seq"), ("orders", "position")]);
        let cart = &tables[place("cart").expect("there are carts")];
        assert_eq!(cart.select(), "SELECT site, cart, state, digest, order_id, updated_ms FROM cart");
        let log = &tables[place("log").expect("there are logs")];
        assert_eq!(log.insert(2), "INSERT INTO log (log, version, body) VALUES (?1, ?2, ?3), (?4, ?5, ?6)");
    }

    #[test]
    fn the_tables_of_every_older_version_are_known() {
        for version in 1..schema::NEWEST {
            let tables = at(version).expect("an older version is whole");
            assert!(tables.iter().any(|table| table.name == "orders"), "version {version}");
        }
        assert!(matches!(at(schema::NEWEST + 1), Err(StoreError::TooNew { .. })));
    }
}
