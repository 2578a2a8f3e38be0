//! The keys of robots, packages and numbers.
//!
//! | key | value |
//! | --- | --- |
//! | `robots/ADDRESS` | a robot, as JSON |
//! | `robots/ADDRESS!online` | its connection, as JSON; as long as that is there |
//! | `catalog/NAME` | a package that was scheduled once, as JSON |
//! | `ids/KIND` | the next number of this kind |
//! | `deliveries/...` | the jobs: see `storage_protocol::deliveries`. With each that has not ended its package, `NAME_ID`, as JSON |

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use storage_protocol::deliveries::{JobId, Recipient};
use storage_protocol::{Key, KeyRange};

/// What of an address or a name is not encoded.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'.')
    .remove(b'_')
    .remove(b'-')
    .remove(b':');

/// Behind the address. A byte that sorts before all that an encoded address has, so that this key comes right behind that of
/// its robot.
const ONLINE: &str = "!online";
/// The digits of a job's number in its id, so that ids sort as numbers.
const JOB_DIGITS: usize = 10;

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

pub(super) fn robot(address: &str) -> Key {
    Key::from(format!("robots/{}", encoded(address)))
}

pub(super) fn online(address: &str) -> Key {
    Key::from(format!("robots/{}{ONLINE}", encoded(address)))
}

pub(super) fn robots() -> KeyRange {
    KeyRange::prefix("robots/")
}

/// The address of a robot's key, and whether it is that of its connection.
pub(super) fn parse_robot(key: &[u8]) -> Option<(String, bool)> {
    let rest = str::from_utf8(key).ok()?.strip_prefix("robots/")?;
    let (address, is_online) = match rest.strip_suffix(ONLINE) {
        Some(address) => (address, true),
        None => (rest, false),
    };
    let address = percent_decode_str(address).decode_utf8().ok()?;
    Some((address.into_owned(), is_online))
}

/// Whom the jobs of a robot are for. `None`: its address is too long, encoded.
pub(super) fn recipient(address: &str) -> Option<Recipient> {
    Recipient::new(&encoded(address)).ok()
}

pub(super) fn address_of(recipient: &Recipient) -> String {
    let decoded = percent_decode_str(recipient.as_str());
    decoded.decode_utf8_lossy().into_owned()
}

pub(super) fn catalog(name: &str) -> Key {
    Key::from(format!("catalog/{}", encoded(name)))
}

pub(super) fn all_catalog() -> KeyRange {
    KeyRange::prefix("catalog/")
}

/// The name of the package among what goes with its job.
pub(super) fn package(name: &str, job: u64) -> Key {
    Key::from(format!("{}_{job}", encoded(name)))
}

pub(super) fn numbers(kind: &str) -> Key {
    Key::from(format!("ids/{kind}"))
}

/// The id of a job of the gateway's own.
pub(super) fn job(number: u64) -> Option<JobId> {
    JobId::new(&format!("{number:0JOB_DIGITS$}")).ok()
}

/// The job that a client means: by its number, or by the id of one that came into being elsewhere.
pub(super) fn parse_job(text: &str) -> Option<JobId> {
    match text.parse::<u64>() {
        Ok(number) if text.bytes().all(|byte| byte.is_ascii_digit()) => job(number),
        _ => JobId::new(text).ok(),
    }
}

/// The number of a job of the gateway's own.
pub(super) fn number_of(id: &JobId) -> Option<u64> {
    let text = id.as_str();
    let is_number = text.len() >= JOB_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_and_part_no_key() {
        for address in ["0A:1B", "../../x", "a/b", "ä #%", "a!online", "a/online"] {
            let (key, at) = (robot(address), online(address));
            assert_eq!(parse_robot(&key), Some((address.to_owned(), false)));
            assert_eq!(parse_robot(&at), Some((address.to_owned(), true)));
            assert_eq!(address_of(&recipient(address).unwrap()), address);
        }
        let mut keys =
            ["ab", "ab-1", "ab.1", "ab%", "ab:"].map(|address| [robot(address), online(address)]);
        keys.sort();
        assert!(keys.as_flattened().is_sorted(), "{keys:?}");
        assert_eq!(robot("0A:1B"), "robots/0A:1B");
        assert_eq!(robot("../x"), "robots/..%2Fx");
    }

    #[test]
    fn jobs_have_numbers_that_sort() {
        assert_eq!(parse_job("17"), job(17));
        assert_eq!(parse_job("0017"), job(17));
        assert_eq!(number_of(&job(17).unwrap()), Some(17));
        assert!(job(9).unwrap() < job(10).unwrap());
        let other = parse_job("backup@170").unwrap();
        assert_eq!(number_of(&other), None);
        assert_eq!(parse_job("a/b"), None);
    }
}
