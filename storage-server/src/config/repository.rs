//! The gateway `repository`: `[repository]`.

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;

use super::ConfigError;
use super::checks;
use super::text::{self, size};

/// From where users may be made, and given other passwords, over the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signup {
    /// From this machine.
    Loopback,
    /// From nowhere: administrators make users by other means.
    Off,
}

/// What the gateway `repository` goes by: `[repository]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepositoryConfig {
    /// Where its files are: `PROJECT/SOURCE/PATH/NAME` of this keyspace. Default `repository`.
    #[serde(with = "text::keyspace")]
    pub keyspace: Keyspace,
    /// Whether files are for everybody without a token, as `anonymous`, where the listener's `auth` takes anonymous peers.
    /// Default no.
    pub open: bool,
    /// From where `/signup` and `/update_user` are taken. Default `loopback`.
    pub signup: Signup,
    /// The longest file, in bytes. Default 4 GiB.
    #[serde(deserialize_with = "size")]
    pub object_bytes_max: u64,
}

impl Default for RepositoryConfig {
    fn default() -> Self {
        Self {
            keyspace: Keyspace::new("repository").expect("the name follows the rule"),
            open: false,
            signup: Signup::Loopback,
            object_bytes_max: 4 << 30,
        }
    }
}

impl RepositoryConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        checks::ordinary_keyspace("repository.keyspace", &self.keyspace)?;
        let bytes = self.object_bytes_max;
        if bytes == 0 || bytes > 1 << 50 {
            let allowed = "allowed are 1 to 1125899906842624";
            return Err(ConfigError::value(
                "repository.object_bytes_max",
                bytes,
                allowed,
            ));
        }
        Ok(())
    }
}
