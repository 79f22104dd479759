//! The only place where an error becomes a response.
//!
//! Every refusal of the node is a [`Refusal`]: a stable `code` for programs, a status, a title. The same code is the
//! label of the metric, the field of the access log and the `code` of the RFC 9457 body, so that what a shopper
//! reports, an operator finds. What may be told to a stranger is decided here: `detail` is written for the caller;
//! causes inside the node go to the log beside the code.
//!
//! Called by [`crate::serve`] and the API; knows nothing of where an error came from.

use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::{Map, Value};

use crate::http::{Body, full};

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// Why the node did not do what it was asked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Refusal { $($(#[$doc])* $name,)* }

        impl Refusal {
            /// Every refusal there is: what the documentation and the tests walk through.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Stable: programs compare it.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code),* }
            }

            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),* }
            }

            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title),* }
            }
        }
    };
}

refusals! {
    /// No Host, two of them, or one that is not a host.
    BadAuthority = "bad_authority", BAD_REQUEST, "The request does not say which host it is for";
    /// A path that two readers could read in two ways.
    BadPath = "bad_path", BAD_REQUEST, "The path is not acceptable";
    BadQuery = "bad_query", BAD_REQUEST, "The query is not acceptable";
    BadId = "bad_id", BAD_REQUEST, "A name or number is not valid";
    BadJson = "bad_json", BAD_REQUEST, "The body is not the JSON that is expected here";
    BadFraming = "bad_framing", BAD_REQUEST, "The body's length is said in two ways";
    /// Its bytes are not a request, or could be read as two: see `crate::wire`.
    MalformedRequest = "malformed_request", BAD_REQUEST, "The request is not well-formed HTTP/1.1";
    HeadTooLarge = "head_too_large", REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large";
    HeadTooSlow = "head_too_slow", REQUEST_TIMEOUT, "The head of the request came too slowly";
    BodyLost = "body_lost", BAD_REQUEST, "The body ended before it was complete";
    IdempotencyKeyMissing = "idempotency_key_missing", BAD_REQUEST, "An Idempotency-Key is needed";
    BadIdempotencyKey = "bad_idempotency_key", BAD_REQUEST, "The Idempotency-Key is not valid";
    BadPayment = "bad_payment", BAD_REQUEST, "This is not something to pay with";
    BadToken = "bad_token", UNAUTHORIZED, "The shopper token is not valid";
    /// The bank's no. The cart is open, for another card.
    PaymentDeclined = "payment_declined", PAYMENT_REQUIRED, "The payment was declined";
    NoRoute = "no_such_route", NOT_FOUND, "There is nothing at this path";
    NoAsset = "no_such_page", NOT_FOUND, "There is no such page";
    UnknownProduct = "unknown_product", NOT_FOUND, "There is no such product";
    UnknownCart = "unknown_cart", NOT_FOUND, "There is no such cart";
    UnknownLine = "unknown_line", NOT_FOUND, "The cart has no such line";
    UnknownOrder = "unknown_order", NOT_FOUND, "There is no such order";
    BadMethod = "method_not_allowed", METHOD_NOT_ALLOWED, "This path does not know this method";
    BodyTooSlow = "body_too_slow", REQUEST_TIMEOUT, "The body came too slowly";
    CartSealed = "cart_sealed", CONFLICT, "The cart has been ordered and can no longer change";
    CheckoutPending = "checkout_pending", CONFLICT, "The cart is being paid for";
    ReservationsOff = "reservations_off", CONFLICT, "This shop promises nothing before an order";
    PriceChanged = "price_changed", CONFLICT, "The price is another one now";
    OutOfStock = "out_of_stock", CONFLICT, "There is not enough in stock";
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE, "The body is too large";
    UriTooLong = "uri_too_long", URI_TOO_LONG, "The path and query are too long";
    NotJson = "not_json", UNSUPPORTED_MEDIA_TYPE, "Only application/json is understood here";
    UnknownHost = "unknown_host", MISDIRECTED_REQUEST, "No shop of this node has this host name";
    UnknownSku = "unknown_sku", UNPROCESSABLE_ENTITY, "There is no product with this sku";
    NotForSale = "not_for_sale", UNPROCESSABLE_ENTITY, "The product has no price at the moment";
    QuantityOutOfRange = "quantity_out_of_range", UNPROCESSABLE_ENTITY, "The quantity is out of range";
    TooManyLines = "too_many_lines", UNPROCESSABLE_ENTITY, "The cart has no room for another line";
    TooManyCoupons = "too_many_coupons", UNPROCESSABLE_ENTITY, "The cart has no room for another coupon";
    BadCoupon = "bad_coupon", UNPROCESSABLE_ENTITY, "This is not a coupon code";
    BadCountry = "bad_country", UNPROCESSABLE_ENTITY, "This is not a country";
    PluginLine = "line_of_a_plugin", UNPROCESSABLE_ENTITY, "This line was put there by the shop and follows its rules";
    CartTooLarge = "cart_too_large", UNPROCESSABLE_ENTITY, "The cart is too large for this change";
    CartEmpty = "cart_empty", UNPROCESSABLE_ENTITY, "An empty cart cannot be ordered";
    Unavailable = "lines_unavailable", UNPROCESSABLE_ENTITY, "The cart holds products that are no longer sold";
    AmountTooLarge = "amount_too_large", UNPROCESSABLE_ENTITY, "The amount is too large to be computed";
    KeyReused = "idempotency_key_reused", UNPROCESSABLE_ENTITY, "The Idempotency-Key was used for another request";
    PluginRefused = "refused_by_shop", UNPROCESSABLE_ENTITY, "A rule of the shop says no";
    TooManyRequests = "too_many_requests", TOO_MANY_REQUESTS, "Too many requests have come";
    /// A rule that must not be skipped could not be asked.
    RuleFailed = "rule_failed", SERVICE_UNAVAILABLE, "A rule of the shop that must not be skipped has failed";
    NotSynced = "not_synced", SERVICE_UNAVAILABLE, "The node has not received its shops yet";
    NotEnrolled = "not_enrolled", SERVICE_UNAVAILABLE, "The node has not been enrolled by its region yet";
    /// The shop's plugins compute more than their share, and its queue for turns is full.
    PluginsCrowded = "plugins_crowded", SERVICE_UNAVAILABLE, "The shop's rules have more to compute than their share of this node";
    /// The shop's searches come faster than one after the other, and its queue is full.
    SearchBusy = "search_busy", SERVICE_UNAVAILABLE, "The shop is searched by as many as can be answered";
    SearchNotReady = "search_not_ready", SERVICE_UNAVAILABLE, "The shop cannot be searched at the moment";
    ChainNotReady = "plugins_not_ready", SERVICE_UNAVAILABLE, "The shop's plugins are not loaded yet";
    CartElsewhere = "cart_elsewhere", SERVICE_UNAVAILABLE, "The cart is at another node and the region cannot be reached";
    CartBusy = "cart_busy", SERVICE_UNAVAILABLE, "Another change of this cart is taking its time";
    QueueFull = "queue_full", SERVICE_UNAVAILABLE, "The node has more changes to keep than it can";
    OutboxFull = "outbox_full", SERVICE_UNAVAILABLE, "The node holds all the changes that it may hold for its region";
    DiskFull = "disk_full", SERVICE_UNAVAILABLE, "The node's disk is full";
    DiskFailed = "disk_failed", SERVICE_UNAVAILABLE, "The node's disk does not keep what is written";
    /// The one honest answer when a commit failed half-way and the bytes are there after all.
    OutcomeUnknown = "outcome_unknown", SERVICE_UNAVAILABLE, "It is not known whether the change was kept: read the cart before trying again";
    RegionUnreachable = "region_unreachable", SERVICE_UNAVAILABLE, "The region cannot be reached";
    RegionBusy = "region_busy", SERVICE_UNAVAILABLE, "The region is not up to date with this node yet";
    StandbyAway = "standby_away", SERVICE_UNAVAILABLE, "The region cannot say yet that it is safe";
    BodyUnexpected = "body_unexpected", BAD_REQUEST, "A GET or HEAD request has no body here";
    UpstreamBusy = "upstream_busy", SERVICE_UNAVAILABLE, "The shop's server has as many requests to answer as it may";
    UpstreamUnreachable = "upstream_unreachable", BAD_GATEWAY, "The shop's server cannot be reached";
    UpstreamTls = "upstream_tls", BAD_GATEWAY, "The shop's server cannot be trusted";
    UpstreamBroke = "upstream_broke", BAD_GATEWAY, "The shop's server broke off before it answered";
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, "The shop's server did not answer in time";
    OnlyIfCached = "only_if_cached", GATEWAY_TIMEOUT, "Nothing that may be used is stored";
    LoopDetected = "loop_detected", LOOP_DETECTED, "The request has been here before";
    RegionFailed = "region_failed", BAD_GATEWAY, "The region could not do it";
    Draining = "draining", SERVICE_UNAVAILABLE, "The node is about to stop";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "The node has too much to do";
    ComponentFailed = "component_failed", BAD_GATEWAY, "The component did not answer";
    DeadlinePassed = "deadline_passed", GATEWAY_TIMEOUT, "The request took too long";
    Internal = "internal", INTERNAL_SERVER_ERROR, "The node made a mistake";
}

/// A refusal with its particulars, on its way to becoming a response.
#[derive(Debug, Clone)]
pub struct Problem {
    pub refusal: Refusal,
    pub detail: String,
    retry_after_s: Option<u32>,
    allow: Option<&'static str>,
    extra: Map<String, Value>,
}

impl Problem {
    pub fn new(refusal: Refusal, detail: impl Into<String>) -> Self {
        // Whatever is the node's or the region's trouble passes: every 503 says when to come back.
        let retry_after_s = (refusal.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { refusal, detail: detail.into(), retry_after_s, allow: None, extra: Map::new() }
    }

    /// For what is wrong inside: the cause is for the log, the caller learns only that it is not his fault.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request failed for a reason of the node's own");
        Self::new(Refusal::Internal, "This is the node's fault, not yours. It has been logged.")
    }

    pub fn method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(Refusal::BadMethod, format!("use one of {allow}")) }
    }

    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Adds a member to the body. The members of RFC 9457 and `code` cannot be overwritten.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(member.to_owned(), value.into());
        self
    }

    pub fn into_response(self) -> Response<Body> {
        let Self { refusal, detail, retry_after_s, allow, extra: mut body } = self;
        let status = refusal.status();
        body.insert("type".into(), format!("urn:souk:problem:{}", refusal.code()).into());
        body.insert("title".into(), refusal.title().into());
        body.insert("status".into(), status.as_u16().into());
        body.insert("code".into(), refusal.code().into());
        body.insert("detail".into(), detail.into());
        let mut response = Response::new(full(Value::Object(body).to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(allow) = allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        if closes(refusal) {
            // The rest of the body is still on its way; whatever it says must not be taken for the next request.
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // Read again by the access log and the metrics.
        response.extensions_mut().insert(refusal);
        response
    }
}

/// Whether the connection cannot be trusted, or afforded, any longer.
fn closes(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::BadFraming
            | Refusal::MalformedRequest
            | Refusal::HeadTooLarge
            | Refusal::HeadTooSlow
            | Refusal::BodyTooLarge
            | Refusal::BodyTooSlow
            | Refusal::BodyLost
            | Refusal::BodyUnexpected
            | Refusal::Draining
    )
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[test]
    fn codes_are_stable_words_and_unique() {
        let mut codes: Vec<_> = Refusal::ALL.iter().map(|r| r.code()).collect();
        assert!(codes.iter().all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')), "{codes:?}");
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Refusal::ALL.len());
    }

    #[tokio::test]
    async fn a_problem_is_an_rfc_9457_document() {
        let problem = Problem::new(Refusal::UnknownSku, "no \"A\"").with("sku", "A").with("code", "forged");
        let response = problem.into_response();
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.extensions().get(), Some(&Refusal::UnknownSku));
        let body = response.into_body().collect().await.expect("a full body").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(
            body,
            serde_json::json!({
                "type": "urn:souk:problem:unknown_sku", "title": "There is no product with this sku", "status": 422,
                "code": "unknown_sku", "detail": "no \"A\"", "sku": "A",
            })
        );
    }

    #[test]
    fn every_503_says_when_to_come_back() {
        for &refusal in Refusal::ALL {
            let response = Problem::new(refusal, "x").into_response();
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                refusal.status() == StatusCode::SERVICE_UNAVAILABLE,
                "{refusal:?}"
            );
        }
    }
}
