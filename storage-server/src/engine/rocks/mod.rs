//! The engine of a single server, on RocksDB.
//!
//! A commit's way: [`RocksSession`] validates it and puts it into the committer's queue; [`commit`] evaluates it with
//! its group, writes the group with one synced write, publishes to the feed (which delivers to the watches) and
//! answers.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`engine`], [`options`] | the store as the server opens, asks and closes it |
//! | [`session`], [`sessions`] | one session as a gateway holds it; all of them, which outlive their sockets |
//! | [`commit`] | the queue, and the one thread that writes: checks, rows, group commit |
//! | [`read`] | gets, scans, changes by revision; snapshots and the read pool |
//! | [`watch`] | watches `Every` and `Latest` |
//! | [`log`] | RocksDB's write-ahead log, read as the change log; its one reader for all watches that fell behind |
//! | [`housekeeping`] | what is done beside requests: expiry of entries and of session keys, forgetting, the disk |
//! | [`open`] | what is checked before a data folder is taken for a store |
//! | [`layout`] | every row on disk, by table |
//! | [`store`] | the database, its keyspaces and epochs |
//! | [`clock`], [`disk`], [`metrics`] | the time, the free space, the figures |

mod clock;
mod commit;
mod disk;
mod engine;
mod housekeeping;
mod layout;
mod log;
mod metrics;
mod open;
mod options;
mod read;
mod session;
mod sessions;
mod store;
mod watch;

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use storage_protocol::{Outcome, Scan, SessionId, StorageError, WatchEvent};
use tokio::sync::Semaphore;

#[doc(hidden)]
pub use self::clock::TestClock;
use self::disk::Disk;
pub use self::engine::RocksEngine;
use self::metrics::Metrics;
pub use self::open::OpenError;
pub use self::options::{Durability, EngineOptions, KeyspaceRules};
pub use self::session::RocksSession;
use crate::engine::StoredLimits;
use crate::engine::rocks::commit::Queue;
use crate::engine::rocks::housekeeping::ExpiryTimer;
use crate::engine::rocks::log::CatchUp;
use crate::engine::rocks::read::PinnedSnapshots;
use crate::engine::rocks::sessions::{Handle, SessionState, Sessions};
use crate::engine::rocks::store::{KeyspaceState, Store};
use crate::engine::rocks::watch::{LatestPage, Pages};
use crate::feed::Feed;

/// What is read from the log, an index or a scan at a time.
const PAGE_BYTES: usize = Scan::PAGE_BYTES;

/// The principal of the server's own commits: expiry, session clean-up, [`RocksEngine::storage`].
const SERVER: &str = "server";

/// What the engine's parts share.
#[derive(Debug)]
struct EngineShared {
    store: Arc<Store>,
    queue: Queue,
    feed: Arc<Feed>,
    sessions: Sessions,
    /// Whether what sessions of before the start left is removed.
    old_sessions_ended: AtomicBool,
    catch_up: CatchUp,
    /// The committer has rows of the index to delete.
    replaced_left: AtomicBool,
    snapshots: Arc<PinnedSnapshots>,
    expiry_timer: ExpiryTimer,
    disk: Disk,
    /// Asked for by the committer, at each commit. Those of a group are the ones it began with.
    stored_limits: RwLock<Option<Arc<dyn StoredLimits>>>,
    metrics: Metrics,
    /// A place for each read from disk.
    readers: Arc<Semaphore>,
    /// Places, in KiB, for what the index told open scans.
    scan_rows: Arc<Semaphore>,
    /// A place for each page of a `Latest` watch that is read: fewer, so that other reads find some too.
    passes: Arc<Semaphore>,
    /// Pages that were read for `Latest` watches and not taken yet.
    pages: Arc<Pages<LatestPage>>,
    /// What `Latest` watches that are parked did not take of passes that were read to their end.
    rests: Arc<Pages<VecDeque<WatchEvent>>>,
}

impl EngineShared {
    fn stored_limits(&self) -> Option<Arc<dyn StoredLimits>> {
        let limits = self.stored_limits.read();
        limits.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The internal session of a keyspace: its rows never deduplicate.
    fn server_session(&self, keyspace: &Arc<KeyspaceState>) -> Arc<SessionState> {
        let handle = Handle::engine();
        let state = SessionState::new(SessionId([0; 16]), SERVER, keyspace.clone(), handle);
        Arc::new(state)
    }
}

fn closed() -> StorageError {
    StorageError::Closed {
        reason: "the store is closed".to_owned(),
        outcome: Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests;
