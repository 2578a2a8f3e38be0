//! `--demo`: example users and objects, for a server on loopback alone.
//!
//! The passwords of example users are known to everybody, so these users are marked in the store. At a start without
//! `--demo` those that still have their example password are removed before anybody is let in.

use std::net::SocketAddr;
use std::sync::Arc;

use storage_protocol::{Batch, CommitOptions, Keyspace, Outcome, StorageError};

use super::StartError;
use crate::auth::rules::SYSTEM;
use crate::auth::system::user_key;
use crate::config::ServerConfig;
use crate::gateway::Gateway;
use crate::shared::{ServerHandle, Shared};

/// The first listener that others can reach.
pub(super) fn reachable(config: &ServerConfig) -> Option<SocketAddr> {
    let mut addresses = config.listeners.iter().map(|listener| listener.address);
    addresses.find(|address| !address.ip().is_loopback())
}

/// Makes the examples of the gateways that are served.
pub(super) async fn make(
    shared: &Arc<Shared>,
    gateways: &[Arc<dyn Gateway>],
) -> Result<(), StartError> {
    let server = ServerHandle::new(shared);
    let listeners = &shared.config.listeners;
    let named: Vec<_> = listeners.iter().flat_map(|one| &one.gateways).collect();
    for gateway in gateways {
        let name = gateway.name();
        if !named.iter().any(|named| *named == name) {
            continue;
        }
        let made = gateway.demo(&server).await;
        let made = made.map_err(|error| {
            StartError::Failed(format!("the examples of the gateway {name}: {error}"))
        })?;
        for line in made {
            tracing::warn!(gateway = name, "--demo: {line}");
        }
    }
    Ok(())
}

/// Removes the example users that an earlier start with `--demo` made.
pub(super) async fn end(shared: &Arc<Shared>) -> storage_protocol::Result<()> {
    let access = &shared.access;
    let Some(secrets) = access.secrets() else {
        return Ok(());
    };
    let system = Keyspace::new(SYSTEM).expect("the name follows the rule");
    let unreadable = |message| StorageError::Internal {
        message,
        outcome: Outcome::NotExecuted,
    };
    for (name, password) in secrets.demo_users().await? {
        let is_unchanged = secrets.has_no_other_password(&name, &password).await;
        if access.user(&name).is_some() && is_unchanged.map_err(unreadable)? {
            let own = shared.own_session(&system).storage();
            let batch = Batch::new().remove(user_key(&name));
            let options = CommitOptions::labelled("example user removed");
            access.commit_by_force(&*own, batch, options).await?;
            secrets.remove_password(&name).await?;
            tracing::warn!(
                user = name,
                "removed an example user of --demo: its password is known to everybody"
            );
        }
        secrets.forget_demo_user(&name).await?;
    }
    Ok(())
}
