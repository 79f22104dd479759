//! What the store of one call holds, and what the guest may ask of its host.

use std::sync::Arc;
use std::time::Duration;

use souk_commerce::id::PluginName;
use souk_commerce::product::{Listed, StockHint};
use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::bindings::souk::plugin::{host, types};
use super::{Allowance, Level, SiteData};
use crate::fault::{Stop, bounded};
use crate::ledger::Ledger;
use crate::limits::{
    CORE_INSTANCES_PER_COMPONENT_MAX, HOST_CALL_BYTES, HookLimits, LOG_LINE_BYTES_MAX,
    MEMORIES_PER_COMPONENT_MAX, MEMORY_REFUSALS_MAX, TABLES_PER_COMPONENT_MAX,
};
use crate::profile::Sampling;
use crate::ticker::{TICK, Toll};

/// The data of a store. Made for one call and dropped with it.
pub(super) struct Guest {
    data: Arc<dyn SiteData>,
    plugin: PluginName,
    host_calls_left: u32,
    log_bytes_left: usize,
    pub(super) space: Space,
    pub(super) deadline: Deadline,
    /// Only while somebody looks where the time goes.
    pub(super) profiler: Option<Sampling>,
}

impl Guest {
    pub(super) fn new(
        limits: &HookLimits,
        allowance: Allowance,
        toll: Toll,
        data: Arc<dyn SiteData>,
        plugin: PluginName,
        profiler: Option<Sampling>,
    ) -> Self {
        Self {
            data,
            plugin,
            host_calls_left: allowance.host_calls,
            log_bytes_left: limits.log_bytes_max,
            space: Space::new(limits.memory_bytes_max, limits.table_elements_max),
            deadline: Deadline::new(allowance.deadline, limits.wall_max, toll),
            profiler,
        }
    }

    pub(super) fn host_calls_left(&self) -> u32 {
        self.host_calls_left
    }

    /// Every host call has the same price, one: the dearest, a product look-up, is an in-memory read of the node's
    /// replica.
    fn charge(&mut self) -> wasmtime::Result<()> {
        self.pay(1)
    }

    /// And one more for each KiB that it moves: what is copied costs the host as much as the call itself.
    fn charge_for(&mut self, bytes: usize) -> wasmtime::Result<()> {
        self.pay(u32::try_from(bytes / HOST_CALL_BYTES).unwrap_or(u32::MAX))
    }

    fn pay(&mut self, price: u32) -> wasmtime::Result<()> {
        self.host_calls_left = self.host_calls_left.checked_sub(price).ok_or(Stop::HostCalls)?;
        Ok(())
    }
}

impl host::Host for Guest {
    fn log(&mut self, level: host::Level, text: String) -> wasmtime::Result<()> {
        self.charge()?;
        self.charge_for(text.len())?;
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
        self.charge_for(sku.len())?;
        let Some(listed) = self.data.product(&sku) else { return Ok(None) };
        let product = &listed.product;
        let tags: usize = product.tags.iter().map(String::len).sum();
        let attributes: usize = product.attributes.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.charge_for(product.title.len() + tags + attributes)?;
        Ok(Some(owned(&listed)))
    }

    fn kv_get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.charge()?;
        self.charge_for(key.len())?;
        let value = self.data.kv(&key);
        self.charge_for(value.as_ref().map_or(0, Vec::len))?;
        Ok(value)
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
    /// What the store has of a memory that it shares with others, and how much that is.
    shared: Option<(Arc<Ledger>, usize)>,
}

impl Space {
    pub(crate) fn new(memory_bytes_max: usize, table_elements_max: usize) -> Self {
        Self {
            memory_bytes_left: memory_bytes_max,
            table_elements_left: table_elements_max,
            refusals: 0,
            shared: None,
        }
    }

    /// The same within what its site and its process have: given back when the store is dropped.
    pub(crate) fn within(mut self, ledger: &Arc<Ledger>) -> Self {
        self.shared = Some((Arc::clone(ledger), 0));
        self
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
        let more = desired.saturating_sub(current);
        let Some(left) = self.memory_bytes_left.checked_sub(more) else { return self.refuse() };
        if let Some((ledger, taken)) = &mut self.shared {
            // Ends the call: a guest that were refused could not know that it is not to blame, and nobody else could.
            if !ledger.take(more) {
                return Err(Stop::NoRoom.into());
            }
            *taken += more;
        }
        self.memory_bytes_left = left;
        Ok(true)
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

impl Drop for Space {
    fn drop(&mut self) {
        if let Some((ledger, taken)) = self.shared.take() {
            ledger.give_back(taken);
        }
    }
}

/// The deadline of one call, in processor time although the epoch counts wall time: a thread that waits for a busy
/// machine must not turn a good plugin's call into a fault, because a fault changes a price.
///
/// Most calls end within the tick in which they began, and cost nothing here. The first tick that ends during a call
/// starts its account, and from then on its thread's processor clock is read once a tick. So a call has all of its
/// processor time for certain, and at most the rest of one tick (and the one that notices) more.
pub(crate) struct Deadline {
    processor: Duration,
    starved_ticks_max: u64,
    toll: Toll,
    account: Option<Account>,
}

struct Account {
    /// The thread's processor time at the last look, the first of which was when the first tick ended.
    looked: Duration,
    ticks: u64,
}

impl Deadline {
    /// Ticks until [`Self::on_tick`] is to be asked first: the one that is under way. Armed once, before instantiation:
    /// start functions, `realloc`, the hook and its post-return all run on the same account.
    pub(crate) const FIRST_TICKS: u64 = 1;

    pub(crate) fn new(processor: Duration, wall_max: Duration, toll: Toll) -> Self {
        Self { processor, starved_ticks_max: ticks(wall_max), toll, account: None }
    }

    /// What to do with a guest that is still running when a tick ends; `now` is its thread's processor time.
    pub(crate) fn on_tick(&mut self, now: Duration) -> Result<UpdateDeadline, Stop> {
        let account = self.account.get_or_insert(Account { looked: now, ticks: 0 });
        account.ticks += 1;
        self.toll.add(now.saturating_sub(account.looked));
        account.looked = now;
        if self.toll.spent() >= self.processor {
            Ok(UpdateDeadline::Interrupt)
        } else if account.ticks > self.starved_ticks_max {
            // Stopped too, but not for anything that the plugin did.
            Err(Stop::Starved)
        } else {
            Ok(UpdateDeadline::Continue(1))
        }
    }
}

impl Deadline {
    /// What the call has been charged; none if it was over before anybody looked.
    pub(super) fn toll(&self) -> Option<Toll> {
        self.account.as_ref().map(|_| self.toll)
    }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_micros().div_ceil(TICK.as_micros())).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::ticker::Credit;

    const MS: Duration = Duration::from_millis(1);

    fn goes_on(outcome: Result<UpdateDeadline, Stop>) -> bool {
        matches!(outcome, Ok(UpdateDeadline::Continue(1)))
    }

    #[test]
    fn a_call_has_all_of_its_processor_time_however_much_wall_time_others_take() {
        let mut deadline = Deadline::new(5 * MS, 250 * MS, Credit::default().toll());
        // Each millisecond of its own takes twenty of the wall, from the beginning on.
        let begin = 70 * MS;
        for ms in 0..5 {
            for _ in 0..20 {
                assert!(goes_on(deadline.on_tick(begin + ms * MS)), "after {ms} ms");
            }
        }
        assert!(matches!(deadline.on_tick(begin + 5 * MS), Ok(UpdateDeadline::Interrupt)));
    }

    #[test]
    fn the_share_of_a_call_is_never_less_than_what_it_was_promised() {
        let mut deadline = Deadline::new(MS / 2, 250 * MS, Credit::default().toll());
        assert!(goes_on(deadline.on_tick(9 * MS)));
        assert!(goes_on(deadline.on_tick(9 * MS + MS / 2 - Duration::from_nanos(1))));
        assert!(matches!(deadline.on_tick(9 * MS + MS / 2), Ok(UpdateDeadline::Interrupt)));
    }

    #[test]
    fn time_that_the_hypervisor_took_is_not_the_calls() {
        let mut deadline = Deadline::new(5 * MS, 250 * MS, Credit::default().toll());
        for now in [0, 1, 325, 326] {
            assert!(goes_on(deadline.on_tick(now * MS)), "3 ms of its own by {now}");
        }
        assert!(goes_on(deadline.on_tick(327 * MS)));
        assert!(matches!(deadline.on_tick(328 * MS), Ok(UpdateDeadline::Interrupt)));
    }

    #[test]
    fn a_call_that_gets_no_processor_ends_and_is_not_to_blame() {
        let mut deadline = Deadline::new(5 * MS, 250 * MS, Credit::default().toll());
        for _ in 0..250 {
            assert!(goes_on(deadline.on_tick(MS)));
        }
        let Err(stop) = deadline.on_tick(MS) else { panic!("it goes on for ever") };
        let fault = crate::fault::classify(&stop.into(), false);
        assert_eq!(fault, crate::fault::Fault::Busy);
        assert!(!fault.is_the_plugins());
    }
}
