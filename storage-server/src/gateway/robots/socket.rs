//! One connection of a robot.
//!
//! It waits for metadata. From then on it is the robot's connection, until a newer one is, and hands over what is ready for the
//! robot: a commit that checks that it still is the robot's connection, then the frame, then a ping. The answer to that ping
//! shows that the frame has arrived, and ends the job. What has not arrived when the connection ends goes back, and the
//! robot's next connection is sent it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use storage_protocol::deliveries::{DeliveryError, JobId, Receiver, Step, Stored};
use storage_protocol::{Batch, Key, Revision, Storage, StorageError};
use storage_schedule::instant_text;

use super::frame::{Dialect, Event, Frame, Metadata, parse_frame};
use super::house::House;
use super::ids::uuid;
use super::keys;
use super::live::Presence;
use super::logs::Said;
use super::registry::{self, NotRegistered, Registered, left};
use super::trigger::Order;
use crate::auth::Proof;
use crate::clock::WallClock;
use crate::gateway::{Close, Guest, Message, SendError, UpgradeRequest, WebSocket, close_code};

/// The longest message that is read, in bytes; a longer one closes with 1009. What is too long for a frame is dropped, with a
/// line in the log.
pub(super) const MESSAGE_BYTES_MAX: usize = 2 << 20;
/// Packages that were sent and whose arrival is not known, though there is time for it; no more are sent meanwhile.
const UNPROVEN_MAX: usize = 16;
/// The most of them that are remembered, those among them whose time is over and that may have arrived all the same.
const KEPT_MAX: usize = 256;
/// Packages that a robot may decline by name.
const SENT_MAX: usize = 64;
/// Frames that are none, of which a line in the log tells.
const JUNK_TOLD_MAX: u32 = 8;
/// The longest wait before a refusal.
const DELAY_MAX: Duration = Duration::from_secs(30);
/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(500);
/// So many failures in a row; then the connection is closed, and the robot comes again.
const FAILURES_MAX: u32 = 20;

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

enum End {
    Gone,
    Close(Close),
}

impl From<SendError> for End {
    fn from(_: SendError) -> Self {
        Self::Gone
    }
}

fn closed(code: u16, reason: &str) -> End {
    End::Close(Close::because(code, reason))
}

struct Conversation {
    house: Arc<House>,
    socket: WebSocket,
    guest: Option<Guest>,
    ip: IpAddr,
    /// Made by the server, for this connection.
    id: String,
    /// The keyspace as the peer; `None` until it has said who it is. The connection's keys live as long as this.
    storage: Option<Arc<dyn Storage>>,
    /// From the first frame on.
    dialect: Option<Dialect>,
    /// From the first metadata that were taken on.
    robot: Option<Served>,
    refusals: u32,
    /// Addresses that it has made known.
    new_robots: usize,
    junk: u32,
}

/// The robot whose connection this is, or was.
struct Served {
    number: u64,
    name: String,
    address: String,
    online: (Key, Revision),
    presence: Presence,
    /// `None`: a newer connection has the robot.
    receiver: Option<Receiver>,
    /// In the order in which they were sent, with the numbers of the probes behind them.
    unproven: VecDeque<(u64, Stored)>,
    proven: u64,
    /// Names of packages, and their jobs.
    sent: VecDeque<(String, JobId)>,
    failures: u32,
}

enum Next {
    Said(Option<Message>),
    Ready(Result<JobId, DeliveryError>),
    Arrived(u64),
    Superseded,
    Removed,
    /// The time for an arrival is over: there may be room for another package.
    Overdue,
}

impl Served {
    /// What comes for the robot. Cancel-safe.
    async fn next(&mut self, socket: &WebSocket, clock: &WallClock) -> Next {
        let Self {
            presence,
            receiver,
            unproven,
            proven,
            ..
        } = self;
        let (is_current, is_waiting) = (receiver.is_some(), !unproven.is_empty());
        let now = clock.now();
        let ends = unproven
            .iter()
            .filter_map(|(_, stored)| stored.job.state.wake());
        let ends: Vec<_> = ends.filter(|end| *end > now).collect();
        let has_room = ends.len() < UNPROVEN_MAX;
        let overdue = async {
            match ends.iter().min() {
                Some(first) if !has_room => clock.reaches(*first).await,
                _ => std::future::pending().await,
            }
        };
        let ready = async {
            match receiver {
                Some(receiver) if has_room => receiver.ready().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = presence.removed.cancelled() => Next::Removed,
            () = presence.superseded.cancelled(), if is_current => Next::Superseded,
            number = socket.answered(*proven), if is_waiting => Next::Arrived(number),
            ready = ready => Next::Ready(ready),
            () = overdue => Next::Overdue,
        }
    }
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
    fn junk(&mut self, why: &str) {
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

    /// Sends the robot what is ready for it.
    async fn hand_over(&mut self, ready: Result<JobId, DeliveryError>) -> Result<(), End> {
        let (house, dialect) = (self.house.clone(), self.dialect.unwrap_or(Dialect::Plain));
        let Some(robot) = &mut self.robot else {
            return Ok(());
        };
        let Some(receiver) = &mut robot.receiver else {
            return Ok(());
        };
        let (online, revision) = robot.online.clone();
        let taken = match ready {
            Ok(id) => {
                let is_current = Batch::new().check_revision(online.clone(), revision);
                receiver.hand_over(&id, is_current).await
            }
            Err(error) => Err(error),
        };
        let stored = match taken {
            Ok(Some(stored)) => stored,
            Ok(None) => return Ok(()),
            Err(DeliveryError::Storage(StorageError::CheckFailed { key, .. })) if key == online => {
                // Known to another server, or to this one in a moment.
                self.superseded().await;
                return Ok(());
            }
            // It stays as it is, and the others go on.
            Err(error @ DeliveryError::Record { .. }) => {
                house.note(format!("robot {}: {error}", robot.name));
                tracing::warn!(%error, "a package of a robot cannot be read");
                return Ok(());
            }
            Err(error) => {
                robot.failures += 1;
                tracing::warn!(%error, "cannot hand over the packages of a robot");
                if robot.failures > FAILURES_MAX {
                    return Err(closed(close_code::TRY_AGAIN, &error.to_string()));
                }
                // It begins anew, with all that waits.
                let recipient = keys::recipient(&robot.address);
                robot.receiver = recipient.map(|to| house.jobs().receive(&to, &self.id));
                tokio::time::sleep(RETRY).await;
                return Ok(());
            }
        };
        robot.failures = 0;
        let Some(order) = Order::read(&stored.job.payload) else {
            let reason = "its payload is no package of a robot";
            if let Err(error) = house.deliveries.fail(&stored.id, reason).await {
                tracing::warn!(%error, job = %stored.id, "cannot fail a job");
            }
            return Ok(());
        };
        let package = order.package;
        house.note(format!(
            "job {}: package {} to robot {} (attempt {})",
            stored.id, package.package_name, robot.name, stored.job.attempts
        ));
        // From here on it is told who has it: what does not arrive is given back at the end.
        robot
            .sent
            .push_back((package.package_name.clone(), stored.id.clone()));
        if robot.sent.len() > SENT_MAX {
            robot.sent.pop_front();
        }
        if robot.unproven.len() >= KEPT_MAX {
            robot.unproven.pop_front();
        }
        robot.unproven.push_back((u64::MAX, stored));
        let notification = dialect.notification(&package);
        self.socket.send(Message::text(notification)).await?;
        let probe = self.socket.probe().await?;
        if let Some((number, _)) = robot.unproven.back_mut() {
            *number = probe;
        }
        house.metrics.notifications.inc();
        Ok(())
    }

    /// All that was sent before this probe has arrived.
    async fn arrived(&mut self, number: u64) {
        let deliveries = self.house.deliveries.clone();
        let Some(robot) = &mut self.robot else {
            return;
        };
        robot.proven = number;
        while let Some((probe, _)) = robot.unproven.front()
            && *probe <= number
            && let Some((_, stored)) = robot.unproven.pop_front()
        {
            let done = deliveries
                .step_from(&stored, &Step::Acknowledge, Batch::new())
                .await;
            let done = match done {
                // Somebody has done something with it meanwhile.
                Err(DeliveryError::Storage(StorageError::CheckFailed { .. })) => {
                    deliveries.acknowledge(&stored.id).await
                }
                done => done,
            };
            match done {
                Ok(_) => {
                    self.house.metrics.confirmed.inc();
                }
                Err(DeliveryError::Refused { .. } | DeliveryError::NoJob(_)) => {}
                // It is sent again then.
                Err(error) => tracing::warn!(%error, job = %stored.id, "cannot note an arrival"),
            }
        }
    }

    /// The robot wants a package again: the last one, or the one of this name.
    async fn decline(&mut self, name: Option<&str>) {
        let house = self.house.clone();
        let Some(robot) = &mut self.robot else {
            self.junk("a decline of nobody who has registered");
            return;
        };
        let mut sent = robot.sent.iter().rev();
        let job = match name {
            None => sent.next(),
            Some(name) => sent.find(|(package, _)| package == name),
        };
        let Some((package, id)) = job.cloned() else {
            let note = format!(
                "robot {}: declines {name:?}, which it was not sent",
                robot.name
            );
            house.note(note);
            return;
        };
        house.metrics.declined.inc();
        // It has arrived.
        robot.unproven.retain(|(_, stored)| stored.id != id);
        let reason = "declined by the robot";
        let note = match house.deliveries.decline(&id, reason).await {
            Ok(stored) => format!(
                "job {id}: package {package} declined by robot {}: {}",
                robot.name,
                stored.job.state.kind()
            ),
            Err(error) => format!(
                "job {id}: package {package} declined by robot {}: {error}",
                robot.name
            ),
        };
        house.note(note);
    }

    /// A newer connection has the robot.
    async fn superseded(&mut self) {
        let Some(robot) = &mut self.robot else {
            return;
        };
        robot.receiver = None;
        let note = format!(
            "robot {}: a newer connection than socket {} has it",
            robot.name, self.id
        );
        self.house.note(note);
        self.give_back().await;
    }

    /// What has not arrived is ready for the robot's next connection.
    async fn give_back(&mut self) {
        let Some(robot) = &mut self.robot else {
            return;
        };
        for (_, stored) in robot.unproven.drain(..) {
            let step = Step::Release {
                holder: self.id.clone(),
            };
            match self.house.deliveries.step(&stored.id, &step).await {
                Ok(_) | Err(DeliveryError::Refused { .. } | DeliveryError::NoJob(_)) => {}
                // Its time for an answer ends by itself.
                Err(error) => tracing::warn!(%error, job = %stored.id, "cannot give a job back"),
            }
        }
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
