//! Several sites on one disk.

use super::*;

const SHARED: DiskLimits = DiskLimits { bytes_max: 1 << 20, object_bytes_max: 1 << 18, shared: true };

fn key_of(site: &str, n: usize) -> Key {
    Key::new(site, Scheme::Http, "shop.example", &format!("/{n}")).expect("valid")
}

impl Tier {
    fn has(&self, site: &str, n: usize) -> bool {
        self.read_at(&key_of(site, n), NOW).is_some()
    }

    /// What of a site's first objects is there. Nothing counts as used by it.
    fn held(&self, site: &str, count: usize) -> usize {
        let state = self.disk.shared.state.lock();
        let is_held = |n: &usize| !state.index.get(self.disk.shared.print(&key_of(site, *n))).is_empty();
        (0..count).filter(is_held).count()
    }
}

#[test]
fn a_site_that_writes_much_takes_nothing_from_one_that_has_little() {
    const QUIET: usize = 20;
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), SHARED);
    for n in 0..QUIET {
        tier.disk.offer(&key_of("quiet", n), &entry(n, 1, 10_000));
    }
    for n in 0..1_500 {
        tier.disk.offer(&key_of("loud", n), &entry(n, 1, 1_000 + n % 9_000));
        tier.settle();
        let bytes = tier.disk.counts().bytes;
        assert!(bytes <= SHARED.bytes_max, "{bytes} bytes");
    }
    assert_eq!(tier.held("quiet", QUIET), QUIET, "a fifth of the disk, and nobody asked for it");
    assert!(tier.has("loud", 1_499) && !tier.has("loud", 0));
    let loud = tier.held("loud", 1_500);
    assert!(loud > 60, "the other has the rest: {loud}");
    drop(tier);
    let tier = Tier::open(dir.path(), SHARED);
    for n in 0..QUIET {
        let held = tier.read_at(&key_of("quiet", n), NOW).expect("after a restart too");
        assert_eq!(held.entries().map(bytes_of).collect::<Vec<_>>(), [body(n, 1, 10_000)]);
    }
}

#[test]
fn what_nobody_divides_goes_in_its_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), DiskLimits { shared: false, ..SHARED });
    tier.disk.offer(&key_of("quiet", 0), &entry(0, 1, 10_000));
    for n in 0..500 {
        tier.disk.offer(&key_of("loud", n), &entry(n, 1, 5_000));
        tier.settle();
    }
    assert_eq!(tier.held("quiet", 1), 0);
}

#[test]
fn many_sites_with_the_smallest_objects_leave_room_for_what_comes() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), SHARED);
    let sites = ["a", "b", "c", "d", "e"];
    // More objects than the disk may hold, and all of them together hardly a tenth of its bytes.
    for n in 0..150 {
        for site in sites {
            tier.disk.offer(&key_of(site, n), &entry(n, 1, 10));
        }
        tier.settle();
    }
    let objects = tier.disk.counts().objects;
    assert!(objects <= SHARED.bytes_max / 4_096, "{objects} objects");
    for site in sites {
        assert!(tier.has(site, 149), "{site}");
    }
}

#[test]
fn a_site_that_is_fetched_fast_does_not_fill_the_queue_of_a_slow_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), DiskLimits { bytes_max: 64 << 20, ..SHARED });
    tier.disk.shared.gate.hang(gate::Doing::Write, 1);
    for n in 0..150 {
        tier.disk.offer(&key_of("loud", n), &entry(n, 1, 1 << 17));
    }
    let dropped = tier.disk.counts().dropped;
    assert!(dropped > 60, "{dropped}");
    tier.disk.offer(&key_of("quiet", 0), &entry(0, 1, 1 << 10));
    assert_eq!(tier.disk.counts().dropped, dropped, "there is room for it");
    tier.disk.shared.gate.open();
    tier.settle();
    assert!(tier.has("quiet", 0));
}
