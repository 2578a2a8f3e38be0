//! Handles what arrives: puts frames together to messages, and gives messages to the callers and watches that wait for
//! them. A message that breaks the protocol ends the connection.

use std::task::{Context, Poll};

use bytes::Bytes;
use storage_protocol::native::{RequestId, ServerMessage, close_code};
use storage_protocol::{Entry, Outcome, Position, StorageError};
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Driver;
use crate::connection::ConnectionState;
use crate::end::End;
use crate::order::Broken;
use crate::requests::{Answer, Control, Expect, OpenScan};
use crate::server_text::{plain, plain_error};
use crate::watch::Repair;

/// Messages that one poll reads before it writes.
const READS_PER_POLL: usize = 512;

impl Driver<'_> {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for read in 0..READS_PER_POLL {
            let Poll::Ready(message) = self.wire.poll_next(cx) else {
                self.liveness.note_bytes(self.wire.bytes_read());
                return Ok(());
            };
            if read == 0 {
                self.liveness.note_message();
            }
            match message {
                Some(Ok(Message::Binary(frame))) => self.on_frame(frame)?,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    return Err(End::closed(frame));
                }
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let mut end = End::misbehaved("the server sent a text frame");
                    end.close = Some(close_code::UNSUPPORTED_DATA);
                    return Err(end);
                }
                Some(Err(error)) => return Err(End::of_read(&error)),
                None => return Err(End::lost("the server closed the connection")),
            }
        }
        // There may be more: write first, then go on.
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn on_frame(&mut self, frame: Bytes) -> Result<(), End> {
        let unreadable = |error| End::misbehaved(format!("an unreadable frame: {error}"));
        let held = self.wire.parts_bytes();
        let now = self.liveness.last_received();
        let Some(packet) = self.wire.accept(frame, now).map_err(unreadable)? else {
            let asked = |id| self.in_flight.contains(id) || self.watches.contains(id);
            return self.wire.check_parts(held, asked);
        };
        let bytes = packet.payload.len() as u64;
        let id = packet.id;
        let message = ServerMessage::decode(packet).map_err(unreadable)?;
        match (message, id) {
            (
                ServerMessage::GoAway {
                    reason,
                    retry_after,
                },
                _,
            ) => {
                let reason = plain(&reason);
                self.closing.drain(reason.clone(), retry_after);
                let state = ConnectionState::Draining {
                    reason,
                    retry_after,
                };
                self.status.set_state(state);
                Ok(())
            }
            (ServerMessage::Error(error), Some(id)) => self.on_error(id, plain_error(error)),
            (
                message @ (ServerMessage::Changes { .. }
                | ServerMessage::States { .. }
                | ServerMessage::Progress { .. }
                | ServerMessage::Reset),
                Some(id),
            ) => self.on_event(id, message, bytes),
            (message, Some(id)) => self.on_answer(id, message),
            (_, None) => Err(End::misbehaved("a second Welcome")),
        }
    }

    fn on_answer(&mut self, id: RequestId, message: ServerMessage) -> Result<(), End> {
        let Some(expect) = self.in_flight.get(id).map(|pending| pending.expect) else {
            return Err(End::misbehaved(format!(
                "an answer to {id}, which is not in flight"
            )));
        };
        let fits = match (expect, &message) {
            (Expect::Values { keys }, ServerMessage::Values { entries, .. }) => {
                entries.len() == keys
            }
            (Expect::FirstPage, ServerMessage::Page { .. })
            | (Expect::Committed, ServerMessage::Committed { .. })
            | (Expect::Watching, ServerMessage::Watching { .. })
            | (Expect::Unwatched { .. } | Expect::ScanClosed { .. }, ServerMessage::Done) => true,
            (Expect::NextPage { scan, .. }, ServerMessage::Page { scan: more, .. }) => {
                more.is_none_or(|more| more == scan)
            }
            (Expect::Probed { token }, ServerMessage::Probed { token: came, .. }) => token == *came,
            _ => false,
        };
        if !fits {
            return Err(End::misbehaved(format!(
                "the answer to {id} does not fit its request ({expect:?})"
            )));
        }
        // Ordering: before it counts as answered, so that its caller gets the error.
        self.check_answer(id, expect, &message)
            .map_err(|what| End::misbehaved(format!("the server misbehaved: {what}")))?;
        let reply = self.in_flight.remove(id).and_then(|pending| pending.reply);
        let mut scan = None;
        match (expect, &message) {
            (
                Expect::FirstPage,
                ServerMessage::Page {
                    scan: Some(number), ..
                },
            ) => {
                self.scans.insert(*number);
                // If nobody waits for the answer, this is dropped with it, which closes the scan.
                scan = Some(OpenScan::new(
                    *number,
                    self.session.socket,
                    self.queue.clone(),
                ));
            }
            (Expect::NextPage { scan, .. }, ServerMessage::Page { scan: None, .. }) => {
                self.scans.remove(&scan);
            }
            (Expect::Unwatched { watch }, _) => self.watches.forget(watch),
            _ => {}
        }
        if let Some(reply) = reply {
            let epoch = self.welcome.position.epoch;
            // If the caller is gone, the answer is ignored.
            let socket = self.session.socket;
            let _ = reply.send(Ok(Answer {
                message,
                epoch,
                socket,
                scan,
            }));
        }
        Ok(())
    }

    /// Checks the rules for an answer of the right kind.
    fn check_answer(
        &mut self,
        id: RequestId,
        expect: Expect,
        message: &ServerMessage,
    ) -> Result<(), Broken> {
        match (expect, message) {
            (Expect::Values { .. }, ServerMessage::Values { revision, entries }) => {
                let newer = |entry: &&Entry| entry.revision > *revision;
                if let Some(entry) = entries.iter().flatten().find(newer) {
                    let newer = entry.revision;
                    return Err(format!(
                        "it read an entry of revision {newer} at {revision}"
                    ));
                }
            }
            (Expect::Committed, ServerMessage::Committed { revision }) => {
                if let Some(number) = self.in_flight.number(id) {
                    let lowest = self.in_flight.lowest_number_besides(number);
                    self.session.committed.note(number, *revision, lowest)?;
                }
            }
            (
                Expect::FirstPage,
                ServerMessage::Page {
                    scan: Some(number), ..
                },
            ) if self.scans.contains(number) => {
                return Err(format!("it opened scan {number} twice"));
            }
            (Expect::Watching, ServerMessage::Watching { revision }) => {
                let position = Position {
                    epoch: self.welcome.position.epoch,
                    revision: *revision,
                };
                self.watches.attach(id, position, &mut self.outgoing)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn on_error(&mut self, id: RequestId, error: StorageError) -> Result<(), End> {
        if let Some(pending) = self.in_flight.remove(id) {
            match pending.expect {
                Expect::Watching if pending.reply.is_none() => {
                    self.on_watch_error(id, error);
                    return Ok(());
                }
                Expect::Watching => self.watches.forget(id),
                Expect::Unwatched { watch } => self.watches.forget(watch),
                _ => {}
            }
            // A request that is refused by a server that shuts down is kept for the next socket.
            let refused = matches!(
                error,
                StorageError::Closed {
                    outcome: Outcome::NotExecuted,
                    ..
                }
            );
            if refused && self.closing.is_leaving() {
                self.in_flight.keep_for_next(pending);
            } else if let Some(reply) = pending.reply {
                let _ = reply.send(Err(error));
            }
            return Ok(());
        }
        // An error for a probe means that its watch is over. The watch's own error, which this one overtook, has the
        // reason.
        if self.watches.take_probe(id).is_some() {
            return Ok(());
        }
        if self.watches.contains(id) {
            self.on_watch_error(id, error);
            return Ok(());
        }
        self.passed_over(id)
    }

    /// A watch's stream ended, or its next one could not be opened.
    fn on_watch_error(&mut self, id: RequestId, error: StorageError) {
        let Some(entry) = self.watches.get(id) else {
            return;
        };
        let watch = entry.shared.clone();
        let dropped = entry.dropped;
        self.watches.forget(id);
        if dropped {
            return;
        }
        if !self.closing.reconnects() {
            watch.end(error);
            return;
        }
        tracing::debug!(%error, "a watch is opened again");
        match watch.repair(error, self.welcome.position) {
            Repair::Again => self.session.watches.push_back(watch),
            Repair::Later => {
                let at = self.watches.delay(watch);
                self.timer.note_deadline(at);
            }
            Repair::None => {}
        }
    }

    fn on_event(&mut self, id: RequestId, message: ServerMessage, bytes: u64) -> Result<(), End> {
        let watch = self.watches.take_probe(id).unwrap_or(id);
        let epoch = self.welcome.position.epoch;
        let Some(entry) = self.watches.get(watch) else {
            return self.passed_over(watch);
        };
        if entry.dropped {
            return Ok(());
        }
        if !entry.attached {
            let what = format!("it told something of watch {watch} before WATCHING");
            return Err(End::misbehaved(what));
        }
        let shared = entry.shared.clone();
        let misbehaved =
            |what| End::misbehaved(format!("the server misbehaved in watch {watch}: {what}"));
        match message {
            ServerMessage::Changes { commits } => shared
                .push_commits(commits, bytes, epoch)
                .map_err(misbehaved),
            ServerMessage::States { states } => {
                shared.push_states(states, bytes, epoch).map_err(misbehaved)
            }
            ServerMessage::Progress { revision, token } => {
                if token.is_some() && watch == id {
                    self.watches.forget_one_probe(watch);
                }
                let position = Position { epoch, revision };
                if shared.push_mark(position, token).map_err(misbehaved)? {
                    self.end_repair(watch);
                }
                Ok(())
            }
            _ => shared.push_reset(epoch).map_err(misbehaved),
        }
    }

    /// The stage that repaired a watch is over: its stream ends, and the watch goes on in its own mode.
    fn end_repair(&mut self, id: RequestId) {
        if let Some(entry) = self.watches.let_go(id) {
            let watch = entry.shared.clone();
            watch.set_id(None);
            self.session.watches.push_back(watch);
            self.outgoing
                .controls
                .push(Control::EndStream { stream: id });
        }
    }

    /// A message for an id that is not in use: ignored if it belongs to a watch that has ended, else an error.
    fn passed_over(&self, id: RequestId) -> Result<(), End> {
        if self.in_flight.was_taken(id) {
            return Ok(());
        }
        Err(End::misbehaved(format!(
            "a frame for {id}, which was never asked for"
        )))
    }
}
