//! Answers in JSON, and what is wrong with a request: `{"error": "..."}` with its status.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use storage_protocol::StorageError;

use super::audited::DeniedBecause;

/// Of what passes by itself.
const RETRY_AFTER_SECONDS: u32 = 1;

pub(super) type Answer = Result<Response<Body>, Problem>;

/// A request that is not carried out.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
    /// In how many seconds the same may be tried again.
    retry_after: Option<u32>,
    /// It was refused here. What a guard refuses is told to the audit log there.
    denied: bool,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            retry_after: None,
            denied: false,
        }
    }

    /// What passes by itself, soon.
    pub(super) fn for_now(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(RETRY_AFTER_SECONDS),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::denied_as(StatusCode::FORBIDDEN, message)
    }

    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn into_message(self) -> String {
        self.message
    }

    /// One that is refused and not told so.
    pub(super) fn denied_as(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            denied: true,
            ..Self::new(status, message)
        }
    }
}

pub(super) fn bad(message: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, message)
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        let status = match &error {
            StorageError::AccessDenied { .. } => StatusCode::FORBIDDEN,
            StorageError::InvalidArgument { .. } | StorageError::LimitExceeded { .. } => {
                StatusCode::BAD_REQUEST
            }
            StorageError::CheckFailed { .. } | StorageError::QuotaExceeded { .. } => {
                StatusCode::CONFLICT
            }
            StorageError::Overloaded { .. } => return Self::for_now(error.to_string()),
            // These do not pass before somebody does something.
            StorageError::StorageFull { .. } | StorageError::ReadOnly { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = answer(self.status, &json!({ "error": self.message }));
        if let Some(seconds) = self.retry_after {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.denied {
            let why = DeniedBecause(self.message);
            response.extensions_mut().insert(why);
        }
        response
    }
}

pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut json) => {
            json.push(b'\n');
            (status, [(CONTENT_TYPE, "application/json")], json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) fn ok(value: &impl Serialize) -> Answer {
    Ok(answer(StatusCode::OK, value))
}

pub(super) fn done() -> Answer {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Reads a body. An empty one is an object without members.
pub(super) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    let json = match body.is_empty() {
        true => b"{}",
        false => &body[..],
    };
    serde_json::from_slice(json).map_err(|error| bad(format!("the body: {error}")))
}
