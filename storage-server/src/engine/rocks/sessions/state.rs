//! The state of one session, shared by its handles and by the work that they queued. The committer writes it, once the
//! session is loaded.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage_protocol::{Keyspace, Revision, SessionId, UnixMillis};
use tokio_util::sync::CancellationToken;

use crate::engine::rocks::layout::SessionRow;
use crate::engine::rocks::store::{KeyspaceState, Store};

/// A handle of a session. The one that attached last may commit.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    /// Unique while the store is open. 0: the engine itself.
    pub(crate) number: u64,
    /// Cancelled when another handle attached.
    pub(crate) fence: CancellationToken,
}

impl Handle {
    /// The engine's own, which nothing fences.
    pub(crate) fn engine() -> Self {
        Self {
            number: 0,
            fence: CancellationToken::new(),
        }
    }
}

/// One session.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) id: SessionId,
    pub(crate) principal: Arc<str>,
    pub(crate) keyspace: Arc<KeyspaceState>,
    /// The last commit number that the session's handle gave out itself. Written when a commit is queued.
    pub(crate) numbered: AtomicU64,
    /// The highest executed commit number. Written by the committer; before that, by [`read_executed`].
    ///
    /// [`read_executed`]: super::read_executed
    pub(crate) executed: AtomicU64,
    /// Whether `executed` is known: not until the records of a session from before the start were read.
    pub(super) loaded: AtomicBool,
    // What follows is written by the committer alone.
    /// No more commits.
    pub(super) ended: AtomicBool,
    /// Has a row in `meta`.
    pub(super) stored: AtomicBool,
    pub(super) generation: AtomicU64,
    attached: Mutex<Handle>,
    /// Its keys were removed, and no client of the session has acknowledged it yet.
    pub(super) keys_expired: AtomicBool,
    /// Its keys up to this revision were removed, or are being removed.
    pub(super) expired_up_to: AtomicU64,
    /// When its socket was lost; 0: it was not.
    pub(super) lost: AtomicU64,
}

impl SessionState {
    pub(crate) fn new(
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
            generation: 0.into(),
            attached: Mutex::new(handle),
            keys_expired: false.into(),
            expired_up_to: 0.into(),
            lost: 0.into(),
        }
    }

    /// A session from its row, after a start.
    pub(super) fn stored(id: SessionId, row: SessionRow, keyspace: Arc<KeyspaceState>) -> Self {
        let state = Self::new(id, &row.principal, keyspace, Handle::engine());
        Self {
            loaded: false.into(),
            stored: true.into(),
            generation: row.generation.into(),
            keys_expired: row.keys_expired.into(),
            expired_up_to: row.expired_up_to.0.into(),
            ..state
        }
    }

    pub(super) fn row(&self, store: &Store) -> SessionRow {
        SessionRow {
            epoch: store.epoch(),
            generation: self.generation.load(Ordering::Acquire),
            keys_expired: self.keys_expired.load(Ordering::Acquire),
            expired_up_to: self.expired_up_to(),
            principal: self.principal.to_string(),
            keyspace: self.keyspace.name.clone(),
        }
    }

    pub(super) fn attached(&self) -> MutexGuard<'_, Handle> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the handle that may commit was revoked. (A fence is cancelled before only when another handle attached.)
    pub(super) fn is_revoked(&self) -> bool {
        self.attached().fence.is_cancelled()
    }

    pub(super) fn is_attached(&self, handle: u64) -> bool {
        self.attached().number == handle
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(crate) fn has_expired_keys(&self) -> bool {
        self.keys_expired.load(Ordering::Acquire)
    }

    pub(crate) fn expired_up_to(&self) -> Revision {
        Revision(self.expired_up_to.load(Ordering::Acquire))
    }

    /// Whether its socket was lost at `since`, and it was not resumed or ended after that.
    pub(crate) fn is_lost_since(&self, since: UnixMillis) -> bool {
        self.lost.load(Ordering::Acquire) == since.0 && !self.has_ended()
    }

    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    pub(super) fn belongs_to(&self, principal: &str, keyspace: &Keyspace) -> bool {
        self.principal.as_ref() == principal && self.keyspace.name == *keyspace
    }
}

/// How an attempt to attach went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Attached,
    /// It ended meanwhile.
    Gone,
    /// The generation is not higher than one before.
    Fenced,
}
