//! A guest's stdout and stderr: lines of the log, bounded per request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::fault::bounded;
use crate::limits::LOG_LINE_BYTES_MAX;

/// What is taken in one write; more is the guest's next write.
const WRITE_BYTES_MAX: usize = 8 << 10;
/// What a line costs beside its bytes: a line of one letter is as dear to the log as a short sentence.
const LINE_COST_BYTES: usize = 32;

/// Where a guest prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Takes what guests print. Called while a guest runs: must be quick.
pub trait Printed: Send + Sync {
    /// At most 1 KiB, without control characters.
    fn line(&self, stream: Stream, text: &str);
    /// The rest of this request's output is dropped.
    fn dropped(&self, stream: Stream);
}

/// Prints to the process's own log, under the name that it is given.
pub(super) struct Log(pub(super) Arc<str>);

impl Printed for Log {
    fn line(&self, stream: Stream, text: &str) {
        tracing::info!(target: "souk::guest", component = &*self.0, stream = stream.name(), "{text}");
    }

    fn dropped(&self, stream: Stream) {
        tracing::warn!(target: "souk::guest", component = &*self.0, stream = stream.name(),
            "the guest printed too much; the rest of this request's output is dropped");
    }
}

/// One of the two streams of one instance. Clones write to the same line.
#[derive(Clone)]
pub(super) struct Output {
    shared: Arc<Mutex<Lines>>,
}

struct Lines {
    printed: Arc<dyn Printed>,
    stream: Stream,
    bytes_left: usize,
    partial: Vec<u8>,
}

impl Output {
    pub(super) fn new(printed: &Arc<dyn Printed>, stream: Stream, bytes_max: usize) -> Self {
        let printed = Arc::clone(printed);
        let lines = Lines { printed, stream, bytes_left: bytes_max, partial: Vec::new() };
        Self { shared: Arc::new(Mutex::new(lines)) }
    }

    /// The next request's budget. A line that was not ended is the last request's.
    pub(super) fn renew(&self, bytes_max: usize) {
        let mut lines = self.shared.lock();
        lines.emit();
        lines.bytes_left = bytes_max;
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes_left == 0 {
            return;
        }
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let kept = &line[..line.len().min(self.bytes_left)];
            self.bytes_left -= kept.len();
            self.partial.extend_from_slice(kept);
            if kept.ends_with(b"\n") || self.partial.len() >= LOG_LINE_BYTES_MAX {
                self.emit();
            }
            if self.bytes_left == 0 {
                self.emit();
                self.printed.dropped(self.stream);
                return;
            }
        }
    }

    fn emit(&mut self) {
        if self.partial.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.partial);
        let text = bounded(text.trim_end(), LOG_LINE_BYTES_MAX);
        if !text.is_empty() {
            self.bytes_left = self.bytes_left.saturating_sub(LINE_COST_BYTES);
            self.printed.line(self.stream, &text);
        }
        self.partial.clear();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.emit();
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.shared.lock().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.lock().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted {
        lines: AtomicUsize,
        dropped: AtomicUsize,
    }

    impl Printed for Counted {
        fn line(&self, _: Stream, _: &str) {
            self.lines.fetch_add(1, Ordering::Relaxed);
        }
        fn dropped(&self, _: Stream) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn short_lines_in_one_write_cost_as_much_as_in_many() {
        for at_once in [2, 2_000] {
            let counted = Arc::new(Counted::default());
            let printed: Arc<dyn Printed> = counted.clone();
            let output = Output::new(&printed, Stream::Stdout, 1_000);
            for chunk in "x\n".repeat(1_000).as_bytes().chunks(at_once) {
                output.shared.lock().write(chunk);
            }
            let lines = counted.lines.load(Ordering::Relaxed);
            assert!((29..=31).contains(&lines), "{lines} lines of 34 bytes in a budget of 1000");
            assert_eq!(counted.dropped.load(Ordering::Relaxed), 1);
        }
    }
}
