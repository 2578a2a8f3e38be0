//! The access rules at the start: nobody is let in before those that are stored are known.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use storage_protocol::{Batch, CommitOptions, Keyspace, StorageError, StorageExt};

use super::{HowToStart, StartError};
use crate::audit::{self, Event, Outcome, Record};
use crate::auth::rules::{Rule, SECRETS, SYSTEM};
use crate::auth::system::rule_key;
use crate::auth::{Principal, Secrets};
use crate::shared::Shared;

/// The stored rule of [`ServerBuilder::grant_admin`](super::ServerBuilder::grant_admin).
const GRANT_ADMIN: &str = "grant-admin";

/// How long a start waits for the access rules that are stored.
pub(super) const RULES_PATIENCE: Duration = Duration::from_secs(60);

/// [`follow_access`], unless the server is to stop before, or it takes too long.
pub(super) async fn follow_access_in_time(
    shared: &Arc<Shared>,
    start: &HowToStart,
    patience: Duration,
) -> Result<(), StartError> {
    let following = async {
        follow_access(shared).await?;
        if let Some(principal) = &start.grant_admin {
            grant_admin(shared, principal).await?;
        }
        // Behind what may just have changed it.
        shared.access.tell_who_administers();
        Ok::<_, StorageError>(())
    };
    let following = tokio::time::timeout(patience, following);
    match start.stop.run_until_cancelled(following).await {
        None => Err(StartError::Stopped),
        Some(Ok(followed)) => followed.map_err(|error| StartError::AccessRules(error.to_string())),
        Some(Err(_)) => Err(StartError::AccessRules(format!(
            "the keyspace {SYSTEM} tells nothing within {}; see the log",
            humantime::format_duration(patience)
        ))),
    }
}

/// Begins to follow the access rules; those that are stored are known at the return.
pub(crate) async fn follow_access(shared: &Arc<Shared>) -> storage_protocol::Result<()> {
    let secrets = Keyspace::new(SECRETS).expect("the name follows the rule");
    let secrets = shared.own_session(&secrets).storage();
    shared.access.set_secrets(Secrets::open(secrets).await?);
    let system = Keyspace::new(SYSTEM).expect("the name follows the rule");
    let storage = shared.own_session(&system).storage();
    shared.start_following(&storage);
    shared.access.loaded().await;
    // Before anybody is there who adds users.
    if let Some(secrets) = shared.access.secrets() {
        let is_user = |name: &str| shared.access.user(name).is_some();
        secrets.remove_orphans(is_user).await?;
    }
    shared.end_tokens_of_ended_certificates().await
}

/// Makes a principal an administrator, unless it is one.
async fn grant_admin(shared: &Arc<Shared>, principal: &Principal) -> storage_protocol::Result<()> {
    let access = &shared.access;
    let system = Keyspace::new(SYSTEM).expect("the name follows the rule");
    if access.rules().grants(principal.as_str(), &system).admin {
        tracing::warn!(%principal, "--grant-admin: it is an administrator already, nothing was changed");
        return Ok(());
    }
    let rule = json!({ "principal": principal.as_str(), "keyspace": SYSTEM, "allow": ["admin"] });
    let rule = rule.to_string();
    Rule::from_json(rule.as_bytes()).map_err(|error| StorageError::invalid(error.to_string()))?;
    let key = rule_key(GRANT_ADMIN);
    let storage = shared.own_session(&system).storage();
    let before = storage.get_one(key.clone()).await?;
    let batch = Batch::new().put(key, rule);
    let options = CommitOptions {
        label: Some("--grant-admin".to_owned()),
        ..CommitOptions::default()
    };
    let noted = shared.audit.begin(Event::Admin, || {
        let record = Record::new(Event::Admin, "grant admin", Outcome::Allowed);
        record.by_server().keyspace(&system).changes(&batch)
    });
    let committed = storage.commit(batch, options).await;
    audit::committed(noted, &committed).await;
    let position = committed?;
    access.wait_for(position.revision).await?;
    tracing::warn!(
        %principal,
        revision = position.revision.0,
        replaced = before.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()),
        "--grant-admin: it is an administrator from now on, by the stored rule {GRANT_ADMIN:?}; leave the flag out at the \
         next start, and revoke the rule once there is another administrator"
    );
    let user = principal.as_str().strip_prefix("user:");
    if let Some(name) = user
        && access.user(name).is_none_or(|user| user.disabled)
    {
        tracing::warn!(%principal, "--grant-admin: there is no such user that may log in");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::Server;
    use crate::config::ServerConfig;
    use crate::testing::{self, Hold, MemoryEngine};

    /// For what is to happen at all; nothing is measured.
    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_start_that_waits_for_the_access_rules_is_stopped() {
        let engine = MemoryEngine::new();
        engine.hold(Hold::OwnWatches);
        let stop = CancellationToken::new();
        let config = ServerConfig::embedded("unused", None, Vec::new());
        let builder = Server::builder(config).engine(engine);
        let started = tokio::spawn(builder.stop(stop.clone()).start());
        // However far it came.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!started.is_finished());
        stop.cancel();
        let started = tokio::time::timeout(PATIENCE, started)
            .await
            .expect("in time");
        assert!(matches!(started.unwrap(), Err(StartError::Stopped)));
    }

    #[tokio::test]
    async fn a_start_waits_for_the_access_rules_for_so_long_and_says_so() {
        let engine = MemoryEngine::new();
        engine.hold(Hold::OwnWatches);
        let shared = testing::server(&engine, |_| {});
        let (start, patience) = (HowToStart::default(), Duration::from_millis(20));
        let error = follow_access_in_time(&shared, &start, patience)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("the access rules cannot be read") && text.contains("within 20ms"),
            "{text}"
        );
        engine.hold(Hold::Nothing);
        follow_access_in_time(&shared, &start, PATIENCE)
            .await
            .unwrap();
    }
}
