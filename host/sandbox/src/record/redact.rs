//! The shopper's part of a call, made unrecognisable.

use sha2::{Digest as _, Sha256};
use souk_commerce::id::SiteId;

/// Bytes of the secret under which shoppers are hashed.
pub(crate) const KEY_BYTES: usize = 32;
/// Half of a SHA-256: no two customers of a shop share it, and nobody can go on computing from it.
const HASH_BYTES: usize = 16;

/// Names the same customer of the same site alike for as long as the key lives, and tells nobody who it is: without
/// the key, trying every customer number finds nothing. The site is part of it, so that two shops cannot put their
/// recordings together.
pub(crate) fn customer(key: &[u8; KEY_BYTES], site: &SiteId, customer: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(key);
    // A site's name has at most 63 bytes and no zero, so the parts cannot run into each other.
    hash.update(site.as_str().as_bytes());
    hash.update([0]);
    hash.update(customer.as_bytes());
    hex::encode(&hash.finalize()[..HASH_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_is_the_same_within_one_site_and_key_only() {
        let site = |name: &str| name.parse::<SiteId>().expect("a site");
        let anna = customer(&[1; KEY_BYTES], &site("shop"), "anna@example.com");
        assert_eq!(anna, customer(&[1; KEY_BYTES], &site("shop"), "anna@example.com"));
        for other in [
            customer(&[2; KEY_BYTES], &site("shop"), "anna@example.com"),
            customer(&[1; KEY_BYTES], &site("shop-2"), "anna@example.com"),
            customer(&[1; KEY_BYTES], &site("shop"), "bob@example.com"),
        ] {
            assert_ne!(anna, other);
        }
        assert_eq!(anna.len(), 2 * HASH_BYTES);
    }
}
