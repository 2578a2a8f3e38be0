//! The queue between callers and the connection's task.
//!
//! Invariant: a request leaves the queue once, and whoever takes it out answers it or puts it back in front.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::task::Waker;

use storage_protocol::{Outcome, Result, StorageError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::{Call, Control, Ending, Submission};
use crate::sync::lock;

/// See the module.
pub(crate) struct Queue {
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
    /// Requests that wait to be sent. Bounded by `Queue::room`: callers wait for a place within their deadline.
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

impl Queue {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            gate: tokio::sync::Mutex::new(()),
            room: Semaphore::new(len_max.clamp(1, Semaphore::MAX_PERMITS)),
            intake: Mutex::new(Intake::default()),
        }
    }

    pub(crate) fn intake(&self) -> MutexGuard<'_, Intake> {
        lock(&self.intake)
    }

    /// Changes the intake and wakes the driver.
    pub(super) fn change(&self, change: impl FnOnce(&mut Intake)) {
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
    pub(super) async fn enter(&self, submission: Submission) -> Result<()> {
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
