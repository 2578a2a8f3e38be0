//! The native dialect, `storage-sync.v1`: one session's requests, from frame to answer.
//!
//! Gets and commits are polled once where they arrive (a commit that came before its turn: when that comes, see
//! [`order`]), which fixes the order of commits and answers most gets at once; what is not ready goes on beside the
//! others. A session that is resumed is waited for between Hello and Welcome, and outlives the socket unless the peer
//! closes it with 1000. While the outbox is full, reads wait in memory (their bytes are in
//! flight and so bounded) and watches park; commits go on, their answers are small.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`gateway`], [`dialect`] | the gateway; the session as the driver of its socket polls it |
//! | [`hello`] | from Hello to Welcome: the session that is opened or resumed |
//! | [`requests`], [`watch_requests`] | what a message asks for, and which bound it meets |
//! | [`work`] | what is under way, until its answer is in the outbox |
//! | [`partial`], [`parts`] | messages in parts, and what is not there yet |
//! | [`order`], [`reads`], [`scans`], [`watches`] | commits by number, reads and their room, open scans, watches |

mod dialect;
mod gateway;
mod hello;
mod order;
mod partial;
mod parts;
mod reads;
mod requests;
mod scans;
mod watch_requests;
mod watches;
mod work;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;

use futures_util::future::AbortHandle;
use futures_util::stream::FuturesUnordered;
use storage_protocol::native::{
    Class, ClientMessage, Outbox, Packet, Reassembler, RequestId, ServerMessage, close_code,
};
use storage_protocol::{Entry, Keyspace, Limit, Limits, Position, Reading, StorageError, Watch};
use tokio_util::sync::WaitForCancellationFutureOwned;

pub(crate) use self::gateway::{NativeGateway, keyspace_of};
use self::hello::Resuming;
use self::order::Order;
use self::parts::Parts;
use self::reads::{Lane, Read, Reads};
use self::scans::{Scans, Turn};
use self::watches::{Terms, Watches};
use crate::auth::Principal;
use crate::engine::{Session, SessionStorage};
use crate::limits::budget::{Budget, Permit};
use crate::limits::room::AnswerRoom;
use crate::metrics::{ClosedLabel, Metrics, RequestLabel};
use crate::shared::Shared;
use crate::ws::{Close, Peer};

/// Small answers of so many bytes may wait, however small the outbox is: those to what was read at once come together.
const ANSWERS_BYTES_MIN: usize = 1 << 20;

/// So many bytes of them may be left untaken where all sessions together, or those of the principal, have no room: the
/// answers to as many small requests as may be in flight.
const ANSWERS_LEFT_MAX: usize = 64 << 10;

type Result<T> = std::result::Result<T, StorageError>;

type Running = Pin<Box<dyn Future<Output = Finished> + Send>>;

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
        let limits = &all.announced;
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
        &self.shared.config.limits.announced
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

    fn count_outbox(&mut self) {
        self.outbox_permit.resize(self.outbox.bytes());
    }
}

/// Whether no more may be put into an outbox of this many bytes. One that is empty takes at least one message.
fn is_full(shared: &Shared, budget: &Budget, bytes: usize) -> bool {
    bytes >= shared.config.limits.outbox_bytes_max || (bytes > 0 && budget.shared_is_full())
}

#[cfg(test)]
mod tests;
