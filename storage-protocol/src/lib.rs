//! The contract that both sides of storage-sync share.
//!
//! * [`Storage`]: the trait that every engine and the remote client implement, with its guarantees, and
//!   [`StorageExt`], the conveniences built on it.
//! * [`StorageError`] with the three [`Outcome`] classes, and the [`Limits`] both sides enforce.
//! * [`deliveries`]: jobs that are due at a time and handed to a recipient, on top of [`Storage`].
//! * [`objects`]: values of any size, on top of [`Storage`].
//! * [`rooms`]: messages in order and who is present, on top of [`Storage`].
//! * The wire: [`native`] (subprotocol `storage-sync.v1`) and [`mwdb`], two dialects of one frame; both are
//!   sans-IO. `docs/protocol.md` is the normative text.
//!
//! Not here: sockets, a runtime, RocksDB. A decoder here never panics, never reads past its input and never
//! allocates more than its named limit allows.

#![deny(clippy::indexing_slicing, clippy::wildcard_enum_match_arm)]

pub mod deliveries;
pub mod mwdb;
pub mod native;
pub mod number;
pub mod objects;
pub mod rooms;

mod batch;
mod error;
mod limits;
mod storage;
mod types;
mod watch;

pub use batch::{Batch, Check, CommitOptions, Expected, Operation};
pub use error::{Outcome, Result, StorageError};
pub use limits::{Limit, Limits};
pub use storage::{
    PREFIX_NUMBER_MAX, Scan, ScanItem, ScanOptions, ScanSource, Storage, StorageExt, begin_commit,
};
pub use types::{
    Entry, EntryLifetime, Epoch, Key, KeyRange, KeyState, Keyspace, Lifetime, Position, Reading,
    Revision, SessionId, UnixMillis, Value,
};
pub use watch::{
    Change, ChangeKind, CommitRecord, Continuity, ResyncReason, Watch, WatchEvent, WatchMode,
    WatchOptions, WatchSource, WatchStart, WatchState, WatchStatus,
};
