//! Two protocols at one path: one of binary messages, one of text. The peer's first message says which it speaks.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

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

/// For so long a peer that has sent nothing is sent nothing either: it may speak the one or the other. After that it is sent
/// what the binary protocol has for a peer that only listens.
const UNDECIDED: Duration = Duration::from_secs(1);

/// See the module. Until the first message the binary protocol runs, so that it misses nothing that it is to send.
pub(crate) struct ByKind<B> {
    /// `None`: the peer speaks the other one.
    binary: Option<B>,
    text: Task,
    /// Until then nothing is sent; `None` from the first message on.
    undecided: Option<Instant>,
    /// Why the binary protocol would close, before it is known that it is spoken at all.
    failed: Option<Close>,
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
            undecided: Some(Instant::now() + UNDECIDED),
            failed: None,
            is_nobody: matches!(identity.proof(), Proof::Pending),
            tasks: shared.tasks.clone(),
        }
    }

    fn is_quiet(&self) -> bool {
        self.undecided.is_some_and(|until| Instant::now() < until)
    }

    /// A peer that only listens is told to come again when that may help. That it has no right to listen is no news to one that
    /// speaks the other protocol.
    fn check_failed(&mut self) -> Result<(), Close> {
        let is_quiet = self.is_quiet();
        let may_pass = |close: &mut Close| !is_quiet && close.code == close_code::TRY_AGAIN;
        self.failed.take_if(may_pass).map_or(Ok(()), Err)
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
        let is_first = self.undecided.take().is_some();
        if let Some(close) = self.failed.take() {
            return Err(close);
        }
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
        if self.undecided.take().is_some()
            && let Some(binary) = self.binary.take()
        {
            self.failed = None;
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

    fn wants_input(&self) -> bool {
        match &self.binary {
            Some(binary) => binary.wants_input(),
            None => self.text.wants_input(),
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Close> {
        self.check_failed()?;
        match &mut self.binary {
            // Whatever it did would be refused.
            Some(_) if self.is_nobody || self.failed.is_some() => Ok(false),
            // Such as that this peer may not watch what the other protocol has nothing to do with.
            Some(binary) if self.undecided.is_some() => {
                let worked = binary.poll_work(cx, now);
                worked.or_else(|close| {
                    self.failed = Some(close);
                    Ok(false)
                })
            }
            Some(binary) => binary.poll_work(cx, now),
            None => self.text.poll_work(cx, now),
        }
    }

    fn next_message(&mut self) -> Option<Message> {
        if self.is_quiet() {
            return None;
        }
        match &mut self.binary {
            Some(binary) => binary.next_message(),
            None => self.text.next_message(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let undecided = self.undecided.filter(|_| self.is_quiet());
        // A login is due whichever protocol it is, where it is to come within the connection.
        let login = self.text.deadline().filter(|_| self.is_nobody);
        let current = match &self.binary {
            Some(binary) => binary.deadline(),
            None => self.text.deadline(),
        };
        [undecided, login, current].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Close> {
        self.check_failed()?;
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
