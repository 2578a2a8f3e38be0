//! What a replica refuses, and why.

use std::path::PathBuf;
use std::time::Duration;

use storage_protocol::StorageError;

/// Why a replica did not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// There is no coherent state yet: the first mark has not come. [`Replica::ready`](super::Replica::ready) waits.
    #[error("the replica has no coherent state yet")]
    NotReady,
    /// What is held is older than was allowed, or nobody knows how old it is.
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
    /// The question reaches beyond the range that is held, so that "not there" would be no answer.
    #[error("{what} lies outside of the replica's range {range}")]
    OutOfRange {
        /// What was asked for.
        what: String,
        /// What is held.
        range: String,
    },
    /// It holds nothing any more: it was closed (`Closed`), is over its memory bound (`LimitExceeded`), gave up as it was told
    /// to, or its storage is closed for good (`Closed`, or `PeerMisbehaved` of a server that broke the protocol).
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
    /// It went on in memory, and its folder holds an older state.
    #[error("the replica's last state was not saved: {what}")]
    NotSaved {
        /// What went wrong.
        what: String,
    },
    /// A call to the storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
