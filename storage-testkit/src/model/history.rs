//! The state of a [`ModelStore`](super::ModelStore): what every key is, and every commit that made it so.
//!
//! All rules of a commit are here, in the order in which they are applied: the batch by itself, the checks, the keys
//! of stamped puts, the bytes of the values before, and only then the operations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::{Context, Waker};

use storage_protocol::objects::{Manifest, PartKey, is_part};
use storage_protocol::{
    Batch, Change, ChangeKind, Check, CommitOptions, CommitRecord, Entry, EntryLifetime, Epoch,
    Expected, Key, KeyRange, KeyState, Keyspace, Lifetime, Limit, Limits, Operation, Outcome,
    Position, Result, Revision, ScanItem, StorageError, UnixMillis, Value,
};

use super::check_max;

/// Who commits, and where.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) keyspace: Keyspace,
    pub(super) principal: String,
    pub(super) session: u64,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct History {
    epoch: Epoch,
    /// The last commit of the store.
    head: Revision,
    /// A manual clock; `None`: the machine's.
    clock: Option<UnixMillis>,
    /// The oldest position that a watch `Every` may start from.
    log_start: Revision,
    sessions_opened: u64,
    sessions_ended: BTreeSet<u64>,
    keyspaces: BTreeMap<Keyspace, Space>,
    /// Watches that found nothing; all are woken by the next commit.
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Space {
    keys: BTreeMap<Key, Slot>,
    commits: Vec<Arc<CommitRecord>>,
    /// Tombstones up to here are forgotten.
    horizon: Revision,
}

#[derive(Debug)]
struct Slot {
    state: KeyState,
    /// The session that put it, where it lives as long as that.
    session: Option<u64>,
}

impl History {
    pub(super) fn new(clock: Option<UnixMillis>) -> Self {
        Self {
            epoch: Epoch(rand::random()),
            head: Revision::ZERO,
            clock,
            log_start: Revision::ZERO,
            sessions_opened: 0,
            sessions_ended: BTreeSet::new(),
            keyspaces: BTreeMap::new(),
            waiting: Vec::new(),
        }
    }

    pub(super) fn open_session(&mut self) -> u64 {
        self.sessions_opened += 1;
        self.sessions_opened
    }

    pub(super) fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            revision: self.head,
        }
    }

    /// The revision of a position of this history.
    pub(super) fn resolve(&self, position: Position) -> Result<Revision> {
        // Zero lies at or before every fork, also that of an unknown epoch.
        if position.epoch != self.epoch && position.revision > Revision::ZERO {
            return Err(StorageError::EpochChanged {
                epoch: self.epoch,
                fork: Revision::ZERO,
            });
        }
        if position.revision > self.head {
            return Err(StorageError::invalid(format!(
                "position {position} is beyond the store's last revision {}",
                self.head
            )));
        }
        Ok(position.revision)
    }

    pub(super) fn check_log_reaches(&self, start: Revision) -> Result<()> {
        if start < self.log_start {
            return Err(StorageError::Compacted {
                oldest: self.log_start,
            });
        }
        Ok(())
    }

    // ---- reading

    pub(super) fn live(&self, keyspace: &Keyspace, key: &Key) -> Option<&Entry> {
        match &self.keyspaces.get(keyspace)?.keys.get(key)?.state {
            KeyState::Live(entry) => Some(entry),
            KeyState::Removed(_) => None,
        }
    }

    /// What lives in a range, in key order.
    pub(super) fn live_states(&self, keyspace: &Keyspace, range: &KeyRange) -> Vec<ScanItem> {
        let mut items = self.states(keyspace, range);
        items.retain(|item| matches!(item.state, KeyState::Live(_)));
        items
    }

    /// What changed in a range after a revision, tombstones included, in key order.
    pub(super) fn states_after(
        &self,
        keyspace: &Keyspace,
        range: &KeyRange,
        after: Revision,
    ) -> Result<Vec<ScanItem>> {
        let horizon = self.horizon(keyspace);
        if after < horizon {
            return Err(StorageError::Compacted { oldest: horizon });
        }
        let mut items = self.states(keyspace, range);
        items.retain(|item| item.state.revision() > after);
        Ok(items)
    }

    fn states(&self, keyspace: &Keyspace, range: &KeyRange) -> Vec<ScanItem> {
        let slots = self.keyspaces.get(keyspace).map(|space| &space.keys);
        let inside = slots
            .into_iter()
            .flatten()
            .filter(|(key, _)| range.contains(key));
        inside
            .map(|(key, slot)| ScanItem {
                key: key.clone(),
                state: slot.state.clone(),
            })
            .collect()
    }

    pub(super) fn horizon(&self, keyspace: &Keyspace) -> Revision {
        let space = self.keyspaces.get(keyspace);
        space.map_or(Revision::ZERO, |space| space.horizon)
    }

    /// The first commit after a revision that touches a range, cut to it.
    pub(super) fn next_commit(
        &self,
        keyspace: &Keyspace,
        range: &KeyRange,
        after: Revision,
    ) -> Option<Arc<CommitRecord>> {
        let commits = &self.keyspaces.get(keyspace)?.commits;
        commits
            .iter()
            .filter(|commit| commit.revision > after)
            .find_map(|commit| commit.cut(range))
    }

    pub(super) fn state_at(&self, keyspace: &Keyspace, at: Revision) -> BTreeMap<Key, Entry> {
        let mut state = BTreeMap::new();
        let commits = self.keyspaces.get(keyspace).map(|space| &space.commits);
        for commit in commits.into_iter().flatten() {
            if commit.revision > at {
                break;
            }
            for change in &commit.changes {
                repeat_change(&mut state, commit.revision, change);
            }
        }
        state
    }

    /// Wakes this task at the next commit.
    pub(super) fn wake_later(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    // ---- writing

    pub(super) fn commit(
        &mut self,
        writer: &Writer,
        batch: &Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        if self.sessions_ended.contains(&writer.session) {
            return Err(StorageError::Closed {
                reason: "the session ended".to_owned(),
                outcome: Outcome::NotExecuted,
            });
        }
        batch.validate(&options, &Limits::default())?;
        for check in &batch.checks {
            self.judge(&writer.keyspace, check)?;
        }
        let revision = Revision(self.head.0 + 1);
        let operations = with_stamps(&batch.operations, revision)?;
        if options.with_previous {
            let bytes = batch.bytes() + self.previous_bytes(&writer.keyspace, &operations);
            check_max(Limit::Message, bytes, Limits::default().message_bytes_max)?;
        }
        let now = self.now();
        let changes = operations
            .into_iter()
            .filter_map(|operation| {
                self.apply(writer, revision, now, operation, options.with_previous)
            })
            .collect();
        let principal = writer.principal.clone();
        let record = CommitRecord::new(revision, now, options.label, principal, changes);
        self.space(&writer.keyspace).commits.push(Arc::new(record));
        self.head = revision;
        self.waiting.drain(..).for_each(Waker::wake);
        Ok(self.position())
    }

    fn judge(&self, keyspace: &Keyspace, check: &Check) -> Result<()> {
        let actual = self.live(keyspace, &check.key).map(|entry| entry.revision);
        let expected = match check.expected {
            Expected::Absent => None,
            Expected::At(revision) => Some(revision),
        };
        if actual != expected {
            let key = check.key.clone();
            return Err(StorageError::CheckFailed { key, actual });
        }
        Ok(())
    }

    fn previous_bytes(&self, keyspace: &Keyspace, operations: &[Operation]) -> usize {
        let stored = operations
            .iter()
            .filter(|operation| !matches!(operation, Operation::Signal { .. }));
        stored
            .filter_map(|operation| self.live(keyspace, operation.key()))
            .map(|entry| entry.value.len())
            .sum()
    }

    /// Does one operation; what watchers are told of it.
    fn apply(
        &mut self,
        writer: &Writer,
        revision: Revision,
        now: UnixMillis,
        operation: Operation,
        with_previous: bool,
    ) -> Option<Change> {
        let key = operation.key().clone();
        let before = self.live(&writer.keyspace, &key);
        let was_live = before.is_some();
        let previous: Option<Value> = before
            .filter(|_| with_previous)
            .map(|entry| entry.value.clone());
        let (state, session, kind) = match operation {
            Operation::Signal { bytes, .. } => {
                let kind = ChangeKind::Signalled { bytes };
                return Some(Change { key, kind });
            }
            Operation::Remove { .. } if !was_live => return None,
            Operation::Remove { .. } => {
                let kind = ChangeKind::Removed { previous };
                (KeyState::Removed(revision), None, kind)
            }
            // A stamped put has its whole key by now.
            Operation::Put {
                value, lifetime, ..
            }
            | Operation::PutStamped {
                value, lifetime, ..
            } => {
                let session = (lifetime == Lifetime::Session).then_some(writer.session);
                let lifetime = stored_lifetime(lifetime, now);
                let entry = Entry {
                    value: value.clone(),
                    revision,
                    lifetime,
                };
                let kind = ChangeKind::Put {
                    value,
                    lifetime,
                    previous,
                };
                (KeyState::Live(entry), session, kind)
            }
        };
        let space = self.space(&writer.keyspace);
        space.keys.insert(key.clone(), Slot { state, session });
        Some(Change { key, kind })
    }

    fn space(&mut self, keyspace: &Keyspace) -> &mut Space {
        self.keyspaces.entry(keyspace.clone()).or_default()
    }

    fn now(&self) -> UnixMillis {
        self.clock.unwrap_or_else(UnixMillis::now)
    }

    // ---- what the server does by itself

    pub(super) fn expire_due(&mut self, now: UnixMillis) {
        if self.clock.is_some() {
            self.clock = Some(now);
        }
        let due = self.find(|slot| match &slot.state {
            KeyState::Live(entry) => {
                matches!(entry.lifetime, EntryLifetime::Until(time) if time <= now)
            }
            KeyState::Removed(_) => false,
        });
        for (keyspace, key, revision) in due {
            self.remove_by_server(&keyspace, [(key, revision)], "expired");
        }
    }

    pub(super) fn end_session(&mut self, writer: &Writer) {
        self.sessions_ended.insert(writer.session);
        let held = self.find(|slot| slot.session == Some(writer.session));
        let keys: Vec<_> = held.into_iter().map(|(_, key, at)| (key, at)).collect();
        if !keys.is_empty() {
            self.remove_by_server(&writer.keyspace, keys, "session ended");
        }
    }

    fn find(&self, wanted: impl Fn(&Slot) -> bool) -> Vec<(Keyspace, Key, Revision)> {
        let mut found = Vec::new();
        for (keyspace, space) in &self.keyspaces {
            for (key, slot) in space.keys.iter().filter(|(_, slot)| wanted(slot)) {
                found.push((keyspace.clone(), key.clone(), slot.state.revision()));
            }
        }
        found
    }

    /// A commit like any other: it checks that each key is still the one that was found. With an intent go its parts.
    fn remove_by_server(
        &mut self,
        keyspace: &Keyspace,
        keys: impl IntoIterator<Item = (Key, Revision)>,
        label: &str,
    ) {
        let mut batch = Batch::new();
        for (key, at) in keys {
            for part in self.parts_under(keyspace, &key) {
                batch = batch.remove(part);
            }
            batch = batch.check_revision(key.clone(), at).remove(key);
        }
        let writer = Writer {
            keyspace: keyspace.clone(),
            principal: "server".to_owned(),
            session: 0,
        };
        let done = self.commit(&writer, &batch, CommitOptions::labelled(label));
        done.expect("the keys were found under the same lock");
    }

    /// The parts that an intent says belong to no object; none, if the key is no intent, or the object is there.
    fn parts_under(&self, keyspace: &Keyspace, key: &Key) -> Vec<Key> {
        let Some(PartKey {
            object,
            id,
            number: None,
        }) = PartKey::parse(key)
        else {
            return Vec::new();
        };
        let value = self.live(keyspace, &object).map(|entry| &entry.value);
        let manifest = value.and_then(|value| Manifest::decode(value).ok()?);
        if manifest.is_some_and(|manifest| manifest.id == id) {
            return Vec::new();
        }
        let states = self.live_states(keyspace, &KeyRange::prefix(key.clone()));
        let keys = states.into_iter().map(|item| item.key);
        keys.filter(|part| part != key && is_part(part)).collect()
    }

    pub(super) fn compact_log(&mut self, to: Revision) {
        self.log_start = self.log_start.max(to.min(self.head));
    }

    pub(super) fn drop_tombstones(&mut self, keyspace: &Keyspace, to: Revision) {
        let to = to.min(self.head);
        let space = self.space(keyspace);
        space.horizon = space.horizon.max(to);
        space
            .keys
            .retain(|_, slot| !matches!(slot.state, KeyState::Removed(at) if at <= to));
    }
}

/// The operations with the whole keys of stamped puts, each key at most once.
fn with_stamps(operations: &[Operation], revision: Revision) -> Result<Vec<Operation>> {
    let whole = operations.iter().cloned().map(|operation| match operation {
        Operation::PutStamped {
            prefix,
            value,
            lifetime,
        } => Operation::Put {
            key: [prefix.as_ref(), &revision.0.to_be_bytes()].concat().into(),
            value,
            lifetime,
        },
        Operation::Put { .. } | Operation::Remove { .. } | Operation::Signal { .. } => operation,
    });
    let whole: Vec<Operation> = whole.collect();
    let mut seen = BTreeSet::new();
    for operation in &whole {
        if !seen.insert(operation.key()) {
            return Err(StorageError::invalid(format!(
                "key \"{}\" stands twice in one commit: stamped and explicit",
                operation.key().escape_ascii()
            )));
        }
    }
    Ok(whole)
}

fn stored_lifetime(lifetime: Lifetime, now: UnixMillis) -> EntryLifetime {
    match lifetime {
        Lifetime::Forever => EntryLifetime::Forever,
        Lifetime::TimeToLive(duration) => EntryLifetime::Until(now.after(duration)),
        Lifetime::Session => EntryLifetime::Session,
    }
}

fn repeat_change(state: &mut BTreeMap<Key, Entry>, revision: Revision, change: &Change) {
    match &change.kind {
        ChangeKind::Put {
            value, lifetime, ..
        } => {
            let entry = Entry {
                value: value.clone(),
                revision,
                lifetime: *lifetime,
            };
            state.insert(change.key.clone(), entry);
        }
        ChangeKind::Removed { .. } => {
            state.remove(&change.key);
        }
        ChangeKind::Signalled { .. } => {}
    }
}
