//! Hook plugins written in WebAssembly text, and a shop to run them in.

#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part")]

use std::sync::{Arc, Mutex};

use souk_commerce::cart::LineKey;
use souk_commerce::id::PluginName;
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{OnFault, Release};
use souk_sandbox::account::Ended;
use souk_sandbox::{Call, HookEngine, HookLimits, HookPlugin, Level, SiteData};

#[path = "../../../../tests/guests/wat.rs"]
mod guests;

pub use guests::{GOOD, Guest, component, component_of, encode};

/// A site with a few products, one value, and a log that remembers.
#[derive(Default)]
pub struct Shop {
    pub logged: Mutex<Vec<String>>,
    /// The host function that panics.
    pub panics: Option<&'static str>,
    pub ended: Mutex<Vec<String>>,
}

impl SiteData for Shop {
    fn product(&self, sku: &str) -> Option<Listed> {
        self.may_panic("product");
        sku.starts_with("MUG").then(|| listed(sku, 500))
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        self.may_panic("kv");
        match key {
            "banner" => Some(b"sale".to_vec()),
            "big" => Some(vec![b'x'; 64 << 10]),
            _ => None,
        }
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        self.may_panic("log");
        self.logged.lock().expect("not poisoned").push(format!("{plugin} {level:?} {text}"));
    }

    fn ended(&self, ended: &Ended<'_>) {
        let Ended { plugin, release, hook, outcome, .. } = ended;
        self.ended.lock().expect("not poisoned").push(format!("{plugin} {release} {hook} {outcome:?}"));
    }
}

impl Shop {
    fn may_panic(&self, function: &str) {
        assert_ne!(self.panics, Some(function), "the site's data is broken");
    }
}

pub fn listed(sku: &str, price: i64) -> Listed {
    Listed {
        product: Arc::new(Product {
            sku: sku.parse().expect("a sku"),
            title: format!("A {sku}"),
            description: String::new(),
            tags: vec!["kitchen".to_owned()],
            attributes: vec![("colour".to_owned(), "blue".to_owned())],
            image: None,
        }),
        price: PriceRow { price: Minor(price), compare_at: None, floor: None },
        price_version: 7,
        stock: StockHint::Low(3),
    }
}

/// So many lines of 2 pieces at 5.00 each.
pub fn lines(count: usize) -> Vec<(LineKey, u32, Listed)> {
    (0..count)
        .map(|i| {
            let sku = format!("MUG-{i}");
            (LineKey::of(sku.parse().expect("a sku")), 2, listed(&sku, 500))
        })
        .collect()
}

pub fn call(data: &Arc<dyn SiteData>) -> Call<'_> {
    Call {
        now_ms: 1_000_000,
        currency: "GBP".parse().expect("a currency"),
        country: Some("FR".parse().expect("a country")),
        region: None,
        language: "en".to_owned(),
        segments: vec!["trade".to_owned()],
        customer: None,
        coupons: vec!["TEN".parse().expect("a coupon")],
        seed: 1,
        data,
    }
}

/// Far from the default deadline, so that a busy machine's tests do not fail by it.
pub fn engine() -> HookEngine {
    engine_with(HookLimits { deadline: std::time::Duration::from_millis(50), ..HookLimits::default() })
}

pub fn engine_with(limits: HookLimits) -> HookEngine {
    HookEngine::new(limits).expect("an engine")
}

pub fn release(name: &str, plugin: &HookPlugin, on_fault: OnFault) -> Release {
    Release {
        plugin: name.parse().expect("a plugin name"),
        number: 3,
        component: plugin.digest(),
        hooks: plugin.hooks().to_vec(),
        settings: Default::default(),
        on_fault,
        kind: Default::default(),
        grants: Default::default(),
        route: None,
        reuse: 0,
        record_bp: 0,
        seal: None,
    }
}
