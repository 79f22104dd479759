//! Who may do what over the control API, by real requests: every resource, every verb, one's own site and another's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use souk_commerce::token::Token;

use crate::common::{Region, TOKEN};

const VERBS: [&str; 8] = ["read", "push", "deploy", "logs", "purge", "orders", "shoppers", "admin"];
const DIGEST: &str = "00000000000000000000000000000000000000000000000000000000000000aa";

/// Every resource, and the verb that opens it; none: only the operator's.
fn resources(site: &str) -> Vec<(&'static str, String, Option<&'static str>)> {
    let of = |rest: &str| format!("/v1/sites/{site}{rest}");
    vec![
        ("GET", "/v1/status".to_owned(), None),
        ("GET", "/v1/sites".to_owned(), None),
        ("PUT", of(""), Some("admin")),
        ("GET", of(""), Some("read")),
        ("POST", of("/products"), Some("admin")),
        ("GET", of("/products/MUG"), Some("read")),
        ("GET", of("/search?q=mug"), Some("read")),
        ("PUT", of("/prices/MUG"), Some("admin")),
        ("PUT", of("/stock/MUG"), Some("admin")),
        ("PUT", of("/assets"), None),
        ("GET", of("/assets"), Some("read")),
        ("PUT", of("/releases"), None),
        ("GET", of("/releases"), Some("read")),
        ("GET", of("/rollout"), Some("read")),
        ("GET", of("/plugins"), Some("read")),
        ("GET", of("/plugins/p"), Some("read")),
        ("DELETE", of("/plugins/p"), Some("deploy")),
        ("PUT", of(&format!("/plugins/p/components/{DIGEST}")), Some("push")),
        ("GET", of(&format!("/plugins/p/components/{DIGEST}")), Some("read")),
        ("GET", of(&format!("/plugins/p/components/{DIGEST}/nodes")), Some("push")),
        ("POST", of("/plugins/p/deploy"), Some("deploy")),
        ("POST", of("/plugins/p/rollback"), Some("deploy")),
        ("POST", of("/purges"), Some("purge")),
        ("GET", of("/purges/1"), Some("purge")),
        ("POST", of("/shoppers/export"), Some("shoppers")),
        ("POST", of("/shoppers/erase"), Some("shoppers")),
        ("GET", of("/erasures"), Some("shoppers")),
        ("GET", of("/erasures/1"), Some("shoppers")),
        ("GET", of("/tokens"), None),
        ("PUT", of("/tokens/0123456789abcdef"), None),
        ("DELETE", of("/tokens/0123456789abcdef"), None),
        ("GET", of("/logs"), Some("logs")),
        ("GET", of("/calls"), Some("logs")),
        ("GET", of("/calls/00000000000000000000000000"), Some("logs")),
        ("GET", of("/carts"), Some("read")),
        ("GET", of("/carts/00000000000000000000000000000000"), Some("read")),
        ("GET", of("/orders"), Some("read")),
        ("GET", of("/orders/00000000000000000000000000000000"), Some("read")),
        ("POST", of("/orders/00000000000000000000000000000000/capture"), Some("orders")),
        ("POST", of("/orders/00000000000000000000000000000000/refund"), Some("orders")),
        ("GET", of("/payments/report"), Some("read")),
        ("POST", of("/payments/reconcile"), Some("orders")),
        ("GET", of("/events"), Some("read")),
        ("GET", of("/sales"), Some("read")),
        ("GET", "/v1/orders/00000000000000000000000000000000".to_owned(), None),
        ("GET", "/v1/audit".to_owned(), None),
        ("GET", "/v1/audit/chain".to_owned(), None),
        ("PUT", format!("/v1/blobs/{DIGEST}"), None),
        ("HEAD", format!("/v1/blobs/{DIGEST}"), None),
    ]
}

fn in_days(days: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + Duration::from_secs(days * 86_400);
    u64::try_from(now.as_millis()).unwrap()
}

async fn token(region: &Region, site: &str, seed: u8, verbs: &[&str]) -> Token {
    let token = Token::mint(&[seed; souk_commerce::token::RANDOM_BYTES]);
    let told = json!({
        "sha256": hex::encode(token.sha256()), "name": "test", "verbs": verbs, "expires_ms": in_days(1),
    });
    let (status, answer) = region.put(&format!("/v1/sites/{site}/tokens/{}", token.id()), told).await;
    assert_eq!(status, 200, "{answer}");
    assert!(!answer.to_string().contains("sha256"), "{answer}");
    token
}

async fn make_sites(region: &Region) {
    for site in ["own", "other"] {
        let settings = json!({ "site": site, "currency": "GBP" });
        assert_eq!(region.put(&format!("/v1/sites/{site}"), settings).await.0, 200);
    }
}

#[tokio::test]
async fn the_whole_matrix_of_bearers_and_resources() {
    let mut region = Region::new().await;
    make_sites(&region).await;
    for (seed, held) in (1..).zip(VERBS) {
        let token = token(&region, "own", seed, &[held]).await;
        for (method, path, verb) in resources("own") {
            let (status, body) = region.ask_as(token.secret(), method, &path, b"{}").await;
            let allowed = verb.is_some_and(|verb| verb == held || held == "admin");
            assert_eq!(status != 403, allowed, "{held}: {method} {path}: {status} {body}");
            assert_ne!(status, 401, "{held}: {method} {path}");
            assert!(status < 500, "{held}: {method} {path}: {status} {body}");
        }
        // Another's site, and one that does not exist, are the same to the bearer, whatever is asked.
        let pairs = resources("other").into_iter().zip(resources("nowhere"));
        for ((method, other, _), (_, nowhere, _)) in pairs.filter(|((_, path, _), _)| path.contains("/other"))
        {
            let one = region.ask_as(token.secret(), method, &other, b"{}").await;
            let two = region.ask_as(token.secret(), method, &nowhere, b"{}").await;
            assert_eq!(one.0, 404, "{held}: {method} {other}: {}", one.1);
            assert_eq!(one, two, "{held}: {method} {other}");
        }
    }
    for (method, path, _) in resources("own") {
        let (status, body) = region.ask(method, &path, b"{}").await;
        assert!(!matches!(status, 401 | 403) && status < 500, "operator: {method} {path}: {status} {body}");
    }
    region.stop().await;
}

#[tokio::test]
async fn a_token_ends_when_it_is_revoked_and_two_may_live_at_once() {
    let mut region = Region::new().await;
    make_sites(&region).await;
    let (old, new) =
        (token(&region, "own", 1, &["read"]).await, token(&region, "own", 2, &["read", "deploy"]).await);
    let look = async |region: &Region, token: &str| {
        let (status, body) = region.ask_as(token, "GET", "/v1/sites/own", b"").await;
        (status, serde_json::from_str::<Value>(&body).unwrap()["code"].as_str().map(str::to_owned))
    };
    assert_eq!(look(&region, old.secret()).await.0, 200);
    assert_eq!(look(&region, new.secret()).await.0, 200);
    let path = format!("/v1/sites/own/tokens/{}", old.id());
    // From another site's side there is no such token.
    let elsewhere = format!("/v1/sites/other/tokens/{}", old.id());
    assert_eq!(region.ask("DELETE", &elsewhere, b"").await.0, 404);
    assert_eq!(region.ask("DELETE", &path, b"").await.0, 200);
    assert_eq!(region.ask("DELETE", &path, b"").await.0, 200, "twice does not matter");
    let refused = Some("token_refused".to_owned());
    assert_eq!(look(&region, old.secret()).await, (401, refused.clone()));
    region.stop().await;
    region.start().await;
    assert_eq!(look(&region, old.secret()).await, (401, refused), "after a restart too");
    assert_eq!(look(&region, new.secret()).await.0, 200);
    let damaged = new.secret().replacen('2', "3", 1);
    assert_eq!(look(&region, &damaged).await, (401, Some("token_damaged".to_owned())));
    let (_, listed) = region.get("/v1/sites/own/tokens").await;
    let rows = listed["tokens"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().any(|row| row["id"] == old.id() && !row["revoked_ms"].is_null()), "{listed}");
    assert!(rows.iter().all(|row| !row["last_used_ms"].is_null()), "{listed}");
    let (_, audit) = region.get("/v1/audit").await;
    assert!(!audit.to_string().contains(new.secret()) && !audit.to_string().contains(TOKEN), "{audit}");
    assert_eq!(region.get("/v1/audit/chain").await.1["whole"], true);
    region.stop().await;
}

#[tokio::test]
async fn a_token_that_could_not_be_good_is_not_made() {
    let mut region = Region::new().await;
    make_sites(&region).await;
    let good = json!({ "sha256": DIGEST, "name": "x", "verbs": ["read"], "expires_ms": in_days(1) });
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    for (field, body) in [
        ("sha256", with("sha256", json!("souk_secret"))),
        ("verbs", with("verbs", json!([]))),
        ("expires_ms", with("expires_ms", json!(1))),
        ("expires_ms", with("expires_ms", json!(in_days(400)))),
        ("name", with("name", json!("x".repeat(81)))),
    ] {
        let (status, answer) = region.put("/v1/sites/own/tokens/0123456789abcdef", body).await;
        assert_eq!((status, answer["field"].as_str()), (422, Some(field)), "{answer}");
        assert!(!answer.to_string().contains("souk_secret"), "what may be a token is not echoed: {answer}");
    }
    assert_eq!(region.put("/v1/sites/own/tokens/XYZ", good.clone()).await.0, 422);
    assert_eq!(region.put("/v1/sites/nowhere/tokens/0123456789abcdef", good.clone()).await.0, 404);
    assert_eq!(region.put("/v1/sites/own/tokens/0123456789abcdef", good.clone()).await.0, 200);
    assert_eq!(region.put("/v1/sites/own/tokens/0123456789abcdef", good.clone()).await.0, 200, "repeated");
    let (status, answer) = region.put("/v1/sites/other/tokens/0123456789abcdef", good).await;
    assert_eq!((status, answer["code"].as_str()), (409, Some("id_taken")));
    region.stop().await;
}

#[tokio::test]
async fn whoever_is_wrong_too_often_waits_and_locks_nobody_else_out() {
    let mut region = Region::new().await;
    make_sites(&region).await;
    let merchant = token(&region, "own", 1, &["read"]).await;
    let mut statuses = Vec::new();
    for _ in 0..14 {
        statuses.push(region.ask_as("wrong", "GET", "/v1/sites/own", b"").await.0);
    }
    assert_eq!(statuses[..10], [401; 10], "{statuses:?}");
    assert!(statuses[10..].contains(&429), "{statuses:?}");
    assert_eq!(region.ask_as(merchant.secret(), "GET", "/v1/sites/own", b"").await.0, 200);
    assert_eq!(region.get("/v1/status").await.0, 200);
    let (_, page) = region.send("GET /metrics HTTP/1.1", b"").await;
    assert!(page.contains("souk_region_control_auth_failures_total{outcome=\"refused\"} 14"), "{page}");
    region.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_component_is_said_at_once_and_nothing_of_it_is_kept() {
    let mut region = Region::new().await;
    make_sites(&region).await;
    let merchant = token(&region, "own", 1, &["push", "deploy", "read"]).await;
    let component = b"\0asm\x0d\0\x01\0";
    let digest = souk_commerce::id::Digest::of(component);
    let path = format!("/v1/sites/own/plugins/p/components/{digest}");
    let (status, body) = region.ask_as(merchant.secret(), "PUT", &path, component).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 422, "{answer}");
    assert!(!answer["complaints"].as_array().unwrap().is_empty(), "{answer}");
    assert_eq!(region.ask("HEAD", &format!("/v1/blobs/{digest}"), b"").await.0, 404, "nothing is kept");
    let other = format!("/v1/sites/own/plugins/p/components/{DIGEST}");
    let (status, body) = region.ask_as(merchant.secret(), "PUT", &other, component).await;
    assert!(status == 422 && body.contains(&digest.to_string()), "{status} {body}");
    // To know the digest of a component that the region has is not to have it.
    let asset = format!("/v1/blobs/{digest}");
    assert_eq!(region.ask("PUT", &asset, component).await.0, 201);
    let deploy = json!({ "component": digest }).to_string();
    let deployed =
        region.ask_as(merchant.secret(), "POST", "/v1/sites/own/plugins/p/deploy", deploy.as_bytes()).await;
    assert!(deployed.0 == 422 && deployed.1.contains("was not pushed"), "{deployed:?}");
    region.stop().await;
}

#[tokio::test]
async fn only_the_operator_gives_a_site_another_weight() {
    let mut region = Region::new().await;
    let settings = |weight: Option<u32>| json!({ "site": "own", "currency": "GBP", "cpu_weight": weight });
    for (weight, status) in [(None, 200), (Some(0), 422), (Some(101), 422), (Some(100), 200), (Some(5), 200)]
    {
        let (answered, body) = region.put("/v1/sites/own", settings(weight)).await;
        assert_eq!(answered, status, "{weight:?}: {body}");
    }
    let merchant = token(&region, "own", 1, &["admin"]).await;
    for (weight, status) in [(Some(6), 403), (Some(1), 403), (Some(5), 200), (None, 200)] {
        let body = settings(weight).to_string();
        let (answered, body) =
            region.ask_as(merchant.secret(), "PUT", "/v1/sites/own", body.as_bytes()).await;
        assert_eq!(answered, status, "{weight:?}: {body}");
    }
    let (_, kept) = region.get("/v1/sites/own").await;
    assert_eq!(kept["cpu_weight"], 5, "a merchant who leaves it out keeps it: {kept}");
    region.stop().await;
}

#[tokio::test]
async fn a_merchant_takes_no_host_name_and_learns_of_no_other_site() {
    let mut region = Region::new().await;
    let settings = |site: &str, hosts: &[&str], name: &str| json!({ "site": site, "currency": "GBP", "hosts": hosts, "name": name });
    for (site, host) in [("own", "own.example"), ("secretive", "taken.example")] {
        assert_eq!(region.put(&format!("/v1/sites/{site}"), settings(site, &[host], "")).await.0, 200);
    }
    let merchant = token(&region, "own", 1, &["admin"]).await;
    let put = async |hosts: &[&str], name: &str| {
        let body = settings("own", hosts, name).to_string();
        region.ask_as(merchant.secret(), "PUT", "/v1/sites/own", body.as_bytes()).await
    };
    assert_eq!(put(&["own.example"], "New name").await.0, 200, "the shop itself is the merchant's");
    for hosts in [&["own.example", "taken.example"][..], &["own.example", "free.example"]] {
        let (status, body) = put(hosts, "New name").await;
        assert_eq!(status, 403, "{body}");
        assert!(!body.contains("secretive"), "{body}");
    }
    assert_eq!(put(&[], "New name").await.0, 200, "a name may be given up");
    let taken = region.put("/v1/sites/own", settings("own", &["taken.example"], "")).await;
    assert!(taken.0 == 409 && taken.1.to_string().contains("secretive"), "the operator is told: {taken:?}");
    region.stop().await;
}
