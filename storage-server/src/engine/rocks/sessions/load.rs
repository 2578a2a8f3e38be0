//! Loads the sessions at the start of a store, and removes rows that belong to no session any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use storage_protocol::{Result, UnixMillis};

use super::Sessions;
use super::records::past;
use super::state::SessionState;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{SessionHorizon, SessionRow, Table};
use crate::engine::rocks::store::{Store, internal};

/// Loads the sessions at the start of a store, before its committer runs: each that has a row counts as lost now.
/// Removes what belongs to none: session rows of another epoch, and records of sessions without a row (which had
/// numbered their commits themselves, or whose end was cut short).
///
/// # Errors
/// A damaged row, or the database's.
pub(crate) fn load(store: &Store) -> Result<Sessions> {
    let now = store.now();
    let mut cleaner = Cleaner::new(store);
    let read = |key| -> Result<Option<UnixMillis>> {
        let row = store.row(Table::Meta, key)?;
        let horizon = row.map(|row| SessionHorizon::decode(&row)).transpose()?;
        let horizon = horizon.filter(|horizon| horizon.epoch == store.epoch());
        Ok(horizon.map(|horizon| horizon.opened))
    };
    let ended = read(layout::SESSION_ENDED_KEY)?.unwrap_or_default();
    let horizon = match read(layout::SESSION_HORIZON_KEY)? {
        Some(horizon) => horizon.max(ended),
        // Commits of another epoch may be lost, so an id without a row does not prove that it never committed.
        None => {
            cleaner.put_horizon(now);
            now
        }
    };
    let sessions = Sessions::new(horizon);
    sessions.ended.store(ended.0, Ordering::Release);
    {
        let mut registry = sessions.registry();
        let prefix = layout::SESSION_PREFIX;
        let mut rows = store.iterate_prefix(Table::Meta, prefix, prefix);
        while let Some((key, value)) = rows.item() {
            let id = layout::parse_session_row_key(key)?;
            let row = SessionRow::decode(value)?;
            if row.epoch == store.epoch() {
                let keyspace = store.keyspace(&row.keyspace);
                let state = Arc::new(SessionState::stored(id, row, keyspace));
                registry.insert(&state);
                registry.lose(&state, now);
            } else {
                cleaner.delete(Table::Meta, key)?;
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("read of sessions", &error))?;
        let mut records = store.iterate(Table::Commits, &[Table::Commits.tag()], None);
        while let Some(key) = records.key() {
            let id = layout::parse_session_key(key)?;
            if registry.states.contains_key(&id) {
                records.seek(past(&layout::session_records(id)));
                continue;
            }
            cleaner.delete(Table::Commits, key)?;
            records.next();
        }
        records
            .status()
            .map_err(|error| internal("read of sessions", &error))?;
    }
    cleaner.write()?;
    Ok(sessions)
}

/// Collects writes at the start, while there is no committer.
struct Cleaner<'a> {
    store: &'a Store,
    batch: rocksdb::WriteBatch,
}

impl<'a> Cleaner<'a> {
    fn new(store: &'a Store) -> Self {
        let batch = rocksdb::WriteBatch::default();
        Self { store, batch }
    }

    fn put_horizon(&mut self, opened: UnixMillis) {
        let epoch = self.store.epoch();
        self.batch.put_cf(
            self.store.table(Table::Meta),
            layout::SESSION_HORIZON_KEY,
            SessionHorizon { opened, epoch }.encode(),
        );
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.batch.delete_cf(self.store.table(table), key);
        if self.batch.len() >= 4096 {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        // Synced in every durability: `SYNCED` may name these sequence numbers a second later.
        let mut sync = rocksdb::WriteOptions::default();
        sync.set_sync(true);
        let written = self
            .store
            .db
            .write_opt(std::mem::take(&mut self.batch), &sync);
        written.map_err(|error| internal("clean-up of sessions", &error))
    }
}
