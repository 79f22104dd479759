//! Who the client is, behind proxies that are trusted to say so.
//!
//! `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded` (RFC 7239) are anybody's to write, so they count only from
//! senders that the settings name. Addresses are read from the end, the nearest first: each was added by the one after
//! it, and only as far as those are trusted is it true. Pure: messages in, facts out.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;
use souk_cache::Scheme;

use crate::listen::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Members that are read. No honest chain of proxies is longer.
const HOPS_MAX: usize = 16;

/// Who sent a request, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The client, and then the trusted proxies it came through, the nearest last.
    pub(crate) chain: Vec<IpAddr>,
    /// What the client speaks with the first proxy, where a trusted one says so.
    pub(crate) scheme: Option<Scheme>,
}

impl Sender {
    /// The connection's own address, and nobody's word.
    pub(crate) fn peer(address: IpAddr) -> Self {
        Self { chain: vec![address.to_canonical()], scheme: None }
    }

    /// `headers` are those of the request before anything was taken out of them.
    pub(crate) fn of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let peer = peer.to_canonical();
        let is_trusted = |address: IpAddr| trusted.iter().any(|range| range.contains(&address));
        if !is_trusted(peer) {
            return Self::peer(peer);
        }
        let Some(said) = said(headers) else { return Self::peer(peer) };
        let mut chain = vec![peer];
        let mut nearest = peer;
        for hop in said.hops.into_iter().rev().take(HOPS_MAX) {
            // Whoever wrote this member is `nearest`.
            let Some(address) = hop.filter(|_| is_trusted(nearest)) else { break };
            chain.push(address);
            nearest = address;
        }
        chain.reverse();
        Self { chain, scheme: said.scheme }
    }

    /// The client for whom a connection speaks.
    pub(crate) fn client(&self, peer: Peer) -> Peer {
        let tls = self.scheme.map_or(peer.tls, |scheme| scheme == Scheme::Https);
        // The nearest that no trusted proxy is. No proxy says the client's port.
        let addr = self.chain.first().map_or(peer.addr, |address| SocketAddr::new(*address, 0));
        Peer { addr, tls }
    }

    /// The value of `X-Forwarded-For` for the next server.
    pub(super) fn field(&self) -> String {
        self.chain.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// The client for whom a connection speaks: by whom limits count, who is in the log, and whether anybody between can read
/// along. It is the other end itself unless that is trusted to say more.
pub(crate) fn client(headers: &HeaderMap, peer: Peer, trusted: &[IpNet]) -> Peer {
    if trusted.is_empty() {
        return peer;
    }
    Sender::of(headers, peer.addr.ip(), trusted).client(peer)
}

/// What a trusted proxy says.
struct Said {
    /// The nearest last. None for a member that is no address.
    hops: Vec<Option<IpAddr>>,
    scheme: Option<Scheme>,
}

impl Said {
    /// There, and not to be read: what a trusted proxy has added may be hidden in what its client wrote.
    fn unreadable() -> Self {
        Self { hops: vec![None], scheme: None }
    }
}

/// One of the two ways to say it. Where both are there and differ, one of them came through from the client, and nobody
/// can tell which: neither counts. One that cannot be read is there all the same, or a client could hide it.
fn said(headers: &HeaderMap) -> Option<Said> {
    let standard = lines(headers, &FORWARDED).map(|lines| match lines {
        Some(lines) if lines.iter().all(|line| Quotes::are_closed_in(line)) => of_forwarded(&lines.join(",")),
        _ => Said::unreadable(),
    });
    let customary = lines(headers, &X_FORWARDED_FOR).map(|lines| {
        let Some(lines) = lines else { return Said::unreadable() };
        let proto = lines_of_proto(headers);
        let proto = proto.as_deref().and_then(|line| line.rsplit(',').next()).and_then(scheme);
        Said { hops: lines.join(",").split(',').map(address).collect(), scheme: proto }
    });
    match (standard, customary) {
        (Some(a), Some(b)) => (a.hops.last() == b.hops.last() && a.scheme == b.scheme).then_some(b),
        (standard, customary) => standard.or(customary),
    }
}

/// The lines of a field, if it is there: none of them if one is not text.
fn lines<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Option<Vec<&'a str>>> {
    headers
        .contains_key(name)
        .then(|| headers.get_all(name).iter().map(|value| value.to_str().ok()).collect())
}

fn lines_of_proto(headers: &HeaderMap) -> Option<String> {
    lines(headers, &X_FORWARDED_PROTO).flatten().map(|lines| lines.join(","))
}

fn scheme(text: &str) -> Option<Scheme> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("https") {
        Some(Scheme::Https)
    } else if text.eq_ignore_ascii_case("http") {
        Some(Scheme::Http)
    } else {
        None
    }
}

/// An address, with a port or without, an IPv6 one in brackets or without.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    parsed.map(|address| address.to_canonical())
}

fn of_forwarded(line: &str) -> Said {
    let elements = outside_quotes(line, ',');
    let parameter = |element: &str, wanted: &str| {
        outside_quotes(element, ';').into_iter().find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.to_owned())
        })
    };
    let hops =
        elements.iter().map(|element| parameter(element, "for").as_deref().and_then(address)).collect();
    let proto = elements.last().and_then(|element| parameter(element, "proto"));
    Said { hops, scheme: proto.as_deref().and_then(scheme) }
}

fn outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quotes = Quotes::default();
    text.split(move |letter| quotes.are_passed_by(letter) && letter == separator).collect()
}

/// Where in a text quoted strings are (RFC 9110 section 5.6.4).
#[derive(Default)]
struct Quotes {
    is_open: bool,
    escapes: bool,
}

impl Quotes {
    /// Whether this letter is outside of them.
    fn are_passed_by(&mut self, letter: char) -> bool {
        let is_escaped = std::mem::take(&mut self.escapes);
        if self.is_open && !is_escaped && letter == '\\' {
            self.escapes = true;
        } else if letter == '"' && !is_escaped {
            self.is_open = !self.is_open;
        }
        !self.is_open
    }

    fn are_closed_in(text: &str) -> bool {
        let mut quotes = Self::default();
        text.chars().fold(true, |_, letter| quotes.are_passed_by(letter))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn of(peer: &str, fields: &[(&'static str, &str)]) -> Sender {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().expect("a range"));
        Sender::of(&headers, peer.parse().expect("an address"), &trusted)
    }

    fn chain(sender: &Sender) -> String {
        sender.field()
    }

    #[test]
    fn strangers_are_not_believed() {
        let fields = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=6.6.6.6;proto=https"),
        ];
        assert_eq!(of("203.0.113.9", &fields), Sender::peer("203.0.113.9".parse().expect("an address")));
        assert_eq!(chain(&of("::ffff:203.0.113.9", &fields)), "203.0.113.9");
    }

    #[test]
    fn a_trusted_proxy_is_believed_as_far_as_its_own_word_goes() {
        let one = of(PROXY, &[("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")]);
        assert_eq!(chain(&one), "203.0.113.9, 10.0.0.1", "what the client wrote itself is left out");
        assert_eq!(one.scheme, Some(Scheme::Https));
        let two = of(PROXY, &[("x-forwarded-for", "6.6.6.6,203.0.113.9"), ("x-forwarded-for", "10.9.9.9")]);
        assert_eq!(chain(&two), "203.0.113.9, 10.9.9.9, 10.0.0.1");
        let mapped = of("::ffff:10.0.0.1", &[("x-forwarded-for", "203.0.113.9")]);
        assert_eq!(chain(&mapped), "203.0.113.9, 10.0.0.1");
    }

    #[test]
    fn forwarded_says_the_same() {
        for line in [
            "for=6.6.6.6, for=203.0.113.9;proto=https;by=10.0.0.1",
            "for=6.6.6.6,For=\"203.0.113.9:4711\"; Proto=HTTPS",
            "for=\"a,b;for=7.7.7.7\", proto=https;for=203.0.113.9",
        ] {
            let sender = of(PROXY, &[("forwarded", line)]);
            assert_eq!(
                (chain(&sender).as_str(), sender.scheme),
                ("203.0.113.9, 10.0.0.1", Some(Scheme::Https)),
                "{line}"
            );
        }
        let six = of("fd00::1", &[("forwarded", "for=\"[2001:db8::17]:4711\"")]);
        assert_eq!(chain(&six), "2001:db8::17, fd00::1");
    }

    #[test]
    fn what_is_no_address_ends_the_chain() {
        for text in ["unknown", "_hidden", "", "1.2.3", "203.0.113.9 203.0.113.8", "\""] {
            assert_eq!(chain(&of(PROXY, &[("x-forwarded-for", text)])), PROXY, "{text:?}");
            assert_eq!(chain(&of(PROXY, &[("forwarded", &format!("for={text}"))])), PROXY, "{text:?}");
        }
        assert_eq!(
            of(PROXY, &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "gopher")]).scheme,
            None
        );
    }

    #[test]
    fn what_a_client_writes_hides_nothing_that_a_trusted_proxy_adds() {
        let seen = |fields: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_bytes(value).expect("a value"));
            }
            let trusted = ["10.0.0.0/8".parse().expect("a range")];
            let sender = Sender::of(&headers, PROXY.parse().expect("an address"), &trusted);
            (chain(&sender), sender.scheme)
        };
        let (customary, standard) = ("x-forwarded-for", "forwarded");
        let nobodys = (PROXY.to_owned(), None);
        // The proxy writes one of the two fields, after what its client wrote, and passes the other on.
        let forged = b"for=6.6.6.6;proto=https";
        assert_eq!(seen(&[(customary, b"\xe9, 203.0.113.9"), (standard, forged)]), nobodys);
        assert_eq!(seen(&[(standard, b"\xe9, for=203.0.113.9"), (customary, b"6.6.6.6")]), nobodys);
        assert_eq!(seen(&[(customary, b"\xe9"), (customary, b"203.0.113.9")]), nobodys);
        // A quote that the client leaves open, in the proxy's line or before it.
        assert_eq!(seen(&[(standard, b"for=6.6.6.6;x=\", for=203.0.113.9;proto=https")]), nobodys);
        assert_eq!(seen(&[(standard, b"for=6.6.6.6;x=\""), (standard, b"for=203.0.113.9")]), nobodys);
        // One that it closes, with another in it.
        let closed = b"for=6.6.6.6;x=\"\\\"\", for=203.0.113.9;proto=https";
        assert_eq!(seen(&[(standard, closed)]), ("203.0.113.9, 10.0.0.1".to_owned(), Some(Scheme::Https)));
    }

    #[test]
    fn two_words_that_differ_are_none() {
        let fields = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=6.6.6.6")];
        assert_eq!(chain(&of(PROXY, &fields)), PROXY);
        let schemes = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=203.0.113.9;proto=http"),
        ];
        assert_eq!(of(PROXY, &schemes).scheme, None);
        let same = [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9")];
        assert_eq!(chain(&of(PROXY, &same)), "203.0.113.9, 10.0.0.1");
    }

    #[test]
    fn whom_limits_count_by_is_the_client_where_somebody_trusted_says_who_it_is() {
        let trusted = ["10.0.0.0/8".parse().expect("a range")];
        let seen = |from: &str, trusted: &[IpNet], tls: bool| {
            let fields = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")];
            let headers =
                fields.map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a value")));
            let peer = Peer { addr: SocketAddr::new(from.parse().expect("an address"), 4711), tls };
            let Peer { addr, tls } = client(&headers.into_iter().collect(), peer, trusted);
            (addr.ip().to_string(), tls)
        };
        assert_eq!(seen(PROXY, &trusted, false), ("203.0.113.9".to_owned(), true));
        assert_eq!(seen("192.0.2.1", &trusted, false), ("192.0.2.1".to_owned(), false));
        assert_eq!(seen(PROXY, &[], true), (PROXY.to_owned(), true));
    }

    #[test]
    fn a_long_chain_is_cut() {
        let long = vec!["10.1.1.1"; 1_000].join(",");
        assert_eq!(of(PROXY, &[("x-forwarded-for", &long)]).chain.len(), HOPS_MAX + 1);
    }
}
