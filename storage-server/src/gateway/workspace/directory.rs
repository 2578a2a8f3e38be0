//! Who has which workspaces: users, roles and workspaces are ordinary entries, read with the rights of the server, and once for
//! all who go by them ([`Records`]).
//!
//! | key | value, as JSON |
//! | --- | --- |
//! | `users/LOGIN` | `{"uuid":"u-1","profile":"standard","roles":["team"]}`; `admin` is the other profile that means something |
//! | `roles/ID` | `{"workspaces":{"ws-7":"rw"}}`: `r`, `w` or both. A user has the role with the id of its uuid, too |
//! | `workspaces/UUID` | `{"slug":"team","roots":["/data/team"]}` |
//! | `node-ids/UUID` | the absolute path of the node, as text: for rooms of nodes |
//!
//! Other members are for others. What cannot be read gives nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use storage_protocol::{Key, Result};

use super::records::{Look, Record, Records};
use super::tree::normal;

pub(super) const USERS: &str = "users/";
pub(super) const ROLES: &str = "roles/";
pub(super) const WORKSPACES: &str = "workspaces/";
pub(super) const NODE_IDS: &str = "node-ids/";

/// The most roles of a user, and the most workspaces of all of them; what is more is not looked at.
const ROLES_MAX: usize = 256;
const WORKSPACES_MAX: usize = 1_000;
/// The most roots of a workspace.
const ROOTS_MAX: usize = 64;
/// The longest name in a key, in bytes; a longer one is nobody's.
const NAME_BYTES_MAX: usize = 1024;

/// What is known of a peer by its token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Claims {
    pub(super) login: String,
    pub(super) uuid: Option<String>,
    pub(super) profile: Option<String>,
    pub(super) roles: Vec<String>,
    /// That it may read and write.
    pub(super) workspaces: Vec<String>,
}

/// A workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workspace {
    pub(super) uuid: String,
    slug: String,
    /// Normal paths.
    pub(super) roots: Vec<String>,
}

/// What a peer has, at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    pub(super) login: String,
    pub(super) uuid: String,
    pub(super) is_admin: bool,
    pub(super) roles: BTreeSet<String>,
    /// Those that it may read, and whether it may write there.
    pub(super) workspaces: BTreeMap<String, Granted>,
}

/// What a peer has, and the records that say so.
#[derive(Clone, Debug, Default)]
pub(super) struct Looked {
    pub(super) rights: Rights,
    records: Vec<Arc<Record>>,
}

impl Looked {
    /// How many records say so.
    pub(super) fn records(&self) -> usize {
        self.records.len()
    }

    /// Whether one of the records was changed since.
    pub(super) fn is_stale(&self) -> bool {
        self.records.iter().any(|record| record.is_stale())
    }
}

impl From<Rights> for Looked {
    /// What holds whatever records say.
    fn from(rights: Rights) -> Self {
        let records = Vec::new();
        Self { rights, records }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) workspace: Arc<Workspace>,
    pub(super) writes: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct UserRecord {
    uuid: String,
    profile: String,
    roles: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RoleRecord {
    workspaces: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WorkspaceRecord {
    slug: String,
    roots: Vec<String>,
}

impl Workspace {
    #[cfg(test)]
    pub(super) fn for_test(uuid: &str, slug: &str, roots: &[&str]) -> Self {
        Self {
            uuid: uuid.to_owned(),
            slug: slug.to_owned(),
            roots: roots.iter().filter_map(|root| normal(root)).collect(),
        }
    }

    fn of(uuid: &str, record: WorkspaceRecord) -> Self {
        let roots = record.roots.iter().take(ROOTS_MAX);
        Self {
            uuid: uuid.to_owned(),
            slug: match record.slug.as_str() {
                "" => uuid.to_owned(),
                slug => slug.to_owned(),
            },
            roots: roots.filter_map(|root| normal(root)).collect(),
        }
    }

    /// An absolute path as it is in here: the slug, with several roots the name of the root, and the rest. `None`: it is not in
    /// here.
    pub(super) fn path_of(&self, path: &str) -> Option<String> {
        let within = |root: &String| {
            let rest = match root.as_str() {
                "" => path,
                root => path.strip_prefix(root)?,
            };
            // `/a` is no root of `/ab`.
            let is_within = root.is_empty() || rest.is_empty() || rest.starts_with('/');
            is_within.then(|| (root.len(), root.clone(), rest.trim_start_matches('/')))
        };
        let (_, root, rest) = self
            .roots
            .iter()
            .filter_map(within)
            .max_by_key(|found| found.0)?;
        let mut shown = self.slug.clone();
        if self.roots.len() > 1 {
            shown.push('/');
            shown.push_str(root.rsplit('/').next().unwrap_or_default());
        }
        if !rest.is_empty() {
            shown.push('/');
            shown.push_str(rest);
        }
        Some(shown)
    }
}

impl Rights {
    /// Whether a path may be read, and whether it may be written.
    pub(super) fn of_path(&self, path: &str) -> Option<bool> {
        let holding = self.workspaces.values();
        let holding = holding.filter(|granted| granted.workspace.path_of(path).is_some());
        holding.map(|granted| granted.writes).max()
    }
}

/// What stands in keys behind their prefix.
fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
}

fn read<R: DeserializeOwned + Default>(record: &Record, what: &str, name: &str) -> R {
    let Some(value) = record.value() else {
        return R::default();
    };
    serde_json::from_slice(value).unwrap_or_else(|error| {
        tracing::warn!(key = format!("{what}{name}"), %error, "a record of the gateway workspace cannot be read");
        R::default()
    })
}

/// What a peer has now. Records that others hold are not read again, unless they are to be fresh.
///
/// # Errors
/// As [`Records::get`]: what it has is not known then, which is another thing than that it has nothing.
pub(super) async fn rights(records: &Records, claims: &Claims, look: Look) -> Result<Looked> {
    let mut held = Vec::new();
    let user: UserRecord = match is_name(&claims.login) {
        true => {
            let record = records.get(key(USERS, &claims.login), look).await?;
            let user = read(&record, USERS, &claims.login);
            held.push(record);
            user
        }
        false => UserRecord::default(),
    };
    let uuid = claims.uuid.clone().unwrap_or(user.uuid);
    let profile = claims.profile.as_deref().unwrap_or(&user.profile);
    let named = claims.roles.iter().chain(&user.roles).chain([&uuid]);
    let named = named.filter(|role| is_name(role)).take(ROLES_MAX);
    let roles: BTreeSet<String> = named.cloned().collect();
    let mut granted = BTreeMap::<String, (bool, bool)>::new();
    let of_roles = records.get_all(keys(ROLES, &roles), look).await?;
    for (role, record) in roles.iter().zip(&of_roles) {
        let record: RoleRecord = read(record, ROLES, role);
        for (workspace, rights) in record.workspaces {
            let (reads, writes) = granted.entry(workspace).or_default();
            *reads |= rights.contains('r');
            *writes |= rights.contains('w');
        }
    }
    for workspace in &claims.workspaces {
        granted.insert(workspace.clone(), (true, true));
    }
    let readable = granted
        .iter()
        .filter(|(name, (reads, _))| *reads && is_name(name));
    let readable: BTreeSet<String> = readable
        .map(|(name, _)| name.clone())
        .take(WORKSPACES_MAX)
        .collect();
    let of_workspaces = records.get_all(keys(WORKSPACES, &readable), look).await?;
    let mut workspaces = BTreeMap::new();
    for (name, record) in readable.iter().zip(&of_workspaces) {
        // Nothing can be in one without a record, but who has it has it.
        let workspace = Arc::new(Workspace::of(name, read(record, WORKSPACES, name)));
        let writes = granted.get(name).is_some_and(|(_, writes)| *writes);
        workspaces.insert(name.clone(), Granted { workspace, writes });
    }
    held.extend(of_roles.into_iter().chain(of_workspaces));
    let rights = Rights {
        login: claims.login.clone(),
        is_admin: profile == "admin",
        uuid,
        roles,
        workspaces,
    };
    Ok(Looked {
        rights,
        records: held,
    })
}

fn key(prefix: &str, name: &str) -> Key {
    format!("{prefix}{name}").into()
}

fn keys(prefix: &str, names: &BTreeSet<String>) -> Vec<Key> {
    names.iter().map(|name| key(prefix, name)).collect()
}

/// Where a node is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Absolute; `None`: it is not known.
    pub(super) path: Option<String>,
    /// What says so; `None`: no record can.
    pub(super) record: Option<Arc<Record>>,
}

/// Where a node is now.
///
/// # Errors
/// As [`Records::get`].
pub(super) async fn place_of_node(records: &Records, uuid: &str, look: Look) -> Result<Place> {
    if !is_name(uuid) {
        return Ok(Place {
            path: None,
            record: None,
        });
    }
    let record = records.get(key(NODE_IDS, uuid), look).await?;
    let path = record
        .value()
        .and_then(|value| std::str::from_utf8(value).ok());
    Ok(Place {
        path: path.and_then(normal),
        record: Some(record),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_a_workspace_below_a_root_and_never_beside_it() {
        let one = Workspace::for_test("ws", "team", &["/a"]);
        assert_eq!(one.path_of("a/b").as_deref(), Some("team/b"));
        assert_eq!(one.path_of("a").as_deref(), Some("team"));
        assert_eq!(one.path_of("ab"), None);
        assert_eq!(one.path_of("ab/c"), None);
        assert_eq!(one.path_of(""), None);
        let several = Workspace::for_test("ws", "team", &["/a", "/a/b", "/c"]);
        assert_eq!(several.path_of("a/x").as_deref(), Some("team/a/x"));
        assert_eq!(several.path_of("a/b/x").as_deref(), Some("team/b/x"));
        let all = Workspace::for_test("ws", "all", &["/"]);
        assert_eq!(all.path_of("a/x").as_deref(), Some("all/a/x"));
        assert_eq!(Workspace::for_test("ws", "none", &[]).path_of("a"), None);
    }

    #[test]
    fn what_may_be_done_with_a_path_is_what_one_of_the_workspaces_allows() {
        let mut rights = Rights::default();
        for (uuid, root, writes) in [("1", "/a", false), ("2", "/a/b", true)] {
            let workspace = Arc::new(Workspace::for_test(uuid, uuid, &[root]));
            rights
                .workspaces
                .insert(uuid.to_owned(), Granted { workspace, writes });
        }
        assert_eq!(rights.of_path("a/x"), Some(false));
        assert_eq!(rights.of_path("a/b/x"), Some(true));
        assert_eq!(rights.of_path("c"), None);
    }
}
