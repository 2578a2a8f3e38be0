//! Two protocols at one path: one of binary messages, one of text. The peer's first message says which it speaks.

use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use bytes::Bytes;
use storage_protocol::native::close_code;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::task::TaskTracker;

use super::socket::Task;
use super::{Close, Departure, Dialect, Heartbeat};
use crate::auth::{Identity, Proof};
use crate::config::Timeouts;
use crate::limits::budget::{Budget, SessionSlot};
use crate::metrics::ClosedLabel;
use crate::shared::Shared;

/// See the module. Until then neither runs: the binary protocol is one that sends nothing to a peer that has said nothing, as
/// mwDB's, whose clients ask for a prefix first.
pub(crate) struct ByKind<B> {
    /// `None`: the peer speaks the other one.
    binary: Option<B>,
    text: Task,
    /// From the first message on.
    is_decided: bool,
    /// Nobody has said who it is, and the binary protocol has no way to say so.
    is_nobody: bool,
    /// The end of a binary protocol that is not spoken is waited for at a shutdown.
    tasks: TaskTracker,
}

impl<B: Dialect + 'static> ByKind<B> {
    /// `identity`: who the peer is to the binary protocol.
    pub(crate) fn new(shared: &Arc<Shared>, identity: &Identity, binary: B, text: Task) -> Self {
        Self {
            binary: Some(binary),
            text,
            is_decided: false,
            is_nobody: matches!(identity.proof(), Proof::Pending),
            tasks: shared.tasks.clone(),
        }
    }
}

impl<B: Dialect + 'static> Dialect for ByKind<B> {
    fn received_bytes_max(&self) -> usize {
        let binary = self.binary.as_ref().map_or(0, Dialect::received_bytes_max);
        binary.max(self.text.received_bytes_max())
    }

    fn sent_bytes_max(&self) -> usize {
        let binary = self.binary.as_ref().map_or(0, Dialect::sent_bytes_max);
        binary.max(self.text.sent_bytes_max())
    }

    fn outbox_budget(&self) -> &Arc<Budget> {
        match &self.binary {
            Some(binary) => binary.outbox_budget(),
            None => self.text.outbox_budget(),
        }
    }

    fn receiving(&mut self, since: Option<Instant>, now: Instant) {
        match &mut self.binary {
            Some(binary) => binary.receiving(since, now),
            None => self.text.receiving(since, now),
        }
    }

    fn receive(&mut self, cx: &mut Context<'_>, message: Bytes, now: Instant) -> Result<(), Close> {
        let is_first = !std::mem::replace(&mut self.is_decided, true);
        match &mut self.binary {
            Some(_) if is_first && self.is_nobody => {
                let reason = "binary messages need a login with the request for the WebSocket";
                Err(Close::new(close_code::POLICY, ClosedLabel::Hello, reason))
            }
            Some(binary) => binary.receive(cx, message, now),
            None => self.text.receive(cx, message, now),
        }
    }

    fn receive_text(&mut self, text: Utf8Bytes, now: Instant) -> Result<(), Close> {
        let is_first = !std::mem::replace(&mut self.is_decided, true);
        if is_first && let Some(binary) = self.binary.take() {
            self.tasks.spawn(binary.finish(Departure::Lost));
        }
        match &mut self.binary {
            Some(binary) => binary.receive_text(text, now),
            None if text.len() > self.text.received_bytes_max() => {
                let max = self.text.received_bytes_max();
                let reason = format!("a message of {} bytes, at most {max} are taken", text.len());
                Err(Close::new(
                    close_code::TOO_BIG,
                    ClosedLabel::Protocol,
                    reason,
                ))
            }
            None => self.text.receive_text(text, now),
        }
    }

    fn ping(&self) -> Bytes {
        match &self.binary {
            Some(binary) => binary.ping(),
            None => self.text.ping(),
        }
    }

    fn pong(&mut self, bytes: &[u8]) {
        match &mut self.binary {
            Some(binary) => binary.pong(bytes),
            None => self.text.pong(bytes),
        }
    }

    fn wants_input(&self) -> bool {
        match &self.binary {
            _ if !self.is_decided => true,
            Some(binary) => binary.wants_input(),
            None => self.text.wants_input(),
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Close> {
        match &mut self.binary {
            _ if !self.is_decided => Ok(false),
            Some(binary) => binary.poll_work(cx, now),
            None => self.text.poll_work(cx, now),
        }
    }

    fn next_message(&mut self) -> Option<Message> {
        match &mut self.binary {
            Some(binary) => binary.next_message(),
            None => self.text.next_message(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        // A login is due whichever protocol it is, where it is to come within the connection.
        let login = self.text.deadline().filter(|_| self.is_nobody);
        let current = match &self.binary {
            Some(binary) => binary.deadline(),
            None => self.text.deadline(),
        };
        [login, current].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Close> {
        if self.is_nobody {
            self.text.on_time(now)?;
        }
        match &mut self.binary {
            Some(binary) => binary.on_time(now),
            None => self.text.on_time(now),
        }
    }

    fn heartbeat(&self, timeouts: &Timeouts) -> Heartbeat {
        match &self.binary {
            Some(binary) => binary.heartbeat(timeouts),
            None => self.text.heartbeat(timeouts),
        }
    }

    fn logged_in(&mut self) -> Option<SessionSlot> {
        match &mut self.binary {
            Some(binary) => binary.logged_in(),
            None => self.text.logged_in(),
        }
    }

    fn ending(&self) -> Option<Close> {
        match &self.binary {
            Some(binary) => binary.ending(),
            None => self.text.ending(),
        }
    }

    fn drain(&mut self) {
        match &mut self.binary {
            Some(binary) => binary.drain(),
            None => self.text.drain(),
        }
    }

    fn is_drained(&self) -> bool {
        match &self.binary {
            _ if !self.is_decided => true,
            Some(binary) => binary.is_drained(),
            None => self.text.is_drained(),
        }
    }

    fn close_received(&mut self) {
        match &mut self.binary {
            Some(binary) => binary.close_received(),
            None => self.text.close_received(),
        }
    }

    fn is_answered(&self) -> bool {
        match &self.binary {
            _ if !self.is_decided => true,
            Some(binary) => binary.is_answered(),
            None => self.text.is_answered(),
        }
    }

    async fn finish(self, departure: Departure) {
        match self.binary {
            // The task of the other was never begun.
            Some(binary) => binary.finish(departure).await,
            None => self.text.finish(departure).await,
        }
    }
}
