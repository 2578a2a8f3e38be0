//! What a replica is doing, and what it has done.

use std::time::{Duration, Instant};

use storage_protocol::{Position, StorageError};

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaState {
    /// There is no coherent state yet.
    Starting,
    /// A watch feeds it.
    Live,
    /// No watch feeds it; it tries again by itself. What is held stays readable, and its age grows.
    Disconnected {
        /// Since then.
        since: Instant,
    },
    /// It holds nothing any more, and never will.
    Stopped {
        /// `Closed` after `close`, `LimitExceeded` over its memory bound, else the last error before it gave up, or why
        /// its storage is closed for good.
        why: StorageError,
    },
}

/// The status of a replica at one moment; the counters are since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// What it is doing.
    pub state: ReplicaState,
    /// The position of its state; `None` before the first progress event.
    pub position: Option<Position>,
    /// How long ago it was proven; `None`: never since the start.
    pub age: Option<Duration>,
    /// Entries held.
    pub entries: usize,
    /// Memory counted against its bound: held and staged.
    pub bytes: usize,
    /// Times that everything was fetched: the first time, and when the server no longer knew what was removed.
    pub full_passes: u64,
    /// Times that it went on from a position: after a break, or from its folder.
    pub resumes: u64,
    /// Breaks of its watch: those that ended it, and those that the watch itself reported.
    pub breaks: u64,
    /// States of keys that were fetched.
    pub states_fetched: u64,
    /// Bytes of keys and values that were fetched.
    pub bytes_fetched: u64,
    /// Entries that `reload` found different and repaired.
    pub repaired: u64,
    /// The last error of its watch, also if the watch is live again.
    pub last_error: Option<StorageError>,
    /// The position of the state in its folder; `None` without a folder, and before the first write.
    pub saved: Option<Position>,
    /// Why nothing more is written to its folder, if so. The replica goes on in memory.
    pub save_error: Option<String>,
}
