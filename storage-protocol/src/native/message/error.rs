//! An error on the wire: its stable code, its outcome, a text for people, then what the code calls for.

use bytes::{BufMut, Bytes, BytesMut};

use super::super::frame::ProtocolError;
use super::super::wire::{Reader, Writer};
use super::Result;
use super::fields::{put_flags, put_position, read_flags, read_position, read_revision};
use crate::{Limit, Outcome, Position, StorageError};

/// The stable code of an error on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the `StorageError` variant of the same name"
)]
#[repr(u8)]
pub enum ErrorCode {
    CheckFailed = 1,
    LimitExceeded = 2,
    InvalidArgument = 3,
    Compacted = 4,
    EpochChanged = 5,
    SnapshotExpired = 6,
    Overloaded = 7,
    StorageFull = 8,
    ReadOnly = 9,
    AccessDenied = 10,
    Cancelled = 11,
    DeadlineExceeded = 12,
    Closed = 13,
    PeerMisbehaved = 14,
    Unsupported = 15,
    Internal = 16,
    NumberReused = 17,
    AccessChanged = 18,
    QuotaExceeded = 19,
}

// An error: code, outcome (0 not executed, 1 refused, 2 unknown), a text for people, then what the code calls for.

pub(super) fn put_error(out: &mut BytesMut, error: &StorageError) {
    let code = match error {
        StorageError::CheckFailed { .. } => ErrorCode::CheckFailed,
        StorageError::LimitExceeded { .. } => ErrorCode::LimitExceeded,
        StorageError::InvalidArgument { .. } => ErrorCode::InvalidArgument,
        StorageError::Compacted { .. } => ErrorCode::Compacted,
        StorageError::EpochChanged { .. } => ErrorCode::EpochChanged,
        StorageError::SnapshotExpired => ErrorCode::SnapshotExpired,
        StorageError::Overloaded { .. } => ErrorCode::Overloaded,
        StorageError::StorageFull { .. } => ErrorCode::StorageFull,
        StorageError::ReadOnly { .. } => ErrorCode::ReadOnly,
        StorageError::AccessDenied { .. } => ErrorCode::AccessDenied,
        StorageError::Cancelled => ErrorCode::Cancelled,
        StorageError::DeadlineExceeded { .. } => ErrorCode::DeadlineExceeded,
        StorageError::Closed { .. } | StorageError::ConnectFailed { .. } => ErrorCode::Closed,
        StorageError::PeerMisbehaved { .. } => ErrorCode::PeerMisbehaved,
        StorageError::Unsupported { .. } => ErrorCode::Unsupported,
        StorageError::Internal { .. } => ErrorCode::Internal,
        StorageError::NumberReused { .. } => ErrorCode::NumberReused,
        StorageError::AccessChanged => ErrorCode::AccessChanged,
        StorageError::QuotaExceeded { .. } => ErrorCode::QuotaExceeded,
    };
    out.number(code as u64);
    out.put_u8(match error.outcome() {
        Outcome::NotExecuted => 0,
        Outcome::Refused => 1,
        Outcome::Unknown => 2,
    });
    out.length_prefixed(error_text(error).as_bytes());
    match error {
        StorageError::CheckFailed { key, actual } => {
            out.length_prefixed(key);
            put_flags(out, [actual.is_some()]);
            if let Some(revision) = actual {
                out.number(revision.0);
            }
        }
        StorageError::LimitExceeded { limit, max, actual } => {
            out.number(u64::from(limit.wire()));
            out.number(*max);
            out.number(*actual);
        }
        StorageError::Overloaded { limit, max } | StorageError::QuotaExceeded { limit, max } => {
            out.number(u64::from(limit.wire()));
            out.number(*max);
        }
        StorageError::Compacted { oldest } => out.number(oldest.0),
        StorageError::EpochChanged { epoch, fork } => {
            put_position(
                out,
                Position {
                    epoch: *epoch,
                    revision: *fork,
                },
            );
        }
        StorageError::StorageFull { available, reserve } => {
            out.number(*available);
            out.number(*reserve);
        }
        StorageError::NumberReused { number } => out.number(*number),
        StorageError::InvalidArgument { .. }
        | StorageError::SnapshotExpired
        | StorageError::ReadOnly { .. }
        | StorageError::AccessDenied { .. }
        | StorageError::AccessChanged
        | StorageError::Cancelled
        | StorageError::DeadlineExceeded { .. }
        | StorageError::Closed { .. }
        | StorageError::ConnectFailed { .. }
        | StorageError::PeerMisbehaved { .. }
        | StorageError::Unsupported { .. }
        | StorageError::Internal { .. } => {}
    }
}

/// The text that travels: the variant's own, without the words that the receiver's `Display` adds again.
pub(super) fn error_text(error: &StorageError) -> String {
    match error {
        StorageError::InvalidArgument { message }
        | StorageError::AccessDenied { message }
        | StorageError::ConnectFailed { message }
        | StorageError::PeerMisbehaved { message, .. }
        | StorageError::Internal { message, .. } => message.clone(),
        StorageError::ReadOnly { reason } | StorageError::Closed { reason, .. } => reason.clone(),
        StorageError::Unsupported { what } => what.clone(),
        StorageError::CheckFailed { .. }
        | StorageError::LimitExceeded { .. }
        | StorageError::Compacted { .. }
        | StorageError::EpochChanged { .. }
        | StorageError::SnapshotExpired
        | StorageError::Overloaded { .. }
        | StorageError::QuotaExceeded { .. }
        | StorageError::StorageFull { .. }
        | StorageError::AccessChanged
        | StorageError::Cancelled
        | StorageError::NumberReused { .. }
        | StorageError::DeadlineExceeded { .. } => error.to_string(),
    }
}

pub(super) fn read_error(from: &mut Reader) -> Result<StorageError> {
    let code = from.number("the error's code")?;
    let tag = from.byte("the outcome")?;
    let outcome = match tag {
        0 => Outcome::NotExecuted,
        1 => Outcome::Refused,
        2 => Outcome::Unknown,
        tag => {
            return Err(ProtocolError::BadTag {
                what: "the outcome",
                tag: tag.into(),
            });
        }
    };
    let message = from.text("the error's text")?;
    let read_limit = |from: &mut Reader| Ok(Limit::from_wire(from.number("a limit")?));
    let error = match code {
        1 => {
            let key = from.bytes("a key")?;
            let [present] = read_flags(from, "the actual revision")?;
            let actual = if present {
                Some(read_revision(from)?)
            } else {
                None
            };
            StorageError::CheckFailed { key, actual }
        }
        2 => StorageError::LimitExceeded {
            limit: read_limit(from)?,
            max: from.number("the limit's value")?,
            actual: from.number("the actual value")?,
        },
        3 => StorageError::InvalidArgument { message },
        4 => StorageError::Compacted {
            oldest: read_revision(from)?,
        },
        5 => {
            let Position { epoch, revision } = read_position(from)?;
            StorageError::EpochChanged {
                epoch,
                fork: revision,
            }
        }
        6 => StorageError::SnapshotExpired,
        7 => StorageError::Overloaded {
            limit: read_limit(from)?,
            max: from.number("the limit's value")?,
        },
        8 => StorageError::StorageFull {
            available: from.number("the free bytes")?,
            reserve: from.number("the reserve")?,
        },
        9 => StorageError::ReadOnly { reason: message },
        10 => StorageError::AccessDenied { message },
        11 => StorageError::Cancelled,
        12 => StorageError::DeadlineExceeded { outcome },
        13 => StorageError::Closed {
            reason: message,
            outcome,
        },
        14 => StorageError::PeerMisbehaved { message, outcome },
        15 => StorageError::Unsupported { what: message },
        16 => StorageError::Internal { message, outcome },
        17 => StorageError::NumberReused {
            number: from.number("the commit's number")?,
        },
        18 => StorageError::AccessChanged,
        19 => StorageError::QuotaExceeded {
            limit: read_limit(from)?,
            max: from.number("the quota's value")?,
        },
        // A newer server's code: its class is what matters, so it is kept, with the text; what else it says is not
        // for us to read.
        code => {
            std::mem::replace(from, Reader::new(Bytes::new())).rest();
            StorageError::Internal {
                message: format!("{message} (error code {code})"),
                outcome,
            }
        }
    };
    // Most codes have one outcome. Were another one passed over here, "unknown" could become "safe to repeat".
    if error.outcome() == outcome {
        Ok(error)
    } else {
        Err(ProtocolError::BadTag {
            what: "the outcome of this error code",
            tag: tag.into(),
        })
    }
}
