//! Whom a connection is counted for.

use std::net::{IpAddr, Ipv4Addr};

/// One IPv4 address, or one /64 of IPv6: what a network gives one customer, who can have any address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Address {
    V4(Ipv4Addr),
    V6(u64),
}

impl Address {
    pub(super) fn of(peer: IpAddr) -> Self {
        // A listener on `[::]` sees IPv4 peers in the clothes of IPv6.
        match peer.to_canonical() {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments().map(u64::from);
                Self::V6(a << 48 | b << 32 | c << 16 | d)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_and_mapped_addresses_are_ipv4() {
        let of = |text: &str| Address::of(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
