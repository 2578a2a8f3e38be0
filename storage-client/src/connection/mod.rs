//! The handle that callers hold, and the queue between them and the task that serves it.
//!
//! A [`Connection`] is one session over its sockets. Callers put requests into the [`Shared`] queue and wait for their
//! answers. One task does the rest: while there is a socket it is in the [`driver`], between two sockets
//! in the [`supervisor`]. Invariant: a request leaves the queue once, and whoever takes it out answers
//! it or puts it back in front.

mod backoff;
mod driver;
mod supervisor;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::Duration;

use storage_protocol::native::{Packet, RequestId, ServerMessage, Welcome};
use storage_protocol::{Batch, CommitOptions, Epoch, Outcome, Result, StorageError};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::session::SessionInfo;
use crate::sync::{deadline_after, lock};
use crate::transport::Socket;
use crate::watch::WatchShared;

pub(crate) use backoff::Backoff;
pub(crate) use supervisor::Supervisor;

/// What a connection is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Calls are carried out.
    Connected,
    /// There is no socket; a new one is being tried for. Calls wait for it, each up to its deadline.
    Disconnected {
        /// When the last socket was lost.
        since: std::time::Instant,
        /// Why it was, or why the last attempt at a new one failed.
        why: String,
    },
    /// The server is about to close: what is in flight is answered, new calls wait for the next connection. (Without
    /// reconnecting they are sent, and the server refuses them with `Closed`, not executed.)
    Draining {
        /// Why, as the server says.
        reason: String,
        /// When to connect again, as the server asks.
        retry_after: Duration,
    },
    /// Over for good: closed by its handles; given up as asked for; the session taken over by another process (the server
    /// closed with 4003); the server closed with a code that says not to repeat the same (1002, 1003, 1007, 1008, 1009); or the
    /// server broke the protocol. Every call fails with `Closed`.
    Closed {
        /// Why.
        why: String,
    },
}

/// How long a connection without handles may take to send what is on its way.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// What a request asks of the driver.
pub(crate) enum Call {
    /// A message that is encoded already; only its id is missing.
    Send { packet: Packet, expect: Expect },
    /// A commit: it gets its number when it goes out, so that one which never does takes none; or its caller gives it one.
    Commit {
        number: Option<u64>,
        batch: Batch,
        options: CommitOptions,
    },
    /// A commit that went out on an earlier socket, under its number.
    Repeat { number: u64, packet: Packet },
    /// A watch: its queue is attached before the message goes out, so that no event comes too early.
    Watch {
        packet: Packet,
        watch: Arc<WatchShared>,
    },
}

impl Call {
    /// What it counts towards the bytes in flight; of a commit a bound on what the wire takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Send { packet, .. }
            | Self::Watch { packet, .. }
            | Self::Repeat { packet, .. } => packet.payload.len(),
            Self::Commit { batch, options, .. } => {
                batch.bytes() + options.label.as_ref().map_or(0, String::len) + 64
            }
        }
    }

    /// What is certain about it if it fails before it goes out (again).
    pub(crate) fn outcome_if_unsent(&self) -> Outcome {
        match self {
            // A number that its caller gave it may have been sent by an earlier process.
            Self::Repeat { .. }
            | Self::Commit {
                number: Some(_), ..
            } => Outcome::Unknown,
            Self::Send { .. } | Self::Commit { .. } | Self::Watch { .. } => Outcome::NotExecuted,
        }
    }
}

/// Which answer belongs to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// To a get of so many keys.
    Values { keys: usize },
    /// The first page of a scan.
    FirstPage,
    /// A further page of this scan, which lives on one socket.
    NextPage { scan: u64, socket: u64 },
    /// `Done` for this scan.
    ScanClosed { scan: u64 },
    /// To a commit.
    Committed,
    /// To a watch, whose queue is attached under the same id.
    Watching,
    /// `Done` for this watch.
    Unwatched { watch: u32 },
    /// To a probe of no watch.
    Probed { token: u64 },
}

impl Expect {
    /// What is certain about a request that was sent and is not answered.
    pub(crate) fn outcome_if_lost(self) -> Outcome {
        match self {
            Self::Committed => Outcome::Unknown,
            _ => Outcome::NotExecuted,
        }
    }

    /// Whether the server can save work when nobody waits for the answer any more.
    pub(crate) fn can_cancel(self) -> bool {
        matches!(
            self,
            Self::Values { .. } | Self::FirstPage | Self::NextPage { .. }
        )
    }
}

/// An answer on its way to the caller.
pub(crate) struct Answer {
    pub(crate) message: ServerMessage,
    /// Of the history that its revisions belong to.
    pub(crate) epoch: Epoch,
    /// Which of the connection's sockets it came on.
    pub(crate) socket: u64,
    /// Of a first page that is not the last. Closes the scan when dropped, also where the caller is gone by then.
    pub(crate) scan: Option<OpenScan>,
}

/// A scan that the server holds for us; dropping it gives it up.
pub(crate) struct OpenScan {
    pub(crate) number: u64,
    /// Which of the connection's sockets it lives on.
    pub(crate) socket: u64,
    /// `None`: the server has closed it already.
    shared: Option<Arc<Shared>>,
}

impl OpenScan {
    pub(crate) fn new(number: u64, socket: u64, shared: Arc<Shared>) -> Self {
        Self {
            number,
            socket,
            shared: Some(shared),
        }
    }

    /// The server has closed it with its last page.
    pub(crate) fn finished(mut self) {
        self.shared = None;
    }
}

impl Drop for OpenScan {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.control(Control::CloseScan {
                scan: self.number,
                socket: self.socket,
            });
        }
    }
}

/// A request in the queue.
pub(crate) struct Submission {
    pub(crate) call: Call,
    /// The caller waits at its other end; closed when the caller gave up, `None` when it was told already.
    pub(crate) reply: Option<oneshot::Sender<Result<Answer>>>,
    pub(crate) deadline: Instant,
}

impl Submission {
    /// Whether nobody waits for its answer.
    pub(crate) fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(crate) fn fail(&mut self, error: StorageError) {
        if let Some(reply) = self.reply.take() {
            // A caller that is gone needs no answer.
            let _ = reply.send(Err(error));
        }
    }

    /// Fails it since the connection is over.
    pub(crate) fn fail_closed(mut self, reason: &str) {
        let outcome = self.call.outcome_if_unsent();
        let reason = reason.to_owned();
        self.fail(StorageError::Closed { reason, outcome });
    }

    /// Tells its caller that the time is over, if it is; whether it was.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let expired = self.deadline <= now;
        if expired {
            let outcome = self.call.outcome_if_unsent();
            self.fail(StorageError::DeadlineExceeded { outcome });
        }
        expired
    }
}

/// What needs no answer to a caller, and may be said from a `Drop`.
pub(crate) enum Control {
    Credit {
        watch: Arc<WatchShared>,
        bytes: u64,
    },
    Probe {
        watch: Arc<WatchShared>,
        token: u64,
    },
    Unwatch {
        watch: Arc<WatchShared>,
    },
    /// Of the task itself: a stream of a watch that goes on without it.
    EndStream {
        stream: RequestId,
    },
    CloseScan {
        scan: u64,
        socket: u64,
    },
    /// A caller found that what came on this socket breaks the protocol.
    Misbehaved {
        what: String,
        socket: u64,
    },
}

/// That the handles want the connection to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// After the calls in flight, or at this time. `leave`: the session stays, to be resumed.
    Graceful { until: Instant, leave: bool },
    /// As soon as what was taken from the queue is sent, or at this time: nobody holds a handle any more.
    Abandoned { until: Instant },
}

/// What callers and the connection's task share.
pub(crate) struct Shared {
    /// Of the present (or last) socket. Written by the supervisor.
    welcome: Mutex<Arc<Welcome>>,
    /// Whether a lost socket is followed by another. Else calls fail and watches end with their socket.
    pub(crate) reconnects: bool,
    /// Written by the connection's task, read by whoever asks.
    state: watch::Sender<ConnectionState>,
    session: watch::Sender<SessionInfo>,
    /// Held while a request enters the queue. It is fair, so requests enter in the order they were first polled in.
    gate: tokio::sync::Mutex<()>,
    /// Free places in the queue; closed with the connection.
    room: Semaphore,
    intake: Mutex<Intake>,
}

/// Filled by callers, emptied by the driver.
#[derive(Default)]
pub(crate) struct Intake {
    /// Requests that went out (or were about to) on a socket that was lost, in their order; before those of `queue`.
    /// Bounded by what may be in flight.
    pub(crate) again: VecDeque<Submission>,
    /// Requests that wait to be sent. Bounded by `Shared::room`: callers wait for a place within their deadline.
    pub(crate) queue: VecDeque<Submission>,
    /// Bounded by what there is to control: one entry for each half of a watch's window that was consumed, one for each
    /// unanswered mark (at most 1,024 for each watch), one for each dropped watch and scan.
    pub(crate) control: Vec<Control>,
    /// A deadline that none in the queue lies before.
    pub(crate) earliest: Option<Instant>,
    /// Whether a caller gave up since the task looked.
    pub(crate) given_up: bool,
    pub(crate) ending: Option<Ending>,
    /// Why the connection is over; from then on nothing enters.
    pub(crate) closed: Option<String>,
    /// Woken, once, when something of the above changes.
    driver: Option<Waker>,
}

impl Shared {
    pub(crate) fn new(welcome: Welcome, queue_len_max: usize, reconnects: bool) -> Self {
        let session = SessionInfo {
            id: welcome.session,
            incarnation: 0,
            sent: 0,
            reconnects: 0,
            last_outage: None,
            lapses: 0,
            replaced: 0,
        };
        Self {
            welcome: Mutex::new(Arc::new(welcome)),
            reconnects,
            session: watch::Sender::new(session),
            state: watch::Sender::new(ConnectionState::Connected),
            gate: tokio::sync::Mutex::new(()),
            room: Semaphore::new(queue_len_max.clamp(1, Semaphore::MAX_PERMITS)),
            intake: Mutex::new(Intake::default()),
        }
    }

    pub(crate) fn intake(&self) -> MutexGuard<'_, Intake> {
        lock(&self.intake)
    }

    pub(crate) fn welcome(&self) -> Arc<Welcome> {
        lock(&self.welcome).clone()
    }

    pub(crate) fn set_welcome(&self, welcome: Arc<Welcome>) {
        *lock(&self.welcome) = welcome;
    }

    pub(crate) fn session(&self) -> watch::Receiver<SessionInfo> {
        self.session.subscribe()
    }

    pub(crate) fn set_session(&self, session: SessionInfo) {
        self.session.send_replace(session);
    }

    /// Changes the intake and wakes the driver.
    fn change(&self, change: impl FnOnce(&mut Intake)) {
        let mut intake = self.intake();
        change(&mut intake);
        let driver = intake.driver.take();
        drop(intake);
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    /// Never blocks, may be called from `Drop`. Of no effect on a closed connection.
    pub(crate) fn control(&self, control: Control) {
        self.change(|intake| {
            if intake.closed.is_none() {
                intake.control.push(control);
            }
        });
    }

    pub(crate) fn free_room(&self, places: usize) {
        self.room.add_permits(places);
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    pub(crate) fn set_state(&self, state: ConnectionState) {
        self.state.send_replace(state);
    }

    /// Nothing enters any more; gives what waited.
    pub(crate) fn shut(&self, why: String) -> VecDeque<Submission> {
        let mut intake = self.intake();
        intake.closed = Some(why);
        intake.control.clear();
        let mut queue = std::mem::take(&mut intake.again);
        queue.append(&mut intake.queue);
        drop(intake);
        self.room.close();
        queue
    }

    /// What a call gets that comes too late.
    pub(crate) fn refusal(&self) -> Option<StorageError> {
        self.intake().refusal(Outcome::NotExecuted)
    }

    /// Puts a request into the queue, waiting for a place.
    async fn enter(&self, submission: Submission) -> Result<()> {
        let outcome = submission.call.outcome_if_unsent();
        if let Ok(turn) = self.gate.try_lock()
            && let Ok(place) = self.room.try_acquire()
        {
            place.forget();
            return self.push(submission, turn);
        }
        let deadline = submission.deadline;
        let wait = async {
            let turn = self.gate.lock().await;
            // It is closed only with the connection, and then `push` refuses with the reason.
            if let Ok(place) = self.room.acquire().await {
                place.forget();
            }
            self.push(submission, turn)
        };
        timeout_at(deadline, wait)
            .await
            .unwrap_or_else(|_| Err(StorageError::DeadlineExceeded { outcome }))
    }

    fn push(&self, submission: Submission, turn: tokio::sync::MutexGuard<'_, ()>) -> Result<()> {
        let mut refusal = None;
        self.change(|intake| {
            refusal = intake.refusal(submission.call.outcome_if_unsent());
            if refusal.is_none() {
                let deadline = submission.deadline;
                intake.earliest = Some(intake.earliest.map_or(deadline, |time| time.min(deadline)));
                intake.queue.push_back(submission);
            }
        });
        // Ordering: only now may the next request enter.
        drop(turn);
        refusal.map_or(Ok(()), Err)
    }
}

impl Intake {
    /// Registers who is woken by the next change.
    pub(crate) fn register(&mut self, waker: &Waker) {
        match &mut self.driver {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Fails those that are past their deadline and lets go of those whose callers are gone. Gives how many left the queue
    /// (whose places are free then), and the earliest deadline of the rest.
    pub(crate) fn sweep(&mut self, now: Instant) -> (usize, Option<Instant>) {
        let before = self.queue.len();
        self.queue
            .retain_mut(|waiting| !waiting.expire(now) && !waiting.is_given_up());
        for waiting in &mut self.again {
            waiting.expire(now);
        }
        // A commit that was sent is kept as it is: the server may be waiting for its number.
        self.again.retain(|waiting| {
            matches!(waiting.call, Call::Repeat { .. }) || !waiting.is_given_up()
        });
        let waiting = self.again.iter().chain(&self.queue);
        let earliest = waiting
            .filter(|waiting| waiting.reply.is_some())
            .map(|waiting| waiting.deadline)
            .min();
        (before - self.queue.len(), earliest)
    }

    fn refusal(&self, outcome: Outcome) -> Option<StorageError> {
        let ending = self.ending.map(|_| "this client is closing".to_owned());
        let reason = self.closed.clone().or(ending)?;
        Some(StorageError::Closed { reason, outcome })
    }
}

/// One socket with its session. Clones share it; when the last is dropped, it closes.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Owns the driver task; `close` waits for it.
    tasks: TaskTracker,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let until = deadline_after(Instant::now(), ABANDONED_TIMEOUT);
        self.shared
            .change(|intake| intake.ending = intake.ending.or(Some(Ending::Abandoned { until })));
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("principal", &self.welcome().principal)
            .field("state", &*self.state().borrow())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts the task of a connection whose first socket was welcomed. A panic of it, or the end of its runtime, closes
    /// the connection for good.
    pub(crate) fn open(shared: Arc<Shared>, supervisor: Supervisor, socket: Socket) -> Self {
        let tasks = TaskTracker::new();
        tasks.spawn(supervisor.run(socket));
        tasks.close();
        Self {
            inner: Arc::new(Inner { shared, tasks }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn welcome(&self) -> Arc<Welcome> {
        self.inner.shared.welcome()
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.inner.shared.state()
    }

    /// Sends a request and waits for its answer, up to the deadline.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up: one that was not sent never is, one that was is cancelled where it
    /// is a read; its late answer is passed over.
    pub(crate) async fn request(&self, call: Call, deadline: Instant) -> Result<Answer> {
        let shared = &self.inner.shared;
        let outcome_if_lost = match &call {
            Call::Commit { .. } | Call::Repeat { .. } => Outcome::Unknown,
            Call::Send { .. } | Call::Watch { .. } => Outcome::NotExecuted,
        };
        let (reply, answer) = oneshot::channel();
        let submission = Submission {
            call,
            reply: Some(reply),
            deadline,
        };
        shared.enter(submission).await?;
        let mut patience = Patience {
            shared,
            waits: true,
        };
        let result = answer.await;
        patience.waits = false;
        result.unwrap_or_else(|_| {
            Err(StorageError::Closed {
                reason: "the connection ended".into(),
                outcome: outcome_if_lost,
            })
        })
    }

    /// Takes no more requests, waits for those in flight (up to `timeout`), closes, waits for the driver to end.
    pub(crate) async fn close(&self, timeout: Duration, leave: bool) {
        let until = deadline_after(Instant::now(), timeout);
        self.inner
            .shared
            .change(|intake| intake.ending = Some(Ending::Graceful { until, leave }));
        self.inner.tasks.wait().await;
    }
}

/// Tells the driver if the caller stops waiting.
struct Patience<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.change(|intake| intake.given_up = true);
        }
    }
}
