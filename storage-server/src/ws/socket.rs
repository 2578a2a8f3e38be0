//! A WebSocket protocol as a task: it receives messages, sends messages, and ends.
//!
//! The task is part of the connection's own task, and is polled with it: nothing is spawned, and there is no queue
//! between tasks. What waits, in either direction, is bounded and counted in the bounds of the peer's principal: while
//! the task takes nothing, the socket is not read, so TCP holds the peer back; while the peer takes nothing,
//! [`WebSocket::send`] waits.

mod message;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use storage_protocol::{Keyspace, Limit, Storage};
use tokio_tungstenite::tungstenite;
pub use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

use self::message::Outgoing;
pub use self::message::{LoginError, Message, Ping, SendError, SocketOptions};
use super::{Close, Departure, Dialect, Heartbeat, Peer, close_code};
use crate::audit::{Event, Outcome, Record};
use crate::auth::{Identity, LivePeer};
use crate::config::Timeouts;
use crate::limits::budget::{Budget, Permit, SessionSlot};
use crate::metrics::ClosedLabel;
use crate::shared::{ServerHandle, Shared};

/// The handler of a connection.
pub(crate) type Handler = Pin<Box<dyn Future<Output = Result<(), Close>> + Send>>;

/// With so many bytes received and not taken by the task, the socket is not read.
const INBOX_BYTES_MAX: usize = 64 << 10;
/// The same with so many messages.
const INBOX_LEN_MAX: usize = 64;
/// Between two pings, at least and at most, whatever a protocol asks for.
const PING_MIN: Duration = Duration::from_millis(10);
const PING_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often a sender that waits until other connections give room back looks for it.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection, for the task of its protocol. All calls are cancel-safe, and may be made from several futures of the
/// task at once.
///
/// The connection ends in one of these ways. In each the task is to return, and its result says how the server closes:
/// `Ok` with 1000 (1001 at a shutdown), `Err` with a code of its own.
///
/// * The task returns: what it has sent is still written, then the connection is closed.
/// * The peer closes, or is gone: [`WebSocket::receive`] returns `None` after the last message. What the task sends
///   until it returns is written if the peer still takes it; the peer's close is answered with its own code. A task
///   that has not returned after `timeouts.drain` is dropped.
/// * The server shuts down: the same, with `timeouts.drain` to finish. What the peer sends from then on is ignored.
///
/// A task that does not receive holds its peer back, and does not learn that the peer is gone until it sends. So a task
/// that only sends should receive as well.
#[derive(Debug)]
pub struct WebSocket {
    pipe: Arc<Pipe>,
    server: ServerHandle,
    /// Its permit among all sessions, whoever the peer is.
    place: Arc<Permit>,
    live: Arc<LivePeer>,
}

#[derive(Debug)]
struct Pipe(Mutex<State>);

#[derive(Debug)]
struct State {
    identity: Identity,
    /// Taken by a login, and not yet by the connection.
    slot: Option<SessionSlot>,
    is_logged_in: bool,
    inbox: VecDeque<Message>,
    inbox_bytes: usize,
    /// No message will arrive any more.
    is_ended: bool,
    outbox: VecDeque<Outgoing>,
    /// Probes that were sent, and the highest that was answered.
    probes: u64,
    /// The last one that was given to the connection.
    probes_sent: u64,
    answered: u64,
    /// What `outbox` holds, in the session's budget within its principal's.
    outbox_permit: Permit,
    outbox_bytes_max: usize,
    message_bytes_max: usize,
    /// Nothing can be sent any more.
    is_gone: bool,
    /// Counts the messages that the task received and sent, to see whether it did anything.
    moved: u64,
    receivers: Vec<Waker>,
    senders: Vec<Waker>,
    /// The waker of the connection's task, to be called when another task received or sent something.
    driver: Option<Waker>,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn outbox_bytes(&self) -> usize {
        self.outbox_permit.amount()
    }

    /// Whether one more message must wait until other connections give room back. What the socket holds counts as one
    /// message.
    fn waits_for_others(&self) -> bool {
        let budget = self.outbox_permit.budget();
        budget.used() > 0 && budget.shared_is_full()
    }

    fn is_full(&self) -> bool {
        self.outbox_bytes() >= self.outbox_bytes_max || self.waits_for_others()
    }

    /// A task with this waker received or sent something.
    fn has_moved(&mut self, by: Option<&Waker>) {
        self.moved += 1;
        let driver = self.driver.as_ref();
        if let Some(driver) = driver.filter(|driver| !by.is_some_and(|by| driver.will_wake(by))) {
            driver.wake_by_ref();
        }
    }
}

fn wait<T>(waiting: &mut Vec<Waker>, cx: &Context<'_>) -> Poll<T> {
    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
        waiting.push(cx.waker().clone());
    }
    Poll::Pending
}

fn wake(waiting: &mut Vec<Waker>) {
    waiting.drain(..).for_each(Waker::wake);
}

impl WebSocket {
    /// Who the peer is: by its certificate, or by the last [`WebSocket::log_in`].
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.pipe.state().identity.clone()
    }

    /// A keyspace, as the peer sees it: see [`ServerHandle::storage_as`].
    #[must_use]
    pub fn storage(&self, keyspace: &Keyspace) -> Arc<dyn Storage> {
        self.server.storage_as(&self.identity(), keyspace)
    }

    /// The peer has proven who it is: its connection counts as one of that principal from now on. Can be called again.
    ///
    /// # Errors
    /// [`LoginError`]: the principal has as many connections as it may have; nothing is changed then.
    pub fn log_in(&self, identity: Identity) -> Result<(), LoginError> {
        let mut state = self.pipe.state();
        if state.identity.principal() != identity.principal() {
            let shared = self.server.shared();
            let slot = shared.move_slot(identity.principal(), &self.place);
            state.slot = Some(slot.map_err(LoginError)?);
        }
        // A gateway finds out who it is, not from where it came.
        let address = identity.address().or_else(|| state.identity.address());
        let identity = identity.at(address);
        let record = Record::new(Event::Session, "log_in", Outcome::Allowed);
        self.server.shared().audit.put(record.by(&identity));
        self.live.set_identity(identity.clone());
        state.identity = identity;
        state.is_logged_in = true;
        state.has_moved(None);
        Ok(())
    }

    /// The next message; `None` when no more will arrive.
    pub async fn receive(&self) -> Option<Message> {
        poll_fn(|cx| {
            let mut state = self.pipe.state();
            match state.inbox.pop_front() {
                Some(message) => {
                    state.inbox_bytes -= message.cost();
                    state.has_moved(Some(cx.waker()));
                    Poll::Ready(Some(message))
                }
                None if state.is_ended => Poll::Ready(None),
                None => wait(&mut state.receivers, cx),
            }
        })
        .await
    }

    /// Sends a message, as soon as there is room for it. Whether it arrives is not known; messages arrive in the order
    /// in which they were sent.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, message: Message) -> Result<(), SendError> {
        self.put(|_| Outgoing::Message(message)).await
    }

    /// Sends a ping behind what was sent before, and returns its number: 1, 2 and so on. Once it is
    /// [answered](WebSocket::answered), the peer's end of the connection has received all of that. The pings that the connection
    /// sends when it is quiet have the number of the last one, so a peer that answers only the last ping answers it too.
    ///
    /// # Errors
    /// [`SendError::Disconnected`].
    pub async fn probe(&self) -> Result<u64, SendError> {
        let mut number = 0;
        let next = |state: &mut State| {
            state.probes += 1;
            number = state.probes;
            Outgoing::Probe(number)
        };
        self.put(next).await?;
        Ok(number)
    }

    /// Waits until a probe with a higher number than this is answered; the highest that is. Never, if none is any more.
    pub async fn answered(&self, than: u64) -> u64 {
        poll_fn(|cx| {
            let mut state = self.pipe.state();
            match state.answered > than {
                true => Poll::Ready(state.answered),
                false => wait(&mut state.receivers, cx),
            }
        })
        .await
    }

    /// Puts something into the outbox, as soon as there is room for it.
    async fn put(&self, next: impl FnOnce(&mut State) -> Outgoing) -> Result<(), SendError> {
        let mut next = Some(next);
        let mut made = None;
        poll_fn(|cx| {
            let mut state = self.pipe.state();
            if state.is_gone {
                return Poll::Ready(Err(SendError::Disconnected));
            }
            if let Some(next) = next.take() {
                made = Some(next(&mut state));
            }
            let max = state.message_bytes_max;
            if let Some(Outgoing::Message(message)) = &made
                && message.len() > max
            {
                let bytes = message.len();
                return Poll::Ready(Err(SendError::TooLong { bytes, max }));
            }
            if state.is_full() {
                return wait(&mut state.senders, cx);
            }
            if let Some(outgoing) = made.take() {
                let held = state.outbox_bytes() + outgoing.cost();
                state.outbox_permit.resize(held);
                state.outbox.push_back(outgoing);
                state.has_moved(Some(cx.waker()));
            }
            Poll::Ready(Ok(()))
        })
        .await
    }
}

/// The dialect whose messages a handler receives and sends.
pub(crate) struct Task {
    pipe: Arc<Pipe>,
    /// `None` when it has returned.
    handler: Option<Handler>,
    result: Result<(), Close>,
    options: SocketOptions,
    received_bytes_max: usize,
    sent_bytes_max: usize,
    login_deadline: Option<Instant>,
    outbox: Arc<Budget>,
    outbox_bytes_max: usize,
    inbox_permit: Permit,
    /// When to look whether others have given room back.
    look_again: Option<Instant>,
    draining: bool,
    /// The peer closes: its close frame is answered after what is due.
    closing: bool,
    drain: Duration,
    cut: CancellationToken,
}

impl Task {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        peer: &Peer,
        options: SocketOptions,
        start: impl FnOnce(WebSocket) -> Handler,
    ) -> Self {
        let limits = &shared.config.limits;
        let message_bytes_max = limits.message_bytes_max;
        let (outbox, inbox_permit) = budgets_of(&peer.slot, limits.outbox_bytes_max);
        let pipe = Arc::new(Pipe(Mutex::new(State {
            identity: peer.identity.clone(),
            slot: None,
            is_logged_in: !options.login,
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            is_ended: false,
            outbox: VecDeque::new(),
            probes: 0,
            probes_sent: 0,
            answered: 0,
            outbox_permit: outbox.count(),
            outbox_bytes_max: limits.outbox_bytes_max,
            message_bytes_max,
            is_gone: false,
            moved: 0,
            receivers: Vec::new(),
            senders: Vec::new(),
            driver: None,
        })));
        let socket = WebSocket {
            pipe: pipe.clone(),
            server: ServerHandle::new(shared),
            place: peer.slot.place_among_all().clone(),
            live: peer.live.clone(),
        };
        Self {
            handler: Some(start(socket)),
            result: Ok(()),
            received_bytes_max: options.message_bytes_max.unwrap_or(message_bytes_max),
            sent_bytes_max: message_bytes_max,
            login_deadline: options.login.then_some(peer.deadline),
            outbox,
            outbox_bytes_max: limits.outbox_bytes_max,
            inbox_permit,
            look_again: None,
            draining: false,
            closing: false,
            drain: shared.config.timeouts.drain,
            cut: peer.live.cut().clone(),
            options,
            pipe,
        }
    }

    /// Puts a message into the inbox. If the bound of its principal, or of all, has no room for it, the connection is
    /// closed: the message was read, and must not be dropped in silence.
    fn take(&mut self, message: Message) -> Result<(), Close> {
        let mut state = self.pipe.state();
        // The task receives nothing any more.
        if state.is_ended {
            return Ok(());
        }
        self.inbox_permit.resize(state.inbox_bytes);
        self.inbox_permit
            .try_grow(message.cost())
            .map_err(|error| {
                let reason = error.to_string();
                Close::new(close_code::TRY_AGAIN, ClosedLabel::Overloaded, reason)
            })?;
        state.inbox_bytes += message.cost();
        state.inbox.push_back(message);
        wake(&mut state.receivers);
        Ok(())
    }

    /// Counts what waits, and lets the task send if there is room.
    fn count(&mut self, now: Instant) {
        let mut state = self.pipe.state();
        self.inbox_permit.resize(state.inbox_bytes);
        if !state.is_full() {
            wake(&mut state.senders);
        }
        let waits_for_others = !state.senders.is_empty() && state.waits_for_others();
        self.look_again = waits_for_others.then(|| now + PAUSE);
    }

    fn disconnect(&mut self) {
        self.end();
        let mut state = self.pipe.state();
        state.is_gone = true;
        wake(&mut state.senders);
    }

    fn end(&mut self) {
        let mut state = self.pipe.state();
        state.is_ended = true;
        wake(&mut state.receivers);
    }
}

/// The budgets for what a connection has yet to send, and for what it has received and the task has not taken.
fn budgets_of(slot: &SessionSlot, outbox_bytes_max: usize) -> (Arc<Budget>, Permit) {
    let budgets = slot.budgets();
    let outbox = Budget::within(&budgets.outbox, Limit::Outbox, outbox_bytes_max);
    (outbox, budgets.in_flight.count())
}

impl Dialect for Task {
    fn received_bytes_max(&self) -> usize {
        self.received_bytes_max
    }

    fn sent_bytes_max(&self) -> usize {
        self.sent_bytes_max
    }

    fn outbox_budget(&self) -> &Arc<Budget> {
        &self.outbox
    }

    fn receiving(&mut self, _: Option<Instant>, _: Instant) {}

    fn receive(&mut self, _: &mut Context<'_>, message: Bytes, _: Instant) -> Result<(), Close> {
        self.take(Message::Binary(message))
    }

    fn receive_text(&mut self, text: Utf8Bytes, _: Instant) -> Result<(), Close> {
        self.take(Message::Text(text))
    }

    /// The number of the last probe once more: a peer may answer the last of several pings alone (RFC 6455, 5.5.3).
    fn ping(&self) -> Bytes {
        match self.pipe.state().probes_sent {
            0 => Bytes::new(),
            number => Bytes::copy_from_slice(&number.to_be_bytes()),
        }
    }

    fn pong(&mut self, bytes: &[u8]) {
        let Ok(number) = <[u8; 8]>::try_from(bytes).map(u64::from_be_bytes) else {
            return;
        };
        let mut state = self.pipe.state();
        // Whatever a peer makes up, it proves no more than was asked.
        if (state.answered + 1..=state.probes).contains(&number) {
            state.answered = number;
            wake(&mut state.receivers);
        }
    }

    fn wants_input(&self) -> bool {
        let state = self.pipe.state();
        state.inbox_bytes < INBOX_BYTES_MAX && state.inbox.len() < INBOX_LEN_MAX
    }

    fn poll_work(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Close> {
        self.count(now);
        let mut state = self.pipe.state();
        let before = state.moved;
        if !state
            .driver
            .as_ref()
            .is_some_and(|driver| driver.will_wake(cx.waker()))
        {
            state.driver = Some(cx.waker().clone());
        }
        drop(state);
        if let Some(handler) = &mut self.handler
            && let Poll::Ready(result) = handler.as_mut().poll(cx)
        {
            self.handler = None;
            self.result = result;
            self.end();
        }
        self.count(now);
        Ok(self.pipe.state().moved != before)
    }

    fn ending(&self) -> Option<Close> {
        let is_through = self.handler.is_none() && self.pipe.state().outbox.is_empty();
        if !is_through || self.closing {
            return None;
        }
        Some(match &self.result {
            Err(close) => close.clone(),
            Ok(()) if self.draining => Close::going_away(),
            Ok(()) => Close::because(close_code::NORMAL, ""),
        })
    }

    fn next_message(&mut self) -> Option<tungstenite::Message> {
        let mut state = self.pipe.state();
        let message = state.outbox.pop_front()?;
        let held = state.outbox_bytes() - message.cost();
        state.outbox_permit.resize(held);
        Some(match message {
            Outgoing::Message(Message::Text(text)) => tungstenite::Message::Text(text),
            Outgoing::Message(Message::Binary(bytes)) => tungstenite::Message::Binary(bytes),
            Outgoing::Probe(number) => {
                state.probes_sent = number;
                let number = Bytes::copy_from_slice(&number.to_be_bytes());
                tungstenite::Message::Ping(number)
            }
        })
    }

    fn deadline(&self) -> Option<Instant> {
        let login = self.login_deadline;
        [login, self.look_again].into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Close> {
        if self.login_deadline.is_some_and(|deadline| deadline <= now) {
            self.login_deadline = None;
            if !self.pipe.state().is_logged_in {
                let reason = "no login in time";
                return Err(Close::new(close_code::POLICY, ClosedLabel::Hello, reason));
            }
        }
        Ok(())
    }

    fn heartbeat(&self, timeouts: &Timeouts) -> Heartbeat {
        let ping = self.options.ping;
        let (ping, always) = match ping.unwrap_or(Ping::WhenSilent(timeouts.heartbeat)) {
            Ping::WhenSilent(silence) => (silence, false),
            Ping::Every(period) => (period, true),
        };
        // A peer must be pinged before it can be called silent.
        let ping = ping.clamp(PING_MIN, PING_MAX);
        let silence = self.options.silence.unwrap_or(timeouts.silence);
        Heartbeat {
            ping,
            always,
            silence: silence.clamp(2 * ping, 2 * PING_MAX),
        }
    }

    fn logged_in(&mut self) -> Option<SessionSlot> {
        let slot = self.pipe.state().slot.take()?;
        (self.outbox, self.inbox_permit) = budgets_of(&slot, self.outbox_bytes_max);
        let mut state = self.pipe.state();
        let mut outbox_permit = self.outbox.count();
        outbox_permit.resize(state.outbox_bytes());
        state.outbox_permit = outbox_permit;
        self.inbox_permit.resize(state.inbox_bytes);
        drop(state);
        Some(slot)
    }

    fn drain(&mut self) {
        self.draining = true;
        self.end();
    }

    // Its end is reported with its result.
    fn is_drained(&self) -> bool {
        false
    }

    fn close_received(&mut self) {
        self.closing = true;
        self.end();
    }

    fn is_answered(&self) -> bool {
        self.handler.is_none() && self.pipe.state().outbox.is_empty()
    }

    async fn finish(mut self, _: Departure) {
        self.disconnect();
        if let Some(handler) = self.handler.take() {
            // It may finish what it has begun, such as a commit, unless the server ends.
            let finishing = tokio::time::timeout(self.drain, handler);
            tokio::select! {
                _ = finishing => {}
                () = self.cut.cancelled() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
