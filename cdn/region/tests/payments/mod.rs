//! Orders and their money over real sockets: a region as `souk region` raises it, and a provider that is as real.

use std::time::Duration;

use minicbor::to_vec;
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{CartId, OrderId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::quote::Quote;

use crate::common::Region;
use crate::fake_provider::{FakeProvider, KEY, Trouble, WEBHOOK_SECRET, now_s, sign};

/// Looks at what is written within a few commits.
const LOOKS_MAX: usize = 400;
const LOOK_EVERY: Duration = Duration::from_millis(25);

async fn paid_shop(provider: &FakeProvider) -> Region {
    let extra = format!(
        "[[payments]]\nsite = \"shop\"\nprovider = \"stripe\"\napi = \"{}\"\nsecret_key_file = \"shop.key\"\n\
         webhook_secret_file = \"shop.webhook\"\n",
        provider.api()
    );
    let region = Region::with(&[("shop.key", KEY), ("shop.webhook", WEBHOOK_SECRET)], extra).await;
    region.make_site().await;
    let products = json!({ "products": [{ "sku": "MUG", "title": "Mug", "price": 1000, "stock": 5 }] });
    assert_eq!(region.json("POST", "/v1/sites/shop/products", products).await.0, 200);
    region
}

/// An order of two mugs.
fn order(number: u8) -> Order {
    let mug: Sku = "MUG".parse().unwrap();
    let product: Product = serde_json::from_value(json!({ "sku": "MUG", "title": "Mug" })).unwrap();
    let listed = Listed {
        product: product.into(),
        price: PriceRow::of(Minor(1_000)),
        price_version: 1,
        stock: StockHint::Unknown,
    };
    Order {
        id: OrderId([number; 16]),
        site: "shop".parse().unwrap(),
        cart: CartId([number; 16]),
        state: OrderState::Placed,
        quote: Quote::base("GBP".parse().unwrap(), None, vec![(LineKey::of(mug), 2, listed)]).unwrap(),
        notes: vec![],
        placed_ms: now_s() * 1_000,
        country: None,
        customer: None,
    }
}

fn database(region: &Region) -> Connection {
    Connection::open(region.dir.path().join("data/region.db")).unwrap()
}

/// What the transaction of a reservation writes, as a region leaves it that is killed right after.
fn reserve(conn: &Connection, order: &Order) {
    let (cart, body) = (order.cart.0, to_vec(order).unwrap());
    let sql = "INSERT INTO cart (site, cart, state, digest, order_id, updated_ms) VALUES ('shop', ?1, x'00', zeroblob(32), ?2, 0)";
    conn.execute(sql, params![cart, order.id.0]).unwrap();
    conn.execute("UPDATE stock SET available = available - 2, sold = sold + 2 WHERE sku = 'MUG'", [])
        .unwrap();
    let sql = "INSERT INTO checkout (order_id, site, cart, idempotency_key, request_hash, amount, currency, body, method,
                      by_whom, money, goods, placed, capture, cancel, look, due_ms, created_ms, changed_ms)
               VALUES (?1, 'shop', ?2, hex(?1), zeroblob(32), ?3, 'GBP', ?4, 'pm_card_visa',
                       'provider', 'unasked', 'held', 0, 1, 0, 0, 0, ?5, ?5)";
    let amount = order.quote.total.0;
    conn.execute(sql, params![order.id.0, cart, amount, body, order.placed_ms as i64]).unwrap();
}

async fn until(region: &Region, order: OrderId, state: &str) -> Value {
    let path = format!("/v1/sites/shop/orders/{order}");
    let mut last = Value::Null;
    for _ in 0..LOOKS_MAX {
        last = region.get(&path).await.1;
        if last["state"] == state && last["payment"]["is_waiting"] == false {
            return last;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    panic!("the order does not come to be {state}: {last}");
}

async fn stock(region: &Region) -> u64 {
    region.get("/v1/sites/shop/products/MUG").await.1["stock"]["available"].as_u64().unwrap()
}

async fn kinds(region: &Region) -> Vec<String> {
    let events = region.get("/v1/sites/shop/events").await.1;
    events.as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_region_that_was_killed_half_way_takes_its_checkouts_up_and_charges_once() {
    // Each first request is carried out, and its answer lost.
    let manners = |_: &str, nth| if nth == 1 { Trouble::LostAfter } else { Trouble::Nothing };
    let provider = FakeProvider::start(std::sync::Arc::new(manners)).await;
    let mut region = paid_shop(&provider).await;
    region.stop().await;
    let order = order(1);
    reserve(&database(&region), &order);
    region.start().await;
    let captured = until(&region, order.id, "captured").await;
    assert_eq!(captured["payment"]["reference"], "pi_1");
    assert_eq!(
        provider.books(|books| (books.intents.len(), books.intents[0].captures, books.misused)),
        (1, 1, 0)
    );
    assert_eq!(stock(&region).await, 3);
    assert_eq!(kinds(&region).await, ["order.placed", "order.captured"]);

    let refund = format!("/v1/sites/shop/orders/{}/refund", order.id);
    assert_eq!(region.json("POST", &refund, json!({})).await.0, 202);
    let refunded = until(&region, order.id, "refunded").await;
    assert_eq!(refunded["payment"]["calls"].as_array().unwrap().len(), 3, "{refunded}");
    assert_eq!(region.json("POST", &refund, json!({})).await.0, 200, "wanted twice, done once");
    assert_eq!((stock(&region).await, provider.books(|books| books.intents[0].refunds)), (5, 1));

    let (status, report) = region.json("POST", "/v1/sites/shop/payments/reconcile", json!({})).await;
    assert_eq!((status, &report["agreed"], &report["differing"]), (200, &json!(1), &json!(0)), "{report}");
    assert_eq!(region.get("/v1/sites/shop/payments/report").await.1["agreed"], 1);
    let (_, page) = region.ask("GET", "/metrics", b"").await;
    assert!(page.contains(r#"souk_region_payment_calls_total{op="refund",outcome="done"} 1"#), "{page}");
    let audit = region.get("/v1/audit").await.1.to_string();
    assert!(audit.contains("order.refund") && !audit.contains(KEY) && !audit.contains("pm_card"), "{audit}");
    let row =
        database(&region)
            .query_row("SELECT method IS NULL AND body IS NULL FROM checkout", [], |row| row.get(0));
    assert_eq!(row, Ok(true), "what nobody needs any more is struck out");
    region.stop().await;
}

#[tokio::test]
async fn a_providers_messages_need_its_signature_and_no_token() {
    let provider = FakeProvider::honest().await;
    let mut region = paid_shop(&provider).await;
    region.stop().await;
    let order = order(2);
    reserve(&database(&region), &order);
    region.start().await;
    until(&region, order.id, "captured").await;
    provider.by_hand(&order.id.to_string(), |intent| intent.refunded = true);
    let messages = provider.messages();
    assert!(messages.len() >= 6, "each comes twice");
    let post = async |path: &str, signature: &str, body: &[u8]| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nstripe-signature: {signature}\r\ncontent-type: application/json"
        );
        region.send(&head, body).await
    };
    for (signature, body) in &messages {
        assert_eq!(post("/webhooks/payments/shop", signature, body).await.0, 200);
    }
    until(&region, order.id, "refunded").await;
    assert_eq!(stock(&region).await, 5);
    let events = kinds(&region).await;
    assert_eq!(events, ["order.placed", "order.captured", "order.refunded"], "each once");

    let (signature, body) = sign("{}", "whsec_forged", now_s());
    let (status, answer) = post("/webhooks/payments/shop", &signature, &body).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("message_refused") && !answer.contains(WEBHOOK_SECRET), "{answer}");
    let huge = vec![b' '; (256 << 10) + 1];
    assert_eq!(post("/webhooks/payments/shop", &signature, &huge).await.0, 413);
    let nobody = post("/webhooks/payments/nobody", &signature, &body).await;
    assert_eq!((nobody.0, nobody), (404, post("/webhooks/payments/Bad%20Name", &signature, &body).await));
    assert_eq!(kinds(&region).await, events);
    region.stop().await;
}

#[tokio::test]
async fn an_invoice_lives_by_the_merchants_word() {
    let mut region = Region::new().await;
    region.make_site().await;
    let products = json!({ "products": [{ "sku": "MUG", "title": "Mug", "price": 1000, "stock": 5 }] });
    assert_eq!(region.json("POST", "/v1/sites/shop/products", products).await.0, 200);
    region.stop().await;
    // An order of a version that knew no payments.
    let order = order(3);
    let sql = "INSERT INTO orders (id, site, cart, idempotency_key, request_hash, state, currency, total, body, placed_ms)
               VALUES (?1, 'shop', ?1, 'key', zeroblob(32), 'placed', 'GBP', 2000, ?2, 5)";
    database(&region).execute(sql, params![order.id.0, to_vec(&order).unwrap()]).unwrap();
    region.start().await;
    let wish = async |what: &str| {
        region.json("POST", &format!("/v1/sites/shop/orders/{}/{what}", order.id), json!({})).await
    };
    let (status, refused) = wish("refund").await;
    assert_eq!((status, &refused["code"]), (409, &json!("order_not_ready")), "{refused}");
    assert!(refused["remedy"].as_str().unwrap().contains("cancel it"), "{refused}");
    for (what, state) in [("capture", "captured"), ("fulfil", "fulfilled"), ("refund", "refunded")] {
        let (status, answer) = wish(what).await;
        assert_eq!((status, &answer["state"]), (200, &json!(state)), "{answer}");
    }
    assert_eq!(wish("eat").await.0, 404);
    assert_eq!(stock(&region).await, 5, "the goods are gone");
    assert_eq!(region.get(&format!("/v1/orders/{}", order.id)).await.1["state"], "refunded");
    assert_eq!(region.get("/v1/sites/shop/orders").await.1[0]["state"], "refunded");
    let mut sales = Value::Null;
    for _ in 0..LOOKS_MAX {
        sales = region.get("/v1/sites/shop/sales").await.1;
        if sales[0]["refunded"] == 2_000 {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    assert_eq!((&sales[0]["captured"], &sales[0]["refunded"]), (&json!(2_000), &json!(2_000)), "{sales}");
    let (status, answer) = region.json("POST", "/v1/sites/shop/payments/reconcile", json!({})).await;
    assert_eq!(status, 404, "{answer}");
    assert!(answer["remedy"].as_str().unwrap().contains("[[payments]]"), "{answer}");
    assert_eq!(region.get("/v1/audit/chain").await.1["whole"], true);
    region.stop().await;
}
