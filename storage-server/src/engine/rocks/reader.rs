//! Reads: many keys at one revision, and the pages of scans.
//!
//! What is in memory is read on the caller's task; what would touch the disk goes to the read pool, so no read ever
//! blocks the runtime.
//!
//! Invariant: all keys of one get are read between two equal looks at the store's revision, or from a snapshot. There is
//! one writer, and RocksDB raises the revision after a write is readable, so an unchanged revision proves that every read
//! between was made at it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::DBPinnableSlice;
use storage_protocol::native::ValuesLength;
use storage_protocol::{
    Entry, Key, KeyRange, KeyState, Limit, Reading, Result, Revision, ScanItem, ScanOptions,
    StorageError, planted,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::layout::{self, Head, KeyspaceId, Table, entry_key, keyspace_end};
use super::store::{NotInMemory, Store, StoreSnapshot};
use crate::engine::Room;

/// Looks at the revision this often before it takes a snapshot instead.
const OPTIMISTIC_READS: u32 = 2;

/// What a get answers.
pub(super) type Entries = Reading<Vec<Option<Entry>>>;

/// Reads keys at one revision from memory alone; `None` where the store moved on too fast to prove it.
pub(super) fn get_in_memory(
    store: &Store,
    keyspace: KeyspaceId,
    keys: &[Key],
    room: &dyn Room,
) -> Result<Result<Option<Entries>>, NotInMemory> {
    for _ in 0..OPTIMISTIC_READS {
        let before = store.revision();
        let mut answer = Answer::new(store, before, keys.len(), room);
        for key in keys {
            if planted("get-at-two-revisions") {
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            let row = store.row_in_memory(Table::Entries, &entry_key(keyspace, key))?;
            if let Err(error) = row.and_then(|row| answer.push(row)) {
                return Ok(Err(error));
            }
        }
        if store.revision() == before || planted("get-at-two-revisions") {
            return Ok(Ok(Some(answer.finish(store))));
        }
    }
    Ok(Ok(None))
}

/// Reads keys at one revision, from disk where need be. Blocks.
pub(super) fn get(
    store: &Arc<Store>,
    keyspace: KeyspaceId,
    keys: &[Key],
    room: &dyn Room,
) -> Result<Entries> {
    let snapshot = StoreSnapshot::take(store.clone());
    let mut answer = Answer::new(store, snapshot.revision(), keys.len(), room);
    for key in keys {
        answer.push(snapshot.row(Table::Entries, &entry_key(keyspace, key))?)?;
    }
    Ok(answer.finish(store))
}

struct Answer<'a> {
    revision: Revision,
    entries: Vec<Option<Entry>>,
    length: ValuesLength,
    length_max: usize,
    room: &'a dyn Room,
    /// What was taken of the room, until the answer is complete.
    taken: usize,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.room.give_back(self.taken);
    }
}

impl<'a> Answer<'a> {
    fn new(store: &Store, revision: Revision, keys: usize, room: &'a dyn Room) -> Self {
        Self {
            revision,
            entries: Vec::with_capacity(keys),
            length: ValuesLength::new(revision, keys),
            length_max: store.options.limits.message_bytes_max,
            room,
            taken: 0,
        }
    }

    fn push(&mut self, row: Option<DBPinnableSlice<'_>>) -> Result<()> {
        let entry = match &row {
            None => None,
            Some(row) => {
                let (head, at) = layout::parse_entry_value(row)?;
                match layout::state(head, Bytes::new) {
                    KeyState::Live(entry) => Some((entry, &row[at..])),
                    KeyState::Removed(_) => None,
                }
            }
        };
        let Some((mut entry, value)) = entry else {
            self.length.add_absent();
            self.entries.push(None);
            return self.check_length();
        };
        let bytes = self.length.add(entry.revision, entry.lifetime, value.len());
        self.check_length()?;
        if !self.room.take(bytes) {
            return Err(no_room());
        }
        self.taken += bytes;
        entry.value = Bytes::copy_from_slice(value);
        self.entries.push(Some(entry));
        Ok(())
    }

    fn check_length(&self) -> Result<()> {
        let bytes = self.length.bytes();
        if bytes > self.length_max {
            return Err(StorageError::limit(Limit::Message, bytes, self.length_max));
        }
        Ok(())
    }

    fn finish(mut self, store: &Store) -> Entries {
        self.taken = 0;
        Reading {
            position: store.at(self.revision),
            value: std::mem::take(&mut self.entries),
        }
    }
}

/// What a read is told that found no [`Room`].
fn no_room() -> StorageError {
    StorageError::Overloaded {
        limit: Limit::Outbox,
        max: 0,
    }
}

/// What the index may tell a scan with `newer_than` to look at, in bytes of row keys. With more, the scan goes through its
/// whole range and leaves out what is older: that needs no memory.
const CHANGED_BYTES_MAX: usize = 8 << 20;

/// Where a scan stands: what it still has to read, on a snapshot that somebody else holds.
#[derive(Debug)]
pub(super) struct ScanCursor {
    /// Row keys: the next page lies in `start..end`.
    start: Vec<u8>,
    end: Vec<u8>,
    options: ScanOptions,
    /// Only entries newer than this, tombstones included.
    newer_than: Option<Revision>,
    /// The rows that are newer, in the scan's order, where the index told and they are not too many.
    changed: Option<VecDeque<Vec<u8>>>,
    /// Their place among those of all scans.
    changed_place: Option<OwnedSemaphorePermit>,
    left: u64,
    /// Nothing comes behind the page before.
    is_over: bool,
}

impl ScanCursor {
    pub(super) fn new(
        keyspace: KeyspaceId,
        range: &KeyRange,
        options: ScanOptions,
        newer_than: Option<Revision>,
    ) -> Self {
        let end = match &range.end {
            Some(end) => entry_key(keyspace, end),
            None => keyspace_end(Table::Entries, keyspace),
        };
        let start = entry_key(keyspace, &range.start);
        let end = end.max(start.clone());
        let left = options.limit.unwrap_or(u64::MAX);
        Self {
            start,
            end,
            options,
            newer_than,
            changed: None,
            changed_place: None,
            left,
            is_over: false,
        }
    }

    /// Whether it is known that nothing comes any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Asks the index which rows are newer, so that only those are looked at, if there is a place for them among those
    /// (in KiB) that all scans may keep. Blocks.
    pub(super) fn ask_index(
        &mut self,
        snapshot: &StoreSnapshot,
        keyspace: KeyspaceId,
        places: &Arc<Semaphore>,
    ) -> Result<()> {
        let Some(revision) = self.newer_than else {
            return Ok(());
        };
        let first = layout::index_key(keyspace, Revision(revision.0.saturating_add(1)), b"");
        let mut rows = snapshot.iterate(
            Table::Index,
            &first,
            &keyspace_end(Table::Index, keyspace),
            false,
        );
        let mut changed = Vec::new();
        let mut bytes = 0;
        while let Some(row_key) = rows.key() {
            let (_, key) = layout::parse_index_key(row_key)?;
            let row = entry_key(keyspace, key);
            if row >= self.start && row < self.end {
                bytes += row.len() + size_of::<Vec<u8>>();
                changed.push(row);
            }
            if bytes > CHANGED_BYTES_MAX {
                return Ok(());
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| super::store::internal("read of changes", &error))?;
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let Ok(place) = places.clone().try_acquire_many_owned(kib) else {
            return Ok(());
        };
        self.changed_place = Some(place);
        changed.sort_unstable();
        if self.options.reverse {
            changed.reverse();
        }
        self.changed = Some(changed.into());
        Ok(())
    }

    /// The next page; empty at the end. One that finds no room leaves the cursor where it is. Blocks.
    pub(super) fn next_page(
        &mut self,
        snapshot: &StoreSnapshot,
        page_bytes: usize,
        room: &dyn Room,
    ) -> Result<Vec<ScanItem>> {
        let mut page = Page {
            items: Vec::new(),
            bytes: 0,
            bytes_max: page_bytes,
            is_full: false,
            room,
        };
        if self.changed.is_some() {
            self.fill_from_changed(snapshot, &mut page)?;
        } else {
            self.fill_from_range(snapshot, &mut page)?;
        }
        if page.is_full && page.items.is_empty() {
            return Err(no_room());
        }
        self.is_over = !page.is_full;
        Ok(page.items)
    }

    fn fill_from_changed(&mut self, snapshot: &StoreSnapshot, page: &mut Page<'_>) -> Result<()> {
        while self.left > 0
            && let Some(row_key) = self.changed.as_mut().and_then(VecDeque::pop_front)
        {
            let Some(row) = snapshot.row(Table::Entries, &row_key)? else {
                continue;
            };
            if !self.offer(page, &row_key, &row)? {
                self.changed.get_or_insert_default().push_front(row_key);
                break;
            }
        }
        Ok(())
    }

    fn fill_from_range(&mut self, snapshot: &StoreSnapshot, page: &mut Page<'_>) -> Result<()> {
        let mut seen = None;
        let mut rows =
            snapshot.iterate(Table::Entries, &self.start, &self.end, self.options.reverse);
        while self.left > 0
            && let Some((row_key, row)) = rows.item()
            && self.offer(page, row_key, row)?
        {
            let seen = seen.get_or_insert_with(Vec::new);
            seen.clear();
            seen.extend_from_slice(row_key);
            if self.options.reverse {
                rows.prev();
            } else {
                rows.next();
            }
        }
        rows.status()
            .map_err(|error| super::store::internal("scan", &error))?;
        if let Some(seen) = seen {
            self.step_over(seen);
        }
        Ok(())
    }

    /// Puts a row into the page if the scan wants it; false where the page is full.
    fn offer(&mut self, page: &mut Page<'_>, row_key: &[u8], row: &[u8]) -> Result<bool> {
        let (head, at) = layout::parse_entry_value(row)?;
        let wanted = match self.newer_than {
            None => head.is_live(),
            Some(revision) => head.revision > revision,
        };
        if !wanted {
            return Ok(true);
        }
        let (_, key) = layout::parse_entry_key(row_key)?;
        let value = if self.options.keys_only {
            &[][..]
        } else {
            &row[at..]
        };
        let taken = page.push(key, head, value);
        self.left -= u64::from(taken);
        Ok(taken)
    }

    /// Takes a row that was dealt with out of what is left.
    fn step_over(&mut self, mut row_key: Vec<u8>) {
        if self.options.reverse {
            self.end = row_key;
        } else {
            row_key.push(0);
            self.start = row_key;
        }
    }
}

struct Page<'a> {
    items: Vec<ScanItem>,
    bytes: usize,
    bytes_max: usize,
    /// An item did not fit.
    is_full: bool,
    room: &'a dyn Room,
}

impl Page<'_> {
    /// False where it is full; an empty page takes any one item that there is room for.
    fn push(&mut self, key: &[u8], head: Head, value: &[u8]) -> bool {
        let size = key.len() + value.len() + 32;
        let fits = self.items.is_empty() || self.bytes + size <= self.bytes_max;
        if !fits || !self.room.take(size) {
            self.is_full = true;
            return false;
        }
        self.bytes += size;
        let state = layout::state(head, || Bytes::copy_from_slice(value));
        self.items.push(ScanItem {
            key: Bytes::copy_from_slice(key),
            state,
        });
        true
    }
}

/// Rows of the index that a page looks at, in its range or not: others wait for their pages.
const CHANGES_ROWS_MAX: usize = 64 * 1024;

/// Where a pass over what changed stands: index rows after `after`, on a snapshot that somebody else holds.
///
/// The order of the index is that of revisions, so a pass may go on with a newer snapshot where one on an older snapshot
/// ended: what changed in between stands behind.
#[derive(Clone, Debug)]
pub(super) struct ChangesCursor {
    keyspace: KeyspaceId,
    range: KeyRange,
    after: Vec<u8>,
    /// Everything before this revision was passed.
    reached: Revision,
    /// Tombstones up to here are not told.
    tombstones_after: Revision,
}

/// A page of a pass.
#[derive(Debug)]
pub(super) struct ChangesPage {
    /// In revision order; may be empty before the end.
    pub(super) items: Vec<ScanItem>,
    pub(super) bytes: usize,
    /// Whether it is the last.
    pub(super) is_last: bool,
}

impl ChangesCursor {
    /// What changed after `after` within `range`, and tombstones newer than `tombstones_after` only.
    pub(super) fn new(
        keyspace: KeyspaceId,
        range: KeyRange,
        after: Revision,
        tombstones_after: Revision,
    ) -> Self {
        let reached = Revision(after.0.saturating_add(1));
        let after = layout::index_key(keyspace, reached, b"");
        Self {
            keyspace,
            range,
            after,
            reached,
            tombstones_after,
        }
    }

    /// Begins the next page with this change, which an earlier one had.
    pub(super) fn go_back_to(&mut self, revision: Revision, key: &[u8]) {
        self.after = layout::index_key(self.keyspace, revision, key);
        self.reached = revision;
    }

    /// Tombstones up to here are not told.
    pub(super) fn tombstones_after(&self) -> Revision {
        self.tombstones_after
    }

    /// All tombstones that it has yet to pass are newer than this.
    pub(super) fn needs_tombstones_after(&self) -> Revision {
        let passed = Revision(self.reached.0.saturating_sub(1));
        passed.max(self.tombstones_after)
    }

    /// The next page in revision order. Blocks.
    pub(super) fn next_page(
        &mut self,
        snapshot: &StoreSnapshot,
        page_bytes: usize,
    ) -> Result<ChangesPage> {
        let mut items = Vec::new();
        let (mut bytes, mut looked_at) = (0, 0);
        let mut is_last = true;
        let end = keyspace_end(Table::Index, self.keyspace);
        let mut rows = snapshot.iterate(Table::Index, &self.after, &end, false);
        while let Some(row_key) = rows.key() {
            if bytes >= page_bytes || looked_at == CHANGES_ROWS_MAX {
                is_last = false;
                break;
            }
            looked_at += 1;
            let (revision, key) = layout::parse_index_key(row_key)?;
            if self.range.contains(key)
                && let Some(row) = snapshot.row(Table::Entries, &entry_key(self.keyspace, key))?
            {
                let (head, at) = layout::parse_entry_value(&row)?;
                let is_told = head.is_live()
                    || (revision > self.tombstones_after && !planted("latest-forgets-tombstones"));
                if head.revision == revision && is_told {
                    bytes += row.len() + key.len();
                    let state = layout::state(head, || Bytes::copy_from_slice(&row[at..]));
                    items.push(ScanItem {
                        key: Bytes::copy_from_slice(key),
                        state,
                    });
                }
            }
            self.reached = revision;
            self.after.clear();
            self.after.extend_from_slice(row_key);
            self.after.push(0);
            rows.next();
        }
        rows.status()
            .map_err(|error| super::store::internal("read of changes", &error))?;
        Ok(ChangesPage {
            items,
            bytes,
            is_last,
        })
    }
}
