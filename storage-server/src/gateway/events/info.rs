//! `GET /info`: what this server is.

use std::env::consts::{ARCH, OS};

use serde_json::{Value, json};
use storage_protocol::StorageExt;

use super::answer::{Answer, Fault, ok};
use super::login::Visitor;

/// What this gateway has beyond what every server of this protocol has.
const FEATURES: [&str; 6] = [
    "api-v3",
    "event-ack",
    "event-original",
    "event-principal",
    "event-lists",
    "event-since",
];
/// Types that clients ask for by name. Any other can be used as well.
const TYPES: [&str; 18] = [
    "bootenvs",
    "jobs",
    "leases",
    "machines",
    "params",
    "plugin_providers",
    "plugins",
    "prefs",
    "profiles",
    "reservations",
    "roles",
    "stages",
    "subnets",
    "tasks",
    "templates",
    "tenants",
    "users",
    "workflows",
];
const ACTIONS: [&str; 5] = ["list", "get", "create", "update", "delete"];

pub(super) async fn info(visitor: Visitor) -> Answer {
    ok(text(&visitor).await?.to_string())
}

/// Also what comes with a token.
pub(super) async fn text(visitor: &Visitor) -> Result<Value, Fault> {
    let actions: Value = ACTIONS.iter().map(|name| (*name, json!({}))).collect();
    let mut scopes: serde_json::Map<String, Value> = TYPES
        .iter()
        .map(|name| ((*name).to_owned(), actions.clone()))
        .collect();
    scopes.insert("events".to_owned(), json!({ "post": {} }));
    // That of the store's history: two servers with one are copies.
    let id = visitor.storage.sync().await?.epoch.to_string();
    Ok(json!({
        "arch": ARCH,
        "os": OS,
        "version": concat!("v", env!("CARGO_PKG_VERSION")),
        "id": id,
        "local_id": id,
        "features": FEATURES,
        "scopes": scopes,
    }))
}
