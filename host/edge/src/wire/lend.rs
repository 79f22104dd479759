//! Bodies that a socket is lent instead of given: the kernel sends the pages of a file, and nobody copies them.
//!
//! Only in clear text, where what the client gets is what is stored. Owns the two system calls of that; which answer has a
//! file is the cache's business ([`souk_cache::in_file`]).

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use souk_cache::in_file::BodyFile;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::Wire;

type Polled = Poll<io::Result<usize>>;

/// How a stream of this kind is lent a file.
pub(super) struct Lend<S> {
    /// Writes what comes before a file. The kernel keeps it back for the file's first bytes.
    pub(super) head: fn(&S, &mut Context<'_>, &[IoSlice<'_>]) -> Polled,
    /// Sends the file from an offset on.
    pub(super) file: fn(&S, &mut Context<'_>, &BodyFile, u64) -> Polled,
}

impl Wire<TcpStream> {
    /// Lets bodies that stand in a file be sent from there.
    #[must_use]
    pub(crate) fn lent_files(self) -> Self {
        Self { lend: Some(Lend { head: poll_head, file: poll_file }), ..self }
    }
}

fn poll_head(stream: &TcpStream, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Polled {
    poll_try(stream, cx, || {
        let mut nothing = SendAncillaryBuffer::default();
        Ok(sendmsg(stream, slices, &mut nothing, SendFlags::MORE | SendFlags::NOSIGNAL)?)
    })
}

fn poll_file(stream: &TcpStream, cx: &mut Context<'_>, file: &BodyFile, from: u64) -> Polled {
    let left = usize::try_from(file.length().saturating_sub(from)).unwrap_or(usize::MAX);
    poll_try(stream, cx, || {
        let mut at = from;
        Ok(rustix::fs::sendfile(stream, file.as_fd(), Some(&mut at), left)?)
    })
}

/// Tries until it is done, or until the socket has no room: then it is known when it has.
fn poll_try(stream: &TcpStream, cx: &mut Context<'_>, mut send: impl FnMut() -> io::Result<usize>) -> Polled {
    loop {
        match stream.try_io(Interest::WRITABLE, &mut send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}
