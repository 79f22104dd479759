//! The named ways in which there is no answer from an upstream, and in which none can be set up.

use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use crate::http::BodyError;
use crate::rescue::{Problem, Refusal};

/// Why there is no answer from the upstream.
#[derive(Debug, Error)]
pub enum UpstreamError {
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    #[error("the upstream cannot be trusted: {0}")]
    Tls(String),
    #[error("the upstream did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("the upstream broke off before it answered: {0}")]
    Broke(String),
    #[error("the upstream answers {0} requests already")]
    Busy(usize),
}

impl UpstreamError {
    /// What the client is told; its code is also the label of the metric and the detail of `Cache-Status`.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Unreachable(_) => Refusal::UpstreamUnreachable,
            Self::Tls(_) => Refusal::UpstreamTls,
            Self::TimedOut(_) => Refusal::UpstreamTimeout,
            Self::Broke(_) => Refusal::UpstreamBroke,
            Self::Busy(_) => Refusal::UpstreamBusy,
        }
    }

    pub fn name(&self) -> &'static str {
        self.refusal().code()
    }

    /// The answer to a stranger: which address failed and how is for the log.
    pub fn problem(&self) -> Problem {
        problem_of(self.refusal())
    }
}

/// The problem of a failure known by its refusal only, as those know it who waited for somebody else's fetch.
pub(super) fn problem_of(refusal: Refusal) -> Problem {
    Problem::new(refusal, "Try again in a moment. The node has logged what happened.")
}

/// Why an upstream cannot be set up.
#[derive(Debug, Error)]
pub enum SetupError {
    #[error("the upstream URL has no usable host: {0}")]
    Host(String),
    #[error("cannot read the upstream's CA file {}: {why}", path.display())]
    CaFile { path: PathBuf, why: String },
    #[error("cannot use the peers' secret in {}: {why}", path.display())]
    PeerSecret { path: PathBuf, why: String },
    #[error("cannot set up the peers: {0}")]
    Peers(String),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// An error with all its causes, for the log.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What a broken response body was broken by, for the log.
pub(super) fn body_cause(error: &BodyError) -> String {
    chain(error.as_ref())
}
