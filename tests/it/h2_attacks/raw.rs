//! HTTP/2 as an attacker writes it: frames by hand, fields as literals, and whatever order one likes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// Flags of HEADERS.
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What of one stream's answer is kept.
const KEPT_BYTES_MAX: usize = 64 * 1024;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A block of fields, each a literal that is not indexed and not compressed.
pub(super) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A string of HPACK (RFC 7541 §5.2).
pub(super) fn text(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut left = bytes.len();
    if left < 127 {
        out.push(u8::try_from(left).expect("below 127"));
    } else {
        out.push(127);
        left -= 127;
        while left >= 128 {
            out.push(u8::try_from(left % 128).expect("below 128") | 128);
            left /= 128;
        }
        out.push(u8::try_from(left).expect("below 128"));
    }
    out.extend_from_slice(bytes);
    out
}

/// A whole request without a body.
pub(super) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &get_block(path))
}

pub(super) fn get_block(path: &str) -> Vec<u8> {
    block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"shop.example"),
        (b":path", path.as_bytes()),
    ])
}

/// What the server has said until it closed, or until the client had enough.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The code of the last GOAWAY.
    pub(super) goaway: Option<u32>,
    pub(super) resets: usize,
    /// Bodies by their streams.
    pub(super) bodies: BTreeMap<u32, Vec<u8>>,
}

/// A connection, of which somebody reads.
pub(super) struct Raw {
    write: Arc<Mutex<OwnedWriteHalf>>,
    reading: JoinHandle<Seen>,
}

impl Raw {
    /// Opens a connection with these settings. `until`: reading ends when this stream has ended, one way or another.
    pub(super) async fn open(addr: SocketAddr, settings: &[(u16, u32)], until: Option<u32>) -> Result<Self> {
        let (read, mut write) = TcpStream::connect(addr).await?.into_split();
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        write.write_all(&frame(SETTINGS, 0, 0, &payload)).await?;
        let write = Arc::new(Mutex::new(write));
        Ok(Self { reading: tokio::spawn(see(read, write.clone(), until)), write })
    }

    /// False when the server has closed.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(PATIENCE, self.write.lock().await.write_all(bytes)).await, Ok(Ok(())))
    }

    /// How many of these the server takes before it closes, out of so many.
    pub(super) async fn flood(&mut self, most: u32, make: impl Fn(u32) -> Vec<u8>) -> u32 {
        for count in 0..most {
            if self.reading_ended() || !self.send(&make(count)).await {
                return count;
            }
        }
        most
    }

    /// Whether the server has closed.
    pub(super) fn reading_ended(&self) -> bool {
        self.reading.is_finished()
    }

    /// What was said until the server closed. An error if it does not.
    pub(super) async fn end(self) -> Result<Seen> {
        timeout(PATIENCE, self.reading).await.context("the server does not close")?.context("reading")
    }
}

async fn see(
    mut read: impl tokio::io::AsyncRead + Unpin,
    write: Arc<Mutex<OwnedWriteHalf>>,
    until: Option<u32>,
) -> Seen {
    let mut seen = Seen::default();
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            return seen;
        }
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
        if read.read_exact(&mut payload).await.is_err() {
            return seen;
        }
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        match kind {
            DATA => {
                let body = seen.bodies.entry(stream).or_default();
                let room = KEPT_BYTES_MAX - body.len();
                body.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            // The server looks whether anybody is there. Not while something else is being written: then it can tell.
            PING if flags == 0 => {
                if let Ok(mut write) = write.try_lock() {
                    let _ = write.write_all(&frame(PING, 1, 0, &payload)).await;
                }
            }
            RST_STREAM => seen.resets += 1,
            GOAWAY => {
                seen.goaway =
                    payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().expect("four")));
            }
            _ => {}
        }
        let ended = kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0);
        if ended && until == Some(stream) {
            return seen;
        }
    }
}
