//! Room on the disk, seen before it runs out.
//!
//! RocksDB that runs into a full disk fails a write half-way, and then nobody knows what is on it. So, in this order,
//! as the free space shrinks: near the reserve the change log's archived files go, oldest first; at the reserve commits
//! are refused that put anything; below a quarter of it removals are refused, too. All comes back when there is room.
//!
//! It is looked at each second, and each time that some megabytes were written.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use storage_protocol::{Batch, Operation, Result, StorageError};

use super::options::EngineOptions;

/// It is looked at anew when so much was written since.
const LOOK_BYTES: u64 = 4 << 20;

/// What was last seen. Written by the housekeeper and the committer, read by every commit.
#[derive(Debug)]
pub(crate) struct Disk {
    data: PathBuf,
    reserve: u64,
    available: AtomicU64,
    /// Bytes written since.
    written: AtomicU64,
    /// Held while files are dropped.
    dropping: Mutex<()>,
}

/// What a commit needs room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// It puts something, or nobody knows.
    Any,
    /// It only removes keys, which makes room in the end.
    Removal,
}

impl Need {
    pub(crate) fn of(batch: &Batch) -> Self {
        let removes = |operation: &Operation| matches!(operation, Operation::Remove { .. });
        if !batch.operations.is_empty() && batch.operations.iter().all(removes) {
            Self::Removal
        } else {
            Self::Any
        }
    }
}

impl Disk {
    pub(crate) fn new(options: &EngineOptions) -> Self {
        let disk = Self {
            data: options.data.clone(),
            reserve: options.disk_reserve_bytes,
            available: AtomicU64::new(u64::MAX),
            written: AtomicU64::new(0),
            dropping: Mutex::new(()),
        };
        disk.look();
        disk
    }

    /// Looks at the disk, and drops log files if it is near the reserve.
    pub(crate) fn look(&self) {
        let Some(mut available) = see(&self.data) else {
            return;
        };
        self.written.store(0, Ordering::Relaxed);
        let enough = self.reserve.saturating_add(self.reserve / 2);
        if available < enough
            // Else somebody else does it just now.
            && let Ok(_dropping) = self.dropping.try_lock()
            && drop_log(&self.data, enough - available) > 0
        {
            available = see(&self.data).unwrap_or(available);
        }
        let before = self.available.swap(available, Ordering::Relaxed);
        let reserve = self.reserve;
        if available < reserve && before >= reserve {
            tracing::error!(
                available,
                reserve,
                "the disk is at its reserve, and the change log has nothing left to drop: commits that put anything are refused"
            );
        } else if available >= reserve && before < reserve {
            tracing::info!(available, reserve, "there is room again: commits are taken");
        }
    }

    /// So much was written. Looks again when it adds up.
    pub(crate) fn wrote(&self, bytes: usize) {
        let bytes = bytes as u64;
        let written = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= LOOK_BYTES && self.reserve > 0 {
            self.look();
        }
    }

    pub(crate) fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    /// Whether a commit may be taken, behind so many bytes that are about to be written.
    ///
    /// # Errors
    /// [`StorageError::StorageFull`] at the reserve, or for a removal at a quarter of it.
    pub(crate) fn check(&self, need: Need, ahead: usize) -> Result<()> {
        let written = self.written.load(Ordering::Relaxed);
        let available = self.available();
        let available = available.saturating_sub(written.saturating_add(ahead as u64));
        let reserve = match need {
            Need::Any => self.reserve,
            Need::Removal => self.reserve / 4,
        };
        if available < reserve {
            Err(StorageError::StorageFull { available, reserve })
        } else {
            Ok(())
        }
    }
}

fn see(data: &Path) -> Option<u64> {
    match rustix::fs::statvfs(data) {
        Ok(disk) => Some(disk.f_bavail.saturating_mul(disk.f_frsize)),
        Err(error) => {
            tracing::warn!(%error, "cannot see how much disk is free");
            None
        }
    }
}

/// The log files in a folder, oldest first.
fn log_files(folder: &Path) -> Vec<PathBuf> {
    let number = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
        Some((name.parse::<u64>().ok()?, path))
    };
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.filter_map(number).collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// The bytes of the log that RocksDB still needs.
pub(crate) fn log_bytes_in_use(data: &Path) -> u64 {
    log_files(&data.join("db"))
        .iter()
        .map(|path| length(path))
        .sum()
}

/// Drops archived files of the change log, oldest first, until so many bytes are free; how many were. Positions before
/// what is left are `Compacted` then.
pub(crate) fn drop_log(data: &Path, bytes: u64) -> u64 {
    let (mut dropped, mut count) = (0, 0u32);
    for path in log_files(&data.join("db/archive")) {
        if dropped >= bytes {
            break;
        }
        let length = length(&path);
        match fs::remove_file(&path) {
            Ok(()) => {
                dropped += length;
                count += 1;
            }
            // RocksDB drops them too, by age and size.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "cannot drop a file of the change log"),
        }
    }
    if count > 0 {
        tracing::warn!(
            files = count,
            bytes = dropped,
            "the disk is near its reserve: the oldest of the change log was dropped, and watches from before what is left \
             begin with what changed"
        );
    }
    dropped
}
