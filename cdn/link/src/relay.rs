//! A small UDP relay in user space whose link can be cut and healed: for tests, and for `souk demo --cut-region`.
//!
//! Each client gets a socket of its own towards the upstream, so that the upstream can tell clients apart. Loopback only by
//! intent, not by force; IPv4 and IPv6. It never fragments, delays or reorders.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Clients at once; a datagram of one more is lost, as on any full router.
const CLIENTS_MAX: usize = 1_024;
/// A client that is silent for so long is forgotten; QUIC keeps alive every second.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(60);
/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A running relay; it ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    local_addr: SocketAddr,
    link: Arc<Link>,
    _end: DropGuard,
}

#[derive(Debug, Default)]
struct Link {
    cut: AtomicBool,
    lost: AtomicU64,
    carried: AtomicU64,
}

impl Link {
    /// Whether a datagram gets through.
    fn carries(&self) -> bool {
        let carries = !self.cut.load(Ordering::Relaxed);
        let count = if carries { &self.carried } else { &self.lost };
        count.fetch_add(1, Ordering::Relaxed);
        carries
    }
}

impl Relay {
    /// Listens on `listen` (port 0 takes any) and carries datagrams to `upstream` and back.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(listen: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        let socket = bind(listen)?;
        let local_addr = socket.local_addr()?;
        let link = Arc::new(Link::default());
        let end = CancellationToken::new();
        let (carrying, ended) = (carry(Arc::new(socket), upstream, link.clone()), end.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = carrying => {}
                () = ended.cancelled() => {}
            }
        });
        Ok(Self { local_addr, link, _end: end.drop_guard() })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Loses every datagram from now on, in both directions.
    pub fn cut(&self) {
        self.link.cut.store(true, Ordering::Relaxed);
    }

    /// Carries again.
    pub fn heal(&self) {
        self.link.cut.store(false, Ordering::Relaxed);
    }

    /// Datagrams carried, and datagrams lost while cut.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.link.carried.load(Ordering::Relaxed), self.link.lost.load(Ordering::Relaxed))
    }
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn carry(socket: Arc<UdpSocket>, upstream: SocketAddr, link: Arc<Link>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returns: JoinSet<SocketAddr> = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut datagram) => {
                // An error here is an ICMP answer to something sent earlier: the peer is away, not we.
                let Ok((length, client)) = received else { continue };
                if !link.carries() {
                    continue;
                }
                let towards = match clients.get(&client) {
                    Some(towards) => towards.clone(),
                    None if clients.len() >= CLIENTS_MAX => continue,
                    None => {
                        let Ok(towards) = connect(upstream).await else { continue };
                        returns.spawn(carry_back(towards.clone(), socket.clone(), client, link.clone()));
                        clients.insert(client, towards.clone());
                        towards
                    }
                };
                let _ = towards.send(&datagram[..length]).await;
            }
            Some(Ok(client)) = returns.join_next() => {
                clients.remove(&client);
            }
        }
    }
}

async fn connect(upstream: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let local = match upstream.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = bind(SocketAddr::new(local, 0))?;
    socket.connect(upstream).await?;
    Ok(Arc::new(socket))
}

/// Carries answers until the upstream has been silent for long.
async fn carry_back(
    towards: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    link: Arc<Link>,
) -> SocketAddr {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    let mut heard = Instant::now();
    while heard.elapsed() < CLIENT_IDLE_MAX {
        match timeout(CLIENT_IDLE_MAX, towards.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                heard = Instant::now();
                if link.carries() {
                    let _ = socket.send_to(&datagram[..length], client).await;
                }
            }
            // The upstream is away; it may come back on the same address.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(_) => break,
        }
    }
    client
}
