//! The folder of a replica that outlives its process.
//!
//! `replica.redb` holds one table of entries and one of facts: format, keyspace, range, position, and what the entries
//! add up to. What one call of [`Disk::write`] gets becomes visible in one synced transaction, so that after a kill or
//! power loss at any moment the file holds a state at some mark, with that mark's position. `lock` is held as long as the
//! folder is in use. A new file gets its name when it is whole.
//!
//! Nothing is served that was not verified: when the folder is opened, redb checks all of its pages, and here each entry
//! is checked against its own checksum and all of them against their sum. So a bit that flipped in a page that redb read,
//! changed elsewhere and wrote again under a new checksum is noticed too. The facts are written as they were verified or
//! made, never as they are read again: what was damaged meanwhile would get a checksum that is right. A file that is
//! damaged is put aside as `replica.redb.damaged`, and the copy begins anew.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};
use storage_protocol::{
    Entry, EntryLifetime, Key, KeyRange, Limit, Position, Revision, StorageError, UnixMillis,
    planted,
};

use crate::replica::error::ReplicaError;
use crate::replica::held::Held;
use crate::replica::options::Folder;
use crate::sync::lock;

const ENTRIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// Raised when the bytes in the tables mean something else. Those of an older one are begun anew.
const FORMAT: u64 = 2;

const FILE: &str = "replica.redb";

/// Not whole yet.
const NEW: &str = "replica.redb.new";

/// What was put aside; the next one takes its place.
const DAMAGED: &str = "replica.redb.damaged";

/// What redb may cache; the entries are in memory anyway.
const CACHE_BYTES: usize = 4 << 20;

/// Checksum, revision, lifetime's tag and number, before the value.
const HEAD_BYTES: usize = CHECKSUM_BYTES + 17;

/// CRC-32 of the key and of what follows.
const CHECKSUM_BYTES: usize = 4;

/// A key and what it is now; `None`: not there.
pub(in crate::replica) type Row = (Key, Option<Entry>);

/// An open folder.
#[derive(Debug)]
pub(in crate::replica) struct Disk {
    database: Database,
    /// As they stand on the disk, if it keeps what it gets.
    facts: Mutex<Facts>,
    folder: PathBuf,
    _lock: File,
}

/// Why a folder does not give its state.
#[derive(Debug)]
enum Trouble {
    /// It is left as it is.
    Refused(String),
    /// What is there is worth nothing.
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
    /// Opens or makes the folder, and reads the state it holds, if it holds one. Blocks.
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

    /// Writes what changed since the last call, and the position that the state stands at with it. All of it or nothing,
    /// on the disk when it returns. Blocks.
    pub(in crate::replica) fn write(
        &self,
        position: Position,
        rows: &[Row],
    ) -> Result<(), ReplicaError> {
        // One write at a time; what fails leaves them as they were.
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
                    // By what is there, not by what it says of itself: if that was damaged meanwhile, the sum is wrong
                    // from here on, and the next start notices.
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

/// [`load`]; what panics on the way is damage too.
fn load_caught(file: &Path, folder: &Folder, range: &KeyRange) -> Result<Loaded, Trouble> {
    // What is left of it after a panic is dropped, and the file is put aside.
    let loaded = catch_unwind(AssertUnwindSafe(|| load(file, folder, range)));
    loaded.unwrap_or_else(|_| Err(Trouble::Damaged(format!("{FILE} cannot be understood"))))
}

fn load(file: &Path, folder: &Folder, range: &KeyRange) -> Result<Loaded, Trouble> {
    let mut builder = builder();
    builder.set_check_integrity_on_open(!planted("folder-unverified"));
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
    if facts.sum() != Some(sum) && !planted("folder-unverified") {
        let what = format!("the entries of {FILE} are not those that were saved");
        return Err(Trouble::Damaged(what));
    }
    Ok(entries)
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
        if !["lock", FILE, NEW, DAMAGED].contains(&name.to_string_lossy().as_ref()) {
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
    // So that the name survives power loss; where a folder cannot be opened, it is fetched anew at worst.
    if let Ok(folder) = File::open(folder) {
        folder.sync_all()?;
    }
    Ok(())
}

const POSITION: &str = "position";
/// What the entries add up to.
const SUM: &str = "sum";
/// CRC-32 of all other facts.
const CHECKSUM: &str = "checksum";

/// The table of facts.
#[derive(Clone, Debug, Default)]
struct Facts(BTreeMap<String, Vec<u8>>);

fn read_facts(database: &Database) -> Result<Facts, redb::Error> {
    let transaction = database.begin_read()?;
    Ok(Facts::of(&transaction.open_table(FACTS)?)?)
}

impl Facts {
    fn of(
        table: &impl ReadableTable<&'static str, &'static [u8]>,
    ) -> Result<Self, redb::StorageError> {
        let mut facts = BTreeMap::new();
        for row in table.iter()? {
            let (name, value) = row?;
            facts.insert(name.value().to_owned(), value.value().to_vec());
        }
        Ok(Self(facts))
    }

    fn write(&mut self, table: &mut Table<'_, &str, &[u8]>) -> Result<(), redb::StorageError> {
        let checksum = self.checksum();
        self.set(CHECKSUM, &checksum);
        for (name, value) in &self.0 {
            table.insert(name.as_str(), value.as_slice())?;
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.0.insert(name.to_owned(), value.to_vec());
    }

    fn sum(&self) -> Option<Sum> {
        Sum::decode(self.get(SUM)?)
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut hasher = crc32fast::Hasher::new();
        for (name, value) in self.0.iter().filter(|(name, _)| *name != CHECKSUM) {
            for bytes in [name.as_bytes(), value] {
                hasher.update(&(bytes.len() as u64).to_be_bytes());
                hasher.update(bytes);
            }
        }
        hasher.finalize().to_be_bytes()
    }

    fn check(&self, keyspace: &str, range: &KeyRange) -> Result<(), Trouble> {
        let format = self.get("format").and_then(|bytes| bytes.try_into().ok());
        match format.map(u64::from_be_bytes) {
            Some(newer) if newer > FORMAT => {
                return Err(Trouble::Refused(format!(
                    "is of format {newer}, and this version knows {FORMAT}"
                )));
            }
            Some(FORMAT) if self.get(CHECKSUM) == Some(&self.checksum()) => {}
            Some(older) if older < FORMAT => {
                let what = format!("it is of format {older}, which had no checksums");
                return Err(Trouble::Damaged(what));
            }
            _ => {
                let what = format!("the facts of {FILE} are not those that were saved");
                return Err(Trouble::Damaged(what));
            }
        }
        let saved = String::from_utf8_lossy(self.get("keyspace").unwrap_or_default());
        if saved != keyspace {
            return Err(Trouble::Refused(format!(
                "is a copy of keyspace {saved:?}, and {keyspace:?} was asked for; give another folder"
            )));
        }
        let saved = KeyRange {
            start: Key::copy_from_slice(self.get("start").unwrap_or_default()),
            end: self.get("end").map(Key::copy_from_slice),
        };
        if saved != *range {
            return Err(Trouble::Refused(format!(
                "is a copy of the range {saved:?}, and {range:?} was asked for; give another folder"
            )));
        }
        Ok(())
    }

    fn position(&self) -> Result<Option<Position>, Trouble> {
        let Some(bytes) = self.get(POSITION) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(bytes);
        let position = text.parse();
        position.map(Some).map_err(|error: StorageError| {
            Trouble::Damaged(format!("its position is damaged: {error}"))
        })
    }
}

/// What the entries add up to, in whatever order they come and go: their number, and the sum of their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    entries: u64,
    checksums: u64,
}

impl Sum {
    fn add(&mut self, key: &[u8], row: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        self.checksums = self.checksums.wrapping_add(row_checksum(key, row).into());
    }

    fn subtract(&mut self, key: &[u8], row: &[u8]) {
        self.entries = self.entries.wrapping_sub(1);
        self.checksums = self.checksums.wrapping_sub(row_checksum(key, row).into());
    }

    fn encode(self) -> Vec<u8> {
        [self.entries.to_be_bytes(), self.checksums.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (entries, checksums) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            entries: u64::from_be_bytes(*entries),
            checksums: u64::from_be_bytes(checksums.try_into().ok()?),
        })
    }
}

/// Of a row by what it holds, whatever checksum stands in it.
fn row_checksum(key: &[u8], row: &[u8]) -> u32 {
    checksum(key, row.get(CHECKSUM_BYTES..).unwrap_or_default())
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

fn encode(key: &[u8], entry: &Entry, buffer: &mut Vec<u8>) {
    let (tag, number) = match entry.lifetime {
        EntryLifetime::Forever => (0, 0),
        EntryLifetime::Until(time) => (1, time.0),
        EntryLifetime::Session => (2, 0),
    };
    buffer.clear();
    buffer.extend([0; CHECKSUM_BYTES]);
    buffer.extend(entry.revision.0.to_be_bytes());
    buffer.push(tag);
    buffer.extend(number.to_be_bytes());
    buffer.extend(&entry.value);
    let checksum = row_checksum(key, buffer).to_be_bytes();
    buffer.splice(..CHECKSUM_BYTES, checksum);
}

/// `None`: it is not what was written.
fn decode(key: &[u8], row: &[u8]) -> Option<Entry> {
    let (head, value) = row.split_at_checked(HEAD_BYTES)?;
    let (written, head) = head.split_first_chunk::<CHECKSUM_BYTES>()?;
    let holds = row_checksum(key, row) == u32::from_be_bytes(*written);
    if !holds && !planted("folder-unverified") {
        return None;
    }
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
mod tests;
