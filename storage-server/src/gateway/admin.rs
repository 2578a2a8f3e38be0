//! Health and metrics, for probes and collectors: plain HTTP GET, no session.
//!
//! `/healthz`: the process answers. `/readyz`: it takes requests and writes, else 503 with the reason. `/metrics`:
//! Prometheus text. Nothing here tells keys, values or names of peers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::http::{self, Body};
use crate::shared::{Phase, Shared};

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer to a request, if its path is one of these.
pub(crate) fn answer<B>(shared: &Shared, request: &Request<B>) -> Option<Response<Body>> {
    let answer: fn(&Shared) -> Response<Body> = match request.uri().path() {
        "/healthz" => |_| http::text(StatusCode::OK, "alive\n"),
        "/readyz" => readiness,
        "/metrics" => metrics,
        _ => return None,
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Some(http::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"));
    }
    Some(answer(shared))
}

fn readiness(shared: &Shared) -> Response<Body> {
    let unready = |reason: &str| {
        http::text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        )
    };
    match shared.phase() {
        Phase::Starting => unready("the server is starting"),
        Phase::Draining => unready("the server shuts down"),
        Phase::Serving => match shared.engine.check_writable() {
            Ok(()) => http::text(StatusCode::OK, "ready\n"),
            Err(reason) => unready(&reason),
        },
    }
}

fn metrics(shared: &Shared) -> Response<Body> {
    let mut out = String::with_capacity(8 * 1024);
    let budgets = [
        ("bytes_in_flight", shared.budgets.in_flight.used()),
        ("partial_messages", shared.budgets.partial.used()),
        ("outbox", shared.budgets.outbox.used()),
        ("watches", shared.budgets.watches.used()),
    ];
    shared.metrics.write(&mut out, &budgets);
    shared.engine.write_metrics(&mut out);
    let mut response = Response::new(Full::new(Bytes::from(out)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(PROMETHEUS));
    response
}
