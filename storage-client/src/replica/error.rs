//! The errors of a replica.

use std::path::PathBuf;
use std::time::Duration;

use storage_protocol::StorageError;

/// Why a replica did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// There is no coherent state yet: the first progress event has not arrived.
    /// [`Replica::ready`](super::Replica::ready) waits for it.
    #[error("the replica has no coherent state yet")]
    NotReady,
    /// What is held is older than allowed, or its age is not known.
    #[error("the replica's state is {}, and at most {freshness_max:?} is allowed", match .age {
        Some(age) => format!("{age:?} old"),
        None => "of unknown age".to_owned(),
    })]
    TooOld {
        /// How old it is; `None`: read from the folder, and not proven since.
        age: Option<Duration>,
        /// What [`ReplicaOptions::freshness_max`](super::ReplicaOptions::freshness_max) allows.
        freshness_max: Duration,
    },
    /// The read reaches beyond the range that is copied: whether a key is there is not known outside of it.
    #[error("{what} lies outside of the replica's range {range}")]
    OutOfRange {
        /// What was asked for.
        what: String,
        /// The range that is copied.
        range: String,
    },
    /// The replica has stopped and holds nothing any more: it was closed (`Closed`), went over its memory bound
    /// (`LimitExceeded`), gave up after the configured time, or its storage is closed for good (`Closed`, or
    /// `PeerMisbehaved` of a server that broke the protocol).
    #[error("the replica has stopped")]
    Stopped(#[source] StorageError),
    /// The position asked for was not reached in time. What was committed there is committed all the same.
    #[error("the replica did not get there within {timeout:?}")]
    TimedOut {
        /// The time allowed.
        timeout: Duration,
    },
    /// The folder cannot be used.
    #[error("the replica's folder {}: {what}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it, and what would be right.
        what: String,
    },
    /// The replica went on in memory, and its folder holds an older state.
    #[error("the replica's last state was not saved: {what}")]
    NotSaved {
        /// What went wrong.
        what: String,
    },
    /// A call to the storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
