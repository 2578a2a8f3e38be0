//! One socket of a connection: the part of its task that reads, writes, gives out ids and keeps the time while there is
//! a socket.
//!
//! One poll reads what is there ([`receive`]), takes requests from the queue ([`send`]), writes what the socket takes
//! and checks the time; so a stalled write never stops the reading, and nothing is ever cancelled half-way. Frames are
//! fed and flushed once per poll. When other requests are in flight, the driver first lets the callers that it has just
//! woken add theirs (corking). Invariants: an id is in [`in_flight`] or [`watches`] from its request until its answer;
//! every request is answered once, or put back for the next socket.
//!
//! The [`Driver`] decides what happens when; its submodules keep the state, and only [`wire`] does I/O.

mod closing;
mod end;
mod ids;
mod in_flight;
mod liveness;
mod outgoing;
mod receive;
mod send;
mod timer;
mod watches;
mod wire;

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use storage_protocol::native::Welcome;
use storage_protocol::{Result, StorageError};
use tokio::time::Instant;

use super::Status;
use crate::end::End;
use crate::requests::Queue;
use crate::session::SessionState;
use crate::transport::Socket;
use closing::Closing;
use in_flight::{InFlight, Pending};
use liveness::Liveness;
use outgoing::Outgoing;
use timer::Timer;
use watches::OpenWatches;
use wire::Wire;

/// How long the closing handshake with the server may take.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same if another socket follows.
const GOODBYE_IN_PASSING: Duration = Duration::from_millis(50);

/// Why a poll returned.
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
    session: &'a mut SessionState,
    wire: Wire,
    outgoing: Outgoing,
    in_flight: InFlight,
    watches: OpenWatches,
    /// Scans that the server holds open for this client.
    scans: HashSet<u64>,
    liveness: Liveness,
    timer: Timer,
    closing: Closing,
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
        let liveness = Liveness::new(&welcome, Instant::now());
        Self {
            wire: Wire::new(socket, welcome.limits.message_bytes_max),
            outgoing: Outgoing::default(),
            in_flight: InFlight::default(),
            watches: OpenWatches::default(),
            scans: HashSet::new(),
            timer: Timer::new(liveness.next_check()),
            liveness,
            closing: Closing::new(reconnects),
            queue,
            status,
            welcome,
            session,
        }
    }

    /// Serves the socket to its end. Requests in flight are then failed, or put back for the next socket.
    pub(super) async fn run(mut self) -> End {
        let end = loop {
            match poll_fn(|cx| self.poll(cx)).await {
                Step::Yield => tokio::task::yield_now().await,
                Step::Over(end) => break end,
            }
            self.outgoing.yielded = true;
        };
        tracing::debug!(
            why = end.why,
            in_flight = self.in_flight.len(),
            "socket over"
        );
        self.requeue_calls(&end);
        let is_last = !self.closing.follows(&end);
        let patience = if is_last {
            GOODBYE_TIMEOUT
        } else {
            // Callers wait meanwhile; it is enough that the close frame is sent.
            GOODBYE_IN_PASSING
        };
        let goodbye = self.wire.say_goodbye(&end, is_last);
        if tokio::time::timeout(patience, goodbye).await.is_err() {
            tracing::debug!("the server did not answer the close in time");
        }
        self.closing.set_over();
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

    /// Does everything that can be done now. Ready: whether to yield before going on.
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
        if !self.timer.is_due(cx) {
            return Ok(Poll::Pending);
        }
        self.on_time(Instant::now())?;
        Ok(Poll::Ready(false))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        match self.wire.poll_feed(cx) {
            Ok(()) => Ok(()),
            // The server may have sent the reason before it closed.
            Err(error) => {
                self.poll_read(cx)?;
                Err(End::lost(format!("the connection was lost: {error}")))
            }
        }
    }

    // Time.

    fn arm_timer(&mut self) {
        let check = self.liveness.next_check();
        let until = self.closing.until();
        self.timer
            .arm(until.map_or(check, |until| until.min(check)));
    }

    fn on_time(&mut self, now: Instant) -> Result<(), End> {
        if self.liveness.check(now)? {
            self.wire.ping();
        }
        if self.timer.deadline_is_due(now) {
            self.expire(now);
        }
        if self.closing.until().is_some_and(|until| now >= until) {
            let why = "this client closed before the answer came";
            return Err(self.closing.end_ours(why));
        }
        Ok(())
    }

    /// Fails requests that are past their deadlines, and opens the delayed watches that are due.
    fn expire(&mut self, now: Instant) {
        let mut intake = self.queue.intake();
        let (places, earliest) = intake.sweep(now);
        intake.earliest = None;
        drop(intake);
        self.queue.free_room(places);
        let due = |pending: &Pending| pending.is_overdue(now);
        for id in self.in_flight.ids_where(due) {
            let outcome = match self.in_flight.get(id) {
                Some(pending) => pending.expect.outcome_if_lost(),
                None => continue,
            };
            if let Some(reply) = self.abandon(id) {
                let _ = reply.send(Err(StorageError::DeadlineExceeded { outcome }));
            }
        }
        self.in_flight.expire_kept(now);
        while let Some(watch) = self.watches.take_delayed(now) {
            self.session.watches.push_back(watch);
        }
        let times = [
            earliest,
            self.in_flight.earliest(),
            self.watches.next_delayed(),
        ];
        self.timer.set_earliest(times.into_iter().flatten().min());
    }
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if !self.closing.is_over() {
            self.requeue_calls(&End::ours("the connection's task was stopped"));
        }
    }
}
