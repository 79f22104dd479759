//! A network in memory, under real QUIC: it loses, repeats, delays, reorders, garbles, is narrow, and is cut.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep};

use crate::dice::{Climate, Dice};
use crate::process::Life;

/// What waits before a narrow line: more is lost, as in a router. A quarter of a second of the narrow one.
const QUEUE_BYTES_MAX: u64 = 80_000;

/// Place of a way in what has two.
pub(crate) const UP: usize = 0;
pub(crate) const DOWN: usize = 1;

pub(crate) struct Net {
    /// Who dials it sends up.
    region: SocketAddr,
    inner: Mutex<Inner>,
}

struct Inner {
    dice: Dice,
    climate: Climate,
    lines: [Line; 2],
    inboxes: BTreeMap<SocketAddr, Arc<Inbox>>,
    port: u16,
    packets: u64,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    dead_until: Instant,
    free_at: Instant,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net").field("region", &self.region).finish_non_exhaustive()
    }
}

impl Net {
    pub(crate) fn new(region: SocketAddr, climate: Climate, dice: Dice) -> Arc<Self> {
        let now = Instant::now();
        let lines = [Line { dead_until: now, free_at: now }; 2];
        let inner = Inner { dice, climate, lines, inboxes: BTreeMap::new(), port: 50_000, packets: 0 };
        Arc::new(Self { region, inner: Mutex::new(inner) })
    }

    pub(crate) fn next_port(&self) -> u16 {
        let mut inner = self.inner.lock();
        inner.port += 1;
        inner.port
    }

    pub(crate) fn bind(self: &Arc<Self>, addr: SocketAddr, life: Arc<Life>) -> Arc<dyn AsyncUdpSocket> {
        let inbox = Arc::new(Inbox::default());
        // A process that starts again takes the address of the one before.
        self.inner.lock().inboxes.insert(addr, inbox.clone());
        Arc::new(Socket { addr, net: self.clone(), inbox, life })
    }

    /// Nothing passes these ways until then.
    pub(crate) fn cut(&self, ways: [bool; 2], until: Instant) {
        let mut inner = self.inner.lock();
        for (line, cut) in inner.lines.iter_mut().zip(ways) {
            if cut {
                line.dead_until = line.dead_until.max(until);
            }
        }
    }

    /// From now on as in this climate, and nothing is cut.
    pub(crate) fn heal(&self, climate: Climate) {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        inner.lines.iter_mut().for_each(|line| line.dead_until = now);
        inner.climate = climate;
    }

    pub(crate) fn packets(&self) -> u64 {
        self.inner.lock().packets
    }

    fn carry(&self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let now = Instant::now();
        let mut guard = self.inner.lock();
        let Inner { dice, climate, lines, inboxes, packets, .. } = &mut *guard;
        *packets += 1;
        let line = &mut lines[if to == self.region { UP } else { DOWN }];
        let waiting = line.free_at.saturating_duration_since(now);
        let queued = waiting.as_micros() as u64 * climate.bytes_per_s / 1_000_000;
        let lost = line.dead_until > now
            || dice.chance(climate.loss)
            || datagram.len() > climate.datagram_max
            || queued > QUEUE_BYTES_MAX;
        let Some(inbox) = inboxes.get(&to).filter(|_| !lost) else { return };
        let takes = Duration::from_micros(datagram.len() as u64 * 1_000_000 / climate.bytes_per_s);
        line.free_at = line.free_at.max(now) + takes;
        let times = if dice.chance(climate.repeat) { 2 } else { 1 };
        for _ in 0..times {
            let mut at = line.free_at + Duration::from_millis(climate.delay_ms);
            if dice.chance(climate.late) {
                at += dice.ms(climate.late_ms);
            }
            let mut datagram = datagram.to_vec();
            if dice.chance(climate.garbled) {
                let place = dice.below(datagram.len() as u64) as usize;
                datagram[place] ^= 1 << dice.below(8);
            }
            inbox.put(at, from, datagram);
        }
    }
}

#[derive(Debug, Default)]
struct Inbox {
    inner: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// By time of arrival, and in the order of sending within it.
    datagrams: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)>,
    count: u64,
    reader: Option<Waker>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Inbox {
    fn put(&self, at: Instant, from: SocketAddr, datagram: Vec<u8>) {
        let mut inner = self.inner.lock();
        inner.count += 1;
        let is_first = inner.datagrams.first_key_value().is_none_or(|((first, _), _)| at < *first);
        let key = (at, inner.count);
        inner.datagrams.insert(key, (from, datagram));
        if is_first && let Some(reader) = inner.reader.take() {
            drop(inner);
            reader.wake();
        }
    }

    fn poll(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        loop {
            let now = Instant::now();
            let mut count = 0;
            while count < bufs.len().min(meta.len())
                && let Some(first) = inner.datagrams.first_entry()
                && first.key().0 <= now
            {
                let (from, datagram) = first.remove();
                bufs[count][..datagram.len()].copy_from_slice(&datagram);
                let mut about = RecvMeta::default();
                (about.addr, about.len, about.stride) = (from, datagram.len(), datagram.len());
                meta[count] = about;
                count += 1;
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            inner.reader = Some(context.waker().clone());
            let Some(((at, _), _)) = inner.datagrams.first_key_value() else { return Poll::Pending };
            let timer = inner.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(*at)));
            timer.as_mut().reset(*at);
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

struct Socket {
    addr: SocketAddr,
    net: Arc<Net>,
    inbox: Arc<Inbox>,
    life: Arc<Life>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("addr", &self.addr).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // A process that has ended sends nothing, whatever its last tasks still want to say.
        if self.life.is_alive() {
            let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
            for datagram in transmit.contents.chunks(segment) {
                self.net.carry(self.addr, transmit.destination, datagram);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inbox.poll(context, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    /// As on Linux: the path's largest datagram is probed for.
    fn may_fragment(&self) -> bool {
        false
    }
}
