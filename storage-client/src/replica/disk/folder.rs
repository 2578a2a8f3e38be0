//! The files in the folder: checks whether it is a replica's, locks it, and creates a new file.

use std::fs::{self, File, TryLockError};
use std::path::Path;

use redb::Database;
use storage_protocol::KeyRange;

use super::ENTRIES;
use super::facts::{FACTS, FORMAT, Facts, SUM};
use super::rows::Sum;

pub(super) const FILE: &str = "replica.redb";

/// A new file, until it is whole.
const NEW: &str = "replica.redb.new";

/// A damaged file that was put aside; the next one replaces it.
pub(super) const DAMAGED: &str = "replica.redb.damaged";

/// How much redb may cache; the entries are in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

pub(super) fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Creates the folder, or checks that it is a replica's: one that holds something else is refused.
pub(super) fn make_folder(folder: &Path) -> Result<(), String> {
    let mut make = fs::DirBuilder::new();
    make.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
    make.create(folder)
        .map_err(|error| format!("cannot be made: {error}"))?;
    let names = fs::read_dir(folder).map_err(|error| format!("cannot be read: {error}"))?;
    for name in names {
        let name = name.map_err(|error| format!("cannot be read: {error}"))?;
        let name = name.file_name();
        if !["lock", FILE, NEW, DAMAGED].contains(&name.to_string_lossy().as_ref()) {
            return Err(format!(
                "holds {name:?}, so it is no replica's; give an empty folder or one that is not there"
            ));
        }
    }
    Ok(())
}

pub(super) fn take_lock(folder: &Path) -> Result<File, String> {
    let open = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"));
    let lock = open.map_err(|error| format!("its lock cannot be opened: {error}"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err("is in use by another replica; each needs a folder of its own".to_owned())
        }
        Err(TryLockError::Error(error)) => Err(format!("cannot be locked: {error}")),
    }
}

/// Creates a file without a position. What a kill before the renaming leaves is removed here.
pub(super) fn make_file(
    folder: &Path,
    file: &Path,
    keyspace: &str,
    range: &KeyRange,
) -> Result<(), redb::Error> {
    let new = folder.join(NEW);
    if new.exists() {
        fs::remove_file(&new)?;
    }
    let database = builder().create(&new)?;
    let transaction = database.begin_write()?;
    {
        transaction.open_table(ENTRIES)?;
        let mut facts = Facts::default();
        facts.set("format", &FORMAT.to_be_bytes());
        facts.set("keyspace", keyspace.as_bytes());
        facts.set("start", &range.start);
        if let Some(end) = &range.end {
            facts.set("end", end);
        }
        facts.set(SUM, &Sum::default().encode());
        facts.write(&mut transaction.open_table(FACTS)?)?;
    }
    transaction.commit()?;
    drop(database);
    fs::rename(&new, file)?;
    // So that the name survives power loss. If the folder cannot be opened, at worst everything is fetched anew.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all()?;
    }
    Ok(())
}
