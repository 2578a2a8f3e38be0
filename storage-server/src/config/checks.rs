//! What several gateways' tables have to be.

use std::time::Duration;

use storage_protocol::Keyspace;

use super::ConfigError;
use crate::auth::rules::KeyspaceKind;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// That a keyspace, the value of `key`, is not the server's own.
pub(super) fn ordinary_keyspace(key: &str, keyspace: &Keyspace) -> Result<(), ConfigError> {
    match KeyspaceKind::of(keyspace) {
        KeyspaceKind::Ordinary => Ok(()),
        _ => {
            let value = format!("{:?}", keyspace.as_str());
            let allowed = "a keyspace that is not the server's own";
            Err(ConfigError::value(key, value, allowed))
        }
    }
}

/// That a gateway's pings, its keys `ping` and `silence`, are neither a flood nor come too late to be answered in time.
pub(super) fn pings(gateway: &str, ping: Duration, silence: Duration) -> Result<(), ConfigError> {
    let told = |duration| humantime::format_duration(duration);
    if !(Duration::from_millis(100)..=DAY / 2).contains(&ping) {
        let key = format!("{gateway}.ping");
        return Err(ConfigError::value(
            key,
            told(ping),
            "allowed are 100ms to 12h",
        ));
    }
    if !(2 * ping..=DAY).contains(&silence) {
        let allowed = format!(
            "at least twice {gateway}.ping ({}), at most 24h",
            told(ping)
        );
        let key = format!("{gateway}.silence");
        return Err(ConfigError::value(key, told(silence), allowed));
    }
    Ok(())
}
