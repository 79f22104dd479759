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

/// One of the two streams of one request. Clones write to the same line.
#[derive(Clone)]
pub(super) struct Output {
    shared: Arc<Mutex<Lines>>,
}

struct Lines {
    component: Arc<str>,
    stream: &'static str,
    bytes_left: usize,
    partial: Vec<u8>,
}

impl Output {
    pub(super) fn new(component: &Arc<str>, stream: &'static str, bytes_max: usize) -> Self {
        let component = Arc::clone(component);
        let lines = Lines { component, stream, bytes_left: bytes_max, partial: Vec::new() };
        Self { shared: Arc::new(Mutex::new(lines)) }
    }
}

impl Lines {
    fn write(&mut self, bytes: &[u8]) {
        if self.bytes_left == 0 {
            return;
        }
        let kept = &bytes[..bytes.len().min(self.bytes_left)];
        self.bytes_left -= kept.len();
        let mut lines = kept.split_inclusive(|byte| *byte == b'\n');
        for line in &mut lines {
            self.partial.extend_from_slice(line);
            if line.ends_with(b"\n") || self.partial.len() >= LOG_LINE_BYTES_MAX {
                self.emit();
            }
        }
        if self.bytes_left == 0 {
            self.emit();
            tracing::warn!(target: "souk::guest", component = &*self.component, stream = self.stream,
                "the guest printed too much; the rest of this request's output is dropped");
        }
    }

    fn emit(&mut self) {
        let text = String::from_utf8_lossy(&self.partial);
        let text = bounded(text.trim_end(), LOG_LINE_BYTES_MAX);
        if !text.is_empty() {
            tracing::info!(target: "souk::guest", component = &*self.component, stream = self.stream, "{text}");
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
