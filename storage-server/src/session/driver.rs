//! The loop of one connection: read all that is there, answer all of it, flush once.
//!
//! One poll reads, works and writes in turn until nothing moves, so a peer that does not read never keeps us from
//! reading. Heartbeat, silence and slow peers are judged here, by one timer that is only moved when a deadline comes
//! nearer. The messages' meaning is the [`Dialect`]'s.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
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
use super::{Close, Departure, Dialect, Peer};
use crate::config::Timeouts;
use crate::metrics::ClosedLabel;
use crate::shared::Shared;

/// The default zero-fills 128 KiB at each read, and costs 140 KiB for each idle connection.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// What is collected before it is written to the socket.
const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// Messages taken before their answers get a turn.
const MESSAGES_PER_ROUND: usize = 128;
/// Rounds before other tasks of the runtime get a turn.
const ROUNDS_PER_TURN: usize = 16;
/// How long a closing handshake may take.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// How a session ended.
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
    /// When anything came from the peer.
    heard: Instant,
    pinged: bool,
    /// Something was handed to the socket and not flushed yet.
    dirty: bool,
    /// Since when the socket takes nothing, and what it had taken by then.
    stuck: Option<(Instant, u64)>,
    timer: Pin<Box<Sleep>>,
    drain: Pin<Box<WaitForCancellationFutureOwned>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    draining: bool,
}

/// Runs a session from its upgrade to its end. `early`: what was read behind the upgrade request.
pub(crate) async fn run<S, D>(shared: &Shared, peer: Peer, stream: S, early: Bytes, mut dialect: D)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    D: Dialect,
{
    let gauge = shared.metrics.sessions(D::GATEWAY);
    gauge.add(1);
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size((1 << 20).max(WRITE_BUFFER_BYTES + 2 * dialect.sent_bytes_max()))
        .max_message_size(Some(dialect.received_bytes_max()))
        .max_frame_size(Some(dialect.received_bytes_max()));
    let stream = Metered::new(stream, shared.metrics.clone());
    let mut socket =
        WebSocketStream::from_partially_read(stream, early.into(), Role::Server, Some(config))
            .await;
    let now = Instant::now();
    let mut driver = Driver {
        socket: &mut socket,
        dialect: &mut dialect,
        timeouts: shared.config.timeouts,
        heard: now,
        pinged: false,
        dirty: false,
        stuck: None,
        timer: Box::pin(tokio::time::sleep_until(now.into())),
        drain: Box::pin(peer.drain.clone().cancelled_owned()),
        cut: Box::pin(peer.cut.clone().cancelled_owned()),
        draining: false,
    };
    let end = std::future::poll_fn(|cx| driver.poll(cx)).await;
    let departure = match &end {
        End::PeerClosed(Some(frame)) if u16::from(frame.code) == close_code::NORMAL => {
            Departure::Left
        }
        _ => Departure::Lost,
    };
    match end {
        End::PeerClosed(frame) => {
            tracing::debug!("the peer closed");
            let patience = shared.config.timeouts.drain;
            let answering = answer_close(&mut socket, &mut dialect, frame, patience);
            tokio::select! {
                answered = answering => if let Err(close) = answered {
                    note(shared, &close);
                },
                () = peer.cut.cancelled() => {}
            }
        }
        End::Broken(error) => tracing::debug!(%error, "the connection broke"),
        End::Close(close) => {
            note(shared, &close);
            bounded(CLOSE_PATIENCE, say_close(&mut socket, close)).await;
        }
    }
    // The socket goes first: a peer must not wait for what only concerns us.
    drop(socket);
    dialect.finish(departure).await;
    gauge.subtract(1);
    drop(peer);
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
        for round in 0.. {
            let mut moved = self.read(cx, now)?;
            moved |= self.dialect.poll_work(cx, now)?;
            moved |= self.write(cx)?;
            if !moved {
                break;
            }
            if round == ROUNDS_PER_TURN {
                cx.waker().wake_by_ref();
                break;
            }
        }
        self.flush(cx, now)?;
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
            return Err(Close::going_away().into());
        }
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let mut moved = false;
        for _ in 0..MESSAGES_PER_ROUND {
            if !self.dialect.wants_input() {
                // It is we who do not listen.
                self.heard = now;
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
            match message {
                Message::Binary(bytes) => self.dialect.receive(cx, bytes, now)?,
                Message::Text(_) => self.dialect.receive_text()?,
                Message::Close(frame) => return Err(End::PeerClosed(frame)),
                // Pings are answered by the library, at its next read.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
        Ok(moved)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while let Poll::Ready(ready) = self.socket.poll_ready_unpin(cx) {
            ready.map_err(end_of)?;
            let Some(bytes) = self.dialect.next_message() else {
                break;
            };
            self.socket
                .start_send_unpin(Message::Binary(bytes))
                .map_err(end_of)?;
            self.dirty = true;
            moved = true;
        }
        Ok(moved)
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
            }
            Poll::Pending => {
                let written = self.socket.get_ref().written();
                if self.stuck.is_none_or(|(_, before)| before != written) {
                    self.stuck = Some((now, written));
                }
            }
        }
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let patience = if self.pinged {
            self.timeouts.silence
        } else {
            self.timeouts.heartbeat
        };
        let slow = self.stuck.map(|(since, _)| since + self.timeouts.slow_peer);
        let heartbeat = self.heard + patience;
        [slow, self.dialect.deadline()]
            .into_iter()
            .flatten()
            .fold(heartbeat, Instant::min)
    }

    fn arm_timer(&mut self, cx: &mut Context<'_>) {
        let deadline = tokio::time::Instant::from_std(self.next_deadline());
        // Only ever earlier: a timer that fires too soon looks again, and moving it at each message costs more.
        if self.timer.is_elapsed() || deadline < self.timer.deadline() {
            self.timer.as_mut().reset(deadline);
        }
        if self.timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    fn on_time(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        let silent = now.saturating_duration_since(self.heard);
        if silent >= self.timeouts.silence {
            let reason = format!(
                "nothing was heard for {}",
                humantime::format_duration(self.timeouts.silence)
            );
            return Err(Close::new(close_code::SILENT, ClosedLabel::Silent, reason).into());
        }
        if let Some((since, _)) = self.stuck
            && now.saturating_duration_since(since) >= self.timeouts.slow_peer
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
        if !self.pinged && silent >= self.timeouts.heartbeat {
            self.pinged = true;
            // A peer that does not even take what is there already needs no ping to be judged.
            if let Poll::Ready(ready) = self.socket.poll_ready_unpin(cx) {
                ready.map_err(end_of)?;
                self.socket
                    .start_send_unpin(Message::Ping(Bytes::new()))
                    .map_err(end_of)?;
                self.dirty = true;
            }
        }
        Ok(())
    }
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
        // The WebSocket looks at it before any dialect does.
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

/// Counts and logs why we close.
fn note(shared: &Shared, close: &Close) {
    let Close {
        code,
        reason,
        label,
    } = close;
    shared.metrics.closed(*label);
    match label {
        ClosedLabel::Shutdown => tracing::debug!(code, reason, "closing"),
        _ => tracing::warn!(code, reason, "closing the session"),
    }
}

async fn say_close<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>, close: Close) {
    let _ = socket.close(Some(close.frame())).await;
    // A socket that is closed with unread data is reset, and the reason might be lost on its way: read on.
    while let Some(Ok(_)) = socket.next().await {}
    let stream = socket.get_mut();
    let _ = stream.shutdown().await;
    let mut scrap = [0; 1024];
    while matches!(stream.read(&mut scrap).await, Ok(1..)) {}
}
