//! What the link stands on: sockets, time, and chance. The one seam under QUIC.
//!
//! A process stands on its [`Machine`]. A simulation puts a world of its own under the same code: a network in memory, a clock
//! that it turns itself, and choices from a seed (`tests/sim`). Nothing above this trait knows which of the two it is.

use std::{
    fmt::Debug,
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};

/// Sockets, time and chance.
pub trait Ground: Debug + Send + Sync + 'static {
    /// A UDP socket at this address; port 0 takes any.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;

    /// A socket that nobody knows, for what is left of connections whose address somebody else needs. None: nobody does.
    fn dead_end(&self) -> Option<Arc<dyn AsyncUdpSocket>> {
        None
    }

    /// Runs the transport's tasks and tells its time.
    fn runtime(&self) -> Arc<dyn Runtime>;

    /// A number that no peer can foresee: what jitter is made of.
    fn chance(&self) -> u64;

    /// What the transport's own choices come from. None: from the system.
    fn transport_seed(&self) -> Option<[u8; 32]>;
}

/// The machine that the process runs on.
#[derive(Debug)]
pub(crate) struct Machine;

impl Ground for Machine {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(UdpSocket::bind(addr)?)
    }

    fn dead_end(&self) -> Option<Arc<dyn AsyncUdpSocket>> {
        self.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).ok()
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }

    fn chance(&self) -> u64 {
        rand::random()
    }

    fn transport_seed(&self) -> Option<[u8; 32]> {
        None
    }
}

/// A random pause between two bounds, both included.
pub(crate) fn pause(ground: &dyn Ground, ms_min: u64, ms_max: u64) -> Duration {
    // The bounds are below a minute: what the division favours is not to be seen.
    Duration::from_millis(ms_min + ground.chance() % (ms_max.saturating_sub(ms_min) + 1))
}
