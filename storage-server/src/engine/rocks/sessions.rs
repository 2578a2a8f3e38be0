//! Sessions of peers: they outlive their sockets, and their numbered commits have one effect.
//!
//! A [`SessionState`] is one session, shared by its handles (one for each incarnation that attached) and by what they
//! queued. [`Sessions`] knows all of them: by id, those without a socket by the time they lost it, and the horizon. What
//! changes a session passes the committer, in its principal's line: so a newer incarnation stands behind everything
//! that the older one queued, and is the last word on what was executed.
//!
//! A session has a row in `meta` from its first commit on, and only then. While the server runs, each session with a
//! row is known here; its records are read when it is first resumed after a start.

mod task;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use storage_protocol::{Keyspace, Result, Revision, SessionId, UnixMillis, planted};
use tokio_util::sync::CancellationToken;

use super::layout::{self, CommitRow, SessionHorizon, SessionRow, Table};
use super::store::{KeyspaceState, Store, internal};

/// Ended sessions that are remembered, so that an attempt to resume one is not taken for one that never committed.
const ENDED_MAX: usize = 64 * 1024;

/// A handle of a session. The one that attached last may commit.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    /// Unique while the store is open. 0: the engine itself.
    pub(super) number: u64,
    /// Cancelled when another handle attached.
    pub(super) fence: CancellationToken,
}

impl Handle {
    /// The engine's own, which nothing fences.
    pub(super) fn engine() -> Self {
        Self {
            number: 0,
            fence: CancellationToken::new(),
        }
    }
}

/// One session.
#[derive(Debug)]
pub(super) struct SessionState {
    pub(super) id: SessionId,
    pub(super) principal: Arc<str>,
    pub(super) keyspace: Arc<KeyspaceState>,
    /// The last number that the session's handle gave itself. Written when a commit is queued.
    pub(super) numbered: AtomicU64,
    /// The highest executed number. Written by the committer; before, by who reads the records.
    pub(super) executed: AtomicU64,
    /// Whether `executed` is known: not until the records of a session from before the start were read.
    loaded: AtomicBool,
    // What follows is written by the committer alone.
    /// No more commits.
    ended: AtomicBool,
    /// Has a row in `meta`.
    stored: AtomicBool,
    incarnation: AtomicU64,
    attached: Mutex<Handle>,
    /// Its keys were removed, and no client of it has shown yet that it knows.
    lapsed: AtomicBool,
    /// Its keys up to this revision are gone, or going.
    lapse: AtomicU64,
    /// When its socket was lost; 0: it was not.
    lost: AtomicU64,
}

impl SessionState {
    pub(super) fn new(
        id: SessionId,
        principal: &str,
        keyspace: Arc<KeyspaceState>,
        handle: Handle,
    ) -> Self {
        Self {
            id,
            principal: principal.into(),
            keyspace,
            numbered: 0.into(),
            executed: 0.into(),
            loaded: true.into(),
            ended: false.into(),
            stored: false.into(),
            incarnation: 0.into(),
            attached: Mutex::new(handle),
            lapsed: false.into(),
            lapse: 0.into(),
            lost: 0.into(),
        }
    }

    /// As its row tells, after a start.
    fn stored(id: SessionId, row: SessionRow, keyspace: Arc<KeyspaceState>) -> Self {
        let state = Self::new(id, &row.principal, keyspace, Handle::engine());
        Self {
            loaded: false.into(),
            stored: true.into(),
            incarnation: row.incarnation.into(),
            lapsed: row.lapsed.into(),
            lapse: row.lapse.0.into(),
            ..state
        }
    }

    fn row(&self, store: &Store) -> SessionRow {
        SessionRow {
            epoch: store.epoch(),
            incarnation: self.incarnation.load(Ordering::Acquire),
            lapsed: self.lapsed.load(Ordering::Acquire),
            lapse: self.lapse(),
            principal: self.principal.to_string(),
            keyspace: self.keyspace.name.clone(),
        }
    }

    fn attached(&self) -> MutexGuard<'_, Handle> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_attached(&self, handle: u64) -> bool {
        self.attached().number == handle
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn is_lapsed(&self) -> bool {
        self.lapsed.load(Ordering::Acquire)
    }

    pub(super) fn lapse(&self) -> Revision {
        Revision(self.lapse.load(Ordering::Acquire))
    }

    /// Whether its socket was lost then, and it was not resumed since.
    pub(super) fn is_lost_since(&self, since: UnixMillis) -> bool {
        self.lost.load(Ordering::Acquire) == since.0 && !self.has_ended()
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    fn belongs_to(&self, principal: &str, keyspace: &Keyspace) -> bool {
        self.principal.as_ref() == principal && self.keyspace.name == *keyspace
    }
}

/// How an attempt to attach went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Attached,
    /// It ended meanwhile.
    Gone,
    /// The incarnation is not higher than one before.
    Fenced,
}

/// All sessions. See the module.
#[derive(Debug)]
pub(super) struct Sessions {
    registry: Mutex<Registry>,
    /// See [`SessionHorizon`].
    horizon: AtomicU64,
    /// The latest opening time of an ended session that had rows. Written by the committer.
    ended: AtomicU64,
    handles: AtomicU64,
}

#[derive(Debug, Default)]
struct Registry {
    /// Each session with a handle, with work in the queue, or with a row.
    states: HashMap<SessionId, Weak<SessionState>>,
    /// At so many, those that are no more are swept out.
    sweep_at: usize,
    /// Those with a row and without a socket, longest lost first.
    lost: BTreeMap<(UnixMillis, SessionId), Arc<SessionState>>,
    /// Of these, those that may have keys.
    with_keys: BTreeSet<(UnixMillis, SessionId)>,
    /// Those whose lapse is begun and not finished, also if they were resumed since; with the loss that it came of.
    lapsing: BTreeMap<SessionId, (UnixMillis, Arc<SessionState>)>,
    /// The same as `lost` by principal, and the principals by how many they have.
    lost_of: HashMap<Arc<str>, BTreeSet<(UnixMillis, SessionId)>>,
    principals: BTreeSet<(usize, Arc<str>)>,
    ended: HashSet<SessionId>,
    ended_order: VecDeque<SessionId>,
}

impl Registry {
    fn insert(&mut self, state: &Arc<SessionState>) {
        if self.states.len() >= self.sweep_at {
            self.states.retain(|_, state| state.strong_count() > 0);
            self.sweep_at = 2 * self.states.len() + 1024;
        }
        self.states.insert(state.id, Arc::downgrade(state));
    }

    fn lose(&mut self, state: &Arc<SessionState>, now: UnixMillis) {
        state.lost.store(now.0, Ordering::Release);
        self.lost.insert((now, state.id), state.clone());
        self.with_keys.insert((now, state.id));
        self.change_lost_of(&state.principal, |lost| {
            lost.insert((now, state.id));
        });
    }

    fn unlose(&mut self, state: &SessionState) {
        let since = UnixMillis(state.lost.swap(0, Ordering::AcqRel));
        let at = (since, state.id);
        if self.lost.remove(&at).is_none() {
            return;
        }
        self.with_keys.remove(&at);
        self.change_lost_of(&state.principal, |lost| {
            lost.remove(&at);
        });
    }

    fn change_lost_of(
        &mut self,
        principal: &Arc<str>,
        change: impl FnOnce(&mut BTreeSet<(UnixMillis, SessionId)>),
    ) {
        let lost = self.lost_of.entry(principal.clone()).or_default();
        let before = lost.len();
        change(lost);
        let after = lost.len();
        if after == 0 {
            self.lost_of.remove(principal);
        }
        self.principals.remove(&(before, principal.clone()));
        if after > 0 {
            self.principals.insert((after, principal.clone()));
        }
    }

    /// Picks `surplus` sessions to evict, at most `max`: repeatedly the longest lost of the principal with the most. It
    /// stops at one that was lost after `before`, though others have older ones: nobody pays for another's sessions.
    fn surplus(
        &self,
        surplus: usize,
        before: UnixMillis,
        max: usize,
    ) -> Vec<(UnixMillis, Arc<SessionState>)> {
        // Each step takes one, so no more principals than steps have a turn.
        let steps = surplus.min(max);
        let most = self.principals.iter().rev().take(steps);
        let mut line: BTreeMap<_, _> = most
            .filter_map(|(count, principal)| {
                let lost = self.lost_of.get(principal)?.iter();
                Some(((*count, principal), lost))
            })
            .collect();
        let mut found = Vec::new();
        while found.len() < steps
            && let Some(((count, principal), mut lost)) = line.pop_last()
            && let Some(at) = lost.next()
            && at.0 <= before
        {
            found.extend(self.lost.get(at).map(|state| (at.0, state.clone())));
            line.insert((count - 1, principal), lost);
        }
        found
    }
}

impl Sessions {
    fn new(horizon: UnixMillis) -> Self {
        Self {
            registry: Mutex::default(),
            horizon: horizon.0.into(),
            ended: 0.into(),
            handles: 0.into(),
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A handle that did not attach yet.
    pub(super) fn handle(&self) -> Handle {
        Handle {
            number: self.handles.fetch_add(1, Ordering::Relaxed) + 1,
            fence: CancellationToken::new(),
        }
    }

    /// A new session with its first handle.
    pub(super) fn open(
        &self,
        store: &Store,
        principal: &str,
        keyspace: &Keyspace,
    ) -> (Arc<SessionState>, Handle) {
        let id = layout::new_session_id(self.time(store));
        let handle = self.handle();
        let keyspace = store.keyspace(keyspace);
        let state = Arc::new(SessionState::new(id, principal, keyspace, handle.clone()));
        self.registry().insert(&state);
        (state, handle)
    }

    /// The session that may be resumed by this id; `None`: it is gone, or was never this principal's here.
    pub(super) fn find(
        &self,
        store: &Store,
        id: SessionId,
        principal: &str,
        keyspace: &Keyspace,
    ) -> Option<Arc<SessionState>> {
        let mut registry = self.registry();
        if let Some(state) = registry.states.get(&id).and_then(Weak::upgrade) {
            let found = state.belongs_to(principal, keyspace) && !state.has_ended();
            return found.then_some(state);
        }
        // It has no row. Either it had one, or it never committed: then it is what it was.
        let opened = layout::opened_at(id);
        let never_committed = opened > self.horizon() && opened <= self.time(store);
        if !never_committed || registry.ended.contains(&id) {
            return None;
        }
        let keyspace = store.keyspace(keyspace);
        let state = Arc::new(SessionState::new(id, principal, keyspace, Handle::engine()));
        registry.insert(&state);
        Some(state)
    }

    /// The time that a session is opened at: behind the horizon, also in the millisecond that made it.
    fn time(&self, store: &Store) -> UnixMillis {
        store.now().max(UnixMillis(self.horizon().0 + 1))
    }

    /// The horizon is not before this session's opening.
    fn raise_horizon(&self, session: SessionId) {
        let opened = layout::opened_at(session);
        self.horizon.fetch_max(opened.0, Ordering::AcqRel);
    }

    fn horizon(&self) -> UnixMillis {
        UnixMillis(self.horizon.load(Ordering::Acquire))
    }

    /// Up to where keys of a session are to be removed at the start: all, if it is no more.
    pub(super) fn to_remove(&self, id: SessionId) -> Option<Revision> {
        let state = self.registry().states.get(&id).and_then(Weak::upgrade);
        match state {
            None => Some(Revision(u64::MAX)),
            Some(state) => Some(state.lapse()).filter(|lapse| *lapse > Revision::ZERO),
        }
    }

    /// Sessions that are kept without a socket.
    pub(super) fn kept(&self) -> usize {
        self.registry().lost.len()
    }

    /// Those lost up to `before` that may have keys; at most `max`.
    pub(super) fn with_keys(
        &self,
        before: UnixMillis,
        max: usize,
    ) -> Vec<(UnixMillis, Arc<SessionState>)> {
        let registry = self.registry();
        let due = registry.with_keys.iter();
        due.take_while(|(since, _)| *since <= before)
            .filter_map(|at| Some((at.0, registry.lost.get(at)?.clone())))
            .take(max)
            .collect()
    }

    /// It has no keys any more, since it was lost then.
    pub(super) fn without_keys(&self, since: UnixMillis, id: SessionId) {
        self.registry().with_keys.remove(&(since, id));
    }

    /// Those that are lost since `from` or later count as lost now.
    pub(super) fn count_lost_from(&self, from: UnixMillis, now: UnixMillis) {
        let mut registry = self.registry();
        let later = registry.lost.range((from, SessionId([0; 16]))..);
        let later: Vec<_> = later.map(|(_, state)| state.clone()).collect();
        for state in later {
            registry.unlose(&state);
            registry.lose(&state, now);
        }
    }

    /// Those whose keys are to be removed up to their lapse.
    pub(super) fn lapsing(&self) -> Vec<Arc<SessionState>> {
        let registry = self.registry();
        let lapsing = registry.lapsing.values();
        lapsing.map(|(_, session)| session.clone()).collect()
    }

    /// Whether the lapse of a session that was lost then is begun and not finished.
    pub(super) fn is_lapsing(&self, since: UnixMillis, id: SessionId) -> bool {
        let registry = self.registry();
        let lapsing = registry.lapsing.get(&id);
        lapsing.is_some_and(|(begun, _)| *begun == since)
    }

    /// The keys of a session up to this lapse are removed.
    pub(super) fn lapse_finished(&self, session: &SessionState, lapse: Revision) {
        let mut registry = self.registry();
        if session.lapse() == lapse {
            registry.lapsing.remove(&session.id);
        }
    }

    /// Sessions to forget, at most `max`: those lost up to `before`. If there are none: what is over `kept_max`, of those
    /// lost up to `grace`, from the principals with the most.
    pub(super) fn overdue(
        &self,
        before: UnixMillis,
        kept_max: usize,
        grace: UnixMillis,
        max: usize,
    ) -> Vec<(UnixMillis, Arc<SessionState>)> {
        let registry = self.registry();
        let lost = registry.lost.iter();
        let overdue: Vec<_> = lost
            .take_while(|((since, _), _)| *since <= before)
            .map(|((since, _), state)| (*since, state.clone()))
            .take(max)
            .collect();
        if !overdue.is_empty() {
            return overdue;
        }
        let surplus = registry.lost.len().saturating_sub(kept_max);
        registry.surplus(surplus, grace, max)
    }
}

/// Sessions at the start of a store, before its committer runs: each stored one counts as lost now. Drops what belongs
/// to none: rows of another epoch, and records without a row (of sessions that number their commits themselves, or
/// whose end was cut short).
///
/// # Errors
/// A damaged row, or the database's.
pub(super) fn load(store: &Store) -> Result<Sessions> {
    let now = store.now();
    let mut cleaner = Cleaner::new(store);
    let read = |key| -> Result<Option<UnixMillis>> {
        let row = store.row(Table::Meta, key)?;
        let horizon = row.map(|row| SessionHorizon::decode(&row)).transpose()?;
        let horizon = horizon.filter(|horizon| horizon.epoch == store.epoch());
        Ok(horizon.map(|horizon| horizon.opened))
    };
    let ended = read(layout::SESSION_ENDED_KEY)?.unwrap_or_default();
    let horizon = match read(layout::SESSION_HORIZON_KEY)? {
        Some(horizon) => horizon.max(ended),
        // What was committed in another epoch may be lost, so an id without a row proves nothing there.
        None => {
            cleaner.put_horizon(now);
            now
        }
    };
    let sessions = Sessions::new(horizon);
    sessions.ended.store(ended.0, Ordering::Release);
    {
        let mut registry = sessions.registry();
        let prefix = layout::SESSION_PREFIX;
        let mut rows = store.iterate_prefix(Table::Meta, prefix, prefix);
        while let Some((key, value)) = rows.item() {
            let id = layout::parse_session_row_key(key)?;
            let row = SessionRow::decode(value)?;
            if row.epoch == store.epoch() {
                let keyspace = store.keyspace(&row.keyspace);
                let state = Arc::new(SessionState::stored(id, row, keyspace));
                registry.insert(&state);
                registry.lose(&state, now);
            } else {
                cleaner.delete(Table::Meta, key)?;
            }
            rows.next();
        }
        rows.status()
            .map_err(|error| internal("read of sessions", &error))?;
        let mut records = store.iterate(Table::Sessions, &[Table::Sessions.tag()], None);
        while let Some(key) = records.key() {
            let id = layout::parse_session_key(key)?;
            if registry.states.contains_key(&id) {
                records.seek(past(&layout::session_records(id)));
                continue;
            }
            cleaner.delete(Table::Sessions, key)?;
            records.next();
        }
        records
            .status()
            .map_err(|error| internal("read of sessions", &error))?;
    }
    cleaner.write()?;
    Ok(sessions)
}

/// The first key behind all that begin with this.
pub(super) fn past(prefix: &[u8]) -> Vec<u8> {
    [prefix, &[0xff; 32]].concat()
}

/// Writes at the start, while there is no committer.
struct Cleaner<'a> {
    store: &'a Store,
    batch: rocksdb::WriteBatch,
}

impl<'a> Cleaner<'a> {
    fn new(store: &'a Store) -> Self {
        let batch = rocksdb::WriteBatch::default();
        Self { store, batch }
    }

    fn put_horizon(&mut self, opened: UnixMillis) {
        let epoch = self.store.epoch();
        self.batch.put_cf(
            self.store.table(Table::Meta),
            layout::SESSION_HORIZON_KEY,
            SessionHorizon { opened, epoch }.encode(),
        );
    }

    fn delete(&mut self, table: Table, key: &[u8]) -> Result<()> {
        self.batch.delete_cf(self.store.table(table), key);
        if self.batch.len() >= 4096 {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        // Synced in every durability: the mark may name these numbers a second later.
        let mut sync = rocksdb::WriteOptions::default();
        // The first one of a new epoch, so it would hide that the epoch was not synced.
        sync.set_sync(!planted("forgetting-not-synced") && !planted("epoch-not-synced"));
        let written = self
            .store
            .db
            .write_opt(std::mem::take(&mut self.batch), &sync);
        written.map_err(|error| internal("clean-up of sessions", &error))
    }
}

/// Makes `executed` known. May read from disk: blocks.
///
/// # Errors
/// The database's.
pub(super) fn read_executed(store: &Store, state: &SessionState) -> Result<()> {
    let prefix = layout::session_records(state.id);
    let mut rows = store.iterate_prefix(Table::Sessions, &prefix, &prefix);
    let mut executed = 0;
    while let Some(row) = rows.value() {
        executed = executed.max(CommitRow::decode_number(row)?.number);
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of a session", &error))?;
    if planted("executed-forgotten") {
        executed = 0;
    }
    state.executed.fetch_max(executed, Ordering::AcqRel);
    state.loaded.store(true, Ordering::Release);
    Ok(())
}

/// The keys of a session's records. May read from disk: blocks.
///
/// # Errors
/// The database's.
pub(super) fn record_keys(store: &Store, id: SessionId) -> Result<Vec<Vec<u8>>> {
    let prefix = layout::session_records(id);
    let mut rows = store.iterate_prefix(Table::Sessions, &prefix, &prefix);
    let mut keys = Vec::new();
    while let Some(key) = rows.key() {
        keys.push(key.to_vec());
        rows.next();
    }
    rows.status()
        .map_err(|error| internal("read of a session", &error))?;
    Ok(keys)
}

#[cfg(test)]
mod tests;
