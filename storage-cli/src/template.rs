//! Keys made from the columns of a row: `weather/{origin}/{time_hour}`.
//!
//! A template is parsed without knowing the columns; whoever fills it in says what a column's value is. `{{` and
//! `}}` stand for braces. A column's name (or, in JSON, the path of a field: `_id.$oid`) is what stands between the braces.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::escape;
use crate::failure::{Usage, usage};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Column(String),
}

/// As it was given.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubled = |text: &str| text.replace('{', "{{").replace('}', "}}");
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => f.write_str(&doubled(text))?,
                Segment::Column(name) => write!(f, "{{{name}}}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Template {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let wrong = |what: &str| Err(Usage(format!("the key template {text:?} {what}")));
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '{' | '}' if rest.as_str().starts_with(c) => {
                    rest.next();
                    literal.push(c);
                }
                '{' => {
                    let Some((column, behind)) = rest.as_str().split_once('}') else {
                        return wrong("has a { without its } (a literal brace is doubled)");
                    };
                    if column.is_empty() || column.contains('{') {
                        return wrong(
                            "has a { without a column's name (a literal brace is doubled)",
                        );
                    }
                    if !literal.is_empty() {
                        segments.push(Segment::Literal(std::mem::take(&mut literal)));
                    }
                    segments.push(Segment::Column(column.to_owned()));
                    rest = behind.chars();
                }
                '}' => return wrong("has a } without its { (a literal brace is doubled)"),
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            segments.push(Segment::Literal(literal));
        }
        if segments.is_empty() {
            return wrong("is empty, and a key has at least one byte");
        }
        Ok(Self { segments })
    }
}

impl Template {
    /// The columns it asks for.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Column(name) => Some(name.as_str()),
        })
    }

    /// Fails for a column that is not among `columns`, and names those there are.
    pub(crate) fn check_columns(&self, columns: &[String]) -> anyhow::Result<()> {
        let there = |name: &str| columns.iter().any(|column| column == name);
        match self.columns().find(|name| !there(name)) {
            None => Ok(()),
            Some(unknown) => Err(usage(format!(
                "--key asks for the column {unknown:?}; there are: {}",
                some(columns.iter().map(String::as_str))
            ))),
        }
    }

    /// The key of a row.
    pub(crate) fn fill<E>(
        &self,
        mut value: impl FnMut(&str, &mut String) -> Result<(), E>,
    ) -> Result<Bytes, E> {
        let mut key = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => key.push_str(text),
                Segment::Column(name) => value(name, &mut key)?,
            }
        }
        Ok(key.into())
    }
}

/// Names in a message, as many as people read.
pub(crate) fn some<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    const CHARS_MAX: usize = 400;
    let all = names.len();
    let mut text = String::new();
    for (place, name) in names.enumerate() {
        let name = escape::text(name.as_bytes());
        if text.len() + name.len() > CHARS_MAX {
            return match place {
                0 => format!("{all} with long names"),
                place => format!("{text} and {} more", all - place),
            };
        }
        text.push_str(if place > 0 { ", " } else { "" });
        text.push_str(&name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(template: &str) -> Bytes {
        let template: Template = template.parse().unwrap();
        let value = |name: &str, key: &mut String| {
            key.push_str(&name.to_uppercase());
            Ok::<_, ()>(())
        };
        template.fill(value).unwrap()
    }

    #[test]
    fn columns_are_filled_in() {
        assert_eq!(
            fill("weather/{origin}/{time_hour}"),
            "weather/ORIGIN/TIME_HOUR"
        );
        assert_eq!(fill("{a}{b}"), "AB");
        assert_eq!(fill("{a b-ü}"), "A B-Ü");
        assert_eq!(fill("fixed"), "fixed");
        assert_eq!(fill("{{{a}}}"), "{A}");
        assert_eq!(fill("}}{{x}}"), "}{x}");
    }

    #[test]
    fn a_wrong_template_is_explained() {
        for (template, why) in [
            ("", "is empty"),
            ("a{", "without its }"),
            ("a{b", "without its }"),
            ("a}", "without its {"),
            ("a}b", "without its {"),
            ("{}", "without a column's name"),
            ("{a{b}", "without a column's name"),
        ] {
            let error = template.parse::<Template>().unwrap_err().to_string();
            assert!(error.contains(why), "{template}: {error}");
        }
    }

    #[test]
    fn an_unknown_column_is_told_with_those_there_are() {
        let template: Template = "{origin}/{hour}".parse().unwrap();
        let columns = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert!(
            template
                .check_columns(&columns(&["hour", "origin", "x"]))
                .is_ok()
        );
        let error = template
            .check_columns(&columns(&["origin", "time"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"hour\"; there are: origin, time"),
            "{error}"
        );
    }
}
