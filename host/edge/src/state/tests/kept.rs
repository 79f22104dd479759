//! What the region has acknowledged is kept for a while, for one that comes back from a backup.

use super::*;

/// The tests' clock stands at 1970.
const FOR_EVER: Duration = Duration::from_secs(100 * 366 * 86_400);

async fn keeping(dir: &Path, kept: (u64, Duration)) -> State {
    let state = State::open_keeping(dir, NodeId(1), OUTBOX_MAX, kept).expect("an openable directory");
    if state.epoch().is_none() {
        state.begin_epoch(Epoch(1)).await.expect("the first epoch");
    }
    state
}

async fn until(state: &State, what: impl Fn(&Facts) -> bool) -> Facts {
    tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let facts = state.facts();
            if what(&facts) {
                return facts;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes to that")
}

fn folded(state: &State, from: u64, to: u64, before: Fold) -> Fold {
    let ops = state.operations(from, usize::MAX, usize::MAX).expect("readable");
    ops.iter().take_while(|(seq, _)| *seq <= to).fold(before, |fold, (_, op)| fold.with(op))
}

#[tokio::test]
async fn a_restored_region_is_sent_again_what_it_had_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = keeping(dir.path(), (1 << 20, FOR_EVER)).await;
    for n in 1..=4 {
        add(&state, key(n), "A", 1).await.expect("kept");
    }
    let all = state.facts().outbox_bytes;
    let fold = folded(&state, 1, 3, Fold::EMPTY);
    state.trim(Epoch(1), 3, Some(fold));
    let facts = until(&state, |facts| facts.acked == 3).await;
    assert_eq!((facts.first, facts.unacked(), facts.kept()), (1, 1, 3));
    assert_eq!((facts.anchor, facts.acked_fold), (Some(Fold::EMPTY), Some(fold)));
    assert_eq!(facts.outbox_bytes + facts.kept_bytes, all);
    state.close();
    drop(state);

    let state = keeping(dir.path(), (1 << 20, FOR_EVER)).await;
    assert_eq!(
        Facts { commits: facts.commits, ..state.facts() },
        Facts { stock_turn: state.facts().stock_turn, ..facts }
    );
    // The region has one of them only.
    let one = folded(&state, 1, 1, Fold::EMPTY);
    state.go_back(Epoch(1), 1, Some(one)).await.expect("gone back");
    let back = state.facts();
    assert_eq!((back.first, back.acked, back.unacked(), back.acked_fold), (1, 1, 3, Some(one)));
    assert_eq!(back.outbox_bytes + back.kept_bytes, all);
    state.go_back(Epoch(9), 0, None).await.expect("of another epoch: nothing");
    state.go_back(Epoch(1), 2, None).await.expect("forward is no way back");
    assert_eq!(state.facts().acked, 1);
    assert_eq!(state.operations(2, 9, 1 << 20).expect("readable").len(), 3, "they are there to be sent");

    // It lacks more than is kept: a new epoch has all of it.
    state.begin_epoch(Epoch(2)).await.expect("begun");
    let facts = state.facts();
    assert_eq!(
        (facts.first, facts.last(), facts.acked, facts.kept_bytes, facts.outbox_bytes),
        (1, 4, 0, 0, all)
    );
    let held = state.find(&key(1)).expect("readable").expect("a cart");
    assert_eq!(
        held.last,
        Some(Position { epoch: Epoch(2), seq: 1 }),
        "what it is known by has its new number"
    );
}

#[tokio::test]
async fn what_is_kept_is_bounded_and_what_is_forgotten_is_bound() {
    const BYTES_MAX: u64 = 500;
    let dir = tempfile::tempdir().expect("a directory");
    let state = keeping(dir.path(), (BYTES_MAX, FOR_EVER)).await;
    for n in 0..20 {
        add(&state, key(n % 4), "A", 1).await.expect("kept");
    }
    let (all, to_the_end) =
        (state.operations(1, 99, 1 << 20).expect("readable"), folded(&state, 1, 15, Fold::EMPTY));
    state.trim(Epoch(1), 15, Some(to_the_end));
    let facts = until(&state, |facts| facts.acked == 15).await;
    assert!(facts.kept_bytes <= BYTES_MAX && facts.kept() > 1 && facts.first > 1, "{facts:?}");
    let bytes = |range: std::ops::Range<u64>| -> u64 {
        all.iter().filter(|(seq, _)| range.contains(seq)).map(|(_, op)| op.len() as u64).sum()
    };
    assert_eq!((facts.kept_bytes, facts.outbox_bytes), (bytes(facts.first..16), bytes(16..21)));
    let before =
        all.iter().take_while(|(seq, _)| *seq < facts.first).fold(Fold::EMPTY, |fold, (_, op)| fold.with(op));
    assert_eq!(facts.anchor, Some(before));
    assert_eq!(
        folded(&state, facts.first, 15, before),
        to_the_end,
        "a region that has gone back can be compared"
    );
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_cannot_be_bound_is_not_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = keeping(dir.path(), (1 << 20, Duration::from_secs(3_600))).await;
    for _ in 0..3 {
        add(&state, key(1), "A", 1).await.expect("kept");
    }
    let fold = folded(&state, 1, 2, Fold::EMPTY);
    state.trim(Epoch(1), 2, Some(fold));
    let facts = until(&state, |facts| facts.kept_bytes == 0 && facts.acked == 2).await;
    assert_eq!(
        (facts.first, facts.anchor, facts.unacked()),
        (3, Some(fold), 1),
        "1970 is more than an hour ago"
    );
    state.close();
    drop(state);

    let dir = tempfile::tempdir().expect("a directory");
    let state = keeping(dir.path(), (1 << 20, FOR_EVER)).await;
    for _ in 0..3 {
        add(&state, key(1), "A", 1).await.expect("kept");
    }
    state.trim(Epoch(1), 2, None);
    let facts = until(&state, |facts| facts.acked == 2).await;
    assert_eq!((facts.first, facts.kept(), facts.anchor), (3, 0, None), "an older region says no fold");
    // The first mark with a fold is where it begins.
    add(&state, key(1), "A", 1).await.expect("kept");
    state.trim(Epoch(1), 3, Some(Fold::from_number(7)));
    let facts = until(&state, |facts| facts.acked == 3).await;
    assert_eq!((facts.first, facts.anchor), (4, Some(Fold::from_number(7))));
    state.trim(Epoch(1), 4, Some(Fold::from_number(8)));
    let facts = until(&state, |facts| facts.acked == 4).await;
    assert_eq!((facts.first, facts.kept(), facts.anchor), (4, 1, Some(Fold::from_number(7))));
}
