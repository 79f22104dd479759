//! One upstream: its pool, its time-outs, and the named ways in which it fails.

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, Uri, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use souk_config::proxy::ProxyConfig;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect::{ConnectError, Connector};
use super::pace::{Counted, Paced};
use crate::http::{BodyError, RequestBody};
use crate::interim::Interims;
use crate::rescue::{Problem, Refusal};

/// Idle connections kept. A burst of this many requests pays no handshake.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Less than the 5 s after which Node and Apache close an idle connection, so that a request seldom meets one that is just
/// being closed: a request with a body cannot be sent again, for its body is gone.
const IDLE_CONNECTION_AGE_MAX: Duration = Duration::from_secs(4);
/// Fields of a response. The same as hyper's server takes of a request.
const HEADERS_MAX: usize = 100;
/// Bytes of a response head, and of the read buffer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Why there is no answer from the upstream.
#[derive(Debug, Error)]
pub enum UpstreamError {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    #[error("the upstream cannot be trusted: {0}")]
    Tls(String),
    #[error("the upstream did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the upstream broke off before it answered: {0}")]
    Broke(String),
    #[error("the upstream answers {0} requests already")]
    Busy(usize),
}

impl UpstreamError {
    /// What the client is told; its code is also the label of the metric and the detail of `Cache-Status`.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unreachable(_) => Refusal::UpstreamUnreachable,
            Self::Tls(_) => Refusal::UpstreamTls,
            Self::TimedOut(_) => Refusal::UpstreamTimeout,
            Self::Broke(_) => Refusal::UpstreamBroke,
            Self::Busy(_) => Refusal::UpstreamBusy,
        }
    }

    pub fn name(&self) -> &'static str {
        self.refusal().code()
    }

    /// The answer to a stranger: which address failed and how is for the log.
    pub fn problem(&self) -> Problem {
        problem_of(self.refusal())
    }
}

/// The problem of a failure known by its refusal only, as those know it who waited for somebody else's fetch.
pub(super) fn problem_of(refusal: Refusal) -> Problem {
    Problem::new(refusal, "Try again in a moment. The node has logged what happened.")
}

/// Why an upstream cannot be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    #[error("the upstream URL has no usable host: {0}")]
    Host(String),
    #[error("cannot read the upstream's CA file {}: {why}", path.display())]
    CaFile { path: PathBuf, why: String },
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// The body of a forwarded request.
type Forwarded = UnsyncBoxBody<Bytes, BodyError>;

/// An upstream and the connections to it. Cheap to share behind an `Arc`.
pub struct Upstream {
    client: Client<Connector, Forwarded>,
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at the end.
    prefix: String,
    places: Arc<Semaphore>,
    in_flight_max: usize,
    first_byte_max: Duration,
    idle_max: Duration,
}

impl Upstream {
    pub fn new(config: &ProxyConfig) -> Result<Self, SetupError> {
        let url = &config.upstream;
        let host = url.host_str().ok_or_else(|| SetupError::Host(url.to_string()))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let authority = Authority::try_from(authority).map_err(|why| SetupError::Host(why.to_string()))?;
        let secure = url.scheme() == "https";
        let tls = secure.then(|| tls(config, host)).transpose()?;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_AGE_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_headers(HEADERS_MAX)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .set_host(false)
            .build(Connector::new(tls, config.connect_timeout));
        Ok(Self {
            client,
            scheme: if secure { Scheme::HTTPS } else { Scheme::HTTP },
            authority,
            prefix: url.path().trim_end_matches('/').to_owned(),
            places: Arc::new(Semaphore::new(config.in_flight_max)),
            in_flight_max: config.in_flight_max,
            first_byte_max: config.first_byte_timeout,
            idle_max: config.idle_timeout,
        })
    }

    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The path that stands before every forwarded one.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Requests that the upstream is answering.
    pub fn in_flight(&self) -> usize {
        self.in_flight_max - self.places.available_permits()
    }

    /// Sends a request and waits for the head of its response. `target` is path and query as they are on the wire.
    /// Interim responses before it go to `interims`.
    ///
    /// Dropping the future ends the exchange; its connection is not used again.
    pub(super) async fn ask(
        &self,
        target: &str,
        mut request: Request<()>,
        body: Option<RequestBody>,
        interims: Option<Interims>,
    ) -> Result<Response<Paced>, UpstreamError> {
        let place = self.take_place()?;
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(target)
            .build()
            .map_err(|why| UpstreamError::Broke(why.to_string()))?;
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        if let Some(interims) = interims {
            hyper::ext::on_informational(&mut request, move |interim| {
                interims.send(interim.status(), interim.headers());
            });
        }

        let (head, ()) = request.into_parts();
        let response = match body {
            Some(body) => {
                let frames = Arc::new(AtomicU64::new(0));
                let counted = Counted::new(body, Arc::clone(&frames)).boxed_unsync();
                self.wait_for_head(Request::from_parts(head, counted), &frames).await?
            }
            None => {
                let frames = AtomicU64::new(0);
                let again = is_idempotent(&head.method).then(|| head.clone());
                match (self.wait_for_head(Request::from_parts(head, empty()), &frames).await, again) {
                    // The pool cannot know that the upstream closes a connection until a request has met the closing.
                    (Err(UpstreamError::Broke(why)), Some(head)) => {
                        tracing::debug!(%why, "asking the upstream once more");
                        self.wait_for_head(Request::from_parts(head, empty()), &frames).await?
                    }
                    (first, _) => first?,
                }
            }
        };
        Ok(response.map(|body| Paced::new(body, self.idle_max, place)))
    }

    fn take_place(&self) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let places = Arc::clone(&self.places);
        places.try_acquire_owned().map_err(|_| UpstreamError::Busy(self.in_flight_max))
    }

    /// Waits as long as the upload moves, and then for the first byte.
    async fn wait_for_head(
        &self,
        request: Request<Forwarded>,
        frames: &AtomicU64,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let mut asking = std::pin::pin!(self.client.request(request));
        let mut seen = 0;
        loop {
            if let Ok(answer) = tokio::time::timeout(self.first_byte_max, &mut asking).await {
                let mut answer = answer.map_err(named)?;
                // An intermediary speaks its own version (RFC 9110 section 2.5), whatever the upstream speaks.
                *answer.version_mut() = Version::HTTP_11;
                return Ok(answer);
            }
            let sent = frames.load(Ordering::Relaxed);
            if sent == seen {
                return Err(UpstreamError::TimedOut(self.first_byte_max));
            }
            seen = sent;
        }
    }
}

fn empty() -> Forwarded {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Methods that may be sent twice (RFC 9110 section 9.2.2). PUT and DELETE are too, but their bodies are gone.
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// hyper's error by what it means for the client.
fn named(error: hyper_util::client::legacy::Error) -> UpstreamError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(connect) = inner.downcast_ref::<ConnectError>() {
            return match connect {
                ConnectError::TimedOut(_) | ConnectError::Tcp(_) => {
                    UpstreamError::Unreachable(chain(connect))
                }
                ConnectError::Tls(_) => UpstreamError::Tls(chain(connect)),
            };
        }
        cause = inner.source();
    }
    if error.is_connect() {
        return UpstreamError::Unreachable(chain(&error));
    }
    UpstreamError::Broke(chain(&error))
}

/// An error with all its causes, for the log.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// Verification by the public roots, or by the CA file alone where one is given.
fn tls(config: &ProxyConfig, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), SetupError> {
    let mut roots = RootCertStore::empty();
    match &config.upstream_ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let refuse = |why: String| SetupError::CaFile { path: path.clone(), why };
            let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<_, _>>)
                .map_err(|why| refuse(why.to_string()))?;
            if certificates.is_empty() {
                return Err(refuse("it holds no certificate".to_owned()));
            }
            for certificate in certificates {
                roots.add(certificate).map_err(|why| refuse(why.to_string()))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|why| SetupError::Host(why.to_string()))?;
    Ok((Arc::new(client), name))
}

/// What a broken response body was broken by, for the log.
pub(super) fn body_cause(error: &BodyError) -> String {
    chain(error.as_ref())
}
