//! A database that several processes share: one writer at a time, nothing lost or done twice, each told of the others.
//!
//! Two handles stand for two processes: they share nothing but the database.

use std::time::Duration;

use super::super::engine::params;
use super::super::present::{Heard, PresentNode};
use super::super::publisher::{Claim, Held, LEASE_MS, Turn};
use super::server::Server;
use super::*;
use crate::saga::machine::Event;

/// So long a test waits for what must come; never for what must not.
const COMES_WITHIN: Duration = Duration::from_secs(60);

async fn comes<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(COMES_WITHIN, what).await.expect("it comes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_lose_nothing_double_nothing_and_oversell_nothing() {
    const NODES: u32 = 4;
    const CARTS: u8 = 12;
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (shop(&home).await, home.open());
    one.put_stock(site(), sku("MUG"), Some(10), actor()).await.unwrap();
    let of = |number: u32| if number.is_multiple_of(2) { one.clone() } else { two.clone() };

    // Nodes whose batches arrive at both: as when an answer was lost, and the node has moved.
    let mut tasks = Vec::new();
    for node in 1..=NODES {
        enrol(&of(node), node, 1).await;
        let mut shopper = Shopper::new(node, 1, 200 + u8::try_from(node).unwrap());
        let ops: Vec<_> = (0..20).map(|_| shopper.add("PEN", 1)).collect();
        for half in 0..2 {
            let (store, ops) = (of(node + half), ops.clone());
            tasks.push(tokio::spawn(async move {
                for (index, op) in ops.into_iter().enumerate() {
                    let seq = index as u64 + 1;
                    // The other one may be behind or ahead; a gap is asked for again.
                    while let Apply::Gap { .. } =
                        store.apply_batch(node, 1, seq, vec![op.clone()]).await.unwrap()
                    {
                        tokio::task::yield_now().await;
                    }
                }
            }));
        }
    }
    // Meanwhile carts are ordered, each at both with the same key, and there are not enough mugs for all.
    let mut placing = Vec::new();
    for cart in 1..=CARTS {
        let draft = draft(&of(cart.into()), cart, &[("MUG", 1)], &format!("key-{cart}")).await;
        for store in [one.clone(), two.clone()] {
            let draft = draft.clone();
            placing.push(tokio::spawn(async move { store.place(draft).await.unwrap() }));
        }
    }
    let (mut placed, mut repeated, mut refused) = (0, 0, 0);
    for place in placing {
        match place.await.unwrap() {
            Place::Placed => placed += 1,
            Place::Repeated(_) => repeated += 1,
            Place::OutOfStock { available: 0, .. } => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!((placed, repeated, refused), (10, 10, 4), "ten mugs, each sold once, each sale told twice");
    assert_eq!(left(&two, "MUG").await, Some(Some(0)));
    assert_eq!(two.counts().await.unwrap().orders, 10);
    for node in 1..=NODES {
        let cart = CartId([200 + u8::try_from(node).unwrap(); 16]);
        let stored = one.cart(site(), cart).await.unwrap().unwrap();
        let pens: u32 =
            Cart::from_bytes(&stored.state).unwrap().lines().into_iter().map(|(_, quantity)| quantity).sum();
        assert_eq!(pens, 20, "each operation of node {node} once");
        comes(two.marks().reached(node, 1, 20)).await;
        comes(one.marks().reached(node, 1, 20)).await;
    }
    // One order of everything: the versions of a log have no hole and no twin, and the audit's chain is whole.
    let head = comes(head_reaches(&two, Log::Stock, 1)).await;
    let Run::Changes { to, records } = two.changes(Log::Stock, 0, PAGE).await.unwrap() else { panic!() };
    assert!(records.iter().map(|record| record.version).eq(1..=to) && to >= head);
    assert!(matches!(one.audit_chain().await.unwrap(), Chain::Whole { .. }));
    one.close();
    two.close();
}

async fn head_reaches(store: &Store, log: Log, version: u64) -> u64 {
    let mut heads = store.log_heads();
    let found = heads.wait_for(|heads| heads.get(log) >= version).await.unwrap();
    found.get(log)
}

#[tokio::test]
async fn what_one_process_commits_another_is_told_of() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (shop(&home).await, home.open());
    let put = one.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    let Put::Written { version } = put else { panic!("{put:?}") };
    assert_eq!(comes(head_reaches(&two, Log::Price, version)).await, version);
    enrol(&one, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    one.apply_batch(1, 1, 1, vec![shopper.add("MUG", 1)]).await.unwrap();
    comes(two.marks().reached(1, 1, 1)).await;
    // A node that moves goes on where it was.
    assert_eq!(two.apply_batch(1, 1, 2, vec![shopper.add("MUG", 1)]).await.unwrap(), applied(2, 1, 0));
    assert_eq!(two.marks().get(1, 1).map(|mark| mark.hwm), Some(2));
    assert!(two.begin_epoch(1, 2).await.unwrap());
    assert_eq!(one.apply_batch(1, 1, 3, vec![shopper.add("MUG", 1)]).await.unwrap(), Apply::NotOpen);
}

/// A process that draws a number and commits it after another one's later number would be passed by whoever reads on behind
/// the last number it has seen, and its event would be read by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_passed_by_a_reader_while_its_transaction_is_open() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (shop(&home).await, home.open());
    let (end, ends) = std::sync::mpsc::sync_channel(1);
    let slow = tokio::spawn({
        let one = one.clone();
        async move { one.happen_slowly(site(), OrderId([1; 16]), ends).await }
    });
    let quick = tokio::spawn({
        let two = two.clone();
        async move { two.happen(site(), OrderId([2; 16]), Event::Placed, 2).await }
    });
    // Reads on behind what it has seen; the quick one has time to commit, if it can.
    let (mut place, mut read) = (0, Vec::new());
    let mut follow = async || {
        for event in two.events(site(), place, 10).await.unwrap() {
            place = event.seq;
            read.push(event.order);
        }
        read.len()
    };
    for _ in 0..60 {
        follow().await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    end.send(()).unwrap();
    comes(slow).await.unwrap().unwrap();
    comes(quick).await.unwrap().unwrap();
    assert_eq!(follow().await, 2, "a reader has passed the event whose transaction was open");
    let taken = async |store: &Store| store.consume_events().await.unwrap();
    assert_eq!(taken(&one).await + taken(&two).await, 2);
}

#[tokio::test]
async fn one_process_hands_events_on_at_a_time_and_one_that_was_replaced_is_not_heard() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (shop(&home).await, home.open());
    let claim = async |store: &Store, stream: &str, held, now_ms| {
        store.claim_events("broker".to_owned(), stream.to_owned(), held, now_ms).await.unwrap()
    };
    let note = async |store: &Store, turn, gives_up| {
        store.note_published("broker".to_owned(), turn, gives_up).await.unwrap()
    };
    let Claim::Ours(first) = claim(&one, "s", None, 1_000).await else { panic!("nobody else is at it") };
    let until_ms = 1_000 + LEASE_MS;
    assert_eq!(first, Turn { fence: 1, place: 0, last: Held::default(), until_ms });
    assert_eq!(claim(&two, "s", None, until_ms - 1).await, Claim::Anothers { until_ms });
    let last = Held { position: 7, event: 5 };
    assert!(note(&one, Turn { place: 5, last, ..first }, false).await);
    let Claim::Ours(longer) = claim(&one, "s", Some(1), 2_000).await else { panic!("it holds on to it") };
    assert_eq!(longer, Turn { fence: 1, place: 5, last, until_ms: 2_000 + LEASE_MS });
    let Claim::Ours(second) = claim(&two, "s", None, longer.until_ms).await else {
        panic!("the lease is over")
    };
    assert_eq!((second.fence, second.place, second.last), (2, 5, last));
    assert!(!note(&one, Turn { place: 6, ..longer }, false).await, "it was replaced");
    assert!(note(&two, Turn { place: 8, ..second }, true).await);
    let Claim::Ours(third) = claim(&one, "s", None, 3_000).await else { panic!("it was given up") };
    assert_eq!((third.fence, third.place), (3, 8));
    let Claim::Ours(anew) = claim(&one, "t", Some(3), 3_001).await else { panic!("it is held") };
    assert_eq!((anew.place, anew.last), (0, Held::default()), "another stream has nothing");
}

#[tokio::test]
async fn a_transaction_that_was_given_up_for_another_is_run_again_and_not_for_ever() {
    let Some(home) = Home::postgres() else { return };
    let store = shop(&home).await;
    // What a sequence has given out it does not take back with the transaction: so the trigger can count.
    let script = [
        "CREATE SEQUENCE refusals",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('refusals') <= 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END IF;
             RETURN NEW; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON price FOR EACH ROW EXECUTE FUNCTION refuse()",
    ];
    let run = |sql: &'static str| store.write(move |tx| tx.sql.execute(sql, &[]).map(Decision::Keep));
    for sql in script {
        run(sql).await.unwrap();
    }
    let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    let head = store.log_heads().borrow().get(Log::Price);
    assert_eq!(put, Put::Written { version: head }, "once, however often it was run");
    let repeated = || store.writer_metrics().repeated.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(repeated(), 3);

    run("ALTER SEQUENCE refusals MINVALUE -1000000 RESTART WITH -1000000").await.unwrap();
    let refused = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(1)), actor()).await;
    assert!(matches!(&refused, Err(StoreError::NotCommitted(why)) if why.contains("again")), "{refused:?}");
    assert_eq!(repeated(), 3 + 5, "six runs, and then whoever asked is told");
    assert_eq!(store.log_heads().borrow().get(Log::Price), head);
    assert_eq!(store.goods(site(), sku("MUG")).await.unwrap().unwrap().price.unwrap().price, Minor(900));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_killed_while_it_commits_leaves_the_outcome_open_and_a_repeat_does_nothing() {
    let Some(server) = Server::own() else { return };
    let home = Home::of(&server);
    let store = shop(&home).await;
    let draft = draft(&store, 1, &[("MUG", 2)], "key-1").await;
    // Commits are on the disk and wait for a standby that does not exist: there the server is killed.
    server.does("hold");
    let placing = tokio::spawn({
        let (store, draft) = (store.clone(), draft.clone());
        async move { store.place(draft).await }
    });
    server.does("held");
    server.does("kill");
    let outcome = comes(placing).await.unwrap();
    assert!(matches!(&outcome, Err(error @ StoreError::Unknown(_)) if error.is_transient()), "{outcome:?}");
    let away = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(1)), actor()).await;
    assert!(matches!(&away, Err(error @ StoreError::NotCommitted(_)) if error.is_transient()), "{away:?}");

    server.does("start");
    let again = Draft { order: Order { id: OrderId([9; 16]), ..draft.order.clone() }, ..draft.clone() };
    assert_eq!(store.place(again).await.unwrap(), Place::Repeated(Standing::Placed(Box::new(draft.order))));
    assert_eq!(left(&store, "MUG").await, Some(Some(3)), "two mugs were sold, once");
    let mut shopper = Shopper::new(101, 1, 1);
    let same = shopper.add("MUG", 2);
    assert_eq!(store.apply_batch(101, 1, 1, vec![same]).await.unwrap(), applied(1, 0, 1));
    assert!(matches!(store.audit_chain().await.unwrap(), Chain::Whole { rows: 2 }));
    store.close();
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let Some(home) = Home::postgres() else { return };
    let store = home.open();
    let newer = store.write(|tx| {
        tx.sql.execute("UPDATE store SET version = ?1 WHERE one = 1", params![99_u64]).map(Decision::Keep)
    });
    newer.await.unwrap();
    assert!(matches!(home.try_open(), Err(StoreError::TooNew { version: 99, .. })));
}

#[tokio::test]
async fn a_process_says_who_is_there_and_one_that_says_nothing_any_more_is_forgotten() {
    let Some(home) = Home::postgres() else { return };
    let (one, two) = (shop(&home).await, home.open());
    let (first, second) = ([1; 16], [2; 16]);
    let present = |node, purge| PresentNode { node, pop: "lon".to_owned(), purge, chains: vec![node as u8] };
    let now_ms = crate::clock::now_ms();
    let said = |heard: Heard| heard.into_values().flat_map(|(_, nodes)| nodes.to_vec()).collect::<Vec<_>>();
    let elsewhere = async |at_ms| said(two.present_elsewhere(second, at_ms, Heard::new()).await.unwrap());
    assert!(!one.tell_present(first, vec![present(1, 5), present(2, 5)], vec![]).await.unwrap(), "it is new");
    assert_eq!(elsewhere(now_ms).await, [present(1, 5), present(2, 5)]);
    let own = one.present_elsewhere(first, now_ms, Heard::new()).await.unwrap();
    assert_eq!(said(own), [], "its own are no news to it");
    assert!(one.tell_present(first, vec![present(1, 6)], vec![2]).await.unwrap());
    assert_eq!(elsewhere(now_ms).await, [present(1, 6)]);
    assert_eq!(elsewhere(now_ms + 60_000).await, [], "a minute later it has died");

    // Taken for dead while it was held up: what it had said is gone, and it is told to say it again.
    let run = |sql: &'static str| two.write(move |tx| tx.sql.execute(sql, &[]).map(Decision::Keep));
    run("UPDATE region_process SET until_ms = 0").await.unwrap();
    assert!(!two.tell_present(second, vec![present(3, 1)], vec![]).await.unwrap());
    assert_eq!(run("DELETE FROM present_node WHERE node = 1").await.unwrap(), 0, "swept by the other");
    assert!(!one.tell_present(first, vec![], vec![]).await.unwrap());
    let heard = one.present_elsewhere(first, now_ms, Heard::new()).await.unwrap();
    assert_eq!(said(heard.clone()), [present(3, 1)]);

    // Whoever has said nothing new is believed without a look at its nodes; a word within the same millisecond is news.
    run("UPDATE present_node SET purge = 77 WHERE node = 3").await.unwrap();
    let heard = one.present_elsewhere(first, now_ms, heard).await.unwrap();
    assert_eq!(said(heard.clone()), [present(3, 1)]);
    run("UPDATE region_process SET until_ms = 90000000000000").await.unwrap();
    let heard = one.present_elsewhere(first, now_ms, heard).await.unwrap();
    assert_eq!(said(heard.clone()), [present(3, 77)]);
    assert!(two.tell_present(second, vec![present(3, 78)], vec![]).await.unwrap());
    let heard = one.present_elsewhere(first, now_ms, heard).await.unwrap();
    assert_eq!(said(heard), [present(3, 78)]);
}
