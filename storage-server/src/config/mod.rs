//! The configuration: a TOML file, environment and flags become one checked [`ServerConfig`].
//!
//! Order of precedence: flag, environment variable (`STORAGE_SERVER_*`, see `--help`), file, default. The fields of a
//! `ServerConfig` need no further checks. Every error names the key, the value and what is allowed.

mod check;
mod raw;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use storage_protocol::{Keyspace, Limits};

use crate::gateway;

pub(crate) use check::address;
pub(crate) use raw::{RawConfig, RawListener};

/// Where the server listens if nothing says otherwise.
pub const DEFAULT_ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7443);

/// Why there is no configuration. The texts are complete by themselves.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is no TOML, has an unknown key, or a value of the wrong type.
    #[error("{}:{line}: {message}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value that is not allowed.
    #[error("{key} = {value}: {allowed}")]
    Value {
        /// The key, with its table.
        key: String,
        /// The value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigError {
    pub(crate) fn value(
        key: impl Into<String>,
        value: impl ToString,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Value {
            key: key.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}

/// How a listener is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// TLS with client certificates.
    Mutual,
    /// TLS without client certificates: peers are `anonymous`.
    Server,
    /// No TLS: peers are `anonymous`.
    Off,
}

/// A TLS version, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// One listener.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Where; port 0 takes a free one.
    pub address: SocketAddr,
    /// How it is secured.
    pub tls: TlsMode,
    /// The gateways that it serves, by their names; at least one.
    pub gateways: Vec<String>,
    /// The oldest TLS version.
    pub tls_min_version: TlsVersion,
    /// The newest TLS version; not below the oldest.
    pub tls_max_version: TlsVersion,
    /// Web pages of these origins (`https://example.com`) may open sessions, besides the server's own; `*`: all.
    pub allowed_origins: Vec<String>,
    /// Without TLS: what it is called by browsers and collectors, besides `localhost` and addresses; `*`: anything.
    pub allowed_hosts: Vec<String>,
    /// Whether plaintext on an address that others can reach was asked for.
    pub danger_plaintext: bool,
}

impl ListenerConfig {
    /// Mutual TLS, gateway `storage`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            tls: TlsMode::Mutual,
            gateways: vec!["storage".to_owned()],
            tls_min_version: TlsVersion::Tls13,
            tls_max_version: TlsVersion::Tls13,
            allowed_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            danger_plaintext: false,
        }
    }

    /// No TLS, gateway `admin`: what probes use. (On loopback only.)
    #[must_use]
    pub fn admin(address: SocketAddr) -> Self {
        Self {
            tls: TlsMode::Off,
            gateways: vec!["admin".to_owned()],
            ..Self::new(address)
        }
    }
}

/// When an acknowledged commit is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged.
    Sync,
    /// Within a second: the operating system has it when it is acknowledged.
    Os,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How they look.
    pub format: LogFormat,
    /// Daily files here, besides standard error.
    pub dir: Option<PathBuf>,
    /// Directives of `tracing-subscriber`.
    pub filter: String,
    /// Daily files that are kept. Default 14.
    pub keep: usize,
}

/// Daily files of the log that are kept.
pub(crate) const LOG_KEEP_DEFAULT: usize = 14;

/// Limits of the whole server, besides those that [`Limits`] announces. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// What each session is told.
    pub announced: Limits,
    /// Requests in flight of all sessions. Default 1 GiB.
    pub bytes_in_flight_total_max: usize,
    /// Sessions. Default 20,000.
    pub sessions_max: usize,
    /// Sessions of one principal. Default 1,000.
    pub sessions_per_principal_max: usize,
    /// Sessions without a socket that are kept, beside those within their grace. Default 100,000.
    pub sessions_kept_max: usize,
    /// Partly received messages of all sessions. Default 1 GiB.
    pub partial_messages_bytes_max: usize,
    /// Commits that wait for the committer; `None`: the engine's default.
    pub commit_queue_bytes_max: Option<usize>,
    /// Keys of one mwDB message. Default 1,000,000.
    pub mwdb_keys_max: usize,
    /// What waits to be sent to one session. Default 8 MiB.
    pub outbox_bytes_max: usize,
    /// What waits to be sent to all sessions. Default 1 GiB.
    pub outbox_bytes_total_max: usize,
    /// Memory of the watches of one session. Default 64 MiB.
    pub watch_bytes_max: usize,
    /// Memory of the watches of all sessions. Default 1 GiB.
    pub watch_bytes_total_max: usize,
    /// The engine's memory budget; `None`: its default.
    pub memory_bytes_max: Option<usize>,
    /// Connections of one listener that have not finished TLS and the HTTP request. Default 1,024.
    pub handshakes_max: usize,
    /// Connections of one listener that speak plain HTTP; half of them for one peer. Default 1,000.
    pub http_connections_max: usize,
    /// Connections of all kinds, on all listeners; `None`: as many as the limit of open files allows beside the engine.
    pub connections_max: Option<usize>,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            announced: Limits::default(),
            bytes_in_flight_total_max: 1 << 30,
            sessions_max: 20_000,
            sessions_per_principal_max: 1_000,
            sessions_kept_max: 100_000,
            partial_messages_bytes_max: 1 << 30,
            commit_queue_bytes_max: None,
            mwdb_keys_max: Limits::MWDB_KEYS,
            outbox_bytes_max: 8 << 20,
            outbox_bytes_total_max: 1 << 30,
            watch_bytes_max: 64 << 20,
            watch_bytes_total_max: 1 << 30,
            memory_bytes_max: None,
            handshakes_max: 1_024,
            http_connections_max: 1_000,
            connections_max: None,
        }
    }
}

/// Every wait on a peer.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// TLS, HTTP upgrade and Hello together.
    pub handshake: Duration,
    /// Ping after this much silence.
    pub heartbeat: Duration,
    /// Close after this much silence.
    pub silence: Duration,
    /// Close a peer that takes nothing for this long.
    pub slow_peer: Duration,
    /// Drop a message in parts without progress.
    pub partial_message: Duration,
    /// A watch `Every` that was told nothing for so long is told a mark, if the store went on.
    pub idle_mark: Duration,
    /// An HTTP connection stays for so long without a request.
    pub http_idle: Duration,
    /// At shutdown: for requests in flight.
    pub drain: Duration,
    /// How long a session's keys stay after its socket was lost.
    pub session_grace: Duration,
    /// How long it can be resumed after its socket was lost; no shorter than the grace.
    pub session_kept: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            heartbeat: Duration::from_secs(15),
            silence: Duration::from_secs(45),
            slow_peer: Duration::from_secs(30),
            partial_message: Duration::from_secs(10),
            idle_mark: Duration::from_secs(60),
            http_idle: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            session_grace: Duration::from_secs(60),
            session_kept: Duration::from_secs(24 * 3600),
        }
    }
}

/// What the engine is told; `None`: its own default.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Bytes of the disk that must stay free.
    pub disk_reserve_bytes: Option<u64>,
    /// Bytes of the change log.
    pub log_bytes: Option<u64>,
    /// Age of the change log.
    pub log_age: Option<Duration>,
    /// Bytes of recent commits in memory.
    pub ring_bytes: Option<usize>,
    /// Threads for reads that touch the disk.
    pub read_threads: Option<usize>,
    /// How long removed keys are remembered.
    pub tombstone_age: Option<Duration>,
    /// How many removed keys are remembered, per keyspace.
    pub tombstones_max: Option<u64>,
    /// Keyspaces that mwDB clients may be served from.
    pub mwdb_keyspaces: Option<Vec<Keyspace>>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Folder of the store.
    pub data: PathBuf,
    /// Folder of certificates; there if any listener has TLS.
    pub certs: Option<PathBuf>,
    /// When a commit is acknowledged.
    pub durability: Durability,
    /// Start although the store lost acknowledged commits.
    pub accept_data_loss: bool,
    /// Start under a new epoch.
    pub new_epoch: bool,
    /// Where the log goes.
    pub log: LogConfig,
    /// What peers may ask for.
    pub limits: ServerLimits,
    /// How long peers are waited for.
    pub timeouts: Timeouts,
    /// What the engine is told.
    pub engine: EngineConfig,
    /// Where it listens. At least one.
    pub listeners: Vec<ListenerConfig>,
}

impl ServerConfig {
    /// Defaults, with these listeners: for tests and for embedding. The caller sees to what the checks of a
    /// configuration file would have seen to.
    #[must_use]
    pub fn embedded(
        data: impl Into<PathBuf>,
        certs: Option<PathBuf>,
        listeners: Vec<ListenerConfig>,
    ) -> Self {
        Self {
            data: data.into(),
            certs,
            durability: Durability::Sync,
            accept_data_loss: false,
            new_epoch: false,
            log: LogConfig {
                format: LogFormat::Text,
                dir: None,
                filter: "info".to_owned(),
                keep: LOG_KEEP_DEFAULT,
            },
            limits: ServerLimits::default(),
            timeouts: Timeouts::default(),
            engine: EngineConfig::default(),
            listeners,
        }
    }

    /// Reads a configuration file alone, without environment and flags. Its listeners may serve the gateways that every
    /// server has.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let raw = RawConfig::from_file(path)?;
        Self::from_raw(&raw, &gateway::names(&gateway::built_in()))
    }

    pub(crate) fn from_raw(raw: &RawConfig, gateways: &[&str]) -> Result<Self, ConfigError> {
        check::checked(raw, gateways)
    }

    /// The configuration as a file would say it, defaults included.
    ///
    /// # Errors
    /// A path that is no UTF-8 cannot be written.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&check::raw_of(self))
    }
}

impl RawConfig {
    pub(crate) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let before = text.get(..at).unwrap_or_default();
            ConfigError::Invalid {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })
    }
}
