//! What clients say, and what they are told: JSON objects in text messages.
//!
//! Inbound as protobuf's JSON is read: an operation by name or number, under `@type` or `Type`, absent for the first one;
//! 64-bit integers as strings or numbers. A member that is not known makes a message invalid, and an invalid message is ignored,
//! as clients know it. Outbound as it is written: default values are left out, 64-bit integers are strings.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use storage_protocol::rooms::{Message, Room};

use super::html::sanitised;
use crate::gateway::Utf8Bytes;

/// The longest token that a client may show, in bytes.
pub(crate) const JWT_BYTES_MAX: usize = 16 << 10;
/// The longest text of a message that is posted, in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 8 << 10;
/// The most pairs of a message's `Info`, and the most bytes of them all.
const INFO_PAIRS_MAX: usize = 16;
const INFO_BYTES_MAX: usize = 4 << 10;
/// The seed of the protocol has it as text before the token.
const REGISTER: &str = "register:";

/// A message of a client.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// Who it is. `ack`: it wants to be told when it is live.
    Subscribe {
        jwt: String,
        ack: bool,
    },
    Unsubscribe,
    Chat(Command),
    /// JSON that says nothing which is known, or something that is invalid.
    Nothing,
}

/// No JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not JSON")]
pub(crate) struct NotJson;

/// What is done in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Join,
    Leave,
    Post,
    RoomUpdate,
    History,
    DeleteMsg,
    DeleteRoom,
}

const OPS: [(&str, Op); 7] = [
    ("JOIN", Op::Join),
    ("LEAVE", Op::Leave),
    ("POST", Op::Post),
    ("ROOM_UPDATE", Op::RoomUpdate),
    ("HISTORY", Op::History),
    ("DELETE_MSG", Op::DeleteMsg),
    ("DELETE_ROOM", Op::DeleteRoom),
];

impl Op {
    pub(crate) fn name(self) -> &'static str {
        let named = OPS.iter().find(|(_, op)| *op == self);
        named.map_or("", |(name, _)| name)
    }

    fn of(value: &Value) -> Option<Self> {
        chosen(value, &OPS)
    }
}

/// What a room belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomKind {
    Global,
    Workspace,
    User,
    Node,
    Any,
}

const KINDS: [(&str, RoomKind); 5] = [
    ("GLOBAL", RoomKind::Global),
    ("WORKSPACE", RoomKind::Workspace),
    ("USER", RoomKind::User),
    ("NODE", RoomKind::Node),
    ("ANY", RoomKind::Any),
];

impl RoomKind {
    pub(crate) fn name(self) -> &'static str {
        let named = KINDS.iter().find(|(_, kind)| *kind == self);
        named.map_or("", |(name, _)| name)
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        chosen(&Value::from(name), &KINDS)
    }
}

/// A member of an enumeration, by its name or its number.
fn chosen<T: Copy>(value: &Value, all: &[(&str, T)]) -> Option<T> {
    let found = match value {
        Value::String(name) => all.iter().find(|(known, _)| known == name),
        Value::Number(number) => all.get(usize::try_from(number.as_u64()?).ok()?),
        _ => None,
    };
    found.map(|(_, chosen)| *chosen)
}

/// See [`Said::Chat`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) room: Option<SaidRoom>,
    pub(crate) message: Option<SaidMessage>,
}

/// A room, as a client names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SaidRoom {
    pub(crate) uuid: String,
    pub(crate) kind: RoomKind,
    pub(crate) object: String,
    pub(crate) label: String,
}

/// A message, as a client says it. Author and time are not its to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SaidMessage {
    pub(crate) uuid: String,
    pub(crate) room: String,
    pub(crate) text: String,
    pub(crate) info: BTreeMap<String, String>,
}

/// What a message of a client says.
///
/// # Errors
/// [`NotJson`].
pub(crate) fn parse(text: &str) -> Result<Said, NotJson> {
    if let Some(token) = text.strip_prefix(REGISTER) {
        return Ok(Said::Subscribe {
            jwt: token.trim().to_owned(),
            ack: false,
        });
    }
    let value: Value = serde_json::from_str(text).map_err(|_| NotJson)?;
    Ok(match value {
        Value::Object(members) => said(members).unwrap_or(Said::Nothing),
        _ => Said::Nothing,
    })
}

fn said(mut members: Map<String, Value>) -> Option<Said> {
    match members.get("@type").and_then(Value::as_str) {
        Some("subscribe" | "register") => {
            let jwt = text(members.remove("jwt"))?;
            let ack = members.get("ack") == Some(&Value::Bool(true));
            return Some(Said::Subscribe { jwt, ack });
        }
        Some("unsubscribe") => return Some(Said::Unsubscribe),
        _ => {}
    }
    let op = match (members.remove("@type"), members.remove("Type")) {
        (Some(op), _) | (None, Some(op)) => Op::of(&op)?,
        // The first of an enumeration is left out.
        (None, None) if members.contains_key("Room") => Op::Join,
        (None, None) => return None,
    };
    let room = match members.remove("Room") {
        None | Some(Value::Null) => None,
        Some(value) => Some(room(value)?),
    };
    let message = match members.remove("Message") {
        None | Some(Value::Null) => None,
        Some(value) => Some(message(value)?),
    };
    members
        .is_empty()
        .then_some(Said::Chat(Command { op, room, message }))
}

/// A text; an absent one is empty.
fn text(value: Option<Value>) -> Option<String> {
    match value {
        None | Some(Value::Null) => Some(String::new()),
        Some(Value::String(text)) => Some(text),
        Some(_) => None,
    }
}

fn room(value: Value) -> Option<SaidRoom> {
    let Value::Object(mut members) = value else {
        return None;
    };
    let kind = match members.remove("Type") {
        None => RoomKind::Global,
        Some(kind) => chosen(&kind, &KINDS)?,
    };
    let room = SaidRoom {
        uuid: text(members.remove("Uuid"))?,
        kind,
        object: text(members.remove("RoomTypeObject"))?,
        label: text(members.remove("RoomLabel"))?,
    };
    members.remove("Users");
    members.remove("LastUpdated");
    members.is_empty().then_some(room)
}

fn message(value: Value) -> Option<SaidMessage> {
    let Value::Object(mut members) = value else {
        return None;
    };
    let message = SaidMessage {
        uuid: text(members.remove("Uuid"))?,
        room: text(members.remove("RoomUuid"))?,
        text: text(members.remove("Message"))?,
        info: info(members.remove("Info"))?,
    };
    for name in ["Author", "Timestamp", "Activity"] {
        members.remove(name);
    }
    members.is_empty().then_some(message)
}

fn info(value: Option<Value>) -> Option<BTreeMap<String, String>> {
    let members = match value {
        None | Some(Value::Null) => return Some(BTreeMap::new()),
        Some(Value::Object(members)) => members,
        Some(_) => return None,
    };
    let mut info = BTreeMap::new();
    for (name, value) in members {
        info.insert(name, text(Some(value))?);
    }
    let bytes: usize = info
        .iter()
        .map(|(name, text)| name.len() + text.len())
        .sum();
    (info.len() <= INFO_PAIRS_MAX && bytes <= INFO_BYTES_MAX).then_some(info)
}

/// Which messages a `HISTORY` asks for: a JSON text within its message. What cannot be read asks for the default.
pub(crate) fn history_wish(text: &str, limit_default: usize) -> (u64, usize) {
    let wish: Value = serde_json::from_str(text).unwrap_or_default();
    let number = |name: &str| {
        let value = wish.get(name)?;
        value.as_u64().or_else(|| value.as_str()?.parse().ok())
    };
    let limit = number("Limit").filter(|limit| *limit > 0);
    let limit = limit.map_or(limit_default, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    (number("Offset").unwrap_or(0), limit.min(limit_default))
}

/// What went wrong. Clients that do not know it ignore it.
pub(crate) fn error(why: &str) -> String {
    json!({ "@type": "error", "jwt": "", "error": why }).to_string()
}

/// The same about an operation.
pub(super) fn refused(op: Op, why: &str) -> String {
    json!({ "@type": "error", "jwt": "", "error": why, "op": op.name() }).to_string()
}

/// It is live: for clients that ask.
pub(super) fn subscribed(login: &str) -> String {
    json!({ "@type": "subscribed", "User": login }).to_string()
}

/// Something was left out: look again.
pub(super) fn resync() -> String {
    json!({ "@type": "resync" }).to_string()
}

/// A room, with those who are in it. `users`: in the order of names.
pub(super) fn room_update(room: &Room, users: &[&str], last_updated: u64) -> Utf8Bytes {
    // The type of a global room is told too, although it is the default: clients need it.
    let mut told = json!({
        "Uuid": room.id.to_string(),
        "Type": room.key.kind(),
        "Users": users,
    });
    if !room.key.object().is_empty() {
        told["RoomTypeObject"] = room.key.object().into();
    }
    if !room.label.is_empty() {
        told["RoomLabel"] = sanitised(&room.label).into();
    }
    if let Ok(seconds) = i32::try_from(last_updated / 1000)
        && seconds > 0
    {
        told["LastUpdated"] = seconds.into();
    }
    json!({ "@type": "ROOM_UPDATE", "Room": told })
        .to_string()
        .into()
}

/// A message as pages may show it, whoever posted it and by what means.
fn message_object(room: &str, message: &Message) -> Value {
    let mut told = json!({
        "Uuid": message.id.to_string(),
        "RoomUuid": room,
        "Message": sanitised(&message.text),
        // A name as others have it, by which clients find them: no HTML.
        "Author": message.author,
        "Timestamp": (message.time.0 / 1000).to_string(),
    });
    if !message.info.is_empty() {
        let info = message.info.iter();
        let info = info.map(|(name, text)| (sanitised(name), sanitised(text).into()));
        told["Info"] = Value::Object(info.collect());
    }
    told
}

pub(super) fn message_frame(room: &str, message: &Message) -> Utf8Bytes {
    message_object(room, message).to_string().into()
}

pub(super) fn deleted_frame(room: &str, message: &Message) -> Utf8Bytes {
    let told = json!({ "@type": "DELETE_MSG", "Message": message_object(room, message) });
    told.to_string().into()
}

pub(super) fn may_have_more(
    room: &str,
    oldest: Option<&Message>,
    offset: u64,
    limit: usize,
) -> String {
    let told = json!({
        "@type": "MAY_HAVE_MORE",
        "RoomUuid": room,
        "Timestamp": oldest.map_or(0, |message| message.time.0 / 1000),
        "Offset": offset,
        "Limit": limit,
    });
    told.to_string()
}

/// Leaves out what protobuf leaves out: nothing, no, 0, and what is empty.
pub(super) fn without_defaults(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter_map(|(name, value)| {
                let value = without_defaults(value);
                (!is_default(&value)).then_some((name, value))
            });
            Value::Object(kept.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_defaults).collect()),
        other => other,
    }
}

fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Command {
        match parse(text) {
            Ok(Said::Chat(command)) => command,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn an_operation_is_a_name_a_number_or_absent() {
        for join in [
            r#"{"@type":"JOIN","Room":{"Type":"NODE","RoomTypeObject":"n-1"}}"#,
            r#"{"@type":0,"Room":{"Type":3,"RoomTypeObject":"n-1"}}"#,
            r#"{"Type":"JOIN","Room":{"Type":"NODE","RoomTypeObject":"n-1"}}"#,
            r#"{"Type":0,"Room":{"Type":"NODE","RoomTypeObject":"n-1","Users":["x"],"LastUpdated":7}}"#,
            r#"{"Room":{"Type":"NODE","RoomTypeObject":"n-1","Uuid":null}}"#,
        ] {
            let command = chat(join);
            assert_eq!(command.op, Op::Join, "{join}");
            let room = command.room.unwrap();
            assert_eq!((room.kind, room.object.as_str()), (RoomKind::Node, "n-1"));
        }
        assert_eq!(
            chat(r#"{"@type":"HISTORY","Room":{}}"#).room.unwrap().kind,
            RoomKind::Global
        );
        let post = chat(
            r#"{"@type":2,"Message":{"RoomUuid":"r","Message":"hi","Author":"forged","Timestamp":"1"}}"#,
        );
        assert_eq!(post.op, Op::Post);
        assert_eq!(post.message.unwrap().text, "hi");
    }

    #[test]
    fn what_is_invalid_is_nothing_and_what_is_no_json_is_told() {
        for nothing in [
            "null",
            "[]",
            "{}",
            "7",
            r#"{"@type":"DANCE","Room":{}}"#,
            r#"{"@type":9,"Room":{}}"#,
            r#"{"@type":-1,"Room":{}}"#,
            r#"{"@type":"JOIN","Room":{"Colour":"red"}}"#,
            r#"{"@type":"JOIN","Room":{},"More":1}"#,
            r#"{"@type":"JOIN","Room":[]}"#,
            r#"{"@type":"JOIN","Room":{"Type":"HOUSE"}}"#,
            r#"{"@type":"POST","Message":{"Message":7}}"#,
            r#"{"@type":"POST","Message":{"Info":{"a":1}}}"#,
            r#"{"@type":"subscribe","jwt":7}"#,
        ] {
            assert_eq!(parse(nothing), Ok(Said::Nothing), "{nothing}");
        }
        for bad in ["", "hello", "{", &"[".repeat(100_000)] {
            assert_eq!(parse(bad), Err(NotJson));
        }
    }

    #[test]
    fn who_it_is_is_said_in_three_ways() {
        let said = |jwt: &str, ack| {
            Ok(Said::Subscribe {
                jwt: jwt.to_owned(),
                ack,
            })
        };
        assert_eq!(
            parse(r#"{"@type":"subscribe","jwt":"t"}"#),
            said("t", false)
        );
        assert_eq!(
            parse(r#"{"@type":"register","jwt":"t","ack":true}"#),
            said("t", true)
        );
        assert_eq!(parse("register: t"), said("t", false));
        assert_eq!(parse(r#"{"@type":"subscribe"}"#), said("", false));
        assert_eq!(parse(r#"{"@type":"unsubscribe"}"#), Ok(Said::Unsubscribe));
    }

    #[test]
    fn a_history_is_asked_for_within_its_bounds() {
        assert_eq!(history_wish(r#"{"Offset":4,"Limit":2}"#, 100), (4, 2));
        assert_eq!(history_wish(r#"{"Offset":"4","Limit":"2"}"#, 100), (4, 2));
        assert_eq!(history_wish(r#"{"Limit":900}"#, 100), (0, 100));
        for default in ["", "{", r#"{"Limit":0}"#, r#"{"Offset":-1,"Limit":-1}"#] {
            assert_eq!(history_wish(default, 100), (0, 100), "{default}");
        }
    }

    #[test]
    fn defaults_are_left_out_everywhere() {
        let given =
            json!({ "a": 0, "b": "", "c": false, "d": { "e": 0.0 }, "f": [0], "g": 1, "h": null });
        assert_eq!(without_defaults(given), json!({ "f": [0], "g": 1 }));
    }
}
