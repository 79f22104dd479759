//! What nodes send up: applied once, in order, and what cannot be applied is kept.

use super::*;

on_every_engine! {
    operations_are_applied_once_in_order_and_replays_do_nothing,
    a_gap_and_a_foreign_epoch_apply_nothing,
    what_cannot_be_applied_is_kept_and_does_not_stop_the_rest,
    a_dead_letter_is_listed_and_applied_or_given_up_by_an_operator,
    a_node_cannot_use_up_the_dots_of_another,
    what_was_accepted_in_an_older_epoch_is_applied_under_its_new_number,
    a_clock_that_is_ahead_is_counted_and_one_that_no_clock_can_be_is_refused,
    a_cart_that_nobody_can_read_holds_up_no_other,
    a_batch_about_many_carts_is_as_if_each_operation_had_come_alone,
    waiting_for_an_operation_ends_when_it_is_applied,
}

async fn operations_are_applied_once_in_order_and_replays_do_nothing(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let ops: Vec<_> = (0..5).map(|_| shopper.add("MUG", 1)).collect();

    assert_eq!(store.apply_batch(1, 1, 1, ops[..3].to_vec()).await.unwrap(), applied(3, 3, 0));
    assert_eq!(store.apply_batch(1, 1, 1, ops[..3].to_vec()).await.unwrap(), applied(3, 0, 3), "a replay");
    assert_eq!(store.apply_batch(1, 1, 2, ops[1..].to_vec()).await.unwrap(), applied(5, 2, 2), "an overlap");
    let mark = store.marks().get(1, 1).expect("a mark");
    let folded = ops.iter().fold(Fold::EMPTY, |fold, op| fold.with(op));
    assert_eq!((mark.hwm, mark.fold), (5, Some(folded)), "each operation is folded once, replayed or not");
    let stored = store.cart(site(), shopper.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, shopper.state.digest());
    assert_eq!(stored.state, shopper.state.to_bytes());
}

async fn a_gap_and_a_foreign_epoch_apply_nothing(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let op = shopper.add("MUG", 1);
    assert_eq!(store.apply_batch(1, 1, 2, vec![op.clone()]).await.unwrap(), Apply::Gap { hwm: 0 });
    assert_eq!(store.apply_batch(1, 2, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.apply_batch(2, 1, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap(), None);

    // A new epoch seals the old one: its numbers would mean two things.
    enrol(&store, 1, 2).await;
    assert_eq!(store.apply_batch(1, 1, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.apply_batch(1, 2, 1, vec![op]).await.unwrap(), applied(1, 1, 0));
    assert!(!store.begin_epoch(1, 1).await.unwrap(), "epochs never go back");
    assert!(store.begin_epoch(1, 2).await.unwrap(), "asked twice for the newest, it does nothing");
    let known = store.greet(1, "lon".to_owned(), "test".to_owned()).await.unwrap().expect("it said hello");
    assert_eq!((known.epoch, known.hwm), (2, 1));
    assert!(store.is_open(1, 2).await.unwrap() && !store.is_open(1, 1).await.unwrap());
}

async fn what_cannot_be_applied_is_kept_and_does_not_stop_the_rest(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let unknown_site = Operation::Cart {
        site: "elsewhere".parse().unwrap(),
        cart: shopper.cart,
        at_ms: 1,
        delta: Cart::new().edit(NodeId(1), Epoch(1), Hlc(1)).finish(),
    };
    let ops =
        vec![shopper.add("MUG", 1), b"garbage".to_vec(), unknown_site.to_bytes(), shopper.add("PEN", 2)];
    let outcome = store.apply_batch(1, 1, 1, ops).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 4, applied: 2, dead: 2, ..Applied::default() }));
    assert_eq!(burials(&store).await, ["unreadable", "site_unknown"]);
    assert_eq!(store.counts().await.unwrap().dead_letters, 2);
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap().unwrap().digest, shopper.state.digest());
}

async fn a_dead_letter_is_listed_and_applied_or_given_up_by_an_operator(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 3, 2).await;
    // Another shop's cart, whose site is not there yet; and garbage.
    let (elsewhere, cart): (SiteId, _) = ("elsewhere".parse().unwrap(), CartId([9; 16]));
    let mut state = Cart::new();
    let mut edit = state.edit(NodeId(3), Epoch(2), Hlc(1));
    edit.add(Entry::Line(LineKey::of(sku("MUG"))), 2).unwrap();
    let delta = edit.finish();
    state.apply(&delta);
    let early = Operation::Cart { site: elsewhere.clone(), cart, at_ms: 1, delta }.to_bytes();
    store.apply_batch(3, 2, 1, vec![early, b"garbage".to_vec()]).await.unwrap();

    let (early, garbage) = (id("3.2.1"), id("3.2.2"));
    let listed = store.dead_letters(None, 10).await.unwrap();
    let shown: Vec<_> = listed.iter().map(|l| (l.id.as_str(), l.reason.split(':').next().unwrap())).collect();
    assert_eq!(shown, [("3.2.1", "site_unknown"), ("3.2.2", "unreadable")]);
    assert_eq!(store.dead_letters(Some(early), 10).await.unwrap(), listed[1..]);
    assert_eq!(store.dead_letters_count().await.unwrap(), 2);

    let still = store.retry_dead_letter(early, actor()).await.unwrap();
    assert!(matches!(&still, Retried::Unfit(why) if why.starts_with("site_unknown")), "{still:?}");
    let settings = SiteSettings::new(elsewhere.clone(), "GBP".parse().unwrap());
    store.put_site(settings, By::Operator, actor()).await.unwrap();
    assert_eq!(store.retry_dead_letter(early, actor()).await.unwrap(), Retried::Applied);
    assert_eq!(store.cart(elsewhere, cart).await.unwrap().unwrap().digest, state.digest());
    assert_eq!(store.retry_dead_letter(early, actor()).await.unwrap(), Retried::NotThere, "once");

    assert!(store.discard_dead_letter(garbage, actor()).await.unwrap());
    assert!(!store.discard_dead_letter(garbage, actor()).await.unwrap());
    assert_eq!(store.dead_letters_count().await.unwrap(), 0);
    let told: Vec<_> =
        store.audit(0, 100).await.unwrap().into_iter().map(|row| (row.action, row.subject)).collect();
    for deed in [("dead_letter.applied", "3.2.1"), ("dead_letter.discarded", "3.2.2")] {
        assert!(told.iter().any(|(action, subject)| (action.as_str(), subject.as_str()) == deed), "{deed:?}");
    }
}

fn id(text: &str) -> LetterId {
    text.parse().unwrap()
}

/// The reasons of all dead letters, by name.
async fn burials(store: &Store) -> Vec<String> {
    let letters = store.dead_letters(None, 100).await.unwrap();
    letters.iter().map(|letter| letter.reason.split(':').next().unwrap().to_owned()).collect()
}

async fn a_node_cannot_use_up_the_dots_of_another(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    enrol(&store, 2, 1).await;
    let mut honest = Shopper::new(1, 1, 7);
    let acknowledged = honest.add("MUG", 2);

    // As the honest node, and as itself in an epoch that it does not have: both are buried.
    let (mut forger, mut ahead) = (Shopper::new(1, 1, 7), Shopper::new(2, 2, 7));
    let outcome = store.apply_batch(2, 1, 1, vec![forger.add("PEN", 9), ahead.add("PEN", 9)]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 2, dead: 2, ..Applied::default() }));
    assert_eq!(burials(&store).await, ["foreign_dot", "foreign_dot"]);

    // A drop of a change that is still on its way goes nowhere; what comes with it is the node's own, and applied.
    let mut thief = Shopper::new(2, 1, 7);
    let Ok(Operation::Cart { site: shop, cart, at_ms, mut delta }) =
        Operation::from_bytes(&thief.add("CAP", 1))
    else {
        panic!("a change of a cart")
    };
    delta.changes[0].drops = (1..100).map(|n| Dot { node: NodeId(1), epoch: Epoch(1), n }).collect();
    let theft = Operation::Cart { site: shop, cart, at_ms, delta }.to_bytes();
    let outcome = store.apply_batch(2, 1, 3, vec![theft]).await.unwrap();
    assert_eq!(
        outcome,
        Apply::Applied(Applied { hwm: 3, applied: 1, drops_ignored: 1, ..Applied::default() })
    );

    assert_eq!(store.apply_batch(1, 1, 1, vec![acknowledged]).await.unwrap(), applied(1, 1, 0));
    honest.state.merge(&thief.state);
    let stored = store.cart(site(), honest.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, honest.state.digest());

    // A roaming shopper's node has the cart from here, and takes away what it saw.
    thief.state = Cart::from_bytes(&stored.state).unwrap();
    let taken = thief.edit(|edit| edit.remove(Entry::Line(LineKey::of(sku("MUG")))));
    assert_eq!(store.apply_batch(2, 1, 4, vec![taken]).await.unwrap(), applied(4, 1, 0));
    let stored = store.cart(site(), honest.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, thief.state.digest());
}

async fn what_was_accepted_in_an_older_epoch_is_applied_under_its_new_number(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let older = shopper.add("MUG", 1);
    enrol(&store, 1, 2).await;
    shopper.epoch = 2;
    assert_eq!(
        store.apply_batch(1, 2, 1, vec![older, shopper.add("MUG", 1)]).await.unwrap(),
        applied(2, 2, 0)
    );
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap().unwrap().digest, shopper.state.digest());
}

async fn a_clock_that_is_ahead_is_counted_and_one_that_no_clock_can_be_is_refused(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let now_ms = crate::clock::now_ms();
    let mut shopper = Shopper::new(1, 1, 7);
    let mut send = |at: Hlc| {
        shopper.clock = at.0 - 1;
        shopper.edit(|edit| edit.country("FR".parse().unwrap()))
    };
    let hour_ms = 3_600_000;
    let ops = vec![send(Hlc::at(now_ms)), send(Hlc::at(now_ms + hour_ms)), send(Hlc(u64::MAX - 9))];
    let outcome = store.apply_batch(1, 1, 1, ops).await.unwrap();
    let expected = Applied { hwm: 3, applied: 2, dead: 1, clock_ahead: 1, ..Applied::default() };
    assert_eq!(outcome, Apply::Applied(expected));
    assert_eq!(burials(&store).await, ["clock_ahead"]);
    // The next shopper's country can still win.
    let stored = store.cart(site(), CartId([7; 16])).await.unwrap().unwrap();
    assert_eq!(Cart::from_bytes(&stored.state).unwrap().newest(), Some(Hlc::at(now_ms + hour_ms)));
}

async fn a_cart_that_nobody_can_read_holds_up_no_other(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let (mut broken, mut whole) = (Shopper::new(1, 1, 7), Shopper::new(1, 1, 8));
    store.apply_batch(1, 1, 1, vec![broken.add("MUG", 1)]).await.unwrap();
    let breaks = store.write(|tx| {
        tx.sql.execute("UPDATE cart SET state = ?1", params![vec![0_u8]])?;
        Ok(Decision::Keep(()))
    });
    breaks.await.unwrap();
    let outcome = store.apply_batch(1, 1, 2, vec![broken.add("MUG", 1), whole.add("PEN", 1)]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 3, applied: 1, dead: 1, ..Applied::default() }));
    assert_eq!(store.cart(site(), whole.cart).await.unwrap().unwrap().digest, whole.state.digest());
}

async fn a_batch_about_many_carts_is_as_if_each_operation_had_come_alone(home: Home) {
    // More carts than may be open at once, in numbers that no statement is made for.
    const CARTS: u16 = 613;
    const ERASED: u16 = 100;
    const BROKEN: u16 = 200;
    let cart = |number: u16| CartId(u128::from(number).to_be_bytes());
    let store = shop(&home).await;
    let other = "another".parse::<SiteId>().unwrap();
    let settings = SiteSettings::new(other.clone(), "EUR".parse().unwrap());
    store.put_site(settings, By::Operator, actor()).await.unwrap();
    // What the node writes, site by site in turn: every cart twice or three times, and half of them stand already.
    let mut carts = std::collections::BTreeMap::<(SiteId, CartId), Cart>::new();
    let mut ops = Vec::new();
    for round in 0..3_u16 {
        for number in (0..CARTS).filter(|number| round < 2 || number.is_multiple_of(2)) {
            let site = if number.is_multiple_of(3) { other.clone() } else { site() };
            let at_ms = u64::from(round) * 1_000 + u64::from(number) + 2;
            let state = carts.entry((site.clone(), cart(number))).or_default();
            let mut edit = state.edit(NodeId(1), Epoch(1), Hlc(at_ms));
            edit.add(Entry::Line(LineKey::of(sku("MUG"))), 1).unwrap();
            let delta = edit.finish();
            state.apply(&delta);
            ops.push(Operation::Cart { site, cart: cart(number), at_ms, delta }.to_bytes());
        }
        ops.push(b"garbage".to_vec());
    }
    enrol(&store, 1, 1).await;
    let spoil = store.write(move |tx| {
        for site in [site(), other.clone()] {
            let sql = "INSERT INTO cart_erased (site, tag, seed, erased_ms) VALUES (?1, ?2, ?3, 1)";
            tx.sql.execute(sql, params![site.as_str(), cart(ERASED).tag(&site).0, [0_u8; 8]])?;
            let sql = "INSERT INTO cart (site, cart, state, digest, updated_ms) VALUES (?1, ?2, ?3, ?4, 1)";
            tx.sql.execute(sql, params![site.as_str(), cart(BROKEN).0, vec![0_u8], [0_u8; 32]])?;
        }
        Ok(Decision::Keep(()))
    });
    spoil.await.unwrap();

    let all = ops.len() as u64;
    let expected = Applied { hwm: all, applied: all - 3 - 3, dead: 6, late: 3, ..Applied::default() };
    // The last ones of an earlier batch come once more.
    assert_eq!(store.apply_batch(1, 1, 1, ops[..40].to_vec()).await.unwrap(), applied(40, 40, 0));
    let expected = Applied { applied: expected.applied - 40, skipped: 15, ..expected };
    assert_eq!(store.apply_batch(1, 1, 26, ops[25..].to_vec()).await.unwrap(), Apply::Applied(expected));
    assert_eq!(burials(&store).await, ["cart_corrupt", "unreadable"].repeat(3));
    for ((site, number), state) in &carts {
        let stored = store.cart(site.clone(), *number).await.unwrap().expect("it stands");
        if *number == cart(ERASED) {
            assert!(stored.is_erased && stored.state == Cart::new().to_bytes());
        } else if *number == cart(BROKEN) {
            assert_eq!(stored.state, [0]);
        } else {
            assert_eq!(stored.digest, state.digest(), "{number:?}");
        }
    }
}

async fn waiting_for_an_operation_ends_when_it_is_applied(home: Home) {
    let store = shop(&home).await;
    enrol(&store, 1, 1).await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.marks().reached(1, 1, 2).await }
    });
    let mut shopper = Shopper::new(1, 1, 7);
    store.apply_batch(1, 1, 1, vec![shopper.add("MUG", 1)]).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    store.apply_batch(1, 1, 2, vec![shopper.add("MUG", 1)]).await.unwrap();
    waiting.await.unwrap();
}
