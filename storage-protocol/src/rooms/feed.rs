//! Following a room: its watch, as events of a room.

use std::collections::VecDeque;

use super::keys::Keys;
use super::library::message_at;
use super::record::RoomRecord;
use super::{Message, PlaceKind, Room, RoomId, Rooms};
use crate::{
    ChangeKind, Continuity, Key, KeyState, Position, Result, Revision, Storage, Value, Watch,
    WatchEvent, WatchOptions, WatchStart,
};

/// What happens in a room, in the order of commits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoomEvent {
    /// A message was posted.
    Message(Message),
    /// The message of this revision was deleted.
    Deleted {
        /// Of the message.
        revision: Revision,
        /// What it was, where that is told: it is of [`Rooms::delete`].
        message: Option<Message>,
    },
    /// A socket of a user joined, or joined again.
    Joined {
        /// The user.
        user: String,
        /// The socket.
        socket: String,
    },
    /// A socket of a user left, or its session has expired.
    Left {
        /// The user.
        user: String,
        /// The socket.
        socket: String,
    },
    /// The room has another record.
    Changed(Room),
    /// The room is removed, or begins to be.
    Removed,
    /// All up to here was told; a good place to follow from.
    Progress(Position),
    /// Members and messages that are not told from here to the next [`RoomEvent::Progress`] are gone.
    Reset,
    /// What a break of the connection meant: see [`Continuity`].
    Continuity(Continuity),
}

/// A room that is followed. Dropping it ends that.
#[derive(Debug)]
pub struct RoomFeed {
    watch: Watch,
    keys: Keys,
    room: RoomId,
    ready: VecDeque<RoomEvent>,
}

impl<S: Storage> Rooms<S> {
    /// Follows a room from a place on: each message, each deletion, who joins and leaves, in the order of commits. The place is
    /// that of a page, of members, or of an earlier [`RoomEvent::Progress`].
    ///
    /// # Errors
    /// As [`Storage::watch`] in mode `Every`: `Compacted` where the log does not reach back to the start; then read
    /// [`Rooms::messages_after`] and follow from there.
    pub async fn follow(&self, room: RoomId, start: WatchStart) -> Result<RoomFeed> {
        let range = self.keys.room_range(room);
        let watch = self
            .storage
            .watch(range, WatchOptions::every(start))
            .await?;
        Ok(RoomFeed {
            watch,
            keys: self.keys.clone(),
            room,
            ready: VecDeque::new(),
        })
    }
}

impl RoomFeed {
    /// Where it began.
    #[must_use]
    pub fn start(&self) -> Position {
        self.watch.start()
    }

    /// How far it has told.
    #[must_use]
    pub fn position(&self) -> Position {
        self.watch.status().position
    }

    /// Asks for a [`RoomEvent::Progress`] behind what is due.
    pub fn request_progress(&mut self) {
        self.watch.request_progress(0);
    }

    /// The next event; `None` when it has ended. What cannot be read is not told. Cancel-safe.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next(&mut self) -> Result<Option<RoomEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.watch.next().await? {
                None => return Ok(None),
                Some(event) => self.take(event),
            }
        }
    }

    fn take(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Commit(commit) => {
                for change in &commit.changes {
                    let told = match &change.kind {
                        ChangeKind::Put { value, .. } => {
                            self.put(&change.key, value, commit.revision)
                        }
                        ChangeKind::Removed { previous } => {
                            self.removed(&change.key, previous.as_ref())
                        }
                        ChangeKind::Signalled { .. } => None,
                    };
                    self.ready.extend(told);
                }
            }
            WatchEvent::State { key, state } => {
                let told = match state {
                    KeyState::Live(entry) => self.put(&key, &entry.value, entry.revision),
                    KeyState::Removed(_) => self.removed(&key, None),
                };
                self.ready.extend(told);
            }
            WatchEvent::Progress { position, .. } => {
                self.ready.push_back(RoomEvent::Progress(position));
            }
            WatchEvent::Reset => self.ready.push_back(RoomEvent::Reset),
            WatchEvent::Continuity(continuity) => {
                self.ready.push_back(RoomEvent::Continuity(continuity));
            }
        }
    }

    fn put(&self, key: &Key, value: &Value, put: Revision) -> Option<RoomEvent> {
        match self.keys.parse(key)?.kind {
            PlaceKind::Presence { user, socket } => Some(RoomEvent::Joined { user, socket }),
            PlaceKind::Record => {
                let record = RoomRecord::decode(value).ok()?;
                Some(match record.closed {
                    true => RoomEvent::Removed,
                    false => RoomEvent::Changed(record.room(self.room, put)),
                })
            }
            PlaceKind::Message(at) => message_at(value, at, put).map(RoomEvent::Message),
        }
    }

    fn removed(&self, key: &Key, previous: Option<&Value>) -> Option<RoomEvent> {
        Some(match self.keys.parse(key)?.kind {
            PlaceKind::Presence { user, socket } => RoomEvent::Left { user, socket },
            PlaceKind::Record => RoomEvent::Removed,
            PlaceKind::Message(revision) => RoomEvent::Deleted {
                revision,
                message: previous.and_then(|value| message_at(value, revision, revision)),
            },
        })
    }
}
