//! What a task of a protocol sends and receives, and how its connections are.

use std::time::Duration;

use bytes::Bytes;
use storage_protocol::StorageError;
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// A message of a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of text; cheap to clone, so that the same text can be sent to many.
    Text(Utf8Bytes),
    /// Of bytes.
    Binary(Bytes),
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<Utf8Bytes>) -> Self {
        Self::Text(text.into())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// The memory it takes while it waits.
    pub(super) fn cost(&self) -> usize {
        self.len() + size_of::<Self>()
    }
}

/// When pings are sent. A peer that answers none, and sends nothing else, is closed after the protocol's
/// [`silence`](SocketOptions::silence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// After so long without a message of the peer.
    WhenSilent(Duration),
    /// At this interval.
    Every(Duration),
}

/// What waits to be sent.
#[derive(Debug)]
pub(super) enum Outgoing {
    Message(Message),
    /// A ping with its number.
    Probe(u64),
}

impl Outgoing {
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Message(message) => message.cost(),
            Self::Probe(_) => size_of::<Self>(),
        }
    }
}

/// Settings of a protocol's connections. `None` means: as for native sessions.
#[derive(Clone, Debug, Default)]
pub struct SocketOptions {
    /// The longest message that is taken, in bytes; a longer one closes with 1009. Default `limits.message_bytes_max`.
    pub message_bytes_max: Option<usize>,
    /// When pings go out. Default: after `timeouts.heartbeat` of silence.
    pub ping: Option<Ping>,
    /// A peer that has sent nothing for so long is closed with 4001; at least twice the time of a ping. Default
    /// `timeouts.silence`.
    pub silence: Option<Duration>,
    /// Whether peers log in within the connection: one that has not ([`WebSocket::log_in`](super::WebSocket::log_in)) within `timeouts.handshake`
    /// of its TCP connection is closed with 1008.
    pub login: bool,
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The peer is gone: nothing can be sent any more.
    #[error("the peer is gone")]
    Disconnected,
    /// It is longer than `limits.message_bytes_max`.
    #[error("a message of {bytes} bytes, at most {max} can be sent")]
    TooLong {
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        max: usize,
    },
}

/// Why a login fails: the principal has as many connections as it may have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct LoginError(pub(super) StorageError);
