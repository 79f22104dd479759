//! Names that change under a running proxy.

use std::io;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::upstream::client::Upstream;
use crate::upstream::resolve::Lookup;
use crate::upstream::telemetry::ProxyMetrics;

type Answers = Arc<parking_lot::Mutex<Result<Vec<SocketAddr>, &'static str>>>;

/// A name server that says what the test last told it.
fn names(answers: &Answers) -> Lookup {
    let answers = Arc::clone(answers);
    Arc::new(move |host, _| {
        assert_eq!(host, "shop.example");
        let answer = answers.lock().clone();
        Box::pin(async move { answer.map_err(io::Error::other) })
    })
}

fn upstream(answers: &Answers) -> Upstream {
    let mut config =
        ProxyConfig::new(([127, 0, 0, 1], 0).into(), "http://shop.example:81").expect("a config");
    config.upstream.resolve_every = Duration::from_millis(50);
    Upstream::with_lookup(&config.upstream, ProxyMetrics::default(), &names(answers)).expect("an upstream")
}

async fn ask(upstream: &Upstream) -> Result<String, String> {
    let asked = upstream.ask("/", Request::new(()), None, None, &AtomicU32::new(0)).await;
    let response = asked.map_err(|why| why.name().to_owned())?;
    let body = response.into_body().collect().await.map_err(|why| why.to_string())?.to_bytes();
    Ok(String::from_utf8_lossy(&body).trim().to_owned())
}

fn addresses(upstream: &Upstream) -> Vec<String> {
    let report = upstream.report();
    let addresses = report["servers"][0]["addresses"].as_array().expect("a list").iter();
    addresses.map(|address| address["address"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn addresses_become_servers_and_change_with_the_name() {
    let (a, b) = (Moody::start(Mood::Well).await, Moody::start(Mood::Well).await);
    let answers: Answers = Arc::new(parking_lot::Mutex::new(Ok(vec![a.at, b.at])));
    let upstream = upstream(&answers);
    // The first request waits for the first look-up.
    ask(&upstream).await.expect("an answer");
    assert_eq!(addresses(&upstream).len(), 2);
    for _ in 0..30 {
        ask(&upstream).await.expect("an answer");
    }
    assert!(a.asked() > 0 && b.asked() > 0, "{} and {}", a.asked(), b.asked());
    *answers.lock() = Ok(vec![b.at]);
    until("a is gone", || addresses(&upstream) == [b.at.to_string()]).await;
    let asked = a.asked();
    for _ in 0..10 {
        assert_eq!(ask(&upstream).await, Ok(b.at.to_string()));
    }
    assert_eq!(a.asked(), asked);
}

#[tokio::test]
async fn a_name_that_stops_resolving_keeps_its_addresses() {
    let a = Moody::start(Mood::Well).await;
    let answers: Answers = Arc::new(parking_lot::Mutex::new(Ok(vec![a.at])));
    let lookups = Arc::new(AtomicUsize::new(0));
    let mut config =
        ProxyConfig::new(([127, 0, 0, 1], 0).into(), "http://shop.example:81").expect("a config");
    config.upstream.resolve_every = Duration::from_millis(50);
    let counted = (Arc::clone(&lookups), names(&answers));
    let lookup: Lookup = Arc::new(move |host, port| {
        counted.0.fetch_add(1, Ordering::SeqCst);
        (counted.1)(host, port)
    });
    let upstream =
        Upstream::with_lookup(&config.upstream, ProxyMetrics::default(), &lookup).expect("an upstream");
    ask(&upstream).await.expect("an answer");
    for failure in [Err("the name server is away"), Ok(vec![])] {
        *answers.lock() = failure;
        let seen = lookups.load(Ordering::SeqCst);
        until("it was asked twice more", || lookups.load(Ordering::SeqCst) >= seen + 2).await;
        assert_eq!(ask(&upstream).await, Ok(a.at.to_string()));
    }
}

#[tokio::test]
async fn a_name_that_never_resolved_is_an_upstream_that_cannot_be_reached() {
    let a = Moody::start(Mood::Well).await;
    let answers: Answers = Arc::new(parking_lot::Mutex::new(Err("no such name")));
    let upstream = upstream(&answers);
    assert_eq!(ask(&upstream).await, Err("upstream_unreachable".to_owned()));
    *answers.lock() = Ok(vec![a.at]);
    until("it resolves", || !addresses(&upstream).is_empty()).await;
    assert_eq!(ask(&upstream).await, Ok(a.at.to_string()));
}

#[tokio::test]
async fn of_two_families_the_one_that_leads_somewhere_is_taken() {
    let a = Moody::start(Mood::Well).await;
    // Nobody listens on the IPv6 side, whether or not this machine has one.
    let six: SocketAddr = ([0, 0, 0, 0, 0, 0, 0, 1], a.at.port()).into();
    let answers: Answers = Arc::new(parking_lot::Mutex::new(Ok(vec![six, a.at])));
    let upstream = upstream(&answers);
    assert_eq!(ask(&upstream).await, Ok(a.at.to_string()));
    assert_eq!(addresses(&upstream), [a.at.to_string()]);
}
