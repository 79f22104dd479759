//! The clients that look at an answer before anything is measured.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::Spoken;

/// An answer, read whole.
pub(crate) struct Seen {
    pub(crate) status: StatusCode,
    headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Asks over whatever a row is about, and trusts one certificate.
pub(crate) struct Fetch {
    roots: RootCertStore,
}

impl Fetch {
    pub(crate) fn trusting(certificate: CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        Ok(Self { roots })
    }

    /// TLS 1.3 with one protocol to agree on.
    pub(crate) fn tls(&self, alpn: &str) -> Result<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        Ok(config)
    }

    pub(crate) async fn get(&self, spoken: Spoken, addr: SocketAddr, path: &str) -> Result<Seen> {
        let stream = TcpStream::connect(addr).await?;
        match spoken {
            Spoken::Clear => one(stream, addr, path).await,
            Spoken::Tls => one(self.shake(stream, "http/1.1").await?, addr, path).await,
            Spoken::Http2(_) => {
                let stream = TokioIo::new(self.shake(stream, "h2").await?);
                let (mut send, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                let request = Request::get(format!("https://{addr}{path}")).body(Empty::<Bytes>::new())?;
                whole(send.send_request(request).await?).await
            }
        }
    }

    async fn shake(
        &self,
        stream: TcpStream,
        alpn: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = "localhost".try_into().context("a name")?;
        Ok(TlsConnector::from(Arc::new(self.tls(alpn)?)).connect(name, stream).await?)
    }
}

async fn one<S>(stream: S, addr: SocketAddr, path: &str) -> Result<Seen>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    // As the loads write it: the authority is part of what is asked for.
    let request = Request::get(path).header("host", addr.to_string()).body(Empty::<Bytes>::new())?;
    whole(send.send_request(request).await?).await
}

async fn whole(answer: http::Response<Incoming>) -> Result<Seen> {
    let (head, body) = answer.into_parts();
    Ok(Seen { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}
