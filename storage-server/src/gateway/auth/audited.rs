//! What the routes tell the audit log: the acts that the server carries out for whoever asks, and what it refuses.
//!
//! What whoever asks writes to `system` itself is told by its [guard](crate::auth); here is the rest. Of a request nothing
//! is told that may be a secret: not its body, not its query, and of its path only names of rules, roles and users (behind
//! `tokens/` somebody may have put a token).

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use storage_protocol::{Batch, Key};

use super::{Caller, system};
use crate::audit::{Event, Noted, Outcome, Record};

/// Why a request was refused by the routes themselves: an extension of the answer.
#[derive(Clone, Debug)]
pub(super) struct DeniedBecause(pub(super) String);

/// The start of an act that the server carries out for whoever asks. `key`: the record that it is about.
pub(super) fn begin(caller: &Caller, operation: &'static str, key: &Key) -> Option<Noted> {
    let audit = &caller.server.shared().audit;
    audit.begin(Event::Admin, || {
        record(caller, Event::Admin, operation, Outcome::Allowed).keys(std::iter::once(key))
    })
}

/// The same of a commit to `system`.
pub(super) fn begin_commit(
    caller: &Caller,
    operation: &'static str,
    batch: &Batch,
) -> Option<Noted> {
    let audit = &caller.server.shared().audit;
    audit.begin(Event::Admin, || {
        record(caller, Event::Admin, operation, Outcome::Allowed).changes(batch)
    })
}

fn record(caller: &Caller, event: Event, operation: &'static str, outcome: Outcome) -> Record {
    let record = Record::new(event, operation, outcome);
    record.by(&caller.identity).keyspace(&system())
}

/// Around all routes: what they refuse, and who reads what.
pub(super) async fn tell(caller: Caller, request: Request, next: Next) -> Response<Body> {
    let audit = caller.server.shared().audit.clone();
    let is_read = request.method().is_safe();
    let is_told = audit.wants.denied || (is_read && audit.wants.read);
    if !is_told {
        return next.run(request).await;
    }
    let (place, named) = place_of(request.uri().path());
    let route = format!("{} /-/auth/{place}", request.method());
    let response = next.run(request).await;
    let with = |record: Record| {
        let record = record.route(route);
        match &named {
            Some(key) => record.keys(std::iter::once(key)),
            None => record,
        }
    };
    if let Some(DeniedBecause(why)) = response.extensions().get() {
        let record = record(&caller, Event::Denied, "request", Outcome::Denied);
        audit.put(with(record).reason(why));
    } else if is_read {
        let outcome = match response.status().is_success() {
            true => Outcome::Allowed,
            false => Outcome::Failed,
        };
        audit.put(with(record(&caller, Event::Read, "request", outcome)));
    }
    response
}

/// What a path is, as the routes have it, and the record of `system` that it names, unless that is a token's.
fn place_of(path: &str) -> (&'static str, Option<Key>) {
    let path = path.trim_start_matches("/-/auth").trim_start_matches('/');
    let (kind, name) = match path.split_once('/') {
        Some((kind, name)) => (kind, Some(name)),
        None => (path, None),
    };
    let key = |kind: &str| {
        let mut key = format!("{kind}/").into_bytes();
        key.extend(percent_encoding::percent_decode_str(name?));
        Some(Key::from(key))
    };
    match (kind, name) {
        ("whoami", None) => ("whoami", None),
        ("explain", None) => ("explain", None),
        ("rules", None) => ("rules", None),
        ("rules", Some(_)) => ("rules/{name}", key("access")),
        ("roles", Some(_)) => ("roles/{name}", key("roles")),
        ("users", None) => ("users", None),
        ("users", Some(_)) => ("users/{name}", key("users")),
        ("tokens", None) => ("tokens", None),
        ("tokens", Some(_)) => ("tokens/{id}", None),
        ("keys", None) => ("keys", None),
        _ => ("", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_by_its_route_and_names_no_token() {
        assert_eq!(place_of("/-/auth/rules").0, "rules");
        let rule = Key::from_static(b"access/a b");
        assert_eq!(place_of("/rules/a%20b"), ("rules/{name}", Some(rule)));
        assert_eq!(place_of("/tokens/a.b.c"), ("tokens/{id}", None));
        assert_eq!(place_of("/a.b.c"), ("", None));
    }
}
