//! From socket to socket: the part of a connection's task that finds the next one.
//!
//! It runs the [`driver`](super::driver) of each socket, and when that ends waits a little (capped exponential backoff with
//! jitter), tries the servers in turn, resumes the session and hands everything that goes on to the next driver:
//! commits under their numbers, reads, watches. Between two sockets it keeps the callers' deadlines. It never gives up
//! unless it was told to.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use storage_protocol::native::{Hello, Welcome};
use storage_protocol::{Outcome, SessionId, StorageError, planted};
use tokio::time::{Instant, sleep_until};

use super::driver::Driver;
use super::{Call, ConnectionState, Control, Ending, SessionInfo, Shared};
use crate::end::{End, EndKind};
use crate::order::CommitOrder;
use crate::sync::deadline_after;
use crate::transport::{DialError, Dialer, Socket};
use crate::watch::WatchShared;

/// A socket that lived for so long has shown that the server is well: the next search begins without a wait.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// What goes on from socket to socket.
pub(crate) struct Carry {
    pub(crate) session: SessionId,
    pub(crate) incarnation: u64,
    /// The highest commit number that went out.
    pub(crate) sent: u64,
    /// Counts the sockets.
    pub(crate) socket: u64,
    /// Numbers of a saved session that its owner is to send again.
    pub(crate) promised: BTreeSet<u64>,
    /// What the session's commits were answered with.
    pub(crate) committed: CommitOrder,
    /// Watches whose next stream is to be opened.
    pub(crate) watches: VecDeque<Arc<WatchShared>>,
    reconnects: u64,
    last_outage: Option<Duration>,
    lapses: u64,
    replaced: u64,
}

impl Default for Carry {
    /// What stands in its place while a driver has it.
    fn default() -> Self {
        Self {
            session: SessionId([0; 16]),
            incarnation: 0,
            sent: 0,
            socket: 0,
            promised: BTreeSet::new(),
            committed: CommitOrder::default(),
            watches: VecDeque::new(),
            reconnects: 0,
            last_outage: None,
            lapses: 0,
            replaced: 0,
        }
    }
}

impl Carry {
    /// Of a connection whose first socket was welcomed, for a session that this `hello` asked for.
    pub(crate) fn new(hello: &Hello, welcome: &Welcome) -> Self {
        let resumed = hello.session == Some(welcome.session);
        Self {
            session: welcome.session,
            incarnation: if resumed { hello.incarnation } else { 0 },
            sent: if resumed {
                hello.sent.max(welcome.executed)
            } else {
                0
            },
            promised: if resumed {
                hello.unanswered.iter().copied().collect()
            } else {
                BTreeSet::new()
            },
            lapses: u64::from(welcome.lapsed),
            replaced: u64::from(hello.session.is_some() && !resumed),
            ..Self::default()
        }
    }

    pub(crate) fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.session,
            incarnation: self.incarnation,
            sent: self.sent,
            reconnects: self.reconnects,
            last_outage: self.last_outage,
            lapses: self.lapses,
            replaced: self.replaced,
        }
    }

    /// The next watch whose stream is to be opened, those let go meanwhile passed over.
    pub(crate) fn next_watch(&mut self) -> Option<Arc<WatchShared>> {
        loop {
            let watch = self.watches.pop_front()?;
            if !watch.is_dropped() {
                return Some(watch);
            }
        }
    }
}

/// For a process that resumes the session of an earlier one: the wall clock, and above the last incarnation that is known
/// of that. So it fences the earlier one, which counts up from where it began, and is fenced by the next.
pub(crate) fn incarnation_after(before: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(0));
    millis.max(before + 1)
}

/// How long to wait before an attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// Before attempt number `attempt`, the first being 0: twice as long each time, up to the most, of which a random half
    /// is left out, so that many clients do not come at once.
    fn delay(self, attempt: u32, random: u32) -> Duration {
        let factor = 1u32 << attempt.min(20);
        let longest = self.min.saturating_mul(factor).min(self.max.max(self.min));
        let half = longest / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// See the module.
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    dialer: Dialer,
    agent: String,
    backoff: Backoff,
    give_up_after: Option<Duration>,
    carry: Carry,
    over: bool,
}

impl Supervisor {
    pub(crate) fn new(
        shared: Arc<Shared>,
        dialer: Dialer,
        agent: String,
        backoff: Backoff,
        give_up_after: Option<Duration>,
        carry: Carry,
    ) -> Self {
        shared.set_session(carry.info());
        Self {
            shared,
            dialer,
            agent,
            backoff,
            give_up_after,
            carry,
            over: false,
        }
    }

    /// Serves the connection to its end, beginning with this socket.
    pub(crate) async fn run(mut self, mut socket: Socket) {
        let mut attempt = 0;
        let end = loop {
            let begun = Instant::now();
            self.carry.socket += 1;
            let carry = std::mem::take(&mut self.carry);
            let welcome = self.shared.welcome();
            let end;
            (end, self.carry) = Driver::new(socket, welcome, self.shared.clone(), carry)
                .run()
                .await;
            if end.is_final() || !self.shared.reconnects {
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
        for submission in self.shared.shut(end.why.clone()) {
            submission.fail_closed(&end.why);
        }
        let position = self.shared.welcome().position;
        for watch in self.carry.watches.drain(..) {
            watch.end_unresumed(end.error(Outcome::NotExecuted), position);
        }
        let why = end.why.clone();
        self.shared.set_state(ConnectionState::Closed { why });
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
            self.shared.set_state(state);
            // Where there are several servers, another one is tried at once when one goes away as planned.
            if self.dialer.endpoints() > 1 {
                earliest = Duration::ZERO;
            }
            let delay = self.backoff.delay(*attempt, rand_u32()) + earliest;
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
                    self.carry.last_outage = Some(since.elapsed());
                    tracing::info!(outage = ?since.elapsed(), attempts = *attempt, "connected again");
                    self.take_up(&hello, welcome);
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
                    if let EndKind::Drained { retry_after } = kind
                        && !planted("retry-after-ignored")
                    {
                        earliest = retry_after;
                    }
                    why = message;
                }
            }
        }
    }

    /// What to say first. Commits whose callers are gone are not repeated: nobody would hear of it.
    fn hello(&mut self) -> Hello {
        // Never by the clock, not even the first time: a process that was cut off while another resumed its session must
        // come back below that one, which took the clock. Raised for each attempt: one whose Welcome was lost counts.
        let incarnation = if planted("reconnects-by-the-clock") && self.carry.incarnation == 0 {
            incarnation_after(0)
        } else {
            self.carry.incarnation + 1
        };
        self.carry.incarnation = incarnation;
        // Whoever saves the session, to go on with it elsewhere, saves the highest that the server may have seen.
        self.shared.set_session(self.carry.info());
        let mut intake = self.shared.intake();
        intake.again.retain(|waiting| !waiting.is_given_up());
        let numbers = intake
            .again
            .iter()
            .filter_map(|waiting| match waiting.call {
                Call::Repeat { number, .. } => Some(number),
                _ => None,
            });
        let mut unanswered = self.carry.promised.clone();
        unanswered.extend(numbers);
        drop(intake);
        Hello {
            session: Some(self.carry.session),
            incarnation,
            sent: self.carry.sent,
            unanswered: unanswered.into_iter().collect(),
            ..Hello::new(self.agent.clone())
        }
    }

    /// A server has welcomed us.
    fn take_up(&mut self, hello: &Hello, welcome: Welcome) {
        let carry = &mut self.carry;
        carry.reconnects += 1;
        carry.lapses += u64::from(welcome.lapsed);
        if welcome.session == carry.session {
            carry.sent = carry.sent.max(welcome.executed);
        } else {
            tracing::warn!("the session could not be resumed: a new one began");
            carry.replaced += 1;
            carry.session = welcome.session;
            carry.incarnation = 0;
            carry.sent = 0;
            carry.promised.clear();
            carry.committed = CommitOrder::default();
            self.fail_repeats();
        }
        debug_assert!(hello.unanswered.len() <= 1024);
        // First what is asked for, then what wakes: whoever waits for the session's news finds this server's principal.
        self.shared.set_welcome(Arc::new(welcome));
        self.shared.set_session(self.carry.info());
        self.shared.set_state(ConnectionState::Connected);
    }

    /// With the session its numbers are gone: nobody can tell any more what these commits did.
    fn fail_repeats(&self) {
        let mut intake = self.shared.intake();
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

    /// Waits for `work`, while deadlines pass and handles are dropped.
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

    /// Takes what came in; tells when to look again.
    fn look(&mut self, cx: &mut Context<'_>) -> Result<Instant, End> {
        let now = Instant::now();
        let mut intake = self.shared.intake();
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
        self.shared.free_room(places);
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

/// Enough for jitter; the hasher's keys are random for each process and each call.
fn rand_u32() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_most_and_half_of_each_is_random() {
        let backoff = Backoff {
            min: Duration::from_millis(100),
            max: Duration::from_secs(5),
        };
        for (attempt, longest) in [(0, 100), (1, 200), (5, 3_200), (6, 5_000), (40, 5_000)] {
            let longest = Duration::from_millis(longest);
            assert_eq!(backoff.delay(attempt, 0), longest / 2);
            assert_eq!(backoff.delay(attempt, u32::MAX), longest);
            let between = backoff.delay(attempt, u32::MAX / 2);
            assert!(between > longest / 2 && between < longest);
        }
    }

    #[test]
    fn incarnations_grow_also_where_the_clock_does_not() {
        let first = incarnation_after(0);
        assert!(first > 1_600_000_000_000);
        let far = first + 1_000_000;
        assert_eq!(incarnation_after(far), far + 1);
    }
}
