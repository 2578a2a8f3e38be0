//! The configuration: a TOML file, environment and flags become one checked [`ServerConfig`].
//!
//! Order of precedence: flag, environment variable (`STORAGE_SERVER_*`, see `--help`), file, default. The structs here are
//! what the file says, key by key, and what the server goes by: [`load`] reads them, [`validate`] checks them, [`text`]
//! has the written forms. What came through [`ServerConfig::from_file`] or the command line needs no further checks.
//! Every error names the key, the value and what is allowed.
//!
//! Sizes are bytes, or text such as "64 MiB"; durations are text such as "15s" or "24h".

mod checks;
mod deliveries;
mod error;
mod events;
mod listener;
mod load;
mod repository;
mod robots;
mod text;
mod validate;
mod workspace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage_protocol::{Keyspace, Limits};

use self::text::{duration, size_or_none};
use crate::auth::Pattern;
use crate::auth::quotas::Quota;
use crate::auth::rules::{Role, RoleName, Rule, RuleError};
use crate::engine::rocks::EngineOptions;

pub use self::deliveries::DeliveriesConfig;
pub use self::error::ConfigError;
pub use self::events::{EventsConfig, ParamsAction};
pub use self::listener::{AuthMethod, DEFAULT_ADDRESS, ListenerConfig, TlsMode, TlsVersion};
pub use self::repository::{RepositoryConfig, Signup};
pub use self::robots::RobotsConfig;
pub use self::workspace::{NodeRooms, WorkspaceConfig};
pub use crate::engine::rocks::Durability;
pub(crate) use load::{Document, read};
pub(crate) use text::{check_address, size};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go: `[log]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How they look. Default `text`.
    pub format: LogFormat,
    /// Daily files here, besides standard error.
    pub dir: Option<PathBuf>,
    /// Directives of `tracing-subscriber`. Default `info`.
    pub filter: String,
    /// Daily files that are kept. Default 14.
    #[serde(deserialize_with = "size")]
    pub keep: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            dir: None,
            filter: "info".to_owned(),
            keep: 14,
        }
    }
}

/// A kind of records of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditEvent {
    /// Who was not let in, and what was not allowed.
    Denied,
    /// Changes of who may do what: rules, roles, users, passwords, tokens, keys.
    Admin,
    /// Who was let in; sessions that begin and end.
    Session,
    /// Commits.
    Write,
    /// Gets and scans.
    Read,
    /// Watches that begin.
    Watch,
}

/// What is audited: `[audit]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// What is written; nothing: there is no audit log. Default `denied` and `admin`.
    pub events: Vec<AuditEvent>,
    /// Daily files here. Default: `audit` in the data folder.
    pub folder: Option<PathBuf>,
    /// Days that are kept, today included. Default 30.
    #[serde(deserialize_with = "size")]
    pub days: usize,
    /// Bytes of a day. Default 256 MiB.
    #[serde(deserialize_with = "size")]
    pub day_bytes_max: u64,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            events: vec![AuditEvent::Denied, AuditEvent::Admin],
            folder: None,
            days: 30,
            day_bytes_max: 256 << 20,
        }
    }
}

/// Limits of the whole server: `[limits]`. Sizes in bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerLimits {
    /// Longest key. Default 4 KiB.
    #[serde(deserialize_with = "size")]
    pub key_bytes_max: usize,
    /// Longest value. Default 16 MiB.
    #[serde(deserialize_with = "size")]
    pub value_bytes_max: usize,
    /// Longest message, all parts together. Default 64 MiB.
    #[serde(deserialize_with = "size")]
    pub message_bytes_max: usize,
    /// Keys of one get. Default 10,000.
    #[serde(deserialize_with = "size")]
    pub keys_per_get_max: usize,
    /// Operations of one commit, and checks of one commit. Default 10,000.
    #[serde(deserialize_with = "size")]
    pub operations_per_commit_max: usize,
    /// Requests of one session in flight. Default 1,024.
    #[serde(deserialize_with = "size")]
    pub requests_in_flight_max: usize,
    /// Bytes of requests of one session in flight; at least one message. Default 64 MiB.
    #[serde(deserialize_with = "size")]
    pub bytes_in_flight_max: usize,
    /// Requests in flight of all sessions; at least two messages. Default 1 GiB.
    #[serde(deserialize_with = "size")]
    pub bytes_in_flight_total_max: usize,
    /// Watches of one session. Default 10,000.
    #[serde(deserialize_with = "size")]
    pub watches_max: usize,
    /// Open scans of one session. Default 16.
    #[serde(deserialize_with = "size")]
    pub scans_max: usize,
    /// Sessions. Default 20,000.
    #[serde(deserialize_with = "size")]
    pub sessions_max: usize,
    /// Sessions of one principal. Default 1,000.
    #[serde(deserialize_with = "size")]
    pub sessions_per_principal_max: usize,
    /// Sessions without a socket that are kept, beside those within their grace. Default 100,000.
    #[serde(deserialize_with = "size")]
    pub sessions_kept_max: usize,
    /// Partly received messages of all sessions; at least two messages. Default 1 GiB.
    #[serde(deserialize_with = "size")]
    pub partial_messages_bytes_max: usize,
    /// Commits that wait for the committer. Default 256 MiB.
    #[serde(deserialize_with = "size")]
    pub commit_queue_bytes_max: usize,
    /// Keys of one mwDB message. Default 1,000,000.
    #[serde(deserialize_with = "size")]
    pub mwdb_keys_max: usize,
    /// What waits to be sent to one session. Default 8 MiB.
    #[serde(deserialize_with = "size")]
    pub outbox_bytes_max: usize,
    /// What waits to be sent to all sessions; at least two messages. Default 1 GiB.
    #[serde(deserialize_with = "size")]
    pub outbox_bytes_total_max: usize,
    /// Memory of the watches of one session. Default 64 MiB.
    #[serde(deserialize_with = "size")]
    pub watch_bytes_max: usize,
    /// Memory of the watches of all sessions. Default 1 GiB.
    #[serde(deserialize_with = "size")]
    pub watch_bytes_total_max: usize,
    /// The engine's memory budget. Default 512 MiB.
    #[serde(deserialize_with = "size")]
    pub memory_bytes_max: usize,
    /// Connections of one listener that have not finished TLS and the HTTP request. Default 1,024.
    #[serde(deserialize_with = "size")]
    pub handshakes_max: usize,
    /// Connections of one listener that speak plain HTTP; half of them for one peer. Default 1,000.
    #[serde(deserialize_with = "size")]
    pub http_connections_max: usize,
    /// Connections of all kinds, on all listeners; `None`: as many as the limit of open files allows beside the engine.
    #[serde(deserialize_with = "size_or_none")]
    pub connections_max: Option<usize>,
}

impl ServerLimits {
    /// What each session is told.
    #[must_use]
    pub fn announced(&self) -> Limits {
        Limits {
            key_bytes_max: self.key_bytes_max,
            value_bytes_max: self.value_bytes_max,
            message_bytes_max: self.message_bytes_max,
            keys_per_get_max: self.keys_per_get_max,
            operations_per_commit_max: self.operations_per_commit_max,
            requests_in_flight_max: self.requests_in_flight_max,
            bytes_in_flight_max: self.bytes_in_flight_max,
            watches_max: self.watches_max,
            scans_max: self.scans_max,
            frame_bytes_max: Limits::FRAME_BYTES,
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        let announced = Limits::default();
        let engine = EngineOptions::new("");
        Self {
            key_bytes_max: announced.key_bytes_max,
            value_bytes_max: announced.value_bytes_max,
            message_bytes_max: announced.message_bytes_max,
            keys_per_get_max: announced.keys_per_get_max,
            operations_per_commit_max: announced.operations_per_commit_max,
            requests_in_flight_max: announced.requests_in_flight_max,
            bytes_in_flight_max: announced.bytes_in_flight_max,
            bytes_in_flight_total_max: 1 << 30,
            watches_max: announced.watches_max,
            scans_max: announced.scans_max,
            sessions_max: 20_000,
            sessions_per_principal_max: 1_000,
            sessions_kept_max: engine.sessions_kept_max,
            partial_messages_bytes_max: 1 << 30,
            commit_queue_bytes_max: engine.commit_queue_bytes,
            mwdb_keys_max: Limits::MWDB_KEYS,
            outbox_bytes_max: 8 << 20,
            outbox_bytes_total_max: 1 << 30,
            watch_bytes_max: 64 << 20,
            watch_bytes_total_max: 1 << 30,
            memory_bytes_max: engine.memory_bytes,
            handshakes_max: 1_024,
            http_connections_max: 1_000,
            connections_max: None,
        }
    }
}

/// Every wait on a peer: `[timeouts]`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// TLS, HTTP upgrade and Hello together. Default 10s.
    #[serde(with = "duration")]
    pub handshake: Duration,
    /// Ping after this much silence. Default 15s.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// Close after this much silence; at least twice the heartbeat. Default 45s.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// Close a peer that takes nothing for this long. Default 30s.
    #[serde(with = "duration")]
    pub slow_peer: Duration,
    /// Drop a message in parts without progress. Default 10s.
    #[serde(with = "duration")]
    pub partial_message: Duration,
    /// A watch `Every` that was told nothing for so long is told a mark, if the store went on. Default 60s.
    #[serde(with = "duration")]
    pub idle_mark: Duration,
    /// An HTTP connection stays for so long without a request. Default 60s.
    #[serde(with = "duration")]
    pub http_idle: Duration,
    /// At shutdown: for requests in flight. Default 10s.
    #[serde(with = "duration")]
    pub drain: Duration,
    /// How long a session's keys stay after its socket was lost. Default 60s.
    #[serde(with = "duration")]
    pub session_grace: Duration,
    /// How long it can be resumed after its socket was lost; no shorter than the grace. Default 24h.
    #[serde(with = "duration")]
    pub session_kept: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let engine = EngineOptions::new("");
        Self {
            handshake: Duration::from_secs(10),
            heartbeat: Duration::from_secs(15),
            silence: Duration::from_secs(45),
            slow_peer: Duration::from_secs(30),
            partial_message: Duration::from_secs(10),
            idle_mark: Duration::from_secs(60),
            http_idle: Duration::from_secs(60),
            drain: Duration::from_secs(10),
            session_grace: engine.session_grace,
            session_kept: engine.session_kept,
        }
    }
}

/// What the engine alone is told: `[engine]`. Its defaults are those of [`EngineOptions`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Bytes of the disk that must stay free.
    #[serde(deserialize_with = "size")]
    pub disk_reserve_bytes: u64,
    /// Bytes of the change log.
    #[serde(deserialize_with = "size")]
    pub log_bytes: u64,
    /// Age of the change log.
    #[serde(with = "duration")]
    pub log_age: Duration,
    /// Bytes of recent commits in memory.
    #[serde(deserialize_with = "size")]
    pub ring_bytes: usize,
    /// Threads for reads that touch the disk.
    #[serde(deserialize_with = "size")]
    pub read_threads: usize,
    /// How long removed keys are remembered.
    #[serde(with = "duration")]
    pub tombstone_age: Duration,
    /// How many removed keys are remembered, per keyspace.
    #[serde(deserialize_with = "size")]
    pub tombstones_max: u64,
    /// Keyspaces that mwDB clients may be served from.
    #[serde(with = "text::keyspaces")]
    pub mwdb_keyspaces: Vec<Keyspace>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let engine = EngineOptions::new("");
        Self {
            disk_reserve_bytes: engine.disk_reserve_bytes,
            log_bytes: engine.log_bytes,
            log_age: engine.log_age,
            ring_bytes: engine.ring_bytes,
            read_threads: engine.read_threads,
            tombstone_age: engine.tombstone_age,
            tombstones_max: engine.tombstones_max,
            mwdb_keyspaces: Keyspace::new("mwdb").into_iter().collect(),
        }
    }
}

/// A role with its name: `[[role]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "WrittenRole", into = "WrittenRole")]
pub struct NamedRole {
    /// What rules call it: `role:NAME`.
    pub name: RoleName,
    /// Who has it.
    pub role: Role,
}

#[derive(Deserialize, Serialize)]
#[serde(rename = "role", deny_unknown_fields)]
struct WrittenRole {
    name: RoleName,
    members: Vec<Pattern>,
}

impl TryFrom<WrittenRole> for NamedRole {
    type Error = RuleError;

    fn try_from(WrittenRole { name, members }: WrittenRole) -> Result<Self, RuleError> {
        let role = Role::new(members)?;
        Ok(Self { name, role })
    }
}

impl From<NamedRole> for WrittenRole {
    fn from(NamedRole { name, role }: NamedRole) -> Self {
        let members = role.members().to_vec();
        Self { name, members }
    }
}

/// All of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Folder of the store. Default `storage-data`.
    pub data: PathBuf,
    /// Folder of certificates: `server/{cert,key,ca}.pem`, and `crl.pem` if there is one. Needed if any listener has TLS.
    pub certs: Option<PathBuf>,
    /// When a commit is acknowledged. Default `sync`.
    pub durability: Durability,
    /// Start although the store lost acknowledged commits. Default no.
    pub accept_data_loss: bool,
    /// Start under a new epoch, each time. Default no.
    pub new_epoch: bool,
    /// Where the log goes.
    pub log: LogConfig,
    /// What is audited.
    pub audit: AuditConfig,
    /// What peers may ask for.
    pub limits: ServerLimits,
    /// How long peers are waited for.
    pub timeouts: Timeouts,
    /// What the engine is told.
    pub engine: EngineConfig,
    /// Which jobs are looked after.
    pub deliveries: DeliveriesConfig,
    /// What the gateway `events` goes by.
    pub events: EventsConfig,
    /// What the gateway `repository` goes by.
    pub repository: RepositoryConfig,
    /// What the gateway `robots` goes by.
    pub robots: RobotsConfig,
    /// What the gateway `workspace` goes by.
    pub workspace: WorkspaceConfig,
    /// Access rules, `[[rule]]`, besides those that are stored. Default none: who is let in may do everything.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Roles that rules may name, `[[role]]`.
    #[serde(rename = "role", skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<NamedRole>,
    /// Quotas, `[[quota]]`, besides those that are stored. Default none.
    #[serde(rename = "quota", skip_serializing_if = "Vec::is_empty")]
    pub quotas: Vec<Quota>,
    /// Where it listens; at least one. Default: one on [`DEFAULT_ADDRESS`].
    #[serde(rename = "listener", skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ListenerConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("storage-data"),
            certs: None,
            durability: Durability::Sync,
            accept_data_loss: false,
            new_epoch: false,
            log: LogConfig::default(),
            audit: AuditConfig::default(),
            limits: ServerLimits::default(),
            timeouts: Timeouts::default(),
            engine: EngineConfig::default(),
            deliveries: DeliveriesConfig::default(),
            events: EventsConfig::default(),
            repository: RepositoryConfig::default(),
            robots: RobotsConfig::default(),
            workspace: WorkspaceConfig::default(),
            rules: Vec::new(),
            roles: Vec::new(),
            quotas: Vec::new(),
            listeners: vec![ListenerConfig::default()],
        }
    }
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
            listeners,
            ..Self::default()
        }
    }

    /// Reads a configuration file alone, without environment and flags. `gateways`: the names that its listeners may have;
    /// every server has `storage` and `admin`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_file(path: &Path, gateways: &[&str]) -> Result<Self, ConfigError> {
        let config = Document::parse(path, &read(path)?)?.read()?;
        config.validate(gateways)?;
        Ok(config)
    }

    /// The configuration as a file would say it, defaults included.
    ///
    /// # Errors
    /// A path that is no UTF-8 cannot be written.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}
