//! The frames of subscribers: one JSON object each, whatever the case of its names.

use serde_json::{Map, Value, json};
use storage_protocol::Position;

use super::place::NAME_BYTES_MAX;
use crate::gateway::events::filter::Since;

/// The longest frame, in bytes. A longer one is answered with an error, up to what a connection takes at all.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 10;

/// What a frame asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscribe {
    /// Who it says that it is: a label, sent back with the acknowledgement.
    pub(crate) user: String,
    /// The project to be told of.
    pub(crate) project: Option<String>,
    /// The source to be told of.
    pub(crate) source: Option<String>,
    /// From behind this place in the history on.
    pub(crate) since: Option<Since>,
    /// A token, by which the peer says who it is.
    pub(crate) token: Option<String>,
}

/// Why a frame is answered with an error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubscribeError {
    /// It is too long.
    #[error("a frame has at most {FRAME_BYTES_MAX} bytes, this has {0}")]
    TooLong(usize),
    /// It is no JSON.
    #[error("no JSON object: {0}")]
    NoJson(String),
    /// It is JSON, and no object.
    #[error("a subscription is a JSON object, such as {{\"user\":\"ana\",\"project\":\"demo\"}}")]
    NoObject,
    /// It cannot be the name of a project or a source.
    #[error("{0}: it has at most {NAME_BYTES_MAX} bytes")]
    NameTooLong(&'static str),
    /// It is no place in a history.
    #[error(
        "since: a revision, as the \"revision\" of a document that was told, or a text EPOCH:REVISION, as the \"position\" of an \
         acknowledgement"
    )]
    Since,
}

/// Reads a frame.
///
/// # Errors
/// [`SubscribeError`].
pub(crate) fn parse_subscribe(text: &str) -> Result<Subscribe, SubscribeError> {
    if text.len() > FRAME_BYTES_MAX {
        return Err(SubscribeError::TooLong(text.len()));
    }
    let value: Value =
        serde_json::from_str(text).map_err(|error| SubscribeError::NoJson(error.to_string()))?;
    let Value::Object(members) = value else {
        return Err(SubscribeError::NoObject);
    };
    let lower = |(name, value): (String, Value)| (name.to_ascii_lowercase(), value);
    let members: Map<String, Value> = members.into_iter().map(lower).collect();
    // What is no text, or an empty one, subscribes to nothing.
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    let name = |name: &'static str| match text(name) {
        Some(value) if value.len() > NAME_BYTES_MAX => Err(SubscribeError::NameTooLong(name)),
        Some("") | None => Ok(None),
        Some(value) => Ok(Some(value.to_owned())),
    };
    let since = match members.get("since") {
        None | Some(Value::Null) => None,
        Some(value) => Some(since_of(value).ok_or(SubscribeError::Since)?),
    };
    Ok(Subscribe {
        user: text("user").unwrap_or_default().to_owned(),
        project: name("project")?,
        source: name("source")?,
        since,
        token: text("token").map(str::to_owned),
    })
}

/// A number is a revision of the present history; a text names the history too.
fn since_of(value: &Value) -> Option<Since> {
    match value {
        Value::Number(number) => number.as_u64().map(Since::Revision),
        Value::String(text) => text.parse().ok().map(Since::Position),
        _ => None,
    }
}

impl Subscribe {
    /// What it is answered with. Who has asked for a replay is told the present position too: the epoch of its revisions.
    pub(crate) fn acknowledgement(&self, now: Position) -> String {
        let mut out = format!("{{\"user\":{}", json!(self.user));
        if let Some(project) = &self.project {
            out.push_str(&format!(",\"suscribed_to_project\":{}", json!(project)));
        }
        if let Some(source) = &self.source {
            out.push_str(&format!(",\"suscribed_to_source\":{}", json!(source)));
        }
        if self.since.is_some() {
            out.push_str(&format!(",\"position\":\"{now}\""));
        }
        out.push('}');
        out
    }
}

/// An error, as peers are told of it.
pub(crate) fn error_frame(reason: &str) -> String {
    json!({ "error": reason }).to_string()
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Epoch, Revision};

    use super::*;

    const NOW: Position = Position {
        epoch: Epoch(0xab),
        revision: Revision(9),
    };

    fn acknowledged(text: &str) -> String {
        parse_subscribe(text).unwrap().acknowledgement(NOW)
    }

    #[test]
    fn each_subscription_is_acknowledged_as_the_original_does() {
        for (frame, answer) in [
            (
                r#"{"user":"ana@x.org","project":"p1"}"#,
                r#"{"user":"ana@x.org","suscribed_to_project":"p1"}"#,
            ),
            (
                r#"{"User":"a","SOURCE":"PT","Project":"x\"y"}"#,
                r#"{"user":"a","suscribed_to_project":"x\"y","suscribed_to_source":"PT"}"#,
            ),
            (
                r#"{"project":"p1"}"#,
                r#"{"user":"","suscribed_to_project":"p1"}"#,
            ),
            (r#"{"user":"a","project":1,"source":""}"#, r#"{"user":"a"}"#),
            (
                r#"{"project":"p1","since":0}"#,
                r#"{"user":"","suscribed_to_project":"p1","position":"00000000000000ab:9"}"#,
            ),
            ("{}", r#"{"user":""}"#),
        ] {
            assert_eq!(acknowledged(frame), answer);
        }
        let all = parse_subscribe(r#"{"token":"t","since":7,"source":"s"}"#).unwrap();
        assert_eq!(
            (all.token.as_deref(), all.since),
            (Some("t"), Some(Since::Revision(7)))
        );
        let of_epoch = parse_subscribe(r#"{"since":"00000000000000ab:9"}"#).unwrap();
        assert_eq!(of_epoch.since, Some(Since::Position(NOW)));
    }

    #[test]
    fn what_is_no_object_is_answered_with_an_error() {
        let deep = "[".repeat(2000);
        let long = format!("{{\"user\":\"{}\"}}", "x".repeat(FRAME_BYTES_MAX));
        let name = format!("{{\"project\":\"{}\"}}", "x".repeat(256));
        for (frame, told) in [
            ("", "no JSON object"),
            ("hello", "no JSON object"),
            ("null", "is a JSON object"),
            ("[1]", "is a JSON object"),
            ("\"text\"", "is a JSON object"),
            (&deep, "recursion limit"),
            (&long, "at most 65536 bytes"),
            (&name, "project: it has at most 255 bytes"),
            ("{\"since\":-1}", "since: a revision"),
            ("{\"since\":\"1\"}", "since: a revision"),
            ("{\"since\":\"ab/1\"}", "a text EPOCH:REVISION"),
            ("{\"since\":[1]}", "since: a revision"),
        ] {
            let error = parse_subscribe(frame).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        assert_eq!(error_frame("a \"b\""), r#"{"error":"a \"b\""}"#);
    }
}
