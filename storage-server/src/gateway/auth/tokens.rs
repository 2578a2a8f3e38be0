//! Tokens: minted, listed, revoked.

use std::time::Duration;

use axum::extract::Path;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions, Lifetime};

use super::answer::{Answer, Problem, answer, bad, done, ok, parse};
use super::{Caller, check_administrator, check_let_in, is_administrator, secrets, system};
use crate::auth::rules::Rule;
use crate::auth::system::{TokenRecord, token_key};
use crate::auth::tokens::{Claims, UnixSeconds};
use crate::auth::{Proof, TOKEN_LIFE_MAX, now};

/// Of a token that says nothing else.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// The longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The most tokens that were minted one with the other.
const GENERATIONS_MAX: usize = 8;
/// The most rules of a token.
const GRANTS_MAX: usize = 100;
/// The most tokens of one principal that are good at a time.
const TOKENS_MAX: usize = 1000;

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// For how long it is to be good: "15m", "12h".
    #[serde(default, with = "humantime_or_none")]
    ttl: Option<Duration>,
    #[serde(default)]
    name: Option<String>,
    /// As rules without a principal.
    #[serde(default)]
    grants: Vec<serde_json::Map<String, Value>>,
}

mod humantime_or_none {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let parse = |text: String| {
            humantime::parse_duration(&text).map_err(|error| {
                D::Error::custom(format!("{text:?} is no duration such as \"15m\": {error}"))
            })
        };
        text.map(parse).transpose()
    }
}

/// A grant of a token is a rule for its bearer, whoever that is.
fn rule_of(mut grant: serde_json::Map<String, Value>) -> Result<Rule, Problem> {
    if grant.contains_key("principal") {
        return Err(bad(
            "a grant of a token names no principal: it is for the token's bearer",
        ));
    }
    grant.insert("principal".to_owned(), Value::from("*"));
    let json = Value::Object(grant).to_string();
    Rule::from_json(json.as_bytes()).map_err(|error| bad(format!("grants: {error}")))
}

pub(super) async fn mint(caller: Caller, body: Bytes) -> Answer {
    check_let_in(&caller)?;
    let wanted: Wanted = parse(&body)?;
    let identity = &caller.identity;
    let (mut until, parent, certificates) = match identity.proof() {
        Proof::Anonymous | Proof::Pending => {
            return Err(Problem::denied("who proved nothing mints no tokens"));
        }
        Proof::Certificate { chain, until } => {
            let chain = chain.iter().map(|certificate| STANDARD.encode(certificate));
            (*until, None, chain.collect())
        }
        Proof::Token(bearer) => {
            let access = &caller.server.shared().access;
            if access.generations(&bearer.id) >= GENERATIONS_MAX {
                return Err(Problem::denied(format!(
                    "a token of {GENERATIONS_MAX} that were minted with one another mints no more"
                )));
            }
            (bearer.until, Some(bearer.id.clone()), Vec::new())
        }
        Proof::Password { .. } | Proof::Gateway => (u64::MAX, None, Vec::new()),
    };
    let ttl = wanted.ttl.unwrap_or(TOKEN_LIFE);
    if ttl < Duration::from_secs(1) || ttl > TOKEN_LIFE_MAX {
        return Err(bad("ttl: a token is good for 1 s to 400 days"));
    }
    let name = wanted.name;
    if name
        .as_ref()
        .is_some_and(|name| name.len() > NAME_BYTES_MAX)
    {
        return Err(bad(format!("name: it has at most {NAME_BYTES_MAX} bytes")));
    }
    if wanted.grants.len() > GRANTS_MAX {
        return Err(bad(format!("grants: there are at most {GRANTS_MAX}")));
    }
    let grants = wanted.grants.into_iter().map(rule_of);
    let grants = grants.collect::<Result<Vec<_>, _>>()?;
    let shared = caller.server.shared();
    let access = &shared.access;
    let own = access.all_tokens();
    let principal = identity.principal().as_str();
    let own = own
        .iter()
        .filter(|(_, record)| record.principal == principal);
    if own.count() >= TOKENS_MAX {
        let message = format!("{principal} has {TOKENS_MAX} tokens already: revoke some");
        return Err(Problem::new(StatusCode::CONFLICT, message));
    }
    until = until.min(now() + ttl.as_secs());
    let life = Duration::from_secs(until.saturating_sub(now()));
    let failed = |error: crate::auth::tokens::TokenError| bad(error.to_string());
    let claims = Claims::new(principal, UnixSeconds(now()), life).map_err(failed)?;
    let token = secrets(&caller)?.sign(&claims).await?;
    let record = TokenRecord {
        principal: principal.to_owned(),
        name,
        grants,
        issued: now(),
        password_set: password_set(&caller),
        expires: claims.exp.0,
        parent,
        certificates,
    };
    let json = serde_json::to_vec(&record).map_err(|error| bad(error.to_string()))?;
    let id = claims.jti.as_str();
    let lifetime = Lifetime::TimeToLive(life);
    let batch = Batch::new().put_with(token_key(id), json, lifetime);
    let options = CommitOptions {
        label: Some("token minted".to_owned()),
        ..CommitOptions::default()
    };
    let position = shared
        .own_session(&system())
        .storage()
        .commit(batch, options)
        .await?;
    access.wait_for(position.revision).await?;
    let minted =
        json!({ "id": id, "token": token, "principal": principal, "expires": record.expires });
    Ok(answer(StatusCode::CREATED, &minted))
}

/// The password by which, in the end, a user is here: of what was shown, not of what is stored by now.
fn password_set(caller: &Caller) -> Option<u64> {
    match caller.identity.proof() {
        Proof::Password { password_set, .. } => Some(*password_set),
        Proof::Token(bearer) => {
            let access = &caller.server.shared().access;
            access.token(&bearer.id)?.password_set
        }
        _ => None,
    }
}

/// Whether whoever asks may see and revoke a token: its own; with a token only that, and those minted with it.
fn may_manage(caller: &Caller, id: &str, record: &TokenRecord) -> bool {
    match caller.identity.proof() {
        Proof::Token(bearer) => caller.server.shared().access.is_of(id, &bearer.id),
        _ => record.principal == caller.identity.principal().as_str() || is_administrator(caller),
    }
}

pub(super) async fn list(caller: Caller) -> Answer {
    check_let_in(&caller)?;
    let tokens = caller.server.shared().access.all_tokens();
    let mut shown: Vec<_> = tokens
        .iter()
        .filter(|(id, record)| may_manage(&caller, id, record))
        .collect();
    shown.sort_by(|(a, one), (b, other)| (one.issued, a).cmp(&(other.issued, b)));
    let shown: Vec<Value> = shown
        .into_iter()
        .map(|(id, record)| {
            json!({
                "id": id,
                "principal": record.principal,
                "name": record.name,
                "grants": record.grants,
                "issued": record.issued,
                "expires": record.expires,
                "parent": record.parent,
            })
        })
        .collect();
    ok(&json!({ "tokens": shown }))
}

pub(super) async fn revoke(caller: Caller, Path(id): Path<String>) -> Answer {
    let shared = caller.server.shared();
    check_let_in(&caller)?;
    let found = shared.access.token(&id);
    if !found.is_some_and(|record| may_manage(&caller, &id, &record)) {
        // The same whether there is none or it is another's.
        let message = "there is no such token of yours";
        return Err(Problem::new(StatusCode::NOT_FOUND, message));
    }
    let options = CommitOptions {
        label: Some("token revoked".to_owned()),
        ..CommitOptions::default()
    };
    let batch = Batch::new().remove(token_key(&id));
    let storage = shared.own_session(&system()).storage();
    let position = storage.commit(batch, options).await?;
    shared.access.wait_for(position.revision).await?;
    done()
}

pub(super) async fn rotate(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    secrets(&caller)?.rotate().await?;
    done()
}
