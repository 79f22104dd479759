//! Calls: one bidirectional stream per request of a node to its region, opaque to the link.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use minicbor::{Decode, Encode};
use quinn::{Connection, RecvStream, SendStream, WriteError};
use souk_replication::wire::seal_frame;

use crate::stream::{KIND_CALL, PRIORITY_BLOB, PRIORITY_CALL, StreamError, read_frame};

/// Longest request: a recorded call of a plugin, 256 KiB, and the names around it.
pub const CALL_BYTES_MAX: usize = 320 * 1024;
/// Longest reply; a blob of a site or a plugin is the largest thing that is asked for.
pub const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Longest that a region works on a call, whatever the caller allows.
const CALL_MS_MAX: u64 = 60_000;
/// Longest that a region goes on sending one reply: a node that reads so slowly has given up, and what it was to have is
/// needed for others.
const REPLY_SEND_MAX: Duration = Duration::from_secs(120);
/// Refusals of the link itself, in place of an answer that the region may have.
const CODE_DEADLINE: &str = "deadline";
const CODE_REPLY_TOO_LARGE: &str = "reply_too_large";
/// Headers of calls and replies; a refusal's message is the longest thing in them.
const HEADER_BYTES_MAX: usize = 8 * 1024;
/// Longest message of a refusal.
const MESSAGE_CHARS_MAX: usize = 1_024;
/// A reply above this yields to all logs.
const BLOB_BYTES_MIN: usize = 64 * 1024;

/// A request. Its meaning is between the edge and the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which method.
    pub method: u16,
    /// Its argument, at most [`CALL_BYTES_MAX`].
    pub body: Bytes,
}

/// The answer to a [`Call`], at most [`REPLY_BYTES_MAX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The bytes.
    pub body: Bytes,
}

/// A region's word that it does not answer a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable name.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Why a call has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No link to the region, or it broke during the call: whether the region acted is not known.
    #[error("region unreachable: {reason}")]
    Unreachable {
        /// Why, for people.
        reason: String,
        /// How long the link has been down.
        down_for: Duration,
    },
    /// No reply in time: whether the region acted is not known.
    #[error("no reply in time")]
    Deadline,
    /// The region refused.
    #[error("{code}: {message}")]
    Remote {
        /// Stable name.
        code: String,
        /// For people.
        message: String,
    },
    /// The region has worked on it, and its answer cannot be had: whether it acted is not known.
    #[error("the answer of the region is lost: {0}")]
    AnswerLost(String),
    /// The request is longer than the limit, and was not made.
    #[error("{what} is {is} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too long.
        what: &'static str,
        /// Its length.
        is: u64,
        /// The limit.
        limit: usize,
    },
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct CallHeader {
    #[n(0)]
    method: u16,
    #[n(1)]
    deadline_ms: u64,
    #[n(2)]
    bytes: u64,
}

#[derive(Debug, Default, Encode, Decode)]
#[cbor(map)]
struct ReplyHeader {
    #[n(0)]
    bytes: u64,
    /// Set on a refusal; then no bytes follow.
    #[n(1)]
    code: Option<String>,
    #[n(2)]
    message: Option<String>,
}

fn seal<T: Encode<()>>(header: &T) -> Vec<u8> {
    seal_frame(&minicbor::to_vec(header).expect("encoding into a Vec cannot fail"))
}

/// Why a call broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("connection lost: {0}")]
    Lost(String),
    #[error(transparent)]
    Call(CallError),
}

impl From<StreamError> for AskError {
    fn from(error: StreamError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// A reply whose header is there and whose bytes may still be on their way.
pub(crate) struct Coming {
    recv: RecvStream,
    length: usize,
}

impl Coming {
    pub(crate) async fn whole(mut self) -> Result<Reply, AskError> {
        Ok(Reply { body: read_body(&mut self.recv, self.length).await? })
    }
}

/// Makes a call over a connection and waits for the head of its reply. The deadline travels with it so that the region does
/// not work for nobody; the caller keeps it too.
pub(crate) async fn ask(connection: &Connection, call: Call, deadline: Duration) -> Result<Coming, AskError> {
    let lost = |e: &dyn std::fmt::Display| AskError::Lost(e.to_string());
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| lost(&e))?;
    // Only a closed stream has no priority, and then the write below says so.
    let _ = send.set_priority(PRIORITY_CALL);
    let header = CallHeader {
        method: call.method,
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(CALL_MS_MAX).min(CALL_MS_MAX),
        bytes: call.body.len() as u64,
    };
    let mut head = vec![KIND_CALL];
    head.extend_from_slice(&seal(&header));
    match write_request(&mut send, head, call.body).await {
        // A region that stops reading has answered already.
        Ok(()) | Err(WriteError::Stopped(_)) => {}
        Err(e) => return Err(lost(&e)),
    }
    let header = read_frame(&mut recv, "reply header", HEADER_BYTES_MAX).await?;
    let header: ReplyHeader = minicbor::decode(&header).map_err(|e| lost(&e))?;
    if let Some(code) = header.code {
        let message = header.message.unwrap_or_default();
        // The first two come instead of an answer, which may tell of something that was done.
        return Err(AskError::Call(match code.as_str() {
            CODE_DEADLINE => CallError::Deadline,
            CODE_REPLY_TOO_LARGE => CallError::AnswerLost(message),
            _ => CallError::Remote { code, message },
        }));
    }
    let length = match usize::try_from(header.bytes) {
        Ok(length) if length <= REPLY_BYTES_MAX => length,
        _ => {
            let reason = format!("the reply is {} bytes, the limit is {REPLY_BYTES_MAX}", header.bytes);
            return Err(AskError::Call(CallError::AnswerLost(reason)));
        }
    };
    Ok(Coming { recv, length })
}

async fn write_request(send: &mut SendStream, head: Vec<u8>, body: Bytes) -> Result<(), WriteError> {
    send.write_all(&head).await?;
    send.write_chunk(body).await?;
    // Fails only when the peer stopped the stream, and then there is an answer to read.
    let _ = send.finish();
    Ok(())
}

/// Reads exactly `length` bytes and the end of the stream. Memory grows with what has come, not with what is announced.
async fn read_body(recv: &mut RecvStream, length: usize) -> Result<Bytes, StreamError> {
    let mut body = Vec::with_capacity(length.min(BLOB_BYTES_MIN));
    while let Some(chunk) =
        recv.read_chunk(usize::MAX, true).await.map_err(|e| StreamError::Lost(e.to_string()))?
    {
        if body.len() + chunk.bytes.len() > length {
            return Err(StreamError::Lost("more bytes than announced".to_owned()));
        }
        body.extend_from_slice(&chunk.bytes);
    }
    if body.len() < length {
        return Err(StreamError::Lost(format!("{} of {length} bytes", body.len())));
    }
    Ok(body.into())
}

/// Answers one call of a node; `answer` is dropped when its deadline passes or the caller gives up. The bytes of the reply
/// are held until the node has them all, or has given up: what its owner counts, it may count on that.
pub(crate) async fn answer<F>(
    mut send: SendStream,
    mut recv: RecvStream,
    answer: impl FnOnce(Call) -> F,
) -> Result<(), StreamError>
where
    F: Future<Output = Result<Reply, Refusal>>,
{
    let lost = |e: &dyn std::fmt::Display| StreamError::Lost(e.to_string());
    let header = read_frame(&mut recv, "call header", HEADER_BYTES_MAX).await?;
    let header: CallHeader = minicbor::decode(&header).map_err(|e| lost(&e))?;
    let deadline = Duration::from_millis(header.deadline_ms.min(CALL_MS_MAX));
    let outcome = tokio::select! {
        biased;
        outcome = tokio::time::timeout(deadline, async {
            let body = match usize::try_from(header.bytes) {
                Ok(length) if length <= CALL_BYTES_MAX => read_body(&mut recv, length).await?,
                _ => return Ok(Err(refusal("request_too_large", "the request is longer than the limit"))),
            };
            Ok::<_, StreamError>(answer(Call { method: header.method, body }).await)
        }) => match outcome {
            Ok(outcome) => outcome?,
            Err(_) => Err(refusal(CODE_DEADLINE, "the deadline passed at the region")),
        },
        _ = send.stopped() => return Ok(()),
    };
    let (header, body) = match outcome {
        Ok(reply) if reply.body.len() <= REPLY_BYTES_MAX => {
            (ReplyHeader { bytes: reply.body.len() as u64, ..ReplyHeader::default() }, reply.body)
        }
        Ok(_) => (refused(refusal(CODE_REPLY_TOO_LARGE, "the reply is longer than the limit")), Bytes::new()),
        Err(refusal) => (refused(refusal), Bytes::new()),
    };
    let priority = if body.len() > BLOB_BYTES_MIN { PRIORITY_BLOB } else { PRIORITY_CALL };
    let _ = send.set_priority(priority);
    let sending = async {
        send.write_all(&seal(&header)).await.map_err(|e| lost(&e))?;
        send.write_chunk(body).await.map_err(|e| lost(&e))?;
        let _ = send.finish();
        // Wait until the node has it all, so that this task owns the stream to its end.
        let _ = send.stopped().await;
        Ok(())
    };
    match tokio::time::timeout(REPLY_SEND_MAX, sending).await {
        Ok(sent) => sent,
        Err(_) => {
            let _ = send.reset(0_u32.into());
            Err(StreamError::Lost("the node reads too slowly".to_owned()))
        }
    }
}

pub(crate) fn refusal(code: &str, message: &str) -> Refusal {
    Refusal { code: code.to_owned(), message: message.to_owned() }
}

fn refused(refusal: Refusal) -> ReplyHeader {
    let message = refusal.message.chars().take(MESSAGE_CHARS_MAX).collect();
    ReplyHeader { bytes: 0, code: Some(refusal.code.chars().take(64).collect()), message: Some(message) }
}
