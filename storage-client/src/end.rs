//! How a socket, or the search for the next one, ended: why, what comes next, and what callers are told.

use std::time::Duration;

use storage_protocol::native::close_code;
use storage_protocol::{Outcome, StorageError};

/// What kind of end it was, and so what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// The socket was lost.
    Lost,
    /// The server broke the protocol: what was in flight fails by that.
    Misbehaved,
    /// The server goes away as planned, and wants us back after this.
    Drained { retry_after: Duration },
    /// The handles want it: nothing comes next.
    Ours,
    /// A newer incarnation took the session over: nothing comes next.
    Fenced,
}

/// How a socket, or the search for the next one, ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) why: String,
    pub(crate) kind: EndKind,
    /// What to tell the server; `None` where it has closed, or cannot be reached.
    pub(crate) close: Option<u16>,
}

impl End {
    pub(crate) fn lost(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            kind: EndKind::Lost,
            close: None,
        }
    }

    pub(crate) fn ours(why: impl Into<String>) -> Self {
        Self {
            kind: EndKind::Ours,
            close: Some(close_code::NORMAL),
            ..Self::lost(why)
        }
    }

    pub(crate) fn misbehaved(why: impl Into<String>) -> Self {
        Self {
            kind: EndKind::Misbehaved,
            close: Some(close_code::PROTOCOL),
            ..Self::lost(why)
        }
    }

    pub(crate) fn is_final(&self) -> bool {
        matches!(self.kind, EndKind::Ours | EndKind::Fenced)
    }

    pub(crate) fn error(&self, outcome: Outcome) -> StorageError {
        if self.kind == EndKind::Misbehaved {
            let message = self.why.clone();
            return StorageError::PeerMisbehaved { message, outcome };
        }
        let reason = self.why.clone();
        StorageError::Closed { reason, outcome }
    }
}
