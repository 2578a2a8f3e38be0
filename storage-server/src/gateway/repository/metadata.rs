//! The metadata document of a file: what is kept of it, what queries find, and what subscribers are told.
//!
//! It is made of the request and the uploaded JSON, in this order: `project`, `source`, `path` and `filename` by the
//! request; then each member of the JSON, its name with ASCII letters in lower case. `project` and `source` of the JSON
//! take the place of the request's, `path` and `filename` do not. Behind each member that is a text comes its length in
//! UTF-16 units, as `NAME_length`; what the JSON has under such a name is left out. What is within a member stays as it
//! is, but for white space.

use std::collections::HashMap;

use serde::Deserialize;

use super::place::Place;
use crate::gateway::json::{self, Members};

/// The most bytes of uploaded JSON.
pub(crate) const JSON_BYTES_MAX: usize = 1 << 20;
/// How deep its objects and arrays may be within one another.
const DEPTH_MAX: usize = 100;

/// Of the request, and not of the JSON.
const OF_THE_REQUEST: [&str; 4] = ["path", "filename", "path_length", "filename_length"];
const LENGTH: &str = "_length";

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    /// It is no JSON object.
    #[error("no JSON object: {0}")]
    NoObject(String),
    /// It is longer than 1 MiB.
    #[error("{0} bytes of JSON, allowed are {JSON_BYTES_MAX}")]
    TooLong(usize),
    /// It has more than 100 objects and arrays within one another.
    #[error("objects and arrays are more than {DEPTH_MAX} deep")]
    TooDeep,
}

/// A metadata document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Document {
    text: String,
}

impl Document {
    /// Its JSON, without white space between the members.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

/// Makes the document of a file that is uploaded to `request` with this JSON.
///
/// # Errors
/// [`MetadataError`].
pub(crate) fn metadata_document(
    uploaded: &[u8],
    request: &Place,
) -> Result<Document, MetadataError> {
    if uploaded.len() > JSON_BYTES_MAX {
        return Err(MetadataError::TooLong(uploaded.len()));
    }
    let members: Members = serde_json::from_slice(uploaded).map_err(no_object)?;
    let mut fields = Fields::default();
    for (name, value) in [
        ("project", &request.project),
        ("source", &request.source),
        ("path", &request.path),
        ("filename", &request.name),
    ] {
        fields.set(name.to_owned(), json::string(value));
    }
    for (name, value) in members.0 {
        let name = name.to_ascii_lowercase();
        if !OF_THE_REQUEST.contains(&name.as_str()) {
            fields.set(name, compacted(value.get())?);
        }
    }
    fields.written()
}

/// The document with the revision as its last member. One that it has itself is left out.
pub(crate) fn with_revision(text: &str, revision: u64) -> String {
    // Most have no such word in them at all.
    let cut = match text.contains("\"revision\"") {
        true => without_revision(text),
        false => None,
    };
    let text = cut.as_deref().unwrap_or(text).trim_end();
    let text = text.strip_suffix('}').unwrap_or(text);
    let comma = if text.ends_with('{') { "" } else { "," };
    format!("{text}{comma}\"revision\":{revision}}}")
}

fn without_revision(text: &str) -> Option<String> {
    let members: Members = serde_json::from_str(text).ok()?;
    let members = members.0.iter();
    let members = members.filter(|(name, _)| name != "revision");
    let members = members.map(|(name, value)| format!("{}:{}", json::string(name), value.get()));
    Some(format!("{{{}}}", members.collect::<Vec<_>>().join(",")))
}

/// What a document says of where its file is. What is no text is not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) project: Option<String>,
    pub(crate) source: Option<String>,
}

/// Reads what a stored document says; `None`: it is no document. Whoever may write can put one by other means.
pub(crate) fn said(text: &[u8]) -> Option<Said> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Two {
        project: serde_json::Value,
        source: serde_json::Value,
    }
    // An array would do for the struct as well.
    if !text.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    let two: Two = serde_json::from_slice(text).ok()?;
    let text = |value: serde_json::Value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    };
    Some(Said {
        project: text(two.project),
        source: text(two.source),
    })
}

fn no_object(error: serde_json::Error) -> MetadataError {
    MetadataError::NoObject(error.to_string())
}

/// Members in their order; of several with one name the last counts, in the place of the first.
#[derive(Default)]
struct Fields {
    members: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Fields {
    fn set(&mut self, name: String, value: String) {
        if let Some(place) = self.places.get(&name)
            && let Some(member) = self.members.get_mut(*place)
        {
            member.1 = value;
            return;
        }
        self.places.insert(name.clone(), self.members.len());
        self.members.push((name, value));
    }

    fn is_text(&self, name: &str) -> bool {
        let place = self.places.get(name);
        let member = place.and_then(|place| self.members.get(*place));
        member.is_some_and(|(_, value)| value.starts_with('"'))
    }

    fn written(&self) -> Result<Document, MetadataError> {
        let mut out = String::from("{");
        for (name, value) in &self.members {
            let of = name.strip_suffix(LENGTH);
            if of.is_some_and(|of| self.is_text(of)) {
                continue;
            }
            push(&mut out, name, value);
            if value.starts_with('"') {
                let text: String = serde_json::from_str(value).map_err(no_object)?;
                let length = text.encode_utf16().count().to_string();
                push(&mut out, &format!("{name}{LENGTH}"), &length);
            }
        }
        out.push('}');
        Ok(Document { text: out })
    }
}

fn push(out: &mut String, name: &str, value: &str) {
    if out.len() > 1 {
        out.push(',');
    }
    out.push_str(&json::string(name));
    out.push(':');
    out.push_str(value);
}

/// The value of a member without white space between its tokens.
fn compacted(value: &str) -> Result<String, MetadataError> {
    match json::depth(value) > DEPTH_MAX {
        true => Err(MetadataError::TooDeep),
        false => Ok(json::compact(value)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::gateway::repository::keys::tests::place;

    fn made(json: &str, place: &Place) -> String {
        let document = metadata_document(json.as_bytes(), place);
        document.unwrap().into_text()
    }

    #[test]
    fn the_example_of_the_protocol_is_made_to_the_byte() {
        let request = place("demo_hpc", "user", "mypath", "main.c");
        let json = r#"{"project":"other","Tag":"x1","MBT":{"completed":"false"},"n":4}"#;
        assert_eq!(
            made(json, &request),
            r#"{"project":"other","project_length":5,"source":"user","source_length":4,"path":"mypath","path_length":6,"filename":"main.c","filename_length":6,"tag":"x1","tag_length":2,"mbt":{"completed":"false"},"n":4}"#
        );
    }

    #[test]
    fn lengths_are_counted_and_never_taken_from_the_json() {
        let request = place("p", "s", "", "n");
        let json = r#" { "Path": "elsewhere", "PATH_LENGTH": 9, "a_length": 7, "A": "é😀", "b_length": 3 } "#;
        let document: Value = serde_json::from_str(&made(json, &request)).unwrap();
        assert_eq!(
            document,
            json!({
                "project": "p", "project_length": 1, "source": "s", "source_length": 1,
                "path": "", "path_length": 0, "filename": "n", "filename_length": 1,
                "a": "é😀", "a_length": 3, "b_length": 3,
            })
        );
    }

    #[test]
    fn what_is_within_a_member_stays_as_it_is() {
        let json = "{\"Z\": {\"B\" : [1.0, 12345678901234567890123], \"A\": \"a  \\\" b\"}}";
        let text = made(json, &place("p", "s", "", "n"));
        assert!(
            text.ends_with(r#","z":{"B":[1.0,12345678901234567890123],"A":"a  \" b"}}"#),
            "{text}"
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let request = place("p", "s", "", "n");
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(101), "]".repeat(101));
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(JSON_BYTES_MAX));
        for json in [
            "",
            "null",
            "[]",
            "1",
            "{\"a\":}",
            "{}x",
            "{\"a\":\"\\ud800\"}",
            &deep,
            &long,
        ] {
            metadata_document(json.as_bytes(), &request).unwrap_err();
        }
        metadata_document(b"\xff", &request).unwrap_err();
    }

    #[test]
    fn the_revision_comes_last_and_once() {
        for (text, with) in [
            ("{}", r#"{"revision":7}"#),
            (r#"{"a":1}"#, r#"{"a":1,"revision":7}"#),
            (
                r#"{"revision":"x","a":{"revision":1}}"#,
                r#"{"a":{"revision":1},"revision":7}"#,
            ),
        ] {
            assert_eq!(with_revision(text, 7), with);
        }
    }

    #[test]
    fn a_document_says_its_project_and_source_where_they_are_texts() {
        let of = |text: &[u8]| said(text);
        let both = of(br#"{"project":"a","x":1,"source":"b"}"#).unwrap();
        assert_eq!(
            (both.project.as_deref(), both.source.as_deref()),
            (Some("a"), Some("b"))
        );
        assert_eq!(of(br#"{"project":1}"#), Some(Said::default()));
        for garbage in [&b"garbage"[..], b"", b"[1]", b"3"] {
            assert_eq!(of(garbage), None);
        }
    }

    /// The rule as it is told, without its order.
    fn model(members: &[(String, Value)], request: &Place) -> Map<String, Value> {
        let mut out = Map::new();
        out.insert("project".to_owned(), Value::from(request.project.clone()));
        out.insert("source".to_owned(), Value::from(request.source.clone()));
        for (name, value) in members {
            let name = name.to_ascii_lowercase();
            if !["path", "filename", "path_length", "filename_length"].contains(&&*name) {
                out.insert(name, value.clone());
            }
        }
        out.insert("path".to_owned(), Value::from(request.path.clone()));
        out.insert("filename".to_owned(), Value::from(request.name.clone()));
        let texts: Vec<_> = out
            .iter()
            .filter_map(|(name, value)| {
                Some((name.clone(), value.as_str()?.encode_utf16().count()))
            })
            .collect();
        let is_text = |name: &str| texts.iter().any(|(text, _)| text == name);
        let is_left_out = |name: &str| name.strip_suffix("_length").is_some_and(is_text);
        out.retain(|name, _| !is_left_out(name));
        for (name, length) in &texts {
            if !is_left_out(name) {
                out.insert(format!("{name}_length"), Value::from(*length));
            }
        }
        out
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            ".{0,5}".prop_map(Value::from),
            Just(json!({"B": [1, {"a": "x  y"}], "A": "\"\\"})),
        ]
    }

    proptest! {
        #[test]
        fn it_is_as_the_rule_has_it(
            members in prop::collection::vec(("(project|Source|PATH|filename|a|A|b)(_length)?(_length)?", value()), 0..8),
            names in ["[a-z]{1,4}", "[a-z]{1,4}", "[a-z/]{0,4}", "[a-z]{1,4}"],
        ) {
            let [project, source, path, name] = &names;
            let request = place(project, source, path, name);
            let text = members.iter().map(|(name, value)| format!("{:?} : {value}", name));
            let json = format!("{{{}}}", text.collect::<Vec<_>>().join(" ,\n"));
            let document = metadata_document(json.as_bytes(), &request).unwrap();
            let parsed: Map<String, Value> = serde_json::from_str(document.text()).unwrap();
            prop_assert_eq!(parsed, model(&members, &request));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(document) = metadata_document(&bytes, &place("p", "s", "", "n")) {
                let _: Map<String, Value> = serde_json::from_str(document.text()).unwrap();
            }
        }
    }
}
