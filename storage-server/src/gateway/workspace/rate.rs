//! How many tree events a socket is told, and how many rooms a user makes: so many in a second, and some more at once after a
//! pause.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::gateway::Principal;

/// The most rooms that a user makes at once, and then one in each second: nothing removes them.
pub(super) const ROOMS_BURST: u32 = 100;
const ROOMS_PER_SECOND: u32 = 1;
/// The most users whose rate is kept; beyond that those are forgotten who may make all at once again.
const USERS_MAX: usize = 10_000;

/// A token bucket. The clock is the caller's.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: f64,
    burst: f64,
    left: f64,
    counted: Option<Instant>,
}

impl Rate {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second: per_second.into(),
            burst: burst.into(),
            left: burst.into(),
            counted: None,
        }
    }

    fn count(&mut self, now: Instant) {
        if let Some(counted) = self.counted {
            let passed = now.saturating_duration_since(counted).as_secs_f64();
            self.left = (self.left + passed * self.per_second).min(self.burst);
        }
        self.counted = Some(now);
    }

    /// Whether one more may be told now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.count(now);
        let allows = self.left >= 1.0;
        if allows {
            self.left -= 1.0;
        }
        allows
    }
}

/// Who makes rooms, and how quickly.
#[derive(Debug, Default)]
pub(super) struct Makers(Mutex<HashMap<String, Rate>>);

impl Makers {
    /// Whether a user may make one more room now.
    pub(super) fn allows(&self, principal: &Principal, now: Instant) -> bool {
        let mut rates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = principal.as_str();
        if rates.len() >= USERS_MAX && !rates.contains_key(name) {
            rates.retain(|_, rate| {
                rate.count(now);
                rate.left < rate.burst
            });
            if rates.len() >= USERS_MAX {
                return false;
            }
        }
        let new = || Rate::new(ROOMS_PER_SECOND, ROOMS_BURST);
        let rate = rates.entry(name.to_owned()).or_insert_with(new);
        rate.allows(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_so_many_in_a_second() {
        let (mut rate, start) = (Rate::new(30, 20), Instant::now());
        let allowed = |rate: &mut Rate, at: Duration, tries: usize| {
            (0..tries).filter(|_| rate.allows(start + at)).count()
        };
        assert_eq!(allowed(&mut rate, Duration::ZERO, 100), 20);
        assert_eq!(allowed(&mut rate, Duration::from_millis(500), 100), 15);
        assert_eq!(allowed(&mut rate, Duration::from_secs(60), 100), 20);
        // A clock that stands still gives nothing.
        assert_eq!(allowed(&mut rate, Duration::from_secs(60), 100), 0);
    }

    #[test]
    fn a_user_makes_so_many_rooms_and_takes_nothing_of_others() {
        let (makers, start) = (Makers::default(), Instant::now());
        let user = |n: usize| Principal::user(&format!("u{n}")).unwrap();
        let made = |n: usize, at: u64, tries: usize| {
            let now = start + Duration::from_secs(at);
            (0..tries).filter(|_| makers.allows(&user(n), now)).count()
        };
        assert_eq!(made(0, 0, 1_000), ROOMS_BURST as usize);
        assert_eq!(made(0, 5, 1_000), 5);
        assert_eq!(made(1, 5, 1), 1);
        for n in 2..USERS_MAX {
            assert!(makers.allows(&user(n), start + Duration::from_secs(6)));
        }
        assert_eq!(made(USERS_MAX, 6, 1), 1, "one is full again");
        assert_eq!(made(USERS_MAX + 1, 60, 1), 1);
        assert_eq!(makers.0.lock().unwrap().len(), 2);
    }
}
