//! The wall clock that gateways and schedules go by, which a test can set.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use storage_protocol::UnixMillis;
use storage_protocol::deliveries::Clock;
use tokio::sync::Notify;

/// The longest sleep without a look at the clock: one that was put forward is noticed within that.
const LOOK: Duration = Duration::from_secs(1);

/// A clock that goes back by less is being corrected, as clocks are all the time.
const STEP: Duration = Duration::from_secs(1);

/// A wall clock: this machine's, or one that stands until it is set. Clones are the same clock.
#[derive(Clone)]
pub struct WallClock(Arc<Inner>);

struct Inner {
    /// What a clock that is set shows; of the machine's clock nothing.
    set: Option<AtomicU64>,
    changed: Notify,
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WallClock").field(&self.now()).finish()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::system()
    }
}

impl WallClock {
    fn new(set: Option<AtomicU64>) -> Self {
        Self(Arc::new(Inner {
            set,
            changed: Notify::new(),
        }))
    }

    /// This machine's.
    #[must_use]
    pub fn system() -> Self {
        Self::new(None)
    }

    /// One that stands at this time until it is set.
    #[must_use]
    pub fn standing(at: UnixMillis) -> Self {
        Self::new(Some(AtomicU64::new(at.0)))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        match &self.0.set {
            Some(set) => UnixMillis(set.load(Ordering::SeqCst)),
            None => UnixMillis::now(),
        }
    }

    /// Sets it, forward or back, and wakes who waits for it. Nothing happens to this machine's clock.
    pub fn set(&self, time: UnixMillis) {
        if let Some(set) = &self.0.set {
            set.store(time.0, Ordering::SeqCst);
            self.0.changed.notify_waiters();
        }
    }

    /// Puts it forward.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().after(by));
    }

    /// Waits until it shows this time or a later one, however it comes to that. Cancel-safe.
    pub(crate) async fn reaches(&self, time: UnixMillis) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let now = self.now();
            if now >= time {
                return;
            }
            let left = Duration::from_millis(time.0 - now.0).min(LOOK);
            match self.0.set {
                Some(_) => changed.await,
                None => tokio::time::sleep(left).await,
            }
        }
    }

    /// Waits until it shows an earlier time than `latest`, which is the latest that it has shown: it was put back. Cancel-safe.
    pub(crate) async fn goes_back(&self, latest: &mut UnixMillis) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            let now = self.now();
            if now.after(STEP) < *latest {
                *latest = now;
                return;
            }
            *latest = now.max(*latest);
            match self.0.set {
                Some(_) => changed.await,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// As jobs take it.
    pub(crate) fn of_deliveries(&self) -> Clock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_woken_when_it_is_set() {
        let clock = WallClock::standing(UnixMillis(1_000));
        clock.reaches(UnixMillis(1_000)).await;
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.reaches(UnixMillis(2_000)).await }
        });
        tokio::task::yield_now().await;
        clock.set(UnixMillis(1_500));
        clock.set(UnixMillis(500));
        assert!(!waiting.is_finished());
        clock.advance(Duration::from_millis(1_500));
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_it_to_go_back_is_woken_by_that_alone() {
        let clock = WallClock::standing(UnixMillis(10_000));
        let mut latest = UnixMillis::ZERO;
        let mut waits = Box::pin(clock.goes_back(&mut latest));
        assert!(futures_util::poll!(&mut waits).is_pending());
        for time in [20_000, 19_000, 19_500] {
            clock.set(UnixMillis(time));
            assert!(futures_util::poll!(&mut waits).is_pending(), "{time}");
        }
        clock.set(UnixMillis(18_999));
        waits.await;
        assert_eq!(latest, UnixMillis(18_999));
        // What it has shown is known to who waits again.
        clock.set(UnixMillis(17_000));
        clock.goes_back(&mut latest).await;
    }
}
