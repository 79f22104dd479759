//! A disk that hangs: nobody is held by it longer than is said, by the runtime's own clock, which jumps to the next moment
//! that somebody waits for.

use tokio::time::{pause, resume};

use super::super::gate::Doing;
use super::*;

const HOUR_S: u64 = 3_600;
const HOUR_MS: u64 = HOUR_S * 1_000;
/// In the runtime's time that is no time, and in the machine's nobody waits so long.
const PATIENT_FOR_HOURS: Patience = Patience {
    read: Duration::from_hours(1),
    persist: Duration::from_hours(2),
    open: Duration::from_hours(3),
    close: Duration::from_hours(4),
};

fn node(dir: &Path) -> Tier {
    let tier = Tier::open_with(dir, LIMITS, PATIENT_FOR_HOURS);
    while tier.disk.counts().phase != Phase::On {
        std::thread::yield_now();
    }
    for n in 0..6 {
        tier.disk.offer(&key(n), &entry(n, 1, 100));
    }
    while tier.disk.counts().queued > 0 {
        std::thread::yield_now();
    }
    tier
}

impl Tier {
    fn gate(&self) -> &Gate {
        &self.disk.shared.gate
    }

    fn start(&self, n: usize, now_ms: u64) -> Option<Reading> {
        self.shelf.remove(&key(n));
        self.disk.read(&key(n), now_ms)
    }

    /// Waits in the runtime's time, whose timers round up. Seconds that it took.
    fn wait<T>(&self, what: impl Future<Output = T>) -> (T, u64) {
        self.runtime.block_on(async {
            pause();
            let began = now();
            let out = what.await;
            let took = now().duration_since(began);
            resume();
            (out, took.as_secs())
        })
    }

    fn hold(&self, readers: usize) {
        while self.gate().held() < readers {
            std::thread::yield_now();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the runtime's own time, which this test makes")]
fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[test]
fn a_hung_disk_holds_a_request_for_its_deadline_and_the_next_ones_not_at_all() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = node(dir.path());
    tier.gate().hang(Doing::Read, READERS);
    let [first, another] = [1, 2].map(|n| tier.start(n, NOW).expect("on the disk"));
    let beside = tier.start(1, NOW).expect("on the disk");
    let (_, took_s) = tier.wait(first.done());
    assert_eq!(took_s, HOUR_S);
    // Those who came later and who wait for other keys are let go with it.
    let (_, took_s) = tier.wait(async { (another.done().await, beside.done().await) });
    assert_eq!(took_s, 0);
    assert!(tier.shelf.find(&key(1)).is_none());
    let counts = tier.disk.counts();
    assert_eq!((counts.phase, counts.is_aside, counts.set_aside, counts.late), (Phase::On, true, 1, 1));
    assert!(tier.told("does not answer"), "{:?}", tier.told.lock());
    for n in 0..6 {
        assert!(tier.start(n, NOW + HOUR_MS).is_none(), "nobody waits for {n}");
    }

    // One tries again in a while, and waits no longer than the first.
    let later = NOW + HOUR_MS + 5_000;
    let tried = tier.start(3, later).expect("somebody is to find out");
    assert!(tier.start(4, later).is_none(), "one at a time");
    let (_, took_s) = tier.wait(tried.done());
    assert_eq!(took_s, HOUR_S);
    assert_eq!(tier.disk.counts().set_aside, 1, "it still is");

    // The disk comes back.
    tier.gate().open();
    let much_later = later + HOUR_MS;
    tier.runtime.block_on(tier.start(5, much_later).expect("another try").done());
    assert!(tier.shelf.find(&key(5)).is_some());
    assert!(!tier.disk.counts().is_aside && tier.told("answers again"));
    for n in 0..6 {
        assert_eq!(tier.read(n), [body(n, 1, 100)]);
    }
}

#[test]
fn one_place_that_hangs_costs_its_own_key_and_sets_nothing_aside() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = node(dir.path());
    tier.gate().hang(Doing::Read, 1);
    let bad = tier.start(1, NOW).expect("on the disk");
    tier.hold(1);
    assert_eq!(tier.read(2), [body(2, 1, 100)], "by another reader");
    let (_, took_s) = tier.wait(bad.done());
    assert_eq!(took_s, HOUR_S);
    assert!(!tier.disk.counts().is_aside);
    assert!(tier.start(1, NOW).is_none(), "nobody else waits for it");
    assert_eq!(tier.read(3), [body(3, 1, 100)]);
    tier.gate().open();
    // The reader that was held has put it into memory, or does so now.
    while tier.shelf.find(&key(1)).is_none() {
        std::thread::yield_now();
    }
    assert_eq!(tier.disk.counts().late, 1);
}

#[test]
fn where_every_reader_hangs_nobody_is_made_to_try() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = node(dir.path());
    tier.gate().hang(Doing::Read, READERS);
    let readings: Vec<_> = (0..READERS).map(|n| tier.start(n, NOW).expect("on the disk")).collect();
    tier.hold(READERS);
    for reading in readings {
        tier.wait(reading.done());
    }
    assert!(tier.start(5, NOW + 2 * HOUR_MS).is_none());
    tier.gate().open();
    while tier.start(5, NOW + 4 * HOUR_MS).is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn a_removal_that_the_disk_does_not_take_is_answered_without_the_promise() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = node(dir.path());
    tier.gate().hang(Doing::Sync, 1);
    tier.disk.remove(&key(1));
    let (kept, took_s) = tier.wait(tier.disk.persisted());
    assert_eq!((kept, took_s), (false, 2 * HOUR_S));
    assert!(tier.told("is not on the disk"), "{:?}", tier.told.lock());
    tier.disk.remove(&key(2));
    let (kept, took_s) = tier.wait(tier.disk.persisted());
    assert_eq!((kept, took_s), (false, 0), "the next one need not find that out");
    assert_eq!(tier.disk.counts().unpersisted, 2);
    assert!(tier.read(1).is_empty(), "it holds for look-ups all the same");
    tier.gate().open();
    while tier.disk.counts().queued > 0 {
        std::thread::yield_now();
    }
    while !tier.runtime.block_on(tier.disk.persisted()) {
        std::thread::yield_now();
    }
    tier.disk.remove(&key(3));
    tier.persist();
    let killed = image_of(dir.path());
    let next = Tier::open(killed.path(), LIMITS);
    let left: Vec<_> = (0..6).filter(|n| !next.read(*n).is_empty()).collect();
    assert_eq!(left, [0, 4, 5]);
}

#[test]
fn a_disk_that_hangs_holds_neither_the_end_nor_who_waits_for_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let patience = Patience { close: Duration::ZERO, ..PATIENT };
    let tier = Tier::open_with(dir.path(), LIMITS, patience);
    tier.runtime.block_on(tier.disk.ready());
    tier.disk.offer(&key(1), &entry(1, 1, 100));
    tier.settle();
    tier.gate().hang(Doing::Read, 1);
    let reading = tier.start(1, NOW).expect("on the disk");
    tier.hold(1);
    tier.disk.close();
    assert!(tier.told("do not end"), "{:?}", tier.told.lock());
    tier.wait(reading.done());
    tier.gate().open();
}

/// A folder that could not be emptied promises nothing; one that was emptied at last does.
#[test]
fn what_failed_and_cannot_be_emptied_is_not_said_to_be() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &entry(1, 1, 100));
    tier.settle();
    for doing in [Doing::Empty, Doing::Write] {
        tier.gate().fail(doing);
    }
    // The log is not empty, so the removal is a record.
    tier.disk.remove(&key(1));
    assert!(!tier.runtime.block_on(tier.disk.persisted()));
    assert!(tier.told("could not be emptied"), "{:?}", tier.told.lock());
    assert!(!segments(dir.path()).is_empty());
    tier.gate().open();
    // Whoever removes something more has it tried again.
    while !tier.runtime.block_on(tier.disk.persisted()) {
        tier.disk.remove(&key(1));
        std::thread::yield_now();
    }
    assert!(segments(dir.path()).is_empty());
}
