//! Lifetimes that a wrong clock gave: found by the clock's jumps, and corrected.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use storage_protocol::{Key, Result, Revision, UnixMillis};

use super::Stretch;
use super::Wrong;
use crate::engine::rocks::commit::{Group, Task, submit};
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::housekeeping::{behind, wait_for};
use crate::engine::rocks::layout::{KeyspaceId, LifetimeRow, Table};
use crate::engine::rocks::store::{KeyspaceState, Store, internal};
use crate::engine::rocks::{EngineShared, layout};

/// The label of the commits that correct lifetimes.
const CORRECTED: &str = "clock corrected";

/// Entries, and bytes of them, in one commit that corrects lifetimes.
const BATCH: usize = 512;

const BATCH_BYTES: usize = 1 << 20;

/// Reads the stretches of a store. Before its committer runs.
///
/// # Errors
/// A damaged row, or the database's.
pub(crate) fn load(store: &Store) -> Result<()> {
    let prefix = layout::STRETCH_PREFIX;
    let mut rows = store.iterate_prefix(Table::Meta, prefix, prefix);
    while let Some((key, value)) = rows.item() {
        let stretch = layout::decode_stretch(key, value)?;
        store.clock.state().stretches.push(stretch);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of the clock's jumps", &error))
}

/// Lets the committer look at the clock, if there is something to conclude, or at what it has left to do. For the
/// housekeeper.
pub(crate) fn look(shared: &EngineShared) {
    let store = &shared.store;
    let has_left = shared.replaced_left.load(Ordering::Relaxed);
    if (has_left || store.clock.has_news())
        && store.check_poison().is_ok()
        && shared.disk.check(Need::Any, 0).is_ok()
        && let Some(keyspace) = store.keyspaces().into_iter().next()
    {
        let session = shared.server_session(&keyspace);
        // A queue that is closed is that of a store which is; the next start sees the same.
        let _ = submit(&shared.queue, &session, 0, Task::Look, 64);
    }
}

impl Group<'_> {
    /// Gives a jump of the clock its row, before the commits that come after it; one back has its effects.
    pub(crate) fn follow_clock(&mut self) {
        if self.store.check_poison().is_err() {
            return;
        }
        let above = Revision(self.base + self.sequence_numbers);
        let Some((stretch, oldest)) = self.store.clock.take_jump(above) else {
            return;
        };
        let jump = stretch.jump;
        self.put(
            Table::Meta,
            &layout::stretch_key(above),
            &layout::encode_stretch(&stretch),
        );
        if let Some(oldest) = oldest {
            self.delete(Table::Meta, &layout::stretch_key(oldest.above));
        }
        if jump.is_back() {
            tracing::warn!(
                before_ms = jump.before.0,
                after_ms = jump.after.0,
                "the machine's clock stays behind the store's: times come back, and lifetimes given by the wrong clock are corrected"
            );
            // Whoever was lost in what is the future now.
            let sessions = &self.shared.sessions;
            sessions.count_lost_from(UnixMillis(jump.after.0.saturating_add(1)), jump.after);
            self.shared.expiry_timer.set(UnixMillis::ZERO);
        }
        self.now = self.store.now();
    }

    /// These stretches are corrected.
    pub(crate) fn forget_stretches(&mut self, above: &[Revision]) {
        if self.store.check_poison().is_err() {
            return;
        }
        for revision in above {
            self.delete(Table::Meta, &layout::stretch_key(*revision));
            self.store.clock.forget(*revision);
        }
    }
}

/// An entry whose lifetime is to be corrected, if it still has this revision.
pub(crate) type Late = (Key, Revision, UnixMillis);

/// Corrects the lifetimes that a wrong clock gave, if one did. Blocks.
///
/// # Errors
/// The database's, or as a commit's; `StorageFull` at the disk's reserve. It is repeated at the next round then.
pub(crate) fn correct(shared: &EngineShared) -> Result<()> {
    let store = &shared.store;
    let found = store.clock.state().wrong();
    let Some((back, wrong)) = found else {
        return Ok(());
    };
    if wrong.is_empty() {
        return Ok(());
    }
    let mut corrected = 0;
    let (mut start, end) = LifetimeRow::due_range(UnixMillis(u64::MAX - 1));
    loop {
        // Each entry is written anew, with its value. A jump back may be followed at a full disk: it is seen by any
        // work.
        shared.disk.check(Need::Any, 0)?;
        let batch = late_entries(store, &back, &wrong, &mut start, &end)?;
        let count: usize = batch.iter().map(|(_, late)| late.len()).sum();
        if count == 0 {
            break;
        }
        corrected += count;
        let mut answers = Vec::new();
        for (keyspace, late) in batch {
            let session = shared.server_session(&keyspace);
            let bytes = late.iter().map(|(key, ..)| key.len() + 64).sum();
            let task = Task::Correct {
                label: CORRECTED,
                entries: late,
            };
            answers.push(submit(&shared.queue, &session, 0, task, bytes)?);
        }
        wait_for(answers)?;
    }
    let above = wrong.iter().map(|(stretch, ..)| stretch.above).collect();
    let Some(keyspace) = store.keyspaces().into_iter().next() else {
        return Ok(());
    };
    let session = shared.server_session(&keyspace);
    let task = Task::ForgetStretches { above };
    wait_for(vec![submit(&shared.queue, &session, 0, task, 64)?])?;
    tracing::info!(
        entries = corrected,
        "lifetimes that a wrong clock gave are corrected"
    );
    Ok(())
}

type LateOf = Vec<(Arc<KeyspaceState>, Vec<Late>)>;

/// A batch of the entries that are due too late, from `start` on, which is moved behind them.
fn late_entries(
    store: &Store,
    back: &Stretch,
    wrong: &[Wrong],
    start: &mut Vec<u8>,
    end: &[u8],
) -> Result<LateOf> {
    let (mut count, mut bytes) = (0, 0);
    let mut found: Vec<(KeyspaceId, Vec<Late>)> = Vec::new();
    let mut rows = store.iterate(Table::Lifetimes, start, Some(end));
    while let Some((row, value)) = rows.item()
        && count < BATCH
        && bytes < BATCH_BYTES
    {
        let LifetimeRow::Due(due, keyspace, key) = LifetimeRow::parse(row)? else {
            break;
        };
        let revision = layout::decode_revision(value)?;
        let late = wrong.iter().find(|(stretch, last, _)| {
            revision > stretch.above && revision <= *last && due > back.jump.after
        });
        if let Some((_, _, late)) = late {
            let late = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
            let due = UnixMillis(due.0.saturating_sub(late).max(back.jump.after.0));
            let entry = store.row(Table::Entries, &layout::entry_key(keyspace, &key))?;
            count += 1;
            bytes += entry.map_or(0, |entry| entry.len());
            match found.iter_mut().find(|(id, _)| *id == keyspace) {
                Some((_, entries)) => entries.push((key, revision, due)),
                None => found.push((keyspace, vec![(key, revision, due)])),
            }
        }
        *start = behind(row);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of lifetimes", &error))?;
    let keyspaces = store.keyspaces();
    let named = found.into_iter().filter_map(|(id, entries)| {
        let keyspace = keyspaces.iter().find(|keyspace| keyspace.id() == Some(id));
        Some((keyspace?.clone(), entries))
    });
    Ok(named.collect())
}
