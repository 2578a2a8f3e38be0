//! The cursor of a scan, and how its pages are read. A cursor has no snapshot of its own: each page is read from the
//! one that the caller holds, so that all pages are at one revision.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use storage_protocol::{KeyRange, Result, Revision, ScanItem, ScanOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::no_room;
use crate::engine::Room;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{Head, KeyspaceId, Table, entry_key, keyspace_end};
use crate::engine::rocks::store::{StoreSnapshot, internal};

/// A scan with `newer_than` first asks the index which rows it needs; their keys may have this many bytes. With more,
/// it reads its whole range and leaves out what is older: that needs no memory.
const CHANGED_BYTES_MAX: usize = 8 << 20;

/// What a scan has yet to read, on a snapshot that the caller holds.
#[derive(Debug)]
pub(crate) struct ScanCursor {
    /// What is left of the ranges, as row keys from..to, rising and apart.
    ranges: VecDeque<(Vec<u8>, Vec<u8>)>,
    options: ScanOptions,
    /// Only entries newer than this, tombstones included.
    newer_than: Option<Revision>,
    /// The keys of the newer rows, in the scan's order, if the index was asked and they are not too many.
    changed: Option<VecDeque<Vec<u8>>>,
    /// The permit for their bytes, of those that all scans share.
    changed_place: Option<OwnedSemaphorePermit>,
    left: u64,
    /// The last page was read.
    is_over: bool,
}

impl ScanCursor {
    pub(crate) fn new(
        keyspace: KeyspaceId,
        ranges: &[KeyRange],
        options: ScanOptions,
        newer_than: Option<Revision>,
    ) -> Self {
        let rows = ranges.iter().map(|range| {
            let end = match &range.end {
                Some(end) => entry_key(keyspace, end),
                None => keyspace_end(Table::Entries, keyspace),
            };
            (entry_key(keyspace, &range.start), end)
        });
        let ranges = rows.filter(|(start, end)| start < end).collect();
        let left = options.limit.unwrap_or(u64::MAX);
        Self {
            ranges,
            options,
            newer_than,
            changed: None,
            changed_place: None,
            left,
            is_over: false,
        }
    }

    /// Whether it is known that nothing is left to read.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Asks the index which rows are newer, so that only those are read, if `places` has permits for their keys: one
    /// for each KiB, of those that all scans share. Blocks.
    pub(crate) fn ask_index(
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
            if self.is_within(&row) {
                bytes += row.len() + size_of::<Vec<u8>>();
                changed.push(row);
            }
            if bytes > CHANGED_BYTES_MAX {
                return Ok(());
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("read of changes", &error))?;
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        let Ok(place) = places.clone().try_acquire_many_owned(kib) else {
            return Ok(());
        };
        self.changed_place = Some(place);
        changed.sort_unstable();
        // A key that was put again may have a row for what it was before.
        changed.dedup();
        if self.options.reverse {
            changed.reverse();
        }
        self.changed = Some(changed.into());
        Ok(())
    }

    /// The next page; empty at the end. If the page finds no room, the cursor stays where it is. Blocks.
    pub(crate) fn next_page(
        &mut self,
        snapshot: &StoreSnapshot,
        page_bytes: usize,
        room: &dyn Room,
    ) -> Result<Vec<ScanItem>> {
        let mut page = ScanPage {
            items: Vec::new(),
            bytes: 0,
            bytes_max: page_bytes,
            is_full: false,
            room,
        };
        if self.changed.is_some() {
            self.fill_from_changed(snapshot, &mut page)?;
        } else {
            self.fill_from_ranges(snapshot, &mut page)?;
        }
        if page.is_full && page.items.is_empty() {
            return Err(no_room());
        }
        self.is_over = !page.is_full;
        Ok(page.items)
    }

    fn fill_from_changed(
        &mut self,
        snapshot: &StoreSnapshot,
        page: &mut ScanPage<'_>,
    ) -> Result<()> {
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

    fn is_within(&self, row: &[u8]) -> bool {
        let before = self
            .ranges
            .partition_point(|(start, _)| start.as_slice() <= row);
        let range = before.checked_sub(1).and_then(|at| self.ranges.get(at));
        range.is_some_and(|(_, end)| row < end.as_slice())
    }

    fn fill_from_ranges(
        &mut self,
        snapshot: &StoreSnapshot,
        page: &mut ScanPage<'_>,
    ) -> Result<()> {
        while self.left > 0
            && !page.is_full
            && let Some(range) = self.next_range()
        {
            self.fill_from_range(snapshot, range, page)?;
        }
        Ok(())
    }

    /// Takes out the range that the scan is in.
    fn next_range(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        match self.options.reverse {
            true => self.ranges.pop_back(),
            false => self.ranges.pop_front(),
        }
    }

    fn fill_from_range(
        &mut self,
        snapshot: &StoreSnapshot,
        (start, end): (Vec<u8>, Vec<u8>),
        page: &mut ScanPage<'_>,
    ) -> Result<()> {
        let mut seen = None;
        let mut rows = snapshot.iterate(Table::Entries, &start, &end, self.options.reverse);
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
        rows.status().map_err(|error| internal("scan", &error))?;
        if page.is_full {
            self.put_back((start, end), seen);
        }
        Ok(())
    }

    /// Puts a row into the page if the scan wants it; false where the page is full.
    fn offer(&mut self, page: &mut ScanPage<'_>, row_key: &[u8], row: &[u8]) -> Result<bool> {
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

    /// Puts back what is left of a range behind the last row that was dealt with.
    fn put_back(&mut self, (mut start, mut end): (Vec<u8>, Vec<u8>), seen: Option<Vec<u8>>) {
        if self.options.reverse {
            end = seen.unwrap_or(end);
            self.ranges.push_back((start, end));
        } else {
            if let Some(seen) = seen {
                start = seen;
                start.push(0);
            }
            self.ranges.push_front((start, end));
        }
    }
}

struct ScanPage<'a> {
    pub(super) items: Vec<ScanItem>,
    bytes: usize,
    bytes_max: usize,
    /// An item did not fit.
    is_full: bool,
    room: &'a dyn Room,
}

impl ScanPage<'_> {
    /// False if the page is full; an empty page takes any one item that there is room for.
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
