//! Jobs: `[deliveries]`.

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;

use super::{ConfigError, ServerConfig, checks, text};

/// The most keyspaces: each costs a task and a watch.
const KEYSPACES_MAX: usize = 1_000;

/// Which jobs the server looks after: `[deliveries]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveriesConfig {
    /// Keyspaces whose jobs (`deliveries/...`) become due by this server's clock, besides that of the gateway `robots`, where a
    /// listener serves it. Default none.
    #[serde(with = "text::keyspaces")]
    pub keyspaces: Vec<Keyspace>,
}

impl DeliveriesConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let key = "deliveries.keyspaces";
        if self.keyspaces.len() > KEYSPACES_MAX {
            let allowed = format!("at most {KEYSPACES_MAX}");
            return Err(ConfigError::value(key, self.keyspaces.len(), allowed));
        }
        self.keyspaces
            .iter()
            .try_for_each(|keyspace| checks::ordinary_keyspace(key, keyspace))
    }
}

impl ServerConfig {
    /// The keyspaces whose jobs are looked after, each once.
    pub(crate) fn keyspaces_of_jobs(&self) -> Vec<Keyspace> {
        let mut keyspaces = self.deliveries.keyspaces.clone();
        let names = self
            .listeners
            .iter()
            .flat_map(|listener| &listener.gateways);
        if names.into_iter().any(|name| name == "robots") {
            keyspaces.push(self.robots.keyspace.clone());
        }
        keyspaces.sort();
        keyspaces.dedup();
        keyspaces
    }
}
