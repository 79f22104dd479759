//! What is said to an authority, over HTTP: a connection for each request, some twenty of them every two months.
//!
//! Its own words for `instant-acme`, which asks for a client: with rustls and hyper as everywhere in this house, a bound on
//! answers, and a deadline.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, Uri, Version};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::AcmeError;
use crate::http::BodyError;

/// The longest answer is a chain of certificates, some 10 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// One exchange, its connection included.
const EXCHANGE_MAX: Duration = Duration::from_secs(30);

/// Why an authority was not reached.
#[derive(Debug, thiserror::Error)]
enum Unreached {
    #[error("{0} is no address of an authority: https, or http to this machine")]
    Address(Uri),
    #[error("connect to {host}: {source}")]
    Connect { host: String, source: io::Error },
    #[error("TLS with {host}: {source}")]
    Tls { host: String, source: io::Error },
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("its answer broke off: {0}")]
    Broke(BodyError),
    #[error("no answer within {EXCHANGE_MAX:?}")]
    TooSlow,
}

/// A client of one authority. Clones are the same one.
#[derive(Clone)]
pub(super) struct Post {
    tls: Arc<ClientConfig>,
}

impl Post {
    /// Verifies by the public roots, or by the given certificates alone.
    pub(super) fn new(ca: Option<&Path>) -> Result<Self, AcmeError> {
        let mut roots = RootCertStore::empty();
        match ca {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(path) => {
                let refuse = |why: String| AcmeError::Ca { path: path.to_owned(), why };
                let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect)
                    .map_err(|why: rustls_pki_types::pem::Error| refuse(why.to_string()))?;
                if certificates.is_empty() {
                    return Err(refuse("it holds no certificate".to_owned()));
                }
                for certificate in certificates {
                    roots.add(certificate).map_err(|why| refuse(why.to_string()))?;
                }
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Arc::new(tls) })
    }

    async fn exchange(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Unreached> {
        let (mut head, body) = request.into_parts();
        let refuse = || Unreached::Address(head.uri.clone());
        let authority = head.uri.authority().cloned().ok_or_else(refuse)?;
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_tls = match head.uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_here(&name) => false,
            _ => return Err(refuse()),
        };
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let server = ServerName::try_from(name.clone()).map_err(|_| refuse())?;
        let connected = TcpStream::connect((name.as_str(), port)).await;
        let stream =
            connected.map_err(|source| Unreached::Connect { host: authority.to_string(), source })?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| refuse())?;
        head.headers.insert(HOST, host);
        let target = head.uri.path_and_query().cloned();
        head.uri = Uri::from(target.unwrap_or_else(|| PathAndQuery::from_static("/")));
        head.version = Version::HTTP_11;
        let request = Request::from_parts(head, body);
        if !is_tls {
            return send(stream, request).await;
        }
        let shaken = TlsConnector::from(self.tls).connect(server, stream).await;
        let stream = shaken.map_err(|source| Unreached::Tls { host: authority.to_string(), source })?;
        send(stream, request).await
    }
}

fn is_here(name: &str) -> bool {
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, Unreached> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, for which nobody but us waits.
    let connection = tokio::spawn(connection);
    let answered = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Unreached::TooLong } else { Unreached::Broke(error) }
        })?;
        Ok(Response::from_parts(head, Full::new(body.to_bytes())))
    };
    let answered = answered.await;
    connection.abort();
    answered
}

impl HttpClient for Post {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let exchange = self.clone().exchange(request);
        Box::pin(async move {
            let answered = tokio::time::timeout(EXCHANGE_MAX, exchange).await;
            let answered = answered.unwrap_or(Err(Unreached::TooSlow));
            answered.map(BytesResponse::from).map_err(|error| Error::Other(Box::new(error)))
        })
    }
}
