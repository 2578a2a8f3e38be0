//! The cursor of a pass over the changes of a keyspace, in revision order, and how its pages are read.

use bytes::Bytes;
use storage_protocol::{KeyRange, Result, Revision, ScanItem};

use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{KeyspaceId, Table, entry_key, keyspace_end};
use crate::engine::rocks::store::{StoreSnapshot, internal};

/// Rows of the index that a page looks at, in its range or not: other reads wait for the pool meanwhile.
const CHANGES_ROWS_MAX: usize = 64 * 1024;

/// Where a pass over changes is: at the index rows after `after`, on a snapshot that the caller holds.
///
/// The order of the index is that of revisions, so a pass may go on over a newer snapshot from where it ended on an
/// older one: what changed in between comes later in the index.
#[derive(Clone, Debug)]
pub(crate) struct ChangesCursor {
    keyspace: KeyspaceId,
    range: KeyRange,
    after: Vec<u8>,
    /// Everything before this revision was passed.
    reached: Revision,
    /// Tombstones up to here are left out.
    tombstones_after: Revision,
}

/// A page of a pass.
#[derive(Debug)]
pub(crate) struct ChangesPage {
    /// In revision order; may be empty before the end.
    pub(crate) items: Vec<ScanItem>,
    pub(crate) bytes: usize,
    /// Whether it is the last.
    pub(crate) is_last: bool,
}

impl ChangesCursor {
    /// What changed after `after` within `range`; of tombstones only those newer than `tombstones_after`.
    pub(crate) fn new(
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

    /// Begins the next page with this change, which an earlier page had already.
    pub(crate) fn go_back_to(&mut self, revision: Revision, key: &[u8]) {
        self.after = layout::index_key(self.keyspace, revision, key);
        self.reached = revision;
    }

    /// Tombstones up to here are left out.
    pub(crate) fn tombstones_after(&self) -> Revision {
        self.tombstones_after
    }

    /// All tombstones that it has yet to return are newer than this.
    pub(crate) fn needs_tombstones_after(&self) -> Revision {
        let passed = Revision(self.reached.0.saturating_sub(1));
        passed.max(self.tombstones_after)
    }

    /// The next page in revision order. Blocks.
    pub(crate) fn next_page(
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
                let is_delivered = head.is_live() || revision > self.tombstones_after;
                if head.revision == revision && is_delivered {
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
            .map_err(|error| internal("read of changes", &error))?;
        Ok(ChangesPage {
            items,
            bytes,
            is_last,
        })
    }
}
