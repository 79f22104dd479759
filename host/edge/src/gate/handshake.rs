//! Handshakes of TLS over TCP that are at work: what a crowd of new clients may cost before it has asked for anything.
//!
//! Whoever connects and says nothing has no place here, and costs a connection. The place is taken when a ClientHello is
//! there whole, before anything is computed; where there is none, the connection is closed at once. Handshakes of HTTP/3
//! have a bound of their own ([`crate::http3`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Tie;

/// Handshakes at work at once. Each takes one round trip and a signature: with 100 ms that is 10,000 new connections a
/// second, twice what two cores sign with ECDSA if they do nothing else. More would wait for the processor and for each
/// other until all of them are too late. Some 40 KiB each: 40 MiB.
const HANDSHAKES_MAX: usize = 1_024;
/// Of these, what one address may have: a whole office behind one address comes at 2,560 connections a second, and three
/// addresses that begin handshakes and never end them leave a quarter to everybody else.
const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;
/// How long a handshake may take that begins while half of the places are taken: a round trip of 300 ms, three times.
/// Who lets its handshake stand must come back for its place every second.
const CROWDED_DEADLINE: Duration = Duration::from_secs(1);

/// A handshake at work. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Handshake(Arc<Tie>);

impl Tie {
    /// A place for a handshake, and how long it may take of what it has `left`; none if there are too many.
    pub(crate) fn shake(self: &Arc<Self>, left: Duration) -> Option<(Handshake, Duration)> {
        let gate = &self.gate;
        let mut addresses = gate.addresses.lock();
        let own = addresses.get_mut(&self.address)?;
        let all = gate.handshakes.load(Ordering::Relaxed);
        if all >= HANDSHAKES_MAX || own.handshakes >= HANDSHAKES_PER_ADDRESS_MAX {
            gate.metrics.turned_away("handshakes");
            return None;
        }
        own.handshakes += 1;
        gate.handshakes.fetch_add(1, Ordering::Relaxed);
        gate.metrics.handshakes.inc();
        let is_crowded = all >= HANDSHAKES_MAX / 2 || own.handshakes > HANDSHAKES_PER_ADDRESS_MAX / 2;
        let left = if is_crowded { left.min(CROWDED_DEADLINE) } else { left };
        Some((Handshake(Arc::clone(self)), left))
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let Tie { gate, address, .. } = &*self.0;
        if let Some(own) = gate.addresses.lock().get_mut(address) {
            own.handshakes -= 1;
        }
        gate.handshakes.fetch_sub(1, Ordering::Relaxed);
        gate.metrics.handshakes.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::super::{Gate, GateLimits};
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    fn shake(gate: &Arc<Gate>, last: u8) -> Option<(Handshake, Duration)> {
        gate.admit(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).expect("room").shake(DEADLINE)
    }

    #[test]
    fn handshakes_have_a_bound_and_no_address_has_all_of_them() {
        let many = 10_000;
        let limits = GateLimits {
            connections_max: many,
            connections_per_address_max: many,
            requests_in_flight_max: many,
        };
        let gate = Gate::new(limits);
        let mut open: Vec<_> = (0..).map_while(|_| shake(&gate, 1)).collect();
        assert_eq!(open.len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert_eq!((open[0].1, open.last().expect("some").1), (DEADLINE, CROWDED_DEADLINE));
        assert_eq!(shake(&gate, 2).expect("another address has its own").1, DEADLINE);
        for last in 2..=200 {
            open.extend((0..).map_while(|_| shake(&gate, last)));
        }
        assert_eq!(open.len(), HANDSHAKES_MAX);
        drop(open.pop());
        let again = shake(&gate, 201).expect("one has ended");
        assert!(shake(&gate, 202).is_none());
        drop((open, again));
        assert_eq!(gate.handshakes.load(Ordering::Relaxed), 0);
        assert!(gate.addresses.lock().is_empty(), "who has gone is forgotten");
    }
}
