//! What stands between peers and the hash of a password.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

pub(super) use super::failures::Allowance;
use super::failures::{Failures, User};
use super::recent::{Mark, Marks, Recent};
use super::{PASSWORD_BYTES_MAX, PasswordError, Stored};
use crate::limits::address::Address;

/// The longest name of a user that is looked at, in bytes.
const USER_BYTES_MAX: usize = 256;

/// The bounds of [`Logins`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginLimits {
    /// Hashes that are computed at the same time, each with 19 MiB and one core for 20 to 40 ms; a stored hash may ask
    /// for 64 MiB. By default 2. At least 1.
    pub hashes_at_once: usize,
    /// Logins that wait for their hash. One more is [`LoginError::Busy`]. By default 64.
    pub waiting_max: usize,
    /// Failed logins of one user from one address. By default 5 at once, then one each 60 s.
    pub pair: Allowance,
    /// Failed logins of one user from all addresses that are not known for this user. By default 100 at once, then one
    /// each 10 s.
    pub user: Allowance,
    /// Failed logins from one address for all users that it is not known for. By default 50 at once, then one each 10
    /// s.
    pub address: Allowance,
    /// The most keys that each of these three limits keeps, and the most users whose addresses are known. Beyond them
    /// the failures that would be forgotten first are forgotten at once. By default 16,384: about 4 MiB in all, and 11
    /// more if so many users log in from 16 addresses each.
    pub keys_max: usize,
    /// For so long after a hash the same login needs none. Zero: each login is hashed. By default 60 s.
    pub remembered_for: Duration,
    /// The most users whose last login is remembered. By default 4,096.
    pub remembered_max: usize,
}

impl Default for LoginLimits {
    fn default() -> Self {
        let allowance = |at_once, seconds| Allowance {
            at_once,
            then_each: Duration::from_secs(seconds),
        };
        Self {
            hashes_at_once: 2,
            waiting_max: 64,
            pair: allowance(5, 60),
            user: allowance(100, 10),
            address: allowance(50, 10),
            keys_max: 16_384,
            remembered_for: Duration::from_mins(1),
            remembered_max: 4096,
        }
    }
}

/// Why a login did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LoginError {
    /// The user or the password is wrong. It does not say which.
    #[error("the user or the password is wrong")]
    Refused,
    /// There were too many failed logins. Nothing was checked.
    #[error("too many failed logins, try again in {} s", retry_after.as_secs())]
    TooMany {
        /// Sooner it is of no use. In whole seconds, one at least.
        retry_after: Duration,
    },
    /// Too many logins wait for their check, or there is no memory for it. Nothing was checked; try again soon.
    #[error("too many logins at the same time, try again soon")]
    Busy,
}

/// Checks the logins of all peers with users and passwords. Clones share their state.
///
/// An unknown user gets the same answer after the same work as a wrong password: one hash, which is not told apart from
/// outside. Two things remain to the caller: to look up a known user in about the time of an unknown one, and to store
/// hashes with the parameters of [`hash`](super::hash), since others take another time.
#[derive(Clone, Debug)]
pub(crate) struct Logins {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// One for each hash that is computed.
    hashes: Arc<Semaphore>,
    /// One for each of those, and for each login that waits for one.
    places: Arc<Semaphore>,
    /// Short sections only.
    state: Mutex<State>,
    marks: Marks,
    /// What the password of an unknown user is compared with.
    nobody: Stored,
    hashes_run: AtomicU64,
    /// A clock that only a test moves.
    #[cfg(test)]
    stopped_at: Mutex<Instant>,
}

#[derive(Debug)]
struct State {
    failures: Failures,
    recent: Recent,
}

/// One login, on its way.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    user: User,
    address: Address,
    /// `None` if it cannot succeed, for a length that no user or password has.
    mark: Option<Mark>,
}

impl Logins {
    /// # Errors
    /// [`PasswordError::Random`].
    pub(crate) fn new(limits: &LoginLimits) -> Result<Self, PasswordError> {
        Self::with_nobody(limits, Stored::of_nobody()?)
    }

    fn with_nobody(limits: &LoginLimits, nobody: Stored) -> Result<Self, PasswordError> {
        let hashes = limits.hashes_at_once.clamp(1, Semaphore::MAX_PERMITS / 2);
        let waiting = limits.waiting_max.min(Semaphore::MAX_PERMITS / 2);
        let state = State {
            failures: Failures::new(limits.pair, limits.user, limits.address, limits.keys_max),
            recent: Recent::new(limits.remembered_for, limits.remembered_max),
        };
        let inner = Inner {
            hashes: Arc::new(Semaphore::new(hashes)),
            places: Arc::new(Semaphore::new(hashes + waiting)),
            state: Mutex::new(state),
            marks: Marks::new().map_err(|_| PasswordError::Random)?,
            nobody,
            hashes_run: AtomicU64::new(0),
            #[cfg(test)]
            stopped_at: Mutex::new(Instant::now()),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Whether `password` is that of `user`, who is at `address` (the peer's own) and whose hash is `stored`: `None` if
    /// there is no such user.
    ///
    /// A success counts in no limit. It is remembered for a minute, so the next ones with the same password and the
    /// same `stored` need no hash. A password that is empty or longer than 1024 bytes is refused like a wrong one,
    /// without a hash. So is any for a hash that cannot be read, with one; the reason is logged as an error.
    ///
    /// # Errors
    /// [`LoginError`].
    ///
    /// # Cancel safety
    /// A login that is dropped may be checked all the same, and counts if it fails.
    pub(crate) async fn check(
        &self,
        user: &str,
        address: IpAddr,
        password: &[u8],
        stored: Option<&str>,
    ) -> Result<(), LoginError> {
        let fits =
            user.len() <= USER_BYTES_MAX && (1..=PASSWORD_BYTES_MAX).contains(&password.len());
        // For an unknown user too, so that the work is the same.
        let mark = fits.then(|| {
            let marks = &self.inner.marks;
            marks.of(user, stored.unwrap_or_default(), password)
        });
        let attempt = Attempt {
            user: self.inner.state().failures.user(user),
            address: Address::from(address),
            mark,
        };
        if self.inner.is_settled(&attempt)? {
            return Ok(());
        }
        if !fits {
            // The same for every user, so it tells nothing about this one.
            self.inner.settle(&attempt, false);
            return Err(LoginError::Refused);
        }
        let place = self.inner.places.clone().try_acquire_owned();
        let place = place.map_err(|_| LoginError::Busy)?;
        let turn = self.inner.hashes.clone().acquire_owned().await;
        let turn = turn.map_err(|_| LoginError::Busy)?;
        // Others may have failed or succeeded meanwhile: of a client's many first requests only few are hashed, and at
        // most `hashes_at_once - 1` failures are let through beyond a limit.
        if self.inner.is_settled(&attempt)? {
            return Ok(());
        }
        let stored = stored.and_then(|text| readable(user, text));
        let password = Zeroizing::new(password.to_vec());
        let inner = self.inner.clone();
        let permits = (place, turn);
        let hashing = move || inner.hash(&attempt, &password, stored.as_ref(), permits);
        match tokio::task::spawn_blocking(hashing).await {
            Ok(result) => result,
            // The runtime is shutting down; or the hash has panicked, which the panic itself has logged.
            Err(_) => Err(LoginError::Busy),
        }
    }

    /// [`hash`](super::hash) for a password that is to be stored, with the bound on those that are computed at once.
    ///
    /// # Errors
    /// As of [`hash`](super::hash).
    pub(crate) async fn hash(&self, password: Zeroizing<String>) -> Result<String, PasswordError> {
        let turn = self.inner.hashes.clone().acquire_owned().await;
        let turn = turn.map_err(|_| PasswordError::Failed)?;
        let hashing = move || {
            let _turn = turn;
            super::hash(password.as_bytes())
        };
        let hashed = tokio::task::spawn_blocking(hashing).await;
        hashed.unwrap_or(Err(PasswordError::Failed))
    }

    /// How many hashes were computed since the start, for metrics.
    #[must_use]
    pub(crate) fn hashes_run(&self) -> u64 {
        self.inner.hashes_run.load(Ordering::Relaxed)
    }

    /// Whether a hash is computed.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn is_hashing(&self) -> bool {
        let most = LoginLimits::default().hashes_at_once;
        self.inner.hashes.available_permits() < most
    }

    /// How many keys are kept for the limits, known addresses and remembered logins, for metrics.
    #[must_use]
    pub(crate) fn keys(&self) -> usize {
        let state = self.inner.state();
        state.failures.len() + state.recent.len()
    }
}

impl Inner {
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "in tests the clock is its own")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    fn now(&self) -> Instant {
        *self.stopped_at.lock().unwrap()
    }

    /// Whether a login has succeeded without a hash.
    ///
    /// # Errors
    /// [`LoginError::TooMany`]. The limits come first: otherwise who has used them up could go on guessing at a
    /// remembered password.
    fn is_settled(&self, attempt: &Attempt) -> Result<bool, LoginError> {
        let now = self.now();
        let mut state = self.state();
        let (user, address) = (attempt.user, attempt.address);
        if let Some(wait) = state.failures.wait(user, address, now) {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let retry_after = Duration::from_secs(seconds.max(1));
            return Err(LoginError::TooMany { retry_after });
        }
        let is_known = |mark| state.recent.has(user, &mark, now);
        let is_settled = attempt.mark.is_some_and(is_known);
        if is_settled {
            state.failures.succeeded(user, address, now);
        }
        Ok(is_settled)
    }

    /// Blocks. Counts by itself, so that a peer that went away meanwhile counts too.
    fn hash(
        &self,
        attempt: &Attempt,
        password: &[u8],
        stored: Option<&Stored>,
        permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> Result<(), LoginError> {
        let compared = stored.unwrap_or(&self.nobody);
        let matches = compared.matches(password, &self.hashes_run);
        let matches = matches.map_err(|error| {
            tracing::error!(%error, "check a password");
            LoginError::Busy
        })?;
        let succeeded = matches && stored.is_some();
        self.settle(attempt, succeeded);
        // Behind the count, so that the next in turn sees it.
        drop(permits);
        match succeeded {
            true => Ok(()),
            false => Err(LoginError::Refused),
        }
    }

    fn settle(&self, attempt: &Attempt, succeeded: bool) {
        let now = self.now();
        let mut state = self.state();
        let (user, address) = (attempt.user, attempt.address);
        match (succeeded, attempt.mark) {
            (true, Some(mark)) => {
                state.failures.succeeded(user, address, now);
                state.recent.add(user, mark, now);
            }
            _ => state.failures.failed(user, address, now),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stored hash of a user; else it is one for the log.
fn readable(user: &str, stored: &str) -> Option<Stored> {
    Stored::parse(stored)
        .inspect_err(|error| tracing::error!(?user, %error, "read a user's password hash"))
        .ok()
}

#[cfg(test)]
mod tests;
