//! The session as a [`Dialect`]: what the driver of its WebSocket calls.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use storage_protocol::native::{Class, Incoming, ProtocolError, ServerMessage, close_code};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::partial::is_request;
use super::{Attached, Native};
use crate::engine::Resumed;
use crate::limits::budget::Budget;
use crate::metrics::ClosedLabel;
use crate::ws::{Close, Departure, Dialect};

/// How long a client is to wait before it connects again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Dialect for Native {
    fn received_bytes_max(&self) -> usize {
        self.limits().frame_bytes_max
    }

    fn sent_bytes_max(&self) -> usize {
        self.limits().frame_bytes_max
    }

    fn outbox_budget(&self) -> &Arc<Budget> {
        &self.outgoing.budget
    }

    fn receiving(&mut self, since: Option<Instant>, now: Instant) {
        self.incoming.fragments.clock.receiving(since, now);
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        message: Bytes,
        now: Instant,
    ) -> std::result::Result<(), Close> {
        let link_time = self.incoming.fragments.clock.at(now);
        let incoming = match self.incoming.reassembler.receive(message, link_time) {
            Ok(incoming) => incoming,
            Err(
                error @ (ProtocolError::FrameTooLong { .. } | ProtocolError::MessageTooLong { .. }),
            ) => {
                return Err(Close::new(
                    close_code::TOO_BIG,
                    ClosedLabel::Protocol,
                    error.to_string(),
                ));
            }
            Err(error) => return Err(Close::protocol(error)),
        };
        match incoming {
            Incoming::Whole(packet) => self.dispatch(cx, packet, now)?,
            Incoming::Completed(packet) => {
                self.incoming
                    .counted
                    .resize(self.incoming.reassembler.cost());
                if let Some(id) = packet.id.filter(|_| is_request(packet.kind)) {
                    self.incoming.fragments.end(id);
                }
                self.dispatch(cx, packet, now)?;
            }
            Incoming::Began { .. } | Incoming::Part { .. } if self.attached.is_none() => {
                return Err(self.too_early());
            }
            Incoming::Began { kind, id } => {
                self.begin_fragments(kind, id)?;
                self.bound_partial(kind, id)?;
                self.start_commits(cx, now);
            }
            Incoming::Part { kind, id } => {
                self.bound_partial(kind, id)?;
                self.start_commits(cx, now);
            }
        }
        self.watch_fragments(now);
        Ok(())
    }

    fn receive_text(&mut self, _: Utf8Bytes, _: Instant) -> std::result::Result<(), Close> {
        Err(Close::new(
            close_code::UNSUPPORTED_DATA,
            ClosedLabel::Protocol,
            "a text message; this protocol is binary",
        ))
    }

    fn wants_input(&self) -> bool {
        true
    }

    fn poll_work(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> std::result::Result<bool, Close> {
        self.count_outbox();
        let mut moved = self.poll_resuming(cx)?;
        self.check_fence(cx)?;
        moved |= self.start_commits(cx, now);
        moved |= self.poll_commits(cx, now);
        moved |= self.poll_openings(cx, now);
        moved |= self.poll_reads(cx, now);
        moved |= self.poll_watches(cx, now);
        self.count_outbox();
        if moved {
            self.watch_fragments(now);
        }
        self.bound_answers()?;
        Ok(moved)
    }

    fn next_message(&mut self) -> Option<Message> {
        let message = self.outgoing.outbox.pop();
        self.outgoing.untaken = self
            .outgoing
            .untaken
            .min(self.outgoing.outbox.answers_bytes());
        message.map(Message::Binary)
    }

    fn deadline(&self) -> Option<Instant> {
        let hello = self.awaits_hello().then_some(self.handshake.deadline);
        let (fragments, reads) = (self.incoming.fragments.deadline(), self.reads.deadline());
        let idle = (!self.watching.watches.is_empty()).then_some(self.watching.idle_check);
        let (scans, retry) = (self.scans.deadline(), self.watching.retry_at);
        [hello, fragments, reads, scans, idle, retry]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_time(&mut self, now: Instant) -> std::result::Result<(), Close> {
        if self.awaits_hello() && self.handshake.deadline <= now {
            return Err(Close::new(
                close_code::HELLO_TIMEOUT,
                ClosedLabel::Hello,
                "no Hello in time",
            ));
        }
        self.scans.expire(now);
        self.reads.on_time(now);
        if self.watching.idle_check <= now {
            self.watching.idle_check = now + self.shared.config.timeouts.idle_mark;
            if let Some(Attached { storage, .. }) = &self.attached {
                self.watching
                    .watches
                    .request_idle_progress(storage.position().revision);
            }
        }
        self.check_fragments(now)
    }

    fn drain(&mut self) {
        self.draining = true;
        let reason = "the server shuts down".to_owned();
        let message = ServerMessage::GoAway {
            retry_after: RETRY_AFTER,
            reason,
        };
        self.outgoing
            .outbox
            .push(Class::Control, message.encode(None));
    }

    fn is_drained(&self) -> bool {
        self.handshake.resuming.is_none() && self.is_answered()
    }

    fn close_received(&mut self) {
        self.closing = true;
    }

    // A commit that waits for an earlier one which has not arrived is not waited for.
    fn is_answered(&self) -> bool {
        self.reads.is_empty()
            && self.watching.openings.is_empty()
            && self.commits.running.is_empty()
            && self.outgoing.outbox.is_empty()
    }

    async fn finish(mut self, departure: Departure) {
        self.watching.watches.clear();
        self.scans.clear();
        self.reads.clear();
        self.watching.openings.clear();
        // What was handed to the engine is executed; the session is left after that.
        while self.commits.running.next().await.is_some() {}
        let mut session = self.attached.take().map(|attached| attached.session);
        if let (Departure::Closed, Some(resuming)) = (&departure, self.handshake.resuming.take()) {
            // The peer left while its session was being resumed. An attempt that fails leaves nothing to end.
            if let Ok(Resumed::Session(resumed)) = resuming.attempt.await {
                session = Some(resumed);
            }
        }
        let Some(session) = session else {
            return;
        };
        match departure {
            Departure::Lost => session.lose(),
            Departure::Closed => {
                if let Err(error) = session.end().await {
                    tracing::warn!(%error, "cannot end the session");
                }
            }
        }
    }
}
