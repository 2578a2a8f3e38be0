//! The user and the object that a fresh server of this protocol has, for `serve --demo`.

use storage_protocol::{Batch, CommitOptions, StorageError};

use super::State;
use super::event::Action;
use crate::gateway::ServerHandle;

const USER: &str = "rocketskates";
const PASSWORD: &str = "r0cketsk8ts";
const GLOBAL: &str = r#"{"Validated":true,"Available":true,"Errors":[],"ReadOnly":false,"Meta":{"color":"blue","icon":"world","title":"Digital Rebar Provision"},"Name":"global","Description":"Global profile attached automatically to all machines.","Documentation":"","Params":{},"Profiles":[]}"#;

/// Makes what is missing, and says what it made.
pub(super) async fn make(state: &State, server: &ServerHandle) -> Result<Vec<String>, String> {
    let mut made = Vec::new();
    if server.demo_user(USER, PASSWORD).await? {
        made.push(format!("user {USER} with the password {PASSWORD}"));
    }
    let storage = server.own_storage(&state.config.keyspace);
    let batch = Batch::new()
        .check_absent("profiles/global")
        .put("profiles/global", GLOBAL);
    let options = CommitOptions::labelled(Action::Create.label());
    match storage.commit(batch, options).await {
        Ok(_) => made.push(format!(
            "object profiles/global in the keyspace {}",
            state.config.keyspace
        )),
        Err(StorageError::CheckFailed { .. }) => {}
        Err(error) => return Err(error.to_string()),
    }
    Ok(made)
}
