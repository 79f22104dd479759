//! AES-256-GCM with random nonces, and HMAC-SHA-256, by aws-lc-rs: the one crypto provider of the house.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

pub(super) const KEY_BYTES: usize = 32;

/// Bytes of a key; gone from memory when it is dropped.
pub(super) type RawKey = Zeroizing<[u8; KEY_BYTES]>;

pub(super) fn fresh() -> RawKey {
    Zeroizing::new(rand::random())
}

/// Seals and opens. With random nonces of 96 bits a key may seal 2^32 times; a shopper's seals some ten texts an order, and
/// a site's a note of each order without a customer, and a key for each shopper.
pub(super) struct Cipher {
    key: RandomizedNonceKey,
    /// Of questions that are compared by what they were, see [`super::Vault::question`].
    pub(super) questions: Keyed,
}

impl Cipher {
    pub(super) fn new(key: &RawKey) -> Self {
        let questions = Keyed::derived(key, "questions");
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).expect("a key of AES-256 has 32 bytes");
        Self { key, questions }
    }

    /// Nonce, then what is sealed, then its tag.
    pub(super) fn seal(&self, plain: &[u8], aad: &[u8]) -> Vec<u8> {
        let mut sealed = plain.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(aad), &mut sealed);
        let nonce = nonce.expect("texts of some kilobytes are sealed wherever there is randomness");
        [&nonce.as_ref()[..], &sealed].concat()
    }

    /// None: it was sealed by another key, for another place, or was changed.
    pub(super) fn open(&self, sealed: &[u8], aad: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.key.open_in_place(nonce, Aad::from(aad), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }

    pub(super) fn seal_key(&self, key: &RawKey, aad: &[u8]) -> Vec<u8> {
        self.seal(&key[..], aad)
    }

    pub(super) fn open_key(&self, sealed: &[u8], aad: &[u8]) -> Option<RawKey> {
        let opened = Zeroizing::new(self.open(sealed, aad)?);
        Some(Zeroizing::new(opened[..].try_into().ok()?))
    }
}

/// HMAC-SHA-256 under a key that is derived from another one and used for nothing else.
pub(super) struct Keyed(hmac::Key);

impl Keyed {
    pub(super) fn derived(from: &RawKey, purpose: &str) -> Self {
        let from = hmac::Key::new(hmac::HMAC_SHA256, &from[..]);
        let key = hmac::sign(&from, format!("souk vault 1\0{purpose}").as_bytes());
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    pub(super) fn of(&self, text: &str) -> [u8; 32] {
        self.of_bytes(text.as_bytes())
    }

    pub(super) fn of_bytes(&self, bytes: &[u8]) -> [u8; 32] {
        hmac::sign(&self.0, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}
