//! Sessions of peers: they outlive their sockets, and their numbered commits have one effect.
//!
//! A [`SessionState`] is one session, shared by its handles (one for each generation that attached) and by the work
//! that they queued. [`Sessions`] has all of them by id, the lost ones (those without a socket) by the time at which
//! they lost it, and the session horizon. Every change of a session goes through the committer's queue, in its
//! principal's line: so a newer generation attaches after everything that the older one queued was executed, and the
//! `executed` that it gets is final.
//!
//! A session has a row in `meta` from its first commit on, and no earlier. While the server runs, each session with a
//! row is known here; its records are read when it is first resumed after a start.

mod load;
mod records;
mod registry;
mod state;
mod task;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use storage_protocol::{Keyspace, Revision, SessionId, UnixMillis};
use tokio_util::sync::CancellationToken;

pub(crate) use self::load::load;
pub(crate) use self::records::{past, read_executed, record_keys};
use self::registry::Registry;
pub(crate) use self::state::{Handle, SessionState, Verdict};
use crate::engine::rocks::layout;
use crate::engine::rocks::store::Store;

/// Ended sessions that are remembered, so that an attempt to resume one is not taken for one that never committed.
const ENDED_MAX: usize = 64 * 1024;

/// All sessions. See the module.
#[derive(Debug)]
pub(crate) struct Sessions {
    registry: Mutex<Registry>,
    /// See [`SessionHorizon`](layout::SessionHorizon).
    horizon: AtomicU64,
    /// The latest opening time of an ended session that had rows. Written by the committer.
    ended: AtomicU64,
    handles: AtomicU64,
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

    /// A handle that has not attached yet.
    pub(crate) fn handle(&self) -> Handle {
        Handle {
            number: self.handles.fetch_add(1, Ordering::Relaxed) + 1,
            fence: CancellationToken::new(),
        }
    }

    /// A new session with its first handle.
    pub(crate) fn open(
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

    /// The session that may be resumed by this id; `None` if it is gone, or was never this principal's here.
    pub(crate) fn find(
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
        // It has no row. Either it had one and is gone, or it never committed: then it is resumed as empty.
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

    /// The opening time for a new session's id: always newer than the session horizon, also within one millisecond.
    fn time(&self, store: &Store) -> UnixMillis {
        store.now().max(UnixMillis(self.horizon().0 + 1))
    }

    /// Raises the session horizon to this session's opening: ids up to there are no longer known to be unused.
    fn raise_horizon(&self, session: SessionId) {
        let opened = layout::opened_at(session);
        self.horizon.fetch_max(opened.0, Ordering::AcqRel);
    }

    fn horizon(&self) -> UnixMillis {
        UnixMillis(self.horizon.load(Ordering::Acquire))
    }

    /// Up to which revision the keys of a session are to be removed at the start: all of them, if the session is gone.
    pub(crate) fn to_remove(&self, id: SessionId) -> Option<Revision> {
        let state = self.registry().states.get(&id).and_then(Weak::upgrade);
        match state {
            None => Some(Revision(u64::MAX)),
            Some(state) => {
                Some(state.expired_up_to()).filter(|expired_at| *expired_at > Revision::ZERO)
            }
        }
    }

    /// Sessions that are kept without a socket.
    pub(crate) fn kept(&self) -> usize {
        self.registry().lost.len()
    }

    /// The sessions lost up to `before` that may have keys; at most `max`.
    pub(crate) fn with_keys(
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

    /// The keys of this session, which was lost at `since`, were removed.
    pub(crate) fn without_keys(&self, since: UnixMillis, id: SessionId) {
        self.registry().with_keys.remove(&(since, id));
    }

    /// Sessions that were lost at `from` or later count as lost now.
    pub(crate) fn count_lost_from(&self, from: UnixMillis, now: UnixMillis) {
        let mut registry = self.registry();
        let later = registry.lost.range((from, SessionId([0; 16]))..);
        let later: Vec<_> = later.map(|(_, state)| state.clone()).collect();
        for state in later {
            registry.unlose(&state);
            registry.lose(&state, now);
        }
    }

    /// Sessions whose keys, up to a revision of each, are being removed.
    pub(crate) fn expiring(&self) -> Vec<Arc<SessionState>> {
        let registry = self.registry();
        let expiring = registry.expiring.values();
        expiring.map(|(_, session)| session.clone()).collect()
    }

    /// Whether the keys of this session, which was lost at `since`, are being removed.
    pub(crate) fn is_expiring(&self, since: UnixMillis, id: SessionId) -> bool {
        let registry = self.registry();
        let expiring = registry.expiring.get(&id);
        expiring.is_some_and(|(begun, _)| *begun == since)
    }

    /// All keys of a session up to this revision are removed.
    pub(crate) fn keys_removed(&self, session: &SessionState, expired_at: Revision) {
        let mut registry = self.registry();
        if session.expired_up_to() == expired_at {
            registry.expiring.remove(&session.id);
        }
    }

    /// Sessions to forget, at most `max`: those lost up to `before`. If there are none: as many as there are above
    /// `kept_max`, of those lost up to `grace`, from the principals with the most.
    pub(crate) fn overdue(
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

#[cfg(test)]
mod tests;
