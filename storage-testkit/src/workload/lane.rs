//! One client's calls, one after the other, each recorded.

use std::collections::HashMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyState, Result, Revision, ScanOptions, Storage,
    StorageError, Value,
};
use tokio::time::{sleep, timeout};

use super::client::Client;
use super::{KEYS, key_range, text};
use crate::history::{Call, Expect, OpId, Outcome, Range, Request, Seen, Write};

/// Of a stored value, what stands between its text and its padding.
const PADDING: u8 = b'~';

/// Some values are so long that they travel in parts.
const LONG_BYTES: usize = 70_000;

/// Works until the run is stopped, or so many calls were made.
pub(super) async fn work(client: Client, lane: u32, mut random: StdRng, calls_max: u32) {
    // What this lane read last of each key: what compare-and-set starts from.
    let mut known: HashMap<String, Option<u64>> = HashMap::new();
    for number in 0..calls_max {
        // While there is no connection, a lane must see that the run is over.
        let storage = loop {
            if client.shared.stopped() {
                return;
            }
            if let Ok(storage) = timeout(Duration::from_millis(200), client.storage()).await {
                break storage;
            }
        };
        let id = OpId {
            client: lane,
            number,
        };
        let request = choose(id, &known, &mut random);
        let recorder = &client.shared.recorder;
        let invoked = recorder.now();
        let outcome = perform(&client, &storage, id, &request).await;
        let returned = recorder.now();
        learn(&mut known, &request, &outcome);
        let failed = matches!(
            outcome,
            Outcome::NotExecuted { .. } | Outcome::Unknown { .. }
        );
        recorder.push(Call {
            id,
            request,
            invoked,
            returned,
            outcome,
        });
        if failed {
            // A server that says it is going is not asked a thousand times.
            sleep(Duration::from_millis(5)).await;
        } else if random.random_bool(0.2) {
            sleep(Duration::from_millis(random.random_range(0..8))).await;
        }
    }
}

fn choose(id: OpId, known: &HashMap<String, Option<u64>>, random: &mut StdRng) -> Request {
    let mut keys = |count: usize| -> Vec<String> {
        let keys = KEYS.choose_multiple(random, count);
        keys.map(|key| (*key).to_owned()).collect()
    };
    let several = keys(3);
    let one = keys(1);
    let put = |key: &String| (key.clone(), Write::Put(format!("{id}@{key}")));
    let expected = |key: &String| {
        let revision = known.get(key).copied().flatten();
        (key.clone(), revision.map_or(Expect::Absent, Expect::At))
    };
    let commit = |checks, writes| Request::Commit { checks, writes };
    match random.random_range(0..100) {
        0..22 => Request::Get { keys: one },
        22..38 => Request::Get { keys: several },
        38..42 => Request::Get {
            keys: KEYS.map(str::to_owned).to_vec(),
        },
        42..45 => Request::Scan {
            range: match random.random_bool(0.5) {
                true => Range::all(),
                false => Range::new("b/", Some("b0")),
            },
        },
        45..47 => Request::Get { keys: Vec::new() },
        47..60 => commit(Vec::new(), one.iter().map(put).collect()),
        60..68 => {
            let removes = one.into_iter().map(|key| (key, Write::Remove));
            commit(Vec::new(), removes.collect())
        }
        // Several keys at once: puts, a removal, a signal.
        68..80 => {
            let mut writes: Vec<_> = several.iter().map(put).collect();
            if let Some(last) = writes.last_mut() {
                match random.random_range(0..3) {
                    0 => last.1 = Write::Remove,
                    1 => last.1 = Write::Signal(format!("{id}!{}", last.0)),
                    _ => {}
                }
            }
            commit(Vec::new(), writes)
        }
        // Compare and set, one key and several; and removal of what was read.
        80..91 => commit(
            one.iter().map(expected).collect(),
            one.iter().map(put).collect(),
        ),
        91..96 => {
            let checked = several.iter().take(2).map(expected);
            let checks = checked.collect();
            commit(checks, several.iter().skip(1).map(put).collect())
        }
        _ => {
            let checks = one.iter().map(expected).collect();
            let removes = one.into_iter().map(|key| (key, Write::Remove));
            commit(checks, removes.collect())
        }
    }
}

fn learn(known: &mut HashMap<String, Option<u64>>, request: &Request, outcome: &Outcome) {
    match (request, outcome) {
        (_, Outcome::Read { values, .. }) => {
            for (key, seen) in values {
                known.insert(key.clone(), seen.as_ref().map(|seen| seen.revision));
            }
        }
        (Request::Commit { writes, .. }, Outcome::Committed { revision }) => {
            for (key, write) in writes {
                match write {
                    Write::Put(_) => known.insert(key.clone(), Some(*revision)),
                    Write::Remove => known.insert(key.clone(), None),
                    Write::Signal(_) => continue,
                };
            }
        }
        (_, Outcome::Refused { key, actual }) => {
            known.insert(key.clone(), *actual);
        }
        _ => {}
    }
}

pub(super) async fn perform(
    client: &Client,
    storage: &impl Storage,
    id: OpId,
    request: &Request,
) -> Outcome {
    let done = match request {
        Request::Get { keys } => get(client, storage, keys).await,
        Request::Scan { range } => scan(client, storage, range).await,
        Request::Commit { checks, writes } => {
            let mut batch = Batch::new();
            for (key, expected) in checks {
                batch = match expected {
                    Expect::Absent => batch.check_absent(key.clone()),
                    Expect::At(revision) => batch.check_revision(key.clone(), Revision(*revision)),
                };
            }
            for (key, write) in writes {
                batch = match write {
                    Write::Put(value) => batch.put(key.clone(), to_stored(id, value)),
                    Write::Remove => batch.remove(key.clone()),
                    Write::Signal(bytes) => batch.signal(key.clone(), bytes.clone()),
                };
            }
            let options = CommitOptions::labelled(id.to_string());
            let position = storage.commit(batch, options).await;
            position.map(|position| Outcome::Committed {
                revision: client.shared.revision(position),
            })
        }
    };
    done.unwrap_or_else(|error| failed(&error))
}

async fn get(client: &Client, storage: &impl Storage, keys: &[String]) -> Result<Outcome> {
    let asked: Vec<Key> = keys.iter().map(|key| Key::from(key.clone())).collect();
    let reading = storage.get(&asked).await?;
    let values = reading.value.iter().map(|entry| entry.as_ref().map(seen));
    Ok(Outcome::Read {
        revision: client.shared.revision(reading.position),
        values: keys.iter().cloned().zip(values).collect(),
    })
}

async fn scan(client: &Client, storage: &impl Storage, range: &Range) -> Result<Outcome> {
    let scan = storage
        .scan(key_range(range), ScanOptions::default())
        .await?;
    let revision = client.shared.revision(scan.position());
    let items = scan.collect().await?.into_iter().map(|item| {
        let state = match &item.state {
            KeyState::Live(entry) => Some(seen(entry)),
            KeyState::Removed(_) => None,
        };
        (text(&item.key), state)
    });
    Ok(Outcome::Read {
        revision,
        values: items.collect(),
    })
}

fn failed(error: &StorageError) -> Outcome {
    let text = error.to_string();
    match (error, error.outcome()) {
        (StorageError::CheckFailed { key, actual }, _) => Outcome::Refused {
            key: super::text(key),
            actual: actual.map(|revision| revision.0),
        },
        (_, storage_protocol::Outcome::Unknown) => Outcome::Unknown { error: text },
        _ => Outcome::NotExecuted { error: text },
    }
}

pub(super) fn seen(entry: &Entry) -> Seen {
    Seen {
        value: from_stored(&entry.value),
        revision: entry.revision.0,
    }
}

/// The bytes behind a value's text: how many is told by the call.
fn padding(client: u32, number: u32) -> usize {
    match client.wrapping_mul(31).wrapping_add(number).wrapping_mul(7) % 64 {
        0 => LONG_BYTES,
        rest if rest % 4 == 0 => 0,
        rest => rest as usize * 5,
    }
}

fn to_stored(id: OpId, value: &str) -> Value {
    let mut bytes = value.as_bytes().to_vec();
    bytes.resize(bytes.len() + padding(id.client, id.number), PADDING);
    bytes.into()
}

/// The text of a stored value, whose padding must be right: else something that no call ever put.
pub(super) fn from_stored(bytes: &[u8]) -> String {
    let length = bytes
        .iter()
        .position(|byte| *byte == PADDING)
        .unwrap_or(bytes.len());
    let (value, rest) = bytes.split_at(length);
    let value = text(value);
    let id = value.split_once('@').and_then(|(id, _)| id.split_once('.'));
    let expected =
        id.and_then(|(client, number)| Some(padding(client.parse().ok()?, number.parse().ok()?)));
    if expected == Some(rest.len()) && rest.iter().all(|byte| *byte == PADDING) {
        value
    } else {
        format!("damaged: {value} and {} bytes", rest.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_damaged_ones_are_told() {
        for number in 0..200 {
            let id = OpId { client: 3, number };
            let stored = to_stored(id, &format!("{id}@a"));
            assert_eq!(from_stored(&stored), format!("{id}@a"));
            let longer = [&stored[..], b"~"].concat();
            assert!(from_stored(&longer).starts_with("damaged"));
        }
    }
}
