//! The callers' end of the queue.

use std::sync::Arc;
use std::time::Duration;

use storage_protocol::{Outcome, Result, StorageError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Answer, Call, Control, Ending, Queue, Submission};
use crate::order::Broken;
use crate::sync::deadline_after;

/// How long a connection without handles may take to send what is on its way.
const ABANDONED_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes requests to the connection's task. Clones share the connection; when the last is dropped, it closes.
#[derive(Clone)]
pub(crate) struct Requests {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<Queue>,
    /// How long each request may take.
    timeout: Duration,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let until = deadline_after(Instant::now(), ABANDONED_TIMEOUT);
        self.queue
            .change(|intake| intake.ending = intake.ending.or(Some(Ending::Abandoned { until })));
    }
}

impl Requests {
    pub(crate) fn new(queue: Arc<Queue>, timeout: Duration) -> Self {
        let inner = Arc::new(Inner { queue, timeout });
        Self { inner }
    }

    /// Sends a request and waits for its answer, at most so long as each may take.
    ///
    /// # Cancel safety
    /// Dropping the future gives the request up: one that was not sent never is, one that was is cancelled where it
    /// is a read; its late answer is passed over.
    pub(crate) async fn request(&self, call: Call) -> Result<Answer> {
        let queue = &self.inner.queue;
        let deadline = deadline_after(Instant::now(), self.inner.timeout);
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
        queue.enter(submission).await?;
        let mut patience = Patience { queue, waits: true };
        let result = answer.await;
        patience.waits = false;
        result.unwrap_or_else(|_| {
            Err(StorageError::Closed {
                reason: "the connection ended".into(),
                outcome: outcome_if_lost,
            })
        })
    }

    /// Says what needs no answer. Never blocks, may be called from `Drop`.
    pub(crate) fn control(&self, control: Control) {
        self.inner.queue.control(control);
    }

    /// For what a caller finds wrong with an answer that came on this socket: the connection ends by it.
    pub(crate) fn misbehaved(&self, what: Broken, socket: u64) -> StorageError {
        let message = format!("the server misbehaved: {what}");
        self.control(Control::Misbehaved { what, socket });
        StorageError::PeerMisbehaved {
            message,
            outcome: Outcome::NotExecuted,
        }
    }

    /// What a call gets that comes too late.
    pub(crate) fn refusal(&self) -> Option<StorageError> {
        self.inner.queue.refusal()
    }

    /// Takes no more requests; the connection closes behind those in flight, or at this time. `leave`: the session stays.
    pub(crate) fn close(&self, until: Instant, leave: bool) {
        self.inner
            .queue
            .change(|intake| intake.ending = Some(Ending::Graceful { until, leave }));
    }
}

/// Tells the driver if the caller stops waiting.
struct Patience<'a> {
    queue: &'a Queue,
    waits: bool,
}

impl Drop for Patience<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.queue.change(|intake| intake.given_up = true);
        }
    }
}
