//! JSON lines, both ways.
//!
//! Out: [`Object`] writes fields in the order given. In: [`parse`] reads a line of `commit` and `import`. Bytes that
//! are UTF-8 stand as text under `key` or `value`, others as standard Base64 under `key_b64` or `value_b64`.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use storage_protocol::{
    Check, Entry, EntryLifetime, Expected, Key, Lifetime, Operation, Position, Revision,
};

use crate::escape;

/// A JSON object that is being written.
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn new() -> Self {
        Self("{".to_owned())
    }

    /// A field whose value is JSON already.
    pub(crate) fn raw(mut self, name: &str, json: &str) -> Self {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&escape::json(name));
        self.0.push(':');
        self.0.push_str(json);
        self
    }

    pub(crate) fn text(self, name: &str, text: &str) -> Self {
        self.raw(name, &escape::json(text))
    }

    pub(crate) fn number(self, name: &str, number: u64) -> Self {
        self.raw(name, &number.to_string())
    }

    pub(crate) fn object(self, name: &str, object: Self) -> Self {
        self.raw(name, &object.finish())
    }

    pub(crate) fn list(self, name: &str, objects: impl Iterator<Item = Self>) -> Self {
        let objects: Vec<_> = objects.map(Self::finish).collect();
        self.raw(name, &format!("[{}]", objects.join(",")))
    }

    /// A key or value, under `name` or `name_b64`.
    pub(crate) fn bytes(self, name: &str, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(name, text),
            Err(_) => self.text(&format!("{name}_b64"), &BASE64_STANDARD.encode(bytes)),
        }
    }

    /// `epoch` and `revision`.
    pub(crate) fn position(self, position: Position) -> Self {
        self.text("epoch", &position.epoch.to_string())
            .number("revision", position.revision.0)
    }

    /// When a stored entry ends; nothing for one that stays.
    pub(crate) fn lifetime(self, lifetime: EntryLifetime) -> Self {
        match lifetime {
            EntryLifetime::Forever => self,
            EntryLifetime::Until(time) => self.number("expires_ms", time.0),
            EntryLifetime::Session => self.raw("session", "true"),
        }
    }

    /// A stored entry with its key.
    pub(crate) fn entry(self, key: &[u8], entry: &Entry) -> Self {
        self.bytes("key", key)
            .bytes("value", &entry.value)
            .number("revision", entry.revision.0)
            .lifetime(entry.lifetime)
    }

    pub(crate) fn finish(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// What a line of `commit` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Check(Check),
    Operation(Operation),
}

/// Reads a line; the error says what is wrong with it, and where.
pub(crate) fn parse(line: &str) -> Result<Item, String> {
    match serde_json::from_str(line).map_err(|error| explain(&error))? {
        Line::Check(fields) => {
            let revision = fields
                .revision
                .ok_or("\"check\" has no \"revision\" (null for a key that is to be absent)")?;
            Ok(Item::Check(Check {
                key: bytes("key", fields.key, fields.key_b64)?,
                expected: revision.map_or(Expected::Absent, |n| Expected::At(Revision(n))),
            }))
        }
        Line::Put(fields) => Ok(Item::Operation(Operation::Put {
            key: bytes("key", fields.key, fields.key_b64)?,
            value: bytes("value", fields.value, fields.value_b64)?,
            lifetime: match fields.ttl_ms {
                None => Lifetime::Forever,
                Some(0) => return Err("\"ttl_ms\" is 0, and at least 1 is needed".into()),
                Some(millis) => Lifetime::TimeToLive(Duration::from_millis(millis)),
            },
        })),
        Line::Remove(fields) => Ok(Item::Operation(Operation::Remove {
            key: bytes("key", fields.key, fields.key_b64)?,
        })),
    }
}

/// Serde's words, with the column but without its line, which is always 1.
pub(crate) fn explain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Key, String> {
    match (text, base64) {
        (Some(text), None) => Ok(Bytes::from(text)),
        (None, Some(base64)) => match BASE64_STANDARD.decode(base64) {
            Ok(bytes) => Ok(Bytes::from(bytes)),
            Err(error) => Err(format!("\"{name}_b64\" is no standard Base64: {error}")),
        },
        (None, None) => Err(format!("neither \"{name}\" nor \"{name}_b64\" is there")),
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{name}_b64\" are there")),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Check(CheckFields),
    Put(PutFields),
    Remove(RemoveFields),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckFields {
    key: Option<String>,
    key_b64: Option<String>,
    /// `None`: not there; `Some(None)`: null.
    #[serde(default, deserialize_with = "present")]
    revision: Option<Option<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutFields {
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    value_b64: Option<String>,
    ttl_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveFields {
    key: Option<String>,
    key_b64: Option<String>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static [u8], value: &'static [u8], lifetime: Lifetime) -> Item {
        Item::Operation(Operation::Put {
            key: Key::from_static(key),
            value: Bytes::from_static(value),
            lifetime,
        })
    }

    #[test]
    fn lines_are_read() {
        let forever = Lifetime::Forever;
        let read = |line| parse(line).unwrap();
        assert_eq!(
            read(r#"{"put":{"key":"a","value":"ü\n"}}"#),
            put(b"a", "ü\n".as_bytes(), forever)
        );
        assert_eq!(
            read(r#" {"put":{"key_b64":"AP8=","value_b64":"","ttl_ms":1500}} "#),
            put(
                &[0, 255],
                b"",
                Lifetime::TimeToLive(Duration::from_millis(1500))
            )
        );
        let key = Key::from("a");
        assert_eq!(
            read(r#"{"remove":{"key_b64":"YQ=="}}"#),
            Item::Operation(Operation::Remove { key: key.clone() })
        );
        let check = |expected| {
            Item::Check(Check {
                key: key.clone(),
                expected,
            })
        };
        assert_eq!(
            read(r#"{"check":{"key":"a","revision":null}}"#),
            check(Expected::Absent)
        );
        assert_eq!(
            read(r#"{"check":{"key":"a","revision":7}}"#),
            check(Expected::At(Revision(7)))
        );
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (line, why) in [
            ("", "EOF"),
            ("[]", "expected value"),
            ("7", "expected"),
            (
                r#"{"set":{"key":"a"}}"#,
                "unknown variant `set`, expected one of `check`, `put`, `remove`",
            ),
            (
                r#"{"put":{"key":"a","value":"b"},"remove":{"key":"a"}}"#,
                "(column",
            ),
            (r#"{"put":{"key":"a","val":"b"}}"#, "unknown field `val`"),
            (
                r#"{"put":{"key":"a"}}"#,
                "neither \"value\" nor \"value_b64\"",
            ),
            (
                r#"{"put":{"value":"a"}}"#,
                "neither \"key\" nor \"key_b64\"",
            ),
            (
                r#"{"put":{"key":"a","key_b64":"YQ==","value":""}}"#,
                "both \"key\" and \"key_b64\"",
            ),
            (
                r#"{"put":{"key":"a","value_b64":"YQ"}}"#,
                "\"value_b64\" is no standard Base64",
            ),
            (
                r#"{"put":{"key":"a","value":"b","ttl_ms":0}}"#,
                "at least 1",
            ),
            (r#"{"put":{"key":"a","value":"b","ttl_ms":-1}}"#, "(column"),
            (r#"{"check":{"key":"a"}}"#, "no \"revision\""),
            (r#"{"check":{"key":"a","revision":1.5}}"#, "(column"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(
                error.contains(why) && !error.contains(" line "),
                "{line}: {error}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for bytes in [
            &b"plain"[..],
            b"",
            "\"ü\\\u{0}\n\u{2028}".as_bytes(),
            &[0, 255, 3],
        ] {
            let line = Object::new().object(
                "put",
                Object::new().bytes("key", bytes).bytes("value", bytes),
            );
            let line = line.finish();
            assert!(!line.contains('\n'));
            let (key, value) = (Key::copy_from_slice(bytes), Bytes::copy_from_slice(bytes));
            let lifetime = Lifetime::Forever;
            let expected = Item::Operation(Operation::Put {
                key,
                value,
                lifetime,
            });
            assert_eq!(parse(&line).unwrap(), expected, "{line}");
        }
        let escaped = Object::new()
            .bytes("key", &[0, 255])
            .raw("x", "null")
            .number("n", 7);
        assert_eq!(escaped.finish(), r#"{"key_b64":"AP8=","x":null,"n":7}"#);
    }
}
