//! `wasi:http` 0.2 components: an asynchronous engine, a fresh instance per request.
//!
//! Anything that runs under `wasmtime serve` starts here unchanged, and sees less: no files, no sockets, no
//! environment, no outbound HTTP. What a guest prints goes to the log, line by line and bounded. It gets processor
//! time, wall time and memory up to [`HttpLimits`]; a guest that fails before the head of its answer is an
//! [`HttpFault`], one that fails later aborts the body, which is never ended as if it were whole.
//!
//! * [`engine`]: the engine, loading, and the way of one request. [`body`]: the answer's body.
//! * [`meter`]: processor time of a guest that runs in slices. [`output`]: stdout and stderr.

mod body;
mod engine;
mod meter;
mod output;

use std::time::Duration;

use http::StatusCode;

pub use body::Body;
pub use engine::{HttpEngine, HttpPlugin};

use crate::fault::Fault;

/// What one request of an HTTP guest may use.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Linear memory, all memories together. Python starts with 16.1 MiB, StarlingMonkey with 10.1 MiB.
    pub memory_bytes_max: usize,
    pub table_elements_max: usize,
    /// Processor time. JavaScript needs 1 to 2 ms for a small answer.
    pub processor_max: Duration,
    /// From the request's head to the end of the guest's work, streaming included.
    pub wall_max: Duration,
    /// Requests in flight. Each has a stack and an instance from the pool; one more is answered 503 by name.
    pub requests_max: u32,
    /// Bytes that one host call may take from the guest: a body chunk is at most 1 MiB.
    pub lifted_bytes_max: usize,
    pub stack_bytes_max: usize,
    /// Handles to requests, bodies, streams, fields that one guest holds at a time.
    pub handles_max: usize,
    /// What a guest may print per request.
    pub output_bytes_max: usize,
    /// Fields of an answer's head, and their bytes together.
    pub fields_max: usize,
    pub field_bytes_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            table_elements_max: 20_000,
            processor_max: Duration::from_millis(50),
            wall_max: Duration::from_secs(10),
            requests_max: 1_000,
            lifted_bytes_max: 4 << 20,
            stack_bytes_max: 512 << 10,
            handles_max: 1_000,
            output_bytes_max: 16 << 10,
            fields_max: 100,
            field_bytes_max: 16 << 10,
        }
    }
}

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
    /// The request cannot be put to a guest, for example because it names no host.
    #[error("the request is not acceptable: {0}")]
    BadRequest(String),
    #[error("no free instance")]
    Busy,
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
            Self::BadRequest(_) => "bad_request",
            Self::Busy => "busy",
            Self::Internal(_) => "internal",
        }
    }

    /// The status to answer with when the head was not sent yet.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Timeout | Self::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Guest(_) | Self::BadResponse(_) | Self::Unfinished => StatusCode::BAD_GATEWAY,
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
