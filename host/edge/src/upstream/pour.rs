//! A body on its way into the cache, whether or not a client still reads it.
//!
//! The same for an upstream's response and for a plugin's page. How a body ends, and whether it is stored then, is the
//! caller's to say.

use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt as _;
use souk_cache::FillWriter;

use crate::http::BodyError;

/// Longest that a body which is not stored waits for its slowest reader before it goes on without it.
const SLOWEST_READER_MAX: Duration = Duration::from_secs(30);

/// How a body came to its end.
pub(crate) enum Poured {
    Whole,
    /// It is not to be stored, and nobody reads it.
    Unread,
    Broken(BodyError),
}

/// Moves a body into the cache. `each` is told of every piece. Whatever is returned, the writer is to be finished or
/// dropped; dropping it aborts every reader's body.
pub(crate) async fn pour<B>(mut body: B, writer: &mut FillWriter, mut each: impl FnMut(&Bytes)) -> Poured
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
{
    loop {
        match tokio::time::timeout(SLOWEST_READER_MAX, writer.ready()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Poured::Unread,
            Err(_) => {
                writer.cut_slowest();
                continue;
            }
        }
        match body.frame().await {
            // Trailers are not stored, so nobody gets them.
            Some(Ok(frame)) => {
                if let Ok(chunk) = frame.into_data() {
                    each(&chunk);
                    writer.push(&chunk);
                }
            }
            Some(Err(error)) => return Poured::Broken(error),
            None => return Poured::Whole,
        }
    }
}
