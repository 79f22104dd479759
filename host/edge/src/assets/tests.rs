//! Files as browsers get them: tags, encodings and differences, with the bench run by hand.

use std::path::Path;

use base64::Engine as _;
use http::header::ACCEPT_ENCODING;
use prometheus_client::registry::Registry;
use souk_commerce::feed::{AssetChange, Former};
use souk_commerce::id::SiteId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::state::world::{Row, World};

const ALL: &str = "gzip, deflate, br, zstd, dcz";
/// Larger than all that a test makes.
const ROOM: u64 = 16 << 20;

fn script(word: &str) -> Vec<u8> {
    let line = |number: u32| {
        let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        format!("export const {word}_{number} = () => call(0x{mixed:016x});\n")
    };
    (0..400).map(line).collect::<String>().into_bytes()
}

/// The second version of that script: a line more.
fn next(script: &[u8]) -> Vec<u8> {
    [script, b"export const more = 1;\n"].concat()
}

struct Node {
    dir: tempfile::TempDir,
    world: World,
    assets: Assets,
    bench: JoinHandle<()>,
    registry: Registry,
}

impl Node {
    fn start(room: u64) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), room)
    }

    fn start_in(dir: tempfile::TempDir, room: u64) -> Self {
        let mut registry = Registry::default();
        let metrics = AssetMetrics::register(&mut registry);
        let elsewhere = tempfile::tempdir().expect("a directory");
        let uplink = crate::blobs::tests::nowhere(elsewhere.path());
        let blobs = Blobs::open(dir.path(), uplink, 32 << 20).expect("opens");
        let (assets, bench) = Assets::new(blobs, room, metrics).expect("a thread");
        let bench = tokio::spawn(bench.run(CancellationToken::new()));
        Self { dir, world: World::default(), assets, bench, registry }
    }

    /// The same folder and manifest, and nothing in memory.
    fn restart(self) -> Self {
        self.bench.abort();
        let world = self.world.clone();
        Self { world, ..Self::start_in(self.dir, ROOM) }
    }

    fn blob(dir: &Path, content: &[u8]) -> Digest {
        let digest = Digest::of(content);
        std::fs::write(dir.join("blobs").join(digest.to_string()), content).expect("written");
        digest
    }

    /// What the region would say of a push.
    fn show(&mut self, site: &str, path: &str, kind: &str, content: &[u8], former: &[&[u8]]) {
        let digest = Self::blob(self.dir.path(), content);
        let former = former
            .iter()
            .map(|content| Former {
                digest: Self::blob(self.dir.path(), content),
                bytes: content.len() as u64,
            })
            .collect();
        let asset = Asset { former, ..Asset::new(digest, content.len() as u64, kind.to_owned()) };
        let (site, path) = (name(site), path.to_owned());
        self.world.apply(Row::Asset(AssetChange { site, path, asset: Some(asset) }), 1);
    }

    async fn ask(
        &self,
        site: &str,
        path: &str,
        fields: &[(&'static str, &str)],
        secure: bool,
    ) -> Response<Body> {
        self.ask_by(Method::GET, site, path, fields, secure).await.expect("an answer")
    }

    async fn ask_by(
        &self,
        method: Method,
        site: &str,
        target: &str,
        fields: &[(&'static str, &str)],
        secure: bool,
    ) -> Result<Response<Body>, Problem> {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let site = self.world.site(&name(site)).expect("a site");
        self.assets.answer(site, head.uri.path(), &head, secure).await
    }

    /// Asks until a form comes that is not the file as it is.
    async fn form(&self, site: &str, path: &str, fields: &[(&'static str, &str)]) -> Response<Body> {
        loop {
            let answer = self.ask(site, path, fields, true).await;
            if answer.headers().contains_key(CONTENT_ENCODING) {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Until nothing is being made, nor waits for it.
    async fn settle(&self) {
        while !self.assets.variants.is_idle() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    fn metric(&self, line: &str) -> u64 {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry).expect("text");
        let found = page.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0)
    }
}

fn name(text: &str) -> SiteId {
    text.parse().expect("a site")
}

fn available(content: &[u8]) -> String {
    format!(":{}:", base64::engine::general_purpose::STANDARD.encode(Digest::of(content).0))
}

fn field<'a>(answer: &'a Response<Body>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

async fn body(answer: Response<Body>) -> Bytes {
    answer.into_body().collect().await.expect("readable").to_bytes()
}

#[tokio::test]
async fn a_browser_with_the_old_version_is_told_what_is_new() {
    let mut node = Node::start(ROOM);
    let (old, new) = (script("a"), next(&script("a")));
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    let has = available(&old);
    let coding = "dcz";
    let fields = [("accept-encoding", coding), ("available-dictionary", has.as_str())];
    let first = node.ask("shop", "/app.js", &fields, true).await;
    assert_eq!(field(&first, "content-encoding"), "", "nobody waits for it");
    assert_eq!(field(&first, "vary"), BY_DICTIONARY);
    assert_eq!(body(first).await, new);

    let told = node.form("shop", "/app.js", &fields).await;
    assert_eq!(field(&told, "content-encoding"), coding);
    assert_eq!(field(&told, "vary"), BY_DICTIONARY);
    let (digest, from) = (Digest::of(&new).to_string(), Digest::of(&old).to_string());
    assert_eq!(field(&told, "etag"), format!("\"{digest}-{coding}-{}\"", &from[..16]));
    assert_eq!(field(&told, "use-as-dictionary"), format!("match=\"/app.js\", id=\"{}\"", &digest[..16]));
    let length: usize = field(&told, "content-length").parse().expect("a number");
    let told = body(told).await;
    assert_eq!(told.len(), length);
    assert!(told.len() < 200, "{coding}: {} of {}", told.len(), new.len());
    assert!(codec::leads_to(Coding::Dcz, &told, &old, &new));
    assert_eq!(node.metric("souk_asset_encodings_total{coding=\"dcz\"}"), 1, "made once");
    assert_eq!(node.metric("souk_asset_sent_total{coding=\"dcz\"}"), 1);
}

#[tokio::test]
async fn nobody_else_is_told_a_difference() {
    let mut node = Node::start(ROOM);
    let (old, new, theirs) = (script("a"), next(&script("a")), script("b"));
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    node.show("shop", "/page.css", "text/css", &script("c"), &[]);
    node.show("shop", "/photo.webp", "image/webp", &script("d"), &[&old]);
    node.show("other", "/app.js", "text/javascript", &next(&theirs), &[&theirs]);
    let mine = [("accept-encoding", "dcz"), ("available-dictionary", &available(&old) as &str)];
    let strange = [("accept-encoding", "dcz"), ("available-dictionary", &available(&theirs) as &str)];
    // It is there, so that nobody's answer depends on when it is made.
    assert_eq!(field(&node.form("shop", "/app.js", &mine).await, "content-encoding"), "dcz");
    assert_eq!(field(&node.form("other", "/app.js", &strange).await, "content-encoding"), "dcz");
    for (site, path, fields, secure) in [
        ("shop", "/app.js", strange, true),
        ("other", "/app.js", mine, true),
        ("shop", "/page.css", mine, true),
        ("shop", "/photo.webp", mine, true),
        ("shop", "/app.js", mine, false),
    ] {
        let answer = node.ask(site, path, &fields, secure).await;
        assert_eq!(field(&answer, "content-encoding"), "", "{site} {path} {secure}");
        if !secure {
            assert_eq!((field(&answer, "vary"), field(&answer, "use-as-dictionary")), (BY_CODING, ""));
        }
        node.settle().await;
        let answer = node.ask(site, path, &fields, secure).await;
        assert_eq!(field(&answer, "content-encoding"), "", "{site} {path} {secure}, later");
    }
    assert_eq!(node.metric("souk_asset_dictionaries_unknown_total"), 6);
    assert_eq!(node.metric("souk_asset_encodings_total{coding=\"dcz\"}"), 2);
}

#[tokio::test]
async fn two_sites_with_the_same_files_have_forms_of_their_own() {
    let mut node = Node::start(ROOM);
    let (old, new) = (script("a"), next(&script("a")));
    let has = [("accept-encoding", "dcz"), ("available-dictionary", &available(&old) as &str)];
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    node.show("other", "/app.js", "text/javascript", &new, &[]);
    node.form("shop", "/app.js", &has).await;
    node.settle().await;
    let answer = node.ask("other", "/app.js", &has, true).await;
    assert_eq!(field(&answer, "content-encoding"), "", "this site has never shown the old version");
    node.show("other", "/app.js", "text/javascript", &new, &[&old]);
    let answer = node.ask("other", "/app.js", &has, true).await;
    assert_eq!(field(&answer, "content-encoding"), "", "nor does it find what the other's shoppers had made");
}

#[tokio::test]
async fn who_has_nothing_gets_it_encoded() {
    let mut node = Node::start(ROOM);
    let file = script("a");
    node.show("shop", "/app.js", "text/javascript", &file, &[]);
    node.show("shop", "/tiny.js", "text/javascript", b"let a = 1;", &[]);
    let mut smallest = usize::MAX;
    for (accepted, coding) in [("gzip, deflate, br, zstd", "br"), ("zstd", "zstd"), ("*", "gzip")] {
        let answer = node.form("shop", "/app.js", &[("accept-encoding", accepted)]).await;
        assert_eq!(field(&answer, "content-encoding"), coding, "{accepted}");
        assert_eq!(field(&answer, "etag"), format!("\"{}-{coding}\"", Digest::of(&file)));
        let length = body(answer).await.len();
        assert!(length * 2 < file.len());
        smallest = smallest.min(length);
    }
    // Of those that are there and liked equally.
    let answer = node.form("shop", "/app.js", &[("accept-encoding", ALL)]).await;
    assert_eq!(body(answer).await.len(), smallest);
    // Not over TLS either.
    let answer = node.ask("shop", "/app.js", &[("accept-encoding", "br")], false).await;
    assert_eq!((field(&answer, "content-encoding"), field(&answer, "vary")), ("br", BY_CODING));
    let tiny = node.ask("shop", "/tiny.js", &[("accept-encoding", "br")], true).await;
    assert_eq!((field(&tiny, "vary"), field(&tiny, "use-as-dictionary")), ("", ""));
    node.settle().await;
    assert_eq!(node.metric("souk_asset_encodings_total{coding=\"br\"}"), 1);
}

#[tokio::test]
async fn what_saves_nothing_is_tried_once() {
    let mut node = Node::start(ROOM);
    let noise: Vec<u8> = (0..40_u8).flat_map(|n| Digest::of(&[n]).0).collect();
    node.show("shop", "/noise.json", "application/json", &noise, &[]);
    for _ in 0..3 {
        let answer = node.ask("shop", "/noise.json", &[("accept-encoding", "br")], true).await;
        assert_eq!(body(answer).await, noise);
        node.settle().await;
    }
    assert_eq!(node.metric("souk_asset_encoding_in_bytes_total"), noise.len() as u64);
}

#[tokio::test]
async fn a_form_that_cannot_be_made_is_done_without() {
    let mut node = Node::start(ROOM);
    let (old, new) = (script("a"), next(&script("a")));
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    // The old version is gone from this disk, and the region is away.
    std::fs::remove_file(node.dir.path().join("blobs").join(Digest::of(&old).to_string())).expect("removed");
    let has = [("accept-encoding", "dcz, br"), ("available-dictionary", &available(&old) as &str)];
    for _ in 0..3 {
        assert_eq!(body(node.ask("shop", "/app.js", &has, true).await).await, new);
        node.settle().await;
    }
    assert_eq!(node.metric("souk_asset_encodings_failed_total"), 1, "and not tried at every request");
}

#[tokio::test]
async fn after_a_restart_it_is_made_again() {
    let mut node = Node::start(ROOM);
    let (old, new) = (script("a"), next(&script("a")));
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    let has = [("accept-encoding", "dcz"), ("available-dictionary", &available(&old) as &str)];
    let before = body(node.form("shop", "/app.js", &has).await).await;
    let node = node.restart();
    let first = node.ask("shop", "/app.js", &has, true).await;
    assert_eq!(field(&first, "content-encoding"), "");
    let again = node.form("shop", "/app.js", &has).await;
    assert_eq!(body(again).await, before, "the same bytes, as the strong tag says");
}

#[tokio::test]
async fn a_form_that_had_to_go_is_made_again_and_the_bound_holds() {
    // A third of it is for forms: room for some of these, not for all.
    let mut node = Node::start(24 << 10);
    let files: Vec<_> = (0..12).map(|n| (format!("/{n}.js"), script(&format!("w{n}")))).collect();
    for (path, content) in &files {
        node.show("shop", path, "text/javascript", content, &[]);
    }
    for round in 0..2 {
        for (path, content) in &files {
            // One that is too unpopular to be kept is never there: the file comes as it is.
            let answer = node.ask("shop", path, &[("accept-encoding", "gzip")], true).await;
            match field(&answer, "content-encoding") {
                "" => assert_eq!(body(answer).await, *content),
                _ => assert!(body(answer).await.len() < content.len()),
            }
            node.settle().await;
        }
        let kept = node.metric("souk_asset_encoded_bytes");
        assert!(kept <= 8 << 10, "round {round}: {kept}");
    }
    assert!(node.metric("souk_asset_encodings_total{coding=\"gzip\"}") > 12, "some had to go");
}

#[tokio::test]
async fn a_browser_that_has_the_file_in_any_form_is_told_so() {
    let mut node = Node::start(ROOM);
    let (old, new) = (script("a"), next(&script("a")));
    node.show("shop", "/app.js", "text/javascript", &new, &[&old]);
    let digest = Digest::of(&new);
    for (sent, held) in [
        (format!("\"{digest}\""), true),
        (format!("\"other\", \"{digest}-br\""), true),
        (format!("\"{digest}-dcz-{}\"", &Digest::of(&old).to_string()[..16]), true),
        (format!("W/\"{digest}-gzip\""), true),
        (format!("\"{}\"", Digest::of(&old)), false),
        (format!("\"{digest}x\""), false),
        (format!("\"{digest}-\u{7f}\""), false),
        (digest.to_string(), false),
    ] {
        // It has the newest as its dictionary now, from which there is nothing to tell.
        let has = available(&new);
        let Ok(value) = HeaderValue::from_str(&sent) else { continue };
        let request = http::Request::get("/app.js")
            .header(IF_NONE_MATCH, value)
            .header(ACCEPT_ENCODING, ALL)
            .header(choice::AVAILABLE_DICTIONARY, has);
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let site = node.world.site(&name("shop")).expect("a site");
        let answer = node.assets.answer(site, "/app.js", &head, true).await.expect("an answer");
        assert_eq!(answer.status() == StatusCode::NOT_MODIFIED, held, "{sent}");
        if held {
            let tag = sent.rsplit(", ").next().expect("the last");
            assert_eq!(field(&answer, "etag"), tag, "the one that it knows");
        }
    }
    let star = node.ask("shop", "/app.js", &[("if-none-match", "*")], true).await;
    assert_eq!(
        (star.status(), field(&star, "etag")),
        (StatusCode::NOT_MODIFIED, &format!("\"{digest}\"") as &str)
    );
}

#[tokio::test]
async fn a_large_file_that_was_cut_short_is_fetched_again() {
    let node = Node::start(ROOM);
    let content = vec![7; 2 << 20];
    let asset = Asset::new(Digest::of(&content), content.len() as u64, "video/mp4".to_owned());
    let path = node.dir.path().join("blobs").join(asset.digest.to_string());
    std::fs::write(&path, &content[..9]).expect("written");
    let refused = node
        .assets
        .body(&asset, 0, asset.bytes)
        .await
        .map(drop)
        .expect_err("cut short, and the region is away");
    assert_eq!(refused.refusal, Refusal::RegionUnreachable, "{}", refused.detail);
    assert!(!path.exists(), "what is rotten does not stay");
    std::fs::write(&path, &content).expect("written");
    let read = node.assets.body(&asset, 0, asset.bytes).await.expect("whole again");
    assert_eq!(read.collect().await.expect("readable").to_bytes().len(), content.len());
}

#[test]
fn freshness_is_by_the_name_and_the_kind() {
    let content = script("x");
    let digest = Digest::of(&content);
    let described = |path: &str, kind: &str| {
        let mut headers = HeaderMap::new();
        let asset = Asset::new(digest, 2_000, kind.to_owned());
        let request = HeaderMap::new();
        describe(
            &mut headers,
            &About { path, asset: &asset, tag: "\"x\"", request: &request, secure: true, is_whole: true },
        );
        let has = |name: &str| headers.contains_key(name);
        (headers[CACHE_CONTROL].clone(), has("content-security-policy"), has("use-as-dictionary"))
    };
    let page = HeaderValue::from_static(PAGE);
    // A page is asked about each time: it is never fresh, and so no dictionary.
    assert_eq!(described("/index.html", "text/html; charset=utf-8"), (page, true, false));
    assert_eq!(described("/shop.js", "text/javascript"), (HeaderValue::from_static(SHORT), false, true));
    let named = format!("/shop-{}.js", &digest.to_string()[..8]);
    assert_eq!(described(&named, "text/javascript"), (HeaderValue::from_static(FOREVER), false, true));
    assert_eq!(described("/a.webp", "image/webp"), (HeaderValue::from_static(SHORT), false, false));
}

#[tokio::test]
async fn a_part_is_of_the_file_as_it_is_wherever_it_is_kept() {
    let mut node = Node::start(ROOM);
    let small = script("a");
    let large: Vec<u8> = (0..IN_MEMORY_BYTES_MAX + 10).map(|n| (n % 251) as u8).collect();
    node.show("shop", "/app.js", "text/javascript", &small, &[]);
    node.show("shop", "/film.mp4", "video/mp4", &large, &[]);
    node.form("shop", "/app.js", &[("accept-encoding", "br")]).await;
    for (path, file) in [("/app.js", &small), ("/film.mp4", &large)] {
        let (length, tag) = (file.len(), format!("\"{}\"", Digest::of(file)));
        let last = length - 1;
        for (range, first, end) in [
            ("bytes=0-1".to_owned(), 0, 1),
            ("bytes=100-4099".to_owned(), 100, 4_099),
            (format!("bytes={last}-"), last, last),
            ("bytes=-7".to_owned(), length - 7, last),
        ] {
            let fields = [("range", range.as_str()), ("accept-encoding", "br"), ("if-range", tag.as_str())];
            let answer = node.ask("shop", path, &fields, true).await;
            assert_eq!(answer.status(), 206, "{path} {range}");
            assert_eq!(field(&answer, "content-range"), format!("bytes {first}-{end}/{length}"));
            assert_eq!(field(&answer, "content-length"), (end - first + 1).to_string());
            assert_eq!((field(&answer, "etag"), field(&answer, "content-encoding")), (tag.as_str(), ""));
            assert_eq!(body(answer).await, file[first..=end], "{path} {range}");
        }
        let beyond = format!("bytes={length}-");
        let answer = node.ask("shop", path, &[("range", &beyond)], true).await;
        assert_eq!(
            (answer.status().as_u16(), field(&answer, "content-range")),
            (416, &*format!("bytes */{length}"))
        );
        assert_eq!((field(&answer, "cache-control"), field(&answer, "etag")), ("no-store", ""));
        assert!(body(answer).await.is_empty());
        // Whoever has another version, or none that can vouch for bytes, gets all of it; several parts are the whole, too.
        for fields in [
            [("range", "bytes=0-1"), ("if-range", "\"another\"")],
            [("range", "bytes=0-1"), ("if-range", "Mon, 30 Nov 2026 10:00:00 GMT")],
            [("range", "bytes=0-1,4-5"), ("accept", "*/*")],
            [("range", "lines=0-1"), ("accept", "*/*")],
        ] {
            let answer = node.ask("shop", path, &fields, true).await;
            assert_eq!(
                (answer.status().as_u16(), field(&answer, "accept-ranges")),
                (200, "bytes"),
                "{fields:?}"
            );
            assert_eq!(body(answer).await, *file);
        }
        let held = [("range", "bytes=0-1"), ("if-none-match", tag.as_str())];
        assert_eq!(node.ask("shop", path, &held, true).await.status(), 304, "it has it all");
        let range = [("range", "bytes=0-1")];
        let head = node.ask_by(Method::HEAD, "shop", path, &range, true).await.expect("an answer");
        assert_eq!((head.status().as_u16(), field(&head, "content-length")), (200, &*length.to_string()));
    }
}

#[tokio::test]
async fn who_leaves_out_a_folders_slash_is_sent_to_it() {
    let mut node = Node::start(ROOM);
    node.show("shop", "/a b/index.html", "text/html", b"<p>", &[]);
    node.show("shop", "/file", "text/plain", b"a file", &[]);
    node.show("shop", "/file/index.html", "text/html", b"<p>", &[]);
    node.show("shop", "//evil.example/index.html", "text/html", b"<p>", &[]);
    let site = name("shop");
    let ask = async |path: &str, target: &str| {
        let (head, ()) = http::Request::get(target).body(()).expect("a request").into_parts();
        let site = node.world.site(&site).expect("a site");
        node.assets.answer(site, path, &head, true).await
    };
    let answer = ask("/a b", "/a%20b?x=1").await.expect("an answer");
    assert_eq!((answer.status().as_u16(), field(&answer, "location")), (308, "/a%20b/?x=1"));
    assert_eq!(ask("/a b/", "/a%20b/").await.expect("an answer").status(), 200);
    assert_eq!(ask("/file", "/file").await.expect("an answer").status(), 200, "a file goes before a folder");
    for path in ["/none", "//evil.example"] {
        assert_eq!(ask(path, path).await.expect_err("nothing there").refusal, Refusal::NoAsset, "{path}");
    }
}
