//! Objects over HTTP: one is the value of the key `TYPE/KEY`, and each write of it raises its event.
//!
//! What changes an object reads it, and commits if nobody changed it meanwhile; else it begins anew, a bounded number of
//! times. So no writer undoes what another one was answered for.

use std::time::Duration;

use axum::extract::Path;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::Value;
use storage_protocol::{
    Batch, CommitOptions, Entry, EntryLifetime, Key, Lifetime, StorageError, StorageExt, UnixMillis,
};

use super::answer::{Answer, Fault, json, ok};
use super::body::{OBJECT_BYTES_MAX, Sent};
use super::event::{Action, OWN_TYPE};
use super::json::{Fields, USERS, shown, without_secrets};
use super::login::Visitor;
use super::patch::{self, PatchError};
use crate::gateway::json::compact;

/// How often a change is tried that others get before.
const ATTEMPTS_MAX: u32 = 64;
/// The longest name of a type, in bytes.
const TYPE_BYTES_MAX: usize = 64;
/// What has routes of its own.
const RESERVED: [&str; 4] = [OWN_TYPE, "ws", "info", "events"];

/// An object by its place.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) kind: String,
    pub(super) key: String,
}

impl Target {
    pub(super) fn new(kind: String, key: String) -> Result<Self, Fault> {
        check_type(&kind)?;
        Ok(Self { kind, key })
    }

    /// Where it is stored.
    pub(super) fn stored(&self) -> Key {
        Key::from(format!("{}/{}", self.kind, self.key))
    }
}

/// That a route can have this type.
pub(super) fn check_type(kind: &str) -> Result<(), Fault> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let is_good = (1..=TYPE_BYTES_MAX).contains(&kind.len()) && kind.bytes().all(is_plain);
    match is_good && !RESERVED.contains(&kind) {
        true => Ok(()),
        false => Err(Fault::no_route()),
    }
}

/// The field with the key of an object: of the types that clients know one, else the first of the usual ones that it has.
fn key_field(kind: &str, fields: &Fields) -> &'static str {
    match kind {
        "machines" | "jobs" => "Uuid",
        "leases" | "reservations" => "Addr",
        "templates" => "ID",
        "bootenvs" | "params" | "plugins" | "plugin_providers" | "prefs" | "profiles" | "roles"
        | "stages" | "subnets" | "tasks" | "tenants" | "users" | "workflows" => "Name",
        _ => {
            let usual = ["Name", "Uuid", "ID", "Id", "Key", "Addr"];
            let there = |name: &&str| fields.get(name).is_some();
            usual.into_iter().find(there).unwrap_or("Name")
        }
    }
}

/// An object as it is sent.
fn parse(body: &Bytes) -> Result<Fields, Fault> {
    // Objects are patched as a whole, which has to be read.
    let object = serde_json::from_slice::<Value>(body);
    let object = object.map_err(|error| Fault::bad(format!("the object: {error}")))?;
    let fields = object.is_object().then(|| Fields::parse(body)).flatten();
    fields.ok_or_else(|| Fault::bad("an object is expected"))
}

/// What is stored of an object.
pub(super) fn stored_json(kind: &str, json: &str) -> Result<String, Fault> {
    let json = compact(json);
    let json = match kind {
        // Passwords are the server's business, and hashes nobody's.
        USERS => without_secrets(&json),
        _ => json,
    };
    match json.len() <= OBJECT_BYTES_MAX {
        true => Ok(json),
        false => Err(Fault::too_large(format!(
            "the object would have {} bytes, at most {OBJECT_BYTES_MAX} are taken (object_bytes_max)",
            json.len()
        ))),
    }
}

fn options(action: Action) -> CommitOptions {
    CommitOptions::labelled(action.label()).with_previous()
}

pub(super) async fn create(visitor: Visitor, Path(kind): Path<String>, Sent(body): Sent) -> Answer {
    check_type(&kind)?;
    let mut fields = parse(&body)?;
    let name = key_field(&kind, &fields);
    // Clients leave it out, or send an empty one.
    if name == "Uuid" && matches!(fields.get(name), None | Some("null" | "\"\"")) {
        let uuid = serde_json::value::to_raw_value(&random_uuid()?);
        fields.set(name, uuid.map_err(|error| Fault::bad(error.to_string()))?);
    }
    let key = fields.text(name).unwrap_or_default();
    if key.is_empty() {
        return Err(Fault::bad(format!(
            "Empty key not allowed: {name} is missing"
        )));
    }
    if key.contains(['/', '\\']) || key.contains(char::is_control) {
        return Err(Fault::invalid(format!(
            "Invalid {name}: it has / or \\ or control characters"
        )));
    }
    let object = stored_json(&kind, &fields.to_json())?;
    let target = Target::new(kind, key)?;
    let stored = target.stored();
    let batch = Batch::new()
        .check_absent(stored.clone())
        .put(stored, object.clone());
    // Without the value before: there is none.
    let created = CommitOptions::labelled(Action::Create.label());
    match visitor.storage.commit(batch, created).await {
        Ok(_) => Ok(json(StatusCode::CREATED, object)),
        Err(StorageError::CheckFailed { .. }) => {
            Err(Fault::conflict(format!("already exists: {}", target.key)))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn read(visitor: Visitor, Path((kind, key)): Path<(String, String)>) -> Answer {
    let target = Target::new(kind, key)?;
    let entry = seen(&visitor, &target).await?;
    ok(shown(&target.kind, &entry.value))
}

/// An object that is there and may be seen.
pub(super) async fn seen(visitor: &Visitor, target: &Target) -> Result<Entry, Fault> {
    let entry = visitor.storage.get_one(target.stored()).await;
    entry.map_err(Fault::unseen)?.ok_or_else(Fault::not_found)
}

pub(super) async fn replace(
    visitor: Visitor,
    Path((kind, key)): Path<(String, String)>,
    Sent(body): Sent,
) -> Answer {
    let target = Target::new(kind, key)?;
    let fields = parse(&body)?;
    check_key(&target, &fields)?;
    let object = stored_json(&target.kind, &fields.to_json())?;
    let action = Action::Update;
    let changed = change(&visitor, &target, action, |_| Ok((object.clone(), ())));
    changed.await?;
    ok(object)
}

/// That an object is the one of its path.
fn check_key(target: &Target, fields: &Fields) -> Result<(), Fault> {
    let name = key_field(&target.kind, fields);
    match fields.text(name) {
        Some(key) if key == target.key => Ok(()),
        other => Err(Fault::bad(format!(
            "Key change from {} to {} not allowed",
            target.key,
            other.unwrap_or_default()
        ))),
    }
}

pub(super) async fn modify(
    visitor: Visitor,
    Path((kind, key)): Path<(String, String)>,
    Sent(body): Sent,
) -> Answer {
    let target = Target::new(kind, key)?;
    let operations = patch::parse(&body).map_err(refused_patch)?;
    let changed = change(&visitor, &target, Action::Update, |value| {
        let before = shown(&target.kind, value);
        let before = serde_json::from_str(&before).map_err(|error| unreadable(&error))?;
        let after = patch::apply(before, &operations, OBJECT_BYTES_MAX);
        let after = after.map_err(refused_patch)?.to_string();
        let fields = Fields::parse(after.as_bytes());
        let fields = fields.ok_or_else(|| Fault::invalid("an object stays an object"))?;
        check_key(&target, &fields)?;
        let object = stored_json(&target.kind, &after)?;
        Ok((object.clone(), object))
    });
    ok(changed.await?)
}

fn unreadable(error: &serde_json::Error) -> Fault {
    Fault::invalid(format!("the object cannot be patched: {error}"))
}

pub(super) fn refused_patch(error: PatchError) -> Fault {
    let message = error.to_string();
    match error {
        PatchError::Malformed(_) => Fault::bad(message),
        PatchError::Test(..) => Fault::conflict(message),
        PatchError::NotApplicable(..) => Fault::new(StatusCode::NOT_ACCEPTABLE, message),
        PatchError::TooLarge(..) => Fault::too_large(message),
    }
}

pub(super) async fn remove(visitor: Visitor, Path((kind, key)): Path<(String, String)>) -> Answer {
    let target = Target::new(kind, key)?;
    for attempt in 0..ATTEMPTS_MAX {
        let entry = present(&visitor, &target).await?;
        let stored = target.stored();
        let batch = Batch::new()
            .check_revision(stored.clone(), entry.revision)
            .remove(stored);
        match visitor.storage.commit(batch, options(Action::Delete)).await {
            Ok(_) => return ok(shown(&target.kind, &entry.value)),
            Err(StorageError::CheckFailed { .. }) => pause(attempt).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_busy())
}

/// Changes an object that is there: `change` makes of its value what is to be stored, and what is to be answered. It may
/// be called several times.
pub(super) async fn change<T: Send>(
    visitor: &Visitor,
    target: &Target,
    action: Action,
    change: impl Fn(&[u8]) -> Result<(String, T), Fault> + Send,
) -> Result<T, Fault> {
    for attempt in 0..ATTEMPTS_MAX {
        let entry = present(visitor, target).await?;
        if entry.value.len() > OBJECT_BYTES_MAX {
            return Err(Fault::too_large(format!(
                "the object has {} bytes, at most {OBJECT_BYTES_MAX} are changed here (object_bytes_max)",
                entry.value.len()
            )));
        }
        let (object, answer) = change(&entry.value)?;
        let stored = target.stored();
        let batch = Batch::new()
            .check_revision(stored.clone(), entry.revision)
            .put_with(stored, object, lifetime(entry.lifetime));
        match visitor.storage.commit(batch, options(action)).await {
            Ok(_) => return Ok(answer),
            Err(StorageError::CheckFailed { .. }) => pause(attempt).await,
            Err(error) => return Err(error.into()),
        }
    }
    Err(too_busy())
}

/// What lives for a time goes on to do so. What lived as long as a session is kept: it is another one's now.
fn lifetime(entry: EntryLifetime) -> Lifetime {
    match entry {
        EntryLifetime::Until(end) => {
            let left = end.0.saturating_sub(UnixMillis::now().0).max(1);
            Lifetime::TimeToLive(Duration::from_millis(left))
        }
        EntryLifetime::Forever | EntryLifetime::Session => Lifetime::Forever,
    }
}

/// An object that is there, to be changed.
async fn present(visitor: &Visitor, target: &Target) -> Result<Entry, Fault> {
    let entry = visitor.storage.get_one(target.stored()).await?;
    entry.ok_or_else(Fault::not_found)
}

/// Lets others finish, each time a little longer, so that many writers of one object do not go on in step.
async fn pause(attempt: u32) {
    let most = 1 << attempt.min(5);
    let millis = rand::random_range(0..=most);
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

fn too_busy() -> Fault {
    Fault::conflict(format!(
        "nothing was executed: {ATTEMPTS_MAX} times others changed the object meanwhile (attempts_max)"
    ))
}

/// A random UUID (RFC 9562, version 4), for objects whose clients leave that to the server.
fn random_uuid() -> Result<String, Fault> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = hex::encode(bytes);
    for place in [20, 16, 12, 8] {
        text.insert(place, '-');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_plain_words_that_have_no_route_of_their_own() {
        for good in ["profiles", "plugin_providers", "PROFILES", "a-1"] {
            check_type(good).unwrap();
        }
        for bad in [
            "",
            "a/b",
            "a.b",
            "ü",
            "events",
            "ws",
            "info",
            "websocket",
            &"x".repeat(65),
        ] {
            assert!(check_type(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_key_of_an_object_is_in_a_field_of_its_type() {
        let name = |kind, json: &str| key_field(kind, &Fields::parse(json.as_bytes()).unwrap());
        assert_eq!(name("profiles", r#"{"Uuid":"x"}"#), "Name");
        assert_eq!(name("machines", r#"{"Name":"x"}"#), "Uuid");
        assert_eq!(name("reservations", r#"{"Addr":"x"}"#), "Addr");
        assert_eq!(name("flights", r#"{"Id":"x","Addr":"y"}"#), "Id");
        assert_eq!(name("flights", "{}"), "Name");
    }

    #[test]
    fn a_random_uuid_has_the_form_of_one() {
        let (one, other) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, other);
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&one[14..15], "4");
    }

    #[test]
    fn what_is_stored_is_bounded_and_has_no_secrets_of_accounts() {
        let account = r#"{ "Name": "ann", "Password": "x" }"#;
        assert_eq!(stored_json("users", account).unwrap(), r#"{"Name":"ann"}"#);
        assert_eq!(
            stored_json("t", account).unwrap(),
            r#"{"Name":"ann","Password":"x"}"#
        );
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(OBJECT_BYTES_MAX));
        assert!(stored_json("t", &long).is_err());
    }
}
