//! When: instants as people write them, time zones with daylight saving, and what recurs.
//!
//! The other crates count milliseconds since 1970 in UTC; this one knows calendars. [`Recurring`] is the text of a recurring
//! job, and [`Calendar`] is what [`Deliveries::run_due`](storage_protocol::deliveries::Deliveries::run_due) asks.

mod recurring;
mod when;
mod zone;

pub use recurring::{Calendar, Recurring};
pub use when::{Lateness, due_of, parse_when};
pub use zone::{Zone, instant_text};

/// A text that is no time, no time zone or no recurrence. It says what is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ScheduleError(String);

impl ScheduleError {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
