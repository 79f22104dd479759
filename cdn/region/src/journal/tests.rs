//! The journal as nodes and merchants see it, on a real file.

use std::time::Instant;

use souk_commerce::journal::{CallIds, Event, Level, Source};
use souk_commerce::site::Hook;

use super::read::Kind;
use super::*;

const NOW: Duration = Duration::ZERO;

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn entry(of: &str, plugin: &str, text: impl Into<String>) -> Entry {
    Entry {
        site: site(of),
        at_ms: 7,
        // A node may say what it likes: the certificate counts.
        node: Some(NodeId(99)),
        source: Some(Source { plugin: plugin.parse().unwrap(), release: 1, hook: Some(Hook::Pricing) }),
        call: None,
        event: Event::Log { level: Level::Info, text: text.into() },
    }
}

fn recording(of: &str, ids: &CallIds, bytes: Vec<u8>) -> RecordingBlob {
    let source = Source { plugin: "pricing".parse().unwrap(), release: 1, hook: Some(Hook::Pricing) };
    RecordingBlob { id: ids.next(5), site: site(of), source, at_ms: 5, bytes }
}

fn batch(life: u64, first: u64, entries: Vec<Entry>) -> JournalBatch {
    JournalBatch { life, first, entries }
}

#[test]
fn a_recorded_checkout_that_found_no_room_is_a_hole_that_the_merchant_is_told_of() {
    let world = World::new();
    // Nobody takes anything any more: the same as a full queue to whoever brings something.
    world.journal.close();
    world.journal.keep_own(recording("shop", &CallIds::new(1), vec![1]));
    assert_eq!(world.journal.counts().dropped.load(Ordering::Relaxed), 1);
    assert_eq!(world.journal.0.lost.lock().get(&site("shop")), Some(&1));
}

fn texts(page: &Page) -> Vec<&str> {
    assert!(page.entries.iter().map(|numbered| numbered.seq).is_sorted());
    page.entries
        .iter()
        .map(|numbered| match &numbered.entry.event {
            Event::Log { text, .. } => text.as_str(),
            Event::Dropped { .. } => "(hole)",
            Event::Recorded { .. } => "(recorded)",
            _ => "(other)",
        })
        .collect()
}

struct World {
    dir: tempfile::TempDir,
    journal: Journal,
    shutdown: CancellationToken,
}

impl World {
    fn new() -> Self {
        let (dir, shutdown) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        let journal = Journal::open(dir.path(), shutdown.clone()).unwrap();
        Self { dir, journal, shutdown }
    }

    fn again(self) -> Self {
        self.journal.close();
        let journal = Journal::open(self.dir.path(), self.shutdown.clone()).unwrap();
        Self { journal, ..self }
    }

    async fn write(&self, node: u32, batch: JournalBatch) {
        self.journal.write_batch(NodeId(node), batch).await.unwrap();
    }

    async fn page(&self, of: &str, filter: Filter, after: Option<u64>, limit: usize) -> Page {
        self.journal.entries(&site(of), filter, after, limit, NOW).await.unwrap()
    }

    async fn all(&self, of: &str) -> Page {
        self.page(of, Filter::default(), Some(0), usize::MAX).await
    }
}

#[tokio::test]
async fn a_batch_sent_again_is_written_once_also_after_a_restart_and_a_new_life_begins_anew() {
    let world = World::new();
    let three = || ["a", "b", "c"].map(|text| entry("shop", "pricing", text)).to_vec();
    world.write(1, batch(7, 0, three())).await;
    world.write(1, batch(7, 0, three())).await;
    let world = world.again();
    // It grew meanwhile: only what is new counts.
    let mut grown = three();
    grown.push(entry("shop", "pricing", "d"));
    world.write(1, batch(7, 0, grown)).await;
    world.write(2, batch(7, 0, vec![entry("shop", "pricing", "other node")])).await;
    world.write(1, batch(u64::MAX, 0, vec![entry("shop", "pricing", "new life")])).await;
    let page = world.all("shop").await;
    assert_eq!(texts(&page), ["a", "b", "c", "d", "other node", "new life"]);
    let nodes: Vec<_> = page.entries.iter().map(|e| e.entry.node.unwrap().0).collect();
    assert_eq!(nodes, [1, 1, 1, 1, 2, 1]);
    assert_eq!((page.after, page.oldest, page.more), (6, 1, false));
}

#[tokio::test]
async fn pages_follow_each_other_and_filters_keep_holes() {
    let world = World::new();
    let mut entries: Vec<Entry> =
        (0..10).map(|n| entry("shop", if n % 2 == 0 { "pricing" } else { "cart" }, n.to_string())).collect();
    entries[5] = Entry { source: None, event: Event::Dropped { count: 3 }, ..entries[5].clone() };
    world.write(1, batch(1, 0, entries)).await;
    world.write(1, batch(1, 10, vec![entry("rival", "pricing", "secret")])).await;

    let first = world.page("shop", Filter::default(), Some(0), 4).await;
    assert_eq!((texts(&first), first.after, first.more), (vec!["0", "1", "2", "3"], 4, true));
    let rest = world.page("shop", Filter::default(), Some(first.after), 400).await;
    assert_eq!((rest.entries.len(), rest.after, rest.more), (6, 10, false));
    let newest = world.page("shop", Filter::default(), None, 2).await;
    assert_eq!((texts(&newest), newest.after), (vec!["8", "9"], 10));

    let of = |plugin: &str| Filter { plugin: Some(plugin.parse().unwrap()), ..Filter::default() };
    assert_eq!(texts(&world.page("shop", of("cart"), Some(0), 400).await), ["1", "3", "(hole)", "7", "9"]);
    let faults = Filter { kind: Some(Kind::Fault), ..Filter::default() };
    assert_eq!(texts(&world.page("shop", faults, Some(0), 400).await), ["(hole)"]);
    let loud = Filter { level: Some(Level::Warn), ..Filter::default() };
    assert_eq!(texts(&world.page("shop", loud, Some(0), 400).await), ["(hole)"]);
    assert_eq!(texts(&world.all("rival").await), ["secret"]);
    assert!(world.all("unheard-of").await.entries.is_empty());
    assert!(world.page("shop", Filter::default(), Some(u64::MAX), 4).await.entries.is_empty());
}

#[tokio::test]
async fn a_ring_that_is_full_gives_its_oldest_and_says_where_it_begins() {
    let world = World::new();
    let (line, batches) = ("x".repeat(900), 2 * ring::SITE_BYTES_MAX / 100_000);
    let count = batches * 100;
    world.write(1, batch(1, 0, vec![entry("quiet", "pricing", "still here")])).await;
    for n in 0..batches {
        let entries = vec![entry("loud", "pricing", line.clone()); 100];
        world.write(1, batch(1, 1 + n * 100, entries)).await;
    }
    let page = world.page("loud", Filter::default(), None, usize::MAX).await;
    assert_eq!(page.after, count);
    assert_eq!(page.entries.len() as u64, count - page.oldest + 1);
    let bytes: u64 = page.entries.iter().map(|e| e.entry.to_bytes().len() as u64).sum();
    assert!(bytes <= ring::SITE_BYTES_MAX && bytes > ring::SITE_BYTES_MAX / 2, "{bytes}");
    // The counts survive a restart, and are right: the next full ring gives as much.
    let held = world.journal.counts().bytes.load(Ordering::Relaxed);
    let world = world.again();
    world.write(1, batch(2, 0, vec![entry("quiet", "pricing", "and here")])).await;
    let quiet = texts(&world.all("quiet").await).join(",");
    assert_eq!(quiet, "still here,and here");
    let grown = world.journal.counts().bytes.load(Ordering::Relaxed) - held;
    assert!((20..200).contains(&grown), "{grown}");
}

#[tokio::test]
async fn who_follows_hears_of_it_at_once_and_only_of_the_own_site() {
    let world = World::new();
    world.write(1, batch(1, 0, vec![entry("shop", "pricing", "old")])).await;
    let follow = |after| {
        let journal = world.journal.clone();
        async move {
            let began = Instant::now();
            let wait = Duration::from_secs(20);
            let page = journal.entries(&site("shop"), Filter::default(), Some(after), 10, wait).await;
            (page, began.elapsed())
        }
    };
    let (page, _) = follow(0).await;
    assert_eq!(texts(&page.unwrap()), ["old"]);
    let write = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.write(1, batch(1, 1, vec![entry("rival", "pricing", "not yours")])).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.write(1, batch(1, 2, vec![entry("shop", "pricing", "new")])).await;
    };
    let ((page, took), ()) = tokio::join!(follow(1), write);
    assert_eq!(texts(&page.unwrap()), ["new"]);
    assert!(took < Duration::from_secs(10), "{took:?}");

    let (one, _) = tokio::join!(follow(2), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.shutdown.cancel();
    });
    assert!(one.0.unwrap().entries.is_empty());
    assert!(one.1 < Duration::from_secs(10), "the end of the region ends the wait");
}

#[tokio::test]
async fn one_site_cannot_take_every_followers_place() {
    let world = World::new();
    let follow = |of: &'static str| {
        let journal = world.journal.clone();
        tokio::spawn(async move {
            let wait = Duration::from_secs(20);
            journal.entries(&site(of), Filter::default(), None, 1, wait).await
        })
    };
    let many: Vec<_> = (0..=FOLLOWERS_OF_SITE_MAX).map(|_| follow("shop")).collect();
    let rival = follow("rival");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let refused = many.iter().filter(|task| task.is_finished()).count();
    assert_eq!((refused, rival.is_finished()), (1, false));
    world.shutdown.cancel();
    let mut busy = 0;
    for task in many {
        busy += usize::from(matches!(task.await.unwrap(), Err(StoreError::Busy)));
    }
    assert_eq!(busy, 1);
}

#[tokio::test]
async fn recordings_are_kept_once_listed_newest_first_and_never_shown_to_another_site() {
    let world = World::new();
    let ids = CallIds::new(1);
    let kept: Vec<RecordingBlob> = (0..5).map(|n| recording("shop", &ids, vec![n; 10])).collect();
    for recording in kept.iter().chain(&kept) {
        world.journal.keep(Some(NodeId(1)), recording.clone()).await.unwrap();
    }
    let list = |of: &str, before, limit| world.journal.recordings(site(of), Filter::default(), before, limit);
    let (newest, before) = list("shop", None, 2).await.unwrap();
    assert_eq!(newest.iter().map(|r| r.id).collect::<Vec<_>>(), [kept[4].id, kept[3].id]);
    let (rest, end) = list("shop", before, 10).await.unwrap();
    assert_eq!((rest.len(), rest[0].id, end), (3, kept[2].id, None));
    assert_eq!(world.journal.recording(site("shop"), kept[3].id).await.unwrap(), Some(vec![3; 10]));
    assert_eq!(world.journal.recording(site("rival"), kept[3].id).await.unwrap(), None);
    assert!(list("rival", None, 10).await.unwrap().0.is_empty());
    assert_eq!(texts(&world.all("shop").await), ["(recorded)"; 5]);
}

#[tokio::test]
async fn recordings_are_a_ring_too() {
    let world = World::new();
    let ids = CallIds::new(1);
    let bytes = souk_commerce::journal::RECORDING_BYTES_MAX;
    let count = ring::SITE_RECORDING_BYTES_MAX / bytes as u64 + 20;
    for _ in 0..count {
        world.journal.keep(None, recording("shop", &ids, vec![1; bytes])).await.unwrap();
    }
    let (kept, _) = world.journal.recordings(site("shop"), Filter::default(), None, 1_000).await.unwrap();
    let kept = kept.len() as u64;
    let kept_max = ring::SITE_RECORDING_BYTES_MAX / bytes as u64;
    assert!(kept <= kept_max && kept >= kept_max / 2, "{kept}");
}

#[tokio::test]
async fn what_is_old_goes() {
    let world = World::new();
    world.write(1, batch(1, 0, vec![entry("shop", "pricing", "old")])).await;
    world.journal.keep(None, recording("shop", &CallIds::new(1), vec![1])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let border = clock::now_ms();
    tokio::time::sleep(Duration::from_millis(5)).await;
    world.write(1, batch(1, 1, vec![entry("shop", "pricing", "young")])).await;
    world.journal.sweep(border);
    world.write(1, batch(1, 2, vec![entry("shop", "pricing", "younger")])).await;
    let page = world.all("shop").await;
    assert_eq!((texts(&page), page.oldest), (vec!["young", "younger"], 3));
    assert!(world.journal.recordings(site("shop"), Filter::default(), None, 9).await.unwrap().0.is_empty());
    // Numbers go on where they were, also when all of it is gone.
    world.journal.sweep(u64::MAX >> 2);
    let world = world.again();
    world.write(1, batch(1, 3, vec![entry("shop", "pricing", "after")])).await;
    let page = world.all("shop").await;
    assert_eq!((texts(&page), page.after), (vec!["after"], 5));
}

/// A recorded call about a cart with this seed.
fn about(seed: u64) -> Vec<u8> {
    let limits = serde_json::json!({
        "memory_bytes": 1, "table_elements": 1, "stack_bytes": 1, "host_calls": 1, "log_bytes": 1, "lifted_bytes": 1,
        "deadline_us": 1,
    });
    let recording = serde_json::json!({
        "souk_recording": 1, "contract": "souk:plugin", "site": "shop", "plugin": "pricing", "release": 1,
        "component": "00".repeat(32), "hook": "pricing", "limits": limits,
        "context": { "now_ms": 5, "currency": "GBP", "segments": ["trade"], "seed": seed, "settings": "{}" },
        "input": { "pricing": { "lines": [] } }, "outcome": { "adjusted": [] },
    });
    let bytes = serde_json::to_vec(&recording).unwrap();
    assert_eq!(Recording::decode(&bytes).unwrap().context.seed, seed);
    bytes
}

#[tokio::test]
async fn recordings_about_erased_carts_go_and_others_stay() {
    let world = World::new();
    let ids = CallIds::new(1);
    for (of, seed) in [("shop", 7), ("shop", 8), ("shop", 7), ("other", 7)] {
        world.journal.keep(None, recording(of, &ids, about(seed))).await.unwrap();
    }
    world.journal.erase(site("shop"), vec![7, 9]).await.unwrap();
    let seeds = async |world: &World, of: &str| {
        let (kept, _) = world.journal.recordings(site(of), Filter::default(), None, 9).await.unwrap();
        let mut seeds = Vec::new();
        for it in kept {
            let bytes = world.journal.recording(site(of), it.id).await.unwrap().unwrap();
            seeds.push(Recording::decode(&bytes).unwrap().context.seed);
        }
        seeds
    };
    assert_eq!((seeds(&world, "shop").await, seeds(&world, "other").await), (vec![8], vec![7]));
    // Nothing is left in pages that nobody uses, or in the write-ahead log.
    let left = |seed: u64| {
        let what = format!("\"seed\":{seed},").into_bytes();
        let files = std::fs::read_dir(world.dir.path())
            .unwrap()
            .map(|file| std::fs::read(file.unwrap().path()).unwrap());
        files.map(|bytes| bytes.windows(what.len()).filter(|window| *window == what).count()).sum::<usize>()
    };
    assert_eq!((left(8), left(7)), (1, 1), "the other shop's");
    let world = world.again();
    world.journal.erase(site("shop"), vec![8]).await.unwrap();
    assert!(seeds(&world, "shop").await.is_empty(), "what is counted was written down too");
}
