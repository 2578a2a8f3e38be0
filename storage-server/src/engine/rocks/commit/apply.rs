//! Turns a planned commit into the rows that it writes, and into the record that the feed gets.

use std::collections::HashSet;
use std::sync::Arc;

use storage_protocol::{
    Change, ChangeKind, CommitRecord, EntryLifetime, Key, Position, Result, Revision, StorageError,
};

use super::group::{Group, Overlaid, REPLACED_MAX};
use super::plan::{Signal, Step};
use super::replaced::Replaced;
use super::usage;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{
    CommitRow, Head, KeyspaceId, KeyspaceRow, LifetimeRow, Stored, Table, entry_key,
    write_entry_head, write_index_key,
};
use crate::engine::rocks::sessions::SessionState;
use crate::engine::rocks::store::{CachedEntry, KeyspaceState};
use crate::feed::FeedCommit;

/// A commit number as it is written.
#[derive(Clone, Copy)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) fingerprint: Option<u64>,
    /// The session has no row yet: it is written in the same batch.
    pub(super) unstored: bool,
}

impl Group<'_> {
    /// Puts a planned commit's rows into the batch.
    pub(super) fn apply(
        &mut self,
        session: &Arc<SessionState>,
        numbered: Option<Numbered>,
        label: Option<String>,
        mut steps: Vec<Step>,
        signals: Vec<Signal>,
    ) -> Result<Position> {
        let made = self.id(&session.keyspace).is_none();
        let unstored = numbered.is_some_and(|numbered| numbered.unstored);
        // A commit of signals alone changes nothing that is counted.
        let counts = !steps.is_empty();
        let counts_first = counts && !self.is_counted(&session.keyspace);
        let rows = steps
            .iter()
            .map(|step| step.rows(self.indexed()))
            .sum::<u64>()
            + u64::from(made)
            + u64::from(unstored)
            + u64::from(counts_first)
            + self.own_deletes(&steps)
            + 1;
        let revision = Revision(self.base + self.sequence_numbers + rows);
        self.fill_versionstamps(&session.keyspace, revision, &mut steps)?;
        let change = usage::Change::of(&steps);
        self.check_quotas(session, change)?;
        let id = match self.id(&session.keyspace) {
            Some(id) => id,
            None => self.make(&session.keyspace, revision),
        };
        if unstored {
            self.put_session_row(session);
        }
        let changes = self.write_steps(id, revision, steps, signals);
        if counts {
            self.count(&session.keyspace, id, change, revision);
        }
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
            Table::Commits,
            &layout::session_key(session.id, number),
            &row.encode(),
        );
        debug_assert_eq!(
            self.base + self.sequence_numbers,
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

    /// Completes the keys of versionstamped puts.
    fn fill_versionstamps(
        &mut self,
        keyspace: &KeyspaceState,
        revision: Revision,
        steps: &mut [Step],
    ) -> Result<()> {
        if !steps.iter().any(|step| step.versionstamped) {
            return Ok(());
        }
        let plain: HashSet<Key> = steps
            .iter()
            .filter(|step| !step.versionstamped)
            .map(|step| step.key.clone())
            .collect();
        for step in steps.iter_mut().filter(|step| step.versionstamped) {
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
            rules: keyspace.rules(),
            // Nothing in the keyspace is older than the commit that creates it.
            made: Revision(self.base + self.sequence_numbers),
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

    /// The commit's changes, with its signals at their offsets.
    fn write_steps(
        &mut self,
        id: KeyspaceId,
        revision: Revision,
        steps: Vec<Step>,
        signals: Vec<Signal>,
    ) -> Vec<Change> {
        let detach = is_detached(&steps, &signals, self.content);
        self.index_puts(id, revision, &steps);
        self.overlay.reserve(steps.len());
        let mut changes = Vec::with_capacity(steps.len() + signals.len());
        let mut signals = signals.into_iter().peekable();
        let mut steps = steps.into_iter();
        // Both are in the order of their offsets; the offset of a signal counts everything before it, signals included.
        loop {
            if let Some((_, key, bytes)) = signals.next_if(|(place, _, _)| *place <= changes.len())
            {
                let kind = ChangeKind::Signalled { bytes };
                let mut change = Change { key, kind };
                if detach {
                    change.detach();
                }
                changes.push(change);
            } else if let Some(step) = steps.next() {
                changes.push(self.write_step(id, revision, step, detach));
            } else {
                return changes;
            }
        }
    }

    /// How many rows of the index a commit deletes itself: all that it replaces, if that is much, so that nobody else's
    /// commit has to wait for it later.
    fn own_deletes(&self, steps: &[Step]) -> u64 {
        match self.indexed() && steps.len() > REPLACED_MAX {
            true => steps.iter().filter(|step| step.old.is_some()).count() as u64,
            false => 0,
        }
    }

    /// The commit's rows in the index, in their order: each is put where the last one was. What a small commit replaces
    /// stays for now, so that between two commits no other place has to be looked for.
    fn index_puts(&mut self, id: KeyspaceId, revision: Revision, steps: &[Step]) {
        if !self.indexed() {
            return;
        }
        let mut keys: Vec<_> = steps.iter().map(|step| &step.key[..]).collect();
        keys.sort_unstable();
        let mut row_key = std::mem::take(&mut self.row_key);
        for key in keys {
            row_key.clear();
            write_index_key(&mut row_key, id, revision, key);
            self.put(Table::Index, &row_key, &[]);
        }
        self.row_key = row_key;
        let replaced = steps.iter().filter_map(|step| Some((step.old?, &step.key)));
        if steps.len() <= REPLACED_MAX {
            for (old, key) in replaced {
                self.replaced.push(id, old.revision, key);
            }
            return;
        }
        let mut own = Replaced::default();
        for (old, key) in replaced {
            own.push(id, old.revision, key);
        }
        self.delete_all(&mut own);
    }

    fn delete_all(&mut self, replaced: &mut Replaced) {
        for row_key in replaced.sorted() {
            self.delete(Table::Index, row_key);
        }
    }

    fn write_step(
        &mut self,
        id: KeyspaceId,
        revision: Revision,
        step: Step,
        detach: bool,
    ) -> Change {
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
        let row_key = entry_key(id, &key);
        let mut row_head = std::mem::take(&mut self.head);
        write_entry_head(&mut row_head, &head);
        let cache = &self.store.entry_cache;
        let row = self.put_parts(Table::Entries, &row_key, &[&row_head, &value]);
        let overlaid = match cache.keeps(value.len()) {
            true => Overlaid::Entry(CachedEntry::Row(row.into())),
            false => Overlaid::Large {
                head,
                value: value.clone(),
            },
        };
        self.overlay.insert(row_key, overlaid);
        self.head = row_head;
        if let Some(row) = lifetime_row(id, &key, &head) {
            self.put(
                Table::Lifetimes,
                &row.key(),
                &layout::encode_revision(revision),
            );
        }
        if let Some(old) = old {
            match lifetime_row(id, &key, &old) {
                // The same row was just put (a session's key put again), and a delete would remove it. But its sequence
                // number was counted in advance, so a row must take it.
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
        let kind = match lifetime {
            None => ChangeKind::Removed { previous },
            Some(lifetime) => ChangeKind::Put {
                value,
                lifetime,
                previous,
            },
        };
        let mut change = Change { key, kind };
        if detach {
            change.detach();
        }
        change
    }

    /// Deletes the rows of the index that commits before have replaced. In their order, since a place that is near the
    /// last one is found sooner. Nothing once the store is poisoned.
    pub(super) fn delete_replaced(&mut self) {
        if self.store.check_poison().is_err() {
            return;
        }
        let mut replaced = std::mem::take(&mut self.replaced);
        self.delete_all(&mut replaced);
        replaced.clear();
        self.replaced = replaced;
    }
}

/// Whether the changes of a commit are copied out of the memory that the keys and values of all its operations lie in
/// (see [`compact`](super::compact)), of which they may be little: to remove what is not there changes nothing. The ring
/// and the queues of watches keep what is changed, and count no more than that.
fn is_detached(steps: &[Step], signals: &[Signal], content: usize) -> bool {
    let steps = steps.iter().map(|step| step.key.len() + step.value.len());
    let signals = signals
        .iter()
        .map(|(_, key, bytes)| key.len() + bytes.len());
    let bytes: usize = steps.chain(signals).sum();
    bytes < content / 2
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
