//! How many tree events a socket is told: so many in a second, and some more at once after a pause.

use std::time::Instant;

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

    /// Whether one more may be told now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        if let Some(counted) = self.counted {
            let passed = now.saturating_duration_since(counted).as_secs_f64();
            self.left = (self.left + passed * self.per_second).min(self.burst);
        }
        self.counted = Some(now);
        let allows = self.left >= 1.0;
        if allows {
            self.left -= 1.0;
        }
        allows
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
}
