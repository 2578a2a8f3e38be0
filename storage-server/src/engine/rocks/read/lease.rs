//! Snapshots on loan: to scans and to passes of `Latest` watches, whose readers may go silent.
//!
//! A snapshot keeps RocksDB from dropping what was overwritten since, so it is held by a lease: used again within
//! [`LEASE`], or taken back by the housekeeper. Whoever comes later finds `SnapshotExpired`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::Instant;

use storage_protocol::{Result, Revision, StorageError};

pub(crate) use crate::engine::SNAPSHOT_LEASE as LEASE;
use crate::engine::rocks::store::{Store, StoreSnapshot};

/// All loans of a store.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    loans: Mutex<HashMap<u64, Weak<Loan>>>,
    /// The number of the next one.
    next: AtomicU64,
}

struct Loan {
    id: u64,
    leases: Weak<Leases>,
    /// Locked while a page is read; the housekeeper only tries.
    held: Mutex<Held>,
}

struct Held {
    snapshot: Option<StoreSnapshot>,
    used: Instant,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// A snapshot on loan. Clones share it; the last one gives it back.
#[derive(Clone, Debug)]
pub(crate) struct Leased {
    loan: Arc<Loan>,
    revision: Revision,
}

impl Leases {
    /// Lends a snapshot of the present state.
    pub(crate) fn lend(self: &Arc<Self>, store: &Arc<Store>) -> Leased {
        let snapshot = StoreSnapshot::take(store.clone());
        let revision = snapshot.revision();
        let held = Mutex::new(Held {
            snapshot: Some(snapshot),
            used: Instant::now(),
        });
        let mut loans = self.loans.lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let loan = Arc::new(Loan {
            id,
            leases: Arc::downgrade(self),
            held,
        });
        loans.insert(id, Arc::downgrade(&loan));
        Leased { loan, revision }
    }

    /// Takes back what was not used for [`LEASE`].
    pub(crate) fn expire(&self, now: Instant) {
        let loans: Vec<_> = {
            let loans = self.loans.lock().unwrap_or_else(PoisonError::into_inner);
            loans.values().filter_map(Weak::upgrade).collect()
        };
        for loan in loans {
            let mut held = match loan.held.try_lock() {
                Ok(held) => held,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // In use just now.
                Err(TryLockError::WouldBlock) => continue,
            };
            if now.saturating_duration_since(held.used) >= LEASE {
                held.snapshot = None;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.loans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl Leased {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Reads with the snapshot and renews the lease. Blocks.
    ///
    /// # Errors
    /// [`StorageError::SnapshotExpired`], or what `read` says.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&StoreSnapshot) -> Result<T>) -> Result<T> {
        let mut held = self
            .loan
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let result = read(
            held.snapshot
                .as_ref()
                .ok_or(StorageError::SnapshotExpired)?,
        );
        held.used = Instant::now();
        result
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(leases) = self.leases.upgrade() {
            leases
                .loans
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&self.id);
        }
    }
}
