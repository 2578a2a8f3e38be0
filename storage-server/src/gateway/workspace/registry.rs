//! Who is told what: the sockets that have subscribed, found by user, by role, by workspace and by the roots of workspaces, so
//! that an event costs as much as it has receivers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::directory::{Claims, Looked, Workspace};
use super::outbox::{Frame, Outbox, What};
use super::rate::Rate;
use super::tree::{TreeEvent, ancestors};
use crate::gateway::Utf8Bytes;

/// A socket that has subscribed.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) outbox: Arc<Outbox>,
    pub(super) claims: Claims,
    /// Of tree events.
    rate: Mutex<Rate>,
}

impl Receiver {
    pub(super) fn new(outbox: Arc<Outbox>, claims: Claims, rate: Rate) -> Self {
        Self {
            outbox,
            claims,
            rate: Mutex::new(rate),
        }
    }

    fn tell(&self, text: Utf8Bytes) {
        let what = What::Event;
        self.outbox.push(Frame { what, text });
    }

    fn tell_of_tree(&self, text: Utf8Bytes, now: Instant) {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        match rate.allows(now) {
            true => self.tell(text),
            false => self.outbox.lack(),
        }
    }
}

/// A number for each socket.
pub(super) type ReceiverId = u64;

type Index<K> = HashMap<K, HashSet<ReceiverId>>;

#[derive(Debug)]
struct Held {
    receiver: Arc<Receiver>,
    /// `None`: it could not be looked up, so it is found by nothing, and told nothing.
    looked: Option<Arc<Looked>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Registry {
    held: HashMap<ReceiverId, Held>,
    /// Those that could not be looked up.
    unknown: HashSet<ReceiverId>,
    admins: HashSet<ReceiverId>,
    by_user: Index<String>,
    by_role: Index<String>,
    by_workspace: Index<String>,
    /// As they were last read, of those that somebody has.
    workspaces: HashMap<String, Arc<Workspace>>,
    /// The workspaces that have a root.
    roots: HashMap<String, BTreeSet<String>>,
}

fn insert<K: Hash + Eq>(index: &mut Index<K>, key: K, id: ReceiverId) {
    index.entry(key).or_default().insert(id);
}

fn remove(index: &mut Index<String>, key: &str, id: ReceiverId) -> bool {
    let Some(ids) = index.get_mut(key) else {
        return false;
    };
    ids.remove(&id);
    let is_empty = ids.is_empty();
    if is_empty {
        index.remove(key);
    }
    is_empty
}

impl Registry {
    /// Puts a receiver with what it has in the place of what was there under this number.
    pub(super) fn put(&mut self, id: ReceiverId, receiver: Arc<Receiver>, looked: Arc<Looked>) {
        self.remove(id);
        let rights = &looked.rights;
        insert(&mut self.by_user, rights.login.clone(), id);
        for role in &rights.roles {
            insert(&mut self.by_role, role.clone(), id);
        }
        for (uuid, granted) in &rights.workspaces {
            insert(&mut self.by_workspace, uuid.clone(), id);
            self.keep_workspace(&granted.workspace);
        }
        if rights.is_admin {
            self.admins.insert(id);
        }
        let looked = Some(looked);
        self.held.insert(id, Held { receiver, looked });
    }

    /// Puts a receiver of which it is not known what it has in the place of what was there: it is told nothing until it is put
    /// with that.
    pub(super) fn put_unknown(&mut self, id: ReceiverId, receiver: Arc<Receiver>) {
        self.remove(id);
        self.unknown.insert(id);
        let looked = None;
        self.held.insert(id, Held { receiver, looked });
    }

    pub(super) fn remove(&mut self, id: ReceiverId) {
        let Some(Held { looked, .. }) = self.held.remove(&id) else {
            return;
        };
        self.unknown.remove(&id);
        let Some(looked) = looked else {
            return;
        };
        let rights = &looked.rights;
        self.admins.remove(&id);
        remove(&mut self.by_user, &rights.login, id);
        for role in &rights.roles {
            remove(&mut self.by_role, role, id);
        }
        for uuid in rights.workspaces.keys() {
            if remove(&mut self.by_workspace, uuid, id) {
                self.forget_workspace(uuid);
            }
        }
    }

    fn keep_workspace(&mut self, workspace: &Arc<Workspace>) {
        let uuid = &workspace.uuid;
        if self
            .workspaces
            .get(uuid)
            .is_some_and(|known| known == workspace)
        {
            return;
        }
        self.forget_workspace(uuid);
        for root in &workspace.roots {
            let at = self.roots.entry(root.clone()).or_default();
            at.insert(uuid.clone());
        }
        self.workspaces.insert(uuid.clone(), workspace.clone());
    }

    fn forget_workspace(&mut self, uuid: &str) {
        let Some(known) = self.workspaces.remove(uuid) else {
            return;
        };
        for root in &known.roots {
            if let Some(at) = self.roots.get_mut(root) {
                at.remove(uuid);
                if at.is_empty() {
                    self.roots.remove(root);
                }
            }
        }
    }

    /// A receiver, and what it has; `None` of the latter: that is not known.
    pub(super) fn get(&self, id: ReceiverId) -> Option<(Arc<Receiver>, Option<Arc<Looked>>)> {
        let held = self.held.get(&id)?;
        Some((held.receiver.clone(), held.looked.clone()))
    }

    pub(super) fn all(&self) -> HashSet<ReceiverId> {
        self.held.keys().copied().collect()
    }

    /// Those that were put without what they have.
    pub(super) fn unknown(&self) -> HashSet<ReceiverId> {
        self.unknown.clone()
    }

    pub(super) fn of_user(&self, login: &str) -> HashSet<ReceiverId> {
        self.by_user.get(login).cloned().unwrap_or_default()
    }

    pub(super) fn of_role(&self, role: &str) -> HashSet<ReceiverId> {
        self.by_role.get(role).cloned().unwrap_or_default()
    }

    pub(super) fn of_workspace(&self, uuid: &str) -> HashSet<ReceiverId> {
        self.by_workspace.get(uuid).cloned().unwrap_or_default()
    }

    pub(super) fn admins(&self) -> HashSet<ReceiverId> {
        self.admins.clone()
    }

    /// Tells some of them.
    pub(super) fn tell(&self, ids: &HashSet<ReceiverId>, text: &Utf8Bytes) -> u64 {
        let told = ids.iter().filter_map(|id| self.held.get(id));
        told.map(|held| held.receiver.tell(text.clone())).count() as u64
    }

    /// Tells all that something may be missing.
    pub(super) fn resync(&self) {
        for held in self.held.values() {
            held.receiver.outbox.lack();
        }
    }

    /// Tells an event of the tree to each who has a workspace with it, once for each such workspace. A frame is put together once
    /// for all who have the workspace.
    pub(super) fn tell_of_tree(&self, event: &TreeEvent, now: Instant) -> u64 {
        let above = event.paths().flat_map(ancestors);
        let found = above.filter_map(|path| self.roots.get(path)).flatten();
        let found: BTreeSet<&String> = found.collect();
        let mut told = 0;
        for uuid in found {
            let (Some(workspace), Some(ids)) =
                (self.workspaces.get(uuid), self.by_workspace.get(uuid))
            else {
                continue;
            };
            let Some(frame) = event.frame_for(workspace) else {
                continue;
            };
            let text = Utf8Bytes::from(frame);
            for held in ids.iter().filter_map(|id| self.held.get(id)) {
                held.receiver.tell_of_tree(text.clone(), now);
                told += 1;
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use serde_json::{Value, json};

    use super::super::directory::{Granted, Rights};
    use super::super::outbox::Taken;
    use super::*;

    fn rights(login: &str, roles: &[&str], workspaces: &[(&str, &str)]) -> Arc<Looked> {
        let granted = |(uuid, root): &(&str, &str)| {
            let workspace = Arc::new(Workspace::for_test(uuid, uuid, &[root]));
            let writes = true;
            ((*uuid).to_owned(), Granted { workspace, writes })
        };
        let rights = Rights {
            login: login.to_owned(),
            roles: roles.iter().map(ToString::to_string).collect(),
            workspaces: workspaces.iter().map(granted).collect(),
            ..Rights::default()
        };
        Arc::new(rights.into())
    }

    fn receiver() -> Arc<Receiver> {
        let rate = Rate::new(30, 20);
        Arc::new(Receiver::new(Arc::default(), Claims::default(), rate))
    }

    fn taken(receiver: &Receiver) -> Vec<Value> {
        let next = || match receiver.outbox.take().now_or_never()? {
            Taken::Frame(frame) => serde_json::from_str(&frame.text).ok(),
            Taken::Behind => Some(json!("behind")),
        };
        std::iter::from_fn(next).collect()
    }

    fn created(path: &str) -> TreeEvent {
        TreeEvent::told(&json!({ "Target": { "Uuid": "n", "Path": path } })).unwrap()
    }

    #[test]
    fn each_workspace_of_a_receiver_is_one_frame_and_nobody_else_is_told() {
        let (mut registry, now) = (Registry::default(), Instant::now());
        let receivers: Vec<_> = (0..3).map(|_| receiver()).collect();
        let given = [
            rights("ana", &[], &[("ws-1", "/a"), ("ws-2", "/a/b")]),
            rights("bob", &[], &[("ws-2", "/a/b")]),
            rights("eve", &[], &[("ws-3", "/ab")]),
        ];
        for (id, (receiver, rights)) in receivers.iter().zip(&given).enumerate() {
            registry.put(id as u64, receiver.clone(), rights.clone());
        }
        assert_eq!(registry.tell_of_tree(&created("a/b/c"), now), 3);
        assert_eq!(registry.tell_of_tree(&created("a/c"), now), 1);
        assert_eq!(registry.tell_of_tree(&created("c"), now), 0);
        let paths = |receiver: &Receiver| {
            let taken = taken(receiver).into_iter();
            taken
                .map(|frame| frame["Target"]["Path"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(paths(&receivers[0]), ["ws-1/b/c", "ws-2/c", "ws-1/c"]);
        assert_eq!(paths(&receivers[1]), ["ws-2/c"]);
        assert!(paths(&receivers[2]).is_empty());
    }

    #[test]
    fn what_a_receiver_has_no_more_leaves_no_trace() {
        let mut registry = Registry::default();
        registry.put(1, receiver(), rights("ana", &["r"], &[("ws-1", "/a")]));
        registry.put(1, receiver(), rights("ana", &["s"], &[("ws-1", "/b")]));
        assert_eq!(registry.of_role("r"), HashSet::new());
        assert_eq!(registry.of_role("s"), HashSet::from([1]));
        assert_eq!(registry.tell_of_tree(&created("a/x"), Instant::now()), 0);
        assert_eq!(registry.tell_of_tree(&created("b/x"), Instant::now()), 1);
        registry.remove(1);
        for index in [&registry.by_user, &registry.by_role, &registry.by_workspace] {
            assert!(index.is_empty());
        }
        assert!(registry.roots.is_empty() && registry.workspaces.is_empty());
    }

    #[test]
    fn of_whom_it_is_not_known_what_it_has_is_told_nothing() {
        let (mut registry, now) = (Registry::default(), Instant::now());
        let receiver = receiver();
        let has = rights("ana", &["r"], &[("ws-1", "/a")]);
        registry.put(1, receiver.clone(), has.clone());
        registry.put_unknown(1, receiver.clone());
        assert_eq!(registry.tell_of_tree(&created("a/x"), now), 0);
        assert_eq!(registry.of_user("ana"), HashSet::new());
        assert_eq!(registry.unknown(), HashSet::from([1]));
        assert_eq!(registry.all(), HashSet::from([1]));
        registry.put(1, receiver.clone(), has);
        assert_eq!(registry.unknown(), HashSet::new());
        assert_eq!(registry.tell_of_tree(&created("a/y"), now), 1);
        registry.put_unknown(1, receiver);
        registry.remove(1);
        assert!(registry.unknown.is_empty() && registry.held.is_empty());
    }

    #[test]
    fn too_many_events_of_the_tree_are_a_hint() {
        let (mut registry, now) = (Registry::default(), Instant::now());
        let receiver = receiver();
        registry.put(1, receiver.clone(), rights("ana", &[], &[("ws-1", "/a")]));
        for _ in 0..50 {
            registry.tell_of_tree(&created("a/x"), now);
        }
        let told = taken(&receiver);
        assert_eq!(told.len(), 21);
        assert_eq!(told.last(), Some(&json!("behind")));
    }
}
