//! A room, for all sockets of this server that are in it: one watch, and each frame put together once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use storage_protocol::rooms::{
    HistoryWish, Message, PAGE_MESSAGES_MAX, Room, RoomEvent, RoomFeed, Rooms,
};
use storage_protocol::{Position, Result, Revision, Storage, WatchStart};
use tokio_util::sync::CancellationToken;

use super::super::frame;
use super::super::outbox::{Frame, Outbox, What};
use super::super::registry::ReceiverId;
use crate::gateway::Utf8Bytes;

/// So many events are taken before those who are in the room are told of members.
const EVENTS_AT_ONCE: usize = 256;
/// After a watch that broke off.
const RETRY: Duration = Duration::from_secs(1);

/// The rooms of the keyspace, with the rights of the server.
pub(super) type OwnRooms = Rooms<Arc<dyn Storage>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) room: Room,
    /// The id as text.
    name: String,
    state: Mutex<State>,
    /// Ends its task.
    stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// The users, with their sockets.
    members: BTreeMap<String, BTreeSet<String>>,
    listeners: HashMap<ReceiverId, Arc<Outbox>>,
    /// Its frame, while it is true.
    update: Option<Utf8Bytes>,
    /// When the newest message was posted.
    last_updated: u64,
    /// Of the newest message that was told.
    told: Revision,
}

impl Channel {
    /// The room as it is now, and its watch from there on.
    pub(super) async fn open(rooms: &OwnRooms, room: Room) -> Result<(Arc<Self>, RoomFeed)> {
        let (members, position) = members(rooms, &room).await?;
        let wish = HistoryWish {
            limit: 1,
            ..HistoryWish::default()
        };
        let newest = rooms.history(room.id, wish).await?;
        let feed = rooms.follow(room.id, WatchStart::After(position)).await?;
        let newest = newest.messages.first().map(|message| message.time.0);
        let state = State {
            members,
            listeners: HashMap::new(),
            update: None,
            last_updated: newest.unwrap_or(room.created.0),
            told: position.revision,
        };
        let channel = Self {
            name: room.id.to_string(),
            state: Mutex::new(state),
            stop: CancellationToken::new(),
            room,
        };
        Ok((Arc::new(channel), feed))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, id: ReceiverId, outbox: Arc<Outbox>) {
        self.state().listeners.insert(id, outbox);
    }

    /// Whether others are left.
    pub(super) fn remove(&self, id: ReceiverId) -> bool {
        let mut state = self.state();
        state.listeners.remove(&id);
        !state.listeners.is_empty()
    }

    pub(super) fn has_listeners(&self) -> bool {
        !self.state().listeners.is_empty()
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) fn has(&self, user: &str, socket: &str) -> bool {
        let state = self.state();
        state
            .members
            .get(user)
            .is_some_and(|sockets| sockets.contains(socket))
    }

    /// How many users are in the room.
    pub(super) fn len(&self) -> usize {
        self.state().members.len()
    }

    /// Who is in the room.
    pub(super) fn update(&self) -> Utf8Bytes {
        let mut state = self.state();
        if let Some(update) = &state.update {
            return update.clone();
        }
        let update = self.frame(&state, None);
        state.update = Some(update.clone());
        update
    }

    /// The same with one more, who may be too new to have been told of.
    pub(super) fn update_with(&self, user: &str) -> Utf8Bytes {
        let state = self.state();
        match state.members.contains_key(user) {
            true => {
                drop(state);
                self.update()
            }
            false => self.frame(&state, Some(user)),
        }
    }

    fn frame(&self, state: &State, more: Option<&str>) -> Utf8Bytes {
        let users = state.members.keys().map(String::as_str);
        let users: BTreeSet<&str> = users.chain(more).collect();
        let users: Vec<&str> = users.into_iter().collect();
        frame::room_update(&self.room, &users, state.last_updated)
    }

    /// Tells those who are in the room what happens there, until it is stopped.
    pub(super) async fn run(self: Arc<Self>, rooms: OwnRooms, mut feed: RoomFeed) {
        loop {
            let error = tokio::select! {
                () = self.stop.cancelled() => return,
                error = self.follow(&mut feed) => error,
            };
            tracing::warn!(room = self.name, error, "the watch of a room broke off");
            let again = async {
                loop {
                    match self.again(&rooms).await {
                        Ok(feed) => return feed,
                        Err(error) => tracing::debug!(room = self.name, %error, "no watch yet"),
                    }
                    tokio::time::sleep(RETRY).await;
                }
            };
            feed = tokio::select! {
                () = self.stop.cancelled() => return,
                feed = again => feed,
            };
        }
    }

    /// Tells until the watch ends: why.
    async fn follow(&self, feed: &mut RoomFeed) -> String {
        loop {
            let mut next = feed.next().await;
            let (mut members_changed, mut taken) = (false, 0);
            loop {
                match next {
                    Ok(Some(event)) => members_changed |= self.take(event),
                    Ok(None) => return "it ended".to_owned(),
                    Err(error) => return error.to_string(),
                }
                taken += 1;
                if taken == EVENTS_AT_ONCE {
                    break;
                }
                // What is there already; who comes and goes with it is told once.
                match feed.next().now_or_never() {
                    Some(ready) => next = ready,
                    None => break,
                }
            }
            if members_changed {
                self.tell_members();
            }
        }
    }

    /// Takes an event; whether other users are in the room now.
    fn take(&self, event: RoomEvent) -> bool {
        let mut state = self.state();
        let members_changed = match event {
            RoomEvent::Message(message) => {
                state.tell_message(&self.name, self.room.id, &message);
                false
            }
            RoomEvent::Deleted { revision, message } => {
                match message {
                    Some(message) => {
                        let text = frame::deleted_frame(&self.name, &message);
                        state.tell(What::Deleted(self.room.id, revision), &text);
                    }
                    // What it was is not known: clients have to look.
                    None => state.listeners.values().for_each(|outbox| outbox.lack()),
                }
                false
            }
            RoomEvent::Joined { user, socket } => {
                let is_new = !state.members.contains_key(&user);
                state.members.entry(user).or_default().insert(socket);
                is_new
            }
            RoomEvent::Left { user, socket } => {
                let sockets = state.members.get_mut(&user);
                let is_gone = sockets.is_some_and(|sockets| {
                    sockets.remove(&socket);
                    sockets.is_empty()
                });
                if is_gone {
                    state.members.remove(&user);
                }
                is_gone
            }
            RoomEvent::Removed => {
                state.members.clear();
                true
            }
            _ => false,
        };
        if members_changed {
            // Whoever joins meanwhile is told who is there by now.
            state.update = None;
        }
        members_changed
    }

    fn tell_members(&self) {
        let text = self.update();
        self.state().tell(What::Members(self.room.id), &text);
    }

    /// A new watch, and all that was missed meanwhile but deletions, for which clients have to look.
    async fn again(&self, rooms: &OwnRooms) -> Result<RoomFeed> {
        let (members, position) = members(rooms, &self.room).await?;
        let feed = rooms
            .follow(self.room.id, WatchStart::After(position))
            .await?;
        {
            let mut state = self.state();
            (state.members, state.update) = (members, None);
        }
        loop {
            let told = self.state().told;
            let page = rooms
                .messages_after(self.room.id, told, PAGE_MESSAGES_MAX)
                .await?;
            let mut state = self.state();
            for message in &page.messages {
                state.tell_message(&self.name, self.room.id, message);
            }
            if !page.more {
                break;
            }
        }
        self.tell_members();
        self.state()
            .listeners
            .values()
            .for_each(|outbox| outbox.lack());
        Ok(feed)
    }
}

impl State {
    fn tell(&self, what: What, text: &Utf8Bytes) {
        for outbox in self.listeners.values() {
            // One that has no room finds out by itself what it lacks.
            outbox.push(Frame {
                what,
                text: text.clone(),
            });
        }
    }

    fn tell_message(
        &mut self,
        name: &str,
        room: storage_protocol::rooms::RoomId,
        message: &Message,
    ) {
        let revision = message.id.revision;
        // Known from the store already.
        if revision <= self.told {
            return;
        }
        self.told = revision;
        if message.time.0 / 1000 != self.last_updated / 1000 {
            self.update = None;
        }
        self.last_updated = message.time.0;
        let text = frame::message_frame(name, message);
        self.tell(What::Message(room, revision), &text);
    }
}

type Members = BTreeMap<String, BTreeSet<String>>;

async fn members(rooms: &OwnRooms, room: &Room) -> Result<(Members, Position)> {
    let members = rooms.members(room.id).await?;
    let of = members.value.into_iter();
    let of = of.map(|member| (member.user, member.sockets.into_iter().collect()));
    Ok((of.collect(), members.position))
}
