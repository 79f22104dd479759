//! Every "no" of the control API: RFC 9457, with the field at fault and what to do about it.

use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use souk_commerce::id::InvalidName;
use souk_sandbox::Refused;

use crate::blobs::BlobError;
use crate::store::StoreError;
use crate::store::token::Verb;

/// Longest text that is repeated to the caller: what was wrong may be what was sent.
const DETAIL_CHARS_MAX: usize = 500;
/// After a request whose outcome nobody knows.
const AGAIN_WITH_CARE: &str = "Send it again. A stock is better read first, and then put with \"expected\": what was sold meanwhile would be put back.";

/// A refusal. Boxed: it is the rare side of every answer.
#[derive(Debug)]
pub(super) struct Problem(Box<Members>);

/// The members of the JSON. `code` is for programs, `detail` and `remedy` are for people.
#[derive(Debug, Serialize)]
struct Members {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    complaints: Vec<Complaint>,
    /// Seconds.
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// One thing that is wrong with a component.
#[derive(Debug, Serialize)]
struct Complaint {
    code: &'static str,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if let Some((cut, _)) = detail.char_indices().nth(DETAIL_CHARS_MAX) {
            detail.truncate(cut);
            detail.push('…');
        }
        let kind = format!("urn:souk:problem:{code}");
        let status = status.as_u16();
        Self(Box::new(Members {
            kind,
            title,
            status,
            code,
            detail,
            field: None,
            remedy: None,
            complaints: Vec::new(),
            retry_after: None,
        }))
    }

    /// What an operator wants is so already.
    pub(super) fn home_already(term: u64) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "home_already",
            "This region is home",
            format!("This region is home already, in term {term}. Nothing was done."),
        )
    }

    /// A value in the request is not acceptable.
    pub(super) fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", "A value is not acceptable", detail);
        problem.0.field = Some(field.into());
        problem
    }

    pub(super) fn name(field: &'static str, error: &InvalidName) -> Self {
        Self::invalid(field, error.to_string()).remedy(format!("Use {}.", error.rule))
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            "There is no such thing",
            format!("There is no {what}."),
        )
    }

    pub(super) fn no_site(site: &impl std::fmt::Display) -> Self {
        Self::not_found(&format!("site {site}")).remedy(format!("Make it with PUT /v1/sites/{site}."))
    }

    pub(super) fn not_found_because(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is no such thing", detail)
    }

    /// What a merchant is told of everything that is not theirs, the same whether it exists or not.
    pub(super) fn hidden() -> Self {
        Self::not_found("such site")
    }

    pub(super) fn not_permitted(verb: Option<Verb>) -> Self {
        let (detail, remedy) = match verb {
            Some(verb) => {
                let verb = verb.name();
                let detail = format!("This token does not allow {verb:?}, which the request needs.");
                // A token never changes: the new one has to allow what this one does, too.
                (
                    detail,
                    format!("Ask the operator for another token: souk site token create --allow {verb},…"),
                )
            }
            None => (
                "Only the region's operator may do this.".to_owned(),
                "Ask the operator, or use the operator's token.".to_owned(),
            ),
        };
        Self::new(StatusCode::FORBIDDEN, "not_permitted", "Not permitted", detail).remedy(remedy)
    }

    pub(super) fn token_damaged() -> Self {
        let detail = "The token's last digits do not fit the others: it was cut off or mistyped.";
        Self::new(StatusCode::UNAUTHORIZED, "token_damaged", "Not allowed", detail)
            .remedy("Copy it again, whole.")
    }

    pub(super) fn token_expired() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "token_expired", "Not allowed", "The token has expired.")
            .remedy("Ask the operator for another one: souk site token create")
    }

    pub(super) fn too_many_refusals(wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil();
        let detail = format!("Too many requests from your address were refused. Wait for {seconds} s.");
        let mut problem = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_refusals",
            "Not allowed, and too often",
            detail,
        );
        problem.0.retry_after = Some(seconds as u64);
        problem
    }

    /// Everything that is wrong with a component, at once.
    pub(super) fn component_refused(field: String, refused: &Refused) -> Self {
        let mut problem = Self::invalid(field, refused.to_string())
            .remedy("Build it with `souk plugin build`, which checks the same things.");
        problem.0.complaints = refused
            .complaints
            .iter()
            .map(|complaint| Complaint { code: complaint.code, detail: complaint.detail.clone() })
            .collect();
        problem
    }

    pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "This contradicts what is there", detail)
    }

    pub(super) fn unauthorized() -> Self {
        let detail =
            "The request bears no token, or one that this region does not know or no longer accepts.";
        let problem = Self::new(StatusCode::UNAUTHORIZED, "token_refused", "Not allowed", detail);
        problem.remedy(
            "Send \"Authorization: Bearer <token>\": a merchant's token, or the operator's, whose SHA-256 is \
             control.operator_token_sha256.",
        )
    }

    pub(super) fn provider_failed() -> Self {
        let detail = "The payment provider could not be asked. The region's log says why.";
        Self::new(StatusCode::BAD_GATEWAY, "provider_failed", "The payment provider failed", detail)
            .remedy("Try again later: nothing was changed.")
    }

    /// A provider's message that is not read: it is repeated until it is, or given up.
    pub(super) fn message_refused(why: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "message_refused", "The message is not read", why).remedy(
            "Compare webhook_secret_file with the endpoint's secret at the provider, and both clocks.",
        )
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large", detail)
    }

    pub(super) fn busy() -> Self {
        let detail = "The region has more to do than it can finish in time. Nothing was changed.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Not now", detail).remedy("Try again in a second.")
    }

    pub(super) fn full() -> Self {
        let detail = "The disk of the region's store is full. Nothing was changed.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "disk_full", "The disk is full", detail)
            .remedy("Make room in the region's data_dir; it goes on by itself.")
    }

    /// What a row names has been taken away by another process while the row was written.
    pub(super) fn collected() -> Self {
        let detail =
            "Bytes that nothing referred to were removed by another process of the region just before.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "collected", "Not now", detail)
            .remedy("Send the request again; what is missing is asked for.")
    }

    pub(super) fn timeout() -> Self {
        let detail = "The request was not finished in time. Whether it changed anything is not known.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "Too slow", detail).remedy(AGAIN_WITH_CARE)
    }

    pub(super) fn unknown_outcome() -> Self {
        let detail =
            "The store was lost while it committed. Whether the request changed anything is not known.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown", "Not known", detail)
            .remedy(AGAIN_WITH_CARE)
    }

    pub(super) fn broken_body(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "broken_body", "The body ended early", detail)
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "This path does not know this method",
            "The path exists, but not with this method.",
        )
    }

    /// Something is wrong with us; the log knows what.
    pub(super) fn internal() -> Self {
        let detail = "The region failed. Its log says why.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "region_failed", "The region failed", detail)
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let seconds = self.0.retry_after.unwrap_or(1);
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"souk region\""),
                );
            }
            _ => {}
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if let StoreError::Unknown(_) = error {
            tracing::warn!(%error, "whether a control request changed anything is not known");
            return Self::unknown_outcome();
        }
        if error.is_full() {
            tracing::error!(%error, "a control request met a full disk");
            return Self::full();
        }
        if error.is_transient() {
            tracing::warn!(%error, "a control request met a busy store");
            return Self::busy();
        }
        tracing::error!(%error, "a control request failed");
        Self::internal()
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::TooLarge { bytes_max } => Self::too_large(error.to_string())
                .remedy(format!("Send at most {bytes_max} bytes, or raise limits.blob_bytes_max.")),
            BlobError::OtherDigest { actual } => {
                Self::invalid("digest", error.to_string()).remedy(format!("PUT /v1/blobs/{actual}"))
            }
            BlobError::Damaged(_) | BlobError::Io(_) => {
                tracing::error!(%error, "a control request failed");
                Self::internal()
            }
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let text = rejection.body_text();
        match rejection {
            JsonRejection::MissingJsonContentType(_) => Self::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_json",
                "The body must be JSON",
                "The request has no \"Content-Type: application/json\".",
            ),
            JsonRejection::JsonDataError(_) => {
                // "…: products[3].price: invalid type…": the path of the field stands before the second colon.
                let field =
                    text.split(": ").nth(1).filter(|path| !path.contains(' ')).unwrap_or("body").to_owned();
                Self::invalid(field, text)
            }
            JsonRejection::BytesRejection(_) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Self::too_large(text)
                    .remedy("Send less in one request, or raise limits.control_body_bytes_max.")
            }
            JsonRejection::JsonSyntaxError(_) => {
                Self::new(StatusCode::BAD_REQUEST, "malformed_json", "The body is not JSON", text)
            }
            _ => Self::broken_body(text),
        }
    }
}

/// The same form, of a region that is not home and has no other part of this API.
pub(crate) fn problem_of_standby(
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
) -> Response {
    Problem::new(status, code, title, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_a_busy_store() {
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let full = StoreError::from(rusqlite::Error::SqliteFailure(full, None));
        assert!(full.is_transient(), "a node keeps what it has, and sends it again");
        let problem = Problem::from(full);
        assert_eq!((problem.0.status, problem.0.code), (503, "disk_full"));
        let busy = Problem::from(StoreError::Busy);
        assert_eq!((busy.0.status, busy.0.code), (503, "busy"));
    }
}
