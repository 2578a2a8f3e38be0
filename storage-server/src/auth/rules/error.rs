//! What is wrong with a rule or a role, and how both are read from the bytes of a stored value.

use std::fmt;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use super::rule::PREFIX_BYTES_MAX;
use crate::auth::pattern::PatternError;
use crate::auth::text::escaped;

/// The longest stored rule, role or quota, in bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// The longest text of an error of serde that is handed on, in characters. It may have a field's name in it.
const MESSAGE_CHARS_MAX: usize = 300;

/// Why a text is no rule, or no part of one. The texts are complete by themselves; of a record, they begin with the
/// field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// A pattern that is none.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// A role's name that is none.
    #[error("{shown} is no name of a role; allowed is the form [a-z0-9][a-z0-9._-]{{0,62}}")]
    RoleName {
        /// The name as messages show it.
        shown: String,
    },
    /// A role as a member of a role.
    #[error("{shown} is a role; allowed are patterns of principals, since roles are not nested")]
    NestedRole {
        /// The member as messages show it.
        shown: String,
    },
    /// A prefix that is too long.
    #[error("{shown} is too long; allowed are at most {PREFIX_BYTES_MAX} bytes")]
    PrefixTooLong {
        /// The prefix as messages show it.
        shown: String,
    },
    /// A word that is no permission.
    #[error("{shown} is no permission; allowed are \"read\", \"write\", \"watch\" and \"admin\"")]
    Permission {
        /// The word as messages show it.
        shown: String,
    },
    /// An empty list of permissions.
    #[error(
        "[] gives nothing; at least one of \"read\", \"write\", \"watch\" and \"admin\" is needed"
    )]
    NoPermission,
    /// A record that is too long.
    #[error("the record has {bytes} bytes; allowed are at most {RECORD_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A record that is not UTF-8.
    #[error("the record is not UTF-8 text: byte {place} (from 0) is wrong")]
    NotUtf8 {
        /// The first byte that is wrong, from 0.
        place: usize,
    },
    /// A record that does not begin as one.
    #[error(
        "the record is no object of JSON; allowed is {{...}} with the fields of a rule, a role or a quota"
    )]
    NotObject,
    /// A record that is no JSON, lacks a field, has an unknown one or a value that is not allowed.
    #[error("{message}")]
    Record {
        /// What is wrong, with the field and the place.
        message: String,
    },
}

/// A record of JSON.
pub(in crate::auth) fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, RuleError> {
    if json.len() > RECORD_BYTES_MAX {
        return Err(RuleError::TooLong { bytes: json.len() });
    }
    let text = std::str::from_utf8(json).map_err(|error| RuleError::NotUtf8 {
        place: error.valid_up_to(),
    })?;
    // serde would take a list of the fields' values too, which nobody can read.
    if !text.trim_start().starts_with('{') {
        return Err(RuleError::NotObject);
    }
    serde_json::from_str(text).map_err(|error| RuleError::Record {
        message: escaped(&error.to_string(), MESSAGE_CHARS_MAX),
    })
}

/// A value of a field whose errors begin with the field's name.
pub(in crate::auth) fn field<'de, T, D>(name: &str, deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map_err(|error| named(name, error))
}

/// An error with the field's name in front.
pub(super) fn named<E: Error>(name: &str, error: impl fmt::Display) -> E {
    // An error of TOML ends with a line break.
    E::custom(format_args!("{name}: {}", error.to_string().trim_end()))
}
