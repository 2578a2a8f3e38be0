//! One socket: what it says, what it is told, and which rooms it is in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use storage_protocol::rooms::{MessageId, Room, RoomId, RoomKey, Rooms};
use storage_protocol::{Lifetime, Revision, Storage, StorageError};

use super::super::State;
use super::super::directory::{self, Rights};
use super::super::frame::{self, Command, Op, Said, SaidRoom};
use super::super::hub::Hub;
use super::super::outbox::{Frame, Taken, What};
use super::super::rate::ROOMS_BURST;
use super::super::session::{End, Session};
use super::access::{Access, access};
use super::channel::OwnRooms;
use super::channels::Attached;
use crate::gateway::{
    Close, Message, ServerHandle, UpgradeRequest, Utf8Bytes, WebSocket, close_code,
};

/// The most rooms that a socket is in.
const ROOMS_MAX: usize = 64;
/// The most users of a room.
const USERS_MAX: usize = 10_000;
/// How often a room is opened that others remove meanwhile.
const ATTEMPTS_MAX: usize = 4;
/// What a client says to stay.
const PING: &str = "PING";

/// Serves a socket until its end.
pub(in super::super) async fn serve(
    socket: WebSocket,
    request: UpgradeRequest,
    state: Arc<State>,
    server: ServerHandle,
) -> Result<(), Close> {
    let session = Session::new(socket, request, state, server);
    let mut conversation = Conversation {
        name: session.id.to_string(),
        hub: session.state.hub(&session.server),
        session,
        rights: Rights::default(),
        version: 0,
        rooms: None,
        joined: HashMap::new(),
    };
    let ended = conversation.run().await;
    conversation.linger();
    End::result(ended)
}

/// A room that the socket is in.
pub(super) struct Joined {
    pub(super) room: Room,
    pub(super) attached: Attached,
    pub(super) access: Access,
    /// All messages up to here were sent, as far as they were to be.
    pub(super) last: Revision,
    /// Who was in the room, as it was last told.
    pub(super) told: Utf8Bytes,
}

pub(super) struct Conversation {
    pub(super) session: Session,
    /// The socket, among those of its user.
    name: String,
    pub(super) hub: Arc<Hub>,
    pub(super) rights: Rights,
    /// With which changes these were looked up.
    version: u64,
    /// In the name of the peer, who may do there what is judged here; while it has subscribed.
    pub(super) rooms: Option<OwnRooms>,
    pub(super) joined: HashMap<RoomId, Joined>,
}

/// An operation that is not done: the peer is told why.
pub(super) enum Not {
    Done(String),
    End(End),
}

impl From<End> for Not {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<StorageError> for Not {
    fn from(error: StorageError) -> Self {
        Self::Done(error.to_string())
    }
}

impl From<String> for Not {
    fn from(why: String) -> Self {
        Self::Done(why)
    }
}

impl From<&str> for Not {
    fn from(why: &str) -> Self {
        Self::Done(why.to_owned())
    }
}

pub(super) type Done = Result<(), Not>;

enum Step {
    Said(Option<Message>),
    Taken(Taken),
    End(End),
}

impl Conversation {
    async fn run(&mut self) -> Result<(), End> {
        loop {
            let session = &self.session;
            let step = async {
                tokio::select! {
                    said = session.socket.receive() => Step::Said(said),
                    taken = session.outbox.take() => Step::Taken(taken),
                }
            };
            // Nothing is taken for one whose token has ended, whatever waits.
            let step = tokio::select! {
                biased;
                end = session.expiry() => Step::End(end),
                step = step => step,
            };
            match step {
                Step::Said(None) => return Ok(()),
                Step::Said(Some(Message::Text(text))) => self.hear(&text).await?,
                Step::Said(Some(Message::Binary(_))) => {}
                Step::Taken(Taken::Frame(frame)) => self.tell(frame).await?,
                Step::Taken(Taken::Behind) => self.catch_up().await?,
                Step::End(end) => return Err(end),
            }
        }
    }

    async fn hear(&mut self, text: &str) -> Result<(), End> {
        match frame::parse(text) {
            Ok(Said::Subscribe { jwt, ack }) => self.subscribe(&jwt, ack).await,
            Ok(Said::Unsubscribe) => {
                self.forget();
                self.session.log_out();
                Ok(())
            }
            Ok(Said::Chat(command)) if self.rooms.is_some() => {
                let op = command.op;
                match Box::pin(self.operate(command)).await {
                    Ok(()) => Ok(()),
                    Err(Not::End(end)) => Err(end),
                    Err(Not::Done(why)) => self.session.send(frame::refused(op, &why)).await,
                }
            }
            // Of a peer that is nobody, or of no meaning: ignored, as clients know it.
            Ok(Said::Chat(_) | Said::Nothing) | Err(_) => Ok(()),
        }
    }

    /// Out of all rooms at once.
    fn forget(&mut self) {
        self.joined.clear();
        self.rooms = None;
    }

    async fn subscribe(&mut self, jwt: &str, ack: bool) -> Result<(), End> {
        let before = self.session.who.clone();
        self.session.log_in(jwt, "Empty JWT").await?;
        let Some(who) = &self.session.who else {
            return Ok(());
        };
        let is_same = before
            .as_ref()
            .is_some_and(|before| before.is_same_user(who));
        let is_new_token = before.is_none_or(|before| before.token != who.token);
        let login = who.claims.login.clone();
        if let Err(error) = self.hub.start(&self.session.server).await {
            let code = close_code::TRY_AGAIN;
            return Err(self.session.refuse(code, &error.to_string()).await);
        }
        if !is_same {
            self.forget();
            self.session.outbox.clear();
        }
        if is_new_token || self.rooms.is_none() {
            self.open_rooms(&login).await;
        }
        self.look_again().await?;
        match ack {
            true => self.session.send(frame::subscribed(&login)).await,
            false => Ok(()),
        }
    }

    /// Opens the storage by the token that the peer has shown last: that of an earlier one ends with it.
    async fn open_rooms(&mut self, login: &str) {
        let (session, keyspace) = (&self.session, &self.session.state.config.keyspace);
        let identity = session.socket.identity();
        // Whether a room is for the peer is judged here: it needs no rule for it, and can do nothing there by other means.
        let storage = session.server.storage_on_behalf_of(&identity, keyspace);
        let rooms: OwnRooms = Rooms::new(storage);
        for joined in self.joined.values() {
            // The keys of the session before would go with it.
            let joining = rooms.join(&joined.room, login, &self.name, Lifetime::Session);
            if let Err(error) = joining.await {
                tracing::debug!(%error, "a socket with a new token is in a room no more");
            }
        }
        self.rooms = Some(rooms);
    }

    /// Finds out what the peer has now, and leaves rooms that are not for it any more.
    pub(super) async fn look_again(&mut self) -> Result<(), End> {
        let Some(who) = &self.session.who else {
            return Ok(());
        };
        // Ordering: this first, so that a change from here on is seen the next time.
        let version = self.hub.version();
        let own = self.hub.own().clone();
        self.rights = match directory::rights(&*own, &who.claims).await {
            Ok(rights) => rights,
            Err(error) => {
                let code = close_code::TRY_AGAIN;
                return Err(self.session.refuse(code, &error.to_string()).await);
            }
        };
        let ids: Vec<RoomId> = self.joined.keys().copied().collect();
        for id in ids {
            if let Some(why) = self.not_for_it_any_more(&own, id).await {
                self.leave(id).await;
                self.session.send(frame::refused(Op::Join, &why)).await?;
            }
        }
        self.version = version;
        Ok(())
    }

    async fn not_for_it_any_more(&mut self, own: &Arc<dyn Storage>, id: RoomId) -> Option<String> {
        let joined = self.joined.get_mut(&id)?;
        let node_rooms = self.session.state.config.node_rooms;
        match access(&**own, node_rooms, &self.rights, &joined.room.key).await {
            Ok(access) => {
                joined.access = access;
                None
            }
            Err(why) => Some(why),
        }
    }

    pub(super) fn is_out_of_date(&self) -> bool {
        self.version != self.hub.version()
    }

    /// Waits until it is known who had what when a message was posted.
    pub(super) async fn rights_as_of(&self, revision: Revision) -> Result<(), End> {
        let shared = self.session.server.shared();
        tokio::select! {
            biased;
            end = self.session.expiry() => Err(end),
            () = self.hub.has_seen(revision) => Ok(()),
            // Nobody takes notice any more.
            () = shared.drain.cancelled() => Err(End::Gone),
        }
    }

    /// Sends what happened in a room.
    async fn tell(&mut self, frame: Frame) -> Result<(), End> {
        if let What::Message(_, revision) = frame.what {
            self.rights_as_of(revision).await?;
        }
        if self.is_out_of_date() {
            Box::pin(self.look_again()).await?;
        }
        let is_due = match frame.what {
            What::Event => false,
            What::Room(room) => self.joined.contains_key(&room),
            What::Members(room) => match self.joined.get_mut(&room) {
                // One who has joined was told so before the others were.
                Some(joined) if joined.told != frame.text => {
                    joined.told = frame.text.clone();
                    true
                }
                _ => false,
            },
            What::Message(room, revision) => match self.joined.get_mut(&room) {
                Some(joined) if revision > joined.last => {
                    joined.last = revision;
                    true
                }
                _ => false,
            },
        };
        match is_due {
            true => self.session.send(frame.text).await,
            false => Ok(()),
        }
    }

    /// Sends what found no room in the outbox, from the store. What was deleted is not known: the client is told to look.
    async fn catch_up(&mut self) -> Result<(), End> {
        self.session.state.metrics.resyncs.inc();
        if self.is_out_of_date() {
            Box::pin(self.look_again()).await?;
        }
        let ids: Vec<RoomId> = self.joined.keys().copied().collect();
        for id in ids {
            let Some(joined) = self.joined.get_mut(&id) else {
                continue;
            };
            let (update, last) = (joined.attached.channel.update(), joined.last);
            joined.told = update.clone();
            self.session.send(update).await?;
            let room = joined.room.clone();
            match self.send_after(&room, last).await {
                Ok(()) => {}
                Err(Not::End(end)) => return Err(end),
                // It may be out already, and told.
                Err(Not::Done(why)) if self.joined.contains_key(&id) => {
                    self.leave(id).await;
                    self.session.send(frame::refused(Op::Join, &why)).await?;
                }
                Err(Not::Done(_)) => {}
            }
        }
        self.session.send(frame::resync()).await
    }

    async fn operate(&mut self, command: Command) -> Done {
        if self.is_out_of_date() {
            Box::pin(self.look_again()).await?;
        }
        let message = command.message;
        match command.op {
            Op::Join => {
                let said = command.room.ok_or("JOIN has a Room")?;
                let message = message.unwrap_or_default();
                self.join(&said, message.text == PING, &message.uuid).await
            }
            Op::History => {
                let said = command.room.ok_or("HISTORY has a Room")?;
                self.history(&said, message.as_ref().map(|message| message.text.as_str()))
                    .await
            }
            Op::Post => {
                self.post(command.room, message.ok_or("POST has a Message")?)
                    .await
            }
            Op::DeleteMsg => {
                self.delete(message.ok_or("DELETE_MSG has a Message")?)
                    .await
            }
            Op::Leave => {
                let said = command.room.ok_or("LEAVE has a Room")?;
                if let Some(id) = self.joined_by(&said) {
                    self.leave(id).await;
                }
                Ok(())
            }
            // Of the server alone.
            Op::RoomUpdate | Op::DeleteRoom => Ok(()),
        }
    }

    pub(super) fn rooms(&self) -> Result<OwnRooms, Not> {
        let rooms = self.rooms.clone();
        rooms.ok_or_else(|| Not::from("not subscribed"))
    }

    /// What a room that a client names belongs to.
    pub(super) async fn key_of(&self, said: &SaidRoom) -> Result<RoomKey, Not> {
        if said.object.is_empty()
            && let Ok(id) = said.uuid.parse()
        {
            // What it belongs to is not said to who may not read it: it is looked at with the rights of the server, and judged.
            let own = Rooms::new(self.hub.own().clone());
            return match own.get(id).await? {
                Some(room) => Ok(room.key),
                None => Err("there is no such room".into()),
            };
        }
        Ok(RoomKey::new(said.kind.name(), said.object.as_str())?)
    }

    pub(super) async fn access_to(&self, key: &RoomKey) -> Result<Access, Not> {
        let own = self.hub.own();
        let node_rooms = self.session.state.config.node_rooms;
        Ok(access(&**own, node_rooms, &self.rights, key).await?)
    }

    pub(super) fn joined_by(&self, said: &SaidRoom) -> Option<RoomId> {
        if let Ok(id) = said.uuid.parse::<RoomId>()
            && self.joined.contains_key(&id)
        {
            return Some(id);
        }
        // One that is named by its id alone is not the one without an object.
        if !said.uuid.is_empty() && said.object.is_empty() {
            return None;
        }
        let is_it = |joined: &&Joined| {
            joined.room.key.kind() == said.kind.name() && joined.room.key.object() == said.object
        };
        let found = self.joined.values().find(is_it);
        found.map(|joined| joined.room.id)
    }

    async fn join(&mut self, said: &SaidRoom, is_ping: bool, after: &str) -> Done {
        let after = match after {
            "" => None,
            uuid => Some(uuid.parse::<MessageId>()?),
        };
        let key = self.key_of(said).await?;
        let access = self.access_to(&key).await?;
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
                Ok(true) => return self.greet(&room, after).await,
                // It was removed meanwhile; so there is another one.
                Err(StorageError::CheckFailed { .. }) => self.leave(room.id).await,
                Err(error) => return Err(error.into()),
            }
        }
        Err("the room is removed again and again".into())
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
        let login = self.rights.login.clone();
        if let Some(joined) = self.joined.get_mut(&room.id) {
            joined.access = access;
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
            let why = format!("a socket is in {ROOMS_MAX} rooms at most: leave one");
            return Err(StorageError::invalid(why));
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
        if let Err(error) = own.leave(room, &self.rights.login, &self.name).await {
            tracing::debug!(%error, "a socket could not leave a room");
        }
    }

    /// The user stays in its rooms for a while, in case its client comes back.
    fn linger(mut self) {
        let grace = self.session.state.config.grace;
        let rooms = self.rooms.take();
        let Some(rooms) = rooms.filter(|_| !self.joined.is_empty() && !grace.is_zero()) else {
            return;
        };
        let identity = self.session.socket.identity();
        let Some(place) = self.session.state.lingering.place(identity.principal()) else {
            return;
        };
        let shared = self.session.server.shared();
        let end = shared.drain.clone();
        shared.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                () = end.cancelled() => {}
            }
            drop((rooms, place));
        });
    }
}
