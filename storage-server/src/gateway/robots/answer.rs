//! Answers, as clients of this protocol read them: alerts with 200, or with 500 where something was to be done with a job.
//!
//! A client that accepts `application/problem+json` gets the status that says what is wrong, and the reason beside the alert.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};
use storage_protocol::StorageError;
use storage_protocol::deliveries::DeliveryError;

use crate::gateway::{NotLetIn, NotLetInKind};

pub(super) type Answer = Result<Response<Body>, Fault>;

/// What a field of a trigger that is missing is answered with.
pub(super) const MISSING_DATA: &str = "Package missing required data";
/// And what else is wrong with one.
pub(super) const NOT_RECEIVED: &str = "Package hasn't been received successfully";

/// A request that is not carried out.
#[derive(Debug)]
pub(super) struct Fault {
    /// What old clients get.
    status: StatusCode,
    body: Value,
    /// What clients get that ask for it.
    real: StatusCode,
    reason: String,
    retry_after: Option<u64>,
}

impl Fault {
    fn new(status: StatusCode, body: Value, real: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            body,
            real,
            reason: reason.into(),
            retry_after: None,
        }
    }

    /// An alert with 200.
    pub(super) fn alert(alert: &str, real: StatusCode, reason: impl Into<String>) -> Self {
        Self::new(StatusCode::OK, json!({ "Alert": alert }), real, reason)
    }

    /// Something was to be done with a job, and was not: an alert with 500.
    pub(super) fn job(alert: &str, error: &DeliveryError) -> Self {
        let real = status_of(error);
        let body = json!({ "Alert": alert });
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            body,
            real,
            error.to_string(),
        )
    }

    pub(super) fn unauthorized() -> Self {
        let status = StatusCode::UNAUTHORIZED;
        Self::new(
            status,
            json!({ "error": "unauthorized" }),
            status,
            "no credential that is good",
        )
    }

    pub(super) fn forbidden(reason: impl Into<String>) -> Self {
        let status = StatusCode::FORBIDDEN;
        Self::new(status, json!({ "error": "forbidden" }), status, reason)
    }

    /// There is none: an empty list, for old clients.
    pub(super) fn none(name: &str) -> Self {
        let reason = format!("there is no such {}", name.to_lowercase());
        Self::new(
            StatusCode::OK,
            json!({ name: [] }),
            StatusCode::NOT_FOUND,
            reason,
        )
    }

    /// There is no robot of a name.
    pub(super) fn no_robot() -> Self {
        let alert = "Robot doesn't exist";
        Self::new(
            StatusCode::OK,
            json!({ "alert": alert }),
            StatusCode::NOT_FOUND,
            alert,
        )
    }

    /// Not now; again in a second.
    pub(super) fn for_now(reason: impl Into<String>) -> Self {
        let (status, reason) = (StatusCode::SERVICE_UNAVAILABLE, reason.into());
        let mut fault = Self::new(status, json!({ "error": reason }), status, reason);
        fault.retry_after = Some(1);
        fault
    }

    /// Why.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Of a list, or one of it.
    pub(super) fn list(name: &str, error: &DeliveryError) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let body = json!({ "Error": error.to_string(), name: [] });
        Self::new(status, body, status_of(error), error.to_string())
    }

    /// The answer; `headers`: those of the request.
    pub(super) fn respond(self, headers: &HeaderMap) -> Response<Body> {
        let accepts = headers.get_all(ACCEPT).iter();
        let mut accepts = accepts.filter_map(|value| value.to_str().ok());
        let wants_real = accepts.any(|value| value.contains("application/problem+json"));
        let (status, body, kind) = match wants_real {
            true => {
                let mut body = self.body;
                if let Value::Object(fields) = &mut body {
                    fields.insert("status".to_owned(), json!(self.real.as_u16()));
                    fields.insert("detail".to_owned(), json!(self.reason));
                }
                (self.real, body, "application/problem+json")
            }
            false => (self.status, self.body, "application/json"),
        };
        let mut response = typed(status, body.to_string(), kind);
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

fn status_of(error: &DeliveryError) -> StatusCode {
    match error {
        DeliveryError::NoJob(_) => StatusCode::NOT_FOUND,
        DeliveryError::Refused { .. }
        | DeliveryError::Exists(_)
        | DeliveryError::Contended { .. } => StatusCode::CONFLICT,
        DeliveryError::Invalid(_) => StatusCode::BAD_REQUEST,
        DeliveryError::Storage(error) => status_of_storage(error),
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn status_of_storage(error: &StorageError) -> StatusCode {
    match error {
        StorageError::AccessDenied { .. } => StatusCode::FORBIDDEN,
        StorageError::LimitExceeded { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        StorageError::InvalidArgument { .. } => StatusCode::BAD_REQUEST,
        StorageError::CheckFailed { .. } | StorageError::QuotaExceeded { .. } => {
            StatusCode::CONFLICT
        }
        StorageError::Overloaded { .. }
        | StorageError::StorageFull { .. }
        | StorageError::ReadOnly { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Where no alert says it: the status that it is, with the reason.
impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        let status = status_of_storage(&error);
        let reason = error.to_string();
        let word = match status {
            StatusCode::FORBIDDEN => "forbidden",
            _ => reason.as_str(),
        };
        let body = json!({ "error": word });
        let mut fault = Self::new(status, body, status, reason);
        fault.retry_after = matches!(error, StorageError::Overloaded { .. }).then_some(1);
        fault
    }
}

impl From<DeliveryError> for Fault {
    fn from(error: DeliveryError) -> Self {
        match error {
            DeliveryError::Storage(error) => error.into(),
            error => {
                let (status, reason) = (status_of(&error), error.to_string());
                Self::new(status, json!({ "error": reason }), status, reason)
            }
        }
    }
}

impl From<NotLetIn> for Fault {
    fn from(error: NotLetIn) -> Self {
        let status = match error.kind {
            NotLetInKind::TooMany => StatusCode::TOO_MANY_REQUESTS,
            NotLetInKind::Busy | NotLetInKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => return Self::unauthorized(),
        };
        let mut fault = Self::new(
            status,
            json!({ "error": error.reason }),
            status,
            error.reason,
        );
        fault.retry_after = error.retry_after.map(|after| after.as_secs().max(1));
        fault
    }
}

fn typed(status: StatusCode, body: String, kind: &'static str) -> Response<Body> {
    (status, [(CONTENT_TYPE, kind)], body).into_response()
}

/// 200 with JSON.
pub(super) fn ok(body: &Value) -> Answer {
    Ok(typed(StatusCode::OK, body.to_string(), "application/json"))
}

/// 200 with a text of exactly these bytes.
pub(super) fn text(body: &str) -> Response<Body> {
    typed(StatusCode::OK, body.to_owned(), "text/plain; charset=utf-8")
}
