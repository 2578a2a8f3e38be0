//! The one timer of a socket: it wakes the task for what is due while nothing comes.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// No request's deadline lies before it, and no watch is to be opened before it.
    earliest: Option<Instant>,
}

impl Timer {
    pub(super) fn new(first: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(first)),
            earliest: None,
        }
    }

    /// One more deadline.
    pub(super) fn note_deadline(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |time| time.min(at)));
    }

    /// All deadlines that there are have been looked at: this is the first of those to come.
    pub(super) fn set_earliest(&mut self, earliest: Option<Instant>) {
        self.earliest = earliest;
    }

    /// Whether a deadline may have passed.
    pub(super) fn deadline_is_due(&self, now: Instant) -> bool {
        self.earliest.is_some_and(|earliest| now >= earliest)
    }

    /// Wakes the task at `next`, or at the earliest deadline before. Moves the timer only forward: it may fire early, and
    /// then finds nothing to do. So a busy connection does not touch it.
    pub(super) fn arm(&mut self, next: Instant) {
        let next = self.earliest.map_or(next, |earliest| earliest.min(next));
        let deadline = self.sleep.deadline();
        if next < deadline || deadline <= Instant::now() {
            self.sleep.as_mut().reset(next);
        }
    }

    /// Whether its time has come; else the task is woken then.
    pub(super) fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        // The clock is looked at as well: a socket that always has more uses up what the runtime lets a task do at a time,
        // and the timer says nothing then.
        self.sleep.as_mut().poll(cx).is_ready() || Instant::now() >= self.sleep.deadline()
    }
}
