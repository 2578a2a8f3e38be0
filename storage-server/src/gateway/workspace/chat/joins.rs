//! How a socket comes into rooms, and out of them.

use std::time::{Duration, Instant};

use storage_protocol::rooms::{MessageId, Room, RoomId, Rooms};
use storage_protocol::{Lifetime, Revision, StorageError};

use super::super::frame::SaidRoom;
use super::super::outbox::Taken;
use super::super::rate::ROOMS_BURST;
use super::super::records::Look;
use super::access::Access;
use super::channel::OwnRooms;
use super::conversation::{Conversation, Done, Joined, Not, RETRY};
use crate::gateway::Utf8Bytes;

/// The most rooms that a socket is in.
const ROOMS_MAX: usize = 64;
/// The most users of a room.
const USERS_MAX: usize = 10_000;
/// How often a room is opened that others remove meanwhile.
const ATTEMPTS_MAX: usize = 4;
/// Who goes by more records than this has all of them read anew by a JOIN once in this time at most.
const CHEAP_RECORDS: usize = 64;
const FRESH: Duration = Duration::from_secs(1);

fn too_many_rooms() -> StorageError {
    StorageError::invalid(format!(
        "a socket is in {ROOMS_MAX} rooms at most: leave one"
    ))
}

impl Conversation {
    pub(super) async fn join(&mut self, said: &SaidRoom, is_ping: bool, after: &str) -> Done {
        let after = match after {
            "" => None,
            uuid => Some(uuid.parse::<MessageId>()?),
        };
        let key = self.key_of(said).await?;
        let is_cheap = self.looked.records() <= CHEAP_RECORDS;
        if !is_ping && (is_cheap || self.fresh.elapsed() >= FRESH) {
            // What was given just now is enough, and what was taken is gone.
            Box::pin(self.look_again(Look::Fresh)).await?;
            self.fresh = Instant::now();
        }
        let look = if is_ping { Look::AsSeen } else { Look::Fresh };
        let access = self.access_to(&key, look).await?;
        let rooms = self.rooms()?;
        for _ in 0..ATTEMPTS_MAX {
            let room = match is_ping {
                true => match rooms.open(&key).await? {
                    Some(room) => room,
                    None => return Ok(()),
                },
                false => match rooms.open(&key).await? {
                    Some(room) => room,
                    None => {
                        if self.joined.len() >= ROOMS_MAX {
                            return Err(too_many_rooms().into());
                        }
                        self.may_make_one()?;
                        rooms.open_or_create(&key, &said.label).await?.0
                    }
                },
            };
            // One of the same object that was removed meanwhile.
            let mut gone = self.joined.values();
            let gone = gone.find(|joined| joined.room.key == key && joined.room.id != room.id);
            if let Some(gone) = gone.map(|joined| joined.room.id) {
                self.leave(gone).await;
            }
            match self.enter(&rooms, &room, access.clone(), is_ping).await {
                Ok(false) => return Ok(()),
                Ok(true) => return self.greet_all(&room, after).await,
                // It was removed meanwhile; so there is another one.
                Err(StorageError::CheckFailed { .. }) => self.leave(room.id).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err("the room is removed again and again".into())
    }

    /// Greets, and leaves no gap where that breaks off: it goes on later, before anything else is told; or, where nothing was
    /// sent, the peer is out and may JOIN again.
    async fn greet_all(&mut self, room: &Room, after: Option<MessageId>) -> Done {
        let error = match self.greet(room, after).await {
            Err(Not::Later(error)) => error,
            done => return done,
        };
        match self.joined.get(&room.id) {
            Some(joined) if joined.last > Revision::ZERO => {
                tracing::debug!(socket = self.name, %error, "a member is told the rest later");
                self.waiting = Some((Taken::Behind, Instant::now() + RETRY));
                Ok(())
            }
            _ => {
                self.leave(room.id).await;
                Err(Not::Later(error))
            }
        }
    }

    fn may_make_one(&self) -> Result<(), Not> {
        let identity = self.session.socket.identity();
        let makers = &self.session.state.makers;
        match makers.allows(identity.principal(), Instant::now()) {
            true => Ok(()),
            false => Err(Not::Done(format!(
                "a user makes {ROOMS_BURST} rooms at once, and then one in a second"
            ))),
        }
    }

    /// Puts the socket into a room; false: a ping of one that is there.
    async fn enter(
        &mut self,
        rooms: &OwnRooms,
        room: &Room,
        access: Access,
        is_ping: bool,
    ) -> Result<bool, StorageError> {
        let login = self.looked.rights.login.clone();
        if let Some(joined) = self.joined.get_mut(&room.id) {
            (joined.access, joined.is_judged) = (access, true);
            let is_there = joined.attached.channel.has(&login, &self.name);
            if !is_there {
                // Removed by somebody else, with a session that has ended for instance.
                rooms
                    .join(room, &login, &self.name, Lifetime::Session)
                    .await?;
            }
            return Ok(!is_ping);
        }
        if self.joined.len() >= ROOMS_MAX {
            return Err(too_many_rooms());
        }
        let own = Rooms::new(self.hub.own().clone());
        let session = &self.session;
        let attaching = session.state.channels.attach(
            &session.server,
            &own,
            room,
            session.id,
            session.outbox.clone(),
        );
        let attached = attaching.await?;
        if attached.channel.len() >= USERS_MAX {
            let why = format!("a room has {USERS_MAX} users at most");
            return Err(StorageError::invalid(why));
        }
        rooms
            .join(room, &login, &self.name, Lifetime::Session)
            .await?;
        let joined = Joined {
            room: room.clone(),
            attached,
            access,
            is_judged: true,
            last: Revision::ZERO,
            told: Utf8Bytes::default(),
        };
        self.joined.insert(room.id, joined);
        Ok(true)
    }

    /// Takes the socket out of a room. Its presence ends with its session at the latest.
    pub(super) async fn leave(&mut self, room: RoomId) {
        if self.joined.remove(&room).is_none() {
            return;
        }
        // With the rights of the server: whoever may not be there any more has to be out, too.
        let own = Rooms::new(self.hub.own().clone());
        if let Err(error) = own.leave(room, &self.looked.rights.login, &self.name).await {
            tracing::debug!(%error, "a socket could not leave a room");
        }
    }
}
