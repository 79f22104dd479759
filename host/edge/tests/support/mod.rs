//! What the tests of the doors share: certificates in files, clients of TLS and QUIC that trust them, a server that answers.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use souk_config::doors::{CertificateFiles, HttpsDoor};
use souk_edge::http::{Body, RequestBody, full};
use souk_edge::listen::{Answer, Peer};

/// Generous: the tests share their machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Something that waits for no longer than [`PATIENCE`].
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it happens in time")
}

/// Writes a certificate for these names, signed by itself, and its key.
pub fn certificate(dir: &Path, file: &str, names: &[&str]) -> (CertificateFiles, CertificateDer<'static>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let files =
        CertificateFiles { cert: dir.join(format!("{file}.pem")), key: dir.join(format!("{file}.key")) };
    std::fs::write(&files.cert, made.cert.pem()).expect("written");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
    (files, made.cert.der().clone())
}

/// One certificate for everybody, or several for those they name.
pub fn https(default: Option<CertificateFiles>, certificates: Vec<CertificateFiles>) -> HttpsDoor {
    HttpsDoor { addrs: vec![local()], default, certificates, http3: true, acme: None }
}

pub fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A client that trusts these certificates alone.
pub fn client(
    trusted: &[CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone()).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    client
}

/// Answers with path, version and peer.
pub struct Echo;

impl Answer for Echo {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let text = format!("{} {:?} tls={}", request.uri().path(), request.version(), peer.tls);
            Response::new(full(text))
        })
    }
}
