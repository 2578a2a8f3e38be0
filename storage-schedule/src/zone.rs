//! Time zones.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use storage_protocol::UnixMillis;

use crate::ScheduleError;

/// A time zone, with its rules for daylight saving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(pub(crate) TimeZone);

impl Zone {
    /// UTC.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// That of this machine; UTC where it has none.
    #[must_use]
    pub fn system() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// The zone of a name, such as `Europe/Berlin` or `UTC`; `system` is that of this machine.
    ///
    /// # Errors
    /// There is none of this name: neither in this machine's data base, nor in the copy that is linked for machines without one.
    pub fn named(name: &str) -> Result<Self, ScheduleError> {
        match name {
            "UTC" | "Z" => Ok(Self::UTC),
            "system" => Ok(Self::system()),
            name => TimeZone::get(name).map(Self).map_err(|_| {
                ScheduleError::new(format!(
                    "{name:?} is no time zone; one is \"UTC\", \"system\" or a name such as \"Europe/Berlin\""
                ))
            }),
        }
    }

    /// The calendar day of an instant: `2026-11-30`.
    #[must_use]
    pub fn day(&self, time: UnixMillis) -> String {
        self.civil(time).date().to_string()
    }

    /// What calendar and clock show at an instant: `2026-11-30 09:00:00`.
    #[must_use]
    pub fn text(&self, time: UnixMillis) -> String {
        self.civil(time).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    pub(crate) fn civil(&self, time: UnixMillis) -> DateTime {
        self.0.to_datetime(timestamp(time))
    }

    /// The instant at which calendar and clock show this; where they do so twice the first one, and where never, as if the
    /// clock had not been put forward.
    pub(crate) fn instant(&self, civil: DateTime) -> Option<UnixMillis> {
        let timestamp = self.0.to_timestamp(civil).ok()?;
        u64::try_from(timestamp.as_millisecond())
            .ok()
            .map(UnixMillis)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("system"))
    }
}

/// An instant in UTC, as RFC 3339 has it: `2026-11-30T09:00:00.000Z`.
#[must_use]
pub fn instant_text(time: UnixMillis) -> String {
    timestamp(time)
        .strftime("%Y-%m-%dT%H:%M:%S.%3fZ")
        .to_string()
}

/// What lies beyond the calendar is its end.
pub(crate) fn timestamp(time: UnixMillis) -> Timestamp {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}
