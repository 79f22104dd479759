//! A folder that goes from one process to the next while both answer: what the successor was told meanwhile holds from its
//! first look-up on.

use super::super::gate::Doing;
use super::*;

/// A successor that has been told that the folder is another's.
fn waiting(dir: &Path) -> Tier {
    let successor = Tier::open(dir, LIMITS);
    assert_eq!(successor.disk.counts().phase, Phase::Busy);
    // Said by a thread of its own, in its own time.
    while !successor.told("another process") {
        std::thread::yield_now();
    }
    successor
}

/// Waits until look-ups are let in.
fn let_in(successor: &Tier) {
    while successor.disk.counts().phase != Phase::On {
        std::thread::yield_now();
    }
}

#[test]
fn the_folder_goes_from_one_process_to_the_next() {
    let dir = tempfile::tempdir().expect("a folder");
    let draining = Tier::open(dir.path(), LIMITS);
    let successor = waiting(dir.path());
    for n in 1..6 {
        draining.disk.offer(&key(n), &entry(n, 1, 10));
    }
    successor.disk.remove(&key(2));
    successor.disk.offer(&key(3), &entry(3, 2, 10));
    successor.disk.offer(&key(4), &entry_for(b"x".to_vec(), "en", "max-age=5"));
    drop(draining);
    while successor.disk.counts().phase != Phase::On {
        std::thread::yield_now();
    }
    successor.settle();
    assert_eq!(successor.read(1), [body(1, 1, 10)]);
    assert!(successor.read(2).is_empty(), "removed before the folder was its own");
    assert_eq!(successor.read(3), [body(3, 2, 10)], "stored before that, and newer");
    assert!(successor.read(4).is_empty(), "older than what its memory had");
    assert_eq!(successor.read(5), [body(5, 1, 10)]);
}

/// The writer of the successor gets no further than to its first record: the queue is not worked.
#[test]
fn what_was_taken_back_before_a_hand_over_is_not_readable_after_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let draining = Tier::open(dir.path(), LIMITS);
    for n in 0..6 {
        draining.disk.offer(&key(n), &entry(n, 1, 10));
    }
    draining.settle();
    let successor = waiting(dir.path());
    successor.disk.shared.gate.hang(Doing::Write, 1);
    successor.disk.remove(&key(1));
    successor.disk.offer(&key(2), &entry(2, 2, 10));
    successor.disk.offer(&key(3), &entry_for(b"x".to_vec(), "en", "max-age=5"));
    drop(draining);
    let_in(&successor);
    while successor.disk.shared.gate.held() == 0 {
        std::thread::yield_now();
    }
    for n in 1..4 {
        assert!(successor.read(n).is_empty(), "{n} is read as it was");
    }
    for n in [0, 4, 5] {
        assert_eq!(successor.read(n), [body(n, 1, 10)]);
    }
    successor.disk.shared.gate.open();
    successor.settle();
    assert_eq!(successor.read(2), [body(2, 2, 10)]);
    let killed = image_of(dir.path());
    let next = Tier::open(killed.path(), LIMITS);
    let left: Vec<_> = (0..6).filter(|n| !next.read(*n).is_empty()).collect();
    assert_eq!(left, [0, 2, 4, 5]);
}

#[test]
fn what_was_given_up_whole_before_a_hand_over_is_not_readable_after_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let draining = Tier::open(dir.path(), LIMITS);
    draining.disk.offer(&key(1), &entry(1, 1, 10));
    draining.settle();
    let successor = waiting(dir.path());
    successor.disk.remove_all();
    successor.disk.offer(&key(2), &entry(2, 1, 10));
    drop(draining);
    let_in(&successor);
    assert!(successor.read(1).is_empty());
    successor.settle();
    assert_eq!(successor.read(2), [body(2, 1, 10)]);
    assert_eq!(successor.disk.counts().wipes, 1);
}

#[test]
fn more_removals_than_are_remembered_remove_everything() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    tier.settle();
    let successor = Tier::open_at_once(dir.path(), LIMITS);
    while !successor.told("another process") {
        std::thread::yield_now();
    }
    assert!(successor.runtime.block_on(successor.disk.persisted()), "nothing was asked for");
    // It cannot know what the folder holds, so it remembers each.
    for n in 0..70_000 {
        successor.disk.remove(&key(1_000 + n));
    }
    assert!(!successor.runtime.block_on(successor.disk.persisted()), "the folder is not its own");
    drop(tier);
    while successor.disk.counts().phase != Phase::On {
        std::thread::yield_now();
    }
    successor.settle();
    assert!(successor.read(1).is_empty());
    successor.disk.offer(&key(1), &entry(1, 2, 10));
    successor.settle();
    assert_eq!(successor.read(1), [body(1, 2, 10)], "and it goes on");
}

/// Keys of 8 KiB: half a gigabyte of them would be as many as there may be.
#[test]
fn removals_take_no_more_memory_than_they_may() {
    let dir = tempfile::tempdir().expect("a folder");
    let draining = Tier::open(dir.path(), LIMITS);
    let successor = waiting(dir.path());
    let long = "x".repeat(8_000);
    let key =
        |n: usize| Key::new("shop", Scheme::Http, "shop.example", &format!("/{n}/{long}")).expect("valid");
    let fit = (16 << 20) / 8_300;
    for n in 0..fit {
        successor.disk.remove(&key(n));
    }
    assert!(successor.disk.counts().queued >= fit as u64, "as many as fit");
    for n in 0..100 {
        successor.disk.remove(&key(fit + n));
    }
    assert!(successor.disk.counts().queued < 100, "and then all of it goes: {:?}", successor.disk.counts());
    drop(draining);
    let_in(&successor);
    successor.persist();
    assert_eq!(successor.disk.counts().wipes, 1);
}
