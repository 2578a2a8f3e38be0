//! Users, tokens, access rules and quotas over HTTP: `/-/auth/...`, beside the storage gateway. Bodies are JSON, both ways.
//!
//! | request | does |
//! | --- | --- |
//! | `GET whoami` | says who asks, and by what that was found out |
//! | `GET explain?principal=&keyspace=&key=&permission=` | whether that is allowed, and by which rule; of others for administrators. The key may have any bytes, as `%ff` |
//! | `GET rules` | all rules and roles, and what is odd about them; for administrators |
//! | `PUT`, `DELETE rules/NAME`, `roles/NAME` | one of those that are stored; `?force=true`: also if nobody could change the rules afterwards, or everybody could |
//! | `GET quotas` | all quotas, what is odd about them, and what is used where one is for a single keyspace; for administrators |
//! | `PUT`, `DELETE quotas/NAME` | one of those that are stored |
//! | `GET usage?keyspace=` | what a keyspace holds, and what it may have by all quotas together; for administrators |
//! | `GET users`; `PUT`, `DELETE users/NAME` | users; `"new": true` adds one, and without it there must be one; one may set its own password, all else is for administrators; `?force=true` as above |
//! | `POST tokens` | mints one: of whoever asks, and never wider than that |
//! | `GET tokens`; `DELETE tokens/ID` | those of whoever asks; all, for administrators |
//! | `DELETE tokens` | ends all of everybody, with their signing keys; for administrators |
//! | `POST keys` | signs with a new key from now on; for administrators |
//!
//! A body is sent as `application/json`, so that no form of a web page is one.
//!
//! An administrator is who has `admin` of the keyspace `system`. Nothing here decides that: records are written by the
//! storage of whoever asks, which refuses it.

mod answer;
mod audited;
mod minting;
mod quotas;
mod records;
mod tokens;
mod users;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, RawQuery, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use storage_protocol::Keyspace;

use self::answer::{Answer, Problem, bad, ok};
pub use self::minting::{MintError, Minted, TokenWish};
pub use self::users::UserError;
use super::{Caller, Gateway, ServerHandle};
use crate::auth::rules::{Permission, SYSTEM};
use crate::auth::{Proof, Secrets};

/// The longest body, in bytes.
const BODY_BYTES_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(crate) struct Auth;

impl Gateway for Auth {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn routes(&self, _: &ServerHandle) -> Router {
        let routes = Router::new()
            .route("/whoami", get(whoami))
            .route("/explain", get(explain))
            .route("/rules", get(records::rules))
            .route(
                "/rules/{name}",
                put(records::put_rule).delete(records::remove_rule),
            )
            .route(
                "/roles/{name}",
                put(records::put_role).delete(records::remove_role),
            )
            .route("/quotas", get(quotas::list))
            .route("/quotas/{name}", put(quotas::put).delete(quotas::delete))
            .route("/usage", get(quotas::usage))
            .route("/users", get(records::users))
            .route(
                "/users/{name}",
                put(records::put_user).delete(records::remove_user),
            )
            .route(
                "/tokens",
                get(tokens::list)
                    .post(tokens::mint)
                    .delete(tokens::revoke_all),
            )
            .route("/tokens/{id}", axum::routing::delete(tokens::revoke))
            .route("/keys", post(tokens::rotate))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn(check_content_type))
            .route_layer(from_fn(audited::tell));
        Router::new().nest("/-/auth", routes)
    }
}

/// A page of another site can have a browser send texts and forms without asking, with the login that the browser keeps
/// for this server; JSON it cannot. That its `Origin` is refused too does not depend on this.
async fn check_content_type(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_empty = match headers.get(CONTENT_LENGTH) {
        Some(length) => length == "0",
        None => !headers.contains_key(TRANSFER_ENCODING),
    };
    if request.method().is_safe() || is_empty || is_json(headers) {
        return next.run(request).await;
    }
    let message =
        "the body is JSON, and a request with it has the header Content-Type: application/json";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response()
}

/// Without regard to parameters such as `charset`.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = value.and_then(|value| value.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn system() -> Keyspace {
    Keyspace::new(SYSTEM).expect("the name follows the rule")
}

/// Signing keys and passwords. They are there before a listener is.
fn secrets(caller: &Caller) -> Result<&Secrets, Problem> {
    let secrets = caller.server.shared().access.secrets();
    secrets.ok_or_else(|| Problem::for_now("the server is starting"))
}

/// That whoever asks is still let in: a body may have been long on its way.
fn check_let_in(caller: &Caller) -> Result<(), Problem> {
    let access = &caller.server.shared().access;
    access.check(&caller.identity).map_err(|why| {
        let who = &caller.identity;
        Problem::denied(format!("{who} is not let in any more: {why}"))
    })
}

/// Whether whoever asks may administer the rules.
fn is_administrator(caller: &Caller) -> bool {
    let access = &caller.server.shared().access;
    access.grants(&caller.identity, &system()).admin
}

fn check_administrator(caller: &Caller) -> Result<(), Problem> {
    check_let_in(caller)?;
    let access = &caller.server.shared().access;
    match is_administrator(caller) {
        true => Ok(()),
        // Its bearer may be one with another credential.
        false if access.token_denies(&caller.identity, &system(), |grants| grants.admin) => {
            Err(Problem::denied(format!(
                "{} is no administrator with this token, whose grants do not allow it: that needs \"admin\" of the keyspace \
                 {SYSTEM}",
                caller.identity
            )))
        }
        false => Err(Problem::denied(format!(
            "{} is no administrator: that needs \"admin\" of the keyspace {SYSTEM}",
            caller.identity
        ))),
    }
}

async fn whoami(caller: Caller) -> Answer {
    ok(&json!({
        "principal": caller.identity.principal().as_str(),
        "by": caller.identity.proof().name(),
        "expires": caller.identity.until(),
        "administrator": is_administrator(&caller),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    principal: Option<String>,
    keyspace: String,
    /// Any bytes: see [`key_of`].
    #[serde(default, rename = "key")]
    _key: IgnoredAny,
    permission: Permission,
}

/// The key of a question: the bytes that its escapes (`%ff`) stand for, which need not be UTF-8.
fn key_of(query: &str) -> Vec<u8> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let key = fields.find(|(name, _)| *name == "key");
    let key = key.map_or("", |(_, value)| value).replace('+', " ");
    percent_decode_str(&key).collect()
}

async fn explain(
    caller: Caller,
    RawQuery(query): RawQuery,
    question: Result<Query<Question>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(question) = question.map_err(|error| bad(error.body_text()))?;
    check_let_in(&caller)?;
    if let Proof::Token(_) = caller.identity.proof() {
        // What it may do itself is less than its principal, whose rules are none of its business.
        return Err(Problem::denied("a token is told of no rules"));
    }
    let own = caller.identity.principal().as_str();
    let principal = question.principal.as_deref().unwrap_or(own);
    if principal != own {
        check_administrator(&caller)?;
    }
    let keyspace = Keyspace::new(&question.keyspace).map_err(|error| bad(error.to_string()))?;
    let rules = caller.server.shared().access.rules();
    let key = key_of(&query.unwrap_or_default());
    let explained = rules.explain(principal, &keyspace, &key, question.permission);
    let (origin, rule) = explained.rule.unzip();
    ok(&json!({
        "allowed": explained.allowed,
        "origin": origin.map(|origin| origin.to_string()),
        "rule": rule,
        "reason": explained.reason,
    }))
}

#[cfg(test)]
mod tests {
    use hyper::header::RETRY_AFTER;

    use super::*;
    use crate::auth::Identity;
    use crate::testing::{MemoryEngine, server};

    /// Whoever asks a server that has not read its secrets yet.
    fn early() -> Caller {
        Caller {
            identity: Identity::anonymous(),
            address: ([127, 0, 0, 1], 1).into(),
            server: ServerHandle::new(&server(&MemoryEngine::new(), |_| {})),
        }
    }

    #[test]
    fn the_key_of_a_question_may_have_any_bytes() {
        for (query, key) in [
            ("keyspace=a&key=a%2Fb&permission=read", &b"a/b"[..]),
            ("key=%00%ff%C3%28", b"\0\xff\xc3("),
            ("key=a+b%2Bc%26", b"a b+c&"),
            ("keyspace=a", b""),
            ("key=", b""),
        ] {
            assert_eq!(key_of(query), key, "{query}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_starting_says_when_to_come_again() {
        let answered = secrets(&early()).map(drop).unwrap_err().into_response();
        assert_eq!(answered.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answered.headers()[RETRY_AFTER], "1");
    }
}
