//! Requests of guests to the world: granted hosts only, and never an address that is not public.
//!
//! A name is resolved once; if *any* of its addresses may not be reached, none is; the connection goes to exactly the
//! addresses that were checked, so that a name server that answers differently the second time is not asked a second
//! time. `Host` and the certificate's name come from the grant. Redirects are the guest's to follow, as a new request
//! that is checked anew. No proxy of the environment is used.
//!
//! * [`grant`]: what may be reached, by name. [`address`]: what may not, by number. [`network`]: the sockets.
//! * [`indoors`]: the one host that is no host, and answered in the process.
//! * [`message`]: what of a request leaves, and the bounds of what comes back.

mod address;
mod grant;
mod indoors;
mod message;
mod network;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmtime_wasi_http::{Error as WasiHttpError, RequestOptions, WasiBody};

pub use address::is_private;
use grant::Host;
pub use grant::{BadGrant, Grant};
pub(super) use indoors::is_reserved;
pub use indoors::{INDOORS_HOST, Indoors};
use message::{Incoming, Task};
use network::{LookupPlace, Network, System};

use super::metrics::HttpMetrics;

/// Bounds of what guests send and fetch. A guest's own time-outs apply where they are shorter.
#[derive(Debug, Clone)]
pub struct OutboundLimits {
    /// Requests that one run of a guest may send.
    pub requests_max: u32,
    /// Requests of all guests under way. Each holds a socket and up to 64 KiB of a head.
    pub connections_max: usize,
    /// Of one site's guests: a quarter, so that a shop whose peers hang leaves the others theirs.
    pub connections_per_site_max: usize,
    /// Names that are being resolved: each keeps a thread, of the 512 that a process has for work that blocks.
    pub lookups_max: usize,
    /// Of one site: its name servers may be hostile, and never answer.
    pub lookups_per_site_max: usize,
    /// Resolving, connecting and the TLS handshake together.
    pub connect_max: Duration,
    /// From the request's last byte to the answer's head.
    pub first_byte_max: Duration,
    /// The longest pause inside an answer's body.
    pub between_bytes_max: Duration,
    /// Bodies, each way.
    pub upload_bytes_max: u64,
    pub download_bytes_max: u64,
}

impl Default for OutboundLimits {
    fn default() -> Self {
        Self {
            requests_max: 8,
            connections_max: 512,
            connections_per_site_max: 128,
            lookups_max: 128,
            lookups_per_site_max: 8,
            connect_max: Duration::from_secs(5),
            first_byte_max: Duration::from_secs(10),
            between_bytes_max: Duration::from_secs(5),
            upload_bytes_max: 8 << 20,
            download_bytes_max: 32 << 20,
        }
    }
}

/// Addresses that guests may reach, if their names are granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Public ones that are not this machine's.
    Public,
    /// All of them, loopback and metadata services too: for a developer's own machine and for tests, never for
    /// components of merchants.
    Everywhere,
}

/// Why a request of a guest was not sent, or had no answer. The texts are for the operator's log.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("its host is not granted")]
    NotGranted,
    #[error("this run has sent as many as it may")]
    TooMany,
    #[error("too many requests of guests are under way")]
    Busy,
    #[error("too many requests of this site's guests are under way")]
    SiteBusy,
    #[error("no guest may use this method")]
    Method,
    #[error("its host is no name for a certificate")]
    Uri,
    #[error("its name leads to {0}, which no guest may reach")]
    Address(IpAddr),
    #[error("its name cannot be resolved: {0}")]
    Unresolved(io::Error),
    #[error("its name has no address")]
    NoAddress,
    #[error("no connection in time")]
    ConnectTimeout,
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no TLS: {0}")]
    Tls(io::Error),
    #[error("no answer in time")]
    NoAnswer,
    #[error("the peer wanted to speak another protocol")]
    Upgrade,
    #[error(transparent)]
    Http(hyper::Error),
}

/// The way out. Cheap to clone.
#[derive(Clone)]
pub struct Outbound {
    shared: Arc<Shared>,
    part: Part,
    /// Held once by the run that sends, and by each of its requests until the answer is read or dropped.
    run: Arc<()>,
}

/// What one site may have of it at a time; all of it, for whoever is no site.
#[derive(Clone)]
struct Part {
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Part {
    fn new(connections_max: usize, lookups_max: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections_max)),
            lookups: Arc::new(Semaphore::new(lookups_max)),
        }
    }
}

struct Shared {
    network: Box<dyn Network>,
    tls: Arc<ClientConfig>,
    reach: Reach,
    /// Addresses of ours that no interface shows: what balancers and address translation put before our doors.
    own: HashSet<IpAddr>,
    limits: OutboundLimits,
    whole: Part,
    metrics: HttpMetrics,
}

impl Outbound {
    /// `own`: public addresses of this platform beside those of the machine's interfaces.
    pub fn new(
        limits: OutboundLimits,
        reach: Reach,
        own: impl IntoIterator<Item = IpAddr>,
        metrics: HttpMetrics,
    ) -> Result<Self, rustls::Error> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self::with(Box::new(System), roots, limits, reach, own, metrics)
    }

    fn with(
        network: Box<dyn Network>,
        roots: RootCertStore,
        limits: OutboundLimits,
        reach: Reach,
        own: impl IntoIterator<Item = IpAddr>,
        metrics: HttpMetrics,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let whole = Part::new(limits.connections_max, limits.lookups_max);
        // Whoever is no site has as much; what there is for all is counted apart.
        let part = Part::new(limits.connections_max, limits.lookups_max);
        let own = own.into_iter().map(|address| address.to_canonical()).collect();
        let shared = Shared { network, tls: Arc::new(tls), reach, own, limits, whole, metrics };
        Ok(Self { shared: Arc::new(shared), part, run: Arc::default() })
    }

    /// One site's way out.
    pub(super) fn for_site(&self) -> Self {
        let limits = &self.shared.limits;
        let part = Part::new(limits.connections_per_site_max, limits.lookups_per_site_max);
        Self { shared: Arc::clone(&self.shared), part, run: Arc::default() }
    }

    /// The same way for one guest's store.
    pub(super) fn for_run(&self) -> Self {
        Self { run: Arc::default(), ..self.clone() }
    }

    /// Whether a request of this run has not ended: it is being sent, or its answer is not read and not dropped.
    pub(super) fn is_under_way(&self) -> bool {
        Arc::strong_count(&self.run) > 1
    }

    /// Sends one request of a run that has sent `sent` before. Dropping the future, or later the answer's body, closes
    /// the connection.
    pub(super) async fn send(
        self,
        grants: Arc<[Grant]>,
        sent: u32,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, WasiHttpError> {
        let Self { shared, part, run } = &self;
        let answered = shared.exchange((part, run), &grants, sent, request, options).await;
        self.shared.metrics.outbound(answered.as_ref().map_or_else(Refusal::name, |_| "answered"));
        answered.map_err(|refusal| {
            tracing::debug!(target: "souk::guest", reason = refusal.name(), %refusal, "an outbound request failed");
            refusal.into()
        })
    }
}

impl Shared {
    async fn exchange(
        &self,
        (part, run): (&Part, &Arc<()>),
        grants: &[Grant],
        sent: u32,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Refusal> {
        if sent >= self.limits.requests_max {
            return Err(Refusal::TooMany);
        }
        // It never leads anywhere, whoever has granted it.
        if is_reserved(request.uri()) {
            return Err(Refusal::NotGranted);
        }
        // What cannot be granted was not.
        let asked = Grant::asked_by(request.uri()).map_err(|_| Refusal::NotGranted)?;
        if !grants.contains(&asked) {
            return Err(Refusal::NotGranted);
        }
        // A tunnel would carry anything anywhere; TRACE echoes what intermediaries added.
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(Refusal::Method);
        }
        let of_site = Arc::clone(&part.connections).try_acquire_owned().map_err(|_| Refusal::SiteBusy)?;
        let of_all = Arc::clone(&self.whole.connections).try_acquire_owned().map_err(|_| Refusal::Busy)?;

        let connecting = self.connect(part, &asked);
        let stream = timeout(at_most(options.connect_timeout, self.limits.connect_max), connecting)
            .await
            .map_err(|_| Refusal::ConnectTimeout)??;
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(message::FIELDS_MAX)
            .max_buf_size(message::HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(Refusal::Http)?;
        let driver = Task::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: "souk::guest", %error, "an outbound connection broke");
            }
            drop((of_site, of_all));
        });

        let request = message::outgoing(request, &asked, self.limits.upload_bytes_max);
        let first_byte_max = at_most(options.first_byte_timeout, self.limits.first_byte_max);
        let response = timeout(first_byte_max, sender.send_request(request))
            .await
            .map_err(|_| Refusal::NoAnswer)?
            .map_err(Refusal::Http)?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Refusal::Upgrade);
        }
        let pause_max = at_most(options.between_bytes_timeout, self.limits.between_bytes_max);
        let (mut head, body) = response.into_parts();
        let nominated = super::head::remove_hop_by_hop(&mut head.headers);
        super::trailers::rebuild_announcement(&mut head.headers, &nominated);
        let bytes_max = self.limits.download_bytes_max;
        let body = Incoming::new(body, driver, pause_max, bytes_max, nominated, Arc::clone(run));
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    async fn connect(&self, part: &Part, asked: &Grant) -> Result<Box<dyn Stream>, Refusal> {
        let found = match asked.host() {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let place = self.lookup_place(part).await;
                self.network.resolve(name, place).await.map_err(Refusal::Unresolved)?
            }
        };
        self.check(&found)?;
        let stream = self.reach_first(&found, asked.port()).await?;
        if !asked.encrypted() {
            return Ok(Box::new(stream));
        }
        let name = match asked.host() {
            Host::Address(address) => ServerName::from(*address),
            Host::Name(name) => ServerName::try_from(name.clone()).map_err(|_| Refusal::Uri)?,
        };
        let stream =
            TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.map_err(Refusal::Tls)?;
        Ok(Box::new(stream))
    }

    /// The site's own first: who waits for that keeps no other site waiting.
    async fn lookup_place(&self, part: &Part) -> LookupPlace {
        let never_closed = "the semaphore is never closed";
        let of_site = Arc::clone(&part.lookups).acquire_owned().await.expect(never_closed);
        let of_all = Arc::clone(&self.whole.lookups).acquire_owned().await.expect(never_closed);
        LookupPlace { _permits: [of_site, of_all] }
    }

    /// One bad address is enough: a name that mixes is an attack or a mistake.
    fn check(&self, found: &[IpAddr]) -> Result<(), Refusal> {
        if self.reach == Reach::Everywhere {
            return Ok(());
        }
        let interfaces = self.network.own();
        let ours = |address: &IpAddr| self.own.contains(address) || interfaces.contains(address);
        match found.iter().find(|address| is_private(**address) || ours(address)) {
            Some(address) => Err(Refusal::Address(*address)),
            None => Ok(()),
        }
    }

    /// A name with many addresses must not cost a connection attempt each.
    async fn reach_first(&self, found: &[IpAddr], port: u16) -> Result<tokio::net::TcpStream, Refusal> {
        const ATTEMPTS_MAX: usize = 3;
        let mut failed = Refusal::NoAddress;
        for address in found.iter().take(ATTEMPTS_MAX) {
            match self.network.connect(SocketAddr::new(*address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Refusal::Connect(error),
            }
        }
        Err(failed)
    }
}

/// A guest's own time-out counts where it is shorter.
fn at_most(own: Option<Duration>, max: Duration) -> Duration {
    own.map_or(max, |own| own.min(max))
}

/// Clear or encrypted.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Origin form, as it goes to a server that is no proxy.
fn origin_form(uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::from(path)
}

impl Refusal {
    fn name(&self) -> &'static str {
        match self {
            Self::NotGranted => "not_granted",
            Self::TooMany => "too_many_requests",
            Self::Busy => "busy",
            Self::SiteBusy => "site_busy",
            Self::Method => "method",
            Self::Uri => "uri",
            Self::Address(_) => "address_refused",
            Self::Unresolved(_) | Self::NoAddress => "unresolved",
            Self::ConnectTimeout => "connect_timeout",
            Self::Connect(_) => "connect",
            Self::Tls(_) => "tls",
            Self::NoAnswer => "first_byte_timeout",
            Self::Upgrade => "upgrade",
            Self::Http(_) => "http",
        }
    }
}

/// What the guest is told: the name that the standard has for it, and nothing of addresses.
impl From<Refusal> for WasiHttpError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotGranted => Self::HttpRequestDenied,
            Refusal::TooMany | Refusal::Busy | Refusal::SiteBusy => Self::ConnectionLimitReached,
            Refusal::Method => Self::HttpRequestMethodInvalid,
            Refusal::Uri => Self::HttpRequestUriInvalid,
            Refusal::Address(_) => Self::DestinationIpProhibited,
            Refusal::Unresolved(_) => Self::DnsError { rcode: None, info_code: None },
            Refusal::NoAddress => Self::DestinationNotFound,
            Refusal::ConnectTimeout => Self::ConnectionTimeout,
            Refusal::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Self::ConnectionRefused
            }
            Refusal::Connect(_) => Self::DestinationUnavailable,
            // rustls wraps what it says of a certificate in an I/O error of this kind.
            Refusal::Tls(error) if error.kind() == io::ErrorKind::InvalidData => Self::TlsCertificateError,
            Refusal::Tls(_) => Self::TlsProtocolError,
            Refusal::NoAnswer => Self::HttpResponseTimeout,
            Refusal::Upgrade => Self::HttpUpgradeFailed,
            Refusal::Http(error) => Self::Hyper(error),
        }
    }
}
