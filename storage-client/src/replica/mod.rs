//! [`Replica`]: a coherent local copy of a range of keys, kept in step by one watch.
//!
//! A replica shows only states that existed: what the watch delivers between two progress events is staged, and becomes
//! visible in one step at the second one. Every read comes with its [`Proof`]: true at this position, and proven so
//! long ago. The age counts from the *sending* of a probe whose answer arrived after everything that was due, by a
//! clock that runs while the machine sleeps; so it may be too high, and never too low.
//!
//! It works on any [`Storage`]: a [`RemoteStorage`](crate::RemoteStorage), or the engine inside a server's process.
//!
//! * `follower`: the task that watches, again and again, and alone changes the state; `saver`: the one that writes it
//!   to a folder (`disk`).
//! * `held`: the state and what is staged for it; `shared`: that, with all that changes at the same progress event.
//! * `changes`: the events for consumers; `waiting`: calls that wait for a progress event; `reload`: re-reads that do.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use storage_client::{ConnectOptions, RemoteStorage, Replica, ReplicaOptions};
//! use storage_protocol::KeyRange;
//!
//! let options = ConnectOptions::new("wss://localhost:7443/storage/models").credentials_dir("certs/dev/alice");
//! let storage = RemoteStorage::connect(options).await?;
//! let options = ReplicaOptions::new().persist("weather.replica", storage.keyspace().as_str());
//! let replica = Replica::start(Arc::new(storage), KeyRange::prefix("weather/"), options).await?;
//! replica.ready().await?;
//! let read = replica.get(b"weather/JFK")?;
//! println!("{:?}, true at {}, proven {:?} ago", read.value, read.proof.position, read.proof.age);
//! replica.close().await;
//! # Ok(())
//! # }
//! ```

mod changes;
mod clock;
mod disk;
mod error;
mod follower;
mod held;
mod options;
mod reload;
mod saver;
mod shared;
mod status;
mod waiting;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use storage_protocol::{Entry, Key, KeyRange, Position, Storage, StorageError};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use changes::{ChangeBatch, Changes, KeyChange, ReplicaEvent};
pub use error::ReplicaError;
pub use options::ReplicaOptions;
pub use status::{ReplicaState, ReplicaStatus};

use crate::sync::lock;
use disk::Disk;
use follower::Follower;
use saver::Saver;
use shared::Shared;

/// Since when something read is known to be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// It was the state at this position: all commits up to here, and none after.
    pub position: Position,
    /// At most so long ago the server had nothing newer than this. `None`: the state comes from the replica's folder
    /// and was not proven since.
    pub age: Option<Duration>,
}

/// Something read from a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven<T> {
    /// What was read.
    pub value: T,
    /// When it was true.
    pub proof: Proof,
}

/// Entries with their keys, in the order of a scan.
pub type Entries = Vec<(Key, Entry)>;

/// The result of [`Replica::commit_and_wait`].
#[derive(Debug)]
pub struct Committed {
    /// The commit's position; it was executed, whatever `seen` says.
    pub position: Position,
    /// Whether the replica shows it.
    pub seen: Result<Proof, ReplicaError>,
}

/// The result of [`Replica::reload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloaded {
    /// The position at which the copy of the keys is what the server had.
    pub position: Position,
    /// Entries that were different, and were repaired.
    pub repaired: usize,
}

/// A coherent copy of a range. Clones are handles on the same copy; when the last one is dropped, it ends.
///
/// Reads do not use the network, and wait for nothing but the moment in which new states are applied. They are
/// linearizable with each other: none sees a state older than one that an earlier read saw.
#[derive(Clone)]
pub struct Replica {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("range", &self.shared.range)
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Begins to copy `range`. Returns before anything was received, with the state in the folder if there is one; an
    /// unreachable server is no error. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ReplicaError::Folder`]: the folder is of another keyspace or range, in use, or cannot be used.
    /// `LimitExceeded`: what it holds is over the memory bound.
    pub async fn start(
        storage: Arc<dyn Storage>,
        range: KeyRange,
        options: ReplicaOptions,
    ) -> Result<Self, ReplicaError> {
        let (disk, held) = match options.folder.clone() {
            None => (None, None),
            Some(folder) => {
                let (range, max) = (range.clone(), options.memory_bytes_max);
                let open = move || Disk::open(&folder, &range, max);
                let opened = tokio::task::spawn_blocking(open).await;
                let (disk, held) = opened.map_err(|_| StorageError::Cancelled)??;
                (Some(disk), held)
            }
        };
        let shared = Arc::new(Shared::new(storage, range, options, held));
        let (tasks, cancel) = (TaskTracker::new(), CancellationToken::new());
        let follower = Follower::new(shared.clone(), cancel.clone());
        let ended = CancellationToken::new();
        let saver = disk.map(|disk| {
            let saver = Saver::new(disk, shared.clone(), ended.clone());
            tasks.spawn(saver.run())
        });
        // Dropped in a panic too, so that the saver ends and `close` does not wait for ever.
        let ended = ended.drop_guard();
        let followed = shared.clone();
        // If one of the two tasks panics the state stays as it is, and its age grows.
        tasks.spawn(async move {
            let why = follower.run().await;
            drop(ended);
            if let Some(saver) = saver {
                // The state is dropped only after the saver's last write of it.
                let _ = saver.await;
            }
            followed.stop(why);
        });
        tasks.close();
        Ok(Self {
            shared,
            tasks,
            _last: Arc::new(cancel.clone().drop_guard()),
            cancel,
        })
    }

    /// Waits for the first coherent state: until the first progress event, or not at all if the folder holds a state.
    /// Cancel-safe.
    ///
    /// # Errors
    /// `Stopped`.
    pub async fn ready(&self) -> Result<Proof, ReplicaError> {
        let mut marks = self.shared.marks.subscribe();
        loop {
            match self.proof() {
                Err(ReplicaError::NotReady) => {}
                other => return other,
            }
            // The sender lives as long as this.
            let _ = marks.changed().await;
        }
    }

    /// [`ready`](Self::ready), for at most so long. The replica goes on trying afterwards; [`status`](Self::status) has
    /// the last error. Cancel-safe.
    ///
    /// # Errors
    /// `TimedOut`, `Stopped`.
    pub async fn ready_within(&self, timeout: Duration) -> Result<Proof, ReplicaError> {
        let ready = tokio::time::timeout(timeout, self.ready()).await;
        ready.unwrap_or(Err(ReplicaError::TimedOut { timeout }))
    }

    /// The position of the state and how long ago it was proven, whatever `freshness_max` says.
    ///
    /// # Errors
    /// `NotReady`, `Stopped`.
    pub fn proof(&self) -> Result<Proof, ReplicaError> {
        self.shared.proof(&self.shared.held())
    }

    /// The range that is copied.
    #[must_use]
    pub fn range(&self) -> &KeyRange {
        &self.shared.range
    }

    /// Reads one key.
    ///
    /// # Errors
    /// `NotReady`, `TooOld`, `Stopped`; `OutOfRange` for a key that is not copied.
    pub fn get(&self, key: &[u8]) -> Result<Proven<Option<Entry>>, ReplicaError> {
        self.check_key(key)?;
        self.read(|entries| entries.get(key).cloned())
    }

    /// Reads many keys at one position, in the order asked.
    ///
    /// # Errors
    /// As [`Replica::get`].
    pub fn get_many(&self, keys: &[Key]) -> Result<Proven<Vec<Option<Entry>>>, ReplicaError> {
        keys.iter().try_for_each(|key| self.check_key(key))?;
        self.read(|entries| keys.iter().map(|key| entries.get(key).cloned()).collect())
    }

    /// All entries of a part of the range at one position, in key order or in reverse, at most `limit`. Copies handles
    /// of the entries, not their bytes; new states are applied after that.
    ///
    /// # Errors
    /// As [`Replica::get`]; `OutOfRange` where `range` reaches beyond the replica's.
    pub fn scan(
        &self,
        range: &KeyRange,
        reverse: bool,
        limit: Option<usize>,
    ) -> Result<Proven<Entries>, ReplicaError> {
        self.check_range(range)?;
        self.read(|entries| copy_range(entries, range, reverse, limit))
    }

    /// The number of entries.
    ///
    /// # Errors
    /// `NotReady`, `TooOld`, `Stopped`.
    pub fn len(&self) -> Result<Proven<usize>, ReplicaError> {
        self.read(BTreeMap::len)
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    /// `NotReady`, `TooOld`, `Stopped`.
    pub fn is_empty(&self) -> Result<Proven<bool>, ReplicaError> {
        self.read(BTreeMap::is_empty)
    }

    /// What changes from here on: one batch for each progress event that changed something.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.shared.subscribe(&self.shared.held())
    }

    /// The whole state, and what changes after exactly it.
    ///
    /// # Errors
    /// `NotReady`, `TooOld`, `Stopped`.
    pub fn scan_and_changes(&self) -> Result<(Proven<Entries>, Changes), ReplicaError> {
        let held = self.shared.held();
        let proof = self.shared.fresh_proof(&held)?;
        let value = copy_range(held.entries(), &self.shared.range, false, None);
        let changes = self.shared.subscribe(&held);
        Ok((Proven { value, proof }, changes))
    }

    /// Its status now. Waits for nothing but states that are being applied.
    #[must_use]
    pub fn status(&self) -> ReplicaStatus {
        self.shared.status()
    }

    /// Ends the replica for all handles: when this returns, the last state is written to its folder, the folder is free
    /// and the watch is closed. Reads fail with `Stopped` from then on.
    ///
    /// # Errors
    /// The folder does not hold the last state: a write failed.
    pub async fn close(&self) -> Result<(), ReplicaError> {
        self.cancel.cancel();
        self.tasks.wait().await;
        match lock(&self.shared.facts).save_error.clone() {
            Some(what) => Err(ReplicaError::NotSaved { what }),
            None => Ok(()),
        }
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&BTreeMap<Key, Entry>) -> T,
    ) -> Result<Proven<T>, ReplicaError> {
        let held = self.shared.held();
        let proof = self.shared.fresh_proof(&held)?;
        let value = read(held.entries());
        Ok(Proven { value, proof })
    }

    fn check_key(&self, key: &[u8]) -> Result<(), ReplicaError> {
        if self.shared.range.contains(key) {
            return Ok(());
        }
        Err(self.out_of_range(format!("the key \"{}\"", key.escape_ascii())))
    }

    fn check_range(&self, range: &KeyRange) -> Result<(), ReplicaError> {
        let whole = &self.shared.range;
        let ends_within = match (&range.end, &whole.end) {
            (_, None) => true,
            (Some(end), Some(last)) => end <= last,
            (None, Some(_)) => false,
        };
        if range.is_empty() || (range.start >= whole.start && ends_within) {
            return Ok(());
        }
        Err(self.out_of_range(format!("a part of the range {range:?}")))
    }

    fn out_of_range(&self, what: String) -> ReplicaError {
        let range = format!("{:?}", self.shared.range);
        ReplicaError::OutOfRange { what, range }
    }
}

fn copy_range(
    entries: &BTreeMap<Key, Entry>,
    range: &KeyRange,
    reverse: bool,
    limit: Option<usize>,
) -> Entries {
    if range.is_empty() {
        return Vec::new();
    }
    let end = range
        .end
        .as_ref()
        .map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_ref()));
    let found = entries.range::<[u8], _>((Bound::Included(range.start.as_ref()), end));
    let copied = found.map(|(key, entry)| (key.clone(), entry.clone()));
    let limit = limit.unwrap_or(usize::MAX);
    if reverse {
        copied.rev().take(limit).collect()
    } else {
        copied.take(limit).collect()
    }
}
