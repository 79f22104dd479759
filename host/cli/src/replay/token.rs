//! Signs the tokens by which a merchant vouches for a shopper.

use anyhow::Context as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

/// Long enough for the slowest replay.
const VALID_S: u64 = 24 * 60 * 60;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    segments: &'a [&'a str],
    iat: u64,
    exp: u64,
}

pub(super) struct Signer {
    key: EncodingKey,
    now_s: u64,
}

impl Signer {
    /// `pem` is an Ed25519 key, PKCS#8.
    pub(super) fn new(pem: &str, now_s: u64) -> anyhow::Result<Self> {
        let key =
            EncodingKey::from_ed_pem(pem.as_bytes()).context("read the key that signs shopper tokens")?;
        Ok(Self { key, now_s })
    }

    pub(super) fn sign(&self, customer: &str, segments: &[&str]) -> anyhow::Result<String> {
        let claims = Claims { sub: customer, segments, iat: self.now_s, exp: self.now_s + VALID_S };
        encode(&Header::new(Algorithm::EdDSA), &claims, &self.key).context("sign a shopper token")
    }
}
