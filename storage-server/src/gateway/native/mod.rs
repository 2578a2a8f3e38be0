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
//! | [`partial`], [`fragments`] | messages in parts, and what is not there yet |
//! | [`order`], [`reads`], [`scans`], [`watches`] | commits by number, reads and their room, open scans, watches |

mod dialect;
mod fragments;
mod gateway;
mod hello;
mod order;
mod partial;
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

use self::fragments::Fragments;
pub(crate) use self::gateway::{NativeGateway, keyspace_of};
use self::hello::Resuming;
use self::order::Order;
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

type Running = Pin<Box<dyn Future<Output = FinishedRequest> + Send>>;

/// A request that is through.
struct FinishedRequest {
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
    state: RequestState,
    /// `None` for what is bounded otherwise: watches.
    _permits: Option<Permits>,
}

enum RequestState {
    /// Among the reads that wait.
    Waiting,
    /// Among those that run, or the openings, if its first poll was not enough.
    Reading(Option<AbortHandle>),
    Committing,
    /// An open watch; or an Unwatch whose answer waits behind the watch's last message.
    Watching,
    /// A Probe of a watch, until its progress event comes.
    Probing,
}

/// The session that a connection is attached to: there from Welcome on.
struct Attached {
    session: Arc<dyn Session>,
    /// What its requests go through.
    storage: Arc<dyn SessionStorage>,
    /// Ends when a newer generation took the session over.
    fenced: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The highest number that was executed before Welcome: those up to it come again, and are not executed.
    executed: u64,
    /// The client was told that keys of its session expired, and has not acknowledged it by sending anything since.
    unacknowledged: bool,
}

/// The connection before Welcome.
struct Handshake {
    /// Until when Hello is to come.
    deadline: Instant,
    /// Between Hello and Welcome, if there is something to wait for.
    resuming: Option<Resuming>,
}

/// What comes in and is not whole yet.
struct Incoming {
    reassembler: Reassembler,
    /// What the reassembler costs, in the principal's budget.
    counted: Permit,
    fragments: Fragments,
}

/// What waits to be sent.
struct Outgoing {
    outbox: Outbox,
    /// The bound on it and on answers that are being read; within the principal's budget.
    budget: Arc<Budget>,
    /// What the outbox holds of it.
    counted: Permit,
    /// Bytes of answers that no bound holds back, and that the peer has not taken since the outbox was last looked at.
    untaken: usize,
}

/// What bounds the requests in flight.
struct Bounds {
    requests: Arc<Budget>,
    bytes: Arc<Budget>,
    /// The principal's, for what a request costs beside its payload.
    items: Arc<Budget>,
}

/// The session's commits: those that wait for their turn, and those that the engine has.
struct Commits {
    order: Order,
    running: FuturesUnordered<Running>,
}

/// The session's watches, from their requests to their last messages.
struct Watching {
    watches: Watches,
    /// The bound on their memory.
    budget: Arc<Budget>,
    /// Those that are being opened.
    openings: FuturesUnordered<Running>,
    /// The same by id, with the id of the Unwatch that came for it meanwhile.
    opening: HashMap<RequestId, Option<RequestId>>,
    /// Those ended by the peer whose last message is still on its way, with the id of the Unwatch.
    unwatching: Vec<(RequestId, RequestId)>,
    /// When to look for watches that were told nothing for long.
    idle_check: Instant,
    /// When watches are polled again that wait for the room of others.
    retry_at: Option<Instant>,
}

/// One connection, and the session that it is attached to.
pub(crate) struct Native {
    shared: Arc<Shared>,
    principal: Principal,
    keyspace: Keyspace,
    handshake: Handshake,
    attached: Option<Attached>,
    draining: bool,
    /// The peer closes: it is told of no more events.
    closing: bool,
    incoming: Incoming,
    outgoing: Outgoing,
    bounds: Bounds,
    in_flight: HashMap<RequestId, InFlight>,
    commits: Commits,
    reads: Reads,
    scans: Scans,
    watching: Watching,
}

impl Native {
    pub(crate) fn new(shared: &Arc<Shared>, peer: &Peer, keyspace: Keyspace) -> Self {
        let all = &shared.config.limits;
        let limits = &shared.announced;
        let budgets = peer.slot.budgets();
        let outbox = Budget::within(&budgets.outbox, Limit::Outbox, all.outbox_bytes_max);
        Self {
            principal: peer.principal.clone(),
            keyspace,
            handshake: Handshake {
                deadline: peer.deadline,
                resuming: None,
            },
            attached: None,
            draining: false,
            closing: false,
            incoming: Incoming {
                reassembler: Reassembler::new(limits.frame_bytes_max, limits.message_bytes_max),
                counted: budgets.partial.count(),
                fragments: Fragments::default(),
            },
            outgoing: Outgoing {
                outbox: Outbox::new(),
                counted: outbox.count(),
                budget: outbox,
                untaken: 0,
            },
            bounds: Bounds {
                requests: Budget::new(Limit::RequestsInFlight, limits.requests_in_flight_max),
                bytes: Budget::within(
                    &budgets.in_flight,
                    Limit::BytesInFlight,
                    limits.bytes_in_flight_max,
                ),
                items: budgets.in_flight.clone(),
            },
            in_flight: HashMap::new(),
            commits: Commits {
                order: Order::new(),
                running: FuturesUnordered::new(),
            },
            reads: Reads::default(),
            scans: Scans::new(shared.metrics.clone()),
            watching: Watching {
                watches: Watches::new(shared.metrics.clone()),
                budget: Budget::within(&budgets.watches, Limit::WatchBytes, all.watch_bytes_max),
                openings: FuturesUnordered::new(),
                opening: HashMap::new(),
                unwatching: Vec::new(),
                idle_check: Instant::now() + shared.config.timeouts.idle_mark,
                retry_at: None,
            },
            shared: shared.clone(),
        }
    }

    /// What the session's requests go through; `None` before Welcome.
    fn storage(&self) -> Option<Arc<dyn SessionStorage>> {
        let attached = self.attached.as_ref()?;
        Some(attached.storage.clone())
    }

    /// The highest commit number that was executed before Welcome.
    fn executed(&self) -> u64 {
        self.attached
            .as_ref()
            .map_or(0, |attached| attached.executed)
    }

    fn limits(&self) -> &Limits {
        &self.shared.announced
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn answer(&mut self, id: RequestId, message: &ServerMessage) {
        self.outgoing
            .outbox
            .push(Class::Answer, message.encode(Some(id)));
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
        is_full(
            &self.shared,
            &self.outgoing.budget,
            self.outgoing.outbox.bytes(),
        )
    }

    /// Whether there is room for a read beside the first, as far as can be said before.
    fn has_room_beside(&self) -> bool {
        !self.outgoing.budget.is_full()
    }

    /// Whether a get is tried although the others wait.
    fn takes_small(&self) -> bool {
        self.reads.takes_small() && self.outgoing.outbox.frames_bytes() <= reads::SMALL_WAITING_MAX
    }

    /// Whether a request may have this id.
    fn check_id(&self, id: RequestId) -> std::result::Result<(), Close> {
        if self.in_flight.contains_key(&id) || self.incoming.fragments.has_begun(id) {
            return Err(Close::protocol(format!(
                "request id {id} is in flight already"
            )));
        }
        Ok(())
    }

    /// Whether a commit may have this number.
    fn check_number(&self, number: u64) -> std::result::Result<(), Close> {
        if self.incoming.fragments.has_number(number) {
            return Err(Close::protocol(format!(
                "commit number {number} came before"
            )));
        }
        self.commits.order.check(number)
    }

    /// Small answers go out whatever the outbox holds, so that a full one cannot stand before them. A peer that goes on
    /// asking for them and takes none is closed at twice the bound, before the time for slow peers is over; where the
    /// room that it shares is full, at little: of many sessions each would hold as much.
    fn bound_answers(&mut self) -> std::result::Result<(), Close> {
        let outbox = self.shared.config.limits.outbox_bytes_max;
        let max = outbox.saturating_mul(2).max(ANSWERS_BYTES_MIN);
        let left = std::mem::replace(
            &mut self.outgoing.untaken,
            self.outgoing.outbox.answers_bytes(),
        );
        let max = if self.outgoing.outbox.frames_bytes() > max {
            max
        } else if left > ANSWERS_LEFT_MAX && self.outgoing.budget.shared_is_full() {
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
        match (message, id, self.storage()) {
            (ClientMessage::Hello(hello), _, None) if self.handshake.resuming.is_none() => {
                self.begin(hello)
            }
            (ClientMessage::Hello(_), _, _) => Err(Close::protocol("Hello was said before")),
            (_, _, None) => Err(self.too_early()),
            (_, None, Some(_)) => Err(Close::protocol("a request without an id")),
            (message, Some(id), Some(storage)) => {
                if let Some(attached) = &mut self.attached
                    && std::mem::take(&mut attached.unacknowledged)
                {
                    attached.session.acknowledge_expiry();
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
        self.outgoing.counted.resize(self.outgoing.outbox.bytes());
    }
}

/// Whether no more may be put into an outbox of this many bytes. One that is empty takes at least one message.
fn is_full(shared: &Shared, budget: &Budget, bytes: usize) -> bool {
    bytes >= shared.config.limits.outbox_bytes_max || (bytes > 0 && budget.shared_is_full())
}

#[cfg(test)]
mod tests;
