//! Every reason for which a response does not come from the cache, by name.
//!
//! The names reach `Cache-Status`, metrics and logs, so they are stable. Nothing else belongs here.

/// Why a request or its response went past the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PassReason {
    /// The method is neither GET nor HEAD.
    Method,
    /// A GET or HEAD that brings a body, which no key speaks for.
    Body,
    /// A HEAD for which no stored GET could answer: it is forwarded as it is.
    Head,
    /// The client said `no-store`.
    RequestNoStore,
    /// The client asks for a precondition (`If-Match`, `If-Unmodified-Since`) that only the upstream can judge.
    Precondition,
    /// The request carries credentials and the response does not say that it may be shared.
    Authorization,
    /// Nothing is kept of what is asked for, by the policy of its route.
    Policy,
    /// The key was uncacheable a moment ago, so that nobody waits for another.
    Remembered,
    /// So many requests wait for fills already that this one goes on its own.
    WaitersFull,
    /// The answer that this request waited for is made for another variant, again and again.
    VariantUnsettled,
    /// The fill that this request was about to join broke off or outgrew its limit at that very moment.
    FillEnded,
    /// The response says `no-store`.
    NoStore,
    /// The response says `private`.
    Private,
    /// The response sets a cookie.
    SetCookie,
    /// `Vary: *`.
    VaryAny,
    /// `Vary` names a field that is different for each shopper (`Cookie`, `User-Agent`, `Authorization`).
    VaryPersonal,
    /// `Vary` names more fields than are worth a key.
    VaryTooMany,
    /// The response states no lifetime and heuristics are off.
    NoLifetime,
    /// The response may not be used without asking, and has nothing to ask with.
    NoValidator,
    /// A partial, interim or not-modified response, or one about a range: no whole representation.
    Partial,
    /// `must-understand`, and this status is not understood here.
    NotUnderstood,
    /// The body is larger than one object may be.
    TooLarge,
    /// It is large and kept in slices, under keys of their own.
    Sliced,
    /// The fills under way use all the memory that fills may use.
    FillMemory,
    /// It has more tags than are kept, or one that is too long: a purge of it could not be obeyed.
    TooManyTags,
}

impl PassReason {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "body",
            Self::Head => "head",
            Self::RequestNoStore => "request_no_store",
            Self::Precondition => "precondition",
            Self::Authorization => "authorization",
            Self::Policy => "policy",
            Self::Remembered => "remembered",
            Self::WaitersFull => "waiters_full",
            Self::VariantUnsettled => "variant_unsettled",
            Self::FillEnded => "fill_ended",
            Self::NoStore => "no_store",
            Self::Private => "private",
            Self::SetCookie => "set_cookie",
            Self::VaryAny => "vary_any",
            Self::VaryPersonal => "vary_personal",
            Self::VaryTooMany => "vary_too_many",
            Self::NoLifetime => "no_lifetime",
            Self::NoValidator => "no_validator",
            Self::Partial => "partial",
            Self::NotUnderstood => "not_understood",
            Self::TooLarge => "too_large",
            Self::Sliced => "sliced",
            Self::FillMemory => "fill_memory",
            Self::TooManyTags => "too_many_tags",
        }
    }

    /// The reason in a sentence, for people.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Method => "only GET and HEAD are answered from the cache",
            Self::Head => "a HEAD fills nothing, and no stored GET can answer it",
            Self::RequestNoStore => "the client says no-store",
            Self::Precondition => "only the upstream can judge If-Match and If-Unmodified-Since",
            Self::Authorization => {
                "the request has Authorization, and the response has neither public, s-maxage nor must-revalidate"
            }
            Self::Policy => "the policy here is to keep nothing",
            Self::Remembered => {
                "the last answer for this key could not be stored, so nobody waits for another"
            }
            Self::WaitersFull => "as many requests wait for fills as may",
            Self::VariantUnsettled => "the answers that it waited for were made for other variants",
            Self::FillEnded => "the fill that it was about to join broke off",
            Self::NoStore => "the response says no-store",
            Self::Private => "the response says private",
            Self::SetCookie => "the response sets a cookie",
            Self::VaryAny => "the response says Vary: *",
            Self::VaryPersonal => "the response varies by Cookie, User-Agent or Authorization",
            Self::VaryTooMany => "the response varies by more than 8 fields",
            Self::NoLifetime => "the response states no lifetime, and none is guessed",
            Self::NoValidator => {
                "the response may not be used without asking, and has no validator to ask with"
            }
            Self::Partial => "the response is no whole representation",
            Self::NotUnderstood => "the response says must-understand, and its status is not understood here",
            Self::TooLarge => "the body is larger than one object may be",
            Self::Sliced => "it is large and kept in slices",
            Self::FillMemory => "the fills under way use all the memory that fills may use",
            Self::TooManyTags => {
                "the response bears more tags than are kept, and a purge of the others would miss it"
            }
            Self::Body => "the request has a body, and no key tells what it would mean",
        }
    }

    /// Whether the key is likely to be uncacheable for the next request too. What one client's request caused is not
    /// remembered: it would let that client switch the cache off for everybody else.
    pub const fn is_about_the_resource(self) -> bool {
        matches!(
            self,
            Self::NoStore
                | Self::Private
                | Self::SetCookie
                | Self::VaryAny
                | Self::VaryPersonal
                | Self::VaryTooMany
                | Self::NoLifetime
                | Self::NoValidator
                | Self::TooLarge
                | Self::Sliced
                | Self::TooManyTags
        )
    }
}
