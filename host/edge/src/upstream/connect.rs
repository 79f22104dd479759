//! A connection to one address of an upstream: TCP, with TLS where its URL says https.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

pub(super) const ALPN_H2: &[u8] = b"h2";
pub(super) const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    #[error("connect: {0}")]
    Tcp(Box<dyn std::error::Error + Send + Sync>),
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    #[error("HTTP handshake: {0}")]
    Http(hyper::Error),
}

/// What to verify a server with, and as whom.
pub(super) type Trust = (Arc<ClientConfig>, ServerName<'static>);

/// Makes connections to one address.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    /// The address as hyper's connector takes it. It is one, so that nothing is looked up.
    to: Uri,
    tls: Option<Trust>,
}

impl Connector {
    pub(super) fn new(to: SocketAddr, tls: Option<Trust>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // A peer that vanishes without a FIN is noticed while its connection is idle in the pool.
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let to = Uri::builder().scheme("http").authority(to.to_string()).path_and_query("/").build();
        Self { tcp, to: to.expect("a socket address is an authority"), tls }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Connects, and says whether HTTP/2 was agreed upon. The deadline is the caller's.
    pub(super) async fn connect(&self) -> Result<(Stream, bool), ConnectError> {
        let tcp = self.tcp.clone().call(self.to.clone()).await;
        let tcp = tcp.map_err(|error| ConnectError::Tcp(error.into()))?;
        let Some((config, name)) = &self.tls else { return Ok((Stream::Plain(tcp), false)) };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(name.clone(), tcp.into_inner());
        let tls = connecting.await.map_err(ConnectError::Tls)?;
        let h2 = tls.get_ref().1.alpn_protocol() == Some(ALPN_H2);
        Ok((Stream::Tls(Box::new(TokioIo::new(tls))), h2))
    }
}

/// A connection, encrypted or not.
pub(super) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
