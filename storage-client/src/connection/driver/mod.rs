//! One socket of a connection: the part of its task that reads, writes, gives ids and keeps time while there is one.
//!
//! One poll reads what is there ([`receive`]), takes requests from the queue ([`send`]), writes what the socket takes and
//! looks at the clock; so a stalled write never stops the reading, and nothing is ever cancelled half-way. Frames are fed
//! and flushed once per poll. When other requests are in flight it first lets the callers it has just woken add theirs
//! (corking). Invariants: an id is in `pending`, `watches` or `marks` from its request until its answer; every request is
//! answered once, or put back for the next socket.

mod end;
mod ids;
mod receive;
mod send;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Sink;
use storage_protocol::native::{Outbox, Reassembler, RequestId, Welcome, close_code};
use storage_protocol::{Limits, Outcome, Result, StorageError, planted};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Status;
use crate::end::End;
use crate::requests::{Answer, Call, Control, Ending, Expect, Queue, Submission};
use crate::session::SessionState;
use crate::sync::deadline_after;
use crate::transport::Socket;
use crate::watch::WatchShared;
use ids::Ids;

/// How long the goodbye to the server may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same where another socket follows.
const GOODBYE_IN_PASSING: Duration = Duration::from_millis(50);

/// A request that was sent and is not answered.
struct Pending {
    expect: Expect,
    /// `None`: nobody waits (any more).
    reply: Option<oneshot::Sender<Result<Answer>>>,
    deadline: Instant,
    bytes: usize,
    /// Its place among the requests of this socket.
    sequence: u64,
    /// What it was, for the next socket.
    call: Option<Call>,
}

impl Pending {
    /// Of a commit.
    fn number(&self) -> Option<u64> {
        match self.call {
            Some(Call::Repeat { number, .. }) => Some(number),
            _ => None,
        }
    }

    fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

struct WatchEntry {
    shared: Arc<WatchShared>,
    /// Not its first stream.
    resumed: bool,
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
pub(super) struct Driver<'a> {
    queue: Arc<Queue>,
    status: Arc<Status>,
    welcome: Arc<Welcome>,
    socket: Socket,
    /// Whether another socket follows where this one is lost.
    reconnects: bool,
    session: &'a mut SessionState,
    reassembler: Reassembler,
    /// Bounded by the bytes in flight that the server announced, and the controls.
    outbox: Outbox,
    ids: Ids,
    /// What the server counts as in flight, and what ends watches and scans.
    pending: HashMap<RequestId, Pending>,
    /// Probes of watches, each with its watch's stream: their answers come through the watch.
    marks: HashMap<RequestId, RequestId>,
    pending_bytes: usize,
    watches: HashMap<RequestId, WatchEntry>,
    /// How many of them their applications let go.
    dropped_watches: usize,
    /// Scans that the server holds for us.
    scans: HashSet<u64>,
    /// Controls that wait for a free id. Bounded as those of the intake.
    deferred: Vec<Control>,
    /// Requests just taken from the queue: kept for its allocation.
    taken: Vec<Submission>,
    /// Watches that are opened a little later, since the server had no room for them.
    delayed: VecDeque<(Instant, Arc<WatchShared>)>,
    /// The numbers of the commits that are in flight.
    unanswered: BTreeSet<u64>,
    sequence: u64,
    /// Requests that the server refused since it goes away, with their places.
    kept: Vec<(u64, Submission)>,
    /// The server goes away: why, and when it wants us back.
    draining: Option<(String, Duration)>,
    /// No request's deadline lies before it.
    earliest: Option<Instant>,
    /// When anything came: a byte of a long message is a sign of life.
    last_received: Instant,
    /// What had been read by then.
    bytes_read: u64,
    /// When a whole message came. A server that is in the middle of a long one of ours hears from us by the pings after it.
    last_message: Instant,
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

impl<'a> Driver<'a> {
    pub(super) fn new(
        socket: Socket,
        queue: Arc<Queue>,
        status: Arc<Status>,
        session: &'a mut SessionState,
        reconnects: bool,
    ) -> Self {
        let welcome = status.welcome();
        let now = Instant::now();
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
            marks: HashMap::new(),
            dropped_watches: 0,
            pending_bytes: 0,
            watches: HashMap::new(),
            scans: HashSet::new(),
            deferred: Vec::new(),
            taken: Vec::new(),
            delayed: VecDeque::new(),
            unanswered: BTreeSet::new(),
            sequence: 0,
            kept: Vec::new(),
            draining: None,
            earliest: None,
            last_received: now,
            bytes_read: 0,
            last_message: now,
            last_ping: now,
            heartbeat,
            silence,
            timer: Box::pin(tokio::time::sleep_until(deadline_after(now, heartbeat))),
            ending: None,
            ping_due: false,
            flush_due: false,
            yielded: false,
            over: false,
            reconnects,
            queue,
            status,
            welcome,
            session,
        }
    }

    /// Serves the socket to its end. What is in flight then is answered, or put back for the next socket.
    pub(super) async fn run(mut self) -> End {
        let end = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Step::Yield => tokio::task::yield_now().await,
                Step::Over(end) => break end,
            }
            self.yielded = true;
        };
        tracing::debug!(why = end.why, in_flight = self.pending.len(), "socket over");
        self.requeue_calls(&end);
        let is_last = end.is_final() || !self.reconnects;
        let patience = if is_last {
            GOODBYE_TIMEOUT
        } else {
            // Callers wait meanwhile; a close frame that leaves is enough.
            GOODBYE_IN_PASSING
        };
        let goodbye = self.say_goodbye(&end, is_last);
        if tokio::time::timeout(patience, goodbye).await.is_err() {
            tracing::debug!("the server did not answer the close in time");
        }
        self.over = true;
        end
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
        self.send_controls()?;
        self.send_watches();
        self.send_requests();
        self.poll_write(cx)?;
        self.check_ending()?;
        self.arm_timer();
        // The clock is looked at as well: a socket that always has more uses up what the runtime lets a task do at a time,
        // and the timer says nothing then.
        if self.timer.as_mut().poll(cx).is_pending() && Instant::now() < self.timer.deadline() {
            return Ok(Poll::Pending);
        }
        self.on_time(Instant::now())?;
        Ok(Poll::Ready(false))
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
        let ping = deadline_after(self.last_message.max(self.last_ping), self.heartbeat);
        let until = match self.ending {
            Some(Ending::Graceful { until, .. } | Ending::Abandoned { until }) => Some(until),
            None => None,
        };
        let times = [Some(silent), Some(ping), self.earliest, until];
        times.into_iter().flatten().min().unwrap_or(silent)
    }

    /// Moves the timer only forward: it may fire early, and then finds nothing to do. So a busy connection does not
    /// touch it.
    fn arm_timer(&mut self) {
        let next = self.next_time();
        let deadline = self.timer.deadline();
        if next < deadline || deadline <= Instant::now() {
            self.timer.as_mut().reset(next);
        }
    }

    fn on_time(&mut self, now: Instant) -> Result<(), End> {
        if now >= deadline_after(self.last_received, self.silence) {
            let silence = self.silence;
            return Err(End {
                close: Some(close_code::SILENT),
                ..End::lost(format!("the server was silent for {silence:?}"))
            });
        }
        let quiet_since = self.last_message.max(self.last_ping);
        if now >= deadline_after(quiet_since, self.heartbeat) {
            self.last_ping = now;
            self.ping_due = true;
        }
        if self.earliest.is_some_and(|earliest| now >= earliest) {
            self.expire(now);
        }
        if let Some(Ending::Graceful { until, .. } | Ending::Abandoned { until }) = self.ending
            && now >= until
        {
            return Err(self.end_ours("this client closed before the answer came"));
        }
        Ok(())
    }

    /// Fails what is past its deadline, and opens the watches whose time has come.
    fn expire(&mut self, now: Instant) {
        let mut intake = self.queue.intake();
        let (places, mut earliest) = intake.sweep(now);
        intake.earliest = None;
        drop(intake);
        self.queue.free_room(places);
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
        // What the server has refused waits here for as long as the server stays: it may read nothing any more, or have more
        // to answer.
        for (_, kept) in &mut self.kept {
            if kept.deadline <= now && !planted("refused-without-deadline") {
                // It has said so, and what nobody waits for does not come again.
                let outcome = Outcome::NotExecuted;
                kept.fail(StorageError::DeadlineExceeded { outcome });
            }
        }
        self.forget_given_up();
        while self.delayed.front().is_some_and(|(at, _)| *at <= now) {
            let watch = self.delayed.pop_front().map(|(_, watch)| watch);
            self.session.watches.extend(watch);
        }
        let waiting = self
            .pending
            .values()
            .filter(|pending| pending.reply.is_some());
        let next = waiting.map(|pending| pending.deadline).min();
        let kept = self.kept.iter().map(|(_, kept)| kept.deadline).min();
        let delayed = self.delayed.front().map(|(at, _)| *at);
        let times = [earliest, next, kept, delayed];
        earliest = times.into_iter().flatten().min();
        self.earliest = earliest;
    }

    /// Lets go of refused requests that nobody waits for any more.
    pub(super) fn forget_given_up(&mut self) {
        self.kept.retain(|(_, kept)| !kept.is_given_up());
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.requeue_calls(&End::ours("the connection's task was stopped"));
        }
    }
}
