//! What is done beside the requests, on two threads: the housekeeper writes the mark and looks at leases and the disk each
//! second, whatever the other does; the expirer removes what is due, what lost sessions held, and forgets old tombstones.
//!
//! Neither writes to the database: expiries, lapses and forgotten tombstones go through the committer's queue like
//! everything else, in bounded bites, so that many at once do not hold up writers.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage_protocol::{Key, Result, Revision, SessionId, StorageError, UnixMillis, planted};

use super::committer::{Task, submit};
use super::disk::Need;
use super::layout::{self, Head, KeyspaceId, LifetimeRow, Stored, Table, entry_key};
use super::mark::{Mark, boot_id};
use super::sessions::{SessionState, record_keys};
use super::store::{KeyspaceState, Store};
use super::{Durability, Shared};

/// How often the mark is written, leases and the disk are looked at.
const ROUND: Duration = Duration::from_secs(1);

/// How often the log in use is made droppable at a full disk, and from which size on.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
const FLUSH_BYTES_MIN: u64 = 4 << 20;

/// How many rounds there are between two looks at how far the log reaches back, which reads its folder.
const LOG_ROUNDS: u32 = 10;

/// How often old tombstones are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// Entries in one commit of the expirer.
const BITE: usize = 512;

/// Such commits before it looks at what else there is to do.
const BITES_PER_VISIT: usize = 32;

/// The label of the commits that remove keys of sessions.
const SESSION_ENDED: &str = "session ended";

/// Lost sessions whose keys are looked at in one visit.
const SESSIONS_PER_VISIT: usize = 1024;

/// Lost sessions that are forgotten in one group; each has up to 1,024 records.
const SESSIONS_PER_BITE: usize = 64;

/// Tombstones that are counted before it looks at what else there is to do.
const COUNTED_AT_ONCE: u64 = 64 * 1024;

/// An entry that is to go, unless it has another revision by then.
type Doomed = (KeyspaceId, Key, Revision);

/// When the next entry is due; wakes the expirer.
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
    let (mut rounds, mut flushed) = (0, None);
    loop {
        shared.metrics.look_at_memory(&shared.store);
        if rounds % LOG_ROUNDS == 0 {
            shared.metrics.look_at_log(&shared.store);
        }
        rounds = rounds.wrapping_add(1);
        if !shared.alarm.wait_for_round() {
            return;
        }
        write_mark(shared, false);
        shared.leases.expire(Instant::now());
        shared.disk.look();
        make_room(shared, &mut flushed);
        super::clock::look(shared);
    }
}

/// At the reserve what is left of the log is in use: it belongs to what is only in memory. When that is in tables, the
/// files are archived, and can be dropped. Not again before they could be.
fn make_room(shared: &Shared, flushed: &mut Option<Instant>) {
    let store = &shared.store;
    let is_full = shared.disk.check(Need::Any, 0).is_err();
    if !is_full || flushed.is_some_and(|at| at.elapsed() < FLUSH_INTERVAL) {
        return;
    }
    let in_use = super::disk::log_bytes_in_use(&store.options.data);
    // The tables need room first, about as much as the log has of them.
    if in_use < FLUSH_BYTES_MIN || shared.disk.available() < in_use.saturating_mul(2) {
        return;
    }
    *flushed = Some(Instant::now());
    tracing::info!(
        bytes = in_use,
        "what the log in use holds is written into tables, to make room"
    );
    let mut options = rocksdb::FlushOptions::default();
    options.set_wait(false);
    let tables = Table::ALL.map(|table| store.table(table));
    if let Err(error) = store.db.flush_cfs_opt(&tables, &options) {
        tracing::warn!(%error, "cannot make room");
    }
}

/// The expirer: runs until the alarm is stopped.
pub(super) fn run_expiry(shared: &Shared) {
    let mut sweep = Instant::now();
    while shared.alarm.wait(|| expiry_time(&shared.store)) {
        report("expire entries", expire_if_due(shared));
        report("correct lifetimes", super::clock::correct(shared));
        report("end old sessions", end_old_sessions(shared));
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
        Ok(())
        | Err(
            StorageError::ReadOnly { .. }
            | StorageError::StorageFull { .. }
            | StorageError::Closed { .. },
        ) => {}
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

/// What is due by this time goes.
fn expiry_time(store: &Store) -> UnixMillis {
    let now = store.now();
    if planted("expires-early") {
        return now.after(Duration::from_millis(300));
    }
    now
}

fn expire_if_due(shared: &Shared) -> Result<()> {
    if shared.alarm.is_due(expiry_time(&shared.store)) {
        expire(shared)?;
    }
    Ok(())
}

/// Removes what is due, as commits labelled `expired`.
fn expire(shared: &Shared) -> Result<()> {
    let store = &shared.store;
    let now = expiry_time(store);
    // Until the look is over nothing is expected for a round (should it fail, that is when it is repeated); commits
    // meanwhile set an earlier time.
    shared.alarm.expect(now.after(ROUND));
    let (mut start, end) = LifetimeRow::due_range(UnixMillis(u64::MAX - 1));
    for _ in 0..BITES_PER_VISIT {
        let mut due: Vec<Doomed> = Vec::new();
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
pub(super) fn behind(row: &[u8]) -> Vec<u8> {
    [row, &[0]].concat()
}

/// Removes the keys of sessions whose rows begin with `prefix`, as commits labelled `session ended`: of each session
/// those up to the revision that `up_to` gives, or none.
pub(super) fn end_sessions(
    shared: &Shared,
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

/// Removes keys of sessions that were no more at the start, and what a lapse left when the server ended; once.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room. It is repeated at the next round then.
pub(super) fn end_old_sessions(shared: &Shared) -> Result<()> {
    if shared.old_sessions_ended.load(Ordering::Relaxed) {
        return Ok(());
    }
    let prefix = LifetimeRow::sessions_prefix();
    end_sessions(shared, &prefix, |id| shared.sessions.to_remove(id))?;
    shared.old_sessions_ended.store(true, Ordering::Relaxed);
    Ok(())
}

/// A bite of the keys that [`end_sessions`] removes, from `start` on, which is moved behind them; and whether there may
/// be more.
fn session_keys(
    shared: &Shared,
    prefix: &[u8],
    start: &mut Vec<u8>,
    up_to: impl Fn(SessionId) -> Option<Revision>,
) -> Result<(Vec<Doomed>, bool)> {
    let mut found = Vec::new();
    let mut rows = shared.store.iterate_prefix(Table::Lifetimes, prefix, start);
    while let Some((row, revision)) = rows.item()
        && found.len() < BITE
    {
        *start = behind(row);
        if let LifetimeRow::Session(session, keyspace, key) = LifetimeRow::parse(row)? {
            let Some(last) = up_to(session) else {
                *start = super::sessions::past(&LifetimeRow::session_prefix(session));
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
        .map_err(|error| super::store::internal("read of session keys", &error))?;
    Ok((found, rows.valid()))
}

/// Removes the keys of sessions that are without a socket for too long, and forgets those that are kept no longer.
fn look_after_sessions(shared: &Shared) -> Result<()> {
    let options = &shared.store.options;
    let before = |age: Duration| {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        UnixMillis(shared.store.now().0.saturating_sub(age))
    };
    let sessions = &shared.sessions;
    let grace = match planted("grace-forgotten") {
        true => Duration::ZERO,
        false => options.session_grace,
    };
    lapse(
        shared,
        &sessions.with_keys(before(grace), SESSIONS_PER_VISIT),
    )?;
    for _ in 0..BITES_PER_VISIT {
        let (kept, max) = (before(options.session_kept), options.sessions_kept_max);
        let grace = before(options.session_grace);
        let overdue = sessions.overdue(kept, max, grace, SESSIONS_PER_BITE);
        if overdue.is_empty() {
            break;
        }
        // What is left of their keys goes first, or nothing would know that they are to go.
        lapse(shared, &overdue)?;
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

/// Removes the keys of lost sessions, and what is left of earlier ones.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room.
pub(super) fn lapse(shared: &Shared, lost: &[(UnixMillis, Arc<SessionState>)]) -> Result<()> {
    // First of all: each lapse is a row, and would be written again in each round.
    if !planted("lapse-without-room") {
        shared.disk.check(Need::Removal, 0)?;
    }
    let mut answers = Vec::new();
    for (since, session) in lost {
        // Its keys were not removed yet, and it has no newer ones.
        if shared.sessions.is_lapsing(*since, session.id) {
            continue;
        }
        let prefix = LifetimeRow::session_prefix(session.id);
        let rows = shared
            .store
            .iterate_prefix(Table::Lifetimes, &prefix, &prefix);
        rows.status()
            .map_err(|error| super::store::internal("read of session keys", &error))?;
        if rows.valid() {
            let task = Task::Lapse { since: *since };
            answers.push(submit(&shared.queue, session, 0, task, 64)?);
        }
    }
    // All at once: each would be a synced write of its own.
    wait_for(answers)?;
    remove_lapsed(shared)?;
    for (since, session) in lost {
        shared.sessions.without_keys(*since, session.id);
    }
    Ok(())
}

/// Removes what lapsed: the keys of many sessions by one commit, those of one session by several only if they are more
/// than a bite. Entries that are due have their turn in between.
fn remove_lapsed(shared: &Shared) -> Result<()> {
    let mut bite = Vec::new();
    let mut whole = Vec::new();
    for session in shared.sessions.lapsing() {
        // What a session that was resumed meanwhile put since then is newer, and stays.
        let last = session.lapse();
        let prefix = LifetimeRow::session_prefix(session.id);
        let mut start = prefix.clone();
        let mut more = true;
        while more {
            let (found, left) = session_keys(shared, &prefix, &mut start, |_| Some(last))?;
            more = left;
            if bite.len() + found.len() > BITE {
                remove_bite(shared, &mut bite, &mut whole)?;
            }
            bite.extend(found);
        }
        whole.push((session, last));
    }
    remove_bite(shared, &mut bite, &mut whole)
}

/// Removes these keys, which are the last ones of these sessions.
fn remove_bite(
    shared: &Shared,
    bite: &mut Vec<Doomed>,
    whole: &mut Vec<(Arc<SessionState>, Revision)>,
) -> Result<()> {
    remove(shared, SESSION_ENDED, std::mem::take(bite))?;
    for (session, last) in whole.drain(..) {
        shared.sessions.lapse_finished(&session, last);
    }
    expire_if_due(shared)
}

/// One commit for each keyspace. Waits for them: blocks.
///
/// # Errors
/// As a commit's; `StorageFull` where not even a removal has room.
fn remove(shared: &Shared, label: &'static str, entries: Vec<Doomed>) -> Result<()> {
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

pub(super) fn wait_for(
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
            if surplus == 0 && !is_older(shared, id, &key, revision, oldest)? {
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
        shared.disk.check(Need::Removal, 0)?;
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

/// How many rows begin with this. Expiry has its turn in between, and the cache is left to readers.
fn count(shared: &Shared, prefix: &[u8]) -> Result<u64> {
    let end = storage_protocol::KeyRange::prefix(prefix.to_vec()).end;
    let mut start = prefix.to_vec();
    let mut count = 0;
    loop {
        let mut rows = shared
            .store
            .iterate_beside_cache(Table::Lifetimes, &start, end.as_deref());
        let mut steps = 0;
        while let Some(row) = rows.key()
            && steps < COUNTED_AT_ONCE
        {
            steps += 1;
            if steps == COUNTED_AT_ONCE {
                start = behind(row);
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| super::store::internal("count of tombstones", &error))?;
        count += steps;
        if steps < COUNTED_AT_ONCE {
            return Ok(count);
        }
        drop(rows);
        expire_if_due(shared)?;
    }
}

/// Whether a tombstone was made before this time (or is none any more: its row is stale, and goes too).
fn is_older(
    shared: &Shared,
    id: KeyspaceId,
    key: &[u8],
    revision: Revision,
    time: u64,
) -> Result<bool> {
    let Some(row) = shared.store.row(Table::Entries, &entry_key(id, key))? else {
        return Ok(true);
    };
    Ok(match layout::parse_entry_value(&row)?.0 {
        Head {
            stored: Stored::Tombstone(made),
            ..
        } => shared.store.clock.no_later_than(revision, made).0 < time,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Batch, CommitOptions, Keyspace, Storage, StorageExt};

    use super::super::{EngineOptions, RocksEngine, TestClock};
    use super::*;
    use crate::engine::Engine;

    fn fresh() -> (tempfile::TempDir, Arc<RocksEngine>) {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions {
            disk_reserve_bytes: 0,
            ..EngineOptions::new(folder.path().join("data"))
        };
        (folder, RocksEngine::open(options).unwrap())
    }

    #[tokio::test]
    async fn tombstones_are_counted_beside_the_cache() {
        const COUNT: u64 = 70_000;
        let (_folder, engine) = fresh();
        let storage = engine.storage(&Keyspace::new("model").unwrap());
        let numbers: Vec<_> = (0..COUNT).collect();
        for numbers in numbers.chunks(10_000) {
            let put = |batch: Batch, n: &u64| batch.put(n.to_string(), "v");
            let remove = |batch: Batch, n: &u64| batch.remove(n.to_string());
            for batch in [
                numbers.iter().fold(Batch::new(), put),
                numbers.iter().fold(Batch::new(), remove),
            ] {
                let options = CommitOptions::default();
                storage.commit(batch, options).await.unwrap();
            }
        }
        let store = &engine.shared.store;
        let tables = Table::ALL.map(|table| store.table(table));
        let flush = rocksdb::FlushOptions::default();
        store.db.flush_cfs_opt(&tables, &flush).unwrap();
        let cached = || {
            let usage = store.db.property_int_value("rocksdb.block-cache-usage");
            usage.unwrap().unwrap()
        };
        let before = cached();
        let prefix = LifetimeRow::tombstone_prefix(KeyspaceId(1));
        assert_eq!(count(&engine.shared, &prefix).unwrap(), COUNT);
        let grown = cached().saturating_sub(before);
        assert!(grown < 200_000, "{grown} bytes for {COUNT} rows");
    }

    #[tokio::test]
    async fn tombstones_of_a_wrong_clock_are_as_old_as_its_way_back() {
        const HOUR: i64 = 3_600_000;
        const YEAR: i64 = 365 * 24 * HOUR;
        let folder = tempfile::tempdir().unwrap();
        let name = Keyspace::new("model").unwrap();
        let open = |offset_ms| {
            let clock = TestClock::held_for(Duration::ZERO);
            clock.set_offset(offset_ms);
            let engine = RocksEngine::open(EngineOptions {
                disk_reserve_bytes: 0,
                tombstone_age: Duration::from_secs(3600),
                clock: clock.clone(),
                ..EngineOptions::new(folder.path().join("data"))
            })
            .unwrap();
            (engine, clock)
        };
        let (engine, clock) = open(0);
        let storage = engine.storage(&name);
        let remove = async |key: &'static str| {
            storage.put(key.into(), "v".into()).await.unwrap();
            let batch = Batch::new().remove(key);
            let options = CommitOptions::default();
            storage.commit(batch, options).await.unwrap()
        };
        let forget = async |engine: &Arc<RocksEngine>| {
            let shared = engine.shared.clone();
            let keyspace = shared.store.keyspace(&name);
            let forgetting = move || {
                while forget_of(&shared, &keyspace).unwrap() {}
                let prefix = LifetimeRow::tombstone_prefix(keyspace.id().unwrap());
                count(&shared, &prefix).unwrap()
            };
            tokio::task::spawn_blocking(forgetting).await.unwrap()
        };
        remove("before").await;
        clock.set_offset(YEAR);
        let wrong = remove("under the wrong clock").await;
        clock.set_offset(0);
        remove("after").await;
        let time = engine.shared.store.now();
        assert!(
            time.0 < UnixMillis::now().0 + 60_000,
            "it is back: {time:?}"
        );
        // Its lifetimes are corrected, and what the jump was is still known.
        let shared = engine.shared.clone();
        let correcting = move || super::super::clock::correct(&shared);
        let corrected = tokio::task::spawn_blocking(correcting).await.unwrap();
        corrected.unwrap();
        assert_eq!(forget(&engine).await, 3, "they are young");
        drop(storage);
        drop(engine);
        let (engine, _) = open(HOUR / 2);
        assert_eq!(forget(&engine).await, 3, "they are half as old");
        drop(engine);
        let (engine, _) = open(2 * HOUR);
        assert_eq!(forget(&engine).await, 0);
        let horizon = engine.shared.store.keyspace(&name).horizon();
        assert!(horizon > wrong.revision);
    }

    #[tokio::test]
    async fn a_keyspace_that_was_only_named_is_not_kept() {
        let (_folder, engine) = fresh();
        let store = &engine.shared.store;
        let name = |n: u32| Keyspace::new(&format!("named-{n}")).unwrap();
        let made = engine.storage(&name(0));
        made.put("a".into(), "b".into()).await.unwrap();
        drop(made);
        let in_use = engine.open_session("cert:a", &name(1)).storage();
        for n in 2..20_000 {
            // By a session that reads and goes.
            let session = engine.open_session("cert:a", &name(n)).storage();
            assert!(session.get_one("a".into()).await.unwrap().is_none());
        }
        let left = store.keyspaces().len();
        assert!(left < 5_000, "{left} are kept");
        // What is used stays the same, also for others that name it.
        in_use.put("c".into(), "d".into()).await.unwrap();
        for (n, key) in [(0, "a"), (1, "c")] {
            let session = engine.open_session("cert:b", &name(n)).storage();
            assert!(session.get_one(key.into()).await.unwrap().is_some());
        }
    }
}
