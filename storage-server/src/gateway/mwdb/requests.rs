//! GET, PUT and REMOVE against `Storage`.
//!
//! The dialect has one answer for a failed write (0) and none for a failed read. So a read that finds no room for its
//! answer waits for room, and any other failure of a read closes the connection, since "absent" would be false.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use storage_protocol::mwdb::{Request, RequestKind, get_answer, put_answer, remove_answer};
use storage_protocol::native::close_code;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, Lifetime, Operation, Revision, StorageError,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::failed;
use crate::engine::SessionStorage;
use crate::limits::budget::{Budget, Permit};
use crate::limits::room::{AnswerRoom, Reach};
use crate::metrics::{ClosedLabel, OutcomeLabel, RequestLabel};
use crate::shared::Shared;
use crate::ws::Close;

/// How often a read that waits for room looks for it.
const PAUSE: Duration = Duration::from_millis(20);

/// What the answers to one peer are counted in.
#[derive(Clone, Debug)]
pub(super) struct AnswerBudget {
    pub(super) outbox: Arc<Budget>,
    /// One read at a time may go beyond it.
    pub(super) beyond: Arc<Semaphore>,
}

/// Where an answer is counted until it is in the outbox.
#[derive(Debug)]
pub(super) struct Counted {
    _room: AnswerRoom,
    _beyond: Option<OwnedSemaphorePermit>,
}

/// A request that was carried out.
pub(super) struct Finished {
    pub(super) id: Bytes,
    pub(super) answer: Result<Bytes, Close>,
    /// Of a PUT: its number, and the revision of its commit if it was executed.
    pub(super) own_put: Option<(u64, Option<Revision>)>,
    pub(super) counted: Option<Counted>,
}

impl Finished {
    pub(super) fn failed(close: Close) -> Self {
        Self {
            id: Bytes::new(),
            answer: Err(close),
            own_put: None,
            counted: None,
        }
    }
}

/// Carries a request out. `permit` is given back at its end; `own_put` is the number of a PUT.
pub(super) fn run(
    shared: &Arc<Shared>,
    storage: Arc<dyn SessionStorage>,
    request: Request,
    permit: Permit,
    own_put: Option<u64>,
    room: &AnswerBudget,
) -> Pin<Box<dyn Future<Output = Finished> + Send>> {
    let (shared, room) = (shared.clone(), room.clone());
    Box::pin(async move {
        let Request { id, kind } = request;
        let mut own_put = own_put.map(|number| (number, None));
        let mut counted = None;
        let answer = match kind {
            RequestKind::Get { keys } => {
                get(&shared, &*storage, keys, &id, &room, &mut counted).await
            }
            RequestKind::Put { pairs, .. } => {
                let done = commit(&shared, &*storage, RequestLabel::Commit, puts(pairs)).await;
                if let (Some((_, revision)), Ok(Some(at))) = (&mut own_put, done) {
                    *revision = Some(at);
                }
                Ok(put_answer(done.is_ok(), &id))
            }
            RequestKind::PutWithoutSeparator => {
                let error = StorageError::invalid("a PUT without a separator");
                let done = refused(&shared, RequestLabel::Commit, error);
                Ok(put_answer(done.is_ok(), &id))
            }
            RequestKind::Remove { keys } => {
                let longest = shared.config.limits.key_bytes_max;
                let removals = removals(keys, longest);
                let done = commit(&shared, &*storage, RequestLabel::Remove, removals).await;
                Ok(remove_answer(done.is_ok(), &id))
            }
            RequestKind::Prefix => Err(failed("a prefix is no request of this queue".to_owned())),
        };
        drop(permit);
        Finished {
            id,
            answer,
            own_put,
            counted,
        }
    })
}

/// If a key is there twice, the later pair counts, at its own position. No other pair is left out: if one cannot be
/// stored, such as one with an empty key, the engine refuses the whole commit.
fn puts(pairs: Vec<(Bytes, Bytes)>) -> Vec<Operation> {
    let last: HashMap<Bytes, usize> = pairs
        .iter()
        .enumerate()
        .map(|(place, (key, _))| (key.clone(), place))
        .collect();
    pairs
        .into_iter()
        .enumerate()
        .filter(|(place, (key, _))| last.get(key) == Some(place))
        .map(|(_, (key, value))| Operation::Put {
            key,
            value,
            lifetime: Lifetime::Forever,
        })
        .collect()
}

/// A key that is empty or longer than `longest` bytes never exists, so it needs no removal.
fn removals(keys: Vec<Bytes>, longest: usize) -> Vec<Operation> {
    let mut seen = HashSet::with_capacity(keys.len());
    let keys = keys
        .into_iter()
        .filter(|key| !key.is_empty() && key.len() <= longest && seen.insert(key.clone()));
    keys.map(|key| Operation::Remove { key }).collect()
}

/// The revision of the commit; `Ok(None)` where there was nothing to do.
async fn commit(
    shared: &Shared,
    storage: &dyn SessionStorage,
    label: RequestLabel,
    operations: Vec<Operation>,
) -> Result<Option<Revision>, ()> {
    if operations.is_empty() {
        return Ok(None);
    }
    let batch = Batch {
        checks: Vec::new(),
        operations,
    };
    match storage.commit(batch, CommitOptions::default()).await {
        Ok(position) => {
            shared.metrics.request_outcome(label, OutcomeLabel::Ok);
            Ok(Some(position.revision))
        }
        Err(error) => refused(shared, label, error),
    }
}

/// A write that is answered with 0. The peer gets no reason, so it is logged.
fn refused(
    shared: &Shared,
    label: RequestLabel,
    error: StorageError,
) -> Result<Option<Revision>, ()> {
    tracing::info!(%error, "a write was answered with 0");
    shared.metrics.request::<()>(label, &Err(error));
    Err(())
}

async fn get(
    shared: &Shared,
    storage: &dyn SessionStorage,
    keys: Vec<Key>,
    id: &[u8],
    room: &AnswerBudget,
    counted: &mut Option<Counted>,
) -> Result<Bytes, Close> {
    // No entry has an empty key or one over the limit: absent, without asking.
    let longest = shared.config.limits.key_bytes_max;
    let askable = |key: &Key| !key.is_empty() && key.len() <= longest;
    let asked: Vec<Key> = keys.iter().filter(|key| askable(key)).cloned().collect();
    let result = if asked.is_empty() {
        Ok(Vec::new())
    } else {
        let read = read(storage, &asked, room).await;
        read.map(|(entries, room)| {
            *counted = Some(room);
            entries
        })
    };
    shared.metrics.request(RequestLabel::Get, &result);
    let entries = result.map_err(|error| match error {
        StorageError::LimitExceeded { .. } => Close::new(
            close_code::TOO_BIG,
            ClosedLabel::Failed,
            format!("a GET cannot be answered: {error}"),
        ),
        error => failed(format!("a GET cannot be answered: {error}")),
    })?;
    let mut found = entries.iter();
    let values: Vec<Option<&[u8]>> = keys
        .iter()
        .map(|key| {
            let entry = if askable(key) {
                found.next().and_then(Option::as_ref)
            } else {
                None
            };
            entry.map(|entry| entry.value.as_ref())
        })
        .collect();
    get_answer(values.iter().copied(), id)
        .map_err(|error| failed(format!("a GET cannot be answered: {error}")))
}

/// Reads if there is room for the answer. One read at a time may go beyond the session's bound, if the bounds that it
/// shares have room.
async fn read(
    storage: &dyn SessionStorage,
    keys: &[Key],
    budget: &AnswerBudget,
) -> Result<(Vec<Option<Entry>>, Counted), StorageError> {
    let room = AnswerRoom::new(&budget.outbox, Reach::Within);
    let mut read = storage.get_into(keys, room.room()).await;
    let mut beyond = None;
    while room.was_refused() {
        if beyond.is_none() {
            beyond = budget.beyond.clone().acquire_owned().await.ok();
        } else {
            tokio::time::sleep(PAUSE).await;
        }
        if !budget.outbox.is_full() {
            room.begin(Reach::Beyond);
            read = storage.get_into(keys, room.room()).await;
        }
    }
    let counted = Counted {
        _room: room,
        _beyond: beyond,
    };
    read.map(|reading| (reading.value, counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&'static str, &'static str)]) -> Vec<(Bytes, Bytes)> {
        of.iter()
            .map(|(key, value)| (Bytes::from(*key), Bytes::from(*value)))
            .collect()
    }

    #[test]
    fn the_later_of_two_pairs_counts() {
        let operations = puts(pairs(&[("a", "1"), ("", "x"), ("b", "2"), ("a", "3")]));
        let all = Batch::new().put("", "x").put("b", "2").put("a", "3");
        assert_eq!(operations, all.operations);
    }

    #[test]
    fn a_key_is_removed_once() {
        let keys = vec!["a".into(), "".into(), "a".into(), "b".into(), "long".into()];
        let operations = removals(keys, 3);
        assert_eq!(operations, Batch::new().remove("a").remove("b").operations);
    }
}
