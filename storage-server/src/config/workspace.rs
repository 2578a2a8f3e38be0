//! The gateway `workspace`: `[workspace]`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;
use storage_protocol::rooms::PAGE_MESSAGES_MAX;

use super::ConfigError;
use super::checks;
use super::text::{self, duration, size};
use crate::auth::tokens::SECRET_BYTES_MIN;

/// Who may be in the rooms of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRooms {
    /// Who may read the node, by the workspaces; nobody in those of nodes that are not known.
    Checked,
    /// Everybody who has subscribed: for servers that do not have the tree.
    Open,
}

/// What the gateway `workspace` goes by: `[workspace]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkspaceConfig {
    /// Where its users, workspaces, nodes and rooms are. Default `workspace`.
    #[serde(with = "text::keyspace")]
    pub keyspace: Keyspace,
    /// Who may be in the rooms of nodes. Default `checked`.
    pub node_rooms: NodeRooms,
    /// How long a user stays in a room whose last socket there was closed without a word. Default 20s.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// How long it has to be quiet about a node before its creation and updates are told, as one. Default 1s.
    #[serde(with = "duration")]
    pub quiet: Duration,
    /// So many tree events are told to a socket in a second, and more by a hint alone. Default 30.
    pub events_per_second: u32,
    /// So many at once after a pause. Default 20.
    pub events_burst: u32,
    /// The most messages of a room that one who joins is sent, and of a page of its history. At most, and by default, 1,000.
    #[serde(deserialize_with = "size")]
    pub join_messages: usize,
    /// How often a WebSocket is pinged. Default 30s.
    #[serde(with = "duration")]
    pub ping: Duration,
    /// A WebSocket whose client has sent nothing for so long, not even the answer to a ping, is closed; at least twice
    /// `ping`. Default 60s.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// Whose tokens are taken besides the server's own: JWTs with HS256 and this `iss`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_issuer: Option<String>,
    /// Of its tokens those alone are taken that are for this audience: `aud` is this, or a list with it. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_audience: Option<String>,
    /// The file with the secret of that issuer, as it is (32 bytes at least; a line break at its end does not count).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_secret_file: Option<PathBuf>,
}

impl Default for WorkspaceConfig {
    fn default() -> Self {
        Self {
            keyspace: Keyspace::new("workspace").expect("the name follows the rule"),
            node_rooms: NodeRooms::Checked,
            grace: Duration::from_secs(20),
            quiet: Duration::from_secs(1),
            events_per_second: 30,
            events_burst: 20,
            join_messages: 1_000,
            ping: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            jwt_issuer: None,
            jwt_audience: None,
            jwt_secret_file: None,
        }
    }
}

impl WorkspaceConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let told = |duration| humantime::format_duration(duration);
        checks::pings("workspace", self.ping, self.silence)?;
        if self.grace > Duration::from_secs(3600) {
            let allowed = "at most 1h";
            return Err(ConfigError::value(
                "workspace.grace",
                told(self.grace),
                allowed,
            ));
        }
        if self.quiet > Duration::from_secs(60) {
            let allowed = "at most 1m";
            return Err(ConfigError::value(
                "workspace.quiet",
                told(self.quiet),
                allowed,
            ));
        }
        for (key, value, max) in [
            (
                "workspace.events_per_second",
                self.events_per_second,
                100_000,
            ),
            ("workspace.events_burst", self.events_burst, 100_000),
        ] {
            if !(1..=max).contains(&value) {
                return Err(ConfigError::value(
                    key,
                    value,
                    format!("allowed are 1 to {max}"),
                ));
            }
        }
        if !(1..=PAGE_MESSAGES_MAX).contains(&self.join_messages) {
            let (key, allowed) = ("workspace.join_messages", "allowed are 1 to 1000");
            return Err(ConfigError::value(key, self.join_messages, allowed));
        }
        checks::ordinary_keyspace("workspace.keyspace", &self.keyspace)?;
        self.validate_jwt()
    }

    fn validate_jwt(&self) -> Result<(), ConfigError> {
        let key = "workspace.jwt_audience";
        match (&self.jwt_audience, &self.jwt_issuer) {
            (Some(audience), _) if audience.is_empty() => {
                let allowed = "the aud of the tokens that are to be taken";
                return Err(ConfigError::value(key, "\"\"", allowed));
            }
            (Some(audience), None) => {
                let allowed = "only with jwt_issuer: the server's own tokens have no audience";
                return Err(ConfigError::value(key, format!("{audience:?}"), allowed));
            }
            _ => {}
        }
        match (&self.jwt_issuer, &self.jwt_secret_file) {
            (None, None) => Ok(()),
            (Some(issuer), Some(_)) if issuer.is_empty() => {
                let allowed = "the iss of the tokens that are to be taken";
                Err(ConfigError::value("workspace.jwt_issuer", "\"\"", allowed))
            }
            (Some(_), Some(_)) => self.jwt_secret().map(drop),
            (Some(_), None) => {
                let allowed = "with jwt_issuer, the file with its secret";
                let key = "workspace.jwt_secret_file";
                Err(ConfigError::value(key, "(not set)", allowed))
            }
            (None, Some(_)) => {
                let allowed = "with jwt_secret_file, the iss of the tokens";
                Err(ConfigError::value(
                    "workspace.jwt_issuer",
                    "(not set)",
                    allowed,
                ))
            }
        }
    }

    /// Issuer and secret of the tokens of another issuer, if there is one.
    pub(crate) fn jwt_secret(&self) -> Result<Option<(String, Vec<u8>)>, ConfigError> {
        let (Some(issuer), Some(file)) = (&self.jwt_issuer, &self.jwt_secret_file) else {
            return Ok(None);
        };
        let refused = |why: String| {
            let value = format!("{:?}", file.display().to_string());
            ConfigError::value("workspace.jwt_secret_file", value, why)
        };
        let mut secret = std::fs::read(file)
            .map_err(|error| refused(format!("a file that can be read: {error}")))?;
        while secret
            .last()
            .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
        {
            secret.pop();
        }
        if secret.len() < SECRET_BYTES_MIN {
            return Err(refused(format!(
                "a file with a secret of at least {SECRET_BYTES_MIN} bytes, this has {}",
                secret.len()
            )));
        }
        Ok(Some((issuer.clone(), secret)))
    }
}
