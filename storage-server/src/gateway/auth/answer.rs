//! Answers in JSON, and what is wrong with a request: `{"error": "..."}` with its status.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use storage_protocol::StorageError;

pub(super) type Answer = Result<Response<Body>, Problem>;

/// A request that is not carried out.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    message: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    pub(super) fn denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
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
            StorageError::CheckFailed { .. } => StatusCode::CONFLICT,
            StorageError::Overloaded { .. }
            | StorageError::StorageFull { .. }
            | StorageError::ReadOnly { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        answer(self.status, &json!({ "error": self.message }))
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
