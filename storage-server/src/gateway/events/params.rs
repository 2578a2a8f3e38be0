//! Parameters of an object: the field `Params`, as a whole or one of them. A write is one of the object.

use axum::extract::Path;
use serde_json::Value;
use serde_json::value::RawValue;

use super::answer::{Answer, Fault, ok};
use super::body::{OBJECT_BYTES_MAX, Sent};
use super::event::Action;
use super::json::Fields;
use super::login::Visitor;
use super::objects::{Target, change, refused_patch, seen, stored_json};
use super::patch;
use crate::gateway::json::compact;

const PARAMS: &str = "Params";

type Of = Path<(String, String)>;
type One = Path<(String, String, String)>;

pub(super) async fn all(visitor: Visitor, Path((kind, key)): Of) -> Answer {
    let target = Target::new(kind, key)?;
    let entry = seen(&visitor, &target).await?;
    let (_, params) = split(&entry.value)?;
    ok(compact(&params.to_json()))
}

pub(super) async fn replace_all(
    visitor: Visitor,
    Path((kind, key)): Of,
    Sent(body): Sent,
) -> Answer {
    let target = Target::new(kind, key)?;
    let sent = json_of(&body)?;
    let written = write(&visitor, &target, |_| {
        let params = Fields::parse(sent.get().as_bytes());
        let params = params.ok_or_else(|| Fault::bad("an object is expected"))?;
        let answer = params.to_json();
        Ok((params, answer))
    });
    ok(compact(&written.await?))
}

pub(super) async fn modify_all(
    visitor: Visitor,
    Path((kind, key)): Of,
    Sent(body): Sent,
) -> Answer {
    let target = Target::new(kind, key)?;
    let operations = patch::parse(&body).map_err(refused_patch)?;
    let written = write(&visitor, &target, |params| {
        let before: Value = serde_json::from_str(&params.to_json())
            .map_err(|error| Fault::invalid(format!("they cannot be patched: {error}")))?;
        let after = patch::apply(before, &operations, OBJECT_BYTES_MAX);
        let after = after.map_err(refused_patch)?.to_string();
        let params = Fields::parse(after.as_bytes());
        let params = params.ok_or_else(|| Fault::invalid("parameters stay an object"))?;
        Ok((params, after))
    });
    ok(written.await?)
}

/// `null` for one that is not set.
pub(super) async fn one(visitor: Visitor, Path((kind, key, name)): One) -> Answer {
    let target = Target::new(kind, key)?;
    let entry = seen(&visitor, &target).await?;
    let (_, params) = split(&entry.value)?;
    ok(compact(params.get(&name).unwrap_or("null")))
}

pub(super) async fn set_one(
    visitor: Visitor,
    Path((kind, key, name)): One,
    Sent(body): Sent,
) -> Answer {
    let target = Target::new(kind, key)?;
    let sent = json_of(&body)?;
    let written = write(&visitor, &target, |mut params| {
        params.set(&name, sent.clone());
        Ok((params, ()))
    });
    written.await?;
    ok(compact(sent.get()))
}

pub(super) async fn remove_one(visitor: Visitor, Path((kind, key, name)): One) -> Answer {
    let target = Target::new(kind, key)?;
    let written = write(&visitor, &target, |mut params| {
        let removed = params.remove(&name).ok_or_else(Fault::not_found)?;
        Ok((params, removed))
    });
    ok(compact(written.await?.get()))
}

/// Any JSON, no deeper than it can be patched.
fn json_of(body: &[u8]) -> Result<Box<RawValue>, Fault> {
    let bad = |error: serde_json::Error| Fault::bad(format!("the value: {error}"));
    serde_json::from_slice::<Value>(body).map_err(bad)?;
    serde_json::from_slice(body).map_err(bad)
}

/// An object, and its parameters.
fn split(value: &[u8]) -> Result<(Fields, Fields), Fault> {
    let fields = Fields::parse(value);
    let fields = fields.ok_or_else(|| Fault::invalid("this is no object with parameters"))?;
    let params = fields.object(PARAMS);
    let params = params.ok_or_else(|| Fault::invalid("its Params are no object"))?;
    Ok((fields, params))
}

/// Changes the parameters of an object that is there.
async fn write<T: Send>(
    visitor: &Visitor,
    target: &Target,
    edit: impl Fn(Fields) -> Result<(Fields, T), Fault> + Send + Sync,
) -> Result<T, Fault> {
    let action = Action::Params(visitor.state.config.params_action);
    let changed = change(visitor, target, action, |value| {
        let (mut fields, params) = split(value)?;
        let (params, answer) = edit(params)?;
        let params = params.to_raw();
        let params = params.ok_or_else(|| Fault::invalid("its Params are no JSON"))?;
        fields.set(PARAMS, params);
        Ok((stored_json(&target.kind, &fields.to_json())?, answer))
    });
    changed.await
}
