//! What an operator is told of a response that only the disk has, as text and as JSON.

use serde_json::Value;
use souk_config::proxy::DiskConfig;

use super::*;
use crate::http::RequestBody;
use crate::upstream::explain::{Asking, of_proxy};

async fn ask(proxy: &Proxy, accept: &str) -> String {
    let request = Request::get("/explain?url=http://shop.example/a").header("accept", accept);
    let request = request.body(RequestBody::empty());
    let peer = plain(([127, 0, 0, 1], 1).into());
    let asking = Asking::read(request.expect("a request")).await;
    let asking = asking.unwrap_or_else(|problem| panic!("{}", problem.detail));
    let told = of_proxy(proxy, &asking, peer, now_ms()).await;
    let answer = asking.answer(&told).expect("an answer").into_body().collect().await;
    String::from_utf8(answer.expect("a body").to_bytes().to_vec()).expect("text")
}

#[tokio::test]
async fn what_only_the_disk_has_is_explained_and_not_brought_into_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let upstream = serve(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { response(200, &[("cache-control", "max-age=600"), ("etag", "\"1\"")], "hello") })
    })
    .await;
    let open = async || {
        let disk = DiskConfig { dir: dir.path().to_owned(), bytes_max: 64 << 20 };
        let url = format!("http://{upstream}");
        let world = World::before(&url, Arc::clone(&fetches), |config| config.disk = Some(disk)).await;
        world.proxy.ready().await;
        world
    };
    let get = async |proxy: &Proxy| {
        let request = Request::get("/a").header("host", "shop.example").body(RequestBody::empty());
        let peer = plain(([127, 0, 0, 1], 1).into());
        let answer = proxy.handle(request.expect("a request"), peer, now_ms()).await;
        let said = answer.headers()["cache-status"].to_str().expect("text").to_owned();
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "hello");
        said
    };
    let first = open().await;
    assert!(get(&first.proxy).await.contains("stored"));
    let in_memory = ask(&first.proxy, "text/plain").await;
    assert!(in_memory.contains("\nof          upstream\n") && in_memory.contains("\ntier        memory\n"));
    first.proxy.close().await;
    drop(first);

    let second = open().await;
    let (from_disk, memory) = ("souk_proxy_disk_hits_total", "souk_proxy_stored_keys");
    let counts = |name: &str| {
        let mut registry = prometheus_client::registry::Registry::default();
        second.proxy.register(&mut registry);
        second.proxy.sample();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a page");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        line.and_then(|value| value.parse::<u64>().ok())
    };
    let before = (counts(from_disk), counts(memory));
    let said = ask(&second.proxy, "text/plain").await;
    for part in [
        "outcome     hit",
        "\ntier        disk: ",
        "freshness_lifetime       600 s from max-age",
        "etag: \"1\"",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let json = ask(&second.proxy, "application/json").await;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["tier"], &json["outcome"]), (&"disk".into(), &"hit".into()), "{json}");
    assert_eq!((&json["answer"]["status"], &json["stored"]["bytes"]), (&200.into(), &5.into()), "{json}");
    assert_eq!((counts(from_disk), counts(memory)), before, "to explain is not to read");
    assert!(get(&second.proxy).await.starts_with("Souk; hit"));
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
    assert_eq!(counts(from_disk), Some(before.0.unwrap_or_default() + 1), "and a request reads it");
    let read = ask(&second.proxy, "text/plain").await;
    assert!(read.contains("\ntier        memory\n"), "{read}");
}
