//! Large files in slices, before an upstream whose file may change at any question.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};

use http::header::{CONTENT_RANGE, ETAG};
use parking_lot::Mutex;
use souk_commerce::purge::Forget;

use super::*;
use crate::http::RequestBody;
use crate::upstream::explain::{Asking, of_proxy};

mod changes;

const MIB: u64 = 1 << 20;
const PIECE: u64 = 64 << 10;

/// A file of an upstream.
struct File {
    length: u64,
    version: AtomicU64,
    /// What was asked for: ranges, or `-` for the whole.
    asked: Mutex<Vec<String>>,
    /// Bytes that left for the network.
    sent: AtomicU64,
    /// From the question for this byte on it is the next version.
    changes_at: Mutex<Option<u64>>,
    ignores_if_range: AtomicBool,
    ignores_range: AtomicBool,
    control: &'static str,
    /// What parts say in its place.
    part_control: Mutex<Option<&'static str>>,
    /// This status is the answer to everything, with a short body of another version.
    instead: Mutex<Option<u16>>,
    /// While somebody holds it, nobody is answered.
    gate: Arc<tokio::sync::RwLock<()>>,
}

impl File {
    fn of(length: u64) -> Arc<Self> {
        Self::with(length, "max-age=600")
    }

    fn with(length: u64, control: &'static str) -> Arc<Self> {
        Arc::new(Self {
            length,
            version: AtomicU64::new(1),
            asked: Mutex::default(),
            sent: AtomicU64::new(0),
            changes_at: Mutex::default(),
            ignores_if_range: AtomicBool::new(false),
            ignores_range: AtomicBool::new(false),
            control,
            part_control: Mutex::default(),
            instead: Mutex::default(),
            gate: Arc::default(),
        })
    }

    fn bytes(version: u64, first: u64, end: u64) -> Bytes {
        (first..end).map(|at| (version * 101 + at * 7 + (at >> 12)) as u8).collect::<Vec<_>>().into()
    }

    /// What was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }

    fn body(self: Arc<Self>, version: u64, first: u64, end: u64) -> Body {
        let mut at = first;
        let stream = futures_util::stream::poll_fn(move |_| {
            if at == end {
                return std::task::Poll::Ready(None);
            }
            let to = (at + PIECE).min(end);
            let piece = Self::bytes(version, at, to);
            self.sent.fetch_add(to - at, Ordering::SeqCst);
            at = to;
            std::task::Poll::Ready(Some(Ok(Frame::data(piece))))
        });
        http_body_util::StreamBody::new(stream).boxed_unsync()
    }

    fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Response<Body> {
        let said =
            |name: &str| request.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
        let range = said("range").map(|range| {
            let (first, last) =
                range.strip_prefix("bytes=").expect("bytes").split_once('-').expect("a range");
            let last = last.parse().unwrap_or(u64::MAX);
            (first.parse::<u64>().expect("a number"), self.length.min(u64::saturating_add(last, 1)))
        });
        self.asked.lock().push(said("range").unwrap_or_else(|| "-".to_owned()));
        if let Some((first, _)) = range
            && self.changes_at.lock().take_if(|at| *at == first).is_some()
        {
            self.version.fetch_add(1, Ordering::SeqCst);
        }
        if let Some(status) = *self.instead.lock() {
            return response(status, &[("etag", "\"other\""), ("cache-control", "max-age=600")], "other");
        }
        let version = self.version.load(Ordering::SeqCst);
        let tag = format!("\"v{version}\"");
        let part_control = range.and_then(|_| *self.part_control.lock());
        let mut response = Response::builder()
            .header("etag", &tag)
            .header("accept-ranges", "bytes")
            .header("surrogate-key", "film")
            .header("cache-control", part_control.unwrap_or(self.control));
        if said("if-none-match").is_some_and(|held| held == tag) {
            return response.status(304).body(full(Bytes::new())).expect("a response");
        }
        let same = said("if-range").is_none_or(|held| held == tag);
        let obeys = same || self.ignores_if_range.load(Ordering::SeqCst);
        let (first, end) = match range.filter(|_| obeys && !self.ignores_range.load(Ordering::SeqCst)) {
            Some((first, end)) => {
                let last = end - 1;
                response = response
                    .status(206)
                    .header("content-range", format!("bytes {first}-{last}/{}", self.length));
                (first, end)
            }
            None => (0, self.length),
        };
        response = response.header("content-length", end - first);
        response.body(self.body(version, first, end)).expect("a response")
    }
}

async fn world(file: &Arc<File>, change: impl FnOnce(&mut ProxyConfig)) -> World {
    let fetches = Arc::new(AtomicUsize::new(0));
    let (counted, file) = (Arc::clone(&fetches), Arc::clone(file));
    let upstream = serve(move |request, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let file = Arc::clone(&file);
        Box::pin(async move {
            let gate = Arc::clone(&file.gate);
            let _open = gate.read().await;
            file.answer(&request)
        })
    })
    .await;
    World::before(&format!("http://{upstream}"), fetches, change).await
}

struct Got {
    status: u16,
    headers: http::HeaderMap,
    /// None if it broke off.
    body: Option<Bytes>,
}

impl Got {
    fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// That it is these bytes of this version and nothing else.
    #[track_caller]
    fn is(&self, version: u64, first: u64, end: u64) {
        assert_eq!(self.field("etag"), format!("\"v{version}\""));
        assert_eq!(self.field("content-length"), (end - first).to_string());
        assert!(self.body.as_ref().expect("whole") == &File::bytes(version, first, end), "other bytes");
    }
}

impl World {
    async fn bytes(&self, method: &str, fields: &[(&str, &str)]) -> Got {
        // The same authority for every proxy.
        let fields = [&[("host", "shop.example")], fields].concat();
        let response = self.client.request(self.request(method, "/film", &fields)).await.expect("a response");
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok().map(|whole| whole.to_bytes());
        Got { status: head.status.as_u16(), headers: head.headers, body }
    }

    async fn range(&self, range: &str) -> Got {
        self.bytes("GET", &[("range", range)]).await
    }
}

#[tokio::test]
async fn a_range_of_a_large_file_fetches_and_holds_its_slices_only() {
    let file = File::of(40 * MIB);
    let world = world(&file, |_| {}).await;
    let got = world.range("bytes=5000000-5000099").await;
    got.is(1, 5_000_000, 5_000_100);
    assert_eq!((got.status, got.field("content-range")), (206, "bytes 5000000-5000099/41943040"));
    assert_eq!(got.field("cache-status"), "Souk; fwd=uri-miss; fwd-status=206; stored; detail=sliced");
    assert!(!got.headers.contains_key("x-souk-sliced-length") && !got.headers.contains_key("surrogate-key"));
    assert_eq!(file.asked(), ["-", "bytes=4194304-5242879"], "its head, and one slice");
    assert!(file.sent.load(Ordering::SeqCst) < file.length / 2, "the whole is given up");

    // What lies in the same slice is there; what lies across its end needs one more.
    let got = world.range("bytes=4194304-4194304").await;
    got.is(1, 4_194_304, 4_194_305);
    assert!(got.field("cache-status").starts_with("Souk; hit; ttl="), "{}", got.field("cache-status"));
    assert!(got.field("cache-status").ends_with("; detail=sliced"));
    world.range("bytes=5242870-5242889").await.is(1, 5_242_870, 5_242_890);
    assert_eq!(file.asked(), ["bytes=5242880-6291455"]);
    world.range("bytes=-10").await.is(1, file.length - 10, file.length);
    assert_eq!(file.asked(), ["bytes=40894464-41943039"]);
    assert!(stored_bytes(&world.proxy) < 4 * MIB, "three slices");
}

#[tokio::test]
async fn the_whole_is_its_slices_one_after_the_other() {
    let file = File::of(9 * MIB + 5);
    let world = world(&file, |_| {}).await;
    let got = world.bytes("GET", &[]).await;
    got.is(1, 0, file.length);
    assert_eq!(got.status, 200);
    let mut asked = file.asked();
    assert_eq!(asked.remove(0), "-");
    asked.sort();
    let mut slices: Vec<_> = (0..9).map(|n| format!("bytes={}-{}", n * MIB, (n + 1) * MIB - 1)).collect();
    slices.push(format!("bytes={}-{}", 9 * MIB, 9 * MIB + 4));
    slices.sort();
    assert_eq!(asked, slices, "each once");
    world.bytes("GET", &[]).await.is(1, 0, file.length);
    world.range("bytes=3000000-").await.is(1, 3_000_000, file.length);
    assert_eq!(file.asked().len(), 0, "all of it was there");
}

#[tokio::test]
async fn many_who_want_the_same_slice_are_one_fetch() {
    let file = File::of(20 * MIB);
    let world = world(&file, |_| {}).await;
    let all = join_all((0..40).map(|_| world.range("bytes=1000-2000"))).await;
    all.iter().for_each(|got| got.is(1, 1_000, 2_001));
    assert_eq!(file.asked(), ["-", "bytes=0-1048575"]);
}

#[tokio::test]
async fn two_versions_are_never_in_one_answer() {
    for ignores in [false, true] {
        let file = File::of(9 * MIB);
        file.ignores_if_range.store(ignores, Ordering::SeqCst);
        let world = world(&file, |_| {}).await;
        *file.changes_at.lock() = Some(3 * MIB);
        assert!(world.bytes("GET", &[]).await.body.is_none(), "it breaks off");
        // And nobody is told the old one any more, of which three slices are there.
        world.bytes("GET", &[]).await.is(2, 0, file.length);
        // A change that the first slice shows costs its reader nothing but time.
        world.range("bytes=0-9").await.is(2, 0, 10);
        *file.changes_at.lock() = Some(0);
        file.asked();
        let (proxy, forget) = (&world.proxy, Forget { urls: vec!["/film".to_owned()], ..Forget::default() });
        proxy.purge(&forget).await;
        // Head of the second version, then a first slice of the third: it begins anew.
        world.range("bytes=0-9").await.is(3, 0, 10);
        assert!(file.asked().len() >= 3);
        world.bytes("GET", &[]).await.is(3, 0, file.length);
    }
}

#[tokio::test]
async fn an_upstream_that_answers_no_ranges_is_passed() {
    let file = File::of(9 * MIB);
    file.ignores_range.store(true, Ordering::SeqCst);
    let world = world(&file, |_| {}).await;
    let got = world.range("bytes=0-9").await;
    assert_eq!((got.status, got.body.map(|body| body.len() as u64)), (200, Some(file.length)));
    file.asked();
    let got = world.range("bytes=0-9").await;
    assert!(got.status == 206 || got.status == 200, "{}", got.status);
    assert!(file.asked().len() <= 1, "and is not asked for slices again");
}

#[tokio::test]
async fn a_purge_takes_slices_too() {
    let file = File::of(9 * MIB);
    let world = world(&file, |_| {}).await;
    let purges = [
        Forget { tags: vec!["film".to_owned()], ..Forget::default() },
        Forget { urls: vec!["/film".to_owned()], ..Forget::default() },
        Forget { prefixes: vec!["/film".to_owned()], ..Forget::default() },
        Forget { everything: true, ..Forget::default() },
    ];
    for forget in purges {
        world.range("bytes=0-9").await.is(1, 0, 10);
        file.asked();
        world.range("bytes=0-9").await.is(1, 0, 10);
        assert_eq!(file.asked().len(), 0);
        world.proxy.purge(&forget).await;
        world.range("bytes=0-9").await.is(1, 0, 10);
        assert_eq!(file.asked(), ["-", "bytes=0-1048575"], "{forget:?}");
    }
    // And an unsafe request that succeeds takes the head, by which everything is found.
    world.bytes("POST", &[]).await;
    file.asked();
    world.range("bytes=0-9").await.is(1, 0, 10);
    assert_eq!(file.asked(), ["-"], "its slices are of the same version still");
}

#[tokio::test]
async fn conditions_and_odd_ranges_of_clients() {
    let file = File::of(9 * MIB);
    let world = world(&file, |_| {}).await;
    world.range("bytes=0-9").await.is(1, 0, 10);
    file.asked();
    let held = world.bytes("GET", &[("if-none-match", "\"v1\"")]).await;
    assert_eq!((held.status, held.field("etag")), (304, "\"v1\""));
    let beyond = world.range("bytes=9437184-").await;
    assert_eq!((beyond.status, beyond.field("content-range")), (416, "bytes */9437184"));
    let head = world.bytes("HEAD", &[]).await;
    assert_eq!((head.status, head.field("content-length")), (200, "9437184"));
    world.bytes("GET", &[("range", "bytes=0-9"), ("if-range", "\"v1\"")]).await.is(1, 0, 10);
    assert_eq!(file.asked().len(), 0, "all of that is known");
    let other = world.bytes("GET", &[("range", "bytes=0-9"), ("if-range", "\"v0\"")]).await;
    assert_eq!(other.status, 200);
    other.is(1, 0, file.length);
    assert!(!other.headers.contains_key(CONTENT_RANGE) && other.headers.contains_key(ETAG));
}

#[tokio::test]
async fn who_wants_only_what_is_stored_gets_slices_that_are_all_there() {
    let file = File::of(9 * MIB);
    let world = world(&file, |_| {}).await;
    let only = ("cache-control", "only-if-cached");
    assert_eq!(world.bytes("GET", &[only]).await.status, 504, "nothing is there");
    assert_eq!(world.bytes("GET", &[only, ("range", "bytes=0-9")]).await.status, 504);
    assert_eq!(file.asked().len(), 0);
    world.range("bytes=1048576-3145727").await.is(1, MIB, 3 * MIB);
    file.asked();
    let stored = world.bytes("GET", &[only, ("range", "bytes=2097000-2097999")]).await;
    assert_eq!(stored.status, 206);
    stored.is(1, 2_097_000, 2_098_000);
    assert!(stored.field("cache-status").starts_with("Souk; hit; ttl="), "{}", stored.field("cache-status"));
    assert_eq!(world.bytes("HEAD", &[only]).await.status, 200);
    for lacking in ["bytes=0-9", "bytes=3145720-3145730", "bytes=0-"] {
        assert_eq!(world.bytes("GET", &[only, ("range", lacking)]).await.status, 504, "{lacking}");
    }
    assert_eq!(world.bytes("GET", &[only]).await.status, 504, "it would break off");
    assert_eq!(file.asked().len(), 0, "the upstream hears of none of it");
    world.bytes("GET", &[]).await.is(1, 0, file.length);
    file.asked();
    world.bytes("GET", &[only]).await.is(1, 0, file.length);
    assert_eq!(file.asked().len(), 0);
}

#[tokio::test]
async fn a_head_that_is_stale_is_confirmed_and_its_slices_stay() {
    let file = File::with(9 * MIB, "no-cache");
    let world = world(&file, |_| {}).await;
    world.range("bytes=0-9").await.is(1, 0, 10);
    assert_eq!(file.asked(), ["-", "bytes=0-1048575"]);
    world.range("bytes=0-9").await.is(1, 0, 10);
    assert_eq!(file.asked(), ["-"], "a question that is answered by 304");
    file.version.store(2, Ordering::SeqCst);
    world.range("bytes=0-9").await.is(2, 0, 10);
    assert_eq!(file.asked(), ["-", "bytes=0-1048575"]);
}

#[tokio::test]
async fn slices_outlive_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = File::of(9 * MIB);
    let on_disk = |config: &mut ProxyConfig, dir: &Path| {
        let disk = souk_config::proxy::DiskConfig { dir: dir.to_owned(), bytes_max: 256 * MIB };
        config.disk = Some(disk);
    };
    let first = world(&file, |config| on_disk(config, dir.path())).await;
    first.proxy.ready().await;
    first.range("bytes=1048570-1048585").await.is(1, 1_048_570, 1_048_586);
    first.proxy.close().await;
    drop(first);
    file.asked();
    let second = world(&file, |config| on_disk(config, dir.path())).await;
    second.proxy.ready().await;
    second.range("bytes=1048570-1048585").await.is(1, 1_048_570, 1_048_586);
    assert!(file.asked().len() <= 1, "at most its head");
    second.proxy.close().await;
}

#[tokio::test]
async fn what_is_small_private_or_in_too_small_a_memory_is_not_sliced() {
    for (length, control, memory) in [
        (8 * MIB, "max-age=600", 256 * MIB),
        (9 * MIB, "private", 256 * MIB),
        (9 * MIB, "max-age=600", 4 * MIB),
    ] {
        let file = File::with(length, control);
        let world =
            world(&file, |config| *config = config.clone().with_memory(memory).expect("enough")).await;
        let got = world.bytes("GET", &[]).await;
        got.is(1, 0, length);
        assert!(!got.field("cache-status").contains("sliced"), "{}", got.field("cache-status"));
        assert_eq!(file.asked(), ["-"], "{length} {control} {memory}");
    }
    // In strict too, large is large.
    let file = File::of(9 * MIB);
    let world = world(&file, |config| config.upstream.policy = CachePolicy::Strict).await;
    let got = world.bytes("GET", &[]).await;
    got.is(1, 0, file.length);
    assert!(got.field("cache-status").ends_with("detail=sliced"));
}

/// What an operator is told of the film, later by so much.
async fn told(proxy: &Proxy, accept: &str, later_ms: u64) -> String {
    let request = Request::get("/explain?url=http://shop.example/film").header("accept", accept);
    let request = request.body(RequestBody::empty()).expect("a request");
    let asking = Asking::read(request).await.unwrap_or_else(|problem| panic!("{}", problem.detail));
    let peer = plain(([127, 0, 0, 1], 1).into());
    let told = of_proxy(proxy, &asking, peer, now_ms() + later_ms).await;
    let answer = asking.answer(&told).expect("an answer").into_body().collect().await;
    String::from_utf8(answer.expect("a body").to_bytes().to_vec()).expect("text")
}

#[tokio::test]
async fn what_is_in_slices_is_explained_by_its_head_wherever_that_is() {
    let (dir, file) = (tempfile::tempdir().expect("a folder"), File::of(9 * MIB));
    let open = async || {
        let disk = souk_config::proxy::DiskConfig { dir: dir.path().to_owned(), bytes_max: 256 * MIB };
        let world = world(&file, |config| config.disk = Some(disk)).await;
        world.proxy.ready().await;
        world
    };
    let first = open().await;
    let said = told(&first.proxy, "text/plain", 0).await;
    assert!(said.contains("\noutcome     fetches (uri-miss)") && !said.contains("\nslices "), "{said}");
    first.range("bytes=0-9").await.is(1, 0, 10);
    file.asked();
    let passes = "\noutcome     passes (sliced): it is large and kept in slices\n";
    // The memory of what was large ends long before its head does.
    for later_ms in [0, 40_000] {
        let said = told(&first.proxy, "text/plain", later_ms).await;
        for part in [passes, "\nslices ", "\n  outcome     hit: ", "\n  tier        memory\n", "etag: \"v1\""]
        {
            assert!(said.contains(part), "no {part:?} in\n{said}");
        }
    }
    let said = told(&first.proxy, "text/plain", 601_000).await;
    assert!(said.contains(passes) && said.contains("\n  outcome     fetches (stale): "), "{said}");
    first.proxy.close().await;
    drop(first);

    let second = open().await;
    let said = told(&second.proxy, "text/plain", 0).await;
    for part in [passes, "\n  outcome     hit: ", "\n  tier        disk: "] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let json = told(&second.proxy, "application/json", 0).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let head = &json["slices"]["head"];
    assert_eq!((&json["reason"], &head["outcome"]), (&"sliced".into(), &"hit".into()), "{json}");
    assert_eq!(head["tier"], "disk", "{json}");
    assert_eq!(file.asked().len(), 0, "the upstream hears of none of it");

    second.range("bytes=0-9").await.is(1, 0, 10);
    second.proxy.purge(&Forget { tags: vec!["film".to_owned()], ..Forget::default() }).await;
    let said = told(&second.proxy, "text/plain", 0).await;
    assert!(said.contains(passes) && said.contains("\nslices      the head is stored no more"), "{said}");
    second.proxy.close().await;
}

fn stored_bytes(proxy: &Proxy) -> u64 {
    proxy.sample();
    u64::try_from(proxy.metrics().stored_bytes.get()).expect("a size")
}
