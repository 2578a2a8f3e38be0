//! One connection after its upgrade: a task that reads and writes at the same time.
//!
//! The [`driver`] owns the WebSocket, its heartbeat and its timer; a [`Dialect`] handles the messages. Native and mwDB
//! have dialects of their own, all others are a [`socket::Task`]. Bounds are in [`crate::limits`], principals in
//! [`crate::auth`]; a peer's close is answered in [`closing`].

mod closing;
pub(crate) mod driver;
pub(crate) mod kinds;
pub(crate) mod metered;
pub(crate) mod socket;
mod unfinished;

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::Bytes;
pub use storage_protocol::native::close_code;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

use crate::auth::{Identity, LivePeer};
use crate::config::Timeouts;
use crate::limits::budget::{Budget, SessionSlot};
use crate::metrics::{ClosedLabel, Gauge};

/// The longest reason a close frame can carry.
const CLOSE_REASON_BYTES_MAX: usize = 123;

/// How long a connection is worked for before others of the runtime have their turns: a call waits for a turn of each
/// connection that is busy, divided among the runtime's threads.
const TURN: Duration = Duration::from_micros(250);

/// Whether a turn that began at this time should end. Of each kind of work there is at least one piece in each turn, so that
/// no kind waits for ever behind another.
pub(crate) fn turn_is_over(began: Instant) -> bool {
    began.elapsed() >= TURN
}

/// A peer whose session begins.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) identity: Identity,
    /// Until then it must have said who it is, or Hello.
    pub(crate) deadline: Instant,
    /// Its slot among the sessions, until the session ends, with the bounds of its principal.
    pub(crate) slot: SessionSlot,
    /// The gauge of open connections of its protocol.
    pub(crate) open: Gauge,
    /// Cancelled when the server shuts down.
    pub(crate) drain: CancellationToken,
    /// Closes it at once, at a shutdown or when it is not let in any more.
    pub(crate) live: Arc<LivePeer>,
}

/// Why the server closes a connection: a code of the WebSocket protocol and a text, of which a close frame carries 123
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) label: ClosedLabel,
}

impl Close {
    /// A reason of a gateway. `code`: see [`close_code`], and those from 4000 on that a protocol defines.
    #[must_use]
    pub fn because(code: u16, reason: impl Into<String>) -> Self {
        Self::new(code, ClosedLabel::Gateway, reason)
    }

    pub(crate) fn new(code: u16, label: ClosedLabel, reason: impl Into<String>) -> Self {
        Self {
            code,
            label,
            reason: reason.into(),
        }
    }

    /// The close frame; its reason is cut to what a close frame can carry.
    pub(crate) fn frame(&self) -> CloseFrame {
        let end = self.reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX);
        CloseFrame {
            code: CloseCode::from(self.code),
            reason: self.reason[..end].into(),
        }
    }

    pub(crate) fn protocol(reason: impl std::fmt::Display) -> Self {
        Self::new(
            close_code::PROTOCOL,
            ClosedLabel::Protocol,
            reason.to_string(),
        )
    }

    pub(crate) fn going_away() -> Self {
        Self::new(
            close_code::GOING_AWAY,
            ClosedLabel::Shutdown,
            "the server shuts down",
        )
    }
}

/// How a connection is checked for a peer that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// A ping goes out after so long without a message of the peer, or, if `always`, after so long in any case.
    pub(crate) ping: Duration,
    pub(crate) always: bool,
    /// A peer that has sent nothing for so long is closed.
    pub(crate) silence: Duration,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// The peer closed it with 1000: it will not resume.
    Closed,
    /// In any other way, also if the server closed it: the peer may resume.
    Lost,
}

/// Handles the messages of a connection. Nothing here waits: what takes time is kept as a future and polled by
/// [`Dialect::poll_work`].
pub(crate) trait Dialect: Send {
    /// The longest WebSocket message it takes.
    fn received_bytes_max(&self) -> usize;
    /// The longest WebSocket message it sends.
    fn sent_bytes_max(&self) -> usize;
    /// The session's budget for what waits to be sent: what the socket holds of it counts there too.
    fn outbox_budget(&self) -> &Arc<Budget>;
    /// Called when it changes: a message has been arriving since `since` and is not whole, so nothing else can arrive
    /// meanwhile. `None`: there is none.
    fn receiving(&mut self, since: Option<Instant>, now: Instant);
    /// Takes a binary message.
    fn receive(&mut self, cx: &mut Context<'_>, message: Bytes, now: Instant) -> Result<(), Close>;
    /// Takes a text message.
    fn receive_text(&mut self, text: Utf8Bytes, now: Instant) -> Result<(), Close>;
    /// What a ping has that the connection sends of its own accord, behind all that was sent before.
    fn ping(&self) -> Bytes {
        Bytes::new()
    }
    /// A pong arrived, with what its ping had.
    fn pong(&mut self, _: &[u8]) {}
    /// Whether it takes more messages now; while not, TCP holds the peer back.
    fn wants_input(&self) -> bool;
    /// Goes on with what is in progress; true if anything was done. `now` is when the turn began: once that
    /// [is over](turn_is_over), what is left may be left for the next one, which comes for sure if anything was done.
    fn poll_work(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, Close>;
    /// The next message to send.
    fn next_message(&mut self) -> Option<Message>;
    /// When [`Dialect::on_time`] is to be called, if at all.
    fn deadline(&self) -> Option<Instant>;
    /// Its deadline passed.
    fn on_time(&mut self, now: Instant) -> Result<(), Close>;
    /// When pings are sent, and after which silence the peer counts as gone.
    fn heartbeat(&self, timeouts: &Timeouts) -> Heartbeat {
        Heartbeat {
            ping: timeouts.heartbeat,
            always: false,
            silence: timeouts.silence,
        }
    }
    /// The slot of a peer that has logged in: what the connection takes counts there from now on. Called after each
    /// [`Dialect::poll_work`].
    fn logged_in(&mut self) -> Option<SessionSlot> {
        None
    }
    /// Why the dialect ends the connection by itself; it is closed once all that was handed out is written.
    fn ending(&self) -> Option<Close> {
        None
    }
    /// The server shuts down: takes no new requests, and informs the peer if the protocol has a message for it.
    fn drain(&mut self);
    /// Whether, after [`Dialect::drain`], nothing is in progress any more and nothing waits to be sent.
    fn is_drained(&self) -> bool;
    /// The peer closes: it sends nothing any more. Its requests are still answered; what it did not ask for, such as
    /// events, is not sent any more.
    fn close_received(&mut self);
    /// Whether, after [`Dialect::close_received`], everything is answered and all answers were handed out.
    fn is_answered(&self) -> bool {
        self.is_drained()
    }
    /// The socket is gone: finishes what must be finished, such as commits.
    fn finish(self, departure: Departure) -> impl Future<Output = ()> + Send;
}
