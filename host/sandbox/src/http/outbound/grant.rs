//! What a merchant granted a component to reach, and whether a request is for it. Pure.
//!
//! A host has one spelling here. A grant in another spelling is refused when it is made, and a request in another
//! spelling equals no grant: decimal and octal addresses, trailing dots, user information and the like need no case of
//! their own.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::Scheme;

const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// One place that a component may send requests to: `api.example.com`, `api.example.com:8443` or
/// `http://intranet.example`. https unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    encrypted: bool,
    host: Host,
    port: u16,
}

/// A host in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// Lower case, without a trailing dot.
    Name(String),
    Address(IpAddr),
}

/// Why a text grants nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no host that can be granted: {why}")]
pub struct BadGrant {
    pub text: String,
    pub why: &'static str,
}

impl FromStr for Grant {
    type Err = BadGrant;

    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let (encrypted, authority) = match text.split_once("://") {
            None => (true, text),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => {
                return Err(BadGrant { text: text.to_owned(), why: "the scheme is neither http nor https" });
            }
        };
        Self::of(encrypted, authority).map_err(|why| BadGrant { text: text.to_owned(), why })
    }
}

impl Grant {
    /// Where a request goes, if that has a spelling that can be granted at all.
    pub(super) fn asked_by(uri: &Uri) -> Result<Self, &'static str> {
        let encrypted = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err("the scheme is neither http nor https"),
        };
        Self::of(encrypted, uri.authority().ok_or("it names no host")?.as_str())
    }

    fn of(encrypted: bool, authority: &str) -> Result<Self, &'static str> {
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or("a bracket is not closed")?;
            let address: Ipv6Addr = address.parse().map_err(|_| "the address is not valid")?;
            (Host::Address(IpAddr::V6(address)), port)
        } else {
            let at = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at(at);
            (named(host)?, port)
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => default_port(encrypted),
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port != 0).ok_or("the port is not valid")?
            }
            _ => return Err("the port is not valid"),
        };
        Ok(Self { encrypted, host, port })
    }

    /// Whether it is the reserved one, in its one spelling.
    pub(super) fn is_indoors(&self) -> bool {
        !self.encrypted
            && self.port == default_port(false)
            && self.host == Host::Name(super::INDOORS_HOST.to_owned())
    }

    pub(super) fn encrypted(&self) -> bool {
        self.encrypted
    }

    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// As in the `Host` field.
    pub(super) fn authority(&self) -> String {
        if self.port == default_port(self.encrypted) {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

fn default_port(encrypted: bool) -> u16 {
    if encrypted { 443 } else { 80 }
}

fn named(host: &str) -> Result<Host, &'static str> {
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return Err("the host is empty or too long");
    }
    // Strict: four decimal numbers without leading zeros.
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Address(IpAddr::V4(address)));
    }
    let mut last = "";
    for label in host.split('.') {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if label.is_empty() || label.len() > LABEL_BYTES_MAX || !label.bytes().all(plain) {
            return Err("the host is not a DNS name (write it in lower case ASCII, without a trailing dot)");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label of the host begins or ends with a hyphen");
        }
        last = label;
    }
    // Resolvers read `127.1`, `2130706433` and `0x7f.1` as addresses; no top-level domain begins with a digit.
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("the host ends in a number, but is not an address in its one spelling");
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.encrypted { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str) -> Result<Grant, &'static str> {
        Grant::asked_by(&uri.parse().map_err(|_| "no URI")?)
    }

    #[test]
    fn a_grant_is_for_one_scheme_host_and_port() {
        let grant: Grant = "api.example.com".parse().expect("a grant");
        assert_eq!(asked("https://API.example.com/x?y"), Ok(grant.clone()));
        assert_eq!(asked("https://api.example.com:443/"), Ok(grant.clone()));
        assert_eq!(
            (grant.authority(), grant.to_string()),
            ("api.example.com".into(), "https://api.example.com".into())
        );
        for other in [
            "http://api.example.com/",
            "https://api.example.com:8443/",
            "https://example.com/",
            "https://api.example.com.evil.example/",
            "https://xapi.example.com/",
        ] {
            assert_ne!(asked(other), Ok(grant.clone()), "{other}");
        }
        let grant: Grant = "http://[2606:4700::1111]:8080".parse().expect("a grant");
        assert_eq!(asked("http://[2606:4700:0:0:0:0:0:1111]:8080/"), Ok(grant));
        assert_eq!("http://a.example:80".parse::<Grant>(), "http://a.example".parse());
    }

    #[test]
    fn what_two_readers_could_read_differently_grants_nothing() {
        for text in [
            "",
            ".",
            "a..b",
            "example.com.",
            "-a.example",
            "a-.example",
            "*.example.com",
            "a b",
            "a/b",
            "a@b",
            "a#b",
            "a?b",
            "a:0",
            "a:",
            "a:x",
            "a:99999",
            "a:+80",
            "[::1",
            "[::g]",
            "::1",
            "127.1",
            "0177.0.0.1",
            "0x7f.1",
            "2130706433",
            "127.0.0.01",
            "1.2.3.4.5",
            "ftp://a",
            "https:/a",
            "bücher.example",
            "a_b.example",
            "a%2eb",
            "https://user@a.example",
            "https://a.example/path",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text:?}");
        }
    }
}
