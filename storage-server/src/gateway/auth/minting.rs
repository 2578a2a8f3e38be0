//! Minting tokens, for the routes and for gateways whose protocols have tokens of their own.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use storage_protocol::{Batch, CommitOptions, Entry, Lifetime, StorageError, StorageExt};

use super::audited::begin;
use super::{Caller, Problem, system};
use crate::audit;
use crate::auth::rules::Rule;
use crate::auth::system::{TokenRecord, User, token_key, user_key};
use crate::auth::tokens::{Claims, TokenError, UnixSeconds};
use crate::auth::{AccessControl, Proof, TOKEN_LIFE_MAX, now};
use crate::engine::SessionStorage;

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

/// A token that is asked for.
#[derive(Clone, Debug)]
pub struct TokenWish {
    /// For how long it is to be good, in whole seconds: 1 s to 400 days, and no longer than what whoever asks is here by.
    pub ttl: Duration,
    /// What it is called where tokens are listed; at most 256 bytes. It does nothing else.
    pub name: Option<String>,
    /// What it may do of what whoever asks may; the principal of these rules is `*`. At most 100; none: all of it.
    pub grants: Vec<Rule>,
    /// In a form of 109 bytes, for clients that take no longer ones, in place of a JWT of about 300. It is as good.
    pub short: bool,
}

/// A token that was minted.
#[derive(Clone)]
#[non_exhaustive]
pub struct Minted {
    /// The token itself, a secret.
    pub token: String,
    /// Its id, by which it is listed and revoked; no secret.
    pub id: String,
    /// Whose it is.
    pub principal: String,
    /// From when on it is good for nothing, in seconds since 1970.
    pub expires: u64,
}

impl std::fmt::Debug for Minted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Minted")
            .field("id", &self.id)
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

/// Why no token is minted. The texts are complete by themselves, and safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// Whoever asks may have none.
    #[error("{0}")]
    NotAllowed(String),
    /// What is asked for makes no sense.
    #[error("{0}")]
    Wish(String),
    /// There are as many tokens as there may be.
    #[error("{0}")]
    Full(String),
    /// The server is starting.
    #[error("the server is starting")]
    Starting,
    /// It could not be stored; then it is good for nothing.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn denied(message: impl Into<String>) -> MintError {
    MintError::NotAllowed(message.into())
}

fn bad(message: impl Into<String>) -> MintError {
    MintError::Wish(message.into())
}

impl From<MintError> for Problem {
    fn from(error: MintError) -> Self {
        match error {
            MintError::NotAllowed(message) => Self::denied(message),
            MintError::Wish(message) => super::answer::bad(message),
            MintError::Full(message) => Self::new(hyper::StatusCode::CONFLICT, message),
            MintError::Starting => Self::for_now(error.to_string()),
            MintError::Storage(error) => error.into(),
        }
    }
}

impl Caller {
    /// A token for whoever asks, which may do no more than that one. It is good as soon as this returns, and told to the audit
    /// log.
    ///
    /// # Errors
    /// [`MintError`].
    pub async fn mint(&self, wish: TokenWish) -> Result<Minted, MintError> {
        let TokenWish {
            ttl,
            name,
            grants,
            short,
        } = wish;
        let shared = self.server.shared();
        let access = &shared.access;
        let identity = &self.identity;
        let let_in = access.check(identity);
        let_in.map_err(|why| denied(format!("{identity} is not let in any more: {why}")))?;
        let (mut until, parent, certificates) = origin_of(self)?;
        if ttl < Duration::from_secs(1) || ttl > TOKEN_LIFE_MAX {
            return Err(bad("ttl: a token is good for 1 s to 400 days"));
        }
        if name
            .as_ref()
            .is_some_and(|name| name.len() > NAME_BYTES_MAX)
        {
            return Err(bad(format!("name: it has at most {NAME_BYTES_MAX} bytes")));
        }
        if grants.len() > GRANTS_MAX {
            return Err(bad(format!("grants: there are at most {GRANTS_MAX}")));
        }
        let principal = identity.principal().as_str();
        until = until.min(now() + ttl.as_secs());
        let life = Duration::from_secs(until.saturating_sub(now()));
        let failed = |error: TokenError| bad(error.to_string());
        let claims = Claims::new(principal, UnixSeconds(now()), life).map_err(failed)?;
        let record = TokenRecord {
            principal: principal.to_owned(),
            name,
            grants,
            issued: now(),
            password_set: password_set(self),
            expires: claims.exp.0,
            parent,
            certificates,
        };
        let json = serde_json::to_vec(&record).map_err(|error| bad(error.to_string()))?;
        check_room(access, principal, json.len())?;
        let secrets = access.secrets().ok_or(MintError::Starting)?;
        let token = secrets.sign(&claims, short).await?;
        let id = claims.jti.as_str();
        let own = shared.own_session(&system()).storage();
        let batch = as_this_user(self, &*own).await?;
        let batch = batch.put_with(token_key(id), json, Lifetime::TimeToLive(life));
        let options = CommitOptions::labelled("token minted");
        let noted = begin(self, "mint token", &token_key(id));
        let committed = own.commit(batch, options).await;
        audit::committed(noted, &committed).await;
        access.wait_for(committed?.revision).await?;
        Ok(Minted {
            token,
            id: id.to_owned(),
            principal: principal.to_owned(),
            expires: record.expires,
        })
    }
}

/// By what whoever asks is here: until when that is good, the token that it is, and the certificates.
fn origin_of(caller: &Caller) -> Result<(u64, Option<String>, Vec<String>), MintError> {
    match caller.identity.proof() {
        Proof::Anonymous | Proof::Pending => Err(denied("who proved nothing mints no tokens")),
        Proof::Certificate { chain, until, .. } => {
            let chain = chain.iter().map(|certificate| STANDARD.encode(certificate));
            Ok((*until, None, chain.collect()))
        }
        Proof::Token(bearer) => {
            let access = &caller.server.shared().access;
            if access.generations(&bearer.id) >= GENERATIONS_MAX {
                return Err(denied(format!(
                    "a token of {GENERATIONS_MAX} that were minted with one another mints no more"
                )));
            }
            Ok((bearer.until, Some(bearer.id.clone()), Vec::new()))
        }
        Proof::Password { .. } | Proof::Gateway => Ok((u64::MAX, None, Vec::new())),
    }
}

/// What is committed only if the user who asks is still let in then: a token that came behind the end of all others of its
/// user would be good again with the user.
async fn as_this_user(caller: &Caller, own: &dyn SessionStorage) -> Result<Batch, MintError> {
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
        None => Err(denied(format!(
            "{principal} is not let in any more: the user was put out or given another password meanwhile"
        ))),
    }
}

/// Whether there is room for a token with a record of this length. Those that are minted at the same time may go beyond
/// by what they are.
fn check_room(access: &AccessControl, principal: &str, bytes: usize) -> Result<(), MintError> {
    if bytes > RECORD_BYTES_MAX {
        return Err(bad(format!(
            "the token's record, with its name, its grants and the certificates that it is minted with, has {bytes} bytes; \
             allowed are {RECORD_BYTES_MAX}: ask for fewer grants, or for shorter prefixes"
        )));
    }
    let full = |message: String| Err(MintError::Full(message));
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

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use hyper::StatusCode;
    use serde_json::json;

    use super::*;
    use crate::audit::Audit;
    use crate::auth::Configured;

    fn refused(access: &AccessControl, principal: &str, bytes: usize) -> StatusCode {
        let problem = Problem::from(check_room(access, principal, bytes).unwrap_err());
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
