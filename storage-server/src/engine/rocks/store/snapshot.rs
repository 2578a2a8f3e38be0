//! A view of the store at one revision.

use std::sync::Arc;

use rocksdb::{DBPinnableSlice, DBRawIterator, ReadOptions, SnapshotWithThreadMode};
use storage_protocol::{Result, Revision};

use super::{Store, internal};
use crate::engine::rocks::layout::Table;

/// A view of the store at one revision that owns its store, so that it can be kept between pages.
mod owned {
    #![allow(
        missing_debug_implementations,
        unreachable_pub,
        clippy::allow_attributes,
        clippy::mem_forget,
        reason = "what the macro generates"
    )]
    use super::{Arc, SnapshotWithThreadMode, Store};
    type Snapshot<'a> = SnapshotWithThreadMode<'a, rocksdb::DB>;
    self_cell::self_cell! {
        pub(crate) struct StoreSnapshot {
            owner: Arc<Store>,
            #[covariant]
            dependent: Snapshot,
        }
    }
}

pub(crate) use owned::StoreSnapshot;

impl StoreSnapshot {
    pub(crate) fn take(store: Arc<Store>) -> Self {
        Self::new(store, |store| store.db.snapshot())
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision(self.borrow_dependent().sequence_number())
    }

    /// Rows of a table in `start..end` at this revision, in order or in reverse.
    pub(crate) fn iterate(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        reverse: bool,
    ) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = self
            .borrow_dependent()
            .raw_iterator_cf_opt(self.borrow_owner().table(table), options);
        if reverse {
            rows.seek_to_last();
        } else {
            rows.seek_to_first();
        }
        rows
    }

    pub(crate) fn row(&self, table: Table, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>> {
        self.borrow_dependent()
            .get_pinned_cf(self.borrow_owner().table(table), key)
            .map_err(|error| internal("read", &error))
    }
}
