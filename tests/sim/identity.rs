//! Certificates of all worlds: from fixed seeds, so that every handshake has the same bytes to carry.

use std::sync::OnceLock;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ED25519, SanType};
use souk_link::{Pem, TlsFiles};

use crate::node::NODE;

pub(crate) const REGION: &str = "sim";
pub(crate) const SERVER_NAME: &str = "region.souk.internal";

/// PKCS #8 around an Ed25519 seed (RFC 8410). Its signatures have one length, and so have the handshakes.
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What both sides show.
pub(crate) struct Papers {
    pub(crate) region: TlsFiles,
    pub(crate) node: TlsFiles,
}

fn key(seed: u8) -> KeyPair {
    let der = [&ED25519_PKCS8[..], &[seed; 32]].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&der.as_slice().into(), &PKCS_ED25519).expect("a seed is a key")
}

fn params(names: Vec<String>, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("a name");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    params.serial_number = Some(serial.into());
    params
}

/// Made once, for all worlds.
pub(crate) fn papers() -> &'static Papers {
    static PAPERS: OnceLock<Papers> = OnceLock::new();
    PAPERS.get_or_init(|| {
        let mut authority = params(Vec::new(), 1);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "simulation");
        let authority_key = key(1);
        let ca = authority.self_signed(&authority_key).expect("signed").pem().into_bytes();
        let issuer = Issuer::new(authority, authority_key);
        let issue = |uri: String, name: &str, seed: u8| {
            let mut own = params(vec![name.to_owned()], seed.into());
            own.subject_alt_names.push(SanType::URI(uri.as_str().try_into().expect("a URI")));
            let key = key(seed);
            TlsFiles {
                ca: Pem::Bytes(ca.clone()),
                cert: Pem::Bytes(own.signed_by(&key, &issuer).expect("signed").pem().into_bytes()),
                key: Pem::Bytes(key.serialize_pem().into_bytes()),
            }
        };
        Papers {
            region: issue(format!("spiffe://souk/{REGION}/region"), SERVER_NAME, 2),
            node: issue(format!("spiffe://souk/{REGION}/edge/{NODE}"), "node.souk.internal", 3),
        }
    })
}
