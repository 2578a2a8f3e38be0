//! Lost sessions (without a socket): their keys are removed after the grace, and the sessions are forgotten later.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use storage_protocol::{Result, Revision, SessionId, UnixMillis};

use super::expirer::expire_if_due;
use super::{BATCH, BATCHES_PER_TICK, ExpiredKey, behind, remove, wait_for};
use crate::engine::rocks::commit::{Task, submit};
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::{LifetimeRow, Table};
use crate::engine::rocks::sessions::{SessionState, past, record_keys};
use crate::engine::rocks::store::internal;
use crate::engine::rocks::{EngineShared, layout};

/// The label of the commits that remove keys of sessions.
const SESSION_ENDED: &str = "session ended";

/// Lost sessions whose keys are looked at in one tick.
const SESSIONS_PER_TICK: usize = 1024;

/// Lost sessions that are forgotten in one group; each has up to 1,024 records.
const SESSIONS_PER_BATCH: usize = 64;

/// Removes the keys of sessions whose rows begin with `prefix`, in commits labelled `session ended`: of each session
/// those up to the revision that `up_to` gives, or none.
pub(crate) fn end_sessions(
    shared: &EngineShared,
    prefix: &[u8],
    up_to: impl Fn(SessionId) -> Option<Revision>,
) -> Result<()> {
    let mut start = prefix.to_vec();
    loop {
        let (found, _) = session_keys(shared, prefix, &mut start, &up_to)?;
        if found.is_empty() {
            return Ok(());
        }
        remove(shared, SESSION_ENDED, found)?;
    }
}

/// Removes the keys of sessions that no longer existed at the start, and finishes an expiry of session keys that the
/// end of the server cut short. Does so once.
///
/// # Errors
/// As a commit's; `StorageFull` if not even a removal has room. It is repeated in the next round then.
pub(crate) fn end_old_sessions(shared: &EngineShared) -> Result<()> {
    if shared.old_sessions_ended.load(Ordering::Relaxed) {
        return Ok(());
    }
    let prefix = LifetimeRow::sessions_prefix();
    end_sessions(shared, &prefix, |id| shared.sessions.to_remove(id))?;
    shared.old_sessions_ended.store(true, Ordering::Relaxed);
    Ok(())
}

/// A batch of the keys that [`end_sessions`] removes, from `start` on, which then moves behind them; and whether there
/// may be more.
fn session_keys(
    shared: &EngineShared,
    prefix: &[u8],
    start: &mut Vec<u8>,
    up_to: impl Fn(SessionId) -> Option<Revision>,
) -> Result<(Vec<ExpiredKey>, bool)> {
    let mut found = Vec::new();
    let mut rows = shared.store.iterate_prefix(Table::Lifetimes, prefix, start);
    while let Some((row, revision)) = rows.item()
        && found.len() < BATCH
    {
        *start = behind(row);
        if let LifetimeRow::Session(session, keyspace, key) = LifetimeRow::parse(row)? {
            let Some(last) = up_to(session) else {
                *start = past(&LifetimeRow::session_prefix(session));
                rows.seek(&*start);
                continue;
            };
            let revision = layout::decode_revision(revision)?;
            if revision <= last {
                found.push((keyspace, key, revision));
            }
        }
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of session keys", &error))?;
    Ok((found, rows.valid()))
}

/// Removes the keys of sessions that are without a socket for too long, and forgets those that are kept no longer.
pub(super) fn look_after_sessions(shared: &EngineShared) -> Result<()> {
    let options = &shared.store.options;
    let before = |age: Duration| {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        UnixMillis(shared.store.now().0.saturating_sub(age))
    };
    let sessions = &shared.sessions;
    expire_keys(
        shared,
        &sessions.with_keys(before(options.session_grace), SESSIONS_PER_TICK),
    )?;
    for _ in 0..BATCHES_PER_TICK {
        let (kept, max) = (before(options.session_kept), options.sessions_kept_max);
        let grace = before(options.session_grace);
        let overdue = sessions.overdue(kept, max, grace, SESSIONS_PER_BATCH);
        if overdue.is_empty() {
            break;
        }
        // Their remaining keys first: once a session is forgotten, nothing shows any more that its keys are to be
        // removed.
        expire_keys(shared, &overdue)?;
        let mut answers = Vec::new();
        for (since, session) in &overdue {
            let records = record_keys(&shared.store, session.id)?;
            let bytes = records.iter().map(|key| key.len() + 64).sum::<usize>() + 64;
            let task = Task::ForgetSession {
                since: *since,
                records,
            };
            answers.push(submit(&shared.queue, session, 0, task, bytes)?);
        }
        wait_for(answers)?;
        expire_if_due(shared)?;
    }
    Ok(())
}

/// Removes the keys of these lost sessions, and what earlier calls left over.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room.
pub(crate) fn expire_keys(
    shared: &EngineShared,
    lost: &[(UnixMillis, Arc<SessionState>)],
) -> Result<()> {
    // Checked first: each expiry of session keys writes a row, and without room for the removal would write it again in
    // each round.
    shared.disk.check(Need::Removal, 0)?;
    let mut answers = Vec::new();
    for (since, session) in lost {
        // Begun already: its keys are not removed yet, and it cannot have newer ones.
        if shared.sessions.is_expiring(*since, session.id) {
            continue;
        }
        let prefix = LifetimeRow::session_prefix(session.id);
        let rows = shared
            .store
            .iterate_prefix(Table::Lifetimes, &prefix, &prefix);
        rows.status()
            .map_err(|error| internal("read of session keys", &error))?;
        if rows.valid() {
            let task = Task::ExpireKeys { since: *since };
            answers.push(submit(&shared.queue, session, 0, task, 64)?);
        }
    }
    // Waited for all together: one by one, each would be a synced write of its own.
    wait_for(answers)?;
    remove_expired_keys(shared)?;
    for (since, session) in lost {
        shared.sessions.without_keys(*since, session.id);
    }
    Ok(())
}

/// Removes the session keys whose expiry has begun. One commit removes the keys of many sessions; those of one session
/// are split only if they are more than a batch. Entries that are due are removed in between.
fn remove_expired_keys(shared: &EngineShared) -> Result<()> {
    let mut batch = Vec::new();
    let mut whole = Vec::new();
    for session in shared.sessions.expiring() {
        // If the session was resumed meanwhile, what it put since then is newer, and stays.
        let last = session.expired_up_to();
        let prefix = LifetimeRow::session_prefix(session.id);
        let mut start = prefix.clone();
        let mut more = true;
        while more {
            let (found, left) = session_keys(shared, &prefix, &mut start, |_| Some(last))?;
            more = left;
            if batch.len() + found.len() > BATCH {
                remove_batch(shared, &mut batch, &mut whole)?;
            }
            batch.extend(found);
        }
        whole.push((session, last));
    }
    remove_batch(shared, &mut batch, &mut whole)
}

/// Removes these keys; with them no keys are left of the sessions in `whole`.
fn remove_batch(
    shared: &EngineShared,
    batch: &mut Vec<ExpiredKey>,
    whole: &mut Vec<(Arc<SessionState>, Revision)>,
) -> Result<()> {
    remove(shared, SESSION_ENDED, std::mem::take(batch))?;
    for (session, last) in whole.drain(..) {
        shared.sessions.keys_removed(&session, last);
    }
    expire_if_due(shared)
}
