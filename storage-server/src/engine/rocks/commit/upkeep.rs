//! The writes that the engine itself asks for: it removes expired entries, corrects lifetimes and forgets tombstones.

use std::sync::Arc;

use storage_protocol::{Key, Position, Result, Revision, Value};

use super::group::Group;
use super::plan::Step;
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
                let new = Stored::Tombstone(self.now);
                steps.push(Step {
                    key,
                    versionstamped: false,
                    new,
                    value: Value::new(),
                    old: Some(old.head),
                    old_value_bytes: old.value_bytes,
                    previous: None,
                });
            }
        }
        if steps.is_empty() {
            return self.here();
        }
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
                steps.push(Step {
                    key,
                    versionstamped: false,
                    new: Stored::Until(due),
                    value: old.value,
                    old: Some(old.head),
                    old_value_bytes: old.value_bytes,
                    previous: None,
                });
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
            if let Some(head) = current.filter(|head| !head.is_live() && head.revision == revision)
            {
                self.delete(Table::Entries, &entry_key(id, &key));
                self.delete(Table::Index, &index_key(id, revision, &key));
                // The overlay cannot say "no row": in this group a head that matches nothing stands for it.
                self.overlay.insert((id, key.clone()), (head, Value::new()));
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
