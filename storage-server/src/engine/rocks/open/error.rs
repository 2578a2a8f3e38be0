//! Why a data folder is not opened.

use std::io;
use std::path::PathBuf;

use storage_protocol::Revision;

use crate::engine::rocks::layout::FORMAT;

/// Why a data folder was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A call of the file system failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data folder {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A newer version wrote it.
    #[error(
        "the data folder {} has format {found}; this version reads up to {FORMAT}: use a newer storage-server",
        path.display()
    )]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// What `STORE` says.
        found: u32,
    },
    /// There is something else in it.
    #[error("{} is no storage-sync data folder: {what}", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// Why it is none.
        what: String,
    },
    /// Commits that were durable are gone.
    #[error(
        "the data folder {} is damaged: commits up to revision {synced} were synced, but only those up to \
         {recovered} could be read. Restore a backup, or start with --accept-data-loss to go on from {recovered} \
         under a new epoch",
        path.display()
    )]
    DataLost {
        /// The folder.
        path: PathBuf,
        /// The last revision known to have been synced.
        synced: Revision,
        /// The last revision that was recovered.
        recovered: Revision,
    },
    /// A copy was put back over the files of a later state.
    #[error(
        "the data folder {} was put back over files of a later state: {what}. Empty the folder, then put the whole copy \
         back",
        path.display()
    )]
    Mixed {
        /// The folder.
        path: PathBuf,
        /// How that was noticed.
        what: String,
    },
    /// RocksDB cannot read it.
    #[error("the data folder {} cannot be read: {message}", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What RocksDB says.
        message: String,
    },
}

impl OpenError {
    /// Whether the disk was full.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Damaged { message, .. } => message.contains(NO_SPACE),
            _ => false,
        }
    }
}

/// RocksDB's error text for a full disk contains this.
const NO_SPACE: &str = "No space left on device";
