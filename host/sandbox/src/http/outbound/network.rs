//! Names to addresses, and addresses to connections. The only place of this crate that opens a socket.

use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

/// What outbound requests need of the world; a test has one that lies.
pub(super) trait Network: Send + Sync {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// Addresses of this machine: public ones too lead to our own doors.
    fn own(&self) -> Vec<IpAddr>;
}

/// The system's resolver and network.
pub(super) struct System;

impl Network for System {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(
            async move { Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect()) },
        )
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }

    fn own(&self) -> Vec<IpAddr> {
        // Asked each time: machines get addresses while they run. A list that cannot be had leaves the configured ones.
        nix::ifaddrs::getifaddrs()
            .into_iter()
            .flatten()
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
            })
            .collect()
    }
}
