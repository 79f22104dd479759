//! How the nodes of a place know each other: by the certificates with which the region knows them.
//!
//! TLS 1.3 both ways, and nothing but the link's authority is trusted. A certificate that it has signed says who its holder is
//! (`spiffe://souk/<region>/edge/<node>`); the asking node wants the one that it dials, and the door lets those of its own
//! list in. Host names mean nothing here: nodes have none.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use souk_config::LinkTls;
use souk_link::Identity;

use super::super::connect::ALPN_H2;
use super::super::error::SetupError;

/// What a node shows its peers, and whom it believes.
pub(super) struct Certificates {
    provider: Arc<CryptoProvider>,
    authorities: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    region: String,
}

impl Certificates {
    pub(super) fn load(files: &LinkTls, region: &str) -> Result<Self, SetupError> {
        let mut authorities = read(&files.ca)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|error| refuse(&files.ca, &error.to_string()))?;
        }
        // The same, whoever has written the file.
        authorities.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        let key = PrivateKeyDer::from_pem_file(&files.key);
        Ok(Self {
            provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
            authorities,
            roots: Arc::new(roots),
            chain: read(&files.cert)?,
            key: key.map_err(|error| refuse(&files.key, &error.to_string()))?,
            region: region.to_owned(),
        })
    }

    /// What every node of the region has, and no shopper: the homes of keys are drawn with it.
    pub(super) fn seed(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update("souk peers");
        for authority in &self.authorities {
            hash.update(authority);
        }
        hash.finalize().into()
    }

    /// For dialling one node.
    pub(super) fn client(&self, node: u32) -> Result<Arc<ClientConfig>, SetupError> {
        let verifier = NodeVerifier {
            roots: Arc::clone(&self.roots),
            provider: Arc::clone(&self.provider),
            expected: Identity::Edge { region: self.region.clone(), node },
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // Connections are few and stay: each is verified anew.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// For a door that lets these nodes in.
    pub(super) fn server(&self, nodes: &[u32]) -> Result<Arc<ServerConfig>, SetupError> {
        let signed =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider));
        let signed = signed.build().map_err(|error| SetupError::Peers(error.to_string()))?;
        let identity = |node: &u32| Identity::Edge { region: self.region.clone(), node: *node };
        let verifier = PlaceVerifier { signed, nodes: nodes.iter().map(identity).collect() };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Arc::new(config))
    }
}

fn read(file: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(refuse(file, "it holds no certificate")),
        found => found.map_err(|error| refuse(file, &error.to_string())),
    }
}

fn refuse(file: &Path, why: &str) -> SetupError {
    SetupError::Peers(format!("cannot use {}: {why}", file.display()))
}

fn is_not_who() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// The node that was dialled, by its name in its certificate.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Identity,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        match Identity::from_certificate(end_entity) {
            Ok(found) if found == self.expected => Ok(ServerCertVerified::assertion()),
            _ => Err(is_not_who()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whoever is on the list, and nobody else.
#[derive(Debug)]
struct PlaceVerifier {
    signed: Arc<dyn ClientCertVerifier>,
    nodes: Vec<Identity>,
}

impl ClientCertVerifier for PlaceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        match Identity::from_certificate(end_entity) {
            Ok(found) if self.nodes.contains(&found) => Ok(verified),
            _ => Err(is_not_who()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}
