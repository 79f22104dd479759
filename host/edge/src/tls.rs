//! TLS for shoppers: certificates from files, reloaded when the files change.
//!
//! Owns the server configuration (TLS 1.2 and 1.3, ALPN `h2` then `http/1.1`) and the one certificate of the node.
//! A certificate that cannot be loaded later on keeps the old one in use and says so. Called by [`crate::node`] to
//! build, by [`crate::listen`] to shake hands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

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
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// The certificate in use and the files it came from.
#[derive(Debug)]
pub struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

impl Certificate {
    pub fn load(cert: &Path, key: &Path) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(read(cert, key)?);
        Ok(Arc::new(Self { cert: cert.to_owned(), key: key.to_owned(), current }))
    }

    fn written(&self) -> Option<(SystemTime, SystemTime)> {
        let at = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        Some((at(&self.cert)?, at(&self.key)?))
    }

    /// Watches the files until shutdown.
    pub async fn keep_fresh(self: Arc<Self>, shutdown: CancellationToken) {
        let mut seen = self.written();
        while shutdown.run_until_cancelled(tokio::time::sleep(RELOAD_EVERY)).await.is_some() {
            let written = self.written();
            if written == seen {
                continue;
            }
            match read(&self.cert, &self.key) {
                Ok(fresh) => {
                    self.current.store(Arc::new(fresh));
                    seen = written;
                    tracing::info!(cert = %self.cert.display(), "the renewed certificate is in use");
                }
                // Perhaps only half of the pair is written yet: `seen` stays, so the next look tries again.
                Err(error) => {
                    tracing::warn!(%error, "the changed certificate cannot be used; the old one stays")
                }
            }
        }
    }
}

fn read(cert: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let bad_cert = |why: String| TlsError::Certificate { path: cert.to_owned(), why };
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e: rustls_pki_types::pem::Error| bad_cert(e.to_string()))?;
    if chain.is_empty() {
        return Err(bad_cert("there is no PEM certificate in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| TlsError::Key { path: key.to_owned(), why: e.to_string() })?;
    CertifiedKey::from_der(chain, private, &aws_lc_rs::default_provider()).map_err(|e| TlsError::Mismatch {
        cert: cert.to_owned(),
        key: key.to_owned(),
        why: e.to_string(),
    })
}

/// The server side's configuration. No client certificates: shoppers have none. No early data: it can be replayed.
pub fn server_config(certificate: Arc<Certificate>) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
