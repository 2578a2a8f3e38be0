//! The expirer's thread. It removes entries that are due, and between batches of those corrects lifetimes, removes the
//! keys of lost sessions, forgets sessions, and forgets old tombstones.

use std::time::{Duration, Instant};

use storage_protocol::{Result, StorageError, UnixMillis};

use super::lost_sessions::{end_old_sessions, look_after_sessions};
use super::orphans::{is_intent, sweep};
use super::tombstones::forget_tombstones;
use super::{BATCH, BATCHES_PER_TICK, ExpiredKey, ROUND, behind, remove};
use crate::engine::rocks::layout::{LifetimeRow, Table};
use crate::engine::rocks::store::internal;
use crate::engine::rocks::{EngineShared, clock, layout};

/// How often old tombstones are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// The expirer: runs until the expiry timer is stopped.
pub(crate) fn run_expirer(shared: &EngineShared) {
    let mut sweep = Instant::now();
    while shared.expiry_timer.wait(|| shared.store.now()) {
        report("expire entries", expire_if_due(shared));
        report("correct lifetimes", clock::correct(shared));
        report("end old sessions", end_old_sessions(shared));
        report("look after lost sessions", look_after_sessions(shared));
        if sweep.elapsed() >= SWEEP {
            match forget_tombstones(shared) {
                // There is more: it is forgotten in the next round, so that entries expire in between.
                Ok(true) => {}
                result => {
                    sweep = Instant::now();
                    report("forget tombstones", result.map(|_| ()));
                }
            }
        }
    }
}

fn report(action: &str, result: Result<()>) {
    match result {
        // A poisoned, full or closing store is logged where that is first noticed.
        Ok(())
        | Err(
            StorageError::ReadOnly { .. }
            | StorageError::StorageFull { .. }
            | StorageError::Closed { .. },
        ) => {}
        Err(error) => tracing::warn!(%error, "cannot {action} now"),
    }
}

pub(super) fn expire_if_due(shared: &EngineShared) -> Result<()> {
    if shared.expiry_timer.is_due(shared.store.now()) {
        expire(shared)?;
    }
    Ok(())
}

/// The label of the commits that remove entries that are due.
const EXPIRED: &str = "expired";

/// Removes the entries that are due, in commits labelled `expired`; of an intent the parts first.
fn expire(shared: &EngineShared) -> Result<()> {
    let store = &shared.store;
    let now = store.now();
    // Ordering: before the rows are read. Until that is done the timer is set to a round from now, when it is repeated
    // should it fail; a commit meanwhile sets an earlier time.
    shared.expiry_timer.expect(now.after(ROUND));
    let (mut start, end) = LifetimeRow::due_range(UnixMillis(u64::MAX - 1));
    for _ in 0..BATCHES_PER_TICK {
        let mut due: Vec<ExpiredKey> = Vec::new();
        let mut next = None;
        let mut rows = store.iterate(Table::Lifetimes, &start, Some(&end));
        while let Some((row, revision)) = rows.item() {
            let LifetimeRow::Due(time, keyspace, key) = LifetimeRow::parse(row)? else {
                break;
            };
            if time > now || due.len() >= BATCH {
                next = Some(time);
                break;
            }
            due.push((keyspace, key, layout::decode_revision(revision)?));
            start = behind(row);
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("read of expiries", &error))?;
        drop(rows);
        let (intents, due) = due.into_iter().partition(|(_, key, _)| is_intent(key));
        remove(shared, EXPIRED, due)?;
        sweep(shared, EXPIRED, intents)?;
        match next {
            Some(time) if time <= now => {}
            Some(time) => {
                shared.expiry_timer.set(time);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    shared.expiry_timer.set(now);
    Ok(())
}
