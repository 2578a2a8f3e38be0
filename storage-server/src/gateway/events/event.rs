//! An event: what a change of the feed is to a client of this protocol.
//!
//! A change of the key `TYPE/KEY` is an event of that type and key. Its action is the one that this gateway noted in the
//! commit's label; of what anybody else wrote it is `save` for a value, `delete` for a removal (expiry is one too), and
//! `signal` for a signal. Principal, type and key are those of the commit, whatever a label or a posted event says.

use serde::Deserialize;
use serde_json::value::RawValue;
use storage_protocol::{Change, ChangeKind, CommitRecord, Revision, UnixMillis};

use super::json;
use crate::gateway::json::{compact, string};

/// What the gateway says by itself: no key has this type.
pub(super) const OWN_TYPE: &str = "websocket";
const LABEL: &str = "events: ";
/// Ends the label of a commit that was made for parameters.
const PARAMS: &str = " params";
const POST: &str = "post";

/// What this gateway commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Create,
    Update,
    /// Parameters were written, which is called either.
    Params(ParamsAction),
    Delete,
    /// An event of a client's own.
    Post,
}

pub(super) use crate::config::ParamsAction;

impl Action {
    /// The label of its commit, by which its event is recognised.
    pub(super) fn label(self) -> String {
        let (word, end) = match self {
            Self::Create => ("create", ""),
            Self::Update => ("update", ""),
            Self::Params(action) => (action.word(), PARAMS),
            Self::Delete => ("delete", ""),
            Self::Post => (POST, ""),
        };
        format!("{LABEL}{word}{end}")
    }
}

/// The event that a change is, as far as filters look at it.
#[derive(Debug)]
pub(super) struct Event<'a> {
    commit: &'a CommitRecord,
    change: &'a Change,
    kind: &'a str,
    key: &'a str,
    action: String,
    /// Another word that filters know it by.
    also: Option<&'static str>,
    posted: Option<Posted<'a>>,
}

/// A posted event, as the signal carries it. What the feed knows better is not in it.
#[derive(Debug, Deserialize)]
struct Posted<'a> {
    #[serde(rename = "Time")]
    time: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(borrow, rename = "Object")]
    object: &'a RawValue,
    #[serde(borrow, rename = "Original")]
    original: &'a RawValue,
}

/// The bytes of the signal for a posted event; `object` and `original` are JSON.
pub(super) fn posted(time: &str, action: &str, object: &str, original: &str) -> String {
    let (time, action) = (string(time), string(action));
    format!("{{\"Time\":{time},\"Action\":{action},\"Object\":{object},\"Original\":{original}}}")
}

/// Type and key of the object at a key. `None`: the key has not the form of this gateway's.
pub(super) fn object_of(key: &[u8]) -> Option<(&str, &str)> {
    let (kind, key) = std::str::from_utf8(key).ok()?.split_once('/')?;
    (kind != OWN_TYPE).then_some((kind, key))
}

impl<'a> Event<'a> {
    /// `None`: the key has not the form of this gateway's.
    pub(super) fn of(commit: &'a CommitRecord, change: &'a Change) -> Option<Self> {
        let (kind, key) = object_of(&change.key)?;
        let noted = commit.label.as_deref();
        let noted = noted.and_then(|label| label.strip_prefix(LABEL));
        let mut posted = None;
        let (action, also) = match &change.kind {
            ChangeKind::Put { .. } => match noted {
                Some(word @ ("create" | "update")) => (word.to_owned(), None),
                Some("save params") => ("save".to_owned(), Some("update")),
                Some("update params") => ("update".to_owned(), None),
                _ => ("save".to_owned(), None),
            },
            // What is deleted is sometimes said to be destroyed.
            ChangeKind::Removed { .. } => ("delete".to_owned(), Some("destroy")),
            ChangeKind::Signalled { bytes } => {
                if noted == Some(POST) {
                    posted = serde_json::from_slice::<Posted<'_>>(bytes).ok();
                }
                match &posted {
                    Some(posted) => (
                        posted.action.clone(),
                        (posted.action == "delete").then_some("destroy"),
                    ),
                    None => ("signal".to_owned(), None),
                }
            }
        };
        Some(Self {
            commit,
            change,
            kind,
            key,
            action,
            also,
            posted,
        })
    }

    pub(super) fn kind(&self) -> &str {
        self.kind
    }

    pub(super) fn key(&self) -> &str {
        self.key
    }

    pub(super) fn action(&self) -> &str {
        &self.action
    }

    /// Whether a filter is for it.
    pub(super) fn is_for(&self, filter: &super::filter::Filter) -> bool {
        match self.also {
            None => filter.matches(self.kind, &[&self.action], self.key),
            Some(also) => filter.matches(self.kind, &[&self.action, also], self.key),
        }
    }

    /// The frame.
    pub(super) fn to_json(&self) -> String {
        let shown = |value: &[u8]| json::shown(self.kind, value);
        let before = |value: &Option<storage_protocol::Value>| value.as_deref().map(shown);
        let nothing = || "null".to_owned();
        let (object, original) = match (&self.change.kind, &self.posted) {
            (_, Some(posted)) => (
                shown(posted.object.get().as_bytes()),
                shown(posted.original.get().as_bytes()),
            ),
            // What is created has no original, even where the commit tells one.
            (ChangeKind::Put { value, .. }, _) if self.action == "create" => {
                (shown(value), nothing())
            }
            (
                ChangeKind::Put {
                    value, previous, ..
                },
                _,
            ) => (shown(value), before(previous).unwrap_or_else(nothing)),
            (ChangeKind::Removed { previous }, _) => {
                (before(previous).unwrap_or_else(nothing), nothing())
            }
            (ChangeKind::Signalled { bytes }, _) => (shown(bytes), nothing()),
        };
        let time = match &self.posted {
            Some(posted) => posted.time.clone(),
            None => rfc3339(self.commit.time),
        };
        frame(&Head {
            time: &time,
            kind: self.kind,
            action: &self.action,
            key: self.key,
            principal: &self.commit.principal,
        })
        .with(&object, &original)
    }
}

/// The fields of an event before its objects.
pub(super) struct Head<'a> {
    pub(super) time: &'a str,
    pub(super) kind: &'a str,
    pub(super) action: &'a str,
    pub(super) key: &'a str,
    pub(super) principal: &'a str,
}

/// An event up to its objects.
pub(super) struct Begun(String);

/// Begins an event, its fields in the order that clients are used to.
pub(super) fn frame(head: &Head<'_>) -> Begun {
    Begun(format!(
        "{{\"Time\":{},\"Type\":{},\"Action\":{},\"Key\":{},\"Principal\":{}",
        string(head.time),
        string(head.kind),
        string(head.action),
        string(head.key),
        string(head.principal),
    ))
}

impl Begun {
    /// With these objects, which are JSON in one line.
    pub(super) fn with(self, object: &str, original: &str) -> String {
        let mut frame = self.0;
        frame.reserve(object.len() + original.len() + 32);
        for part in [",\"Object\":", object, ",\"Original\":", original, "}"] {
            frame.push_str(part);
        }
        frame
    }
}

/// An event of the gateway itself: an ack, an error, a notice.
pub(super) fn own(action: &str, key: &str, object: &str) -> String {
    let time = rfc3339(UnixMillis::now());
    let head = Head {
        time: &time,
        kind: OWN_TYPE,
        action,
        key,
        principal: "",
    };
    frame(&head).with(&compact(object), "null")
}

/// The frame for who asked for revisions: one more field at its end.
pub(super) fn with_revision(frame: &str, revision: Revision) -> String {
    let open = frame.strip_suffix('}').unwrap_or(frame);
    format!("{open},\"Revision\":{revision}}}")
}

/// A time in UTC, without zeros at the end of its fraction.
pub(super) fn rfc3339(time: UnixMillis) -> String {
    let since = std::time::Duration::from_millis(time.0);
    let time = std::time::UNIX_EPOCH.checked_add(since);
    // Neither the text nor anybody's clock knows a year after 9999.
    let time = time.filter(|_| since.as_secs() < 253_402_300_800);
    let text = humantime::format_rfc3339_millis(time.unwrap_or(std::time::UNIX_EPOCH)).to_string();
    let digits = text.trim_end_matches('Z').trim_end_matches('0');
    format!("{}Z", digits.trim_end_matches('.'))
}

#[cfg(test)]
mod tests;
