//! Settings of the export of traces: to which collector, and how many.
//!
//! Owns the meaning of the flags of `souk proxy` and of `[trace]` in a node's file. The edge crate makes the spans and sends
//! them.

use std::str::FromStr;

use serde::Deserialize;
use thiserror::Error;
use url::Url;

use crate::error::Problem;

/// Of a thousand requests, how many are traced if nobody says otherwise: ten a second of a node that answers a thousand.
pub const SAMPLED_PER_MILLE_DEFAULT: u16 = 10;
/// Where a collector takes traces over HTTP (OTLP/HTTP), if the URL has no path.
const TRACES_PATH: &str = "/v1/traces";

/// A collector that is wanted. Without one nothing is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceConfig {
    /// `http`, with host and path.
    pub collector: Url,
    pub sampled_per_mille: u16,
}

/// Why there is no collector in a text.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TraceConfigError {
    #[error("{given:?} is not a URL ({why}): write it like http://127.0.0.1:4318")]
    Url { given: String, why: String },
    #[error(
        "{given:?} is not http: send to a collector beside the node, which speaks TLS to the one far away"
    )]
    Scheme { given: String },
    #[error("{given:?} must be host, port and path: user, query and fragment are not sent")]
    Extra { given: String },
}

impl FromStr for TraceConfig {
    type Err = TraceConfigError;

    fn from_str(text: &str) -> Result<Self, TraceConfigError> {
        let given = text.to_owned();
        let mut collector = Url::parse(text)
            .map_err(|why| TraceConfigError::Url { given: given.clone(), why: why.to_string() })?;
        if collector.scheme() != "http" {
            return Err(TraceConfigError::Scheme { given });
        }
        let extra = !collector.username().is_empty()
            || collector.password().is_some()
            || collector.query().is_some()
            || collector.fragment().is_some();
        if extra {
            return Err(TraceConfigError::Extra { given });
        }
        if collector.path() == "/" {
            collector.set_path(TRACES_PATH);
        }
        Ok(Self { collector, sampled_per_mille: SAMPLED_PER_MILLE_DEFAULT })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTrace {
    collector: String,
    per_mille: Option<u16>,
}

impl RawTrace {
    pub(crate) fn validate(self) -> Result<TraceConfig, Problem> {
        let config = self.collector.parse::<TraceConfig>().map_err(|error| {
            let (problem, remedy) = match error {
                TraceConfigError::Url { given, why } => {
                    (format!("{given:?} is not a URL ({why})"), "write it like \"http://127.0.0.1:4318\"")
                }
                TraceConfigError::Scheme { given } => (
                    format!("{given:?} is not http"),
                    "send to a collector beside the node, which speaks TLS to the one far away",
                ),
                TraceConfigError::Extra { given } => (
                    format!("{given:?} has more than host, port and path"),
                    "leave it out, for user, query and fragment are not sent",
                ),
            };
            Problem::new("trace.collector", problem, remedy)
        })?;
        let sampled_per_mille = self.per_mille.unwrap_or(config.sampled_per_mille);
        if sampled_per_mille > 1_000 {
            return Err(Problem::new(
                "trace.per_mille",
                format!("{sampled_per_mille} of a thousand requests are too many"),
                "write a number from 0 to 1000",
            ));
        }
        Ok(TraceConfig { sampled_per_mille, ..config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_http_and_has_a_path() {
        let url = |text: &str| text.parse::<TraceConfig>().map(|config| config.collector.to_string());
        assert_eq!(url("http://127.0.0.1:4318").as_deref(), Ok("http://127.0.0.1:4318/v1/traces"));
        assert_eq!(url("http://otel:4318/x").as_deref(), Ok("http://otel:4318/x"));
        assert!(matches!(url("https://otel:4318"), Err(TraceConfigError::Scheme { .. })));
        assert!(matches!(url("otel"), Err(TraceConfigError::Url { .. })));
        for extra in ["http://u:p@otel/", "http://otel/?a=b", "http://otel/#a"] {
            assert!(matches!(url(extra), Err(TraceConfigError::Extra { .. })), "{extra}");
        }
    }
}
