//! Bounds as permits: taken before work is queued, given back by drop.
//!
//! A [`Budget`] counts requests or bytes. Most are nested: a session's budget is within its principal's, and that
//! within the server's; a permit counts in all of them. No principal has more than half of the server's budget, so
//! nobody can take the others' room. A caller that does not get a permit is refused at once; nothing here waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use storage_protocol::{Limit, StorageError};

use super::once::Once;
use crate::config::ServerLimits;

/// A bound on something in use.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Limit,
    max: usize,
    used: AtomicUsize,
    /// The outer budget: what is used here counts there too.
    within: Option<Arc<Budget>>,
}

impl Budget {
    pub(crate) fn new(limit: Limit, max: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            max,
            used: AtomicUsize::new(0),
            within: None,
        })
    }

    /// A budget whose permits count in an outer one as well.
    pub(crate) fn within(outer: &Arc<Self>, limit: Limit, max: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            max,
            used: AtomicUsize::new(0),
            within: Some(outer.clone()),
        })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing more fits, here or in an outer budget.
    pub(crate) fn is_full(&self) -> bool {
        self.levels().any(|budget| budget.used() >= budget.max)
    }

    /// Whether nothing more fits in an outer budget.
    pub(crate) fn shared_is_full(&self) -> bool {
        self.within.as_deref().is_some_and(Self::is_full)
    }

    /// Whether all that is in use of the next outer budget is in use here.
    pub(crate) fn is_alone(&self) -> bool {
        let outer = self.within.as_deref();
        outer.is_none_or(|outer| outer.used() <= self.used())
    }

    /// The budget of which more is in use than allowed (which [`Permit::resize`] can do), if there is one.
    pub(crate) fn over(&self) -> Option<&Self> {
        self.levels().find(|budget| budget.used() > budget.max)
    }

    /// The error of a refusal.
    pub(crate) fn overloaded(&self) -> StorageError {
        StorageError::Overloaded {
            limit: self.limit,
            max: self.max as u64,
        }
    }

    /// This budget and its outer ones.
    fn levels(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |budget| budget.within.as_deref())
    }

    /// Counts `more` in all levels, or in none: then `Err` is the budget in which it does not fit.
    fn add(&self, more: usize) -> Result<(), &Self> {
        let fits = |budget: &&Self| {
            let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= budget.max);
            let order = Ordering::Relaxed;
            budget.used.fetch_update(order, order, fits).is_ok()
        };
        let Some(full) = self.levels().find(|budget| !fits(budget)) else {
            return Ok(());
        };
        for budget in self
            .levels()
            .take_while(|budget| !std::ptr::eq(*budget, full))
        {
            budget.used.fetch_sub(more, Ordering::Relaxed);
        }
        Err(full)
    }

    /// Takes `amount`; an error if a limit is reached.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Result<Permit, StorageError> {
        self.add(amount).map_err(Self::overloaded)?;
        Ok(Permit {
            budget: self.clone(),
            amount,
        })
    }

    /// An empty permit, to be resized: for what is bounded elsewhere and only measured here.
    pub(crate) fn count(self: &Arc<Self>) -> Permit {
        Permit {
            budget: self.clone(),
            amount: 0,
        }
    }

    /// An empty part of this budget alone, to be resized.
    pub(crate) fn count_alone(self: &Arc<Self>) -> Part {
        Part {
            budget: self.clone(),
            amount: 0,
        }
    }
}

/// Counts in one budget and not in its outer ones, where the same thing is counted otherwise; until it is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    budget: Arc<Budget>,
    amount: usize,
}

impl Part {
    /// Makes it `amount` large, whether that fits or not.
    pub(crate) fn resize(&mut self, amount: usize) {
        let used = &self.budget.used;
        match amount.checked_sub(self.amount) {
            Some(more) => used.fetch_add(more, Ordering::Relaxed),
            None => used.fetch_sub(self.amount - amount, Ordering::Relaxed),
        };
        self.amount = amount;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// A part of a budget, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    amount: usize,
}

impl Permit {
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Makes it larger, if that fits; else the error says which limit is reached.
    pub(crate) fn try_grow(&mut self, more: usize) -> Result<(), StorageError> {
        self.budget.add(more).map_err(Budget::overloaded)?;
        self.amount += more;
        Ok(())
    }

    /// Makes it larger, if that fits.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        self.try_grow(more).is_ok()
    }

    /// Makes it larger even if its own budget is full, as long as the outer budgets have room. In an outer budget of
    /// which nothing else is in use there always is.
    pub(crate) fn grow_beyond(&mut self, more: usize) -> bool {
        let alone = |budget: &Budget| budget.used() <= self.amount;
        let fits = match &self.budget.within {
            None => true,
            Some(outer) => {
                outer.add(more).is_ok() || {
                    let alone = outer
                        .levels()
                        .filter(|budget| budget.used() + more > budget.max)
                        .all(alone);
                    if alone {
                        for budget in outer.levels() {
                            budget.used.fetch_add(more, Ordering::Relaxed);
                        }
                    }
                    alone
                }
            }
        };
        if fits {
            self.budget.used.fetch_add(more, Ordering::Relaxed);
            self.amount += more;
        }
        fits
    }

    /// Makes it `amount` large, whether that fits or not.
    pub(crate) fn resize(&mut self, amount: usize) {
        let (more, less) = (
            amount.saturating_sub(self.amount),
            self.amount.saturating_sub(amount),
        );
        for budget in self.budget.levels() {
            if more > 0 {
                budget.used.fetch_add(more, Ordering::Relaxed);
            } else if less > 0 {
                budget.used.fetch_sub(less, Ordering::Relaxed);
            }
        }
        self.amount = amount;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// The budgets in bytes that sessions share, one for each bound: the server's, or one principal's within those.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// Requests in flight.
    pub(crate) in_flight: Arc<Budget>,
    /// Messages that have begun to arrive and are not whole.
    pub(crate) partial: Arc<Budget>,
    /// What waits to be sent, answers that are being read included.
    pub(crate) outbox: Arc<Budget>,
    /// What of `outbox` several sessions send and memory has once.
    pub(crate) outbox_once: Arc<Once>,
    /// Memory of watches.
    pub(crate) watches: Arc<Budget>,
    /// One message always fits into a principal's.
    message_bytes_max: usize,
}

impl Budgets {
    /// The budgets of the server.
    pub(crate) fn new(limits: &ServerLimits) -> Arc<Self> {
        let outbox = Budget::new(Limit::Outbox, limits.outbox_bytes_total_max);
        Arc::new(Self {
            in_flight: Budget::new(Limit::BytesInFlightTotal, limits.bytes_in_flight_total_max),
            partial: Budget::new(Limit::PartialMessages, limits.partial_messages_bytes_max),
            outbox_once: Once::new(&outbox, None),
            outbox,
            watches: Budget::new(Limit::WatchBytesTotal, limits.watch_bytes_total_max),
            message_bytes_max: limits.message_bytes_max,
        })
    }

    /// The budgets of one principal: half of the server's each, but at least room for one message, even if a program
    /// with the server in it has set less (a configuration file cannot).
    fn of_principal(self: &Arc<Self>) -> Arc<Self> {
        let half_but = |all: &Arc<Budget>, least: usize| {
            let half = (all.max / 2).max(least).min(all.max);
            Budget::within(all, all.limit, half)
        };
        let half = |all| half_but(all, self.message_bytes_max);
        let outbox = half(&self.outbox);
        Arc::new(Self {
            in_flight: half(&self.in_flight),
            partial: half(&self.partial),
            outbox_once: Once::new(&outbox, Some(&self.outbox_once)),
            outbox,
            watches: half_but(&self.watches, 0),
            message_bytes_max: self.message_bytes_max,
        })
    }
}

/// A principal with sessions.
#[derive(Debug)]
struct Present {
    sessions: usize,
    budgets: Arc<Budgets>,
}

/// The bound on sessions, in all and of each principal.
#[derive(Debug)]
pub(crate) struct SessionSlots {
    all: Arc<Budget>,
    per_principal_max: usize,
    budgets: Arc<Budgets>,
    /// Principals with sessions; short sections only.
    principals: Mutex<HashMap<String, Present>>,
}

/// The permit for one session.
#[derive(Debug)]
pub(crate) struct SessionSlot {
    slots: Arc<SessionSlots>,
    principal: String,
    budgets: Arc<Budgets>,
    /// Its permit among all sessions. The slot that replaces this one at a login has the same.
    all: Arc<Permit>,
}

impl SessionSlot {
    pub(crate) fn place_among_all(&self) -> &Arc<Permit> {
        &self.all
    }

    /// The bounds that the sessions of its principal share.
    pub(crate) fn budgets(&self) -> &Arc<Budgets> {
        &self.budgets
    }
}

impl SessionSlots {
    pub(crate) fn new(
        sessions_max: usize,
        per_principal_max: usize,
        budgets: &Arc<Budgets>,
    ) -> Arc<Self> {
        Arc::new(Self {
            all: Budget::new(Limit::Sessions, sessions_max),
            per_principal_max,
            budgets: budgets.clone(),
            principals: Mutex::default(),
        })
    }

    /// A slot for a session of `principal`, which may have so many by its `quota`; else the error says which limit is
    /// reached.
    pub(crate) fn take_within(
        self: &Arc<Self>,
        principal: &str,
        quota: Option<u64>,
    ) -> Result<SessionSlot, StorageError> {
        let all = Arc::new(self.all.take(1)?);
        self.take_with(principal, quota, &all)
    }

    /// The same without a quota.
    #[cfg(test)]
    pub(crate) fn take(self: &Arc<Self>, principal: &str) -> Result<SessionSlot, StorageError> {
        self.take_within(principal, None)
    }

    /// A slot for a session that counts among all sessions already: its peer turned out to be `principal`.
    pub(crate) fn take_with(
        self: &Arc<Self>,
        principal: &str,
        quota: Option<u64>,
        all: &Arc<Permit>,
    ) -> Result<SessionSlot, StorageError> {
        let mut principals = self
            .principals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let own = principals.get(principal);
        let own = own.map_or(0, |present| present.sessions);
        let per_principal_max = (Limit::SessionsPerPrincipal, self.per_principal_max as u64);
        let quota = quota.map(|max| (Limit::QuotaSessions, max));
        for (limit, max) in quota.into_iter().chain([per_principal_max]) {
            if own as u64 >= max {
                return Err(StorageError::Overloaded { limit, max });
            }
        }
        let present = principals
            .entry(principal.to_owned())
            .or_insert_with(|| Present {
                sessions: 0,
                budgets: self.budgets.of_principal(),
            });
        present.sessions += 1;
        let budgets = present.budgets.clone();
        drop(principals);
        Ok(SessionSlot {
            slots: self.clone(),
            principal: principal.to_owned(),
            budgets,
            all: all.clone(),
        })
    }
}

impl Drop for SessionSlot {
    fn drop(&mut self) {
        let mut principals = self
            .slots
            .principals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = principals.get_mut(&self.principal) {
            present.sessions -= 1;
            if present.sessions == 0 {
                principals.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back() {
        let budget = Budget::new(Limit::BytesInFlight, 10);
        let permit = budget.take(8).unwrap();
        assert!(
            budget
                .take(3)
                .unwrap_err()
                .to_string()
                .contains("bytes_in_flight_max")
        );
        drop(permit);
        assert_eq!(budget.take(10).unwrap().amount(), 10);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_permit_counts_in_all_budgets_around_it_or_in_none() {
        let all = Budget::new(Limit::BytesInFlightTotal, 10);
        let one = Budget::within(&all, Limit::BytesInFlight, 8);
        let another = Budget::within(&all, Limit::BytesInFlight, 8);
        let permit = one.take(7).unwrap();
        assert_eq!((one.used(), all.used()), (7, 7));
        let error = another.take(4).unwrap_err().to_string();
        assert!(error.contains("bytes_in_flight_total_max"), "{error}");
        assert_eq!((another.used(), all.used()), (0, 7));
        let error = one.take(2).unwrap_err().to_string();
        assert!(error.contains("bytes_in_flight_max"), "{error}");
        drop(permit);
        assert_eq!((one.used(), all.used()), (0, 0));
    }

    #[test]
    fn who_may_go_beyond_its_own_bound_does_not_go_beyond_the_others() {
        let all = Budget::new(Limit::Outbox, 20);
        let one = Budget::within(&all, Limit::Outbox, 5);
        let mut permit = one.take(5).unwrap();
        assert!(!permit.grow(1));
        assert!(permit.grow_beyond(10));
        assert_eq!((one.used(), all.used()), (15, 15));
        let other = all.take(5).unwrap();
        assert!(!permit.grow_beyond(1), "no room for it beside the other");
        drop(other);
        assert!(permit.grow_beyond(30), "it is alone");
        drop(permit);
        assert_eq!((one.used(), all.used()), (0, 0));
    }

    #[test]
    fn a_principal_has_half_of_what_all_share() {
        let limits = ServerLimits {
            message_bytes_max: 10,
            bytes_in_flight_total_max: 100,
            partial_messages_bytes_max: 15,
            ..ServerLimits::default()
        };
        let budgets = Budgets::new(&limits);
        let slots = SessionSlots::new(9, 9, &budgets);
        let (a, again) = (slots.take("a").unwrap(), slots.take("a").unwrap());
        let b = slots.take("b").unwrap();
        let half = a.budgets().in_flight.take(50).unwrap();
        let error = again.budgets().in_flight.take(1).unwrap_err().to_string();
        assert!(
            error.contains("bytes_in_flight_total_max is reached (50)"),
            "{error}"
        );
        b.budgets().in_flight.take(50).unwrap();
        assert_eq!(half.amount(), budgets.in_flight.used());
        a.budgets().partial.take(10).expect("one message fits");
    }

    #[test]
    fn a_principal_cannot_take_all_sessions() {
        let slots = SessionSlots::new(3, 2, &Budgets::new(&ServerLimits::default()));
        let (_a, b) = (slots.take("a").unwrap(), slots.take("a").unwrap());
        assert!(
            slots
                .take("a")
                .unwrap_err()
                .to_string()
                .contains("sessions_per_principal_max")
        );
        let _c = slots.take("c").unwrap();
        assert!(
            slots
                .take("d")
                .unwrap_err()
                .to_string()
                .contains("sessions_max is reached (3)")
        );
        drop(b);
        slots.take("a").unwrap();
    }

    #[test]
    fn a_quota_on_sessions_names_itself_and_one_that_is_lowered_closes_nobody() {
        let slots = SessionSlots::new(9, 9, &Budgets::new(&ServerLimits::default()));
        let refused = |quota| {
            let error = slots.take_within("a", Some(quota)).unwrap_err();
            let (limit, max) = (Limit::QuotaSessions, quota);
            assert_eq!(error, StorageError::Overloaded { limit, max });
        };
        let first = slots.take_within("a", None).unwrap();
        let _second = slots.take_within("a", Some(2)).unwrap();
        refused(2);
        refused(1);
        let _other = slots.take_within("b", Some(1)).unwrap();
        drop(first);
        refused(1);
        slots.take_within("a", Some(2)).unwrap();
        assert_eq!(slots.all.used(), 2);
    }
}
