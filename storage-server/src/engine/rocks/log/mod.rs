//! The change log for watches that fell behind the ring: RocksDB's own write-ahead log (WAL), read back.
//!
//! The WAL holds every commit once, as the rows that the committer wrote; each commit ends with its record row, whose
//! sequence number in RocksDB is the commit's revision. RocksDB's interface has four traps (each has a test): a
//! position may lie inside a group of commits, and asking for it skips the whole group; purged files and holes are not
//! reported as errors; recovery writes empty batches; the iterator's end is an end only if its status is good.

pub(crate) mod catch_up;
mod replay;

use rocksdb::{DBWALIterator, WriteBatch};
use storage_protocol::{Result, Revision, StorageError, UnixMillis};

pub(crate) use self::catch_up::CatchUp;
use self::replay::Replay;
use crate::engine::rocks::layout::KeyspaceId;
use crate::engine::rocks::store::{Store, internal};
use crate::feed::page::CommitPage;

/// How many sequence numbers before a position the log is read from, in turn, until the answer covers the position: a
/// group has few numbers as a rule, and what lies between must be read. `u64::MAX` reads everything there is.
const LOOK_BACK: [u64; 5] = [0, 256, 16 * 1024, 1 << 20, u64::MAX];

/// How many sequence numbers before the log's end the last commit is looked for, in turn: rows that belong to no commit
/// take few numbers, as a rule.
const LAST_COMMIT_LOOK_BACK: [u64; 3] = [64, 4096, 100_000];

/// Commits of all keyspaces, read from the log.
pub(crate) type LogPage = CommitPage<KeyspaceId>;

/// Reads the commits after `after`, of all keyspaces, until about `page_bytes` are read or the log ends. Blocks.
///
/// # Errors
/// [`StorageError::Compacted`] where the log does not reach back to `after`.
pub(crate) fn read_after(store: &Store, after: Revision, page_bytes: usize) -> Result<LogPage> {
    if after >= store.revision() {
        return Ok(CommitPage::new(after, after, Vec::new()));
    }
    let page = LogCursor::find(store, after)?.read(store, after, None, page_bytes)?;
    page.ok_or_else(|| hole(after, store.revision().0 + 1))
}

/// An open position in the log, from which it is read on without finding the position again.
///
/// It must not outlive the store. While it is open, its file stays on the disk even when it is purged.
pub(crate) struct LogCursor {
    batches: DBWALIterator,
    /// A batch that was taken from `batches` already.
    held: Option<(u64, WriteBatch)>,
    /// Everything up to here was read.
    at: Revision,
    /// Whether it was just opened: then a gap up to `known` is lost data, not merely the end of the iterator.
    is_fresh: bool,
    /// The store's last revision before it was opened.
    known: Revision,
}

impl LogCursor {
    /// Opens a cursor at `after`, which must lie before the store's last revision. Reads a log file from its start.
    /// Blocks.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] where the log does not reach back to there.
    pub(crate) fn find(store: &Store, after: Revision) -> Result<Self> {
        // Ordering: before it is opened. What is written afterwards the iterator need not see.
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

    /// Everything up to here was read.
    pub(crate) fn at(&self) -> Revision {
        self.at
    }

    /// Reads the commits after `after`, which must not lie before [`LogCursor::at`] nor at the store's last revision,
    /// until about `page_bytes` are read, or `until` or the end is reached. `None`: the iterator was at its end before,
    /// and sees nothing that was written since; open a new cursor. Blocks.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] where the log has a hole.
    pub(crate) fn read(
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
                // Recovery writes empty batches. The sequence numbers of the others are without a gap.
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
            reached = self.at;
        }
        self.is_fresh = false;
        Ok((reached > after).then(|| CommitPage::new(after, reached, commits)))
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
pub(crate) fn oldest(store: &Store) -> Result<Revision> {
    for batch in updates_since(store, 0)? {
        let (first, rows) = batch.map_err(|error| internal("read of the log", &error))?;
        if !rows.is_empty() {
            return Ok(Revision(first.saturating_sub(1)));
        }
    }
    Ok(store.revision())
}

/// The time of the last commit, if it is found near the log's end. Blocks.
pub(crate) fn last_time(store: &Store) -> Result<Option<UnixMillis>> {
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

/// The batches from the one that holds the sequence number `after + 1`.
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
            // This was everything there is.
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
