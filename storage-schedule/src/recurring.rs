//! What recurs: `every DURATION`, and `cron EXPRESSION` with `in ZONE` behind it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use storage_protocol::UnixMillis;
use storage_protocol::deliveries::Recurrence;

use crate::zone::timestamp;
use crate::{ScheduleError, Zone};

/// The shortest time between two runs.
const SHORTEST: Duration = Duration::from_secs(1);

/// When a job recurs.
///
/// As text: `every 15m` (counted from its first time, or any other one), or `cron 0 9 * * MON-FRI in Europe/Berlin`: minute, hour, day of the month,
/// month, day of the week, with seconds before them if there are six; without a zone in UTC. A time that the clock leaves
/// out when it is put forward comes at the end of the gap, and one that it shows twice when it is put back comes once.
#[derive(Clone, Debug)]
pub enum Recurring {
    /// At this distance.
    Every(Duration),
    /// By calendar and clock.
    Cron {
        /// The expression.
        cron: Box<Cron>,
        /// Of this zone.
        zone: Zone,
    },
}

impl Recurring {
    /// The first time behind `after`, of what has `anchor` as one of its times. It may lie before that.
    #[must_use]
    pub fn next(&self, anchor: UnixMillis, after: UnixMillis) -> Option<UnixMillis> {
        match self {
            Self::Every(period) => {
                let period = u64::try_from(period.as_millis()).ok()?.max(1);
                // From the time at or before `after` that is a whole number of periods away from the anchor.
                let since = match after.0.checked_sub(anchor.0) {
                    Some(behind) => behind % period,
                    None => (period - (anchor.0 - after.0) % period) % period,
                };
                Some(UnixMillis(after.0.checked_add(period - since)?))
            }
            Self::Cron { cron, zone } => {
                let from = timestamp(after).to_zoned(zone.0.clone());
                let next = cron.find_next_occurrence(&from, false).ok()?;
                let next = next.timestamp().as_millisecond();
                u64::try_from(next).ok().map(UnixMillis)
            }
        }
    }
}

impl FromStr for Recurring {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let none = |why: String| {
            ScheduleError::new(format!(
                "{text:?} is no recurrence{why}; one is \"every 15m\" or \"cron 0 9 * * MON-FRI in Europe/Berlin\""
            ))
        };
        match text.trim().split_once(' ') {
            Some(("every", duration)) => {
                let duration = humantime::parse_duration(duration.trim());
                let duration = duration.map_err(|error| none(format!(": {error}")))?;
                match duration >= SHORTEST {
                    true => Ok(Self::Every(duration)),
                    false => Err(none(format!(": the shortest distance is {SHORTEST:?}"))),
                }
            }
            Some(("cron", rest)) => {
                let (expression, zone) = match rest.rsplit_once(" in ") {
                    Some((expression, zone)) => (expression, Zone::named(zone.trim())?),
                    None => (rest, Zone::UTC),
                };
                let parser = CronParser::builder().seconds(Seconds::Optional).build();
                let cron = parser.parse(expression.trim());
                let cron = cron.map_err(|error| none(format!(": {error}")))?;
                Ok(Self::Cron {
                    cron: Box::new(cron),
                    zone,
                })
            }
            _ => Err(none(String::new())),
        }
    }
}

impl fmt::Display for Recurring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(period) => write!(f, "every {}", humantime::format_duration(*period)),
            Self::Cron { cron, zone } => write!(f, "cron {} in {zone}", cron.as_str()),
        }
    }
}

/// What knows when recurring jobs recur.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calendar;

impl Recurrence for Calendar {
    fn next(
        &self,
        text: &str,
        anchor: UnixMillis,
        after: UnixMillis,
    ) -> Result<Option<UnixMillis>, String> {
        let recurring: Recurring = text
            .parse()
            .map_err(|error: ScheduleError| error.to_string())?;
        Ok(recurring.next(anchor, after))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{instant_text, parse_when};

    fn instant(text: &str) -> UnixMillis {
        parse_when(text, &Zone::UTC, UnixMillis::ZERO).unwrap()
    }

    fn next(recurring: &str, after: &str) -> String {
        let recurring: Recurring = recurring.parse().unwrap();
        instant_text(
            recurring
                .next(instant("2026-11-30T12:00:00Z"), instant(after))
                .unwrap(),
        )
    }

    #[test]
    fn distances_are_counted_from_the_first_time() {
        assert_eq!(
            next("every 15m", "2026-11-30T12:00:00Z"),
            "2026-11-30T12:15:00.000Z"
        );
        assert_eq!(
            next("every 15m", "2026-11-30T12:14:59Z"),
            "2026-11-30T12:15:00.000Z"
        );
        assert_eq!(
            next("every 1h", "2026-12-01T12:30:00Z"),
            "2026-12-01T13:00:00.000Z"
        );
        assert_eq!(
            next("every 1h", "2026-11-01T12:30:00Z"),
            "2026-11-01T13:00:00.000Z"
        );
    }

    #[test]
    fn cron_goes_by_the_clock_of_its_zone() {
        let daily = "cron 0 9 * * * in Europe/Berlin";
        assert_eq!(
            next(daily, "2026-11-30T12:00:00Z"),
            "2026-12-01T08:00:00.000Z"
        );
        assert_eq!(
            next(daily, "2027-06-01T12:00:00Z"),
            "2027-06-02T07:00:00.000Z"
        );
        let weekdays = "cron 30 18 * * MON-FRI";
        assert_eq!(
            next(weekdays, "2026-12-04T19:00:00Z"),
            "2026-12-07T18:30:00.000Z"
        );
        assert_eq!(
            next("cron */10 * * * * *", "2026-12-04T19:00:01Z"),
            "2026-12-04T19:00:10.000Z"
        );
        // Left out by the clock on this day, and shown twice on the other.
        let night = "cron 30 2 * * * in Europe/Berlin";
        assert_eq!(
            next(night, "2027-03-27T12:00:00Z"),
            "2027-03-28T01:00:00.000Z"
        );
        assert_eq!(
            next(night, "2027-10-31T00:30:00Z"),
            "2027-11-01T01:30:00.000Z"
        );
    }

    #[test]
    fn what_is_no_recurrence_is_said() {
        for text in [
            "",
            "daily",
            "every",
            "every x",
            "every 10ms",
            "cron",
            "cron * *",
            "cron 61 * * * *",
            "cron 0 9 * * * in Nowhere/X",
        ] {
            let error = text.parse::<Recurring>().unwrap_err().to_string();
            assert!(error.contains("is no "), "{text}: {error}");
        }
        for text in ["every 15m", "cron 0 9 * * * in UTC"] {
            assert_eq!(text.parse::<Recurring>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn the_next_time_lies_behind(anchor in 0..1u64 << 42, after in 0..1u64 << 42, seconds in 1..100_000u64) {
            let every = Recurring::Every(Duration::from_secs(seconds));
            let next = every.next(UnixMillis(anchor), UnixMillis(after)).unwrap();
            let period = seconds * 1000;
            prop_assert!((after + 1..=after + period).contains(&next.0));
            prop_assert_eq!(next.0.abs_diff(anchor) % period, 0);
        }

        #[test]
        fn no_text_breaks_it(text in ".{0,60}") {
            if let Ok(recurring) = text.parse::<Recurring>() {
                let _ = recurring.next(UnixMillis(0), UnixMillis(1 << 40));
            }
        }

        #[test]
        fn no_cron_breaks_it(text in "cron [-0-9*/,LW#? ]{0,30}") {
            if let Ok(recurring) = text.parse::<Recurring>() {
                let _ = recurring.next(UnixMillis(0), UnixMillis(1 << 40));
            }
        }
    }
}
