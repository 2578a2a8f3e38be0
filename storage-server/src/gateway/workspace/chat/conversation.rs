//! One socket: what it says, and what it is told. Which rooms it is in: [`joins`](super::joins).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_protocol::rooms::{Room, RoomId, RoomKey, Rooms};
use storage_protocol::{Lifetime, Revision, StorageError};

use super::super::State;
use super::super::directory::Looked;
use super::super::frame::{self, Command, Op, Said, SaidRoom};
use super::super::hub::Hub;
use super::super::outbox::{Frame, Taken, What};
use super::super::records::{Look, may_pass};
use super::super::session::{End, Session};
use super::access::{Access, NoAccess};
use super::channel::OwnRooms;
use super::channels::Attached;
use crate::gateway::{
    Close, Message, ServerHandle, UpgradeRequest, Utf8Bytes, WebSocket, close_code,
};

/// What cannot be told since something could not be read is tried again after this.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// So long, and so often, a place for a session is waited for that one before has.
const PLACE_PAUSE: Duration = Duration::from_millis(100);
const PLACE_TRIES_MAX: usize = 20;
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
    let mut conversation = Conversation::new(session);
    let ended = conversation.run().await;
    conversation.linger();
    End::result(ended)
}

/// A room that the socket is in.
pub(super) struct Joined {
    pub(super) room: Room,
    pub(super) attached: Attached,
    pub(super) access: Access,
    /// Access was judged by what the peer has now.
    pub(super) is_judged: bool,
    /// All messages up to here were sent, as far as they were to be.
    pub(super) last: Revision,
    /// Who was in the room, as it was last told.
    pub(super) told: Utf8Bytes,
}

pub(super) struct Conversation {
    pub(super) session: Session,
    /// The socket, among those of its user.
    pub(super) name: String,
    pub(super) hub: Arc<Hub>,
    pub(super) looked: Looked,
    /// Which changes of records do not concern the peer, or were looked at; `None`: what it has is not known.
    pub(super) version: Option<u64>,
    /// In the name of the peer, who may do there what is judged here; while it has subscribed.
    pub(super) rooms: Option<OwnRooms>,
    pub(super) joined: HashMap<RoomId, Joined>,
    /// When all that says what the peer has was read last.
    pub(super) fresh: Instant,
    /// What could not be told, and when it is tried again. Nothing else is told before it.
    pub(super) waiting: Option<(Taken, Instant)>,
}

/// An operation that is not done: the peer is told why.
pub(super) enum Not {
    Done(String),
    /// Something could not be read that may be read later: nothing follows from that.
    Later(StorageError),
    End(End),
}

impl From<End> for Not {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<StorageError> for Not {
    fn from(error: StorageError) -> Self {
        match may_pass(&error) {
            true => Self::Later(error),
            false => Self::Done(error.to_string()),
        }
    }
}

impl From<NoAccess> for Not {
    fn from(why: NoAccess) -> Self {
        match why {
            NoAccess::Forbidden(why) => Self::Done(why.to_owned()),
            NoAccess::Unknown(error) => Self::Later(error),
        }
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
    /// It is time for what waits.
    Again,
    End(End),
}

impl Conversation {
    pub(super) fn new(session: Session) -> Self {
        Self {
            name: session.id.to_string(),
            hub: session.state.hub(&session.server),
            session,
            looked: Looked::default(),
            version: None,
            fresh: Instant::now(),
            rooms: None,
            joined: HashMap::new(),
            waiting: None,
        }
    }

    pub(super) async fn run(&mut self) -> Result<(), End> {
        loop {
            let (session, waiting) = (&self.session, self.waiting.as_ref());
            let next = async {
                match waiting {
                    Some((_, due)) => {
                        tokio::time::sleep_until((*due).into()).await;
                        Step::Again
                    }
                    None => Step::Taken(session.outbox.take().await),
                }
            };
            let step = async {
                tokio::select! {
                    said = session.socket.receive() => Step::Said(said),
                    next = next => next,
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
                Step::Taken(taken) => self.deliver(taken).await?,
                Step::Again => {
                    if let Some((taken, _)) = self.waiting.take() {
                        self.deliver(taken).await?;
                    }
                }
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
                    Err(Not::Later(error)) => {
                        let why = error.to_string();
                        self.session.send(frame::refused(op, &why)).await
                    }
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
        self.waiting = None;
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
        if (is_new_token || self.rooms.is_none())
            && let Err(error) = self.open_rooms(&login).await
        {
            let code = match error {
                StorageError::AccessDenied { .. } => close_code::POLICY,
                _ => close_code::TRY_AGAIN,
            };
            return Err(self.session.refuse(code, &error.to_string()).await);
        }
        self.version = None;
        match self.look_again(Look::Fresh).await {
            Ok(()) => {}
            Err(Not::End(end)) => return Err(end),
            // It is in rooms, and stays there until it is known that it may not: it is told nothing before that is looked up.
            Err(Not::Later(_)) if !self.joined.is_empty() => {}
            Err(Not::Later(error)) => {
                let code = close_code::TRY_AGAIN;
                return Err(self.session.refuse(code, &error.to_string()).await);
            }
            Err(Not::Done(why)) => return Err(self.session.refuse(close_code::POLICY, &why).await),
        }
        match ack {
            true => self.session.send(frame::subscribed(&login)).await,
            false => Ok(()),
        }
    }

    /// Opens the storage by the token that the peer has shown last: that of an earlier one ends with it.
    async fn open_rooms(&mut self, login: &str) -> Result<(), StorageError> {
        let (session, keyspace) = (&self.session, &self.session.state.config.keyspace);
        let identity = session.socket.identity();
        // Whether a room is for the peer is judged here: it needs no rule for it, and can do nothing there by other means.
        let open = || session.server.storage_on_behalf_of(&identity, keyspace);
        let mut storage = open();
        let mut opened = storage.get(&[]).await;
        if let Err(StorageError::Overloaded { .. }) = opened
            && self.rooms.take().is_some()
        {
            // The session before has the place that there is, and gives it back in a moment.
            for _ in 0..PLACE_TRIES_MAX {
                tokio::time::sleep(PLACE_PAUSE).await;
                storage = open();
                opened = storage.get(&[]).await;
                if !matches!(opened, Err(StorageError::Overloaded { .. })) {
                    break;
                }
            }
        }
        opened?;
        let rooms: OwnRooms = Rooms::new(storage);
        for joined in self.joined.values() {
            // The keys of the session before would go with it.
            let joining = rooms.join(&joined.room, login, &self.name, Lifetime::Session);
            if let Err(error) = joining.await {
                tracing::debug!(%error, "a socket with a new token is in a room no more");
            }
        }
        self.rooms = Some(rooms);
        Ok(())
    }

    /// Tells what was taken. What cannot be told now waits, and all behind it.
    async fn deliver(&mut self, taken: Taken) -> Result<(), End> {
        let told = match &taken {
            Taken::Frame(frame) => self.tell(frame).await,
            Taken::Behind => self.catch_up().await,
        };
        match told {
            Ok(()) | Err(Not::Done(_)) => Ok(()),
            Err(Not::End(end)) => Err(end),
            Err(Not::Later(error)) => {
                tracing::debug!(socket = self.name, %error, "a member is told nothing for now");
                self.waiting = Some((taken, Instant::now() + RETRY));
                Ok(())
            }
        }
    }

    /// Sends what happened in a room.
    async fn tell(&mut self, frame: &Frame) -> Done {
        // Who may not read a message is not told what it was either.
        if let What::Message(_, revision) | What::Deleted(_, revision) = frame.what {
            self.rights_as_of(revision).await?;
        }
        if self.is_out_of_date() {
            Box::pin(self.look_again(Look::AsSeen)).await?;
        }
        let is_due = match frame.what {
            What::Event => false,
            What::Deleted(room, _) => self.joined.contains_key(&room),
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
            true => Ok(self.session.send(frame.text.clone()).await?),
            false => Ok(()),
        }
    }

    /// Sends what found no room in the outbox, from the store. What was deleted is not known: the client is told to look.
    async fn catch_up(&mut self) -> Done {
        self.session.state.metrics.resyncs.inc();
        if self.is_out_of_date() {
            Box::pin(self.look_again(Look::AsSeen)).await?;
        }
        let ids: Vec<RoomId> = self.joined.keys().copied().collect();
        for id in ids {
            let Some(joined) = self.joined.get_mut(&id) else {
                continue;
            };
            let (update, last) = (joined.attached.channel.update(), joined.last);
            let (room, is_news) = (joined.room.clone(), joined.told != update);
            joined.told = update.clone();
            if is_news {
                self.session.send(update).await?;
            }
            match self.send_after(&room, last).await {
                Ok(()) => {}
                Err(why @ (Not::End(_) | Not::Later(_))) => return Err(why),
                // It may be out already, and told.
                Err(Not::Done(why)) if self.joined.contains_key(&id) => {
                    self.leave(id).await;
                    self.session.send(frame::refused(Op::Join, &why)).await?;
                }
                Err(Not::Done(_)) => {}
            }
        }
        Ok(self.session.send(frame::resync()).await?)
    }

    async fn operate(&mut self, command: Command) -> Done {
        // Whoever leaves needs no right to.
        if command.op != Op::Leave && self.is_out_of_date() {
            Box::pin(self.look_again(Look::AsSeen)).await?;
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
