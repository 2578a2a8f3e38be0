//! How values are written: sizes as numbers or "64 MiB", durations as "15s", choices as words.
//!
//! Two kinds of mistakes are told apart. A value of the wrong type is serde's error, and is told by its line. A text
//! that is none of those allowed is [`refused`], and is told by its key.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use storage_protocol::Keyspace;

use super::{
    AuditEvent, AuthMethod, ConfigError, LogFormat, NodeRooms, ParamsAction, Signup, TlsMode,
    TlsVersion,
};
use crate::engine::rocks::Durability;

/// Stands in the message of an error between a value and what is allowed. No text of TOML has it.
const DIVIDER: char = '\0';

/// The error of a deserializer for a value that is not allowed.
fn refused<E: Error>(value: impl fmt::Debug, allowed: impl fmt::Display) -> E {
    E::custom(format_args!("{value:?}{DIVIDER}{allowed}"))
}

/// Value and what is allowed, if this is the message of an error for a value that is not.
pub(super) fn as_refused(message: &str) -> Option<(&str, &str)> {
    message.split_once(DIVIDER)
}

/// What serde needs of an enum that is written as a word.
macro_rules! words {
    ($type:ident: $($word:literal = $variant:ident),*) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match String::deserialize(deserializer)?.as_str() {
                    $($word => Ok(Self::$variant),)*
                    other => {
                        let words = [$(concat!("\"", $word, "\"")),*].join(", ");
                        Err(refused(other, format_args!("allowed are {words}")))
                    }
                }
            }
        }
    };
}

words!(Durability: "sync" = Sync, "os" = Os);
words!(LogFormat: "text" = Text, "json" = Json);
words!(TlsMode: "mutual" = Mutual, "server" = Server, "off" = Off);
words!(AuthMethod: "certificate" = Certificate, "token" = Token, "password" = Password, "anonymous" = Anonymous);
words!(AuditEvent: "denied" = Denied, "admin" = Admin, "session" = Session, "write" = Write, "read" = Read, "watch" = Watch);
words!(ParamsAction: "save" = Save, "update" = Update);
words!(NodeRooms: "checked" = Checked, "open" = Open);
words!(Signup: "loopback" = Loopback, "off" = Off);
words!(TlsVersion: "1.3" = Tls13, "1.2" = Tls12);

/// A count or a size in bytes.
pub(crate) fn size<'de, D, N>(deserializer: D) -> Result<N, D::Error>
where
    D: Deserializer<'de>,
    N: TryFrom<u64>,
{
    let value = deserializer.deserialize_any(SizeVisitor)?;
    N::try_from(value)
        .map_err(|_| D::Error::invalid_value(Unexpected::Unsigned(value), &SizeVisitor))
}

/// The same, of a key that has no default.
pub(super) fn size_or_none<'de, D>(deserializer: D) -> Result<Option<usize>, D::Error>
where
    D: Deserializer<'de>,
{
    size(deserializer).map(Some)
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, or a size such as \"64 MiB\" (KiB, MiB, GiB)")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        parse_size(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

fn parse_size(text: &str) -> Option<u64> {
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
    digits.trim().parse::<u64>().ok()?.checked_mul(unit)
}

/// A duration.
pub(super) mod duration {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!("{text:?} is no duration such as \"15s\": {error}"))
        })
    }
}

const ADDRESSES: &str = "an IP address and port, such as \"127.0.0.1:7443\" or \"[::1]:7443\"";

/// Checks the value of a flag as one of the file is checked.
pub(crate) fn check_address(key: &str, text: &str) -> Result<(), ConfigError> {
    let parsed = text.parse::<SocketAddr>().map(|_| ());
    parsed.map_err(|_| ConfigError::value(key, format!("{text:?}"), ADDRESSES))
}

pub(super) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| refused(&text, ADDRESSES))
}

/// The name of a keyspace.
pub(super) mod keyspace {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        keyspace: &Keyspace,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(keyspace)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Keyspace, D::Error> {
        let name = String::deserialize(deserializer)?;
        Keyspace::new(&name).map_err(|error| refused(&name, error))
    }
}

/// Names of keyspaces.
pub(super) mod keyspaces {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        keyspaces: &[Keyspace],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keyspaces.iter().map(Keyspace::to_string))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Keyspace>, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let keyspace = |name: &String| Keyspace::new(name).map_err(|error| refused(name, error));
        names.iter().map(keyspace).collect()
    }
}
