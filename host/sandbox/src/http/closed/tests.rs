//! What 0.3 and a hostile component make of it; 0.2 is in `tests/http.rs`, through the whole engine.

use wasmtime::component::ResourceTable;
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView};

use super::*;

#[path = "../../../../../tests/guests/wat.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "it has the guests of hooks too, and is shared by tests outside"
)]
mod guests;

const HANDLES_MAX: usize = 20;

struct Room {
    ctx: WasiCtx,
    table: ResourceTable,
}

impl WasiView for Room {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.ctx, table: &mut self.table }
    }
}

/// What `run` of a component says that imports `interfaces` and is made of `core`.
async fn run(interfaces: &str, imports: &str, core: &str) -> wasmtime::Result<u32> {
    let wit = format!(
        "package test:guest;\nworld guest {{ {imports} export run: async func() -> u32; }}\n{interfaces}"
    );
    let component = guests::component_of(&wit, core);
    let mut config = Config::new();
    config.concurrency_support(true).wasm_component_model_async(true);
    let engine = Engine::new(&config)?;
    let component = Component::new(&engine, component)?;
    let linker = link(&Linker::<Room>::new(&engine), &component)?;
    let mut table = ResourceTable::new();
    table.set_max_capacity(HANDLES_MAX);
    let mut store = Store::new(&engine, Room { ctx: WasiCtx::builder().build(), table });
    let instance = linker.instantiate_async(&mut store, &component).await?;
    let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run")?;
    Ok(run.call_async(&mut store, ()).await?.0)
}

const SOCKETS: &str = "package wasi:sockets@0.3.0 {
    interface types {
        resource tcp-socket {
            create: static func(v6: bool) -> result<tcp-socket, error-code>;
        }
        variant error-code { unknown, access-denied, other(option<string>) }
    }
    interface ip-name-lookup {
        variant error-code { access-denied, other(option<string>) }
        resolve-addresses: async func(name: string) -> result<list<u32>, error-code>;
    }
    interface strange {
        resource network;
        join: func() -> network;
        takes-a-stream: func(of: stream<u8>) -> list<u8>;
        takes-a-list: async func(of: list<u8>) -> list<u8>;
    }
}";

#[tokio::test]
async fn what_0_3_asks_for_is_denied_in_its_own_words() {
    let said = run(
        SOCKETS,
        "import wasi:sockets/types@0.3.0; import wasi:sockets/ip-name-lookup@0.3.0;",
        r#"(module
            (import "wasi:sockets/types@0.3.0" "[static]tcp-socket.create" (func $create (param i32 i32)))
            (import "wasi:sockets/ip-name-lookup@0.3.0" "resolve-addresses" (func $resolve (param i32 i32 i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
            (data (i32.const 16) "shop.example")
            (func (export "run") (result i32)
                (call $create (i32.const 0) (i32.const 256))
                (call $resolve (i32.const 16) (i32.const 12) (i32.const 512))
                ;; err(access-denied) and err(access-denied): their words are the second and the first.
                (i32.or (i32.or (i32.load8_u (i32.const 256)) (i32.shl (i32.load8_u (i32.const 260)) (i32.const 1)))
                    (i32.or (i32.shl (i32.load8_u (i32.const 512)) (i32.const 2))
                        (i32.shl (i32.load8_u (i32.const 516)) (i32.const 3))))))"#,
    )
    .await
    .unwrap();
    assert_eq!(said, 0b0111);
}

#[tokio::test]
async fn a_handle_that_is_worth_nothing_has_its_place_among_the_others() {
    let takes = |times: usize, forget: &str| {
        format!(
            r#"(module
                (import "wasi:sockets/strange@0.3.0" "join" (func $network (result i32)))
                (import "wasi:sockets/strange@0.3.0" "[resource-drop]network" (func $forget (param i32)))
                (memory (export "memory") 1)
                (func (export "run") (result i32) (local $i i32)
                    (loop $l
                        (call {forget} (call $network))
                        (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const {times}))))
                    (local.get $i))
                (func $keep (param i32)))"#
        )
    };
    let import = "import wasi:sockets/strange@0.3.0;";
    assert_eq!(run(SOCKETS, import, &takes(1_000, "$forget")).await.unwrap(), 1_000);
    assert_eq!(run(SOCKETS, import, &takes(HANDLES_MAX, "$keep")).await.unwrap() as usize, HANDLES_MAX);
    let full = run(SOCKETS, import, &takes(HANDLES_MAX + 1, "$keep")).await.unwrap_err();
    assert!(format!("{full:#}").contains("no free keys"), "{full:#}");
}

/// Nobody would count them: the host holds a stream that it was given until the store ends.
#[tokio::test]
async fn who_hands_over_a_stream_or_a_list_is_ended() {
    let import = "import wasi:sockets/strange@0.3.0;";
    let list = r#"(module
        (import "wasi:sockets/strange@0.3.0" "takes-a-list" (func $takes (param i32 i32 i32)))
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
        (func (export "run") (result i32) (call $takes (i32.const 0) (i32.const 4) (i32.const 256)) (i32.const 1)))"#;
    let stream = r#"(module
        (import "wasi:sockets/strange@0.3.0" "[stream-new-0]takes-a-stream" (func $new (result i64)))
        (import "wasi:sockets/strange@0.3.0" "takes-a-stream" (func $takes (param i32 i32)))
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
        (func (export "run") (result i32)
            (call $takes (i32.wrap_i64 (call $new)) (i32.const 256)) (i32.const 1)))"#;
    for (what, core) in [("takes-a-list", list), ("takes-a-stream", stream)] {
        let ended = format!("{:#}", run(SOCKETS, import, core).await.unwrap_err());
        assert!(ended.contains(&format!("wasi:sockets/strange@0.3.0#{what} was called")), "{ended}");
    }
}
