//! Sends requests from the queue, each with an id, and the messages of watches and scans.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use storage_protocol::native::{Class, ClientMessage, Packet, RequestId};
use storage_protocol::{Limit, Result, StorageError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Driver, Pending};
use crate::end::End;
use crate::requests::{Answer, Call, Control, Expect, Submission};
use crate::sync::deadline_after;
use crate::watch::WatchShared;

/// At most this many requests are in flight, whatever the server allows: it may never answer them.
const IN_FLIGHT_MAX: usize = 1_024;

impl Driver<'_> {
    fn in_flight_max(&self) -> usize {
        let announced = self.welcome.limits.requests_in_flight_max;
        announced.clamp(1, IN_FLIGHT_MAX)
    }

    /// Takes and sends the requests that there is room for. True: yield first.
    pub(super) fn take_requests(&mut self, cx: &Context<'_>) -> bool {
        let bytes_max = self.welcome.limits.bytes_in_flight_max;
        let queue = self.queue.clone();
        let mut intake = queue.intake();
        intake.register(cx.waker());
        self.closing.note_ending(intake.ending);
        self.outgoing.controls.append(&mut intake.control);
        // Controls first: they free what the server holds for this client.
        let used = self.in_flight.len() + self.outgoing.controls.len();
        let mut room = self.in_flight_max().saturating_sub(used);
        if self.closing.is_leaving() {
            room = 0;
        }
        let given_up = std::mem::take(&mut intake.given_up);
        if let Some(earliest) = intake.earliest.take() {
            self.timer.note_deadline(earliest);
        }
        let waits = !intake.queue.is_empty() || !intake.again.is_empty();
        let cork = room > 0 && waits && !self.in_flight.is_empty();
        if cork && !self.outgoing.yielded {
            intake.given_up = given_up;
            return true;
        }
        self.outgoing.yielded = false;
        let sent = self.session.sent;
        let places =
            self.outgoing
                .take_requests(&mut intake, room, bytes_max, &self.in_flight, sent);
        drop(intake);
        self.queue.free_room(places);
        if given_up {
            self.sweep();
        }
        false
    }

    pub(super) fn send_requests(&mut self) {
        let mut requests = std::mem::take(&mut self.outgoing.requests);
        for submission in requests.drain(..) {
            self.send_request(submission);
        }
        self.outgoing.requests = requests;
    }

    fn send_request(&mut self, mut submission: Submission) {
        let is_repeat = matches!(submission.call, Call::Repeat { .. });
        // A commit that is retried is sent even if nobody waits for it: the server waits for its commit number.
        if submission.is_given_up() && !is_repeat {
            return;
        }
        if let Call::Commit {
            number: Some(number),
            ..
        } = submission.call
            && number != self.session.sent + 1
            && !self.session.promised.remove(&number)
        {
            let sent = self.session.sent;
            let reason = format!(
                "{number} is no number to go on with: {sent} was the session's last (or it was replaced)"
            );
            // The commit belongs to a session that was replaced, and may have been executed there.
            let outcome = submission.call.outcome_if_unsent();
            return submission.fail(StorageError::Closed { reason, outcome });
        }
        if let Some(refusal) = self.refusal(&submission.call) {
            return submission.fail(refusal);
        }
        let Submission {
            call,
            reply,
            deadline,
        } = submission;
        let (expect, bytes) = (call_expects(&call), call.bytes());
        let id = self.fresh_id();
        // Of the call only that is kept which the next socket would need.
        let (mut packet, call) = match call {
            Call::Commit {
                number,
                batch,
                options,
            } => {
                // Ordering: a commit number is taken only here, where the commit is certain to be sent: the server
                // waits for each number.
                let number = number.unwrap_or(self.session.sent + 1);
                let message = ClientMessage::Commit {
                    number,
                    options,
                    batch,
                };
                let packet = message.encode(None);
                (packet.clone(), Call::Repeat { number, packet })
            }
            Call::Send { ref packet, .. }
            | Call::Repeat { ref packet, .. }
            | Call::Watch { ref packet, .. } => (packet.clone(), call),
        };
        match &call {
            Call::Repeat { number, .. } => {
                self.session.sent = self.session.sent.max(*number);
            }
            Call::Watch { watch, .. } => self.watches.open(id, watch.clone(), false),
            Call::Send { .. } | Call::Commit { .. } => {}
        }
        packet.id = Some(id);
        self.put(packet, expect, reply, deadline, bytes, Some(call));
    }

    /// Checks a call by the limits that only the connection knows.
    fn refusal(&self, call: &Call) -> Option<StorageError> {
        let limits = &self.welcome.limits;
        let (limit, used, max) = match call {
            Call::Watch { .. } => (
                Limit::Watches,
                self.watches.live_count(),
                limits.watches_max,
            ),
            Call::Send {
                expect: Expect::FirstPage,
                ..
            } => (Limit::Scans, self.scans.len(), limits.scans_max),
            // The server dropped its snapshot with the socket.
            Call::Send {
                expect: Expect::NextPage { socket, .. },
                ..
            } if *socket != self.session.socket => return Some(StorageError::SnapshotExpired),
            Call::Send { .. } | Call::Commit { .. } | Call::Repeat { .. } => return None,
        };
        let max_wire = max as u64;
        (used >= max).then_some(StorageError::Overloaded {
            limit,
            max: max_wire,
        })
    }

    fn fresh_id(&mut self) -> RequestId {
        self.in_flight.fresh_id(&self.watches)
    }

    fn put(
        &mut self,
        packet: Packet,
        expect: Expect,
        reply: Option<oneshot::Sender<Result<Answer>>>,
        deadline: Instant,
        bytes: usize,
        call: Option<Call>,
    ) {
        if let Some(id) = packet.id {
            self.in_flight
                .insert(id, expect, reply, deadline, bytes, call);
        }
        self.wire.push(Class::Answer, packet);
    }

    /// Opens the streams of watches that have none, while at most half of the requests that may be in flight are: the
    /// rest is for callers.
    pub(super) fn send_watches(&mut self) {
        while self.in_flight.len() + self.outgoing.requests.len() < self.in_flight_max() / 2 + 1
            && !self.closing.is_leaving()
            && let Some(watch) = self.session.next_watch()
        {
            let request = watch.next_request();
            let id = self.fresh_id();
            let packet = ClientMessage::Watch(request).encode(Some(id));
            let bytes = packet.payload.len();
            self.watches.open(id, watch, true);
            let never = deadline_after(Instant::now(), Duration::MAX);
            self.put(packet, Expect::Watching, None, never, bytes, None);
        }
    }

    /// Sends controls, which dropped handles and watches have queued. The server does not count them as in flight.
    pub(super) fn send_controls(&mut self) -> Result<(), End> {
        for control in std::mem::take(&mut self.outgoing.controls) {
            match control {
                Control::Misbehaved { what, socket } if socket == self.session.socket => {
                    return Err(End::misbehaved(format!("the server misbehaved: {what}")));
                }
                control => self.send_control(control),
            }
        }
        Ok(())
    }

    fn send_control(&mut self, control: Control) {
        match control {
            Control::Credit { watch, bytes } => {
                if let Some(id) = self.watches.live_id(&watch) {
                    let credit = ClientMessage::Credit { bytes };
                    self.wire.push(Class::Control, credit.encode(Some(id)));
                }
            }
            Control::Probe { watch, token } => {
                if let Some(stream) = self.watches.live_id(&watch)
                    && watch.claim_probe(token)
                {
                    let probe = ClientMessage::Probe {
                        watch: Some(stream),
                        token,
                    };
                    let id = self.fresh_id();
                    self.watches.note_probe(id, stream);
                    self.wire.push(Class::Answer, probe.encode(Some(id)));
                }
            }
            Control::Unwatch { watch } => self.unwatch(&watch),
            // It was meant for a socket that is gone.
            Control::Misbehaved { .. } => {}
            Control::EndStream { stream } => self.put_control(
                &ClientMessage::Unwatch { watch: stream },
                Expect::Unwatched { watch: stream },
            ),
            Control::CloseScan { scan, socket } => {
                if socket == self.session.socket && self.scans.remove(&scan) {
                    let close = ClientMessage::ScanClose { scan };
                    self.put_control(&close, Expect::ScanClosed { scan });
                }
            }
        }
    }

    /// The application dropped a watch.
    fn unwatch(&mut self, watch: &Arc<WatchShared>) {
        watch.set_dropped();
        if let Some(id) = self.watches.live_id(watch)
            && let Some(entry) = self.watches.let_go(id)
            // A stream that is not attached yet is ended when `Watching` arrives.
            && entry.attached
        {
            self.send_control(Control::EndStream { stream: id });
        }
    }

    fn put_control(&mut self, message: &ClientMessage, expect: Expect) {
        let id = self.fresh_id();
        let never = deadline_after(Instant::now(), Duration::MAX);
        self.put(message.encode(Some(id)), expect, None, never, 0, None);
    }

    /// Gives up requests whose callers are gone.
    fn sweep(&mut self) {
        let gone = |pending: &Pending| pending.is_given_up();
        for id in self.in_flight.ids_where(gone) {
            self.abandon(id);
        }
        self.in_flight.forget_given_up();
    }

    /// Nobody waits for this answer any more. The id stays in use until it arrives.
    pub(super) fn abandon(&mut self, id: RequestId) -> Option<oneshot::Sender<Result<Answer>>> {
        let pending = self.in_flight.get_mut(id)?;
        let reply = pending.reply.take();
        // While a request is still being sent in parts, its cancellation would overtake its end.
        if pending.expect.can_cancel() && !self.wire.has_bulk(id) {
            let cancel = ClientMessage::Cancel.encode(Some(id));
            self.wire.push(Class::Answer, cancel);
        }
        reply
    }
}

fn call_expects(call: &Call) -> Expect {
    match call {
        Call::Send { expect, .. } => *expect,
        Call::Commit { .. } | Call::Repeat { .. } => Expect::Committed,
        Call::Watch { .. } => Expect::Watching,
    }
}
