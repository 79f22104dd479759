//! One exchange over HTTP/3: a request's head, its admission, and the answer on its way out.
//!
//! What the protocol's server does for HTTP/1.1 is done here, and as for HTTP/2 ([`Outgoing`]): fields of connections,
//! `Content-Length`, `Date`, the answer to HEAD, and an answer that breaks off.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use h3::error::{Code, StreamError};
use h3::server::RequestStream;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;

use super::transport::{RecvStream, SendStream};
use super::upload::{Late, Upload};
use crate::http::{Body, Outgoing, RequestBody, Torn, join_cookies};
use crate::interim::Hints;
use crate::listen::{DOWNLOAD_WAIT_MAX, without_body};
use crate::rescue::{Problem, Refusal};
use crate::wire::{BYTES_PER_S_MIN, FIELDS_MAX};

/// What is handed to a stream at once. A peer takes that much within the time for a stalled write, 2 KiB/s, or is shown
/// out; windows that it opens by single bytes do not help it.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Why an answer did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("the peer reads nothing")]
    Stalled,
    #[error("{0}")]
    Torn(#[from] Torn),
}

impl Broken {
    /// The label of the metric.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Stream(_) => "peer",
            Self::Stalled => "stalled",
            Self::Torn(Torn::Body(_)) => "body",
            Self::Torn(Torn::Length) => "length",
        }
    }
}

/// The request as handlers know it, and whether its body comes too slowly; or what is answered in their place.
pub(super) async fn request(
    head: Request<()>,
    stream: RequestStream<RecvStream, Bytes>,
    upload_wait_max: Duration,
) -> Result<(Request<RequestBody>, Option<Late>), Problem> {
    let (mut head, ()) = head.into_parts();
    if head.headers.len() > FIELDS_MAX {
        let why = format!("at most {FIELDS_MAX} fields are read");
        return Err(Problem::new(Refusal::HeadTooLarge, why));
    }
    join_cookies(&mut head.headers);
    let body = Upload::begin(stream, &head.headers, upload_wait_max).await;
    let body = body.map_err(|error| Problem::new(Refusal::BodyLost, error.to_string()))?;
    let late = body.as_ref().map(|body| body.late());
    Ok((Request::from_parts(head, body.map_or_else(RequestBody::empty, RequestBody::from)), late))
}

/// What is answered in the place of whatever became of a request whose body came too slowly.
pub(super) fn too_slow(late: Option<&Late>) -> Option<Problem> {
    let why = || format!("less than {BYTES_PER_S_MIN} bytes a second came");
    late.filter(|late| late.is_late()).map(|_| Problem::new(Refusal::BodyTooSlow, why()))
}

/// Has a request answered, and sends what is said meanwhile (early hints) as it comes.
///
/// Not cancel safe: if the future is dropped in the middle of a frame, the stream must be reset.
pub(super) async fn with_hints(
    stream: &mut RequestStream<SendStream, Bytes>,
    hints: Hints,
    answered: impl Future<Output = Response<Body>>,
) -> Result<Response<Body>, Broken> {
    let mut answered = pin!(answered);
    let mut sent = pin!(async {
        while let Some(hint) = hints.next().await {
            match in_time(stream.send_response(hint)).await {
                // Larger than this client reads: it does without.
                Err(Broken::Stream(StreamError::HeaderTooBig { .. })) => {}
                sent => sent?,
            }
        }
        Ok::<_, Broken>(())
    });
    tokio::select! {
        biased;
        response = &mut answered => {
            hints.end();
            // A frame that has begun must end, and what was said before the answer is before it.
            sent.await.map(|()| response)
        }
        // Not before the end, which is said above: it has failed.
        broken = &mut sent => match broken {
            Err(broken) => Err(broken),
            Ok(()) => Ok(answered.await),
        },
    }
}

/// Sends an answer. Whatever does not get through whole is reset, so that nobody takes the half for the whole.
///
/// Not cancel safe: if the future is dropped, the stream is reset.
pub(super) async fn send(
    stream: &mut RequestStream<SendStream, Bytes>,
    method: &Method,
    response: Response<Body>,
) -> Result<(), Broken> {
    let sent = send_whole(stream, method, response).await;
    if sent.is_err() {
        stream.stop_stream(Code::H3_INTERNAL_ERROR);
    }
    sent
}

async fn send_whole(
    stream: &mut RequestStream<SendStream, Bytes>,
    method: &Method,
    response: Response<Body>,
) -> Result<(), Broken> {
    let to_head = *method == Method::HEAD;
    let response = if to_head { without_body(response) } else { response };
    let (head, mut body) = Outgoing::of(response, to_head);
    in_time(stream.send_response(head)).await?;
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => send_data(stream, data).await?,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    if let Some(trailers) = trailers {
        in_time(stream.send_trailers(trailers)).await?;
    }
    in_time(stream.finish()).await
}

async fn send_data(stream: &mut RequestStream<SendStream, Bytes>, mut data: Bytes) -> Result<(), Broken> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(WRITE_BYTES_MAX));
        in_time(stream.send_data(piece)).await?;
    }
    Ok(())
}

async fn in_time(write: impl Future<Output = Result<(), StreamError>>) -> Result<(), Broken> {
    const PATIENCE: Duration = DOWNLOAD_WAIT_MAX;
    Ok(tokio::time::timeout(PATIENCE, write).await.map_err(|_| Broken::Stalled)??)
}
