//! What the values of a configuration may be.
//!
//! Each limit has its range here; the upper ends are the protocol's constants, so a deployment can never announce
//! what the two codecs would refuse.

use std::ops::RangeInclusive;
use std::time::Duration;

use storage_protocol::{Batch, Limits};

use super::{
    AuditConfig, AuthMethod, ConfigError, EngineConfig, ListenerConfig, LogConfig, ServerConfig,
    ServerLimits, Timeouts, TlsMode,
};

type Result<T = ()> = std::result::Result<T, ConfigError>;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bounds what is counted in bytes, so that sums of two cannot overflow.
const UNBOUNDED: usize = usize::MAX / 2;

/// Checks that keys of a table lie within their ranges.
macro_rules! check_ranges {
    ($table:literal of $of:expr; $($key:ident: $range:expr),* $(,)?) => {
        $(in_range(concat!($table, ".", stringify!($key)), $of.$key, $range)?;)*
    };
}

fn in_range(key: &str, value: usize, range: RangeInclusive<usize>) -> Result {
    check(range.contains(&value), key, value, || {
        format!("allowed are {} to {}", range.start(), range.end())
    })
}

fn check<A: Into<String>>(
    is_good: bool,
    key: impl Into<String>,
    value: impl ToString,
    allowed: impl FnOnce() -> A,
) -> Result {
    match is_good {
        true => Ok(()),
        false => Err(ConfigError::value(key, value, allowed())),
    }
}

impl ServerConfig {
    /// Checks all that types do not. `gateways`: the names of those that there are.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first value that is not allowed.
    pub(crate) fn validate(&self, gateways: &[&str]) -> Result {
        for (place, listener) in self.listeners.iter().enumerate() {
            let key = |name: &str| format!("listener[{place}].{name}");
            listener.validate(&key, gateways)?;
        }
        let mut listeners = self.listeners.iter();
        if let Some(with_tls) = listeners.find(|listener| listener.tls != TlsMode::Off) {
            check(self.certs.is_some(), "certs", "(not set)", || {
                format!(
                    "listener {} has TLS and needs a folder with server/cert.pem, server/key.pem and server/ca.pem \
                     (`storage-certs` makes one)",
                    with_tls.address
                )
            })?;
        }
        self.log.validate()?;
        self.audit.validate()?;
        self.limits.validate()?;
        self.timeouts.validate()?;
        self.engine.validate()?;
        self.deliveries.validate()?;
        self.events.validate()?;
        self.repository.validate()?;
        self.robots.validate()?;
        self.workspace.validate()
    }
}

impl ListenerConfig {
    fn validate(&self, key: &dyn Fn(&str) -> String, known: &[&str]) -> Result {
        let address = self.address;
        let is_safe =
            self.tls != TlsMode::Off || address.ip().is_loopback() || self.danger_plaintext;
        check(is_safe, key("tls"), "\"off\"", || {
            format!(
                "without TLS only loopback addresses are allowed, not {address}, unless danger_plaintext = true"
            )
        })?;
        self.validate_auth(key)?;
        let in_order = self.tls_min_version <= self.tls_max_version;
        check(
            in_order,
            key("tls_max_version"),
            "\"1.2\"",
            || "not below tls_min_version: set tls_min_version = \"1.2\" too",
        )?;
        let names = || {
            let names: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
            names.join(", ")
        };
        check(!self.gateways.is_empty(), key("gateways"), "[]", || {
            format!("at least one of {}", names())
        })?;
        check_each(
            key("gateways"),
            &self.gateways,
            |name| known.contains(&name),
            || format!("allowed are {}", names()),
        )?;
        check_each(
            key("allowed_origins"),
            &self.allowed_origins,
            is_origin,
            || "an origin as browsers say it, such as \"https://example.com\" or \"http://localhost:3000\", or \"*\"",
        )?;
        check_each(
            key("allowed_hosts"),
            &self.allowed_hosts,
            is_host,
            || "a host name without a port, such as \"storage.internal\", or \"*\"",
        )
    }
}

/// How `auth` is written in an error.
fn shown(methods: Option<&[AuthMethod]>) -> String {
    let written = methods.and_then(|methods| serde_json::to_string(methods).ok());
    written.unwrap_or_else(|| "(not set)".to_owned())
}

impl ListenerConfig {
    /// That nobody is let in whom nobody has named.
    fn validate_auth(&self, key: &dyn Fn(&str) -> String) -> Result {
        let allowed = |is_good: bool, what: &str| {
            let value = shown(self.auth.as_deref());
            check(is_good, key("auth"), value, || what.to_owned())
        };
        let is_named = self.auth.is_some() || self.has_logins();
        let has = |method| self.auth().contains(&method);
        match self.tls {
            TlsMode::Mutual => allowed(
                self.auth() == [AuthMethod::Certificate],
                "with tls = \"mutual\" certificates are taken and nothing else: leave it out, or set tls = \"server\", \
                 which takes them too where auth has \"certificate\"",
            )?,
            TlsMode::Server => allowed(
                is_named,
                "with tls = \"server\" it must be said who is let in: some of \"certificate\", \"token\", \"password\", \
                 \"anonymous\" (which is anybody)",
            )?,
            TlsMode::Off => {
                allowed(
                    self.auth.is_some() || self.address.ip().is_loopback(),
                    "without TLS on an address that others can reach it must be said who is let in: some of \"token\", \
                     \"password\", \"anonymous\" (which is anybody)",
                )?;
                allowed(
                    !has(AuthMethod::Certificate),
                    "without TLS there are no certificates",
                )?;
            }
        }
        allowed(!self.auth().is_empty(), "at least one way to be let in")
    }
}

fn check_each<A: Into<String>>(
    key: String,
    names: &[String],
    is_good: impl Fn(&str) -> bool,
    allowed: impl FnOnce() -> A,
) -> Result {
    match names.iter().find(|name| !is_good(name)) {
        None => Ok(()),
        Some(bad) => Err(ConfigError::value(key, format!("{bad:?}"), allowed())),
    }
}

fn is_origin(text: &str) -> bool {
    text == "*"
        || text.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '*', '@', ' '])
        })
}

fn is_host(text: &str) -> bool {
    text == "*" || (!text.is_empty() && !text.contains(['/', '*', ':', '@', ' ']))
}

impl LogConfig {
    fn validate(&self) -> Result {
        let filter = &self.filter;
        if let Err(error) = filter.parse::<tracing_subscriber::filter::Targets>()
            && tracing_subscriber::EnvFilter::try_new(filter).is_err()
        {
            let value = format!("{filter:?}");
            return Err(ConfigError::value("log.filter", value, error.to_string()));
        }
        check_ranges!("log" of self; keep: 1..=10_000);
        Ok(())
    }
}

impl AuditConfig {
    fn validate(&self) -> Result {
        let is_empty = self
            .folder
            .as_ref()
            .is_some_and(|folder| folder.as_os_str().is_empty());
        check(!is_empty, "audit.folder", "\"\"", || "a folder")?;
        check_ranges!("audit" of self; days: 1..=10_000);
        let least = MIB as u64;
        let bytes = self.day_bytes_max;
        let is_good = (least..=u64::MAX / 2).contains(&bytes);
        check(is_good, "audit.day_bytes_max", bytes, || {
            format!("at least {least}")
        })
    }
}

impl ServerLimits {
    /// Lets those that must hold a message grow with it, but not those that were set.
    pub(super) fn grow_unless(&mut self, is_set: impl Fn(&str) -> bool) {
        let message = self.message_bytes_max;
        // One principal has half of what all have, which must hold a message.
        let two = message.saturating_mul(2);
        for (key, limit, least) in [
            (
                "bytes_in_flight_max",
                &mut self.bytes_in_flight_max,
                message,
            ),
            (
                "bytes_in_flight_total_max",
                &mut self.bytes_in_flight_total_max,
                two,
            ),
            (
                "partial_messages_bytes_max",
                &mut self.partial_messages_bytes_max,
                two,
            ),
            (
                "outbox_bytes_total_max",
                &mut self.outbox_bytes_total_max,
                two,
            ),
        ] {
            if !is_set(key) {
                *limit = least.max(*limit);
            }
        }
    }

    fn validate(&self) -> Result {
        check_ranges!("limits" of self;
            key_bytes_max: 16..=Limits::KEY_BYTES_CEILING,
            message_bytes_max: 64 * KIB..=Limits::MESSAGE_BYTES_CEILING,
            value_bytes_max: KIB..=Limits::MESSAGE_BYTES_CEILING,
            keys_per_get_max: 1..=1_000_000,
            operations_per_commit_max: 1..=1_000_000,
            requests_in_flight_max: 1..=1_024,
            bytes_in_flight_max: 64 * KIB..=UNBOUNDED,
            watches_max: 0..=1_000_000,
            scans_max: 0..=10_000,
        );
        let (message, value) = (self.message_bytes_max, self.value_bytes_max);
        let put = value + self.key_bytes_max + Batch::BASE_BYTES + Batch::ITEM_BYTES;
        check(put <= message, "limits.value_bytes_max", value, || {
            format!("a value and its key must fit into a message (message_bytes_max is {message})")
        })?;
        let in_flight = self.bytes_in_flight_max;
        let key = "limits.bytes_in_flight_max";
        check(in_flight >= message, key, in_flight, || {
            format!("at least one message (message_bytes_max is {message})")
        })?;
        check_ranges!("limits" of self;
            bytes_in_flight_total_max: 2 * message..=UNBOUNDED,
            partial_messages_bytes_max: 2 * message..=UNBOUNDED,
            outbox_bytes_total_max: 2 * message..=UNBOUNDED,
            sessions_max: 1..=10_000_000,
            sessions_per_principal_max: 1..=10_000_000,
            sessions_kept_max: 0..=10_000_000,
            mwdb_keys_max: 1..=Limits::MWDB_KEYS,
            outbox_bytes_max: 64 * KIB..=UNBOUNDED,
            watch_bytes_max: 64 * KIB..=UNBOUNDED,
            watch_bytes_total_max: MIB..=UNBOUNDED,
            handshakes_max: 1..=1_000_000,
            http_connections_max: 1..=1_000_000,
        );
        // The queue takes one commit of any size, so its default is good for all messages.
        if self.commit_queue_bytes_max != Self::default().commit_queue_bytes_max {
            check_ranges!("limits" of self; commit_queue_bytes_max: message..=UNBOUNDED);
        }
        check_ranges!("limits" of self; memory_bytes_max: 16 * MIB..=UNBOUNDED);
        match self.connections_max {
            None => Ok(()),
            Some(connections) => in_range("limits.connections_max", connections, 1..=UNBOUNDED),
        }
    }
}

impl Timeouts {
    fn validate(&self) -> Result {
        let told = |duration| humantime::format_duration(duration);
        let range = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
        macro_rules! check_all {
            ($($key:ident),*) => {
                $(check(
                    range.contains(&self.$key),
                    concat!("timeouts.", stringify!($key)),
                    told(self.$key),
                    || "allowed are 100ms to 24h",
                )?;)*
            };
        }
        check_all!(handshake, heartbeat, silence, slow_peer, partial_message);
        check_all!(idle_mark, http_idle, drain, session_grace, session_kept);
        let (grace, kept) = (self.session_grace, self.session_kept);
        check(kept >= grace, "timeouts.session_kept", told(kept), || {
            format!("at least timeouts.session_grace ({})", told(grace))
        })?;
        let (heartbeat, silence) = (self.heartbeat, self.silence);
        let is_longer = silence >= 2 * heartbeat;
        check(is_longer, "timeouts.silence", told(silence), || {
            format!("at least twice timeouts.heartbeat ({})", told(heartbeat))
        })
    }
}

impl EngineConfig {
    fn validate(&self) -> Result {
        for (key, value) in [
            ("engine.ring_bytes", self.ring_bytes),
            ("engine.read_threads", self.read_threads),
        ] {
            check(value > 0, key, value, || "at least 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
