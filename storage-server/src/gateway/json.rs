//! JSON as it was written, for gateways that pass on what they are given: an object is read no deeper than its members, and
//! what these have keeps its digits, its names and their order.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// A string of JSON.
pub(crate) fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// JSON without white space between its tokens.
pub(crate) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    outside_of_strings(json, |character, is_outside| {
        if !(is_outside && matches!(character, ' ' | '\t' | '\r' | '\n')) {
            out.push(character);
        }
    });
    out
}

/// How many arrays and objects are within one another in this JSON, at the deepest. Takes no stack: parsers are asked
/// whether they can take it before they are given it.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    outside_of_strings(json, |character, is_outside| match character {
        '{' | '[' if is_outside => {
            depth += 1;
            deepest = deepest.max(depth);
        }
        '}' | ']' if is_outside => depth = depth.saturating_sub(1),
        _ => {}
    });
    deepest
}

/// Each character, and whether it stands outside of strings; their quotes are within.
fn outside_of_strings(json: &str, mut each: impl FnMut(char, bool)) {
    let (mut in_string, mut is_escaped) = (false, false);
    for character in json.chars() {
        let is_outside = !in_string && character != '"';
        each(character, is_outside);
        if in_string {
            in_string = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
        } else {
            in_string = character == '"';
        }
    }
}

/// The members of a JSON object in their order, each value as its text. A name may stand there more than once.
#[derive(Debug, Default)]
pub(crate) struct Members(pub(crate) Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Read)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_in_strings_is_neither_space_nor_depth() {
        assert_eq!(
            compact("{ \"a b\\\" {\" : [ 1 ,\n2 ] }"),
            r#"{"a b\" {":[1,2]}"#
        );
        assert_eq!(depth(r#"{"[[[\"[":[{}],"b":[[[1]]]}"#), 4);
        assert_eq!(depth("\"[\""), 0);
        let deep = "[".repeat(200_000);
        assert_eq!(depth(&deep), 200_000);
    }

    proptest! {
        #[test]
        fn what_is_compacted_is_the_same_json_in_one_line(text in any::<String>(), n in any::<i64>()) {
            let value = serde_json::json!({ text.clone(): [n, text, { "a b": null }] });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&pretty), value.to_string());
        }
    }
}
