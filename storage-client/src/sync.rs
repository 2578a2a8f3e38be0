//! What threads and tasks share everywhere: locks of short sections, and deadlines of any length.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Far enough for "never", and no overflow of the clock.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// `start` plus `duration`, however long that is.
pub(crate) fn deadline_after(start: Instant, duration: Duration) -> Instant {
    start + duration.min(FAR)
}

/// Takes a lock of a short section. A panic inside one leaves nothing half-done that matters, so poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
