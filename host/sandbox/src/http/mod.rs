//! `wasi:http` components, 0.2 and 0.3: an asynchronous engine for each, a fresh instance per request or, where a
//! release asks for it, an instance that serves several requests one after the other.
//!
//! Anything that runs under `wasmtime serve` starts here unchanged, and sees less: no files, no sockets, no
//! environment but what it was given, no outbound HTTP but to granted hosts. What a guest prints goes to the log, line
//! by line and bounded. It gets processor time, wall time and memory up to [`HttpLimits`]; a guest that fails before
//! the head of its answer is an [`HttpFault`], one that fails later aborts the body, which is never ended as if it
//! were whole.
//!
//! In the order in which a request meets them: [`service`] (a component with its terms, and the way of one request),
//! [`room`] (what its site may hold), [`head`] and [`trailers`] (messages rebuilt), [`live`] (an instance and one run of it), [`guest`] (what its store holds),
//! [`outbound`] (what it fetches), [`body`] (the answer's). Beside them [`engine`] (loading), [`closed`] (the parts of WASI that nobody is given), [`meter`] (processor time
//! of a guest that runs in slices), [`spell`] (when a connection's guests let others run), [`output`] (stdout and stderr), [`fault`] and [`metrics`].

mod body;
mod closed;
mod engine;
mod fault;
mod guest;
mod head;
mod live;
mod meter;
mod metrics;
mod outbound;
mod output;
mod room;
mod service;
mod spell;
mod trailers;

use std::time::Duration;

pub use body::Body;
pub(crate) use engine::default_config;
pub use engine::{HttpEngine, HttpPlugin};
pub use fault::HttpFault;
pub use metrics::HttpMetrics;
pub use outbound::{BadGrant, Grant, INDOORS_HOST, Indoors, Outbound, OutboundLimits, Reach, is_private};
pub use output::{Printed, Stream};
pub use service::{HttpService, Terms};

/// What one request of an HTTP guest may use.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Linear memory, all memories together. Python starts with 16.1 MiB, StarlingMonkey with 10.1 MiB.
    pub memory_bytes_max: usize,
    /// Linear memory of all guests, those that wait for another request among them: 250 Pythons …
    pub memory_all_bytes_max: usize,
    /// … and of one site's: a quarter, so that no shop alone takes it from the others.
    pub memory_per_site_bytes_max: usize,
    pub table_elements_max: usize,
    /// Processor time. JavaScript needs 1 to 2 ms for a small answer.
    pub processor_max: Duration,
    /// From the request's head to the end of the guest's work, streaming included.
    pub wall_max: Duration,
    /// Requests in flight. Each has a stack and an instance from the pool; one more is answered 503 by name.
    pub requests_max: u32,
    /// Of one site. A guest that waits holds its place for up to `wall_max`, so these are also what a shop whose guests
    /// hang takes from the others.
    pub requests_per_site_max: u32,
    /// Bytes that one host call may take from the guest: a body chunk is at most 1 MiB.
    pub lifted_bytes_max: usize,
    pub stack_bytes_max: usize,
    /// Handles to requests, bodies, streams, fields that one guest holds at a time.
    pub handles_max: usize,
    /// What a guest may print per request.
    pub output_bytes_max: usize,
    /// Bodies, each way. They stream: what is held of one at a time is a few chunks.
    pub upload_bytes_max: u64,
    pub answer_bytes_max: u64,
    /// Fields of an answer's head, and their bytes together.
    pub fields_max: usize,
    pub field_bytes_max: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            memory_all_bytes_max: 4 << 30,
            memory_per_site_bytes_max: 1 << 30,
            table_elements_max: 20_000,
            processor_max: Duration::from_millis(50),
            wall_max: Duration::from_secs(10),
            requests_max: 1_000,
            requests_per_site_max: 64,
            lifted_bytes_max: 4 << 20,
            stack_bytes_max: 512 << 10,
            handles_max: 1_000,
            output_bytes_max: 16 << 10,
            upload_bytes_max: 32 << 20,
            answer_bytes_max: 128 << 20,
            fields_max: 100,
            field_bytes_max: 16 << 10,
        }
    }
}
