//! Parts that belong to no object: those under an intent whose time is over. (An intent of a session gets a time when the
//! session's keys are removed: see [`Group::remove`].)
//!
//! A commit removes some parts and puts the intent anew, with the number of the next part, due at once; the last one removes
//! the intent. So a crash between any two repeats nothing and forgets nothing; and since the intent's revision changes with
//! the first of them, a writer that comes back cannot show an object whose parts are going.
//!
//! [`Group::remove`]: crate::engine::rocks::commit::Group

use std::sync::Arc;

use storage_protocol::objects::{PARTS_PER_REMOVAL, PartKey};
use storage_protocol::{Key, KeyRange, Result};

use super::{BATCHES_PER_TICK, ExpiredKey, wait_for};
use crate::engine::rocks::commit::{Sweep, Task, submit};
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::{Head, KeyspaceId, Table, entry_key, parse_entry_key};
use crate::engine::rocks::store::{KeyspaceState, internal};
use crate::engine::rocks::{EngineShared, layout};

/// Intents whose first parts are removed in one group.
const INTENTS_AT_ONCE: usize = 64;

pub(super) fn is_intent(key: &[u8]) -> bool {
    PartKey::parse(key).is_some_and(|key| key.number.is_none())
}

/// Removes some parts of each of these intents, and then those intents that have no more. Those that it does not come to
/// stay due. Waits for the commits: blocks.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room.
pub(super) fn sweep(
    shared: &EngineShared,
    label: &'static str,
    intents: Vec<ExpiredKey>,
) -> Result<()> {
    if intents.is_empty() {
        return Ok(());
    }
    shared.disk.check(Need::Removal, 0)?;
    let keyspaces = shared.store.keyspaces();
    let (mut answers, mut parts, mut batches) = (Vec::new(), 0, 0);
    for intent in intents {
        let Some(keyspace) = keyspaces.iter().find(|space| space.id() == Some(intent.0)) else {
            continue;
        };
        let Some(found) = find(shared, intent)? else {
            continue;
        };
        parts += found.parts.len();
        answers.push(queue(shared, keyspace, label, found)?);
        if parts >= PARTS_PER_REMOVAL || answers.len() >= INTENTS_AT_ONCE {
            wait_for(std::mem::take(&mut answers))?;
            (parts, batches) = (0, batches + 1);
            if batches == BATCHES_PER_TICK {
                break;
            }
        }
    }
    wait_for(answers)
}

fn queue(
    shared: &EngineShared,
    keyspace: &Arc<KeyspaceState>,
    label: &'static str,
    sweep: Sweep,
) -> Result<tokio::sync::oneshot::Receiver<Result<storage_protocol::Position>>> {
    let bytes = sweep.parts.iter().map(|key| key.len() + 64).sum::<usize>() + 64;
    let session = shared.server_session(keyspace);
    submit(
        &shared.queue,
        &session,
        0,
        Task::Sweep { label, sweep },
        bytes,
    )
}

/// The next parts of an intent; `None`: it is none any more.
fn find(shared: &EngineShared, (id, intent, revision): ExpiredKey) -> Result<Option<Sweep>> {
    let Some(PartKey {
        object,
        id: writing,
        number: None,
    }) = PartKey::parse(&intent)
    else {
        return Ok(None);
    };
    let first = PartKey::part(&object, writing, first_number(shared, id, &intent)?);
    // The table has a row behind each keyspace's, so this range has an end.
    let Some(end) = KeyRange::prefix(entry_key(id, &intent)).end else {
        return Ok(None);
    };
    let (mut parts, mut next) = (Vec::new(), None);
    let start = entry_key(id, &first);
    // Nobody reads these again: the cache is left to readers.
    let mut rows = shared
        .store
        .iterate_beside_cache(Table::Entries, &start, Some(&end));
    while let Some((row_key, row)) = rows.item() {
        let (_, key) = parse_entry_key(row_key)?;
        // Another object's key may begin with this intent.
        let part = PartKey::parse(key).filter(|part| part.object == object && part.id == writing);
        let number = part.and_then(|part| part.number);
        if let Some(number) = number
            && layout::parse_entry_value(row)?.0.is_live()
        {
            if parts.len() == PARTS_PER_REMOVAL {
                next = Some(number);
                break;
            }
            parts.push(Key::copy_from_slice(key));
        }
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of parts", &error))?;
    Ok(Some(Sweep {
        intent,
        revision,
        parts,
        next,
    }))
}

/// The number before which no parts are left: tombstones of many parts are not looked at again with each batch.
fn first_number(shared: &EngineShared, id: KeyspaceId, intent: &Key) -> Result<u32> {
    let Some(row) = shared.store.row(Table::Entries, &entry_key(id, intent))? else {
        return Ok(0);
    };
    let (head, at): (Head, usize) = layout::parse_entry_value(&row)?;
    let digits = row
        .get(at..)
        .filter(|digits| head.is_live() && digits.len() == 8);
    let number = digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u32::from_str_radix(digits, 16).ok());
    Ok(number.unwrap_or(0))
}
