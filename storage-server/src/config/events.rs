//! The gateway `events`: `[events]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;

use super::ConfigError;
use super::checks;
use super::text::{self, duration};

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
        checks::pings("events", self.ping, self.silence)?;
        checks::ordinary_keyspace("events.keyspace", &self.keyspace)?;
        Ok(())
    }
}
