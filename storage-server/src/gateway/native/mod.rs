//! The native dialect, `storage-sync.v1`: one session's requests, from frame to answer.
//!
//! Gets and commits are polled once where they arrive (a commit that came before its turn: when that comes, see
//! [`order`]), which fixes the order of commits and answers most gets at once; what is not ready goes on beside the
//! others. A session that is resumed is waited for between Hello and Welcome, and outlives the socket unless the peer
//! closes it with 1000. While the outbox is full, reads wait in memory (their bytes are in
//! flight and so bounded) and watches park; commits go on, their answers are small. What a message asks for is in
//! [`requests`], what is not there yet in [`parts`], reads are in [`reads`], scans in [`scans`], watches in [`watches`].

mod order;
mod parts;
mod reads;
mod requests;
mod scans;
mod watches;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::AbortHandle;
use futures_util::stream::FuturesUnordered;
use hyper::StatusCode;
use storage_protocol::native::{
    Class, ClientMessage, Hello, Incoming, Outbox, Packet, ProtocolError, Reassembler, RequestId,
    SUBPROTOCOL, ServerMessage, VERSION, Welcome, close_code, kind,
};
use storage_protocol::{
    Entry, Keyspace, Limit, Limits, Outcome, Position, Reading, StorageError, Watch, planted,
};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{Gateway, ServerHandle};
use crate::auth::Principal;
use crate::engine::{Resumed, Session, SessionStorage};
use crate::http::Refusal;
use crate::http::protocol::{Opening, WebSocketProtocol};
use crate::limits::budget::{Budget, Permit};
use crate::limits::room::AnswerRoom;
use crate::metrics::{ClosedLabel, Metrics, RefusedLabel, RequestLabel};
use crate::shared::Shared;
use crate::ws::{Close, Departure, Dialect, Peer, driver};
use order::{Commit, Content, Order};
use parts::Parts;
use reads::{Lane, Read, Reads};
use scans::{Scans, Turn};
use watches::{Terms, Watches};

/// The native dialect, at `/storage/<keyspace>`.
#[derive(Debug)]
pub(crate) struct NativeGateway;

impl Gateway for NativeGateway {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn protocols(&self, _: &ServerHandle) -> Vec<WebSocketProtocol> {
        let open = WebSocketProtocol::opened_by("native", "/storage/{*keyspace}", |request| {
            let keyspace = keyspace_of(request.parameter("keyspace"))?;
            let opening: Opening = Box::new(move |shared, peer, stream, early| {
                tracing::Span::current().record("keyspace", keyspace.as_str());
                let dialect = Native::new(&shared, &peer, keyspace);
                Box::pin(driver::run(shared, peer, stream, early, dialect))
            });
            Ok(opening)
        });
        vec![open.with_subprotocol(SUBPROTOCOL)]
    }
}

/// The keyspace of a request, or why there is none of this name.
pub(super) fn keyspace_of(name: &str) -> std::result::Result<Keyspace, Refusal> {
    Keyspace::new(name).map_err(|error| {
        let (status, label) = (StatusCode::BAD_REQUEST, RefusedLabel::Keyspace);
        Refusal::new(status, label, error.to_string())
    })
}

/// What a client is told to wait before it connects again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// What is kept of a client's name.
const AGENT_BYTES_MAX: usize = 256;

/// Small answers of so many bytes may wait, however small the outbox is: those to what was read at once come together.
const ANSWERS_BYTES_MIN: usize = 1 << 20;
/// So many bytes of them may be left untaken where all sessions together, or those of the principal, have no room: the
/// answers to as many small requests as may be in flight.
const ANSWERS_LEFT_MAX: usize = 64 << 10;

type Result<T> = std::result::Result<T, StorageError>;
type Running = Pin<Box<dyn Future<Output = Finished> + Send>>;

/// A session that is being resumed.
struct Resuming {
    hello: Hello,
    attempt: Pin<Box<dyn Future<Output = Result<Resumed>> + Send>>,
}

/// A request that is through.
struct Finished {
    id: RequestId,
    label: RequestLabel,
    /// Of a read, how it ran.
    lane: Option<Lane>,
    /// The scan it belongs to.
    scan: Option<u64>,
    result: Result<Output>,
}

enum Output {
    Values {
        reading: Reading<Vec<Option<Entry>>>,
        /// Where they are counted until they are in the outbox.
        room: AnswerRoom,
    },
    Committed(Position),
    Page(Turn),
    /// There was none for the answer: it is to be read again.
    NoRoom(Read),
    Watching {
        watch: Watch,
        terms: Terms,
    },
}

/// Its place in the bounds on work in progress.
#[derive(Debug)]
struct Permits {
    _requests: Permit,
    /// Its payload: what the session's bound, which the client counts with, is of.
    _bytes: Permit,
    /// What it takes beside that, in the bounds of all sessions.
    _items: Permit,
}

/// An id in use.
struct InFlight {
    state: State,
    /// `None` for what is bounded otherwise: watches.
    _permits: Option<Permits>,
}

enum State {
    /// Among the reads that wait.
    Waiting,
    /// Among those that run, or the openings, if its first poll was not enough.
    Reading(Option<AbortHandle>),
    Committing,
    /// An open watch; or an Unwatch whose answer waits behind the watch's last message.
    Watching,
    /// A Probe of a watch, until its mark comes.
    Probing,
}

/// One session.
pub(crate) struct Native {
    shared: Arc<Shared>,
    principal: Principal,
    keyspace: Keyspace,
    hello_deadline: Instant,
    /// Between Hello and Welcome, if there is something to wait for.
    resuming: Option<Resuming>,
    /// From Welcome on.
    session: Option<Arc<dyn Session>>,
    /// What the session's requests go through: there when it is.
    storage: Option<Arc<dyn SessionStorage>>,
    /// Whether the client was told that its session's keys were removed, and did not go on yet.
    unheeded: bool,
    /// Ends when a newer incarnation took the session over.
    fenced: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// The highest number that was executed before Welcome: those up to it come again, and are not executed.
    executed: u64,
    draining: bool,
    /// The peer closes: it is told of no more events.
    closing: bool,
    reassembler: Reassembler,
    /// What the reassembler costs, in the principal's budget.
    partial: Permit,
    parts: Parts,
    outbox: Outbox,
    /// What waits to be sent, answers that are being read included; within the principal's budget.
    outbox_bytes: Arc<Budget>,
    /// What the outbox holds of it.
    outbox_permit: Permit,
    /// Bytes of answers that no bound holds back, and that the peer has not taken since the outbox was last looked at.
    answers_left: usize,
    /// When watches are polled again that wait for the room of others.
    watches_again: Option<Instant>,
    requests: Arc<Budget>,
    request_bytes: Arc<Budget>,
    /// The principal's, for what a request costs beside its payload.
    item_bytes: Arc<Budget>,
    in_flight: HashMap<RequestId, InFlight>,
    reads: Reads,
    /// Watches that are being opened.
    openings: FuturesUnordered<Running>,
    commits: FuturesUnordered<Running>,
    order: Order,
    scans: Scans,
    watches: Watches,
    /// Memory of its watches.
    watch_bytes: Arc<Budget>,
    /// Watches that are being opened, with the id of the Unwatch that came for it meanwhile.
    opening: HashMap<RequestId, Option<RequestId>>,
    /// When to look for watches that were told nothing for long.
    idle_check: Instant,
    /// Watches ended by the peer whose last message is still on its way, with the id of the Unwatch.
    unwatching: Vec<(RequestId, RequestId)>,
}

impl Native {
    pub(crate) fn new(shared: &Arc<Shared>, peer: &Peer, keyspace: Keyspace) -> Self {
        let all = &shared.config.limits;
        let limits = &shared.announced;
        let budgets = peer.slot.budgets();
        let outbox_bytes = Budget::within(&budgets.outbox, Limit::Outbox, all.outbox_bytes_max);
        Self {
            principal: peer.principal.clone(),
            keyspace,
            hello_deadline: peer.deadline,
            resuming: None,
            session: None,
            storage: None,
            unheeded: false,
            fenced: None,
            executed: 0,
            draining: false,
            closing: false,
            reassembler: Reassembler::new(limits.frame_bytes_max, limits.message_bytes_max),
            partial: budgets.partial.count(),
            parts: Parts::default(),
            outbox: Outbox::new(),
            outbox_permit: outbox_bytes.count(),
            answers_left: 0,
            watches_again: None,
            outbox_bytes,
            requests: Budget::new(Limit::RequestsInFlight, limits.requests_in_flight_max),
            request_bytes: Budget::within(
                &budgets.in_flight,
                Limit::BytesInFlight,
                limits.bytes_in_flight_max,
            ),
            item_bytes: budgets.in_flight.clone(),
            in_flight: HashMap::new(),
            reads: Reads::default(),
            openings: FuturesUnordered::new(),
            commits: FuturesUnordered::new(),
            order: Order::new(),
            scans: Scans::new(shared.metrics.clone()),
            watches: Watches::new(shared.metrics.clone()),
            watch_bytes: Budget::within(&budgets.watches, Limit::WatchBytes, all.watch_bytes_max),
            opening: HashMap::new(),
            idle_check: Instant::now() + shared.config.timeouts.idle_mark,
            unwatching: Vec::new(),
            shared: shared.clone(),
        }
    }

    fn limits(&self) -> &Limits {
        &self.shared.announced
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn answer(&mut self, id: RequestId, message: &ServerMessage) {
        self.outbox.push(Class::Answer, message.encode(Some(id)));
    }

    /// Answers a request that never was in flight.
    fn refuse(&mut self, id: RequestId, label: RequestLabel, error: StorageError) {
        let result = Err(error);
        self.metrics().request::<()>(label, &result);
        if let Err(error) = result {
            self.answer(id, &ServerMessage::Error(error));
        }
    }

    fn outbox_is_full(&self) -> bool {
        is_full(&self.shared, &self.outbox_bytes, self.outbox.bytes())
    }

    /// Whether there is room for a read beside the first, as far as can be said before.
    fn has_room_beside(&self) -> bool {
        !self.outbox_bytes.is_full()
    }

    /// Whether a get is tried although the others wait.
    fn takes_small(&self) -> bool {
        self.reads.takes_small() && self.outbox.frames_bytes() <= reads::SMALL_WAITING_MAX
    }

    /// Whether a request may have this id.
    fn check_id(&self, id: RequestId) -> std::result::Result<(), Close> {
        if self.in_flight.contains_key(&id) || self.parts.has_begun(id) {
            return Err(Close::protocol(format!(
                "request id {id} is in flight already"
            )));
        }
        Ok(())
    }

    /// Whether a commit may have this number.
    fn check_number(&self, number: u64) -> std::result::Result<(), Close> {
        if self.parts.has_number(number) {
            return Err(Close::protocol(format!(
                "commit number {number} came before"
            )));
        }
        self.order.check(number)
    }

    /// Small answers go out whatever the outbox holds, so that a full one cannot stand before them. A peer that goes on
    /// asking for them and takes none is closed at twice the bound, before the time for slow peers is over; where the
    /// room that it shares is full, at little: of many sessions each would hold as much.
    fn bound_answers(&mut self) -> std::result::Result<(), Close> {
        let outbox = self.shared.config.limits.outbox_bytes_max;
        let max = outbox.saturating_mul(2).max(ANSWERS_BYTES_MIN);
        let left = std::mem::replace(&mut self.answers_left, self.outbox.answers_bytes());
        let max = if self.outbox.frames_bytes() > max {
            max
        } else if left > ANSWERS_LEFT_MAX && self.outbox_bytes.shared_is_full() {
            ANSWERS_LEFT_MAX
        } else {
            return Ok(());
        };
        let reason = format!("answers of {max} bytes were asked for and not taken");
        Err(Close::new(close_code::SLOW, ClosedLabel::Slow, reason))
    }

    /// Judges a message in parts by its first one.
    fn begin_parts(&mut self, kind: u8, id: Option<RequestId>) -> std::result::Result<(), Close> {
        ClientMessage::check_head(kind, id).map_err(Close::protocol)?;
        let Some(id) = id.filter(|_| is_request(kind)) else {
            return Ok(());
        };
        self.check_id(id)?;
        let mut number = None;
        if kind == kind::COMMIT {
            let head = self.reassembler.head(kind, Some(id)).unwrap_or_default();
            let first = ClientMessage::commit_number(head).ok_or_else(|| {
                Close::protocol("the first part of a commit does not hold its number")
            })?;
            self.check_number(first)?;
            number = Some(first);
        }
        self.parts.begin(id, number);
        Ok(())
    }

    /// Counts what a part left in the reassembler; its message is refused if that is too much.
    fn bound_partial(&mut self, kind: u8, id: Option<RequestId>) -> std::result::Result<(), Close> {
        self.partial.resize(self.reassembler.cost());
        let session_max = self.limits().bytes_in_flight_max;
        let error = if let Some(bound) = self.partial.budget().over() {
            bound.overloaded()
        } else if self.reassembler.bytes() > session_max {
            StorageError::Overloaded {
                limit: Limit::BytesInFlight,
                max: session_max as u64,
            }
        } else {
            return Ok(());
        };
        // A late part of one that was refused before holds nothing, and its id may be another request's by now.
        if !self.reassembler.discard(kind, id) && !planted("late-part-refused-again") {
            return Ok(());
        }
        self.partial.resize(self.reassembler.cost());
        self.refuse_parts(kind, id, error)
    }

    /// Answers a request whose message never became whole. The number of a commit is spent; of one that comes again nobody
    /// can tell whether it is the one that was executed.
    fn refuse_parts(
        &mut self,
        kind: u8,
        id: Option<RequestId>,
        error: StorageError,
    ) -> std::result::Result<(), Close> {
        // Of a CREDIT or CANCEL nobody is told; what it is about goes on without it.
        let Some(id) = id.filter(|id| self.parts.has_begun(*id)) else {
            return Ok(());
        };
        self.parts.end(id);
        if kind != kind::COMMIT {
            self.refuse(id, label_of(kind), error);
            return Ok(());
        }
        let head = self.reassembler.head(kind, Some(id)).unwrap_or_default();
        let number = ClientMessage::commit_number(head).ok_or_else(|| {
            Close::protocol("the first part of a commit does not hold its number")
        })?;
        if number <= self.executed {
            self.repeat(id, number, None);
        } else {
            self.order.spend(number);
            self.refuse(id, RequestLabel::Commit, error);
        }
        Ok(())
    }

    /// Takes a commit that comes again and is not executed, whatever it holds. No bound refuses it: the answer would
    /// be that it was not executed. Of its content the fingerprint is kept, so that many need no memory; there are no
    /// more of them than Hello named.
    fn repeat(&mut self, id: RequestId, number: u64, fingerprint: Option<u64>) {
        let in_flight = InFlight {
            state: State::Committing,
            _permits: None,
        };
        self.in_flight.insert(id, in_flight);
        self.order.push(Commit {
            id,
            number,
            content: Content::Again(fingerprint),
        });
    }

    /// Looks at what is on its way: messages in parts without progress are refused, and a commit that later ones wait for
    /// in vain ends the connection, since what waits counts against everybody.
    fn check_parts(&mut self, now: Instant) -> std::result::Result<(), Close> {
        if !self.parts.is_due(now) {
            return Ok(());
        }
        let patience = self.shared.config.timeouts.partial_message;
        let dropped = self.reassembler.expire(self.parts.clock.at(now), patience);
        self.partial.resize(self.reassembler.cost());
        for (kind, id) in dropped {
            let outcome = Outcome::NotExecuted;
            self.refuse_parts(kind, id, StorageError::DeadlineExceeded { outcome })?;
        }
        self.watch_parts(now);
        match self.parts.missing_for(patience, now) {
            Some(number) if !planted("gap-for-ever") => Err(Close::protocol(format!(
                "commit number {number} is missing for {}, and later ones wait for it",
                humantime::format_duration(patience)
            ))),
            _ => Ok(()),
        }
    }

    /// Notes what is on its way after anything came or was done.
    fn watch_parts(&mut self, now: Instant) {
        let patience = self.shared.config.timeouts.partial_message;
        self.parts.note_gap(self.order.gap(), now);
        self.parts
            .watch(self.reassembler.bytes() > 0, patience, now);
    }

    /// Takes Hello. Nothing else is taken until Welcome is on its way.
    fn begin(&mut self, hello: Hello) -> std::result::Result<(), Close> {
        if hello.version != VERSION {
            return Err(Close::protocol(format!(
                "Hello asks for version {}; this server speaks version {VERSION}",
                hello.version
            )));
        }
        order::check_hello(&hello)?;
        let agent = &hello.agent[..hello.agent.floor_char_boundary(AGENT_BYTES_MAX)];
        let Some(id) = hello.session else {
            tracing::debug!(agent = ?agent, "session opened");
            let session = self.open_session();
            self.welcome(session);
            return Ok(());
        };
        tracing::debug!(agent = ?agent, incarnation = hello.incarnation, "session to be resumed");
        let engine = self.shared.engine.clone();
        let (principal, keyspace) = (self.principal.clone(), self.keyspace.clone());
        let incarnation = hello.incarnation;
        let attempt = Box::pin(async move {
            let principal = principal.as_str();
            let resumed = engine.resume_session(principal, &keyspace, id, incarnation);
            resumed.await
        });
        self.resuming = Some(Resuming { hello, attempt });
        Ok(())
    }

    fn open_session(&self) -> Arc<dyn Session> {
        let principal = self.principal.as_str();
        self.shared.engine.open_session(principal, &self.keyspace)
    }

    fn poll_resuming(&mut self, cx: &mut Context<'_>) -> std::result::Result<bool, Close> {
        let Some(resuming) = &mut self.resuming else {
            return Ok(false);
        };
        let Poll::Ready(resumed) = resuming.attempt.as_mut().poll(cx) else {
            return Ok(false);
        };
        let Some(Resuming { hello, .. }) = self.resuming.take() else {
            return Ok(false);
        };
        match resumed {
            Ok(Resumed::Session(session)) => {
                self.order = Order::resumed(&hello, session.executed());
                self.welcome(session);
            }
            // A new session, in which nothing was sent yet.
            Ok(Resumed::Gone) => {
                let session = self.open_session();
                self.welcome(session);
            }
            Ok(Resumed::Fenced) => {
                let incarnation = hello.incarnation;
                return Err(fenced(format!(
                    "incarnation {incarnation} of the session is not higher than one before"
                )));
            }
            Err(_) if self.draining => return Err(Close::going_away()),
            Err(error) => {
                return Err(Close::new(
                    close_code::INTERNAL,
                    ClosedLabel::Failed,
                    format!("cannot resume the session: {error}"),
                ));
            }
        }
        Ok(true)
    }

    fn welcome(&mut self, session: Arc<dyn Session>) {
        let timeouts = &self.shared.config.timeouts;
        let storage = session.clone().storage();
        self.executed = session.executed();
        self.unheeded = session.lapsed();
        let welcome = ServerMessage::Welcome(Welcome {
            version: VERSION,
            position: storage.position(),
            session: session.id(),
            executed: self.executed,
            lapsed: self.unheeded,
            principal: self.principal.to_string(),
            heartbeat: timeouts.heartbeat,
            silence: timeouts.silence,
            grace: timeouts.session_grace,
            kept: timeouts.session_kept,
            limits: self.limits().clone(),
        });
        self.outbox.push(Class::Control, welcome.encode(None));
        self.fenced = Some(Box::pin(session.fenced().cancelled_owned()));
        self.storage = Some(storage);
        self.session = Some(session);
    }

    fn check_fence(&mut self, cx: &mut Context<'_>) -> std::result::Result<(), Close> {
        let fence = self.fenced.as_mut();
        if fence.is_some_and(|fence| fence.as_mut().poll(cx).is_ready()) {
            return Err(fenced(
                "a newer incarnation of the session took over".to_owned(),
            ));
        }
        Ok(())
    }

    fn dispatch(
        &mut self,
        cx: &mut Context<'_>,
        packet: Packet,
        now: Instant,
    ) -> std::result::Result<(), Close> {
        let (bytes, id) = (packet.payload.len(), packet.id);
        let message = ClientMessage::decode(packet).map_err(Close::protocol)?;
        match (message, id, self.storage.clone()) {
            (ClientMessage::Hello(hello), _, None) if self.resuming.is_none() => self.begin(hello),
            (ClientMessage::Hello(_), _, _) => Err(Close::protocol("Hello was said before")),
            (_, _, None) => Err(self.too_early()),
            (_, None, Some(_)) => Err(Close::protocol("a request without an id")),
            (message, Some(id), Some(storage)) => {
                if std::mem::take(&mut self.unheeded)
                    && let Some(session) = &self.session
                {
                    session.heed();
                }
                let mut request = requests::Request {
                    native: self,
                    storage,
                    id,
                    now,
                };
                request.take(cx, message, bytes)
            }
        }
    }

    /// Once Hello came it is the engine that is waited for, behind what the session has queued; heartbeat and silence hold.
    fn awaits_hello(&self) -> bool {
        self.storage.is_none() && self.resuming.is_none()
    }

    /// Why nothing is taken before there is a session.
    fn too_early(&self) -> Close {
        Close::protocol(if self.resuming.is_some() {
            "a message between Hello and Welcome"
        } else {
            "the first message must be Hello"
        })
    }

    /// Frees the request's id and answers it; or lets it wait again.
    fn complete(&mut self, finished: Finished, now: Instant) {
        let Finished {
            id,
            label,
            lane,
            scan,
            result,
        } = finished;
        if let Some(lane) = lane {
            self.reads.end(lane);
        }
        let result = match (result, lane) {
            (Ok(Output::NoRoom(read)), Some(lane)) => {
                if let Some(in_flight) = self.in_flight.get_mut(&id) {
                    in_flight.state = State::Waiting;
                }
                return self.reads.wait_again(id, read, lane, now);
            }
            (result, _) => result,
        };
        self.in_flight.remove(&id);
        self.metrics().request(label, &result);
        let unwatching = match label {
            RequestLabel::Watch => self.opening.remove(&id).flatten(),
            _ => None,
        };
        // Until the answer is counted in the outbox.
        let mut counted = None;
        let message = match result {
            Err(error) => {
                if let Some(scan) = scan {
                    self.scans.remove(scan);
                }
                ServerMessage::Error(error)
            }
            Ok(Output::Values { reading, room }) => {
                counted = Some(room);
                ServerMessage::Values {
                    revision: reading.position.revision,
                    entries: reading.value,
                }
            }
            Ok(Output::Committed(position)) => ServerMessage::Committed {
                revision: position.revision,
            },
            Ok(Output::Page(turn)) => self.scans.page(scan.unwrap_or_default(), turn, now),
            Ok(Output::Watching { watch, terms }) => {
                let revision = watch.start().revision;
                self.in_flight.insert(
                    id,
                    InFlight {
                        state: State::Watching,
                        _permits: None,
                    },
                );
                let now = self.storage.as_ref().map(|storage| storage.position());
                let is_behind = now.is_some_and(|now| revision < now.revision);
                self.watches.insert(id, watch, terms, is_behind);
                ServerMessage::Watching { revision }
            }
            // Only reads find no room.
            Ok(Output::NoRoom(_)) => return,
        };
        let class = match message {
            ServerMessage::Values { .. } | ServerMessage::Page { .. } => Class::Read,
            _ => Class::Answer,
        };
        self.outbox.push(class, message.encode(Some(id)));
        self.count_outbox();
        drop(counted);
        if let Some(request) = unwatching {
            // It was not polled yet, so it told nothing.
            self.watches.remove(id);
            self.end_watch(id, request);
        }
    }

    fn count_outbox(&mut self) {
        self.outbox_permit.resize(self.outbox.bytes());
    }

    /// Reads that wait for room, then those that run, as long as there is room for their answers. Small ones always.
    fn poll_reads(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        self.reads.on_time(now);
        while let Some(finished) = self.reads.poll_small(cx) {
            self.complete(finished, now);
            moved = true;
        }
        while !self.outbox_is_full() {
            let has_room = self.has_room_beside();
            if let Some(storage) = self.storage.clone()
                && let Some((waiting, lane)) = self.reads.next(has_room)
            {
                requests::Request {
                    native: self,
                    storage,
                    id: waiting.id,
                    now,
                }
                .read(cx, waiting.read, lane);
            } else if let Some(finished) = self.reads.poll_running(cx) {
                self.complete(finished, now);
            } else {
                break;
            }
            moved = true;
        }
        moved
    }

    fn poll_openings(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        while !self.outbox_is_full()
            && let Poll::Ready(Some(finished)) = self.openings.poll_next_unpin(cx)
        {
            self.complete(finished, now);
            moved = true;
        }
        moved
    }

    /// Hands the commits whose turn it is to the engine.
    ///
    /// Ordering: the first poll does it, so commits are applied in the order of these polls.
    fn start_commits(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(storage) = self.storage.clone() else {
            return false;
        };
        let mut moved = false;
        while let Some(Commit {
            id,
            number,
            content,
        }) = self.order.pop()
        {
            moved = true;
            let storage = storage.clone();
            let mut running: Running = Box::pin(async move {
                let result = match content {
                    Content::New(batch, options) => {
                        storage.commit_numbered(number, batch, options).await
                    }
                    Content::Again(fingerprint) => {
                        storage.repeat_numbered(number, fingerprint).await
                    }
                };
                let result = result.map(Output::Committed);
                Finished {
                    id,
                    label: RequestLabel::Commit,
                    lane: None,
                    scan: None,
                    result,
                }
            });
            match running.as_mut().poll(cx) {
                Poll::Ready(finished) => self.complete(finished, now),
                Poll::Pending => self.commits.push(running),
            }
        }
        moved
    }

    fn poll_commits(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        while let Poll::Ready(Some(finished)) = self.commits.poll_next_unpin(cx) {
            self.complete(finished, now);
            moved = true;
        }
        moved
    }

    fn poll_watches(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        if self.closing {
            self.watches.clear();
        }
        let outbox = &mut self.outbox;
        let watching = |(watch, _): &(RequestId, RequestId)| outbox.has_bulk(*watch);
        let (unwatching, done) = std::mem::take(&mut self.unwatching)
            .into_iter()
            .partition(watching);
        self.unwatching = unwatching;
        for (watch, request) in done {
            self.end_watch(watch, request);
        }
        let (shared, budget) = (&self.shared, &self.outbox_bytes);
        // Where there is no room, one message of each session would be as many as there are sessions: one of each
        // principal goes on, if nothing else of it waits.
        let waits_for_others = budget.shared_is_full() && !budget.is_alone();
        let turn = self.watches.poll(cx, &mut self.outbox, |outbox| {
            waits_for_others || is_full(shared, budget, outbox.bytes())
        });
        // Nothing tells when the others have room.
        let again = waits_for_others && self.watches.wait_for_turn();
        self.watches_again = again.then(|| now + reads::PAUSE);
        for probe in self.watches.answered() {
            self.in_flight.remove(&probe);
        }
        for (id, error) in turn.ended {
            self.in_flight.remove(&id);
            // Behind the events that are queued.
            self.outbox
                .push(Class::Change, ServerMessage::Error(error).encode(Some(id)));
        }
        turn.moved
    }

    /// Both ids are free, and the peer is told behind the watch's last event.
    fn end_watch(&mut self, watch: RequestId, request: RequestId) {
        for probe in self.watches.answered() {
            self.in_flight.remove(&probe);
        }
        self.in_flight.remove(&watch);
        self.in_flight.remove(&request);
        self.outbox
            .push(Class::Change, ServerMessage::Done.encode(Some(request)));
    }
}

fn fenced(reason: String) -> Close {
    Close::new(close_code::FENCED, ClosedLabel::Fenced, reason)
}

/// Whether no more may be put into an outbox of this many bytes. One that is empty takes at least one message.
fn is_full(shared: &Shared, budget: &Budget, bytes: usize) -> bool {
    bytes >= shared.config.limits.outbox_bytes_max || (bytes > 0 && budget.shared_is_full())
}

/// Whether a message of this type is a request, with an id of its own.
fn is_request(kind: u8) -> bool {
    !matches!(kind, kind::CREDIT | kind::CANCEL)
}

/// How requests of a type are counted.
fn label_of(kind: u8) -> RequestLabel {
    match kind {
        kind::COMMIT => RequestLabel::Commit,
        kind::SCAN => RequestLabel::Scan,
        kind::SCAN_NEXT => RequestLabel::ScanNext,
        kind::WATCH => RequestLabel::Watch,
        _ => RequestLabel::Get,
    }
}

impl Dialect for Native {
    fn received_bytes_max(&self) -> usize {
        self.limits().frame_bytes_max
    }

    fn sent_bytes_max(&self) -> usize {
        self.limits().frame_bytes_max
    }

    fn outbox_budget(&self) -> &Arc<Budget> {
        &self.outbox_bytes
    }

    fn receiving(&mut self, since: Option<Instant>, now: Instant) {
        self.parts.clock.receiving(since, now);
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        message: Bytes,
        now: Instant,
    ) -> std::result::Result<(), Close> {
        let link_time = self.parts.clock.at(now);
        let incoming = match self.reassembler.receive(message, link_time) {
            Ok(incoming) => incoming,
            Err(
                error @ (ProtocolError::FrameTooLong { .. } | ProtocolError::MessageTooLong { .. }),
            ) => {
                return Err(Close::new(
                    close_code::TOO_BIG,
                    ClosedLabel::Protocol,
                    error.to_string(),
                ));
            }
            Err(error) => return Err(Close::protocol(error)),
        };
        match incoming {
            Incoming::Whole(packet) => self.dispatch(cx, packet, now)?,
            Incoming::Completed(packet) => {
                self.partial.resize(self.reassembler.cost());
                if let Some(id) = packet.id.filter(|_| is_request(packet.kind)) {
                    self.parts.end(id);
                }
                self.dispatch(cx, packet, now)?;
            }
            Incoming::Began { .. } | Incoming::Part { .. } if self.storage.is_none() => {
                return Err(self.too_early());
            }
            Incoming::Began { kind, id } => {
                self.begin_parts(kind, id)?;
                self.bound_partial(kind, id)?;
                self.start_commits(cx, now);
            }
            Incoming::Part { kind, id } => {
                self.bound_partial(kind, id)?;
                self.start_commits(cx, now);
            }
        }
        self.watch_parts(now);
        Ok(())
    }

    fn receive_text(&mut self, _: Utf8Bytes, _: Instant) -> std::result::Result<(), Close> {
        Err(Close::new(
            close_code::UNSUPPORTED_DATA,
            ClosedLabel::Protocol,
            "a text message; this protocol is binary",
        ))
    }

    fn wants_input(&self) -> bool {
        true
    }

    fn poll_work(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> std::result::Result<bool, Close> {
        self.count_outbox();
        let mut moved = self.poll_resuming(cx)?;
        self.check_fence(cx)?;
        moved |= self.start_commits(cx, now);
        moved |= self.poll_commits(cx, now);
        moved |= self.poll_openings(cx, now);
        moved |= self.poll_reads(cx, now);
        moved |= self.poll_watches(cx, now);
        self.count_outbox();
        if moved {
            self.watch_parts(now);
        }
        self.bound_answers()?;
        Ok(moved)
    }

    fn next_message(&mut self) -> Option<Message> {
        let message = self.outbox.pop();
        self.answers_left = self.answers_left.min(self.outbox.answers_bytes());
        message.map(Message::Binary)
    }

    fn deadline(&self) -> Option<Instant> {
        let hello = self.awaits_hello().then_some(self.hello_deadline);
        let (parts, reads) = (self.parts.deadline(), self.reads.deadline());
        let idle = (!self.watches.is_empty()).then_some(self.idle_check);
        let (scans, again) = (self.scans.deadline(), self.watches_again);
        [hello, parts, reads, scans, idle, again]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_time(&mut self, now: Instant) -> std::result::Result<(), Close> {
        if self.awaits_hello() && self.hello_deadline <= now {
            return Err(Close::new(
                close_code::HELLO_TIMEOUT,
                ClosedLabel::Hello,
                "no Hello in time",
            ));
        }
        self.scans.expire(now);
        self.reads.on_time(now);
        if self.idle_check <= now {
            self.idle_check = now + self.shared.config.timeouts.idle_mark;
            if let Some(storage) = &self.storage {
                self.watches.mark_idle(storage.position().revision);
            }
        }
        self.check_parts(now)
    }

    fn drain(&mut self) {
        self.draining = true;
        let reason = "the server shuts down".to_owned();
        let message = ServerMessage::GoAway {
            retry_after: RETRY_AFTER,
            reason,
        };
        self.outbox.push(Class::Control, message.encode(None));
    }

    fn is_drained(&self) -> bool {
        self.resuming.is_none() && self.is_answered()
    }

    fn close_received(&mut self) {
        self.closing = true;
    }

    // A commit that waits for a number that did not come is not waited for.
    fn is_answered(&self) -> bool {
        self.reads.is_empty()
            && self.openings.is_empty()
            && self.commits.is_empty()
            && self.outbox.is_empty()
    }

    async fn finish(mut self, departure: Departure) {
        self.watches.clear();
        self.scans.clear();
        self.reads.clear();
        self.openings.clear();
        // What was handed to the engine happens; the session is left behind it.
        while self.commits.next().await.is_some() {}
        if let (Departure::Left, Some(resuming)) = (&departure, self.resuming.take()) {
            // It left a session that it did not have yet. An attempt that fails has nothing to end.
            if let Ok(Resumed::Session(session)) = resuming.attempt.await {
                self.session = Some(session);
            }
        }
        let Some(session) = self.session.take() else {
            return;
        };
        match departure {
            Departure::Lost => session.lose(),
            Departure::Left => {
                if let Err(error) = session.end().await {
                    tracing::warn!(%error, "cannot end the session");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
