//! What of the keyring goes to a standby, and into its own.
//!
//! A standby that has an order and not its shopper's key has lost his name; one that keeps a key which was destroyed has not erased
//! him. So keys come before the rows that are sealed with them, and so does what was destroyed. They travel wrapped, as they lie
//! here; what unwraps them (`vault.key`) an operator brings.

use std::collections::{BTreeSet, HashSet};

use souk_commerce::id::SiteId;

use super::keyring::Keyring;
use super::{KekFile, SubjectId, Vault};
use crate::store::StoreError;
use crate::store::backup::Cell;
use crate::store::engine::{Mode, Param, Session, Uncommitted, many, params};

/// Rows of the keyring in one part.
const PAGE_ROWS: usize = 1_000;

const KEYS: (&str, &[&str]) = ("key_of_keys", &["one", "kek"]);
const SITES: (&str, &[&str]) = ("key_of_site", &["site", "kek", "wrapped"]);
const SHOPPERS: (&str, &[&str]) = ("key_of_shopper", &["id", "site", "named", "wrapped"]);
const DESTROYED: (&str, &[&str]) = ("key_destroyed", &["id", "site"]);

/// Rows of one table of the keyring.
pub(in crate::store) struct KeyRows {
    pub(in crate::store) table: &'static str,
    pub(in crate::store) columns: &'static [&'static str],
    pub(in crate::store) rows: Vec<Vec<Cell>>,
}

type Take<'a> = dyn FnMut(KeyRows) -> Result<(), StoreError> + 'a;

/// Whether a table is one of the keyring's.
pub(in crate::store) fn is_of_keyring(table: &str) -> bool {
    [KEYS, SITES, SHOPPERS, DESTROYED].iter().any(|(name, _)| *name == table)
}

fn select(
    sql: &dyn Session,
    schema: &str,
    (table, columns): (&'static str, &'static [&'static str]),
    rest: &str,
    of: &[&dyn Param],
) -> Result<KeyRows, StoreError> {
    let text = format!("SELECT {} FROM {schema}{table} {rest}", columns.join(", "));
    let rows = sql.list(&text, of, |row| {
        (0..columns.len())
            .map(|index| Ok(Cell::of(row.value(index)?)))
            .collect::<Result<Vec<_>, StoreError>>()
    })?;
    Ok(KeyRows { table, columns, rows })
}

impl Keyring {
    /// A table, page by page in the order of a column. Nobody waits for whoever takes them.
    fn pages(
        &self,
        table: (&'static str, &'static [&'static str]),
        by: usize,
        take: &mut Take<'_>,
    ) -> Result<(), StoreError> {
        let mut after: Option<Cell> = None;
        loop {
            let column = table.1[by];
            let page = self.ask(|sql, schema| match &after {
                None => {
                    select(sql, schema, table, &format!("ORDER BY {column} LIMIT ?1"), params![PAGE_ROWS])
                }
                Some(after) => {
                    let rest = format!("WHERE {column} > ?1 ORDER BY {column} LIMIT ?2");
                    select(sql, schema, table, &rest, params![after, PAGE_ROWS])
                }
            })?;
            let is_last = page.rows.len() < PAGE_ROWS;
            after = page.rows.last().map(|row| row[by].clone());
            if !page.rows.is_empty() {
                take(page)?;
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Puts rows in that another keyring has: a key that was destroyed there is destroyed here, and in no log of this keyring when
    /// this returns. Until it has, they may come again.
    pub(in crate::store) fn take_in(
        &self,
        table: &str,
        columns: &[String],
        rows: &[Vec<Cell>],
    ) -> Result<(), StoreError> {
        let of = [KEYS, SITES, SHOPPERS, DESTROYED].into_iter().find(|(name, _)| *name == table);
        if of.is_none_or(|(_, own)| own != columns) {
            return Err(StoreError::corrupt(
                "keyring",
                format!("{table} has other columns than are known here"),
            ));
        }
        if table == DESTROYED.0 {
            return self.take_in_destroyed(rows);
        }
        self.ask(|sql, schema| {
            sql.begin(Mode::Write)?;
            let done = rows.iter().try_for_each(|row| put(sql, schema, table, row)).and_then(|()| {
                sql.commit().map_err(|error| match error {
                    Uncommitted::Not(error) | Uncommitted::Unknown(error) => error,
                })
            });
            if done.is_err() {
                sql.roll_back();
            }
            done
        })
    }

    /// Whether what has come opens with this key of keys: a standby that finds out only when it is to be home is none.
    pub(in crate::store) fn demand_opens_with(&self, file: &KekFile) -> Result<(), StoreError> {
        let Some(wrapped_under) = self.kek()? else { return Ok(()) };
        let kek = file.read(false, || unreachable!("it is not made")).map_err(StoreError::Vault)?;
        if kek.knows(&wrapped_under) {
            return Ok(());
        }
        Err(StoreError::Vault(format!(
            "the home's keyring is wrapped under a key of keys ({wrapped_under}) that this region's file does not hold: give both \
             regions the same ([vault] key_file)"
        )))
    }

    fn take_in_destroyed(&self, rows: &[Vec<Cell>]) -> Result<(), StoreError> {
        let named: Vec<(SiteId, SubjectId)> =
            rows.iter().map(|row| destroyed_of(row)).collect::<Result<_, _>>()?;
        for run in many::runs(&named) {
            let of: Vec<&dyn Param> = run.iter().map(|(_, id)| id as &dyn Param).collect();
            // Noted is not gone: whoever noted it here may have died before the key went.
            let gone: BTreeSet<SubjectId> = self.ask(|sql, schema| {
                let holes = many::holes(1, run.len());
                let text = format!(
                    "SELECT id FROM {schema}key_destroyed WHERE id IN ({holes})
                     AND id NOT IN (SELECT id FROM {schema}key_of_shopper WHERE id IN ({holes}))"
                );
                sql.list(&text, &of, |row| row.get::<SubjectId>(0))
            })?;
            for (site, id) in run.iter().filter(|(_, id)| !gone.contains(id)) {
                self.strike_out(site, id)?;
            }
        }
        // Of those that are gone too: the log that they went into may not have been cut since.
        self.cut_log()
    }
}

/// Whose key a row of `key_destroyed` says was destroyed.
fn destroyed_of(row: &[Cell]) -> Result<(SiteId, SubjectId), StoreError> {
    let [Cell::Blob(id), Cell::Text(site)] = row else {
        return Err(StoreError::corrupt("key_destroyed", "its columns hold something else"));
    };
    let id: SubjectId = id
        .as_slice()
        .try_into()
        .map_err(|_| StoreError::corrupt("key_destroyed", "a number of another length"))?;
    let site: SiteId = site.parse().map_err(|e| StoreError::corrupt("key_destroyed", e))?;
    Ok((site, id))
}

fn put(sql: &dyn Session, schema: &str, table: &str, row: &[Cell]) -> Result<(), StoreError> {
    let of: Vec<&dyn Param> = row.iter().map(|cell| cell as &dyn Param).collect();
    let put = match table {
        "key_of_keys" => format!(
            "INSERT INTO {schema}key_of_keys (one, kek) VALUES (?1, ?2) ON CONFLICT (one) DO UPDATE SET kek = excluded.kek"
        ),
        "key_of_site" => format!(
            "INSERT INTO {schema}key_of_site (site, kek, wrapped) VALUES (?1, ?2, ?3)
             ON CONFLICT (site) DO UPDATE SET kek = excluded.kek, wrapped = excluded.wrapped"
        ),
        _ => {
            // A key that this one has made for the same shopper when it was home, and nobody has taken over.
            let other =
                format!("DELETE FROM {schema}key_of_shopper WHERE site = ?1 AND named = ?2 AND id <> ?3");
            sql.execute(&other, &[of[1], of[2], of[0]])?;
            format!(
                // Noted as destroyed and not deleted yet at the home, whose table is read as it is then: it stays gone here.
                "INSERT INTO {schema}key_of_shopper (id, site, named, wrapped) SELECT ?1, ?2, ?3, ?4
                 WHERE NOT EXISTS (SELECT 1 FROM {schema}key_destroyed WHERE id = ?1)
                 ON CONFLICT (id) DO NOTHING"
            )
        }
    };
    sql.execute(&put, &of).map(drop)
}

impl Vault {
    /// The keys of sites, and under which key of keys they are.
    pub(in crate::store) fn keyring_rows_of_sites(&self, take: &mut Take<'_>) -> Result<(), StoreError> {
        self.0.keyring.pages(KEYS, 0, take)?;
        self.0.keyring.pages(SITES, 0, take)
    }

    /// The keys of all shoppers.
    pub(in crate::store) fn keyring_rows_of_shoppers(&self, take: &mut Take<'_>) -> Result<(), StoreError> {
        self.0.keyring.pages(SHOPPERS, 0, take)
    }

    /// Keys that were destroyed and that were not `told` yet: they are from then on.
    pub(in crate::store) fn keyring_rows_destroyed(
        &self,
        told: &mut HashSet<SubjectId>,
        take: &mut Take<'_>,
    ) -> Result<(), StoreError> {
        self.0.keyring.pages(DESTROYED, 0, &mut |mut page: KeyRows| {
            let mut fresh = Vec::new();
            for row in page.rows {
                if told.insert(destroyed_of(&row)?.1) {
                    fresh.push(row);
                }
            }
            page.rows = fresh;
            if page.rows.is_empty() { Ok(()) } else { take(page) }
        })
    }

    /// The keys of these shoppers, and those of their sites. One that was destroyed has none.
    pub(in crate::store) fn keyring_rows_of(
        &self,
        subjects: &BTreeSet<SubjectId>,
        take: &mut Take<'_>,
    ) -> Result<(), StoreError> {
        let keyring = &self.0.keyring;
        let (mut shoppers, mut sites) = (Vec::new(), BTreeSet::new());
        let subjects: Vec<SubjectId> = subjects.iter().copied().collect();
        for run in many::runs(&subjects) {
            let of: Vec<&dyn Param> = run.iter().map(|id| id as &dyn Param).collect();
            let rest = format!("WHERE id IN ({})", many::holes(1, run.len()));
            let found = keyring.ask(|sql, schema| select(sql, schema, SHOPPERS, &rest, &of))?;
            for row in &found.rows {
                if let Some(Cell::Text(site)) = row.get(1) {
                    sites.insert(site.clone());
                }
            }
            shoppers.push(found);
        }
        let sites: Vec<String> = sites.into_iter().collect();
        for run in many::runs(&sites) {
            let of: Vec<&dyn Param> = run.iter().map(|site| site as &dyn Param).collect();
            let rest = format!("WHERE site IN ({})", many::holes(1, run.len()));
            take(keyring.ask(|sql, schema| select(sql, schema, SITES, &rest, &of))?)?;
        }
        shoppers.into_iter().filter(|found| !found.rows.is_empty()).try_for_each(take)
    }
}
