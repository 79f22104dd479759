//! The control API over real sockets: a region as `souk region` raises it.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails by panicking, like the test")]

mod common;
mod fake_provider;
mod merchants;
mod payments;

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use common::{Region, TOKEN};

/// For what comes in a moment, on a busy machine.
const COMES_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test]
async fn only_the_token_opens_the_api_and_health_needs_none() {
    let region = Region::new().await;
    for head in [
        "GET /v1/status HTTP/1.1".to_owned(),
        "GET /v1/status HTTP/1.1\r\nauthorization: Bearer wrong".to_owned(),
        format!("GET /v1/status HTTP/1.1\r\nauthorization: Basic {TOKEN}"),
        "GET /v1/nowhere HTTP/1.1".to_owned(),
    ] {
        let (status, body) = region.send(&head, b"").await;
        assert_eq!(status, 401, "{head}");
        assert!(body.contains("token_refused") && body.contains("remedy"), "{body}");
    }
    assert_eq!(region.get("/v1/status").await.0, 200);
    assert_eq!(region.send("GET /healthz HTTP/1.1", b"").await, (200, "ok\n".to_owned()));
    assert_eq!(region.send("GET /readyz HTTP/1.1", b"").await, (200, "ready\n".to_owned()));
    let (status, page) = region.send("GET /metrics HTTP/1.1", b"").await;
    assert_eq!(status, 200);
    for name in ["souk_region_store_commits", "souk_region_control_requests_total", "souk_region_log_version"]
    {
        assert!(page.contains(name), "{name} is missing: {page}");
    }
    assert_eq!(region.get("/v1/nowhere").await.0, 404);
    assert_eq!(region.ask("DELETE", "/v1/status", b"").await.0, 405);
}

/// In a rolling restart whoever waited at a door that opens no more would not go to another process.
#[tokio::test]
async fn a_region_that_goes_down_answers_its_last_behind_a_shut_door() {
    let mut region = Region::new().await;
    let addr = region.addr();
    let mut slow = TcpStream::connect(addr).await.unwrap();
    let body = json!({ "site": "shop", "currency": "GBP" }).to_string();
    let head = format!(
        "PUT /v1/sites/shop HTTP/1.1\r\nhost: region\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let asked_for = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut said = vec![0; asked_for.len()];
    slow.read_exact(&mut said).await.unwrap();
    assert_eq!(said, asked_for, "the request is under way");
    let stopping = tokio::spawn(async move { region.stop().await });
    // Whoever comes in the very moment is cut off.
    let shut = async {
        while !TcpStream::connect(addr).await.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(COMES_WITHIN, shut).await.expect("its door is shut");
    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"created\":true"), "{answer}");
    stopping.await.unwrap();
}

#[tokio::test]
async fn two_regions_over_one_postgres_answer_as_one() {
    let Some(server) = common::server::Server::shared() else { return };
    let (folder, database) = server.database();
    let seal = souk_commerce::seal::SealKey::generate(&[7; 32]).to_pem();
    let extra = format!(
        "seal_key = \"seal.key\"\n[store]\nengine = \"postgres\"\nurl = \"postgres://souk@{}/{database}\"\n\
         [vault]\nkey_file = \"vault.key\"\n",
        folder.replace('/', "%2F")
    );
    let vault = format!("souk-vault-1 {}\n", "5a".repeat(32));
    let files = [("seal.key", seal.as_str()), ("vault.key", vault.as_str())];
    let mut one = Region::with(&files, extra.clone()).await;
    let two = Region::with(&files, extra).await;
    one.make_site().await;
    let products = json!({ "products": [{ "sku": "MUG", "title": "Mug", "price": 1000, "stock": 5 }] });
    assert_eq!(two.json("POST", "/v1/sites/shop/products", products).await.0, 200);
    let put = one.put("/v1/sites/shop/prices/MUG", json!({ "price": 900 })).await;
    assert_eq!((put.0, &put.1["version"]), (200, &json!(2)), "{put:?}");
    one.stop().await;
    assert_eq!(two.get("/v1/sites/shop/products/MUG").await.1["price"]["price"], 900);
    assert_eq!(two.put("/v1/sites/shop/stock/MUG", json!({ "available": 0 })).await.0, 200);
    one.start().await;
    assert_eq!(one.get("/v1/sites/shop/products/MUG").await.1["stock"]["hint"], "out");
    assert_eq!(one.get("/v1/audit/chain").await.1, json!({ "whole": true, "row": 4 }));
}

#[tokio::test]
async fn a_shop_is_filled_changed_and_found_again_after_a_restart() {
    let mut region = Region::new().await;
    region.make_site().await;
    let products = json!({ "products": [
        { "sku": "MUG", "title": "Mug", "price": 1000, "stock": 5 },
        { "sku": "PEN", "title": "Pen", "price": 200, "stock": null, "tags": ["desk"] },
        { "sku": "BAD~", "title": "Bad", "price": 1 },
        { "sku": "NEG", "title": "Negative", "price": -1 },
        { "sku": "MUG", "title": "Again", "price": 1 },
        { "sku": "ODD", "title": "Odd", "prize": 1 },
        "garbage",
    ]});
    let (status, answer) = region.json("POST", "/v1/sites/shop/products", products.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["created"], &answer["unchanged"]), (&json!(2), &json!(0)));
    let refused: Vec<_> =
        answer["refused"].as_array().unwrap().iter().map(|row| row["index"].as_u64().unwrap()).collect();
    assert_eq!(refused, [2, 3, 4, 5, 6], "{answer}");
    assert!(answer["refused"][3]["reason"].as_str().unwrap().contains("prize"), "{answer}");
    let (_, answer) = region.json("POST", "/v1/sites/shop/products", products).await;
    assert_eq!(
        (&answer["created"], &answer["updated"], &answer["unchanged"]),
        (&json!(0), &json!(0), &json!(2))
    );

    let (status, answer) =
        region.put("/v1/sites/shop/prices/MUG", json!({ "price": 900, "floor": 500 })).await;
    assert_eq!((status, &answer["version"], &answer["changed"]), (200, &json!(3), &json!(true)), "{answer}");
    assert_eq!(region.put("/v1/sites/shop/stock/MUG", json!({ "available": 0 })).await.0, 200);

    region.stop().await;
    region.start().await;
    let (status, answer) = region.get("/v1/sites/shop/products/MUG").await;
    assert_eq!(status, 200);
    assert_eq!(answer["price"], json!({ "price": 900, "compare_at": null, "floor": 500 }));
    assert_eq!(answer["stock"], json!({ "counted": true, "available": 0, "hint": "out" }));
    let (_, status) = region.get("/v1/status").await;
    assert_eq!((&status["logs"]["price"], &status["counts"]["products"]), (&json!(3), &json!(2)), "{status}");
    let (_, audit) = region.get("/v1/audit").await;
    let actions: Vec<_> =
        audit.as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["site.put", "products.import", "price.put", "stock.put"]);
    assert!(
        !audit.to_string().contains(TOKEN) && audit[0]["actor"].as_str().unwrap().starts_with("operator:")
    );
    assert_eq!(region.get("/v1/audit/chain").await.1, json!({ "whole": true, "row": 4 }));
    region.stop().await;
}

#[tokio::test]
async fn an_import_that_does_not_speak_of_floors_leaves_them_and_null_takes_them_away() {
    let mut region = Region::new().await;
    region.make_site().await;
    let import = async |row: Value| {
        let (status, answer) =
            region.json("POST", "/v1/sites/shop/products", json!({ "products": [row] })).await;
        assert_eq!(status, 200, "{answer}");
        let price = region.get("/v1/sites/shop/products/MUG").await.1["price"].clone();
        (answer["refused"].clone(), price)
    };
    let mug = |price: u64| json!({ "sku": "MUG", "title": "Mug", "price": price });
    let with = |mut row: Value, field: &str, value: Value| {
        row[field] = value;
        row
    };
    let full = with(with(mug(1000), "compare_at", json!(1500)), "floor", json!(800));
    assert_eq!(import(full).await.1, json!({ "price": 1000, "compare_at": 1500, "floor": 800 }));
    assert_eq!(import(mug(900)).await.1, json!({ "price": 900, "compare_at": 1500, "floor": 800 }));

    // The floor that stays has the last word, and nothing of the row is taken.
    let (refused, price) = import(with(mug(700), "title", json!("Cheap mug"))).await;
    assert_eq!((&refused[0]["index"], &refused[0]["sku"]), (&json!(0), &json!("MUG")));
    assert!(
        refused[0]["reason"].as_str().unwrap().contains("the floor 8.00 GBP is above the price 7.00 GBP"),
        "{refused}"
    );
    assert_eq!(price["price"], 900);
    assert_eq!(region.get("/v1/sites/shop/products/MUG").await.1["title"], "Mug");

    let (refused, price) = import(with(mug(700), "floor", json!(null))).await;
    assert_eq!((refused, price), (json!([]), json!({ "price": 700, "compare_at": 1500, "floor": null })));
    let (_, price) = import(with(mug(700), "compare_at", json!(null))).await;
    assert_eq!(price, json!({ "price": 700, "compare_at": null, "floor": null }));
    region.stop().await;
}

#[tokio::test]
async fn blobs_assets_and_releases_are_checked_before_nodes_hear_of_them() {
    let region = Region::new().await;
    region.make_site().await;
    let page = b"<h1>Shop</h1>";
    let digest = hex::encode(Sha256::digest(page));
    let manifest = |digest: &str, bytes: usize| json!({ "assets": [{ "path": "/index.html", "digest": digest, "bytes": bytes, "content_type": "text/html" }] });
    let (status, answer) = region.put("/v1/sites/shop/assets", manifest(&digest, page.len())).await;
    assert_eq!((status, &answer["field"]), (422, &json!("assets[0].digest")), "{answer}");
    assert!(answer["remedy"].as_str().unwrap().contains("/v1/blobs/"), "{answer}");

    let path = format!("/v1/blobs/{digest}");
    assert_eq!(region.ask("HEAD", &path, b"").await.0, 404);
    assert_eq!(region.ask("PUT", &path, b"<h1>Other</h1>").await.0, 422);
    assert_eq!(region.ask("PUT", &path, page).await.0, 201);
    assert_eq!(region.ask("PUT", &path, page).await.0, 200);
    assert_eq!(region.ask("HEAD", &path, b"").await.0, 200);

    assert_eq!(region.put("/v1/sites/shop/assets", manifest(&digest, 1)).await.0, 422);
    let (_, answer) = region.put("/v1/sites/shop/assets", manifest(&digest, page.len())).await;
    assert_eq!(answer, json!({ "created": 1, "updated": 0, "removed": 0, "unchanged": 0 }));
    let (_, answer) = region.put("/v1/sites/shop/assets", json!({ "assets": [] })).await;
    assert_eq!(answer["removed"], 1);

    // The page is a blob, but no component.
    let chain = json!({ "releases": [{ "plugin": "pricing", "component": digest }] });
    let (status, answer) = region.put("/v1/sites/shop/releases", chain).await;
    assert_eq!((status, &answer["field"]), (422, &json!("releases[0].component")), "{answer}");
    let (_, set) = region.get("/v1/sites/shop/releases").await;
    assert_eq!((&set["version"], &set["releases"]), (&json!(1), &json!([])), "what it began with: {set}");
}

#[tokio::test]
async fn an_upload_mends_what_the_disk_has_damaged_and_what_was_cut_off() {
    let region = Region::new().await;
    let page = b"<h1>Shop</h1>";
    let digest = hex::encode(Sha256::digest(page));
    let path = format!("/v1/blobs/{digest}");
    let (folder, name) = digest.split_at(2);
    let folder = region.dir.path().join("data/blobs").join(folder);
    // As after a request that was cut off between the rename and the row.
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), page).unwrap();
    let rows = async || -> Vec<Value> { serde_json::from_value(region.get("/v1/audit").await.1).unwrap() };
    for _ in 0..2 {
        assert_eq!(region.ask("PUT", &path, page).await.0, 200);
        assert_eq!(rows().await.len(), 1, "one row, however often");
    }
    std::fs::write(folder.join(name), b"<h1>Shoq</h1>").unwrap();
    assert_eq!(region.ask("HEAD", &path, b"").await.0, 404);
    assert_eq!(region.ask("PUT", &path, page).await.0, 201);
    assert_eq!(std::fs::read(folder.join(name)).unwrap(), page);
    assert_eq!(rows().await[1]["detail"]["replaced"], "damaged");
}

#[tokio::test]
async fn a_stock_that_was_put_before_is_not_put_back_over_what_was_sold() {
    let region = Region::new().await;
    region.make_site().await;
    let products = json!({ "products": [{ "sku": "MUG", "title": "Mug", "price": 1000, "stock": 5 }] });
    assert_eq!(region.json("POST", "/v1/sites/shop/products", products).await.0, 200);
    let put = async |body: Value| region.put("/v1/sites/shop/stock/MUG", body).await;
    let delivery = json!({ "available": 15, "expected": 5 });
    assert_eq!(put(delivery.clone()).await.0, 200);
    // The answer got lost, one was sold, and the request comes again.
    assert_eq!(put(json!({ "available": 14 })).await.0, 200);
    let (status, problem) = put(delivery).await;
    assert_eq!((status, &problem["code"]), (409, &json!("stock_moved")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("14"), "{problem}");
    assert_eq!(region.get("/v1/sites/shop/products/MUG").await.1["stock"]["available"], 14);
    assert_eq!(put(json!({ "available": null, "expected": 14 })).await.0, 200);
    assert_eq!(put(json!({ "available": 3, "expected": 14 })).await.0, 409);
    assert_eq!(put(json!({ "available": 3, "expected": null })).await.0, 200);
}

#[tokio::test]
async fn a_restored_region_begins_another_history_once() {
    let mut region = Region::new().await;
    let mark = region.dir.path().join("data/restored");
    let database = region.dir.path().join("data/region.db");
    let epoch = || -> u32 {
        let conn = rusqlite::Connection::open(&database).unwrap();
        conn.query_row("SELECT value FROM meta WHERE key = 'region_epoch'", [], |row| row.get(0)).unwrap()
    };
    region.make_site().await;
    let other = json!({ "site": "other", "currency": "GBP" });
    assert_eq!(region.put("/v1/sites/other", other).await.0, 200);
    let set = async |region: &Region, site: &str| {
        let set = region.get(&format!("/v1/sites/{site}/releases")).await.1;
        (set["version"].as_u64().unwrap(), set["number"].as_u64().unwrap())
    };
    let (first, before) = (epoch(), set(&region, "shop").await);
    region.stop().await;
    region.start().await;
    assert_eq!((epoch(), set(&region, "shop").await), (first, before), "a restart is no restore");
    region.stop().await;
    // The backup is of a version that gave no set to a site without plugins.
    let conn = rusqlite::Connection::open(&database).unwrap();
    assert_eq!(conn.execute("DELETE FROM release_set WHERE site = 'other'", []).unwrap(), 1);
    drop(conn);
    std::fs::write(&mark, "").unwrap();
    region.start().await;
    assert_ne!(epoch(), first);
    assert!(!mark.exists());
    let after = set(&region, "shop").await;
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?}, then {after:?}");
    assert!(set(&region, "other").await.1 > 0, "it may have had plugins in the lost region");
    region.stop().await;
}

#[tokio::test]
async fn a_deploy_of_bytes_that_the_region_has_lost_is_refused_and_taken_when_they_are_back() {
    let mut region = Region::new().await;
    region.make_site().await;
    region.stop().await;
    // The database of today and a folder of blobs from a backup.
    let component = b"brought yesterday";
    let digest = hex::encode(Sha256::digest(component));
    let conn = rusqlite::Connection::open(region.dir.path().join("data/region.db")).unwrap();
    let capabilities = json!({
        "imports": {}, "exports": [], "hooks": ["pricing"], "memory_bytes_min": 0, "bytes": 17
    })
    .to_string();
    let sql = "INSERT INTO push (site, plugin, component, capabilities, bytes, pushed_ms, seq)
               VALUES ('shop', 'tea', ?1, ?2, 17, unixepoch() * 1000, 1)";
    conn.execute(sql, rusqlite::params![Sha256::digest(component).as_slice(), capabilities]).unwrap();
    drop(conn);
    region.start().await;
    let deploy = async |wish: Value| region.json("POST", "/v1/sites/shop/plugins/tea/deploy", wish).await;
    let before = region.get("/v1/sites/shop/releases").await.1;
    let (status, answer) = deploy(json!({})).await;
    assert_eq!((status, &answer["field"]), (422, &json!("component")), "{answer}");
    assert!(answer["remedy"].as_str().unwrap().contains("Push it again"), "{answer}");
    assert_eq!(region.get("/v1/sites/shop/releases").await.1, before, "no node hears of it");

    assert_eq!(region.ask("PUT", &format!("/v1/blobs/{digest}"), component).await.0, 201);
    let (status, answer) = deploy(json!({})).await;
    assert_eq!((status, &answer["after"]), (200, &json!(1)), "{answer}");
    let (folder, name) = digest.split_at(2);
    std::fs::remove_file(region.dir.path().join("data/blobs").join(folder).join(name)).unwrap();
    assert_eq!(deploy(json!({ "number": 1 })).await.0, 422);
    let back = region.json("POST", "/v1/sites/shop/plugins/tea/rollback", json!({})).await;
    assert_eq!(back.0, 200, "a step back is never kept up: {}", back.1);
    region.stop().await;
}

#[tokio::test]
async fn every_refusal_names_the_field_and_the_way_out() {
    let region = Region::new().await;
    region.make_site().await;
    let many = json!({ "products": vec![json!({ "sku": "A", "title": "A" }); 1_001] });
    for (method, path, body, status, word) in [
        ("PUT", "/v1/sites/Shop", json!({ "site": "shop", "currency": "GBP" }).to_string(), 422, "a-z"),
        ("PUT", "/v1/sites/other", json!({ "site": "shop", "currency": "GBP" }).to_string(), 422, "path"),
        (
            "PUT",
            "/v1/sites/shop",
            json!({ "site": "shop", "currency": "pound" }).to_string(),
            422,
            "currency",
        ),
        (
            "PUT",
            "/v1/sites/shop",
            json!({ "site": "shop", "currency": "EUR" }).to_string(),
            409,
            "currency_fixed",
        ),
        (
            "PUT",
            "/v1/sites/new",
            json!({ "site": "new", "currency": "XXZ" }).to_string(),
            422,
            "none of ISO 4217",
        ),
        (
            "PUT",
            "/v1/sites/shop",
            json!({ "site": "shop", "currency": "GBP", "limits": { "cart_lines": 1 } }).to_string(),
            422,
            "\"field\":\"limits.cart_lines\"",
        ),
        ("PUT", "/v1/sites/shop", "{".to_owned(), 400, "malformed_json"),
        (
            "POST",
            "/v1/sites/nobody/products",
            json!({ "products": [] }).to_string(),
            404,
            "PUT /v1/sites/nobody",
        ),
        ("POST", "/v1/sites/shop/products", many.to_string(), 422, "several requests"),
        ("PUT", "/v1/sites/shop/prices/NIL", json!({ "price": 1 }).to_string(), 404, "Import it"),
        ("PUT", "/v1/sites/shop/prices/NIL", json!({ "price": "1" }).to_string(), 422, "price"),
        (
            "PUT",
            "/v1/sites/shop/prices/NIL",
            json!({ "price": 1, "floor": 2 }).to_string(),
            422,
            "the floor 0.02 GBP is above the price 0.01 GBP",
        ),
        ("PUT", "/v1/sites/shop/stock/NIL", json!({}).to_string(), 422, "available"),
        ("PUT", "/v1/blobs/xyz", String::new(), 422, "64 hexadecimal"),
        ("GET", "/v1/sites/shop/carts/zz", String::new(), 422, "32 lower-case"),
        ("GET", "/v1/sites/shop/carts?limit=x", String::new(), 422, "query"),
        ("GET", "/v1/orders/00000000000000000000000000000000", String::new(), 404, "not_found"),
    ] {
        let (found, answer) = region.ask(method, path, body.as_bytes()).await;
        assert_eq!(found, status, "{method} {path} {body:.100}: {answer}");
        let problem: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(problem["status"], status, "{answer}");
        assert!(problem["type"].as_str().unwrap().starts_with("urn:souk:problem:"), "{answer}");
        assert!(answer.contains(word), "{method} {path}: {answer} does not say {word:?}");
    }
    let huge = vec![b' '; 17 << 20];
    let (status, answer) = region.ask("PUT", "/v1/sites/shop", &huge).await;
    assert_eq!(status, 413, "{answer}");
}

#[tokio::test]
async fn a_purge_is_one_entry_of_the_log_and_one_row_of_the_audit() {
    let mut region = Region::new().await;
    region.make_site().await;
    assert_eq!(region.put("/v1/sites/other", json!({ "site": "other", "currency": "GBP" })).await.0, 200);
    let purge = async |body: Value| region.json("POST", "/v1/sites/shop/purges", body).await;
    for (body, field, word) in [
        (json!({}), "body", "names nothing"),
        (json!({ "tags": ["red", "a,b"] }), "tags[1]", "comma"),
        (json!({ "urls": ["tea"] }), "urls[0]", "/tea?size=2"),
        (json!({ "tags": vec!["red"; 257] }), "body", "256"),
        (json!({ "tag": ["red"] }), "tag", "tags"),
    ] {
        let (status, answer) = purge(body.clone()).await;
        assert_eq!(status, 422, "{body}: {answer}");
        assert!(answer.to_string().contains(word), "{answer}");
        assert!(field == "tag" || answer["field"] == field, "{answer}");
    }
    let forget = json!({ "tags": ["red"], "prefixes": ["/blog"], "soft": true });
    assert_eq!(purge(forget.clone()).await, (200, json!({ "site": "shop", "version": 1 })));
    assert_eq!(purge(json!({ "everything": true })).await.1["version"], 2);
    let (status, told) = region.get("/v1/sites/shop/purges/1").await;
    let expected = json!({ "site": "shop", "version": 1, "forget": forget, "done": true, "nodes": [] });
    assert_eq!((status, told), (200, expected));
    for path in ["/v1/sites/other/purges/1", "/v1/sites/shop/purges/3"] {
        assert_eq!(region.get(path).await.0, 404, "{path}");
    }
    assert_eq!(region.get("/v1/sites/shop/purges/x").await.0, 422);
    assert_eq!(region.json("POST", "/v1/sites/nowhere/purges", json!({ "everything": true })).await.0, 404);
    assert_eq!(region.get("/v1/status").await.1["logs"]["purge"], 2);
    let (_, audit) = region.get("/v1/audit").await;
    let rows: Vec<_> = audit.as_array().unwrap().iter().filter(|row| row["action"] == "purge").collect();
    assert_eq!(rows.len(), 2, "{audit}");
    assert_eq!(rows[0]["detail"], json!({ "version": 1, "forget": forget }));
    region.stop().await;
}
