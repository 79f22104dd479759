//! Encodings that the proxy adds, as a client meets them.

use std::io::Read as _;
use std::time::Instant;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn page() -> String {
    "<p>a line of a page that is worth it</p>\n".repeat(200)
}

async fn compressing(fields: &'static [(&'static str, &'static str)]) -> World {
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let upstream = serve(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { response(200, fields, page()) })
    })
    .await;
    World::before(&format!("http://{upstream}"), fetches, |config| config.upstream.compress = true).await
}

async fn bytes(world: &World, fields: &[(&str, &str)]) -> (http::response::Parts, Bytes) {
    let answered = world.client.request(world.request("GET", "/page", fields)).await.expect("a response");
    let (head, body) = answered.into_parts();
    (head, body.collect().await.expect("a whole body").to_bytes())
}

fn decoded(coding: &str, bytes: &[u8]) -> String {
    let mut out = String::new();
    match coding {
        "br" => brotli::Decompressor::new(bytes, 4096).read_to_string(&mut out),
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_string(&mut out),
        _ => zstd::stream::read::Decoder::new(bytes).expect("a frame").read_to_string(&mut out),
    }
    .expect("what it says it is");
    out
}

#[tokio::test]
async fn a_text_is_encoded_once_and_the_first_client_does_not_wait() {
    let world =
        compressing(&[("cache-control", "max-age=600"), ("content-type", "text/html"), ("etag", "\"a\"")])
            .await;
    for coding in ["br", "gzip", "zstd"] {
        let takes = [("accept-encoding", coding)];
        // A fill, then a hit: whoever starts a fill reads along, and there is nothing whole to encode yet.
        let (head, body) = bytes(&world, &takes).await;
        assert_eq!((body.as_ref(), head.headers.get("content-encoding")), (page().as_bytes(), None));
        assert_eq!(head.headers["vary"], "accept-encoding", "from the first answer on");
        let began = Instant::now();
        let (head, body) = loop {
            let (head, body) = bytes(&world, &takes).await;
            if head.headers.contains_key("content-encoding") {
                break (head, body);
            }
            assert_eq!(body.as_ref(), page().as_bytes());
            assert!(began.elapsed() < PATIENCE, "{coding} is never made");
            pause(5).await;
        };
        assert_eq!(head.headers["content-encoding"], coding);
        assert_eq!(head.headers["content-length"], body.len().to_string());
        assert_eq!(head.headers["etag"], "W/\"a\"");
        assert_eq!(head.headers["vary"], "accept-encoding");
        assert_eq!(decoded(coding, &body), page());
    }
    assert_eq!(world.fetches(), 1);
    let press = &world.proxy.metrics().press;
    for coding in ["br", "gzip", "zstd"] {
        let made = press.encodings.get_or_create(&crate::upstream::Encoding { coding }).get();
        assert_eq!(made, 1, "{coding} is made once");
    }
    assert!(press.bytes_out.get() * 4 < press.bytes_in.get());
    let (head, body) = bytes(&world, &[]).await;
    assert_eq!((body.as_ref(), head.headers.get("content-encoding")), (page().as_bytes(), None));
}
