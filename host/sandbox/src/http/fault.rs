//! Every way in which a request to an HTTP guest fails, by name.

use http::StatusCode;

use crate::fault::Fault;
use crate::share::Crowded;

/// How a request to an HTTP guest failed. Before the head it is the answer's reason; after it, the body's error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpFault {
    #[error("the guest trapped: {0}")]
    Trap(String),
    #[error("the guest used up its processor time")]
    Deadline,
    #[error("the guest did not end in time")]
    Timeout,
    #[error("the guest ran out of memory")]
    Memory,
    #[error("the guest ran out of stack")]
    Stack,
    #[error("the guest ended without an answer")]
    NoResponse,
    /// The guest answered with an error instead of a response.
    #[error("the guest reported an error: {0}")]
    Guest(String),
    /// The head of the guest's answer has too many or too large fields.
    #[error("the guest's answer is not acceptable: {0}")]
    BadResponse(String),
    /// The guest dropped its body before the end, or wrote another length than it said.
    #[error("the guest did not finish its body")]
    Unfinished,
    /// The body of the guest's answer is larger than any may be.
    #[error("the guest's answer is too large")]
    TooLarge,
    /// The request cannot be put to a guest, for example because it names no host.
    #[error("the request is not acceptable: {0}")]
    BadRequest(String),
    #[error("no free instance, or no memory for it")]
    Busy,
    /// The site's HTTP plugins have as many requests in flight as one site may.
    #[error("this shop's HTTP plugins have too many requests in flight")]
    SiteFull,
    /// The site's plugins have more to do than their share of the processors.
    #[error(transparent)]
    Crowded(Crowded),
    #[error("the host failed: {0}")]
    Internal(String),
}

impl HttpFault {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Trap(_) => "trap",
            Self::Deadline => "deadline",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Stack => "stack",
            Self::NoResponse => "no_response",
            Self::Guest(_) => "guest_error",
            Self::BadResponse(_) => "bad_response",
            Self::Unfinished => "unfinished",
            Self::TooLarge => "too_large",
            Self::BadRequest(_) => "bad_request",
            Self::Busy => "busy",
            Self::SiteFull => "site_full",
            Self::Crowded(_) => "crowded",
            Self::Internal(_) => "internal",
        }
    }

    /// The status to answer with when the head was not sent yet.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Timeout | Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy | Self::SiteFull | Self::Crowded(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Guest(_) | Self::BadResponse(_) | Self::Unfinished | Self::TooLarge => {
                StatusCode::BAD_GATEWAY
            }
            Self::Trap(_) | Self::Memory | Self::Stack | Self::NoResponse | Self::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl From<Fault> for HttpFault {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Trap(text) | Fault::BadValue(text) => Self::Trap(text),
            Fault::Deadline => Self::Deadline,
            Fault::Memory => Self::Memory,
            Fault::Stack => Self::Stack,
            Fault::Busy => Self::Busy,
            Fault::Internal(text) => Self::Internal(text),
            // HTTP guests have no hook's budgets and no hook's refusal.
            fault @ (Fault::Refused { .. } | Fault::HostCalls | Fault::LogBytes) => {
                Self::Internal(fault.to_string())
            }
        }
    }
}
