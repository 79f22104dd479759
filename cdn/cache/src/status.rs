//! `Cache-Status` (RFC 9211): what the cache did with a request, said on every response.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::reason::PassReason;

pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// How this cache calls itself in `Cache-Status`.
const NAME: &str = "Souk";

/// Why a request went to the upstream: the `fwd` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// Nothing is stored for this key.
    UriMiss,
    /// Other variants are stored, but not this one.
    VaryMiss,
    /// A part is stored, and not the one that is asked for.
    Partial,
    /// What is stored is stale.
    Stale,
    /// What was stored was purged.
    Purged,
    /// What is stored is stale because it was purged softly.
    SoftPurged,
    /// The client asked for something newer.
    Request,
    /// The method is not answered from caches.
    Method,
    /// The cache was not consulted, or not used.
    Bypass,
}

impl Forwarded {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss | Self::Purged => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Partial => "partial",
            Self::Stale | Self::SoftPurged => "stale",
            Self::Request => "request",
            Self::Method => "method",
            Self::Bypass => "bypass",
        }
    }

    /// The same in a sentence, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::UriMiss => "nothing is stored for this key",
            Self::VaryMiss => "other variants are stored, and not this one",
            Self::Partial => "a part is stored, and not all that is asked for",
            Self::Stale => "what is stored may not be used without asking",
            Self::Purged => "what was stored has been purged",
            Self::SoftPurged => "what is stored has been purged softly, and may not be used without asking",
            Self::Request => "the client asks for something newer",
            Self::Method => "the method is not answered from caches",
            Self::Bypass => "the cache is not used",
        }
    }

    /// What the parameter does not say: `; detail=…`, or nothing.
    const fn detail(self) -> &'static str {
        match self {
            Self::Purged => "; detail=purged",
            Self::SoftPurged => "; detail=soft_purged",
            _ => "",
        }
    }

    /// The parameter that goes with a reason to pass.
    pub const fn of(reason: PassReason) -> Self {
        match reason {
            PassReason::Method => Self::Method,
            PassReason::Policy
            | PassReason::Remembered
            | PassReason::WaitersFull
            | PassReason::VariantUnsettled
            | PassReason::FillEnded => Self::Bypass,
            PassReason::RequestNoStore | PassReason::Precondition | PassReason::Body => Self::Request,
            _ => Self::UriMiss,
        }
    }
}

/// What a response from the cache says about how it came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Stored and fresh.
    Fresh,
    /// Stored and stale, with another request refreshing it.
    WhileRevalidating,
    /// Stored and stale, for the upstream failed (the name of its failure).
    OnError(&'static str),
    /// Fetched for this very request.
    Filled(Forwarded),
    /// Fetched for another request, which this one joined.
    Joined(Forwarded),
    /// Stored, and confirmed by the upstream with a 304.
    Confirmed(Forwarded),
    /// Confirmed by the upstream with a 304 after which it is not kept, and why.
    ConfirmedOnce(Forwarded, PassReason),
}

impl How {
    /// The stable name that metrics and logs use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "hit",
            Self::WhileRevalidating => "stale_while_revalidate",
            Self::OnError(_) => "stale_if_error",
            Self::Filled(_) => "fill",
            Self::Joined(_) => "collapsed",
            Self::Confirmed(_) | Self::ConfirmedOnce(..) => "revalidated",
        }
    }

    /// Whether the upstream was not asked for this response.
    pub const fn is_hit(self) -> bool {
        matches!(self, Self::Fresh | Self::WhileRevalidating | Self::OnError(_) | Self::Joined(_))
    }

    pub(crate) fn field(self, ttl_s: i64, upstream_status: u16) -> HeaderValue {
        value(&match self {
            Self::Fresh => format!("{NAME}; hit; ttl={ttl_s}"),
            Self::WhileRevalidating => format!("{NAME}; hit; ttl={ttl_s}; detail=stale_while_revalidate"),
            Self::OnError(why) => format!("{NAME}; hit; ttl={ttl_s}; detail=stale_if_error.{why}"),
            Self::Filled(why) => {
                let (why, detail) = (why.as_str(), why.detail());
                format!("{NAME}; fwd={why}; fwd-status={upstream_status}; stored; ttl={ttl_s}{detail}")
            }
            Self::Joined(why) => {
                format!("{NAME}; fwd={}; collapsed; ttl={ttl_s}{}", why.as_str(), why.detail())
            }
            Self::Confirmed(why) => {
                format!("{NAME}; fwd={}; fwd-status=304; stored; ttl={ttl_s}{}", why.as_str(), why.detail())
            }
            Self::ConfirmedOnce(why, reason) => {
                format!("{NAME}; fwd={}; fwd-status=304; detail={}", why.as_str(), reason.name())
            }
        })
    }
}

/// Appends what is said of a response that is not from the cache.
pub fn append_pass(headers: &mut HeaderMap, reason: PassReason, upstream_status: Option<u16>) {
    let forwarded = Forwarded::of(reason).as_str();
    let status = upstream_status.map(|status| format!("; fwd-status={status}")).unwrap_or_default();
    headers
        .append(CACHE_STATUS, value(&format!("{NAME}; fwd={forwarded}{status}; detail={}", reason.name())));
}

/// What is said of an answer that is put together of slices: as its stored head says, where nothing had to be fetched for
/// its beginning, and otherwise that a part was there, or nothing.
pub fn append_sliced(headers: &mut HeaderMap, head_was_there: bool, slice_was_there: bool) {
    let mut lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().cloned().collect();
    // The last member is this cache's own, of the head.
    let own = lines.pop();
    let said = match own {
        Some(own) if head_was_there && slice_was_there => {
            String::from_utf8_lossy(own.as_bytes()).into_owned()
        }
        _ => {
            let forwarded = if head_was_there { Forwarded::Partial } else { Forwarded::UriMiss };
            format!("{NAME}; fwd={}; fwd-status=206; stored", forwarded.as_str())
        }
    };
    let detail = if said.contains("; detail=") { "" } else { "; detail=sliced" };
    headers.remove(CACHE_STATUS);
    for line in lines {
        headers.append(CACHE_STATUS, line);
    }
    headers.append(CACHE_STATUS, value(&format!("{said}{detail}")));
}

/// Gives this cache's own member, the last one, another name: for another cache of the same make, so that whoever reads both
/// can tell them apart. What of the name no token may have becomes a hyphen.
pub fn name_own(headers: &mut HeaderMap, name: &str) {
    let mut lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().cloned().collect();
    let Some(own) = lines.pop() else { return };
    let Some(said) = own.as_bytes().strip_prefix(NAME.as_bytes()) else { return };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c);
    let name: String = name.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let own = [NAME.as_bytes(), b"/", name.as_bytes(), said].concat();
    lines.push(HeaderValue::from_bytes(&own).expect("a value and a token"));
    headers.remove(CACHE_STATUS);
    for line in lines {
        headers.append(CACHE_STATUS, line);
    }
}

/// Appends what is said of a response that the node made itself, for the named reason.
pub fn append_refusal(headers: &mut HeaderMap, name: &str) {
    headers.append(CACHE_STATUS, value(&format!("{NAME}; detail={name}")));
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("names and numbers are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_goes_by_another_name_before_its_own_kind() {
        let mut headers = HeaderMap::new();
        name_own(&mut headers, "lon/2");
        assert!(headers.is_empty());
        headers.append(CACHE_STATUS, value("Other; hit"));
        headers.append(CACHE_STATUS, How::Fresh.field(7, 200));
        name_own(&mut headers, "lon/[::1] 2");
        let lines: Vec<_> =
            headers.get_all(CACHE_STATUS).iter().map(|line| line.to_str().expect("text")).collect();
        assert_eq!(lines, ["Other; hit", "Souk/lon/-::1--2; hit; ttl=7"]);
        // Where the last word is somebody else's, there is nothing to name.
        headers.append(CACHE_STATUS, value("Other; hit"));
        let before = headers.clone();
        name_own(&mut headers, "lon/2");
        assert_eq!(headers, before);
    }
}
