//! Write a Souk hook plugin in Rust.
//!
//! A plugin is a type that implements one or more of [`Catalog`], [`Pricing`], [`Cart`] and [`Checkout`], and one
//! `export_…!` line for each. It is a pure function: it has no clock, no randomness, no files and no sockets, so
//! everything that a decision may depend on is in its arguments or an answer of [`host`], and the same call gives the
//! same answer everywhere, for ever.
//!
//! ```
//! use souk_sdk::prelude::*;
//!
//! struct TenOff;
//!
//! impl Pricing for TenOff {
//!     fn adjust(_: &Context, lines: &[Line]) -> Answer<Vec<Adjustment>> {
//!         Ok(lines.iter().map(|line| Adjustment::percent(line, -1000, "ten_off", "10 % off")).collect())
//!     }
//! }
//!
//! souk_sdk::export_pricing!(TenOff);
//! # fn main() {
//! # use souk_sdk::testing;
//! # let answer = TenOff::adjust(&testing::context(), &[testing::line(0, testing::product("MUG", 255), 2)]);
//! # assert_eq!(answer.expect("an answer")[0].effect, Effect::Percent(-1000));
//! # }
//! ```
//!
//! Built for `wasm32-unknown-unknown` as a `cdylib` this is a plugin (`souk plugin build` does it). Built natively it
//! is ordinary Rust: the macros export nothing, [`host`] asks the test double that [`testing`] fills, and a plugin is
//! tested with `cargo test`.
//!
//! Money is integer minor units ([`Minor`]) and percentages are basis points. A pricing plugin says *adjustments*,
//! never totals: those are the host's work, so that they add up and every penny can be explained.
//!
//! **Limits.** A call has 5 ms and 16 MiB by default, 1,000 host calls and 16 KiB of log. A plugin that traps, runs
//! over or breaks the price guard is left out of that call, and the quote says so.
//!
//! Features: `json` reads [`Context::settings`] into a type of the plugin's own, with
//! [`settings_as`](Context::settings_as).

pub mod bindings;
mod hooks;
pub mod host;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod words;

pub use bindings::cart::exports::souk::plugin::cart::{CartOp, Change};
pub use bindings::catalog::exports::souk::plugin::catalog::Presentation;
pub use bindings::checkout::exports::souk::plugin::checkout::{Note, OrderDraft};
pub use bindings::pricing::exports::souk::plugin::pricing::{Adjustment, Effect, Target};
pub use bindings::shared::souk::plugin::types::{Context, Line, Minor, Product, Refusal, StockHint};
pub use hooks::{Answer, Cart, Catalog, Checkout, Pricing};

/// Everything that a plugin names.
pub mod prelude {
    pub use crate::{
        Adjustment, Answer, Cart, CartOp, Catalog, Change, Checkout, Context, Effect, Line, Minor, Note,
        OrderDraft, Presentation, Pricing, Product, Refusal, StockHint, Target, host,
    };
}
