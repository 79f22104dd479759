//! The tables, and how a file of an older version becomes one of this version.
//!
//! Migrations are additive, run in one transaction each, and never write a replicated row: a change of schema must
//! not become a storm on the logs (a nullable column did that to a whole fleet once).

use rusqlite::Connection;

use super::StoreError;
use super::engine::postgres::PgSession;
use super::engine::{Session, params};

/// One migration per entry, never edited after it has shipped. `PRAGMA user_version` counts those that have run.
const MIGRATIONS: &[&str] = &[
    FIRST,
    AUDIT_BY_SUBJECT,
    MERCHANTS,
    RELEASES_FOUND,
    REFERENCES_FOUND,
    FORMER_ASSETS,
    MARKS_BOUND,
    PAYMENTS,
    ESCROW,
    PUBLISHERS,
    OPERATIONS_GONE,
    VAULT,
    SEARCH,
    CHANGES,
];

/// A repeated upload asks whether its row is there, in the one writer: not by reading the whole log.
const AUDIT_BY_SUBJECT: &str = "CREATE INDEX audit_of_subject ON audit (subject, action);";

/// Who may, and what merchants bring.
const MERCHANTS: &str = r"
-- A row is never deleted: who had access to a shop stays known.
CREATE TABLE token (
    id           TEXT PRIMARY KEY,
    site         TEXT NOT NULL REFERENCES site,
    sha256       BLOB NOT NULL CHECK (length(sha256) = 32),
    name         TEXT NOT NULL,
    verbs        TEXT NOT NULL,
    created_ms   INTEGER NOT NULL,
    expires_ms   INTEGER NOT NULL,
    revoked_ms   INTEGER,
    last_used_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX token_of_site ON token (site);
-- `seq` orders the pushes, of all sites.
CREATE TABLE push (
    site         TEXT NOT NULL REFERENCES site,
    plugin       TEXT NOT NULL,
    component    BLOB NOT NULL CHECK (length(component) = 32),
    capabilities TEXT NOT NULL,
    bytes        INTEGER NOT NULL CHECK (bytes >= 0),
    pushed_ms    INTEGER NOT NULL,
    seq          INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, plugin, component)
) STRICT, WITHOUT ROWID;
";

/// A merchant may make any number of releases, and the one writer must not read them all to find one again.
const RELEASES_FOUND: &str = r"
-- SHA-256 of what the release is, but for its number. NULL in rows of an older version: those are read.
ALTER TABLE release ADD COLUMN content BLOB CHECK (length(content) = 32);
-- The number that was active when this one was made; 0 for none. NULL in rows of an older version, which did not say.
ALTER TABLE release ADD COLUMN follows INTEGER CHECK (follows >= 0);
CREATE INDEX release_of_content ON release (site, plugin, content);
";

/// Whoever collects asks who refers to a blob, and must not read every row for it.
const REFERENCES_FOUND: &str = r"
CREATE INDEX release_of_component ON release (json_extract(body, '$.component'), site);
CREATE INDEX push_of_component ON push (component);
CREATE INDEX asset_of_digest ON asset (digest);
";

/// What the current version of a file may be told from. No row of an older store is written: a line begins with its next push.
const FORMER_ASSETS: &str = r"
-- `place` counts from the newest.
CREATE TABLE asset_former (
    site   TEXT NOT NULL,
    path   TEXT NOT NULL,
    place  INTEGER NOT NULL CHECK (place >= 0),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    bytes  INTEGER NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (site, path, place),
    FOREIGN KEY (site, path) REFERENCES asset
) STRICT, WITHOUT ROWID;
CREATE INDEX asset_former_of_digest ON asset_former (digest);
";

/// A mark says what it stands for, so that a node's disk from a backup shows.
const MARKS_BOUND: &str = r"
-- What the operations up to `hwm` fold to (souk_replication::Fold, 64 bits). NULL: an older version applied them.
ALTER TABLE cursor ADD COLUMN fold INTEGER;
";

/// Orders that are paid, and what the world is told of them.
const PAYMENTS: &str = r"
-- The life of an order's money (crate::saga::machine). A row stands here from the moment that stock is taken until for
-- ever; it becomes one of `orders` when the payment is assured. Of an order that is paid by invoice there is a row only
-- once a merchant has done something with it.
CREATE TABLE checkout (
    order_id        BLOB PRIMARY KEY NOT NULL CHECK (length(order_id) = 16),
    site            TEXT NOT NULL REFERENCES site,
    cart            BLOB NOT NULL CHECK (length(cart) = 16),
    idempotency_key TEXT NOT NULL,
    request_hash    BLOB NOT NULL CHECK (length(request_hash) = 32),
    amount          INTEGER NOT NULL,
    currency        TEXT NOT NULL,
    -- NULL once it is in `orders`.
    body            BLOB,
    -- Products of which nothing was taken, because they were not counted: a list. NULL: there are none.
    uncounted       TEXT,
    -- What the shopper pays with. NULL as soon as nobody needs it any more.
    method          TEXT,
    by_whom         TEXT NOT NULL,
    money           TEXT NOT NULL,
    goods           TEXT NOT NULL,
    placed          INTEGER NOT NULL CHECK (placed IN (0, 1)),
    capture         INTEGER NOT NULL CHECK (capture IN (0, 1)),
    cancel          INTEGER NOT NULL CHECK (cancel IN (0, 1)),
    look            INTEGER NOT NULL CHECK (look IN (0, 1)),
    reference       TEXT,
    why             TEXT,
    -- When somebody has to do something, and not before the lease ends. NULL: at rest.
    due_ms          INTEGER,
    -- Whoever does it holds the row until then, under this number; whoever comes back with an older one is not heard.
    leased_until_ms INTEGER NOT NULL DEFAULT 0,
    fence           INTEGER NOT NULL DEFAULT 0,
    created_ms      INTEGER NOT NULL,
    changed_ms      INTEGER NOT NULL,
    UNIQUE (site, idempotency_key)
) STRICT;
CREATE INDEX checkout_due ON checkout (due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX checkout_of_site ON checkout (site, created_ms);
CREATE INDEX checkout_unplaced ON checkout (changed_ms) WHERE placed = 0;
CREATE INDEX checkout_of_reference ON checkout (site, reference) WHERE reference IS NOT NULL;
-- The same of an order. NULL in rows of an older version too, which did not say.
ALTER TABLE orders ADD COLUMN uncounted TEXT;
-- Each call of a provider, written before it is made. NULL outcome: not known, and at most one per order.
CREATE TABLE payment_call (
    order_id BLOB NOT NULL REFERENCES checkout,
    op       TEXT NOT NULL,
    attempt  INTEGER NOT NULL CHECK (attempt >= 1),
    first_ms INTEGER NOT NULL,
    tries    INTEGER NOT NULL,
    sent     INTEGER NOT NULL CHECK (sent IN (0, 1)),
    maybe    INTEGER NOT NULL CHECK (maybe IN (0, 1)),
    answered INTEGER NOT NULL CHECK (answered IN (0, 1)),
    refused  INTEGER NOT NULL CHECK (refused IN (0, 1)),
    outcome  TEXT,
    ended_ms INTEGER,
    PRIMARY KEY (order_id, op, attempt)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX payment_call_open ON payment_call (order_id) WHERE outcome IS NULL;
-- Providers' messages that have been read, so that each is read once.
CREATE TABLE payment_message (
    site  TEXT NOT NULL REFERENCES site,
    id    TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (site, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX payment_message_age ON payment_message (at_ms);
-- What the last comparison of a shop's books with its provider's came to.
CREATE TABLE payment_report (
    site  TEXT PRIMARY KEY REFERENCES site,
    at_ms INTEGER NOT NULL,
    body  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The outbox: what has happened to orders, written by the transaction in which it happened. One writer: the order of
-- `seq` is the order of the commits.
CREATE TABLE event (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    site     TEXT NOT NULL REFERENCES site,
    order_id BLOB NOT NULL CHECK (length(order_id) = 16),
    kind     TEXT NOT NULL,
    body     TEXT NOT NULL,
    at_ms    INTEGER NOT NULL
) STRICT;
CREATE INDEX event_of_site ON event (site, seq);
CREATE INDEX event_age ON event (at_ms);
-- Up to where each consumer has read, moved by the transaction that holds what it made of it.
CREATE TABLE event_consumer (
    name TEXT PRIMARY KEY,
    seq  INTEGER NOT NULL CHECK (seq >= 0)
) STRICT, WITHOUT ROWID;
-- What a consumer makes of them: what a shop has sold, by day (UTC).
CREATE TABLE sales (
    site      TEXT NOT NULL REFERENCES site,
    day       INTEGER NOT NULL,
    currency  TEXT NOT NULL,
    orders    INTEGER NOT NULL DEFAULT 0,
    placed    INTEGER NOT NULL DEFAULT 0,
    captured  INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    refunded  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (site, day, currency)
) STRICT, WITHOUT ROWID;
";

/// How far events are handed on.
const PUBLISHERS: &str = r"
-- Up to where a broker has said that it holds every event (crate::events), by broker and stream.
CREATE TABLE event_publisher (
    name            TEXT PRIMARY KEY,
    seq             INTEGER NOT NULL CHECK (seq >= 0),
    -- Which stream that is: one that was made anew under the name holds nothing of it.
    stream          TEXT NOT NULL,
    -- Where in that stream the newest message is that it has acknowledged, and of which event that is. A stream that ends
    -- before it, or has something else there, has lost some.
    position        INTEGER NOT NULL CHECK (position >= 0),
    event           INTEGER NOT NULL CHECK (event >= 0),
    -- One process at a time hands events on; whoever takes over counts the fence up.
    leased_until_ms INTEGER NOT NULL,
    fence           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Units that are promised and lent, each in one place.
const ESCROW: &str = r"
-- The same rows, with every unit accounted for. What was sold before is not known: an old row begins with what is available.
CREATE TABLE stock_ledger (
    site      TEXT NOT NULL REFERENCES site,
    sku       TEXT NOT NULL,
    -- What the region can sell now. NULL is not counted, and sells without end.
    available INTEGER CHECK (available >= 0),
    -- In orders, and in checkouts that wait for their payment.
    sold      INTEGER NOT NULL CHECK (sold >= 0),
    -- Promised to carts: the sum of stock_hold.
    reserved  INTEGER NOT NULL CHECK (reserved >= 0),
    -- Lent to nodes: the sum of what is left of stock_grant.
    granted   INTEGER NOT NULL CHECK (granted >= 0),
    received  INTEGER NOT NULL,
    -- Counted away while they were promised or lent: so many do not become available when they come back.
    short     INTEGER NOT NULL CHECK (short >= 0),
    -- What was not sold when it was counted last.
    counted   INTEGER NOT NULL CHECK (counted >= 0),
    -- Moves with the hint, not with each unit.
    version   INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, sku),
    CHECK (received = sold + reserved + granted + coalesce(available, 0))
) STRICT;
INSERT INTO stock_ledger (site, sku, available, sold, reserved, granted, received, short, counted, version)
    SELECT site, sku, available, 0, 0, 0, coalesce(available, 0), 0, coalesce(available, 0), version FROM stock;
DROP TABLE stock;
ALTER TABLE stock_ledger RENAME TO stock;
-- Units lent to a node. closed_*: where its outbox stood when it said that it takes nothing more.
CREATE TABLE stock_grant (
    id           BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    node         INTEGER NOT NULL,
    site         TEXT NOT NULL REFERENCES site,
    sku          TEXT NOT NULL,
    units        INTEGER NOT NULL CHECK (units >= 0),
    consumed     INTEGER NOT NULL CHECK (consumed BETWEEN 0 AND units),
    expires_ms   INTEGER NOT NULL,
    closed_epoch INTEGER,
    closed_seq   INTEGER,
    -- For how long units of it are promised.
    hold_ms      INTEGER NOT NULL,
    -- When what was left of it went back.
    ended_ms     INTEGER
) STRICT;
CREATE INDEX stock_grant_of_node ON stock_grant (node) WHERE ended_ms IS NULL;
CREATE INDEX stock_grant_of_product ON stock_grant (site, sku) WHERE ended_ms IS NULL;
CREATE INDEX stock_grant_ended ON stock_grant (ended_ms) WHERE ended_ms IS NOT NULL;
-- Units promised to a cart: held, and then sold, released or expired; or refused.
CREATE TABLE stock_hold (
    id       BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    site     TEXT NOT NULL REFERENCES site,
    cart     BLOB NOT NULL CHECK (length(cart) = 16),
    sku      TEXT NOT NULL,
    units    INTEGER NOT NULL CHECK (units >= 0),
    -- NULL: promised by the region itself.
    grant_id BLOB CHECK (length(grant_id) = 16),
    state    TEXT NOT NULL,
    until_ms INTEGER NOT NULL,
    ended_ms INTEGER
) STRICT;
CREATE INDEX stock_hold_of_cart ON stock_hold (site, cart) WHERE ended_ms IS NULL;
CREATE INDEX stock_hold_of_product ON stock_hold (site, sku) WHERE ended_ms IS NULL;
CREATE INDEX stock_hold_due ON stock_hold (until_ms) WHERE ended_ms IS NULL;
CREATE INDEX stock_hold_ended ON stock_hold (ended_ms) WHERE ended_ms IS NOT NULL;
-- The last question about lent stock that each node was answered.
CREATE TABLE stock_node (
    node INTEGER PRIMARY KEY,
    turn INTEGER NOT NULL
) STRICT;
";

/// What a restored region lacks, and no node has kept.
const OPERATIONS_GONE: &str = r"
CREATE TABLE operations_gone (
    node      INTEGER NOT NULL,
    epoch     INTEGER NOT NULL CHECK (epoch >= 1),
    first_seq INTEGER NOT NULL CHECK (first_seq >= 1),
    -- NULL: how many there were is not known.
    last_seq  INTEGER,
    noted_ms  INTEGER NOT NULL,
    -- When an operator said that it was read. NULL: it is an alarm.
    read_ms   INTEGER,
    PRIMARY KEY (node, epoch, first_seq)
) STRICT, WITHOUT ROWID;
";

/// What of a shopper is sealed, and what is left of one who was erased.
const VAULT: &str = r"
-- By which random number the keyring knows the shopper. NULL: nobody's, or erased.
ALTER TABLE orders ADD COLUMN subject BLOB CHECK (length(subject) = 16);
-- 0: of an older version, which sealed nothing. Those are sealed at the next start.
ALTER TABLE orders ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0 CHECK (sealed IN (0, 1));
CREATE INDEX orders_of_subject ON orders (subject, position) WHERE subject IS NOT NULL;
CREATE INDEX orders_unsealed ON orders (position) WHERE sealed = 0;
ALTER TABLE checkout ADD COLUMN subject BLOB CHECK (length(subject) = 16);
ALTER TABLE checkout ADD COLUMN sealed INTEGER NOT NULL DEFAULT 0 CHECK (sealed IN (0, 1));
CREATE INDEX checkout_of_subject ON checkout (subject, created_ms) WHERE subject IS NOT NULL;
CREATE INDEX checkout_unsealed ON checkout (created_ms) WHERE sealed = 0;
-- Whoever is erased has events of his orders too.
CREATE INDEX event_of_order ON event (order_id);
-- Carts of shoppers who were erased, by what whoever has the cart can find and nobody else: nothing is taken into them.
CREATE TABLE cart_erased (
    site      TEXT NOT NULL REFERENCES site,
    tag       BLOB NOT NULL CHECK (length(tag) = 16),
    -- As plugins were told of it: a recording that comes late is known by it.
    seed      BLOB NOT NULL CHECK (length(seed) = 8),
    erased_ms INTEGER NOT NULL,
    PRIMARY KEY (site, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX cart_erased_seed ON cart_erased (site, seed);
-- The entries of the purge log that told the nodes of them. The log is cut; a node that was away for longer gets these.
CREATE TABLE erasure_told (
    version INTEGER PRIMARY KEY,
    body    BLOB NOT NULL
) STRICT;
-- That it happened. `named` is a keyed hash of the customer's number, which the audit log has too.
CREATE TABLE erasure (
    id        BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    site      TEXT NOT NULL REFERENCES site,
    named     BLOB NOT NULL CHECK (length(named) = 32),
    -- Whose key is to be destroyed. NULL: it is.
    subject   BLOB CHECK (length(subject) = 16),
    -- Of the purge log: when a node has got there, it has obeyed.
    version   INTEGER NOT NULL,
    orders    INTEGER NOT NULL,
    checkouts INTEGER NOT NULL,
    carts     INTEGER NOT NULL,
    erased_ms INTEGER NOT NULL,
    ended_ms  INTEGER
) STRICT;
CREATE INDEX erasure_of ON erasure (site, named, erased_ms);
CREATE INDEX erasure_unended ON erasure (erased_ms) WHERE subject IS NOT NULL;
";

/// What products say, as it is searched: made from `product`, and in no backup.
const SEARCH: &str = r#"
CREATE TABLE search_goods (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    site TEXT NOT NULL,
    sku  TEXT NOT NULL,
    rank INTEGER NOT NULL CHECK (rank >= 0),
    UNIQUE (site, sku)
) STRICT;
-- Terms come folded and with spaces between them (souk_search::Document). PostgreSQL has a column of `search_goods` instead.
CREATE VIRTUAL TABLE search_words USING fts5 (site, title, sku, labels, description, content='', contentless_delete=1, detail=column, tokenize="ascii tokenchars '_'", prefix='1 2 3');
-- Up to where of the catalogue log.
CREATE TABLE search_mark (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL CHECK (version >= 0)
) STRICT;
INSERT INTO search_mark (one, version) VALUES (1, 0);
"#;

/// What a standby has yet to be sent.
const CHANGES: &str = r"
-- The key of each row that was written, noted by triggers that only a region of a pair has (store::pair::capture). `gone`: the row
-- was deleted. Of a key that stands here twice the later one counts.
CREATE TABLE row_change (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    of_table TEXT NOT NULL,
    key      TEXT NOT NULL,
    gone     INTEGER NOT NULL CHECK (gone IN (0, 1))
) STRICT;
";

const FIRST: &str = r"
-- What this store is. `region_epoch` is minted when the file is made, and anew when it was restored: a node that meets
-- another one knows that its cursors count another history.
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Heads of the logs down. Versions in (floor, version] are still in `log`; older ones only as state.
CREATE TABLE log_head (
    log     INTEGER PRIMARY KEY,
    version INTEGER NOT NULL CHECK (version >= 0),
    floor   INTEGER NOT NULL CHECK (floor BETWEEN 0 AND version),
    bytes   INTEGER NOT NULL CHECK (bytes >= 0)
) STRICT;
CREATE TABLE log (
    log     INTEGER NOT NULL REFERENCES log_head,
    version INTEGER NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (log, version)
) STRICT;

CREATE TABLE site (
    site     TEXT PRIMARY KEY,
    settings TEXT NOT NULL,
    version  INTEGER NOT NULL UNIQUE
) STRICT;
-- A host name leads to one site, whoever asks first.
CREATE TABLE site_host (
    host TEXT PRIMARY KEY,
    site TEXT NOT NULL REFERENCES site
) STRICT, WITHOUT ROWID;
CREATE INDEX site_host_of_site ON site_host (site);

-- Each row carries the version of its log at which it last changed, so that a snapshot is 'the rows newer than
-- yours, in order', resumable at any row. NULL content is a tombstone: a node far behind must learn of removals.
CREATE TABLE product (
    site    TEXT NOT NULL REFERENCES site,
    sku     TEXT NOT NULL,
    content BLOB,
    version INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, sku)
) STRICT;
CREATE TABLE price (
    site       TEXT NOT NULL REFERENCES site,
    sku        TEXT NOT NULL,
    price      INTEGER CHECK (price >= 0),
    compare_at INTEGER CHECK (compare_at >= 0),
    floor      INTEGER CHECK (floor >= 0),
    version    INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, sku)
) STRICT;
-- The truth about stock. NULL is not counted, and sells without end. `version` moves with the hint, not with each unit.
CREATE TABLE stock (
    site      TEXT NOT NULL REFERENCES site,
    sku       TEXT NOT NULL,
    available INTEGER CHECK (available >= 0),
    version   INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, sku)
) STRICT;
CREATE TABLE asset (
    site         TEXT NOT NULL REFERENCES site,
    path         TEXT NOT NULL,
    digest       BLOB CHECK (length(digest) = 32),
    bytes        INTEGER NOT NULL CHECK (bytes >= 0),
    content_type TEXT NOT NULL,
    version      INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (site, path)
) STRICT;
-- Every release there ever was, immutable; and the chain that is active now.
CREATE TABLE release (
    site       TEXT NOT NULL REFERENCES site,
    plugin     TEXT NOT NULL,
    number     INTEGER NOT NULL CHECK (number >= 1),
    body       TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (site, plugin, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE release_set (
    site    TEXT PRIMARY KEY REFERENCES site,
    body    TEXT NOT NULL,
    version INTEGER NOT NULL UNIQUE
) STRICT;

CREATE TABLE node (
    node          INTEGER PRIMARY KEY,
    pop           TEXT NOT NULL,
    software      TEXT NOT NULL,
    first_seen_ms INTEGER NOT NULL,
    last_hello_ms INTEGER NOT NULL
) STRICT;
-- How far each outbox has been applied: moved in the transaction that applies, never before it.
CREATE TABLE cursor (
    node      INTEGER NOT NULL REFERENCES node,
    epoch     INTEGER NOT NULL CHECK (epoch >= 1),
    hwm       INTEGER NOT NULL CHECK (hwm >= 0),
    sealed    INTEGER NOT NULL CHECK (sealed IN (0, 1)),
    minted_ms INTEGER NOT NULL,
    PRIMARY KEY (node, epoch)
) STRICT, WITHOUT ROWID;
-- Operations that were accepted by a node and that this region cannot understand. Kept whole: nothing is dropped.
CREATE TABLE dead_letter (
    node   INTEGER NOT NULL,
    epoch  INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    body   BLOB NOT NULL,
    reason TEXT NOT NULL,
    at_ms  INTEGER NOT NULL,
    PRIMARY KEY (node, epoch, seq)
) STRICT;

CREATE TABLE cart (
    site       TEXT NOT NULL REFERENCES site,
    cart       BLOB NOT NULL CHECK (length(cart) = 16),
    state      BLOB NOT NULL,
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    order_id   BLOB CHECK (length(order_id) = 16),
    updated_ms INTEGER NOT NULL,
    PRIMARY KEY (site, cart)
) STRICT;

CREATE TABLE orders (
    position        INTEGER PRIMARY KEY AUTOINCREMENT,
    id              BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    site            TEXT NOT NULL REFERENCES site,
    cart            BLOB NOT NULL CHECK (length(cart) = 16),
    idempotency_key TEXT NOT NULL,
    request_hash    BLOB NOT NULL CHECK (length(request_hash) = 32),
    state           TEXT NOT NULL,
    currency        TEXT NOT NULL,
    total           INTEGER NOT NULL,
    body            BLOB NOT NULL,
    placed_ms       INTEGER NOT NULL,
    UNIQUE (site, idempotency_key),
    UNIQUE (site, cart)
) STRICT;
CREATE INDEX orders_of_site ON orders (site, position);
CREATE TABLE order_line (
    position   INTEGER NOT NULL REFERENCES orders,
    line       INTEGER NOT NULL,
    sku        TEXT NOT NULL,
    added_by   TEXT,
    title      TEXT NOT NULL,
    quantity   INTEGER NOT NULL CHECK (quantity > 0),
    unit_price INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    PRIMARY KEY (position, line)
) STRICT, WITHOUT ROWID;
CREATE INDEX order_line_of_sku ON order_line (sku);

-- Append-only, each row bound to the one before by its hash.
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at_ms   INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    peer    TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL,
    prev    BLOB NOT NULL CHECK (length(prev) = 32),
    hash    BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;
CREATE TRIGGER audit_is_append_only_u BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_d BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

/// The version that this program works on.
pub(super) const NEWEST: usize = MIGRATIONS.len();

/// Brings the file to version `to`. Refuses one that a newer Souk has written.
pub(super) fn migrate_sqlite(conn: &mut Connection, to: usize) -> Result<(), StoreError> {
    let known = MIGRATIONS.len();
    let version: usize = conn.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version.max(to) > known {
        return Err(StoreError::TooNew { version: version.max(to), known });
    }
    for (index, sql) in MIGRATIONS.iter().enumerate().take(to).skip(version) {
        let tx = conn.transaction()?;
        tx.execute_batch(sql)?;
        tx.pragma_update(None, "user_version", index + 1)?;
        tx.commit()?;
    }
    Ok(())
}

/// Before any table of ours: how far the tables are, and the row that whoever writes holds ([`super::engine::postgres`]).
pub(super) const POSTGRES_FIRST: &str = "
CREATE TABLE IF NOT EXISTS store (
    one     BIGINT PRIMARY KEY CHECK (one = 1),
    version BIGINT NOT NULL,
    commits BIGINT NOT NULL
);
-- Not asked of a row that is there: whoever migrates holds it.
INSERT INTO store (one, version, commits) SELECT 1, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM store)
    ON CONFLICT (one) DO NOTHING;
-- Who is there at the moment (store::present): which processes live, and which nodes are connected to each.
CREATE TABLE IF NOT EXISTS region_process (
    process  BYTEA PRIMARY KEY CHECK (length(process) = 16),
    until_ms BIGINT NOT NULL
);
CREATE TABLE IF NOT EXISTS present_node (
    process BYTEA NOT NULL,
    node    BIGINT NOT NULL,
    pop     TEXT NOT NULL,
    purge   BIGINT NOT NULL,
    chains  BYTEA NOT NULL,
    PRIMARY KEY (process, node)
);
-- A text here cannot hold the character 0, which the settings of a plugin may name: it is read as another one.
CREATE OR REPLACE FUNCTION component_of(body TEXT) RETURNS TEXT LANGUAGE sql IMMUTABLE STRICT
    AS $$ SELECT CAST(replace(body, '\\u0000', '\\ufffd') AS json) ->> 'component' $$;
CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$;
";

/// The same tables as PostgreSQL names their parts. Texts are compared byte by byte, as SQLite does, whatever the database's
/// own order is.
fn for_postgres(migration: &str) -> String {
    let mut sql = String::with_capacity(migration.len() + 1024);
    for line in migration.lines().filter(|line| !line.starts_with("CREATE TRIGGER audit_is_append_only_d")) {
        if line.starts_with("CREATE TRIGGER audit_is_append_only_u") {
            sql.push_str(
                "CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
                 FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();\n",
            );
            continue;
        }
        if line.starts_with("CREATE VIRTUAL TABLE search_words") {
            sql.push_str(
                "ALTER TABLE search_goods ADD COLUMN words tsvector NOT NULL;
                 CREATE INDEX search_goods_words ON search_goods USING gin (words);\n",
            );
            continue;
        }
        let line = line
            .replace(
                " INTEGER PRIMARY KEY AUTOINCREMENT",
                " BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
            )
            .replace(" INTEGER", " BIGINT")
            .replace(" BLOB", " BYTEA")
            .replace(" ANY ", " BYTEA ")
            .replace(" TEXT", " TEXT COLLATE \"C\"")
            .replace(") STRICT, WITHOUT ROWID;", ");")
            .replace(") STRICT;", ");")
            .replace("json_extract(body, '$.component')", "component_of(body)");
        sql.push_str(&line);
        sql.push('\n');
    }
    sql
}

fn version_of(session: &PgSession, to: usize) -> Result<usize, StoreError> {
    let sql: &dyn Session = session;
    let known = MIGRATIONS.len();
    let version: usize = sql.one("SELECT version FROM store WHERE one = 1", &[], |row| row.get(0))?;
    let newest = version.max(to);
    if newest > known { Err(StoreError::TooNew { version: newest, known }) } else { Ok(version) }
}

/// Whether a database has the tables of version `to` and before. Refuses one that a newer Souk has written.
pub(super) fn is_current_postgres(session: &PgSession, to: usize) -> Result<bool, StoreError> {
    Ok(version_of(session, to)? >= to)
}

/// The same for a database, within the transaction of `session`, which holds the row that says how far it is.
pub(super) fn migrate_postgres(session: &PgSession, to: usize) -> Result<(), StoreError> {
    let version = version_of(session, to)?;
    // An index on a table of years takes its time, and nobody is served before it is there.
    session.script("SET LOCAL statement_timeout = 0")?;
    for migration in MIGRATIONS.iter().take(to).skip(version) {
        session.script_patiently(&for_postgres(migration))?;
    }
    let sql: &dyn Session = session;
    sql.execute("UPDATE store SET version = ?1 WHERE one = 1", params![version.max(to)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_of_a_newer_version_is_refused() {
        let mut conn = Connection::open_in_memory().expect("memory is there");
        migrate_sqlite(&mut conn, NEWEST).expect("an empty file migrates");
        migrate_sqlite(&mut conn, NEWEST).expect("migrating twice does nothing");
        conn.pragma_update(None, "user_version", 99).expect("the pragma is writable");
        assert!(matches!(migrate_sqlite(&mut conn, NEWEST), Err(StoreError::TooNew { version: 99, .. })));
    }

    #[test]
    fn a_store_of_the_first_version_keeps_its_rows() {
        let mut conn = Connection::open_in_memory().expect("memory is there");
        conn.execute_batch(FIRST).expect("the first version");
        conn.execute_batch(
            "PRAGMA user_version = 1;
             INSERT INTO site VALUES ('shop', '{}', 1);
             INSERT INTO release VALUES ('shop', 'pricing', 1, '{}', 5);
             INSERT INTO stock VALUES ('shop', 'MUG', 5, 7), ('shop', 'PEN', NULL, 8);
             INSERT INTO orders VALUES (1, zeroblob(16), 'shop', zeroblob(16), 'key', zeroblob(32), 'placed', 'GBP', 100, x'00', 5);",
        )
        .expect("rows of the first version");
        migrate_sqlite(&mut conn, NEWEST).expect("an old file migrates");
        let sql = "SELECT body, content IS NULL AND follows IS NULL FROM release WHERE number = 1";
        let row = conn.query_row(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)));
        assert_eq!(row.expect("the row"), ("{}".to_owned(), true));
        let sql = "SELECT state, (SELECT count(*) FROM checkout), (SELECT count(*) FROM event) FROM orders";
        let row = conn.query_row(sql, [], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, u64>(1)?, row.get::<_, u64>(2)?))
        });
        assert_eq!(row.expect("the order"), ("placed".to_owned(), 0, 0), "an old order is as it was");
        let sql = "SELECT sku, available, received, granted, version FROM stock ORDER BY sku";
        let mut select = conn.prepare(sql).expect("a ledger");
        type Row = (String, Option<u64>, u64, u64, u64);
        let rows = select.query_map([], |row| {
            Ok::<Row, _>((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        });
        let rows: Vec<Row> = rows.expect("rows").collect::<Result<_, _>>().expect("rows");
        let expected = [("MUG".to_owned(), Some(5), 5, 0, 7), ("PEN".to_owned(), None, 0, 0, 8)];
        assert_eq!(rows, expected, "the versions stay, so that no node is told what it knows");
    }
}
