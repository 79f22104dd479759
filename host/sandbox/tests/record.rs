//! A recording holds the whole call and nothing of the shopper, and comes out the same wherever it is run.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{GOOD, Guest, Shop, call, engine, engine_with, lines, release};
use souk_commerce::id::SiteId;
use souk_commerce::journal::CallId;
use souk_commerce::site::{Guard, OnFault};
use souk_sandbox::record::{
    Difference, HostCall, Live, Outcome, RECORDING_BYTES_MAX, Recorder, Recording, RecordingError,
    ReplayError, Studio, StudioMetrics, Value, compare, money_change, replay,
};
use souk_sandbox::{Chain, HookEngine, HookLimits, HookPlugin, SiteData, metered};

/// More than any test makes: nobody waits for the test to read.
const KEPT_MAX: usize = 4_096;
const CUSTOMER: &str = "anna@example.com";

/// Asks for a product that there is, one that there is not, and a value, and logs who the customer is.
const CURIOUS: Guest = Guest {
    run: r#"
        (call $lookup (i32.const 2048) (i32.const 5) (i32.const 3000))
        (call $lookup (i32.const 2053) (i32.const 5) (i32.const 3000))
        (call $kv (i32.const 2058) (i32.const 6) (i32.const 3000))
        (if (i32.load8_u offset=52 (local.get $in))
            (then (call $log (i32.const 1)
                (i32.load offset=56 (local.get $in)) (i32.load offset=60 (local.get $in)))))
        (i32.const 64)"#,
    fields: r#"
        (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
        (data (i32.const 256) "\01\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00\18\fc\ff\ff\00\00\00\00"
                              "\00\04\00\00\03\00\00\00" "\03\04\00\00\07\00\00\00")
        (data (i32.const 1024) "tenTen off")
        (data (i32.const 2048) "MUG-9TEA-1banner")"#,
    ..GOOD
};
/// Writes the customer on the label: the answer depends on who the shopper is.
const FLATTERING: Guest = Guest {
    run: r#"
        (i32.store (i32.const 288) (i32.load offset=56 (local.get $in)))
        (i32.store (i32.const 292) (i32.load offset=60 (local.get $in)))
        (i32.const 64)"#,
    ..GOOD
};
/// Half off the first line.
const HALF: Guest = Guest {
    run: r#"
        (i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 260) (i32.const 0))
        (i32.store (i32.const 272) (i32.const -5000))
        (i32.const 64)"#,
    ..GOOD
};
const TRAPS: Guest = Guest { run: "unreachable", ..GOOD };

/// Hands over what it gets.
struct Keeper {
    kept: Mutex<SyncSender<Recording>>,
    /// Held by a test that wants the studio to be busy.
    gate: Arc<Mutex<()>>,
}

impl Recorder for Keeper {
    fn take(&self, _: CallId, recording: Recording) {
        drop(self.gate.lock());
        drop(self.kept.lock().unwrap().send(recording));
    }
}

struct Scene {
    chain: Chain,
    kept: Receiver<Recording>,
    metrics: StudioMetrics,
    gate: Arc<Mutex<()>>,
}

impl Scene {
    fn of(engine: &HookEngine, guest: Guest) -> Self {
        let (sender, kept) = sync_channel(KEPT_MAX);
        let gate = Arc::new(Mutex::new(()));
        let keeper = Keeper { kept: Mutex::new(sender), gate: gate.clone() };
        let metrics = StudioMetrics::default();
        let studio = Studio::start(Arc::new(keeper), [7; 32], metrics.clone()).unwrap();
        let plugin = engine.load(&guest.component()).unwrap();
        let mut release = release("rules", &plugin, OnFault::Open);
        release.record_bp = 10_000;
        release.settings = serde_json::json!({ "b": 1, "a": [2] });
        let site: SiteId = "shop".parse().unwrap();
        let chain = Chain::new(vec![(release, plugin)]).recorded(&site, &studio);
        Self { chain, kept, metrics, gate }
    }

    fn price(&self, customer: Option<&str>, count: usize) {
        let data: Arc<dyn SiteData> = Arc::new(Shop::default());
        let mut call = call(&data);
        call.customer = customer.map(str::to_owned);
        self.chain.price(&call, &Guard::default(), lines(count)).unwrap();
    }

    fn next(&self) -> Recording {
        self.kept.recv_timeout(Duration::from_secs(20)).expect("a recording")
    }
}

/// As on another machine: from bytes, in an engine of its own.
fn elsewhere(recording: &Recording, guest: Guest) -> (Recording, Arc<HookPlugin>) {
    let recording = Recording::decode(&recording.encode()).unwrap();
    let engine = HookEngine::new(HookLimits::for_replay(&recording.limits)).unwrap();
    (recording, engine.load(&guest.component()).unwrap())
}

#[test]
fn a_recording_is_the_whole_call_without_the_shopper_and_replays_bit_for_bit() {
    let scene = Scene::of(&engine(), CURIOUS);
    scene.price(Some(CUSTOMER), 3);
    let recording = scene.next();
    let hash = recording.context.customer.clone().expect("a hashed customer");
    assert!(!String::from_utf8(recording.encode()).unwrap().contains(CUSTOMER));
    let [
        HostCall::LookupProduct { sku, answer: Some(good) },
        HostCall::LookupProduct { answer: None, .. },
        HostCall::KvGet { key, answer: Some(Value::Text(value)) },
        HostCall::Log { text, .. },
    ] = recording.host_calls.as_slice()
    else {
        panic!("{:?}", recording.host_calls)
    };
    assert_eq!(
        (sku.as_str(), good.title.as_str(), key.as_str(), value.as_str()),
        ("MUG-9", "A MUG-9", "banner", "sale")
    );
    // The guest saw nothing but the hash, so that is all that it could log.
    assert_eq!((text, recording.live), (&hash, Live::Same));
    assert_eq!(recording.context.settings, r#"{"a":[2],"b":1}"#);

    let (again, plugin) = elsewhere(&recording, CURIOUS);
    assert_eq!(again, recording);
    assert_eq!(again.encode(), recording.encode());
    let replayed = replay(&plugin, &again).unwrap();
    assert_eq!(compare(&again, &replayed), []);
    assert_eq!(replayed.unrecorded, [] as [&str; 0]);
    assert_eq!(replayed.instructions, None, "this engine does not count");
}

#[test]
fn an_answer_that_depends_on_the_shopper_is_recorded_as_such() {
    let scene = Scene::of(&engine(), FLATTERING);
    scene.price(Some(CUSTOMER), 1);
    let recording = scene.next();
    assert_eq!(recording.live, Live::Differs);
    assert!(!String::from_utf8(recording.encode()).unwrap().contains("anna"));
    assert_eq!(scene.metrics.differed.get(), 1);
    let (again, plugin) = elsewhere(&recording, FLATTERING);
    assert_eq!(compare(&again, &replay(&plugin, &again).unwrap()), []);
}

#[test]
fn another_component_shows_what_it_does_to_each_line() {
    let scene = Scene::of(&engine(), GOOD);
    scene.price(None, 2);
    let (recording, plugin) = elsewhere(&scene.next(), HALF);
    let replayed = replay(&plugin, &recording).unwrap();
    let differences = compare(&recording, &replayed);
    assert!(
        matches!(differences[..], [Difference::Component { .. }, Difference::Outcome { .. }]),
        "{differences:?}"
    );
    // Two lines of 10.00: ten per cent off the cart was recorded, half off the first line came out.
    let change = money_change(&recording, &replayed).unwrap();
    assert_eq!((change.total_recorded.0, change.total_replayed.0), (1_800, 1_500));
    let [line] = change.lines.as_slice() else { panic!("{change:?}") };
    assert_eq!((line.line.to_string(), line.recorded.0, line.replayed.0), ("MUG-0".to_owned(), 1_000, 500));
}

#[test]
fn what_a_new_component_asks_beyond_the_recording_is_named() {
    let scene = Scene::of(&engine(), GOOD);
    scene.price(None, 1);
    let (recording, plugin) = elsewhere(&scene.next(), CURIOUS);
    let replayed = replay(&plugin, &recording).unwrap();
    assert_eq!(
        replayed.unrecorded,
        [r#"lookup-product("MUG-9")"#, r#"lookup-product("TEA-1")"#, r#"kv-get("banner")"#]
    );
    let differences = compare(&recording, &replayed);
    assert!(
        matches!(&differences[..], [_, Difference::HostCall { index: 0, recorded: None, replayed: Some(_) }]),
        "{differences:?}"
    );
}

#[test]
fn a_failure_is_an_outcome_too() {
    let scene = Scene::of(&engine(), TRAPS);
    scene.price(None, 1);
    let (recording, plugin) = elsewhere(&scene.next(), TRAPS);
    assert_eq!(recording.outcome.name(), "trap");
    assert_eq!(compare(&recording, &replay(&plugin, &recording).unwrap()), []);
}

#[test]
fn a_recorded_deadline_is_no_promise_to_a_replay() {
    let scene = Scene::of(&engine(), GOOD);
    scene.price(None, 1);
    let (mut recording, plugin) = elsewhere(&scene.next(), GOOD);
    recording.outcome =
        Outcome::Failed { fault: "deadline".to_owned(), detail: "ran out of time".to_owned() };
    let differences = compare(&recording, &replay(&plugin, &recording).unwrap());
    assert!(matches!(&differences[..], [Difference::NotTimed { .. }]), "{differences:?}");
}

#[test]
fn a_call_that_is_too_large_is_recorded_as_that() {
    // 3,000 lines take a slow machine's unoptimised host some 50 ms, where every other call here takes one.
    let patient = HookLimits {
        deadline: Duration::from_secs(5),
        wall_max: Duration::from_secs(30),
        ..HookLimits::default()
    };
    let scene = Scene::of(&engine_with(patient), GOOD);
    scene.price(None, 3_000);
    let recording = scene.next();
    let bytes = recording.encode();
    assert!(bytes.len() <= RECORDING_BYTES_MAX, "{}", bytes.len());
    let (again, plugin) = elsewhere(&recording, GOOD);
    let omitted = again.omitted_bytes.expect("the bytes that there were");
    assert!(omitted > RECORDING_BYTES_MAX as u64);
    assert_eq!(replay(&plugin, &again), Err(ReplayError::Recording(RecordingError::Omitted(omitted))));
    // What a person wants to know of it is still there.
    assert_eq!((again.outcome.name(), again.context.now_ms), ("adjusted", 1_000_000));
}

#[test]
fn counting_is_exact_and_changes_nothing() {
    let scene = Scene::of(&engine(), CURIOUS);
    scene.price(Some(CUSTOMER), 3);
    let recording = scene.next();
    let mut counts = Vec::new();
    for _ in 0..2 {
        let engine = metered::engine(HookLimits::for_replay(&recording.limits)).unwrap();
        let plugin = engine.load(&CURIOUS.component()).unwrap();
        for _ in 0..3 {
            let replayed = replay(&plugin, &recording).unwrap();
            assert_eq!(compare(&recording, &replayed), []);
            counts.push(replayed.instructions.expect("this engine counts"));
        }
    }
    assert!(counts[0] > 50 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
}

#[test]
fn a_busy_studio_makes_nobody_wait_and_counts_what_it_leaves_out() {
    let scene = Scene::of(&engine(), GOOD);
    let gate = scene.gate.clone();
    let closed = gate.lock().unwrap();
    let start = Instant::now();
    for _ in 0..400 {
        scene.price(None, 1);
    }
    assert!(start.elapsed() < Duration::from_secs(20), "the studio is stuck, and the shop with it");
    drop(closed);
    let mut kept = 0;
    // What waited is recorded in the end; the rest was counted at once.
    while kept + scene.metrics.dropped.get() < 400 {
        scene.next();
        kept += 1;
    }
    assert!(scene.metrics.dropped.get() > 200, "{} dropped", scene.metrics.dropped.get());
    assert!(kept >= 100, "{kept} kept");
}

/// One shop records everything it does, another ten calls: none of the ten is lost for it.
#[test]
fn a_site_that_records_much_leaves_room_for_others() {
    let engine = engine();
    let (sender, kept) = sync_channel(KEPT_MAX);
    let gate = Arc::new(Mutex::new(()));
    let keeper = Keeper { kept: Mutex::new(sender), gate: gate.clone() };
    let metrics = StudioMetrics::default();
    let studio = Studio::start(Arc::new(keeper), [7; 32], metrics.clone()).unwrap();
    let plugin = engine.load(&GOOD.component()).unwrap();
    let [busy, small] = ["busy", "small"].map(|site| {
        let mut release = release("rules", &plugin, OnFault::Open);
        release.record_bp = 10_000;
        Chain::new(vec![(release, plugin.clone())]).recorded(&site.parse().unwrap(), &studio)
    });
    let data: Arc<dyn SiteData> = Arc::new(Shop::default());
    let price = |chain: &Chain| drop(chain.price(&call(&data), &Guard::default(), lines(1)).unwrap());
    let closed = gate.lock().unwrap();
    for _ in 0..400 {
        price(&busy);
    }
    let dropped_before = metrics.dropped.get();
    assert!(dropped_before > 200, "{dropped_before} dropped");
    for _ in 0..10 {
        price(&small);
        price(&busy);
    }
    assert_eq!(metrics.dropped.get(), dropped_before + 10, "the busy one's");
    drop(closed);
    let of_small = |recording: &Recording| recording.site.as_str() == "small";
    for _ in 0..10 {
        while !of_small(&kept.recv_timeout(Duration::from_secs(20)).expect("a recording")) {}
    }
}

#[test]
fn bytes_that_are_no_recording_are_refused_by_name() {
    let scene = Scene::of(&engine(), GOOD);
    scene.price(None, 1);
    let good = String::from_utf8(scene.next().encode()).unwrap();
    let decode = |text: &str| Recording::decode(text.as_bytes());
    assert!(good.starts_with(r#"{"souk_recording":1,"contract":"0.1.0","site":"shop","#), "{good}");
    assert_eq!(decode(&good.replacen(":1,", ":2,", 1)), Err(RecordingError::Version(2)));
    assert!(matches!(decode(&good[1..]), Err(RecordingError::Malformed(_))));
    assert!(matches!(
        decode(&good.replace(r#""hook":"pricing""#, r#""hook":"cart""#)),
        Err(RecordingError::Contradiction { .. })
    ));
    let long = format!("{good}{}", " ".repeat(RECORDING_BYTES_MAX));
    assert!(matches!(decode(&long), Err(RecordingError::TooLong { .. })));
    // Tomorrow's fields are skipped.
    assert!(decode(&good.replacen("{", r#"{"moon":[1],"#, 1)).is_ok());
}
