//! The addresses of a name, looked up again and again.
//!
//! The system's resolver is asked, which follows `/etc/hosts`, search domains and whatever else the machine is set up for,
//! and tells no time to live: so a name is looked up at a fixed interval, and sooner when an address of it cannot be
//! reached (`docs/decisions/2026-11-30-upstream-servers.md`). A name that stops resolving keeps the addresses it had: a
//! resolver that is down must not take the shop with it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::fleet::Fleet;

/// Addresses of one name that become servers. DNS answers over UDP seldom hold more.
const ADDRESSES_MAX: usize = 16;
/// What the system's resolver may take: two attempts of 5 s at one server.
const LOOKUP_MAX: Duration = Duration::from_secs(10);
/// The shortest pause between two lookups, whoever asks for one.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Head start of IPv6 over IPv4 (RFC 8305 section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// How long both families are tried.
const FAMILY_MAX: Duration = Duration::from_secs(5);

/// Looks up a host and a port. The system's resolver, but in tests.
pub(super) type Lookup =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

pub(super) fn system() -> Lookup {
    Arc::new(|host, port| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect::<Vec<_>>()) })
    })
}

/// Keeps the addresses of one name until it is dropped.
pub(super) async fn keep(fleet: Arc<Fleet>, name: usize, lookup: Lookup, every: Duration) {
    let mut pause = every;
    let mut settled = false;
    loop {
        match once(&fleet, name, &lookup).await {
            Ok(addresses) => {
                fleet.set(name, &addresses);
                fleet.resolved(name, true);
                pause = every;
            }
            Err(why) => {
                let server = fleet.names[name].label();
                tracing::warn!(server, %why, "the name does not resolve; its last addresses stay");
                fleet.resolved(name, false);
                // Sooner than after an answer, and later each time.
                pause = if settled { (pause * 2).min(every) } else { PAUSE_MIN.min(every) };
            }
        }
        if !settled {
            fleet.settle();
            settled = true;
        }
        sleep(PAUSE_MIN.min(every)).await;
        // Half to one and a half times the pause, so that the nodes of a place do not ask in step.
        let wait = pause.mul_f64(0.5 + rand::random::<f64>()).saturating_sub(PAUSE_MIN);
        tokio::select! {
            () = sleep(wait) => {}
            () = fleet.names[name].doubted.notified() => {}
        }
    }
}

async fn once(fleet: &Fleet, name: usize, lookup: &Lookup) -> Result<Vec<SocketAddr>, String> {
    let named = &fleet.names[name];
    let found = timeout(LOOKUP_MAX, lookup(named.host.clone(), named.port)).await;
    let mut addresses = match found {
        Ok(found) => found.map_err(|why| why.to_string())?,
        Err(_) => return Err(format!("no answer within {LOOKUP_MAX:?}")),
    };
    addresses.sort_unstable();
    addresses.dedup();
    let mut addresses = one_family(addresses).await;
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() { Err("it has no address".to_owned()) } else { Ok(addresses) }
}

/// Of a name with addresses of both families those of the one that can be reached, IPv6 first: the two are mostly two ways
/// to the same servers, and on many machines one of them leads nowhere (RFC 8305). All, if neither can be reached.
async fn one_family(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(SocketAddr::is_ipv6);
    let (Some(first_six), Some(first_four)) = (six.first().copied(), four.first().copied()) else {
        return addresses;
    };
    let race = async {
        let mut by_six = std::pin::pin!(TcpStream::connect(first_six));
        match timeout(HEAD_START, &mut by_six).await {
            Ok(Ok(_)) => return Some(six),
            Ok(Err(_)) => return TcpStream::connect(first_four).await.ok().map(|_| four),
            Err(_) => {}
        }
        tokio::select! {
            Ok(_) = by_six => Some(six),
            Ok(_) = TcpStream::connect(first_four) => Some(four),
            else => None,
        }
    };
    timeout(FAMILY_MAX, race).await.ok().flatten().unwrap_or(addresses)
}
