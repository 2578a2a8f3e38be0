//! What each keyspace holds, as it is known at the start: by its row, which the committer writes with each commit, or by
//! counting, once, where a version without such rows has written.

use std::time::{Duration, Instant};

use rocksdb::{WriteBatch, WriteOptions};
use storage_protocol::{Keyspace, Result, Revision};

use super::{Store, internal};
use crate::engine::Usage;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{KeyspaceId, Table, UsageRow};

/// A count that takes longer says so each time that this is over.
const TOLD_EVERY: Duration = Duration::from_secs(10);

impl Store {
    /// Finds out what each keyspace holds, before the committer runs. Where no row tells it, or the keyspace was changed
    /// since its row was written, its entries are counted, and it gets a row.
    ///
    /// # Errors
    /// A damaged row, or the database's.
    pub(crate) fn load_usage(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        for keyspace in self.keyspaces() {
            let Some(id) = keyspace.id() else {
                continue;
            };
            let row = self.row(Table::Meta, &layout::usage_key(id))?;
            let row = row.map(|row| UsageRow::decode(&row)).transpose()?;
            // What changed an entry left one at its revision, or a tombstone, unless that is forgotten.
            let changed = self.last_change(id)?.max(keyspace.compacted());
            let usage = match row {
                Some(row) if row.at >= changed => row.usage,
                _ => {
                    let usage = self.count_told(id, &keyspace.name)?;
                    let at = self.revision();
                    let row = UsageRow { usage, at }.encode();
                    batch.put_cf(self.table(Table::Meta), layout::usage_key(id), row);
                    usage
                }
            };
            keyspace.set_usage(usage);
        }
        if batch.is_empty() {
            return Ok(());
        }
        // Synced in every durability: `SYNCED` may name these sequence numbers a second later.
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        let written = self.db.write_opt(batch, &sync);
        written.map_err(|error| internal("write of counts", &error))
    }

    /// The revision of the newest entry or tombstone of a keyspace.
    fn last_change(&self, id: KeyspaceId) -> Result<Revision> {
        let start = layout::index_key(id, Revision::ZERO, b"");
        let end = layout::keyspace_end(Table::Index, id);
        let Some(last) = self.last_key(Table::Index, &start, &end)? else {
            return Ok(Revision::ZERO);
        };
        Ok(layout::parse_index_key(&last)?.0)
    }

    fn count_told(&self, id: KeyspaceId, name: &Keyspace) -> Result<Usage> {
        let (began, mut told) = (Instant::now(), Instant::now());
        let usage = self.count_entries(id, |so_far| {
            if told.elapsed() >= TOLD_EVERY {
                told = Instant::now();
                let Usage { entries, bytes } = so_far;
                tracing::info!(keyspace = %name, entries, bytes, "still counting what the keyspace holds");
            }
        })?;
        let Usage { entries, bytes } = usage;
        tracing::info!(
            keyspace = %name,
            entries,
            bytes,
            seconds = began.elapsed().as_secs(),
            "counted what the keyspace holds, since it was written by a version that did not"
        );
        Ok(usage)
    }

    /// Counts the entries of a keyspace, by reading all of them. `so_far` is called now and then. May wait for the disk.
    pub(crate) fn count_entries(
        &self,
        id: KeyspaceId,
        mut so_far: impl FnMut(Usage),
    ) -> Result<Usage> {
        let mut usage = Usage::default();
        let start = layout::entry_key(id, b"");
        let end = layout::keyspace_end(Table::Entries, id);
        let mut rows = self.iterate_beside_cache(Table::Entries, &start, Some(&end));
        while let Some((row, value)) = rows.item() {
            let (_, key) = layout::parse_entry_key(row)?;
            let (head, at) = layout::parse_entry_value(value)?;
            if head.is_live() {
                usage.entries += 1;
                usage.bytes += (key.len() + value.len() - at) as u64;
            }
            if usage.entries.is_multiple_of(1024) {
                so_far(usage);
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("count of entries", &error))?;
        Ok(usage)
    }
}
