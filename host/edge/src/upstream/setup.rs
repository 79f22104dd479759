//! From the settings to the servers of an upstream: what each is called, and what it is verified by.

use std::sync::Arc;

use http::uri::Authority;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use souk_config::{UpstreamConfig, UpstreamProtocol, UpstreamServer};

use super::connect::{ALPN_H2, ALPN_HTTP1, Trust};
use super::error::SetupError;
use super::fleet::Name;
use super::telemetry::ProxyMetrics;

/// The configured servers.
pub(super) fn names(config: &UpstreamConfig, metrics: &ProxyMetrics) -> Result<Vec<Name>, SetupError> {
    let secure = config.servers.iter().any(UpstreamServer::is_https);
    let roots = if secure { Some(Arc::new(roots(config)?)) } else { None };
    config.servers.iter().map(|server| name(server, roots.as_ref(), metrics)).collect()
}

fn name(
    server: &UpstreamServer,
    roots: Option<&Arc<RootCertStore>>,
    metrics: &ProxyMetrics,
) -> Result<Name, SetupError> {
    let (authority, bare) = place(server)?;
    let trust = match roots.filter(|_| server.is_https()) {
        Some(roots) => Some(trust(roots, &bare, server.protocol)?),
        None => None,
    };
    Ok(Name::new(server, authority, bare, trust, metrics))
}

/// A server that is dialled with these settings of TLS, which decide by themselves who it is.
pub(super) fn dialled_with(
    server: &UpstreamServer,
    client: Arc<ClientConfig>,
    metrics: &ProxyMetrics,
) -> Result<Name, SetupError> {
    let (authority, bare) = place(server)?;
    let name = server_name(&bare)?;
    Ok(Name::new(server, authority, bare, Some((client, name)), metrics))
}

/// What a server is called, and its host without the brackets of an IPv6 address.
fn place(server: &UpstreamServer) -> Result<(Authority, String), SetupError> {
    let url = &server.url;
    let host = url.host_str().ok_or_else(|| SetupError::Host(url.to_string()))?;
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let authority = Authority::try_from(authority).map_err(|why| SetupError::Host(why.to_string()))?;
    Ok((authority, host.trim_start_matches('[').trim_end_matches(']').to_owned()))
}

fn server_name(host: &str) -> Result<ServerName<'static>, SetupError> {
    ServerName::try_from(host.to_owned()).map_err(|why| SetupError::Host(why.to_string()))
}

fn trust(roots: &Arc<RootCertStore>, host: &str, protocol: UpstreamProtocol) -> Result<Trust, SetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    client.alpn_protocols = match protocol {
        UpstreamProtocol::Http1 => vec![ALPN_HTTP1.to_vec()],
        UpstreamProtocol::Auto | UpstreamProtocol::H2c => vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()],
    };
    Ok((Arc::new(client), server_name(host)?))
}

/// Verification by the public roots, or by the CA file alone where one is given.
fn roots(config: &UpstreamConfig) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = &config.ca else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
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
    Ok(roots)
}
