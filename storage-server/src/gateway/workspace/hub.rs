//! The change feed of the gateway's keyspace, as events for those who have subscribed. One watch for all of them.
//!
//! | keys | told |
//! | --- | --- |
//! | `nodes/PATH` | events of the tree: see [`super::tree`] |
//! | `tasks/ID` | `{"TaskUpdated":{…},"Job":{…}}`, to the owner; of the system's tasks to administrators |
//! | `idm/…` | `{"Type":"UPDATE","Role":{"Uuid":"team"}}` and the like, to those whom it concerns |
//! | `activities/…` | `{"OwnerType":"USER","OwnerId":"ana","BoxName":"inbox","Activity":{…}}`, to the owner |
//! | `users/`, `roles/`, `workspaces/` | an identity event, to those whom it concerns; what they have is looked up again |
//! | `rooms/…/m/…` | a post is an event of the node of its room: see [`super::comments`] |
//!
//! A value that is put and a signal are told alike.

use std::collections::HashSet;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use storage_protocol::{
    ChangeKind, CommitRecord, KeyRange, Position, Result, Revision, Storage, StorageError, Watch,
    WatchEvent, WatchOptions, WatchStart,
};
use tokio::sync::{OnceCell, watch};
use tokio_util::task::AbortOnDropHandle;

use super::Metrics;
use super::coalesce::Coalescer;
use super::comments::Comments;
use super::directory::{NODE_IDS, ROLES, USERS, WORKSPACES};
use super::frame::without_defaults;
use super::records::Records;
use super::registry::{ReceiverId, Registry};
use super::tree::{NODES, TreeEvent};
use crate::gateway::{ServerHandle, Utf8Bytes};

pub(super) const TASKS: &str = "tasks/";
pub(super) const IDM: &str = "idm/";
pub(super) const ACTIVITIES: &str = "activities/";
/// Whose tasks are for administrators.
const SYSTEM_USER: &str = "pydio.system.user";
/// What of access lists is nobody's to reload for.
const SILENT_ACTIONS: [&str; 2] = ["parameter:", "action:"];
/// After a watch that broke off, and after rights that could not be looked up.
const RETRY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Hub {
    registry: Mutex<Registry>,
    /// The server's own storage of the keyspace.
    own: Arc<dyn Storage>,
    /// Who has what, and where nodes are.
    records: Arc<Records>,
    /// All commits up to here have been taken notice of: [`Hub::records`] know what they changed.
    seen: watch::Sender<Revision>,
    /// Set once the watch is there.
    started: OnceCell<()>,
    quiet: Duration,
    metrics: Metrics,
}

/// What is told, and to whom.
#[derive(Debug)]
pub(super) enum Event {
    Tree(TreeEvent),
    Task(Value),
    Identity,
    Activity(Value),
}

impl Event {
    /// One that another service tells, in the form of a frame with absolute paths.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn told(value: Value) -> std::result::Result<Self, String> {
        if !value.is_object() {
            return Err("an event is a JSON object".to_owned());
        }
        match value.get("@type") {
            None if value.get("TaskUpdated").is_some() => {
                let id = &value["TaskUpdated"]["ID"];
                let has_id = id.as_str().is_some_and(|id| !id.is_empty());
                match has_id {
                    true => Ok(Self::Task(value)),
                    false => Err("TaskUpdated: an object with an ID".to_owned()),
                }
            }
            None => TreeEvent::told(&value).map(Self::Tree),
            Some(Value::String(kind)) if kind == "idm" => Ok(Self::Identity),
            Some(Value::String(kind)) if kind == "activity" => Ok(Self::Activity(value)),
            Some(other) => Err(format!(
                "@type: allowed are \"idm\" and \"activity\", not {other}"
            )),
        }
    }

    /// The keys under which it is told: whoever tells it must be allowed to write them. The first one carries it.
    pub(super) fn keys(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match self {
            Self::Tree(event) => event.keys(),
            Self::Task(value) => vec![format!("{TASKS}{}", text(&value["TaskUpdated"]["ID"]))],
            Self::Identity => vec![format!("{IDM}event")],
            Self::Activity(value) => vec![format!("{ACTIVITIES}{}", text(&value["OwnerId"]))],
        }
    }
}

impl Hub {
    pub(super) fn new(own: Arc<dyn Storage>, quiet: Duration, metrics: &Metrics) -> Self {
        Self {
            registry: Mutex::default(),
            records: Arc::new(Records::new(own.clone())),
            own,
            seen: watch::Sender::new(Revision::ZERO),
            started: OnceCell::new(),
            quiet,
            metrics: metrics.clone(),
        }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn own(&self) -> &Arc<dyn Storage> {
        &self.own
    }

    pub(super) fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Waits until [`Hub::records`] know what a commit of this revision, and all before it, changed of who has what. Rights and
    /// messages come by two feeds: who is told of a commit waits for this one.
    pub(super) async fn has_seen(&self, revision: Revision) {
        if *self.seen.borrow() < revision {
            // The sender is ours.
            let _ = self
                .seen
                .subscribe()
                .wait_for(|seen| *seen >= revision)
                .await;
        }
    }

    /// Sees to it that all that is committed from now on is told.
    pub(super) async fn start(self: &Arc<Self>, server: &ServerHandle) -> Result<()> {
        let starting = self.started.get_or_try_init(|| async {
            let watch = self.watch(WatchStart::Now).await?;
            self.seen.send_replace(watch.start().revision);
            let (hub, shared) = (self.clone(), server.shared().clone());
            let end = shared.drain.clone();
            shared.tasks.spawn(async move {
                tokio::select! {
                    () = hub.run(watch) => {}
                    () = end.cancelled() => {}
                }
            });
            Ok(())
        });
        starting.await.copied()
    }

    async fn watch(&self, start: WatchStart) -> Result<Watch> {
        let options = WatchOptions::every(start);
        self.own.watch(KeyRange::all(), options).await
    }

    async fn run(self: Arc<Self>, mut watch: Watch) {
        let mut waiting = Coalescer::new(self.quiet);
        let mut comments = Comments::new(self.own.clone(), self.records.clone());
        let (mut retry, mut looking) = (None, None::<AbortOnDropHandle<()>>);
        loop {
            let due = waiting.next_due();
            if retry.is_none() && looking.is_none() && self.has_unknown() {
                retry = Some(Instant::now() + RETRY);
            }
            let looked = async {
                match &mut looking {
                    // It has no result, and may be begun anew.
                    Some(looking) => drop(looking.await),
                    None => pending().await,
                }
            };
            let told = tokio::select! {
                told = watch.next() => told,
                () = until(due) => {
                    let now = Instant::now();
                    for event in waiting.take_due(now) {
                        self.tell_of_tree(&event, now);
                    }
                    continue;
                }
                () = until(retry) => {
                    // A task of its own: what is told waits for the records that it reads.
                    let hub = self.clone();
                    let task = tokio::spawn(async move { hub.look_for_unknown().await });
                    looking = Some(AbortOnDropHandle::new(task));
                    retry = None;
                    continue;
                }
                () = looked => {
                    looking = None;
                    continue;
                }
                events = comments.next() => {
                    self.offer(events, &mut waiting);
                    continue;
                }
            };
            match told {
                Ok(Some(WatchEvent::Commit(commit))) => {
                    self.note(&commit);
                    self.tell(&commit, &mut waiting).await;
                    self.offer(comments.note(&commit), &mut waiting);
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    watch = self.again(watch.status().position, None).await;
                    comments.forget();
                }
                Err(error) => {
                    watch = self.again(watch.status().position, Some(error)).await;
                    comments.forget();
                }
            }
        }
    }

    /// A watch that goes on where one broke off. Where it cannot, all are told to look again.
    async fn again(&self, from: Position, error: Option<StorageError>) -> Watch {
        if let Some(error) = error {
            tracing::warn!(%error, "the watch of the gateway workspace broke off");
        }
        let mut start = WatchStart::After(from);
        loop {
            match self.watch(start).await {
                Ok(watch) => {
                    if start == WatchStart::Now {
                        // Whatever changed meanwhile is not known: everybody looks again.
                        self.records.all_changed();
                        self.seen.send_replace(watch.start().revision);
                        let all = self.registry().all();
                        self.look_again(&all).await;
                        self.registry().resync();
                    }
                    return watch;
                }
                Err(StorageError::Compacted { .. } | StorageError::EpochChanged { .. }) => {
                    start = WatchStart::Now;
                }
                Err(error) => {
                    tracing::debug!(%error, "no watch for the gateway workspace yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Takes notice of what a commit changed of who has what, before anybody is told of it.
    fn note(&self, commit: &CommitRecord) {
        const DIRECTORY: [&str; 4] = [USERS, ROLES, WORKSPACES, NODE_IDS];
        let is_record = |key: &[u8]| DIRECTORY.iter().any(|of| key.starts_with(of.as_bytes()));
        for change in &commit.changes {
            let is_change = !matches!(change.kind, ChangeKind::Signalled { .. });
            if is_change && is_record(&change.key) {
                self.records.changed(&change.key);
            }
        }
        self.seen.send_replace(commit.revision);
    }

    /// Tells what a commit did, by the rights that are behind it.
    async fn tell(&self, commit: &CommitRecord, waiting: &mut Coalescer) {
        self.tell_of_directory(commit).await;
        if commit
            .changes
            .iter()
            .any(|change| change.key.starts_with(NODES.as_bytes()))
        {
            self.offer(TreeEvent::of_commit(commit), waiting);
        }
        for change in &commit.changes {
            let Ok(key) = std::str::from_utf8(&change.key) else {
                continue;
            };
            let value = match &change.kind {
                ChangeKind::Put { value, .. } | ChangeKind::Signalled { bytes: value } => value,
                ChangeKind::Removed { .. } => &[][..],
            };
            let event = || {
                serde_json::from_slice::<Value>(value)
                    .ok()
                    .filter(Value::is_object)
            };
            // What a value says it is about has to be what its key is about: that is what its writer may write.
            if let Some(id) = key.strip_prefix(TASKS) {
                event()
                    .filter(|event| event["TaskUpdated"]["ID"] == id)
                    .into_iter()
                    .for_each(|event| self.tell_of_task(event));
            } else if let Some(of) = key.strip_prefix(ACTIVITIES) {
                event()
                    .filter(|event| is_activity_of(event, of))
                    .into_iter()
                    .for_each(|event| self.tell_of_activity(event));
            } else if key.starts_with(IDM) {
                // It says nothing of what they have: that is in records, which are looked at when they change.
                if let Some(event) = event() {
                    let ids = self.concerned(&event);
                    self.tell_of_identity(event, &ids);
                }
            }
        }
    }

    /// Tells what a commit did to users, roles and workspaces, and looks up again, once, what those have whom that concerns.
    async fn tell_of_directory(&self, commit: &CommitRecord) {
        let changes = commit.changes.iter();
        let events = changes.filter_map(|change| {
            let key = std::str::from_utf8(&change.key).ok()?;
            of_directory(key, &change.kind)
        });
        let events: Vec<(Value, HashSet<ReceiverId>)> = events
            .map(|event| {
                let ids = self.concerned(&event);
                (event, ids)
            })
            .collect();
        let all: HashSet<ReceiverId> = events.iter().flat_map(|(_, ids)| ids).copied().collect();
        self.look_again(&all).await;
        for (event, mut ids) in events {
            // Those whom it concerned before it, and those whom it concerns now.
            ids.extend(self.concerned(&event));
            self.tell_of_identity(event, &ids);
        }
    }

    /// Tells events of the tree, each when it is time.
    fn offer(&self, events: Vec<TreeEvent>, waiting: &mut Coalescer) {
        let now = Instant::now();
        for event in events {
            for event in waiting.offer(event, now) {
                self.tell_of_tree(&event, now);
            }
        }
    }

    /// Tells an event of the tree to all whom it is for.
    fn tell_of_tree(&self, event: &TreeEvent, now: Instant) {
        let told = self.registry().tell_of_tree(event, now);
        self.metrics.events.inc_by(told);
    }

    fn tell_them(&self, ids: &HashSet<ReceiverId>, frame: Value) {
        let text = Utf8Bytes::from(without_defaults(frame).to_string());
        let told = self.registry().tell(ids, &text);
        self.metrics.events.inc_by(told);
    }

    fn tell_of_task(&self, mut event: Value) {
        without_first(&mut event["TaskUpdated"], "Status", "Unknown");
        let owner = event["TaskUpdated"]["TriggerOwner"].as_str();
        let ids = match owner {
            Some(SYSTEM_USER) => self.registry().admins(),
            Some(owner) => self.registry().of_user(owner),
            None => return,
        };
        self.tell_them(&ids, event);
    }

    fn tell_of_activity(&self, mut event: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let is_of_user = event["OwnerType"] == "USER" || event["OwnerType"] == 1;
        if event["BoxName"] != "inbox" && !is_of_user {
            return;
        }
        let owner = text(&event["OwnerId"]);
        if owner == text(&event["Activity"]["actor"]["id"]) {
            return;
        }
        let ids = self.registry().of_user(&owner);
        event["@type"] = "activity".into();
        self.tell_them(&ids, event);
    }

    /// Whom an identity event concerns, of those of whom it is known what they have.
    fn concerned(&self, event: &Value) -> HashSet<ReceiverId> {
        let registry = self.registry();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut ids = registry.of_role(&text(&event["Role"]["Uuid"]));
        ids.extend(registry.of_role(&text(&event["Acl"]["RoleID"])));
        ids.extend(registry.of_user(&text(&event["User"]["Login"])));
        ids.extend(registry.of_workspace(&text(&event["Workspace"]["UUID"])));
        ids
    }

    fn tell_of_identity(&self, mut event: Value, ids: &HashSet<ReceiverId>) {
        let action = event["Acl"]["Action"]["Name"].as_str().unwrap_or_default();
        let is_silent = SILENT_ACTIONS
            .iter()
            .any(|silent| action.starts_with(silent));
        if !is_silent {
            without_first(&mut event, "Type", "CREATE");
            event["@type"] = "idm".into();
            self.tell_them(ids, event);
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// Leaves out a member that is the first one of its enumeration, as protobuf does.
fn without_first(object: &mut Value, name: &str, first: &str) {
    if let Some(members) = object.as_object_mut()
        && members.get(name).is_some_and(|value| value == first)
    {
        members.remove(name);
    }
}

/// Whether an activity is of the owner whom its key names: `activities/OWNER`, and anything behind another slash.
fn is_activity_of(event: &Value, of: &str) -> bool {
    let owner = event["OwnerId"].as_str().unwrap_or_default();
    let rest = of.strip_prefix(owner).filter(|_| !owner.is_empty());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The identity event that a change of the directory is.
fn of_directory(key: &str, kind: &ChangeKind) -> Option<Value> {
    let word = match kind {
        ChangeKind::Put { .. } => "UPDATE",
        ChangeKind::Removed { .. } => "DELETE",
        ChangeKind::Signalled { .. } => return None,
    };
    let named =
        |what: &str, name: &str, value: &str| Some(json!({ "Type": word, what: { name: value } }));
    if let Some(login) = key.strip_prefix(USERS) {
        named("User", "Login", login)
    } else if let Some(role) = key.strip_prefix(ROLES) {
        named("Role", "Uuid", role)
    } else {
        named("Workspace", "UUID", key.strip_prefix(WORKSPACES)?)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use storage_protocol::Epoch;

    use super::super::directory::Claims;
    use super::super::faulty::Faulty;
    use super::super::outbox::{Outbox, Taken};
    use super::super::rate::Rate;
    use super::super::registry::Receiver;
    use super::*;

    fn hub(own: &Arc<Faulty>) -> Hub {
        Hub::new(own.clone(), Duration::ZERO, &Metrics::default())
    }

    async fn subscribed(hub: &Hub, id: ReceiverId, login: &str) -> Arc<Outbox> {
        let outbox = Arc::<Outbox>::default();
        let claims = Claims {
            login: login.to_owned(),
            ..Claims::default()
        };
        let receiver = Receiver::new(outbox.clone(), claims, Rate::new(30, 20));
        hub.subscribe(id, receiver).await.unwrap();
        outbox
    }

    /// Users with a role, and their workspace.
    async fn team(own: &Faulty, users: usize) {
        for n in 0..users {
            own.set(&format!("users/u{n}"), r#"{"roles":["team"]}"#)
                .await;
        }
        own.set("roles/team", r#"{"workspaces":{"ws":"rw"}}"#).await;
        own.set("workspaces/ws", r#"{"roots":["/a"]}"#).await;
    }

    fn taken(outbox: &Outbox) -> Vec<Taken> {
        std::iter::from_fn(|| outbox.take().now_or_never()).collect()
    }

    #[tokio::test]
    async fn who_looked_before_a_gap_in_the_feed_looks_again() {
        let own = Faulty::new();
        own.set_back();
        let hub = hub(&own);
        let looked = hub.records().version();
        let from = Position {
            epoch: Epoch(7),
            revision: Revision(1),
        };
        let watch = hub.again(from, None).await;
        assert_ne!(hub.records().version(), looked);
        // Nobody waits for what came before it.
        hub.has_seen(watch.start().revision).await;
    }

    #[tokio::test]
    async fn a_change_is_read_once_however_many_it_concerns() {
        let (own, users) = (Faulty::new(), 10);
        team(&own, users).await;
        let hub = hub(&own);
        for id in 0..500 {
            let login = format!("u{}", id % users as u64);
            subscribed(&hub, id, &login).await;
        }
        // Who subscribes has what is so at that moment: its record, the role and the workspace are read for each.
        let reads = own.reads();
        assert_eq!(reads, 500 * 3);
        own.set("roles/team", r#"{"workspaces":{"ws":"r"}}"#).await;
        hub.records().changed(b"roles/team");
        let all = hub.registry().all();
        hub.look_again(&all).await;
        assert_eq!(own.reads(), reads + 1);
    }

    #[tokio::test]
    async fn who_cannot_be_looked_up_is_told_nothing_until_it_can() {
        let own = Faulty::new();
        team(&own, 1).await;
        let hub = hub(&own);
        let outbox = subscribed(&hub, 1, "u0").await;
        let event = || {
            let told = json!({ "Type": "DELETE", "Source": { "Path": "/a/x" } });
            hub.tell_of_tree(&TreeEvent::told(&told).unwrap(), Instant::now());
        };
        event();
        own.fail(true);
        hub.records().changed(b"roles/team");
        hub.look_again(&HashSet::from([1])).await;
        assert!(hub.has_unknown());
        event();
        // What waited is not told either.
        assert_eq!(taken(&outbox), [Taken::Behind]);
        own.fail(false);
        hub.look_for_unknown().await;
        assert!(!hub.has_unknown());
        event();
        let taken = taken(&outbox);
        assert!(matches!(taken[..], [Taken::Frame(_), Taken::Behind]));
    }

    #[test]
    fn an_activity_is_of_whom_its_key_names() {
        let of = |owner: &str| json!({ "OwnerId": owner });
        assert!(is_activity_of(&of("ana"), "ana"));
        assert!(is_activity_of(&of("ana"), "ana/7"));
        for (owner, key) in [
            ("ana", "bob"),
            ("ana", "anabel"),
            ("an", "ana"),
            ("", ""),
            ("", "/"),
        ] {
            assert!(!is_activity_of(&of(owner), key), "{owner} {key}");
        }
    }
}
