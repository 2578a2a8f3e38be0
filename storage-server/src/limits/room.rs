//! Counts the answers of a session's reads while they are read.
//!
//! Each value of an answer is counted before it is held, in the budget in which the outbox is counted too; so what was
//! read and is not sent has one bound. A read that finds no room ends and gives its thread of the pool back. It is
//! repeated later as the one read at a time that may go beyond the session's bound. So a session holds at most its
//! bound and one answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::{Budget, Permit};
use crate::engine::Room;

/// How far a read may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Up to so many bytes, however much waits to be sent: small answers are sent before that.
    Small(usize),
    /// As far as there is room.
    Within,
    /// Beyond the session's bound, for one at a time.
    Beyond,
}

#[derive(Debug)]
struct State {
    permit: Permit,
    reach: Reach,
    refused: bool,
    /// Nobody waits for the answer any more.
    closed: bool,
}

#[derive(Debug)]
struct Counted(Mutex<State>);

impl Counted {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room for Counted {
    fn take(&self, bytes: usize) -> bool {
        let mut state = self.state();
        let fits = match state.reach {
            _ if state.closed => false,
            Reach::Small(max) => {
                let sum = state.permit.amount() + bytes;
                let fits = sum <= max;
                if fits {
                    state.permit.resize(sum);
                }
                fits
            }
            Reach::Within => state.permit.grow(bytes),
            Reach::Beyond => state.permit.grow(bytes) || state.permit.grow_beyond(bytes),
        };
        state.refused |= !fits;
        fits
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.state();
        let amount = state.permit.amount().saturating_sub(bytes);
        state.permit.resize(amount);
    }
}

/// The room of one read, or of the pages of one scan. Dropping it closes it: a read that still runs ends at its next
/// value, and what it holds is counted until then.
#[derive(Debug)]
pub(crate) struct AnswerRoom(Arc<Counted>);

impl AnswerRoom {
    pub(crate) fn new(budget: &Arc<Budget>, reach: Reach) -> Self {
        Self(Arc::new(Counted(Mutex::new(State {
            permit: budget.count(),
            reach,
            refused: false,
            closed: false,
        }))))
    }

    pub(crate) fn room(&self) -> Arc<dyn Room> {
        self.0.clone()
    }

    /// Begins another read in it: the answer of the one before is not held any more.
    pub(crate) fn begin(&self, reach: Reach) {
        let mut state = self.0.state();
        state.permit.resize(0);
        state.reach = reach;
        state.refused = false;
    }

    /// Whether the read found no room.
    pub(crate) fn was_refused(&self) -> bool {
        self.0.state().refused
    }
}

impl Drop for AnswerRoom {
    fn drop(&mut self) {
        self.0.state().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Limit;

    use super::*;

    #[test]
    fn one_read_at_a_time_goes_beyond_the_bound() {
        let budget = Budget::new(Limit::Outbox, 10);
        let within = AnswerRoom::new(&budget, Reach::Within);
        let beyond = AnswerRoom::new(&budget, Reach::Beyond);
        assert!(within.room().take(8));
        assert!(!within.room().take(3) && within.was_refused());
        assert!(beyond.room().take(30) && !beyond.was_refused());
        assert_eq!(budget.used(), 38);
        within.begin(Reach::Within);
        assert_eq!((budget.used(), within.was_refused()), (30, false));
        assert!(!within.room().take(1));
    }

    #[test]
    fn what_is_small_is_counted_whatever_waits() {
        let budget = Budget::new(Limit::Outbox, 10);
        let _full = budget.take(10).unwrap();
        let small = AnswerRoom::new(&budget, Reach::Small(4));
        assert!(small.room().take(4));
        assert!(!small.room().take(1) && small.was_refused());
        assert_eq!(budget.used(), 14);
    }

    #[test]
    fn who_is_given_up_reads_no_further_and_is_counted_until_it_ends() {
        let budget = Budget::new(Limit::Outbox, 10);
        let given_up = AnswerRoom::new(&budget, Reach::Beyond);
        let job = given_up.room();
        assert!(job.take(5));
        drop(given_up);
        assert!(!job.take(1));
        assert_eq!(budget.used(), 5);
        drop(job);
        assert_eq!(budget.used(), 0);
    }
}
