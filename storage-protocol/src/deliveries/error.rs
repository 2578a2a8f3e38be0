//! What can go wrong with a job.

use super::{JobId, NameError, StateKind};
use crate::StorageError;
use crate::native::ProtocolError;

/// Why a record is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// It does not begin like one.
    #[error("value that is no record of a job")]
    NoRecord,
    /// A newer one.
    #[error("record of a job, of version {0}")]
    Version(u64),
    /// Not the fields that a record has.
    #[error("record of a job that cannot be read: {0}")]
    Malformed(#[from] ProtocolError),
    /// A field has a value that none may have.
    #[error("record of a job with a bad {0}")]
    Field(&'static str),
}

/// Why something was not done with a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// There is no such job, or it has ended so long ago that its record is gone.
    #[error("there is no job {0}")]
    NoJob(JobId),
    /// There is one of this id already.
    #[error("there is a job {0} already")]
    Exists(JobId),
    /// What the job is speaks against it.
    #[error("job {id} is {state}: it cannot be {what}")]
    Refused {
        /// Which job.
        id: JobId,
        /// What it is.
        state: StateKind,
        /// What was to be done.
        what: &'static str,
    },
    /// Others changed it each time before this could.
    #[error("job {id} was changed by others {tries} times meanwhile; nothing was done")]
    Contended {
        /// Which job.
        id: JobId,
        /// How often it was tried.
        tries: usize,
    },
    /// A job cannot be like this. The text says what is wrong, and what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// Its record cannot be read.
    #[error("job {id}: {error}")]
    Record {
        /// Which job.
        id: JobId,
        /// Why.
        error: JobError,
    },
    /// The storage failed; see there for what is certain.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<NameError> for DeliveryError {
    fn from(error: NameError) -> Self {
        Self::Invalid(error.to_string())
    }
}
