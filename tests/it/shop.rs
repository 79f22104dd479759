//! A day at the sample shop, as `souk demo` raises it: what works, what is refused by name, what goes on when
//! parts of it are away. One demo serves all scenarios, in order.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use souk_tests::demo::{Demo, until};
use souk_tests::http::{Answer, Client};

const SKU: &str = souk_tests::demo::SAMPLE_SKUS[0];

#[tokio::test]
async fn a_day_at_the_shop() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("a_day_at_the_shop", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    wrong_requests_are_refused_by_name_and_lose_nothing(&demo).await.context("wrong requests")?;
    an_order_is_placed_once(&demo).await.context("order")?;
    a_quote_says_why_it_is_what_it_is(&demo).await.context("explained quote")?;
    a_cart_follows_its_shopper(&demo).await.context("another PoP")?;
    no_cart_is_ordered_that_may_lack_a_write(&demo).await.context("a write on its way")?;
    a_changed_price_is_quoted_everywhere(&demo).await.context("changed price")?;
    a_checkout_at_an_old_price_shows_the_new_one(&demo).await.context("old price")?;
    the_page_and_its_files_are_served(&demo).await.context("assets")?;
    a_region_that_is_away_stops_checkouts_only(&demo).await.context("region away")?;
    the_operator_s_door_is_shut(&demo).await.context("control API")?;
    demo.stop().await
}

async fn new_cart(shopper: &Client) -> Result<(String, Client)> {
    let answer = shopper.post("/api/carts", json!({"country": "GB"})).await?;
    ensure!(answer.status == 201, "{}: {}", answer.status, answer.text());
    let cart = answer.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    Ok((cart, with_cookies(shopper, &answer)))
}

/// What a browser would send from now on.
pub(crate) fn with_cookies(shopper: &Client, answer: &Answer) -> Client {
    let cookies: Vec<_> =
        answer.headers.get_all("set-cookie").iter().filter_map(|v| v.to_str().ok()).collect();
    let pairs: Vec<_> = cookies.iter().filter_map(|c| c.split(';').next()).collect();
    shopper.with("cookie", &pairs.join("; "))
}

async fn add(shopper: &Client, cart: &str, sku: &str, quantity: u64) -> Result<Answer> {
    let answer =
        shopper.post(&format!("/api/carts/{cart}/lines"), json!({"sku": sku, "quantity": quantity})).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer)
}

async fn quote(shopper: &Client, cart: &str) -> Result<Value> {
    let answer = shopper.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json())
}

async fn check_out(shopper: &Client, cart: &str, key: &str, total: &Value) -> Result<Answer> {
    let shopper = shopper.with("idempotency-key", key);
    shopper.post("/api/checkouts", json!({"cart": cart, "total": total})).await
}

async fn wrong_requests_are_refused_by_name_and_lose_nothing(demo: &Demo) -> Result<()> {
    let shopper = demo.shopper(0);
    let (cart, shopper) = new_cart(&shopper).await?;
    add(&shopper, &cart, SKU, 2).await?;
    let before = shopper.get(&format!("/api/carts/{cart}")).await?.json();

    let lines = format!("/api/carts/{cart}/lines");
    let line = format!("{lines}/{SKU}");
    let deep = "[".repeat(10_000);
    let long = format!(r#"{{"sku":"{SKU}","quantity":1,"x":"{}"}}"#, "x".repeat(100_000));
    #[rustfmt::skip]
    let table: &[(Method, &str, &str, u16, &str)] = &[
        (Method::POST,   &lines, r#"{"sku":"NO-SUCH-SKU","quantity":1}"#,                 422, "unknown_sku"),
        (Method::POST,   &lines, &format!(r#"{{"sku":"{SKU}","quantity":0}}"#),           422, "quantity_out_of_range"),
        (Method::POST,   &lines, &format!(r#"{{"sku":"{SKU}","quantity":1000000000}}"#),  422, "quantity_out_of_range"),
        (Method::POST,   &lines, &format!(r#"{{"sku":"{SKU}","quantity":-1}}"#),          422, "quantity_out_of_range"),
        (Method::POST,   &lines, &format!(r#"{{"sku":"{SKU}","quantity":1.5}}"#),         422, "quantity_out_of_range"),
        (Method::POST,   &lines, r#"{"sku":"a/b~c","quantity":1}"#,                       422, "unknown_sku"),
        (Method::POST,   &lines, "{",                                                     400, "bad_json"),
        (Method::POST,   &lines, "\u{0}\u{1}garbage",                                     400, "bad_json"),
        (Method::POST,   &lines, &deep,                                                   400, "bad_json"),
        (Method::POST,   &lines, "",                                                      400, "bad_json"),
        (Method::POST,   &lines, &long,                                                   413, "body_too_large"),
        (Method::POST,   &lines, &format!(r#"{{"sku":"{SKU}","quantity":1,"price":1}}"#), 400, "bad_json"),
        (Method::PATCH,  &line,  r#"{"quantity":1000000000}"#,                            422, "quantity_out_of_range"),
        (Method::DELETE, &format!("{lines}/NOT-THERE"), "",                               404, "unknown_line"),
        (Method::POST,   &lines, &format!(r#"["{SKU}",1]"#),                              400, "bad_json"),
        (Method::POST,   "/api/carts", r#"{"country":"Narnia"}"#,                         422, "bad_country"),
        (Method::POST,   "/api/carts", r#"["GB"]"#,                                       400, "bad_json"),
        (Method::GET,    "/api/carts/00000000000000000000000000000000", "",               404, "unknown_cart"),
        (Method::GET,    "/api/carts/zzz", "",                                            400, "bad_id"),
        (Method::GET,    "/api/products/NO-SUCH-SKU", "",                                 404, "unknown_product"),
        (Method::GET,    "/api/nothing/here", "",                                         404, "no_such_route"),
        (Method::DELETE, "/api/products", "",                                             405, "method_not_allowed"),
        (Method::POST,   "/api/checkouts", &format!(r#"{{"cart":"{cart}"}}"#),            400, "idempotency_key_missing"),
        (Method::GET,    "/api/orders/00000000000000000000000000000000", "",              404, "unknown_order"),
    ];
    let mut wrong = Vec::new();
    for (method, path, body, status, code) in table {
        let body =
            (!body.is_empty() || *method == Method::POST).then(|| Bytes::copy_from_slice(body.as_bytes()));
        let shown: String = body
            .iter()
            .flat_map(|b| String::from_utf8_lossy(b).chars().take(60).collect::<Vec<_>>())
            .collect();
        let answer = shopper
            .send(method.clone(), path, body)
            .await
            .with_context(|| format!("{method} {path} {shown}"))?;
        let seen = (answer.status.as_u16(), answer.code());
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        let named = seen == (*status, (*code).to_owned()) && detail.len() > 10;
        if !named || answer.header("content-type") != "application/problem+json" {
            wrong.push(format!("{method} {path} {shown}: {seen:?}, not {status} {code}: {}", answer.text()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let stranger = shopper.with("host", "someone-elses.example").get("/api/products").await?;
    ensure!(
        (stranger.status.as_u16(), stranger.code().as_str()) == (421, "unknown_host"),
        "{}",
        stranger.text()
    );
    let forged =
        shopper.with("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.").get("/api/products").await?;
    ensure!(forged.status == 401 && !forged.text().contains("eyJ"), "{}: {}", forged.status, forged.text());

    let after = shopper.get(&format!("/api/carts/{cart}")).await?.json();
    ensure!(before == after, "the cart changed: {before} became {after}");
    Ok(())
}

async fn an_order_is_placed_once(demo: &Demo) -> Result<()> {
    let (cart, shopper) = new_cart(&demo.shopper(0)).await?;
    add(&shopper, &cart, SKU, 1).await?;
    let quote = quote(&shopper, &cart).await?;
    let first = check_out(&shopper, &cart, "a-key-of-mine", &quote["total"]).await?;
    ensure!(first.status == 201, "{}: {}", first.status, first.text());
    let again = check_out(&shopper, &cart, "a-key-of-mine", &quote["total"]).await?;
    ensure!(
        again.status.is_success() && again.json()["id"] == first.json()["id"],
        "the order was placed twice: {}",
        again.text()
    );
    let (other, shopper_2) = new_cart(&demo.shopper(0)).await?;
    add(&shopper_2, &other, SKU, 1).await?;
    let reused = check_out(&shopper_2, &other, "a-key-of-mine", &quote["total"]).await?;
    ensure!(
        (reused.status.as_u16(), reused.code().as_str()) == (422, "idempotency_key_reused"),
        "{}",
        reused.text()
    );
    let sealed =
        shopper.post(&format!("/api/carts/{cart}/lines"), json!({"sku": SKU, "quantity": 1})).await?;
    ensure!((sealed.status.as_u16(), sealed.code().as_str()) == (409, "cart_sealed"), "{}", sealed.text());
    let order = first.json()["id"].as_str().context("an order has an id")?.to_owned();
    for node in 0..2 {
        let seen = demo.shopper(node).get(&format!("/api/orders/{order}")).await?;
        ensure!(
            seen.status == 200 && seen.json()["quote"]["total"] == quote["total"],
            "node {node}: {}",
            seen.text()
        );
    }
    Ok(())
}

/// From the base price to the total by what each release said, and by the header how long each took.
async fn a_quote_says_why_it_is_what_it_is(demo: &Demo) -> Result<()> {
    let (cart, shopper) = new_cart(&demo.shopper(0)).await?;
    add(&shopper, &cart, SKU, 12).await?;
    let path = format!("/api/carts/{cart}/quote");
    let plain = quote(&shopper, &cart).await?;
    let answer = shopper.with("x-souk-timing", "1").get(&format!("{path}?explain=1")).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let explained = answer.json();
    ensure!(plain.get("explain").is_none() && plain["total"] == explained["total"], "{plain} {explained}");

    let explain = &explained["explain"];
    let steps = explain["steps"].as_array().context("steps are a list")?;
    let mut total = explain["base"].as_i64().context("a base price")?;
    for step in steps {
        ensure!(step["before"] == total, "{step} does not begin at {total}");
        let said = step["said"].as_array().context("what it said is a list")?;
        total += said.iter().filter_map(|said| said["amount"].as_i64()).sum::<i64>();
        ensure!(step["after"] == total, "{step} does not end at {total}");
        let (plugin, release) = (step["plugin"].as_str().unwrap_or_default(), &step["release"]);
        let entry = format!("pricing.{plugin};desc=\"release {release}, ok\";dur=");
        ensure!(answer.header("server-timing").contains(&entry), "{}", answer.header("server-timing"));
        for secret in ["component", "detail", "allowance_us", "host_calls"] {
            ensure!(step.get(secret).is_none(), "a shopper sees {secret}: {step}");
        }
        merchant_reads_the_rest(demo, step["call"].as_str().context("a call has a name")?).await?;
    }
    ensure!(explain.get("guard").is_none(), "a shopper sees the guard: {explain}");
    ensure!(!steps.is_empty() && explained["total"] == total, "{explained}");
    let wrong = shopper.get(&format!("{path}?explain=yes")).await?;
    ensure!(wrong.code() == "bad_query", "{}", wrong.text());
    Ok(())
}

/// What the explanation keeps from the shopper is in the merchant's journal, under the name of the call.
async fn merchant_reads_the_rest(demo: &Demo, call: &str) -> Result<()> {
    let token = demo.merchant_environment().into_iter().find(|(name, _)| *name == "SOUK_TOKEN");
    let (_, token) = token.context("the demo gives a token")?;
    let merchant = Client::new(demo.control()).with("authorization", &format!("Bearer {token}"));
    let path = demo.site(&format!("/logs?call={call}&limit=100"));
    until("the account of an explained call in the journal", async || {
        let page = merchant.get(&path).await?.text();
        let told = page.contains("explain: ") && page.contains("guard {");
        Ok(if told { Ok(()) } else { Err(page) })
    })
    .await
}

async fn a_cart_follows_its_shopper(demo: &Demo) -> Result<()> {
    let (cart, here) = new_cart(&demo.shopper(0)).await?;
    let answer = add(&here, &cart, SKU, 3).await?;
    let there = with_cookies(&demo.shopper(1), &answer);
    let answer = add(&there, &cart, SKU, 2).await.context("the other PoP reads what the first one wrote")?;
    ensure!(answer.json()["lines"][0]["quantity"] == 5, "{}", answer.text());
    let back = with_cookies(&demo.shopper(0), &answer);
    let seen = back.get(&format!("/api/carts/{cart}")).await?;
    ensure!(
        seen.json()["lines"][0]["quantity"] == 5,
        "the first PoP does not read the second one's write: {}",
        seen.text()
    );
    Ok(())
}

/// A cookie that names a write of the other PoP that has not reached the region: as long as it lasts, the copy here may
/// be shown and changed, but not ordered.
async fn no_cart_is_ordered_that_may_lack_a_write(demo: &Demo) -> Result<()> {
    let other = demo.shopper(1).post("/api/carts", json!({"country": "GB"})).await?;
    let seen = other.headers.get_all("set-cookie").iter().filter_map(|v| v.to_str().ok());
    let place = seen.filter_map(|c| c.strip_prefix("souk_seen=")?.split(['_', ';']).next()).next();
    let (node_and_epoch, seq) = place.and_then(|p| p.rsplit_once('.')).context("a place in a cookie")?;
    let ahead = format!("{node_and_epoch}.{}", seq.parse::<u64>()? + 1_000_000);

    let (cart, shopper) = new_cart(&demo.shopper(0)).await?;
    add(&shopper, &cart, SKU, 1).await?;
    let waiting = shopper.with("cookie", &format!("souk_seen={ahead}"));
    let quoted = waiting.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(quoted.status == 200 && quoted.header("x-souk-stale") == "cart", "{}", quoted.text());
    let kept = quoted.headers.get_all("set-cookie").iter().filter_map(|v| v.to_str().ok());
    ensure!(kept.into_iter().any(|c| c.contains(&ahead)), "the shopper's cookie has forgotten the write");
    let total = &quoted.json()["total"];
    let refused = check_out(&waiting, &cart, "too-early", total).await?;
    ensure!(refused.status == 503 && refused.code() == "region_busy", "{}", refused.text());
    ensure!(!refused.header("retry-after").is_empty(), "no Retry-After");
    let placed = check_out(&shopper, &cart, "too-early", total).await?;
    ensure!(placed.status == 201, "{}", placed.text());
    Ok(())
}

async fn unit_price(demo: &Demo, node: usize, sku: &str) -> Result<i64> {
    let (cart, shopper) = new_cart(&demo.shopper(node)).await?;
    add(&shopper, &cart, sku, 1).await?;
    quote(&shopper, &cart).await?["lines"][0]["unit_price"].as_i64().context("a line has a unit price")
}

async fn set_price(demo: &Demo, sku: &str, price: i64) -> Result<()> {
    let answer = demo.operator().put(&demo.site(&format!("/prices/{sku}")), json!({"price": price})).await?;
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    Ok(())
}

async fn a_changed_price_is_quoted_everywhere(demo: &Demo) -> Result<()> {
    let old = unit_price(demo, 0, SKU).await?;
    let began = Instant::now();
    set_price(demo, SKU, old + 111).await?;
    for node in 0..2 {
        until("the new price", || async move {
            let seen = unit_price(demo, node, SKU).await?;
            Ok(if seen == old + 111 { Ok(()) } else { Err(format!("{seen} at node {node}")) })
        })
        .await?;
    }
    say(&format!("a changed price was quoted by both nodes after {:.0?}", began.elapsed()));
    set_price(demo, SKU, old).await
}

async fn a_checkout_at_an_old_price_shows_the_new_one(demo: &Demo) -> Result<()> {
    let sku = souk_tests::demo::SAMPLE_SKUS[1];
    let old = unit_price(demo, 0, sku).await?;
    let (cart, shopper) = new_cart(&demo.shopper(0)).await?;
    add(&shopper, &cart, sku, 1).await?;
    let quoted = quote(&shopper, &cart).await?;
    set_price(demo, sku, old + 200).await?;
    let answer = check_out(&shopper, &cart, "old-price", &quoted["total"]).await?;
    ensure!((answer.status.as_u16(), answer.code().as_str()) == (409, "price_changed"), "{}", answer.text());
    let new = answer.json()["quote"].clone();
    ensure!(new["lines"][0]["unit_price"] == old + 200, "the problem carries the new quote: {new}");
    let placed = check_out(&shopper, &cart, "new-price", &new["total"]).await?;
    ensure!(placed.status == 201, "{}: {}", placed.status, placed.text());
    set_price(demo, sku, old).await
}

async fn the_page_and_its_files_are_served(demo: &Demo) -> Result<()> {
    let shopper = demo.shopper(1);
    let page = shopper.get("/").await?;
    ensure!(page.status == 200 && page.header("content-type").starts_with("text/html"), "{}", page.status);
    ensure!(page.header("content-security-policy").contains("default-src"), "the page has no CSP");
    let etag = page.header("etag").to_owned();
    ensure!(etag.starts_with('"'), "{etag}: not a strong validator");
    let again = shopper.with("if-none-match", &etag).get("/").await?;
    ensure!(again.status == 304 && again.body.is_empty(), "{}", again.status);
    let missing = shopper.get("/no-such-file.css").await?;
    ensure!(missing.status == 404, "{}", missing.status);
    Ok(())
}

async fn a_region_that_is_away_stops_checkouts_only(demo: &Demo) -> Result<()> {
    let (cart, shopper) = new_cart(&demo.shopper(0)).await?;
    add(&shopper, &cart, SKU, 1).await?;
    // The other node has a copy of this one, and does not hear of its second line.
    let (roaming, at_home) = new_cart(&demo.shopper(0)).await?;
    let first = add(&at_home, &roaming, SKU, 1).await?;
    let copied = with_cookies(&demo.shopper(1), &first).get(&format!("/api/carts/{roaming}")).await?;
    ensure!(copied.json()["lines"][0]["quantity"] == 1, "{}", copied.text());
    let region = Stopped::new(demo.region_pid()?)?;
    let second = souk_tests::demo::SAMPLE_SKUS[1];
    let abroad = with_cookies(&demo.shopper(1), &add(&at_home, &roaming, second, 1).await?);
    let refused = until("the node to notice that its region is away", || async {
        let quote = quote(&shopper, &cart).await.context("a quote while the region is away")?;
        let answer = check_out(&shopper, &cart, "while-away", &quote["total"]).await?;
        Ok(if answer.status == 503 {
            Ok(answer)
        } else {
            Err(format!("{}: {}", answer.status, answer.text()))
        })
    })
    .await?;
    ensure!(["region_unreachable", "region_slow"].contains(&refused.code().as_str()), "{}", refused.text());
    ensure!(!refused.header("retry-after").is_empty(), "no Retry-After");
    // The region may have the order: a line that is answered for now could be in neither the order nor a cart.
    let lines = format!("/api/carts/{cart}/lines");
    let doubtful = shopper.post(&lines, json!({"sku": SKU, "quantity": 2})).await?;
    ensure!(doubtful.status == 503 && doubtful.code() == "region_unreachable", "{}", doubtful.text());
    // Nor is a line that its shopper has seen, though the copy here lacks it.
    let unheard = abroad.send(Method::DELETE, &format!("/api/carts/{roaming}/lines/{second}"), None).await?;
    ensure!(unheard.status == 503 && !unheard.header("retry-after").is_empty(), "{}", unheard.text());
    ensure!(["cart_elsewhere", "region_busy"].contains(&unheard.code().as_str()), "{}", unheard.text());
    // A cart of another node is not denied by one that cannot ask: its shopper would throw it away.
    let elsewhere = shopper.get("/api/carts/00000000000000000000000000000001").await?;
    ensure!(elsewhere.status == 503 && elsewhere.code() == "cart_elsewhere", "{}", elsewhere.text());
    ensure!(!elsewhere.header("retry-after").is_empty(), "no Retry-After");
    let (second, second_shopper) =
        new_cart(&demo.shopper(0)).await.context("a second cart while the region is away")?;
    for (more, sum) in [(1, 1), (2, 3)] {
        let answer = add(&second_shopper, &second, SKU, more).await.context("add a line")?;
        ensure!(answer.json()["lines"][0]["quantity"] == sum, "{}", answer.text());
    }
    let (fresh, fresh_shopper) =
        new_cart(&demo.shopper(1)).await.context("a new cart while the region is away")?;
    add(&fresh_shopper, &fresh, SKU, 1).await?;
    ensure!(shopper.get("/api/products?limit=5").await?.status == 200, "the catalogue is gone");
    drop(region);
    for (shopper, cart, key) in [(&shopper, &cart, "while-away"), (&second_shopper, &second, "when-back")] {
        let total = quote(shopper, cart).await?["total"].clone();
        until("the checkout after the region is back", || async {
            let answer = check_out(shopper, cart, key, &total).await?;
            let placed = answer.status == 201;
            Ok(if placed { Ok(()) } else { Err(format!("{}: {}", answer.status, answer.text())) })
        })
        .await?;
    }
    Ok(())
}

async fn the_operator_s_door_is_shut(demo: &Demo) -> Result<()> {
    for token in ["", "Bearer ", "Bearer wrong", "Basic b3BlcmF0b3I6"] {
        let stranger = Client::new(demo.control()).with("authorization", token);
        let answer = stranger.put(&demo.site(&format!("/prices/{SKU}")), json!({"price": 1})).await?;
        ensure!(answer.status == 401, "{token:?}: {}", answer.status);
    }
    let operator = demo.operator();
    for (path, body, status) in [
        (demo.site("/prices/NO-SUCH-SKU"), json!({"price": 1}), 404),
        (demo.site(&format!("/prices/{SKU}")), json!({"price": -1}), 422),
        (demo.site(&format!("/prices/{SKU}")), json!({"price": "12.40"}), 422),
        ("/v1/sites/nobody/prices/X".to_owned(), json!({"price": 1}), 404),
    ] {
        let answer = operator.put(&path, body).await?;
        ensure!(answer.status.as_u16() == status, "{path}: {} {}", answer.status, answer.text());
    }
    Ok(())
}

/// A process that does not answer until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        ensure!(
            Command::new("kill").args(["-STOP", &pid.to_string()]).status()?.success(),
            "cannot stop {pid}"
        );
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a figure for the reader of the test's output; nothing depends on it"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
