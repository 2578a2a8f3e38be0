//! Group commit: the one writer of the store, on a thread of its own.
//!
//! It takes what waits, evaluates each commit's checks against the store and the group's earlier commits (the overlay),
//! writes one batch with one synced write, publishes to the feed, then answers everything that saw the group, refusals
//! included: nobody learns of a commit that is not durable. The feed tells the watches on a thread of its own.
//!
//! Invariants: nothing else writes to the database, so the numbers RocksDB will give are known beforehand; a commit's
//! record is the last of its rows and its number is the commit's revision; the log holds puts and deletes only.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use rocksdb::{WriteBatch, WriteOptions};
use storage_protocol::{
    Batch, Change, ChangeKind, CommitOptions, CommitRecord, EntryLifetime, Expected, Key, Lifetime,
    Limit, Operation, Outcome, Position, Result, Revision, SessionId, StorageError, UnixMillis,
    Value, planted,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::clock::Late;
use super::disk::Need;
use super::layout::{
    self, CommitRow, Head, KeyspaceId, KeyspaceRow, LifetimeRow, NumberRow, Stored, Table,
    entry_key, entry_value, index_key,
};
use super::queue::Queue;
use super::sessions::{Handle, SessionState, Verdict};
use super::store::{KeyspaceState, Store};
use super::{Durability, Shared};
use crate::feed::FeedCommit;

/// Numbers that a group may take before it is written; a single commit may take more.
const GROUP_NUMBERS_MAX: u64 = 64 * 1024;

/// A commit up to this size is copied out of its message: cheaper than what it might keep alive.
const COMPACT_BYTES_MAX: usize = 4 * 1024;

/// Bytes that a group may have before it is written: values before count here that its requests do not carry.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// One thing for the committer to do.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) session: Arc<SessionState>,
    /// The number of the session's handle that asks for it; 0: the engine itself.
    pub(super) handle: u64,
    pub(super) task: Task,
    /// What it counts in the queue.
    pub(super) bytes: usize,
    pub(super) reply: oneshot::Sender<Result<Position>>,
}

#[derive(Debug)]
pub(super) enum Task {
    /// A commit. With a fingerprint it was numbered by a peer, which may send it again.
    Commit {
        number: u64,
        fingerprint: Option<u64>,
        batch: Batch,
        options: CommitOptions,
    },
    /// A commit of a peer that comes again: nothing is executed. Without a fingerprint what came with it is not known.
    Repeat {
        number: u64,
        fingerprint: Option<u64>,
    },
    /// Removes those of these entries that still have these revisions, in one labelled commit.
    Remove {
        label: &'static str,
        entries: Vec<(Key, Revision)>,
    },
    /// Gives those of these entries that still have these revisions, and are due at some time, other times, in one labelled
    /// commit.
    Correct {
        label: &'static str,
        entries: Vec<Late>,
    },
    /// Nothing: lets the committer look at the clock.
    Look,
    /// Forgets jumps of the clock.
    ForgetStretches { above: Vec<Revision> },
    /// Drops tombstones of the keyspace up to a revision, and the revision becomes its horizon. No commit.
    Forget {
        tombstones: Vec<(Key, Revision)>,
        horizon: Revision,
    },
    /// A newer incarnation takes the session over.
    Attach {
        handle: Handle,
        incarnation: u64,
        verdict: Arc<OnceLock<Verdict>>,
    },
    /// The handle's socket was lost.
    Lose,
    /// The handle's client knows that the session's keys were removed.
    Heed,
    /// The session was lost at this time, for too long: its keys are to go.
    Lapse { since: UnixMillis },
    /// The session was lost at this time and is kept no longer: these records go, and its row.
    ForgetSession {
        since: UnixMillis,
        records: Vec<Vec<u8>>,
    },
    /// The session takes no more commits; its records go.
    End,
}

/// Runs until the queue is closed and drained.
pub(super) fn run(shared: &Shared) {
    // Also when it panics: the feed's thread must not wait for ever.
    let _close = CloseFeed(shared);
    let mut sync = WriteOptions::default();
    sync.set_sync(shared.store.options.durability == Durability::Sync && !planted("skip-sync"));
    let mut committer = Committer { shared, sync };
    loop {
        let works = shared.queue.take();
        if works.is_empty() {
            return;
        }
        committer.commit(works);
    }
}

struct CloseFeed<'a>(&'a Shared);

impl Drop for CloseFeed<'_> {
    fn drop(&mut self) {
        self.0.feed.close();
    }
}

struct Committer<'a> {
    shared: &'a Shared,
    sync: WriteOptions,
}

impl Committer<'_> {
    fn commit(&mut self, works: Vec<Work>) {
        let mut group: Option<Group<'_>> = None;
        for work in works {
            if let Some(full) = group.take_if(|group| group.is_full()) {
                self.write(full);
            }
            // Only when the one before is written: its revisions begin behind that.
            group
                .get_or_insert_with(|| Group::begin(self.shared))
                .take(work);
        }
        if let Some(group) = group {
            self.write(group);
        }
    }

    /// Makes a group durable, then tells of it.
    fn write(&mut self, group: Group<'_>) {
        let Group {
            batch,
            base,
            numbers,
            mut records,
            made,
            answers,
            dues,
            fenced,
            ..
        } = group;
        let store = &self.shared.store;
        let count = answers.len();
        if numbers > 0 {
            let began = Instant::now();
            let bytes = batch.size_in_bytes();
            // Ordering: before the write. Who sees its first commit must find the keyspace; a failed write poisons.
            for (keyspace, row) in made {
                keyspace.set_row(row);
            }
            if planted("show-before-durable") {
                let early = std::mem::take(&mut records);
                self.shared.feed.publish(early, Revision(base + numbers));
            }
            if let Err(reason) = self.write_batch(batch, base + numbers) {
                store.poison(&reason);
                self.shared.feed.wake_all_waiting();
                for (reply, _) in answers {
                    let error = StorageError::Internal {
                        message: "a write failed; the store takes no more until it is reopened"
                            .to_owned(),
                        outcome: Outcome::Unknown,
                    };
                    // A caller that is gone needs no answer.
                    let _ = reply.send(Err(error));
                }
                return;
            }
            self.shared.metrics.wrote(count, bytes, began.elapsed());
            self.shared.disk.wrote(bytes);
            if let Some(due) = dues.into_iter().min() {
                self.shared.alarm.set(due);
            }
        }
        // Ordering: durable, then published, then answered: who has an answer finds the commit everywhere. What watches
        // are told of it is told beside that (see the feed).
        self.shared.feed.publish(records, Revision(base + numbers));
        // The fences first: a socket that was taken over is closed rather than told what its successor asks again.
        for before in fenced {
            before.cancel();
        }
        for (reply, answer) in answers {
            let _ = reply.send(answer);
        }
    }

    fn write_batch(&self, batch: WriteBatch, last: u64) -> std::result::Result<(), String> {
        let store = &self.shared.store;
        store
            .db
            .write_opt(batch, &self.sync)
            .map_err(|error| error.to_string())?;
        let found = store.db.latest_sequence_number();
        if found != last {
            return Err(format!(
                "the write ended at number {found}, expected {last}: something else writes"
            ));
        }
        Ok(())
    }
}

/// Commits that become durable together.
pub(super) struct Group<'a> {
    pub(super) shared: &'a Shared,
    pub(super) store: &'a Store,
    batch: WriteBatch,
    /// The store's revision before the group.
    pub(super) base: u64,
    /// Numbers taken so far.
    pub(super) numbers: u64,
    pub(super) now: UnixMillis,
    /// Bytes of the work at hand, as it was queued.
    taken: usize,
    /// Entries as the group's commits leave them, for the checks of later ones.
    overlay: HashMap<(KeyspaceId, Key), (Head, Value)>,
    /// What peers' numbers became in this group.
    pub(super) executed: HashMap<(SessionId, u64), NumberRow>,
    /// Handles that others took over from.
    pub(super) fenced: Vec<CancellationToken>,
    records: Vec<FeedCommit>,
    made: Vec<(Arc<KeyspaceState>, KeyspaceRow)>,
    dues: Vec<UnixMillis>,
    answers: Vec<(oneshot::Sender<Result<Position>>, Result<Position>)>,
}

/// What a commit is known by: whose, which, and its fingerprint if its number may come again.
#[derive(Clone, Copy)]
struct Number {
    handle: u64,
    number: u64,
    fingerprint: Option<u64>,
}

/// A commit's number as it is written.
#[derive(Clone, Copy)]
struct Numbered {
    number: u64,
    fingerprint: Option<u64>,
    /// The session's row goes with it.
    unstored: bool,
}

/// A signal, with its place among the changes.
type Signal = (usize, Key, Value);

/// One entry's way through a commit.
struct Step {
    key: Key,
    /// The key ends with the commit's revision, which is not known yet.
    stamped: bool,
    new: Stored,
    value: Value,
    old: Option<Head>,
    previous: Option<Value>,
}

impl Step {
    /// How many rows it writes.
    fn rows(&self, indexed: bool) -> u64 {
        let rows_of = |stored: Stored| u64::from(indexed) + u64::from(stored != Stored::Forever);
        1 + rows_of(self.new) + self.old.map_or(0, |old| rows_of(old.stored))
    }
}

impl<'a> Group<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        let store: &Store = &shared.store;
        Self {
            shared,
            store,
            batch: WriteBatch::default(),
            base: store.db.latest_sequence_number(),
            numbers: 0,
            now: store.now(),
            taken: 0,
            overlay: HashMap::new(),
            executed: HashMap::new(),
            fenced: Vec::new(),
            records: Vec::new(),
            made: Vec::new(),
            dues: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// One that looks at the clock first.
    fn begin(shared: &'a Shared) -> Self {
        let mut group = Self::new(shared);
        group.heed_clock();
        group
    }

    fn is_full(&self) -> bool {
        self.numbers >= GROUP_NUMBERS_MAX || self.batch.size_in_bytes() >= GROUP_BYTES_MAX
    }

    pub(super) fn take(&mut self, work: Work) {
        let Work {
            session,
            handle,
            task,
            reply,
            bytes,
        } = work;
        self.taken = bytes;
        let answer = match task {
            Task::Commit {
                number,
                fingerprint,
                batch,
                options,
            } => {
                let number = Number {
                    handle,
                    number,
                    fingerprint,
                };
                self.commit(&session, number, batch, options)
            }
            Task::Repeat {
                number,
                fingerprint,
            } => self
                .check_session(&session, handle, number, true)
                .and_then(|()| self.repeat(&session, number, fingerprint)),
            Task::Remove { label, entries } => self.remove(&session, label, entries),
            Task::Correct { label, entries } => self.correct(&session, label, entries),
            Task::Look => self.here(),
            Task::ForgetStretches { above } => {
                self.forget_stretches(&above);
                self.here()
            }
            Task::Forget {
                tombstones,
                horizon,
            } => self.forget(&session.keyspace, tombstones, horizon),
            Task::Attach {
                handle,
                incarnation,
                verdict,
            } => self.attach(&session, handle, incarnation, &verdict),
            Task::Lose => self.lose(&session, handle),
            Task::Heed => self.heed(&session, handle),
            Task::Lapse { since } => self.lapse(&session, since),
            Task::ForgetSession { since, records } => {
                self.forget_session(&session, since, &records)
            }
            Task::End => self.end(&session, handle),
        };
        self.answers.push((reply, answer));
    }

    fn commit(
        &mut self,
        session: &Arc<SessionState>,
        number: Number,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        let Number {
            handle,
            number,
            fingerprint,
        } = number;
        let repeatable = fingerprint.is_some();
        self.check_session(session, handle, number, repeatable)?;
        // Before anything that could refuse it: what was executed was not refused.
        if repeatable && number <= session.executed.load(Ordering::Acquire) {
            return self.repeat(session, number, fingerprint);
        }
        self.store.check_poison()?;
        // Again, since it waited: what stood before it may have taken the room.
        let ahead = self.batch.size_in_bytes() + self.taken;
        self.shared.disk.check(Need::of(&batch), ahead)?;
        if session.keyspace.serves_mwdb() {
            check_mwdb(&batch)?;
        }
        self.check(&session.keyspace, &batch)?;
        let (steps, signals) = self.plan(session, batch, &options)?;
        let unstored = repeatable && Self::is_unstored(session);
        let numbered = Some(Numbered {
            number,
            fingerprint,
            unstored,
        });
        let position = self.apply(session, numbered, options.label, steps, signals)?;
        session.executed.fetch_max(number, Ordering::AcqRel);
        if repeatable {
            let row = NumberRow {
                number,
                revision: position.revision,
                fingerprint,
            };
            self.executed.insert((session.id, number), row);
        }
        Ok(position)
    }

    /// What the last work is to be answered with.
    #[cfg(test)]
    pub(super) fn last_answer(&self) -> Result<Position> {
        self.answers.last().expect("a work was taken").1.clone()
    }

    /// Where the store is, with what the group did so far.
    pub(super) fn here(&self) -> Result<Position> {
        Ok(self.store.at(Revision(self.base + self.numbers)))
    }

    fn check(&self, keyspace: &KeyspaceState, batch: &Batch) -> Result<()> {
        for check in &batch.checks {
            let actual = self.look(keyspace, &check.key)?.filter(Head::is_live);
            let actual = actual.map(|head| head.revision);
            let holds = match check.expected {
                Expected::Absent => actual.is_none(),
                Expected::At(revision) => actual == Some(revision),
            };
            if !holds {
                return Err(StorageError::CheckFailed {
                    key: check.key.clone(),
                    actual,
                });
            }
        }
        Ok(())
    }

    /// What a key is just now: in the group, else in the store.
    fn look(&self, keyspace: &KeyspaceState, key: &Key) -> Result<Option<Head>> {
        Ok(self.look_at(keyspace, key, false)?.map(|(head, _)| head))
    }

    /// The same with its value, which is empty unless wanted.
    fn look_at(
        &self,
        keyspace: &KeyspaceState,
        key: &Key,
        value: bool,
    ) -> Result<Option<(Head, Value)>> {
        let Some(id) = self.id(keyspace) else {
            return Ok(None);
        };
        if let Some((head, value)) = self.overlay.get(&(id, key.clone()))
            && !planted("checks-without-overlay")
        {
            return Ok(Some((*head, value.clone())));
        }
        let Some(row) = self.store.row(Table::Entries, &entry_key(id, key))? else {
            return Ok(None);
        };
        let (head, at) = layout::parse_entry_value(&row)?;
        Ok(Some((
            head,
            if value {
                Bytes::copy_from_slice(&row[at..])
            } else {
                Value::new()
            },
        )))
    }

    fn indexed(&self) -> bool {
        !self.store.options.danger_without_index
    }

    fn id(&self, keyspace: &KeyspaceState) -> Option<KeyspaceId> {
        let made = self
            .made
            .iter()
            .find(|(made, _)| made.name == keyspace.name);
        made.map(|(_, row)| row.id).or_else(|| keyspace.id())
    }

    /// What each operation does, and the signals with their places among the changes.
    fn plan(
        &self,
        session: &SessionState,
        batch: Batch,
        options: &CommitOptions,
    ) -> Result<(Vec<Step>, Vec<Signal>)> {
        let mut steps = Vec::with_capacity(batch.operations.len());
        let mut signals = Vec::new();
        let mut bytes = batch.bytes();
        for operation in batch.operations {
            let (key, stamped, new, value) = match operation {
                Operation::Put {
                    key,
                    value,
                    lifetime,
                } => (key, false, self.stored(session, lifetime), value),
                Operation::PutStamped {
                    prefix,
                    value,
                    lifetime,
                } => (prefix, true, self.stored(session, lifetime), value),
                Operation::Remove { key } => {
                    (key, false, Stored::Tombstone(self.now), Value::new())
                }
                Operation::Signal { key, bytes } => {
                    signals.push((steps.len() + signals.len(), key, bytes));
                    continue;
                }
            };
            let old = if stamped {
                None
            } else {
                self.look_at(&session.keyspace, &key, options.with_previous)?
            };
            let live = old.as_ref().filter(|(head, _)| head.is_live());
            if matches!(new, Stored::Tombstone(_)) && live.is_none() {
                continue;
            }
            let previous = live
                .filter(|_| options.with_previous)
                .map(|(_, value)| value.clone());
            bytes += previous.as_ref().map_or(0, Bytes::len);
            steps.push(Step {
                key,
                stamped,
                new,
                value,
                old: old.map(|(head, _)| head),
                previous,
            });
        }
        let max = self.store.options.limits.message_bytes_max;
        if options.with_previous && bytes > max {
            return Err(StorageError::limit(Limit::Message, bytes, max));
        }
        Ok((steps, signals))
    }

    fn stored(&self, session: &SessionState, lifetime: Lifetime) -> Stored {
        match lifetime {
            Lifetime::Forever => Stored::Forever,
            Lifetime::TimeToLive(duration) => Stored::Until(self.now.after(duration)),
            Lifetime::Session => Stored::Session(session.id),
        }
    }

    /// Puts a planned commit's rows into the batch.
    fn apply(
        &mut self,
        session: &Arc<SessionState>,
        numbered: Option<Numbered>,
        label: Option<String>,
        mut steps: Vec<Step>,
        signals: Vec<Signal>,
    ) -> Result<Position> {
        let made = self.id(&session.keyspace).is_none();
        let unstored = numbered.is_some_and(|numbered| numbered.unstored);
        let rows = steps
            .iter()
            .map(|step| step.rows(self.indexed()))
            .sum::<u64>()
            + u64::from(made)
            + u64::from(unstored)
            + 1;
        let revision = Revision(self.base + self.numbers + rows);
        self.stamp(&session.keyspace, revision, &mut steps)?;
        let id = match self.id(&session.keyspace) {
            Some(id) => id,
            None => self.make(&session.keyspace, revision),
        };
        if unstored {
            self.put_session_row(session);
        }
        let mut changes = Vec::with_capacity(steps.len() + signals.len());
        let mut signals = signals.into_iter().peekable();
        let mut steps = steps.into_iter();
        // Both come in the order of their places; a signal's place counts what stands before it, signals included.
        loop {
            if let Some((_, key, bytes)) = signals.next_if(|(place, _, _)| *place <= changes.len())
            {
                changes.push(Change {
                    key,
                    kind: ChangeKind::Signalled { bytes },
                });
            } else if let Some(step) = steps.next() {
                changes.push(self.write_step(id, revision, step));
            } else {
                break;
            }
        }
        compact(&mut changes, self.taken);
        let record = CommitRecord::new(
            revision,
            self.now,
            label,
            session.principal.to_string(),
            changes,
        );
        let number = numbered.map_or(revision.0, |numbered| numbered.number);
        let mut row = commit_row(number, id, &record);
        row.fingerprint = numbered.and_then(|numbered| numbered.fingerprint);
        self.put(
            Table::Sessions,
            &layout::session_key(session.id, number),
            &row.encode(),
        );
        debug_assert_eq!(
            self.base + self.numbers,
            revision.0,
            "the record is the commit's last row"
        );
        if !record.changes.is_empty() {
            let keyspace = session.keyspace.name.clone();
            self.records.push(FeedCommit {
                keyspace,
                record: Arc::new(record),
            });
        }
        Ok(self.store.at(revision))
    }

    /// Completes the keys of stamped puts.
    fn stamp(
        &self,
        keyspace: &KeyspaceState,
        revision: Revision,
        steps: &mut [Step],
    ) -> Result<()> {
        if !steps.iter().any(|step| step.stamped) {
            return Ok(());
        }
        let plain: HashSet<Key> = steps
            .iter()
            .filter(|step| !step.stamped)
            .map(|step| step.key.clone())
            .collect();
        for step in steps.iter_mut().filter(|step| step.stamped) {
            step.key = [&step.key[..], &layout::encode_revision(revision)]
                .concat()
                .into();
            if plain.contains(&step.key) || self.look(keyspace, &step.key)?.is_some() {
                let key = step.key.escape_ascii();
                return Err(StorageError::invalid(format!(
                    "the stamped key \"{key}\" is taken"
                )));
            }
        }
        Ok(())
    }

    fn make(&mut self, keyspace: &Arc<KeyspaceState>, revision: Revision) -> KeyspaceId {
        let known = self
            .store
            .keyspaces()
            .iter()
            .filter_map(|keyspace| keyspace.id())
            .max();
        let here = self.made.iter().map(|(_, row)| row.id).max();
        let last = known.max(here).map_or(0, |id| id.0);
        let row = KeyspaceRow {
            id: KeyspaceId(last + 1),
            mwdb: keyspace.serves_mwdb(),
            // Nothing of it is older than the commit that makes it.
            made: Revision(self.base + self.numbers),
        };
        debug_assert!(row.made < revision);
        self.put(
            Table::Meta,
            &layout::keyspace_key(&keyspace.name),
            &row.encode(),
        );
        self.made.push((keyspace.clone(), row));
        row.id
    }

    fn write_step(&mut self, id: KeyspaceId, revision: Revision, step: Step) -> Change {
        let Step {
            key,
            new,
            value,
            old,
            previous,
            ..
        } = step;
        let head = Head {
            revision,
            stored: new,
        };
        self.put(
            Table::Entries,
            &entry_key(id, &key),
            &entry_value(&head, &value),
        );
        if self.indexed() {
            self.put(Table::Index, &index_key(id, revision, &key), &[]);
        }
        if let Some(row) = lifetime_row(id, &key, &head) {
            self.put(
                Table::Lifetimes,
                &row.key(),
                &layout::encode_revision(revision),
            );
        }
        if let Some(old) = old {
            if self.indexed() {
                self.delete(Table::Index, &index_key(id, old.revision, &key));
            }
            match lifetime_row(id, &key, &old) {
                // The same row was just put (a session's key put again): a delete would take it away. Something must
                // take its number, though.
                Some(row) if lifetime_row(id, &key, &head).as_ref() == Some(&row) => {
                    self.put(
                        Table::Lifetimes,
                        &row.key(),
                        &layout::encode_revision(revision),
                    );
                }
                Some(row) => self.delete(Table::Lifetimes, &row.key()),
                None => {}
            }
        }
        let lifetime = match new {
            Stored::Tombstone(_) => None,
            Stored::Forever => Some(EntryLifetime::Forever),
            Stored::Until(due) => {
                self.dues.push(due);
                Some(EntryLifetime::Until(due))
            }
            Stored::Session(_) => Some(EntryLifetime::Session),
        };
        self.overlay
            .insert((id, key.clone()), (head, value.clone()));
        let kind = match lifetime {
            None => ChangeKind::Removed { previous },
            Some(lifetime) => ChangeKind::Put {
                value,
                lifetime,
                previous,
            },
        };
        Change { key, kind }
    }

    fn remove(
        &mut self,
        session: &Arc<SessionState>,
        label: &'static str,
        entries: Vec<(Key, Revision)>,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let mut steps = Vec::with_capacity(entries.len());
        for (key, revision) in entries {
            let old = self.look(&session.keyspace, &key)?;
            if let Some(old) = old.filter(|old| old.is_live() && old.revision == revision) {
                let new = Stored::Tombstone(self.now);
                steps.push(Step {
                    key,
                    stamped: false,
                    new,
                    value: Value::new(),
                    old: Some(old),
                    previous: None,
                });
            }
        }
        if steps.is_empty() {
            return self.here();
        }
        self.apply(session, None, Some(label.to_owned()), steps, Vec::new())
    }

    fn correct(
        &mut self,
        session: &Arc<SessionState>,
        label: &'static str,
        entries: Vec<Late>,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let mut steps = Vec::with_capacity(entries.len());
        for (key, revision, due) in entries {
            let Some((old, value)) = self.look_at(&session.keyspace, &key, true)? else {
                continue;
            };
            if old.revision == revision && matches!(old.stored, Stored::Until(_)) {
                steps.push(Step {
                    key,
                    stamped: false,
                    new: Stored::Until(due),
                    value,
                    old: Some(old),
                    previous: None,
                });
            }
        }
        if steps.is_empty() {
            return self.here();
        }
        self.apply(session, None, Some(label.to_owned()), steps, Vec::new())
    }

    fn forget(
        &mut self,
        keyspace: &Arc<KeyspaceState>,
        tombstones: Vec<(Key, Revision)>,
        horizon: Revision,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let Some(id) = self.id(keyspace) else {
            return Ok(self.store.at(Revision(self.base)));
        };
        for (key, revision) in tombstones {
            let current = self.look(keyspace, &key)?;
            if let Some(head) = current.filter(|head| !head.is_live() && head.revision == revision)
            {
                self.delete(Table::Entries, &entry_key(id, &key));
                self.delete(Table::Index, &index_key(id, revision, &key));
                // The overlay has no word for "no row": a head that nothing matches stands for it in this group.
                self.overlay.insert((id, key.clone()), (head, Value::new()));
            }
            // Whatever the entry is by now, this row has done its work.
            self.delete(
                Table::Lifetimes,
                &LifetimeRow::Tombstone(id, revision, key).key(),
            );
        }
        self.put(
            Table::Meta,
            &layout::horizon_key(id),
            &layout::encode_revision(horizon),
        );
        // Ordering: before the write, so that who sees the tombstones gone in a snapshot finds the horizon raised.
        keyspace.raise_horizon(horizon);
        self.here()
    }

    pub(super) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.batch.put_cf(self.store.table(table), key, value);
        self.numbers += 1;
    }

    pub(super) fn delete(&mut self, table: Table, key: &[u8]) {
        self.batch.delete_cf(self.store.table(table), key);
        self.numbers += 1;
    }
}

/// Keyspaces that the mwDB dialect serves hold nothing that its frames cannot carry.
fn check_mwdb(batch: &Batch) -> Result<()> {
    for operation in &batch.operations {
        let what = match operation {
            Operation::PutStamped { .. } => "a stamped key could contain '#'",
            operation if operation.key().contains(&b'#') => "this key contains '#'",
            operation if operation.value().contains(&b'#') => "this value contains '#'",
            Operation::Put { .. } | Operation::Remove { .. } | Operation::Signal { .. } => continue,
        };
        let key = operation.key().escape_ascii();
        return Err(StorageError::invalid(format!(
            "key \"{key}\": {what}, which separates items for the mwDB clients of this keyspace"
        )));
    }
    Ok(())
}

/// Copies what a small commit changed out of the message it came in, which may be much larger (checks, another
/// commit's parts): the ring and the queues of watches keep these bytes, and count them.
fn compact(changes: &mut [Change], message_bytes: usize) {
    let of = |change: &Change| {
        change.key.len()
            + match &change.kind {
                ChangeKind::Put { value, .. } => value.len(),
                ChangeKind::Signalled { bytes } => bytes.len(),
                ChangeKind::Removed { .. } => 0,
            }
    };
    let bytes: usize = changes.iter().map(of).sum();
    if bytes > COMPACT_BYTES_MAX && bytes >= message_bytes / 2 {
        return;
    }
    changes.iter_mut().for_each(Change::detach);
}

fn lifetime_row(id: KeyspaceId, key: &Key, head: &Head) -> Option<LifetimeRow> {
    match head.stored {
        Stored::Forever => None,
        Stored::Until(due) => Some(LifetimeRow::Due(due, id, key.clone())),
        Stored::Session(session) => Some(LifetimeRow::Session(session, id, key.clone())),
        Stored::Tombstone(_) => Some(LifetimeRow::Tombstone(id, head.revision, key.clone())),
    }
}

fn commit_row(number: u64, keyspace: KeyspaceId, record: &CommitRecord) -> CommitRow {
    let mut signals = Vec::new();
    let mut previous = Vec::new();
    for (place, change) in (0u32..).zip(&record.changes) {
        match &change.kind {
            ChangeKind::Signalled { bytes } => {
                signals.push((place, change.key.clone(), bytes.clone()))
            }
            ChangeKind::Put {
                previous: Some(value),
                ..
            }
            | ChangeKind::Removed {
                previous: Some(value),
            } => {
                previous.push((place, value.clone()));
            }
            ChangeKind::Put { .. } | ChangeKind::Removed { .. } => {}
        }
    }
    CommitRow {
        number,
        keyspace,
        revision: record.revision,
        time: record.time,
        principal: record.principal.clone(),
        label: record.label.clone(),
        signals,
        previous,
        fingerprint: None,
    }
}

/// Puts work into the queue, for a handle of the session (0: for the engine itself).
///
/// # Errors
/// As [`Queue::push`].
pub(super) fn submit(
    queue: &Queue,
    session: &Arc<SessionState>,
    handle: u64,
    task: Task,
    bytes: usize,
) -> Result<oneshot::Receiver<Result<Position>>> {
    let (reply, answer) = oneshot::channel();
    queue.push(Work {
        session: session.clone(),
        handle,
        task,
        bytes,
        reply,
    })?;
    Ok(answer)
}
