//! What a region shows a broker, and whom it trusts to be one: the password in its file, certificates, authorities.
//!
//! An error names the file and never what is in it.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use souk_config::BrokerTls;

/// What is alone in a file, but for the end of its line.
pub(super) async fn password(file: &Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|e| format!("the password in {}: {e}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// None: without TLS.
pub(super) fn tls(tls: &BrokerTls) -> Result<Option<ClientConfig>, String> {
    let BrokerTls::Verified { ca, identity } = tls else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|e| format!("the authority in {}: {e}", file.display()))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    let Some((cert, key)) = identity else { return Ok(Some(builder.with_no_client_auth())) };
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|e| format!("the key in {}: {e}", key.display()))?;
    let config = builder.with_client_auth_cert(certificates(cert)?, private);
    config
        .map(Some)
        .map_err(|e| format!("the certificate in {} with the key in {}: {e}", cert.display(), key.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: String| format!("the certificate in {}: {why}", file.display());
    let found = CertificateDer::pem_file_iter(file).map_err(|e| unusable(e.to_string()))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|e| unusable(e.to_string()))?;
    if found.is_empty() { Err(unusable("there is none".to_owned())) } else { Ok(found) }
}
