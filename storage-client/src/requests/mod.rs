//! What callers ask of a connection, and what they are answered.
//!
//! Callers put [`Submission`]s into the [`Queue`] by way of [`Requests`] and wait for their [`Answer`]s; the connection's
//! task takes them out. Not here: how they go over the wire, and what a lost socket means to them.

mod callers;
mod queue;

use std::sync::Arc;

use storage_protocol::native::{Packet, RequestId, ServerMessage};
use storage_protocol::{Batch, CommitOptions, Epoch, Outcome, Result, StorageError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::watch::WatchShared;

pub(crate) use callers::Requests;
pub(crate) use queue::{Intake, Queue};

/// What a request asks of the server.
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

impl Answer {
    /// For an answer of the wrong type. The connection's task has matched them, so this is not seen.
    pub(crate) fn of_wrong_type() -> StorageError {
        StorageError::PeerMisbehaved {
            message: "the answer is of the wrong type".into(),
            outcome: Outcome::Unknown,
        }
    }
}

/// A scan that the server holds for us; dropping it gives it up.
pub(crate) struct OpenScan {
    pub(crate) number: u64,
    /// Which of the connection's sockets it lives on.
    pub(crate) socket: u64,
    /// `None`: the server has closed it already.
    queue: Option<Arc<Queue>>,
}

impl OpenScan {
    pub(crate) fn new(number: u64, socket: u64, queue: Arc<Queue>) -> Self {
        Self {
            number,
            socket,
            queue: Some(queue),
        }
    }

    /// The server has closed it with its last page.
    pub(crate) fn finished(mut self) {
        self.queue = None;
    }
}

impl Drop for OpenScan {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.control(Control::CloseScan {
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
