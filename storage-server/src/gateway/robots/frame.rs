//! The frames of robots, in both dialects: `{"event":...,"value":...}`, and `{"_event":...,"value":...}` of later clients.
//!
//! The dialects differ in the name of the event, in what a value is (an object, or its text: both are taken from both), and
//! in what a robot is answered. Names of events are compared without case.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// The longest frame, in bytes. A longer one is dropped with a line in the log, up to what a connection takes at all.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 10;
/// The longest name of a robot or of a package, and the longest address, owner and path, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 120;
pub(crate) const PATH_BYTES_MAX: usize = 4 << 10;
/// The longest token.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// How a robot speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `event`; the value of a notification is an object.
    Plain,
    /// `_event`; it is the text of one.
    Underscore,
}

/// What a robot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) dialect: Dialect,
    pub(crate) event: Event,
}

/// See [`Frame`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Who it is; else what is wrong with that, with the address if there is one.
    Metadata(Result<Metadata, BadMetadata>),
    /// For its log: any JSON, as it was written.
    Message(String),
    /// It wants a package again; `None`: the last one.
    Decline(Option<String>),
    /// None of these.
    Other(String),
}

/// Who a robot says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) address: String,
    /// `userID` or `uuid`, as it was said: a number or a text; null where it was not.
    pub(crate) owner: Value,
    pub(crate) token: Option<String>,
}

/// See [`Event::Metadata`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadMetadata {
    pub(crate) address: Option<String>,
    pub(crate) why: String,
}

/// Why a text is no frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// It is too long.
    #[error("a frame has at most {FRAME_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// It is no JSON object of this kind.
    #[error("no frame: {0}")]
    NoFrame(String),
    /// It names no event.
    #[error("no frame: neither \"event\" nor \"_event\" is a text")]
    NoEvent,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_event")]
    underscore: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
}

/// Reads a frame.
///
/// # Errors
/// [`FrameError`].
pub(crate) fn parse_frame(text: &str) -> Result<Frame, FrameError> {
    if text.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(text.len()));
    }
    // A struct may be written as a list too, which no frame is.
    if !text.trim_start().starts_with('{') {
        return Err(FrameError::NoFrame("it is no JSON object".to_owned()));
    }
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|error| FrameError::NoFrame(error.to_string()))?;
    let named = |raw: Option<&RawValue>| serde_json::from_str::<String>(raw?.get()).ok();
    let (dialect, name) = match (named(envelope.underscore), named(envelope.event)) {
        (Some(name), _) => (Dialect::Underscore, name),
        (None, Some(name)) => (Dialect::Plain, name),
        (None, None) => return Err(FrameError::NoEvent),
    };
    let value = envelope.value.map(RawValue::get);
    let event = match name.trim().to_ascii_lowercase().as_str() {
        "client robot metadata" => Event::Metadata(metadata(value)),
        "client robot message" => match value {
            Some(value) => Event::Message(value.to_owned()),
            None => Event::Other("client robot message without a value".to_owned()),
        },
        "decline pkg reception" => {
            let name = value.and_then(|value| serde_json::from_str::<String>(value).ok());
            Event::Decline(name.filter(|name| !name.trim().is_empty()))
        }
        _ => Event::Other(name.chars().take(NAME_BYTES_MAX).collect()),
    };
    Ok(Frame { dialect, event })
}

/// A text, or a number as one.
pub(super) fn text_of(value: Option<&Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) => Some(text.trim().to_owned()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

fn metadata(value: Option<&str>) -> Result<Metadata, BadMetadata> {
    let bad = |address: Option<&String>, why: String| BadMetadata {
        address: address.cloned(),
        why,
    };
    let value = value.and_then(|value| serde_json::from_str::<Value>(value).ok());
    let value = match value {
        Some(Value::String(text)) => serde_json::from_str(&text).ok(),
        value => value,
    };
    let Some(Value::Object(fields)) = value else {
        return Err(bad(
            None,
            "its value is no object, nor the text of one".to_owned(),
        ));
    };
    let field = |name: &str| {
        let text = text_of(fields.get(name)).unwrap_or_default();
        match text.len() {
            0 => Err(format!("{name} is missing")),
            1..=NAME_BYTES_MAX => Ok(text),
            bytes => Err(format!(
                "{name} has at most {NAME_BYTES_MAX} bytes, this has {bytes}"
            )),
        }
    };
    let address = field("robotAddress").map_err(|why| bad(None, why))?;
    let name = field("robotName").map_err(|why| bad(Some(&address), why))?;
    let owner = ["userID", "uuid"].iter().find_map(|name| fields.get(*name));
    let owner = match owner {
        None | Some(Value::Null) => Value::Null,
        Some(Value::Number(number)) => Value::Number(number.clone()),
        Some(Value::String(text)) if text.len() <= NAME_BYTES_MAX => Value::String(text.clone()),
        Some(_) => {
            let why =
                format!("userID or uuid: a number, or a text of at most {NAME_BYTES_MAX} bytes");
            return Err(bad(Some(&address), why));
        }
    };
    let token = text_of(fields.get("token")).filter(|token| !token.is_empty());
    if token
        .as_ref()
        .is_some_and(|token| token.len() > TOKEN_BYTES_MAX)
    {
        return Err(bad(Some(&address), "token: it is too long".to_owned()));
    }
    Ok(Metadata {
        name,
        address,
        owner,
        token,
    })
}

/// What is downloaded and run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) package_name: String,
    pub(crate) path: String,
}

#[derive(Serialize)]
struct PlainOut<'a, V> {
    event: &'a str,
    value: V,
}

#[derive(Serialize)]
struct UnderscoreOut<'a, V> {
    #[serde(rename = "_event")]
    event: &'a str,
    value: V,
}

/// None of what is written here can fail to be.
fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

impl Dialect {
    /// The package that a robot is to run.
    pub(crate) fn notification(self, package: &Package) -> String {
        let event = "notification";
        match self {
            Self::Plain => written(&PlainOut {
                event,
                value: package,
            }),
            Self::Underscore => written(&UnderscoreOut {
                event,
                value: written(package),
            }),
        }
    }

    /// The answer to metadata that are not taken.
    pub(crate) fn refusal(self) -> String {
        match self {
            Self::Plain => "decline metadata reception".to_owned(),
            Self::Underscore => written(&UnderscoreOut {
                event: "Decline metaData reception",
                value: " ",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata_of(text: &str) -> (Dialect, Result<Metadata, BadMetadata>) {
        let frame = parse_frame(text).unwrap();
        match frame.event {
            Event::Metadata(metadata) => (frame.dialect, metadata),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn metadata_are_read_in_both_dialects() {
        let object = r#"{"robotName":"LAB-PC-3","robotAddress":"0A1B2C3D4E5F","userID":4}"#;
        let quoted = serde_json::to_string(object).unwrap();
        for value in [object, &quoted] {
            let (dialect, metadata) = metadata_of(&format!(
                r#"{{"event":"client robot metaData","value":{value}}}"#
            ));
            assert_eq!(dialect, Dialect::Plain);
            let metadata = metadata.unwrap();
            assert_eq!(metadata.name, "LAB-PC-3");
            assert_eq!(metadata.address, "0A1B2C3D4E5F");
            assert_eq!(metadata.owner, json!(4));
        }
        let text = r#"{"_event":"Client Robot Metadata","value":{"robotName":"a","robotAddress":"b","uuid":"c","token":"t"}}"#;
        let (dialect, metadata) = metadata_of(text);
        assert_eq!(dialect, Dialect::Underscore);
        let metadata = metadata.unwrap();
        assert_eq!(
            (metadata.owner, metadata.token.as_deref()),
            (json!("c"), Some("t"))
        );
    }

    #[test]
    fn metadata_that_lack_something_say_what() {
        let why = |value: &str| {
            metadata_of(&format!(
                r#"{{"event":"client robot metaData","value":{value}}}"#
            ))
            .1
            .unwrap_err()
        };
        assert!(why("null").why.contains("no object"));
        assert!(why(r#""[]""#).why.contains("no object"));
        assert!(why("{}").why.contains("robotAddress is missing"));
        let bad = why(r#"{"robotAddress":"x","robotName":" "}"#);
        assert_eq!(bad.address.as_deref(), Some("x"));
        assert!(bad.why.contains("robotName is missing"));
        assert!(
            why(r#"{"robotAddress":"x","robotName":"n","userID":[]}"#)
                .why
                .contains("userID")
        );
        let long = format!(r#"{{"robotAddress":"{}"}}"#, "x".repeat(121));
        assert!(why(&long).why.contains("at most 120 bytes, this has 121"));
    }

    #[test]
    fn other_frames_are_what_they_are() {
        let event = |text: &str| parse_frame(text).unwrap().event;
        assert_eq!(
            event(r#"{"event":"client robot message","value":{"b":1,"a":2}}"#),
            Event::Message(r#"{"b":1,"a":2}"#.to_owned())
        );
        assert_eq!(
            event(r#"{"event":"decline pkg reception","value":"x"}"#),
            Event::Decline(Some("x".to_owned()))
        );
        for value in [r#""""#, "null", "7"] {
            assert_eq!(
                event(&format!(
                    r#"{{"_event":"Decline pkg reception","value":{value}}}"#
                )),
                Event::Decline(None)
            );
        }
        assert_eq!(
            event(r#"{"event":"decline pkg reception"}"#),
            Event::Decline(None)
        );
        assert_eq!(
            event(r#"{"event":"hello","value":1}"#),
            Event::Other("hello".to_owned())
        );
        for text in [
            "",
            "null",
            "[]",
            "7",
            "hello",
            "[null,null,null]",
            r#"{"event":"#,
            r#"{"event":1}"#,
            "{}",
        ] {
            parse_frame(text).unwrap_err();
        }
        assert_eq!(
            parse_frame(&"x".repeat(70_000)),
            Err(FrameError::TooLong(70_000))
        );
    }

    #[test]
    fn answers_are_byte_for_byte_what_robots_know() {
        let package = Package {
            package_name: "invoice-7".to_owned(),
            path: "store/invoice-7.std".to_owned(),
        };
        assert_eq!(
            Dialect::Plain.notification(&package),
            r#"{"event":"notification","value":{"package_name":"invoice-7","path":"store/invoice-7.std"}}"#
        );
        assert_eq!(
            Dialect::Underscore.notification(&package),
            r#"{"_event":"notification","value":"{\"package_name\":\"invoice-7\",\"path\":\"store/invoice-7.std\"}"}"#
        );
        assert_eq!(Dialect::Plain.refusal(), "decline metadata reception");
        assert_eq!(
            Dialect::Underscore.refusal(),
            r#"{"_event":"Decline metaData reception","value":" "}"#
        );
    }
}
