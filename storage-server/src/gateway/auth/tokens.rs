//! Tokens: minted, listed, revoked.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Path;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions, Entry, Key, Lifetime, StorageExt};

use super::answer::{Answer, Problem, answer, bad, done, ok, parse};
use super::audited::begin;
use super::{Caller, check_administrator, check_let_in, is_administrator, secrets, system};
use crate::audit;
use crate::auth::rules::Rule;
use crate::auth::system::{TokenRecord, User, token_key, user_key};
use crate::auth::tokens::{Claims, UnixSeconds};
use crate::auth::{AccessControl, Proof, TOKEN_LIFE_MAX, now};
use crate::engine::SessionStorage;

/// Of a token that says nothing else.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
/// The longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// The most tokens that were minted one with the other.
const GENERATIONS_MAX: usize = 8;
/// The most rules of a token.
const GRANTS_MAX: usize = 100;
/// The longest record of a token, in bytes of JSON: its name, its grants, and the certificates that it was minted with.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// The most tokens of one principal at a time.
const TOKENS_MAX: usize = 1000;
/// The most bytes of the records of one principal: 1,000 tokens with a certificate and some grants each.
const OWN_BYTES_MAX: usize = 4 << 20;
/// The most bytes of all records. They are kept in memory, where they take about twice that.
const ALL_BYTES_MAX: usize = 64 << 20;

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
        Proof::Certificate { chain, until, .. } => {
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
    let principal = identity.principal().as_str();
    until = until.min(now() + ttl.as_secs());
    let life = Duration::from_secs(until.saturating_sub(now()));
    let failed = |error: crate::auth::tokens::TokenError| bad(error.to_string());
    let claims = Claims::new(principal, UnixSeconds(now()), life).map_err(failed)?;
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
    check_room(access, principal, json.len())?;
    let token = secrets(&caller)?.sign(&claims).await?;
    let id = claims.jti.as_str();
    let lifetime = Lifetime::TimeToLive(life);
    let own = shared.own_session(&system()).storage();
    let batch = as_this_user(&caller, &*own).await?;
    let batch = batch.put_with(token_key(id), json, lifetime);
    let options = CommitOptions {
        label: Some("token minted".to_owned()),
        ..CommitOptions::default()
    };
    let noted = begin(&caller, "mint token", &token_key(id));
    let committed = own.commit(batch, options).await;
    audit::committed(noted, &committed).await;
    access.wait_for(committed?.revision).await?;
    let minted =
        json!({ "id": id, "token": token, "principal": principal, "expires": record.expires });
    Ok(answer(StatusCode::CREATED, &minted))
}

/// What is committed only if the user who asks is still let in then: a token that came behind the end of all others of its
/// user would be good again with the user.
async fn as_this_user(caller: &Caller, own: &dyn SessionStorage) -> Result<Batch, Problem> {
    let principal = caller.identity.principal().as_str();
    let name = principal.strip_prefix("user:");
    let Some((name, password_set)) = name.zip(password_set(caller)) else {
        return Ok(Batch::new());
    };
    let stored = own.get_one(user_key(name)).await?;
    let is_same = |entry: &Entry| {
        serde_json::from_slice::<User>(&entry.value)
            .is_ok_and(|user| !user.disabled && user.password_set == password_set)
    };
    match stored.filter(is_same) {
        Some(entry) => Ok(Batch::new().check_revision(user_key(name), entry.revision)),
        None => Err(Problem::denied(format!(
            "{principal} is not let in any more: the user was put out or given another password meanwhile"
        ))),
    }
}

/// Whether there is room for a token with a record of this length. Those that are minted at the same time may go beyond
/// by what they are.
fn check_room(access: &AccessControl, principal: &str, bytes: usize) -> Result<(), Problem> {
    if bytes > RECORD_BYTES_MAX {
        return Err(bad(format!(
            "the token's record, with its name, its grants and the certificates that it is minted with, has {bytes} bytes; \
             allowed are {RECORD_BYTES_MAX}: ask for fewer grants, or for shorter prefixes"
        )));
    }
    let full = |message: String| Err(Problem::new(StatusCode::CONFLICT, message));
    let (own, all) = access.token_usage(principal);
    if own.tokens >= TOKENS_MAX {
        return full(format!(
            "{principal} has {TOKENS_MAX} tokens already: revoke some"
        ));
    }
    if own.bytes + bytes > OWN_BYTES_MAX {
        return full(format!(
            "the records of the tokens of {principal} have {} bytes already, of {OWN_BYTES_MAX}: revoke some",
            own.bytes
        ));
    }
    if all.bytes + bytes > ALL_BYTES_MAX {
        return full(format!(
            "the records of all tokens have {} bytes already, of {ALL_BYTES_MAX}: an administrator has to revoke some",
            all.bytes
        ));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::audit::Audit;
    use crate::auth::Configured;

    fn refused(access: &AccessControl, principal: &str, bytes: usize) -> StatusCode {
        let problem = check_room(access, principal, bytes).unwrap_err();
        problem.into_response().status()
    }

    /// Tokens of this principal with records of about this length.
    fn minted(access: &AccessControl, principal: &str, tokens: usize, bytes: usize) {
        let name = "x".repeat(bytes);
        for n in 0..tokens {
            let json = json!({ "principal": principal, "name": name, "issued": 1, "expires": 2 });
            let (id, json) = (format!("{principal}/{n}"), json.to_string());
            access.keep_token(&id, json.as_bytes());
        }
    }

    #[test]
    fn tokens_are_bounded_each_of_one_principal_and_in_all() {
        let access = AccessControl::new(Configured::default(), Audit::off()).unwrap();
        check_room(&access, "cert:a", RECORD_BYTES_MAX).unwrap();
        assert_eq!(
            refused(&access, "cert:a", RECORD_BYTES_MAX + 1),
            StatusCode::BAD_REQUEST
        );
        minted(&access, "cert:many", TOKENS_MAX - 1, 1);
        check_room(&access, "cert:many", 100).unwrap();
        minted(&access, "cert:many", TOKENS_MAX, 1);
        assert_eq!(refused(&access, "cert:many", 100), StatusCode::CONFLICT);
        minted(&access, "cert:long", OWN_BYTES_MAX / 10_000, 10_000);
        assert_eq!(refused(&access, "cert:long", 10_000), StatusCode::CONFLICT);
        // The others are not concerned, until all together have too much.
        check_room(&access, "cert:a", 10_000).unwrap();
        for n in 0..ALL_BYTES_MAX / OWN_BYTES_MAX {
            minted(
                &access,
                &format!("user:{n}"),
                OWN_BYTES_MAX / 10_000,
                10_000,
            );
        }
        assert_eq!(refused(&access, "cert:a", 10_000), StatusCode::CONFLICT);
    }
}
