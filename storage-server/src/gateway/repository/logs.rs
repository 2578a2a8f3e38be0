//! `POST /new_log` and `GET /get_log_list`.

use std::cmp::Ordering;

use axum::body::Body;
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};
use storage_protocol::{
    Batch, CommitOptions, Key, KeyRange, KeyState, Lifetime, ScanOptions, StorageError,
};

use super::answer::{Answer, Refusal, text};
use super::house::House;
use super::keys;
use super::parameters::Parameters;
use crate::gateway::Caller;

/// The most entries of a list: the newest ones.
const LISTED_MAX: u64 = 1_000;
/// The longest message, and the longest of the other texts; what is longer is cut.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
const TEXT_BYTES_MAX: usize = 256;

/// An entry of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Entry {
    user: String,
    code: String,
    ip: String,
    message: String,
    date: String,
}

/// One as it is listed.
#[derive(Debug, Serialize)]
struct Hit {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_source")]
    source: Entry,
}

/// The time, as the repository writes it.
pub(super) fn date_now() -> String {
    let now = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    now.trim_end_matches('Z').to_owned()
}

fn cut(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or_default().to_owned()
}

pub(super) async fn add(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let of = |name| cut(parameters.get(name).unwrap_or_default(), TEXT_BYTES_MAX);
    let ip = match parameters.get("ip") {
        Some(ip) => cut(ip, TEXT_BYTES_MAX),
        None => caller.address.ip().to_string(),
    };
    let message = parameters.get("message").unwrap_or_default();
    let entry = Entry {
        user: of("user"),
        code: of("code"),
        ip,
        message: cut(message, MESSAGE_BYTES_MAX),
        date: date_now(),
    };
    let value = serde_json::to_vec(&entry).map_err(Refusal::bad)?;
    house.ensure_made().await?;
    let batch = Batch::new().put_stamped(Key::from_static(keys::LOG), value, Lifetime::Forever);
    let storage = caller.storage(&house.keyspace);
    let options = CommitOptions::labelled("logged");
    storage.commit(batch, options).await?;
    Ok(text("registered log\n"))
}

pub(super) async fn list(house: &House, caller: &Caller, parts: &Parts, body: Body) -> Answer {
    let parameters = Parameters::read(parts, body).await?;
    let order = parameters
        .get("sorttype")
        .and_then(|text| text.parse::<u32>().ok());
    let storage = caller.storage(&house.keyspace);
    let options = ScanOptions {
        reverse: true,
        limit: Some(LISTED_MAX),
        ..ScanOptions::default()
    };
    let range = KeyRange::prefix(Key::from_static(keys::LOG));
    let mut scan = storage.scan(range, options).await?;
    let mut hits = Vec::new();
    while let Some(page) = scan.next_page().await? {
        for item in page {
            if let KeyState::Live(entry) = item.state {
                hits.push(hit(&item.key, &entry.value));
            }
        }
    }
    if hits.is_empty() {
        return Err(Refusal::text(430, "Empty list of logs"));
    }
    sort(&mut hits, order.unwrap_or(6) % 10);
    let json = serde_json::to_string(&hits).map_err(|error| StorageError::Internal {
        message: error.to_string(),
        outcome: storage_protocol::Outcome::NotExecuted,
    })?;
    Ok(text(json))
}

fn hit(key: &[u8], value: &[u8]) -> Hit {
    let stamp = key.strip_prefix(keys::LOG).unwrap_or_default();
    Hit {
        id: hex::encode(stamp),
        source: serde_json::from_slice(value).unwrap_or_default(),
    }
}

/// The newest first; before that by what the type says. Type 1: the newest alone.
fn sort(hits: &mut Vec<Hit>, order: u32) {
    let by = |one: &Entry, other: &Entry| match order {
        2 => one.code.cmp(&other.code),
        3 => one.user.cmp(&other.user),
        4 => one.ip.cmp(&other.ip),
        5 => one.message.cmp(&other.message),
        _ => Ordering::Equal,
    };
    hits.sort_by(|one, other| by(&one.source, &other.source).then_with(|| other.id.cmp(&one.id)));
    if order == 1 {
        hits.truncate(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_as_their_type_says() {
        let entry = |id: u8, user: &str, code: &str| {
            let value = format!("{{\"user\":\"{user}\",\"code\":\"{code}\"}}");
            hit(&[keys::LOG, &[id]].concat(), value.as_bytes())
        };
        for (order, ids) in [
            (1, vec!["03"]),
            (2, vec!["02", "03", "01"]),
            (3, vec!["03", "01", "02"]),
            (4, vec!["03", "02", "01"]),
            (6, vec!["03", "02", "01"]),
            (7, vec!["03", "02", "01"]),
        ] {
            let mut hits = vec![
                entry(1, "a", "400"),
                entry(3, "a", "300"),
                entry(2, "b", "200"),
            ];
            sort(&mut hits, order);
            let sorted: Vec<_> = hits.iter().map(|hit| hit.id.as_str()).collect();
            assert_eq!(sorted, ids, "{order}");
        }
    }

    #[test]
    fn a_date_has_milliseconds_and_no_zone() {
        let date = date_now();
        assert_eq!(
            (date.len(), date.as_bytes()[10], date.as_bytes()[19]),
            (23, b'T', b'.')
        );
    }
}
