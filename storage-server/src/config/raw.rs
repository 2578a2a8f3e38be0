//! The configuration as it is written: every key optional, unknown ones refused.
//!
//! Nothing here judges a value beyond its type; [`super::check`] does, once. The doc of each key is the reference for
//! operators. Sizes are bytes, or text such as "64 MiB"; durations are text such as "15s" or "24h".

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawConfig {
    /// Folder of the store. Default `storage-data`.
    pub(crate) data: Option<PathBuf>,
    /// Folder of certificates: `server/{cert,key,ca}.pem`, and `crl.pem` if there is one.
    pub(crate) certs: Option<PathBuf>,
    /// `sync` (default) or `os`.
    pub(crate) durability: Option<String>,
    /// Start although the store lost acknowledged commits. Default no.
    pub(crate) accept_data_loss: Option<bool>,
    /// Start under a new epoch, each time. Default no.
    pub(crate) new_epoch: Option<bool>,
    #[serde(default)]
    pub(crate) log: RawLog,
    #[serde(default)]
    pub(crate) limits: RawLimits,
    #[serde(default)]
    pub(crate) timeouts: RawTimeouts,
    #[serde(default)]
    pub(crate) engine: RawEngine,
    /// Where it listens. Default: one, `127.0.0.1:7443`, mutual TLS, gateway `storage`; no admin listener.
    #[serde(default, rename = "listener", skip_serializing_if = "Vec::is_empty")]
    pub(crate) listeners: Vec<RawListener>,
}

/// One `[[listener]]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawListener {
    /// IP address and port; port 0 takes a free one.
    pub(crate) address: Option<String>,
    /// `mutual` (default), `server` (clients without certificates are let in) or `off`.
    pub(crate) tls: Option<String>,
    /// What it serves: `storage` (default), `admin`.
    pub(crate) gateways: Option<Vec<String>>,
    /// `1.3` (default) or `1.2`.
    pub(crate) tls_min_version: Option<String>,
    /// `1.3` (default) or `1.2`.
    pub(crate) tls_max_version: Option<String>,
    /// Web pages of these origins may open sessions, besides the server's own. Default none; `*` for all.
    pub(crate) allowed_origins: Option<Vec<String>>,
    /// Names of a listener without TLS, besides `localhost` and addresses. Default none; `*` for all.
    pub(crate) allowed_hosts: Option<Vec<String>>,
    /// Allows `tls = "off"` on an address that others can reach. Default no.
    pub(crate) danger_plaintext: Option<bool>,
}

/// `[log]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLog {
    /// `text` (default) or `json`.
    pub(crate) format: Option<String>,
    /// Also write daily files into this folder.
    pub(crate) dir: Option<PathBuf>,
    /// Which events: directives of the crate `tracing-subscriber`. Default `info`.
    pub(crate) filter: Option<String>,
    /// Daily files that are kept. Default 14.
    pub(crate) keep: Option<Size>,
}

macro_rules! sizes {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: Option<Size>,)*
        }
    };
}

sizes! {
    /// `[limits]`, named as errors name them.
    RawLimits {
        key_bytes_max, value_bytes_max, message_bytes_max, keys_per_get_max, operations_per_commit_max,
        requests_in_flight_max, bytes_in_flight_max, bytes_in_flight_total_max, watches_max, scans_max,
        sessions_max, sessions_per_principal_max, sessions_kept_max, partial_messages_bytes_max, commit_queue_bytes_max,
        mwdb_keys_max, outbox_bytes_max,
        /// Bytes that wait to be sent to all sessions together.
        outbox_bytes_total_max,
        /// Memory of the watches of one session.
        watch_bytes_max,
        /// Memory of the watches of all sessions together.
        watch_bytes_total_max,
        memory_bytes_max,
        /// Connections of one listener that have not finished TLS and the HTTP request.
        handshakes_max,
        /// Connections of one listener that speak plain HTTP.
        http_connections_max,
        /// Connections of all kinds, on all listeners.
        connections_max,
    }
}

/// `[timeouts]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawTimeouts {
    /// For TLS, the HTTP upgrade and Hello together. Default 10s.
    pub(crate) handshake: Option<Span>,
    /// Ping after this much silence. Default 15s.
    pub(crate) heartbeat: Option<Span>,
    /// Close after this much silence. Default 45s.
    pub(crate) silence: Option<Span>,
    /// Close a peer that takes nothing for this long. Default 30s.
    pub(crate) slow_peer: Option<Span>,
    /// Drop a message in parts without progress. Default 10s.
    pub(crate) partial_message: Option<Span>,
    /// A watch is told a mark after so long without an event, if the store went on. Default 60s.
    pub(crate) idle_mark: Option<Span>,
    /// An HTTP connection stays for so long without a request. Default 60s.
    pub(crate) http_idle: Option<Span>,
    /// At shutdown: for requests in flight. Default 10s.
    pub(crate) drain: Option<Span>,
    /// Keys of a session stay for so long after its socket was lost. Default 60s.
    pub(crate) session_grace: Option<Span>,
    /// The session can be resumed for so long. Default 24h.
    pub(crate) session_kept: Option<Span>,
}

/// `[engine]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawEngine {
    /// Bytes of the disk that must stay free.
    pub(crate) disk_reserve_bytes: Option<Size>,
    /// Bytes of the change log.
    pub(crate) log_bytes: Option<Size>,
    /// Age of the change log.
    pub(crate) log_age: Option<Span>,
    /// Bytes of recent commits in memory.
    pub(crate) ring_bytes: Option<Size>,
    /// Threads for reads that touch the disk.
    pub(crate) read_threads: Option<Size>,
    /// How long removed keys are remembered.
    pub(crate) tombstone_age: Option<Span>,
    /// How many removed keys are remembered, per keyspace.
    pub(crate) tombstones_max: Option<Size>,
    /// Keyspaces that mwDB clients may be served from. Default `["mwdb"]`.
    pub(crate) mwdb_keyspaces: Option<Vec<String>>,
}

/// A count or a size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or a size such as \"64 MiB\" (KiB, MiB, GiB)")
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Size, E> {
                u64::try_from(value)
                    .map(Size)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size(value))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

fn parse_size(text: &str) -> Option<Size> {
    let digits = text
        .trim()
        .trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.trim().strip_prefix(digits)? {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)
        .map(Size)
}

/// A duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Span).map_err(|error| {
            D::Error::custom(format!("{text:?} is no duration such as \"15s\": {error}"))
        })
    }
}
