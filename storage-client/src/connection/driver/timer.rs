//! The one timer of a socket: it wakes the task for deadlines, pings and the check for silence.

use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

/// See the module.
pub(super) struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// No request's deadline and no delayed watch is due before this.
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

    /// Sets the earliest deadline, after all of them were checked.
    pub(super) fn set_earliest(&mut self, earliest: Option<Instant>) {
        self.earliest = earliest;
    }

    /// Whether a deadline may have passed.
    pub(super) fn deadline_is_due(&self, now: Instant) -> bool {
        self.earliest.is_some_and(|earliest| now >= earliest)
    }

    /// Wakes the task at `next`, or at the earliest deadline before it. Moves the timer only to an earlier time: if it
    /// fires too early there is nothing to do. So a busy connection does not touch it.
    pub(super) fn arm(&mut self, next: Instant) {
        let next = self.earliest.map_or(next, |earliest| earliest.min(next));
        let deadline = self.sleep.deadline();
        if next < deadline || deadline <= Instant::now() {
            self.sleep.as_mut().reset(next);
        }
    }

    /// Whether it has fired; else the task is woken when it does.
    pub(super) fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        // The clock is checked as well: with a socket that always has more to read, the task uses up its budget in the
        // runtime, and then the timer is not polled.
        self.sleep.as_mut().poll(cx).is_ready() || Instant::now() >= self.sleep.deadline()
    }
}
