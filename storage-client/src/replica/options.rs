//! The options of a replica: how fresh, how large, and in which folder.

use std::path::PathBuf;
use std::time::Duration;

/// Options of [`Replica::start`](super::Replica::start). Each setter takes and returns them, so that calls chain.
///
/// ```
/// use std::time::Duration;
/// use storage_client::replica::ReplicaOptions;
///
/// let options = ReplicaOptions::new().freshness_max(Duration::from_secs(5)).memory_bytes_max(64 << 20);
/// ```
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    pub(super) probe_interval: Duration,
    pub(super) min_interval: Duration,
    pub(super) freshness_max: Option<Duration>,
    pub(super) memory_bytes_max: usize,
    pub(super) changes_bytes_max: usize,
    pub(super) give_up_after: Option<Duration>,
    pub(super) backoff_max: Duration,
    pub(super) folder: Option<Folder>,
    pub(super) save_interval: Duration,
}

/// See [`ReplicaOptions::persist`].
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) keyspace: String,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(1),
            min_interval: Duration::ZERO,
            freshness_max: None,
            memory_bytes_max: 1 << 30,
            changes_bytes_max: 16 << 20,
            give_up_after: None,
            backoff_max: Duration::from_secs(10),
            folder: None,
            save_interval: Duration::from_secs(1),
        }
    }
}

impl ReplicaOptions {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How often a probe proves that the state is the present one. Default 1 s, at least 1 ms. On a quiet link ages go
    /// up to this and a round trip; each probe is a few bytes, and there is one at a time.
    #[must_use]
    pub fn probe_interval(mut self, interval: Duration) -> Self {
        self.probe_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// The shortest time between the starts of two passes of the watch. Default zero: changes arrive as they happen.
    /// With a longer one there are fewer and larger batches, each with the last state of a key only.
    #[must_use]
    pub fn min_interval(mut self, interval: Duration) -> Self {
        self.min_interval = interval;
        self
    }

    /// With an older state than this, reads fail with `TooOld`. Default: none, reads always answer, with the age.
    /// Should be well above [`probe_interval`](Self::probe_interval).
    #[must_use]
    pub fn freshness_max(mut self, age: Duration) -> Self {
        self.freshness_max = Some(age);
        self
    }

    /// The most memory for keys, values and what each entry costs beside them, staged states included. Default 1 GiB.
    /// Over it the replica stops with an error that names the limit, and reads fail with that. A pass from the
    /// beginning while there is a state needs room for both.
    #[must_use]
    pub fn memory_bytes_max(mut self, bytes: usize) -> Self {
        self.memory_bytes_max = bytes;
        self
    }

    /// Bytes of changes that may wait for each slow consumer of [`Replica::changes`](super::Replica::changes). Default
    /// 16 MiB, at least one batch; beyond, the consumer gets `Missed`.
    #[must_use]
    pub fn changes_bytes_max(mut self, bytes: usize) -> Self {
        self.changes_bytes_max = bytes;
        self
    }

    /// Stops for good after so long without a watch. Default: never, it tries until it is closed.
    #[must_use]
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up_after = Some(time);
        self
    }

    /// The longest pause between two tries to watch again; the first is 100 ms, and each doubles. Default 10 s.
    #[must_use]
    pub fn backoff_max(mut self, pause: Duration) -> Self {
        self.backoff_max = pause;
        self
    }

    /// Keeps the replica in this folder too (created if it is not there, for its owner only), and begins with the state
    /// in the folder: only what changed since is fetched. `keyspace` is the name of the keyspace that is copied; a
    /// folder of another keyspace or range is refused, and so is one that another process uses. The files are not
    /// encrypted. Default: memory only.
    #[must_use]
    pub fn persist(mut self, folder: impl Into<PathBuf>, keyspace: impl Into<String>) -> Self {
        self.folder = Some(Folder {
            path: folder.into(),
            keyspace: keyspace.into(),
        });
        self
    }

    /// The shortest time between two writes to the folder. Default 1 s: after `kill -9` the folder holds a coherent
    /// state from about so long ago. All changes in between go into one transaction.
    #[must_use]
    pub fn save_interval(mut self, interval: Duration) -> Self {
        self.save_interval = interval;
        self
    }
}
