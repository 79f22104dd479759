//! TLS of the link: both sides prove who they are, and only our own authority is trusted.
//!
//! TLS 1.3 by rustls with the aws-lc-rs provider, ALPN `souk-sync/1`, session resumption, no 0-RTT: early data can be
//! replayed, and a round trip once in hours costs nothing.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::{Identity, LinkFault};

/// The protocol's name in TLS.
pub const ALPN: &[u8] = b"souk-sync/1";

/// Certificate material.
#[derive(Clone)]
pub enum Pem {
    /// A PEM file.
    File(PathBuf),
    /// PEM text.
    Bytes(Vec<u8>),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            // May be a key: never printed.
            Self::Bytes(bytes) => write!(f, "{} bytes of PEM", bytes.len()),
        }
    }
}

/// Certificate authority, own certificate chain and key.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The authority that both sides trust; nothing else is.
    pub ca: Pem,
    /// Own chain.
    pub cert: Pem,
    /// Own private key.
    pub key: Pem,
}

impl TlsFiles {
    /// Reads all of it and holds it against who its holder is to be, as the link does when it starts.
    pub fn check(&self, expected: &Identity) -> Result<(), StartError> {
        Credentials::load(self, expected).map(drop)
    }
}

/// A piece of certificate material.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The authority that both sides trust.
    Authority,
    /// Own chain.
    Certificate,
    /// Own private key.
    Key,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "certificate authority",
            Self::Certificate => "certificate",
            Self::Key => "private key",
        })
    }
}

/// Why a link cannot even start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificate material cannot be read or used.
    #[error("{what} ({place}): {detail}")]
    Certificate {
        /// Which.
        what: Piece,
        /// File name, or "in memory".
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// The own certificate is for somebody else.
    #[error("this certificate says {found}, the configuration says {expected}")]
    WrongIdentity {
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// The UDP socket cannot be had.
    #[error("cannot bind {addr}: {source}")]
    Bind {
        /// Which address.
        addr: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// Certificate material, read and checked against who we are to be.
pub(crate) struct Credentials {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    pub(crate) fn load(files: &TlsFiles, expected: &Identity) -> Result<Self, StartError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(Piece::Authority, &files.ca)? {
            roots.add(authority).map_err(|e| refuse(Piece::Authority, &files.ca, &e))?;
        }
        let chain = certificates(Piece::Certificate, &files.cert)?;
        let own =
            chain.first().ok_or_else(|| refuse(Piece::Certificate, &files.cert, &"no certificate in it"))?;
        let found =
            Identity::from_certificate(own).map_err(|e| refuse(Piece::Certificate, &files.cert, &e))?;
        if found != *expected {
            return Err(StartError::WrongIdentity {
                found: found.to_string(),
                expected: expected.to_string(),
            });
        }
        let key = PrivateKeyDer::from_pem_slice(&read(Piece::Key, &files.key)?)
            .map_err(|e| refuse(Piece::Key, &files.key, &e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                refuse(Piece::Key, &files.key, &format_args!("it is not the key of {}", place(&files.cert)))
            }
            other => refuse(Piece::Key, &files.key, &other),
        })?;
        Ok(Self { provider, roots: Arc::new(roots), chain, key })
    }

    /// The region's side: any node that our authority vouches for may shake hands; its name is looked at afterwards.
    pub(crate) fn server(self) -> Result<QuicServerConfig, StartError> {
        let unusable = |e: &dyn fmt::Display| StartError::Setting(format!("TLS cannot be set up: {e}"));
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots, self.provider.clone())
            .build()
            .map_err(|e| unusable(&e))?;
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain, self.key)
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_early_data_size = 0;
        QuicServerConfig::try_from(config).map_err(|e| unusable(&e))
    }

    /// The node's side: the region must be of our authority, of the dialled name, and of `expected` identity.
    pub(crate) fn client(
        self,
        expected: Identity,
        refusal: Refusals,
    ) -> Result<QuicClientConfig, StartError> {
        let unusable = |e: &dyn fmt::Display| StartError::Setting(format!("TLS cannot be set up: {e}"));
        let chain = WebPkiServerVerifier::builder_with_provider(self.roots, self.provider.clone())
            .build()
            .map_err(|e| unusable(&e))?;
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| unusable(&e))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(RegionVerifier { chain, expected, refusal }))
            .with_client_auth_cert(self.chain, self.key)
            .map_err(|e| unusable(&e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(|e| unusable(&e))
    }
}

fn read(what: Piece, pem: &Pem) -> Result<Vec<u8>, StartError> {
    match pem {
        Pem::File(path) => std::fs::read(path).map_err(|e| refuse(what, pem, &e)),
        Pem::Bytes(bytes) => Ok(bytes.clone()),
    }
}

fn certificates(what: Piece, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let bytes = read(what, pem)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match list {
        Ok(list) if list.is_empty() => Err(refuse(what, pem, &"no certificate in it")),
        Ok(list) => Ok(list),
        Err(e) => Err(refuse(what, pem, &e)),
    }
}

fn refuse(what: Piece, pem: &Pem, detail: &dyn fmt::Display) -> StartError {
    StartError::Certificate { what, place: place(pem), detail: detail.to_string() }
}

fn place(pem: &Pem) -> String {
    match pem {
        Pem::File(path) => path.display().to_string(),
        Pem::Bytes(_) => "in memory".to_owned(),
    }
}

/// Why a region's certificate was refused, kept beside rustls since its errors reach us only as text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Arc<Mutex<Option<LinkFault>>>);

impl Refusals {
    fn put(&self, fault: LinkFault) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    pub(crate) fn take(&self) -> Option<LinkFault> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The usual verification of a server certificate, and then its SPIFFE name.
#[derive(Debug)]
struct RegionVerifier {
    chain: Arc<WebPkiServerVerifier>,
    expected: Identity,
    refusal: Refusals,
}

impl RegionVerifier {
    fn name(
        &self,
        error: &rustls::Error,
        server_name: &ServerName<'_>,
        certificate: &CertificateDer<'_>,
    ) -> LinkFault {
        use CertificateError as C;
        match error {
            // A bad signature: an authority of the same name with another key, as after minting it anew.
            rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
                LinkFault::WrongAuthority
            }
            rustls::Error::InvalidCertificate(
                C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
            ) => LinkFault::Expired,
            rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
                let found = Identity::from_certificate(certificate);
                LinkFault::WrongIdentity {
                    found: found
                        .map_or_else(|e| e.to_string(), |identity| format!("{identity}, for another name")),
                    expected: format!("server name {}", server_name.to_str()),
                }
            }
            other => LinkFault::Tls(other.to_string()),
        }
    }
}

impl ServerCertVerifier for RegionVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let verified = verified.inspect_err(|e| self.refusal.put(self.name(e, server_name, end_entity)))?;
        let found = match Identity::from_certificate(end_entity) {
            Ok(identity) if identity == self.expected => return Ok(verified),
            Ok(identity) => identity.to_string(),
            Err(e) => e.to_string(),
        };
        self.refusal.put(LinkFault::WrongIdentity { found, expected: self.expected.to_string() });
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
