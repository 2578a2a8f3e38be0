//! The folder of a replica that outlives its process.
//!
//! `replica.redb` holds one table of entries and one of facts: format, keyspace, range and position. What one call of
//! [`Disk::write`] gets becomes visible in one synced transaction, so that after a kill or power loss at any moment the
//! file holds a state at some mark, with that mark's position. `lock` is held as long as the folder is in use. A new
//! file gets its name when it is whole.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use storage_protocol::{
    Entry, EntryLifetime, Key, KeyRange, Limit, Position, Revision, StorageError, UnixMillis,
};

use super::error::ReplicaError;
use super::held::Held;
use super::options::Folder;

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// Raised when the bytes in the tables mean something else.
const FORMAT: u64 = 1;

/// What redb may cache; the entries are in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

/// Revision, lifetime's tag and number, before the value.
const HEAD_BYTES: usize = 17;

/// A key and what it is now; `None`: not there.
pub(super) type Row = (Key, Option<Entry>);

/// An open folder.
#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
    folder: PathBuf,
    _lock: File,
}

impl Disk {
    /// Opens or makes the folder, and reads the state it holds, if it holds one. Blocks.
    pub(super) fn open(
        folder: &Folder,
        range: &KeyRange,
        memory_bytes_max: usize,
    ) -> Result<(Self, Option<Held>), ReplicaError> {
        let refused = |what: String| ReplicaError::Folder {
            folder: folder.path.clone(),
            what,
        };
        make_folder(&folder.path).map_err(refused)?;
        let lock = take_lock(&folder.path).map_err(refused)?;
        let file = folder.path.join("replica.redb");
        if !file.exists() {
            make_file(&folder.path, &file, &folder.keyspace, range)
                .map_err(|error| refused(format!("cannot be written: {error}")))?;
        }
        let unreadable = |error: redb::Error| {
            refused(format!(
                "replica.redb cannot be read: {error}; remove the folder to fetch everything anew"
            ))
        };
        let database = builder()
            .open(&file)
            .map_err(|error| unreadable(error.into()))?;
        let facts = read_facts(&database).map_err(unreadable)?;
        facts.check(&folder.keyspace, range).map_err(refused)?;
        let disk = Self {
            database,
            folder: folder.path.clone(),
            _lock: lock,
        };
        let Some(position) = facts.position().map_err(refused)? else {
            return Ok((disk, None));
        };
        let entries = disk.read_entries().map_err(unreadable)?;
        let entries = entries.map_err(refused)?;
        let held = Held::saved(position, entries);
        if held.bytes() > memory_bytes_max {
            let error = StorageError::limit(Limit::Memory, held.bytes(), memory_bytes_max);
            return Err(error.into());
        }
        Ok((disk, Some(held)))
    }

    /// Writes what changed since the last call, and the position that the state stands at with it. All of it or nothing,
    /// on the disk when it returns. Blocks.
    pub(super) fn write(&self, position: Position, rows: &[Row]) -> Result<(), ReplicaError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut entries = transaction.open_table(ENTRIES)?;
                let mut buffer = Vec::new();
                for (key, entry) in rows {
                    match entry {
                        Some(entry) => {
                            encode(entry, &mut buffer);
                            entries.insert(key.as_ref(), buffer.as_slice())?;
                        }
                        None => drop(entries.remove(key.as_ref())?),
                    }
                }
                let mut facts = transaction.open_table(FACTS)?;
                let position = position.to_string();
                facts.insert("position", position.as_bytes())?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| ReplicaError::Folder {
            folder: self.folder.clone(),
            what: format!("replica.redb cannot be written: {error}"),
        })
    }

    fn read_entries(&self) -> Result<Result<BTreeMap<Key, Entry>, String>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(ENTRIES) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Ok(BTreeMap::new())),
            table => table?,
        };
        let mut entries = BTreeMap::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let Some(entry) = decode(value.value()) else {
                return Ok(Err("replica.redb holds a damaged entry".to_owned()));
            };
            entries.insert(Key::copy_from_slice(key.value()), entry);
        }
        Ok(Ok(entries))
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// A folder that holds something else is left alone.
fn make_folder(folder: &Path) -> Result<(), String> {
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
        if !["lock", "replica.redb", "replica.redb.new"].contains(&name.to_string_lossy().as_ref())
        {
            return Err(format!(
                "holds {name:?}, so it is no replica's; give an empty folder or one that is not there"
            ));
        }
    }
    Ok(())
}

fn take_lock(folder: &Path) -> Result<File, String> {
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

/// A file without a position: a kill before it has its name leaves what is removed here.
fn make_file(
    folder: &Path,
    file: &Path,
    keyspace: &str,
    range: &KeyRange,
) -> Result<(), redb::Error> {
    let new = folder.join("replica.redb.new");
    if new.exists() {
        fs::remove_file(&new)?;
    }
    let database = builder().create(&new)?;
    let transaction = database.begin_write()?;
    {
        transaction.open_table(ENTRIES)?;
        let mut facts = transaction.open_table(FACTS)?;
        facts.insert("format", FORMAT.to_be_bytes().as_slice())?;
        facts.insert("keyspace", keyspace.as_bytes())?;
        facts.insert("start", range.start.as_ref())?;
        if let Some(end) = &range.end {
            facts.insert("end", end.as_ref())?;
        }
    }
    transaction.commit()?;
    drop(database);
    fs::rename(&new, file)?;
    // So that the name survives power loss; where a folder cannot be opened, it is fetched anew at worst.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all()?;
    }
    Ok(())
}

/// The table of facts.
struct Facts(BTreeMap<String, Vec<u8>>);

fn read_facts(database: &Database) -> Result<Facts, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(FACTS)?;
    let mut facts = BTreeMap::new();
    for row in table.iter()? {
        let (name, value) = row?;
        facts.insert(name.value().to_owned(), value.value().to_vec());
    }
    Ok(Facts(facts))
}

impl Facts {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    fn check(&self, keyspace: &str, range: &KeyRange) -> Result<(), String> {
        let format = self.get("format").and_then(|bytes| bytes.try_into().ok());
        match format.map(u64::from_be_bytes) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(format!(
                    "is of format {other}, and this version knows {FORMAT}"
                ));
            }
            None => return Err("does not tell its format".to_owned()),
        }
        let saved = String::from_utf8_lossy(self.get("keyspace").unwrap_or_default());
        if saved != keyspace {
            return Err(format!(
                "is a copy of keyspace {saved:?}, and {keyspace:?} was asked for; give another folder"
            ));
        }
        let saved = KeyRange {
            start: Key::copy_from_slice(self.get("start").unwrap_or_default()),
            end: self.get("end").map(Key::copy_from_slice),
        };
        if saved != *range {
            return Err(format!(
                "is a copy of the range {saved:?}, and {range:?} was asked for; give another folder"
            ));
        }
        Ok(())
    }

    fn position(&self) -> Result<Option<Position>, String> {
        let Some(bytes) = self.get("position") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(bytes);
        let position = text.parse();
        position
            .map(Some)
            .map_err(|error: StorageError| format!("replica.redb is damaged: {error}"))
    }
}

fn encode(entry: &Entry, buffer: &mut Vec<u8>) {
    let (tag, number) = match entry.lifetime {
        EntryLifetime::Forever => (0, 0),
        EntryLifetime::Until(time) => (1, time.0),
        EntryLifetime::Session => (2, 0),
    };
    buffer.clear();
    buffer.extend(entry.revision.0.to_be_bytes());
    buffer.push(tag);
    buffer.extend(number.to_be_bytes());
    buffer.extend(&entry.value);
}

fn decode(bytes: &[u8]) -> Option<Entry> {
    let (head, value) = bytes.split_at_checked(HEAD_BYTES)?;
    let (revision, rest) = head.split_first_chunk::<8>()?;
    let (tag, number) = rest.split_first()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some(Entry {
        value: Key::copy_from_slice(value),
        revision: Revision(u64::from_be_bytes(*revision)),
        lifetime: match tag {
            0 => EntryLifetime::Forever,
            1 => EntryLifetime::Until(UnixMillis(number)),
            2 => EntryLifetime::Session,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use storage_protocol::Epoch;

    use super::*;

    fn folder(path: &Path, keyspace: &str) -> Folder {
        Folder {
            path: path.to_owned(),
            keyspace: keyspace.to_owned(),
        }
    }

    fn entry(value: &'static str, lifetime: EntryLifetime) -> Entry {
        Entry {
            value: value.into(),
            revision: Revision(7),
            lifetime,
        }
    }

    fn at(revision: u64) -> Position {
        Position {
            epoch: Epoch(0xe),
            revision: Revision(revision),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(&place.path().join("a/b"), "models");
        let range = KeyRange::prefix("k");
        let (disk, held) = Disk::open(&folder, &range, usize::MAX).unwrap();
        assert!(held.is_none());
        let rows = [
            (
                Key::from("k1"),
                Some(entry("", EntryLifetime::Until(UnixMillis(5)))),
            ),
            (Key::from("k2"), Some(entry("two", EntryLifetime::Session))),
            (
                Key::from("k3"),
                Some(entry("three", EntryLifetime::Forever)),
            ),
        ];
        disk.write(at(7), &rows).unwrap();
        disk.write(at(9), &[("k2".into(), None)]).unwrap();
        drop(disk);
        let (_disk, held) = Disk::open(&folder, &range, usize::MAX).unwrap();
        let held = held.unwrap();
        assert_eq!(held.position, Some(at(9)));
        assert!(held.proven.is_none());
        let expected: BTreeMap<_, _> = rows
            .into_iter()
            .filter_map(|(key, entry)| Some((key, entry?)))
            .filter(|(key, _)| key != "k2")
            .collect();
        assert_eq!(held.entries(), &expected);
    }

    #[test]
    fn a_folder_of_something_else_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let range = KeyRange::prefix("k");
        let mine = folder(&place.path().join("r"), "models");
        let refusal = |folder: &Folder, range: &KeyRange, max: usize| {
            let error = Disk::open(folder, range, max).unwrap_err();
            error.to_string()
        };
        let (disk, _) = Disk::open(&mine, &range, usize::MAX).unwrap();
        assert!(refusal(&mine, &range, usize::MAX).contains("in use by another"));
        let rows = [(
            Key::from("k"),
            Some(entry("123456", EntryLifetime::Forever)),
        )];
        disk.write(at(7), &rows).unwrap();
        drop(disk);
        let other = folder(&mine.path, "other");
        let text = refusal(&other, &range, usize::MAX);
        assert!(
            text.contains("\"models\"") && text.contains("\"other\""),
            "{text}"
        );
        let text = refusal(&mine, &KeyRange::all(), usize::MAX);
        assert!(text.contains("[k..l)") && text.contains("[..)"), "{text}");
        let text = refusal(&mine, &range, 100);
        assert!(text.contains("memory_bytes_max is 100"), "{text}");
        fs::write(mine.path.join("notes.txt"), "mine").unwrap();
        assert!(refusal(&mine, &range, usize::MAX).contains("notes.txt"));
        fs::remove_file(mine.path.join("notes.txt")).unwrap();
        fs::write(mine.path.join("replica.redb"), "no database").unwrap();
        assert!(refusal(&mine, &range, usize::MAX).contains("fetch everything anew"));
    }

    #[test]
    fn a_file_that_was_not_finished_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let folder = folder(place.path(), "models");
        fs::write(place.path().join("replica.redb.new"), "half").unwrap();
        let (_disk, held) = Disk::open(&folder, &KeyRange::all(), usize::MAX).unwrap();
        assert!(held.is_none());
    }
}
