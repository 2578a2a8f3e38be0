//! JSON Patch (RFC 6902): operations on a JSON value, all of them or none.
//!
//! Bounded, since a patch of some bytes can make a value of many: by `copy`, and by paths deep below what is there. The
//! bounds are named in the errors.

use serde::Deserialize;
use serde_json::Value;

/// The most operations of a patch.
const OPERATIONS_MAX: usize = 1_000;
/// The deepest that values may be nested, as deep as the parser takes them.
pub(super) const DEPTH_MAX: usize = 127;

/// How many items of arrays may be moved along, since others were put in or taken out before them.
const MOVES_MAX: usize = 4_000_000;

/// One operation, as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
    Move { from: String, path: String },
    Copy { from: String, path: String },
    Test { path: String, value: Value },
}

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PatchError {
    /// It is none.
    #[error("the patch: {0}")]
    Malformed(String),
    /// A test did not hold.
    #[error("operation {0} of the patch: the test of {1:?} failed")]
    Test(usize, String),
    /// It does not fit the value.
    #[error("operation {0} of the patch: {1}")]
    NotApplicable(usize, String),
    /// It would make a value that is too large or too deep.
    #[error("operation {0} of the patch: {1}")]
    TooLarge(usize, String),
}

/// What is wrong with one operation.
enum Flaw {
    Test(String),
    NotApplicable(String),
    TooLarge(String),
}

type Result<T = ()> = std::result::Result<T, Flaw>;

/// Reads a patch.
///
/// # Errors
/// [`PatchError::Malformed`].
pub(super) fn parse(json: &[u8]) -> std::result::Result<Vec<Operation>, PatchError> {
    let operations: Vec<Operation> =
        serde_json::from_slice(json).map_err(|error| PatchError::Malformed(error.to_string()))?;
    let count = operations.len();
    if count > OPERATIONS_MAX {
        return Err(PatchError::Malformed(format!(
            "{count} operations, at most {OPERATIONS_MAX} are taken (patch_operations_max)"
        )));
    }
    Ok(operations)
}

/// What the operations make of a value. `bytes_max`: how much they may copy, and how long what they make may be.
///
/// # Errors
/// [`PatchError`], but not [`PatchError::Malformed`].
pub(super) fn apply(
    value: Value,
    operations: &[Operation],
    bytes_max: usize,
) -> std::result::Result<Value, PatchError> {
    let mut patched = Patched {
        value,
        room: bytes_max,
        moves: MOVES_MAX,
    };
    for (place, operation) in operations.iter().enumerate() {
        patched.apply(operation).map_err(|flaw| match flaw {
            Flaw::Test(path) => PatchError::Test(place, path),
            Flaw::NotApplicable(why) => PatchError::NotApplicable(place, why),
            Flaw::TooLarge(why) => PatchError::TooLarge(place, why),
        })?;
    }
    Ok(patched.value)
}

struct Patched {
    value: Value,
    /// How many bytes may still be copied.
    room: usize,
    /// How many items of arrays may still be moved along.
    moves: usize,
}

impl Patched {
    fn apply(&mut self, operation: &Operation) -> Result {
        match operation {
            Operation::Add { path, value } => self.add(path, value.clone()),
            Operation::Remove { path } => self.remove(path).map(drop),
            Operation::Replace { path, value } => {
                check_depth(path, value)?;
                *self.at_mut(path)? = value.clone();
                Ok(())
            }
            Operation::Move { from, path } => {
                let into = path.strip_prefix(from.as_str());
                if into.is_some_and(|rest| rest.starts_with('/')) {
                    let why = format!("{from:?} cannot be moved into itself");
                    return Err(Flaw::NotApplicable(why));
                }
                let value = self.remove(from)?;
                self.add(path, value)
            }
            Operation::Copy { from, path } => {
                let value = self.at(from)?;
                // Copies of copies double with each operation.
                let bytes = value.to_string().len();
                let Some(room) = self.room.checked_sub(bytes) else {
                    let why = "more is copied than an object may have (object_bytes_max)";
                    return Err(Flaw::TooLarge(why.to_owned()));
                };
                let value = value.clone();
                self.room = room;
                self.add(path, value)
            }
            Operation::Test { path, value } => match self.at(path)? == value {
                true => Ok(()),
                false => Err(Flaw::Test(path.clone())),
            },
        }
    }

    fn at(&self, path: &str) -> Result<&Value> {
        self.value.pointer(path).ok_or_else(|| missing(path))
    }

    fn at_mut(&mut self, path: &str) -> Result<&mut Value> {
        self.value.pointer_mut(path).ok_or_else(|| missing(path))
    }

    /// What holds the value at a path, and its name there. `None` for the whole.
    fn parent(&mut self, path: &str) -> Result<Option<(&mut Value, String)>> {
        if path.is_empty() {
            return Ok(None);
        }
        let (parent, name) = path.rsplit_once('/').ok_or_else(|| missing(path))?;
        let name = name.replace("~1", "/").replace("~0", "~");
        Ok(Some((self.at_mut(parent)?, name)))
    }

    fn add(&mut self, path: &str, value: Value) -> Result {
        check_depth(path, &value)?;
        let mut moves = self.moves;
        match self.parent(path)? {
            None => self.value = value,
            Some((Value::Object(fields), name)) => {
                fields.insert(name, value);
            }
            Some((Value::Array(items), name)) => {
                let place = match name.as_str() {
                    "-" => Some(items.len()),
                    name => index(name).filter(|place| *place <= items.len()),
                };
                let place = place.ok_or_else(|| missing(path))?;
                moves = moves_left(moves, items.len() - place)?;
                items.insert(place, value);
            }
            Some(_) => return Err(missing(path)),
        }
        self.moves = moves;
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<Value> {
        let mut moves = self.moves;
        let removed = match self.parent(path)? {
            None => Some(self.value.take()),
            Some((Value::Object(fields), name)) => fields.remove(&name),
            Some((Value::Array(items), name)) => {
                match index(&name).filter(|place| *place < items.len()) {
                    Some(place) => {
                        moves = moves_left(moves, items.len() - place)?;
                        Some(items.remove(place))
                    }
                    None => None,
                }
            }
            Some(_) => None,
        };
        self.moves = moves;
        removed.ok_or_else(|| missing(path))
    }
}

/// What is left when so many items of an array are moved along.
fn moves_left(moves: usize, items: usize) -> Result<usize> {
    let why = || {
        format!(
            "the patch moves more than {MOVES_MAX} items of arrays along (patch_moves_max): put the whole array"
        )
    };
    moves
        .checked_sub(items)
        .ok_or_else(|| Flaw::TooLarge(why()))
}

/// A place in an array: digits without a zero before them.
fn index(name: &str) -> Option<usize> {
    let is_plain = name == "0" || !name.starts_with(['0', '+']);
    is_plain.then(|| name.parse().ok())?
}

fn missing(path: &str) -> Flaw {
    Flaw::NotApplicable(format!("there is nothing at {path:?}"))
}

/// That a value put there is no deeper than the parser takes: a deep one could not be read again, nor dropped.
fn check_depth(path: &str, value: &Value) -> Result {
    let depth = path.matches('/').count() + depth_of(value);
    match depth <= DEPTH_MAX {
        true => Ok(()),
        false => Err(Flaw::TooLarge(format!(
            "values are nested at most {DEPTH_MAX} deep (depth_max)"
        ))),
    }
}

/// How deep a value is nested; each one here was parsed, or checked before, so this does not go deep.
fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(value: Value, patch: Value) -> std::result::Result<Value, PatchError> {
        apply(value, &parse(patch.to_string().as_bytes())?, 1 << 20)
    }

    #[test]
    fn what_is_moved_along_in_arrays_is_bounded() {
        let items = MOVES_MAX / 100;
        let value = json!(vec![0_u8; items]);
        let to_the_front = |count| {
            let operation =
                json!({ "op": "move", "from": format!("/{}", items - 1), "path": "/0" });
            json!(vec![operation; count])
        };
        assert!(patched(value.clone(), to_the_front(90)).is_ok());
        let error = patched(value, to_the_front(110)).unwrap_err();
        assert!(error.to_string().contains("patch_moves_max"), "{error}");
    }

    /// The examples of RFC 6902, appendix A.
    #[test]
    fn the_examples_of_the_standard() {
        for (value, patch, expected) in [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux"}]),
                json!({"baz": "qux", "foo": "bar"}),
            ),
            (
                json!({"foo": ["bar", "baz"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
                json!({"foo": ["bar", "qux", "baz"]}),
            ),
            (
                json!({"baz": "qux", "foo": "bar"}),
                json!([{"op": "remove", "path": "/baz"}]),
                json!({"foo": "bar"}),
            ),
            (
                json!({"foo": ["bar", "qux", "baz"]}),
                json!([{"op": "remove", "path": "/foo/1"}]),
                json!({"foo": ["bar", "baz"]}),
            ),
            (
                json!({"baz": "qux"}),
                json!([{"op": "replace", "path": "/baz", "value": "boo"}]),
                json!({"baz": "boo"}),
            ),
            (
                json!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
                json!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
                json!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}}),
            ),
            (
                json!({"foo": ["all", "grass", "cows", "eat"]}),
                json!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
                json!({"foo": ["all", "cows", "eat", "grass"]}),
            ),
            (
                json!({"baz": "qux", "foo": ["a", 2, "c"]}),
                json!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]),
                json!({"baz": "qux", "foo": ["a", 2, "c"]}),
            ),
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/child", "value": {"grandchild": {}}}]),
                json!({"foo": "bar", "child": {"grandchild": {}}}),
            ),
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}]),
                json!({"foo": "bar", "baz": "qux"}),
            ),
            (
                json!({"/": 9, "~1": 10}),
                json!([{"op": "test", "path": "/~01", "value": 10}]),
                json!({"/": 9, "~1": 10}),
            ),
            (
                json!({"foo": ["bar"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]),
                json!({"foo": ["bar", ["abc", "def"]]}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "copy", "from": "/a", "path": "/b"}]),
                json!({"a": 1, "b": 1}),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "", "value": [1]}]),
                json!([1]),
            ),
        ] {
            assert_eq!(patched(value, patch.clone()), Ok(expected), "{patch}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_place() {
        let value = json!({"a": [1], "b": {"c": 1}, "s": "x"});
        for operation in [
            json!({"op": "add", "path": "/x/y", "value": 1}),
            json!({"op": "add", "path": "/a/2", "value": 1}),
            json!({"op": "add", "path": "/a/01", "value": 1}),
            json!({"op": "add", "path": "/a/+1", "value": 1}),
            json!({"op": "add", "path": "x", "value": 1}),
            json!({"op": "add", "path": "/s/x", "value": 1}),
            json!({"op": "remove", "path": "/x"}),
            json!({"op": "remove", "path": "/a/-"}),
            json!({"op": "replace", "path": "/x", "value": 1}),
            json!({"op": "move", "from": "/b", "path": "/b/c/d"}),
            json!({"op": "copy", "from": "/x", "path": "/y"}),
            json!({"op": "test", "path": "/x", "value": null}),
        ] {
            let patch = json!([{"op": "test", "path": "/s", "value": "x"}, operation]);
            let error = patched(value.clone(), patch).unwrap_err();
            assert!(
                matches!(error, PatchError::NotApplicable(1, _)),
                "{operation}: {error}"
            );
        }
        let failed = patched(value, json!([{"op": "test", "path": "/a/0", "value": "1"}]));
        assert_eq!(failed, Err(PatchError::Test(0, "/a/0".to_owned())));
        for bad in [
            "{}",
            "[{}]",
            r#"[{"op":"add","path":"/a"}]"#,
            r#"[{"op":"rm","path":"/a"}]"#,
            "[[",
            "",
        ] {
            assert!(
                matches!(parse(bad.as_bytes()), Err(PatchError::Malformed(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn copies_of_copies_and_ever_deeper_values_are_bounded_by_name() {
        let double = json!({"op": "copy", "from": "", "path": "/x"});
        let error = patched(json!({"a": "b"}), Value::from(vec![double; 200])).unwrap_err();
        assert!(error.to_string().contains("depth_max"), "{error}");
        let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let many = json!([{"op": "copy", "from": "/a", "path": "/b/-"}, {"op": "copy", "from": "/b", "path": "/a/-"}]);
        let many: Vec<_> = many
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .cycle()
            .take(200)
            .collect();
        let error = patched(json!({"a": ["0123456789"], "b": []}), many.into()).unwrap_err();
        assert!(matches!(error, PatchError::TooLarge(..)), "{error}");
        let error = patched(json!({"a": []}), Value::from(vec![double; 2000])).unwrap_err();
        assert!(
            error.to_string().contains("patch_operations_max"),
            "{error}"
        );
        let deeper = json!({"op": "move", "from": "/a", "path": "/b/b"});
        assert!(patched(json!({"a": 1, "b": {}}), json!([deeper])).is_ok());
        let path = "/x".repeat(128);
        let error = patched(json!({}), json!([{"op": "add", "path": path, "value": 1}]));
        assert!(
            matches!(error, Err(PatchError::TooLarge(0, _))),
            "{error:?}"
        );
    }
}
