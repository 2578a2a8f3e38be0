//! The native dialect, `storage-sync.v1`: one session's requests, from frame to answer.
//!
//! Gets and commits are polled once when they arrive (a commit that arrives before its turn: at its turn, see
//! [`order`]). This fixes the order of commits and answers most gets at once; what is not ready goes on beside the
//! others. If Hello resumes a session, Welcome is sent once the engine has resumed it. A session outlives the socket
//! unless the peer closes it with 1000. While the outbox is full, reads wait in memory (their requests are in flight
//! and so bounded) and watches are not polled; commits go on, since their answers are small.
//!
//! | module | what is in it |
//! | --- | --- |
//! | [`gateway`], [`dialect`] | the gateway; the session as the driver of its socket polls it |
//! | [`hello`] | from Hello to Welcome: the session that is opened or resumed |
//! | [`requests`], [`watch_requests`] | the requests, and the bounds that they are checked by |
//! | [`work`] | requests in progress, until their answers are in the outbox |
//! | [`partial`], [`fragments`] | messages in parts, and the time that they may take |
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
pub(crate) use self::gateway::{NativeGateway, keyspace_of, place_in};
use self::hello::Resuming;
use self::order::Order;
use self::reads::{Lane, Read, Reads};
use self::scans::{Scans, Turn};
use self::watches::{Terms, Watches};
use crate::auth::Identity;
use crate::engine::{Session, SessionStorage};
use crate::limits::budget::{Budget, Permit};
use crate::limits::room::AnswerRoom;
use crate::metrics::{ClosedLabel, Metrics, RequestLabel};
use crate::shared::Shared;
use crate::ws::{Close, Peer};

/// So many bytes of small answers may always wait, however small the outbox is configured: requests that were read at
/// once are answered together.
const ANSWERS_BYTES_MIN: usize = 1 << 20;

/// So many bytes of them may be left untaken while all sessions together, or those of the principal, have no room: the
/// answers to as many small requests as may be in flight.
const ANSWERS_LEFT_MAX: usize = 64 << 10;

type Result<T> = std::result::Result<T, StorageError>;

type Running = Pin<Box<dyn Future<Output = FinishedRequest> + Send>>;

/// A request that was carried out.
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
        /// Where the values are counted until they are in the outbox.
        room: AnswerRoom,
    },
    Committed(Position),
    Page(Turn),
    /// There was no room for the answer: it is to be read again.
    NoRoom(Read),
    Watching {
        watch: Watch,
        terms: Terms,
    },
}

/// A request's permits in the bounds on requests in flight.
#[derive(Debug)]
struct Permits {
    _requests: Permit,
    /// For its payload: the client counts by this bound too.
    _bytes: Permit,
    /// For what it takes beside that, in the bounds that sessions share.
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
    /// A Probe of a watch, until its progress event is delivered.
    Probing,
}

/// The session that a connection is attached to: there from Welcome on.
struct Attached {
    session: Arc<dyn Session>,
    /// What its requests go through.
    storage: Arc<dyn SessionStorage>,
    /// Completes when a newer generation took the session over.
    fenced: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The highest commit number that was executed before Welcome: commits up to it are retries, and not executed.
    executed: u64,
    /// Welcome said that keys of the session expired, and the client has not acknowledged it by sending anything since.
    unacknowledged: bool,
}

/// The connection before Welcome.
struct Handshake {
    /// Until when Hello must arrive.
    deadline: Instant,
    /// Between Hello and Welcome, if there is something to wait for.
    resuming: Option<Resuming>,
}

/// Messages of the peer that are not whole yet.
struct Incoming {
    reassembler: Reassembler,
    /// What the reassembler costs, in the principal's budget.
    counted: Permit,
    fragments: Fragments,
}

/// What waits to be sent.
struct Outgoing {
    outbox: Outbox,
    /// The bound on the outbox and on answers that are being read; within the principal's budget.
    budget: Arc<Budget>,
    /// What the outbox holds of `budget`.
    counted: Permit,
    /// Bytes of small answers, which no bound holds back, that were in the outbox when they were last counted.
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
    /// The same by id, with the id of the Unwatch that arrived for it meanwhile.
    opening: HashMap<RequestId, Option<RequestId>>,
    /// Those ended by the peer whose last message is still on its way, with the id of the Unwatch.
    unwatching: Vec<(RequestId, RequestId)>,
    /// When to look for watches that got no event for long.
    idle_check: Instant,
    /// When watches are polled again that wait until other sessions give room back.
    retry_at: Option<Instant>,
}

/// One connection, and the session that it is attached to.
pub(crate) struct Native {
    shared: Arc<Shared>,
    identity: Identity,
    keyspace: Keyspace,
    handshake: Handshake,
    attached: Option<Attached>,
    draining: bool,
    /// The peer closes: it gets no more events.
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
            identity: peer.identity.clone(),
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

    /// The storage of the session's requests; `None` before Welcome.
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

    /// Whether there is room for a read beside the first, as far as that is known before it is read.
    fn has_room_beside(&self) -> bool {
        !self.outgoing.budget.is_full()
    }

    /// Whether a get is tried, in case its answer is small, while other reads wait.
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

    /// Whether a commit may have this commit number.
    fn check_number(&self, number: u64) -> std::result::Result<(), Close> {
        if self.incoming.fragments.has_number(number) {
            return Err(Close::protocol(format!(
                "commit number {number} came before"
            )));
        }
        self.commits.order.check(number)
    }

    /// Small answers are sent whatever the outbox holds, so that a full outbox does not hold them up. So a peer that
    /// goes on with small requests and takes no answers is closed at twice the outbox's bound, before the time for slow
    /// peers is over. While a bound that sessions share is full it is closed at [`ANSWERS_LEFT_MAX`], since each of
    /// many sessions would hold as much.
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
