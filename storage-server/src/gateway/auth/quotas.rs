//! Quotas: records of the keyspace `system`, and what is used of them.

use axum::extract::{Path, Query};
use bytes::Bytes;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use storage_protocol::{Batch, Keyspace};

use super::answer::{Answer, Problem, bad, ok};
use super::records::{commit, from, remove};
use super::{Caller, check_administrator};
use crate::auth::quotas::{Quota, QuotaTarget};
use crate::auth::system::quota_key;

pub(super) async fn put(caller: Caller, Path(name): Path<String>, body: Bytes) -> Answer {
    // Read here for a clear answer; the commit reads it once more.
    let quota = Quota::from_json(&body).map_err(|error| bad(error.to_string()))?;
    let json = serde_json::to_vec(&quota).map_err(|error| bad(error.to_string()))?;
    let batch = Batch::new().put(quota_key(&name), json);
    commit(&caller, batch, "quota put", false).await
}

pub(super) async fn delete(caller: Caller, Path(name): Path<String>) -> Answer {
    let missing = format!("there is no stored quota {name}");
    let missing = Problem::new(StatusCode::NOT_FOUND, missing);
    remove(&caller, quota_key(&name), "quota removed", false, missing).await
}

/// All quotas, wherever they are from; with what is used, where one is for a single keyspace.
pub(super) async fn list(caller: Caller) -> Answer {
    check_administrator(&caller)?;
    let quotas = caller.server.shared().access.quotas();
    let mut listed = Vec::new();
    for (origin, quota) in quotas.quotas() {
        let mut entry = json!({ "from": from(origin), "quota": quota });
        if let QuotaTarget::Keyspace(pattern) = quota.target()
            && !pattern.has_wildcard()
            && let Ok(keyspace) = Keyspace::new(pattern.as_str())
            && let Some(entry) = entry.as_object_mut()
        {
            entry.insert("usage".to_owned(), usage_of(&caller, &keyspace)?);
        }
        listed.push(entry);
    }
    ok(&json!({ "quotas": listed, "warnings": quotas.warnings() }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    keyspace: String,
}

/// What a keyspace holds, and what it may have by all quotas together.
pub(super) async fn usage(
    caller: Caller,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(Which { keyspace }) = which.map_err(|error| bad(error.body_text()))?;
    check_administrator(&caller)?;
    let keyspace = Keyspace::new(&keyspace).map_err(|error| bad(error.to_string()))?;
    let limits = caller
        .server
        .shared()
        .access
        .quotas()
        .of_keyspace(&keyspace);
    let limits = limits
        .iter()
        .map(|(kind, limit)| (kind.name().to_owned(), Value::from(limit)));
    ok(&json!({
        "keyspace": keyspace.as_str(),
        "usage": usage_of(&caller, &keyspace)?,
        "limits": limits.collect::<serde_json::Map<_, _>>(),
    }))
}

fn usage_of(caller: &Caller, keyspace: &Keyspace) -> Result<Value, Problem> {
    let usage = caller.server.shared().usage(keyspace)?;
    Ok(json!({ "bytes": usage.bytes, "entries": usage.entries }))
}
