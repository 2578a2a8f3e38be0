//! Events of the tree: what a commit does to nodes, and what of it somebody with a workspace is told.
//!
//! A node is the entry at `nodes/` and its absolute path, without a slash in front: JSON, as protobuf writes nodes, but with
//! metadata as what they are: `{"Uuid":"n-1","Type":"LEAF","Size":"1204","MetaStore":{"name":"a.txt"}}`. An event that another
//! service tells is a signal at such a key, with paths that are absolute.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};
use storage_protocol::{ChangeKind, CommitRecord};

use super::directory::Workspace;
use super::frame::without_defaults;

/// Before the path in the key of a node.
pub(super) const NODES: &str = "nodes/";
/// The longest path, in bytes, and the most names in it.
pub(super) const PATH_BYTES_MAX: usize = 2048;
/// Metadata that is nobody's but the server's.
const HIDDEN: &str = "pydio:";
/// Which workspace an event is told for.
const WORKSPACE: &str = "EventWorkspaceId";

/// What happened to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    UpdatePath,
    UpdateContent,
    UpdateMeta,
    Delete,
    UpdateUserMeta,
}

const KINDS: [(&str, Kind); 6] = [
    ("CREATE", Kind::Create),
    ("UPDATE_PATH", Kind::UpdatePath),
    ("UPDATE_CONTENT", Kind::UpdateContent),
    ("UPDATE_META", Kind::UpdateMeta),
    ("DELETE", Kind::Delete),
    ("UPDATE_USER_META", Kind::UpdateUserMeta),
];

impl Kind {
    fn name(self) -> &'static str {
        let named = KINDS.iter().find(|(_, kind)| *kind == self);
        named.map_or("", |(name, _)| name)
    }
}

/// A node, with its absolute path.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Node {
    pub(super) uuid: String,
    /// Without a slash in front or behind.
    pub(super) path: String,
    /// Its other members, as they are told.
    members: Map<String, Value>,
    /// Each is JSON as text.
    meta: BTreeMap<String, String>,
}

/// An event of the tree.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TreeEvent {
    pub(super) kind: Kind,
    /// The node as it was, of [`Kind::Delete`] and [`Kind::UpdatePath`].
    pub(super) source: Option<Node>,
    /// As it is, of all others and [`Kind::UpdatePath`].
    pub(super) target: Option<Node>,
}

/// A path without slashes at its ends and none twice; `None`: it is too long, or leads elsewhere.
pub(super) fn normal(path: &str) -> Option<String> {
    if path.len() > PATH_BYTES_MAX || path.chars().any(char::is_control) {
        return None;
    }
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    let leads_elsewhere = names.iter().any(|name| matches!(*name, "." | ".."));
    (!leads_elsewhere).then(|| names.join("/"))
}

/// A path and those above it, the nearest first, down to the root, which is empty.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut next = Some(path);
    std::iter::from_fn(move || {
        let this = next?;
        next = match this.rfind('/') {
            Some(at) => this.get(..at),
            None if this.is_empty() => None,
            None => Some(""),
        };
        Some(this)
    })
}

impl Node {
    /// A node of which only this is known.
    pub(super) fn at(uuid: &str, path: &str) -> Self {
        Self {
            uuid: uuid.to_owned(),
            path: path.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn with_meta(mut self, name: &str, value: &Value) -> Self {
        self.meta.insert(name.to_owned(), value.to_string());
        self
    }

    /// `is_told`: its metadata are JSON texts already, as events have them.
    fn of(value: &Value, path: Option<&str>, is_told: bool) -> Option<Self> {
        let object = value.as_object()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let path = match path {
            Some(path) => path.to_owned(),
            None => normal(text("Path"))?,
        };
        let mut members = Map::new();
        for (name, value) in object {
            let told = match name.as_str() {
                "Size" | "MTime" => number_text(value),
                "Type" => kind_of_node(value),
                "Mode" => value.as_i64().map(Value::from),
                "Etag" => value.as_str().map(Value::from),
                _ => None,
            };
            if let Some(told) = told {
                members.insert(name.clone(), told);
            }
        }
        let mut meta = BTreeMap::new();
        if let Some(Value::Object(given)) = object.get("MetaStore") {
            for (name, value) in given {
                meta.insert(name.clone(), meta_text(value, is_told));
            }
        }
        Some(Self {
            uuid: text("Uuid").to_owned(),
            path,
            members,
            meta,
        })
    }

    /// Whether only metadata differ.
    fn is_same_content(&self, other: &Self) -> bool {
        let of = |node: &Self, name: &str| node.members.get(name).cloned();
        ["Etag", "Size"]
            .iter()
            .all(|name| of(self, name) == of(other, name))
    }

    /// As it is told for a workspace; `None`: it is not in that one.
    fn told_for(&self, workspace: &Workspace) -> Option<Value> {
        let mut told = self.members.clone();
        told.insert("Uuid".to_owned(), self.uuid.as_str().into());
        told.insert("Path".to_owned(), workspace.path_of(&self.path)?.into());
        let shown = self
            .meta
            .iter()
            .filter(|(name, _)| !name.starts_with(HIDDEN));
        let mut meta: Map<String, Value> = shown
            .map(|(name, text)| (name.clone(), text.as_str().into()))
            .collect();
        let id = Value::from(workspace.uuid.as_str()).to_string();
        meta.insert(WORKSPACE.to_owned(), id.into());
        told.insert("MetaStore".to_owned(), Value::Object(meta));
        Some(without_defaults(Value::Object(told)))
    }
}

/// 64-bit integers are strings.
fn number_text(value: &Value) -> Option<Value> {
    let number = match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number
        .filter(|number| *number != 0)
        .map(|number| number.to_string().into())
}

fn kind_of_node(value: &Value) -> Option<Value> {
    let name = match (value.as_str(), value.as_u64()) {
        (Some(name @ ("LEAF" | "COLLECTION")), _) => name,
        (_, Some(1)) => "LEAF",
        (_, Some(2)) => "COLLECTION",
        _ => return None,
    };
    Some(name.into())
}

fn meta_text(value: &Value, is_told: bool) -> String {
    match value {
        Value::String(text) if is_told && serde_json::from_str::<Value>(text).is_ok() => {
            text.clone()
        }
        other => other.to_string(),
    }
}

impl TreeEvent {
    /// One that another service tells.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn told(value: &Value) -> Result<Self, String> {
        let kind = match value.get("Type") {
            None => Kind::Create,
            Some(Value::String(name)) => {
                let known = KINDS.iter().find(|(known, _)| known == name);
                let names = KINDS.map(|(name, _)| name).join(", ");
                let unknown = || format!("Type: allowed are {names}, not {name:?}");
                known.map(|(_, kind)| *kind).ok_or_else(unknown)?
            }
            Some(_) => return Err("Type: a text".to_owned()),
        };
        let node = |name: &str| {
            let Some(value) = value.get(name) else {
                return Ok(None);
            };
            let node = Node::of(value, None, true);
            let why = || {
                format!("{name}: an object with an absolute Path of at most {PATH_BYTES_MAX} bytes")
            };
            let node = node.filter(|node| !node.path.is_empty());
            node.map(Some).ok_or_else(why)
        };
        let (source, target) = (node("Source")?, node("Target")?);
        let needs = |what: &str| Err(format!("{} has a {what}", kind.name()));
        match (kind, &source, &target) {
            (Kind::UpdatePath, Some(_), Some(_)) => {}
            (Kind::UpdatePath, ..) => return needs("Source and a Target"),
            (Kind::Delete, Some(_), _) => {}
            (Kind::Delete, None, _) => return needs("Source"),
            (_, _, Some(_)) => {}
            (_, _, None) => return needs("Target"),
        }
        Ok(match kind {
            Kind::UpdatePath => Self {
                kind,
                source,
                target,
            },
            Kind::Delete => Self {
                kind,
                source,
                target: None,
            },
            _ => Self {
                kind,
                source: None,
                target,
            },
        })
    }

    /// The keys that somebody must be allowed to write to tell it.
    pub(super) fn keys(&self) -> Vec<String> {
        let nodes = [&self.target, &self.source].into_iter().flatten();
        nodes.map(|node| format!("{NODES}{}", node.path)).collect()
    }

    /// By what events of one node are merged.
    pub(super) fn node(&self) -> &str {
        let node = self.target.as_ref().or(self.source.as_ref());
        node.map_or("", |node| match node.uuid.as_str() {
            "" => &node.path,
            uuid => uuid,
        })
    }

    /// The paths that it touches.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        let nodes = [&self.source, &self.target].into_iter().flatten();
        nodes.map(|node| node.path.as_str())
    }

    /// The frame for who has a workspace; `None`: nothing of it is there. A move over its border is a creation, or a deletion.
    pub(super) fn frame_for(&self, workspace: &Workspace) -> Option<String> {
        let told = |node: &Option<Node>| node.as_ref()?.told_for(workspace);
        let (source, target) = (told(&self.source), told(&self.target));
        let kind = match (self.kind, &source, &target) {
            (Kind::UpdatePath, Some(_), None) => Kind::Delete,
            (Kind::UpdatePath, None, Some(_)) => Kind::Create,
            (_, None, None) => return None,
            (kind, ..) => kind,
        };
        let mut frame = json!({});
        if kind != Kind::Create {
            frame["Type"] = kind.name().into();
        }
        if let Some(source) = source {
            frame["Source"] = source;
        }
        if let Some(target) = target {
            frame["Target"] = target;
        }
        Some(frame.to_string())
    }

    /// What a commit did to nodes, in the order of its changes.
    ///
    /// A node that is removed under one path and put under another in one commit has moved: by its `Uuid`, which the writer has
    /// told of the old one by asking for the values before. What an update changed is said by the label `create`, `content`
    /// or `meta`; else by the value before; else it is a creation.
    pub(super) fn of_commit(commit: &CommitRecord) -> Vec<Self> {
        let mut removed = HashMap::new();
        for change in &commit.changes {
            if let ChangeKind::Removed { previous } = &change.kind
                && let Some(path) = path_of(&change.key)
            {
                let node = node_at(&path, previous.as_deref());
                if !node.uuid.is_empty() {
                    removed.insert(node.uuid.clone(), node);
                }
            }
        }
        let mut moved = HashMap::new();
        for change in &commit.changes {
            if let ChangeKind::Put { value, .. } = &change.kind
                && let Some(path) = path_of(&change.key)
            {
                let node = node_at(&path, Some(value));
                if let Some(source) = removed.remove(&node.uuid) {
                    moved.insert(node.uuid.clone(), source);
                }
            }
        }
        // Whoever wrote there was allowed to: no event is about anything else.
        let written: HashSet<String> = commit
            .changes
            .iter()
            .filter_map(|change| path_of(&change.key))
            .collect();
        let label = commit.label.as_deref();
        let changes = commit.changes.iter();
        let events = changes.filter_map(|change| {
            let path = path_of(&change.key)?;
            match &change.kind {
                ChangeKind::Signalled { bytes } => {
                    let told = serde_json::from_slice(bytes).ok()?;
                    let event = Self::told(&told).ok()?;
                    let is_here = event.keys().first() == Some(&format!("{NODES}{path}"));
                    let is_written = event.paths().all(|path| written.contains(path));
                    (is_here && is_written).then_some(event)
                }
                ChangeKind::Put {
                    value, previous, ..
                } => {
                    let target = node_at(&path, Some(value));
                    let source = moved.get(&target.uuid).cloned();
                    let kind = match (&source, label, previous) {
                        (Some(_), ..) => Kind::UpdatePath,
                        (_, Some("create"), _) => Kind::Create,
                        (_, Some("content"), _) => Kind::UpdateContent,
                        (_, Some("meta"), _) => Kind::UpdateMeta,
                        (_, _, Some(before)) => {
                            let before = node_at(&path, Some(before));
                            match before.is_same_content(&target) {
                                true => Kind::UpdateMeta,
                                false => Kind::UpdateContent,
                            }
                        }
                        _ => Kind::Create,
                    };
                    let target = Some(target);
                    Some(Self {
                        kind,
                        source,
                        target,
                    })
                }
                ChangeKind::Removed { previous } => {
                    let source = node_at(&path, previous.as_deref());
                    let is_moved = moved
                        .get(&source.uuid)
                        .is_some_and(|moved| *moved == source);
                    (!is_moved).then_some(Self {
                        kind: Kind::Delete,
                        source: Some(source),
                        target: None,
                    })
                }
            }
        });
        events.collect()
    }
}

/// The path in the key of a node.
fn path_of(key: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(key).ok()?.strip_prefix(NODES)?;
    normal(path)
}

/// A node by its value, as far as that tells.
fn node_at(path: &str, value: Option<&[u8]>) -> Node {
    let value = value.and_then(|value| serde_json::from_slice(value).ok());
    let node = value.and_then(|value: Value| Node::of(&value, Some(path), false));
    node.unwrap_or_else(|| Node::at("", path))
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Change, EntryLifetime, Revision, UnixMillis};

    use super::*;

    fn team() -> Workspace {
        Workspace::for_test("ws-7", "team", &["data/team"])
    }

    fn frame(event: &TreeEvent, workspace: &Workspace) -> Option<Value> {
        let frame = event.frame_for(workspace)?;
        Some(serde_json::from_str(&frame).unwrap())
    }

    fn told(value: Value) -> TreeEvent {
        TreeEvent::told(&value).unwrap()
    }

    fn put(path: &str, value: Value, previous: Option<Value>) -> Change {
        let bytes = |value: Value| value.to_string().into();
        Change {
            key: format!("nodes/{path}").into(),
            kind: ChangeKind::Put {
                value: bytes(value),
                lifetime: EntryLifetime::Forever,
                previous: previous.map(bytes),
            },
        }
    }

    fn removed(path: &str, previous: Option<Value>) -> Change {
        Change {
            key: format!("nodes/{path}").into(),
            kind: ChangeKind::Removed {
                previous: previous.map(|value| value.to_string().into()),
            },
        }
    }

    fn kinds(label: Option<&str>, changes: Vec<Change>) -> Vec<(Kind, Vec<String>)> {
        let label = label.map(str::to_owned);
        let commit = CommitRecord::new(Revision(1), UnixMillis(1), label, "cert:a".into(), changes);
        let events = TreeEvent::of_commit(&commit).into_iter();
        events
            .map(|event| (event.kind, event.paths().map(str::to_owned).collect()))
            .collect()
    }

    #[test]
    fn paths_are_normal_or_none() {
        assert_eq!(normal("//a//b/").as_deref(), Some("a/b"));
        assert_eq!(normal("").as_deref(), Some(""));
        assert_eq!(normal("a/../b"), None);
        assert_eq!(normal("a\nb"), None);
        assert_eq!(normal(&"a".repeat(PATH_BYTES_MAX + 1)), None);
        assert_eq!(
            ancestors("a/b/c").collect::<Vec<_>>(),
            ["a/b/c", "a/b", "a", ""]
        );
        assert_eq!(ancestors("").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn a_frame_has_what_protobuf_writes_and_the_path_of_the_workspace() {
        let event = told(json!({ "Type": "CREATE", "Target": {
            "Uuid": "n-1", "Path": "/data/team/b/a.txt", "Type": "LEAF", "Size": 1204, "MTime": "1714800000",
            "Mode": 0, "Etag": "e9", "Other": 7,
            "MetaStore": { "name": "\"a.txt\"", "pydio:lock": "\"x\"", "bare": "no JSON", "n": 7 } } }));
        let expected = json!({ "Target": {
            "Uuid": "n-1", "Path": "team/b/a.txt", "Type": "LEAF", "Size": "1204", "MTime": "1714800000", "Etag": "e9",
            "MetaStore": { "name": "\"a.txt\"", "bare": "\"no JSON\"", "n": "7", "EventWorkspaceId": "\"ws-7\"" } } });
        assert_eq!(frame(&event, &team()), Some(expected));
        let beside = told(json!({ "Target": { "Path": "/data/teams/a" } }));
        assert_eq!(frame(&beside, &team()), None);
    }

    #[test]
    fn a_move_over_the_border_is_a_creation_or_a_deletion() {
        let moved = |from: &str, to: &str| {
            let node = |path: &str| json!({ "Uuid": "n", "Path": path });
            told(json!({ "Type": "UPDATE_PATH", "Source": node(from), "Target": node(to) }))
        };
        let of = |event: &TreeEvent| {
            let frame = frame(event, &team())?;
            let has = |name: &str| frame.get(name).is_some();
            Some((
                frame["Type"].as_str().map(str::to_owned),
                has("Source"),
                has("Target"),
            ))
        };
        let kind = |name: &str| Some(name.to_owned());
        let inside = moved("data/team/a", "data/team/b");
        assert_eq!(of(&inside), Some((kind("UPDATE_PATH"), true, true)));
        assert_eq!(
            of(&moved("data/team/a", "b")),
            Some((kind("DELETE"), true, false))
        );
        assert_eq!(of(&moved("a", "data/team/b")), Some((None, false, true)));
        assert_eq!(of(&moved("a", "b")), None);
    }

    #[test]
    fn what_is_told_by_others_has_to_make_sense() {
        for bad in [
            json!({ "Type": "CREATE" }),
            json!({ "Type": "DELETE", "Target": { "Path": "a" } }),
            json!({ "Type": "UPDATE_PATH", "Target": { "Path": "a" } }),
            json!({ "Type": "READ", "Target": { "Path": "a" } }),
            json!({ "Target": { "Path": "" } }),
            json!({ "Target": { "Path": "a/../b" } }),
            json!({ "Target": 7 }),
        ] {
            assert!(TreeEvent::told(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signal_tells_of_what_its_commit_has_written_and_of_nothing_else() {
        let signal = |path: &str, event: Value| Change {
            key: format!("nodes/{path}").into(),
            kind: ChangeKind::Signalled {
                bytes: event.to_string().into(),
            },
        };
        let empty = |path: &str| Change {
            key: format!("nodes/{path}").into(),
            kind: ChangeKind::Signalled { bytes: "".into() },
        };
        let created = json!({ "Target": { "Path": "/a/b" } });
        let moved = json!({ "Type": "UPDATE_PATH", "Source": { "Path": "/a/b" }, "Target": { "Path": "/c/b" } });
        assert_eq!(kinds(None, vec![signal("a/b", created.clone())]).len(), 1);
        let both = vec![signal("c/b", moved.clone()), empty("a/b")];
        assert_eq!(kinds(None, both).len(), 1);
        for other in [
            vec![signal("a", created.clone())],
            vec![signal("c", created), empty("a/b")],
            vec![signal("c/b", moved.clone())],
            vec![signal("a/b", moved), empty("c/d")],
        ] {
            assert_eq!(kinds(None, other), []);
        }
    }

    #[test]
    fn commits_of_any_writer_are_events() {
        let node = |uuid: &str, etag: &str, note: u8| json!({ "Uuid": uuid, "Etag": etag, "MetaStore": { "note": note } });
        let paths = |paths: &[&str]| paths.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            kinds(
                None,
                vec![put("a", node("1", "e", 0), None), removed("b", None)]
            ),
            [(Kind::Create, paths(&["a"])), (Kind::Delete, paths(&["b"]))]
        );
        let before = || Some(node("1", "e", 0));
        let content = put("a", node("1", "f", 0), before());
        assert_eq!(
            kinds(None, vec![content]),
            [(Kind::UpdateContent, paths(&["a"]))]
        );
        let meta = put("a", node("1", "e", 1), before());
        assert_eq!(kinds(None, vec![meta]), [(Kind::UpdateMeta, paths(&["a"]))]);
        let labelled = put("a", node("1", "e", 1), None);
        assert_eq!(
            kinds(Some("meta"), vec![labelled]),
            [(Kind::UpdateMeta, paths(&["a"]))]
        );
        let moved = vec![
            removed("a", before()),
            put("c/a", node("1", "e", 0), None),
            removed("d", Some(node("2", "e", 0))),
        ];
        assert_eq!(
            kinds(None, moved),
            [
                (Kind::UpdatePath, paths(&["a", "c/a"])),
                (Kind::Delete, paths(&["d"]))
            ]
        );
        // What is no JSON is a node all the same.
        let change = Change {
            key: "nodes/x".into(),
            kind: ChangeKind::Put {
                value: "?".into(),
                lifetime: EntryLifetime::Forever,
                previous: None,
            },
        };
        assert_eq!(kinds(None, vec![change]), [(Kind::Create, paths(&["x"]))]);
    }
}
