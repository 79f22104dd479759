//! A campaign's visitors find the page that is there, and its parameters reach nobody.

use souk_commerce::purge::Forget;
use souk_config::QueryRules;

use super::*;

#[tokio::test]
async fn what_is_left_out_of_a_query_is_in_no_key_and_not_sent_on() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let upstream = serve(move |request, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let mut response = Response::new(full(format!("{} {}", request.method(), request.uri())));
            response.headers_mut().insert("cache-control", "max-age=600".parse().expect("a value"));
            if request.method() == "POST" && request.uri().path() == "/shop/reviews" {
                *response.status_mut() = StatusCode::SEE_OTHER;
                let tea = "/shop/tea?size=2&utm_source=form&colour=red";
                response.headers_mut().insert("location", tea.parse().expect("a value"));
            }
            response
        })
    })
    .await;
    let rules = QueryRules::new(&["utm_*".to_owned(), "gclid".to_owned()], true).expect("names");
    let world =
        World::before(&format!("http://{upstream}/shop"), fetches, |config| config.upstream.query = rules)
            .await;
    let first = world.get("/tea?utm_source=mail&size=2&colour=red").await;
    assert_eq!(first.body(), "GET /shop/tea?colour=red&size=2");
    for same in ["/tea?colour=red&size=2", "/tea?size=2&colour=red&gclid=7", "/tea?size=2&%75tm_x&colour=red"]
    {
        let again = world.get(same).await;
        assert!(again.cache_status().starts_with("Souk; hit"), "{same}: {}", again.cache_status());
        assert_eq!(again.body(), first.body());
    }
    assert!(!world.get("/tea?size=3&colour=red").await.cache_status().starts_with("Souk; hit"));
    // An unsafe method is about the same target, and invalidates it.
    let posted = world.send("POST", "/tea?size=2&utm_x=1&colour=red", &[]).await;
    assert_eq!(posted.body(), "POST /shop/tea?colour=red&size=2");
    assert!(!world.get("/tea?colour=red&size=2&gclid").await.cache_status().starts_with("Souk; hit"));
    assert_eq!(world.fetches.load(Ordering::SeqCst), 4);
    // A purge is for whoever would have asked for it so.
    for url in [
        "/tea?utm_source=ad&size=2&colour=red",
        &format!("https://{}/tea?size=2&gclid=9&colour=red", world.at),
    ] {
        assert!(world.get("/tea?colour=red&size=2").await.cache_status().starts_with("Souk; hit"), "{url}");
        world.proxy.purge(&Forget { urls: vec![url.to_owned()], ..Forget::default() }).await;
        let purged = world.get("/tea?colour=red&size=2").await;
        assert!(purged.cache_status().ends_with("detail=purged"), "{url}: {}", purged.cache_status());
    }
    // What it names as changed is taken back under the key that it has here.
    world.send("POST", "/reviews", &[]).await;
    assert!(!world.get("/tea?colour=red&size=2").await.cache_status().starts_with("Souk; hit"));
}
