//! What an authority finds when it looks whether a name leads here: a token in clear text (HTTP-01, RFC 8555 section 8.3), or a
//! certificate in a handshake (TLS-ALPN-01, RFC 8737).
//!
//! For tokens asked by [`crate::listen`] before anybody else hears of a request, and only at doors in clear text. A token that
//! is none of ours goes on: the shop's own server may get certificates too. For certificates asked by [`crate::tls`] in a
//! handshake that offers [`ACME_TLS`], after which nothing more is said.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use thiserror::Error;

use crate::http::{Body, full};

const PATH: &str = "/.well-known/acme-challenge/";
/// Tokens at once. There is one order at a time for one name, which has one.
const TOKENS_MAX: usize = 16;

/// What is spoken in a handshake by which an authority looks.
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

/// What is shown to whoever knows what to ask for. Clones show the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Challenges(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    /// Tokens, and what is said to whoever knows one.
    tokens: HashMap<String, String>,
    /// Certificates by the names that they prove.
    proofs: HashMap<String, Arc<CertifiedKey>>,
}

/// Something that is shown until this is dropped.
#[derive(Debug)]
pub(super) struct Posted {
    challenges: Challenges,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Token(String),
    Name(String),
}

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub(super) enum Unproven {
    #[error("a certificate to prove it with cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("a certificate to prove it with cannot be used: {0}")]
    Key(#[from] rustls::Error),
}

impl Challenges {
    /// None if there are too many.
    pub(super) fn post(&self, token: &str, answer: &str) -> Option<Posted> {
        let tokens = &mut self.0.lock().tokens;
        if tokens.len() >= TOKENS_MAX {
            return None;
        }
        tokens.insert(token.to_owned(), answer.to_owned());
        Some(Posted { challenges: self.clone(), place: Place::Token(token.to_owned()) })
    }

    /// Shows a certificate for this name and this digest of what the authority shall find, to whoever asks for nothing else.
    /// There is one for each name that is configured at most.
    pub(super) fn prove(&self, domain: &str, digest: &[u8]) -> Result<Posted, Unproven> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([domain.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let certificate = params.self_signed(&key)?;
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = aws_lc_rs::default_provider().key_provider.load_private_key(private)?;
        // Not compared with each other: the certificate has an extension that must be understood, and is by authorities alone.
        let proof = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
        self.0.lock().proofs.insert(domain.to_owned(), proof);
        Ok(Posted { challenges: self.clone(), place: Place::Name(domain.to_owned()) })
    }

    /// What proves a name, while an authority may look.
    pub(crate) fn proof_of(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.0.lock().proofs.get(&name.to_ascii_lowercase()).cloned()
    }

    /// Whether a request for this target may know a token.
    pub(crate) fn may_be_asked_at(target: &str) -> bool {
        target.starts_with(PATH)
    }

    /// The answer to a request that knows a token.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Option<Response<Body>> {
        let token = request.uri().path().strip_prefix(PATH)?;
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return None;
        }
        let answer = self.0.lock().tokens.get(token).cloned()?;
        let mut response = Response::new(full(answer));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Some(response)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        let mut shown = self.challenges.0.lock();
        match &self.place {
            Place::Token(token) => drop(shown.tokens.remove(token)),
            Place::Name(name) => drop(shown.proofs.remove(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_proven_until_the_order_has_ended() {
        let challenges = Challenges::default();
        assert!(challenges.proof_of("shop.example").is_none());
        let posted = challenges.prove("shop.example", &[7; 32]).expect("a certificate");
        let proof = challenges.proof_of("Shop.example").expect("a proof");
        let (_, read) = x509_parser::parse_x509_certificate(&proof.cert[0]).expect("a certificate");
        let identifier = read.extensions().iter().find(|own| own.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let identifier = identifier.expect("what the authority looks for");
        assert!(identifier.critical && identifier.value == [&[4, 32][..], &[7; 32]].concat());
        let names = read.subject_alternative_name().expect("readable").expect("a name").value;
        assert_eq!(names.general_names.len(), 1);
        assert!(challenges.proof_of("other.example").is_none());
        drop(posted);
        assert!(challenges.proof_of("shop.example").is_none());
    }

    #[test]
    fn who_knows_a_token_is_answered_and_all_others_go_on() {
        let challenges = Challenges::default();
        let ask = |method: &str, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).expect("a request");
            challenges.answer(&request).is_some()
        };
        let posted = challenges.post("abc", "abc.thumb").expect("room");
        assert!(
            ask("GET", "/.well-known/acme-challenge/abc") && ask("HEAD", "/.well-known/acme-challenge/abc")
        );
        for (method, path) in [
            ("POST", "/.well-known/acme-challenge/abc"),
            ("GET", "/.well-known/acme-challenge/"),
            ("GET", "/.well-known/acme-challenge/abcd"),
            ("GET", "/.well-known/acme-challenge/abc/"),
            ("GET", "/abc"),
        ] {
            assert!(!ask(method, path), "{method} {path}");
        }
        drop(posted);
        assert!(!ask("GET", "/.well-known/acme-challenge/abc"), "an order that has ended is forgotten");
        let all: Vec<_> = (0..).map_while(|n| challenges.post(&n.to_string(), "x")).collect();
        assert_eq!(all.len(), TOKENS_MAX);
    }
}
