//! What can be wrong with bytes from a peer.

/// Why bytes are not a frame, a batch or a tail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end before what they announce.
    #[error("truncated: {have} of {need} bytes")]
    Truncated {
        /// Bytes at hand.
        have: usize,
        /// Bytes announced.
        need: usize,
    },
    /// More bytes follow than were announced.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// A length or a count above its limit.
    #[error("{what} is {is}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its announced size.
        is: u64,
        /// The limit.
        limit: usize,
    },
    /// The checksum does not match the bytes.
    #[error("checksum mismatch in {0}")]
    Checksum(&'static str),
    /// Not the CBOR that was expected.
    #[error("malformed {what}: {detail}")]
    Malformed {
        /// What was being decoded.
        what: &'static str,
        /// What the decoder says.
        detail: String,
    },
    /// Well-formed, and impossible.
    #[error("impossible {what}: {detail}")]
    Impossible {
        /// What was decoded.
        what: &'static str,
        /// Why it cannot be.
        detail: &'static str,
    },
}

impl CodecError {
    /// Stable name for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::Trailing(_) => "trailing",
            Self::TooLarge { .. } => "too_large",
            Self::Checksum(_) => "checksum",
            Self::Malformed { .. } => "malformed",
            Self::Impossible { .. } => "impossible",
        }
    }

    pub(crate) fn malformed(what: &'static str, error: &minicbor::decode::Error) -> Self {
        Self::Malformed { what, detail: error.to_string() }
    }
}
