//! Answers, and why a request is not carried out: texts to the byte as clients know them.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use storage_protocol::{Limit, Outcome, StorageError};

use super::multipart::MultipartError;
use super::place::Flaw;

pub(super) type Answer = Result<Response<Body>, Refusal>;

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

/// Of what passes by itself, in seconds.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A request that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: u16,
    body: String,
    content_type: &'static str,
    /// In how many seconds the same may be tried again.
    retry_after: Option<u64>,
}

impl Refusal {
    /// One with this body, to the byte.
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            body: body.into(),
            content_type: TEXT,
            retry_after: None,
        }
    }

    pub(super) fn json(status: u16, body: impl Into<String>) -> Self {
        Self {
            content_type: JSON,
            ..Self::text(status, body)
        }
    }

    /// A bad request: what is wrong with it.
    pub(super) fn bad(what: impl std::fmt::Display) -> Self {
        Self::text(400, format!("400:Bad Request, {what}.\n"))
    }

    /// What passes by itself after this many seconds.
    pub(super) fn for_now(status: u16, reason: &str, seconds: Option<u64>) -> Self {
        Self {
            retry_after: Some(seconds.unwrap_or(RETRY_AFTER_SECONDS).max(1)),
            ..Self::text(status, format!("{status}: {reason}\n"))
        }
    }
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        Self::bad(flaw)
    }
}

impl From<MultipartError> for Refusal {
    fn from(error: MultipartError) -> Self {
        Self::bad(format!("multipart body: {error}"))
    }
}

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Self {
        let status = match &error {
            StorageError::AccessDenied { .. } => {
                return Self::text(403, format!("Access DENY: {error}\n"));
            }
            StorageError::LimitExceeded {
                limit: Limit::ObjectBytes,
                ..
            } => 413,
            StorageError::InvalidArgument { .. } | StorageError::LimitExceeded { .. } => 400,
            StorageError::CheckFailed { .. } => 409,
            StorageError::QuotaExceeded { .. } => 507,
            StorageError::Overloaded { .. } => {
                return Self::for_now(503, &error.to_string(), None);
            }
            StorageError::StorageFull { .. } | StorageError::ReadOnly { .. } => 503,
            _ => 500,
        };
        let known = match error.outcome() {
            Outcome::NotExecuted => "not executed",
            Outcome::Refused => "refused",
            Outcome::Unknown => "it is unknown whether it was done",
        };
        Self::text(status, format!("{status}: {error} ({known})\n"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = (status, self.body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn with_type(body: impl Into<Body>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 200, with a text of exactly these bytes.
pub(super) fn text(body: impl Into<Body>) -> Response<Body> {
    with_type(body, TEXT)
}

/// 200, with JSON.
pub(super) fn json(body: impl Into<Body>) -> Response<Body> {
    with_type(body, JSON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_storage_refuses_is_told_with_what_is_known_of_it() {
        let status = |error: StorageError| Refusal::from(error).into_response().status().as_u16();
        let unknown = StorageError::Closed {
            reason: "x".to_owned(),
            outcome: Outcome::Unknown,
        };
        assert!(
            Refusal::from(unknown.clone())
                .body
                .contains("it is unknown")
        );
        assert_eq!(status(unknown), 500);
        let denied = StorageError::AccessDenied {
            message: "no".to_owned(),
        };
        assert!(
            Refusal::from(denied.clone())
                .body
                .starts_with("Access DENY")
        );
        assert_eq!(status(denied), 403);
        assert_eq!(status(StorageError::limit(Limit::ObjectBytes, 2, 1)), 413);
        assert_eq!(status(StorageError::limit(Limit::Key, 2, 1)), 400);
        let flaw = Refusal::from(Flaw::Missing("project"));
        assert_eq!(flaw.body, "400:Bad Request, missing project.\n");
    }
}
