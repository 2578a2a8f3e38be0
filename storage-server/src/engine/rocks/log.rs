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
    Change, ChangeKind, CommitRecord, Key, KeyState, Result, Revision, StorageError, UnixMillis,
    Value, planted,
};

use super::layout::{self, CommitRow, Damaged, KeyspaceId, Table};
use super::store::{Store, internal};
use crate::feed::page::Page;

/// How far before a position the log is asked, in turn, until the answer covers it: a group's numbers are few as a
/// rule, and a far look costs the reading of what lies between. `u64::MAX` asks for everything there is.
const LOOK_BACK: [u64; 5] = [0, 256, 16 * 1024, 1 << 20, u64::MAX];

/// How far before the log's end the last commit is looked for, in turn: what is not a commit takes few numbers, as a rule.
const LAST_COMMIT_LOOK_BACK: [u64; 3] = [64, 4096, 100_000];

/// Commits of all keyspaces, read from the log.
pub(super) type LogPage = Page<KeyspaceId>;

/// Reads the commits after `after`, of all keyspaces, until about `page_bytes` are read or the log ends. Blocks.
///
/// # Errors
/// [`StorageError::Compacted`] where the log does not reach back to `after`.
pub(super) fn read_after(store: &Store, after: Revision, page_bytes: usize) -> Result<LogPage> {
    if after >= store.revision() {
        return Ok(Page::new(after, after, Vec::new()));
    }
    let page = LogCursor::find(store, after)?.read(store, after, None, page_bytes)?;
    page.ok_or_else(|| hole(after, store.revision().0 + 1))
}

/// An open place in the log, from which it is read on without looking for it again.
///
/// It must not outlive the store. While it is open, its file stays on the disk even when it is purged.
pub(super) struct LogCursor {
    batches: DBWALIterator,
    /// A batch that was taken from them already.
    held: Option<(u64, WriteBatch)>,
    /// Everything up to here was read.
    at: Revision,
    /// Whether it was just opened: then a gap up to `known` is lost data, not merely the end of the iterator.
    is_fresh: bool,
    /// The store's last revision before it was opened.
    known: Revision,
}

impl LogCursor {
    /// The place of `after`, which must lie before the store's last revision. Reads a log file from its start. Blocks.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] where the log does not reach back to there.
    pub(super) fn find(store: &Store, after: Revision) -> Result<Self> {
        // Ordering: before it is opened. What is written afterwards it need not see, and misses nothing.
        let known = store.revision();
        let (batches, batch) = find(store, after)?;
        Ok(Self {
            batches,
            held: Some(batch),
            at: after,
            is_fresh: true,
            known,
        })
    }

    /// Where it stands.
    pub(super) fn at(&self) -> Revision {
        self.at
    }

    /// Reads the commits after `after`, which must not lie before [`LogCursor::at`] nor at the store's last revision, until
    /// about `page_bytes` are read, or `until` or the end is reached. `None`: it has come to its own end, since it sees
    /// nothing that was written after it got there; find the place anew. Blocks.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] where the log has a hole.
    pub(super) fn read(
        &mut self,
        store: &Store,
        after: Revision,
        until: Option<Revision>,
        page_bytes: usize,
    ) -> Result<Option<LogPage>> {
        let end = store.revision().min(until.unwrap_or(Revision(u64::MAX)));
        let mut reached = after;
        let mut commits = Vec::new();
        let mut bytes = 0;
        while bytes < page_bytes && reached < end {
            let Some((first, rows)) = self.next(reached)? else {
                break;
            };
            let count = rows.len() as u64;
            if count == 0 {
                // Recovery writes empty batches; the others follow each other without a gap.
                continue;
            }
            if first > reached.0 + 1 {
                if self.is_fresh {
                    return Err(hole(reached, first));
                }
                break;
            }
            self.at = Revision(first + count - 1);
            if self.at <= after {
                continue;
            }
            bytes += rows.size_in_bytes();
            let mut replay = Replay {
                number: first,
                after,
                commits: &mut commits,
                changes: Vec::new(),
                damage: None,
            };
            rows.iterate_cf(&mut replay);
            if let Some(damage) = replay.damage {
                return Err(damage.into());
            }
            if planted("resume-late") && reached == after && !commits.is_empty() {
                commits.remove(0);
            }
            if planted("resume-skips-group") && first <= after.0 {
                commits.clear();
            }
            reached = self.at;
        }
        self.is_fresh = false;
        Ok((reached > after).then(|| Page::new(after, reached, commits)))
    }

    fn next(&mut self, reached: Revision) -> Result<Option<(u64, WriteBatch)>> {
        let failed = |error| internal("read of the log", &error);
        let next = match self.held.take() {
            Some(held) => return Ok(Some(held)),
            None => self.batches.next(),
        };
        match next {
            Some(Ok(next)) => Ok(Some(next)),
            _ if !self.is_fresh || reached >= self.known => Ok(None),
            Some(Err(error)) => Err(failed(error)),
            None => {
                self.batches.status().map_err(failed)?;
                Err(hole(reached, self.known.0 + 1))
            }
        }
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

/// When the last commit was made, if the log's end tells. Blocks.
pub(super) fn last_time(store: &Store) -> Result<Option<UnixMillis>> {
    let last = store.revision();
    let oldest = oldest(store)?;
    for back in LAST_COMMIT_LOOK_BACK {
        let mut reached = Revision(last.0.saturating_sub(back)).max(oldest);
        let mut time = None;
        while reached < last {
            let page = read_after(store, reached, 4 << 20)?;
            reached = page.reached();
            let last = page.into_commits().pop();
            time = last.map(|(_, record)| record.time).or(time);
        }
        if time.is_some() {
            return Ok(time);
        }
    }
    Ok(None)
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
        if after.0 <= back {
            // That was all there is.
            break;
        }
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
    commits: &'a mut Vec<(KeyspaceId, Arc<CommitRecord>)>,
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
                    let record = Arc::new(record(row, changes)?);
                    self.commits.push((keyspace, record));
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

#[cfg(test)]
mod tests {
    use storage_protocol::{Keyspace, StorageExt};

    use super::*;
    use crate::engine::rocks::{EngineOptions, RocksEngine};

    #[tokio::test]
    async fn what_is_written_behind_a_place_just_found_is_no_hole() {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            ..EngineOptions::new(folder.path().join("data"))
        };
        let engine = RocksEngine::open(options).unwrap();
        let store = &engine.shared.store;
        let storage = engine.storage(&Keyspace::new("model").unwrap());
        let put = async |key: &'static str| {
            storage
                .put(key.into(), "value".into())
                .await
                .unwrap()
                .revision
        };
        put("a").await;
        let after = store.revision();
        let second = put("b").await;
        let mut cursor = LogCursor::find(store, after).unwrap();
        let third = put("c").await;
        let page = cursor.read(store, after, None, 1 << 20).unwrap().unwrap();
        assert_eq!(page.reached(), second);
        // It may see the third one or not; it does not take it for missing.
        let next = cursor.read(store, second, None, 1 << 20).unwrap();
        assert!(next.is_none_or(|page| page.reached() == third));
        // What it should have seen and does not is one.
        let mut cursor = LogCursor::find(store, second).unwrap();
        cursor.known = Revision(third.0 + 5);
        put("d").await;
        let missing = cursor.read(store, second, None, 1 << 20);
        assert!(matches!(missing, Err(StorageError::Compacted { .. })));
    }
}
