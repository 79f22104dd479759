//! QUIC as the link wants it: windows, patience, sockets, reset keys. The only file that sets quinn up.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::{
    Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig},
    crypto::{CryptoError, HmacKey, rustls::QuicServerConfig},
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::crypto::{
    aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    tls13::{Hkdf, OkmBlock},
};

use crate::{Congestion, Ground, StartError};

/// A peer that says nothing for so long is gone; the keep-alive below is a tenth of it.
const IDLE_MS_MAX: u32 = 12_000;
/// Keeps NAT bindings open and shows a dead path. The node sends it, the region answers.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Batches that a node may have open: what a region can reorder.
const NODE_UNI_STREAMS_MAX: u32 = souk_replication::limits::REORDER_BATCHES_MAX as u32;
/// The control stream and calls.
pub(crate) const NODE_BI_STREAMS_MAX: u32 = 65;
/// One stream per log, with room for logs of newer releases.
pub(crate) const REGION_UNI_STREAMS_MAX: u32 = 16;
/// What a region buffers for one stream of a node: a batch is at most 66 KiB, a request 256 KiB.
const REGION_STREAM_WINDOW: u32 = 256 * 1024;
/// What a region buffers for one node: 500 nodes are 0.5 GiB at worst.
const REGION_RECEIVE_WINDOW: u32 = 1024 * 1024;
/// What a region holds for one node until it is acknowledged: 20 MB/s at 100 ms.
const REGION_SEND_WINDOW: u64 = 2 * 1024 * 1024;
/// What a node buffers for one stream: a blob at 10 MB/s over 100 ms.
const NODE_STREAM_WINDOW: u32 = 1024 * 1024;
/// What a node buffers for its one region.
const NODE_RECEIVE_WINDOW: u32 = 8 * 1024 * 1024;
/// Handshakes that wait for a task, and the bytes that they may hold.
const INCOMING_MAX: usize = 128;
const INCOMING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bounds of the key of stateless resets; the upper one is a block of its hash.
const RESET_KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=64;

fn common() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
        // The protocol has no datagrams yet: whoever sends one gets an error instead of our memory.
        .datagram_receive_buffer_size(None);
    transport
}

pub(crate) fn node_transport(congestion: Congestion) -> TransportConfig {
    let mut transport = common();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_uni_streams(VarInt::from_u32(REGION_UNI_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(NODE_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(NODE_RECEIVE_WINDOW));
    match congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
    };
    transport
}

fn region_transport() -> TransportConfig {
    let mut transport = common();
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(NODE_UNI_STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(NODE_BI_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(REGION_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(REGION_RECEIVE_WINDOW))
        .send_window(REGION_SEND_WINDOW);
    transport
}

/// The socket of a node for peers like `remote`. Loopback peers are met from loopback, so that tests stay on it.
pub(crate) fn node_endpoint(ground: &dyn Ground, remote: IpAddr) -> std::io::Result<Endpoint> {
    let local = match remote {
        IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = ground.bind(SocketAddr::new(local, 0))?;
    let mut config = EndpointConfig::default();
    config.rng_seed(ground.transport_seed());
    Endpoint::new_with_abstract_socket(config, None, socket, ground.runtime())
}

pub(crate) fn region_endpoint(
    ground: &dyn Ground,
    listen: SocketAddr,
    crypto: QuicServerConfig,
    reset_key: &[u8],
) -> Result<Endpoint, StartError> {
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(region_transport()))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    let key = ResetKey::new(reset_key)?;
    let cid_key = key.cid_key();
    let mut endpoint = EndpointConfig::new(Arc::new(key));
    // A restarted region sends resets only for connection ids that it recognises as its own.
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));
    endpoint.rng_seed(ground.transport_seed());
    let bind = |source| StartError::Bind { addr: listen, source };
    let socket = ground.bind(listen).map_err(bind)?;
    Endpoint::new_with_abstract_socket(endpoint, Some(server), socket, ground.runtime()).map_err(bind)
}

/// HMAC-SHA-256 from the one crypto provider that TLS uses too.
struct ResetKey {
    key: OkmBlock,
    hmac: &'static dyn Hkdf,
}

impl ResetKey {
    fn new(bytes: &[u8]) -> Result<Self, StartError> {
        if !RESET_KEY_BYTES.contains(&bytes.len()) {
            return Err(StartError::Setting(format!(
                "the reset key is {} bytes, expected {} to {}",
                bytes.len(),
                RESET_KEY_BYTES.start(),
                RESET_KEY_BYTES.end()
            )));
        }
        let suite = TLS13_AES_128_GCM_SHA256.tls13().expect("a TLS 1.3 suite is a TLS 1.3 suite");
        Ok(Self { key: OkmBlock::new(bytes), hmac: suite.hkdf_provider })
    }

    /// A key for connection ids that says nothing about the key for resets.
    fn cid_key(&self) -> u64 {
        let tag = self.hmac.hmac_sign(&self.key, b"souk-sync/1 connection ids");
        let first = tag.as_ref().first_chunk().expect("a SHA-256 tag has 32 bytes");
        u64::from_le_bytes(*first)
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(self.hmac.hmac_sign(&self.key, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = self.hmac.hmac_sign(&self.key, data);
        // In constant time: fold all differences before looking.
        let differs = tag.as_ref().iter().zip(signature).fold(0_u8, |acc, (a, b)| acc | (a ^ b));
        if tag.as_ref().len() == signature.len() && differs == 0 { Ok(()) } else { Err(CryptoError) }
    }
}
