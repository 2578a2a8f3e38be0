//! The one error of the contract, and what a caller may conclude from it.
//!
//! Every failed call says which of three holds ([`Outcome`]); only the first is ever retried by the library. Texts
//! are for people and free to change; the variants (and their wire codes, see `native`) are the contract.

use crate::{Epoch, Key, Limit, Revision};

/// The result of every call of the contract.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// What is certain about a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It had no effect and never will: safe to repeat.
    NotExecuted,
    /// It was carried out and refused: the state spoke against it. Repeating gives the same until the state changes.
    Refused,
    /// Nobody knows: the connection or the disk failed between the request and its answer.
    Unknown,
}

/// Why a call failed. [`StorageError::outcome`] tells the class.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// A check of the commit did not hold; nothing was written. Read again and decide anew.
    #[error("check failed: key \"{}\" is {}", .key.escape_ascii(), match .actual {
        Some(revision) => format!("at revision {revision}"),
        None => "absent".to_owned(),
    })]
    CheckFailed {
        /// The key whose check failed (the first in the batch's order).
        key: Key,
        /// Its revision just before this commit; `None`: absent.
        actual: Option<Revision>,
    },
    /// The request is larger than a limit allows. Split it.
    #[error("{limit} is {max}, this has {actual}")]
    LimitExceeded {
        /// Which limit.
        limit: Limit,
        /// What it allows.
        max: u64,
        /// What was asked.
        actual: u64,
    },
    /// The request makes no sense as it stands; the text says why. Repeating it is of no use.
    #[error("{message}")]
    InvalidArgument {
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The log (for a watch `Every`) or the tombstones (for `newer_than`) do not reach back that far. Go on with
    /// `Latest`, or from the present state.
    #[error("history before revision {oldest} is compacted")]
    Compacted {
        /// The oldest position that can be served.
        oldest: Revision,
    },
    /// The position belongs to a history this store left. State up to `fork` is common to both.
    #[error("the store's history is now epoch {epoch}, forked at revision {fork}")]
    EpochChanged {
        /// The present epoch.
        epoch: Epoch,
        /// Up to here the position's history and the present one agree; zero for an unknown epoch.
        fork: Revision,
    },
    /// The snapshot of a scan (or of a `Latest` pass) was held too long without progress. Start again.
    #[error("the snapshot expired: no page was asked for within its lease")]
    SnapshotExpired,
    /// A bound on work in progress is reached. Wait a little and repeat.
    #[error("overloaded: {limit} is reached ({max})")]
    Overloaded {
        /// Which bound.
        limit: Limit,
        /// Its value.
        max: u64,
    },
    /// The commit would raise what is stored above a quota. Repeating it gives the same until something is removed or the
    /// quota is raised. Commits that raise nothing are taken all the same.
    #[error("quota exceeded: {limit} is {max}")]
    QuotaExceeded {
        /// Which quota.
        limit: Limit,
        /// What it allows.
        max: u64,
    },
    /// The server's disk is at its reserve; commits that put anything are refused until there is room. Reads go on, and
    /// commits that only remove keys, down to a quarter of the reserve.
    #[error("storage full: {available} bytes are free, {reserve} are held in reserve")]
    StorageFull {
        /// Free bytes seen.
        available: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// A write failed half-way, so the engine takes no more until it is reopened. Reads of durable state go on.
    #[error("writes are refused until the store is reopened: {reason}")]
    ReadOnly {
        /// What failed.
        reason: String,
    },
    /// Not allowed.
    #[error("access denied: {message}")]
    AccessDenied {
        /// What was not allowed.
        message: String,
    },
    /// What the caller may read or watch has changed, and this scan or watch ends: which of the keys told so far may
    /// still be seen is not known. Begin again from the beginning. (Of a watch the remote client does, and says
    /// `Resynced`.)
    #[error("what may be read or watched has changed: begin again from the beginning")]
    AccessChanged,
    /// The caller (or its peer) gave the request up before it was carried out.
    #[error("cancelled")]
    Cancelled,
    /// The deadline passed. For a commit that was sent, the outcome is unknown.
    #[error("deadline exceeded ({})", outcome_text(*.outcome))]
    DeadlineExceeded {
        /// Whether the request may have been carried out.
        outcome: Outcome,
    },
    /// The connection, the session or the engine is closed.
    #[error("closed: {reason} ({})", outcome_text(*.outcome))]
    Closed {
        /// Why.
        reason: String,
        /// Whether the request may have been carried out.
        outcome: Outcome,
    },
    /// The peer could not be reached, or did not authenticate us, or we did not accept it.
    #[error("cannot connect: {message}")]
    ConnectFailed {
        /// What was tried and what went wrong.
        message: String,
    },
    /// The peer broke the protocol.
    #[error("protocol error: {message}")]
    PeerMisbehaved {
        /// What it did.
        message: String,
        /// Whether the request may have been carried out.
        outcome: Outcome,
    },
    /// The session's commit of this number is another one than the one sent: two users of one saved session, or one that
    /// was put back to an older state. This commit had no effect; what the other one did is not told.
    #[error("commit number {number} of the session was used for another commit")]
    NumberReused {
        /// The number.
        number: u64,
    },
    /// This engine cannot do that.
    #[error("not supported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// Something failed inside (disk, damaged data); details are in the server's log.
    #[error("internal error: {message}")]
    Internal {
        /// A text that is safe to show.
        message: String,
        /// Whether the request may have been carried out.
        outcome: Outcome,
    },
}

impl StorageError {
    /// An [`StorageError::InvalidArgument`].
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidArgument {
            message: message.into(),
        }
    }

    /// A [`StorageError::LimitExceeded`].
    #[must_use]
    pub fn limit(limit: Limit, actual: usize, max: usize) -> Self {
        Self::LimitExceeded {
            limit,
            max: max as u64,
            actual: actual as u64,
        }
    }

    /// What is certain about the call that failed with this.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::CheckFailed { .. } | Self::QuotaExceeded { .. } => Outcome::Refused,
            Self::DeadlineExceeded { outcome }
            | Self::Closed { outcome, .. }
            | Self::PeerMisbehaved { outcome, .. }
            | Self::Internal { outcome, .. } => *outcome,
            Self::LimitExceeded { .. }
            | Self::InvalidArgument { .. }
            | Self::Compacted { .. }
            | Self::EpochChanged { .. }
            | Self::SnapshotExpired
            | Self::Overloaded { .. }
            | Self::StorageFull { .. }
            | Self::ReadOnly { .. }
            | Self::AccessDenied { .. }
            | Self::AccessChanged
            | Self::Cancelled
            | Self::ConnectFailed { .. }
            | Self::NumberReused { .. }
            | Self::Unsupported { .. } => Outcome::NotExecuted,
        }
    }
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotExecuted => "not executed",
        Outcome::Refused => "refused",
        Outcome::Unknown => "outcome unknown",
    }
}
