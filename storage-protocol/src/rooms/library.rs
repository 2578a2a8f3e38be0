//! [`Rooms`]: opening, posting, deleting, removing.

use std::fmt;

use super::keys::Keys;
use super::record::{MessageRecord, RoomRecord};
use super::{
    Draft, INFO_PAIRS_MAX, Message, MessageId, PREFIX, PREFIX_BYTES_MAX, Room, RoomId, RoomKey,
    RoomPlace,
};
use crate::{
    Batch, CommitOptions, Entry, Key, KeyRange, Lifetime, Position, Result, Revision, ScanOptions,
    Storage, StorageError, StorageExt, UnixMillis,
};

/// How often a room is looked for that others make and remove at the same time.
const ATTEMPTS_MAX: usize = 16;
/// Keys that go in one commit when a room is removed: other commits wait for it.
const KEYS_PER_REMOVAL: u64 = 500;

/// The rooms of a keyspace, under a prefix. Cheap to clone where the storage is.
#[derive(Clone)]
pub struct Rooms<S> {
    pub(super) storage: S,
    pub(super) keys: Keys,
}

impl<S: fmt::Debug> fmt::Debug for Rooms<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rooms")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

/// Who asks for a message to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletedBy<'a> {
    /// This one, who may delete messages of its own.
    Author(&'a str),
    /// One who may delete all of them.
    Anyone,
}

/// What became of a message that was to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone by the commit at this position; it was this, if it could be read.
    Done(Position, Option<Message>),
    /// It is not there: it never was, or somebody else was faster.
    Missing,
    /// It is of this author, so it stays.
    OfAnother(String),
}

impl<S: Storage> Rooms<S> {
    /// Rooms at the usual place, [`PREFIX`].
    #[must_use]
    pub fn new(storage: S) -> Self {
        Self {
            storage,
            keys: Keys::new(Key::from_static(PREFIX.as_bytes())),
        }
    }

    /// Rooms under another prefix, which other keys must not begin with.
    ///
    /// # Errors
    /// `InvalidArgument` for a prefix of over [`PREFIX_BYTES_MAX`] bytes.
    pub fn under(storage: S, prefix: impl Into<Key>) -> Result<Self> {
        let prefix = prefix.into();
        if prefix.len() > PREFIX_BYTES_MAX {
            return Err(StorageError::invalid(format!(
                "the prefix of rooms has at most {PREFIX_BYTES_MAX} bytes, this has {}",
                prefix.len()
            )));
        }
        Ok(Self {
            storage,
            keys: Keys::new(prefix),
        })
    }

    /// The storage that they are in.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// What a key of theirs is; `None`: an index row, or no key of a room.
    #[must_use]
    pub fn place(&self, key: &[u8]) -> Option<RoomPlace> {
        self.keys.parse(key)
    }

    /// The range of all that belongs to a room: its record, messages and presence. For access rules, and watches of one's own.
    #[must_use]
    pub fn range(&self, room: RoomId) -> KeyRange {
        self.keys.room_range(room)
    }

    /// The room of an object; `None`: there is none. A row that leads to the room of another object leads nowhere.
    ///
    /// # Errors
    /// As [`Storage::get`]; `Unsupported` for a record that cannot be read.
    pub async fn open(&self, key: &RoomKey) -> Result<Option<Room>> {
        match self.index_row(key).await? {
            Some(row) => self.led_to(&row, key).await,
            None => Ok(None),
        }
    }

    /// The room that the index row of an object leads to, if it is the object's.
    async fn led_to(&self, row: &Entry, key: &RoomKey) -> Result<Option<Room>> {
        let room = self.get(room_of(row)?).await?;
        Ok(room.filter(|room| room.key == *key))
    }

    /// The room with an id; `None`: there is none, or it is being removed.
    ///
    /// # Errors
    /// As [`Rooms::open`].
    pub async fn get(&self, room: RoomId) -> Result<Option<Room>> {
        let Some(entry) = self.storage.get_one(self.keys.record(room)).await? else {
            return Ok(None);
        };
        let record = RoomRecord::decode(&entry.value)?;
        Ok((!record.closed).then(|| record.room(room, entry.revision)))
    }

    /// The room of an object, and whether it was made by this call. Two at once make one room.
    ///
    /// `label`: what it is called if it is made; at most [`NAME_BYTES_MAX`](super::NAME_BYTES_MAX) bytes.
    ///
    /// # Errors
    /// As [`Storage::commit`]; `InvalidArgument` for a bad label; `CheckFailed` where others make and remove it without end.
    pub async fn open_or_create(&self, key: &RoomKey, label: &str) -> Result<(Room, bool)> {
        super::check_name("the label of a room", label, 0)?;
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let row = self.index_row(key).await?;
            if let Some(row) = &row
                && let Some(room) = self.led_to(row, key).await?
            {
                return Ok((room, false));
            }
            let index = self.keys.index(key);
            // A row that leads nowhere is of a room that somebody removed or changed by other means.
            let batch = match &row {
                Some(row) => Batch::new().check_revision(index.clone(), row.revision),
                None => Batch::new().check_absent(index.clone()),
            };
            let id = RoomId::random()?;
            let record = RoomRecord {
                key: key.clone(),
                label: label.to_owned(),
                created: UnixMillis::now(),
                closed: false,
            };
            let batch = batch
                .put(index, id.to_string())
                .put(self.keys.record(id), record.encode());
            match self.commit(batch, "room created").await {
                Ok(position) => return Ok((record.room(id, position.revision), true)),
                Err(error @ StorageError::CheckFailed { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| StorageError::invalid("no attempt was made")))
    }

    /// The objects that have rooms, in order, at most `limit` of them, behind `after`; each with the id of its room. Rows that
    /// cannot be read count, and are left out.
    ///
    /// # Errors
    /// As [`Storage::scan`].
    pub async fn list(
        &self,
        after: Option<&RoomKey>,
        limit: u64,
    ) -> Result<Vec<(RoomKey, RoomId)>> {
        let mut range = self.keys.index_range();
        if let Some(after) = after {
            range.start = [&self.keys.index(after)[..], b"\0"].concat().into();
        }
        let options = ScanOptions {
            limit: Some(limit),
            ..ScanOptions::default()
        };
        let mut scan = self.storage.scan(range, options).await?;
        let mut rooms = Vec::new();
        while let Some(page) = scan.next_page().await? {
            for item in page {
                let crate::KeyState::Live(entry) = item.state else {
                    continue;
                };
                if let Some(key) = self.keys.parse_index(&item.key)
                    && let Ok(room) = room_of(&entry)
                {
                    rooms.push((key, room));
                }
            }
        }
        Ok(rooms)
    }

    /// Posts a message. Its order among the messages of the room is that of the commits.
    ///
    /// # Errors
    /// As [`Storage::commit`]; `CheckFailed` for the record of the room: it was removed or changed, open it again.
    /// `InvalidArgument` for more than [`INFO_PAIRS_MAX`] pairs of info.
    pub async fn post(&self, room: &Room, draft: &Draft) -> Result<Message> {
        let batch = self.post_with(Batch::new(), room, draft)?;
        let position = self.commit(batch, "message").await?;
        Ok(draft.posted(position.revision))
    }

    /// Adds a post to a batch, so that it is one commit with other changes. One message for each room and commit. The message is
    /// [`Draft::posted`] by the revision of the commit.
    ///
    /// # Errors
    /// `InvalidArgument` for more than [`INFO_PAIRS_MAX`] pairs of info, or a bad author.
    pub fn post_with(&self, batch: Batch, room: &Room, draft: &Draft) -> Result<Batch> {
        if draft.info.len() > INFO_PAIRS_MAX {
            return Err(StorageError::invalid(format!(
                "the info of a message has at most {INFO_PAIRS_MAX} pairs, this has {}",
                draft.info.len()
            )));
        }
        super::check_name("the author of a message", &draft.author, 1)?;
        let value = MessageRecord(draft.clone()).encode();
        let prefix = self.keys.messages(room.id);
        Ok(self
            .checked(batch, room)
            .put_stamped(prefix, value, Lifetime::Forever))
    }

    /// The message with an id; `None`: it is not there.
    ///
    /// # Errors
    /// As [`Storage::get`]; `Unsupported` where there is something that cannot be read.
    pub async fn message(&self, room: RoomId, id: MessageId) -> Result<Option<Message>> {
        let key = self.keys.message(room, id.revision);
        let Some(entry) = self.storage.get_one(key).await? else {
            return Ok(None);
        };
        let message = MessageRecord::decode(&entry.value)?.message(id.revision);
        Ok((message.id == id).then_some(message))
    }

    /// Deletes a message, if whoever asks may. Watchers are told what it was. What cannot be read is deleted by its revision, by
    /// who may delete all of them.
    ///
    /// # Errors
    /// As [`Storage::commit`]; `Unsupported` where an author asks for something that cannot be read.
    pub async fn delete(&self, room: RoomId, id: MessageId, by: DeletedBy<'_>) -> Result<Deleted> {
        let key = self.keys.message(room, id.revision);
        let Some(entry) = self.storage.get_one(key.clone()).await? else {
            return Ok(Deleted::Missing);
        };
        let message = match (MessageRecord::decode(&entry.value), by) {
            (Ok(record), _) => Some(record.message(id.revision)),
            (Err(_), DeletedBy::Anyone) => None,
            (Err(error), DeletedBy::Author(_)) => return Err(error.into()),
        };
        if let Some(message) = &message {
            if message.id != id {
                return Ok(Deleted::Missing);
            }
            if let DeletedBy::Author(author) = by
                && author != message.author
            {
                return Ok(Deleted::OfAnother(message.author.clone()));
            }
        }
        let batch = Batch::new()
            .check_revision(key.clone(), entry.revision)
            .remove(key);
        let options = CommitOptions::labelled("message deleted").with_previous();
        match self.storage.commit(batch, options).await {
            Ok(position) => Ok(Deleted::Done(position, message)),
            Err(StorageError::CheckFailed { .. }) => Ok(Deleted::Missing),
            Err(error) => Err(error),
        }
    }

    /// Removes a room with all that belongs to it; false: there was nothing of it. From its first commit on nobody can post there or
    /// join, and its object can have a new room. If it fails in between, call it again.
    ///
    /// # Errors
    /// As [`Storage::commit`] and [`Storage::scan`].
    pub async fn remove(&self, room: RoomId) -> Result<bool> {
        let key = self.keys.record(room);
        let mut found = false;
        while let Some(entry) = self.storage.get_one(key.clone()).await? {
            found = true;
            let mut record = RoomRecord::decode(&entry.value)?;
            if record.closed {
                break;
            }
            let row = self.index_row(&record.key).await?;
            let index = self.keys.index(&record.key);
            record.closed = true;
            let batch = Batch::new()
                .check_revision(key.clone(), entry.revision)
                .put(key.clone(), record.encode());
            // Of another room by now, if this one's was lost.
            let batch = match row {
                Some(row) if room_of(&row)? == room => {
                    let batch = batch.check_revision(index.clone(), row.revision);
                    batch.remove(index)
                }
                _ => batch,
            };
            match self.commit(batch, "room closed").await {
                Ok(_) => break,
                Err(StorageError::CheckFailed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        loop {
            let options = ScanOptions {
                keys_only: true,
                // The record sorts behind messages and presence, and goes with the last of them.
                limit: Some(KEYS_PER_REMOVAL),
                ..ScanOptions::default()
            };
            let scan = self
                .storage
                .scan(self.keys.room_range(room), options)
                .await?;
            let items = scan.collect().await?;
            if items.is_empty() {
                return Ok(found);
            }
            found = true;
            let batch = items
                .into_iter()
                .fold(Batch::new(), |batch, item| batch.remove(item.key));
            self.commit(batch, "room removed").await?;
        }
    }

    /// A batch that fails if the room is not what it was.
    pub(super) fn checked(&self, batch: Batch, room: &Room) -> Batch {
        batch.check_revision(self.keys.record(room.id), room.revision)
    }

    pub(super) async fn commit(&self, batch: Batch, label: &str) -> Result<Position> {
        let options = CommitOptions::labelled(label);
        self.storage.commit(batch, options).await
    }

    async fn index_row(&self, key: &RoomKey) -> Result<Option<Entry>> {
        self.storage.get_one(self.keys.index(key)).await
    }
}

/// The room that an index row leads to.
fn room_of(row: &Entry) -> Result<RoomId> {
    let text = std::str::from_utf8(&row.value).unwrap_or_default();
    text.parse().map_err(|_| StorageError::Unsupported {
        what: "an index row of rooms that has no id of a room".to_owned(),
    })
}

/// The message that a value is, put by the commit of the revision `put` at the key of `revision`. `None`: it cannot be read, or
/// pretends to be later than it is, which would hide what comes behind it from who goes on there.
pub(super) fn message_at(
    value: &crate::Value,
    revision: Revision,
    put: Revision,
) -> Option<Message> {
    let record = MessageRecord::decode(value).ok();
    let record = record.filter(|_| revision <= put);
    record.map(|record| record.message(revision))
}
