//! Which addresses no guest may ever reach. Pure.
//!
//! The rule for IPv6 says what is allowed (global unicast, without the ranges that carry another address inside), the
//! one for IPv4 says what is not: that is how the two registries of IANA are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether the address is of no public host: a machine's own, a private or link-local network, a cloud's metadata
/// service, a multicast group, or a wrapping of one of these.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    match a {
        // "This network", private, loopback, multicast, reserved and broadcast.
        0 | 10 | 127 | 224..=255 => true,
        // Carrier-grade NAT; the metadata service of one cloud is within.
        100 => (64..=127).contains(&b),
        // The platform address of another cloud, although the range is public.
        168 => (b, c, d) == (63, 129, 16),
        // Link-local: metadata services.
        169 => b == 254,
        172 => (16..=31).contains(&b),
        // Private; protocol assignments, documentation, 6to4 relays.
        192 => b == 168 || (b == 0 && (c == 0 || c == 2)) || (b == 88 && c == 99),
        // Benchmarks, documentation.
        198 => b == 18 || b == 19 || (b == 51 && c == 100),
        203 => b == 0 && c == 113,
        _ => false,
    }
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Outside 2000::/3 are loopback, IPv4-mapped and -compatible, NAT64, unique local, link-local and multicast.
    let global = a & 0xe000 == 0x2000;
    let wraps_or_documents = match a {
        // 2001::/23 holds Teredo and other protocols, 2001:db8::/32 is documentation.
        0x2001 => b < 0x0200 || b == 0x0db8,
        // 6to4.
        0x2002 => true,
        // 3fff::/20, documentation.
        0x3fff => b < 0x1000,
        _ => false,
    };
    !global || wraps_or_documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_public_hosts_is_reached() {
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a00:1",
            "100::1",
            "2001::1",
            "2001:0:7f00:1::",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_private(private.parse().expect(private)), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "128.0.0.1",
            "168.63.129.17",
            "169.253.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(!is_private(public.parse().expect(public)), "{public}");
        }
    }
}
