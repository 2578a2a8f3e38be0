//! One connection of a robot.
//!
//! It waits for metadata. From then on it is the robot's connection, until a newer one is, and hands over what is ready for the
//! robot ([`packages`](super::packages)).

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use storage_protocol::Storage;
use storage_protocol::deliveries::{DeliveryError, JobId};
use storage_schedule::instant_text;

use super::frame::{Dialect, Event, Frame, Metadata, parse_frame};
use super::house::House;
use super::ids::uuid;
use super::keys;
use super::logs::Said;
use super::packages::Served;
use super::registry::{self, NotRegistered, Registered, left};
use crate::auth::Proof;
use crate::gateway::{Close, Guest, Message, SendError, UpgradeRequest, WebSocket, close_code};

/// The longest message that is read, in bytes; a longer one closes with 1009. What is too long for a frame is dropped, with a
/// line in the log.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Frames that are none, of which a line in the log tells.
const JUNK_TOLD_MAX: u32 = 8;
/// The longest wait before a refusal.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Serves a connection until its end.
pub(super) async fn serve(
    house: Arc<House>,
    socket: WebSocket,
    request: UpgradeRequest,
) -> Result<(), Close> {
    let is_known = !matches!(socket.identity().proof(), Proof::Pending);
    let guest = request.guest.clone();
    let address = guest.as_ref().map(|guest| guest.address().ip());
    let ip = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let mut conversation = Conversation {
        storage: is_known.then(|| socket.storage(&house.keyspace)),
        id: uuid(),
        guest,
        ip,
        dialect: None,
        robot: None,
        refusals: 0,
        new_robots: 0,
        junk: 0,
        house,
        socket,
    };
    let end = conversation.run().await;
    Box::pin(conversation.leave()).await;
    match end {
        Ok(()) | Err(End::Gone) => Ok(()),
        Err(End::Close(close)) => Err(close),
    }
}

pub(super) enum End {
    Gone,
    Close(Close),
}

impl From<SendError> for End {
    fn from(_: SendError) -> Self {
        Self::Gone
    }
}

pub(super) fn closed(code: u16, reason: &str) -> End {
    End::Close(Close::because(code, reason))
}

pub(super) struct Conversation {
    pub(super) house: Arc<House>,
    pub(super) socket: WebSocket,
    pub(super) guest: Option<Guest>,
    pub(super) ip: IpAddr,
    /// Made by the server, for this connection.
    pub(super) id: String,
    /// The keyspace as the peer; `None` until it has said who it is. The connection's keys live as long as this.
    pub(super) storage: Option<Arc<dyn Storage>>,
    /// From the first frame on.
    pub(super) dialect: Option<Dialect>,
    /// From the first metadata that were taken on.
    pub(super) robot: Option<Served>,
    pub(super) refusals: u32,
    /// Addresses that it has made known.
    pub(super) new_robots: usize,
    pub(super) junk: u32,
}

pub(super) enum Next {
    Said(Option<Message>),
    Ready(Result<JobId, DeliveryError>),
    Arrived(u64),
    Superseded,
    Removed,
    /// The time for an arrival is over: there may be room for another package.
    Overdue,
}

impl Conversation {
    async fn run(&mut self) -> Result<(), End> {
        loop {
            let next = {
                let Self {
                    socket,
                    robot,
                    house,
                    ..
                } = &mut *self;
                let for_robot = async {
                    match robot {
                        Some(robot) => robot.next(socket, &house.clock).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    said = socket.receive() => Next::Said(said),
                    next = for_robot => next,
                }
            };
            match next {
                Next::Said(None) => return Ok(()),
                Next::Said(Some(message)) => Box::pin(self.hear(message)).await?,
                Next::Ready(ready) => Box::pin(self.hand_over(ready)).await?,
                Next::Arrived(number) => Box::pin(self.arrived(number)).await,
                Next::Superseded => Box::pin(self.superseded()).await,
                Next::Overdue => {}
                Next::Removed => return Err(closed(close_code::NORMAL, "the robot was removed")),
            }
        }
    }

    async fn hear(&mut self, message: Message) -> Result<(), End> {
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => {
                self.junk("a binary message");
                return Ok(());
            }
        };
        let frame = match parse_frame(&text) {
            Ok(frame) => frame,
            Err(error) => {
                self.junk(&error.to_string());
                // A robot that reads JSON learns of it.
                if self.dialect == Some(Dialect::Underscore) {
                    let refusal = Dialect::Underscore.refusal();
                    self.socket.send(Message::text(refusal)).await?;
                }
                return Ok(());
            }
        };
        let Frame { dialect, event } = frame;
        self.dialect = Some(dialect);
        match event {
            Event::Metadata(Ok(metadata)) => self.metadata(dialect, &metadata).await,
            Event::Metadata(Err(bad)) => {
                let address = bad.address.as_deref();
                self.refuse(dialect, address, &bad.why).await
            }
            Event::Message(content) => {
                self.message(&content);
                Ok(())
            }
            Event::Decline(name) => {
                self.decline(name.as_deref()).await;
                Ok(())
            }
            Event::Other(name) => {
                self.junk(&format!("no event is called {name:?}"));
                Ok(())
            }
        }
    }

    /// Tells of a frame that is none.
    pub(super) fn junk(&mut self, why: &str) {
        self.junk = self.junk.saturating_add(1);
        if self.junk <= JUNK_TOLD_MAX {
            self.house.note(format!("socket {}: {why}", self.id));
        }
    }

    fn message(&self, content: &str) {
        let Some(robot) = &self.robot else {
            let note = format!(
                "socket {}: a message of nobody who has registered is dropped",
                self.id
            );
            self.house.note(note);
            return;
        };
        self.house.logs.client(&Said {
            number: robot.number,
            robot: &robot.name,
            socket: &self.id,
            message: content,
            at: instant_text(self.house.now()),
        });
    }

    async fn metadata(&mut self, dialect: Dialect, metadata: &Metadata) -> Result<(), End> {
        let (house, address) = (self.house.clone(), metadata.address.as_str());
        if house.blocks.has(self.ip, address, house.now()) {
            house.note(format!("socket {}: robot {address:?} is blocked", self.id));
            return Err(closed(
                close_code::POLICY,
                "this address is blocked for a while",
            ));
        }
        if let Some(token) = &metadata.token
            && let Err(why) = self.log_in(token).await
        {
            return self.refuse(dialect, Some(address), &why).await;
        }
        let Some(storage) = self.storage.clone() else {
            let why = "a token is needed: in the header Authorization, as ?token=, or as \"token\" beside robotAddress";
            return self.refuse(dialect, Some(address), why).await;
        };
        let Some(recipient) = keys::recipient(address) else {
            let why = "robotAddress is too long";
            return self.refuse(dialect, Some(address), why).await;
        };
        if self
            .robot
            .as_ref()
            .is_some_and(|robot| robot.address != address)
        {
            self.give_back().await;
        }
        let identity = self.socket.identity();
        let socket = registry::Socket {
            id: &self.id,
            new_robots: self.new_robots,
        };
        let registering = house.register(&*storage, &identity, metadata, &socket);
        let Registered {
            robot,
            is_new,
            revision,
        } = match registering.await {
            Ok(registered) => registered,
            Err(NotRegistered::Refused(why)) => {
                return self.refuse(dialect, Some(address), &why).await;
            }
            Err(NotRegistered::Failed(error)) => {
                tracing::warn!(%error, "cannot register a robot");
                return Err(closed(close_code::TRY_AGAIN, &error.to_string()));
            }
        };
        self.new_robots += usize::from(is_new);
        house.blocks.forget(self.ip, address);
        let what = if is_new { "registered" } else { "connected" };
        house.note(format!(
            "robot {} ({address}): {what}, socket {}",
            robot.robot_name, self.id
        ));
        let receiver = || house.jobs().receive(&recipient, &self.id);
        let (number, name) = (robot.id, robot.robot_name);
        let online = (keys::online(address), revision);
        let presence = house.live.enter(address, &self.id, revision);
        let served = match self.robot.take() {
            // Again of the same one, whose name may have changed. What was sent to it is on its way still.
            Some(before) if before.address == address => Served {
                number,
                name,
                online,
                presence,
                receiver: Some(before.receiver.unwrap_or_else(receiver)),
                ..before
            },
            before => {
                match before {
                    None => {
                        house.metrics.connected.inc();
                    }
                    Some(before) => {
                        let online = before.online.clone();
                        drop(before);
                        left(&*storage, online).await;
                    }
                }
                Served {
                    number,
                    name,
                    address: address.to_owned(),
                    online,
                    presence,
                    receiver: Some(receiver()),
                    unproven: VecDeque::new(),
                    proven: self.socket.probe().await?,
                    sent: VecDeque::new(),
                    failures: 0,
                }
            }
        };
        self.robot = Some(served);
        Ok(())
    }

    async fn log_in(&mut self, token: &str) -> Result<(), String> {
        let Some(guest) = &self.guest else {
            return Err("no token is taken here".to_owned());
        };
        let identity = House::by_token(guest, token).await?;
        self.socket
            .log_in(identity)
            .map_err(|error| error.to_string())?;
        self.storage = Some(self.socket.storage(&self.house.keyspace));
        Ok(())
    }

    /// Says that metadata are not taken, after a while that grows; with too many the connection is closed.
    async fn refuse(
        &mut self,
        dialect: Dialect,
        address: Option<&str>,
        why: &str,
    ) -> Result<(), End> {
        let house = self.house.clone();
        house.metrics.refused.inc();
        house.note(format!("socket {}: metadata refused: {why}", self.id));
        self.refusals += 1;
        let (max, now) = (house.config.refusals_max, house.now());
        // Of this connection, or of this robot over several ones.
        let refusals = address.map_or(self.refusals, |address| {
            let until = now.after(house.config.blocked);
            let of_robot = house
                .blocks
                .refused(self.ip, address, max, until, DELAY_MAX, now);
            if of_robot > max {
                house.note(format!("robot {address:?} from {} is blocked", self.ip));
            }
            of_robot.max(self.refusals)
        });
        if refusals > max {
            return Err(closed(close_code::POLICY, "too many refused metadata"));
        }
        let doubled = 2u32.saturating_pow(refusals.saturating_sub(2));
        let delay = match refusals {
            1 => Duration::ZERO,
            _ => house
                .config
                .refusal_delay
                .saturating_mul(doubled)
                .min(DELAY_MAX),
        };
        if !delay.is_zero() {
            // What the peer sends meanwhile waits, and holds it back.
            tokio::time::sleep(delay).await;
        }
        self.socket.send(Message::text(dialect.refusal())).await?;
        Ok(())
    }

    /// The connection is over.
    async fn leave(&mut self) {
        // Its keys go with it, so that nobody sees the robot connected while its jobs go back.
        self.storage = None;
        // What the peer has said before its close counts, though nobody has looked at it yet.
        let proven = self.robot.as_ref().map(|robot| robot.proven);
        if let Some(number) = proven.and_then(|than| self.socket.answered(than).now_or_never()) {
            self.arrived(number).await;
        }
        self.give_back().await;
        if let Some(robot) = &self.robot {
            self.house.metrics.connected.dec();
            self.house.note(format!(
                "robot {}: socket {} is closed",
                robot.name, self.id
            ));
        }
    }
}
