//! The keys of jobs, and the names in them.
//!
//! | key, behind the prefix | value |
//! | --- | --- |
//! | `jobs/ID` | the record |
//! | `due/TIME ID` | nothing: at this time something is to be done with the job. One for each job that is open |
//! | `to/RECIPIENT/TIME ID` | a letter, what the job is. One for each job that is open; `TIME` is when it was to be due |
//! | `with/ID/NAME` | whatever goes with the job as long as it is open, by the names that its record has |
//!
//! `TIME` is milliseconds since 1970 as 12 lowercase hexadecimal digits, with nothing behind it: digits sort as numbers, and
//! show in lists of keys.

use std::fmt;
use std::str::FromStr;

use crate::{Key, KeyRange, UnixMillis};

/// What the keys of jobs begin with, unless something else is said.
pub const DEFAULT_PREFIX: &str = "deliveries/";

/// The most bytes of an id, and of a recipient's name.
pub const NAME_BYTES_MAX: usize = 200;

/// The latest time that a key can hold: in the year 10889.
pub const TIME_MAX: UnixMillis = UnixMillis((1 << 48) - 1);

const TIME_DIGITS: usize = 12;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no {what}: it has 1 to {NAME_BYTES_MAX} bytes, visible ones of ASCII but '/' and '#'"
)]
pub struct NameError {
    what: &'static str,
    text: String,
}

fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'#';
    match (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_allowed) {
        true => Ok(()),
        false => Err(NameError {
            what,
            text: text.chars().take(NAME_BYTES_MAX).collect(),
        }),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks a name.
            ///
            /// # Errors
            /// [`NameError`].
            pub fn new(text: &str) -> Result<Self, NameError> {
                check($what, text)?;
                Ok(Self(text.to_owned()))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// The id of a job: chosen by who schedules it, or random. Visible bytes of ASCII but `/` and `#`.
    JobId,
    "id of a job"
);
name!(
    /// Whom a job is for: the same kind of text.
    Recipient,
    "recipient"
);

impl JobId {
    /// The id of a recurring job's run that was due at a time.
    ///
    /// # Errors
    /// [`NameError`] if the id has no room for the time.
    pub fn of_run(&self, due: UnixMillis) -> Result<Self, NameError> {
        Self::new(&format!("{self}@{}", due.0))
    }
}

/// Where the jobs are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    prefix: Key,
}

fn digits(time: UnixMillis) -> String {
    format!("{:012x}", time.0.min(TIME_MAX.0))
}

fn split_time(rest: &[u8]) -> Option<(UnixMillis, JobId)> {
    let (time, id) = rest.split_at_checked(TIME_DIGITS)?;
    let is_digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    if !time.iter().all(is_digit) {
        return None;
    }
    let time = u64::from_str_radix(str::from_utf8(time).ok()?, 16).ok()?;
    let id = JobId::new(str::from_utf8(id).ok()?).ok()?;
    Some((UnixMillis(time), id))
}

impl Place {
    pub(super) fn new(prefix: Key) -> Self {
        Self { prefix }
    }

    fn key(&self, parts: &[&str]) -> Key {
        let bytes = parts.iter().flat_map(|part| part.bytes());
        self.prefix.iter().copied().chain(bytes).collect()
    }

    pub(super) fn job(&self, id: &JobId) -> Key {
        self.key(&["jobs/", id.as_str()])
    }

    pub(super) fn jobs(&self) -> KeyRange {
        KeyRange::prefix(self.key(&["jobs/"]))
    }

    pub(super) fn id_of_job(&self, key: &[u8]) -> Option<JobId> {
        let id = key.strip_prefix(&*self.key(&["jobs/"]))?;
        JobId::new(str::from_utf8(id).ok()?).ok()
    }

    pub(super) fn due(&self, time: UnixMillis, id: &JobId) -> Key {
        self.key(&["due/", &digits(time), id.as_str()])
    }

    pub(super) fn all_due(&self) -> KeyRange {
        KeyRange::prefix(self.key(&["due/"]))
    }

    /// The rows of this time and later ones.
    pub(super) fn due_from(&self, time: UnixMillis) -> KeyRange {
        let mut range = self.all_due();
        range.start = self.key(&["due/", &digits(time)]);
        range
    }

    pub(super) fn parse_due(&self, key: &[u8]) -> Option<(UnixMillis, JobId)> {
        split_time(key.strip_prefix(&*self.key(&["due/"]))?)
    }

    pub(super) fn to(&self, recipient: &Recipient, due: UnixMillis, id: &JobId) -> Key {
        let (digits, id) = (digits(due), id.as_str());
        self.key(&["to/", recipient.as_str(), "/", &digits, id])
    }

    pub(super) fn all_to(&self, recipient: &Recipient) -> KeyRange {
        KeyRange::prefix(self.key(&["to/", recipient.as_str(), "/"]))
    }

    pub(super) fn attached(&self, id: &JobId, name: &[u8]) -> Key {
        let start = self.key(&["with/", id.as_str(), "/"]);
        [&start, name].concat().into()
    }

    /// Of a key below [`Place::all_to`].
    pub(super) fn parse_to(&self, recipient: &Recipient, key: &[u8]) -> Option<JobId> {
        let start = self.key(&["to/", recipient.as_str(), "/"]);
        Some(split_time(key.strip_prefix(&*start)?)?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_the_protocol_says() {
        let place = Place::new(Key::from(DEFAULT_PREFIX));
        let (id, to) = (JobId::new("17").unwrap(), Recipient::new("LAB-3").unwrap());
        let time = UnixMillis(1_700_000_000_000);
        assert_eq!(place.job(&id), "deliveries/jobs/17");
        assert_eq!(place.due(time, &id), "deliveries/due/018bcfe5680017");
        assert_eq!(
            place.to(&to, time, &id),
            "deliveries/to/LAB-3/018bcfe5680017"
        );
        assert_eq!(place.attached(&id, b"a/b"), "deliveries/with/17/a/b");
        assert_eq!(
            place.parse_due(b"deliveries/due/018bcfe5680017"),
            Some((time, id.clone()))
        );
        assert_eq!(
            place.parse_to(&to, b"deliveries/to/LAB-3/018bcfe5680017"),
            Some(id.clone())
        );
        assert_eq!(place.id_of_job(b"deliveries/jobs/17"), Some(id));
        for other in [
            "due/018BCFE5680017",
            "due/018bcfe56800",
            "due/1",
            "jobs/17",
            "due/018bcfe5680017/",
        ] {
            assert_eq!(
                place.parse_due(format!("deliveries/{other}").as_bytes()),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn names_have_no_bytes_that_keys_are_parted_by() {
        for bad in ["", "a/b", "a b", "a#", "ä", "a\0", &"x".repeat(201)] {
            let error = JobId::new(bad).unwrap_err().to_string();
            assert!(error.contains("1 to 200 bytes"), "{error}");
        }
        for good in ["a", "%2F", "0A:1B", "x@17", &"x".repeat(200)] {
            assert_eq!(Recipient::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn times_sort_as_numbers() {
        let place = Place::new(Key::from("p/"));
        let id = JobId::new("a").unwrap();
        let times = [0, 9, 10, 15, 16, 255, 1 << 40, TIME_MAX.0];
        let keys = times.map(|time| place.due(UnixMillis(time), &id));
        assert!(keys.is_sorted());
    }
}
