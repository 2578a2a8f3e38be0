//! Health and metrics, for probes and collectors: plain HTTP GET, no session.
//!
//! `/healthz`: the process answers. `/readyz`: it takes requests and writes, else 503 with the reason. `/metrics`:
//! Prometheus text. Nothing here shows keys, values or names of peers.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;

use super::{Gateway, ServerHandle};
use crate::metrics::encoded;
use crate::shared::{Phase, Shared};

/// The content type of what [`encoded`] returns.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// See the module.
#[derive(Debug)]
pub(crate) struct Admin;

impl Gateway for Admin {
    fn name(&self) -> &'static str {
        "admin"
    }

    fn routes(&self, server: &ServerHandle) -> Router {
        Router::new()
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(readiness))
            .route("/metrics", get(metrics))
            .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "GET only\n"))
            .with_state(server.shared().clone())
    }
}

async fn readiness(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    match check_ready(&shared) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => {
            let text = format!("not ready: {reason}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

fn check_ready(shared: &Shared) -> Result<(), String> {
    match shared.phase() {
        Phase::Starting => return Err("the server is starting".to_owned()),
        Phase::Draining => return Err("the server shuts down".to_owned()),
        Phase::Serving => {}
    }
    shared.certificates.check()?;
    shared.check_writable()?;
    shared.access.check_followed()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, PROMETHEUS)], encoded(&shared.registry))
}
