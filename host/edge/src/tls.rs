//! TLS for shoppers: a certificate per host name, from files, reloaded when the files change.
//!
//! Owns the server configurations (TLS 1.2 and 1.3 over TCP with ALPN `h2` then `http/1.1`, TLS 1.3 over QUIC with `h3`)
//! and the certificates that both choose from by the name that a client asks for (SNI). A certificate that cannot be
//! loaded later on keeps the old one in use and says so. Called by [`crate::doors`] to build, by [`crate::listen`] and
//! [`crate::http3`] to shake hands, by [`crate::acme`] to put in what it has got.
//!
//! Sessions are resumed by tickets (RFC 5077, RFC 8446), whose keys live in memory, change every six hours and die with
//! the process. rustls resumes none under another name than it was begun with.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use souk_config::AcmeChallenge;
use souk_config::doors::{CertificateFiles, HttpsDoor};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use crate::acme::{ACME_TLS, Challenges};

/// How often the files are looked at. A renewed certificate is in use within half a minute, unasked.
const RELOAD_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the certificate {}: {why}", path.display())]
    Certificate { path: PathBuf, why: String },
    #[error("cannot read the private key {}: {why}", path.display())]
    Key { path: PathBuf, why: String },
    #[error("the certificate {} and the key {} do not belong together: {why}", cert.display(), key.display())]
    Mismatch { cert: PathBuf, key: PathBuf, why: String },
    #[error("the certificate {} is for no host name: use one with subjectAltName, or make it the default", path.display())]
    Nameless { path: PathBuf },
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
    #[error("TLS for HTTP/3 cannot be set up: {0}")]
    Quic(String),
}

/// The certificates in use, and the files they came from.
#[derive(Debug)]
pub struct Certificates {
    files: Vec<CertificateFiles>,
    /// The first of the files also serves whoever asks for no name that another one has.
    has_default: bool,
    current: ArcSwap<Index>,
    /// Held by whoever puts a new index in the place of the old one.
    changing: Mutex<()>,
    /// What an authority finds that looks in a handshake, and whether one does.
    challenges: Challenges,
    proves: bool,
}

/// How long a certificate is good, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
}

/// What is looked up in a handshake.
#[derive(Debug)]
struct Index {
    /// In the order of the files, then those that were adopted.
    pairs: Vec<Pair>,
    /// Pairs by exact name, and by what follows `*.`.
    exact: HashMap<String, Vec<usize>>,
    wildcard: HashMap<String, Vec<usize>>,
    has_default: bool,
}

/// One certificate with its key.
#[derive(Debug, Clone)]
struct Pair {
    key: Arc<CertifiedKey>,
    /// Lower case.
    names: Vec<String>,
    validity: Validity,
    /// When its files were, if it has some.
    written: Option<(SystemTime, SystemTime)>,
    /// The name that it was adopted for.
    adopted_for: Option<String>,
}

impl ResolvesServerCert for Certificates {
    /// None ends the handshake with an alert.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.proves && hello.alpn().is_some_and(looks_for_proof) {
            // Whoever looks so wants to see the proof, and no shopper's certificate in its place.
            return self.challenges.proof_of(hello.server_name()?);
        }
        let index = self.current.load();
        let found = index.find(hello.server_name());
        // Where a name has several, as one with RSA beside ECDSA: the first that the client can verify.
        let usable =
            found.iter().find(|pair| pair.key.key.choose_scheme(hello.signature_schemes()).is_some());
        usable.or_else(|| found.first()).map(|pair| Arc::clone(&pair.key))
    }
}

/// Whether this is all that is spoken by whoever looks for a proof, as it must be (RFC 8737 section 3). Who speaks something
/// else too is served.
fn looks_for_proof<'a>(mut spoken: impl Iterator<Item = &'a [u8]>) -> bool {
    spoken.next() == Some(ACME_TLS) && spoken.next().is_none()
}

impl Index {
    fn new(pairs: Vec<Pair>, has_default: bool) -> Self {
        let (mut exact, mut wildcard) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for (number, pair) in pairs.iter().enumerate() {
            for name in &pair.names {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default().push(number),
                    None => exact.entry(name.clone()).or_default().push(number),
                }
            }
        }
        Self { pairs, exact, wildcard, has_default }
    }

    /// The certificates for a name: its own before its parent's wildcard (one label deep, RFC 9525 section 6.3) before the
    /// default.
    fn find(&self, name: Option<&str>) -> Vec<&Pair> {
        let of = |numbers: &Vec<usize>| -> Vec<_> {
            numbers.iter().filter_map(|&number| self.pairs.get(number)).collect()
        };
        let named = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let parent = || self.wildcard.get(name.split_once('.')?.1);
            self.exact.get(&name).or_else(parent).map(of)
        });
        named.unwrap_or_else(|| self.pairs.first().filter(|_| self.has_default).into_iter().collect())
    }
}

impl Certificates {
    /// Reads every pair. One that cannot be used is an error: a door that lacks a shop's certificate does not open.
    pub fn load(https: &HttpsDoor) -> Result<Arc<Self>, TlsError> {
        let has_default = https.default.is_some();
        let files: Vec<_> = https.default.iter().chain(&https.certificates).cloned().collect();
        let pairs: Vec<_> = files.iter().map(Pair::read).collect::<Result<_, _>>()?;
        for (number, pair) in pairs.iter().enumerate() {
            if pair.names.is_empty() && !(has_default && number == 0) {
                return Err(TlsError::Nameless { path: pair_path(&files, number) });
            }
        }
        let current = ArcSwap::from_pointee(Index::new(pairs, has_default));
        let looked_at = https.acme.as_ref().map(|acme| acme.challenge);
        Ok(Arc::new(Self {
            files,
            has_default,
            current,
            changing: Mutex::default(),
            challenges: Challenges::default(),
            proves: looked_at == Some(AcmeChallenge::TlsAlpn01),
        }))
    }

    /// What is shown to authorities.
    pub(crate) fn challenges(&self) -> &Challenges {
        &self.challenges
    }

    /// Watches the files until shutdown.
    pub async fn keep_fresh(self: Arc<Self>, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(RELOAD_EVERY)).await.is_some() {
            let certificates = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || certificates.refresh()).await.is_err() {
                tracing::error!("looking for renewed certificates panicked");
            }
        }
    }

    /// Takes a certificate that no configured file has (PEM: chain and key), in the place of the one that was adopted for the
    /// same name before. It is used from the next handshake on.
    pub(crate) fn adopt(&self, name: &str, pem: &[u8]) -> Result<Validity, String> {
        let pair = Pair { adopted_for: Some(name.to_owned()), ..Pair::parse(pem)? };
        if !pair.names.iter().any(|own| own == name) {
            return Err(format!("it is not for {name}"));
        }
        let validity = pair.validity;
        let _changing = self.changing.lock();
        let mut pairs = self.current.load().pairs.clone();
        match pairs.iter_mut().find(|old| old.adopted_for == pair.adopted_for) {
            Some(old) => *old = pair,
            None => pairs.push(pair),
        }
        self.current.store(Arc::new(Index::new(pairs, self.has_default)));
        Ok(validity)
    }

    /// Looks at the files now; says how many certificates are new.
    pub fn refresh(&self) -> usize {
        let _changing = self.changing.lock();
        let mut pairs = self.current.load().pairs.clone();
        let mut renewed = 0;
        for (pair, files) in pairs.iter_mut().zip(&self.files) {
            if written(files) == pair.written {
                continue;
            }
            match Pair::read(files) {
                Ok(fresh) => {
                    tracing::info!(cert = %files.cert.display(), names = ?fresh.names, "the renewed certificate is in use");
                    *pair = fresh;
                    renewed += 1;
                }
                // Perhaps only half of the pair is written yet: the next look tries again.
                Err(error) => {
                    tracing::warn!(%error, "the changed certificate cannot be used; the old one stays")
                }
            }
        }
        if renewed > 0 {
            self.current.store(Arc::new(Index::new(pairs, self.has_default)));
        }
        renewed
    }
}

fn pair_path(files: &[CertificateFiles], number: usize) -> PathBuf {
    files.get(number).map(|files| files.cert.clone()).unwrap_or_default()
}

fn written(files: &CertificateFiles) -> Option<(SystemTime, SystemTime)> {
    let at = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    Some((at(&files.cert)?, at(&files.key)?))
}

impl Pair {
    fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let CertificateFiles { cert, key } = files;
        // Before the files are read: what is written meanwhile is seen at the next look.
        let written = written(files);
        let bad_cert = |why: String| TlsError::Certificate { path: cert.clone(), why };
        let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect)
            .map_err(|e: rustls_pki_types::pem::Error| bad_cert(e.to_string()))?;
        let Some(leaf) = chain.first() else {
            return Err(bad_cert("there is no PEM certificate in it".to_owned()));
        };
        let (names, validity) = read_leaf(leaf).map_err(bad_cert)?;
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|e| TlsError::Key { path: key.clone(), why: e.to_string() })?;
        let key = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
            .map_err(|e| TlsError::Mismatch { cert: cert.clone(), key: key.clone(), why: e.to_string() })?;
        Ok(Self { key: Arc::new(key), names, validity, written, adopted_for: None })
    }

    /// Both in one text.
    fn parse(pem: &[u8]) -> Result<Self, String> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("its certificate cannot be read: {error}"))?;
        let Some(leaf) = chain.first() else { return Err("it has no certificate".to_owned()) };
        let (names, validity) = read_leaf(leaf)?;
        let private =
            PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("its key cannot be read: {error}"))?;
        let key = CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider())
            .map_err(|error| format!("certificate and key do not belong together: {error}"))?;
        Ok(Self { key: Arc::new(key), names, validity, written: None, adopted_for: None })
    }
}

/// The host names that a certificate is for, and how long.
fn read_leaf(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, Validity), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
    let alternative = parsed.subject_alternative_name().map_err(|error| error.to_string())?;
    let all = alternative.map(|extension| extension.value.general_names.iter()).into_iter().flatten();
    let names = all.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let ms = |at: ASN1Time| u64::try_from(at.timestamp()).unwrap_or_default().saturating_mul(1_000);
    let validity = parsed.validity();
    let validity = Validity { from_ms: ms(validity.not_before), until_ms: ms(validity.not_after) };
    Ok((names.collect(), validity))
}

/// TLS for shoppers over TCP. No client certificates: shoppers have none. No early data: it can be replayed.
pub fn server_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if certificates.proves {
        config.alpn_protocols.push(ACME_TLS.to_vec());
    }
    config.ticketer = Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The same for HTTP/3. Its tickets have keys of their own: what is agreed on over QUIC is not what is over TCP.
pub fn quic_config(certificates: Arc<Certificates>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h3".to_vec()];
    config.ticketer = Ticketer::new()?;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_offers_its_protocol_and_no_other() {
        let looks = |spoken: &[&'static [u8]]| looks_for_proof(spoken.iter().copied());
        assert!(looks(&[ACME_TLS]));
        for shopper in [
            &[b"h2".as_slice(), ACME_TLS][..],
            &[ACME_TLS, b"http/1.1"],
            &[ACME_TLS, ACME_TLS],
            &[b"h2"],
            &[],
        ] {
            assert!(!looks(shopper), "{shopper:?}");
        }
    }
}
