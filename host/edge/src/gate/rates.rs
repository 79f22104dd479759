//! How often somebody may ask: by address, by token, by site. Each is off unless the node's configuration has it.
//!
//! The counting is `governor`'s (GCRA: no timer, one number per key). Owns how many keys are remembered: whoever comes when
//! there is no room shares one allowance with all others who do, so that inventing keys gains nothing.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use souk_config::RatesConfig;

use super::address::Address;
use crate::rescue::{Problem, Refusal};

/// Keys of one kind that are remembered: some 100 bytes each, 6 MiB.
const KEYS_MAX: usize = 65_536;
/// Forgetting those that have their full allowance again looks at all of them: not more often than this.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Rates {
    address: Option<Table<Address>>,
    token: Option<Table<u64>>,
    site: Option<Table<String>>,
    hash: RandomState,
}

impl Rates {
    pub fn new(config: &RatesConfig) -> Self {
        Self {
            address: config.per_address.map(|rate| Table::new(rate, DefaultClock::default())),
            token: config.per_token.map(|rate| Table::new(rate, DefaultClock::default())),
            site: config.per_site.map(|rate| Table::new(rate, DefaultClock::default())),
            hash: RandomState::new(),
        }
    }

    pub fn check_address(&self, peer: IpAddr) -> Result<(), Problem> {
        let Some(table) = &self.address else { return Ok(()) };
        table.check(&Address::of(peer)).map_err(|wait| refused("address", wait))
    }

    /// `token`: as the request has it, whether or not it is valid. Its text is not kept.
    pub fn check_token(&self, token: &[u8]) -> Result<(), Problem> {
        let Some(table) = &self.token else { return Ok(()) };
        table.check(&self.hash.hash_one(token)).map_err(|wait| refused("token", wait))
    }

    pub fn check_site(&self, site: &str) -> Result<(), Problem> {
        let Some(table) = &self.site else { return Ok(()) };
        table.check(&site.to_owned()).map_err(|wait| refused("site", wait))
    }
}

fn refused(limit: &'static str, wait: Duration) -> Problem {
    let seconds = u32::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
    let why = format!("this {limit} has asked as often as it may");
    Problem::new(Refusal::TooManyRequests, why).with("limit", limit).retry_after(seconds)
}

type Keyed<K, C> = RateLimiter<K, HashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;
type Single<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

#[derive(Debug)]
struct Table<K: Hash + Eq + Clone, C: Clock = DefaultClock> {
    known: Keyed<K, C>,
    others: Single<C>,
    clock: C,
    keys_max: usize,
    forgot: Mutex<Option<C::Instant>>,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Table<K, C> {
    fn new(rate: NonZeroU32, clock: C) -> Self {
        let quota = Quota::per_second(rate);
        Self {
            known: RateLimiter::hashmap_with_clock(quota, clock.clone()),
            others: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock,
            keys_max: KEYS_MAX,
            forgot: Mutex::new(None),
        }
    }

    /// Whether somebody may ask now; else, how long from now.
    fn check(&self, key: &K) -> Result<(), Duration> {
        let now = self.clock.now();
        if self.known.len() >= self.keys_max {
            let mut forgot = self.forgot.lock();
            let due = forgot.is_none_or(|at| Duration::from(reference(now, at)) >= FORGET_EVERY);
            if due {
                *forgot = Some(now);
                self.known.retain_recent();
            }
        }
        // A key that is known already is not told apart from a new one here: both share what is left while there are so many.
        if self.known.len() >= self.keys_max {
            return self.others.check().map_err(|until| until.wait_time_from(now));
        }
        self.known.check_key(key).map_err(|until| until.wait_time_from(now))
    }
}

fn reference<I: governor::clock::Reference>(now: I, at: I) -> governor::nanos::Nanos {
    now.duration_since(at)
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn per_second(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).expect("more than none")
    }

    #[test]
    fn a_key_has_its_rate_and_another_its_own() {
        let clock = FakeRelativeClock::default();
        let table = Table::new(per_second(10), clock.clone());
        assert!((0..10).all(|_| table.check(&1).is_ok()));
        let wait = table.check(&1).expect_err("ten are ten");
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert!(table.check(&2).is_ok());
        clock.advance(Duration::from_millis(100));
        assert!(table.check(&1).is_ok() && table.check(&1).is_err());
    }

    #[test]
    fn keys_are_bounded_and_inventing_them_gains_nothing() {
        let clock = FakeRelativeClock::default();
        let table = Table { keys_max: 100, ..Table::new(per_second(10), clock.clone()) };
        let let_in = (0..100_000).filter(|key| table.check(key).is_ok()).count();
        assert_eq!((let_in, table.known.len()), (100 + 10, 100));
        // Who has been quiet is forgotten, and there is room again.
        clock.advance(FORGET_EVERY * 2);
        assert!((0..50).all(|key| table.check(&(key + 1_000_000)).is_ok()));
        assert!(table.known.len() <= 100);
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_what_is_off_refuses_nobody() {
        let config = RatesConfig { per_address: Some(per_second(1)), ..RatesConfig::default() };
        let rates = Rates::new(&config);
        let peer = "192.0.2.1".parse().expect("an address");
        assert!(rates.check_address(peer).is_ok());
        let response = rates.check_address(peer).expect_err("once a second").into_response();
        assert_eq!(
            (response.status().as_u16(), response.headers()["retry-after"].as_bytes()),
            (429, &b"1"[..])
        );
        assert!((0..10_000).all(|_| rates.check_token(b"x").is_ok() && rates.check_site("x").is_ok()));
    }
}
