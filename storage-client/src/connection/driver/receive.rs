//! What comes in: frames to messages, messages to the callers and watches that wait for them.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use storage_protocol::native::{BULK_TURNS, RequestId, ServerMessage, close_code};
use storage_protocol::{Entry, Outcome, Position, StorageError, planted};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::{Driver, Pending};
use crate::connection::ConnectionState;
use crate::end::End;
use crate::order::Broken;
use crate::requests::{Answer, Control, Expect, OpenScan};
use crate::server_text::{plain, plain_error};
use crate::watch::Repair;

/// Parts of messages that are held at a time, however large a server lets a message be: all turns of a server that lets it
/// be as large as by default. One whole message and [`PARTS_BESIDE`] are taken in any case.
const PARTS_BYTES_MAX: usize = 512 << 20;

/// See [`PARTS_BYTES_MAX`].
const PARTS_BESIDE: usize = 64 << 20;

/// Messages that one poll reads before it writes.
const READS_PER_POLL: usize = 512;

impl Driver<'_> {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for read in 0..READS_PER_POLL {
            let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(cx) else {
                self.note_bytes();
                return Ok(());
            };
            if read == 0 {
                self.last_received = Instant::now();
                self.last_message = self.last_received;
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

    /// Bytes of a message that is not whole yet.
    fn note_bytes(&mut self) {
        let bytes = self.socket.get_ref().read();
        if bytes != self.bytes_read && !planted("liveness-by-message") {
            self.bytes_read = bytes;
            self.last_received = Instant::now();
        }
    }

    fn on_frame(&mut self, frame: Bytes) -> Result<(), End> {
        let unreadable = |error| End::misbehaved(format!("an unreadable frame: {error}"));
        let held = self.reassembler.bytes();
        let now = self.last_received.into_std();
        let Some(packet) = self.reassembler.accept(frame, now).map_err(unreadable)? else {
            return self.check_partial(held);
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
                self.draining = Some((reason.clone(), retry_after));
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

    /// Parts are only held for what was asked for: else the server would decide how much memory we take.
    fn check_partial(&self, held_before: usize) -> Result<(), End> {
        let limit = self.welcome.limits.message_bytes_max;
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
        let asked = |id| self.pending.contains_key(&id) || self.watches.contains_key(&id);
        let mut ids = self.reassembler.pending().map(|(_, id)| id);
        if ids.all(|id| id.is_some_and(asked)) {
            return Ok(());
        }
        Err(End::misbehaved("parts of a message that nobody asked for"))
    }

    fn remove_pending(&mut self, id: RequestId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.pending_bytes -= pending.bytes;
        if let Some(number) = pending.number() {
            self.unanswered.remove(&number);
        }
        Some(pending)
    }

    fn on_answer(&mut self, id: RequestId, message: ServerMessage) -> Result<(), End> {
        let Some(expect) = self.pending.get(&id).map(|pending| pending.expect) else {
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
        // Before it is taken for answered: else its caller would not be told why.
        self.check_answer(id, expect, &message)
            .map_err(|what| End::misbehaved(format!("the server misbehaved: {what}")))?;
        let reply = self.remove_pending(id).and_then(|pending| pending.reply);
        let mut scan = None;
        match (expect, &message) {
            (
                Expect::FirstPage,
                ServerMessage::Page {
                    scan: Some(number), ..
                },
            ) => {
                self.scans.insert(*number);
                // Dropped with the answer where nobody waits for it, which closes the scan.
                scan = Some(OpenScan::new(
                    *number,
                    self.session.socket,
                    self.queue.clone(),
                ));
            }
            (Expect::NextPage { scan, .. }, ServerMessage::Page { scan: None, .. }) => {
                self.scans.remove(&scan);
            }
            (Expect::Unwatched { watch }, _) => self.forget_watch(watch),
            _ => {}
        }
        if let Some(reply) = reply {
            let epoch = self.welcome.position.epoch;
            // Where the caller is gone, the answer is passed over.
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

    /// What an answer of the right kind has to keep.
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
                if let Some(number) = self.pending.get(&id).and_then(Pending::number) {
                    let mut unanswered = self.unanswered.iter().copied();
                    let lowest = unanswered.find(|other| *other != number);
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
                self.on_watching(id, position)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn on_error(&mut self, id: RequestId, error: StorageError) -> Result<(), End> {
        if let Some(pending) = self.remove_pending(id) {
            match pending.expect {
                Expect::Watching if pending.reply.is_none() => {
                    self.on_watch_error(id, error);
                    return Ok(());
                }
                Expect::Watching => self.forget_watch(id),
                Expect::Unwatched { watch } => self.forget_watch(watch),
                _ => {}
            }
            // What a server that goes away refuses is for the next one.
            let refused = matches!(
                error,
                StorageError::Closed {
                    outcome: Outcome::NotExecuted,
                    ..
                }
            );
            if refused && self.reconnects && self.draining.is_some() {
                self.keep_for_next(pending);
            } else if let Some(reply) = pending.reply {
                let _ = reply.send(Err(error));
            }
            return Ok(());
        }
        // Of a probe: its watch is over. The watch's own error, which this one overtook, says why.
        if self.marks.remove(&id).is_some() {
            return Ok(());
        }
        if self.watches.contains_key(&id) {
            self.on_watch_error(id, error);
            return Ok(());
        }
        self.passed_over(id)
    }

    /// A watch's stream ended, or its next one could not be opened.
    fn on_watch_error(&mut self, id: RequestId, error: StorageError) {
        let Some(entry) = self.watches.get(&id) else {
            return;
        };
        let watch = entry.shared.clone();
        let dropped = entry.dropped;
        self.forget_watch(id);
        if dropped {
            return;
        }
        if !self.reconnects {
            watch.end(error);
            return;
        }
        tracing::debug!(%error, "a watch is opened again");
        match watch.repair(error, self.welcome.position) {
            Repair::Again => self.session.watches.push_back(watch),
            Repair::Later => self.delay_watch(watch),
            Repair::None => {}
        }
    }

    fn on_event(&mut self, id: RequestId, message: ServerMessage, bytes: u64) -> Result<(), End> {
        let watch = self.marks.remove(&id).unwrap_or(id);
        let epoch = self.welcome.position.epoch;
        let Some(entry) = self.watches.get(&watch) else {
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
                    self.forget_one_mark(watch);
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
        if let Some(entry) = self.watches.get_mut(&id) {
            self.dropped_watches += usize::from(!entry.dropped);
            entry.dropped = true;
            let watch = entry.shared.clone();
            watch.set_id(None);
            self.session.watches.push_back(watch);
            self.deferred.push(Control::EndStream { stream: id });
        }
    }

    /// Something for an id that is not in use: what is left of a watch that has ended, or nonsense.
    fn passed_over(&self, id: RequestId) -> Result<(), End> {
        if self.ids.was_taken(id) {
            return Ok(());
        }
        Err(End::misbehaved(format!(
            "a frame for {id}, which was never asked for"
        )))
    }

    fn on_watching(&mut self, id: RequestId, position: Position) -> Result<(), Broken> {
        let Some(entry) = self.watches.get_mut(&id) else {
            return Ok(());
        };
        entry.attached = true;
        if entry.dropped {
            self.deferred.push(Control::EndStream { stream: id });
            return Ok(());
        }
        let watch = entry.shared.clone();
        if !entry.resumed {
            return watch.begin(position);
        }
        let (tokens, granted) = watch.resume(position.revision)?;
        if granted > 0 {
            self.deferred.push(Control::Credit {
                watch: watch.clone(),
                bytes: granted,
            });
        }
        let probes = tokens.into_iter().map(|token| Control::Probe {
            watch: watch.clone(),
            token,
        });
        self.deferred.extend(probes);
        Ok(())
    }

    /// The watch's id is free, and so are those of the marks that will not come.
    pub(super) fn forget_watch(&mut self, watch: RequestId) {
        if self
            .watches
            .remove(&watch)
            .is_some_and(|entry| entry.dropped)
        {
            self.dropped_watches -= 1;
        }
        self.marks.retain(|_, asked| *asked != watch);
    }

    /// A mark came under the watch's id: one probe of that watch is answered.
    fn forget_one_mark(&mut self, watch: RequestId) {
        let asked = self.marks.iter().find(|(_, asked)| **asked == watch);
        if let Some(id) = asked.map(|(id, _)| *id) {
            self.marks.remove(&id);
        }
    }
}

/// How much of messages in parts may be held, where one of them may have so many bytes.
fn parts_bytes_max(message_bytes_max: usize) -> usize {
    let turns = message_bytes_max.saturating_mul(BULK_TURNS);
    let least = message_bytes_max.saturating_add(PARTS_BESIDE);
    turns.min(PARTS_BYTES_MAX.max(least))
}

#[cfg(test)]
mod tests {
    use storage_protocol::Limits;

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
