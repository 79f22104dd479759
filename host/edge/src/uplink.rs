//! Questions to the region while somebody waits: the typed side of the link's opaque calls.
//!
//! Owns the translation and the names of what can go wrong. Which questions are asked, and what a missing answer
//! means to a shopper, is for the callers: the API, [`crate::blobs`].

use std::time::Duration;

use souk_commerce::call::{Request, Response};
use souk_link::{Call, CallError, LinkStatus, NodeLink};

use crate::rescue::{Problem, Refusal};

/// The only method there is: the request says what it asks.
const METHOD_ASK: u16 = 1;

/// Why a question has no answer. Except for [`AskError::Away`], it is not known whether the region acted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// There was no link to ask over.
    #[error("the region is away, nothing was asked")]
    Away,
    #[error("the region cannot be reached: {0}")]
    Unreachable(String),
    #[error("the region did not answer in time")]
    Late,
    #[error("the region could not answer: {0}")]
    Failed(String),
}

/// A way to ask the region. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uplink {
    link: NodeLink,
    deadline: Duration,
}

impl Uplink {
    pub fn new(link: NodeLink, deadline: Duration) -> Self {
        Self { link, deadline }
    }

    pub fn status(&self) -> LinkStatus {
        self.link.status()
    }

    pub fn link(&self) -> &NodeLink {
        &self.link
    }

    /// Asks. Cancel safe; the region may have acted all the same.
    pub async fn ask(&self, request: &Request) -> Result<Response, AskError> {
        self.ask_for(request, self.deadline).await
    }

    /// Asks for what takes long to travel: the answer begins within the deadline of every call, and ends within this one.
    pub async fn ask_for(&self, request: &Request, body_deadline: Duration) -> Result<Response, AskError> {
        if !self.link.status().connected {
            return Err(AskError::Away);
        }
        let call = Call { method: METHOD_ASK, body: request.to_bytes().into() };
        let reply =
            self.link.call_for_body(call, self.deadline, body_deadline).await.map_err(
                |error| match error {
                    CallError::Unreachable { reason, .. } => AskError::Unreachable(reason),
                    CallError::Deadline | CallError::AnswerLost(_) => AskError::Late,
                    other => AskError::Failed(other.to_string()),
                },
            )?;
        Response::from_bytes(&reply.body).map_err(|e| AskError::Failed(e.to_string()))
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Away => Self::new(
                Refusal::RegionUnreachable,
                "The shop's region cannot be reached at the moment. Nothing is lost; try again, a checkout with the same key.",
            )
            .retry_after(2),
            AskError::Unreachable(why) => {
                tracing::debug!(why, "the link broke under a question to the region");
                Self::new(
                    Refusal::RegionUnreachable,
                    "The way to the shop's region broke off. Try again; a checkout with the same key, to learn its outcome.",
                )
                .retry_after(2)
            }
            AskError::Late => Self::new(
                Refusal::RegionUnreachable,
                "The shop's region did not answer in time. Try again; a checkout with the same key, to learn its outcome.",
            )
            .retry_after(2),
            AskError::Failed(why) => {
                tracing::error!(why, "the region could not answer");
                Self::new(Refusal::RegionFailed, "The shop's region could not answer this.")
            }
        }
    }
}
