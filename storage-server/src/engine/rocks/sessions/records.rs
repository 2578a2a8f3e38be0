//! Reads the records of a session's commits from the database.

use std::sync::atomic::Ordering;

use storage_protocol::{Result, SessionId};

use super::state::SessionState;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{CommitRow, Table};
use crate::engine::rocks::store::{Store, internal};

/// A key after all keys that begin with this prefix.
pub(crate) fn past(prefix: &[u8]) -> Vec<u8> {
    [prefix, &[0xff; 32]].concat()
}

/// Sets `executed` from the session's records. May read from disk: blocks.
///
/// # Errors
/// The database's.
pub(crate) fn read_executed(store: &Store, state: &SessionState) -> Result<()> {
    let prefix = layout::session_records(state.id);
    let mut rows = store.iterate_prefix(Table::Commits, &prefix, &prefix);
    let mut executed = 0;
    while let Some(row) = rows.value() {
        executed = executed.max(CommitRow::decode_number(row)?.number);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of a session", &error))?;
    state.executed.fetch_max(executed, Ordering::AcqRel);
    state.loaded.store(true, Ordering::Release);
    Ok(())
}

/// The keys of a session's records. May read from disk: blocks.
///
/// # Errors
/// The database's.
pub(crate) fn record_keys(store: &Store, id: SessionId) -> Result<Vec<Vec<u8>>> {
    let prefix = layout::session_records(id);
    let mut rows = store.iterate_prefix(Table::Commits, &prefix, &prefix);
    let mut keys = Vec::new();
    while let Some(key) = rows.key() {
        keys.push(key.to_vec());
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of a session", &error))?;
    Ok(keys)
}
