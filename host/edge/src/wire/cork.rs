//! Frames of HTTP/2 that go together: a page's ten answers are one record of TLS and one system call, where h2 would
//! make ten of each.
//!
//! What is small is taken from h2 as if it were written, and kept until every stream that is open has been answered,
//! until there is no room for more, or until h2 has been polled once more and nothing came. It is the
//! wire's own memory, of [`CORK_BYTES_MAX`] a connection; what a client does not take counts against its allowance there
//! as everywhere.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Follow, Life, Wire, broken};

/// What a record of TLS holds.
const CORK_BYTES_MAX: usize = 16 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Writes what its server gives: in HTTP/2 what is small waits for more.
    pub(super) fn poll_given(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Life::Broken(end) = self.life {
            return Poll::Ready(Err(broken(end)));
        }
        self.unflushed = true;
        ready!(self.poll_out(cx))?;
        if let Follow::Streams(_) = &self.follow {
            let given: usize = slices.iter().map(|slice| slice.len()).sum();
            if self.corked.len() + given > CORK_BYTES_MAX {
                ready!(self.poll_uncork(cx))?;
            }
            if given <= CORK_BYTES_MAX {
                for slice in slices {
                    self.corked.extend_from_slice(slice);
                }
                self.corked_more = true;
                self.follow_written(given, slices);
                return Poll::Ready(Ok(given));
            }
        }
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(cx, polled, slices)
    }

    /// Writes the frames that waited for others.
    pub(super) fn poll_uncork(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.corked.is_empty() {
            let polled = Pin::new(&mut self.stream).poll_write(cx, &self.corked);
            let written = ready!(self.moved(cx, polled))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.earn_download(written);
            self.corked.advance(written);
        }
        // An idle connection holds no buffer.
        if matches!(&self.follow, Follow::Streams(streams) if streams.is_idle()) {
            self.corked = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether frames are waited for that would go with those that are kept together.
    pub(super) fn expects_more(&mut self) -> bool {
        let more = std::mem::take(&mut self.corked_more);
        more && !matches!(&self.follow, Follow::Streams(streams) if streams.is_idle())
    }
}
