//! Answers in JSON, and what is wrong with a request, in the form that clients of this protocol read:
//! `{"Model":"profiles","Key":"x","Type":"GET","Messages":["Not Found"],"Code":404}`.
//!
//! A handler returns a [`Fault`]; [`describe`] makes it that body, with model, key and type from the request.

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use percent_encoding::percent_decode_str;
use serde_json::json;
use storage_protocol::{Outcome, StorageError};

use super::BASE;

pub(super) type Answer = Result<Response<Body>, Fault>;

/// `Type` of the errors that are about rights.
pub(super) const AUTH: &str = "AUTH";
/// What a wrong path is told.
const NO_ROUTE: &str = "No route";

/// A request that is not carried out, or of which that is not known.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    status: StatusCode,
    messages: Vec<String>,
    is_auth: bool,
    retry_after: Option<u32>,
}

impl Fault {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            messages: vec![message.into()],
            is_auth: false,
            retry_after: None,
        }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not Found")
    }

    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, NO_ROUTE)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self {
            is_auth: true,
            ..Self::new(StatusCode::FORBIDDEN, message)
        }
    }

    /// What passes by itself, soon.
    pub(super) fn for_now(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// Of a get: what may not be seen is not there.
    pub(super) fn unseen(error: StorageError) -> Self {
        match error {
            StorageError::AccessDenied { .. } => Self::not_found(),
            error => error.into(),
        }
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        let outcome = match error.outcome() {
            Outcome::NotExecuted => "nothing was executed",
            Outcome::Refused => "it was refused",
            Outcome::Unknown => "whether it was executed is not known",
        };
        let message = error.to_string();
        let fault = match error {
            StorageError::AccessDenied { .. } => Self::forbidden(message),
            StorageError::LimitExceeded { .. } => Self::too_large(message),
            StorageError::InvalidArgument { .. } => Self::invalid(message),
            StorageError::CheckFailed { .. } | StorageError::QuotaExceeded { .. } => {
                Self::conflict(message)
            }
            StorageError::Overloaded { .. } | StorageError::SnapshotExpired => {
                Self::for_now(message)
            }
            // These do not pass before somebody does something.
            StorageError::StorageFull { .. } | StorageError::ReadOnly { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            }
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        let mut messages = fault.messages;
        messages.push(outcome.to_owned());
        Self { messages, ..fault }
    }
}

/// The fault itself goes with the answer to [`describe`].
impl IntoResponse for Fault {
    fn into_response(self) -> Response<Body> {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives the answers of faults their bodies.
pub(super) async fn describe(request: Request, next: Next) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let Some(fault) = response.extensions_mut().remove::<Fault>() else {
        return response;
    };
    let path = path.strip_prefix(BASE).unwrap_or_default();
    let mut parts = path.trim_start_matches('/').split('/');
    let mut part = || {
        let part = parts.next().unwrap_or_default();
        percent_decode_str(part).decode_utf8_lossy().into_owned()
    };
    let (model, key) = (part(), part());
    body_of(&fault, &model, &key, method.as_str())
}

fn body_of(fault: &Fault, model: &str, key: &str, method: &str) -> Response<Body> {
    let kind = match fault.is_auth {
        true => AUTH,
        false => method,
    };
    let text = format!(
        "{{\"Model\":{},\"Key\":{},\"Type\":{},\"Messages\":{},\"Code\":{}}}",
        json!(model),
        json!(key),
        json!(kind),
        json!(fault.messages),
        fault.status.as_u16()
    );
    let mut response = json(fault.status, text);
    if let Some(seconds) = fault.retry_after {
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer with this JSON.
pub(super) fn json(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    (status, [(CONTENT_TYPE, "application/json")], text.into()).into_response()
}

pub(super) fn ok(text: String) -> Answer {
    Ok(json(StatusCode::OK, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_seen_is_not_there_and_what_may_not_be_done_is_forbidden() {
        let denied = || StorageError::AccessDenied {
            message: "no".to_owned(),
        };
        assert_eq!(Fault::unseen(denied()).status, StatusCode::NOT_FOUND);
        let forbidden = Fault::from(denied());
        assert_eq!(forbidden.status, StatusCode::FORBIDDEN);
        assert!(forbidden.is_auth);
    }

    #[tokio::test]
    async fn a_fault_has_the_body_that_clients_read() {
        let response = body_of(&Fault::not_found(), "profiles", "x", "GET");
        let body = axum::body::to_bytes(response.into_body(), 1000).await;
        let expected =
            r#"{"Model":"profiles","Key":"x","Type":"GET","Messages":["Not Found"],"Code":404}"#;
        assert_eq!(body.unwrap(), expected);
    }
}
