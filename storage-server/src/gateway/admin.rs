//! Health and metrics, for probes and collectors: plain HTTP GET, no session.
//!
//! `/healthz`: the process answers. `/readyz`: it takes requests and writes, else 503 with the reason. `/metrics`:
//! Prometheus text. Nothing here tells keys, values or names of peers.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::http::{self, Body};
use crate::logging;
use crate::metrics::Outer;
use crate::net::certificate;
use crate::shared::{Phase, Shared};

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

type Answer = fn(&Shared) -> Response<Body>;

fn find(path: &str) -> Option<Answer> {
    match path {
        "/healthz" => Some(|_| http::text(StatusCode::OK, "alive\n")),
        "/readyz" => Some(readiness),
        "/metrics" => Some(metrics),
        _ => None,
    }
}

/// Whether this path is one of these.
pub(crate) fn serves(path: &str) -> bool {
    find(path).is_some()
}

/// The answer to a request for one of them.
pub(crate) fn answer<B>(shared: &Shared, request: &Request<B>) -> Response<Body> {
    let Some(answer) = find(request.uri().path()) else {
        return http::text(StatusCode::NOT_FOUND, "there is nothing here\n");
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return http::text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    answer(shared)
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
        Phase::Serving => {
            let certificate = shared.certificate.map_or(Ok(()), certificate::check);
            match certificate.and_then(|()| shared.engine.check_writable()) {
                Ok(()) => http::text(StatusCode::OK, "ready\n"),
                Err(reason) => unready(&reason),
            }
        }
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
    let outer = Outer {
        connections: shared.connections.open(),
        connections_max: shared.connections.max(),
        certificate_expires: shared.certificate.map(|validity| validity.until),
        log: logging::counts(),
    };
    shared.metrics.write(&mut out, &budgets, &outer);
    shared.engine.write_metrics(&mut out);
    let mut response = Response::new(Full::new(Bytes::from(out)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(PROMETHEUS));
    response
}
