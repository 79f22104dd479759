//! What goes down, and what merchants change: settings, goods, files, and the logs that tell of them.

use super::*;

on_every_engine! {
    an_import_that_runs_twice_ran_once,
    a_price_change_wakes_whoever_waits_for_the_log,
    a_snapshot_in_pages_is_what_the_changes_add_up_to,
    who_is_behind_the_kept_entries_is_told_so,
    a_host_leads_to_one_site_and_a_currency_stays,
    a_merchant_takes_neither_a_host_nor_a_weight_and_loses_none,
}

async fn an_import_that_runs_twice_ran_once(home: Home) {
    let store = shop(&home).await;
    let heads = *store.log_heads().borrow();
    let rows = || vec![row("MUG", 1_000, Some(Some(5))), row("PEN", 200, Some(None)), row("CAP", 700, None)];
    let again = store.import(site(), rows(), actor()).await.unwrap().unwrap();
    assert_eq!(again, Imported { created: 0, updated: 0, unchanged: 3, ..Imported::default() });
    assert_eq!(*store.log_heads().borrow(), heads, "no entry was written");

    let mut rows = rows();
    rows[0].price = Some(PriceRow::of(Minor(1_100)).into());
    let changed = store.import(site(), rows, actor()).await.unwrap().unwrap();
    assert_eq!(changed, Imported { created: 0, updated: 1, unchanged: 2, ..Imported::default() });
    let now = *store.log_heads().borrow();
    assert_eq!(now.get(Log::Price), heads.get(Log::Price) + 1);
    assert_eq!(
        (now.get(Log::Catalog), now.get(Log::Stock)),
        (heads.get(Log::Catalog), heads.get(Log::Stock))
    );
    assert_eq!(store.import("nobody".parse().unwrap(), vec![], actor()).await.unwrap(), None);
}

async fn a_price_change_wakes_whoever_waits_for_the_log(home: Home) {
    let store = shop(&home).await;
    let mut heads = store.log_heads();
    heads.mark_unchanged();
    let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    heads.changed().await.unwrap();
    let version = heads.borrow().get(Log::Price);
    assert_eq!(put, Put::Written { version });
    let Run::Changes { to, records } = store.changes(Log::Price, version - 1, PAGE).await.unwrap() else {
        panic!("the log is whole")
    };
    let change = PriceChange { site: site(), sku: sku("MUG"), price: Some(PriceRow::of(Minor(900))) };
    assert_eq!((to, records), (version, vec![Record { version, body: change.to_bytes() }]));
    let same = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    assert_eq!(same, Put::Unchanged { version });
    assert_eq!(
        store.put_price(site(), sku("NIL"), PriceRow::of(Minor(1)), actor()).await.unwrap(),
        Put::NoProduct
    );
}

/// Rows by key, from either way of reading a log.
fn fold(log: Log, rows: &mut std::collections::BTreeMap<String, Vec<u8>>, records: &[Record]) {
    for record in records {
        let (key, gone) = match log {
            Log::Catalog => {
                let change = ProductChange::from_bytes(&record.body).unwrap();
                (change.sku.to_string(), change.product.is_none())
            }
            Log::Price => {
                let change = PriceChange::from_bytes(&record.body).unwrap();
                (change.sku.to_string(), change.price.is_none())
            }
            Log::Stock => (StockChange::from_bytes(&record.body).unwrap().sku.to_string(), false),
            _ => {
                let change = AssetChange::from_bytes(&record.body).unwrap();
                (change.path, change.asset.is_none())
            }
        };
        if gone {
            rows.remove(&key);
        } else {
            rows.insert(key, record.body.clone());
        }
    }
}

async fn a_snapshot_in_pages_is_what_the_changes_add_up_to(home: Home) {
    let store = shop(&home).await;
    let asset = |text: &str| Asset::new(Digest::of(text.as_bytes()), 2_000, "text/html".to_owned());
    let manifest =
        |files: &[(&str, &str)]| files.iter().map(|(path, text)| ((*path).to_owned(), asset(text))).collect();
    store
        .put_assets(site(), manifest(&[("/a", "a"), ("/b", "b"), ("/c", "c")]), actor())
        .await
        .unwrap()
        .unwrap();
    store.put_assets(site(), manifest(&[("/b", "b"), ("/d", "d")]), actor()).await.unwrap().unwrap();
    // A new version tells which it follows, in the changes and in the snapshot.
    store.put_assets(site(), manifest(&[("/b", "b2"), ("/d", "d")]), actor()).await.unwrap().unwrap();
    for price in 1..30 {
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
        store.put_stock(site(), sku("PEN"), Some(price as u64 % 15), actor()).await.unwrap();
    }
    store.import(site(), vec![row("HAT", 5, Some(Some(0)))], actor()).await.unwrap().unwrap();

    for log in [Log::Catalog, Log::Price, Log::Stock, Log::Asset] {
        let (mut by_changes, mut cursor) = (std::collections::BTreeMap::new(), 0);
        loop {
            let run = store.changes(log, cursor, PageMax { records: 7, bytes: 1 << 20 }).await.unwrap();
            let Run::Changes { to, records } = run else { panic!("the log is whole") };
            fold(log, &mut by_changes, &records);
            if to == cursor {
                break;
            }
            cursor = to;
        }
        let (mut by_pages, mut resume, mut versions) = (std::collections::BTreeMap::new(), None, vec![]);
        loop {
            let page = store.snapshot(log, resume, PageMax { records: 1, bytes: 1 << 20 }).await.unwrap();
            fold(log, &mut by_pages, &page.records);
            versions.push(page.version);
            resume = page.next;
            if resume.is_none() {
                break;
            }
        }
        assert_eq!(by_pages, by_changes, "{log}");
        assert!(versions.iter().all(|version| *version == cursor), "{log}: one version for all pages");
    }
}

async fn who_is_behind_the_kept_entries_is_told_so(home: Home) {
    let store = home.open_with(StoreSettings::for_tests(100));
    store.put_site(SiteSettings::new(site(), "GBP".parse().unwrap()), By::Operator, actor()).await.unwrap();
    let rows = |price| (0..512).map(|n| row(&format!("S{n}"), price, None)).collect::<Vec<_>>();
    for price in 1..=2 {
        store.import(site(), rows(price), actor()).await.unwrap().unwrap();
    }
    let head = store.log_heads().borrow().get(Log::Price);
    assert_eq!(head, 1_024);
    assert_eq!(store.changes(Log::Price, head - 101, PAGE).await.unwrap(), Run::TooFarBehind);
    assert!(
        matches!(store.changes(Log::Price, head - 100, PAGE).await.unwrap(), Run::Changes { to, records } if to == head && records.len() == 100)
    );
    assert_eq!(
        store.changes(Log::Price, head + 1, PAGE).await.unwrap(),
        Run::TooFarBehind,
        "a cursor of another history"
    );
    let page = store.snapshot(Log::Price, None, PAGE).await.unwrap();
    assert_eq!((page.version, page.records.len(), page.next), (head, 512, None));
}

async fn a_host_leads_to_one_site_and_a_currency_stays(home: Home) {
    use super::site::PutSite;
    let store = shop(&home).await;
    let with_host = |name: &str| SiteSettings {
        hosts: vec!["shop.example".to_owned()],
        ..SiteSettings::new(name.parse().unwrap(), "GBP".parse().unwrap())
    };
    assert!(matches!(
        store.put_site(with_host("shop"), By::Operator, actor()).await.unwrap(),
        PutSite::Written { created: false, .. }
    ));
    assert!(matches!(
        store.put_site(with_host("shop"), By::Operator, actor()).await.unwrap(),
        PutSite::Unchanged { .. }
    ));
    let heads = *store.log_heads().borrow();
    let taken = store.put_site(with_host("rival"), By::Operator, actor()).await.unwrap();
    assert_eq!(taken, PutSite::HostTaken { host: "shop.example".to_owned(), site: "shop".to_owned() });
    let euros = SiteSettings { currency: "EUR".parse().unwrap(), ..with_host("shop") };
    assert_eq!(
        store.put_site(euros, By::Operator, actor()).await.unwrap(),
        PutSite::CurrencyChange { from: "GBP".to_owned() }
    );
    assert_eq!(*store.log_heads().borrow(), heads, "refusals leave no entry");
    assert_eq!(store.sites().await.unwrap(), ["shop"]);
}

async fn a_merchant_takes_neither_a_host_nor_a_weight_and_loses_none(home: Home) {
    use super::site::PutSite;
    let store = shop(&home).await;
    let settings = |hosts: &[&str], cpu_weight| SiteSettings {
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        cpu_weight,
        ..SiteSettings::new(site(), "GBP".parse().unwrap())
    };
    store.put_site(settings(&["a.example", "b.example"], Some(3)), By::Operator, actor()).await.unwrap();
    let ask = async |hosts: &[&str], weight| {
        store.put_site(settings(hosts, weight), By::Merchant, actor()).await.unwrap()
    };
    assert_eq!(ask(&["a.example", "c.example"], None).await, PutSite::HostsNotGiven);
    assert_eq!(ask(&["a.example"], Some(4)).await, PutSite::WeightNotGiven);
    assert!(matches!(ask(&["a.example"], None).await, PutSite::Written { created: false, .. }));
    let row = store.site(site()).await.unwrap().expect("a site");
    assert_eq!(
        (row.settings.hosts.len(), row.settings.cpu_weight),
        (1, Some(3)),
        "a host given up, a weight kept"
    );
    assert_eq!(
        ask(&["a.example", "b.example"], None).await,
        PutSite::HostsNotGiven,
        "what was given up is gone"
    );
}
