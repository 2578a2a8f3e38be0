//! Room on the disk, seen before it runs out.
//!
//! RocksDB that runs into a full disk fails a write half-way, and then nobody knows what is on it. So writes are refused
//! while the free space is at the reserve, and taken again when there is room.

use std::sync::atomic::{AtomicU64, Ordering};

use storage_protocol::{Result, StorageError};

use super::EngineOptions;

/// What was last seen. Written by the housekeeper each second, read by every commit.
#[derive(Debug)]
pub(super) struct Disk {
    available: AtomicU64,
}

impl Disk {
    pub(super) fn new(options: &EngineOptions) -> Self {
        let disk = Self {
            available: AtomicU64::new(u64::MAX),
        };
        disk.look(options);
        disk
    }

    pub(super) fn look(&self, options: &EngineOptions) {
        match rustix::fs::statvfs(&options.data) {
            Ok(disk) => {
                let available = disk.f_bavail.saturating_mul(disk.f_frsize);
                let before = self.available.swap(available, Ordering::Relaxed);
                let reserve = options.disk_reserve_bytes;
                if available < reserve && before >= reserve {
                    tracing::error!(
                        available,
                        reserve,
                        "the disk is at its reserve: writes are refused"
                    );
                } else if available >= reserve && before < reserve {
                    tracing::info!(available, reserve, "there is room again: writes are taken");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot see how much disk is free"),
        }
    }

    pub(super) fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    /// # Errors
    /// [`StorageError::StorageFull`] at the reserve.
    pub(super) fn check(&self, options: &EngineOptions) -> Result<()> {
        let (available, reserve) = (self.available(), options.disk_reserve_bytes);
        if available < reserve {
            Err(StorageError::StorageFull { available, reserve })
        } else {
            Ok(())
        }
    }
}
