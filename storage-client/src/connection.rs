//! One connection: the handle that callers hold, and the queue between them and the driver.
//!
//! A [`Connection`] is one socket with its session; it never reconnects. Callers put requests into the [`Shared`]
//! queue and wait for their answers; the driver task (`driver.rs`) owns everything else: socket, ids, deadlines.
//! Invariant: a request leaves the queue once, and whoever takes it out answers it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use storage_protocol::native::{Packet, ServerMessage, Welcome};
use storage_protocol::{Batch, CommitOptions, Outcome, Result, StorageError};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use crate::dial::Socket;
use crate::driver::Driver;
use crate::watch::WatchShared;

/// What a connection is at present.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Calls are carried out.
    Connected,
    /// The server is about to close: what is in flight is answered, new calls fail with `Closed`, not executed.
    Draining {
        /// Why, as the server says.
        reason: String,
        /// When to connect again, as the server asks.
        retry_after: Duration,
    },
    /// The connection is over; every call fails with `Closed`.
    Closed {
        /// Why.
        why: String,
    },
}

/// How long a connection without handles may take to send what is on its way.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// Far enough for "never", and no overflow of the clock.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// `start` plus `duration`, however long that is.
pub(crate) fn deadline_after(start: Instant, duration: Duration) -> Instant {
    start + duration.min(FAR)
}

/// Takes a lock of a short section. A panic inside one leaves nothing half-done that matters, so poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request asks of the driver.
pub(crate) enum Call {
    /// A message that is encoded already; only its id is missing.
    Send { packet: Packet, expect: Expect },
    /// A commit: it gets its number when it goes out, so that one which never does takes none.
    Commit {
        batch: Batch,
        options: CommitOptions,
    },
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
            Self::Send { packet, .. } | Self::Watch { packet, .. } => packet.payload.len(),
            Self::Commit { batch, options } => {
                batch.bytes() + options.label.as_ref().map_or(0, String::len) + 64
            }
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
    /// A further page of this scan.
    NextPage { scan: u64 },
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
    /// A mark with a token, which comes under the watch's id.
    Mark { watch: u32 },
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
    /// Of a first page that is not the last. Closes the scan when dropped, also where the caller is gone by then.
    pub(crate) scan: Option<OpenScan>,
}

/// A scan that the server holds for us; dropping it gives it up.
pub(crate) struct OpenScan {
    pub(crate) number: u64,
    /// `None`: the server has closed it already.
    shared: Option<Arc<Shared>>,
}

impl OpenScan {
    pub(crate) fn new(number: u64, shared: Arc<Shared>) -> Self {
        Self {
            number,
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
            shared.control(Control::CloseScan { scan: self.number });
        }
    }
}

/// A request in the queue.
pub(crate) struct Submission {
    pub(crate) call: Call,
    /// The caller waits at its other end; closed when the caller gave up.
    pub(crate) reply: oneshot::Sender<Result<Answer>>,
    pub(crate) deadline: Instant,
}

/// What needs no answer to a caller, and may be said from a `Drop`.
pub(crate) enum Control {
    Credit { watch: Arc<WatchShared>, bytes: u64 },
    Probe { watch: Arc<WatchShared>, token: u64 },
    Unwatch { watch: Arc<WatchShared> },
    CloseScan { scan: u64 },
}

/// That the handles want the connection to end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// After the calls in flight, or at this time.
    Graceful { until: Instant },
    /// As soon as what was taken from the queue is sent, or at this time: nobody holds a handle any more.
    Abandoned { until: Instant },
}

/// What callers and the driver share.
pub(crate) struct Shared {
    pub(crate) welcome: Arc<Welcome>,
    /// Written by the driver, read by whoever asks.
    state: watch::Sender<ConnectionState>,
    /// Held while a request enters the queue. It is fair, so requests enter in the order they were first polled in.
    gate: tokio::sync::Mutex<()>,
    /// Free places in the queue; closed with the connection.
    room: Semaphore,
    intake: Mutex<Intake>,
}

/// Filled by callers, emptied by the driver.
#[derive(Default)]
pub(crate) struct Intake {
    /// Requests that wait to be sent. Bounded by `Shared::room`: callers wait for a place within their deadline.
    pub(crate) queue: VecDeque<Submission>,
    /// Bounded by what there is to control: one entry for each half of a watch's window that was consumed, one for each
    /// unanswered mark (at most 1,024 for each watch), one for each dropped watch and scan.
    pub(crate) control: Vec<Control>,
    /// A deadline that none in the queue lies before.
    pub(crate) earliest: Option<Instant>,
    /// Whether a caller gave up since the driver looked.
    pub(crate) given_up: bool,
    pub(crate) ending: Option<Ending>,
    /// Why the connection is over; from then on nothing enters.
    pub(crate) closed: Option<String>,
    /// Woken, once, when something of the above changes.
    pub(crate) driver: Option<Waker>,
}

impl Shared {
    pub(crate) fn new(welcome: Welcome, queue_len_max: usize) -> Self {
        Self {
            welcome: Arc::new(welcome),
            state: watch::Sender::new(ConnectionState::Connected),
            gate: tokio::sync::Mutex::new(()),
            room: Semaphore::new(queue_len_max.clamp(1, Semaphore::MAX_PERMITS)),
            intake: Mutex::new(Intake::default()),
        }
    }

    pub(crate) fn intake(&self) -> MutexGuard<'_, Intake> {
        lock(&self.intake)
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
        let queue = std::mem::take(&mut intake.queue);
        drop(intake);
        self.room.close();
        queue
    }

    /// What a call gets that comes too late.
    pub(crate) fn refusal(&self) -> Option<StorageError> {
        self.intake().refusal()
    }

    /// Puts a request into the queue, waiting for a place.
    async fn enter(&self, submission: Submission) -> Result<()> {
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
        timeout_at(deadline, wait).await.unwrap_or_else(|_| {
            Err(StorageError::DeadlineExceeded {
                outcome: Outcome::NotExecuted,
            })
        })
    }

    fn push(&self, submission: Submission, turn: tokio::sync::MutexGuard<'_, ()>) -> Result<()> {
        let mut refusal = None;
        self.change(|intake| {
            refusal = intake.refusal();
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
    fn refusal(&self) -> Option<StorageError> {
        let ending = self.ending.map(|_| "this client is closing".to_owned());
        let reason = self.closed.clone().or(ending)?;
        Some(StorageError::Closed {
            reason,
            outcome: Outcome::NotExecuted,
        })
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
            .change(|intake| intake.ending = Some(Ending::Abandoned { until }));
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
    /// Starts the driver of a socket on which Welcome was received. A panic of the driver, or the end of its runtime,
    /// closes the connection like any loss.
    pub(crate) fn open(socket: Socket, welcome: Welcome, queue_len_max: usize) -> Self {
        let shared = Arc::new(Shared::new(welcome, queue_len_max));
        let tasks = TaskTracker::new();
        tasks.spawn(Driver::new(socket, shared.clone()).run());
        tasks.close();
        Self {
            inner: Arc::new(Inner { shared, tasks }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn welcome(&self) -> &Arc<Welcome> {
        &self.inner.shared.welcome
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
            Call::Commit { .. } => Outcome::Unknown,
            Call::Send { .. } | Call::Watch { .. } => Outcome::NotExecuted,
        };
        let (reply, answer) = oneshot::channel();
        let submission = Submission {
            call,
            reply,
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
    pub(crate) async fn close(&self, timeout: Duration) {
        let until = deadline_after(Instant::now(), timeout);
        self.inner
            .shared
            .change(|intake| intake.ending = Some(Ending::Graceful { until }));
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
