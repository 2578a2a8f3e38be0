//! Gets: many keys at one revision, from memory if they are all there, else from a snapshot.

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::DBPinnableSlice;
use storage_protocol::native::ValuesLength;
use storage_protocol::{Entry, Key, KeyState, Limit, Reading, Result, Revision, StorageError};

use super::no_room;
use crate::engine::Room;
use crate::engine::rocks::layout;
use crate::engine::rocks::layout::{KeyspaceId, Table, entry_key};
use crate::engine::rocks::store::{NotInMemory, Store, StoreSnapshot};

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
    for _ in 0..OPTIMISTIC_READS {
        let before = store.revision();
        let mut answer = Answer::new(store, before, keys.len(), room);
        for key in keys {
            let row = store.row_in_memory(Table::Entries, &entry_key(keyspace, key))?;
            if let Err(error) = row.and_then(|row| answer.push(row)) {
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
    let snapshot = StoreSnapshot::take(store.clone());
    let mut answer = Answer::new(store, snapshot.revision(), keys.len(), room);
    for key in keys {
        answer.push(snapshot.row(Table::Entries, &entry_key(keyspace, key))?)?;
    }
    Ok(answer.finish(store))
}

struct Answer<'a> {
    revision: Revision,
    entries: Vec<Option<Entry>>,
    length: ValuesLength,
    length_max: usize,
    room: &'a dyn Room,
    /// Bytes taken of the room so far.
    taken: usize,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.room.give_back(self.taken);
    }
}

impl<'a> Answer<'a> {
    fn new(store: &Store, revision: Revision, keys: usize, room: &'a dyn Room) -> Self {
        Self {
            revision,
            entries: Vec::with_capacity(keys),
            length: ValuesLength::new(revision, keys),
            length_max: store.options.limits.message_bytes_max,
            room,
            taken: 0,
        }
    }

    fn push(&mut self, row: Option<DBPinnableSlice<'_>>) -> Result<()> {
        let entry = match &row {
            None => None,
            Some(row) => {
                let (head, at) = layout::parse_entry_value(row)?;
                match layout::state(head, Bytes::new) {
                    KeyState::Live(entry) => Some((entry, &row[at..])),
                    KeyState::Removed(_) => None,
                }
            }
        };
        let Some((mut entry, value)) = entry else {
            self.length.add_absent();
            self.entries.push(None);
            return self.check_length();
        };
        let bytes = self.length.add(entry.revision, entry.lifetime, value.len());
        self.check_length()?;
        if !self.room.take(bytes) {
            return Err(no_room());
        }
        self.taken += bytes;
        entry.value = Bytes::copy_from_slice(value);
        self.entries.push(Some(entry));
        Ok(())
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
        Reading {
            position: store.at(self.revision),
            value: std::mem::take(&mut self.entries),
        }
    }
}
