//! Reads: many keys at one revision, and the pages of scans.
//!
//! What is in memory is read on the caller's task; what would touch the disk goes to the read pool, so no read ever
//! blocks the runtime.
//!
//! Invariant: all keys of one get are read between two equal looks at the store's revision, or from a snapshot. There
//! is one writer, and RocksDB raises the revision after a write is readable, so an unchanged revision proves that every
//! read between was made at it.

mod changes;
mod cursor;
mod get;

mod pool;
mod scan;
mod snapshots;

use storage_protocol::{Limit, StorageError};

pub(crate) use self::changes::{ChangesCursor, ChangesPage};
pub(crate) use self::cursor::ScanCursor;
pub(crate) use self::get::{get, get_in_memory};
pub(crate) use self::pool::read_failed;
pub(crate) use self::scan::RocksScan;
pub(crate) use self::snapshots::{PinnedSnapshot, PinnedSnapshots};

/// The error of a read that found no [`Room`](crate::engine::Room) for its answer.
fn no_room() -> StorageError {
    StorageError::Overloaded {
        limit: Limit::Outbox,
        max: 0,
    }
}
