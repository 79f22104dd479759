//! Connections between the two regions of a pair, which have one name: one dials the link of the other, and each knows the other by
//! its certificate.
//!
//! A connection has streams, a stream carries frames both ways; what they mean is the region's. It refuses to know who is home.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use souk_replication::wire::seal_frame;

use crate::node::dial::{Dialer, fault_of};
use crate::stream::{StreamError, read_frame, read_kind};
use crate::tls::{Credentials, Refusals};
use crate::{Congestion, Identity, LinkFault, RegionAddress, StartError, TlsFiles, ground::Machine};

/// First byte of a stream between regions: none of a node's.
const KIND_PEER: u8 = 5;
/// Longest frame: the longest row is an order of 8 MiB.
pub const PEER_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A frame below this is not worth the call.
const COMPRESS_BYTES_MIN: usize = 512;
/// Fast: rows of one table resemble each other.
const ZSTD_LEVEL: i32 = 1;
/// How a frame's bytes are packed: its first byte.
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// Of a packed frame: the first byte, and how long it is unpacked.
const PACKED_HEADER_BYTES: usize = 5;
/// Patience of a dialler: three round trips over a satellite.
const DIAL_MAX: Duration = Duration::from_secs(3);

/// Why a stream of a peer came to an end.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It ended the stream between two frames.
    #[error("the other region ended it")]
    Ended,
    /// The connection is lost.
    #[error("the connection to the other region is lost: {0}")]
    Lost(String),
    /// What came is not what the protocol says.
    #[error("the other region broke the protocol: {0}")]
    Protocol(String),
}

impl From<StreamError> for PeerError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Ended => Self::Ended,
            StreamError::Lost(why) => Self::Lost(why),
            StreamError::Codec(error) => Self::Protocol(error.to_string()),
        }
    }
}

/// A connection to the other region of the pair. Clones are the same connection, which ends when the last is dropped.
#[derive(Debug, Clone)]
pub struct PeerConnection {
    connection: Connection,
}

impl PeerConnection {
    pub(crate) const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Where the other end is.
    #[must_use]
    pub fn remote(&self) -> std::net::SocketAddr {
        self.connection.remote_address()
    }

    /// Begins a stream. The other end hears of it with the first frame.
    pub async fn open(&self) -> Result<PeerStream, PeerError> {
        let lost = |e: &dyn std::fmt::Display| PeerError::Lost(e.to_string());
        let (mut send, recv) = self.connection.open_bi().await.map_err(|e| lost(&e))?;
        send.write_all(&[KIND_PEER]).await.map_err(|e| lost(&e))?;
        Ok(PeerStream { sender: PeerSender { send }, receiver: PeerReceiver { recv } })
    }

    /// The next stream that the other end begins. Cancel safe up to the stream's first byte.
    pub async fn accept(&self) -> Result<PeerStream, PeerError> {
        let (send, mut recv) =
            self.connection.accept_bi().await.map_err(|e| PeerError::Lost(e.to_string()))?;
        match read_kind(&mut recv).await? {
            KIND_PEER => {}
            other => return Err(PeerError::Protocol(format!("a stream of kind {other}"))),
        }
        Ok(PeerStream { sender: PeerSender { send }, receiver: PeerReceiver { recv } })
    }

    /// Datagrams that have come: a number that moves while the other end lives.
    #[must_use]
    pub fn datagrams(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Returns when the connection is lost or ended.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Ends it, and tells why.
    pub fn close(&self, why: &str) {
        self.connection.close(0_u32.into(), why.as_bytes());
    }
}

/// Frames both ways.
#[derive(Debug)]
pub struct PeerStream {
    sender: PeerSender,
    receiver: PeerReceiver,
}

impl PeerStream {
    /// The two directions, for two tasks.
    #[must_use]
    pub fn split(self) -> (PeerSender, PeerReceiver) {
        (self.sender, self.receiver)
    }

    /// [`PeerSender::send`].
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), PeerError> {
        self.sender.send(frame).await
    }

    /// [`PeerReceiver::receive`].
    pub async fn receive(&mut self) -> Result<Vec<u8>, PeerError> {
        self.receiver.receive().await
    }
}

/// The way out of a stream.
#[derive(Debug)]
pub struct PeerSender {
    send: SendStream,
}

impl PeerSender {
    /// Sends a frame of at most [`PEER_FRAME_BYTES_MAX`], packed if that helps. Waits while the other end does not read. Not cancel
    /// safe: a frame that is half sent ends the stream.
    pub async fn send(&mut self, frame: &[u8]) -> Result<(), PeerError> {
        if frame.len() > PEER_FRAME_BYTES_MAX {
            let is = frame.len();
            return Err(PeerError::Protocol(format!(
                "a frame of {is} bytes, more than {PEER_FRAME_BYTES_MAX}"
            )));
        }
        let sealed = seal_frame(&pack(frame));
        self.send.write_all(&sealed).await.map_err(|e| PeerError::Lost(e.to_string()))
    }

    /// Nothing more comes.
    pub fn finish(&mut self) {
        // A stream that the peer has stopped is finished too.
        let _ = self.send.finish();
    }
}

/// The way in.
#[derive(Debug)]
pub struct PeerReceiver {
    recv: RecvStream,
}

impl PeerReceiver {
    /// The next frame. Not cancel safe.
    pub async fn receive(&mut self) -> Result<Vec<u8>, PeerError> {
        let packed =
            read_frame(&mut self.recv, "frame of a peer", PEER_FRAME_BYTES_MAX + PACKED_HEADER_BYTES).await?;
        unpack(&packed).map_err(PeerError::Protocol)
    }
}

fn pack(frame: &[u8]) -> Vec<u8> {
    if frame.len() >= COMPRESS_BYTES_MIN
        && let Ok(small) = zstd::bulk::compress(frame, ZSTD_LEVEL)
        && small.len() < frame.len() - frame.len() / 8
    {
        let mut packed = Vec::with_capacity(small.len() + PACKED_HEADER_BYTES);
        packed.push(ZSTD);
        // At most PEER_FRAME_BYTES_MAX, which the caller has looked at.
        packed.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
        packed.extend_from_slice(&small);
        return packed;
    }
    let mut packed = Vec::with_capacity(frame.len() + 1);
    packed.push(RAW);
    packed.extend_from_slice(frame);
    packed
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    match packed.split_first() {
        Some((&RAW, frame)) => Ok(frame.to_vec()),
        Some((&ZSTD, rest)) => {
            let (length, small) = rest.split_first_chunk::<4>().ok_or("a packed frame without its length")?;
            let length = u32::from_le_bytes(*length) as usize;
            if length > PEER_FRAME_BYTES_MAX {
                return Err(format!("a frame of {length} bytes, more than {PEER_FRAME_BYTES_MAX}"));
            }
            zstd::bulk::decompress(small, length).map_err(|e| format!("a packed frame: {e}"))
        }
        Some((other, _)) => Err(format!("a frame packed in a way that is not known: {other}")),
        None => Err("a frame of nothing".to_owned()),
    }
}

/// Reaches the other region of a pair. Cheap to clone.
#[derive(Clone)]
pub struct PeerDialer {
    dialer: Arc<Dialer>,
}

impl std::fmt::Debug for PeerDialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerDialer").finish_non_exhaustive()
    }
}

impl PeerDialer {
    /// `region`: the name of both; `tls`: what we show, which must say the same. Nothing is dialled yet.
    pub fn new(region: &str, addresses: Vec<RegionAddress>, tls: &TlsFiles) -> Result<Self, StartError> {
        let own = Identity::Region { region: region.to_owned() };
        let refusals = Refusals::default();
        let client = Credentials::load(tls, &own)?.client(own, refusals.clone())?;
        let dialer = Dialer::new(Arc::new(Machine), addresses, client, Congestion::Cubic, refusals);
        Ok(Self { dialer: Arc::new(dialer) })
    }

    /// A connection to whichever of its addresses answers first. Must be called within a tokio runtime.
    pub async fn dial(&self) -> Result<PeerConnection, LinkFault> {
        let (connection, _) = self.dialer.dial_any(0, DIAL_MAX).await?;
        Ok(PeerConnection::new(connection))
    }

    /// Why a connection ended, if it has: a region that does not take peers says so in this way only.
    #[must_use]
    pub fn why_closed(connection: &PeerConnection) -> Option<LinkFault> {
        connection.connection.close_reason().map(|reason| fault_of(&reason))
    }

    /// Ends all connections.
    pub async fn close(&self) {
        self.dialer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_survives_its_packing_and_a_bomb_does_not() {
        for frame in [Vec::new(), b"short".to_vec(), vec![7; 100_000], (0..=255).cycle().take(700).collect()]
        {
            assert_eq!(unpack(&pack(&frame)).as_ref(), Ok(&frame));
        }
        assert!(pack(&vec![7; 100_000]).len() < 1_000);
        let mut bomb = vec![ZSTD];
        bomb.extend_from_slice(&u32::MAX.to_le_bytes());
        bomb.extend_from_slice(&zstd::bulk::compress(&[0; 4_096], 1).expect("zeros compress"));
        assert!(unpack(&bomb).is_err());
        let mut liar = vec![ZSTD];
        liar.extend_from_slice(&16_u32.to_le_bytes());
        liar.extend_from_slice(&zstd::bulk::compress(&[0; 4_096], 1).expect("zeros compress"));
        assert!(unpack(&liar).is_err(), "more comes out than was said");
        assert!(unpack(&[]).is_err() && unpack(&[9, 1]).is_err());
    }
}
