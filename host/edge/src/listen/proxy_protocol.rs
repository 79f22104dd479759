//! The PROXY protocol, version 2: who the client is, as a load balancer in front of the node says it.
//!
//! A header tells every limit, log and shop who asks, so it is believed from named senders only, and from those it must
//! come: a listener that takes connections with and without it lets anybody choose an address. Version 1 is text without a
//! length and is not read. Called by [`crate::listen`], before TLS.

use std::io;
use std::net::SocketAddr;

use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header, ParseError};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Signature, version, family and length.
const FIXED_BYTES: usize = 16;
/// What may follow: addresses have at most 216 bytes, what balancers say of TLS some hundred more.
const REST_BYTES_MAX: usize = 2 * 1024;

#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("it is no sender of PROXY protocol headers")]
    Stranger,
    #[error("the connection ended before its first byte")]
    Silent,
    #[error("the connection ended in its PROXY protocol header: {0}")]
    Lost(#[from] io::Error),
    #[error("the connection does not begin with a PROXY protocol header of version 2: {0}")]
    Malformed(#[from] ParseError),
    #[error("its PROXY protocol header has {0} bytes, and at most {REST_BYTES_MAX} are read")]
    TooLong(usize),
    #[error("its PROXY protocol header names a UNIX socket as the client")]
    NoAddress,
}

/// Who the client of a connection is, whose header is read from it and not a byte more.
///
/// `sender` is the other end of the connection. A header that says LOCAL (a balancer's own probe) or no address leaves it
/// the client. A probe that only connects says nothing at all, and is an error that has a name of its own.
pub(super) async fn client(
    stream: &mut (impl AsyncRead + Unpin),
    sender: SocketAddr,
    trusted: &[IpNet],
) -> Result<SocketAddr, ProxyError> {
    let ip = sender.ip().to_canonical();
    if !trusted.iter().any(|network| network.contains(&ip)) {
        return Err(ProxyError::Stranger);
    }
    let mut bytes = vec![0; FIXED_BYTES];
    let begun = stream.read(&mut bytes).await.unwrap_or_default();
    if begun == 0 {
        return Err(ProxyError::Silent);
    }
    if let Some(missing) = bytes.get_mut(begun..) {
        stream.read_exact(missing).await?;
    }
    let rest = match bytes.last_chunk() {
        Some(length) => usize::from(u16::from_be_bytes(*length)),
        None => 0,
    };
    // A stranger's bytes, read as a length, may be waited for in vain.
    if !bytes.starts_with(ppp::v2::PROTOCOL_PREFIX) {
        return Err(ParseError::Prefix.into());
    }
    if rest > REST_BYTES_MAX {
        return Err(ProxyError::TooLong(rest));
    }
    bytes.resize(FIXED_BYTES + rest, 0);
    if let Some(missing) = bytes.get_mut(FIXED_BYTES..) {
        stream.read_exact(missing).await?;
    }
    let header = Header::try_from(bytes.as_slice())?;
    Ok(match (header.command, header.addresses) {
        (Command::Local, _) | (_, Addresses::Unspecified) => sender,
        (_, Addresses::IPv4(said)) => (said.source_address, said.source_port).into(),
        (_, Addresses::IPv6(said)) => (said.source_address, said.source_port).into(),
        (_, Addresses::Unix(_)) => return Err(ProxyError::NoAddress),
    })
}

#[cfg(test)]
mod tests {
    use ppp::v2::{Builder, Protocol, Type, Version};

    use super::*;

    const SENDER: &str = "10.0.0.7:4000";

    async fn read(mut bytes: &[u8]) -> (Result<SocketAddr, ProxyError>, Vec<u8>) {
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        let said = client(&mut bytes, SENDER.parse().expect("an address"), &trusted).await;
        (said, bytes.to_vec())
    }

    fn header(command: Command, source: &str) -> Vec<u8> {
        let source: SocketAddr = source.parse().expect("an address");
        let target = SocketAddr::new(source.ip(), 443);
        Builder::with_addresses(Version::Two | command, Protocol::Stream, (source, target))
            .write_tlv(Type::ALPN, b"h2")
            .expect("room for it")
            .build()
            .expect("a header")
    }

    #[tokio::test]
    async fn the_client_is_who_the_header_says_and_the_rest_is_left() {
        for source in ["192.0.2.1:5000", "[2001:db8::1]:5000"] {
            let (said, rest) = read(&[header(Command::Proxy, source).as_slice(), b"GET /"].concat()).await;
            assert_eq!(said.expect("a client").to_string(), source);
            assert_eq!(rest, b"GET /");
        }
        let (probe, _) = read(&header(Command::Local, "192.0.2.1:5000")).await;
        assert_eq!(probe.expect("the balancer itself").to_string(), SENDER);
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused_by_name() {
        let whole = header(Command::Proxy, "192.0.2.1:5000");
        assert!(matches!(read(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.0, Err(ProxyError::Malformed(_))));
        assert!(matches!(
            read(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").await.0,
            Err(ProxyError::Malformed(_))
        ));
        assert!(matches!(read(b"").await.0, Err(ProxyError::Silent)));
        for cut in [1, 15, 16, whole.len() - 1] {
            assert!(matches!(read(&whole[..cut]).await.0, Err(ProxyError::Lost(_))), "{cut}");
        }
        let mut long = whole.clone();
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        assert!(matches!(read(&long).await.0, Err(ProxyError::TooLong(65_535))));
        let mut other = whole;
        other[12] = 0x11;
        assert!(matches!(read(&other).await.0, Err(ProxyError::Malformed(_))));
    }

    #[tokio::test]
    async fn strangers_are_not_even_read() {
        let header = header(Command::Proxy, "192.0.2.1:5000");
        let mut bytes = header.as_slice();
        let trusted = ["10.0.0.0/8".parse().expect("a network")];
        let stranger = "192.0.2.9:4000".parse().expect("an address");
        assert!(matches!(client(&mut bytes, stranger, &trusted).await, Err(ProxyError::Stranger)));
        assert_eq!(bytes, header);
        // As a socket for both families names it.
        let mapped = "[::ffff:10.0.0.7]:4000".parse().expect("an address");
        client(&mut bytes, mapped, &trusted).await.expect("trusted");
    }
}
