//! Rules, roles and users: records of the keyspace `system`, written by the storage of whoever asks.

use axum::extract::{Path, Query};
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::{Batch, CommitOptions, Key, Storage, StorageExt, UnixMillis};
use zeroize::Zeroizing;

use super::answer::{Answer, Problem, bad, done, ok, parse};
use super::audited::{begin, begin_commit};
use super::{Caller, check_administrator, check_let_in, is_administrator, secrets, system};
use crate::audit;
use crate::auth::rules::{Origin, Role, RoleName, Rule};
use crate::auth::system::{User, check_user_name, role_key, rule_key, user_key};
use crate::auth::{Lockout, Principal, Proof};

/// How a record is written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Force {
    /// Although nobody could change the rules afterwards, or everybody could.
    force: bool,
}

pub(super) async fn commit(caller: &Caller, batch: Batch, label: &str, force: bool) -> Answer {
    let options = CommitOptions {
        label: Some(label.to_owned()),
        ..CommitOptions::default()
    };
    let access = &caller.server.shared().access;
    if force {
        check_administrator(caller)?;
        // The commit is the server's, so its label says whose it is.
        let who = caller.identity.to_string();
        let label = format!(
            "{label} by force, by {}",
            &who[..who.floor_char_boundary(200)]
        );
        let options = CommitOptions {
            label: Some(label),
            ..CommitOptions::default()
        };
        let own = caller.server.shared().own_session(&system()).storage();
        let noted = begin_commit(caller, "commit by force", &batch);
        let committed = access.commit_by_force(&*own, batch, options).await;
        audit::committed(noted, &committed).await;
        committed?;
    } else {
        caller.storage(&system()).commit(batch, options).await?;
    }
    done()
}

pub(super) async fn put_rule(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
    body: Bytes,
) -> Answer {
    // Read here for a clear answer; the commit reads it once more.
    let rule = Rule::from_json(&body).map_err(|error| bad(error.to_string()))?;
    let json = serde_json::to_vec(&rule).map_err(|error| bad(error.to_string()))?;
    let batch = Batch::new().put(rule_key(&name), json);
    commit(&caller, batch, "rule put", force).await
}

pub(super) async fn remove_rule(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Answer {
    let missing = "there is no such stored rule; those of the configuration have no name and are changed there";
    let missing = Problem::new(StatusCode::NOT_FOUND, missing);
    remove(&caller, rule_key(&name), "rule removed", force, missing).await
}

pub(super) async fn put_role(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
    body: Bytes,
) -> Answer {
    let name: RoleName = name.parse().map_err(|error| bad(format!("{error}")))?;
    let role = Role::from_json(&body).map_err(|error| bad(error.to_string()))?;
    let json = serde_json::to_vec(&role).map_err(|error| bad(error.to_string()))?;
    let batch = Batch::new().put(role_key(name.as_str()), json);
    commit(&caller, batch, "role put", force).await
}

pub(super) async fn remove_role(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Answer {
    let roles = caller.server.shared().access.roles();
    let is_configured = roles
        .iter()
        .any(|(origin, known, _)| matches!(origin, Origin::Config(_)) && known.as_str() == name);
    let missing = match is_configured {
        true => {
            let message =
                format!("the role {name} is one of the configuration and is changed there");
            Problem::new(StatusCode::CONFLICT, message)
        }
        false => Problem::new(StatusCode::NOT_FOUND, "there is no such role"),
    };
    remove(&caller, role_key(&name), "role removed", force, missing).await
}

/// `missing`: the answer where there is none.
pub(super) async fn remove(
    caller: &Caller,
    key: Key,
    label: &str,
    force: bool,
    missing: Problem,
) -> Answer {
    let storage = caller.storage(&system());
    if storage.get(std::slice::from_ref(&key)).await?.value == [None] {
        return Err(missing);
    }
    commit(caller, Batch::new().remove(key), label, force).await
}

pub(super) fn from(origin: &Origin) -> Value {
    match origin {
        Origin::Config(place) => json!({ "config": place }),
        Origin::Stored(name) => json!({ "name": name }),
    }
}

/// All rules and roles, each with where it is from: `{"config": PLACE}`, from 0, or `{"name": NAME}` of what is stored.
pub(super) async fn rules(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    let rules = caller.server.shared().access.rules();
    let listed = rules.rules();
    let listed: Vec<Value> = listed
        .map(|(origin, rule)| json!({ "from": from(origin), "rule": rule }))
        .collect();
    let roles = caller.server.shared().access.roles();
    let roles: Vec<Value> = roles
        .iter()
        .map(|(origin, name, role)| {
            json!({ "from": from(origin), "name": name, "members": role.members() })
        })
        .collect();
    let warnings: Vec<String> = rules.warnings().iter().map(ToString::to_string).collect();
    ok(&json!({ "rules": listed, "roles": roles, "warnings": warnings }))
}

pub(super) async fn users(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    let users = caller.server.shared().access.users();
    let users: Vec<Value> = users
        .iter()
        .map(|(name, user)| {
            json!({ "name": name, "disabled": user.disabled, "password_set": user.password_set })
        })
        .collect();
    ok(&json!({ "users": users }))
}

/// What is to be changed of a user, or what a new one is like.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    #[serde(default)]
    password: Option<Zeroizing<String>>,
    #[serde(default)]
    disabled: Option<bool>,
    /// It must not be there yet; otherwise it must.
    #[serde(default)]
    new: bool,
}

impl Change {
    /// A password: of one that is not there yet, or of one that is.
    pub(super) fn password(password: Zeroizing<String>, new: bool) -> Self {
        Self {
            password: Some(password),
            disabled: None,
            new,
        }
    }
}

/// By whose rights a user is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// Of whoever asks.
    Caller { force: bool },
    /// The server's own: a gateway has decided that whoever asks may have that.
    Server,
}

pub(super) async fn put_user(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
    body: Bytes,
) -> Answer {
    check_let_in(&caller)?;
    let change: Change = parse(&body)?;
    change_user(&caller, &name, change, Authority::Caller { force }).await
}

pub(super) async fn change_user(
    caller: &Caller,
    name: &str,
    change: Change,
    authority: Authority,
) -> Answer {
    check_user_name(name).map_err(bad)?;
    let principal = Principal::user(name).map_err(|error| bad(error.to_string()))?;
    let shared = caller.server.shared();
    let access = &shared.access;
    let key = user_key(name);
    let own = shared.own_session(&system()).storage();
    // The record as it is stored: it must still be so when it is written.
    let stored = own.get_one(key.clone()).await?;
    let known: Option<User> = match &stored {
        Some(entry) => Some(parse(&entry.value)?),
        None => None,
    };
    let is_server = authority == Authority::Server;
    let is_administrator = !is_server && is_administrator(caller);
    let may_alone = change.disabled.is_none() && !change.new && known.is_some();
    let may_alone = may_alone && caller.identity.may_change_password_of(&principal);
    if !is_server && !is_administrator && !may_alone {
        check_let_in(caller)?;
        let is_token = matches!(caller.identity.proof(), Proof::Token(_));
        if is_token && caller.identity.principal() == &principal && change.password.is_some() {
            return Err(Problem::denied(format!(
                "the password of {principal} is not set with a token: log in with the password"
            )));
        }
        check_administrator(caller)?;
    }
    match (&known, change.new) {
        (Some(_), true) => {
            let message = format!("there is a user {name} already");
            return Err(Problem::new(StatusCode::CONFLICT, message));
        }
        (None, false) => {
            let message = format!("there is no user {name}: one is added with \"new\": true");
            return Err(Problem::new(StatusCode::NOT_FOUND, message));
        }
        (None, true) if change.password.is_none() => {
            return Err(bad("a new user needs a password"));
        }
        _ => {}
    }
    let mut user = known.unwrap_or_default();
    user.disabled = change.disabled.unwrap_or(user.disabled);
    let mut hash = None;
    if let Some(password) = change.password {
        let hashed = access.logins().hash(password).await;
        hash = Some(hashed.map_err(|error| bad(error.to_string()))?);
        // It may have taken a while.
        check_let_in(caller)?;
        // Rising, so that what was let in before is told from what comes.
        user.password_set = UnixMillis::now().0.max(user.password_set + 1);
    }
    // Of two at once the second would leave its hash beside the record of the first, and nobody could log in.
    let secrets = secrets(caller)?;
    let _one = secrets.change_users().await;
    if own.get_one(key.clone()).await? != stored {
        let message = format!("the user {name} was changed meanwhile");
        return Err(Problem::new(StatusCode::CONFLICT, message));
    }
    let json = serde_json::to_vec(&user).map_err(|error| bad(error.to_string()))?;
    let batch = match stored {
        Some(entry) => Batch::new().check_revision(key.clone(), entry.revision),
        None => Batch::new().check_absent(key.clone()),
    };
    let batch = batch.put(key.clone(), json);
    let force = authority == Authority::Caller { force: true };
    let lockout = match force {
        true => Lockout::Forced,
        false => Lockout::Refused,
    };
    // A commit that is refused behind it would leave the user without a password that is good.
    access.check_records(&batch, lockout)?;
    if let Some(hash) = hash {
        let noted = begin(caller, "set password", &key);
        // First the hash: with the record of the one before nobody logs in by either.
        let set = secrets.set_password(name, user.password_set, &hash).await;
        audit::done(noted, &set).await;
        set?;
    }
    // One may set its own password, but not write to `system`: the server does it then.
    if is_administrator {
        return commit(caller, batch, "user put", force).await;
    }
    let label = match is_server {
        true => "user put",
        false => "password changed by its user",
    };
    let options = CommitOptions::labelled(label);
    let noted = begin_commit(caller, "commit", &batch);
    let committed = own.commit(batch, options).await;
    audit::committed(noted, &committed).await;
    access.wait_for(committed?.revision).await?;
    done()
}

pub(super) async fn remove_user(
    caller: Caller,
    Path(name): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Answer {
    check_administrator(&caller)?;
    let secrets = secrets(&caller)?;
    let _one = secrets.change_users().await;
    let missing = Problem::new(StatusCode::NOT_FOUND, "there is no such user");
    let removed = remove(&caller, user_key(&name), "user removed", force, missing).await;
    // Its hash goes with it, and one that is left of a removal which failed half-way: at this repetition of it, or at the
    // next start.
    if caller.server.shared().access.user(&name).is_none() {
        secrets.remove_password(&name).await?;
    }
    removed
}
