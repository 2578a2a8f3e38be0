//! The loop of one connection: read all that is there, answer all of it, flush once.
//!
//! One poll reads, works and writes in turn until nothing moves, so a peer that does not read never keeps the server
//! from reading. Heartbeat, silence and slow peers are checked here, with one timer that is only moved when a deadline
//! gets earlier. Silence is measured by bytes, so that a slow link is not taken for a dead peer. The heartbeat is
//! measured by messages, so that a ping goes out while a long message is being received. What the library holds of a
//! message that is not whole yet is counted, and must grow. The [`Dialect`] handles the messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use storage_protocol::Limits;
use storage_protocol::native::close_code;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::closing::answer_close;
use super::metered::Metered;
use super::unfinished::{PROGRESS_BYTES, Unfinished};
use super::{Close, Departure, Dialect, Heartbeat, Peer, turn_is_over};
use crate::auth::LivePeer;
use crate::config::Timeouts;
use crate::limits::budget::{Permit, SessionSlot};
use crate::metrics::{ClosedLabel, Gauge};
use crate::shared::Shared;

/// The default zero-fills 128 KiB at each read, and costs 140 KiB for each idle connection. A read costs little, since TLS
/// has decrypted what there is: with 4 and 8 KiB puts and gets of 1 and of 16 KiB take the same processor time.
pub(super) const READ_BUFFER_BYTES: usize = 2 * 1024;
/// So much is collected before it is written to the socket.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// Messages taken before their answers get a turn.
const MESSAGES_PER_ROUND: usize = 128;
/// How long a closing handshake may take.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// What a control frame of a client has besides its payload.
const CONTROL_FRAME_BYTES: u64 = 6;

/// How a connection ended.
#[derive(Debug)]
enum End {
    /// The peer closed, orderly.
    PeerClosed(Option<CloseFrame>),
    /// The socket broke.
    Broken(Error),
    /// We close.
    Close(Close),
}

type Socket<S> = WebSocketStream<Metered<S>>;

struct Driver<'a, S, D> {
    socket: &'a mut Socket<S>,
    dialect: &'a mut D,
    timeouts: Timeouts,
    heartbeat: Heartbeat,
    /// The session's slot, with the bounds of its principal.
    slot: SessionSlot,
    /// When the peer last sent a byte, or took one after it had taken none.
    heard: Instant,
    /// When the last whole message arrived or the last ping was sent; if pings always go out, only the latter.
    said: Instant,
    /// A ping was sent, and nothing was received since.
    pinged: bool,
    /// What the library holds of a message that is not whole.
    unfinished: Unfinished,
    /// Something was given to the socket and not flushed yet.
    dirty: bool,
    /// What the socket was given and has not written, counted in the session's outbox.
    sending: Permit,
    /// Bytes given to the socket since it had last written everything, and how many it had written in all by then.
    handed: (u64, u64),
    /// Since when the socket takes nothing, and how many bytes it had taken in all by then.
    stuck: Option<(Instant, u64)>,
    timer: Pin<Box<Sleep>>,
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Why it is cut.
    live: Arc<LivePeer>,
    draining: bool,
}

/// Runs a connection from its upgrade to its end. `early`: the bytes that were read after the upgrade request.
///
/// Thousands of these futures are idle at a time, so they are kept small: each value is moved into the future once (a
/// parameter of an `async fn` that is moved on takes memory in the future twice), and what only the end of a connection
/// needs is boxed.
pub(crate) fn run<S, D>(
    shared: Arc<Shared>,
    peer: Peer,
    stream: S,
    early: Bytes,
    mut dialect: D,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    D: Dialect,
{
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size((1 << 20).max(WRITE_BUFFER_BYTES + 2 * dialect.sent_bytes_max()))
        .max_message_size(Some(dialect.received_bytes_max()))
        .max_frame_size(Some(dialect.received_bytes_max()));
    let stream = Metered::new(stream, shared.metrics.clone());
    let opening = Box::pin(WebSocketStream::from_partially_read(
        stream,
        // Copied: the buffer that these bytes are a part of, 8 KiB of the HTTP library's, would stay with the connection.
        early.to_vec(),
        Role::Server,
        Some(config),
    ));
    async move {
        let Peer {
            slot,
            open,
            drain,
            live,
            ..
        } = peer;
        let open = Open::of(open);
        let mut socket = opening.await;
        let now = Instant::now();
        let sending = dialect.outbox_budget().count();
        let mut driver = Driver {
            socket: &mut socket,
            timeouts: shared.config.timeouts,
            heartbeat: dialect.heartbeat(&shared.config.timeouts),
            dialect: &mut dialect,
            heard: now,
            said: now,
            pinged: false,
            unfinished: Unfinished::new(slot.budgets().partial.count()),
            dirty: false,
            sending,
            handed: (0, 0),
            stuck: None,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            drain: Box::pin(drain.cancelled_owned()),
            cut: Box::pin(live.cut().clone().cancelled_owned()),
            live: live.clone(),
            slot,
            draining: false,
        };
        let end = std::future::poll_fn(|cx| driver.poll(cx)).await;
        // The permits are held as long as what they count; what is written and read from here on is little.
        let Driver {
            unfinished, slot, ..
        } = driver;
        let departure = match &end {
            End::PeerClosed(Some(frame)) if u16::from(frame.code) == close_code::NORMAL => {
                Departure::Closed
            }
            _ => Departure::Lost,
        };
        match end {
            End::PeerClosed(frame) => {
                tracing::debug!("the peer closed");
                let patience = shared.config.timeouts.drain;
                let answering = answer_close(&mut socket, &mut dialect, frame, patience);
                let answering = Box::pin(answering);
                tokio::select! {
                    answered = answering => if let Err(close) = answered {
                        note(&shared, &close);
                    },
                    () = live.cut().cancelled() => {}
                }
            }
            End::Broken(error) => tracing::debug!(%error, "the connection broke"),
            End::Close(close) => {
                // A task may see what follows from the end of its peer's rights before it sees that.
                let close = shared.access.why_ended(&live).unwrap_or(close);
                note(&shared, &close);
                Box::pin(bounded(CLOSE_PATIENCE, say_close(&mut socket, close))).await;
            }
        }
        // The socket is closed first: the peer must not wait for the server's own clean-up.
        drop(socket);
        drop(unfinished);
        Box::pin(dialect.finish(departure)).await;
        drop(open);
        drop(slot);
    }
}

/// Counts a connection as open, also if its dialect panics.
struct Open(Gauge);

impl Open {
    fn of(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<S, D> Driver<'_, S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Dialect,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let now = Instant::now();
        self.check_shutdown(cx)?;
        if self.timer.as_mut().poll(cx).is_ready() {
            self.on_time(cx, now)?;
        }
        loop {
            let mut moved = self.read(cx, now)?;
            moved |= self.dialect.poll_work(cx, now)?;
            if let Some(slot) = self.dialect.logged_in() {
                self.move_to(slot);
            }
            moved |= self.write(cx)?;
            if !moved {
                break;
            }
            if turn_is_over(now) {
                give_turn_away(cx);
                break;
            }
        }
        self.flush(cx, now)?;
        if !self.dirty
            && let Some(close) = self.dialect.ending()
        {
            return Err(close.into());
        }
        if self.draining && !self.dirty && self.dialect.is_drained() {
            return Err(Close::going_away().into());
        }
        self.arm_timer(cx);
        Ok(())
    }

    fn check_shutdown(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if !self.draining && self.drain.as_mut().poll(cx).is_ready() {
            self.draining = true;
            self.dialect.drain();
        }
        if self.cut.as_mut().poll(cx).is_ready() {
            return Err(self.live.close().into());
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let mut moved = false;
        let before = self.socket.get_ref().read();
        for _ in 0..MESSAGES_PER_ROUND {
            if !self.dialect.wants_input() {
                self.excuse(now);
                break;
            }
            if moved && turn_is_over(now) {
                break;
            }
            let Poll::Ready(message) = self.socket.poll_next_unpin(cx) else {
                break;
            };
            let message = message.ok_or(End::Broken(Error::ConnectionClosed))?;
            let message = message.map_err(end_of)?;
            moved = true;
            self.heard = now;
            self.pinged = false;
            if !self.heartbeat.always {
                self.said = now;
            }
            match message {
                Message::Binary(bytes) => {
                    self.end_unfinished(now);
                    self.dialect.receive(cx, bytes, now)?;
                }
                Message::Text(text) => {
                    self.end_unfinished(now);
                    self.dialect.receive_text(text, now)?;
                }
                Message::Close(frame) => return Err(End::PeerClosed(frame)),
                // Pings are answered by the library, at its next read.
                Message::Ping(bytes) => {
                    self.unfinished.control_bytes += CONTROL_FRAME_BYTES + bytes.len() as u64;
                }
                Message::Pong(bytes) => {
                    self.unfinished.control_bytes += CONTROL_FRAME_BYTES + bytes.len() as u64;
                    self.dialect.pong(&bytes);
                }
                Message::Frame(_) => {}
            }
        }
        if self.socket.get_ref().read() != before {
            self.heard = now;
            self.pinged = false;
            self.count_unfinished(now)?;
        }
        Ok(moved)
    }

    /// The server itself does not read the socket now: the peer must not be taken for silent.
    fn excuse(&mut self, now: Instant) {
        self.heard = now;
        if !self.heartbeat.always {
            self.said = now;
        }
        if let Some((_, progress, _)) = &mut self.unfinished.receiving {
            *progress = now;
        }
    }

    fn end_unfinished(&mut self, now: Instant) {
        self.unfinished.end(self.socket.get_ref().read());
        if self.unfinished.receiving.take().is_some() {
            self.dialect.receiving(None, now);
        }
    }

    fn count_unfinished(&mut self, now: Instant) -> Result<(), End> {
        let since = |unfinished: &Unfinished| unfinished.receiving.map(|(since, ..)| since);
        let before = since(&self.unfinished);
        let fits = self.unfinished.count(self.socket.get_ref().read(), now);
        let after = since(&self.unfinished);
        if before != after {
            self.dialect.receiving(after, now);
        }
        // The connection whose message finds no room is closed, and none of those that take the room.
        fits.map_err(|error| {
            let reason = error.to_string();
            Close::new(close_code::TRY_AGAIN, ClosedLabel::Overloaded, reason).into()
        })
    }

    /// For as long as a turn anew: who sends without pause would have one answer in each else, and be taken for a peer
    /// that takes none.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let began = Instant::now();
        let mut moved = false;
        while !(moved && turn_is_over(began))
            && let Poll::Ready(ready) = self.socket.poll_ready_unpin(cx)
        {
            ready.map_err(end_of)?;
            let Some(message) = self.dialect.next_message() else {
                break;
            };
            self.handed.0 += message.len() as u64;
            self.socket.start_send_unpin(message).map_err(end_of)?;
            self.dirty = true;
            moved = true;
        }
        if moved {
            self.count_sending();
        }
        Ok(moved)
    }

    /// Moves what the connection has counted to another slot, at a login.
    fn move_to(&mut self, slot: SessionSlot) {
        let mut sending = self.dialect.outbox_budget().count();
        sending.resize(self.sending.amount());
        self.sending = sending;
        let mut partial = slot.budgets().partial.count();
        partial.resize(self.unfinished.permit.amount());
        self.unfinished.permit = partial;
        self.slot = slot;
    }

    fn count_sending(&mut self) {
        let (handed, before) = self.handed;
        let held = handed.saturating_sub(self.socket.get_ref().written() - before);
        self.sending
            .resize(usize::try_from(held).unwrap_or(usize::MAX));
    }

    fn flush(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if !self.dirty {
            return Ok(());
        }
        match self.socket.poll_flush_unpin(cx) {
            Poll::Ready(result) => {
                result.map_err(end_of)?;
                self.dirty = false;
                self.stuck = None;
                self.handed = (0, self.socket.get_ref().written());
                self.sending.resize(0);
            }
            Poll::Pending => {
                self.count_sending();
                let written = self.socket.get_ref().written();
                match self.stuck {
                    Some((_, before)) if before == written => {}
                    before => {
                        self.stuck = Some((now, written));
                        if before.is_some() {
                            // The socket has taken bytes again, so the peer is alive.
                            self.heard = now;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let timeouts = &self.timeouts;
        let slow = self.stuck.map(|(since, _)| since + timeouts.slow_peer);
        let Heartbeat {
            ping,
            always,
            silence,
        } = self.heartbeat;
        let ping = (always || !self.pinged).then(|| self.said + ping);
        let unfinished = self.unfinished.receiving;
        let unfinished = unfinished.map(|(_, progress, _)| progress + timeouts.partial_message);
        [slow, ping, unfinished, self.dialect.deadline()]
            .into_iter()
            .flatten()
            .fold(self.heard + silence, Instant::min)
    }

    fn arm_timer(&mut self, cx: &mut Context<'_>) {
        let deadline = tokio::time::Instant::from_std(self.next_deadline());
        // Only moved to an earlier time: a timer that fires too soon is set again, which costs less than to move it at
        // each message.
        if self.timer.is_elapsed() || deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn on_time(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if !self.dialect.wants_input() {
            self.excuse(now);
        }
        let since = |moment: Instant| now.saturating_duration_since(moment);
        let Heartbeat {
            ping,
            always,
            silence,
        } = self.heartbeat;
        if since(self.heard) >= silence {
            let reason = format!(
                "nothing was heard for {}",
                humantime::format_duration(silence)
            );
            return Err(Close::new(close_code::SILENT, ClosedLabel::Silent, reason).into());
        }
        if let Some((_, progress, held)) = self.unfinished.receiving
            && since(progress) >= self.timeouts.partial_message
        {
            let reason = format!(
                "a WebSocket message stands unfinished at {held} bytes, less than {PROGRESS_BYTES} came in {}",
                humantime::format_duration(self.timeouts.partial_message)
            );
            return Err(Close::new(close_code::SILENT, ClosedLabel::Silent, reason).into());
        }
        if let Some((stuck, _)) = self.stuck
            && since(stuck) >= self.timeouts.slow_peer
        {
            let reason = format!(
                "nothing was taken for {}",
                humantime::format_duration(self.timeouts.slow_peer)
            );
            return Err(Close::new(close_code::SLOW, ClosedLabel::Slow, reason).into());
        }
        if self
            .dialect
            .deadline()
            .is_some_and(|deadline| deadline <= now)
        {
            self.dialect.on_time(now)?;
        }
        if (always || !self.pinged) && since(self.said) >= ping {
            self.pinged = true;
            self.said = now;
            // A peer that does not take what was sent before is checked without a ping.
            if let Poll::Ready(ready) = self.socket.poll_ready_unpin(cx) {
                ready.map_err(end_of)?;
                self.socket
                    .start_send_unpin(Message::Ping(self.dialect.ping()))
                    .map_err(end_of)?;
                self.dirty = true;
            }
        }
        Ok(())
    }
}

/// The task is polled again once others had their turns, those too whose sockets have something new. A task that only wakes
/// itself is queued before the runtime looks at the sockets, which with busy tasks it does after 61 of their turns. (That a
/// task which yields waits for this look is what tokio does, and does not promise.)
fn give_turn_away(cx: &mut Context<'_>) {
    let yielding = std::pin::pin!(tokio::task::yield_now());
    let first: Poll<()> = yielding.poll(cx);
    debug_assert!(first.is_pending(), "it is woken later");
}

impl From<Close> for End {
    fn from(close: Close) -> Self {
        Self::Close(close)
    }
}

/// What an error of the WebSocket means: the peer is gone, or it broke the protocol.
fn end_of(error: Error) -> End {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Io(_)
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Broken(error),
        // The WebSocket library checks this before any dialect can.
        Error::Utf8(error) => Close::new(
            close_code::INVALID_PAYLOAD,
            ClosedLabel::Protocol,
            format!("a text message or a close reason is not UTF-8: {error}"),
        )
        .into(),
        Error::Capacity(CapacityError::MessageTooLong { size, max_size }) => {
            let reason =
                format!("a WebSocket message has {size} bytes, at most {max_size} are taken");
            Close::new(close_code::TOO_BIG, ClosedLabel::Protocol, reason).into()
        }
        other => Close::protocol(other).into(),
    }
}

async fn bounded(patience: Duration, closing: impl Future<Output = ()>) {
    // A peer that does not finish the handshake in time has its socket closed all the same.
    let _ = tokio::time::timeout(patience, closing).await;
}

/// Counts and logs why the server closes a connection.
fn note(shared: &Shared, close: &Close) {
    let Close {
        code,
        reason,
        label,
    } = close;
    shared.metrics.closed(*label);
    match label {
        ClosedLabel::Shutdown => tracing::debug!(code, reason, "closing"),
        ClosedLabel::Gateway => tracing::debug!(code, reason, "closed by its gateway"),
        _ => tracing::warn!(code, reason, "closing the session"),
    }
}

async fn say_close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>, close: Close) {
    let _ = socket.close(Some(close.frame())).await;
    // A socket that is closed with unread data is reset, and the reason might be lost on its way: read on, up to the
    // peer's close frame; but a message that the library would collect meanwhile is not put together any more.
    let mut whole_at = socket.get_ref().read();
    std::future::poll_fn(|cx| {
        loop {
            let message = socket.poll_next_unpin(cx);
            let read = socket.get_ref().read();
            let is_long = read - whole_at > Limits::FRAME_BYTES as u64;
            match message {
                Poll::Ready(Some(Ok(_))) => whole_at = read,
                Poll::Pending if !is_long => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
    })
    .await;
    let stream = socket.get_mut();
    let _ = stream.shutdown().await;
    let mut scrap = [0; 8 * 1024];
    while matches!(stream.read(&mut scrap).await, Ok(1..)) {}
}
