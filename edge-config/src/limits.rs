//! Every maximum that an operator may set, with its default and the reason for the default.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::error::Problem;
use crate::value::{Bytes, Span, duration_text};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// `limits!` writes the validated struct, its defaults, the raw struct beside it and the step between them, so that a
/// limit is declared in one line and cannot be forgotten in one of the four places.
macro_rules! limits {
    (
        $(#[$doc:meta])* $name:ident, $raw:ident:
        $( $(#[$field_doc:meta])* $field:ident: $kind:ident = $default:expr, at least $least:expr; )*
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: limits!(@type $kind), )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $raw {
            $( $field: Option<limits!(@raw $kind)>, )*
        }

        impl $name {
            /// Whether each is enough to work with.
            pub fn check(&self) -> Result<(), TooLittle> {
                $(
                    if self.$field < $least {
                        return Err(TooLittle {
                            name: stringify!($field),
                            given: limits!(@print $kind, self.$field),
                            least: limits!(@print $kind, $least),
                        });
                    }
                )*
                Ok(())
            }
        }

        impl $raw {
            pub(crate) fn validate(self) -> Result<$name, Problem> {
                let default = $name::default();
                let limits = $name {
                    $( $field: limits!(@open $kind, self.$field).unwrap_or(default.$field), )*
                };
                limits.check().map_err(TooLittle::of_file)?;
                Ok(limits)
            }
        }
    };
    (@type bytes) => { u64 };
    (@type count) => { u32 };
    (@type time) => { Duration };
    (@raw bytes) => { Bytes };
    (@raw count) => { u32 };
    (@raw time) => { Span };
    (@open bytes, $v:expr) => { $v.map(|Bytes(bytes)| bytes) };
    (@open count, $v:expr) => { $v };
    (@open time, $v:expr) => { $v.map(|Span(duration)| duration) };
    (@print bytes, $v:expr) => { format!("\"{} B\"", $v) };
    (@print count, $v:expr) => { $v.to_string() };
    (@print time, $v:expr) => { format!("{:?}", duration_text($v)) };
}

/// A limit that is too little to work with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLittle {
    /// As in a file; as a flag it has hyphens.
    name: &'static str,
    given: String,
    least: String,
}

impl TooLittle {
    fn of_file(self) -> Problem {
        Problem::new(
            format!("limits.{}", self.name),
            format!("{} is too little to work with", self.given),
            format!("write at least {}", self.least),
        )
    }
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = self.name.replace('_', "-");
        write!(f, "--{flag} {} is too little to work with: write at least {}", self.given, self.least)
    }
}

impl std::error::Error for TooLittle {}

limits! {
    /// The maxima of a node. Its memory is that of its caches (`cache_memory_bytes_max`, `page_memory_bytes_max`,
    /// `plugin_code_bytes_max`), of the sandbox's pool, and of its connections:
    ///
    /// * Over HTTP/1.1, three times `header_bytes_max` each, a head that is kept and what is read and written: 0.2 MiB. At
    ///   `connections_max` that is 2 GiB, if all of them send their worst at once.
    /// * Over HTTP/2, 1 MiB of bodies that nobody has read yet and 64 KiB of answer for each of 100 requests: 7.6 MiB.
    /// * Over HTTP/3, 1 MiB of bodies, 1 MiB that is not acknowledged, and for each of 100 requests either a head on its
    ///   way or a piece of its answer, 64 KiB: 8.3 MiB. Its connections are counted apart, `connections_max` for each
    ///   address that is listened to.
    ///
    /// Only a client that lets itself be waited for holds that much, and no longer than it may be waited for; but the sum of
    /// all connections at their worst, 74 GiB over HTTP/2, is more than a node has. What bounds it in practice is
    /// `connections_per_address_max`: one address holds at most 15 GiB over HTTP/2. A node with less to give than that
    /// should let in fewer.
    EdgeLimits, RawEdgeLimits:
    /// Connections open at once, HTTP and HTTPS together. For the next one the longest idle one goes; if none is idle it waits
    /// in the kernel's backlog. Half of the usual 20,000 descriptors.
    connections_max: count = 10_000, at least 1;
    /// Of these, what one IPv4 address, or one /64 of IPv6, may have: a fifth, so that it takes five of them to fill a node. A
    /// mobile network puts some hundred shoppers behind one address and a large office some thousand; each has one connection
    /// over HTTP/2, and six over HTTP/1.1. Raise it where a load balancer stands in front that does not say who its clients
    /// are (`listen.proxy_protocol_from`): then all come from its address.
    connections_per_address_max: count = 2_000, at least 1;
    /// Requests in flight at once; the next is told to come back in a second. As many as connections, so that only HTTP/2
    /// reaches it, and far above what a node that keeps up has in flight.
    requests_in_flight_max: count = 10_000, at least 1;
    /// Request line and header fields together. Four times what browsers with many cookies send.
    header_bytes_max: bytes = 64 * KIB, at least KIB;
    /// Body of one API request. The longest honest one is a checkout of under 1 KiB.
    request_body_bytes_max: bytes = 64 * KIB, at least KIB;
    /// From the first byte of a header to its last: ends a slow-header attack, spares a phone in a tunnel.
    header_deadline: time = Duration::from_secs(10), at least Duration::from_millis(100);
    /// A TLS handshake: three round trips at 800 ms plus arithmetic.
    tls_handshake_deadline: time = Duration::from_secs(5), at least Duration::from_millis(100);
    /// One request from header to last byte of the answer.
    request_deadline: time = Duration::from_secs(30), at least Duration::from_millis(100);
    /// A connection that asks for nothing. Longer than the 60 s that most load balancers keep theirs.
    idle_deadline: time = Duration::from_secs(75), at least Duration::from_secs(1);
    /// After SIGTERM: how long requests under way may take to end.
    drain_deadline: time = Duration::from_secs(10), at least Duration::from_millis(1);
    /// A call to the region on behalf of a shopper who waits.
    region_call_deadline: time = Duration::from_secs(5), at least Duration::from_millis(100);
    /// Operations that the region has not acknowledged yet, on disk. At 300 bytes each about 3.5 million: hours of
    /// a busy shop without its region. Beyond it writes are refused with a reason.
    outbox_bytes_max: bytes = GIB, at least MIB;
    /// Operations that the region has acknowledged and that the node keeps all the same, on disk: a region that comes back from
    /// a backup gets them again. At 150 bytes each 900,000. The file is read whole after a crash: a quarter of a second more.
    outbox_kept_bytes_max: bytes = 128 * MIB, at least MIB;
    /// And for how long at most: a region is backed up daily. 0: none are kept.
    outbox_kept_for: time = Duration::from_secs(24 * 3_600), at least Duration::ZERO;
    /// Bodies of assets and responses of `[[upstreams]]` kept in memory. Where there are upstreams, half is theirs, and half
    /// of that at most is one site's, if several sites have some.
    cache_memory_bytes_max: bytes = 128 * MIB, at least MIB;
    /// Answers of the catalogue and pages of HTTP plugins kept in memory: some 10,000 listings.
    page_memory_bytes_max: bytes = 64 * MIB, at least MIB;
    /// How long an answer of the catalogue is kept in which a plugin had a hand: as late may a rule be that begins at a
    /// certain time. At 100 requests a second for one page 999 of 1,000 are answered from what is kept. 0: none is.
    catalogue_lifetime: time = Duration::from_secs(10), at least Duration::ZERO;
    /// Assets kept on disk, by digest, and responses of `[[upstreams]]`: half for each where there are upstreams.
    cache_disk_bytes_max: bytes = 4 * GIB, at least MIB;
    /// Machine code of plugins kept on disk, so that a node that starts again compiles nothing. 100 interpreters of 39 MB,
    /// or 40,000 plugins in Rust.
    artefact_disk_bytes_max: bytes = 4 * GIB, at least MIB;
    /// Machine code of plugins in memory; the sites asked least sleep on the disk.
    plugin_code_bytes_max: bytes = GIB, at least MIB;
    /// Plugins in memory. Each has a few mappings of the 65,530 that a process may have, and one descriptor.
    plugins_loaded_max: count = 2_000, at least 1;
    /// Processor time of one compilation. JavaScript on StarlingMonkey takes 18 s.
    compile_processor_max: time = Duration::from_secs(60), at least Duration::from_secs(1);
    /// Address space of one compilation, in a process of its own: half as much again as StarlingMonkey's 662 MB.
    compile_memory_bytes_max: bytes = GIB, at least 256 * MIB;
    /// Compilations at once; one merchant has one of them.
    compilations_max: count = 2, at least 1;
    /// The greatest asset or component that a node fetches. Equal to the region's limit for an upload.
    blob_bytes_max: bytes = 32 * MIB, at least MIB;
}

limits! {
    /// The maxima of a region.
    RegionLimits, RawRegionLimits:
    /// Nodes connected at once.
    nodes_max: count = 1_000, at least 1;
    /// One control request. A thousand product rows with long descriptions are about 8 MiB.
    control_body_bytes_max: bytes = 16 * MIB, at least 64 * KIB;
    /// The greatest blob that may be uploaded: a Python plugin is 22 MB.
    blob_bytes_max: bytes = 32 * MIB, at least MIB;
    /// Machine code of plugins kept on disk, so that a region that starts again compiles nothing. 100 interpreters of 39 MB,
    /// or 40,000 plugins in Rust.
    artefact_disk_bytes_max: bytes = 4 * GIB, at least MIB;
    /// Processor time of one compilation. JavaScript on StarlingMonkey takes 18 s.
    compile_processor_max: time = Duration::from_secs(60), at least Duration::from_secs(1);
    /// Address space of one compilation, in a process of its own: half as much again as StarlingMonkey's 662 MB.
    compile_memory_bytes_max: bytes = GIB, at least 256 * MIB;
    /// Compilations at once; one merchant has one of them.
    compilations_max: count = 2, at least 1;
    /// How long a checkout may wait for its node's outbox to arrive before it answers "not yet".
    checkout_wait: time = Duration::from_secs(2), at least Duration::from_millis(10);
    /// How long a checkout waits for the payment provider before it answers that the payment is not known yet; the order is
    /// then asked for by its number. With `checkout_wait` less than the node's `region_call_deadline`.
    payment_wait: time = Duration::from_millis(2_500), at least Duration::from_millis(10);
    /// Entries of a log that stay for nodes to catch up from; a node further behind gets a snapshot.
    log_entries_kept_max: count = 1_000_000, at least 1_000;
    /// After SIGTERM: how long requests under way may take to end.
    drain_deadline: time = Duration::from_secs(10), at least Duration::from_millis(1);
}
