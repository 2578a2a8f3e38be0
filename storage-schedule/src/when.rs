//! Instants as people, and clients of other protocols, write them.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time};
use jiff::{Span, Timestamp};
use storage_protocol::UnixMillis;

use crate::{ScheduleError, Zone};

/// What is made of a time that has just passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness(pub Duration);

/// A date without a year may be a leap day.
const YEARS_AHEAD: i16 = 8;

/// The instant of a date and a time in a zone. A date is `D-M`, the next one of these; `D-M-YYYY`; or `YYYY-MM-DD`. Slashes and
/// dots are as good as dashes. A time is `H:MM` or `H:MM:SS`. What has passed by at most the lateness is due at once.
///
/// # Errors
/// What is wrong: no such date or time, or one that has passed.
pub fn due_of(
    date: &str,
    time: &str,
    zone: &Zone,
    now: UnixMillis,
    lateness: Lateness,
) -> Result<UnixMillis, ScheduleError> {
    let at = parse_time(time)?;
    let earliest = UnixMillis(now.0.saturating_sub(millis(lateness.0)));
    let instant = |date: Date| zone.instant(DateTime::from_parts(date, at));
    match parse_date(date)? {
        Written::Full(day) => match instant(day) {
            Some(instant) if instant >= earliest => Ok(instant),
            _ => Err(ScheduleError::new(format!("{date} {time} has passed"))),
        },
        Written::DayAndMonth { day, month } => {
            let this_year = zone.civil(earliest).year();
            let years = this_year..this_year.saturating_add(YEARS_AHEAD + 1);
            let dates = years.filter_map(|year| Date::new(year, month, day).ok());
            let mut instants = dates.filter_map(instant);
            instants
                .find(|instant| *instant >= earliest)
                .ok_or_else(|| {
                    ScheduleError::new(format!(
                        "{date:?} is no date: month {month} has no day {day}"
                    ))
                })
        }
    }
}

enum Written {
    Full(Date),
    DayAndMonth { day: i8, month: i8 },
}

fn parse_date(text: &str) -> Result<Written, ScheduleError> {
    let none = |why: &str| {
        ScheduleError::new(format!(
            "{text:?} is no date{why}; one is \"15-7\" (day and month), \"15-7-2027\" or \"2027-07-15\""
        ))
    };
    let parts: Vec<&str> = text.trim().split(['-', '/', '.']).collect();
    let numbers: Option<Vec<i16>> = parts.iter().map(|part| digits(part)).collect();
    let numbers = numbers.ok_or_else(|| none(""))?;
    let small = |number: i16| i8::try_from(number).map_err(|_| none(""));
    let full = |year: i16, month: i16, day: i16| {
        let date = Date::new(year, small(month)?, small(day)?);
        date.map(Written::Full)
            .map_err(|_| none(": there is no such day"))
    };
    match (
        numbers.as_slice(),
        parts.first().map_or(0, |part| part.len()),
    ) {
        ([year, month, day], 4) => full(*year, *month, *day),
        ([day, month, year], 1 | 2) if *year >= 1970 => full(*year, *month, *day),
        ([day, month], 1 | 2) => {
            let (day, month) = (small(*day)?, small(*month)?);
            // A year in which February has 29 days.
            Date::new(2024, month, day).map_err(|_| none(": there is no such day"))?;
            Ok(Written::DayAndMonth { day, month })
        }
        _ => Err(none("")),
    }
}

/// At most four digits, and nothing else.
fn digits(text: &str) -> Option<i16> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn parse_time(text: &str) -> Result<Time, ScheduleError> {
    let none = || {
        ScheduleError::new(format!(
            "{text:?} is no time of a day; one is \"9:00\" or \"9:00:00\""
        ))
    };
    let parts: Option<Vec<i8>> = text
        .trim()
        .split(':')
        .map(|part| i8::try_from(digits(part)?).ok())
        .collect();
    let time = match parts.ok_or_else(none)?.as_slice() {
        [hour, minute] => Time::new(*hour, *minute, 0, 0),
        [hour, minute, second] => Time::new(*hour, *minute, *second, 0),
        _ => return Err(none()),
    };
    time.map_err(|_| none())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The instant that a person means: `now`; `in 5m`; `2026-12-01T09:00:00Z`; or, in the zone, `2026-12-01 9:00`, `9:00` (the
/// next one) or `tomorrow 9:00`.
///
/// # Errors
/// It is none of these, or has passed.
pub fn parse_when(text: &str, zone: &Zone, now: UnixMillis) -> Result<UnixMillis, ScheduleError> {
    let text = text.trim();
    if text == "now" {
        return Ok(now);
    }
    if let Some(duration) = text.strip_prefix("in ") {
        let duration = humantime::parse_duration(duration.trim()).map_err(|error| {
            ScheduleError::new(format!("{text:?}: {error}; write it like \"in 5m\""))
        })?;
        return Ok(now.after(duration));
    }
    if let Ok(instant) = text.parse::<Timestamp>() {
        let instant = u64::try_from(instant.as_millisecond()).map(UnixMillis);
        return instant.map_err(|_| ScheduleError::new(format!("{text} lies before 1970")));
    }
    let none = || {
        ScheduleError::new(format!(
            "{text:?} is no time; one is \"now\", \"in 5m\", \"9:00\", \"tomorrow 9:00\", \"2026-12-01 9:00\" or \
             \"2026-12-01T09:00:00Z\""
        ))
    };
    let at_once = Lateness(Duration::ZERO);
    match text.split_once([' ', 'T']) {
        None => {
            let time = parse_time(text).map_err(|_| none())?;
            let today = zone.civil(now).date();
            let tomorrow = today.checked_add(Span::new().days(1)).map_err(|_| none())?;
            let instants =
                [today, tomorrow].map(|day| zone.instant(DateTime::from_parts(day, time)));
            let mut instants = instants.into_iter().flatten();
            instants.find(|instant| *instant > now).ok_or_else(none)
        }
        Some(("tomorrow", time)) => {
            let time = parse_time(time)?;
            let today = zone.civil(now).date();
            let tomorrow = today.checked_add(Span::new().days(1)).map_err(|_| none())?;
            zone.instant(DateTime::from_parts(tomorrow, time))
                .ok_or_else(none)
        }
        Some((date, time)) => due_of(date, time, zone, now, at_once),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instant_text;

    /// A Monday.
    fn now() -> UnixMillis {
        parse_when("2026-11-30T12:00:00Z", &Zone::UTC, UnixMillis::ZERO).unwrap()
    }

    fn berlin() -> Zone {
        Zone::named("Europe/Berlin").unwrap()
    }

    fn due(date: &str, time: &str) -> Result<String, String> {
        let minute = Lateness(Duration::from_secs(60));
        let due = due_of(date, time, &Zone::UTC, now(), minute);
        due.map(instant_text).map_err(|error| error.to_string())
    }

    #[test]
    fn dates_of_both_dialects_are_read() {
        for (date, time, expected) in [
            ("30-11", "12:00:05", "2026-11-30T12:00:05.000Z"),
            ("30-11", "11:59:30", "2026-11-30T11:59:30.000Z"),
            ("30-11", "11:58:00", "2027-11-30T11:58:00.000Z"),
            ("1-12", "9:00", "2026-12-01T09:00:00.000Z"),
            ("15-7", "9:00:00", "2027-07-15T09:00:00.000Z"),
            ("15/7", "09:00:00", "2027-07-15T09:00:00.000Z"),
            ("29-2", "0:00:00", "2028-02-29T00:00:00.000Z"),
            ("2026-12-31", "23:59:59", "2026-12-31T23:59:59.000Z"),
            ("2026-11-30", "11:59:59", "2026-11-30T11:59:59.000Z"),
            ("15-7-2030", "9:00", "2030-07-15T09:00:00.000Z"),
        ] {
            assert_eq!(due(date, time).as_deref(), Ok(expected), "{date} {time}");
        }
    }

    #[test]
    fn what_is_none_is_said() {
        for (date, time, why) in [
            ("31-2", "9:00", "no such day"),
            ("15-13", "9:00", "no such day"),
            ("0-1", "9:00", "no such day"),
            ("30-2-2027", "9:00", "no such day"),
            ("2027-02-29", "9:00", "no such day"),
            ("undefined-7", "9:00", "no date"),
            ("abc", "9:00", "no date"),
            ("", "9:00", "no date"),
            ("15", "9:00", "no date"),
            ("1-1-1-1", "9:00", "no date"),
            ("+1-1", "9:00", "no date"),
            ("15-7", "25:00:00", "no time"),
            ("15-7", "9:60", "no time"),
            ("15-7", "9", "no time"),
            ("15-7", "abc", "no time"),
            ("15-7", "9:00:00:00", "no time"),
            ("2020-01-01", "9:00", "has passed"),
            ("2026-11-30", "11:58:00", "has passed"),
        ] {
            let error = due(date, time).unwrap_err();
            assert!(error.contains(why), "{date} {time}: {error}");
        }
    }

    #[test]
    fn the_clock_of_a_zone_may_show_a_time_twice_or_never() {
        let late = Lateness(Duration::ZERO);
        let of = |date, time| instant_text(due_of(date, time, &berlin(), now(), late).unwrap());
        assert_eq!(of("1-12", "9:00"), "2026-12-01T08:00:00.000Z");
        assert_eq!(of("1-7", "9:00"), "2027-07-01T07:00:00.000Z");
        // Put forward at 2:00 to 3:00, and back from 3:00 to 2:00.
        assert_eq!(of("2027-03-28", "2:30"), "2027-03-28T01:30:00.000Z");
        assert_eq!(of("2027-10-31", "2:30"), "2027-10-31T00:30:00.000Z");
    }

    #[test]
    fn people_write_times_in_many_ways() {
        let of = |text| {
            parse_when(text, &berlin(), now())
                .map(instant_text)
                .map_err(|error| error.to_string())
        };
        for (text, expected) in [
            ("now", "2026-11-30T12:00:00.000Z"),
            ("in 90s", "2026-11-30T12:01:30.000Z"),
            ("14:00", "2026-11-30T13:00:00.000Z"),
            ("13:00", "2026-12-01T12:00:00.000Z"),
            ("tomorrow 9:00", "2026-12-01T08:00:00.000Z"),
            ("2026-12-24 18:00", "2026-12-24T17:00:00.000Z"),
            ("2026-12-24T18:00:00Z", "2026-12-24T18:00:00.000Z"),
            ("2026-12-24T18:00:00+02:00", "2026-12-24T16:00:00.000Z"),
        ] {
            assert_eq!(of(text).as_deref(), Ok(expected), "{text}");
        }
        for text in [
            "",
            "soon",
            "in",
            "in x",
            "yesterday 9:00",
            "2026-13-01 9:00",
            "25:00",
        ] {
            of(text).unwrap_err();
        }
        assert!(
            Zone::named("Europe/Nowhere")
                .unwrap_err()
                .to_string()
                .contains("no time zone")
        );
    }
}
