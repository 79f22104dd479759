//! Promises of lent units: no more than there are, and never without the operation that says so.

use souk_commerce::id::{GrantId, HoldId};

use super::*;

const LIFE_MS: u64 = 600_000;
const HOLD_MS: u64 = 900_000;

fn granted(grant: u8, text: &str, units: u64) -> Granted {
    let site = "shop".parse().expect("a site");
    Granted { grant: GrantId([grant; 16]), site, sku: sku(text), units, lives_ms: LIFE_MS, hold_ms: HOLD_MS }
}

async fn lend(state: &State, turn: u64, granted: Vec<Granted>) {
    state.set_leases(turn, state.steady_ms(), granted).await.expect("written down");
}

/// Promises a cart so many, if it can.
async fn promise(state: &State, key: CartKey, text: &str, units: u64) -> Result<u64, CommitError> {
    let guard = state.lock(key.clone()).await;
    let held = state.find(&key).expect("readable").map_or_else(Held::default, Arc::unwrap_or_clone);
    let before: u64 = held.holds.iter().map(|hold| hold.units).sum();
    let want = Want { hold: HoldId(rand::random()), sku: sku(text), units };
    let (_, held) = state.promise(guard, held, 1_000, vec![want]).await?;
    Ok(held.holds.iter().map(|hold| hold.units).sum::<u64>() - before)
}

fn lease(state: &State, text: &str) -> Option<Leased> {
    state.leases().expect("readable").into_iter().find(|lease| lease.sku == sku(text))
}

/// What the operations of the outbox say was promised of this product.
fn said(state: &State, text: &str) -> u64 {
    let ops = state.operations(1, usize::MAX, usize::MAX).expect("readable");
    let units = ops.iter().map(|(_, op)| match Operation::from_bytes(op) {
        Ok(Operation::Reserve { sku: of, units, .. }) if of == sku(text) => units,
        _ => 0,
    });
    units.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_shoppers_are_promised_exactly_what_is_lent() {
    let disk = Memory::default();
    let state = Arc::new(on_memory(&disk).await);
    lend(&state, 1, vec![granted(1, "MUG", 100), granted(2, "PEN", 5)]).await;
    let mut tasks = Vec::new();
    for n in 0..60_u8 {
        let state = state.clone();
        tasks.push(tokio::spawn(async move {
            let mut got = 0;
            for _ in 0..3 {
                got += promise(&state, key(n), "MUG", 1).await.expect("answered");
            }
            got
        }));
    }
    let mut got = 0;
    for task in tasks {
        got += task.await.expect("ends");
    }
    assert_eq!((got, said(&state, "MUG")), (100, 100));
    assert_eq!(lease(&state, "MUG").map(|lease| (lease.used, lease.left)), Some((100, 0)));
    assert_eq!(promise(&state, key(1), "PEN", 6).await, Ok(0), "wholly or not at all");
    assert_eq!(promise(&state, key(1), "PEN", 5).await, Ok(5));
    assert_eq!(promise(&state, key(1), "CAP", 1).await, Ok(0), "of this nothing is lent");
    let held = state.find(&key(1)).expect("readable").expect("held");
    let last = held.holds.last().expect("a hold");
    assert_eq!((last.units, last.until_ms), (5, 1_000 + HOLD_MS));
    assert_eq!(held.last.map(|at| at.seq), Some(state.facts().last()), "a checkout waits for it");
}

/// A process that is killed leaves what its last writes have made of the file: here at any moment between two of them.
#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_node_is_killed_leases_and_operations_say_the_same() {
    let disk = Memory::default();
    let state = Arc::new(on_memory(&disk).await);
    lend(&state, 1, vec![granted(1, "MUG", 10_000)]).await;
    let writing = {
        let state = state.clone();
        tokio::spawn(async move {
            for n in 0..150_u64 {
                promise(&state, key((n % 7) as u8), "MUG", 1 + n % 3).await.expect("answered");
            }
        })
    };
    let mut kills = Vec::new();
    while !writing.is_finished() {
        kills.push((lease(&state, "MUG").map_or(0, |lease| lease.used), disk.bytes.lock().clone()));
        tokio::task::yield_now().await;
    }
    writing.await.expect("ends");
    let step = kills.len().div_ceil(40).max(1);
    for (told, bytes) in kills.into_iter().step_by(step) {
        let killed = Memory { bytes: Arc::new(Mutex::new(bytes)), ..Memory::default() };
        let again = on_memory(&killed).await;
        let used = lease(&again, "MUG").expect("the lease").used;
        assert_eq!(said(&again, "MUG"), used);
        assert!(used >= told, "{told} were promised aloud, the file knows {used}");
        again.close();
    }
}

#[tokio::test]
async fn a_promise_whose_sync_fails_is_made_or_not_made_on_both_sides() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    lend(&state, 1, vec![granted(1, "MUG", 10)]).await;
    assert_eq!(promise(&state, key(1), "MUG", 2).await, Ok(2));
    disk.sync_fails.store(true, Ordering::Relaxed);
    promise(&state, key(1), "MUG", 3).await.expect_err("the sync failed");
    disk.sync_fails.store(false, Ordering::Relaxed);
    state.close();
    let again = on_memory(&disk).await;
    let used = lease(&again, "MUG").expect("the lease").used;
    assert!(used == 2 || used == 5, "{used}");
    assert_eq!(said(&again, "MUG"), used);
    let held = again.find(&key(1)).expect("readable").expect("held");
    assert_eq!(held.holds.iter().map(|hold| hold.units).sum::<u64>(), used, "the cart knows it too");
}

#[tokio::test]
async fn a_lease_ends_in_its_time_and_is_what_the_region_says() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    lend(&state, 7, vec![granted(1, "MUG", 10)]).await;
    assert_eq!(promise(&state, key(1), "MUG", 4).await, Ok(4));
    // Topped up and prolonged.
    lend(&state, 8, vec![granted(1, "MUG", 20)]).await;
    assert_eq!(lease(&state, "MUG").map(|lease| lease.left), Some(16), "what was used is used");
    state.steady.pass(LIFE_MS - 5_000);
    assert_eq!(promise(&state, key(1), "MUG", 1).await, Ok(1));
    state.steady.pass(5_000);
    assert_eq!(promise(&state, key(1), "MUG", 1).await, Ok(0), "it has ended, whatever is left");
    assert_eq!(lease(&state, "MUG").map(|lease| (lease.left, lease.ends_in_ms)), Some((0, 0)));
    lend(&state, 9, vec![granted(1, "MUG", 20)]).await;
    assert_eq!(promise(&state, key(1), "MUG", 1).await, Ok(1), "the region has named it again");
    let asked = state.facts().stock_turn;
    state.close();
    let again = on_memory(&disk).await;
    assert!(again.facts().stock_turn > asked.max(9), "no question has the number of an earlier one");
    assert_eq!(promise(&again, key(2), "MUG", 1).await, Ok(1), "a restart of the process ends nothing");
    lend(&again, 10, vec![granted(2, "MUG", 3)]).await;
    assert_eq!(lease(&again, "MUG").map(|lease| (lease.used, lease.left)), Some((0, 3)), "another grant");
    lend(&again, 11, vec![]).await;
    assert_eq!((lease(&again, "MUG"), promise(&again, key(2), "MUG", 1).await), (None, Ok(0)));
}

#[tokio::test]
async fn what_a_cart_was_promised_survives_a_new_epoch_and_can_be_given_up() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    assert_eq!(promise(&state, key(1), "MUG", 1).await, Ok(0), "nothing is lent");
    lend(&state, 1, vec![granted(1, "MUG", 10)]).await;
    assert_eq!(promise(&state, key(1), "MUG", 2).await, Ok(2));
    state.begin_epoch(Epoch(2)).await.expect("begun");
    assert_eq!(said(&state, "MUG"), 2, "it comes again under its new number");
    let held = state.find(&key(1)).expect("readable").expect("held");
    assert_eq!(held.last, Some(Position { epoch: Epoch(2), seq: 1 }));
    let hold = held.holds[0].id;
    let guard = state.lock(key(1)).await;
    let (guard, held) = state.give_up(guard, Arc::unwrap_or_clone(held), 5).await.expect("kept");
    assert!(held.holds.is_empty());
    let (_, op) = state.operations(2, 1, usize::MAX).expect("readable").remove(0);
    assert!(matches!(Operation::from_bytes(&op), Ok(Operation::Release { holds, .. }) if holds == [hold]));
    let (guard, held) = state.give_up(guard, Arc::unwrap_or_clone(held), 5).await.expect("nothing to do");
    assert_eq!(state.facts().last(), 2);

    // More than one operation could hold, and the link would carry.
    let mut held = Arc::unwrap_or_clone(held);
    let hold = |n: u128| Hold { id: HoldId(n.to_be_bytes()), sku: sku("MUG"), units: 1, until_ms: 9 };
    held.holds = (0..4_000).map(hold).collect();
    state.give_up(guard, held, 5).await.expect("kept");
    let mut given_up = 0;
    for (_, op) in state.operations(3, 10, usize::MAX).expect("readable") {
        let Ok(Operation::Release { holds, .. }) = Operation::from_bytes(&op) else { panic!("no release") };
        given_up += holds.len();
    }
    assert_eq!(given_up, 4_000);
}
