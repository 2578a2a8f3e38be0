//! Gets: many keys at one revision, from memory if they are all there, else from a snapshot.

use std::sync::Arc;

use rocksdb::DBPinnableSlice;
use storage_protocol::native::ValuesLength;
use storage_protocol::{
    Entry, Key, KeyState, Limit, Reading, Result, Revision, StorageError, Value,
};

use super::no_room;
use crate::engine::Room;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{Head, KeyspaceId, Table, entry_key};
use crate::engine::rocks::store::{NotInMemory, Place, Store, StoreSnapshot};

/// Attempts to read all keys between two equal looks at the revision, before a snapshot is taken instead.
const OPTIMISTIC_READS: u32 = 2;

/// The answer to a get.
pub(crate) type Entries = Reading<Vec<Option<Entry>>>;

/// Reads keys at one revision from memory alone; `None` where the store moved on too fast to prove it.
pub(crate) fn get_in_memory(
    store: &Store,
    keyspace: KeyspaceId,
    keys: &[Key],
    room: &dyn Room,
) -> Result<Result<Option<Entries>>, NotInMemory> {
    let mut row_key = Vec::new();
    for _ in 0..OPTIMISTIC_READS {
        let before = store.revision();
        let mut answer = Answer::new(store, before, keys.len(), room);
        for key in keys {
            layout::write_entry_key(&mut row_key, keyspace, key);
            let place = match answer.take_cached(&row_key) {
                Ok(pushed) => match pushed {
                    Ok(()) => continue,
                    Err(error) => return Ok(Err(error)),
                },
                Err(place) => place,
            };
            let row = store.row_in_memory(Table::Entries, &row_key)?;
            if let Err(error) = row.and_then(|row| answer.push(row, place)) {
                return Ok(Err(error));
            }
        }
        if store.revision() == before {
            return Ok(Ok(Some(answer.finish(store))));
        }
    }
    Ok(Ok(None))
}

/// Reads keys at one revision, from disk where need be. Blocks.
pub(crate) fn get(
    store: &Arc<Store>,
    keyspace: KeyspaceId,
    keys: &[Key],
    room: &dyn Room,
) -> Result<Entries> {
    let row_keys: Vec<_> = keys.iter().map(|key| entry_key(keyspace, key)).collect();
    // Ordering: the places before the snapshot, since they take what was read after them. Not those of a key that comes
    // twice, which are not waited for.
    let mut places: Vec<_> = row_keys
        .iter()
        .map(|row_key| store.entry_cache.get_or_place(row_key).err().flatten())
        .collect();
    let snapshot = StoreSnapshot::take(store.clone());
    let mut answer = Answer::new(store, snapshot.revision(), keys.len(), room);
    for (row_key, place) in row_keys.iter().zip(&mut places) {
        answer.push(snapshot.row(Table::Entries, row_key)?, place.take())?;
    }
    Ok(answer.finish(store))
}

struct Answer<'a> {
    store: &'a Store,
    /// The entry cache has what this revision has.
    is_cached: bool,
    revision: Revision,
    entries: Vec<Option<Entry>>,
    length: ValuesLength,
    length_max: usize,
    room: &'a dyn Room,
    /// Bytes taken of the room so far.
    taken: usize,
    /// Entries that the cache had.
    hits: u64,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.room.give_back(self.taken);
    }
}

impl<'a> Answer<'a> {
    fn new(store: &'a Store, revision: Revision, keys: usize, room: &'a dyn Room) -> Self {
        Self {
            store,
            is_cached: store.entry_cache.is_current(revision),
            revision,
            entries: Vec::with_capacity(keys),
            length: ValuesLength::new(revision, keys),
            length_max: store.options.limits.message_bytes_max,
            room,
            taken: 0,
            hits: 0,
        }
    }

    /// Takes an entry from the cache, if that has it; else it is to be read, and may have a place in the cache.
    fn take_cached(
        &mut self,
        row_key: &[u8],
    ) -> std::result::Result<Result<()>, Option<Place<'a>>> {
        if !self.is_cached {
            return Err(None);
        }
        let entry = self.store.entry_cache.get_or_place(row_key)?;
        let (head, value) = match entry.parts() {
            Ok((head, _, Some(value))) => (head, value),
            Ok((_, _, None)) => return Err(None),
            Err(damaged) => return Ok(Err(damaged.into())),
        };
        self.hits += 1;
        Ok(self.add(head, value))
    }

    /// Takes an entry from its row, and fills the place that it may have in the cache.
    fn push(&mut self, row: Option<DBPinnableSlice<'_>>, place: Option<Place<'_>>) -> Result<()> {
        let Some(row) = row else {
            return self.add_absent();
        };
        let (head, at) = layout::parse_entry_value(&row)?;
        let value = row.get(at..).unwrap_or_default();
        if let Some(place) = place {
            place.fill(self.store.entry_cache.entry(&row)?);
        }
        self.add(head, value)
    }

    fn add(&mut self, head: Head, value: &[u8]) -> Result<()> {
        let KeyState::Live(mut entry) = layout::state(head, Value::new) else {
            return self.add_absent();
        };
        let bytes = self.length.add(entry.revision, entry.lifetime, value.len());
        self.check_length()?;
        if !self.room.take(bytes) {
            return Err(no_room());
        }
        self.taken += bytes;
        entry.value = Value::copy_from_slice(value);
        self.entries.push(Some(entry));
        Ok(())
    }

    fn add_absent(&mut self) -> Result<()> {
        self.length.add_absent();
        self.entries.push(None);
        self.check_length()
    }

    fn check_length(&self) -> Result<()> {
        let bytes = self.length.bytes();
        if bytes > self.length_max {
            return Err(StorageError::limit(Limit::Message, bytes, self.length_max));
        }
        Ok(())
    }

    fn finish(mut self, store: &Store) -> Entries {
        self.taken = 0;
        let cache = &self.store.entry_cache;
        cache.hits.inc_by(self.hits);
        cache.misses.inc_by(self.entries.len() as u64 - self.hits);
        Reading {
            position: store.at(self.revision),
            value: std::mem::take(&mut self.entries),
        }
    }
}
