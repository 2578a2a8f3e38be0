//! Pinned snapshots: of scans and of passes of `Latest` watches, whose readers may go silent.
//!
//! A snapshot keeps RocksDB from dropping what was overwritten since, so it is pinned for a while only: if it is not
//! used for [`SNAPSHOT_IDLE_MAX`], the housekeeper releases it. A read from a released snapshot fails with
//! `SnapshotExpired`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::Instant;

use storage_protocol::{Result, Revision, StorageError};

use crate::engine::SNAPSHOT_IDLE_MAX;
use crate::engine::rocks::store::{Store, StoreSnapshot};

/// All pinned snapshots of a store.
#[derive(Debug, Default)]
pub(crate) struct PinnedSnapshots {
    pins: Mutex<HashMap<u64, Weak<Pin>>>,
    /// The id of the next one.
    next: AtomicU64,
}

struct Pin {
    id: u64,
    snapshots: Weak<PinnedSnapshots>,
    /// Locked while a page is read; the housekeeper only tries to lock it.
    held: Mutex<Held>,
}

struct Held {
    snapshot: Option<StoreSnapshot>,
    used: Instant,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A pinned snapshot. Clones share it; the last one releases it.
#[derive(Clone, Debug)]
pub(crate) struct PinnedSnapshot {
    pin: Arc<Pin>,
    revision: Revision,
}

impl PinnedSnapshots {
    /// Pins a snapshot of the present state.
    pub(crate) fn pin(self: &Arc<Self>, store: &Arc<Store>) -> PinnedSnapshot {
        let snapshot = StoreSnapshot::take(store.clone());
        let revision = snapshot.revision();
        let held = Mutex::new(Held {
            snapshot: Some(snapshot),
            used: Instant::now(),
        });
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let pin = Arc::new(Pin {
            id,
            snapshots: Arc::downgrade(self),
            held,
        });
        pins.insert(id, Arc::downgrade(&pin));
        PinnedSnapshot { pin, revision }
    }

    /// Releases what was not used for [`SNAPSHOT_IDLE_MAX`].
    pub(crate) fn expire(&self, now: Instant) {
        let pins: Vec<_> = {
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            pins.values().filter_map(Weak::upgrade).collect()
        };
        for pin in pins {
            let mut held = match pin.held.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // In use just now.
                Err(TryLockError::WouldBlock) => continue,
            };
            if now.saturating_duration_since(held.used) >= SNAPSHOT_IDLE_MAX {
                held.snapshot = None;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl PinnedSnapshot {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Reads from the snapshot, which keeps it pinned for another [`SNAPSHOT_IDLE_MAX`]. Blocks.
    ///
    /// # Errors
    /// [`StorageError::SnapshotExpired`] if it was released, or the error of `read`.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&StoreSnapshot) -> Result<T>) -> Result<T> {
        let mut held = self.pin.held.lock().unwrap_or_else(PoisonError::into_inner);
        let result = read(
            held.snapshot
                .as_ref()
                .ok_or(StorageError::SnapshotExpired)?,
        );
        held.used = Instant::now();
        result
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(snapshots) = self.snapshots.upgrade() {
            snapshots
                .pins
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&self.id);
        }
    }
}
