//! The socket, with the layer between it and messages: puts the parts of received messages together, and splits
//! messages to be sent into frames. It does not know what messages mean.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use storage_protocol::Limits;
use storage_protocol::native::{
    BULK_TURNS, Class, Outbox, Packet, ProtocolError, Reassembler, RequestId, close_code,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use crate::end::{End, close_reason};
use crate::transport::Socket;

/// So many bytes of messages in parts are held at a time, however large the server's limit on messages is: enough for
/// as many as a server with the default limit sends at a time. One whole message and [`PARTS_BESIDE`] are accepted in
/// any case.
const PARTS_BYTES_MAX: usize = 512 << 20;

/// See [`PARTS_BYTES_MAX`].
const PARTS_BESIDE: usize = 64 << 20;

/// See the module.
pub(super) struct Wire {
    socket: Socket,
    reassembler: Reassembler,
    /// The server's limit on the size of a message.
    message_bytes_max: usize,
    /// Bounded by the bytes in flight that the server announced, and the controls.
    outbox: Outbox,
    ping_due: bool,
    flush_due: bool,
}

impl Wire {
    pub(super) fn new(socket: Socket, message_bytes_max: usize) -> Self {
        let max = message_bytes_max.min(Limits::MESSAGE_BYTES_CEILING);
        Self {
            socket,
            reassembler: Reassembler::new(Limits::FRAME_BYTES, max),
            message_bytes_max,
            outbox: Outbox::new(),
            ping_due: false,
            flush_due: false,
        }
    }

    // Reading.

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, WsError>>> {
        Pin::new(&mut self.socket).poll_next(cx)
    }

    /// Bytes that were read so far, those of messages that are not whole among them.
    pub(super) fn bytes_read(&self) -> u64 {
        self.socket.get_ref().read()
    }

    /// Bytes of the messages that are not whole yet.
    pub(super) fn parts_bytes(&self) -> usize {
        self.reassembler.bytes()
    }

    /// Adds a frame to its message, and returns the message when it is whole.
    pub(super) fn accept(
        &mut self,
        frame: Bytes,
        now: Instant,
    ) -> Result<Option<Packet>, ProtocolError> {
        self.reassembler.accept(frame, now.into_std())
    }

    /// Checks that parts are only held of messages that were asked for: else the server would decide how much memory
    /// this client takes.
    pub(super) fn check_parts(
        &self,
        held_before: usize,
        asked: impl Fn(RequestId) -> bool,
    ) -> Result<(), End> {
        let limit = self.message_bytes_max;
        let (held, max) = (self.reassembler.bytes(), parts_bytes_max(limit));
        if held > max {
            return Err(End {
                close: Some(close_code::TOO_BIG),
                ..End::misbehaved(format!(
                    "it began too many messages in parts: {held} bytes are held, and {max} are the most"
                ))
            });
        }
        if self.reassembler.bytes() / limit.max(1) == held_before / limit.max(1) {
            return Ok(());
        }
        let mut ids = self.reassembler.pending().map(|(_, id)| id);
        if ids.all(|id| id.is_some_and(&asked)) {
            return Ok(());
        }
        Err(End::misbehaved("parts of a message that nobody asked for"))
    }

    // Writing.

    pub(super) fn push(&mut self, class: Class, packet: Packet) {
        self.outbox.push(class, packet);
    }

    /// Sends a ping with the next write, before all that waits.
    pub(super) fn ping(&mut self) {
        self.ping_due = true;
    }

    /// Whether all frames were given to the socket.
    pub(super) fn outbox_is_empty(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Whether this request is still being sent in parts.
    pub(super) fn has_bulk(&self, id: RequestId) -> bool {
        self.outbox.has_bulk(id)
    }

    /// Writes as much as the socket takes.
    pub(super) fn poll_feed(&mut self, cx: &mut Context<'_>) -> Result<(), WsError> {
        let mut socket = Pin::new(&mut self.socket);
        while self.ping_due || !self.outbox.is_empty() {
            if socket.as_mut().poll_ready(cx)?.is_pending() {
                return Ok(());
            }
            let message = if std::mem::take(&mut self.ping_due) {
                Message::Ping(Bytes::new())
            } else {
                match self.outbox.pop() {
                    Some(frame) => Message::Binary(frame),
                    None => break,
                }
            };
            socket.as_mut().start_send(message)?;
            self.flush_due = true;
        }
        if self.flush_due && socket.poll_flush(cx)?.is_ready() {
            self.flush_due = false;
        }
        Ok(())
    }

    /// Sends the close frame and reads up to the server's own, or sends the answer to the server's. The caller bounds
    /// the time.
    pub(super) async fn say_goodbye(&mut self, end: &End, is_last: bool) {
        if let Some(code) = end.close {
            let frame = CloseFrame {
                code: code.into(),
                reason: close_reason(&end.why).into(),
            };
            if self.socket.close(Some(frame)).await.is_err() {
                return;
            }
        }
        if end.close.is_none() || !is_last {
            let _ = self.socket.flush().await;
            return;
        }
        while let Some(Ok(message)) = self.socket.next().await {
            if message.is_close() {
                return;
            }
        }
    }
}

/// How many bytes of messages in parts may be held, if one message may have `message_bytes_max`.
fn parts_bytes_max(message_bytes_max: usize) -> usize {
    let turns = message_bytes_max.saturating_mul(BULK_TURNS);
    let least = message_bytes_max.saturating_add(PARTS_BESIDE);
    turns.min(PARTS_BYTES_MAX.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_a_bound_that_is_not_the_servers() {
        let default = Limits::default().message_bytes_max;
        assert_eq!(parts_bytes_max(1 << 20), 8 << 20);
        assert_eq!(parts_bytes_max(default), 8 * default);
        assert_eq!(parts_bytes_max(2 * default), 8 * default);
        let most = Limits::MESSAGE_BYTES_CEILING;
        assert_eq!(parts_bytes_max(most), most + (64 << 20));
    }
}
