//! The opened database and what is known of it in memory: tables, keyspaces, epochs, the clock, the poison.
//!
//! Everything else of the engine holds an `Arc<Store>`. Rows are read here by table; they are written by the committer
//! alone.

mod entry_cache;
mod keyspaces;
mod row_batch;
mod snapshot;
mod usage;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use rocksdb::{ColumnFamily, DB, DBPinnableSlice, DBRawIterator, ReadOptions, ReadTier};
use storage_protocol::{
    Epoch, Keyspace, Outcome, Position, Result, Revision, StorageError, UnixMillis,
};

pub(crate) use self::entry_cache::{CachedEntry, EntryCache, Place};
pub(crate) use self::keyspaces::KeyspaceState;
use self::keyspaces::Keyspaces;
pub(crate) use self::row_batch::{RowBatch, RowHeads};
pub(crate) use self::snapshot::StoreSnapshot;
use crate::engine::rocks::clock::Clock;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{Damaged, KeyspaceRow, Table};
use crate::engine::rocks::open::{OpenError, Opened};
use crate::engine::rocks::options::EngineOptions;

pub(crate) struct Store {
    pub(crate) db: DB,
    pub(crate) options: EngineOptions,
    /// How rows of each table begin in a batch.
    pub(crate) row_heads: RowHeads,
    /// All histories, oldest first. Fixed while the store is open.
    epochs: Vec<(Epoch, Revision)>,
    keyspaces: RwLock<Keyspaces>,
    pub(crate) entry_cache: EntryCache,
    /// Read without blocking: what is in memory.
    cached: ReadOptions,
    /// Read wherever it is.
    any: ReadOptions,
    pub(crate) clock: Clock,
    poison: Poison,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("data", &self.options.data)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Poison {
    set: AtomicBool,
    reason: Mutex<String>,
}

/// The entry cache takes this part of the memory budget.
const ENTRY_CACHE_PART: usize = 4;

/// A read that would have to wait for the disk.
#[derive(Debug)]
pub(crate) struct NotInMemory;

impl Store {
    pub(crate) fn new(opened: Opened, options: EngineOptions) -> Result<Self, OpenError> {
        let Opened {
            db, epochs, mark, ..
        } = opened;
        let mut cached = ReadOptions::default();
        cached.set_read_tier(ReadTier::BlockCache);
        let store = Self {
            row_heads: RowHeads::of(&db),
            db,
            epochs,
            keyspaces: RwLock::default(),
            entry_cache: EntryCache::new(options.memory_bytes / ENTRY_CACHE_PART),
            cached,
            any: ReadOptions::default(),
            clock: Clock::new(options.clock.clone(), mark.time),
            poison: Poison::default(),
            options,
        };
        store.load_keyspaces()?;
        Ok(store)
    }

    fn load_keyspaces(&self) -> Result<(), OpenError> {
        let damaged = |error: &dyn std::error::Error| OpenError::Damaged {
            path: self.options.data.clone(),
            message: error.to_string(),
        };
        let mut rows = self.iterate(Table::Meta, layout::KEYSPACE_PREFIX, None);
        while let Some((key, value)) = rows.item() {
            let Some(name) = key.strip_prefix(layout::KEYSPACE_PREFIX) else {
                break;
            };
            let row = KeyspaceRow::decode(value).map_err(|error| damaged(&error))?;
            let name = String::from_utf8_lossy(name);
            let state = self.keyspace(&Keyspace::new(&name).map_err(|error| damaged(&error))?);
            state.set_row(row);
            if let Some(compacted) = self
                .db
                .get_cf(self.table(Table::Meta), layout::compacted_key(row.id))
                .map_err(|error| damaged(&error))?
            {
                state.raise_compacted(
                    layout::decode_revision(&compacted).map_err(|error| damaged(&error))?,
                );
            }
            rows.next();
        }
        rows.status().map_err(|error| damaged(&error))
    }

    pub(crate) fn table(&self, table: Table) -> &ColumnFamily {
        self.db
            .cf_handle(table.name())
            .expect("every table was opened with the store")
    }

    /// The state of a keyspace, made in memory where there is none yet.
    pub(crate) fn keyspace(&self, name: &Keyspace) -> Arc<KeyspaceState> {
        self.known_keyspace(name).unwrap_or_else(|| {
            let mut keyspaces = self
                .keyspaces
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let fresh = || KeyspaceState {
                name: name.clone(),
                row: OnceLock::new(),
                rules_to_be: self
                    .options
                    .keyspaces
                    .get(name)
                    .copied()
                    .unwrap_or_default(),
                compacted: AtomicU64::new(0),
                usage: Mutex::default(),
            };
            keyspaces.sweep();
            keyspaces
                .by_name
                .entry(name.clone())
                .or_insert_with(|| Arc::new(fresh()))
                .clone()
        })
    }

    /// Whether this keyspace exists.
    pub(crate) fn has_keyspace(&self, name: &Keyspace) -> bool {
        let state = self.known_keyspace(name);
        state.is_some_and(|state| state.row().is_some())
    }

    /// The state of a keyspace that exists, or that somebody names.
    pub(crate) fn known_keyspace(&self, name: &Keyspace) -> Option<Arc<KeyspaceState>> {
        let keyspaces = self
            .keyspaces
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        keyspaces.by_name.get(name).cloned()
    }

    /// All keyspaces that exist, and some that are or were named.
    pub(crate) fn keyspaces(&self) -> Vec<Arc<KeyspaceState>> {
        self.keyspaces
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .by_name
            .values()
            .cloned()
            .collect()
    }

    /// The last commit that is durable and readable.
    ///
    /// RocksDB raises this number after a (synced) write went into the memtable, so what it names can be read.
    pub(crate) fn revision(&self) -> Revision {
        Revision(self.db.latest_sequence_number())
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epochs
            .last()
            .map(|(epoch, _)| *epoch)
            .unwrap_or_default()
    }

    pub(crate) fn at(&self, revision: Revision) -> Position {
        Position {
            epoch: self.epoch(),
            revision,
        }
    }

    pub(crate) fn position(&self) -> Position {
        self.at(self.revision())
    }

    /// The revision of a position, if it lies in this store's history.
    pub(crate) fn resolve(&self, position: Position) -> Result<Revision> {
        let changed = |fork| StorageError::EpochChanged {
            epoch: self.epoch(),
            fork,
        };
        let Some(place) = self
            .epochs
            .iter()
            .position(|(epoch, _)| *epoch == position.epoch)
        else {
            return Err(changed(Revision::ZERO));
        };
        let forks = self.epochs.iter().skip(place + 1).map(|(_, fork)| *fork);
        if let Some(fork) = forks.min()
            && position.revision > fork
        {
            return Err(changed(fork));
        }
        let last = self.revision();
        if position.revision > last {
            return Err(StorageError::invalid(format!(
                "position {position} is beyond the store's last revision {last}"
            )));
        }
        Ok(position.revision)
    }

    pub(crate) fn now(&self) -> UnixMillis {
        self.clock.now()
    }

    /// Refuses writes from here on; the first reason stays.
    pub(crate) fn poison(&self, reason: &str) {
        let mut kept = self
            .poison
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !self.poison.set.swap(true, Ordering::SeqCst) {
            tracing::error!(
                reason,
                "a write failed: the store takes no more until it is reopened"
            );
            *kept = reason.to_owned();
        }
    }

    /// # Errors
    /// [`StorageError::ReadOnly`] once poisoned.
    pub(crate) fn check_poison(&self) -> Result<()> {
        if !self.poison.set.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = self
            .poison
            .reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Err(StorageError::ReadOnly { reason })
    }

    /// A row, if it is in memory.
    pub(crate) fn row_in_memory(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Result<Option<DBPinnableSlice<'_>>>, NotInMemory> {
        match self
            .db
            .get_pinned_cf_opt(self.table(table), key, &self.cached)
        {
            Err(error) if error.kind() == rocksdb::ErrorKind::Incomplete => Err(NotInMemory),
            read => Ok(read.map_err(|error| internal("read", &error))),
        }
    }

    /// A row, wherever it is: may wait for the disk.
    pub(crate) fn row(&self, table: Table, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>> {
        self.db
            .get_pinned_cf_opt(self.table(table), key, &self.any)
            .map_err(|error| internal("read", &error))
    }

    /// Rows that begin with `prefix`, from `start`. May wait for the disk.
    pub(crate) fn iterate_prefix(
        &self,
        table: Table,
        prefix: &[u8],
        start: &[u8],
    ) -> DBRawIterator<'_> {
        let end = storage_protocol::KeyRange::prefix(prefix.to_vec()).end;
        self.iterate(table, start, end.as_deref())
    }

    /// Rows from `start`, up to and without `end`. May wait for the disk.
    pub(crate) fn iterate(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> DBRawIterator<'_> {
        self.iterate_with(ReadOptions::default(), table, start, end)
    }

    /// The same, for what is read once and by nobody else: it takes no room in the cache.
    pub(crate) fn iterate_beside_cache(
        &self,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        self.iterate_with(options, table, start, end)
    }

    /// The key of the last row in `start..end`. May wait for the disk.
    fn last_key(&self, table: Table, start: &[u8], end: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = self.db.raw_iterator_cf_opt(self.table(table), options);
        rows.seek_to_last();
        rows.status().map_err(|error| internal("read", &error))?;
        Ok(rows.key().map(<[u8]>::to_vec))
    }

    fn iterate_with(
        &self,
        mut options: ReadOptions,
        table: Table,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> DBRawIterator<'_> {
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mut rows = self.db.raw_iterator_cf_opt(self.table(table), options);
        rows.seek(start);
        rows
    }
}

/// An error of RocksDB on a read: logged here, where it is consumed; the caller gets a text without paths.
pub(crate) fn internal(action: &str, error: &(dyn std::error::Error + 'static)) -> StorageError {
    let rocksdb = error.downcast_ref::<rocksdb::Error>();
    if rocksdb.is_some_and(|error| error.kind() == rocksdb::ErrorKind::TryAgain) {
        // The reader of the log stood at a file's end while the next one was begun: it is asked again.
        tracing::debug!(%error, "{action} has to be repeated");
    } else {
        tracing::error!(%error, "{action} failed");
    }
    StorageError::Internal {
        message: format!("{action} failed"),
        outcome: Outcome::NotExecuted,
    }
}

impl From<Damaged> for StorageError {
    fn from(damaged: Damaged) -> Self {
        internal("read", &damaged)
    }
}
