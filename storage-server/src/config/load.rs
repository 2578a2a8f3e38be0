//! From a file, and what flags say over it, to a [`ServerConfig`] that is yet to be validated.
//!
//! The file stays a table of TOML until all is known, for three reasons: what a flag says takes the place of what the
//! file says, so the latter is not checked; some defaults depend on which keys were set; and a value that is not allowed
//! is told by its key, one of the wrong type by its line.

use std::borrow::Cow;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Deserializer};

use super::{ConfigError, ServerConfig, text};

/// Reads the text of a configuration file.
///
/// # Errors
/// [`ConfigError::Unreadable`].
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// A file, with what was set over it.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// `path` is for errors only.
    ///
    /// # Errors
    /// The text is no TOML.
    pub(crate) fn parse(path: &'a Path, text: &'a str) -> Result<Self, ConfigError> {
        let table = DeTable::parse(text).map_err(|error| invalid(path, text, &error))?;
        Ok(Self { path, text, table })
    }

    /// Sets a key, of a table that has a name or of the whole.
    pub(crate) fn set(&mut self, table: Option<&'static str>, key: &'static str, value: &'a str) {
        let root = self.table.get_mut();
        let Some(name) = table else {
            return set(root, key, value);
        };
        let table = root
            .entry(inserted(Cow::Borrowed(name)))
            .or_insert_with(|| inserted(DeValue::Table(DeTable::new())));
        // What is no table is refused as such.
        if let DeValue::Table(table) = table.get_mut() {
            set(table, key, value);
        }
    }

    /// The first listener that serves storage gets the address; a file with none of that kind gets one more.
    pub(crate) fn set_listener(&mut self, address: &'a str) {
        let root = self.table.get_mut();
        let listeners = root
            .entry(inserted(Cow::Borrowed("listener")))
            .or_insert_with(|| inserted(DeValue::Array(DeArray::new())));
        let DeValue::Array(listeners) = listeners.get_mut() else {
            return;
        };
        let mut tables = listeners.iter_mut().map(|table| table.get_mut());
        match tables.find(|listener| serves_storage(listener)) {
            Some(DeValue::Table(listener)) => set(listener, "address", address),
            _ => {
                let mut listener = DeTable::new();
                set(&mut listener, "address", address);
                listeners.push(inserted(DeValue::Table(listener)));
            }
        }
    }

    /// The configuration, with the defaults that depend on what is set. Its values are yet to be validated.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn read(self) -> Result<ServerConfig, ConfigError> {
        let given = self.table.get_ref().clone();
        let mut config: ServerConfig =
            serde_path_to_error::deserialize(Deserializer::from(self.table)).map_err(|error| {
                let key = error.path().to_string();
                match text::as_refused(error.inner().message()) {
                    Some((value, allowed)) => ConfigError::value(key, value, allowed),
                    None => invalid(self.path, self.text, error.inner()),
                }
            })?;
        let listeners = given
            .get("listener")
            .and_then(|value| value.get_ref().as_array());
        let lacks_address =
            |listener: &Spanned<DeValue<'_>>| listener.get_ref().get("address").is_none();
        if let Some(place) = listeners.and_then(|tables| tables.iter().position(lacks_address)) {
            return Err(ConfigError::value(
                format!("listener[{place}].address"),
                "(not set)",
                "an IP address and port, such as \"0.0.0.0:7443\"",
            ));
        }
        if config.listeners.is_empty() {
            config.listeners = ServerConfig::default().listeners;
        }
        let limits = given.get("limits").map(Spanned::get_ref);
        config
            .limits
            .grow_unless(|key| limits.is_some_and(|limits| limits.get(key).is_some()));
        Ok(config)
    }
}

fn serves_storage(listener: &DeValue<'_>) -> bool {
    let is_storage = |name: &Spanned<DeValue<'_>>| name.get_ref().as_str() == Some("storage");
    let has_storage = |names: &Spanned<DeValue<'_>>| {
        let names = names.get_ref().as_array();
        names.is_some_and(|names| names.iter().any(is_storage))
    };
    listener.is_table() && listener.get("gateways").is_none_or(has_storage)
}

fn set<'a>(table: &mut DeTable<'a>, key: &'static str, value: &'a str) {
    let value = inserted(DeValue::String(Cow::Borrowed(value)));
    table.insert(inserted(Cow::Borrowed(key)), value);
}

/// What the text does not have; no error is told by its line.
fn inserted<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or_default();
    ConfigError::Invalid {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        message: error.message().to_owned(),
    }
}
