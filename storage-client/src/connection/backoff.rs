//! Pauses between attempts to connect.

use std::time::Duration;

/// How long to wait before an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// The pause before attempt number `attempt`, the first being 0: twice as long each time, up to the maximum, and
    /// shortened by up to a half at random, so that many clients do not connect at once.
    pub(super) fn delay(self, attempt: u32) -> Duration {
        self.delay_with(attempt, rand_u32())
    }

    fn delay_with(self, attempt: u32, random: u32) -> Duration {
        let factor = 1u32 << attempt.min(20);
        let longest = self.min.saturating_mul(factor).min(self.max.max(self.min));
        let half = longest / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// A random number that is good enough for jitter: the hasher's keys are random for each process and each call.
fn rand_u32() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let hash = RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_most_and_half_of_each_is_random() {
        let backoff = Backoff {
            min: Duration::from_millis(100),
            max: Duration::from_secs(5),
        };
        for (attempt, longest) in [(0, 100), (1, 200), (5, 3_200), (6, 5_000), (40, 5_000)] {
            let longest = Duration::from_millis(longest);
            assert_eq!(backoff.delay_with(attempt, 0), longest / 2);
            assert_eq!(backoff.delay_with(attempt, u32::MAX), longest);
            let between = backoff.delay_with(attempt, u32::MAX / 2);
            assert!(between > longest / 2 && between < longest);
        }
    }
}
