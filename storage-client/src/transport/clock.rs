//! How far a server's clock is from ours, by the `Date` of its answer to the upgrade.
//!
//! That is all the protocol has of the present time: whole seconds. Invariant: what is told is right to within half a
//! second and half the time that the answer took.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::UNIX_EPOCH;

use storage_protocol::UnixMillis;

/// No clock is so far away.
const UNKNOWN: i64 = i64::MIN;

/// See the module.
#[derive(Debug)]
pub(crate) struct ServerClock {
    /// Milliseconds that it is ahead of ours.
    ahead: AtomicI64,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self {
            ahead: AtomicI64::new(UNKNOWN),
        }
    }
}

impl ServerClock {
    /// Milliseconds to add to our clock, of the last server that told its time.
    pub(crate) fn offset(&self) -> Option<i64> {
        Some(self.ahead.load(Ordering::Relaxed)).filter(|&ahead| ahead != UNKNOWN)
    }

    /// Notes the `Date` of an answer to what was asked then, and answered then. What is no date says nothing.
    pub(crate) fn note(&self, date: Option<&str>, asked: UnixMillis, answered: UnixMillis) {
        let Some(ahead) = date.and_then(|date| ahead(date, asked, answered)) else {
            return;
        };
        self.ahead.store(ahead, Ordering::Relaxed);
    }
}

fn ahead(date: &str, asked: UnixMillis, answered: UnixMillis) -> Option<i64> {
    let date = httpdate::parse_http_date(date).ok()?;
    let date = date.duration_since(UNIX_EPOCH).ok()?.as_millis();
    // A date stands for the second that begins with it: in the middle it is at most half a second wrong.
    let theirs = i64::try_from(date).ok()?.checked_add(500)?;
    let between = asked.0 + answered.0.saturating_sub(asked.0) / 2;
    theirs.checked_sub(i64::try_from(between).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_from_the_middle_of_the_question_to_the_middle_of_the_second() {
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        let ours = |millis: u64| UnixMillis(1_700_000_000_000 + millis);
        assert_eq!(ahead(date, ours(0), ours(0)), Some(500));
        assert_eq!(
            ahead(date, ours(7_200_400), ours(7_200_600)),
            Some(-7_200_000)
        );
        // A clock that was set back meanwhile.
        assert_eq!(ahead(date, ours(600), ours(0)), Some(-100));
    }

    #[test]
    fn what_is_no_date_says_nothing() {
        let (clock, now) = (ServerClock::default(), UnixMillis(5));
        for date in [None, Some(""), Some("yesterday"), Some("Thu, 01 Jan 1970")] {
            clock.note(date, now, now);
            assert_eq!(clock.offset(), None);
        }
        clock.note(Some("Thu, 01 Jan 1970 00:00:01 GMT"), now, now);
        clock.note(None, now, now);
        assert_eq!(clock.offset(), Some(1_495));
    }
}
