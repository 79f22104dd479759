//! What the engines say differently, beside their tables (`schema`). Everything else is one text for all.

use super::{Param, Value};
use crate::store::StoreError;

/// Which SQL a session understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Dialect {
    Sqlite,
    Postgres,
}

/// See [`Dialect::epoch_in_meta`].
pub(in crate::store) enum EpochInMeta {
    Number(u32),
    Bytes([u8; 4]),
}

impl Param for EpochInMeta {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        match self {
            Self::Number(epoch) => epoch.value(),
            Self::Bytes(bytes) => bytes.value(),
        }
    }
}

impl Dialect {
    /// The digest of the component in the body of a row of `release`, as text. There is an index on just this.
    pub(in crate::store) const fn component_of_release(self) -> &'static str {
        match self {
            Self::Sqlite => "json_extract(body, '$.component')",
            Self::Postgres => "component_of(body)",
        }
    }

    /// The region's epoch as a row of `meta` holds it: a number beside bytes where a column may hold both, bytes elsewhere.
    pub(in crate::store) const fn epoch_in_meta(self, epoch: u32) -> EpochInMeta {
        match self {
            Self::Sqlite => EpochInMeta::Number(epoch),
            Self::Postgres => EpochInMeta::Bytes(epoch.to_be_bytes()),
        }
    }

    /// Bytes of a column in lower-case hexadecimal digits.
    pub(in crate::store) fn hex(self, column: &str) -> String {
        match self {
            Self::Sqlite => format!("lower(hex({column}))"),
            Self::Postgres => format!("encode({column}, 'hex')"),
        }
    }
}
