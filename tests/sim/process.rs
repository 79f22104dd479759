//! A process of a world: tasks that end together, at any moment, and the ground that its link stands on.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};
use souk_link::Ground;
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use crate::dice::Dice;
use crate::net::Net;

/// One life of a process: from its start to its end.
#[derive(Debug)]
pub(crate) struct Life {
    alive: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Life {
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self { alive: AtomicBool::new(true), tasks: Mutex::default() })
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.adopt(tokio::spawn(task).abort_handle());
    }

    /// A task that somebody else has started, and that ends with this life all the same.
    pub(crate) fn adopt(&self, task: AbortHandle) {
        let mut tasks = self.tasks.lock();
        if tasks.len() > 64 {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    /// Ends without a word: no close frame, no last write.
    pub(crate) fn end(&self) {
        self.alive.store(false, Ordering::Relaxed);
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}

/// What a link stands on in a world.
#[derive(Debug)]
pub(crate) struct WorldGround {
    net: Arc<Net>,
    life: Arc<Life>,
    /// The address of its host; the port is the caller's, or the next one.
    host: SocketAddr,
    dice: Mutex<Dice>,
    /// How far the machine's clock is ahead.
    ahead_ms: Arc<AtomicU64>,
}

impl WorldGround {
    pub(crate) fn new(
        net: &Arc<Net>,
        life: &Arc<Life>,
        host: SocketAddr,
        dice: Dice,
        ahead_ms: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            net: net.clone(),
            life: life.clone(),
            host,
            dice: Mutex::new(dice),
            ahead_ms: ahead_ms.clone(),
        })
    }
}

impl Ground for WorldGround {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let port = if addr.port() == 0 { self.net.next_port() } else { addr.port() };
        Ok(self.net.bind(SocketAddr::new(self.host.ip(), port), self.life.clone()))
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(WorldRuntime { life: self.life.clone(), ahead_ms: self.ahead_ms.clone() })
    }

    fn chance(&self) -> u64 {
        self.dice.lock().roll()
    }

    fn transport_seed(&self) -> Option<[u8; 32]> {
        let mut dice = self.dice.lock();
        let mut seed = [0; 32];
        for part in seed.chunks_exact_mut(8) {
            part.copy_from_slice(&dice.roll().to_le_bytes());
        }
        Some(seed)
    }
}

/// Virtual time, seen through the clock of one machine.
#[derive(Debug)]
struct WorldRuntime {
    life: Arc<Life>,
    ahead_ms: Arc<AtomicU64>,
}

fn ahead(ahead_ms: &AtomicU64) -> Duration {
    Duration::from_millis(ahead_ms.load(Ordering::Relaxed))
}

impl Runtime for WorldRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let ahead_ms = self.ahead_ms.clone();
        let sleep = tokio::time::sleep_until((at - ahead(&ahead_ms)).into());
        Box::pin(Timer { sleep: Box::pin(sleep), ahead_ms })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.life.spawn(future);
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std() + ahead(&self.ahead_ms)
    }
}

#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<Sleep>>,
    ahead_ms: Arc<AtomicU64>,
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let at = at - ahead(&self.ahead_ms);
        self.sleep.as_mut().reset(at.into());
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.sleep.as_mut(), context)
    }
}
