//! The change log for those who fell behind the ring: RocksDB's own WAL, read again.
//!
//! The WAL holds every commit once, as the rows that the committer wrote; each commit ends with its record row, whose
//! number in RocksDB's sequence is the commit's revision. What a reader must mind (each has a test): a position may lie
//! inside a group, and asking for it skips the whole group; purged files and holes are not errors; recovery writes empty
//! batches; the iterator's end is an end only if its status is good.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{DBWALIterator, WriteBatch, WriteBatchIteratorCf};
use storage_protocol::{
    Change, ChangeKind, CommitRecord, Key, KeyState, Result, Revision, StorageError, Value, planted,
};

use super::layout::{self, CommitRow, Damaged, KeyspaceId, Table};
use super::store::{Store, internal};

/// How far before a position the log is asked, in turn, until the answer covers it: a group's numbers are few as a
/// rule, and a far look costs the reading of what lies between. `u64::MAX` asks for everything there is.
const LOOK_BACK: [u64; 5] = [0, 256, 16 * 1024, 1 << 20, u64::MAX];

/// Commits read from the log.
#[derive(Debug, Default)]
pub(super) struct LogPage {
    pub(super) commits: Vec<(KeyspaceId, Arc<CommitRecord>)>,
    /// Everything up to here was read.
    pub(super) reached: Revision,
}

/// Reads the commits after `after`, of all keyspaces, until about `page_bytes` are read or the log ends. Blocks.
///
/// # Errors
/// [`StorageError::Compacted`] where the log does not reach back to `after`.
pub(super) fn read_after(store: &Store, after: Revision, page_bytes: usize) -> Result<LogPage> {
    let last = store.revision();
    let mut page = LogPage {
        commits: Vec::new(),
        reached: after,
    };
    if after >= last {
        return Ok(page);
    }
    let (mut batches, mut batch) = find(store, after)?;
    let mut bytes = 0;
    loop {
        let (first, rows) = batch;
        let count = rows.len() as u64;
        if count > 0 {
            // Recovery writes empty batches; the others follow each other without a gap.
            if first > page.reached.0 + 1 {
                return Err(hole(page.reached, first));
            }
            bytes += rows.size_in_bytes();
            let mut replay = Replay {
                number: first,
                after,
                page: &mut page,
                changes: Vec::new(),
                damage: None,
            };
            rows.iterate_cf(&mut replay);
            if let Some(damage) = replay.damage {
                return Err(damage.into());
            }
            if planted("resume-late") && page.reached == after && !page.commits.is_empty() {
                page.commits.remove(0);
            }
            if planted("resume-skips-group") && first <= after.0 {
                page.commits.clear();
            }
            page.reached = page.reached.max(Revision(first + count - 1));
        }
        if bytes >= page_bytes || page.reached >= last {
            return Ok(page);
        }
        batch = match batches.next() {
            Some(next) => next.map_err(|error| internal("read of the log", &error))?,
            None => {
                batches
                    .status()
                    .map_err(|error| internal("read of the log", &error))?;
                return Err(hole(page.reached, last.0 + 1));
            }
        };
    }
}

/// The oldest position that the log can be read from. Blocks.
pub(super) fn oldest(store: &Store) -> Result<Revision> {
    for batch in updates_since(store, 0)? {
        let (first, rows) = batch.map_err(|error| internal("read of the log", &error))?;
        if !rows.is_empty() {
            return Ok(Revision(first.saturating_sub(1)));
        }
    }
    Ok(store.revision())
}

/// The batches from the one that holds number `after + 1`.
fn find(store: &Store, after: Revision) -> Result<(DBWALIterator, (u64, WriteBatch))> {
    let mut oldest = store.revision();
    for back in LOOK_BACK {
        let mut batches = updates_since(store, after.0.saturating_sub(back))?;
        while let Some(batch) = batches.next() {
            let (first, rows) = batch.map_err(|error| internal("read of the log", &error))?;
            if rows.is_empty() {
                continue;
            }
            if first > after.0 + 1 {
                oldest = Revision(first - 1);
                break;
            }
            if first + rows.len() as u64 > after.0 + 1 {
                return Ok((batches, (first, rows)));
            }
        }
        batches
            .status()
            .map_err(|error| internal("read of the log", &error))?;
    }
    Err(StorageError::Compacted { oldest })
}

fn updates_since(store: &Store, number: u64) -> Result<DBWALIterator> {
    store
        .db
        .get_updates_since(number)
        .map_err(|error| internal("read of the log", &error))
}

fn hole(reached: Revision, next: u64) -> StorageError {
    tracing::warn!(
        reached = reached.0,
        next,
        "the log has a hole: history before it is given up"
    );
    StorageError::Compacted {
        oldest: Revision(next - 1),
    }
}

/// Puts commits together from the rows of a batch.
struct Replay<'a> {
    /// The number of the row at hand.
    number: u64,
    after: Revision,
    page: &'a mut LogPage,
    /// Of the commit at hand.
    changes: Vec<Change>,
    damage: Option<Damaged>,
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
            Some(tag) if *tag == Table::Sessions.tag() => {
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
                    self.page
                        .commits
                        .push((keyspace, Arc::new(record(row, changes)?)));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The record of a commit, from its row and the changes that the rows before it tell.
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
