//! The users, the workspace and the nodes that a server with `--demo` has, and tokens for these users.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extracted};
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use serde::Deserialize;
use std::time::Duration;
use storage_protocol::{Batch, CommitOptions, StorageError};
use zeroize::Zeroizing;

use super::State;
use crate::gateway::{Credential, Guest, ServerHandle, TokenWish};

/// Known to everybody, so only on loopback, and gone with the next start without `--demo`.
const PASSWORD: &str = "demo-7443";
const USERS: [&str; 3] = ["ana", "bob", "admin"];
/// Of a token that a demo asks for.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const RECORDS: [(&str, &str); 9] = [
    (
        "users/ana",
        r#"{"uuid":"u-ana","profile":"standard","roles":["team"]}"#,
    ),
    (
        "users/bob",
        r#"{"uuid":"u-bob","profile":"standard","roles":["team"]}"#,
    ),
    (
        "users/admin",
        r#"{"uuid":"u-admin","profile":"admin","roles":["team"]}"#,
    ),
    ("roles/team", r#"{"workspaces":{"ws-7":"rw"}}"#),
    (
        "workspaces/ws-7",
        r#"{"slug":"team","roots":["/data/team"]}"#,
    ),
    (
        "nodes/data/team/a.txt",
        r#"{"Uuid":"n-1","Type":"LEAF","Size":"1204","MTime":"1714800000","Etag":"e1","MetaStore":{"name":"a.txt"}}"#,
    ),
    ("node-ids/n-1", "/data/team/a.txt"),
    (
        "nodes/data/private.txt",
        r#"{"Uuid":"n-2","Type":"LEAF","Size":"7","MTime":"1714800000","Etag":"e2","MetaStore":{"name":"private.txt"}}"#,
    ),
    ("node-ids/n-2", "/data/private.txt"),
];

/// Makes what is missing, and says what it made.
pub(super) async fn make(state: &State, server: &ServerHandle) -> Result<Vec<String>, String> {
    let mut made = Vec::new();
    for name in USERS {
        if server.demo_user(name, PASSWORD).await? {
            made.push(format!("user {name} with the password {PASSWORD}"));
        }
    }
    let storage = server.own_storage(&state.config.keyspace);
    let mut records = 0;
    for (key, value) in RECORDS {
        let batch = Batch::new().check_absent(key).put(key, value);
        match storage
            .commit(batch, CommitOptions::labelled("create"))
            .await
        {
            Ok(_) => records += 1,
            Err(StorageError::CheckFailed { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    if records > 0 {
        made.push(format!(
            "workspace ws-7 (team) with ana, bob and admin, and nodes n-1 in it and n-2 outside, in the keyspace {}",
            state.config.keyspace
        ));
    }
    made.push("tokens for them: POST /workspace/demo-token?user=NAME, from loopback".to_owned());
    Ok(made)
}

#[derive(Deserialize)]
pub(super) struct Wanted {
    user: String,
}

/// `POST /workspace/demo-token?user=NAME`: a token for an example user, as text.
pub(super) async fn token(
    Extracted(state): Extracted<Arc<State>>,
    guest: Guest,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response<Body> {
    let refuse = |status, why: &str| (status, format!("{why}\n")).into_response();
    if !state.is_demo() || !guest.address().ip().is_loopback() {
        let why = "demo tokens are for servers with --demo, from loopback";
        return refuse(StatusCode::NOT_FOUND, why);
    }
    let wanted = wanted.map(|Query(wanted)| wanted.user).unwrap_or_default();
    if !USERS.contains(&wanted.as_str()) {
        let why = format!("user: one of {}", USERS.join(", "));
        return refuse(StatusCode::BAD_REQUEST, &why);
    }
    let shown = Credential::Password {
        user: wanted,
        password: Zeroizing::new(PASSWORD.to_owned()),
    };
    let identity = match Box::pin(guest.let_in(Some(&shown))).await {
        Ok(identity) => identity,
        Err(why) => return refuse(StatusCode::FORBIDDEN, &why.reason),
    };
    let wish = TokenWish {
        ttl: LIFE,
        name: Some("workspace demo".to_owned()),
        grants: Vec::new(),
        short: false,
    };
    match Box::pin(guest.caller(identity).mint(wish)).await {
        Ok(minted) => minted.token.into_response(),
        Err(error) => refuse(StatusCode::CONFLICT, &error.to_string()),
    }
}
