//! How a socket, or the search for the next one, ended: why, what comes next, and what callers are told.

use std::time::Duration;

use storage_protocol::native::close_code;
use storage_protocol::{Outcome, StorageError};
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::server_text::plain;

/// What kind of end it was, and so what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    /// The socket was lost.
    Lost,
    /// The server broke the protocol: what was in flight fails by that, and nothing comes next. It would do the same again.
    Misbehaved,
    /// The server goes away as planned, and wants us back after this.
    Drained { retry_after: Duration },
    /// The handles want it: nothing comes next.
    Ours,
    /// A newer incarnation took the session over: nothing comes next.
    Fenced,
    /// The server closed with a code that says not to repeat the same: nothing comes next.
    Refused,
}

impl EndKind {
    /// What the code of the server's close frame means, and how that is put.
    pub(crate) fn of_close(code: Option<u16>) -> (Self, &'static str) {
        match code {
            Some(close_code::FENCED) => (
                Self::Fenced,
                "another process holds this session now, the server closed",
            ),
            Some(
                close_code::PROTOCOL
                | close_code::UNSUPPORTED_DATA
                | close_code::INVALID_PAYLOAD
                | close_code::POLICY
                | close_code::TOO_BIG,
            ) => (Self::Refused, "the server closed for good"),
            _ => (Self::Lost, "the server closed"),
        }
    }

    /// Whether nothing comes next.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Ours | Self::Fenced | Self::Refused | Self::Misbehaved => true,
            Self::Lost | Self::Drained { .. } => false,
        }
    }
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

    /// As the server's close frame says.
    pub(crate) fn closed(frame: Option<CloseFrame>) -> Self {
        let code = frame.as_ref().map(|frame| u16::from(frame.code));
        let (kind, meaning) = EndKind::of_close(code);
        Self {
            kind,
            ..Self::lost(format!("{meaning}: {}", close_text(frame)))
        }
    }

    /// As reading failed: what no server may send ends it for good, before Welcome and behind it.
    pub(crate) fn of_read(error: &WsError) -> Self {
        match error {
            WsError::Capacity(error) => Self {
                close: Some(close_code::TOO_BIG),
                ..Self::misbehaved(format!("the server sent too much: {error}"))
            },
            WsError::Utf8(_) => Self {
                close: Some(close_code::INVALID_PAYLOAD),
                ..Self::misbehaved("the server sent a text frame")
            },
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::lost("the connection was lost: the server ended it without a word")
            }
            WsError::Protocol(error) => Self::misbehaved(format!("a bad WebSocket frame: {error}")),
            error => Self::lost(format!("the connection was lost: {error}")),
        }
    }

    /// Whether nothing comes next.
    pub(crate) fn is_final(&self) -> bool {
        self.kind.is_final()
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

/// A reason for a close frame: it has at most 123 bytes. Ours are plain, and cut at a character.
pub(crate) fn close_reason(why: &str) -> &str {
    let mut cut = why.len().min(120);
    while !why.is_char_boundary(cut) {
        cut -= 1;
    }
    why.get(..cut).unwrap_or_default()
}

/// A close frame in words.
pub(crate) fn close_text(frame: Option<CloseFrame>) -> String {
    match frame {
        None => "without a code".to_owned(),
        Some(frame) if frame.reason.is_empty() => format!("code {}", u16::from(frame.code)),
        Some(frame) => format!("code {}, {}", u16::from(frame.code), plain(&frame.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_say_not_to_come_again_are_final() {
        for code in [1002, 1003, 1007, 1008, 1009, 4003] {
            assert!(EndKind::of_close(Some(code)).0.is_final(), "{code}");
        }
        for code in [1000, 1001, 1011, 1013, 4000, 4001, 4002, 4999] {
            assert!(!EndKind::of_close(Some(code)).0.is_final(), "{code}");
        }
        assert!(!EndKind::of_close(None).0.is_final());
    }
}
