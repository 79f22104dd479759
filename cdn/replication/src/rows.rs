//! What a log has come to, as one number: how a node and its region see whether they hold the same rows.

use sha2::{Digest as _, Sha256};

/// The rows of one log at one version: how many there are, and the sum of their hashes.
///
/// A hash is SHA-256 of a row's version and body, cut to its first sixteen bytes. A sum does not depend on the order in which
/// rows came or are read, and a row can be taken out of it again; so a node keeps it up to date with each change, and the region
/// computes it from its tables. It guards against accidents (a bit that turned in a file, a change that was lost by a fault of
/// ours), not against a node that lies: that one harms itself alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowsDigest {
    rows: u64,
    sum: u128,
}

fn hash(version: u64, body: &[u8]) -> u128 {
    let digest = Sha256::new().chain_update(version.to_le_bytes()).chain_update(body).finalize();
    let (first, _) = digest.split_first_chunk().expect("SHA-256 has 32 bytes");
    u128::from_le_bytes(*first)
}

impl RowsDigest {
    /// From what [`RowsDigest::rows`] and [`RowsDigest::sum`] said.
    #[must_use]
    pub const fn from_parts(rows: u64, sum: [u8; 16]) -> Self {
        Self { rows, sum: u128::from_be_bytes(sum) }
    }

    /// Takes a row in.
    pub fn add(&mut self, version: u64, body: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(version, body));
    }

    /// Takes out a row that was taken in before.
    pub fn remove(&mut self, version: u64, body: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(version, body));
    }

    /// How many rows there are.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.rows
    }

    /// The sum of their hashes.
    #[must_use]
    pub const fn sum(&self) -> [u8; 16] {
        self.sum.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[(u64, &str)]) -> RowsDigest {
        rows.iter().fold(RowsDigest::default(), |mut digest, (version, body)| {
            digest.add(*version, body.as_bytes());
            digest
        })
    }

    #[test]
    fn it_depends_on_the_rows_and_not_on_the_way_to_them() {
        let mut digest = of(&[(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(digest, of(&[(3, "c"), (1, "a"), (2, "b")]));
        digest.remove(2, b"b");
        digest.add(4, b"b");
        assert_eq!(digest, of(&[(1, "a"), (3, "c"), (4, "b")]));
        assert_eq!(RowsDigest::from_parts(digest.rows(), digest.sum()), digest);
    }

    #[test]
    fn another_body_another_version_and_one_row_less_are_seen() {
        let digest = of(&[(1, "a"), (2, "b")]);
        for other in
            [of(&[(1, "a"), (2, "c")]), of(&[(1, "a"), (3, "b")]), of(&[(1, "a")]), of(&[(1, "b"), (2, "a")])]
        {
            assert_ne!(digest, other);
        }
    }
}
