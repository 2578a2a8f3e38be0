//! Counts once what several sessions hold and memory has once, such as a commit that is pushed to many.
//!
//! A [`Once`] counts in one budget alone, and in that of its outer [`Once`]: so a thing counts once for each principal
//! with sessions that hold it, and once for the server. A thing is known by its address. So whoever has a [`Share`]
//! must hold the thing for at least as long as the share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::budget::{Budget, Part};

/// The things that are counted in a budget.
#[derive(Debug)]
pub(crate) struct Once {
    budget: Arc<Budget>,
    within: Option<Arc<Once>>,
    /// By address; short sections only.
    things: Mutex<HashMap<usize, Weak<Share>>>,
}

/// The count of a thing, which lasts until its last share is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    once: Arc<Once>,
    address: usize,
    _part: Part,
    _outer: Option<Arc<Share>>,
}

impl Once {
    pub(crate) fn new(budget: &Arc<Budget>, within: Option<&Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            budget: budget.clone(),
            within: within.cloned(),
            things: Mutex::default(),
        })
    }

    /// Counts what is held at an address, unless it is counted already.
    pub(crate) fn count(self: &Arc<Self>, address: usize, bytes: usize) -> Arc<Share> {
        let mut things = self.things();
        let known = things.get(&address).and_then(Weak::upgrade);
        if let Some(share) = known {
            return share;
        }
        let mut part = self.budget.count_alone();
        part.resize(bytes);
        let outer = self.within.as_ref();
        let share = Arc::new(Share {
            once: self.clone(),
            address,
            _part: part,
            _outer: outer.map(|outer| outer.count(address, bytes)),
        });
        things.insert(address, Arc::downgrade(&share));
        share
    }

    fn things(&self) -> MutexGuard<'_, HashMap<usize, Weak<Share>>> {
        self.things.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut things = self.once.things();
        // It may have been counted anew meanwhile.
        let is_gone = |share: &Weak<Share>| share.strong_count() == 0;
        if things.get(&self.address).is_some_and(is_gone) {
            things.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Limit;

    use super::*;

    #[test]
    fn what_many_hold_counts_once_for_each_principal_and_once_in_all() {
        let all = Budget::new(Limit::Outbox, 100);
        let server = Once::new(&all, None);
        let principal = || {
            let budget = Budget::within(&all, Limit::Outbox, 50);
            (Once::new(&budget, Some(&server)), budget)
        };
        let ((a, a_budget), (b, b_budget)) = (principal(), principal());
        let used = || (a_budget.used(), b_budget.used(), all.used());
        let (one, two, three) = (a.count(1, 40), a.count(1, 40), b.count(1, 40));
        assert_eq!(used(), (40, 40, 40));
        let other = b.count(2, 5);
        assert_eq!(used(), (40, 45, 45));
        drop((one, three));
        assert_eq!(used(), (40, 5, 45));
        drop(two);
        assert_eq!(used(), (0, 5, 5));
        let again = a.count(1, 7);
        assert_eq!(used(), (7, 5, 12));
        drop((again, other));
        assert_eq!(used(), (0, 0, 0));
        assert!(a.things().is_empty() && b.things().is_empty() && server.things().is_empty());
    }
}
