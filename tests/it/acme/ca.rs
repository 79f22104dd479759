//! A small authority: RFC 8555 from the directory to the certificate, with two ways to look at a name (http-01, and RFC 8737's
//! tls-alpn-01).
//!
//! It believes nothing: every request is a JWS by a key that it knows, over a nonce that it gave and took back once, for the
//! address that it was sent to; it looks at a name over the network before it signs, and signs what the request's own key has
//! signed. Every fifth nonce it refuses though it is good, as authorities may.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use rustls::{DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long it looks at a name.
const LOOKS_FOR: Duration = Duration::from_secs(20);
/// A certificate that has lived for most of its life when it comes, so that it is renewed within seconds.
const AGE: Duration = Duration::from_secs(60);
const LEFT: Duration = Duration::from_secs(30);

/// A running authority. Clones are the same one.
#[derive(Clone)]
pub(super) struct Ca(Arc<Inner>);

struct Inner {
    addr: SocketAddr,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
    /// Where names lead to.
    looks_at: Mutex<SocketAddr>,
    is_up: AtomicBool,
    nonces: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nonces: HashSet<String>,
    refused: u64,
    accounts: Vec<Jwk>,
    orders: Vec<Order>,
}

struct Order {
    account: usize,
    domain: String,
    token: String,
    look: Look,
    chain: Option<String>,
    /// Whether somebody was told that it is under way: it is done when it is asked for again.
    told: bool,
}

/// How it looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Http,
    Tls,
}

#[derive(Clone, PartialEq, Eq)]
enum Look {
    NotYet,
    Looking,
    Right,
    Wrong(String),
}

/// What is sent back as a problem document.
struct Refusal(StatusCode, &'static str, String);

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self(StatusCode::BAD_REQUEST, "malformed", format!("{error:#}"))
    }
}

type Answered = Result<Response<Full<Bytes>>, Refusal>;

impl Ca {
    /// Names lead to `looks_at`.
    pub(super) async fn start(looks_at: SocketAddr) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let root = params.self_signed(&key)?;
        let (root, root_pem) = (root.der().clone(), root.pem());
        let issuer = Issuer::new(params, key);
        let own_key = KeyPair::generate()?;
        let own = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&own_key, &issuer)?;
        let own_key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], own_key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let ca = Self(Arc::new(Inner {
            addr: listener.local_addr()?,
            issuer,
            root,
            root_pem,
            looks_at: Mutex::new(looks_at),
            is_up: AtomicBool::new(true),
            nonces: AtomicU64::new(0),
            state: Mutex::default(),
        }));
        tokio::spawn(ca.clone().serve(listener, TlsAcceptor::from(Arc::new(tls))));
        Ok(ca)
    }

    pub(super) fn directory(&self) -> String {
        self.url("directory")
    }

    /// What it signs with, and its own server's certificate too.
    pub(super) fn root(&self) -> &CertificateDer<'static> {
        &self.0.root
    }

    pub(super) fn root_pem(&self) -> &str {
        &self.0.root_pem
    }

    pub(super) fn look_at(&self, addr: SocketAddr) {
        *self.0.looks_at.lock() = addr;
    }

    /// Down, it closes every connection.
    pub(super) fn set_up(&self, is_up: bool) {
        self.0.is_up.store(is_up, Ordering::SeqCst);
    }

    /// Accounts, orders, and nonces that were refused for nothing.
    pub(super) fn counts(&self) -> (usize, usize, u64) {
        let state = self.0.state.lock();
        (state.accounts.len(), state.orders.len(), state.refused)
    }

    async fn serve(self, listener: TcpListener, tls: TlsAcceptor) {
        while let Ok((stream, _)) = listener.accept().await {
            if !self.0.is_up.load(Ordering::SeqCst) {
                continue;
            }
            let (ca, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| {
                    let ca = ca.clone();
                    async move { Ok::<_, std::convert::Infallible>(ca.answer(request).await) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                drop(http.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}/{path}", self.0.addr)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = self.route(request).await.unwrap_or_else(|Refusal(status, kind, detail)| {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = json!({"type": kind, "detail": detail, "status": status.as_u16()});
            let mut response = json_of(status, &problem);
            let kind = HeaderValue::from_static("application/problem+json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        });
        let nonce = format!("nonce-{}", self.0.nonces.fetch_add(1, Ordering::SeqCst));
        self.0.state.lock().nonces.insert(nonce.clone());
        response.headers_mut().insert("replay-nonce", nonce.parse().expect("ASCII"));
        response
    }

    async fn route(&self, request: Request<Incoming>) -> Answered {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let (kind, number) = path.split_once('/').unwrap_or((&path, "0"));
        let number: usize = number.parse().map_err(|_| missing())?;
        match (request.method(), kind) {
            (&Method::GET, "directory") => {
                let url = |path| self.url(path);
                let directory = json!({
                    "newNonce": url("nonce"), "newAccount": url("account"), "newOrder": url("order"),
                    "revokeCert": url("revoke"), "keyChange": url("key"),
                });
                return Ok(json_of(StatusCode::OK, &directory));
            }
            (&Method::HEAD, "nonce") => return Ok(Response::new(Full::default())),
            (&Method::POST, _) => {}
            _ => return Err(missing()),
        }
        let kind = kind.to_owned();
        let (signer, payload) = self.verified(request, &path).await?;
        match (kind.as_str(), signer) {
            ("account", Signer::Key(jwk)) => self.account(*jwk, &payload),
            ("order", Signer::Account(account)) if path == "order" => self.new_order(account, &payload),
            (kind, Signer::Account(account)) => self.of_order(kind, account, number, &payload).await,
            _ => Err(missing()),
        }
    }

    /// Who has signed a request, and what (RFC 8555 section 6).
    async fn verified(&self, request: Request<Incoming>, path: &str) -> Result<(Signer, Value), Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE).cloned();
        if kind.is_none_or(|kind| kind != "application/jose+json") {
            return Err(Refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE, "malformed", "no JWS".to_owned()));
        }
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the body: {error}"))?.to_bytes();
        let jws: Value = serde_json::from_slice(&body).context("the JWS")?;
        let part = |name: &str| jws[name].as_str().map(str::to_owned).with_context(|| format!("no {name}"));
        let (protected, payload, signature) = (part("protected")?, part("payload")?, part("signature")?);
        let decoded = URL_SAFE_NO_PAD.decode(&protected).context("base64")?;
        let head: Value = serde_json::from_slice(&decoded).context("the protected header")?;
        let signer = match (&head["jwk"], head["kid"].as_str()) {
            (jwk @ Value::Object(_), None) => {
                let jwk = serde_json::from_value(jwk.clone()).context("the key")?;
                Signer::Key(Box::new(jwk))
            }
            (Value::Null, Some(kid)) => {
                let number = kid.strip_prefix(&self.url("account/")).and_then(|text| text.parse().ok());
                let known = number.filter(|number| *number < self.0.state.lock().accounts.len());
                let unknown = || Refusal(StatusCode::BAD_REQUEST, "accountDoesNotExist", kid.to_owned());
                Signer::Account(known.ok_or_else(unknown)?)
            }
            _ => return Err(anyhow::anyhow!("neither a key alone nor an account alone").into()),
        };
        let jwk = match &signer {
            Signer::Key(jwk) => (**jwk).clone(),
            Signer::Account(number) => self.0.state.lock().accounts[*number].clone(),
        };
        let checked = || -> Result<()> {
            ensure!(head["alg"] == "ES256", "the algorithm is {}", head["alg"]);
            ensure!(head["url"] == self.url(path).as_str(), "signed for {}", head["url"]);
            let key = DecodingKey::from_jwk(&jwk)?;
            let message = format!("{protected}.{payload}");
            let is_theirs =
                jsonwebtoken::crypto::verify(&signature, message.as_bytes(), &key, Algorithm::ES256)?;
            ensure!(is_theirs, "the signature is not the key's");
            Ok(())
        };
        checked()?;
        let nonce = head["nonce"].as_str().unwrap_or_default().to_owned();
        {
            let mut state = self.0.state.lock();
            let is_good = state.nonces.remove(&nonce);
            let refuses = is_good && nonce.ends_with(['4', '9']);
            state.refused += u64::from(refuses);
            if !is_good || refuses {
                return Err(Refusal(StatusCode::BAD_REQUEST, "badNonce", nonce));
            }
        }
        let payload = URL_SAFE_NO_PAD.decode(&payload).context("base64")?;
        let payload = match payload.as_slice() {
            // POST as GET
            [] => Value::Null,
            json => serde_json::from_slice(json).context("the payload")?,
        };
        Ok((signer, payload))
    }

    fn account(&self, jwk: Jwk, payload: &Value) -> Answered {
        if payload["termsOfServiceAgreed"] != true {
            let why = "the terms are not agreed to".to_owned();
            return Err(Refusal(StatusCode::FORBIDDEN, "userActionRequired", why));
        }
        let number = {
            let mut state = self.0.state.lock();
            state.accounts.push(jwk);
            state.accounts.len() - 1
        };
        let account = json!({"status": "valid", "contact": payload["contact"]});
        Ok(located(json_of(StatusCode::CREATED, &account), &self.url(&format!("account/{number}"))))
    }

    fn new_order(&self, account: usize, payload: &Value) -> Answered {
        let identifiers = payload["identifiers"].as_array().context("no identifiers")?;
        let [only] = identifiers.as_slice() else {
            return Err(anyhow::anyhow!("{} identifiers", identifiers.len()).into());
        };
        let domain = only["value"].as_str().filter(|_| only["type"] == "dns").context("no name")?.to_owned();
        let number = {
            let mut state = self.0.state.lock();
            let token = format!("token-{}-{}", self.0.addr.port(), state.orders.len());
            state.orders.push(Order { account, domain, token, look: Look::NotYet, chain: None, told: false });
            state.orders.len() - 1
        };
        let order = self.shown(number);
        Ok(located(json_of(StatusCode::CREATED, &order), &self.url(&format!("order/{number}"))))
    }

    fn shown(&self, number: usize) -> Value {
        let state = self.0.state.lock();
        let order = &state.orders[number];
        let status = match (&order.look, &order.chain) {
            (Look::Wrong(_), _) => "invalid",
            (Look::NotYet | Look::Looking, _) => "pending",
            (Look::Right, None) => "ready",
            (Look::Right, Some(_)) if !order.told => "processing",
            (Look::Right, Some(_)) => "valid",
        };
        let mut shown = json!({
            "status": status,
            "identifiers": [{"type": "dns", "value": order.domain}],
            "authorizations": [self.url(&format!("authorization/{number}"))],
            "finalize": self.url(&format!("finalize/{number}")),
        });
        if status == "valid" {
            shown["certificate"] = self.url(&format!("certificate/{number}")).into();
        }
        shown
    }

    async fn of_order(&self, kind: &str, account: usize, number: usize, payload: &Value) -> Answered {
        {
            let state = self.0.state.lock();
            if state.orders.get(number).is_none_or(|order| order.account != account) {
                return Err(missing());
            }
        }
        match kind {
            "order" => {
                let shown = self.shown(number);
                if shown["status"] == "processing" {
                    self.0.state.lock().orders[number].told = true;
                }
                Ok(json_of(StatusCode::OK, &shown))
            }
            "authorization" => Ok(json_of(StatusCode::OK, &self.authorization(number))),
            "challenge" | "handshake" => {
                let (way, at) = if kind == "challenge" { (Way::Http, 1) } else { (Way::Tls, 2) };
                if !payload.is_null() {
                    self.look(number, way);
                }
                Ok(json_of(StatusCode::OK, &self.authorization(number)["challenges"][at]))
            }
            "finalize" => {
                if self.shown(number)["status"] != "ready" {
                    let why = "nobody has looked at the name".to_owned();
                    return Err(Refusal(StatusCode::FORBIDDEN, "orderNotReady", why));
                }
                let csr = payload["csr"].as_str().context("no request")?;
                let csr = URL_SAFE_NO_PAD.decode(csr).context("base64")?;
                let domain = self.0.state.lock().orders[number].domain.clone();
                let chain = self
                    .sign(csr, &domain)
                    .map_err(|error| Refusal(StatusCode::BAD_REQUEST, "badCSR", format!("{error:#}")))?;
                self.0.state.lock().orders[number].chain = Some(chain);
                Ok(json_of(StatusCode::OK, &self.shown(number)))
            }
            "certificate" => {
                let chain = self.0.state.lock().orders[number].chain.clone().ok_or_else(missing)?;
                let mut response = Response::new(Full::from(chain));
                let kind = HeaderValue::from_static("application/pem-certificate-chain");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                Ok(response)
            }
            _ => Err(missing()),
        }
    }

    fn authorization(&self, number: usize) -> Value {
        let state = self.0.state.lock();
        let order = &state.orders[number];
        let (of_name, of_challenge) = match &order.look {
            Look::NotYet => ("pending", "pending"),
            Look::Looking => ("pending", "processing"),
            Look::Right => ("valid", "valid"),
            Look::Wrong(_) => ("invalid", "invalid"),
        };
        let url = self.url(&format!("challenge/{number}"));
        let of = |kind: &str, at: &str| {
            let url = self.url(&format!("{at}/{number}"));
            let mut challenge =
                json!({"type": kind, "url": url, "token": order.token, "status": of_challenge});
            if let Look::Wrong(why) = &order.look {
                let kind = "urn:ietf:params:acme:error:unauthorized";
                challenge["error"] = json!({"type": kind, "detail": why, "status": 403});
            }
            challenge
        };
        // Another way comes first, which is not offered by whoever asks.
        let other = json!({"type": "dns-01", "url": url, "token": order.token, "status": "pending"});
        json!({
            "identifier": {"type": "dns", "value": order.domain},
            "status": of_name,
            "challenges": [other, of("http-01", "challenge"), of("tls-alpn-01", "handshake")],
        })
    }

    /// Looks at a name, once.
    fn look(&self, number: usize, way: Way) {
        let (domain, token, thumb) = {
            let mut state = self.0.state.lock();
            let State { orders, accounts, .. } = &mut *state;
            let order = &mut orders[number];
            if order.look != Look::NotYet {
                return;
            }
            order.look = Look::Looking;
            let thumb = accounts[order.account].thumbprint(ThumbprintHash::SHA256).expect("a key of P-256");
            (order.domain.clone(), order.token.clone(), thumb)
        };
        let (ca, addr) = (self.clone(), *self.0.looks_at.lock());
        tokio::spawn(async move {
            let answer = format!("{token}.{thumb}");
            let seen = async {
                match way {
                    Way::Http => {
                        let seen = fetch(addr, &domain, &token).await?;
                        ensure!(seen.trim_end() == answer, "it says {seen:?}");
                    }
                    Way::Tls => {
                        let shown = shake(addr, &domain).await?;
                        ensure!(proves(&shown, &domain, &answer), "it shows another certificate");
                    }
                }
                anyhow::Ok(())
            };
            let look = match tokio::time::timeout(LOOKS_FOR, seen).await {
                Ok(Ok(())) => Look::Right,
                Ok(Err(error)) => Look::Wrong(format!("{domain}: {error:#}")),
                Err(_) => Look::Wrong(format!("{domain} says nothing")),
            };
            ca.0.state.lock().orders[number].look = look;
        });
    }

    fn sign(&self, csr: Vec<u8>, domain: &str) -> Result<String> {
        let mut csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))?;
        let names: Vec<_> = csr.params.subject_alt_names.iter().collect();
        match names.as_slice() {
            [SanType::DnsName(name)] if name.as_str() == domain => {}
            other => bail!("{other:?} is not {domain}"),
        }
        let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH)?;
        (csr.params.not_before, csr.params.not_after) = (now - AGE, now + LEFT);
        let signed = csr.signed_by(&self.0.issuer)?;
        Ok(format!("{}{}", signed.pem(), self.0.root_pem))
    }
}

enum Signer {
    Key(Box<Jwk>),
    Account(usize),
}

fn missing() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "malformed", "there is no such thing".to_owned())
}

fn json_of(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn located(mut response: Response<Full<Bytes>>, url: &str) -> Response<Full<Bytes>> {
    response.headers_mut().insert(header::LOCATION, url.parse().expect("an address is ASCII"));
    response
}

/// The certificate that a host shows to an authority.
pub(super) async fn shake(addr: SocketAddr, domain: &str) -> Result<CertificateDer<'static>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let anything = Arc::new(Anything(provider.signature_verification_algorithms.supported_schemes()));
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(anything)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let stream = TcpStream::connect(addr).await.context("connect")?;
    let name = ServerName::try_from(domain.to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let connection = stream.get_ref().1;
    ensure!(connection.alpn_protocol() == Some(b"acme-tls/1"), "it speaks another protocol");
    connection.peer_certificates().and_then(<[_]>::first).cloned().context("no certificate")
}

/// Whether a certificate is for this name alone, and has the digest of this answer in an extension that must be understood
/// (RFC 8737 section 3). By its bytes, which there is one way to write (DER).
fn proves(certificate: &[u8], domain: &str, answer: &str) -> bool {
    let has = |part: &[u8]| certificate.windows(part.len()).any(|window| window == part);
    let length = u8::try_from(domain.len()).expect("a short name");
    // SEQUENCE of one GeneralName, a dNSName.
    let name = [&[0x30, length + 2, 0x82, length], domain.as_bytes()].concat();
    let identifier = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f, 0x01, 0x01, 0xff];
    let digest = [&[0x04, 0x22, 0x04, 0x20][..], Sha256::digest(answer).as_slice()].concat();
    has(&name) && has(&[&identifier[..], &digest].concat())
}

/// Whatever is shown is looked at afterwards. Nobody else knows the answer that it must hold the digest of.
#[derive(Debug)]
struct Anything(Vec<SignatureScheme>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// What a host says to whoever looks for a token.
async fn fetch(addr: SocketAddr, domain: &str, token: &str) -> Result<String> {
    let stream = TcpStream::connect(addr).await.context("connect")?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(header::HOST, domain)
        .body(Empty::<Bytes>::new())?;
    let response = send.send_request(request).await?;
    ensure!(response.status() == 200, "it answers {}", response.status());
    let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
