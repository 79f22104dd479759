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

    /// Asks which version the tables are of.
    pub(in crate::store) const fn version_of_schema(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT user_version FROM pragma_user_version",
            Self::Postgres => "SELECT version FROM store WHERE one = 1",
        }
    }

    /// Asks for the last number that a column has given out by itself.
    pub(in crate::store) fn last_given_out(self, table: &str, column: &str) -> String {
        match self {
            Self::Sqlite => {
                format!("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0)")
            }
            Self::Postgres => format!("SELECT last_value FROM {table}_{column}_seq"),
        }
    }

    /// Has a column that gives out numbers by itself go on after `?1`. Several statements, each with this parameter.
    pub(in crate::store) fn give_out_after(self, table: &str, column: &str) -> Vec<String> {
        match self {
            Self::Sqlite => vec![
                format!("DELETE FROM sqlite_sequence WHERE name = '{table}' AND ?1 > 0"),
                format!("INSERT INTO sqlite_sequence (name, seq) VALUES ('{table}', ?1)"),
            ],
            Self::Postgres => vec![format!("SELECT setval('{table}_{column}_seq', ?1)")],
        }
    }

    /// An array in JSON, as text, of what these expressions say: numbers and texts.
    pub(in crate::store) fn json_array(self, of: &[String]) -> String {
        match self {
            Self::Sqlite => format!("json_array({})", of.join(", ")),
            Self::Postgres => format!("CAST(json_build_array({}) AS TEXT)", of.join(", ")),
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
