//! From the rows of a batch in the log back to commits.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::WriteBatchIteratorCf;
use storage_protocol::{Change, ChangeKind, CommitRecord, Key, KeyState, Result, Revision, Value};

use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{CommitRow, Damaged, KeyspaceId, Table};

/// Rebuilds commits from the rows of a batch.
pub(super) struct Replay<'a> {
    /// The sequence number of the row at hand.
    pub(super) number: u64,
    pub(super) after: Revision,
    pub(super) commits: &'a mut Vec<(KeyspaceId, Arc<CommitRecord>)>,
    /// Of the commit at hand.
    pub(super) changes: Vec<Change>,
    pub(super) damage: Option<Damaged>,
}

impl Replay<'_> {
    fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Damaged> {
        match key.first() {
            Some(tag) if *tag == Table::Entries.tag() => {
                let (_, key) = layout::parse_entry_key(key)?;
                let (head, at) = layout::parse_entry_value(value)?;
                let kind = match layout::state(head, || Bytes::copy_from_slice(&value[at..])) {
                    KeyState::Live(entry) => ChangeKind::Put {
                        value: entry.value,
                        lifetime: entry.lifetime,
                        previous: None,
                    },
                    KeyState::Removed(_) => ChangeKind::Removed { previous: None },
                };
                self.changes.push(Change {
                    key: Key::copy_from_slice(key),
                    kind,
                });
            }
            Some(tag) if *tag == Table::Commits.tag() => {
                let row = CommitRow::decode(value)?;
                let changes = std::mem::take(&mut self.changes);
                if row.revision.0 != self.number {
                    return Err(Damaged {
                        table: "sessions",
                        what: "a record whose revision is not its number",
                    });
                }
                if row.revision > self.after {
                    let keyspace = row.keyspace;
                    let record = Arc::new(record(row, changes)?);
                    self.commits.push((keyspace, record));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The record of a commit, from its row and the changes that the rows before it hold.
fn record(row: CommitRow, mut changes: Vec<Change>) -> Result<CommitRecord, Damaged> {
    let place_of = |place: u32, length: usize| {
        let place = usize::try_from(place).ok().filter(|place| *place <= length);
        place.ok_or(Damaged {
            table: "sessions",
            what: "a place beyond the changes",
        })
    };
    if !row.signals.is_empty() {
        let mut stored = std::mem::take(&mut changes).into_iter();
        for (place, key, bytes) in row.signals {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            changes.extend(stored.by_ref().take(place.saturating_sub(changes.len())));
            place_of(u32::try_from(place).unwrap_or(u32::MAX), changes.len())?;
            changes.push(Change {
                key,
                kind: ChangeKind::Signalled { bytes },
            });
        }
        changes.extend(stored);
    }
    for (place, value) in row.previous {
        let place = place_of(place, changes.len())?;
        set_previous(changes.get_mut(place), value)?;
    }
    Ok(CommitRecord::new(
        row.revision,
        row.time,
        row.label,
        row.principal,
        changes,
    ))
}

fn set_previous(change: Option<&mut Change>, value: Value) -> Result<(), Damaged> {
    match change.map(|change| &mut change.kind) {
        Some(ChangeKind::Put { previous, .. } | ChangeKind::Removed { previous }) => {
            *previous = Some(value);
            Ok(())
        }
        _ => Err(Damaged {
            table: "sessions",
            what: "a value before of no change",
        }),
    }
}

impl WriteBatchIteratorCf for Replay<'_> {
    fn put_cf(&mut self, _table: u32, key: &[u8], value: &[u8]) {
        if self.damage.is_none() {
            self.damage = self.row(key, value).err();
        }
        self.number += 1;
    }

    fn delete_cf(&mut self, _table: u32, _key: &[u8]) {
        self.number += 1;
    }

    fn merge_cf(&mut self, _table: u32, _key: &[u8], _value: &[u8]) {
        self.number += 1;
    }
}
