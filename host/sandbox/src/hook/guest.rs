//! What the store of one call holds, and what the guest may ask of its host.

use std::sync::Arc;
use std::time::Duration;

use souk_commerce::id::PluginName;
use souk_commerce::product::{Listed, StockHint};
use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::bindings::souk::plugin::{host, types};
use super::{Allowance, Level, SiteData};
use crate::fault::{Stop, bounded};
use crate::limits::{
    CORE_INSTANCES_PER_COMPONENT_MAX, HookLimits, LOG_LINE_BYTES_MAX, MEMORIES_PER_COMPONENT_MAX,
    MEMORY_REFUSALS_MAX, TABLES_PER_COMPONENT_MAX,
};
use crate::ticker::{TICK, thread_cpu_time};

/// The data of a store. Made for one call and dropped with it.
pub(super) struct Guest {
    data: Arc<dyn SiteData>,
    plugin: PluginName,
    host_calls_left: u32,
    log_bytes_left: usize,
    pub(super) space: Space,
    pub(super) deadline: Deadline,
}

impl Guest {
    pub(super) fn new(
        limits: &HookLimits,
        allowance: Allowance,
        data: Arc<dyn SiteData>,
        plugin: PluginName,
    ) -> Self {
        Self {
            data,
            plugin,
            host_calls_left: allowance.host_calls,
            log_bytes_left: limits.log_bytes_max,
            space: Space::new(limits.memory_bytes_max, limits.table_elements_max),
            deadline: Deadline::new(allowance.deadline, limits.wall_max),
        }
    }

    pub(super) fn host_calls_left(&self) -> u32 {
        self.host_calls_left
    }

    /// Every host call has the same price: the dearest, a product look-up, is an in-memory read of the node's replica.
    fn charge(&mut self) -> wasmtime::Result<()> {
        self.host_calls_left = self.host_calls_left.checked_sub(1).ok_or(Stop::HostCalls)?;
        Ok(())
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: host::Level, text: String) -> wasmtime::Result<()> {
        self.charge()?;
        let text = bounded(&text, LOG_LINE_BYTES_MAX);
        self.log_bytes_left = self.log_bytes_left.checked_sub(text.len()).ok_or(Stop::LogBytes)?;
        let level = match level {
            host::Level::Debug => Level::Debug,
            host::Level::Info => Level::Info,
            host::Level::Warn => Level::Warn,
            host::Level::Error => Level::Error,
        };
        self.data.log(&self.plugin, level, &text);
        Ok(())
    }

    fn lookup_product(&mut self, sku: String) -> wasmtime::Result<Option<types::ProductResult>> {
        self.charge()?;
        Ok(self.data.product(&sku).map(|listed| owned(&listed)))
    }

    fn kv_get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.charge()?;
        Ok(self.data.kv(&key))
    }
}

impl types::Host for Guest {}

fn owned(listed: &Listed) -> types::ProductResult {
    let product = &listed.product;
    types::ProductResult {
        sku: product.sku.as_str().to_owned(),
        title: product.title.clone(),
        price: listed.price.price.0,
        compare_at: listed.price.compare_at.map(|amount| amount.0),
        tags: product.tags.clone(),
        attributes: product.attributes.clone(),
        stock: stock(listed.stock),
    }
}

pub(super) fn stock(hint: StockHint) -> types::StockHint {
    match hint {
        StockHint::Unknown => types::StockHint::Unknown,
        StockHint::Out => types::StockHint::Out,
        StockHint::Low(left) => types::StockHint::Low(left),
        StockHint::InStock => types::StockHint::InStock,
    }
}

/// Linear memory and tables of one store, all instances of the component together.
pub(crate) struct Space {
    memory_bytes_left: usize,
    table_elements_left: usize,
    refusals: u32,
}

impl Space {
    pub(crate) fn new(memory_bytes_max: usize, table_elements_max: usize) -> Self {
        Self { memory_bytes_left: memory_bytes_max, table_elements_left: table_elements_max, refusals: 0 }
    }

    /// Whether the guest ever was refused space: then an abort of its runtime has that cause.
    pub(crate) fn refused(&self) -> bool {
        self.refusals > 0
    }

    fn refuse(&mut self) -> wasmtime::Result<bool> {
        self.refusals += 1;
        if self.refusals > MEMORY_REFUSALS_MAX { Err(Stop::Memory.into()) } else { Ok(false) }
    }
}

impl ResourceLimiter for Space {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        match self.memory_bytes_left.checked_sub(desired.saturating_sub(current)) {
            Some(left) => {
                self.memory_bytes_left = left;
                Ok(true)
            }
            None => self.refuse(),
        }
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        match self.table_elements_left.checked_sub(desired.saturating_sub(current)) {
            Some(left) => {
                self.table_elements_left = left;
                Ok(true)
            }
            None => self.refuse(),
        }
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_PER_COMPONENT_MAX as usize
    }

    fn tables(&self) -> usize {
        TABLES_PER_COMPONENT_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_PER_COMPONENT_MAX as usize
    }
}

/// The deadline of one call, in processor time although the epoch counts wall time.
///
/// The first half is counted by the wall, which costs nothing. Only a call that is still running then has its
/// thread's processor clock read, once a tick: a thread that waits for a busy machine must not turn a good
/// plugin's call into a fault, because a fault changes a price.
pub(crate) struct Deadline {
    processor_left: Duration,
    wall_ticks_left: u64,
    /// The thread's processor time when the first half had passed.
    since: Option<Duration>,
}

impl Deadline {
    pub(crate) fn new(processor: Duration, wall_max: Duration) -> Self {
        Self { processor_left: processor, wall_ticks_left: ticks(wall_max), since: None }
    }

    /// Ticks until [`Self::passed`] is to be asked first. Armed once, before instantiation: start functions,
    /// `realloc`, the hook and its post-return all run on the same account.
    pub(crate) fn first_ticks(&mut self) -> u64 {
        let half = self.processor_left / 2;
        self.processor_left -= half;
        // The current tick is already partly over.
        ticks(half) + 1
    }

    /// What to do with a guest that reached the end of its ticks.
    pub(crate) fn passed(&mut self) -> UpdateDeadline {
        self.wall_ticks_left = self.wall_ticks_left.saturating_sub(1);
        let now = thread_cpu_time();
        let since = *self.since.get_or_insert(now);
        if now.saturating_sub(since) >= self.processor_left || self.wall_ticks_left == 0 {
            UpdateDeadline::Interrupt
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(TICK.as_micros())).unwrap_or(u64::MAX)
}
