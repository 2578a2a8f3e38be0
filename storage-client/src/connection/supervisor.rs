//! From socket to socket: the part of a connection's task that finds the next one.
//!
//! It runs the [`driver`](super::driver) of each socket. When that ends it waits a little (capped exponential backoff
//! with jitter), tries the servers in turn, resumes the session and hands everything that goes on to the next driver:
//! commits under their commit numbers, reads, watches. Between two sockets it keeps the callers' deadlines. It never
//! gives up unless the options say so.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use storage_protocol::native::{Hello, Welcome};
use storage_protocol::{Outcome, StorageError};
use tokio::time::{Instant, sleep_until};

use super::backoff::Backoff;
use super::driver::Driver;
use super::{ConnectionState, Status};
use crate::end::{End, EndKind};
use crate::options::ConnectOptions;
use crate::requests::{Call, Control, Ending, Queue};
use crate::session::SessionState;
use crate::sync::deadline_after;
use crate::transport::{DialError, Dialer, Socket};

/// After a socket that lived for so long the next attempt begins without a wait: the server was well.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Supervisor {
    queue: Arc<Queue>,
    status: Arc<Status>,
    dialer: Dialer,
    agent: String,
    backoff: Backoff,
    give_up_after: Option<Duration>,
    /// Whether a lost socket is followed by another. If not, calls fail and watches end with their socket.
    reconnects: bool,
    session: SessionState,
    over: bool,
}

impl Supervisor {
    pub(super) fn new(
        options: &ConnectOptions,
        queue: Arc<Queue>,
        status: Arc<Status>,
        dialer: Dialer,
        session: SessionState,
    ) -> Self {
        Self {
            queue,
            status,
            dialer,
            agent: options.agent.clone(),
            backoff: Backoff {
                min: options.backoff_min,
                max: options.backoff_max,
            },
            give_up_after: options.give_up_after,
            reconnects: options.give_up_after != Some(Duration::ZERO),
            session,
            over: false,
        }
    }

    /// Serves the connection to its end, beginning with this socket.
    pub(super) async fn run(mut self, mut socket: Socket) {
        let mut attempt = 0;
        let end = loop {
            let begun = Instant::now();
            self.session.socket += 1;
            let driver = Driver::new(
                socket,
                self.queue.clone(),
                self.status.clone(),
                &mut self.session,
                self.reconnects,
            );
            let end = driver.run().await;
            if end.is_final() || !self.reconnects {
                break end;
            }
            if begun.elapsed() >= HEALTHY_AFTER {
                attempt = 0;
            }
            match self.reconnect(&end, &mut attempt).await {
                Ok(next) => socket = next,
                Err(end) => break end,
            }
        };
        self.finish(&end);
    }

    /// Fails everything that waits, for good.
    fn finish(&mut self, end: &End) {
        self.over = true;
        if end.kind != EndKind::Ours {
            tracing::warn!(reason = end.why, "the connection is over for good");
        }
        for submission in self.queue.shut(end.why.clone()) {
            submission.fail_closed(&end.why);
        }
        let position = self.status.welcome().position;
        for watch in self.session.watches.drain(..) {
            watch.end_unresumed(end.error(Outcome::NotExecuted), position);
        }
        let why = end.why.clone();
        self.status.set_state(ConnectionState::Closed { why });
    }

    /// The next socket, with the session on it; or why there is none.
    async fn reconnect(&mut self, lost: &End, attempt: &mut u32) -> Result<Socket, End> {
        let since = std::time::Instant::now();
        let mut why = lost.why.clone();
        tracing::warn!(reason = why, "the connection is lost; connecting again");
        let give_up_at = self
            .give_up_after
            .map(|after| deadline_after(Instant::now(), after));
        let mut earliest = match lost.kind {
            EndKind::Drained { retry_after } => retry_after,
            _ => Duration::ZERO,
        };
        if matches!(lost.kind, EndKind::Drained { .. }) {
            self.dialer.pass_over();
        }
        loop {
            let state = ConnectionState::Disconnected {
                since,
                why: why.clone(),
            };
            self.status.set_state(state);
            // With several servers, another one is tried at once when one shuts down.
            if self.dialer.endpoints() > 1 {
                earliest = Duration::ZERO;
            }
            let delay = self.backoff.delay(*attempt) + earliest;
            earliest = Duration::ZERO;
            *attempt += 1;
            let until = deadline_after(Instant::now(), delay);
            let until = give_up_at.map_or(until, |give_up| give_up.min(until));
            self.meanwhile(sleep_until(until)).await?;
            if give_up_at.is_some_and(|at| at <= Instant::now()) {
                return Err(End::lost(format!("given up as asked for: {why}")));
            }
            let hello = self.hello();
            let mut dialer = self.dialer.clone();
            let dialled = self
                .meanwhile(async {
                    let dialled = dialer.dial_next(hello.clone()).await;
                    (dialled, dialer)
                })
                .await;
            let (dialled, dialer) = dialled?;
            self.dialer = dialer;
            match dialled {
                Ok((socket, welcome)) => {
                    let outage = since.elapsed();
                    tracing::info!(?outage, attempts = *attempt, "connected again");
                    self.adopt_session(&hello, welcome, outage);
                    return Ok(socket);
                }
                Err(DialError { message, kind }) => {
                    if kind.is_final() {
                        return Err(End {
                            kind,
                            ..End::lost(message)
                        });
                    }
                    tracing::debug!(why = message, attempt, "cannot connect yet");
                    if let EndKind::Drained { retry_after } = kind {
                        earliest = retry_after;
                    }
                    why = message;
                }
            }
        }
    }

    /// Hello for the next socket. Commits whose callers are gone are not retried: nobody waits for the answer.
    fn hello(&mut self) -> Hello {
        self.session.raise_incarnation();
        // Published before the attempt: a saved session must have the highest incarnation that the server may have
        // seen.
        self.status.set_session(self.session.info());
        let mut intake = self.queue.intake();
        intake.again.retain(|waiting| !waiting.is_given_up());
        let numbers = intake
            .again
            .iter()
            .filter_map(|waiting| match waiting.call {
                Call::Repeat { number, .. } => Some(number),
                _ => None,
            });
        self.session.hello(self.agent.clone(), numbers)
    }

    /// A server has sent Welcome.
    fn adopt_session(&mut self, hello: &Hello, welcome: Welcome, outage: Duration) {
        if !self.session.welcomed(&welcome, outage) {
            tracing::warn!("the session could not be resumed: a new one began");
            self.fail_repeats();
        }
        debug_assert!(hello.unanswered.len() <= 1024);
        // Ordering: Welcome first. `set_session` wakes those that wait for news of the session, and they must find this
        // server's Welcome.
        self.status.set_welcome(Arc::new(welcome));
        self.status.set_session(self.session.info());
        self.status.set_state(ConnectionState::Connected);
    }

    /// Fails the commits that were to be retried: with the session their commit numbers are gone, so whether they were
    /// executed is unknown.
    fn fail_repeats(&self) {
        let mut intake = self.queue.intake();
        for waiting in &mut intake.again {
            if matches!(waiting.call, Call::Repeat { .. }) {
                waiting.fail(StorageError::Closed {
                    reason: "the session is gone, and with it what became of this commit"
                        .to_owned(),
                    outcome: Outcome::Unknown,
                });
            }
        }
        intake
            .again
            .retain(|waiting| !matches!(waiting.call, Call::Repeat { .. }));
    }

    /// Waits for `work`; meanwhile it handles deadlines that pass and handles that are dropped.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Result<T, End> {
        let mut work = pin!(work);
        let mut timer = pin!(sleep_until(Instant::now()));
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = work.as_mut().poll(cx) {
                    return Poll::Ready(Ok(done));
                }
                let next = match self.look(cx) {
                    Ok(next) => next,
                    Err(end) => return Poll::Ready(Err(end)),
                };
                timer.as_mut().reset(next);
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    /// Handles what was queued, and returns when to look again.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<Instant, End> {
        let now = Instant::now();
        let mut intake = self.queue.intake();
        intake.register(cx.waker());
        for control in std::mem::take(&mut intake.control) {
            if let Control::Unwatch { watch } = control {
                watch.set_dropped();
            }
        }
        let (places, mut next) = intake.sweep(now);
        intake.earliest = None;
        intake.given_up = false;
        let waits = intake
            .again
            .iter()
            .chain(&intake.queue)
            .any(|waiting| !waiting.is_given_up());
        let ending = intake.ending;
        drop(intake);
        self.queue.free_room(places);
        match ending {
            Some(Ending::Abandoned { .. }) => return Err(End::ours("closed by this client")),
            Some(Ending::Graceful { until, .. }) if !waits || until <= now => {
                return Err(End::ours("closed by this client"));
            }
            Some(Ending::Graceful { until, .. }) => {
                next = Some(next.map_or(until, |at| at.min(until)))
            }
            None => {}
        }
        Ok(next.unwrap_or_else(|| deadline_after(now, Duration::MAX)))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if !self.over {
            self.finish(&End::lost("the connection's task was stopped"));
        }
    }
}
