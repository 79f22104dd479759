//! Units of products that the region has lent to this node, to be promised here.
//!
//! Owns the stored form of a lease and the clock by which it ends. A promise takes from a lease in the transaction that appends
//! the operation which says so ([`super::outbox`]); how much a lease has left, and what ends it, is
//! [`souk_replication::escrow`]'s. Knows no HTTP and asks nobody; filled by [`crate::stock`].

use std::sync::atomic::{AtomicU64, Ordering};

use minicbor::{Decode, Encode};
use rustix::time::{ClockId, clock_gettime};
use souk_commerce::call::Granted;
use souk_commerce::id::{GrantId, SiteId, Sku};
use souk_replication::escrow::Lease;

/// Where Linux names this start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Milliseconds since the machine was started. They go on while it sleeps and over restarts of this process, and nobody sets
/// them: a lease ends by them, and is worth nothing after a restart of the machine until the region has named it again.
#[derive(Debug)]
pub(super) struct Steady {
    boot: u128,
    /// For tests: how far it is ahead.
    ahead_ms: AtomicU64,
}

impl Steady {
    pub(super) fn of_this_machine() -> Self {
        let read = std::fs::read_to_string(BOOT_ID).ok();
        let boot = read.and_then(|text| u128::from_str_radix(&text.trim().replace('-', ""), 16).ok());
        // Not known: then leases do not outlive the process.
        Self { boot: boot.unwrap_or_else(rand::random), ahead_ms: AtomicU64::new(0) }
    }

    pub(super) fn now_ms(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let ms = now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000);
        u64::try_from(ms).unwrap_or(0).saturating_add(self.ahead_ms.load(Ordering::Relaxed))
    }

    pub(super) const fn boot(&self) -> u128 {
        self.boot
    }

    #[cfg(test)]
    pub(super) fn pass(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// A lease of one product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    pub site: SiteId,
    pub sku: Sku,
    pub grant: GrantId,
    pub units: u64,
    pub used: u64,
    /// What it can promise now.
    pub left: u64,
    /// For how long yet.
    pub ends_in_ms: u64,
}

/// The same in its stored form, under site and sku.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(super) struct LeaseRow {
    #[n(0)]
    pub(super) grant: GrantId,
    #[n(1)]
    units: u64,
    #[n(2)]
    used: u64,
    /// By [`Steady`], of the start of the machine that `boot` names.
    #[n(3)]
    until_ms: u64,
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    boot: [u8; 16],
    /// For how long units of it are promised.
    #[n(5)]
    pub(super) hold_ms: u64,
}

impl LeaseRow {
    /// What the region has answered to a question that was asked at `asked_ms`. `before`: what was used of it so far.
    pub(super) fn told(told: &Granted, before: Option<&Self>, asked_ms: u64, steady: &Steady) -> Self {
        Self {
            grant: told.grant,
            units: told.units,
            used: before.filter(|row| row.grant == told.grant).map_or(0, |row| row.used),
            until_ms: Lease::until(asked_ms, told.lives_ms),
            boot: steady.boot().to_be_bytes(),
            hold_ms: told.hold_ms,
        }
    }

    fn lease(&self, boot: u128) -> Lease {
        let until_ms = if self.boot == boot.to_be_bytes() { self.until_ms } else { 0 };
        Lease { units: self.units, used: self.used, until_ms }
    }

    /// Promises so many. False: it cannot.
    pub(super) fn take(&mut self, units: u64, now_ms: u64, boot: u128) -> bool {
        let mut lease = self.lease(boot);
        let taken = lease.take(units, now_ms);
        self.used = lease.used;
        taken
    }

    pub(super) fn shown(&self, site: SiteId, sku: Sku, steady: &Steady) -> Leased {
        let (lease, now_ms) = (self.lease(steady.boot()), steady.now_ms());
        Leased {
            site,
            sku,
            grant: self.grant,
            units: self.units,
            used: self.used,
            left: lease.left(now_ms),
            ends_in_ms: lease.until_ms.saturating_sub(now_ms),
        }
    }
}
