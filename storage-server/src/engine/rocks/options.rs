//! How a store is opened: every setting of the engine, with its default.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use storage_protocol::{Keyspace, Limits};

use crate::engine::rocks::clock::TestClock;

/// When a commit is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Synced to disk before it is shown or acknowledged: survives power loss. The default.
    #[default]
    Sync,
    /// Handed to the operating system before it is acknowledged, synced in the background every second: survives a
    /// crash of the process. After a power loss the store may have lost its last second, and says so by a new epoch.
    Os,
}

/// What is special about one keyspace. Kept in the store with the keyspace from its first commit on, and the same ever
/// after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyspaceRules {
    /// No key and no value may have this byte, whoever puts it: clients of some protocol could not read it. Nor is
    /// anything put under a stamped key, since a revision may have any byte. Default none.
    pub forbidden_byte: Option<u8>,
    /// So many keys in a get and operations in a commit, in place of [`Limits::keys_per_get_max`] and
    /// [`Limits::operations_per_commit_max`]. Default theirs.
    pub items_max: Option<NonZeroU32>,
}

/// How to open a store. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The data folder; made where it is missing.
    pub data: PathBuf,
    /// When a commit is durable.
    pub durability: Durability,
    /// The budget of caches and memtables: half for RocksDB's cache of blocks and blobs, of which up to half is for
    /// memtables; a quarter for the cache of entries. Default 512 MiB.
    pub memory_bytes: usize,
    /// Commits that put anything are refused while less than this is free on disk, removals below a quarter of it;
    /// below one and a half of it the change log is dropped, oldest first. Default 512 MiB: two memtables, the log's
    /// last files and a compaction's start.
    pub disk_reserve_bytes: u64,
    /// The change log is kept up to this size. Default 10 GiB.
    pub log_bytes: u64,
    /// And up to this age. Default 24 h.
    pub log_age: Duration,
    /// Recent commits kept in memory for watches. Default 64 MiB.
    pub ring_bytes: usize,
    /// Keyspaces with rules of their own, for the time that they are made. Default none.
    pub keyspaces: HashMap<Keyspace, KeyspaceRules>,
    /// What requests may ask.
    pub limits: Limits,
    /// Open a store that lost synced commits, under a new epoch. Default no.
    pub accept_data_loss: bool,
    /// Fork the history at this start: for a folder that was put back in a way that nothing in it can tell (a snapshot
    /// of the whole machine or volume). Default no.
    pub new_epoch: bool,
    /// Commits that wait for the committer; those of one principal take at most half, or one commit. Default 256 MiB.
    pub commit_queue_bytes: usize,
    /// Reads from disk at once. Default 8.
    pub read_threads: usize,
    /// Table and blob files that RocksDB keeps open at once; up to 64 others (log files, manifest, locks) come beside.
    /// Default 1,024, and never less than 64. The process needs so many descriptors more than its connections.
    pub max_open_files: u32,
    /// Tombstones are kept for this long. Default 7 days.
    pub tombstone_age: Duration,
    /// And so many per keyspace. Default 10 million.
    pub tombstones_max: u64,
    /// Keys of a session stay for so long after its socket was lost (or the server started). Default 60 s. Looked at
    /// each second.
    pub session_grace: Duration,
    /// And the session can be resumed for so long. Default 24 h.
    pub session_kept: Duration,
    /// So many sessions without a socket are kept, and those within their grace. Of more, the longest lost one of the
    /// principal that has the most is forgotten first. Default 100,000.
    pub sessions_kept_max: usize,
    /// The machine's clock, with an offset that tests set.
    #[doc(hidden)]
    pub clock: TestClock,
    /// For measuring what the index by revision costs, and for nothing else: without it `Latest` tells nothing.
    #[doc(hidden)]
    pub danger_without_index: bool,
}

impl EngineOptions {
    /// The defaults, for a data folder.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            durability: Durability::Sync,
            memory_bytes: 512 << 20,
            disk_reserve_bytes: 512 << 20,
            log_bytes: 10 << 30,
            log_age: Duration::from_secs(24 * 3600),
            ring_bytes: 64 << 20,
            keyspaces: HashMap::new(),
            limits: Limits::default(),
            accept_data_loss: false,
            new_epoch: false,
            commit_queue_bytes: 256 << 20,
            read_threads: 8,
            max_open_files: 1024,
            tombstone_age: Duration::from_secs(7 * 24 * 3600),
            tombstones_max: 10_000_000,
            session_grace: Duration::from_secs(60),
            session_kept: Duration::from_secs(24 * 3600),
            sessions_kept_max: 100_000,
            clock: TestClock::default(),
            danger_without_index: false,
        }
    }
}
