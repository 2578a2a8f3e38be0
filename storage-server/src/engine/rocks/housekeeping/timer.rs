//! Wakes the expirer when the next entry is due, and both threads each round.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::UnixMillis;

use super::ROUND;

/// Knows when the next entry is due. Commits set it, the expirer waits for it.
#[derive(Debug, Default)]
pub(crate) struct ExpiryTimer {
    state: Mutex<TimerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TimerState {
    /// Nothing is due before this; `None`: unknown, the rows must be read.
    due: Option<UnixMillis>,
    stopped: bool,
}

impl ExpiryTimer {
    /// Something is due at this time.
    pub(crate) fn set(&self, due: UnixMillis) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.due.is_some_and(|known| due < known) {
            state.due = Some(due);
            self.changed.notify_all();
        }
    }

    /// Waits for a round; false when stopped.
    pub(super) fn wait_for_round(&self) -> bool {
        let deadline = Instant::now() + ROUND;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return !state.stopped;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(crate) fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stopped = true;
        self.changed.notify_all();
    }

    /// Waits until something is due or a round is over; false when stopped.
    pub(super) fn wait(&self, now: impl Fn() -> UnixMillis) -> bool {
        let deadline = Instant::now() + ROUND;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let until_due = match state.due {
                Some(due) => Duration::from_millis(due.0.saturating_sub(now().0)),
                None => Duration::ZERO,
            };
            if state.stopped || left.is_zero() || until_due.is_zero() {
                return !state.stopped;
            }
            let wait = left.min(until_due);
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether something may be due.
    pub(super) fn is_due(&self, now: UnixMillis) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .due
            .is_none_or(|due| due <= now)
    }

    /// Nothing is known to be due before this. To be called before the rows are read, so that a commit meanwhile can
    /// lower it again.
    pub(super) fn expect(&self, due: UnixMillis) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .due = Some(due);
    }
}
