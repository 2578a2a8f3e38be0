//! Background work, on two threads. The housekeeper runs each second, whatever the other does: it writes `SYNCED`,
//! releases idle pinned snapshots, and looks at the disk. The expirer removes entries that are due, parts that belong to no
//! object and the keys of lost sessions, and forgets sessions and old tombstones.
//!
//! Neither writes to the database: all removals go through the committer's queue, in batches of a bounded size, so that
//! many at once do not hold up writers.

mod expirer;
mod housekeeper;
mod lost_sessions;
mod orphans;
mod timer;
mod tombstones;

use std::collections::HashMap;
use std::time::Duration;

use storage_protocol::{Key, Result, Revision};

pub(crate) use self::expirer::run_expirer;
pub(crate) use self::housekeeper::{run_housekeeper, write_synced_file};
#[cfg(test)]
pub(crate) use self::lost_sessions::expire_keys;
pub(crate) use self::lost_sessions::{end_old_sessions, end_sessions};
pub(crate) use self::timer::ExpiryTimer;
pub(crate) use self::tombstones::forget_of;
use crate::engine::rocks::commit::{Task, submit};
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::KeyspaceId;
use crate::engine::rocks::{EngineShared, closed};

/// How often `SYNCED` is written, pinned snapshots and the disk are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// Entries in one commit of the expirer.
const BATCH: usize = 512;

/// After this many batches the expirer goes on with its other tasks.
const BATCHES_PER_TICK: usize = 32;

/// An entry to be removed, unless it has another revision by then.
type ExpiredKey = (KeyspaceId, Key, Revision);

/// The first key after this one.
pub(crate) fn behind(row: &[u8]) -> Vec<u8> {
    [row, &[0]].concat()
}

/// One commit for each keyspace. Waits for them: blocks.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room.
fn remove(shared: &EngineShared, label: &'static str, entries: Vec<ExpiredKey>) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    shared.disk.check(Need::Removal, 0)?;
    let mut of: HashMap<KeyspaceId, Vec<(Key, Revision)>> = HashMap::new();
    for (keyspace, key, revision) in entries {
        of.entry(keyspace).or_default().push((key, revision));
    }
    let mut answers = Vec::new();
    for keyspace in shared.store.keyspaces() {
        let Some(entries) = keyspace.id().and_then(|id| of.remove(&id)) else {
            continue;
        };
        let bytes = entries.iter().map(|(key, _)| key.len() + 64).sum();
        let session = shared.server_session(&keyspace);
        let task = Task::Remove { label, entries };
        answers.push(submit(&shared.queue, &session, 0, task, bytes)?);
    }
    wait_for(answers)
}

pub(crate) fn wait_for(
    answers: Vec<tokio::sync::oneshot::Receiver<Result<storage_protocol::Position>>>,
) -> Result<()> {
    for answer in answers {
        answer.blocking_recv().map_err(|_| closed())??;
    }
    Ok(())
}
