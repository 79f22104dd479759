//! Where a request stands in a trace, and the way of its spans to a collector.
//!
//! [`parent`] reads and writes `traceparent`, [`spans`] knows what OTLP says, [`export`] sends it, [`watcher`] notes it. No request waits for any
//! of it. Who is traced is the node's own choice: the sampled flag of a stranger is a wish, which would let anybody fill
//! the collector; it is passed on, and not obeyed.

mod export;
mod parent;
mod spans;
mod watcher;

use std::time::Duration;

use http::header::HeaderMap;

pub(crate) use self::export::{TraceMetrics, Tracer};
use self::parent::{TRACEPARENT, TraceParent};
pub(crate) use self::spans::{PATH_BYTES_MAX, Traced};
pub(crate) use self::watcher::Watcher;

/// One request's place: whose child it is, and the names of its own spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    trace: u128,
    /// Whose child it is; none where the trace begins here.
    parent: Option<u64>,
    request: u64,
    /// What the upstream is told for a parent.
    upstream: u64,
    sampled: bool,
}

impl Place {
    /// Reads a request's place and puts the node between it and whoever is asked next. A `traceparent` that is not valid
    /// is replaced. A request without one stays as it is, unless a trace `begins` here: while nobody looks, nobody is told.
    pub(crate) fn take(headers: &mut HeaderMap, begins: bool, sampled: bool) -> Option<Self> {
        if !begins && !headers.contains_key(TRACEPARENT) {
            return None;
        }
        let upstream = span_id();
        let place = match TraceParent::of(headers) {
            Some(theirs) => {
                theirs.child(upstream, sampled).tell(headers, false);
                Self {
                    trace: theirs.trace(),
                    parent: Some(theirs.parent()),
                    request: span_id(),
                    upstream,
                    sampled,
                }
            }
            None => {
                let trace = rand::random::<u128>().max(1);
                TraceParent::new(trace, upstream, sampled).tell(headers, true);
                Self { trace, parent: None, request: span_id(), upstream, sampled }
            }
        };
        Some(place)
    }

    /// The place of a request that says nothing of one and goes to nobody, where somebody writes it down.
    pub(crate) fn begin() -> Self {
        let trace = rand::random::<u128>().max(1);
        Self { trace, parent: None, request: span_id(), upstream: span_id(), sampled: false }
    }

    /// 32 hexadecimal digits, by which lines of different logs find together.
    pub(crate) fn id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    pub(crate) fn is_sampled(&self) -> bool {
        self.sampled
    }
}

/// Nought is no id.
fn span_id() -> u64 {
    rand::random::<u64>().max(1)
}

/// What one request spent its time on, as spans tell it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spans {
    pub(crate) total: Duration,
    pub(crate) in_cache: Option<Duration>,
    pub(crate) at_upstream: Option<Duration>,
}
