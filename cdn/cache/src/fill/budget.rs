//! The memory that fills share, and how much of it one site may take.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Memory that all fills of a cache share.
#[derive(Debug)]
pub(crate) struct FillBudget {
    used: AtomicU64,
    bytes_max: u64,
    site_bytes_max: u64,
    /// What each site takes. Sites are of the settings: no client can name another.
    sites: Mutex<HashMap<Box<str>, Arc<AtomicU64>>>,
}

/// The share of the site of one fill.
#[derive(Debug)]
pub(crate) struct SiteBudget {
    all: Arc<FillBudget>,
    own: Arc<AtomicU64>,
}

impl FillBudget {
    pub(crate) fn new(bytes_max: u64, site_bytes_max: u64) -> Self {
        Self { used: AtomicU64::new(0), bytes_max, site_bytes_max, sites: Mutex::default() }
    }

    /// Bytes of responses that are still arriving.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn of_site(self: &Arc<Self>, site: &str) -> SiteBudget {
        let mut sites = self.sites.lock();
        let own = match sites.get(site) {
            Some(own) => Arc::clone(own),
            None => Arc::clone(sites.entry(site.into()).or_default()),
        };
        SiteBudget { all: Arc::clone(self), own }
    }
}

impl SiteBudget {
    /// Takes memory for so many bytes more. False if that is more than there is for the site, or for all.
    pub(crate) fn charge(&self, bytes: u64) -> bool {
        let own = self.own.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        own <= self.all.site_bytes_max && all <= self.all.bytes_max
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.own.fetch_sub(bytes, Ordering::Relaxed);
        self.all.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Nothing more may begin.
    pub(crate) fn is_full(&self) -> bool {
        self.own.load(Ordering::Relaxed) >= self.all.site_bytes_max || self.all.used() >= self.all.bytes_max
    }
}
