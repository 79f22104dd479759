//! Every "no" of the control API: RFC 9457, with the field at fault and what to do about it.

use axum::extract::rejection::JsonRejection;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use souk_commerce::id::InvalidName;

use crate::blobs::BlobError;
use crate::store::StoreError;

/// Longest text that is repeated to the caller: what was wrong may be what was sent.
const DETAIL_CHARS_MAX: usize = 500;

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
        Self(Box::new(Members { kind, title, status, code, detail, field: None, remedy: None }))
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

    pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "This contradicts what is there", detail)
    }

    pub(super) fn unauthorized() -> Self {
        let detail = "The request bears no operator token, or one that is not this region's.";
        let problem = Self::new(StatusCode::UNAUTHORIZED, "token_refused", "Not allowed", detail);
        problem.remedy("Send \"Authorization: Bearer <token>\" with the token whose SHA-256 is control.operator_token_sha256.")
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The request is too large", detail)
    }

    pub(super) fn busy() -> Self {
        let detail = "The region has more to do than it can finish in time. Nothing was changed.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Not now", detail).remedy("Try again in a second.")
    }

    pub(super) fn timeout() -> Self {
        let detail = "The request was not finished in time. Whether it changed anything is not known.";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", "Too slow", detail)
            .remedy("Send it again. A stock is better read first, and then put with \"expected\": what was sold meanwhile would be put back.")
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
