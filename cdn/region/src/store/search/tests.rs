//! The same products match, in the same order, whichever engine is asked, at the region and at a node.

use std::ops::ControlFlow;

use souk_commerce::product::PriceRow;
use souk_commerce::site::SiteSettings;
use souk_search::{Change, Index};

use super::*;
use crate::store::audit::Actor;
use crate::store::goods::GoodsRow;
use crate::store::site::By;
use crate::store::tests::home::{Home, on_every_engine};

on_every_engine! {
    every_engine_and_a_node_find_the_same,
    what_has_changed_is_found_as_it_is_and_of_its_own_site_only,
    an_import_is_taken_in_by_steps_and_says_so_until_then,
    products_of_one_rank_are_all_found_page_by_page,
}

fn actor() -> Actor {
    Actor { name: "operator:test".to_owned(), peer: "127.0.0.1:1".to_owned() }
}

fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

fn product(sku: &str, title: &str, tags: &[&str], description: &str) -> Product {
    Product {
        sku: sku.parse().unwrap(),
        title: title.to_owned(),
        description: description.to_owned(),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        attributes: vec![("Colour".to_owned(), "Bleu nuit".to_owned())],
        image: None,
    }
}

fn shop() -> Vec<Product> {
    vec![
        product("MUG-1", "Mug", &["kitchen"], "Holds tea."),
        product("MUG-2", "Very tall red mug", &["kitchen", "new in"], "Crème inside."),
        product("85123A", "T-Light \"Heart\" holder", &["Größe XL"], "O'Brien & Søn: 50% off, a:b* | !c"),
        product("85123B", "T light heart", &[], ""),
        product("TEA-101", "Crème brûlée tea", &["mug tree"], "For a mug, or two."),
        product("JP-1", "急須セット", &["赤い"], "お茶のための急須です。"),
        product("AR-1", "كِتاب أحمد", &[], "شاي"),
        product("TH-1", "ถ้วยชา", &[], ""),
        product("C++", "C++ not or and near", &["{title}"], "NOT OR AND NEAR"),
        product("NULL", "'; DROP TABLE search_goods; --", &[], "\u{0}nul"),
    ]
}

const TYPED: &[&str] = &[
    "mug",
    "MUG",
    "mu",
    "m",
    "red mug",
    "mug red",
    "mug kitchen tea",
    "creme",
    "crème",
    "CREME BRULEE",
    "grosse",
    "Größe",
    "son",
    "søn",
    "o'brien",
    "50%",
    "85123a",
    "85123",
    "t-light",
    "tlight",
    "tea101",
    "tea-101",
    "tea 10",
    "colour",
    "bleu",
    "nuit bleu",
    "\"heart\"",
    "\"heart",
    "heart*",
    "heart AND holder",
    "heart NOT holder",
    "NOT",
    "c++",
    "{title}",
    "title:mug",
    "a:b*|!c",
    "^mug",
    "mug)",
    "(((",
    "'; drop table",
    "' OR 1=1 --",
    "急須",
    "茶",
    "急須セット",
    "須セッ",
    "赤い",
    "كتاب",
    "احمد",
    "شا",
    "ชา",
    "nothing of the kind",
    "mug \\",
    "\\'",
    "mug:*A",
    "<->",
    "nul",
];

async fn furnished(home: &Home) -> Store {
    let store = home.open();
    for name in ["shop", "other"] {
        let settings = SiteSettings::new(site(name), "GBP".parse().unwrap());
        store.put_site(settings, By::Operator, actor()).await.unwrap();
    }
    store
}

async fn put(store: &Store, of: &str, products: &[Product]) {
    let row = |product: &Product| GoodsRow {
        product: product.clone(),
        price: Some(PriceRow::of(Minor(100)).into()),
        stock: None,
    };
    store.import(site(of), products.iter().map(row).collect(), actor()).await.unwrap().unwrap();
}

async fn taken_in(store: &Store) {
    while !store.index_products().await.unwrap().is_current {}
}

async fn found(store: &Store, of: &str, typed: &str) -> Vec<String> {
    let query = Query::parse(typed).unwrap();
    let matches = store.matches(site(of), query, None, MATCHES_MAX).await.unwrap().unwrap();
    matches.found.iter().map(|found| found.product.sku.to_string()).collect()
}

async fn every_engine_and_a_node_find_the_same(home: Home) {
    let (store, shop) = (furnished(&home).await, shop());
    put(&store, "shop", &shop).await;
    put(&store, "other", &shop[..3]).await;
    taken_in(&store).await;
    let dir = tempfile::tempdir().unwrap();
    let mut node = Index::open(&dir.path().join("shop.db")).unwrap();
    node.apply(shop.iter().map(|p| Change { sku: p.sku.as_str(), product: Some(p) })).unwrap();
    let mut answered = 0;
    for &typed in TYPED {
        let Ok(query) = Query::parse(typed) else {
            assert_eq!(typed.chars().filter(|c| c.is_alphanumeric()).count(), 0, "{typed}");
            continue;
        };
        let mut means: Vec<_> = shop
            .iter()
            .filter_map(|p| {
                let document = Document::of(p);
                Some((query.tier(&document)?, document.rank(), p.sku.to_string()))
            })
            .collect();
        means.sort();
        let means: Vec<_> = means.into_iter().map(|(_, _, sku)| sku).collect();
        let mut at_node = Vec::new();
        node.find(&query, None, |sku, _| {
            at_node.push(sku.to_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found(&store, "shop", typed).await, means, "the region on {typed:?}");
        assert_eq!(at_node, means, "a node on {typed:?}");
        answered += means.len();
    }
    assert!(answered > 50, "the table finds something: {answered}");
    store.close();
}

async fn what_has_changed_is_found_as_it_is_and_of_its_own_site_only(home: Home) {
    let store = furnished(&home).await;
    put(&store, "shop", &shop()).await;
    put(&store, "other", &[product("MUG-1", "Their mug", &[], "")]).await;
    taken_in(&store).await;
    assert_eq!(found(&store, "other", "mug").await, ["MUG-1"]);
    assert_eq!(found(&store, "shop", "their").await, [""; 0]);
    assert_eq!(found(&store, "other", "kitchen").await, [""; 0]);

    put(&store, "shop", &[product("MUG-1", "Cup", &[], "")]).await;
    taken_in(&store).await;
    assert_eq!(found(&store, "shop", "cup").await, ["MUG-1"]);
    assert_eq!(found(&store, "shop", "kitchen").await, ["MUG-2"]);
    assert_eq!(found(&store, "other", "their mug").await, ["MUG-1"]);
    // Page by page it is the same list.
    let all = found(&store, "shop", "mug").await;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let query = Query::parse("mug").unwrap();
        let page = store.matches(site("shop"), query, after, 1).await.unwrap().unwrap();
        seen.extend(page.found.iter().map(|found| found.product.sku.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen.len(), &seen), (3, &all));
    let nowhere = store.matches(site("nowhere"), Query::parse("mug").unwrap(), None, 1).await.unwrap();
    assert!(nowhere.is_none());
    store.close();

    // What is made from products is as new after a start.
    let store = home.open();
    assert_eq!(found(&store, "shop", "cup").await, ["MUG-1"]);
    store.close();
}

async fn an_import_is_taken_in_by_steps_and_says_so_until_then(home: Home) {
    let store = furnished(&home).await;
    let many: Vec<_> = (0..2 * STEP_MAX + 1).map(|n| product(&format!("P{n}"), "Plate", &[], "")).collect();
    put(&store, "shop", &many).await;
    let mut counts = Vec::new();
    loop {
        let query = Query::parse("plate").unwrap();
        let matches = store.matches(site("shop"), query, None, MATCHES_MAX).await.unwrap().unwrap();
        counts.push((matches.found.len(), matches.next.is_some(), matches.is_behind));
        if !matches.is_behind {
            break;
        }
        store.index_products().await.unwrap();
    }
    assert_eq!(counts, [(0, false, true), (100, false, true), (100, true, true), (100, true, false)]);
    let again = store.index_products().await.unwrap();
    assert_eq!(again, Indexed { version: many.len() as u64, is_current: true });
    store.close();
}

/// As two skus in some millions of catalogues have one by chance.
async fn products_of_one_rank_are_all_found_page_by_page(home: Home) {
    let store = furnished(&home).await;
    let many: Vec<_> = ["C", "a", "B", "b-1", "B 2"].map(|sku| product(sku, "Plate", &[], "")).to_vec();
    put(&store, "shop", &many).await;
    taken_in(&store).await;
    store
        .write(|tx| {
            tx.sql.execute("UPDATE search_goods SET rank = 7", &[])?;
            Ok(Decision::Keep(()))
        })
        .await
        .unwrap();
    for limit in 1..4 {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let query = Query::parse("plate").unwrap();
            let page = store.matches(site("shop"), query, after, limit).await.unwrap().unwrap();
            seen.extend(page.found.iter().map(|found| found.product.sku.to_string()));
            let Some(next) = page.next else { break };
            after = Place::from_cursor(&next.cursor());
            assert_eq!(after.as_ref(), Some(&next));
        }
        assert_eq!(seen, ["B", "B 2", "C", "a", "b-1"], "{limit} at a time");
    }
    let rank = "0".repeat(POSITION_DIGITS);
    for text in ["", "41", &rank, &format!("{rank}4"), &format!("{rank}zz"), &format!("{rank}2f")] {
        assert_eq!(Place::from_cursor(text), None, "{text}");
    }
    store.close();
}
