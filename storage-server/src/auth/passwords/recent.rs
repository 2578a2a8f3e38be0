//! Remembers logins that succeeded a moment ago, so that a client that sends its password with each request is not
//! hashed each time.
//!
//! What is kept is no password, but an HMAC-SHA-256 of user, stored hash and password under a random key of this
//! process. It fits only as long as the stored hash is the same, so a changed password or a removed user is noticed at
//! once. It is found by the user, and compared in constant time.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use ring::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::failures::User;

const KEY_BYTES: usize = 32;

/// Says what was checked, to this process alone.
#[derive(Clone, Copy)]
pub(super) struct Mark(hmac::Tag);

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mark(***)")
    }
}

/// The last login of each user.
#[derive(Debug)]
pub(super) struct Recent {
    logins: HashMap<User, (Mark, Instant)>,
    kept_for: Duration,
    max: usize,
}

/// Makes the marks.
pub(super) struct Marks(hmac::Key);

impl Marks {
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(key.as_mut_slice())?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_slice())))
    }

    pub(super) fn of(&self, user: &str, stored: &str, password: &[u8]) -> Mark {
        let mut context = hmac::Context::with_key(&self.0);
        // With their lengths, so that no part can pass for the end of the one before it.
        for part in [user.as_bytes(), stored.as_bytes(), password] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Mark(context.sign())
    }
}

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Marks(***)")
    }
}

impl Recent {
    /// Keeps at most `max` logins, each for `kept_for` from its hash on.
    pub(super) fn new(kept_for: Duration, max: usize) -> Self {
        Self {
            logins: HashMap::new(),
            kept_for,
            max,
        }
    }

    pub(super) fn has(&self, user: User, mark: &Mark, now: Instant) -> bool {
        let Some((known, since)) = self.logins.get(&user) else {
            return false;
        };
        let is_same: bool = known.0.as_ref().ct_eq(mark.0.as_ref()).into();
        is_same && now.duration_since(*since) < self.kept_for
    }

    pub(super) fn add(&mut self, user: User, mark: Mark, now: Instant) {
        if self.logins.len() >= self.max && !self.logins.contains_key(&user) {
            let kept_for = self.kept_for;
            self.logins
                .retain(|_, (_, since)| now.duration_since(*since) < kept_for);
            if self.logins.len() >= self.max {
                let oldest = self.logins.iter().min_by_key(|(_, (_, since))| *since);
                let Some(oldest) = oldest.map(|(user, _)| *user) else {
                    return; // None are to be kept.
                };
                self.logins.remove(&oldest);
            }
        }
        self.logins.insert(user, (mark, now));
    }

    pub(super) fn len(&self) -> usize {
        self.logins.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::failures::Failures;
    use super::super::logins::LoginLimits;
    use super::*;

    fn users(count: usize) -> Vec<User> {
        let limits = LoginLimits::default();
        let failures = Failures::new(limits.pair, limits.user, limits.address, 1);
        (0..count).map(|n| failures.user(&n.to_string())).collect()
    }

    #[test]
    fn a_mark_is_of_all_three_and_of_this_process() {
        let (marks, others) = (Marks::new().unwrap(), Marks::new().unwrap());
        let bytes = |mark: Mark| mark.0.as_ref().to_vec();
        let mark = bytes(marks.of("ann", "hash", b"secret"));
        assert_eq!(bytes(marks.of("ann", "hash", b"secret")), mark);
        assert_ne!(bytes(others.of("ann", "hash", b"secret")), mark);
        for (user, stored, password) in [
            ("bob", "hash", "secret"),
            ("ann", "hasx", "secret"),
            ("ann", "hash", "secrex"),
            ("annh", "ash", "secret"),
            ("ann", "hashs", "ecret"),
        ] {
            assert_ne!(bytes(marks.of(user, stored, password.as_bytes())), mark);
        }
    }

    #[test]
    fn the_number_of_logins_is_bounded_and_the_oldest_go() {
        let (marks, now) = (Marks::new().unwrap(), Instant::now());
        let mark = marks.of("ann", "hash", b"secret");
        let second = Duration::from_secs(1);
        let mut recent = Recent::new(second * 60, 100);
        let users = users(10_000);
        for (at, user) in (0..).zip(&users) {
            recent.add(*user, mark, now + second * at / 1000);
            assert!(recent.len() <= 100);
        }
        let later = now + second * 10;
        assert!(
            users[9_900..]
                .iter()
                .all(|user| recent.has(*user, &mark, later))
        );
        assert!(!recent.has(users[9_899], &mark, later));
        // Those whose time is over go first, and all of them.
        recent.add(users[0], mark, now + second * 100);
        assert_eq!(recent.len(), 1);
        let mut none = Recent::new(second, 0);
        none.add(users[0], mark, now);
        assert_eq!(none.len(), 0);
    }
}
