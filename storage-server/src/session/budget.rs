//! Bounds as permits: taken before work is queued, given back by drop.
//!
//! A [`Budget`] counts requests or bytes, of one session or of the whole server. Whoever does not get a permit is
//! refused at once; nothing here waits.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use storage_protocol::{Limit, StorageError};

/// A bound on something in use.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: Limit,
    max: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(crate) fn new(limit: Limit, max: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            max,
            used: AtomicUsize::new(0),
        })
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.used() >= self.max
    }

    /// Whether more is in use than allowed, by [`Permit::resize`].
    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.max
    }

    /// The error of a refusal.
    pub(crate) fn overloaded(&self) -> StorageError {
        StorageError::Overloaded {
            limit: self.limit,
            max: self.max as u64,
        }
    }

    /// Takes `amount`, or tells that the limit is reached.
    pub(crate) fn take(self: &Arc<Self>, amount: usize) -> Result<Permit, StorageError> {
        let fits = |used: usize| used.checked_add(amount).filter(|sum| *sum <= self.max);
        match self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
        {
            Ok(_) => Ok(Permit {
                budget: self.clone(),
                amount,
            }),
            Err(_) => Err(self.overloaded()),
        }
    }

    /// Counts `amount` without asking: for what is bounded elsewhere and only measured here.
    pub(crate) fn count(self: &Arc<Self>) -> Permit {
        Permit {
            budget: self.clone(),
            amount: 0,
        }
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

    /// Makes it `amount` large, whether that fits or not.
    pub(crate) fn resize(&mut self, amount: usize) {
        if amount > self.amount {
            self.budget
                .used
                .fetch_add(amount - self.amount, Ordering::Relaxed);
        } else {
            self.budget
                .used
                .fetch_sub(self.amount - amount, Ordering::Relaxed);
        }
        self.amount = amount;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

/// The bound on sessions, in all and of each principal.
#[derive(Debug)]
pub(crate) struct SessionSlots {
    all: Arc<Budget>,
    per_principal_max: usize,
    /// Principals with sessions; short sections only.
    principals: Mutex<HashMap<String, usize>>,
}

/// One session's place.
#[derive(Debug)]
pub(crate) struct SessionSlot {
    slots: Arc<SessionSlots>,
    principal: String,
    _all: Permit,
}

impl SessionSlots {
    pub(crate) fn new(sessions_max: usize, per_principal_max: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Budget::new(Limit::Sessions, sessions_max),
            per_principal_max,
            principals: Mutex::default(),
        })
    }

    /// A place for a session of `principal`; else which limit is reached.
    pub(crate) fn take(self: &Arc<Self>, principal: &str) -> Result<SessionSlot, StorageError> {
        let all = self.all.take(1)?;
        let mut principals = self
            .principals
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = principals.entry(principal.to_owned()).or_default();
        if *count >= self.per_principal_max {
            return Err(StorageError::Overloaded {
                limit: Limit::SessionsPerPrincipal,
                max: self.per_principal_max as u64,
            });
        }
        *count += 1;
        drop(principals);
        Ok(SessionSlot {
            slots: self.clone(),
            principal: principal.to_owned(),
            _all: all,
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
        if let Some(count) = principals.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
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
    fn a_principal_cannot_take_all_sessions() {
        let slots = SessionSlots::new(3, 2);
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
}
