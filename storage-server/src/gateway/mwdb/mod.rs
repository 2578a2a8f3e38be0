//! The mwDB dialect: existing mwDB clients, served from one keyspace.
//!
//! Requests of a connection are carried out in order: reads wait for the writes before them, and writes for the reads
//! before them, while consecutive reads run together, and so do consecutive writes. What waits is bounded in bytes;
//! above the bound the socket is not read, so TCP holds the peer back, since this dialect cannot say "overloaded". A
//! message that arrived while the bound of its principal, or of all, has no room for it is not parsed until there is
//! room. Until then it counts like a message that is not whole, and if there is no room for that either, the session is
//! closed. Pushes are in [`pushes`], prefixes in [`prefix`], requests against `Storage` in [`requests`].
//!
//! If a PUT has a key twice, the later pair counts, in the order of its own position. A PUT with a pair that cannot be
//! stored stores nothing. A removal pushes nothing.

mod prefix;
mod pushes;
mod requests;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use storage_protocol::mwdb::{ID_ZERO, Malformed, Request, RequestKind, prefix_answer};
use storage_protocol::native::close_code;
use storage_protocol::{
    KeyRange, Keyspace, Limit, Limits, Result, StorageError, Watch, WatchOptions,
};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::native::{keyspace_of, place_in};
use super::{Gateway, Identity, ServerHandle};
use crate::engine::rocks::KeyspaceRules;
use crate::engine::{Session, SessionStorage};
use crate::http::Refusal;
use crate::http::protocol::{Opening, Origins, WebSocketProtocol};
use crate::limits::budget::{Budget, Permit};
use crate::metrics::{ClosedLabel, OutcomeLabel, RefusedLabel, RequestLabel};
use crate::shared::Shared;
use crate::ws::kinds::ByKind;
use crate::ws::{Close, Departure, Dialect, Peer, driver, turn_is_over};
use prefix::Prefix;
use pushes::{PushCache, Pushes};
use requests::{AnswerBudget, Finished};

/// The keyspace that mwDB clients are served from.
const KEYSPACE: &str = "mwdb";

/// The rules with which keyspaces for mwDB clients are created: `#` separates keys and values in its messages, and one
/// message may save a whole graph.
pub(crate) const KEYSPACE_RULES: KeyspaceRules = KeyspaceRules {
    forbidden_byte: Some(b'#'),
    items_max: NonZeroU32::new(KEYS_MAX),
};
const KEYS_MAX: u32 = 1_000_000;
const _: () = assert!(KEYS_MAX as usize == Limits::MWDB_KEYS);

/// The mwDB dialect, at `/` without a subprotocol.
#[derive(Debug, Default)]
pub(crate) struct MwdbGateway(Arc<Common>);

/// What its connections share.
#[derive(Debug, Default)]
pub(crate) struct Common {
    cache: PushCache,
    /// Messages that were passed over.
    ignored: Counter,
    /// Messages that were pushed.
    pushed: Counter,
}

impl Gateway for MwdbGateway {
    fn name(&self) -> &'static str {
        "storage"
    }

    fn protocols(&self, server: &ServerHandle) -> Vec<WebSocketProtocol> {
        let (common, shared) = (self.0.clone(), server.shared().clone());
        let protocol = WebSocketProtocol::opened_by("mwdb", "/", move |mut request| {
            let keyspace = served_keyspace(&shared)?;
            let place = place_in(&shared, &keyspace)?;
            let common = common.clone();
            let opening: Opening = Box::new(move |shared, peer, stream, early| {
                tracing::Span::current().record("keyspace", keyspace.as_str());
                let identity = request.identity_without_login(&peer);
                let dialect = Mwdb::new(&shared, &peer, &identity, &keyspace, &common);
                let Some(text) = request.take_beside() else {
                    return Box::pin(async move {
                        let _place = place;
                        driver::run(shared, peer, stream, early, dialect).await;
                    });
                };
                let text = text.start(&shared, &peer, request);
                let dialect = ByKind::new(&shared, &identity, dialect, text);
                Box::pin(async move {
                    let _place = place;
                    driver::run(shared, peer, stream, early, dialect).await;
                })
            });
            Ok(opening)
        });
        vec![protocol.of_bytes().with_origins(Origins::OfOldClients)]
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let Common {
            cache,
            ignored,
            pushed,
        } = &*self.0;
        for (name, help, counter) in [
            (
                "storage_mwdb_messages_ignored",
                "mwDB messages passed over: malformed, of an unknown type, or text",
                ignored,
            ),
            ("storage_mwdb_pushes", "FORCE_RELOAD messages sent", pushed),
            (
                "storage_mwdb_pairs_left_out",
                "Pairs of 1 MiB and more that were left out of FORCE_RELOAD messages",
                &cache.left_out,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
    }
}

fn served_keyspace(shared: &Shared) -> std::result::Result<Keyspace, Refusal> {
    let keyspace = keyspace_of(KEYSPACE)?;
    let configured = &shared.config.engine.mwdb_keyspaces;
    if !configured.contains(&keyspace) {
        let reason = "the keyspace mwdb is not among engine.mwdb_keyspaces";
        let (status, label) = (StatusCode::NOT_FOUND, RefusedLabel::Keyspace);
        return Err(Refusal::new(status, label, reason));
    }
    Ok(keyspace)
}

/// What waits or runs of one connection, in bytes; above it the socket is not read.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// A request costs at least this much of the bound, so that small ones are bounded in number too.
const REQUEST_BYTES_MIN: usize = 256;
/// Writes beside writes, or reads beside reads, of one connection.
const RUNNING_MAX: usize = 256;
/// How often a message that waits for room looks for it.
const PAUSE: Duration = Duration::from_millis(20);
/// mwDB's own client loses messages that fill a buffer of this size.
const CLIENT_BUFFER_BYTES: usize = 1 << 20;

type Running = Pin<Box<dyn Future<Output = Finished> + Send>>;
type OpeningWatch = Pin<Box<dyn Future<Output = Result<Watch>> + Send>>;

struct Queued {
    request: Request,
    permit: Permit,
}

/// A message that arrived and waits for room.
struct Waiting {
    message: Bytes,
    /// How many bytes it will count.
    bytes: usize,
    _partial: Permit,
    look_again: Instant,
}

/// What a request takes of the bounds: its message, and the list of its keys and values, which for short ones is many
/// times as long.
fn cost(request: &Request, message_bytes: usize) -> usize {
    let list = match &request.kind {
        RequestKind::Get { keys } | RequestKind::Remove { keys } => size_of_val(&keys[..]),
        RequestKind::Put { pairs, .. } => size_of_val(&pairs[..]),
        RequestKind::PutWithoutSeparator | RequestKind::Prefix => 0,
    };
    message_bytes.max(REQUEST_BYTES_MIN) + list
}

/// Which kind of request runs; the other kind waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Reads,
    Writes,
}

/// One session.
pub(crate) struct Mwdb {
    shared: Arc<Shared>,
    common: Arc<Common>,
    session: Arc<dyn Session>,
    storage: Arc<dyn SessionStorage>,
    prefix: Prefix,
    pushes: Pushes,
    /// Requests wait until the watch is open, so that no commit after them is missed.
    opening: Option<OpeningWatch>,
    queue: VecDeque<Queued>,
    running: FuturesUnordered<Running>,
    running_side: Side,
    /// Bytes of what is queued, runs, or asks for a prefix; released request by request.
    in_flight: Arc<Budget>,
    /// Waits behind all of these. While there is one the socket is not read.
    waiting: Option<Waiting>,
    /// Bytes of messages that are not whole, of all sessions of the principal.
    partial: Arc<Budget>,
    answers: VecDeque<Bytes>,
    answer_bytes: usize,
    /// Answers, in the session's budget; those that are being read count there too.
    outbox: Permit,
    room: AnswerBudget,
    /// Requests with id `A` that are not answered: no push may go out.
    unanswered_zero: usize,
    draining: bool,
    /// The peer closes: no more pushes.
    closing: bool,
    warned_of_size: bool,
}

impl Mwdb {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        peer: &Peer,
        identity: &Identity,
        keyspace: &Keyspace,
        common: &Arc<Common>,
    ) -> Self {
        let session = shared.open_session(identity, keyspace);
        let storage = session.clone().storage();
        let watched = storage.clone();
        let opening: OpeningWatch = Box::pin(async move {
            watched
                .watch(KeyRange::all(), WatchOptions::default())
                .await
        });
        let budgets = peer.slot.budgets();
        let outbox_max = shared.config.limits.outbox_bytes_max;
        let room = AnswerBudget {
            outbox: Budget::within(&budgets.outbox, Limit::Outbox, outbox_max),
            beyond: Arc::new(Semaphore::new(1)),
        };
        let in_flight = Budget::within(&budgets.in_flight, Limit::BytesInFlight, QUEUED_BYTES_MAX);
        Self {
            prefix: Prefix::new(shared, identity),
            pushes: Pushes::new(outbox_max, &room.outbox, &budgets.outbox_once),
            opening: Some(opening),
            queue: VecDeque::new(),
            running: FuturesUnordered::new(),
            running_side: Side::Reads,
            in_flight,
            waiting: None,
            partial: budgets.partial.clone(),
            answers: VecDeque::new(),
            answer_bytes: 0,
            outbox: room.outbox.count(),
            room,
            unanswered_zero: 0,
            draining: false,
            closing: false,
            warned_of_size: false,
            session,
            storage,
            shared: shared.clone(),
            common: common.clone(),
        }
    }

    fn answer(&mut self, id: &[u8], message: Bytes) {
        if id == ID_ZERO {
            self.unanswered_zero = self.unanswered_zero.saturating_sub(1);
        }
        if message.len() >= CLIENT_BUFFER_BYTES && !self.warned_of_size {
            self.warned_of_size = true;
            tracing::warn!(
                bytes = message.len(),
                "an answer of 1 MiB or more: mwDB's own client loses such messages"
            );
        }
        self.answer_bytes += message.len();
        self.answers.push_back(message);
    }

    fn poll_opening(&mut self, cx: &mut Context<'_>) -> std::result::Result<bool, Close> {
        let Some(opening) = &mut self.opening else {
            return Ok(true);
        };
        match opening.as_mut().poll(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(watch)) => {
                self.opening = None;
                if !self.closing {
                    self.pushes.attach(watch);
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => {
                self.shared.metrics.quota_refused(&error);
                let reason = format!("cannot watch the keyspace: {error}");
                Err(match error {
                    StorageError::Overloaded { .. } => {
                        Close::new(close_code::TRY_AGAIN, ClosedLabel::Overloaded, reason)
                    }
                    _ => failed(reason),
                })
            }
        }
    }

    /// Starts the requests that may run together with those that run already.
    fn start(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut moved = false;
        while self.running.len() < RUNNING_MAX
            && !(moved && turn_is_over(now))
            && self.has_room_for_answers()
            && let Some(next) = self.queue.front()
        {
            let side = match next.request.kind {
                RequestKind::Get { .. } => Side::Reads,
                RequestKind::Put { .. }
                | RequestKind::PutWithoutSeparator
                | RequestKind::Remove { .. }
                | RequestKind::Prefix => Side::Writes,
            };
            if !self.running.is_empty() && side != self.running_side {
                break;
            }
            let Some(Queued { request, permit }) = self.queue.pop_front() else {
                break;
            };
            self.running_side = side;
            moved = true;
            let own_put =
                matches!(request.kind, RequestKind::Put { .. }).then(|| self.pushes.begin_put());
            let storage = self.storage.clone();
            let mut running =
                requests::run(&self.shared, storage, request, permit, own_put, &self.room);
            // Ordering: the first poll hands a commit to the engine, which fixes the order of writes.
            match running.as_mut().poll(cx) {
                Poll::Ready(finished) => {
                    if let Err(close) = self.finished(finished) {
                        // Reported at the next poll, which can return an error.
                        self.running
                            .push(Box::pin(std::future::ready(Finished::failed(close))));
                    }
                }
                Poll::Pending => self.running.push(running),
            }
        }
        moved
    }

    fn finished(&mut self, finished: Finished) -> std::result::Result<(), Close> {
        let Finished {
            id,
            answer,
            own_put,
            counted,
        } = finished;
        if let Some((number, revision)) = own_put {
            self.pushes.end_put(number, revision);
        }
        self.answer(&id, answer?);
        self.count_outbox();
        drop(counted);
        Ok(())
    }

    fn count_outbox(&mut self) {
        self.outbox.resize(self.answer_bytes);
    }

    fn has_room_for_answers(&self) -> bool {
        self.answer_bytes < self.shared.config.limits.outbox_bytes_max
    }

    fn poll_prefix(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(prefix) = self.prefix.poll(cx) else {
            return false;
        };
        let mut moved = false;
        while self.has_room_for_answers()
            && let Some(asked) = self.prefix.next()
        {
            self.answer(&asked.id, prefix_answer(prefix, &asked.id));
            moved = true;
        }
        if moved {
            self.pushes.open();
        }
        moved
    }

    /// Room for a request. There always is if nothing else is in flight, of its principal or of all.
    fn room_for(&self, bytes: usize) -> Option<Permit> {
        let mut permit = self.in_flight.count();
        let fits = permit.grow_beyond(bytes);
        fits.then_some(permit)
    }

    /// Takes the message that waits, if there is room for it now.
    fn poll_waiting(&mut self, now: Instant) -> std::result::Result<bool, Close> {
        let Some(mut waiting) = self.waiting.take() else {
            return Ok(false);
        };
        match self.room_for(waiting.bytes) {
            Some(permit) => {
                if let Some(request) = self.parse(waiting.message)? {
                    self.take(request, permit);
                }
                Ok(true)
            }
            None => {
                waiting.look_again = now + PAUSE;
                self.waiting = Some(waiting);
                Ok(false)
            }
        }
    }

    /// The request that a message is, unless it is to be passed over.
    fn parse(&self, message: Bytes) -> std::result::Result<Option<Request>, Close> {
        match Request::parse_within(message, self.shared.config.limits.mwdb_keys_max) {
            Ok(request) => Ok(Some(request)),
            // Its client expects an answer, and would wait for it for ever.
            Err(error @ Malformed::TooManyKeys { .. }) => Err(Close::new(
                close_code::TOO_BIG,
                ClosedLabel::Protocol,
                error.to_string(),
            )),
            Err(error) => {
                self.common.ignored.inc();
                tracing::debug!(%error, "passed over a message");
                Ok(None)
            }
        }
    }

    fn take(&mut self, request: Request, mut permit: Permit) {
        if let RequestKind::Prefix = request.kind {
            // A slice of a message keeps the whole message alive, and this one may wait for long.
            let id = Bytes::copy_from_slice(&request.id);
            permit.resize(id.len().max(REQUEST_BYTES_MIN));
            self.pushes.expect();
            self.prefix.ask(id, permit);
            self.shared
                .metrics
                .request_outcome(RequestLabel::Prefix, OutcomeLabel::Ok);
        } else {
            self.queue.push_back(Queued { request, permit });
        }
    }
}

fn failed(reason: String) -> Close {
    Close::new(close_code::INTERNAL, ClosedLabel::Failed, reason)
}

impl Dialect for Mwdb {
    fn received_bytes_max(&self) -> usize {
        self.shared.config.limits.message_bytes_max
    }

    fn sent_bytes_max(&self) -> usize {
        // An answer has a separator for each of its keys besides the values.
        self.received_bytes_max() + self.shared.config.limits.mwdb_keys_max + 1024
    }

    fn outbox_budget(&self) -> &Arc<Budget> {
        &self.room.outbox
    }

    // In this dialect each message is one WebSocket message.
    fn receiving(&mut self, _since: Option<Instant>, _now: Instant) {}

    fn receive(
        &mut self,
        _cx: &mut Context<'_>,
        message: Bytes,
        now: Instant,
    ) -> std::result::Result<(), Close> {
        let Some(request) = self.parse(message.clone())? else {
            return Ok(());
        };
        if self.draining {
            // It gets no answer, but the close frame, after the answers that are due.
            return Ok(());
        }
        if request.id == ID_ZERO {
            self.unanswered_zero += 1;
        }
        let bytes = cost(&request, message.len());
        if let Some(permit) = self.room_for(bytes) {
            self.take(request, permit);
            return Ok(());
        }
        let partial = self.partial.take(message.len()).map_err(|error| {
            let reason = error.to_string();
            Close::new(close_code::TRY_AGAIN, ClosedLabel::Overloaded, reason)
        })?;
        // Not parsed: the list of its keys and values may take more memory than the message.
        self.waiting = Some(Waiting {
            message,
            bytes,
            _partial: partial,
            look_again: now + PAUSE,
        });
        Ok(())
    }

    fn receive_text(&mut self, _: Utf8Bytes, _: Instant) -> std::result::Result<(), Close> {
        self.common.ignored.inc();
        Ok(())
    }

    fn wants_input(&self) -> bool {
        self.waiting.is_none() && (self.in_flight.used() == 0 || !self.in_flight.is_full())
    }

    fn poll_work(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> std::result::Result<bool, Close> {
        let mut moved = self.poll_waiting(now)?;
        if !self.poll_opening(cx)? {
            return Ok(moved);
        }
        // Before the requests: pushes wait for it.
        moved |= self.poll_prefix(cx);
        let mut answered = false;
        while self.has_room_for_answers()
            && !(answered && turn_is_over(now))
            && let Poll::Ready(Some(finished)) = self.running.poll_next_unpin(cx)
        {
            self.finished(finished)?;
            answered = true;
        }
        moved |= answered;
        moved |= self.start(cx, now);
        moved |= self.pushes.poll(cx, &self.common.cache, now)?;
        self.count_outbox();
        Ok(moved)
    }

    fn next_message(&mut self) -> Option<Message> {
        if let Some(answer) = self.answers.pop_front() {
            self.answer_bytes -= answer.len();
            return Some(Message::Binary(answer));
        }
        if self.unanswered_zero > 0 {
            return None;
        }
        let push = self.pushes.pop()?;
        self.common.pushed.inc();
        Some(Message::Binary(push))
    }

    fn deadline(&self) -> Option<Instant> {
        let look_again = self.waiting.as_ref().map(|waiting| waiting.look_again);
        [self.pushes.deadline(), look_again]
            .into_iter()
            .flatten()
            .min()
    }

    fn on_time(&mut self, now: Instant) -> std::result::Result<(), Close> {
        self.pushes.check_slow_peer(now)
    }

    fn drain(&mut self) {
        self.draining = true;
    }

    fn is_drained(&self) -> bool {
        // A prefix that cannot be given is not waited for. Nor are pushes: the dialect does not promise them.
        self.waiting.is_none()
            && self.queue.is_empty()
            && self.running.is_empty()
            && !self.prefix.is_due()
            && self.answers.is_empty()
    }

    fn close_received(&mut self) {
        self.closing = true;
        self.pushes.detach();
    }

    // Its sessions cannot be resumed: the dialect has no message for it.
    async fn finish(mut self, _: Departure) {
        self.pushes.detach();
        // This message was not taken.
        self.waiting = None;
        self.queue
            .retain(|queued| !matches!(queued.request.kind, RequestKind::Get { .. }));
        if self.running_side == Side::Reads {
            // These are reads: nobody takes their answers, and they may wait for room.
            self.running.clear();
        }
        // Writes that were received are carried out, and the prefix is given back after the last PUT.
        loop {
            std::future::poll_fn(|cx| {
                // The peer is gone: its answers are of no use.
                self.answers.clear();
                self.answer_bytes = 0;
                self.start(cx, Instant::now());
                Poll::Ready(())
            })
            .await;
            match self.running.next().await {
                None if self.queue.is_empty() => break,
                _ => {}
            }
        }
        self.prefix.release().await;
        if let Err(error) = self.session.end().await {
            tracing::warn!(%error, "cannot end the session");
        }
    }
}

#[cfg(test)]
mod tests;
