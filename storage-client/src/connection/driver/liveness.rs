//! Whether the server lives: when it was last heard, when a ping is due, and when it was silent for too long.
//!
//! Silence counts from the last byte, so that a slow link is not taken for a dead server. A ping is due some time after
//! the last whole message received: also in the middle of a long one, so that the server does not take this client for
//! silent. The timer that wakes the task is in [`timer`](super::timer).

use std::time::Duration;

use storage_protocol::native::{Welcome, close_code};
use tokio::time::Instant;

use crate::end::End;
use crate::sync::deadline_after;

/// See the module.
pub(super) struct Liveness {
    /// When the last byte arrived: a byte of a long message is a sign of life.
    last_received: Instant,
    /// How many bytes had been read by then.
    bytes_read: u64,
    /// When the last whole message arrived.
    last_message: Instant,
    last_ping: Instant,
    heartbeat: Duration,
    silence: Duration,
}

impl Liveness {
    pub(super) fn new(welcome: &Welcome, now: Instant) -> Self {
        let silence = welcome.silence;
        // A ping has to have a chance to be answered before the silence is over.
        let heartbeat = welcome
            .heartbeat
            .min(silence / 3)
            .max(Duration::from_millis(1));
        Self {
            last_received: now,
            bytes_read: 0,
            last_message: now,
            last_ping: now,
            heartbeat,
            silence,
        }
    }

    pub(super) fn last_received(&self) -> Instant {
        self.last_received
    }

    /// A whole message arrived.
    pub(super) fn note_message(&mut self) {
        self.last_received = Instant::now();
        self.last_message = self.last_received;
    }

    /// Notes the bytes that the socket has read in all, those of messages that are not whole yet included.
    pub(super) fn note_bytes(&mut self, bytes: u64) {
        if bytes != self.bytes_read {
            self.bytes_read = bytes;
            self.last_received = Instant::now();
        }
    }

    /// When to [`check`](Self::check) next.
    pub(super) fn next_check(&self) -> Instant {
        self.silent_at().min(self.ping_at())
    }

    /// Whether a ping is due.
    ///
    /// # Errors
    /// The peer was silent for too long.
    pub(super) fn check(&mut self, now: Instant) -> Result<bool, End> {
        if now >= self.silent_at() {
            let silence = self.silence;
            return Err(End {
                close: Some(close_code::SILENT),
                ..End::lost(format!("the server was silent for {silence:?}"))
            });
        }
        let ping_due = now >= self.ping_at();
        if ping_due {
            self.last_ping = now;
        }
        Ok(ping_due)
    }

    fn silent_at(&self) -> Instant {
        deadline_after(self.last_received, self.silence)
    }

    fn ping_at(&self) -> Instant {
        deadline_after(self.last_message.max(self.last_ping), self.heartbeat)
    }
}
