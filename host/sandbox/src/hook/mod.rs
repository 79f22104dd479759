//! One call of one hook plugin, from the host's values to the guest and back.
//!
//! * [`engine`]: the wasmtime engine with its limits, and loading a component into it.
//! * [`guest`]: what the store of one call holds, and what the guest may ask of its host.
//! * [`plugin`]: the four typed calls.
//! * [`view`]: the host's values as the guest sees them, without a copy. [`answer`]: the guest's, checked.

mod answer;
mod engine;
mod guest;
mod plugin;
mod view;

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{Country, Coupon, PluginName, Sku};
use souk_commerce::journal::{CallId, CallIds};
use souk_commerce::money::{Currency, Minor};
use souk_commerce::product::Listed;
use souk_commerce::site::Guard;

pub use souk_commerce::journal::Level;

pub use engine::HookEngine;
pub(crate) use engine::{default_config, restrict};
pub(crate) use guest::Space;
pub use plugin::{HookPlugin, Presentation};

use crate::limits::HookLimits;
use crate::profile::Sampling;
use crate::record::Tape;

/// What wasmtime makes of `sdk/wit`: the only place where the contract becomes Rust types.
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../sdk/wit",
        world: "souk:plugin/platform",
        imports: { default: trappable },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// What the site knows and a plugin may ask. Answers must be local and quick: the guest's clock runs meanwhile.
pub trait SiteData: Send + Sync {
    fn product(&self, sku: &str) -> Option<Listed>;
    /// A value of the site's edge data.
    fn kv(&self, key: &str) -> Option<Vec<u8>>;
    /// A line of the plugin's log: at most 1 KiB, control characters already replaced.
    fn log(&self, plugin: &PluginName, level: Level, text: &str);
    /// A call of a plugin has ended, and with it the lines that it logged. It must not block.
    fn ended(&self, _ended: &crate::account::Ended<'_>) {}
}

/// Names this process's calls: on the merchant's journal, on a recording, wherever a call is spoken of.
static CALL_IDS: LazyLock<CallIds> = LazyLock::new(|| {
    // A fresh random state of the standard library is 128 bits of the system's randomness.
    CallIds::new(RandomState::new().build_hasher().finish())
});

/// What a decision may depend on beside its subject: the same for every plugin of a chain.
pub struct Call<'a> {
    /// Frozen for the whole request. Also the clock of the chain's breakers.
    pub now_ms: u64,
    pub currency: Currency,
    pub country: Option<Country>,
    pub region: Option<String>,
    pub language: String,
    pub segments: Vec<String>,
    pub customer: Option<String>,
    pub coupons: Vec<Coupon>,
    pub seed: u64,
    /// Shared ownership, because a guest's store must own what its host functions use.
    pub data: &'a Arc<dyn SiteData>,
}

/// What one call may use: a plugin's share of the chain's budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    pub deadline: Duration,
    pub host_calls: u32,
}

impl From<&HookLimits> for Allowance {
    fn from(limits: &HookLimits) -> Self {
        Self { deadline: limits.deadline, host_calls: limits.host_calls_max }
    }
}

/// Who calls, for whom, and with what: the arguments that every hook has in common.
pub struct Invocation<'a> {
    /// The name of this call.
    pub id: CallId,
    pub call: &'a Call<'a>,
    pub plugin: &'a PluginName,
    /// The release's settings, JSON.
    pub settings: &'a str,
    pub allowance: Allowance,
    /// Set when the call ends, however it ends.
    pub host_calls_used: Cell<u32>,
    /// Set when the call ends, by an engine that counts ([`crate::metered`]).
    pub instructions: Cell<Option<u64>>,
    /// The guard under which the answer will be applied: for a recording, which explains a price with it.
    pub guard: Cell<Option<Guard>>,
    /// Where the call is recorded, if it is to be.
    pub(crate) tape: Option<&'a Tape>,
    pub(crate) profiler: Option<Sampling>,
}

impl<'a> Invocation<'a> {
    pub fn new(call: &'a Call<'a>, plugin: &'a PluginName, settings: &'a str, allowance: Allowance) -> Self {
        Self {
            id: CALL_IDS.next(call.now_ms),
            call,
            plugin,
            settings,
            allowance,
            host_calls_used: Cell::new(0),
            instructions: Cell::new(None),
            guard: Cell::new(None),
            tape: None,
            profiler: None,
        }
    }

    pub(crate) fn on(self, tape: Option<&'a Tape>) -> Self {
        Self { tape, ..self }
    }
}

/// A line of a cart as a plugin sees it. Its position in the slice is the line's id within the call.
#[derive(Clone, Copy)]
pub struct LineView<'a> {
    pub key: &'a LineKey,
    pub quantity: u32,
    pub listed: &'a Listed,
    /// After the adjustments of the plugins before this one.
    pub amount: Minor,
}

/// A change to a cart that a shopper asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requested {
    Add { sku: Sku, quantity: u32 },
    Set { line: LineKey, quantity: u32 },
    Remove { line: LineKey },
}

/// What a cart hook wants done beside the change itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CartOp {
    /// Accept the change, with at most this quantity on its line afterwards.
    Cap(u32),
    /// A line of the plugin's own, with this quantity; 0 takes it out.
    Put { sku: Sku, quantity: u32 },
    /// Take out a line that was there before.
    Remove(LineKey),
}
