//! The sums of [`Freshness`] one by one, in the words of RFC 9111 section 4.2, for whoever asks why.
//!
//! No decision is made here. Every number is either one that the record decides by, or one that it was reckoned from.

use http::HeaderMap;

use super::{Freshness, Use, apparent_age, date_value};
use crate::directives::RequestDirectives;

/// What a record was reckoned from. No decision reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct Reckoned {
    /// `Age` as it came.
    #[n(0)]
    pub age_value_s: u32,
    /// From the question to the head of its answer.
    #[n(1)]
    pub response_delay_s: u32,
    #[n(2)]
    pub lifetime: LifetimeFrom,
    /// `CDN-Cache-Control` stood for `Cache-Control` and `Expires`.
    #[n(3)]
    pub targeted: bool,
}

/// The word that a lifetime was read from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum LifetimeFrom {
    /// It was not kept: a response that is sent once.
    #[default]
    #[n(0)]
    Unknown,
    #[n(1)]
    SMaxAge,
    #[n(2)]
    MaxAge,
    #[n(3)]
    Expires,
    /// `Expires` that is no date, or is said twice: the past.
    #[n(4)]
    UnreadableExpires,
    /// No lifetime was said, but `no-cache`: stored to be asked for each time.
    #[n(5)]
    NoCache,
    /// A guess, which only a policy allows.
    #[n(6)]
    LastModified,
}

impl LifetimeFrom {
    /// Which field says it, by which rule.
    pub const fn rule(self) -> &'static str {
        match self {
            Self::Unknown => "not kept",
            Self::SMaxAge => "s-maxage (RFC 9111 section 5.2.2.10)",
            Self::MaxAge => "max-age (RFC 9111 section 5.2.2.1)",
            Self::Expires => "Expires less Date (RFC 9111 section 5.3)",
            Self::UnreadableExpires => "an Expires that is no date is the past (RFC 9111 section 5.3)",
            Self::NoCache => "no lifetime beside no-cache (RFC 9111 section 5.2.2.4)",
            Self::LastModified => {
                "a tenth of the time since Last-Modified, at most a day (RFC 9111 section 4.2.2)"
            }
        }
    }
}

/// One record at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// When the head of the response came, milliseconds since 1970.
    pub response_time_ms: u64,
    /// `Date`, seconds since 1970.
    pub date_value_s: Option<u64>,
    pub apparent_age_s: u64,
    pub reckoned: Reckoned,
    pub corrected_initial_age_s: u32,
    pub resident_time_s: u64,
    pub current_age_s: u32,
    pub lifetime_s: u32,
    /// What is left of the lifetime; negative when stale.
    pub ttl_s: i64,
    pub while_revalidate_s: u32,
    pub if_error_s: u32,
    /// `must-revalidate`, `proxy-revalidate` or `no-cache`: never sent stale.
    pub never_stale: bool,
    /// `no-cache`: each use asks the upstream.
    pub always_ask: bool,
    /// What comes of it, with what this client asks for where that is obeyed.
    pub usable: Use,
    pub usable_on_error: bool,
}

impl Freshness {
    /// The sums at `now_ms` of the record of a response that is stored with these fields.
    pub fn arithmetic(
        &self,
        stored: &HeaderMap,
        now_ms: u64,
        obeyed: Option<&RequestDirectives>,
    ) -> Arithmetic {
        let date_value_s = date_value(stored);
        Arithmetic {
            response_time_ms: self.received_ms,
            date_value_s,
            apparent_age_s: apparent_age(date_value_s, self.received_ms / 1_000),
            reckoned: self.reckoned,
            corrected_initial_age_s: self.initial_age_s,
            resident_time_s: now_ms.saturating_sub(self.received_ms) / 1_000,
            current_age_s: self.age_s(now_ms),
            lifetime_s: self.lifetime_s,
            ttl_s: self.ttl_s(now_ms),
            while_revalidate_s: self.while_revalidate_s,
            if_error_s: self.if_error_s,
            never_stale: self.never_stale,
            always_ask: self.always_ask,
            usable: self.usable(now_ms, obeyed),
            usable_on_error: self.usable_on_error(now_ms),
        }
    }
}
