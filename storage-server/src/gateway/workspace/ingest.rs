//! `POST /workspace/events`: events of services that are no clients of the storage.
//!
//! The body is one event, or a list of them, in the form of the frames, with absolute paths. Each is told by a signal at the key
//! that it is about, so whoever tells it must be allowed to write there, and it reaches all who are told what is written there.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Extracted};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use std::sync::Arc;
use storage_protocol::{Batch, CommitOptions, StorageError};

use super::State;
use super::hub::Event;
use crate::gateway::Guest;

/// The longest body, in bytes, and the most events in it.
const BODY_BYTES_MAX: usize = 1 << 20;
const EVENTS_MAX: usize = 100;
/// How commits that tell are called.
const LABEL: &str = "told";

/// The body of an answer that says what is wrong.
pub(super) fn problem(why: &str) -> Response<Body> {
    json_body(&json!({ "error": why }))
}

fn json_body(value: &Value) -> Response<Body> {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], value.to_string()).into_response()
}

pub(super) async fn post(
    Extracted(state): Extracted<Arc<State>>,
    guest: Guest,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let identity = match Box::pin(state.let_in(&guest, &parts.headers)).await {
        Ok(identity) => identity,
        Err(answer) => return answer,
    };
    let body = match to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(error) => {
            let error = error.into_inner();
            let is_too_long = !error.is::<hyper::Error>() && !error.is::<axum::Error>();
            let (status, why) = match is_too_long {
                true => (
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body has at most {BODY_BYTES_MAX} bytes"),
                ),
                false => (
                    StatusCode::BAD_REQUEST,
                    "the body cannot be read".to_owned(),
                ),
            };
            return (status, problem(&why)).into_response();
        }
    };
    let events = match events(&body) {
        Ok(events) => events,
        Err(why) => return (StatusCode::BAD_REQUEST, problem(&why)).into_response(),
    };
    let storage = guest.caller(identity).storage(&state.config.keyspace);
    let mut told = 0;
    for (event, value) in events {
        let mut keys = event.keys().into_iter();
        let Some(first) = keys.next() else {
            continue;
        };
        let batch = Batch::new().signal(first.clone(), value.to_string());
        // The place that a node leaves has to be one of the teller's, too. Nothing is told there.
        let batch = keys
            .filter(|key| *key != first)
            .fold(batch, |batch, key| batch.signal(key, ""));
        if let Err(error) = storage.commit(batch, CommitOptions::labelled(LABEL)).await {
            let why = format!("{error}; {told} events were told before");
            return (status(&error), problem(&why)).into_response();
        }
        told += 1;
    }
    json_body(&json!({ "told": told }))
}

fn events(body: &[u8]) -> Result<Vec<(Event, Value)>, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let values = match value {
        Value::Array(values) if values.len() > EVENTS_MAX => {
            return Err(format!(
                "a list has at most {EVENTS_MAX} events, this has {}",
                values.len()
            ));
        }
        Value::Array(values) => values,
        value => vec![value],
    };
    let event = |(place, value): (usize, Value)| {
        let event = Event::told(value.clone());
        let event = event.map_err(|why| format!("event {place}: {why}"))?;
        Ok((event, value))
    };
    values.into_iter().enumerate().map(event).collect()
}

fn status(error: &StorageError) -> StatusCode {
    match error {
        StorageError::AccessDenied { .. } => StatusCode::FORBIDDEN,
        StorageError::LimitExceeded { .. } | StorageError::InvalidArgument { .. } => {
            StatusCode::BAD_REQUEST
        }
        StorageError::QuotaExceeded { .. } => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
