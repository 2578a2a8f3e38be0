//! The task that owns a connection's socket: it alone reads, writes, gives ids and keeps time.
//!
//! One poll reads what is there, takes requests from the queue, writes what the socket takes and looks at the clock;
//! so a stalled write never stops the reading, and nothing is ever cancelled half-way. Frames are fed and flushed once
//! per poll. When other requests are in flight it first lets the callers it has just woken add theirs (corking).
//! Invariant: an id is in `pending` or `watches` from its request until its answer; every request is answered once.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use storage_protocol::native::{
    Class, ClientMessage, Outbox, Packet, Reassembler, RequestId, ServerMessage, close_code,
};
use storage_protocol::{Limit, Limits, Outcome, Position, Result, StorageError, WatchEvent};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use crate::connection::{
    Answer, Call, ConnectionState, Control, Ending, Expect, OpenScan, Shared, Submission,
    deadline_after,
};
use crate::dial::{Socket, close_text};
use crate::ids::Ids;
use crate::watch::WatchShared;

/// Messages that one poll reads before it writes.
const READS_PER_POLL: usize = 512;

/// How long the goodbye to the server may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a connection ended.
struct End {
    why: String,
    /// Whether the server broke the protocol.
    misbehaved: bool,
    /// What to tell the server; `None` where it has closed, or cannot be reached.
    close: Option<u16>,
}

impl End {
    fn lost(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            misbehaved: false,
            close: None,
        }
    }

    fn ours(why: impl Into<String>, code: u16) -> Self {
        Self {
            close: Some(code),
            ..Self::lost(why)
        }
    }

    fn misbehaved(why: impl Into<String>) -> Self {
        Self {
            misbehaved: true,
            ..Self::ours(why, close_code::PROTOCOL)
        }
    }

    fn error(&self, outcome: Outcome) -> StorageError {
        if self.misbehaved {
            let message = self.why.clone();
            return StorageError::PeerMisbehaved { message, outcome };
        }
        let reason = self.why.clone();
        StorageError::Closed { reason, outcome }
    }
}

/// A request that was sent and is not answered.
struct Pending {
    expect: Expect,
    /// `None`: nobody waits (any more).
    reply: Option<oneshot::Sender<Result<Answer>>>,
    deadline: Instant,
    bytes: usize,
}

impl Pending {
    fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

struct WatchEntry {
    shared: Arc<WatchShared>,
    /// The server has answered `Watching`.
    attached: bool,
    /// The application has dropped it: its events are passed over, and its id is free after `Done`.
    dropped: bool,
}

/// Why the poll returned.
enum Step {
    /// Let other tasks run once, then poll again.
    Yield,
    Over(End),
}

/// See the module.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    socket: Socket,
    reassembler: Reassembler,
    /// Bounded by the bytes in flight that the server announced, and the controls.
    outbox: Outbox,
    ids: Ids,
    pending: HashMap<RequestId, Pending>,
    pending_bytes: usize,
    watches: HashMap<RequestId, WatchEntry>,
    /// Scans that the server holds for us.
    scans: HashSet<u64>,
    /// Controls that wait for a free id. Bounded as those of the intake.
    deferred: Vec<Control>,
    /// Requests just taken from the queue: kept for its allocation.
    taken: Vec<Submission>,
    /// The number of the last commit that went out.
    commit_number: u64,
    /// No request's deadline lies before it.
    earliest: Option<Instant>,
    last_received: Instant,
    last_ping: Instant,
    heartbeat: Duration,
    silence: Duration,
    timer: Pin<Box<Sleep>>,
    ending: Option<Ending>,
    ping_due: bool,
    flush_due: bool,
    /// Other tasks just had their turn: do not yield again.
    yielded: bool,
    over: bool,
}

impl Driver {
    pub(crate) fn new(socket: Socket, shared: Arc<Shared>) -> Self {
        let now = Instant::now();
        let welcome = &shared.welcome;
        let message_max = welcome
            .limits
            .message_bytes_max
            .min(Limits::MESSAGE_BYTES_CEILING);
        let silence = welcome.silence;
        // A ping has to have a chance to be answered before the silence is over.
        let heartbeat = welcome
            .heartbeat
            .min(silence / 3)
            .max(Duration::from_millis(1));
        Self {
            socket,
            reassembler: Reassembler::new(Limits::FRAME_BYTES, message_max),
            outbox: Outbox::new(),
            ids: Ids::default(),
            pending: HashMap::new(),
            pending_bytes: 0,
            watches: HashMap::new(),
            scans: HashSet::new(),
            deferred: Vec::new(),
            taken: Vec::new(),
            commit_number: welcome.executed,
            earliest: None,
            last_received: now,
            last_ping: now,
            heartbeat,
            silence,
            timer: Box::pin(tokio::time::sleep_until(deadline_after(now, heartbeat))),
            ending: None,
            ping_due: false,
            flush_due: false,
            yielded: false,
            over: false,
            shared,
        }
    }

    /// Serves the connection to its end.
    pub(crate) async fn run(mut self) {
        let end = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Step::Yield => tokio::task::yield_now().await,
                Step::Over(end) => break end,
            }
            self.yielded = true;
        };
        self.fail_all(&end);
        let goodbye = self.say_goodbye(&end);
        if tokio::time::timeout(GOODBYE_TIMEOUT, goodbye)
            .await
            .is_err()
        {
            tracing::debug!("the server did not answer the close in time");
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            match self.poll_once(cx) {
                Ok(Poll::Ready(true)) => return Poll::Ready(Step::Yield),
                Ok(Poll::Ready(false)) => {}
                Ok(Poll::Pending) => return Poll::Pending,
                Err(end) => return Poll::Ready(Step::Over(end)),
            }
        }
    }

    /// Everything that can be done now. Ready: whether to yield before going on.
    fn poll_once(&mut self, cx: &mut Context<'_>) -> Result<Poll<bool>, End> {
        self.poll_read(cx)?;
        if self.take_requests(cx) {
            return Ok(Poll::Ready(true));
        }
        self.send_controls();
        self.send_requests();
        self.poll_write(cx)?;
        self.check_ending()?;
        self.arm_timer();
        if self.timer.as_mut().poll(cx).is_pending() {
            return Ok(Poll::Pending);
        }
        self.on_time(Instant::now())?;
        Ok(Poll::Ready(false))
    }

    // Reading.

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for read in 0..READS_PER_POLL {
            let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(cx) else {
                return Ok(());
            };
            if read == 0 {
                self.last_received = Instant::now();
            }
            match message {
                Some(Ok(Message::Binary(frame))) => self.on_frame(frame)?,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    let why = format!("the server closed: {}", close_text(frame));
                    return Err(End::lost(why));
                }
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let mut end = End::misbehaved("the server sent a text frame");
                    end.close = Some(close_code::UNSUPPORTED_DATA);
                    return Err(end);
                }
                Some(Err(error)) => return Err(read_failed(&error)),
                None => return Err(End::lost("the server closed the connection")),
            }
        }
        // There may be more: write first, then go on.
        cx.waker().wake_by_ref();
        Ok(())
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
                let state = ConnectionState::Draining {
                    reason,
                    retry_after,
                };
                self.shared.set_state(state);
                Ok(())
            }
            (ServerMessage::Error(error), Some(id)) => self.on_error(id, error),
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
        let limit = self.shared.welcome.limits.message_bytes_max;
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
            (Expect::NextPage { scan }, ServerMessage::Page { scan: more, .. }) => {
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
                scan = Some(OpenScan::new(*number, self.shared.clone()));
            }
            (Expect::NextPage { scan }, ServerMessage::Page { scan: None, .. }) => {
                self.scans.remove(&scan);
            }
            (Expect::Watching, _) => self.on_watching(id),
            (Expect::Unwatched { watch }, _) => self.forget_watch(watch),
            _ => {}
        }
        if let Some(reply) = reply {
            // Where the caller is gone, the answer is passed over.
            let _ = reply.send(Ok(Answer { message, scan }));
        }
        Ok(())
    }

    fn on_error(&mut self, id: RequestId, error: StorageError) -> Result<(), End> {
        if let Some(pending) = self.remove_pending(id) {
            match pending.expect {
                Expect::Watching => self.forget_watch(id),
                Expect::Unwatched { watch } => self.forget_watch(watch),
                // The mark will never come, and its asker waits for it.
                Expect::Mark { watch } => {
                    if let Some(entry) = self.watches.get(&watch) {
                        entry.shared.end(error.clone());
                    }
                }
                _ => {}
            }
            if let Some(reply) = pending.reply {
                let _ = reply.send(Err(error));
            }
            return Ok(());
        }
        if let Some(entry) = self.watches.get(&id) {
            entry.shared.end(error);
            self.forget_watch(id);
            return Ok(());
        }
        self.passed_over(id)
    }

    fn on_event(&mut self, id: RequestId, message: ServerMessage, bytes: u64) -> Result<(), End> {
        let mut watch = id;
        if let Some(Expect::Mark { watch: asked }) =
            self.pending.get(&id).map(|pending| pending.expect)
        {
            self.remove_pending(id);
            watch = asked;
        }
        let epoch = self.shared.welcome.position.epoch;
        let Some(entry) = self.watches.get(&watch) else {
            return self.passed_over(watch);
        };
        if entry.dropped {
            return Ok(());
        }
        let shared = entry.shared.clone();
        let taken = match message {
            ServerMessage::Changes { commits } => {
                shared.push(commits.into_iter().map(WatchEvent::Commit), bytes)
            }
            ServerMessage::States { states } => {
                let event = |(key, state)| WatchEvent::State { key, state };
                shared.push(states.into_iter().map(event), bytes)
            }
            ServerMessage::Progress { revision, token } => {
                if token.is_some() && watch == id {
                    self.forget_one_mark(watch);
                }
                let position = Position { epoch, revision };
                shared.push_mark(WatchEvent::Progress { position, token })
            }
            _ => shared.push_mark(WatchEvent::Reset),
        };
        taken.map_err(|what| End::misbehaved(format!("the server misbehaved: {what}")))
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

    fn on_watching(&mut self, id: RequestId) {
        if let Some(entry) = self.watches.get_mut(&id) {
            entry.attached = true;
            if entry.dropped {
                let watch = entry.shared.clone();
                self.deferred.push(Control::Unwatch { watch });
            }
        }
    }

    /// The watch's id is free, and so are those of the marks that will not come.
    fn forget_watch(&mut self, watch: RequestId) {
        self.watches.remove(&watch);
        let mark = Expect::Mark { watch };
        self.pending.retain(|_, pending| pending.expect != mark);
    }

    /// A mark came under the watch's id: one probe of that watch is answered.
    fn forget_one_mark(&mut self, watch: RequestId) {
        let mark = Expect::Mark { watch };
        let asked = self
            .pending
            .iter()
            .find(|(_, pending)| pending.expect == mark);
        if let Some(id) = asked.map(|(id, _)| *id) {
            self.remove_pending(id);
        }
    }

    // Taking and sending.

    fn in_flight_max(&self) -> usize {
        self.shared.welcome.limits.requests_in_flight_max.max(1)
    }

    /// Takes what there is room for. True: yield first.
    fn take_requests(&mut self, cx: &Context<'_>) -> bool {
        let bytes_max = self.shared.welcome.limits.bytes_in_flight_max;
        let shared = self.shared.clone();
        let mut intake = shared.intake();
        match &mut intake.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.ending = intake.ending.or(self.ending);
        self.deferred.append(&mut intake.control);
        // Controls go first: they free what the server holds for us.
        let used = self.pending.len() + self.deferred.len();
        let room = self.in_flight_max().saturating_sub(used);
        let given_up = std::mem::take(&mut intake.given_up);
        if let Some(earliest) = intake.earliest.take() {
            self.earliest = Some(self.earliest.map_or(earliest, |time| time.min(earliest)));
        }
        let cork = room > 0 && !intake.queue.is_empty() && !self.pending.is_empty();
        if cork && !self.yielded {
            intake.given_up = given_up;
            return true;
        }
        self.yielded = false;
        let mut bytes = self.pending_bytes;
        while self.taken.len() < room
            && let Some(next) = intake.queue.front()
            // One that is larger than all the room there is has to go alone.
            && (bytes == 0 || bytes + next.call.bytes() <= bytes_max)
        {
            bytes += next.call.bytes();
            self.taken.extend(intake.queue.pop_front());
        }
        drop(intake);
        self.shared.free_room(self.taken.len());
        if given_up {
            self.sweep();
        }
        false
    }

    fn send_requests(&mut self) {
        let mut taken = std::mem::take(&mut self.taken);
        for submission in taken.drain(..) {
            self.send_request(submission);
        }
        self.taken = taken;
    }

    fn send_request(&mut self, submission: Submission) {
        let Submission {
            call,
            reply,
            deadline,
        } = submission;
        if reply.is_closed() {
            return;
        }
        if let Some(refusal) = self.refusal(&call) {
            let _ = reply.send(Err(refusal));
            return;
        }
        let (expect, bytes) = (call_expects(&call), call.bytes());
        let id = self.fresh_id();
        let packet = match call {
            Call::Send { mut packet, .. } => {
                packet.id = Some(id);
                packet
            }
            Call::Commit { batch, options } => {
                // Ordering: a number is taken only here, where the commit goes out for sure; the server waits for
                // each number.
                self.commit_number += 1;
                let number = self.commit_number;
                let message = ClientMessage::Commit {
                    number,
                    options,
                    batch,
                };
                message.encode(Some(id))
            }
            Call::Watch { mut packet, watch } => {
                packet.id = Some(id);
                let _ = watch.id.set(id);
                let entry = WatchEntry {
                    shared: watch,
                    attached: false,
                    dropped: false,
                };
                self.watches.insert(id, entry);
                packet
            }
        };
        self.put(packet, expect, Some(reply), deadline, bytes);
    }

    /// Limits that only the connection knows.
    fn refusal(&self, call: &Call) -> Option<StorageError> {
        let limits = &self.shared.welcome.limits;
        let (limit, used, max) = match call {
            Call::Watch { .. } => {
                let live = self.watches.values().filter(|entry| !entry.dropped).count();
                (Limit::Watches, live, limits.watches_max)
            }
            Call::Send {
                expect: Expect::FirstPage,
                ..
            } => (Limit::Scans, self.scans.len(), limits.scans_max),
            Call::Send { .. } | Call::Commit { .. } => return None,
        };
        let max_wire = max as u64;
        (used >= max).then_some(StorageError::Overloaded {
            limit,
            max: max_wire,
        })
    }

    fn fresh_id(&mut self) -> RequestId {
        let (pending, watches) = (&self.pending, &self.watches);
        self.ids
            .take(|id| pending.contains_key(&id) || watches.contains_key(&id))
    }

    fn put(
        &mut self,
        packet: Packet,
        expect: Expect,
        reply: Option<oneshot::Sender<Result<Answer>>>,
        deadline: Instant,
        bytes: usize,
    ) {
        if let Some(id) = packet.id {
            let pending = Pending {
                expect,
                reply,
                deadline,
                bytes,
            };
            self.pending.insert(id, pending);
            self.pending_bytes += bytes;
        }
        self.outbox.push(Class::Answer, packet);
    }

    /// Sends what the handles' drops and the watches asked for, as far as there are ids in flight left.
    fn send_controls(&mut self) {
        if self.deferred.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.deferred);
        waiting.retain(|control| !self.send_control(control));
        self.deferred = waiting;
    }

    /// Whether it is done with.
    fn send_control(&mut self, control: &Control) -> bool {
        let full = self.pending.len() + self.taken.len() >= self.in_flight_max();
        match control {
            Control::Credit { watch, bytes } => {
                if let Some(id) = self.live_watch(watch) {
                    let credit = ClientMessage::Credit { bytes: *bytes };
                    self.outbox.push(Class::Control, credit.encode(Some(id)));
                }
                true
            }
            Control::Probe { watch, token } => {
                let Some(id) = self.live_watch(watch) else {
                    return true;
                };
                if !full {
                    let probe = ClientMessage::Probe {
                        watch: Some(id),
                        token: *token,
                    };
                    self.put_control(&probe, Expect::Mark { watch: id });
                }
                !full
            }
            Control::Unwatch { watch } => self.send_unwatch(watch, full),
            Control::CloseScan { scan } => {
                if !self.scans.contains(scan) {
                    return true;
                }
                if !full {
                    self.scans.remove(scan);
                    let close = ClientMessage::ScanClose { scan: *scan };
                    self.put_control(&close, Expect::ScanClosed { scan: *scan });
                }
                !full
            }
        }
    }

    fn send_unwatch(&mut self, watch: &Arc<WatchShared>, full: bool) -> bool {
        let Some(id) = self.live_watch(watch) else {
            return true;
        };
        let Some(entry) = self.watches.get_mut(&id) else {
            return true;
        };
        entry.dropped = true;
        // One that is not attached yet is ended when `Watching` comes.
        let attached = entry.attached;
        if attached && !full {
            self.put_control(
                &ClientMessage::Unwatch { watch: id },
                Expect::Unwatched { watch: id },
            );
        }
        !attached || !full
    }

    fn put_control(&mut self, message: &ClientMessage, expect: Expect) {
        let id = self.fresh_id();
        let never = deadline_after(Instant::now(), Duration::MAX);
        self.put(message.encode(Some(id)), expect, None, never, 0);
    }

    /// The id of a watch that the server still has. (The id alone does not tell: it may be another's by now.)
    fn live_watch(&self, watch: &Arc<WatchShared>) -> Option<RequestId> {
        let id = *watch.id.get()?;
        let entry = self.watches.get(&id)?;
        Arc::ptr_eq(&entry.shared, watch).then_some(id)
    }

    /// Passes over callers that are gone.
    fn sweep(&mut self) {
        let gone = |pending: &Pending| pending.is_given_up();
        for id in self.ids_where(gone) {
            self.abandon(id);
        }
    }

    fn ids_where(&self, holds: impl Fn(&Pending) -> bool) -> Vec<RequestId> {
        let found = self.pending.iter().filter(|(_, pending)| holds(pending));
        found.map(|(id, _)| *id).collect()
    }

    /// Nobody waits for this answer any more. The id stays in use until it comes.
    fn abandon(&mut self, id: RequestId) -> Option<oneshot::Sender<Result<Answer>>> {
        let pending = self.pending.get_mut(&id)?;
        let reply = pending.reply.take();
        // A request that still leaves in parts would come after its cancellation.
        if pending.expect.can_cancel() && !self.outbox.has_bulk(id) {
            let cancel = ClientMessage::Cancel.encode(Some(id));
            self.outbox.push(Class::Answer, cancel);
        }
        reply
    }

    // Writing.

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        match self.poll_feed(cx) {
            Ok(()) => Ok(()),
            // The server may have said why before it went.
            Err(error) => {
                self.poll_read(cx)?;
                Err(End::lost(format!("the connection was lost: {error}")))
            }
        }
    }

    fn poll_feed(&mut self, cx: &mut Context<'_>) -> Result<(), WsError> {
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

    // Time.

    fn next_time(&self) -> Instant {
        let silent = deadline_after(self.last_received, self.silence);
        let ping = deadline_after(self.last_received.max(self.last_ping), self.heartbeat);
        let until = match self.ending {
            Some(Ending::Graceful { until } | Ending::Abandoned { until }) => Some(until),
            None => None,
        };
        let times = [Some(silent), Some(ping), self.earliest, until];
        times.into_iter().flatten().min().unwrap_or(silent)
    }

    /// Moves the timer only forward: it may fire early, and then finds nothing to do. So a busy connection does not
    /// touch it.
    fn arm_timer(&mut self) {
        let next = self.next_time();
        if next < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(next);
        }
    }

    fn on_time(&mut self, now: Instant) -> Result<(), End> {
        if now >= deadline_after(self.last_received, self.silence) {
            let silence = self.silence;
            let why = format!("the server was silent for {silence:?}");
            return Err(End::ours(why, close_code::SILENT));
        }
        let quiet_since = self.last_received.max(self.last_ping);
        if now >= deadline_after(quiet_since, self.heartbeat) {
            self.last_ping = now;
            self.ping_due = true;
        }
        if self.earliest.is_some_and(|earliest| now >= earliest) {
            self.expire(now);
        }
        if let Some(Ending::Graceful { until } | Ending::Abandoned { until }) = self.ending
            && now >= until
        {
            return Err(End::ours(
                "this client closed before the answer came",
                close_code::NORMAL,
            ));
        }
        Ok(())
    }

    /// Fails what is past its deadline.
    fn expire(&mut self, now: Instant) {
        let queued = self.expire_queue(now);
        self.shared.free_room(queued.len());
        for submission in queued {
            let outcome = Outcome::NotExecuted;
            let error = StorageError::DeadlineExceeded { outcome };
            let _ = submission.reply.send(Err(error));
        }
        let due = |pending: &Pending| pending.reply.is_some() && pending.deadline <= now;
        for id in self.ids_where(due) {
            let outcome = match self.pending.get(&id) {
                Some(pending) => pending.expect.outcome_if_lost(),
                None => continue,
            };
            if let Some(reply) = self.abandon(id) {
                let _ = reply.send(Err(StorageError::DeadlineExceeded { outcome }));
            }
        }
        let waiting = self
            .pending
            .values()
            .filter(|pending| pending.reply.is_some());
        let next = waiting.map(|pending| pending.deadline).min();
        self.earliest = [self.earliest, next].into_iter().flatten().min();
    }

    /// Takes those out of the queue that are past their deadline; `earliest` is then that of the rest.
    fn expire_queue(&mut self, now: Instant) -> Vec<Submission> {
        let mut intake = self.shared.intake();
        let mut expired = Vec::new();
        let queue = std::mem::take(&mut intake.queue);
        for submission in queue {
            if submission.deadline <= now {
                expired.push(submission);
            } else {
                intake.queue.push_back(submission);
            }
        }
        intake.earliest = None;
        self.earliest = intake.queue.iter().map(|waiting| waiting.deadline).min();
        expired
    }

    // The end.

    /// Whether what the handles asked for is done.
    fn check_ending(&mut self) -> Result<(), End> {
        let done = match self.ending {
            None => false,
            Some(Ending::Abandoned { .. }) => self.outbox.is_empty(),
            Some(Ending::Graceful { .. }) => {
                let waits = |pending: &Pending| pending.reply.is_some() && !pending.is_given_up();
                let queue_empty = self.shared.intake().queue.is_empty();
                queue_empty && self.outbox.is_empty() && !self.pending.values().any(waits)
            }
        };
        if done {
            return Err(End::ours("closed by this client", close_code::NORMAL));
        }
        Ok(())
    }

    fn fail_all(&mut self, end: &End) {
        self.over = true;
        tracing::debug!(
            why = end.why,
            in_flight = self.pending.len(),
            "connection over"
        );
        let queued = self.shared.shut(end.why.clone());
        let unsent = self.taken.drain(..).chain(queued);
        for submission in unsent {
            let reason = end.why.clone();
            let outcome = Outcome::NotExecuted;
            let _ = submission
                .reply
                .send(Err(StorageError::Closed { reason, outcome }));
        }
        for (_, pending) in self.pending.drain() {
            if let Some(reply) = pending.reply {
                let _ = reply.send(Err(end.error(pending.expect.outcome_if_lost())));
            }
        }
        for (_, entry) in self.watches.drain() {
            entry.shared.end(end.error(Outcome::NotExecuted));
        }
        let why = end.why.clone();
        self.shared.set_state(ConnectionState::Closed { why });
    }

    /// Sends the close frame and reads up to the server's own, or sends the answer to the server's. Bounded by the
    /// caller.
    async fn say_goodbye(&mut self, end: &End) {
        if let Some(code) = end.close {
            // A close reason has at most 123 bytes; ours are plain, and cut at a character.
            let mut cut = end.why.len().min(120);
            while !end.why.is_char_boundary(cut) {
                cut -= 1;
            }
            let frame = CloseFrame {
                code: code.into(),
                reason: end.why.get(..cut).unwrap_or_default().into(),
            };
            if self.socket.close(Some(frame)).await.is_err() {
                return;
            }
        }
        if end.close.is_none() {
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

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.over {
            self.fail_all(&End::lost("the connection's task was stopped"));
        }
    }
}

fn call_expects(call: &Call) -> Expect {
    match call {
        Call::Send { expect, .. } => *expect,
        Call::Commit { .. } => Expect::Committed,
        Call::Watch { .. } => Expect::Watching,
    }
}

fn read_failed(error: &WsError) -> End {
    match error {
        WsError::Capacity(error) => End {
            close: Some(close_code::TOO_BIG),
            ..End::misbehaved(format!("the server sent too much: {error}"))
        },
        WsError::Utf8(_) => End {
            close: Some(close_code::UNSUPPORTED_DATA),
            ..End::misbehaved("the server sent a text frame")
        },
        WsError::Protocol(
            tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => End::lost("the connection was lost: the server ended it without a word"),
        WsError::Protocol(error) => End::misbehaved(format!("a bad WebSocket frame: {error}")),
        error => End::lost(format!("the connection was lost: {error}")),
    }
}
