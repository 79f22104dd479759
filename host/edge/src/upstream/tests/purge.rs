//! A proxy forgets what it is told to, in the words of its clients.

use souk_commerce::purge::Forget;

use super::*;

fn text(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[tokio::test]
async fn a_proxy_forgets_by_tag_address_and_path_and_tells_no_client_its_tags() {
    let upstream = serve(|request, _| {
        Box::pin(async move {
            let mut response = Response::new(full(request.uri().path().to_owned()));
            for (name, value) in
                [("cache-control", "max-age=600"), ("surrogate-key", "red"), ("cache-tag", "x")]
            {
                response.headers_mut().insert(name, value.parse().expect("a value"));
            }
            response
        })
    })
    .await;
    // What the upstream knows by a longer path.
    let world = World::before(&format!("http://{upstream}/shop"), Arc::default(), |_| ()).await;
    let at = world.at;
    let wishes = [
        Forget { tags: text(&["red"]), ..Forget::default() },
        Forget { urls: text(&["/tea?size=2"]), ..Forget::default() },
        Forget { urls: text(&[&format!("https://{at}/tea?size=2")]), ..Forget::default() },
        Forget { prefixes: text(&["/tea"]), ..Forget::default() },
        Forget { everything: true, ..Forget::default() },
    ];
    for wish in wishes {
        let first = world.get("/tea?size=2").await;
        assert_eq!(first.body(), "/shop/tea");
        assert!(!first.headers.contains_key("surrogate-key") && !first.headers.contains_key("cache-tag"));
        assert!(world.get("/tea?size=2").await.cache_status().starts_with("Souk; hit"), "{wish:?}");
        world.proxy.purge(&wish).await;
        let said = world.get("/tea?size=2").await;
        assert!(said.cache_status().ends_with("detail=purged"), "{wish:?}: {}", said.cache_status());
        world
            .proxy
            .purge(&Forget { tags: text(&["blue"]), urls: text(&["/shop/tea?size=2"]), ..Forget::default() })
            .await;
        assert!(world.get("/tea?size=2").await.cache_status().starts_with("Souk; hit"), "{wish:?}");
    }
    world.proxy.purge(&Forget { tags: text(&["red"]), soft: true, ..Forget::default() }).await;
    let said = world.get("/tea?size=2").await;
    assert!(said.cache_status().ends_with("detail=soft_purged"), "{}", said.cache_status());
    // One that is not stored keeps its tags from clients too.
    let posted = world.send("POST", "/tea", &[]).await;
    assert!(!posted.headers.contains_key("surrogate-key"), "{posted:?}");
}
