//! Guests written in WebAssembly text: no compiler is needed, so no test that uses them is ever skipped. Shared by
//! the sandbox's own tests and the outside tests, which include this file by its path.

const CONTRACT: &str = include_str!("../../sdk/wit/souk-plugin.wit");

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
    let package = resolve.push_str("souk-plugin.wit", CONTRACT).expect("the contract parses");
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
