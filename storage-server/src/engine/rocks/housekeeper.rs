//! What is done beside the requests, on two threads: the housekeeper writes the mark and looks at leases and the disk each
//! second, whatever the other does; the expirer removes what is due, what lost sessions held, and forgets old tombstones.
//!
//! They write to the database themselves: expiries and forgotten tombstones go through the committer's queue like
//! everything else, in bounded bites, so that many at once do not hold up writers.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::{Key, Result, Revision, SessionId, StorageError, UnixMillis, planted};

use super::committer::{Task, submit};
use super::layout::{self, Head, KeyspaceId, LifetimeRow, Stored, Table, entry_key};
use super::mark::{Mark, boot_id};
use super::sessions::{SessionState, record_keys};
use super::store::KeyspaceState;
use super::{Durability, Shared};

/// How often the mark is written, leases and the disk are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// How often old tombstones are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// Entries in one commit of the expirer.
const BITE: usize = 512;

/// Such commits before it looks at what else there is to do.
const BITES_PER_VISIT: usize = 32;

/// Lost sessions whose keys are looked at in one visit.
const SESSIONS_PER_VISIT: usize = 1024;

/// Lost sessions that are forgotten in one group; each has up to 1,024 records.
const SESSIONS_PER_BITE: usize = 64;

/// When the next entry is due; wakes the housekeeper.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    state: Mutex<AlarmState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct AlarmState {
    /// Nothing is due before this; `None`: unknown, look.
    due: Option<UnixMillis>,
    stopped: bool,
}

impl Alarm {
    /// Something is due at this time.
    pub(super) fn set(&self, due: UnixMillis) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.due.is_some_and(|known| due < known) {
            state.due = Some(due);
            self.changed.notify_all();
        }
    }

    /// Waits for a round; false when stopped.
    fn wait_for_round(&self) -> bool {
        let deadline = Instant::now() + ROUND;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.stopped || left.is_zero() {
                return !state.stopped;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    pub(super) fn stop(&self) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stopped = true;
        self.changed.notify_all();
    }

    /// Waits until something is due or a round is over; false when stopped.
    fn wait(&self, now: impl Fn() -> UnixMillis) -> bool {
        let deadline = Instant::now() + ROUND;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let until_due = match state.due {
                Some(due) => Duration::from_millis(due.0.saturating_sub(now().0)),
                None => Duration::ZERO,
            };
            if state.stopped || left.is_zero() || until_due.is_zero() {
                return !state.stopped;
            }
            let wait = left.min(until_due);
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether something may be due; what comes next is then found by looking.
    fn is_due(&self, now: UnixMillis) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .due
            .is_none_or(|due| due <= now)
    }

    /// Before the rows are looked at: what commits meanwhile lowers it again.
    fn expect(&self, due: UnixMillis) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .due = Some(due);
    }
}

/// The housekeeper: runs until the alarm is stopped.
pub(super) fn run(shared: &Shared) {
    while shared.alarm.wait_for_round() {
        write_mark(shared, false);
        shared.leases.expire(Instant::now());
        shared.disk.look(&shared.store.options);
    }
}

/// The expirer: runs until the alarm is stopped.
pub(super) fn run_expiry(shared: &Shared) {
    let mut sweep = Instant::now();
    while shared.alarm.wait(|| shared.store.now()) {
        if shared.alarm.is_due(shared.store.now()) {
            report("expire entries", expire(shared));
        }
        report("look after lost sessions", look_after_sessions(shared));
        if sweep.elapsed() >= SWEEP {
            match forget_tombstones(shared) {
                // There is more: at the next round, so that expiry has its turn between.
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
        // A poisoned, full or closing store is told by whoever found it so.
        Ok(()) | Err(StorageError::ReadOnly { .. } | StorageError::Closed { .. }) => {}
        Err(error) => tracing::warn!(%error, "cannot {action} now"),
    }
}

/// Writes the mark: in `os` durability after a sync of the log.
pub(super) fn write_mark(shared: &Shared, clean: bool) {
    let store = &shared.store;
    let revision = store.revision();
    if store.options.durability == Durability::Os
        && !planted("mark-before-sync")
        && let Err(error) = store.db.flush_wal(true)
    {
        store.poison(&format!("sync of the log: {error}"));
    }
    if store.check_poison().is_err() {
        return;
    }
    let durability = store.options.durability;
    let mark = Mark {
        revision,
        boot: boot_id(),
        durability,
        clean,
        time: store.now(),
    };
    if let Err(error) = mark.write(&store.options.data) {
        tracing::error!(%error, "cannot write the mark of what is synced");
    }
}

/// Removes what is due, as commits labelled `expired`.
fn expire(shared: &Shared) -> Result<()> {
    let store = &shared.store;
    let now = store.now();
    // Until the look is over nothing is expected for a round (should it fail, that is when it is repeated); commits
    // meanwhile set an earlier time.
    shared.alarm.expect(now.after(ROUND));
    let (mut start, end) = LifetimeRow::due_range(UnixMillis(u64::MAX - 1));
    for _ in 0..BITES_PER_VISIT {
        let mut due: Vec<(KeyspaceId, Key, Revision)> = Vec::new();
        let mut next = None;
        let mut rows = store.iterate(Table::Lifetimes, &start, Some(&end));
        while let Some((row, revision)) = rows.item() {
            let LifetimeRow::Due(time, keyspace, key) = LifetimeRow::parse(row)? else {
                break;
            };
            if time > now || due.len() >= BITE {
                next = Some(time);
                break;
            }
            due.push((keyspace, key, layout::decode_revision(revision)?));
            start = behind(row);
            rows.next();
        }
        rows.status()
            .map_err(|error| super::store::internal("read of expiries", &error))?;
        drop(rows);
        if !due.is_empty() {
            remove(shared, "expired", due)?;
        }
        match next {
            Some(time) if time <= now => {}
            Some(time) => {
                shared.alarm.set(time);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    shared.alarm.set(now);
    Ok(())
}

/// The first key behind this one.
fn behind(row: &[u8]) -> Vec<u8> {
    [row, &[0]].concat()
}

/// Removes the keys of sessions whose rows begin with `prefix`, as commits labelled `session ended`: of each session
/// those up to the revision that `up_to` gives, or none. True while there is more, after `bites`.
pub(super) fn end_sessions(
    shared: &Shared,
    prefix: &[u8],
    bites: usize,
    up_to: impl Fn(SessionId) -> Option<Revision>,
) -> Result<bool> {
    let mut start = prefix.to_vec();
    for _ in 0..bites {
        let mut found: Vec<(KeyspaceId, Key, Revision)> = Vec::new();
        let mut rows = shared
            .store
            .iterate_prefix(Table::Lifetimes, prefix, &start);
        while let Some((row, revision)) = rows.item()
            && found.len() < BITE
        {
            start = behind(row);
            if let LifetimeRow::Session(session, keyspace, key) = LifetimeRow::parse(row)? {
                let Some(last) = up_to(session) else {
                    start = super::sessions::past(&LifetimeRow::session_prefix(session));
                    rows.seek(&start);
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
            .map_err(|error| super::store::internal("read of session keys", &error))?;
        drop(rows);
        if found.is_empty() {
            return Ok(false);
        }
        remove(shared, "session ended", found)?;
    }
    Ok(true)
}

/// Removes the keys of sessions that are without a socket for too long, and forgets those that are kept no longer.
fn look_after_sessions(shared: &Shared) -> Result<()> {
    let options = &shared.store.options;
    let before = |age: Duration| {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        UnixMillis(shared.store.now().0.saturating_sub(age))
    };
    let sessions = &shared.sessions;
    for (since, session) in sessions.with_keys(before(options.session_grace), SESSIONS_PER_VISIT) {
        lapse(shared, since, &session)?;
    }
    for _ in 0..BITES_PER_VISIT {
        let (kept, max) = (before(options.session_kept), options.sessions_kept_max);
        let grace = before(options.session_grace);
        let overdue = sessions.overdue(kept, max, grace, SESSIONS_PER_BITE);
        let mut answers = Vec::new();
        for (since, session) in &overdue {
            // What is left of its keys goes first, or nothing would know that they are to go.
            if !lapse(shared, *since, session)? {
                continue;
            }
            let records = record_keys(&shared.store, session.id)?;
            let bytes = records.iter().map(|key| key.len() + 64).sum::<usize>() + 64;
            let task = Task::ForgetSession {
                since: *since,
                records,
            };
            answers.push(submit(&shared.queue, session, 0, task, bytes)?);
        }
        if answers.is_empty() {
            break;
        }
        wait_for(answers)?;
    }
    Ok(())
}

/// Removes the keys of a lost session, for a visit; true when there are none left.
pub(super) fn lapse(
    shared: &Shared,
    since: UnixMillis,
    session: &Arc<SessionState>,
) -> Result<bool> {
    let prefix = LifetimeRow::session_prefix(session.id);
    let has_keys = {
        let rows = shared
            .store
            .iterate_prefix(Table::Lifetimes, &prefix, &prefix);
        rows.status()
            .map_err(|error| super::store::internal("read of session keys", &error))?;
        rows.valid()
    };
    if has_keys {
        wait_for(vec![submit(
            &shared.queue,
            session,
            0,
            Task::Lapse { since },
            64,
        )?])?;
        // A session that was resumed meanwhile keeps what it put since then: it is newer.
        let last = session.lapse();
        if end_sessions(shared, &prefix, BITES_PER_VISIT, |_| Some(last))? {
            return Ok(false);
        }
    }
    shared.sessions.without_keys(since, session.id);
    Ok(true)
}

/// One commit for each keyspace. Waits for them: blocks.
fn remove(
    shared: &Shared,
    label: &'static str,
    entries: Vec<(KeyspaceId, Key, Revision)>,
) -> Result<()> {
    let mut answers = Vec::new();
    for keyspace in shared.store.keyspaces() {
        let mine = entries
            .iter()
            .filter(|(id, _, _)| keyspace.id() == Some(*id));
        let entries: Vec<_> = mine
            .map(|(_, key, revision)| (key.clone(), *revision))
            .collect();
        if !entries.is_empty() {
            let bytes = entries.iter().map(|(key, _)| key.len() + 64).sum();
            let session = shared.server_session(&keyspace);
            answers.push(submit(
                &shared.queue,
                &session,
                0,
                Task::Remove { label, entries },
                bytes,
            )?);
        }
    }
    wait_for(answers)
}

fn wait_for(
    answers: Vec<tokio::sync::oneshot::Receiver<Result<storage_protocol::Position>>>,
) -> Result<()> {
    for answer in answers {
        answer.blocking_recv().map_err(|_| super::closed())??;
    }
    Ok(())
}

/// True while there is more.
fn forget_tombstones(shared: &Shared) -> Result<bool> {
    let mut more = false;
    for keyspace in shared.store.keyspaces() {
        more |= forget_of(shared, &keyspace)?;
    }
    Ok(more)
}

/// Forgets the tombstones of a keyspace that are too old or too many, oldest first, for a visit; true while there is more.
pub(super) fn forget_of(shared: &Shared, keyspace: &Arc<KeyspaceState>) -> Result<bool> {
    let store = &shared.store;
    let Some(id) = keyspace.id() else {
        return Ok(false);
    };
    let prefix = LifetimeRow::tombstone_prefix(id);
    let mut surplus = count(shared, &prefix)?.saturating_sub(store.options.tombstones_max);
    let age = u64::try_from(store.options.tombstone_age.as_millis()).unwrap_or(u64::MAX);
    let oldest = store.now().0.saturating_sub(age);
    let mut start = prefix.clone();
    for _ in 0..BITES_PER_VISIT {
        let mut bite = Vec::new();
        let mut rows = store.iterate_prefix(Table::Lifetimes, &prefix, &start);
        while let Some(row) = rows.key()
            && bite.len() < BITE
        {
            let LifetimeRow::Tombstone(_, revision, key) = LifetimeRow::parse(row)? else {
                break;
            };
            if surplus == 0 && !is_older(shared, id, &key, oldest)? {
                break;
            }
            surplus = surplus.saturating_sub(1);
            bite.push((key, revision));
            start = behind(row);
            rows.next();
        }
        rows.status()
            .map_err(|error| super::store::internal("read of tombstones", &error))?;
        drop(rows);
        let Some((_, horizon)) = bite.last().cloned() else {
            return Ok(false);
        };
        let bytes = bite.iter().map(|(key, _)| key.len() + 64).sum();
        let session = shared.server_session(keyspace);
        let task = Task::Forget {
            tombstones: bite,
            horizon,
        };
        wait_for(vec![submit(&shared.queue, &session, 0, task, bytes)?])?;
    }
    Ok(true)
}

fn count(shared: &Shared, prefix: &[u8]) -> Result<u64> {
    let mut rows = shared
        .store
        .iterate_prefix(Table::Lifetimes, prefix, prefix);
    let mut count = 0;
    while rows.valid() {
        count += 1;
        rows.next();
    }
    rows.status()
        .map_err(|error| super::store::internal("count of tombstones", &error))?;
    Ok(count)
}

/// Whether a tombstone was made before this time (or is none any more: its row is stale, and goes too).
fn is_older(shared: &Shared, id: KeyspaceId, key: &[u8], time: u64) -> Result<bool> {
    let Some(row) = shared.store.row(Table::Entries, &entry_key(id, key))? else {
        return Ok(true);
    };
    Ok(match layout::parse_entry_value(&row)?.0 {
        Head {
            stored: Stored::Tombstone(made),
            ..
        } => made.0 < time,
        _ => true,
    })
}
