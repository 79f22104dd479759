//! Hook plugins written in WebAssembly text, and a shop to run them in.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::sync::{Arc, Mutex};

use souk_commerce::cart::LineKey;
use souk_commerce::id::PluginName;
use souk_commerce::money::Minor;
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{OnFault, Release};
use souk_sandbox::{Call, HookEngine, HookLimits, HookPlugin, Level, SiteData};

/// The parts of a core module that a hostile plugin changes. The rest is a well-behaved pricing plugin that takes ten
/// per cent off the cart.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Body of `adjust`, with the arguments' address in `$in` and the result's address left on the stack.
    pub run: &'static str,
    pub realloc: &'static str,
    pub post_return: &'static str,
    /// Body of the start function.
    pub start: &'static str,
    /// Minimum and, if wanted, maximum of the memory, in pages.
    pub memory: &'static str,
    /// Further fields of the module.
    pub fields: &'static str,
}

/// Memory: 0..64 unused, 64 the result, 256 adjustments, 1024 texts, 4096 the heap of `realloc`.
pub const GOOD: Guest = Guest {
    run: "(i32.const 64)",
    realloc: BUMP,
    post_return: "",
    start: "",
    memory: "1",
    fields: r#"
        ;; ok([{ target: cart, effect: percent(-1000), code: "ten", label: "Ten off" }])
        (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
        (data (i32.const 256) "\01\00\00\00\00\00\00\00" "\00\00\00\00\00\00\00\00\18\fc\ff\ff\00\00\00\00"
                              "\00\04\00\00\03\00\00\00" "\03\04\00\00\07\00\00\00")
        (data (i32.const 1024) "tenTen off")"#,
};

const BUMP: &str = r#"
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $p) (local.get $size)))
    (block $fits
        (br_if $fits (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
        (br_if $fits (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))
        unreachable)
    (local.get $p)"#;

impl Guest {
    pub fn core(&self) -> String {
        let Self { run, realloc, post_return, start, memory, fields } = self;
        format!(
            r#"(module
                (import "souk:plugin/host@0.1.0" "log" (func $log (param i32 i32 i32)))
                (import "souk:plugin/host@0.1.0" "kv-get" (func $kv (param i32 i32 i32)))
                (import "souk:plugin/host@0.1.0" "lookup-product" (func $lookup (param i32 i32 i32)))
                (memory (export "memory") {memory})
                (global $heap (mut i32) (i32.const 4096))
                (func (export "cabi_realloc")
                    (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
                    {realloc})
                (func (export "souk:plugin/pricing@0.1.0#adjust") (param $in i32) (result i32) {run})
                (func (export "cabi_post_souk:plugin/pricing@0.1.0#adjust") (param $out i32) {post_return})
                (func $start {start})
                (start $start)
                {fields})"#
        )
    }

    pub fn component(&self) -> Vec<u8> {
        component("pricing-plugin", &self.core())
    }
}

/// Wraps a core module, given as text, into a component of one of the contract's worlds.
pub fn component(world: &str, core: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let contract = concat!(env!("CARGO_MANIFEST_DIR"), "/../../sdk/wit");
    let (package, _) = resolve.push_path(contract).expect("the contract parses");
    let world = resolve.select_world(&[package], Some(world)).expect("a world of the contract");
    encode(&resolve, world, core)
}

/// The same for a world that is given as text.
pub fn component_of(wit: &str, core: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let package = resolve.push_str("test.wit", wit).expect("the test's WIT parses");
    let world = resolve.select_world(&[package], None).expect("one world");
    encode(&resolve, world, core)
}

pub fn encode(resolve: &wit_parser::Resolve, world: wit_parser::WorldId, core: &str) -> Vec<u8> {
    let mut module = wat::parse_str(core).unwrap_or_else(|error| panic!("{error}\n{core}"));
    wit_component::embed_component_metadata(&mut module, resolve, world, wit_component::StringEncoding::UTF8)
        .expect("the world can be embedded");
    wit_component::ComponentEncoder::default()
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .unwrap_or_else(|error| panic!("{error:?}\n{core}"))
}

/// A site with a few products, one value, and a log that remembers.
#[derive(Default)]
pub struct Shop {
    pub logged: Mutex<Vec<String>>,
    pub panics: bool,
}

impl SiteData for Shop {
    fn product(&self, sku: &str) -> Option<Listed> {
        sku.starts_with("MUG").then(|| listed(sku, 500))
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        assert!(!self.panics, "the site's data is broken");
        (key == "banner").then(|| b"sale".to_vec())
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        self.logged.lock().expect("not poisoned").push(format!("{plugin} {level:?} {text}"));
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
    }
}
