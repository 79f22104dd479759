//! What a node's link says about itself.

use std::time::Duration;

use souk_replication::{EpochNo, Heads, RejectReason, Seq, Term, wire::come_back_ms};
use tokio::time::Instant;

/// Whether the link is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Trying to reach a region.
    Connecting,
    /// Welcomed by a region.
    Up,
    /// Waiting before the next try; see [`LinkStatus::fault`].
    Down,
    /// Ended by shutdown.
    Stopped,
}

/// Why the link is not up; each has a name for logs, metrics and problem details.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkFault {
    /// The address does not resolve.
    #[error("cannot resolve {addr}: {detail}")]
    Resolve {
        /// host:port.
        addr: String,
        /// What the resolver says.
        detail: String,
    },
    /// Nobody answers.
    #[error("no answer from {addr}: {detail}")]
    NoAnswer {
        /// host:port.
        addr: String,
        /// What the transport says.
        detail: String,
    },
    /// The region's certificate is not signed by our authority.
    #[error("the region's certificate is not from our certificate authority")]
    WrongAuthority,
    /// The region's certificate has run out, or is not valid yet.
    #[error("the region's certificate is outside of its validity")]
    Expired,
    /// The region's certificate is for another server name or carries another identity.
    #[error("the region's certificate says {found}, expected {expected}")]
    WrongIdentity {
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// TLS failed otherwise.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The region refuses our certificate.
    #[error("the region refuses our certificate: {0}")]
    CertificateRefused(String),
    /// The region rejects us.
    #[error("the region rejects this node ({}): {message}", reason.name())]
    Rejected {
        /// Why.
        reason: RejectReason,
        /// For people.
        message: String,
    },
    /// The connection was up and is lost.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The node's outbox is not the one that the region knows: its disk was put back from a backup. The next connection gets
    /// it a new epoch.
    #[error("the outbox is not the one that the region knows: this disk was restored")]
    Diverged,
    /// The region has another home since: what this one says is of the past.
    #[error("this home of the region (term {own}) has been replaced by another one (term {met})")]
    Replaced {
        /// The term of the one that answered.
        own: Term,
        /// The greatest that this node has met.
        met: Term,
    },
    /// The node's own store failed.
    #[error("{0}")]
    Store(String),
}

impl LinkFault {
    /// Whether nobody has said anything: the path or the region may be well again at any moment. Who resolves names may be behind
    /// the same path.
    pub(crate) const fn is_silence(&self) -> bool {
        matches!(self, Self::NoAnswer { .. } | Self::Lost(_) | Self::Resolve { .. })
    }

    /// Whether somebody answers who is not the region's home: its home is elsewhere, or is being made.
    pub(crate) const fn is_no_home(&self) -> bool {
        matches!(
            self,
            Self::Replaced { .. }
                | Self::Rejected { reason: RejectReason::Standby | RejectReason::Replaced, .. }
        )
    }

    /// How long the region has asked us to stay away.
    pub(crate) fn come_back(&self) -> Duration {
        let ms = match self {
            Self::Rejected { reason: RejectReason::Busy, message } => come_back_ms(message),
            _ => None,
        };
        Duration::from_millis(ms.unwrap_or_default())
    }

    /// Stable name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::NoAnswer { .. } => "no_answer",
            Self::WrongAuthority => "wrong_authority",
            Self::Expired => "expired",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::Tls(_) => "tls",
            Self::CertificateRefused(_) => "certificate_refused",
            Self::Rejected { .. } => "rejected",
            Self::Lost(_) => "lost",
            Self::Protocol(_) => "protocol",
            Self::Diverged => "diverged",
            Self::Replaced { .. } => "replaced",
            Self::Store(_) => "store",
        }
    }
}

/// A node's link at a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkStatus {
    /// Whether it is up.
    pub state: LinkState,
    /// `state == Up`, for those who ask only that.
    pub connected: bool,
    /// Name of the region, once welcomed.
    pub region: Option<String>,
    /// Address of the region that the link is or was last connected to.
    pub address: Option<String>,
    /// Since when it is in this state.
    pub since: Instant,
    /// Round-trip time.
    pub rtt: Option<Duration>,
    /// Epoch of the outbox.
    pub epoch: Option<EpochNo>,
    /// Newest operation that the region has committed.
    pub acked: Seq,
    /// Operations accepted and not known to be committed.
    pub unacked: u64,
    /// Which home of the region it is or was last connected to; 0: none that said so.
    pub term: Term,
    /// Newest version of each log at the region, as last heard.
    pub region_heads: Heads,
    /// Connections made, redials included.
    pub connects: u64,
    /// Redials for want of progress.
    pub redials: u64,
    /// The last trouble; kept while connected, so that it can be seen afterwards.
    pub fault: Option<LinkFault>,
}
