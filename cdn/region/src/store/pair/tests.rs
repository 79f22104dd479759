//! A store that follows another one: every row of it at each end of a part, on either engine; and who may write what.

use std::collections::BTreeSet;

use souk_commerce::id::{CartId, OrderId};
use souk_commerce::money::Minor;
use souk_commerce::product::PriceRow;
use souk_search::Query;

use super::capture::KEPT_MAX;
use super::frame::{Down, Holds};
use super::sink::{Sink, SinkError, Taken};
use super::source::{Sent, Source};
use super::standing::{NotSo, Standing};
use crate::store::backup::{Cell, Door, file_in};
use crate::store::cart::Apply;
use crate::store::engine::postgres::Postgres;
use crate::store::engine::{Engine as _, Mode, Session, params};
use crate::store::order::Place;
use crate::store::search::MATCHES_MAX;
use crate::store::shopper::Erased;
use crate::store::tests::home::{Home, on_every_engine};
use crate::store::tests::{Shopper, actor, draft, enrol, furnish, left, row, site, sku};
use crate::store::{Decision, KekFile, Store, StoreError, StoreSettings, Tx};

mod erased;
mod restored;

on_every_engine! {
    a_standby_holds_what_its_home_held,
    a_standby_that_was_away_for_too_long_is_given_everything,
    what_is_noted_has_a_bound_whatever_the_standby_holds,
    a_home_that_was_put_back_by_hand_gives_its_standby_everything,
    a_standby_takes_over_and_the_former_home_writes_nothing,
    no_home_comes_after_the_last_term,
    a_part_that_is_cut_off_leaves_nothing,
    what_was_undone_costs_no_whole_copy,
    whoever_takes_over_searches_what_its_home_sold,
    a_payment_call_that_has_ended_comes_before_the_one_that_follows,
    a_key_that_an_erased_order_gave_up_is_free_for_another,
    an_erasure_tells_of_its_own_key_and_no_other,
    what_does_not_fit_leaves_the_standby_as_it_was,
}

/// A store that others follow.
fn followed(home: &Home) -> Store {
    home.open_with(StoreSettings { is_followed: true, ..StoreSettings::for_tests(1_000) })
}

fn door(home: &Home) -> Door {
    match home {
        Home::File(dir) => Door::sqlite(file_in(dir.path())),
        Home::Postgres(database) => Door::postgres(database, None).unwrap(),
    }
}

/// A place for a standby, of either engine.
struct Standby {
    home: Home,
    sink: Sink,
}

impl Standby {
    fn on(home: Home) -> Self {
        Self::made_of(home, false)
    }

    fn made_of(home: Home, discard: bool) -> Self {
        door(&home).follow(discard).unwrap().unwrap();
        let sink = match &home {
            Home::File(dir) => Sink::of_file(dir.path()),
            Home::Postgres(database) => Sink::of_server(database, None),
        };
        Self { home, sink: sink.unwrap() }
    }

    fn holds(&self) -> Option<Holds> {
        match door(&self.home).standing().unwrap() {
            Standing::Standby { followed: Some(followed), .. } => {
                Some(Holds { stream: followed.stream.into(), seq: followed.seq })
            }
            _ => None,
        }
    }

    /// Takes what it lacks; none: nothing.
    fn follow(&mut self, source: &mut Source) -> Option<Sent> {
        let mut frames = Vec::new();
        let sent = source
            .send(self.holds(), 1, 77, &mut |frame| {
                frames.push(frame);
                true
            })
            .unwrap();
        let mut held = None;
        for frame in frames {
            if let Taken::Held { followed, .. } = self.sink.take(frame).unwrap() {
                held = Some(followed);
            }
        }
        assert_eq!(
            held.map(|held| (held.seq, held.term, held.at_ms)),
            sent.as_ref().map(|sent| (sent.to, 1, 77))
        );
        sent
    }
}

/// Every row of every table, in an order of their own.
fn rows(door: &Door) -> Vec<(String, Vec<Vec<Cell>>)> {
    let snapshot = door.look().unwrap();
    let all = |table| {
        let mut rows = Vec::new();
        snapshot
            .rows(table, &mut |cells| {
                rows.push(cells.to_vec());
                Ok(())
            })
            .unwrap();
        rows.sort_by_key(|row| format!("{row:?}"));
        (table.name.clone(), rows)
    };
    snapshot.tables.iter().map(all).collect()
}

fn assert_equal(home: &Home, standby: &Standby) {
    let (ours, theirs) = (rows(&door(home)), rows(&door(&standby.home)));
    for ((table, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "table {table}");
    }
    assert_eq!(door(&standby.home).look().unwrap().broken_laws().unwrap(), [""; 0]);
}

/// The places that a standby can have.
fn places() -> Vec<Home> {
    [Some(Home::sqlite()), Home::postgres()].into_iter().flatten().collect()
}

async fn some_trade(store: &Store, turn: u8) {
    let node = 7;
    if turn == 0 {
        enrol(store, node, 3).await;
    }
    let mut shopper = Shopper::new(node, 3, 50 + turn);
    let ops = vec![shopper.add("MUG", 1), shopper.add("CAP", i32::from(turn) + 1), b"no operation".to_vec()];
    let first = u64::from(turn) * 3 + 1;
    assert!(matches!(store.apply_batch(node, 3, first, ops).await.unwrap(), Apply::Applied(_)));
    store.put_price(site(), sku("PEN"), PriceRow::of(Minor(200 + i64::from(turn))), actor()).await.unwrap();
    let mut order = draft(store, 90 + turn, &[("PEN", 1)], &format!("key-{turn}")).await;
    order.order.customer = Some(format!("shopper-{turn}"));
    assert_eq!(store.place(order).await.unwrap(), Place::Placed);
}

async fn a_standby_holds_what_its_home_held(home: Home) {
    let store = furnish(followed(&home)).await;
    some_trade(&store, 0).await;
    for place in places() {
        let mut standby = Standby::on(place);
        let mut source = store.source().unwrap();
        let whole = standby.follow(&mut source).expect("it had nothing");
        assert!(whole.is_whole && whole.rows > 10, "{whole:?}");
        assert_equal(&home, &standby);
        assert!(standby.follow(&mut source).is_none(), "nothing has changed");
    }
    let mut standby = Standby::on(Home::sqlite());
    let mut source = store.source().unwrap();
    standby.follow(&mut source);
    for turn in 1..4 {
        some_trade(&store, turn).await;
        let part = standby.follow(&mut source).expect("there is something");
        assert!(!part.is_whole, "{part:?}");
        let of_node =
            part.marks.iter().find(|((node, epoch), _)| (*node, *epoch) == (7, 3)).expect("it has moved");
        assert_eq!(of_node.1.hwm, u64::from(turn) * 3 + 3);
        assert_equal(&home, &standby);
    }
    // What is deleted.
    let letter = crate::store::dead_letter::LetterId { node: 7, epoch: 3, seq: 3 };
    store.discard_dead_letter(letter, actor()).await.unwrap();
    standby.follow(&mut source).expect("there is something");
    assert_equal(&home, &standby);
    // Names can be read there.
    standby.sink.demand_opens_with(&KekFile::for_tests(&[6])).unwrap();
    assert!(standby.sink.demand_opens_with(&KekFile::for_tests(&[9])).is_err(), "another key of keys");
    store.close();
}

async fn a_standby_that_was_away_for_too_long_is_given_everything(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut standby = Standby::on(Home::sqlite());
    let mut source = store.source().unwrap();
    standby.follow(&mut source);
    some_trade(&store, 0).await;
    let head = store.change_head().await.unwrap();
    assert_eq!(store.forget_changes(head, KEPT_MAX).await.unwrap(), 1, "the last one stays");
    assert_eq!(store.change_head().await.unwrap(), head);
    let whole = standby.follow(&mut source).expect("it lacks what is not kept");
    assert!(whole.is_whole);
    assert_equal(&home, &standby);
    // A home that was without triggers for a time begins another stream.
    store.close();
    let alone = home.open();
    alone.put_price(site(), sku("PEN"), PriceRow::of(Minor(9)), actor()).await.unwrap();
    assert_eq!(alone.change_head().await.unwrap(), 0, "nobody notes anything");
    alone.close();
    let store = followed(&home);
    let mut source = store.source().unwrap();
    assert!(standby.follow(&mut source).expect("another stream").is_whole);
    assert_equal(&home, &standby);
    store.close();
}

/// Whoever puts a file back makes a mark beside it, and the region that finds it begins a new history.
async fn a_home_that_was_put_back_by_hand_gives_its_standby_everything(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut standby = Standby::on(Home::sqlite());
    let mut source = store.source().unwrap();
    standby.follow(&mut source);
    some_trade(&store, 0).await;
    assert!(!standby.follow(&mut source).expect("there is something").is_whole);
    let before = store.change_stream().await.unwrap();
    store.begin_history(9).await.unwrap();
    let after = store.change_stream().await.unwrap();
    assert!(after.is_some() && after != before, "its numbers may have meant other rows");
    // As far on as the standby was: without another name it would be taken for one that lacks the last.
    some_trade(&store, 1).await;
    assert!(standby.follow(&mut source).expect("another stream").is_whole);
    assert_equal(&home, &standby);
    assert!(standby.follow(&mut source).is_none());
    store.close();
    // Of a store that nobody follows nothing is noted after it either.
    let alone = home.open();
    alone.begin_history(10).await.unwrap();
    assert_eq!((alone.change_stream().await.unwrap(), alone.change_head().await.unwrap()), (None, 0));
    alone.close();
}

/// As much as several transactions take away.
async fn what_is_noted_has_a_bound_whatever_the_standby_holds(home: Home) {
    let store = furnish(followed(&home)).await;
    let note = |tx: &Tx<'_>| {
        let sql =
            "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 120000)
                   INSERT INTO row_change (of_table, key, gone) SELECT 'price', '[]', 0 FROM number";
        tx.sql.execute(sql, &[])?;
        Ok(Decision::Keep(()))
    };
    store.write(note).await.unwrap();
    let noted = async || {
        let count =
            |conn: &dyn Session| conn.one("SELECT count(*) FROM row_change", &[], |row| row.get::<u64>(0));
        store.read(count).await.unwrap()
    };
    let before = noted().await;
    assert!(before > 120_000);
    let head = store.change_head().await.unwrap();
    store.forget_changes(0, KEPT_MAX).await.unwrap();
    assert_eq!(noted().await, before, "it is not too much yet");
    assert_eq!(store.forget_changes(0, 1_000).await.unwrap(), 1_000);
    assert_eq!(noted().await, 1_000);
    assert_eq!(store.forget_changes(head - 10, KEPT_MAX).await.unwrap(), 10);
    assert_eq!((noted().await, store.change_head().await.unwrap()), (10, head));
    store.close();
}

async fn a_standby_takes_over_and_the_former_home_writes_nothing(home: Home) {
    let store = furnish(followed(&home)).await;
    some_trade(&store, 0).await;
    let mut source = store.source().unwrap();
    for place in places() {
        let mut standby = Standby::on(place);
        let by = serde_json::json!({ "actor": "operator:test", "peer": "" });
        let empty = door(&standby.home).take_over(&by, false).unwrap();
        assert_eq!(empty, Err(NotSo::Empty), "half a region is none");
        standby.follow(&mut source);
        let taken = door(&standby.home).take_over(&by, false).unwrap().unwrap();
        assert_eq!((taken.term, taken.as_of_ms), (2, Some(77)));
        assert_eq!(door(&standby.home).take_over(&by, false).unwrap(), Err(NotSo::Home(2)), "once");
        // What its former home still sends is not taken.
        let begin = Down::Begin { stream: [0; 16].into(), whole: false, after: 1, term: 1 };
        assert!(matches!(standby.sink.take(begin), Ok(Taken::More)));
        let end = Down::End { seq: 9, at_ms: 1 };
        assert!(matches!(standby.sink.take(end), Err(SinkError::NotStandby)));
        let after = standby.home.open();
        assert!(after.wants_new_history().await.unwrap(), "its nodes take every log whole");
        after.note_takeover().await.unwrap();
        after.note_takeover().await.unwrap();
        let told = after.audit(0, 1_000).await.unwrap();
        let told: Vec<_> = told.iter().filter(|row| row.action == "region.taken_over").collect();
        assert_eq!(
            (told.len(), told[0].actor.as_str(), &told[0].detail["term"]),
            (1, "operator:test", &2.into())
        );
        // It goes on: the next order has a number that the former home has not given.
        let mut order = draft(&after, 200, &[("PEN", 1)], "after").await;
        order.order.id = OrderId([3; 16]);
        assert_eq!(after.place(order).await.unwrap(), Place::Placed);
        after.close();
    }
    // The former home is told, and from that commit on nothing is written there.
    let at = store.clone();
    let standing = tokio::task::spawn_blocking(move || at.replaced(2)).await.unwrap().unwrap();
    assert_eq!(standing, Standing::Replaced { term: 1, by: 2 });
    let before = left(&store, "MUG").await;
    let mut shopper = Shopper::new(7, 3, 77);
    let refused = store.apply_batch(7, 3, 4, vec![shopper.add("MUG", 1)]).await;
    assert!(
        matches!(&refused, Err(StoreError::NotCommitted(why)) if why.contains("not home")),
        "{refused:?}"
    );
    assert!(refused.unwrap_err().is_transient(), "elsewhere it is taken");
    assert_eq!(left(&store, "MUG").await, before);
    assert!(store.cart(site(), CartId([77; 16])).await.unwrap().is_none());
    store.close();
    let by = serde_json::json!({});
    assert_eq!(door(&home).take_over(&by, false).unwrap(), Err(NotSo::Replaced { by: 2 }));
    // It becomes the standby only if its rows may go.
    assert!(matches!(door(&home).follow(false).unwrap(), Err(NotSo::Inhabited(_))));
    door(&home).follow(true).unwrap().unwrap();
    assert_eq!(door(&home).standing().unwrap(), Standing::Standby { followed: None, met: 2 });
}

/// The other region is believed, and what it says may be nonsense: it is an error by name and no term of 0.
async fn no_home_comes_after_the_last_term(home: Home) {
    furnish(home.open()).await.close();
    let door = door(&home);
    let replaced = Standing::Replaced { term: 1, by: u64::MAX };
    assert_eq!(door.replaced(u64::MAX).unwrap(), replaced);
    assert_eq!(door.take_over(&serde_json::json!({}), true).unwrap(), Err(NotSo::Exhausted));
    assert_eq!(door.standing().unwrap(), replaced);
}

async fn a_part_that_is_cut_off_leaves_nothing(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut source = store.source().unwrap();
    for place in places() {
        let mut standby = Standby::on(place);
        standby.follow(&mut source);
        let before = rows(&door(&standby.home));
        let holds = standby.holds();
        let price = i64::try_from(store.change_head().await.unwrap()).unwrap();
        store.put_price(site(), sku("CAP"), PriceRow::of(Minor(price)), actor()).await.unwrap();
        // All but its end.
        let mut frames = Vec::new();
        source
            .send(holds, 1, 78, &mut |frame| {
                frames.push(frame);
                true
            })
            .unwrap();
        let end = frames.pop();
        assert!(matches!(end, Some(Down::End { .. })));
        for frame in frames {
            standby.sink.take(frame).unwrap();
        }
        standby.sink.give_up();
        assert_eq!(rows(&door(&standby.home)), before);
        // And anew, with nobody who takes it to its end.
        let mut left = 2;
        let cut = source.send(None, 1, 79, &mut |_| {
            left -= 1;
            left > 0
        });
        assert!(matches!(cut, Err(StoreError::Closed)), "{cut:?}");
        standby.follow(&mut source).expect("it comes again");
        assert_equal(&home, &standby);
        // A part that does not follow is refused.
        let begin = Down::Begin { stream: [9; 16].into(), whole: false, after: 0, term: 1 };
        standby.sink.take(begin).unwrap();
        assert!(matches!(standby.sink.take(Down::End { seq: 1, at_ms: 0 }), Err(SinkError::Frame(_))));
        assert_equal(&home, &standby);
    }
    store.close();
}

/// PostgreSQL gives no number twice, whatever became of the transaction that had it.
async fn what_was_undone_costs_no_whole_copy(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut standby = Standby::on(Home::sqlite());
    let mut source = store.source().unwrap();
    standby.follow(&mut source);
    for turn in 0..3 {
        let held = standby.holds().expect("it has everything").seq;
        let undone = |tx: &Tx<'_>| {
            tx.sql.execute("UPDATE product SET sku = sku", &[])?;
            Ok(Decision::Undo(()))
        };
        store.write(undone).await.unwrap();
        some_trade(&store, turn).await;
        store.forget_changes(held, KEPT_MAX).await.unwrap();
        assert!(!standby.follow(&mut source).expect("there is something").is_whole);
        assert_equal(&home, &standby);
    }
    store.close();
}

/// Of so many orders that rows in an order of chance would fit once in a million million parts.
const ORDERS_PAID: u8 = 40;

fn check_out(tx: &Tx<'_>, id: [u8; 16], key: &str) -> Result<(), StoreError> {
    let sql = "INSERT INTO checkout (order_id, site, cart, idempotency_key, request_hash, amount, currency, by_whom,
                      money, goods, placed, capture, cancel, look, created_ms, changed_ms)
               VALUES (?1, ?2, ?1, ?3, ?4, 100, 'GBP', 'card', 'authorizing', 'held', 0, 0, 0, 0, 1, 1)";
    tx.sql.execute(sql, params![id, site().as_str(), key, [0_u8; 32]]).map(drop)
}

/// One transaction ends a call of each order's provider and begins the next: the standby, too, may have one open only.
async fn a_payment_call_that_has_ended_comes_before_the_one_that_follows(home: Home) {
    let store = furnish(followed(&home)).await;
    let begin = |tx: &Tx<'_>| {
        for order in 0..ORDERS_PAID {
            check_out(tx, [order; 16], &format!("key-{order}"))?;
        }
        Ok(Decision::Keep(()))
    };
    store.write(begin).await.unwrap();
    let call = async |op: &'static str| {
        let go_on = move |tx: &Tx<'_>| {
            let sql = "UPDATE payment_call SET outcome = 'done', ended_ms = 2 WHERE outcome IS NULL";
            tx.sql.execute(sql, &[])?;
            for order in 0..ORDERS_PAID {
                let sql = "INSERT INTO payment_call (order_id, op, attempt, first_ms, tries, sent, maybe, answered, refused)
                           VALUES (?1, ?2, 1, 1, 1, 1, 0, 0, 0)";
                tx.sql.execute(sql, params![[order; 16], op])?;
            }
            Ok(Decision::Keep(()))
        };
        store.write(go_on).await.unwrap();
    };
    let mut standbys: Vec<_> = places().into_iter().map(Standby::on).collect();
    let mut sources: Vec<_> = standbys.iter().map(|_| store.source().unwrap()).collect();
    for op in ["authorize", "capture", "refund"] {
        call(op).await;
        for (standby, source) in standbys.iter_mut().zip(&mut sources) {
            let sent = standby.follow(source).expect("there is something");
            assert_eq!(sent.is_whole, op == "authorize");
            assert_eq!(rows(&door(&home)), rows(&door(&standby.home)), "{op}");
        }
    }
    store.close();
}

/// An erasure puts another key in its place, and whoever comes next with the same one is somebody else.
async fn a_key_that_an_erased_order_gave_up_is_free_for_another(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut standbys: Vec<_> = places().into_iter().map(Standby::on).collect();
    let mut sources: Vec<_> = standbys.iter().map(|_| store.source().unwrap()).collect();
    for turn in 0..3_u8 {
        let go_on = move |tx: &Tx<'_>| {
            for order in 0..ORDERS_PAID {
                let key = format!("key-{order}");
                for table in ["orders", "checkout"] {
                    let sql = format!("UPDATE {table} SET idempotency_key = ?1 WHERE idempotency_key = ?2");
                    tx.sql.execute(&sql, params![format!("erased-{turn}-{order}"), key])?;
                }
                let id = [turn * ORDERS_PAID + order; 16];
                check_out(tx, id, &key)?;
                let sql = "INSERT INTO orders (id, site, cart, idempotency_key, request_hash, state, currency, total, body,
                                  placed_ms)
                           VALUES (?1, ?2, ?1, ?3, ?4, 'placed', 'GBP', 100, ?1, 1)";
                tx.sql.execute(sql, params![id, site().as_str(), key, [0_u8; 32]])?;
            }
            Ok(Decision::Keep(()))
        };
        store.write(go_on).await.unwrap();
        for (standby, source) in standbys.iter_mut().zip(&mut sources) {
            let sent = standby.follow(source).expect("there is something");
            assert_eq!(sent.is_whole, turn == 0);
            assert_eq!(rows(&door(&home)), rows(&door(&standby.home)), "{turn}");
        }
    }
    store.close();
}

/// Those that were destroyed before are told of once, when a standby comes.
async fn an_erasure_tells_of_its_own_key_and_no_other(home: Home) {
    let store = furnish(followed(&home)).await;
    for turn in 0..4 {
        some_trade(&store, turn).await;
    }
    let erase = async |turn: u8| {
        let customer = Some(format!("shopper-{turn}"));
        let erased = store.erase_shopper(site(), customer, BTreeSet::new(), actor()).await.unwrap();
        assert!(matches!(erased, Erased::Now(_)), "{erased:?}");
    };
    let told = |standby: &mut Standby, source: &mut Source| {
        let mut keys = 0_u32;
        let holds = standby.holds();
        let sent = source.send(holds, 1, 77, &mut |frame| {
            if let Down::Rows { table, count, .. } = &frame
                && table == "key_destroyed"
            {
                keys += *count;
            }
            standby.sink.take(frame).is_ok()
        });
        sent.unwrap().expect("there is something");
        keys
    };
    for turn in 0..2 {
        erase(turn).await;
    }
    let mut standby = Standby::on(home_of_the_other_kind(&home));
    let mut source = store.source().unwrap();
    assert_eq!(told(&mut standby, &mut source), 2);
    erase(2).await;
    assert_eq!(told(&mut standby, &mut source), 1);
    some_trade(&store, 4).await;
    assert_eq!(told(&mut standby, &mut source), 0);
    // On another connection nobody knows what was told on this one.
    some_trade(&store, 5).await;
    assert_eq!(told(&mut standby, &mut store.source().unwrap()), 3);
    assert_equal(&home, &standby);
    store.close();
    door(&standby.home).take_over(&serde_json::json!({}), false).unwrap().unwrap();
    let after = standby.home.open();
    assert_eq!(after.vault.destroyed(None, 10).unwrap().len(), 3);
    assert!(after.vault.find(&site(), "shopper-2").unwrap().is_none());
    assert!(after.vault.find(&site(), "shopper-3").unwrap().is_some());
    after.close();
}

async fn whoever_takes_over_searches_what_its_home_sold(home: Home) {
    let store = furnish(followed(&home)).await;
    taken_in(&store).await;
    let mut source = store.source().unwrap();
    for place in places() {
        // It was a home, and sold something that nobody else has.
        let former = furnish(place.open()).await;
        former.import(site(), vec![row("HAT", 900, None)], actor()).await.unwrap().unwrap();
        taken_in(&former).await;
        assert_eq!(found(&former).await, ["CAP", "HAT", "MUG", "PEN"]);
        former.close();
        // What reads the file beside it would be waited for.
        drop(former);
        let mut standby = Standby::made_of(place, true);
        assert!(standby.follow(&mut source).expect("it has nothing of its home's").is_whole);
        store.import(site(), vec![row("CUP", 300, None)], actor()).await.unwrap().unwrap();
        standby.follow(&mut source);
        assert_equal(&home, &standby);
        door(&standby.home).take_over(&serde_json::json!({}), false).unwrap().unwrap();
        let after = standby.home.open();
        assert_eq!(found(&after).await, [""; 0], "a standby makes no words");
        taken_in(&after).await;
        assert_eq!(found(&after).await, ["CAP", "CUP", "MUG", "PEN"]);
        after.close();
    }
    store.close();
}

async fn taken_in(store: &Store) {
    while !store.index_products().await.unwrap().is_current {}
}

/// What has a title of its own, as all products of these tests do.
async fn found(store: &Store) -> Vec<String> {
    let query = Query::parse("the").unwrap();
    let matches = store.matches(site(), query, None, MATCHES_MAX).await.unwrap().unwrap();
    let mut found: Vec<_> = matches.found.iter().map(|found| found.product.sku.to_string()).collect();
    found.sort();
    found
}

#[test]
fn what_a_newer_home_sends_is_refused_by_name() {
    let mut standby = Standby::on(Home::sqlite());
    let stream = [1; 16].into();
    standby.sink.take(Down::Begin { stream, whole: true, after: 0, term: 1 }).unwrap();
    let rows = Down::Rows {
        table: "site".to_owned(),
        columns: vec!["site".to_owned(), "colour".to_owned()],
        count: 0,
        rows: Vec::new().into(),
    };
    let refused = standby.sink.take(rows).unwrap_err();
    assert!(refused.to_string().contains("colour") && refused.to_string().contains("upgrade"), "{refused}");
}

async fn what_does_not_fit_leaves_the_standby_as_it_was(home: Home) {
    let store = furnish(followed(&home)).await;
    let mut source = store.source().unwrap();
    let mut standby = Standby::on(home_of_the_other_kind(&home));
    standby.follow(&mut source);
    let before = rows(&door(&standby.home));
    let holds = standby.holds().expect("it has everything");
    let begin = || Down::Begin { stream: holds.stream, whole: false, after: holds.seq, term: 1 };
    let row = |count, bytes: &[u8]| Down::Rows {
        table: "cursor".to_owned(),
        columns: vec!["node".to_owned(), "epoch".to_owned()],
        count,
        rows: bytes.to_vec().into(),
    };
    // Of a row: two numbers; a number and a text where a number is; a number.
    let (numbers, text, narrow) = (&[0x82, 7, 3][..], &[0x82, 7, 0x61, b'x'][..], &[0x81, 7][..]);
    for wrong in [row(2, numbers), row(1, text), row(1, narrow), row(1, b"\xff"), row(u32::MAX, &[])] {
        standby.sink.take(begin()).unwrap();
        let said = format!("{wrong:?}");
        assert!(standby.sink.take(wrong).is_err(), "{said}");
        assert!(standby.sink.take(Down::End { seq: holds.seq + 1, at_ms: 1 }).is_err(), "it was given up");
    }
    for gone in ["[]", "no key", "[1]", "[\"x\",2,3]"] {
        standby.sink.take(begin()).unwrap();
        let gone = Down::Gone { table: "cursor".to_owned(), keys: vec![gone.to_owned()] };
        assert!(standby.sink.take(gone).is_err());
    }
    assert!(standby.sink.take(row(1, numbers)).is_err(), "rows before a beginning");
    assert!(standby.sink.take(Down::End { seq: 1, at_ms: 1 }).is_err(), "an end without one");
    assert_eq!(rows(&door(&standby.home)), before);
    // And it goes on.
    some_trade(&store, 0).await;
    assert!(!standby.follow(&mut source).expect("there is something").is_whole);
    assert_equal(&home, &standby);
    store.close();
}

/// A place of the other engine, where there is one.
fn home_of_the_other_kind(home: &Home) -> Home {
    match home {
        Home::File(_) => Home::postgres().unwrap_or_else(Home::sqlite),
        Home::Postgres(_) => Home::sqlite(),
    }
}

/// As beside an import of another process, which takes longer than a statement waits for its lock.
#[tokio::test]
async fn a_process_starts_while_another_one_writes() {
    let Some(home) = Home::postgres() else { return };
    let Home::Postgres(database) = &home else { unreachable!("a server's") };
    for is_followed in [false, true] {
        let settings = || StoreSettings { is_followed, ..StoreSettings::for_tests(1_000) };
        home.open_with(settings()).close();
        let engine = Postgres::new(database, None).unwrap();
        let import = engine.open(Mode::Write).unwrap();
        import.begin(Mode::Write).unwrap();
        let beside = home.open_with(settings());
        assert_eq!(beside.change_stream().await.unwrap().is_some(), is_followed);
        assert!(import.roll_back());
        beside.close();
    }
}

/// What a former home has and nobody else is not written over, however often it changes hands, and whatever goes wrong meanwhile.
#[tokio::test]
async fn the_file_of_each_former_home_is_kept() {
    let home = Home::sqlite();
    let store = furnish(followed(&home)).await;
    let mut source = store.source().unwrap();
    let place = tempfile::tempdir().unwrap();
    let (dir, file) = (place.path().to_owned(), file_in(place.path()));
    let mut place = Home::File(place);
    for (number, kept) in [(1, "region.former.db"), (2, "region.former-2.db")] {
        let former = place.open();
        if number == 1 {
            furnish(former.clone()).await;
        }
        let only_here = format!("ONLY{number}");
        former.import(site(), vec![row(&only_here, 900, None)], actor()).await.unwrap().unwrap();
        former.close();
        drop(former);
        door(&place).follow(true).unwrap().unwrap();
        let mut sink = Sink::of_file(&dir).unwrap();
        // There is no room for the new one: the old one stays, and what was begun takes none.
        let in_the_way = dir.join("region.db.partial");
        std::fs::create_dir(&in_the_way).unwrap();
        let begin = || Down::Begin { stream: [1; 16].into(), whole: true, after: 0, term: 1 };
        sink.take(begin()).unwrap();
        assert!(sink.take(Down::End { seq: 1, at_ms: 1 }).is_err());
        std::fs::remove_dir(&in_the_way).unwrap();
        assert!(matches!(door(&place).standing().unwrap(), Standing::Standby { followed: None, .. }));
        // Somebody reads the old file while the new one takes its place: he is waited for, and takes nothing away.
        let reader = door(&place).look().unwrap();
        let waits = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            drop(reader);
        });
        let mut standby = Standby { home: place, sink };
        assert!(standby.follow(&mut source).expect("it has nothing").is_whole);
        waits.join().unwrap();
        store.put_price(site(), sku("PEN"), PriceRow::of(Minor(300 + number)), actor()).await.unwrap();
        assert!(!standby.follow(&mut source).expect("there is something").is_whole);
        assert_equal(&home, &standby);
        let at_former = Door::sqlite(dir.join(kept)).look().unwrap();
        let goods = at_former.tables.iter().find(|table| table.name == "product").unwrap();
        let mut found = false;
        let mut look = |cells: &[Cell]| {
            found |= cells.contains(&Cell::Text(only_here.clone()));
            Ok(())
        };
        at_former.rows(goods, &mut look).unwrap();
        assert!(found, "{kept} holds {only_here}");
        let by = serde_json::json!({});
        place = standby.home;
        door(&place).take_over(&by, false).unwrap().unwrap();
    }
    assert!(file.exists() && !dir.join("region.db.partial").exists());
    store.close();
}
