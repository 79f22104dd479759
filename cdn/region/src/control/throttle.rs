//! How often somebody may be wrong.
//!
//! A secret of 256 bits is not found by trying. What is bounded is the noise, and what a program that went mad costs.
//! So only refusals are counted, and a right token always passes: else whoever shares a merchant's address, behind a
//! terminator or a company's gateway, could lock the merchant out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Refusals in a row that are each answered for themselves.
const BURST: f64 = 10.0;
/// And then this many a second.
const PER_SECOND: f64 = 0.5;
/// Addresses remembered. At 64 bytes each the table is a quarter of a MiB; when it is full, those who have behaved for
/// the longest time are forgotten.
const PEERS_MAX: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Throttle {
    peers: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Throttle {
    /// Counts a refusal. Some: there were too many, and how long to wait.
    pub(super) fn refused(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let mut peers = self.peers.lock();
        let peer = network(peer);
        if peers.len() >= PEERS_MAX && !peers.contains_key(&peer) {
            // Half at once: the scan is paid for by two thousand newcomers.
            let mut times: Vec<_> = peers.values().map(|bucket| bucket.at).collect();
            let (_, median, _) = times.select_nth_unstable(PEERS_MAX / 2);
            let median = *median;
            peers.retain(|_, bucket| bucket.at > median);
        }
        let bucket = peers.entry(peer).or_insert(Bucket { left: BURST, at: now });
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + elapsed * PER_SECOND).min(BURST);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return None;
        }
        Some(Duration::from_secs_f64((1.0 - bucket.left) / PER_SECOND))
    }
}

/// One customer of an access provider has a whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => (std::net::Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX))).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_mistakes_are_free_and_then_one_in_two_seconds() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        let peer: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::ffff".parse().unwrap();
        let stranger: IpAddr = "2001:db8:1::1".parse().unwrap();
        for _ in 0..10 {
            assert_eq!(throttle.refused(peer, start), None);
        }
        assert_eq!(throttle.refused(neighbour, start), Some(Duration::from_secs(2)), "the same /64");
        assert_eq!(throttle.refused(stranger, start), None);
        assert_eq!(throttle.refused(peer, start + Duration::from_secs(2)), None);
        assert!(throttle.refused(peer, start + Duration::from_secs(2)).is_some());
    }

    #[test]
    fn the_table_is_bounded() {
        let (throttle, start) = (Throttle::default(), Instant::now());
        for i in 0..20_000_u32 {
            throttle.refused(IpAddr::V4(i.into()), start + Duration::from_millis(i.into()));
        }
        assert!(throttle.peers.lock().len() <= PEERS_MAX);
    }
}
