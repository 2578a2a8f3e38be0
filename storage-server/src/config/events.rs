//! The gateway `events`: `[events]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;

use super::ConfigError;
use super::text::{self, duration};
use crate::auth::rules::KeyspaceKind;

/// What a write of parameters is called in its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamsAction {
    /// `save`, which filters for `update` are told too.
    Save,
    /// `update`.
    Update,
}

impl ParamsAction {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Update => "update",
        }
    }
}

/// What the gateway `events` goes by: `[events]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsConfig {
    /// Where its objects are: `TYPE/KEY` of this keyspace. Default `events`.
    #[serde(with = "text::keyspace")]
    pub keyspace: Keyspace,
    /// What a write of parameters is called. Default `save`.
    pub params_action: ParamsAction,
    /// How often a WebSocket is pinged. Default 30s.
    #[serde(with = "duration")]
    pub ping: Duration,
    /// A WebSocket whose client has sent nothing for so long, not even the answer to a ping, is closed; at least twice
    /// `ping`. Default 60s.
    #[serde(with = "duration")]
    pub silence: Duration,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            keyspace: Keyspace::new("events").expect("the name follows the rule"),
            params_action: ParamsAction::Save,
            ping: Duration::from_secs(30),
            silence: Duration::from_secs(60),
        }
    }
}

impl EventsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let told = |duration| humantime::format_duration(duration);
        let (ping, silence) = (self.ping, self.silence);
        let range = Duration::from_millis(100)..=Duration::from_secs(12 * 3600);
        if !range.contains(&ping) {
            let allowed = "allowed are 100ms to 12h";
            return Err(ConfigError::value("events.ping", told(ping), allowed));
        }
        if silence < 2 * ping || silence > Duration::from_secs(24 * 3600) {
            let allowed = format!("at least twice events.ping ({}), at most 24h", told(ping));
            return Err(ConfigError::value("events.silence", told(silence), allowed));
        }
        if KeyspaceKind::of(&self.keyspace) != KeyspaceKind::Ordinary {
            let value = format!("{:?}", self.keyspace.as_str());
            let allowed = "a keyspace that is not the server's own";
            return Err(ConfigError::value("events.keyspace", value, allowed));
        }
        Ok(())
    }
}
