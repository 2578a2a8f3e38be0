//! Values as JSON, without a loss: an object is read no deeper than its fields, and what they have stays as it was
//! written, digits of numbers and order of names included.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::gateway::json::{Members, compact, string};

/// Objects of this type are accounts.
pub(super) const USERS: &str = "users";
/// Fields of accounts that nobody is shown.
const SECRETS: [&str; 3] = ["PasswordHash", "Secret", "Password"];

/// The JSON that stands for a stored value: itself, in one line and without secrets; what is no JSON as a string; what
/// is no text either as `{"base64": "..."}`.
pub(super) fn shown(kind: &str, value: &[u8]) -> String {
    let Ok(text) = std::str::from_utf8(value) else {
        let base64 = STANDARD.encode(value);
        return format!("{{\"base64\":\"{base64}\"}}");
    };
    if !is_json(text) {
        return string(text);
    }
    let text = match kind {
        USERS => Cow::Owned(without_secrets(text)),
        _ => Cow::Borrowed(text),
    };
    compact(&text)
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// JSON without the fields of an account that are secret, whatever else it is.
pub(super) fn without_secrets(text: &str) -> String {
    let Some(mut fields) = Fields::parse(text.as_bytes()) else {
        return text.to_owned();
    };
    fields.retain(|name| !SECRETS.contains(&name));
    fields.to_json()
}

/// The fields of a JSON object in their order, each value as its text.
#[derive(Debug, Default, Serialize)]
pub(super) struct Fields(Members);

impl Fields {
    /// `None` if it is no JSON object. A name that stands twice counts as its last, as most readers have it.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok().map(Self)
    }

    /// The names, as often as they stand there.
    pub(super) fn names(&self) -> Vec<&str> {
        self.0.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The text of a field's value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.0.iter().rev();
        let (_, value) = fields.find(|(field, _)| field == name)?;
        Some(value.get())
    }

    /// A field's value, if it is a string.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }

    /// A field that is an object; an empty one where the field is missing or null. `None` if it is something else.
    pub(super) fn object(&self, name: &str) -> Option<Self> {
        match self.get(name) {
            None | Some("null") => Some(Self::default()),
            Some(json) => Self::parse(json.as_bytes()),
        }
    }

    /// Sets a field, which keeps its place.
    pub(super) fn set(&mut self, name: &str, value: Box<RawValue>) {
        // Of a name that stands twice one is left.
        let place = self.0.0.iter().position(|(field, _)| field == name);
        self.remove(name);
        let place = place.unwrap_or(self.0.0.len());
        self.0.0.insert(place, (name.to_owned(), value));
    }

    /// The value of a field that is there no more.
    pub(super) fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        let mut removed = None;
        let fields = std::mem::take(&mut self.0.0);
        for (field, value) in fields {
            match field == name {
                true => removed = Some(value),
                false => self.0.0.push((field, value)),
            }
        }
        removed
    }

    /// Keeps the fields with these names.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.0.retain(|(name, _)| keep(name));
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "null".to_owned())
    }

    /// The same as a value of a field.
    pub(super) fn to_raw(&self) -> Option<Box<RawValue>> {
        to_raw_value(self).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_that_are_no_json_are_a_string_or_base64() {
        assert_eq!(shown("t", b" {\"a\" : [1, 2.50]}\n"), r#"{"a":[1,2.50]}"#);
        assert_eq!(shown("t", b"hello \"you\""), r#""hello \"you\"""#);
        assert_eq!(shown("t", b""), r#""""#);
        assert_eq!(shown("t", b"\xff\x00"), r#"{"base64":"/wA="}"#);
        assert_eq!(shown("t", b"[1] 2"), r#""[1] 2""#);
        // Neither rounded nor sorted.
        let odd = br#"{"z":12345678901234567890123,"a":1e400}"#;
        assert_eq!(shown("t", odd).as_bytes(), odd);
    }

    #[test]
    fn accounts_are_shown_without_their_secrets_however_these_are_written() {
        let account = br#"{"Name":"ann","PasswordHash":"x","\u0053ecret":"y","Password":1,"Secret":2,"Roles":["Secret"]}"#;
        assert_eq!(
            shown("users", account),
            r#"{"Name":"ann","Roles":["Secret"]}"#
        );
        assert_eq!(shown("profiles", br#"{"Secret":1}"#), r#"{"Secret":1}"#);
        assert_eq!(shown("users", b"[1]"), "[1]");
    }

    #[test]
    fn a_deep_value_is_shown_as_it_is() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert_eq!(shown("t", deep.as_bytes()), deep);
        assert_eq!(shown("users", deep.as_bytes()), deep);
        let hidden = format!("{{\"Secret\":1,\"Deep\":{deep}}}");
        assert!(!shown("users", hidden.as_bytes()).contains("Secret"));
    }

    #[test]
    fn a_field_that_is_set_keeps_its_place_and_one_that_stands_twice_counts_as_its_last() {
        let mut fields = Fields::parse(br#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(fields.get("a"), Some("3"));
        fields.set("a", to_raw_value(&4).unwrap());
        assert_eq!(fields.to_json(), r#"{"a":4,"b":2}"#);
        assert_eq!(fields.remove("a").unwrap().get(), "4");
        assert!(fields.remove("a").is_none());
        assert_eq!(fields.object("c").unwrap().to_json(), "{}");
        assert!(fields.object("b").is_none());
        assert!(Fields::parse(b"[1]").is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_stored_is_shown_as_json(kind in "users|t", value in any::<Vec<u8>>()) {
            let json = shown(&kind, &value);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{}", json);
        }
    }
}
