//! The writes that the engine itself asks for: it removes expired entries, and parts that belong to no object; it corrects
//! lifetimes and forgets tombstones.

use std::sync::Arc;

use storage_protocol::objects::{Manifest, PartKey};
use storage_protocol::{Key, Position, Result, Revision, Value};

use super::group::{Found, Group, Overlaid};
use super::plan::Step;
use super::task::Sweep;
use crate::engine::rocks::clock::Late;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{LifetimeRow, Stored, Table, entry_key, index_key};
use crate::engine::rocks::sessions::SessionState;
use crate::engine::rocks::store::KeyspaceState;

impl Group<'_> {
    pub(super) fn remove(
        &mut self,
        session: &Arc<SessionState>,
        label: &'static str,
        entries: Vec<(Key, Revision)>,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let mut steps = Vec::with_capacity(entries.len());
        for (key, revision) in entries {
            let old = self.look_at(&session.keyspace, &key, false)?;
            let old = old.filter(|old| old.head.is_live() && old.head.revision == revision);
            if let Some(old) = old {
                // The parts go before the intent of a session, and there may be many. With the new revision that it gets
                // here the object cannot be shown any more, and from now on it is due, whatever becomes of the session.
                let is_intent = PartKey::parse(&key).is_some_and(|key| key.number.is_none());
                let new = match old.head.stored {
                    Stored::Session(_) if is_intent => Stored::Until(self.now),
                    _ => Stored::Tombstone(self.now),
                };
                steps.push(step(key, old, new, Value::new()));
            }
        }
        if steps.is_empty() {
            return self.here();
        }
        self.apply(session, None, Some(label.to_owned()), steps, Vec::new())
    }

    /// Removes parts and their intent, if this still has its revision. If the object is there all the same (somebody put
    /// the intent of a whole one), only the intent goes.
    pub(super) fn sweep(
        &mut self,
        session: &Arc<SessionState>,
        label: &'static str,
        sweep: Sweep,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let keyspace = &session.keyspace;
        let old = self.look_at(keyspace, &sweep.intent, false)?;
        let old = old.filter(|old| old.head.is_live() && old.head.revision == sweep.revision);
        let (Some(old), Some(intent)) = (old, PartKey::parse(&sweep.intent)) else {
            return self.here();
        };
        let object = self.look_at(keyspace, &intent.object, true)?;
        let names = |value: &[u8]| {
            Manifest::decode(value).is_ok_and(|found| found.is_some_and(|m| m.id == intent.id))
        };
        let is_whole = object.is_some_and(|object| object.head.is_live() && names(&object.value));
        let mut steps = Vec::with_capacity(sweep.parts.len() + 1);
        for key in sweep.parts.into_iter().filter(|_| !is_whole) {
            let old = self.look_at(keyspace, &key, false)?;
            if let Some(old) = old.filter(|old| old.head.is_live()) {
                let new = Stored::Tombstone(self.now);
                steps.push(step(key, old, new, Value::new()));
            }
        }
        let (new, value) = match sweep.next.filter(|_| !is_whole) {
            Some(next) => (Stored::Until(self.now), format!("{next:08x}").into()),
            None => (Stored::Tombstone(self.now), Value::new()),
        };
        steps.push(step(sweep.intent, old, new, value));
        self.apply(session, None, Some(label.to_owned()), steps, Vec::new())
    }

    pub(super) fn correct(
        &mut self,
        session: &Arc<SessionState>,
        label: &'static str,
        entries: Vec<Late>,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let mut steps = Vec::with_capacity(entries.len());
        for (key, revision, due) in entries {
            let Some(old) = self.look_at(&session.keyspace, &key, true)? else {
                continue;
            };
            if old.head.revision == revision && matches!(old.head.stored, Stored::Until(_)) {
                let value = old.value.clone();
                steps.push(step(key, old, Stored::Until(due), value));
            }
        }
        if steps.is_empty() {
            return self.here();
        }
        self.apply(session, None, Some(label.to_owned()), steps, Vec::new())
    }

    pub(super) fn forget(
        &mut self,
        keyspace: &Arc<KeyspaceState>,
        tombstones: Vec<(Key, Revision)>,
        compacted: Revision,
    ) -> Result<Position> {
        self.store.check_poison()?;
        let Some(id) = self.id(keyspace) else {
            return Ok(self.store.at(Revision(self.base)));
        };
        for (key, revision) in tombstones {
            let current = self.look(keyspace, &key)?;
            if current.is_some_and(|head| !head.is_live() && head.revision == revision) {
                let row_key = entry_key(id, &key);
                self.delete(Table::Entries, &row_key);
                self.delete(Table::Index, &index_key(id, revision, &key));
                self.overlay.insert(row_key, Overlaid::Gone);
            }
            // Whatever became of the entry, this row is not needed any more.
            self.delete(
                Table::Lifetimes,
                &LifetimeRow::Tombstone(id, revision, key).key(),
            );
        }
        self.put(
            Table::Meta,
            &layout::compacted_key(id),
            &layout::encode_revision(compacted),
        );
        // Ordering: before the write, so that a reader whose snapshot lacks the tombstones finds the compacted revision
        // raised.
        keyspace.raise_compacted(compacted);
        self.here()
    }
}

fn step(key: Key, old: Found, new: Stored, value: Value) -> Step {
    Step {
        key,
        versionstamped: false,
        new,
        value,
        old: Some(old.head),
        old_value_bytes: old.value_bytes,
        previous: None,
    }
}
