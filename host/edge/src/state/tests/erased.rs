//! Carts of shoppers who were erased.

use souk_commerce::feed::PurgeChange;
use souk_commerce::purge::Forget;

use super::*;

fn holds(dir: &Path, what: &[u8]) -> bool {
    let bytes = std::fs::read(dir.join("state.redb")).expect("the file");
    bytes.windows(what.len()).any(|window| window == what)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within ten seconds");
}

fn store(dir: &Path, state: State) -> LinkStore {
    let replica = Arc::new(Replica::open(dir, 0).expect("opens"));
    LinkStore {
        state: Arc::new(state),
        replica,
        routes: crate::routes::Routes::default(),
        terms: Default::default(),
    }
}

/// An entry of the purge log that erases these carts.
fn tail(version: u64, part: Part, carts: &[CartKey]) -> Tail {
    let site: SiteId = "shop".parse().expect("a site");
    let carts = carts.iter().map(|key| key.cart.tag(&key.site)).collect();
    let body = PurgeChange { carts, ..PurgeChange::of(site, Forget::default()) }.to_bytes();
    let records = vec![Record { version, body }];
    Tail { log: Log::Purge, from: version - 1, to: version, part, records, next: None }
}

#[tokio::test]
async fn of_an_erased_cart_nothing_is_left_in_the_file_and_of_others_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path(), enrolled(dir.path()).await);
    let state = &store.state;
    for (n, text) in [(1, "OF-THE-ERASED"), (2, "OF-ANOTHER")] {
        add(state, key(n), text, 3).await.expect("kept");
    }
    state.trim(Epoch(1), 2, None);
    until("trimmed", || state.facts().acked == 2).await;
    assert!(holds(dir.path(), b"OF-THE-ERASED"), "deleted bytes stay in a file");
    store.apply(tail(1, Part::Changes, &[key(1)]), 1).await.expect("applied");
    assert!(!holds(dir.path(), b"OF-THE-ERASED") && !holds(dir.path(), &[1; 16]));
    assert!(holds(dir.path(), b"OF-ANOTHER"));
    assert!(state.find(&key(1)).expect("readable").is_none(), "nor in memory");
    add(state, key(2), "OF-ANOTHER", 1).await.expect("writes go on in the new file");
    let cursor = store.cursors().into_iter().find(|cursor| cursor.log == Log::Purge).expect("a cursor");
    assert_eq!(cursor.version, 1, "and the region is told so");
    state.close();
    drop(store);
    let again = enrolled(dir.path()).await;
    assert_eq!((again.facts().acked, again.facts().last(), again.epoch()), (2, 3, Some(Epoch(1))));
    let other = again.find(&key(2)).expect("readable").expect("the cart");
    assert_eq!(other.cart.quantity(&line("OF-ANOTHER")), 4);
    assert!(again.find(&key(1)).expect("readable").is_none());
    assert!(!dir.path().join("state.redb.new").exists());
}

#[tokio::test]
async fn what_an_erased_cart_has_in_the_outbox_goes_when_the_region_has_it_also_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store(dir.path(), enrolled(dir.path()).await);
    for (n, text) in [(1, "OF-THE-ERASED"), (2, "OF-ANOTHER")] {
        add(&store.state, key(n), text, 3).await.expect("kept");
    }
    let part = Part::Snapshot { index: 0, last: true };
    store.apply(tail(7, part, &[key(1)]), 1).await.expect("a node that was away takes the log whole");
    assert!(store.state.find(&key(1)).expect("readable").is_none());
    assert_eq!(store.state.operations(1, 9, 1 << 20).expect("readable").len(), 2, "the numbers stay whole");
    assert!(holds(dir.path(), b"OF-THE-ERASED"));
    // The node dies before the region has them.
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(dir.path().join("state.redb"), copy.path().join("state.redb")).expect("a copy");
    for (dir, state) in
        [(dir.path(), Arc::clone(&store.state)), (copy.path(), Arc::new(enrolled(copy.path()).await))]
    {
        state.trim(Epoch(1), 2, None);
        until("gone", || !holds(dir, b"OF-THE-ERASED") && !holds(dir, &[1; 16])).await;
        until("noted", || state.facts().renew_after.is_none()).await;
        let other = state.find(&key(2)).expect("readable").expect("the other cart");
        assert_eq!(other.cart.quantity(&line("OF-ANOTHER")), 3);
    }
}

#[tokio::test]
async fn what_is_kept_for_a_restored_region_goes_up_to_the_erased_cart_and_no_further() {
    let dir = tempfile::tempdir().expect("a directory");
    let kept = (1 << 20, Duration::from_secs(100 * 366 * 86_400));
    let state = State::open_keeping(dir.path(), NodeId(1), OUTBOX_MAX, kept).expect("an openable directory");
    state.begin_epoch(Epoch(1)).await.expect("the first epoch");
    let store = store(dir.path(), state);
    let state = &store.state;
    for n in 1..=4 {
        add(state, key(n), &format!("OF-CART-{n}"), 3).await.expect("kept");
    }
    let ops = state.operations(1, 9, 1 << 20).expect("readable");
    let fold =
        |to: u64| ops.iter().take_while(|(seq, _)| *seq <= to).fold(Fold::EMPTY, |f, (_, op)| f.with(op));
    state.trim(Epoch(1), 3, Some(fold(3)));
    until("acknowledged", || state.facts().acked == 3).await;
    store.apply(tail(1, Part::Changes, &[key(9)]), 1).await.expect("of a cart that is nowhere");
    assert_eq!(
        (state.facts().first, state.facts().renew_after),
        (1, None),
        "another shop's erasure takes nothing"
    );
    store.apply(tail(2, Part::Changes, &[key(2)]), 1).await.expect("applied");
    let facts = state.facts();
    assert_eq!((facts.first, facts.acked, facts.anchor, facts.renew_after), (3, 3, Some(fold(2)), None));
    assert_eq!(facts.kept_bytes, ops[2].1.len() as u64);
    assert!(!holds(dir.path(), b"OF-CART-2") && holds(dir.path(), b"OF-CART-3"));
    store.apply(tail(3, Part::Changes, &[key(4)]), 1).await.expect("applied");
    assert_eq!(state.facts().renew_after, Some(4), "the region does not have it yet");
    state.trim(Epoch(1), 4, Some(fold(4)));
    until("gone", || !holds(dir.path(), b"OF-CART-4") && state.facts().renew_after.is_none()).await;
    assert_eq!((state.facts().first, state.facts().anchor), (5, Some(fold(4))));
}

/// The file's folder, on which it cannot be made to last what is called how.
#[derive(Debug)]
struct Forgetful {
    disk: FileDisk,
    forgets: Arc<AtomicBool>,
}

impl Disk for Forgetful {
    fn open(&self) -> Result<Database, DatabaseError> {
        self.disk.open()
    }

    fn view(&self) -> Result<Database, DatabaseError> {
        self.disk.view()
    }

    fn probe(&self) -> io::Result<()> {
        self.disk.probe()
    }

    fn has_room(&self) -> bool {
        self.disk.has_room()
    }

    fn renew(&self, live: &Database) -> Result<Option<Renewed>, redb::Error> {
        self.disk.renew(live)
    }

    fn settle(&self) -> io::Result<()> {
        if self.forgets.load(Ordering::Relaxed) {
            return Err(io::Error::other("the sync of the folder failed"));
        }
        self.disk.settle()
    }
}

#[tokio::test]
async fn while_it_is_not_certain_which_file_has_the_name_nothing_is_acknowledged_and_then_it_is_in_that_one()
{
    let dir = tempfile::tempdir().expect("a directory");
    let forgets = Arc::new(AtomicBool::new(true));
    let disk = Forgetful { disk: FileDisk::new(dir.path()), forgets: forgets.clone() };
    let path = dir.path().join("state.redb");
    let state = State::open_on(Arc::new(disk), &path, NodeId(1), OUTBOX_MAX).expect("opens");
    state.begin_epoch(Epoch(1)).await.expect("the first epoch");
    let store = store(dir.path(), state);
    for (n, text) in [(1, "OF-THE-ERASED"), (2, "OF-ANOTHER")] {
        add(&store.state, key(n), text, 3).await.expect("kept");
    }
    store.state.trim(Epoch(1), 2, None);
    until("trimmed", || store.state.facts().acked == 2).await;
    assert!(store.apply(tail(1, Part::Changes, &[key(1)]), 1).await.is_err(), "it cannot be said to be gone");
    let refused = add(&store.state, key(2), "OF-ANOTHER", 1).await.expect_err("it might be lost");
    assert!(matches!(refused, ChangeError::Commit(CommitError::DiskFailed(_))), "{refused}");
    let other = store.state.find(&key(2)).expect("readable").expect("the cart");
    assert_eq!(other.cart.quantity(&line("OF-ANOTHER")), 3, "reads go on");

    forgets.store(false, Ordering::Relaxed);
    let mut tries = 0;
    while let Err(error) = add(&store.state, key(2), "OF-ANOTHER", 1).await {
        assert!(tries < 1_000, "still {error}");
        tries += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // A crash: what there is, is found by its name.
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(&path, copy.path().join("state.redb")).expect("a copy");
    let again = enrolled(copy.path()).await;
    let other = again.find(&key(2)).expect("readable").expect("the cart");
    assert_eq!(
        other.cart.quantity(&line("OF-ANOTHER")),
        4,
        "acknowledged, and in the file that has the name"
    );
    store.apply(tail(1, Part::Changes, &[key(1)]), 1).await.expect("told once more");
    assert!(!holds(dir.path(), b"OF-THE-ERASED"));
}
