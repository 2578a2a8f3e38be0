//! What principals and keyspaces have in use, and how fast they commit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use storage_protocol::{Keyspace, StorageError};

use super::{QuotaKind, QuotaLimits};

/// So many meters are kept before the first sweep.
const SWEEP_MIN: usize = 64;
/// So many meters of those who are not there, but have sent more than their second's worth, are kept. With one more all
/// of them are forgotten, whose buckets are full then.
const ABSENT_MAX: usize = 16_384;

/// Parts of a token: a bucket leaks by nanoseconds.
const PARTS: u128 = 1_000_000_000;

/// One for each principal and each keyspace with a session; and those that are gone, until their buckets are full again.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    principals: Table,
    keyspaces: Table,
}

/// What one principal, or one keyspace, has in use.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    sessions: AtomicU64,
    watches: AtomicU64,
    rates: Mutex<Rates>,
}

/// The limits of a session's principal and of its keyspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SessionLimits {
    pub(crate) principal: QuotaLimits,
    pub(crate) keyspace: QuotaLimits,
}

impl SessionLimits {
    pub(crate) fn is_empty(&self) -> bool {
        self.principal.is_empty() && self.keyspace.is_empty()
    }
}

/// One of what is counted, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    meter: Arc<Meter>,
    kind: QuotaKind,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(used) = self.meter.used(self.kind) {
            used.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Rates {
    commits: Bucket,
    bytes: Bucket,
}

/// A token bucket. It holds one second's worth, and one commit always fits into a full one: then the next waits until
/// what went beyond it has been made good.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// What was taken and had not come back, in [`PARTS`].
    taken: u128,
    /// When that was so; `None`: nothing was taken yet.
    at: Option<Instant>,
    /// What came back in a second, when it was last asked.
    rate: u64,
}

impl Bucket {
    /// What of what was taken has not come back by now.
    fn taken(&self, now: Instant) -> u128 {
        let since = self.at.map(|at| now.saturating_duration_since(at));
        let back = since.unwrap_or_default().as_nanos() * u128::from(self.rate);
        self.taken.saturating_sub(back)
    }

    /// Lets come back what came back until now; from now on it is at this rate.
    fn refill(&mut self, rate: u64, now: Instant) {
        *self = Self {
            taken: self.taken(now),
            // Another thread may have read the clock later and been here before.
            at: self.at.max(Some(now)),
            rate,
        };
    }

    /// Whether there are so many, or all that there can be.
    fn has(&self, amount: u64) -> bool {
        let sum = self.taken + u128::from(amount) * PARTS;
        self.taken == 0 || sum <= u128::from(self.rate) * PARTS
    }

    fn take(&mut self, amount: u64) {
        self.taken += u128::from(amount) * PARTS;
    }
}

impl Rates {
    /// The bucket of a kind, with what a commit of so many bytes takes out of it.
    fn of(&mut self, kind: QuotaKind, bytes: u64) -> Option<(&mut Bucket, u64)> {
        match kind {
            QuotaKind::CommitsPerSecond => Some((&mut self.commits, 1)),
            QuotaKind::BytesPerSecond => Some((&mut self.bytes, bytes)),
            _ => None,
        }
    }

    /// Takes nothing yet.
    fn check(
        &mut self,
        limits: &QuotaLimits,
        bytes: u64,
        now: Instant,
    ) -> Result<(), StorageError> {
        for (kind, rate) in limits.iter() {
            if let Some((bucket, amount)) = self.of(kind, bytes) {
                bucket.refill(rate, now);
                if !bucket.has(amount) {
                    return Err(kind.refused(rate));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, limits: &QuotaLimits, bytes: u64) {
        for (kind, _) in limits.iter() {
            if let Some((bucket, amount)) = self.of(kind, bytes) {
                bucket.take(amount);
            }
        }
    }

    /// Whether they are as new ones.
    fn are_full(&self, now: Instant) -> bool {
        self.commits.taken(now) == 0 && self.bytes.taken(now) == 0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meter {
    fn used(&self, kind: QuotaKind) -> Option<&AtomicU64> {
        match kind {
            QuotaKind::Sessions => Some(&self.sessions),
            QuotaKind::Watches => Some(&self.watches),
            _ => None,
        }
    }

    /// Counts one more, also where there is no limit.
    ///
    /// # Errors
    /// `Overloaded`: there are as many as there may be.
    pub(crate) fn take(
        self: &Arc<Self>,
        kind: QuotaKind,
        limits: &QuotaLimits,
    ) -> Result<Permit, StorageError> {
        let max = limits.get(kind).unwrap_or(u64::MAX);
        let order = Ordering::Relaxed;
        if let Some(used) = self.used(kind) {
            let fits = |used: u64| (used < max).then_some(used.saturating_add(1));
            used.fetch_update(order, order, fits)
                .map_err(|_| kind.refused(max))?;
        }
        let meter = self.clone();
        Ok(Permit { meter, kind })
    }
}

/// Meters by name.
#[derive(Debug)]
struct Table(Mutex<Named>);

#[derive(Debug)]
struct Named {
    meters: HashMap<String, Arc<Meter>>,
    sweep_at: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self(Mutex::new(Named {
            meters: HashMap::new(),
            sweep_at: SWEEP_MIN,
        }))
    }
}

impl Meters {
    pub(crate) fn of_principal(&self, principal: &str) -> Arc<Meter> {
        self.principals.of(principal)
    }

    pub(crate) fn of_keyspace(&self, keyspace: &Keyspace) -> Arc<Meter> {
        self.keyspaces.of(keyspace.as_str())
    }
}

/// The meters that a session counts in.
#[derive(Clone, Debug)]
pub(crate) struct SessionMeters {
    pub(crate) principal: Arc<Meter>,
    pub(crate) keyspace: Arc<Meter>,
}

impl SessionMeters {
    /// Takes a commit of so many bytes out of all buckets, or out of none.
    ///
    /// # Errors
    /// `Overloaded`: one of them has not enough.
    pub(crate) fn take_commit(
        &self,
        limits: &SessionLimits,
        bytes: usize,
    ) -> Result<(), StorageError> {
        self.take_commit_at(limits, bytes as u64, Instant::now())
    }

    fn take_commit_at(
        &self,
        limits: &SessionLimits,
        bytes: u64,
        now: Instant,
    ) -> Result<(), StorageError> {
        // Ordering: principals before keyspaces, so that nobody waits for two in a circle.
        let mut principal = lock(&self.principal.rates);
        let mut keyspace = lock(&self.keyspace.rates);
        principal.check(&limits.principal, bytes, now)?;
        keyspace.check(&limits.keyspace, bytes, now)?;
        principal.take(&limits.principal, bytes);
        keyspace.take(&limits.keyspace, bytes);
        Ok(())
    }

    /// Counts one more watch.
    ///
    /// # Errors
    /// `Overloaded`: there are as many as there may be.
    pub(crate) fn take_watch(&self, limits: &SessionLimits) -> Result<[Permit; 2], StorageError> {
        let principal = self.principal.take(QuotaKind::Watches, &limits.principal)?;
        let keyspace = self.keyspace.take(QuotaKind::Watches, &limits.keyspace)?;
        Ok([principal, keyspace])
    }
}

impl Table {
    fn of(&self, name: &str) -> Arc<Meter> {
        let mut named = lock(&self.0);
        if let Some(meter) = named.meters.get(name) {
            return meter.clone();
        }
        if named.meters.len() >= named.sweep_at {
            named.sweep();
        }
        let meter = Arc::<Meter>::default();
        named.meters.insert(name.to_owned(), meter.clone());
        meter
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.0).meters.len()
    }
}

impl Named {
    /// Drops the meters of those who are not there and are owed nothing; those who are there hold theirs.
    fn sweep(&mut self) {
        let is_held = |meter: &Arc<Meter>| Arc::strong_count(meter) > 1;
        let now = Instant::now();
        self.meters
            .retain(|_, meter| is_held(meter) || !lock(&meter.rates).are_full(now));
        let absent = self.meters.values().filter(|meter| !is_held(meter)).count();
        if absent > ABSENT_MAX {
            self.meters.retain(|_, meter| is_held(meter));
        }
        self.sweep_at = (2 * self.meters.len()).max(SWEEP_MIN);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use storage_protocol::Limit;

    use super::*;

    fn limits(of: &[(QuotaKind, u64)]) -> QuotaLimits {
        let mut limits = QuotaLimits::default();
        for (kind, limit) in of {
            limits.set(*kind, Some(*limit));
        }
        limits
    }

    fn meters() -> SessionMeters {
        SessionMeters {
            principal: Arc::default(),
            keyspace: Arc::default(),
        }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[track_caller]
    fn refused(result: Result<(), StorageError>) -> (Limit, u64) {
        match result.unwrap_err() {
            StorageError::Overloaded { limit, max } => (limit, max),
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn a_second_s_worth_goes_at_once_and_then_as_many_as_come_back() {
        let (meters, start) = (meters(), Instant::now());
        let of = SessionLimits {
            principal: limits(&[(QuotaKind::CommitsPerSecond, 10)]),
            ..SessionLimits::default()
        };
        let take = |ms| meters.take_commit_at(&of, 1_000_000, after(start, ms));
        for _ in 0..10 {
            take(0).unwrap();
        }
        assert_eq!(refused(take(0)), (Limit::CommitRate, 10));
        refused(take(99));
        take(100).unwrap();
        refused(take(199));
        // Never more than a second's worth.
        for _ in 0..10 {
            take(60_000).unwrap();
        }
        refused(take(60_000));
        // A clock that was read earlier by another thread takes nothing away.
        refused(take(59_000));
        take(60_100).unwrap();
        refused(take(60_100));
    }

    #[test]
    fn one_commit_always_fits_into_a_full_bucket_and_is_made_good_afterwards() {
        let (meters, start) = (meters(), Instant::now());
        let of = SessionLimits {
            principal: limits(&[(QuotaKind::BytesPerSecond, 1000)]),
            ..SessionLimits::default()
        };
        let take = |bytes, ms| meters.take_commit_at(&of, bytes, after(start, ms));
        take(5000, 0).unwrap();
        assert_eq!(refused(take(1, 3999)), (Limit::CommitByteRate, 1000));
        take(1, 4001).unwrap();
        // Not into one from which something is missing.
        refused(take(5000, 4001));
        take(5000, 5100).unwrap();
    }

    #[test]
    fn a_commit_is_taken_out_of_all_buckets_or_out_of_none() {
        let (meters, start) = (meters(), Instant::now());
        let of = SessionLimits {
            principal: limits(&[(QuotaKind::CommitsPerSecond, 3)]),
            keyspace: limits(&[(QuotaKind::CommitsPerSecond, 1)]),
        };
        meters.take_commit_at(&of, 1, start).unwrap();
        for _ in 0..5 {
            assert_eq!(
                refused(meters.take_commit_at(&of, 1, start)),
                (Limit::CommitRate, 1)
            );
        }
        // The refused ones cost the principal nothing: in another keyspace it has two left.
        let elsewhere = SessionMeters {
            keyspace: Arc::default(),
            ..meters.clone()
        };
        for _ in 0..2 {
            let of = SessionLimits {
                keyspace: QuotaLimits::default(),
                ..of
            };
            elsewhere.take_commit_at(&of, 1, start).unwrap();
        }
        assert_eq!(
            refused(elsewhere.take_commit_at(&of, 1, start)),
            (Limit::CommitRate, 3)
        );
    }

    #[test]
    fn a_limit_that_is_raised_or_lowered_holds_at_once() {
        let (meters, start) = (meters(), Instant::now());
        let at = |rate| SessionLimits {
            principal: limits(&[(QuotaKind::CommitsPerSecond, rate)]),
            ..SessionLimits::default()
        };
        let take = |rate, ms| meters.take_commit_at(&at(rate), 1, after(start, ms));
        take(1, 0).unwrap();
        refused(take(1, 0));
        for _ in 0..99 {
            take(100, 0).unwrap();
        }
        refused(take(100, 0));
        refused(take(1, 10));
        // A hundred are missing, of which one comes back each second now.
        refused(take(1, 98_000));
        take(1, 110_000).unwrap();
    }

    #[test]
    fn what_is_counted_is_counted_without_a_limit_too_and_comes_back() {
        let meters = meters();
        let none = SessionLimits::default();
        let two = SessionLimits {
            keyspace: limits(&[(QuotaKind::Watches, 2)]),
            ..none
        };
        let held: Vec<_> = (0..3).map(|_| meters.take_watch(&none).unwrap()).collect();
        // Set below what there is: nothing is closed, nothing is added.
        let refused = |result: Result<[Permit; 2], _>| refused(result.map(drop));
        assert_eq!(refused(meters.take_watch(&two)), (Limit::QuotaWatches, 2));
        let mut held = held.into_iter();
        held.next();
        refused(meters.take_watch(&two));
        held.next();
        let again = meters.take_watch(&two).unwrap();
        refused(meters.take_watch(&two));
        drop((again, held));
        // The refused ones are not counted for the principal either.
        assert_eq!(meters.principal.watches.load(Ordering::Relaxed), 0);
        assert_eq!(meters.keyspace.watches.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn meters_of_those_who_are_gone_are_dropped_when_their_buckets_are_full_again() {
        let meters = Meters::default();
        let of = SessionLimits {
            principal: limits(&[(QuotaKind::BytesPerSecond, 1)]),
            ..SessionLimits::default()
        };
        let session = |name: &str| SessionMeters {
            principal: meters.of_principal(name),
            keyspace: Arc::default(),
        };
        // In debt for hours, and gone.
        session("debtor").take_commit(&of, 10_000).unwrap();
        let held = session("held");
        for n in 0..10_000 {
            drop(session(&n.to_string()));
        }
        assert!(meters.principals.len() <= 2 * SWEEP_MIN);
        assert_eq!(
            refused(session("debtor").take_commit(&of, 1)).0,
            Limit::CommitByteRate
        );
        assert!(Arc::ptr_eq(&held.principal, &meters.of_principal("held")));
        // Those in debt are bounded too.
        for n in 0..=2 * ABSENT_MAX {
            session(&n.to_string()).take_commit(&of, 10_000).unwrap();
        }
        assert!(meters.principals.len() <= 2 * (ABSENT_MAX + 2));
    }
}
