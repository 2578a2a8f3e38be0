//! From the written form to the checked one, and back for `config print`.
//!
//! Each limit has its range here; the upper ends are the protocol's constants, so a deployment can never announce
//! what the two codecs would refuse.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use storage_protocol::{Batch, Keyspace, Limits};

use crate::engine::rocks::EngineOptions;

use super::raw::{RawEngine, RawLimits, RawLog, RawTimeouts, Size, Span};
use super::{
    ConfigError, DEFAULT_ADDRESS, Durability, EngineConfig, LOG_KEEP_DEFAULT, ListenerConfig,
    LogConfig, LogFormat, RawConfig, RawListener, ServerConfig, ServerLimits, Timeouts, TlsMode,
    TlsVersion,
};

type Result<T> = std::result::Result<T, ConfigError>;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// What a listener serves where nothing is said.
const GATEWAY_DEFAULT: &str = "storage";
const DATA_DEFAULT: &str = "storage-data";
const LOG_FILTER_DEFAULT: &str = "info";
const LOG_KEEP_MAX: usize = 10_000;

/// `known`: the gateways that there are.
pub(super) fn checked(raw: &RawConfig, known: &[&str]) -> Result<ServerConfig> {
    let listeners = match raw.listeners.as_slice() {
        [] => vec![ListenerConfig::new(DEFAULT_ADDRESS)],
        tables => tables
            .iter()
            .enumerate()
            .map(|(n, table)| listener(n, table, known))
            .collect::<Result<_>>()?,
    };
    if raw.certs.is_none()
        && let Some(with_tls) = listeners
            .iter()
            .find(|listener| listener.tls != TlsMode::Off)
    {
        return Err(ConfigError::value(
            "certs",
            "(not set)",
            format!(
                "listener {} has TLS and needs a folder with server/cert.pem, server/key.pem and server/ca.pem \
                 (`storage-certs` makes one)",
                with_tls.address
            ),
        ));
    }
    Ok(ServerConfig {
        data: raw
            .data
            .clone()
            .unwrap_or_else(|| PathBuf::from(DATA_DEFAULT)),
        certs: raw.certs.clone(),
        durability: one_of(
            "durability",
            raw.durability.as_deref(),
            &[("sync", Durability::Sync), ("os", Durability::Os)],
        )?,
        accept_data_loss: raw.accept_data_loss.unwrap_or(false),
        new_epoch: raw.new_epoch.unwrap_or(false),
        log: log(&raw.log)?,
        limits: limits(&raw.limits)?,
        timeouts: timeouts(&raw.timeouts)?,
        engine: engine(&raw.engine)?,
        listeners,
    })
}

/// The value named by `text`; the first choice is the default.
fn one_of<T: Copy>(key: &str, text: Option<&str>, choices: &[(&str, T)]) -> Result<T> {
    let found = match text {
        None => choices.first(),
        Some(text) => choices.iter().find(|(name, _)| *name == text),
    };
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect();
        ConfigError::value(
            key,
            format!("{:?}", text.unwrap_or_default()),
            format!("allowed are {}", names.join(", ")),
        )
    })
}

fn listener(place: usize, raw: &RawListener, known: &[&str]) -> Result<ListenerConfig> {
    let key = |name: &str| format!("listener[{place}].{name}");
    let address = match raw.address.as_deref() {
        None => {
            return Err(ConfigError::value(
                key("address"),
                "(not set)",
                "an IP address and port, such as \"0.0.0.0:7443\"",
            ));
        }
        Some(text) => address(&key("address"), text)?,
    };
    let tls = one_of(
        &key("tls"),
        raw.tls.as_deref(),
        &[
            ("mutual", TlsMode::Mutual),
            ("server", TlsMode::Server),
            ("off", TlsMode::Off),
        ],
    )?;
    let danger_plaintext = raw.danger_plaintext.unwrap_or(false);
    if tls == TlsMode::Off && !address.ip().is_loopback() && !danger_plaintext {
        return Err(ConfigError::value(
            key("tls"),
            "\"off\"",
            format!(
                "without TLS only loopback addresses are allowed, not {address}, unless danger_plaintext = true"
            ),
        ));
    }
    let version = |name: &str, raw: Option<&str>| {
        let choices = [("1.3", TlsVersion::Tls13), ("1.2", TlsVersion::Tls12)];
        one_of(&key(name), raw, &choices)
    };
    let tls_min_version = version("tls_min_version", raw.tls_min_version.as_deref())?;
    let tls_max_version = version("tls_max_version", raw.tls_max_version.as_deref())?;
    if tls_max_version < tls_min_version {
        return Err(ConfigError::value(
            key("tls_max_version"),
            "\"1.2\"",
            "not below tls_min_version: set tls_min_version = \"1.2\" too",
        ));
    }
    Ok(ListenerConfig {
        address,
        tls,
        gateways: gateways(&key("gateways"), raw.gateways.as_deref(), known)?,
        tls_min_version,
        tls_max_version,
        allowed_origins: origins(&key("allowed_origins"), raw.allowed_origins.as_deref())?,
        allowed_hosts: hosts(&key("allowed_hosts"), raw.allowed_hosts.as_deref())?,
        danger_plaintext,
    })
}

fn origins(key: &str, raw: Option<&[String]>) -> Result<Vec<String>> {
    let is_origin = |text: &str| {
        let rest = text
            .split_once("://")
            .map(|(scheme, rest)| (scheme.is_empty(), rest));
        text == "*"
            || rest.is_some_and(|(no_scheme, rest)| {
                !no_scheme && !rest.is_empty() && !rest.contains(['/', '*', '@', ' '])
            })
    };
    let names = raw.unwrap_or_default();
    match names.iter().find(|name| !is_origin(name)) {
        None => Ok(names.to_vec()),
        Some(bad) => Err(ConfigError::value(
            key,
            format!("{bad:?}"),
            "an origin as browsers say it, such as \"https://example.com\" or \"http://localhost:3000\", or \"*\"",
        )),
    }
}

fn hosts(key: &str, raw: Option<&[String]>) -> Result<Vec<String>> {
    let is_host =
        |text: &str| text == "*" || (!text.is_empty() && !text.contains(['/', '*', ':', '@', ' ']));
    let names = raw.unwrap_or_default();
    match names.iter().find(|name| !is_host(name)) {
        None => Ok(names.to_vec()),
        Some(bad) => Err(ConfigError::value(
            key,
            format!("{bad:?}"),
            "a host name without a port, such as \"storage.internal\", or \"*\"",
        )),
    }
}

pub(crate) fn address(key: &str, text: &str) -> Result<SocketAddr> {
    text.parse().map_err(|_| {
        ConfigError::value(
            key,
            format!("{text:?}"),
            "an IP address and port, such as \"127.0.0.1:7443\" or \"[::1]:7443\"",
        )
    })
}

fn gateways(key: &str, names: Option<&[String]>, known: &[&str]) -> Result<Vec<String>> {
    let allowed: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
    let allowed = allowed.join(", ");
    let Some(names) = names else {
        return Ok(vec![GATEWAY_DEFAULT.to_owned()]);
    };
    if names.is_empty() {
        let allowed = format!("at least one of {allowed}");
        return Err(ConfigError::value(key, "[]", allowed));
    }
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        // Each once, in the order in which they are asked.
        None => Ok(known
            .iter()
            .filter(|known| names.iter().any(|name| name == *known))
            .map(ToString::to_string)
            .collect()),
        Some(other) => {
            let allowed = format!("allowed are {allowed}");
            Err(ConfigError::value(key, format!("{other:?}"), allowed))
        }
    }
}

fn log(raw: &RawLog) -> Result<LogConfig> {
    let filter = raw
        .filter
        .clone()
        .unwrap_or_else(|| LOG_FILTER_DEFAULT.to_owned());
    if let Err(error) = filter.parse::<tracing_subscriber::filter::Targets>()
        && tracing_subscriber::EnvFilter::try_new(&filter).is_err()
    {
        return Err(ConfigError::value(
            "log.filter",
            format!("{filter:?}"),
            error.to_string(),
        ));
    }
    Ok(LogConfig {
        format: one_of(
            "log.format",
            raw.format.as_deref(),
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        )?,
        dir: raw.dir.clone(),
        filter,
        keep: match raw.keep {
            None => LOG_KEEP_DEFAULT,
            Some(Size(keep)) => usize::try_from(keep)
                .ok()
                .filter(|keep| (1..=LOG_KEEP_MAX).contains(keep))
                .ok_or_else(|| {
                    ConfigError::value("log.keep", keep, format!("allowed are 1 to {LOG_KEEP_MAX}"))
                })?,
        },
    })
}

/// Sets `target` to what is written, if it lies in the range.
fn set(target: &mut usize, name: &str, raw: Option<Size>, min: usize, max: usize) -> Result<()> {
    let Some(Size(value)) = raw else {
        return Ok(());
    };
    match usize::try_from(value) {
        Ok(value) if (min..=max).contains(&value) => {
            *target = value;
            Ok(())
        }
        _ => Err(ConfigError::value(
            format!("limits.{name}"),
            value,
            format!("allowed are {min} to {max}"),
        )),
    }
}

fn limits(raw: &RawLimits) -> Result<ServerLimits> {
    let mut limits = ServerLimits::default();
    let unbounded = usize::MAX / 2;
    let message_ceiling = Limits::MESSAGE_BYTES_CEILING;
    let said = &mut limits.announced;
    set(
        &mut said.key_bytes_max,
        "key_bytes_max",
        raw.key_bytes_max,
        16,
        Limits::KEY_BYTES_CEILING,
    )?;
    set(
        &mut said.message_bytes_max,
        "message_bytes_max",
        raw.message_bytes_max,
        64 * KIB,
        message_ceiling,
    )?;
    set(
        &mut said.value_bytes_max,
        "value_bytes_max",
        raw.value_bytes_max,
        KIB,
        message_ceiling,
    )?;
    set(
        &mut said.keys_per_get_max,
        "keys_per_get_max",
        raw.keys_per_get_max,
        1,
        1_000_000,
    )?;
    set(
        &mut said.operations_per_commit_max,
        "operations_per_commit_max",
        raw.operations_per_commit_max,
        1,
        1_000_000,
    )?;
    set(
        &mut said.requests_in_flight_max,
        "requests_in_flight_max",
        raw.requests_in_flight_max,
        1,
        1_024,
    )?;
    set(
        &mut said.bytes_in_flight_max,
        "bytes_in_flight_max",
        raw.bytes_in_flight_max,
        64 * KIB,
        unbounded,
    )?;
    set(
        &mut said.watches_max,
        "watches_max",
        raw.watches_max,
        0,
        1_000_000,
    )?;
    set(&mut said.scans_max, "scans_max", raw.scans_max, 0, 10_000)?;
    let (message, value) = (said.message_bytes_max, said.value_bytes_max);
    if value + said.key_bytes_max + Batch::BASE_BYTES + Batch::ITEM_BYTES > message {
        return Err(ConfigError::value(
            "limits.value_bytes_max",
            value,
            format!("a value and its key must fit into a message (message_bytes_max is {message})"),
        ));
    }
    if said.bytes_in_flight_max < message {
        if raw.bytes_in_flight_max.is_some() {
            let given = said.bytes_in_flight_max;
            let allowed = format!("at least one message (message_bytes_max is {message})");
            return Err(ConfigError::value(
                "limits.bytes_in_flight_max",
                given,
                allowed,
            ));
        }
        said.bytes_in_flight_max = message;
    }
    // One principal has half, which must hold a message.
    for (total, name, raw) in [
        (
            &mut limits.bytes_in_flight_total_max,
            "bytes_in_flight_total_max",
            raw.bytes_in_flight_total_max,
        ),
        (
            &mut limits.partial_messages_bytes_max,
            "partial_messages_bytes_max",
            raw.partial_messages_bytes_max,
        ),
        (
            &mut limits.outbox_bytes_total_max,
            "outbox_bytes_total_max",
            raw.outbox_bytes_total_max,
        ),
    ] {
        *total = (*total).max(2 * message);
        set(total, name, raw, 2 * message, unbounded)?;
    }
    set(
        &mut limits.sessions_max,
        "sessions_max",
        raw.sessions_max,
        1,
        10_000_000,
    )?;
    let each = &mut limits.sessions_per_principal_max;
    set(
        each,
        "sessions_per_principal_max",
        raw.sessions_per_principal_max,
        1,
        10_000_000,
    )?;
    set(
        &mut limits.sessions_kept_max,
        "sessions_kept_max",
        raw.sessions_kept_max,
        0,
        10_000_000,
    )?;
    set(
        &mut limits.mwdb_keys_max,
        "mwdb_keys_max",
        raw.mwdb_keys_max,
        1,
        Limits::MWDB_KEYS,
    )?;
    set(
        &mut limits.outbox_bytes_max,
        "outbox_bytes_max",
        raw.outbox_bytes_max,
        64 * KIB,
        unbounded,
    )?;
    set(
        &mut limits.watch_bytes_max,
        "watch_bytes_max",
        raw.watch_bytes_max,
        64 * KIB,
        unbounded,
    )?;
    let total = &mut limits.watch_bytes_total_max;
    set(
        total,
        "watch_bytes_total_max",
        raw.watch_bytes_total_max,
        MIB,
        unbounded,
    )?;
    set(
        &mut limits.handshakes_max,
        "handshakes_max",
        raw.handshakes_max,
        1,
        1_000_000,
    )?;
    set(
        &mut limits.http_connections_max,
        "http_connections_max",
        raw.http_connections_max,
        1,
        1_000_000,
    )?;
    limits.commit_queue_bytes_max = optional(
        "commit_queue_bytes_max",
        raw.commit_queue_bytes_max,
        message,
    )?;
    limits.memory_bytes_max = optional("memory_bytes_max", raw.memory_bytes_max, 16 * MIB)?;
    limits.connections_max = optional("connections_max", raw.connections_max, 1)?;
    Ok(limits)
}

fn optional(name: &str, raw: Option<Size>, min: usize) -> Result<Option<usize>> {
    let mut value = 0;
    set(&mut value, name, raw, min, usize::MAX / 2)?;
    Ok(raw.map(|_| value))
}

fn timeouts(raw: &RawTimeouts) -> Result<Timeouts> {
    let mut timeouts = Timeouts::default();
    let (min, max) = (Duration::from_millis(100), Duration::from_secs(24 * 3600));
    let set = |target: &mut Duration, name: &str, raw: Option<Span>| {
        let Some(Span(value)) = raw else {
            return Ok(());
        };
        if !(min..=max).contains(&value) {
            let value = humantime::format_duration(value);
            return Err(ConfigError::value(
                format!("timeouts.{name}"),
                value,
                "allowed are 100ms to 24h",
            ));
        }
        *target = value;
        Ok(())
    };
    set(&mut timeouts.handshake, "handshake", raw.handshake)?;
    set(&mut timeouts.heartbeat, "heartbeat", raw.heartbeat)?;
    set(&mut timeouts.silence, "silence", raw.silence)?;
    set(&mut timeouts.slow_peer, "slow_peer", raw.slow_peer)?;
    set(
        &mut timeouts.partial_message,
        "partial_message",
        raw.partial_message,
    )?;
    set(&mut timeouts.idle_mark, "idle_mark", raw.idle_mark)?;
    set(&mut timeouts.http_idle, "http_idle", raw.http_idle)?;
    set(&mut timeouts.drain, "drain", raw.drain)?;
    set(
        &mut timeouts.session_grace,
        "session_grace",
        raw.session_grace,
    )?;
    set(&mut timeouts.session_kept, "session_kept", raw.session_kept)?;
    if timeouts.session_kept < timeouts.session_grace {
        return Err(ConfigError::value(
            "timeouts.session_kept",
            humantime::format_duration(timeouts.session_kept),
            format!(
                "at least timeouts.session_grace ({})",
                humantime::format_duration(timeouts.session_grace)
            ),
        ));
    }
    if timeouts.silence < 2 * timeouts.heartbeat {
        return Err(ConfigError::value(
            "timeouts.silence",
            humantime::format_duration(timeouts.silence),
            format!(
                "at least twice timeouts.heartbeat ({})",
                humantime::format_duration(timeouts.heartbeat)
            ),
        ));
    }
    Ok(timeouts)
}

fn engine(raw: &RawEngine) -> Result<EngineConfig> {
    let count = |name: &str, raw: Option<Size>| match raw {
        None => Ok(None),
        Some(Size(value)) => usize::try_from(value)
            .ok()
            .filter(|value| *value > 0)
            .map(Some)
            .ok_or_else(|| ConfigError::value(format!("engine.{name}"), value, "at least 1")),
    };
    let names = raw.mwdb_keyspaces.as_ref().map(|names| {
        let keyspace = |name: &String| {
            Keyspace::new(name).map_err(|error| {
                ConfigError::value(
                    "engine.mwdb_keyspaces",
                    format!("{name:?}"),
                    error.to_string(),
                )
            })
        };
        names.iter().map(keyspace).collect::<Result<Vec<_>>>()
    });
    Ok(EngineConfig {
        disk_reserve_bytes: raw.disk_reserve_bytes.map(|size| size.0),
        log_bytes: raw.log_bytes.map(|size| size.0),
        log_age: raw.log_age.map(|span| span.0),
        ring_bytes: count("ring_bytes", raw.ring_bytes)?,
        read_threads: count("read_threads", raw.read_threads)?,
        tombstone_age: raw.tombstone_age.map(|span| span.0),
        tombstones_max: raw.tombstones_max.map(|size| size.0),
        mwdb_keyspaces: names.transpose()?,
    })
}

/// The written form of a checked configuration, all of it.
pub(super) fn raw_of(config: &ServerConfig) -> RawConfig {
    let size = |value: usize| Some(Size(value as u64));
    let (limits, said) = (&config.limits, &config.limits.announced);
    let timeouts = &config.timeouts;
    let engine_defaults = EngineOptions::new(&config.data);
    let span = |value: Duration| Some(Span(value));
    RawConfig {
        data: Some(config.data.clone()),
        certs: config.certs.clone(),
        durability: Some(
            if config.durability == Durability::Sync {
                "sync"
            } else {
                "os"
            }
            .to_owned(),
        ),
        accept_data_loss: Some(config.accept_data_loss),
        new_epoch: Some(config.new_epoch),
        log: RawLog {
            format: Some(
                if config.log.format == LogFormat::Text {
                    "text"
                } else {
                    "json"
                }
                .to_owned(),
            ),
            dir: config.log.dir.clone(),
            filter: Some(config.log.filter.clone()),
            keep: size(config.log.keep),
        },
        limits: RawLimits {
            key_bytes_max: size(said.key_bytes_max),
            value_bytes_max: size(said.value_bytes_max),
            message_bytes_max: size(said.message_bytes_max),
            keys_per_get_max: size(said.keys_per_get_max),
            operations_per_commit_max: size(said.operations_per_commit_max),
            requests_in_flight_max: size(said.requests_in_flight_max),
            bytes_in_flight_max: size(said.bytes_in_flight_max),
            bytes_in_flight_total_max: size(limits.bytes_in_flight_total_max),
            watches_max: size(said.watches_max),
            scans_max: size(said.scans_max),
            sessions_max: size(limits.sessions_max),
            sessions_per_principal_max: size(limits.sessions_per_principal_max),
            sessions_kept_max: size(limits.sessions_kept_max),
            partial_messages_bytes_max: size(limits.partial_messages_bytes_max),
            commit_queue_bytes_max: size(
                limits
                    .commit_queue_bytes_max
                    .unwrap_or(engine_defaults.commit_queue_bytes),
            ),
            mwdb_keys_max: size(limits.mwdb_keys_max),
            outbox_bytes_max: size(limits.outbox_bytes_max),
            outbox_bytes_total_max: size(limits.outbox_bytes_total_max),
            watch_bytes_max: size(limits.watch_bytes_max),
            watch_bytes_total_max: size(limits.watch_bytes_total_max),
            memory_bytes_max: size(
                limits
                    .memory_bytes_max
                    .unwrap_or(engine_defaults.memory_bytes),
            ),
            handshakes_max: size(limits.handshakes_max),
            http_connections_max: size(limits.http_connections_max),
            connections_max: limits.connections_max.and_then(size),
        },
        timeouts: RawTimeouts {
            handshake: span(timeouts.handshake),
            heartbeat: span(timeouts.heartbeat),
            silence: span(timeouts.silence),
            slow_peer: span(timeouts.slow_peer),
            partial_message: span(timeouts.partial_message),
            idle_mark: span(timeouts.idle_mark),
            http_idle: span(timeouts.http_idle),
            drain: span(timeouts.drain),
            session_grace: span(timeouts.session_grace),
            session_kept: span(timeouts.session_kept),
        },
        engine: raw_engine(config),
        listeners: config.listeners.iter().map(raw_listener).collect(),
    }
}

/// What is not set is the engine's default.
fn raw_engine(config: &ServerConfig) -> RawEngine {
    let (engine, default) = (&config.engine, EngineOptions::new(&config.data));
    let size = |value: usize| Some(Size(value as u64));
    let names = engine
        .mwdb_keyspaces
        .as_ref()
        .unwrap_or(&default.mwdb_keyspaces);
    RawEngine {
        disk_reserve_bytes: Some(Size(
            engine
                .disk_reserve_bytes
                .unwrap_or(default.disk_reserve_bytes),
        )),
        log_bytes: Some(Size(engine.log_bytes.unwrap_or(default.log_bytes))),
        log_age: Some(Span(engine.log_age.unwrap_or(default.log_age))),
        ring_bytes: size(engine.ring_bytes.unwrap_or(default.ring_bytes)),
        read_threads: size(engine.read_threads.unwrap_or(default.read_threads)),
        tombstone_age: Some(Span(engine.tombstone_age.unwrap_or(default.tombstone_age))),
        tombstones_max: Some(Size(
            engine.tombstones_max.unwrap_or(default.tombstones_max),
        )),
        mwdb_keyspaces: Some(names.iter().map(Keyspace::to_string).collect()),
    }
}

fn raw_listener(listener: &ListenerConfig) -> RawListener {
    let tls = match listener.tls {
        TlsMode::Mutual => "mutual",
        TlsMode::Server => "server",
        TlsMode::Off => "off",
    };
    let version = |version| match version {
        TlsVersion::Tls12 => "1.2".to_owned(),
        TlsVersion::Tls13 => "1.3".to_owned(),
    };
    RawListener {
        address: Some(listener.address.to_string()),
        tls: Some(tls.to_owned()),
        gateways: Some(listener.gateways.clone()),
        tls_min_version: Some(version(listener.tls_min_version)),
        tls_max_version: Some(version(listener.tls_max_version)),
        allowed_origins: Some(listener.allowed_origins.clone()),
        allowed_hosts: Some(listener.allowed_hosts.clone()),
        danger_plaintext: Some(listener.danger_plaintext),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 2] = ["storage", "admin"];

    fn error(text: &str) -> String {
        let raw: RawConfig = match toml::from_str(text) {
            Ok(raw) => raw,
            Err(error) => return error.message().to_owned(),
        };
        checked(&raw, &KNOWN)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for (text, key, allowed) in [
            ("dtaa = 'x'", "dtaa", "data"),
            (
                "[limits]\nkey_byte_max = 1",
                "key_byte_max",
                "key_bytes_max",
            ),
            ("[[listener]]\naddres = 'x'", "addres", "address"),
            (
                "certs = 'c'\ndurability = 'fsync'",
                "durability = \"fsync\"",
                "\"sync\", \"os\"",
            ),
            (
                "certs = 'c'\n[limits]\nkey_bytes_max = 70000",
                "limits.key_bytes_max = 70000",
                "16 to 65536",
            ),
            (
                "certs = 'c'\n[limits]\nrequests_in_flight_max = 0",
                "requests_in_flight_max = 0",
                "1 to 1024",
            ),
            (
                "certs = 'c'\n[limits]\nvalue_bytes_max = '64 MiB'",
                "value_bytes_max = 67108864",
                "message_bytes_max",
            ),
            (
                "certs = 'c'\n[limits]\nbytes_in_flight_max = '1 MiB'",
                "bytes_in_flight_max",
                "at least one message",
            ),
            (
                "certs = 'c'\n[limits]\noutbox_bytes_total_max = '127 MiB'",
                "limits.outbox_bytes_total_max = 133169152",
                "allowed are 134217728 to",
            ),
            (
                "certs = 'c'\n[limits]\nscans_max = 'many'",
                "\"many\"",
                "64 MiB",
            ),
            ("certs = 'c'\n[timeouts]\nheartbeat = '15'", "\"15\"", "15s"),
            (
                "certs = 'c'\n[timeouts]\nheartbeat = '1ms'",
                "timeouts.heartbeat = 1ms",
                "100ms to 24h",
            ),
            (
                "certs = 'c'\n[timeouts]\nsilence = '20s'",
                "timeouts.silence = 20s",
                "twice",
            ),
            (
                "certs = 'c'\n[timeouts]\nsession_kept = '30s'",
                "timeouts.session_kept = 30s",
                "session_grace (1m)",
            ),
            (
                "certs = 'c'\n[engine]\nread_threads = 0",
                "engine.read_threads = 0",
                "at least 1",
            ),
            (
                "certs = 'c'\n[engine]\nmwdb_keyspaces = ['A']",
                "\"A\"",
                "[a-z0-9]",
            ),
            (
                "certs = 'c'\n[log]\nformat = 'xml'",
                "log.format = \"xml\"",
                "\"json\"",
            ),
            ("", "certs", "server/cert.pem"),
            (
                "[[listener]]\ntls = 'off'",
                "listener[0].address",
                "0.0.0.0:7443",
            ),
            (
                "[[listener]]\naddress = 'localhost'",
                "\"localhost\"",
                "127.0.0.1:7443",
            ),
            (
                "[[listener]]\naddress = '0.0.0.0:1'\ntls = 'off'",
                "listener[0].tls",
                "danger_plaintext",
            ),
            (
                "[[listener]]\naddress = '127.0.0.1:1'\ntls = 'no'",
                "listener[0].tls = \"no\"",
                "\"mutual\"",
            ),
            (
                "[[listener]]\naddress = '127.0.0.1:1'\ngateways = ['web']",
                "\"web\"",
                "\"storage\", \"admin\"",
            ),
            (
                "[[listener]]\naddress = '127.0.0.1:1'\ngateways = []",
                "gateways",
                "at least one",
            ),
            (
                "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\ntls_min_version = '1.1'",
                "tls_min_version",
                "1.2",
            ),
            (
                "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\ntls_max_version = '1.2'",
                "tls_max_version",
                "not below tls_min_version",
            ),
            (
                "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\nallowed_origins = ['example.com']",
                "\"example.com\"",
                "https://example.com",
            ),
            (
                "certs='c'\n[[listener]]\naddress = '127.0.0.1:1'\nallowed_hosts = ['db:1']",
                "\"db:1\"",
                "without a port",
            ),
            ("certs = 'c'\n[log]\nkeep = 0", "log.keep = 0", "1 to 10000"),
        ] {
            let error = error(text);
            assert!(
                error.contains(key) && error.contains(allowed),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn half_of_each_total_holds_a_message() {
        let text = "certs = 'c'\n[limits]\nmessage_bytes_max = '1 GiB'";
        let limits = checked(&toml::from_str(text).unwrap(), &KNOWN)
            .unwrap()
            .limits;
        assert_eq!(limits.outbox_bytes_total_max, 2 << 30);
        assert_eq!(limits.partial_messages_bytes_max, 2 << 30);
        assert_eq!(limits.bytes_in_flight_total_max, 2 << 30);
    }

    #[test]
    fn what_is_printed_reads_as_the_same() {
        let text =
            "certs = 'c'\n[limits]\nmessage_bytes_max = '128 MiB'\n[engine]\nlog_age = '36h'";
        let config = checked(&toml::from_str(text).unwrap(), &KNOWN).unwrap();
        assert_eq!(config.limits.announced.bytes_in_flight_max, 128 << 20);
        let printed = config.to_toml().unwrap();
        let again = checked(&toml::from_str(&printed).unwrap(), &KNOWN).unwrap();
        assert_eq!(again.to_toml().unwrap(), printed);
        assert_eq!(again.engine.log_age, Some(Duration::from_secs(36 * 3600)));
        assert_eq!(again.limits.announced, config.limits.announced);
    }

    #[test]
    fn plaintext_is_for_loopback_unless_asked_for() {
        let text = "[[listener]]\naddress = '0.0.0.0:1'\ntls = 'off'\ndanger_plaintext = true\ngateways = ['admin']";
        assert_eq!(error(text), "");
        assert_eq!(error("[[listener]]\naddress = '[::1]:1'\ntls = 'off'"), "");
    }
}
