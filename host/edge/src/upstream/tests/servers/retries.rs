//! What is sent a second time, and what is not.

use super::*;

#[tokio::test]
async fn a_get_that_a_server_breaks_goes_elsewhere_and_a_post_does_not() {
    let (a, b) = (Moody::start(Mood::Breaks).await, Moody::start(Mood::Well).await);
    let world = before(&[a.url(), b.url()], |_| {}).await;
    for n in 0..4 {
        assert_eq!(world.get(&format!("/{n}")).await.status, StatusCode::OK);
    }
    let broken = Moody::start(Mood::Breaks).await;
    let alone = before(&[broken.url(), nobody().await], |config| config.upstream.retries_max = 5).await;
    let mut at_it = 0;
    for n in 0..10 {
        let before = broken.asked();
        let seen = alone.send("POST", &format!("/{n}"), &[]).await;
        assert_eq!(seen.status, StatusCode::BAD_GATEWAY);
        let now = broken.asked() - before;
        assert!(now <= 1, "a POST that a server may have seen is never sent again");
        at_it += now;
    }
    assert!(at_it > 0, "some of them met the broken server");
}

#[tokio::test]
async fn a_post_with_its_body_goes_elsewhere_when_there_is_no_connection() {
    let a = Moody::start(Mood::Well).await;
    let world = before(&[nobody().await, a.url()], |_| {}).await;
    for n in 0..12 {
        let form = format!("form {n}");
        let request = world.request("POST", "/", &[]).map(|_| Full::from(form.clone()));
        let answer = world.client.request(request).await.expect("a response");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(String::from_utf8_lossy(&body), format!("{} {form}", a.at), "whole, and once");
    }
    assert_eq!(a.asked(), 12);
    assert!(metric(&world, "souk_proxy_retries_total{reason=\"no_connection\"}") > 0);
}

#[tokio::test]
async fn a_503_is_answered_by_another_and_its_retry_after_is_respected() {
    let (a, b) = (Moody::start(Mood::Unavailable).await, Moody::start(Mood::Well).await);
    let world = before(&[a.url(), b.url()], |_| {}).await;
    for n in 0..10 {
        assert_eq!(world.get(&format!("/{n}")).await.status, StatusCode::OK);
    }
    // The other one is not there: whoever meets that gets no second try at the one that asked to be left alone.
    let busy = Moody::start(Mood::Unavailable).await;
    let world = before(&[busy.url(), nobody().await], |_| {}).await;
    world.get("/first").await;
    assert_eq!(busy.asked(), 1, "first or second, it was asked");
    for n in 0..3 {
        assert_eq!(world.get(&format!("/{n}")).await.status, StatusCode::BAD_GATEWAY);
    }
    // A single server's 503 is the answer, as it is.
    let alone = before(&[Moody::start(Mood::Unavailable).await.url()], |_| {}).await;
    let seen = alone.get("/").await;
    assert_eq!(
        (seen.status.as_u16(), seen.body(), &seen.headers["retry-after"]),
        (503, "later", &"3600".parse().expect("text"))
    );
}

#[tokio::test]
async fn when_everything_fails_the_budget_bounds_the_load() {
    let world = before(&[nobody().await, nobody().await], |config| config.upstream.retries_max = 5).await;
    let began = std::time::Instant::now();
    for n in 0..300 {
        assert_eq!(world.get(&format!("/{n}")).await.status, StatusCode::BAD_GATEWAY);
    }
    let retries = metric(&world, "souk_proxy_retries_total{reason=\"no_connection\"}");
    // Ten seconds' income at the start, a fifth of the requests, and three a second.
    let allowed = 30 + 300 / 5 + 3 * (began.elapsed().as_secs() + 1);
    assert!(retries > 0 && retries <= allowed, "{retries} of {allowed}");
    assert!(metric(&world, "souk_proxy_retries_denied_total{reason=\"budget\"}") > 0);
}

#[tokio::test]
async fn retries_are_as_many_as_the_settings_say() {
    let servers = [nobody().await, nobody().await, nobody().await, nobody().await];
    for retries in [0, 1, 3] {
        let world = before(&servers, |config| config.upstream.retries_max = retries).await;
        let seen = world.get("/").await;
        assert!(seen.body().contains("upstream_unreachable"), "{}", seen.body());
        assert_eq!(metric(&world, "souk_proxy_retries_total{reason=\"no_connection\"}"), u64::from(retries));
    }
}

#[tokio::test]
async fn who_waited_for_the_whole_time_out_does_not_wait_again() {
    let (a, b) = (Moody::start(Mood::Hangs).await, Moody::start(Mood::Hangs).await);
    let world = before(&[a.url(), b.url()], |config| {
        config.upstream.first_byte_timeout = Duration::from_millis(200);
    })
    .await;
    let seen = world.get("/").await;
    assert_eq!(seen.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(a.asked() + b.asked(), 1);
}

#[tokio::test]
async fn a_hedge_answers_where_the_first_server_hangs() {
    let (a, b) = (Moody::start(Mood::Hangs).await, Moody::start(Mood::Well).await);
    let world = before(&[a.url(), b.url()], |config| {
        config.upstream.hedge_after = Some("50 ms".parse().expect("a time"));
    })
    .await;
    // Whoever is drawn first: nobody waits for the one that hangs.
    let mut hedged = 0;
    for n in 0..20 {
        let seen = world.get(&format!("/{n}")).await;
        assert_eq!((seen.status, seen.body()), (StatusCode::OK, format!("{} ", b.at).as_str()));
        hedged += usize::from(seen.cache_status().ends_with("souk-tries=2"));
    }
    let won = metric(&world, "souk_proxy_hedges_total{outcome=\"won\"}");
    assert!(won >= 1 && won as usize <= hedged, "{hedged} hedged, {won} won");
    until("what lost is given up", || in_flight(&world.proxy) == 0).await;
}

#[tokio::test]
async fn a_post_is_never_hedged() {
    let (a, b) = (Moody::start(Mood::Hangs).await, Moody::start(Mood::Hangs).await);
    let world = before(&[a.url(), b.url()], |config| {
        config.upstream.hedge_after = Some("20 ms".parse().expect("a time"));
        config.upstream.first_byte_timeout = Duration::from_millis(300);
    })
    .await;
    assert_eq!(world.send("POST", "/form", &[]).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(a.asked() + b.asked(), 1);
    assert_eq!(world.get("/page").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(a.asked() + b.asked(), 3, "a GET is");
}

#[tokio::test]
async fn idle_connections_that_a_server_closed_cost_nobody_an_answer() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        // Each connection answers once, says that it stays open, and closes.
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncache-control: no-store\r\n\r\nok";
                    drop(stream.write_all(answer).await);
                }
            });
        }
    });
    let world = before(&[format!("http://{at}")], |_| {}).await;
    for n in 0..30 {
        assert_eq!(world.get(&format!("/{n}")).await.body(), "ok");
    }
}
