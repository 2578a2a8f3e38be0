//! Requests that the server itself refuses: with which status, and how they are counted.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use storage_protocol::{Limit, StorageError};

use crate::auth::AuthError;
use crate::auth::passwords::LoginError;
use crate::config::AuthMethod;
use crate::metrics::RefusedLabel;

/// A request that is not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: String,
    pub(super) label: RefusedLabel,
    /// When the same may be tried again.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, label: RefusedLabel, reason: impl Into<String>) -> Self {
        Self {
            status,
            label,
            reason: reason.into(),
            retry_after: None,
        }
    }

    /// There are as many sessions as there may be.
    pub(crate) fn no_session(error: &StorageError) -> Self {
        let label = match error {
            StorageError::Overloaded {
                limit: Limit::Sessions,
                ..
            } => RefusedLabel::Sessions,
            StorageError::Overloaded {
                limit: Limit::QuotaSessions,
                ..
            } => RefusedLabel::SessionsQuota,
            _ => RefusedLabel::SessionsPerPrincipal,
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, label, error.to_string())
    }

    pub(crate) fn http(status: StatusCode, reason: impl Into<String>) -> Self {
        Self::new(status, RefusedLabel::Http, reason)
    }
}

/// How a client without a credential is asked for one of these.
pub(super) fn challenges(methods: &[AuthMethod]) -> impl Iterator<Item = HeaderValue> + '_ {
    let challenge = |method: &AuthMethod| match method {
        AuthMethod::Token => Some("Bearer"),
        AuthMethod::Password => Some("Basic realm=\"storage-sync\", charset=\"UTF-8\""),
        AuthMethod::Certificate | AuthMethod::Anonymous => None,
    };
    let challenges = methods.iter().filter_map(challenge);
    challenges.map(HeaderValue::from_static)
}

/// The answer to who is not let in for what it has shown.
pub(super) fn refused(error: &AuthError) -> Refusal {
    let reason = error.to_string();
    let (status, retry_after) = match error {
        AuthError::Login(LoginError::TooMany { retry_after }) => {
            (StatusCode::TOO_MANY_REQUESTS, Some(*retry_after))
        }
        AuthError::Login(LoginError::Busy) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Some(Duration::from_secs(1)),
        ),
        AuthError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, None),
        AuthError::Malformed(_) => (StatusCode::BAD_REQUEST, None),
        _ => (StatusCode::UNAUTHORIZED, None),
    };
    Refusal {
        retry_after,
        ..Refusal::new(status, RefusedLabel::Credentials, reason)
    }
}
