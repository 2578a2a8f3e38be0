//! The keyspaces of a store: those that exist, and those that somebody names.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use storage_protocol::{Keyspace, Revision};

use crate::engine::Usage;
use crate::engine::rocks::KeyspaceRules;
use crate::engine::rocks::layout::{KeyspaceId, KeyspaceRow};

/// A keyspace as the engine knows it. One per name, shared by all sessions in it.
#[derive(Debug)]
pub(crate) struct KeyspaceState {
    pub(crate) name: Keyspace,
    pub(super) row: OnceLock<KeyspaceRow>,
    /// What the options say, for the time it is made.
    pub(super) rules_to_be: KeyspaceRules,
    /// Tombstones up to here may be gone. Written by the committer, read by scans and watches.
    pub(super) compacted: AtomicU64,
    /// What it holds. Written by the load and by the committer, which has what is durable here.
    pub(super) usage: Mutex<Usage>,
}

impl KeyspaceState {
    /// Its row; `None` until its first commit.
    pub(crate) fn row(&self) -> Option<KeyspaceRow> {
        self.row.get().copied()
    }

    /// Its row, which never changes. By the load, or by the committer when it makes it.
    pub(crate) fn set_row(&self, row: KeyspaceRow) {
        // A keyspace is made once: the committer would have found this row.
        let _ = self.row.set(row);
    }

    pub(crate) fn id(&self) -> Option<KeyspaceId> {
        Some(self.row()?.id)
    }

    /// Those of its row, and before it has one those that it will be made with.
    pub(crate) fn rules(&self) -> KeyspaceRules {
        self.row().map_or(self.rules_to_be, |row| row.rules)
    }

    pub(crate) fn usage(&self) -> Usage {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_usage(&self, usage: Usage) {
        *self.usage.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }

    pub(crate) fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    pub(crate) fn raise_compacted(&self, to: Revision) {
        self.compacted.fetch_max(to.0, Ordering::AcqRel);
    }
}

/// Those that exist, and those that somebody names.
#[derive(Debug, Default)]
pub(super) struct Keyspaces {
    pub(super) by_name: HashMap<Keyspace, Arc<KeyspaceState>>,
    /// At so many, those that nobody names any more and that do not exist are swept out.
    sweep_at: usize,
}

impl Keyspaces {
    pub(super) fn sweep(&mut self) {
        if self.by_name.len() >= self.sweep_at {
            // Who holds one got it under this lock.
            self.by_name
                .retain(|_, state| state.row().is_some() || Arc::strong_count(state) > 1);
            self.sweep_at = 2 * self.by_name.len() + KEYSPACES_UNSWEPT;
        }
    }
}

/// So many keyspaces that do not exist may be left over, besides as many as there are.
const KEYSPACES_UNSWEPT: usize = 1024;
