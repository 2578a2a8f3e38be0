//! The part of Elasticsearch's query language that clients of the repository use.
//!
//! `{"query": ...}` with `match_all`, `match`, `match_phrase`, `term`, `terms`, `exists`, and `bool` with `must`, `filter`,
//! `should`, `must_not` and `minimum_should_match`; beside it `size`. A field is a member of the document, or with dots a
//! member of a member. Texts are compared as words in lower case, everything else by its value. What is not supported is
//! refused by name.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

/// How deep conditions may be within one another, and how many there may be.
const DEPTH_MAX: usize = 16;
const CONDITIONS_MAX: usize = 32;
/// The most words, or values, of one condition.
const WORDS_MAX: usize = 64;
/// The longest query, in bytes.
const QUERY_BYTES_MAX: usize = 64 << 10;

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ElasticError {
    #[error("the query is no JSON object: {0}")]
    NoObject(String),
    #[error("the query has over {QUERY_BYTES_MAX} bytes")]
    TooLong,
    #[error("{0:?} is not supported here")]
    NotSupported(String),
    #[error("{0}: {1} is expected")]
    Expected(String, &'static str),
    #[error("more than {CONDITIONS_MAX} conditions, or more than {DEPTH_MAX} within one another")]
    TooMany,
    #[error("more than {WORDS_MAX} words or values in one condition")]
    TooManyWords,
}

/// A query that was understood.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    root: Node,
    /// How many conditions there are.
    conditions: u64,
    /// How many documents are wanted.
    pub(super) size: Option<usize>,
}

#[derive(Clone, Debug)]
enum Node {
    All,
    /// Any of these words.
    Words(String, BTreeSet<String>),
    /// These words, in this order, one behind the other.
    Phrase(String, Vec<String>),
    /// Any of these values, as they are.
    Values(String, Vec<Value>),
    Exists(String),
    Bool {
        must: Vec<Node>,
        should: Vec<Node>,
        must_not: Vec<Node>,
        should_min: usize,
    },
}

pub(super) fn parse(text: &str) -> Result<Condition, ElasticError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(ElasticError::TooLong);
    }
    let value = serde_json::from_str(text);
    let value: Value = value.map_err(|error| ElasticError::NoObject(error.to_string()))?;
    let Value::Object(members) = value else {
        return Err(ElasticError::NoObject("it is something else".to_owned()));
    };
    let (mut root, mut size) = (Node::All, None);
    let mut left = CONDITIONS_MAX;
    for (name, value) in &members {
        match name.as_str() {
            "query" => root = node(value, DEPTH_MAX, &mut left)?,
            "size" => {
                let number = value.as_u64();
                let number = number.ok_or_else(|| expected("size", "a number"))?;
                size = Some(usize::try_from(number).unwrap_or(usize::MAX));
            }
            other => return Err(ElasticError::NotSupported(other.to_owned())),
        }
    }
    let conditions = (CONDITIONS_MAX - left) as u64;
    Ok(Condition {
        root,
        conditions,
        size,
    })
}

fn expected(name: &str, what: &'static str) -> ElasticError {
    ElasticError::Expected(name.to_owned(), what)
}

/// The only member of an object.
fn single<'a>(name: &str, value: &'a Value) -> Result<(&'a str, &'a Value), ElasticError> {
    let members = value.as_object().filter(|members| members.len() == 1);
    let member = members.and_then(|members| members.iter().next());
    let (name, value) = member.ok_or_else(|| expected(name, "an object with one member"))?;
    Ok((name, value))
}

fn node(value: &Value, depth: usize, left: &mut usize) -> Result<Node, ElasticError> {
    *left = left.checked_sub(1).ok_or(ElasticError::TooMany)?;
    let depth = depth.checked_sub(1).ok_or(ElasticError::TooMany)?;
    let (kind, value) = single("query", value)?;
    match kind {
        "match_all" => Ok(Node::All),
        "match" | "match_phrase" => {
            let (field, value) = single(kind, value)?;
            let value = inner(value, "query");
            let Value::String(text) = value else {
                return Ok(Node::Values(field.to_owned(), vec![value.clone()]));
            };
            let (field, words) = (field.to_owned(), words(text));
            check_words(words.len())?;
            Ok(match kind {
                "match" => Node::Words(field, words.into_iter().collect()),
                _ => Node::Phrase(field, words),
            })
        }
        "term" => {
            let (field, value) = single(kind, value)?;
            let value = inner(value, "value");
            Ok(Node::Values(field.to_owned(), vec![value.clone()]))
        }
        "terms" => {
            let (field, value) = single(kind, value)?;
            let values = value.as_array();
            let values = values.ok_or_else(|| expected(kind, "an array of values"))?;
            check_words(values.len())?;
            Ok(Node::Values(field.to_owned(), values.clone()))
        }
        "exists" => match single(kind, value)? {
            ("field", Value::String(field)) => Ok(Node::Exists(field.clone())),
            _ => Err(expected(kind, "a field")),
        },
        "bool" => {
            let members = value.as_object();
            bool_node(
                members.ok_or_else(|| expected(kind, "an object"))?,
                depth,
                left,
            )
        }
        other => Err(ElasticError::NotSupported(other.to_owned())),
    }
}

fn check_words(count: usize) -> Result<(), ElasticError> {
    match count <= WORDS_MAX {
        true => Ok(()),
        false => Err(ElasticError::TooManyWords),
    }
}

/// The value itself, or the member of that name of its long form.
fn inner<'a>(value: &'a Value, name: &str) -> &'a Value {
    let members = value.as_object();
    members
        .and_then(|members| members.get(name))
        .unwrap_or(value)
}

fn bool_node(
    members: &Map<String, Value>,
    depth: usize,
    left: &mut usize,
) -> Result<Node, ElasticError> {
    let (mut must, mut should, mut must_not) = (Vec::new(), Vec::new(), Vec::new());
    let mut should_min = None;
    for (name, value) in members {
        let into = match name.as_str() {
            "must" | "filter" => &mut must,
            "should" => &mut should,
            "must_not" => &mut must_not,
            "minimum_should_match" => {
                let number = value
                    .as_u64()
                    .and_then(|number| usize::try_from(number).ok());
                should_min = Some(number.ok_or_else(|| expected(name, "a number"))?);
                continue;
            }
            other => return Err(ElasticError::NotSupported(other.to_owned())),
        };
        match value {
            Value::Array(all) => {
                for one in all {
                    into.push(node(one, depth, left)?);
                }
            }
            one => into.push(node(one, depth, left)?),
        }
    }
    let least = usize::from(must.is_empty() && !should.is_empty());
    Ok(Node::Bool {
        must,
        should,
        must_not,
        should_min: should_min.unwrap_or(least),
    })
}

/// The words of a text, in lower case: runs of letters, digits and `_`.
fn words(text: &str) -> Vec<String> {
    let words = text.split(|character: char| !(character.is_alphanumeric() || character == '_'));
    let words = words.filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

impl Condition {
    /// How many bytes are gone over to look at a document: it is read once, and its texts are cut into words for each
    /// condition.
    pub(super) fn work(&self, document: &[u8]) -> u64 {
        (document.len() as u64).saturating_mul(self.conditions + 1)
    }

    /// Whether a document is one of those that are asked for.
    pub(super) fn holds(&self, document: &[u8]) -> bool {
        match serde_json::from_slice(document) {
            Ok(document) => self.root.holds(&document),
            Err(_) => false,
        }
    }
}

impl Node {
    fn holds(&self, document: &Value) -> bool {
        match self {
            Self::All => true,
            Self::Words(field, wanted) => any(document, field, |value| {
                let there = value.as_str().map(words).unwrap_or_default();
                there.iter().any(|word| wanted.contains(word))
            }),
            Self::Phrase(field, wanted) => any(document, field, |value| {
                let there = value.as_str().map(words).unwrap_or_default();
                !wanted.is_empty() && there.windows(wanted.len()).any(|some| some == wanted)
            }),
            Self::Values(field, wanted) => any(document, field, |value| has_term(value, wanted)),
            Self::Exists(field) => any(document, field, |value| !value.is_null()),
            Self::Bool {
                must,
                should,
                must_not,
                should_min,
            } => {
                let holding = should.iter().filter(|node| node.holds(document));
                must.iter().all(|node| node.holds(document))
                    && !must_not.iter().any(|node| node.holds(document))
                    && holding.count() >= *should_min
            }
        }
    }
}

/// A text has a term where it is one of its words, which are cut once for all terms; other values are compared.
fn has_term(value: &Value, wanted: &[Value]) -> bool {
    match value {
        Value::String(text) => {
            let there: HashSet<String> = words(text).into_iter().collect();
            let mut terms = wanted.iter().filter_map(Value::as_str);
            terms.any(|term| there.contains(term))
        }
        Value::Number(number) => wanted.iter().any(|wanted| {
            wanted.as_number().map(serde_json::Number::as_f64) == Some(number.as_f64())
        }),
        value => wanted.contains(value),
    }
}

/// Whether it holds for the field, or for one of its values where it is an array.
fn any(document: &Value, field: &str, holds: impl Fn(&Value) -> bool) -> bool {
    let mut at = document;
    let mut rest = field;
    loop {
        if let Some(value) = at.get(rest) {
            return match value {
                Value::Array(values) => values.iter().any(holds),
                value => holds(value),
            };
        }
        let Some((name, behind)) = rest.split_once('.') else {
            return false;
        };
        let Some(value) = at.get(name) else {
            return false;
        };
        (at, rest) = (value, behind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"path":"my_path/sub","path_length":11,"tag":["Red Hat","x"],"mbt":{"completed":"false"},"n":1.0}"#;

    #[test]
    fn conditions_hold_as_the_page_says() {
        for (query, holds) in [
            (r#"{"match_all":{}}"#, true),
            (r#"{"match":{"path":"my_path"}}"#, true),
            (r#"{"match":{"path":{"query":"other MY_PATH"}}}"#, true),
            (r#"{"match":{"path":"my"}}"#, false),
            (r#"{"match_phrase":{"path":"my_path/sub"}}"#, true),
            (r#"{"match_phrase":{"path":"sub my_path"}}"#, false),
            (r#"{"match_phrase":{"path":""}}"#, false),
            (r#"{"match_phrase":{"tag":"red hat"}}"#, true),
            (r#"{"term":{"path_length":11}}"#, true),
            (r#"{"term":{"path_length":{"value":12}}}"#, false),
            (r#"{"term":{"n":1}}"#, true),
            (r#"{"terms":{"tag":["y","x"]}}"#, true),
            (r#"{"match":{"mbt.completed":"false"}}"#, true),
            (r#"{"match":{"none.completed":"false"}}"#, false),
            (r#"{"exists":{"field":"mbt"}}"#, true),
            (
                r#"{"bool":{"must":[{"match":{"path":"sub"}},{"term":{"n":1}}]}}"#,
                true,
            ),
            (
                r#"{"bool":{"must":{"match":{"path":"sub"}},"must_not":{"exists":{"field":"n"}}}}"#,
                false,
            ),
            (
                r#"{"bool":{"should":[{"term":{"n":2}},{"term":{"n":3}}]}}"#,
                false,
            ),
            (
                r#"{"bool":{"should":[{"term":{"n":2}},{"term":{"n":1}}]}}"#,
                true,
            ),
            (
                r#"{"bool":{"must":{"match_all":{}},"should":[{"term":{"n":2}}]}}"#,
                true,
            ),
            (
                r#"{"bool":{"should":[{"term":{"n":2}},{"term":{"n":1}}],"minimum_should_match":2}}"#,
                false,
            ),
        ] {
            let parsed = parse(&format!("{{\"query\":{query}}}")).unwrap();
            assert_eq!(parsed.holds(DOCUMENT.as_bytes()), holds, "{query}");
        }
        assert!(!parse("{}").unwrap().holds(b"garbage"));
        assert_eq!(parse(r#"{"size":7}"#).unwrap().size, Some(7));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let deep = format!(
            "{{\"query\":{}{{\"match_all\":{{}}}}{}}}",
            "{\"bool\":{\"must\":".repeat(20),
            "}}".repeat(20)
        );
        for (query, told) in [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            (r#"{"aggs":{}}"#, "\"aggs\" is not supported"),
            (
                r#"{"query":{"query_string":{"query":"*"}}}"#,
                "\"query_string\" is not supported",
            ),
            (
                r#"{"query":{"bool":{"boost":1}}}"#,
                "\"boost\" is not supported",
            ),
            (
                r#"{"query":{"match":{}}}"#,
                "match: an object with one member",
            ),
            (
                r#"{"query":{"match":{"a":1,"b":2}}}"#,
                "an object with one member",
            ),
            (&deep, "within one another"),
        ] {
            let error = parse(query).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
