//! Tokens: minted, listed, revoked.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Path;
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::Key;

use super::answer::{Answer, Problem, answer, bad, done, ok, parse};
use super::audited::begin;
use super::{
    Caller, Minted, TokenWish, check_administrator, check_let_in, is_administrator, secrets, system,
};
use crate::audit;
use crate::auth::Proof;
use crate::auth::rules::Rule;
use crate::auth::system::{TokenRecord, token_key};

/// Of a token that says nothing else.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

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
    let grants = wanted.grants.into_iter().map(rule_of);
    let wish = TokenWish {
        ttl: wanted.ttl.unwrap_or(TOKEN_LIFE),
        name: wanted.name,
        grants: grants.collect::<Result<Vec<_>, _>>()?,
        short: false,
    };
    let minted = caller.mint(wish).await?;
    let Minted {
        token,
        id,
        principal,
        expires,
    } = minted;
    let minted = json!({ "id": id, "token": token, "principal": principal, "expires": expires });
    Ok(answer(StatusCode::CREATED, &minted))
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
    let all = is_administrator(&caller);
    let own = caller.identity.principal().as_str();
    let access = &caller.server.shared().access;
    // A token is of the principal that it was minted with a token of, so these are all that may be seen.
    let tokens = access.tokens((!all).then_some(own));
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
                // Of a user who was just disabled, say: its record is about to be removed.
                "ended": access.check_token(record).err().map(|why| why.to_string()),
            })
        })
        .collect();
    ok(&json!({ "tokens": shown }))
}

pub(super) async fn revoke(caller: Caller, Path(id): Path<String>) -> Answer {
    let shared = caller.server.shared();
    check_let_in(&caller)?;
    let found = shared.access.token(&id);
    let is_managed = |record: &Arc<TokenRecord>| may_manage(&caller, &id, record);
    if !found.as_ref().is_some_and(is_managed) {
        let is_token = matches!(caller.identity.proof(), Proof::Token(_));
        if is_administrator(&caller) && !is_token {
            let message = "there is no such token: it was revoked, is over, or never was";
            return Err(Problem::new(StatusCode::NOT_FOUND, message));
        }
        // The same whether there is none or it is another's.
        let message = "there is no such token of yours";
        return Err(Problem::denied_as(StatusCode::NOT_FOUND, message));
    }
    // Those that were minted with it are good for nothing then.
    let access = &shared.access;
    let all = access.tokens(found.as_ref().map(|record| record.principal.as_str()));
    let minted = all.into_iter().map(|(other, _)| other);
    let minted = minted.filter(|other| *other != id && access.is_of(other, &id));
    let ids: Vec<String> = [id.clone()].into_iter().chain(minted).collect();
    let storage = shared.own_session(&system()).storage();
    // It is the id of one that there is.
    let noted = begin(&caller, "revoke token", &token_key(&id));
    let removed = access.remove_tokens(&*storage, &ids, "token revoked").await;
    audit::committed(noted, &removed).await;
    removed?;
    done()
}

/// Ends all tokens of everybody: after a backup was restored, which has those again that were revoked since, or when
/// signing keys may have been read.
pub(super) async fn revoke_all(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    let shared = caller.server.shared();
    let access = &shared.access;
    // First the keys: what is minted or forged meanwhile with those of before lets nobody in, whatever records are left.
    let secrets = secrets(&caller)?;
    let noted = begin(&caller, "revoke all tokens", &Key::from_static(b"keys"));
    let replaced = secrets.replace().await;
    audit::done(noted, &replaced).await;
    replaced?;
    let all = access.tokens(None);
    let ids: Vec<String> = all.into_iter().map(|(id, _)| id).collect();
    let storage = shared.own_session(&system()).storage();
    let who = caller.identity.to_string();
    let label = format!(
        "all tokens revoked, by {}",
        &who[..who.floor_char_boundary(200)]
    );
    access.remove_tokens(&*storage, &ids, &label).await?;
    tracing::warn!(principal = %caller.identity, tokens = ids.len(), "all tokens were revoked");
    ok(&json!({ "revoked": ids.len() }))
}

pub(super) async fn rotate(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    let secrets = secrets(&caller)?;
    let noted = begin(&caller, "rotate keys", &Key::from_static(b"keys"));
    let rotated = secrets.rotate().await;
    audit::done(noted, &rotated).await;
    rotated?;
    done()
}
