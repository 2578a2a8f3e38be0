//! The clock for ages: it runs on while the machine sleeps.
//!
//! `CLOCK_MONOTONIC`, and so `std::time::Instant`, stands still during a suspend on Linux: after an hour of sleep an
//! hour-old copy would have age zero. So `CLOCK_BOOTTIME` is used there; on other systems it is `Instant`.

use std::time::Duration;

/// A time of that clock; only differences mean something, and only within one boot of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(Duration);

impl Moment {
    #[cfg(target_os = "linux")]
    pub(super) fn now() -> Self {
        use rustix::time::{ClockId, clock_gettime};
        let time = clock_gettime(ClockId::Boottime);
        // Both are never negative by this clock, and the second is below a billion.
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
        Self(Duration::new(seconds, nanos))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn now() -> Self {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        Self(START.get_or_init(Instant::now).elapsed())
    }

    /// How long ago it was.
    pub(super) fn age(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// Noise in 0..1, to spread what many clients do at once.
    pub(super) fn noise() -> f64 {
        f64::from(Self::now().0.subsec_nanos() % 1_009) / 1_009.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_by() {
        let start = Moment::now();
        std::thread::sleep(Duration::from_millis(5));
        assert!(start.age() >= Duration::from_millis(5));
        assert!((0.0..1.0).contains(&Moment::noise()));
    }
}
