//! What an outbox held, as one number: it binds a mark to the operations before it.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sha2::{Digest as _, Sha256};

/// The operations of one epoch up to some number, folded into 64 bits: each step is SHA-256 of the number so far and the next
/// operation, cut to its first eight bytes.
///
/// The region folds what it commits and tells the number with each mark; the node keeps the number of what it has trimmed, and
/// folds what it still holds. When both come to the same at the region's mark, they mean the same operations by the same
/// numbers. It guards against accidents (a disk put back from a backup or from a snapshot of its machine), one in 2^64 of
/// which goes unseen; a node that lies harms itself alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fold(u64);

impl Fold {
    /// Of no operation: where every epoch begins.
    pub const EMPTY: Self = Self(0);

    /// With one operation more.
    #[must_use]
    pub fn with(self, op: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(self.0.to_le_bytes()).chain_update(op).finalize();
        let (first, _) = digest.split_first_chunk().expect("SHA-256 has 32 bytes");
        Self(u64::from_le_bytes(*first))
    }

    /// For a store to keep.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// From a store that kept it.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }
}

impl<C> Encode<C> for Fold {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.u64(self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Fold {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.u64().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_content_and_order_apart_and_never_changes() {
        let of = |ops: &[&str]| ops.iter().fold(Fold::EMPTY, |fold, op| fold.with(op.as_bytes()));
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["b", "a"]));
        assert_ne!(of(&["a", "b"]), of(&["ab"]));
        // Stores keep it: another number would turn every node of a fleet away.
        assert_eq!(Fold::EMPTY.with(b"souk"), Fold::from_number(18_187_945_393_850_026_246));
    }
}
