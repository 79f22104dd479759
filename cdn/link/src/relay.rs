//! A small UDP relay in user space, whose two ways have a weather of their own: cut, losing, slow, or out of order. For tests,
//! for the chaos suite, and for `souk demo --cut-region`.
//!
//! Each client gets a socket of its own towards the upstream, so that the upstream can tell clients apart. Loopback only by
//! intent, not by force; IPv4 and IPv6. In clear weather it carries each datagram at once, and in order.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::Notify,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Clients at once; a datagram of one more is lost, as on any full router.
const CLIENTS_MAX: usize = 1_024;
/// A client that is silent for so long is forgotten; QUIC keeps alive every second.
const CLIENT_IDLE_MAX: Duration = Duration::from_secs(60);
/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams of one way that are on their way: at QUIC's 1,452 bytes each, 6 MB. One more is lost.
const WAITING_MAX: usize = 4_096;

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a client to the upstream.
    Up,
    Down,
}

/// What becomes of the datagrams that go one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Of a thousand, so many are lost.
    pub lost_per_mille: u16,
    /// How long each is on its way.
    pub delay: Duration,
    /// Of a thousand, so many are overtaken by those behind them: they take so much longer.
    pub late_per_mille: u16,
    pub late_by: Duration,
}

impl Weather {
    /// Each comes at once, and in order.
    pub const CLEAR: Self =
        Self { lost_per_mille: 0, delay: Duration::ZERO, late_per_mille: 0, late_by: Duration::ZERO };
    /// None comes.
    pub const CUT: Self = Self { lost_per_mille: 1_000, ..Self::CLEAR };
}

/// A running relay; it ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    local_addr: SocketAddr,
    up: Arc<Line>,
    down: Arc<Line>,
    _end: DropGuard,
}

impl Relay {
    /// Listens on `listen` (port 0 takes any) and carries datagrams to `upstream` and back.
    ///
    /// Must be called within a tokio runtime.
    pub fn start(listen: SocketAddr, upstream: SocketAddr) -> io::Result<Self> {
        Self::seeded(listen, upstream, 0)
    }

    /// The same; the seed decides which datagrams meet bad weather, by their number.
    pub fn seeded(listen: SocketAddr, upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let socket = bind(listen)?;
        let local_addr = socket.local_addr()?;
        let (up, down) = (Arc::new(Line::new(seed)), Arc::new(Line::new(!seed)));
        let end = CancellationToken::new();
        let carrying = carry(Arc::new(socket), upstream, Arc::clone(&up), Arc::clone(&down));
        let delivering = (Arc::clone(&up), Arc::clone(&down));
        let ended = end.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = carrying => {}
                () = delivering.0.deliver() => {}
                () = delivering.1.deliver() => {}
                () = ended.cancelled() => {}
            }
        });
        Ok(Self { local_addr, up, down, _end: end.drop_guard() })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The weather of one way from now on. What is on its way already arrives.
    pub fn set(&self, way: Way, weather: Weather) {
        let line = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        *held(&line.weather) = weather;
    }

    /// Loses every datagram from now on, in both directions.
    pub fn cut(&self) {
        self.set(Way::Up, Weather::CUT);
        self.set(Way::Down, Weather::CUT);
    }

    /// Carries again.
    pub fn heal(&self) {
        self.set(Way::Up, Weather::CLEAR);
        self.set(Way::Down, Weather::CLEAR);
    }

    /// Datagrams carried, and datagrams lost to the weather.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let both = |count: fn(&Line) -> &AtomicU64| {
            [&self.up, &self.down].map(|line| count(line).load(Ordering::Relaxed)).iter().sum()
        };
        (both(|line| &line.carried), both(|line| &line.lost))
    }
}

/// One way.
#[derive(Debug)]
struct Line {
    seed: u64,
    weather: Mutex<Weather>,
    /// By when each is due, and its number.
    waiting: Mutex<BTreeMap<(Instant, u64), Parcel>>,
    news: Notify,
    met: AtomicU64,
    carried: AtomicU64,
    lost: AtomicU64,
}

/// A datagram that is on its way.
#[derive(Debug)]
struct Parcel {
    datagram: Vec<u8>,
    by: Arc<UdpSocket>,
    /// None: the socket knows its peer.
    to: Option<SocketAddr>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send(by: &UdpSocket, datagram: &[u8], to: Option<SocketAddr>) {
    // What cannot be sent is lost, as datagrams are.
    let _ = match to {
        Some(to) => by.send_to(datagram, to).await,
        None => by.send(datagram).await,
    };
}

impl Line {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            weather: Mutex::new(Weather::CLEAR),
            waiting: Mutex::default(),
            news: Notify::new(),
            met: AtomicU64::new(0),
            carried: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// How long the next datagram is on its way, and its number; none: it is lost.
    fn next(&self) -> Option<(Duration, u64)> {
        let weather = *held(&self.weather);
        let number = self.met.fetch_add(1, Ordering::Relaxed);
        let chance = mix(self.seed, number);
        if chance % 1_000 < u64::from(weather.lost_per_mille) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.carried.fetch_add(1, Ordering::Relaxed);
        let late = (chance >> 32) % 1_000 < u64::from(weather.late_per_mille);
        Some((weather.delay + if late { weather.late_by } else { Duration::ZERO }, number))
    }

    async fn carry(
        &self,
        (takes, number): (Duration, u64),
        datagram: &[u8],
        by: &Arc<UdpSocket>,
        to: Option<SocketAddr>,
    ) {
        {
            let mut waiting = held(&self.waiting);
            // In clear weather nothing is kept; in weather that has just become clear, order is.
            let due = if takes.is_zero() && !waiting.is_empty() {
                waiting.last_key_value().map(|(&(due, _), _)| due)
            } else {
                (!takes.is_zero()).then(|| Instant::now() + takes)
            };
            if let Some(due) = due {
                if waiting.len() < WAITING_MAX {
                    let parcel = Parcel { datagram: datagram.to_vec(), by: Arc::clone(by), to };
                    waiting.insert((due, number), parcel);
                    self.news.notify_one();
                }
                return;
            }
        }
        send(by, datagram, to).await;
    }

    /// Sends what is due, for ever.
    async fn deliver(&self) {
        loop {
            let next = held(&self.waiting).first_key_value().map(|(&(due, _), _)| due);
            match next {
                None => self.news.notified().await,
                Some(due) if due <= Instant::now() => {
                    let first = held(&self.waiting).pop_first();
                    if let Some((_, Parcel { datagram, by, to })) = first {
                        send(&by, &datagram, to).await;
                    }
                }
                Some(due) => tokio::select! {
                    () = sleep_until(due) => {}
                    () = self.news.notified() => {}
                },
            }
        }
    }
}

/// SplitMix64: a number for each datagram, the same for the same seed.
fn mix(seed: u64, number: u64) -> u64 {
    let mut x = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn carry(socket: Arc<UdpSocket>, upstream: SocketAddr, up: Arc<Line>, down: Arc<Line>) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returns: JoinSet<SocketAddr> = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut datagram) => {
                // An error here is an ICMP answer to something sent earlier: the peer is away, not we.
                let Ok((length, client)) = received else { continue };
                let Some(takes) = up.next() else { continue };
                let towards = match clients.get(&client) {
                    Some(towards) => towards.clone(),
                    None if clients.len() >= CLIENTS_MAX => continue,
                    None => {
                        let Ok(towards) = connect(upstream).await else { continue };
                        returns.spawn(carry_back(towards.clone(), socket.clone(), client, Arc::clone(&down)));
                        clients.insert(client, towards.clone());
                        towards
                    }
                };
                up.carry(takes, &datagram[..length], &towards, None).await;
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
    down: Arc<Line>,
) -> SocketAddr {
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    let mut heard = Instant::now();
    while heard.elapsed() < CLIENT_IDLE_MAX {
        match timeout(CLIENT_IDLE_MAX, towards.recv(&mut datagram)).await {
            Ok(Ok(length)) => {
                heard = Instant::now();
                if let Some(takes) = down.next() {
                    down.carry(takes, &datagram[..length], &socket, Some(client)).await;
                }
            }
            // The upstream is away; it may come back on the same address.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(_) => break,
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Relay, UdpSocket, UdpSocket) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let upstream = UdpSocket::bind(any).await.unwrap();
        let relay = Relay::seeded(any, upstream.local_addr().unwrap(), 7).unwrap();
        let client = UdpSocket::bind(any).await.unwrap();
        client.connect(relay.local_addr()).await.unwrap();
        (relay, client, upstream)
    }

    #[tokio::test]
    async fn each_way_has_its_own_weather() {
        let (relay, client, upstream) = pair().await;
        let mut buffer = [0; 16];
        client.send(b"first").await.unwrap();
        let (length, relayed) = upstream.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"first");

        relay.set(Way::Up, Weather::CUT);
        client.send(b"lost").await.unwrap();
        upstream.send_to(b"down", relayed).await.unwrap();
        assert_eq!(client.recv(&mut buffer).await.unwrap(), 4, "the other way is open");
        relay.heal();
        client.send(b"second").await.unwrap();
        assert_eq!(upstream.recv(&mut buffer).await.unwrap(), 6);
        assert_eq!(&buffer[..6], b"second");
        assert_eq!(relay.counts(), (3, 1));
    }

    #[tokio::test]
    async fn what_is_delayed_keeps_its_order_and_what_is_late_does_not() {
        let (relay, client, upstream) = pair().await;
        let slow = Weather { delay: Duration::from_millis(20), ..Weather::CLEAR };
        relay.set(Way::Up, slow);
        for number in 0..100_u8 {
            client.send(&[number]).await.unwrap();
        }
        let mut buffer = [0; 16];
        for number in 0..100 {
            upstream.recv(&mut buffer).await.unwrap();
            assert_eq!(buffer[0], number);
        }
        let late_by = Duration::from_millis(40);
        relay.set(Way::Up, Weather { late_per_mille: 300, late_by, ..slow });
        for number in 0..100_u8 {
            client.send(&[number]).await.unwrap();
        }
        let mut came = Vec::new();
        for _ in 0..100 {
            upstream.recv(&mut buffer).await.unwrap();
            came.push(buffer[0]);
        }
        assert!(!came.is_sorted(), "some are overtaken");
        came.sort_unstable();
        assert_eq!(came, (0..100).collect::<Vec<_>>(), "each comes once");
    }
}
