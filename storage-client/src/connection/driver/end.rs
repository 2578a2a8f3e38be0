//! How a socket ends: what is answered first, what is kept for the next one, and the goodbye.

use std::collections::VecDeque;

use futures_util::{SinkExt, StreamExt};
use storage_protocol::native::{ClientMessage, close_code};
use storage_protocol::{Outcome, StorageError, planted};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::{Driver, Pending};
use crate::end::{End, EndKind, close_reason};
use crate::requests::{Call, Control, Ending, Expect, Submission};

impl Driver<'_> {
    /// The end that the handles asked for. Closed with 1000, the session ends; with 1001, it stays.
    pub(super) fn end_ours(&self, why: &str) -> End {
        let mut end = End::ours(why);
        if let Some(Ending::Graceful { leave: true, .. }) = self.ending {
            end.close = Some(close_code::GOING_AWAY);
        }
        end
    }

    /// Whether no new requests go out, since the server goes away and another socket follows.
    pub(super) fn is_leaving(&self) -> bool {
        self.draining.is_some() && self.reconnects
    }

    /// Whether what the handles asked for is done, or what a server that goes away still had to answer.
    pub(super) fn check_ending(&mut self) -> Result<(), End> {
        let waits = |pending: &Pending| pending.reply.is_some() && !pending.is_given_up();
        let done = match self.ending {
            None => false,
            Some(Ending::Abandoned { .. }) => self.outbox.is_empty(),
            Some(Ending::Graceful { .. }) => {
                let intake = self.queue.intake();
                let queue_empty = intake.queue.is_empty() && intake.again.is_empty();
                queue_empty
                    && self.kept.is_empty()
                    && self.outbox.is_empty()
                    && !self.pending.values().any(waits)
            }
        };
        if done {
            return Err(self.end_ours("closed by this client"));
        }
        if let Some((reason, retry_after)) = &self.draining
            && self.reconnects
            && self.outbox.is_empty()
            && !self.pending.values().any(waits)
        {
            return Err(End {
                kind: EndKind::Drained {
                    retry_after: *retry_after,
                },
                close: Some(close_code::GOING_AWAY),
                ..End::lost(format!("the server goes away: {reason}"))
            });
        }
        Ok(())
    }

    /// A request that is for the next socket. A commit keeps its number, and so its place.
    pub(super) fn keep_for_next(&mut self, pending: Pending) {
        let Pending {
            reply: Some(reply),
            deadline,
            sequence,
            call: Some(call),
            ..
        } = pending
        else {
            return;
        };
        let call = if planted("repeat-under-new-number") {
            unnumbered(call)
        } else {
            call
        };
        if let (Call::Watch { watch, .. }, false) = (&call, reply.is_closed()) {
            watch.set_id(None);
        }
        let submission = Submission {
            call,
            reply: Some(reply),
            deadline,
        };
        if !submission.is_given_up() {
            self.kept.push((sequence, submission));
        }
    }

    /// The socket is gone. If another follows, what is in flight is put back in its order; else it fails.
    pub(super) fn requeue_calls(&mut self, end: &End) {
        let follows = self.reconnects && !end.is_final();
        for (_, pending) in std::mem::take(&mut self.pending) {
            let goes_on = follows && end.kind != EndKind::Misbehaved;
            if matches!(pending.expect, Expect::NextPage { .. }) && goes_on {
                // The server dropped the scan's snapshot with the socket.
                if let Some(reply) = pending.reply {
                    let _ = reply.send(Err(StorageError::SnapshotExpired));
                }
            } else if goes_on {
                self.keep_for_next(pending);
            } else if let Some(reply) = pending.reply {
                let _ = reply.send(Err(end.error(pending.expect.outcome_if_lost())));
            }
        }
        let since = std::time::Instant::now();
        let delayed = self.delayed.drain(..).map(|(_, watch)| watch);
        let opening = self.session.watches.drain(..).chain(delayed);
        let mut watches: VecDeque<_> = opening.collect();
        for (_, entry) in self.watches.drain() {
            // Its first request is with those that are put back.
            let is_asked_for = entry.attached || entry.resumed;
            if !entry.dropped && is_asked_for {
                watches.push_back(entry.shared);
            }
        }
        for watch in &watches {
            let error = end.error(Outcome::NotExecuted);
            if follows {
                watch.lose(since);
            } else if self.reconnects && end.kind != EndKind::Ours {
                watch.end_unresumed(error, self.welcome.position);
            } else {
                watch.end(error);
            }
        }
        self.session.watches = watches;
        self.kept.sort_unstable_by_key(|(sequence, _)| *sequence);
        let mut again: VecDeque<_> = self.kept.drain(..).map(|(_, kept)| kept).collect();
        again.extend(self.taken.drain(..));
        let mut intake = self.queue.intake();
        again.append(&mut intake.again);
        intake.again = again;
        // Watches that their applications let go of meanwhile.
        let dropped = self.deferred.drain(..);
        let dropped = dropped.filter(|control| matches!(control, Control::Unwatch { .. }));
        intake.control.extend(dropped);
    }

    /// Sends the close frame and reads up to the server's own, or sends the answer to the server's. Bounded by the
    /// caller.
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

/// A commit that takes a new number: only as a planted bug.
fn unnumbered(call: Call) -> Call {
    let Call::Repeat { packet, .. } = &call else {
        return call;
    };
    let mut packet = packet.clone();
    packet.id = Some(0);
    match ClientMessage::decode(packet) {
        Ok(ClientMessage::Commit { options, batch, .. }) => Call::Commit {
            number: None,
            batch,
            options,
        },
        // We have encoded it ourselves.
        _ => call,
    }
}
