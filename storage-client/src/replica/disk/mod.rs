//! The folder of a replica that outlives its process.
//!
//! `replica.redb` holds one table of entries and one of facts: format, keyspace, range, position, and the sum of the
//! entries' checksums. Each call of [`Disk::write`] becomes visible in one synced transaction, so that after a kill or
//! power loss at any moment the file holds a coherent state with its position. The file `lock` is locked as long as the
//! folder is in use. A new file gets its name when it is whole.
//!
//! Only verified data is served: when the folder is opened, redb checks all of its pages, and this module checks each
//! entry against its own checksum and all of them against their sum. So a bit is noticed too that flips in memory after
//! redb read a page, and that redb writes back under a new checksum when it changes the page. The facts are kept in
//! memory as they were verified or created, and written from there: read again and damaged meanwhile, they would get a
//! valid checksum. A damaged file is renamed to `replica.redb.damaged`, and the copy begins anew.

mod facts;
mod folder;
mod rows;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use storage_protocol::{Entry, Key, KeyRange, Limit, Position, StorageError};

use super::error::ReplicaError;
use super::held::Held;
use super::options::Folder;
use crate::sync::lock;
use facts::{FACTS, Facts, POSITION, SUM, read_facts};
use folder::{DAMAGED, FILE, builder, make_file, make_folder, take_lock};
use rows::{Sum, decode, encode};

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");

/// A key and its entry; `None`: not there.
pub(in crate::replica) type Row = (Key, Option<Entry>);

/// An open folder.
#[derive(Debug)]
pub(in crate::replica) struct Disk {
    database: Database,
    /// The facts as they were last written.
    facts: Mutex<Facts>,
    folder: PathBuf,
    _lock: File,
}

/// Why the state in a folder cannot be used.
#[derive(Debug)]
enum Trouble {
    /// The folder is refused, and left as it is.
    Refused(String),
    /// The file is damaged, and is put aside.
    Damaged(String),
}

impl From<redb::Error> for Trouble {
    fn from(error: redb::Error) -> Self {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        let what = format!("{FILE} cannot be read: {error}");
        match &error {
            // A length or an offset in the file is wrong.
            redb::Error::Io(error)
                if matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) =>
            {
                Self::Damaged(what)
            }
            redb::Error::Io(_) | redb::Error::DatabaseAlreadyOpen => Self::Refused(what),
            _ => Self::Damaged(what),
        }
    }
}

/// An open file, its facts, and the state that it holds.
type Loaded = (Database, Facts, Option<Held>);

impl Disk {
    /// Opens or creates the folder, and reads the state it holds, if it holds one. Blocks.
    pub(in crate::replica) fn open(
        folder: &Folder,
        range: &KeyRange,
        memory_bytes_max: usize,
    ) -> Result<(Self, Option<Held>), ReplicaError> {
        let refused = |what: String| ReplicaError::Folder {
            folder: folder.path.clone(),
            what,
        };
        let unwritable = |error: redb::Error| refused(format!("cannot be written: {error}"));
        make_folder(&folder.path).map_err(refused)?;
        let lock = take_lock(&folder.path).map_err(refused)?;
        let file = folder.path.join(FILE);
        if !file.exists() {
            make_file(&folder.path, &file, &folder.keyspace, range).map_err(unwritable)?;
        }
        let loaded = match load_caught(&file, folder, range) {
            Err(Trouble::Damaged(what)) => {
                tracing::warn!(
                    folder = %folder.path.display(),
                    reason = what,
                    "a replica's folder is damaged: it begins anew"
                );
                fs::rename(&file, folder.path.join(DAMAGED))
                    .map_err(|error| unwritable(error.into()))?;
                make_file(&folder.path, &file, &folder.keyspace, range).map_err(unwritable)?;
                load_caught(&file, folder, range)
            }
            loaded => loaded,
        };
        let (database, facts, held) = loaded.map_err(|trouble| match trouble {
            Trouble::Refused(what) | Trouble::Damaged(what) => refused(what),
        })?;
        if let Some(held) = &held
            && held.bytes() > memory_bytes_max
        {
            let error = StorageError::limit(Limit::Memory, held.bytes(), memory_bytes_max);
            return Err(error.into());
        }
        let disk = Self {
            database,
            facts: Mutex::new(facts),
            folder: folder.path.clone(),
            _lock: lock,
        };
        Ok((disk, held))
    }

    /// Writes what changed since the last call, and the position of the state with these changes. Writes all of it or
    /// nothing, synced when it returns. Blocks.
    pub(in crate::replica) fn write(
        &self,
        position: Position,
        rows: &[Row],
    ) -> Result<(), ReplicaError> {
        // One write at a time; a write that fails leaves the facts as they were.
        let mut known = lock(&self.facts);
        let mut facts = known.clone();
        let mut write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(FACTS)?;
                let mut sum = facts.sum().unwrap_or_default();
                let mut entries = transaction.open_table(ENTRIES)?;
                let mut buffer = Vec::new();
                for (key, entry) in rows {
                    let before = match entry {
                        Some(entry) => {
                            encode(key, entry, &mut buffer);
                            sum.add(key, &buffer);
                            entries.insert(key.as_ref(), buffer.as_slice())?
                        }
                        None => entries.remove(key.as_ref())?,
                    };
                    // By the checksum of the row's bytes, not the one stored in it: if the row was damaged meanwhile,
                    // the sum is wrong from here on, and the next start notices.
                    if let Some(before) = before {
                        sum.subtract(key, before.value());
                    }
                }
                facts.set(POSITION, position.to_string().as_bytes());
                facts.set(SUM, &sum.encode());
                facts.write(&mut table)?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| ReplicaError::Folder {
            folder: self.folder.clone(),
            what: format!("{FILE} cannot be written: {error}"),
        })?;
        *known = facts;
        Ok(())
    }
}

/// [`load`]; a panic counts as damage too.
fn load_caught(file: &Path, folder: &Folder, range: &KeyRange) -> Result<Loaded, Trouble> {
    // After a panic nothing that it touched is used: the file is put aside.
    let loaded = catch_unwind(AssertUnwindSafe(|| load(file, folder, range)));
    loaded.unwrap_or_else(|_| Err(Trouble::Damaged(format!("{FILE} cannot be understood"))))
}

fn load(file: &Path, folder: &Folder, range: &KeyRange) -> Result<Loaded, Trouble> {
    let mut builder = builder();
    builder.set_check_integrity_on_open(true);
    let database = builder.open(file).map_err(redb::Error::from)?;
    let facts = read_facts(&database)?;
    facts.check(&folder.keyspace, range)?;
    let held = match facts.position()? {
        None => None,
        Some(position) => Some(Held::saved(position, read_entries(&database, &facts)?)),
    };
    Ok((database, facts, held))
}

fn read_entries(database: &Database, facts: &Facts) -> Result<BTreeMap<Key, Entry>, Trouble> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let table = transaction.open_table(ENTRIES).map_err(redb::Error::from)?;
    let (mut entries, mut sum) = (BTreeMap::new(), Sum::default());
    for row in table.iter().map_err(redb::Error::from)? {
        let (key, value) = row.map_err(redb::Error::from)?;
        let (key, value) = (key.value(), value.value());
        let entry = decode(key, value)
            .ok_or_else(|| Trouble::Damaged(format!("{FILE} holds a damaged entry")))?;
        sum.add(key, value);
        entries.insert(Key::copy_from_slice(key), entry);
    }
    if facts.sum() != Some(sum) {
        let what = format!("the entries of {FILE} are not those that were saved");
        return Err(Trouble::Damaged(what));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
