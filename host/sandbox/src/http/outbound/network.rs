//! Names to addresses, and addresses to connections. The only place of this crate that opens a socket.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

/// What outbound requests need of the world; a test has one that lies.
pub(super) trait Network: Send + Sync {
    /// The place is held for as long as the question is open, also when nobody waits for its answer any more.
    fn resolve<'a>(&'a self, name: &'a str, place: LookupPlace) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// Addresses of this machine: public ones too lead to our own doors.
    fn own(&self) -> Vec<IpAddr>;
}

/// Leave to ask a name server: the site's, and this process's.
pub(super) struct LookupPlace {
    pub(super) _permits: [OwnedSemaphorePermit; 2],
}

/// The system's resolver and network.
pub(super) struct System;

impl Network for System {
    fn resolve<'a>(&'a self, name: &'a str, place: LookupPlace) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        // The system's resolver keeps a thread for as long as a name server does not answer, half a minute and more, and
        // cannot be told to stop. Those threads are everybody's, so the place goes with the thread.
        let asked = tokio::task::spawn_blocking(move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            drop(place);
            found.map(|found| found.map(|found| found.ip()).collect())
        });
        Box::pin(async move { asked.await.map_err(io::Error::other)? })
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
