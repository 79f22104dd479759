//! Settings of the access log: where it goes, in which form, and whether queries are in it.
//!
//! Owns the meaning of the flags of `souk proxy` and of `[access_log]` in a node's file. The edge crate writes it.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;

use crate::error::Problem;
use crate::shared::Base;

/// An access log that is wanted. Without one nothing is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessConfig {
    pub to: AccessTo,
    pub format: AccessFormat,
    /// Queries may hold secrets and what people search for, so they are left out unless this is set.
    pub with_query: bool,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessTo {
    Stdout,
    /// Appended to; made if it is not there. A file that was moved away is noticed and made anew within a second.
    File(PathBuf),
}

impl From<PathBuf> for AccessTo {
    /// `-` is standard output, as everywhere.
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "-" { Self::Stdout } else { Self::File(path) }
    }
}

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// NCSA Common Log Format.
    Common,
    /// The same with `Referer` and `User-Agent`.
    Combined,
}

impl AccessFormat {
    /// The name in settings and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Common => "common",
            Self::Combined => "combined",
        }
    }
}

/// A form that is none.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there is no access log format {given:?}: choose json, common or combined")]
pub struct UnknownAccessFormat {
    pub given: String,
}

impl FromStr for AccessFormat {
    type Err = UnknownAccessFormat;

    fn from_str(text: &str) -> Result<Self, UnknownAccessFormat> {
        [Self::Json, Self::Common, Self::Combined]
            .into_iter()
            .find(|format| format.name() == text)
            .ok_or_else(|| UnknownAccessFormat { given: text.to_owned() })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAccess {
    file: PathBuf,
    format: Option<String>,
    #[serde(default)]
    query: bool,
}

impl RawAccess {
    pub(crate) fn validate(self, base: &Base<'_>) -> Result<AccessConfig, Problem> {
        let to = match AccessTo::from(self.file) {
            AccessTo::Stdout => AccessTo::Stdout,
            AccessTo::File(path) => AccessTo::File(base.path("access_log.file", &path)?),
        };
        let format = self.format.map_or_else(|| Ok(AccessFormat::default()), |text| text.parse());
        let format = format.map_err(|UnknownAccessFormat { given }| {
            let remedy = "write \"json\", \"common\" or \"combined\"";
            Problem::new("access_log.format", format!("{given:?} is no form of a line"), remedy)
        })?;
        Ok(AccessConfig { to, format, with_query: self.query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_known_by_their_names() {
        assert_eq!("combined".parse(), Ok(AccessFormat::Combined));
        let unknown = "clf".parse::<AccessFormat>().expect_err("no such form");
        assert!(unknown.to_string().contains("json, common or combined"), "{unknown}");
        assert_eq!(AccessTo::from(PathBuf::from("-")), AccessTo::Stdout);
    }
}
