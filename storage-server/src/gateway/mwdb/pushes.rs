//! FORCE_RELOAD: pushes what others put to a connection, at a time when its client can take it.
//!
//! A push is rebuilt from the commit, in the order of its puts. A connection's own PUTs are recognised by their
//! revision and not pushed. Since the event of a PUT may arrive before its answer, events wait while an own PUT from
//! before them is in flight. Pushes are kept once the client has requested its prefix, and sent once it has its answer.
//! A large commit is sent in several messages; each is built when the one before it was sent. What is kept is bounded
//! in bytes: over the bound the watch is not polled, and a peer that then takes nothing for ten seconds is closed,
//! since the dialect cannot report a gap. In the bounds that all sessions share, a commit counts once, however many
//! connections hold it; while these are full, a connection that holds a commit takes no other.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use prometheus_client::metrics::counter::Counter;
use storage_protocol::mwdb::force_reload;
use storage_protocol::native::close_code;
use storage_protocol::{ChangeKind, CommitRecord, Revision, Watch, WatchEvent};

use super::failed;
use crate::limits::budget::{Budget, Part};
use crate::limits::once::{Once, Share};
use crate::metrics::ClosedLabel;
use crate::ws::Close;

/// How long a peer that is over its bound may take nothing.
const OVER_BOUND_MAX: Duration = Duration::from_secs(10);

/// A push is no longer than this. mwDB's own client takes each full buffer of this size for a message of its own, so a
/// longer message is torn, and what is torn off may look like an answer.
const MESSAGE_BYTES_MAX: usize = super::CLIENT_BUFFER_BYTES - 1;

/// What the shared messages may take; or one, if that is larger.
const SHARED_BYTES_MAX: usize = 16 << 20;

/// A part of a commit, as one message.
#[derive(Clone, Debug)]
struct Piece {
    /// `None`: it puts nothing.
    message: Option<Bytes>,
    /// The offset of the first change after it.
    next: usize,
}

/// A commit and the offset of a change in it.
type Place = (Revision, usize);

/// The latest messages of pushes, shared by all connections. Each is built once; again only for a connection that is so
/// late that the message was dropped.
#[derive(Debug, Default)]
pub(super) struct PushCache {
    latest: Mutex<Latest>,
    /// Pairs that are too large for any message.
    pub(super) left_out: Counter,
}

#[derive(Debug, Default)]
struct Latest {
    pieces: HashMap<Place, Piece>,
    /// Oldest first.
    line: VecDeque<Place>,
    bytes: usize,
}

impl PushCache {
    /// What is to be pushed of a commit from a change on, in one message.
    fn piece(&self, record: &CommitRecord, place: usize) -> Result<Piece, Close> {
        let mut shared = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (record.revision, place);
        if let Some(piece) = shared.pieces.get(&at) {
            return Ok(piece.clone());
        }
        let piece = cut(record, place, &self.left_out)?;
        let bytes = |piece: &Piece| piece.message.as_ref().map_or(0, Bytes::len);
        shared.bytes += bytes(&piece);
        while shared.bytes > SHARED_BYTES_MAX
            && let Some(oldest) = shared.line.pop_front()
        {
            let oldest = shared.pieces.remove(&oldest);
            shared.bytes -= oldest.as_ref().map_or(0, bytes);
        }
        if piece.message.is_some() {
            shared.line.push_back(at);
            shared.pieces.insert(at, piece.clone());
        }
        Ok(piece)
    }
}

/// As many puts of a commit, from a change on, as fit into one message. A pair that is too large for any message is
/// left out: the client keeps its old value of that key, which is better than to take the bytes for an answer.
fn cut(record: &CommitRecord, place: usize, left_out: &Counter) -> Result<Piece, Close> {
    let mut pairs = Vec::new();
    let (mut bytes, mut next) = (1, place);
    for change in record.changes.iter().skip(place) {
        if let ChangeKind::Put { value, .. } = &change.kind {
            let more = change.key.len() + value.len() + 2;
            if 1 + more > MESSAGE_BYTES_MAX {
                left_out.inc();
                tracing::warn!(
                    revision = record.revision.0,
                    bytes = more,
                    "a pair of 1 MiB or more is left out of a push: mwDB's own client would tear it"
                );
            } else if bytes + more > MESSAGE_BYTES_MAX {
                break;
            } else {
                bytes += more;
                pairs.push((change.key.as_ref(), value.as_ref()));
            }
        }
        next += 1;
    }
    let message = if pairs.is_empty() {
        None
    } else {
        let message = force_reload(pairs)
            .map_err(|error| failed(format!("a commit cannot be pushed: {error}")))?;
        Some(message)
    };
    Ok(Piece { message, next })
}

/// Whether the client has its prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Not requested: nothing is pushed.
    NotAsked,
    /// Requested: pushes are kept.
    Asked,
    /// Answered: pushes go out.
    Open,
}

/// What many connections may share, so that it counts once for all; dropped in this order.
struct Counted<T> {
    _share: Arc<Share>,
    thing: T,
}

struct Held {
    record: Counted<Arc<CommitRecord>>,
    /// Own PUTs with a number below this were in flight, or done, when the event arrived.
    puts_begun: u64,
}

/// A commit that is pushed.
struct Push {
    record: Counted<Arc<CommitRecord>>,
    /// The offset of the first change that is in no message yet.
    next: usize,
    /// How many bytes it still counts in the session's bound.
    bytes: usize,
}

/// See the module.
pub(super) struct Pushes {
    watch: Option<Watch>,
    gate: Gate,
    bytes_max: usize,
    /// Events that an own PUT in flight might have caused. Counted in `bytes`.
    held: VecDeque<Held>,
    ready: VecDeque<Push>,
    /// The next message. Counted with its commit in the session's bound.
    message: Option<Counted<Bytes>>,
    /// Bytes of all pushes that the session has yet to send.
    bytes: usize,
    outbox: Arc<Budget>,
    part: Part,
    once: Arc<Once>,
    over_bound_since: Option<Instant>,
    puts_begun: u64,
    puts_in_flight: BTreeSet<u64>,
    /// Revisions of own PUTs whose events have not arrived yet.
    own: BTreeSet<Revision>,
}

impl Pushes {
    /// `outbox`: the session's bound; `once`: where commits count once for all sessions of its principal.
    pub(super) fn new(bytes_max: usize, outbox: &Arc<Budget>, once: &Arc<Once>) -> Self {
        Self {
            watch: None,
            gate: Gate::NotAsked,
            bytes_max,
            held: VecDeque::new(),
            ready: VecDeque::new(),
            message: None,
            bytes: 0,
            outbox: outbox.clone(),
            part: outbox.count_alone(),
            once: once.clone(),
            over_bound_since: None,
            puts_begun: 0,
            puts_in_flight: BTreeSet::new(),
            own: BTreeSet::new(),
        }
    }

    pub(super) fn attach(&mut self, watch: Watch) {
        self.watch = Some(watch);
    }

    pub(super) fn detach(&mut self) {
        self.watch = None;
        self.held.clear();
        self.ready.clear();
        self.message = None;
        self.bytes = 0;
        self.part.resize(0);
    }

    /// The client asked for its prefix.
    pub(super) fn expect(&mut self) {
        if self.gate == Gate::NotAsked {
            self.gate = Gate::Asked;
        }
    }

    /// The prefix was answered.
    pub(super) fn open(&mut self) {
        self.gate = Gate::Open;
    }

    /// An own PUT begins; returns a number for it.
    pub(super) fn begin_put(&mut self) -> u64 {
        let number = self.puts_begun;
        self.puts_begun += 1;
        self.puts_in_flight.insert(number);
        number
    }

    /// An own PUT has ended; `revision` is its commit's, if it was executed.
    pub(super) fn end_put(&mut self, number: u64, revision: Option<Revision>) {
        self.puts_in_flight.remove(&number);
        self.own.extend(revision);
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        cache: &PushCache,
        now: Instant,
    ) -> Result<bool, Close> {
        let moved = self.advance(cx, cache, now);
        self.part.resize(self.bytes);
        moved
    }

    fn advance(
        &mut self,
        cx: &mut Context<'_>,
        cache: &PushCache,
        now: Instant,
    ) -> Result<bool, Close> {
        let mut moved = false;
        loop {
            moved |= self.release();
            moved |= self.prepare(cache)?;
            if self.bytes > self.bytes_max {
                self.over_bound_since.get_or_insert(now);
                return Ok(moved);
            }
            self.over_bound_since = None;
            if self.bytes > 0 && self.outbox.shared_is_full() {
                return Ok(moved);
            }
            let Some(watch) = &mut self.watch else {
                return Ok(moved);
            };
            match Pin::new(watch).poll_next(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Some(Ok(WatchEvent::Commit(record)))) => {
                    let (address, bytes) = (Arc::as_ptr(&record).addr(), record.bytes());
                    self.bytes += bytes;
                    self.held.push_back(Held {
                        record: Counted {
                            _share: self.once.count(address, bytes),
                            thing: record,
                        },
                        puts_begun: self.puts_begun,
                    });
                    moved = true;
                }
                // Progress and other events have no meaning in this dialect.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    return Err(failed(format!("the pushes cannot go on: {error}")));
                }
                Poll::Ready(None) => return Err(failed("the pushes have ended".to_owned())),
            }
        }
    }

    /// Turns events into pushes, as far as it is known whether they are of own PUTs.
    fn release(&mut self) -> bool {
        let mut moved = false;
        while let Some(first) = self.held.front() {
            if self
                .puts_in_flight
                .first()
                .is_some_and(|number| *number < first.puts_begun)
            {
                break;
            }
            let Some(Held { record, .. }) = self.held.pop_front() else {
                break;
            };
            moved = true;
            let (bytes, revision) = (record.thing.bytes(), record.thing.revision);
            let own = self.own.contains(&revision);
            // Events arrive in the order of revisions: lower ones need not be remembered.
            self.own = self.own.split_off(&Revision(revision.0.saturating_add(1)));
            if own || self.gate == Gate::NotAsked {
                self.bytes -= bytes;
                continue;
            }
            self.ready.push_back(Push {
                record,
                next: 0,
                bytes,
            });
        }
        moved
    }

    /// Builds the next message, if there is none and one is due.
    fn prepare(&mut self, cache: &PushCache) -> Result<bool, Close> {
        let mut moved = false;
        while self.gate == Gate::Open
            && self.message.is_none()
            && let Some(push) = self.ready.front_mut()
        {
            moved = true;
            let record = &push.record.thing;
            let piece = cache.piece(record, push.next)?;
            push.next = piece.next;
            self.message = piece.message.map(|message| Counted {
                _share: self.once.count(message.as_ptr().addr(), message.len()),
                thing: message,
            });
            if push.next == record.changes.len() && self.message.is_none() {
                self.bytes -= push.bytes;
                self.ready.pop_front();
            }
        }
        Ok(moved)
    }

    /// The next message, if there is one.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let message = self.message.take()?.thing;
        // The peer takes messages, so the time over the bound is counted from now on.
        self.over_bound_since = None;
        let Some(push) = self.ready.front_mut() else {
            return Some(message);
        };
        let all_left = push.next == push.record.thing.changes.len();
        let gone = match all_left {
            true => push.bytes,
            false => push.bytes.min(message.len()),
        };
        push.bytes -= gone;
        self.bytes -= gone;
        if all_left {
            self.ready.pop_front();
        }
        Some(message)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.over_bound_since.map(|since| since + OVER_BOUND_MAX)
    }

    /// Whether the peer took too little for too long.
    pub(super) fn check_slow_peer(&self, now: Instant) -> Result<(), Close> {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            let reason = format!(
                "more than {} bytes of pushes waited for 10 s",
                self.bytes_max
            );
            return Err(Close::new(close_code::POLICY, ClosedLabel::Slow, reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Change, EntryLifetime, UnixMillis};

    use super::*;

    fn record(revision: u64, values: &[usize]) -> CommitRecord {
        let changes = values.iter().enumerate().map(|(place, bytes)| Change {
            key: format!("{place:03}").into(),
            kind: ChangeKind::Put {
                value: vec![b'v'; *bytes].into(),
                lifetime: EntryLifetime::Forever,
                previous: None,
            },
        });
        let changes = changes.collect();
        CommitRecord::new(Revision(revision), UnixMillis(0), None, "t".into(), changes)
    }

    /// The lengths of all messages of a commit, and how many pairs they have.
    fn messages(cache: &PushCache, record: &CommitRecord) -> (Vec<usize>, usize) {
        let (mut lengths, mut pairs, mut place) = (Vec::new(), 0, 0);
        while place < record.changes.len() {
            let piece = cache.piece(record, place).unwrap();
            assert!(piece.next > place);
            place = piece.next;
            if let Some(message) = piece.message {
                let separators = message.iter().filter(|byte| **byte == b'#').count();
                pairs += separators / 2;
                lengths.push(message.len());
            }
        }
        (lengths, pairs)
    }

    #[test]
    fn a_push_fills_no_buffer_of_the_client() {
        let cache = PushCache::default();
        // The longest pair that goes: key, value, two separators and the type byte.
        let longest = (1 << 20) - 1 - 3 - 3;
        for values in [
            vec![10; 300],
            vec![400_000; 7],
            vec![1, longest, 1],
            vec![longest, longest],
        ] {
            let revision = values.len() as u64;
            let (lengths, pairs) = messages(&cache, &record(revision, &values));
            assert_eq!(pairs, values.len());
            assert!(
                lengths.iter().all(|length| *length < 1 << 20),
                "{lengths:?}"
            );
        }
        assert_eq!(cache.left_out.get(), 0);
        let (lengths, pairs) = messages(&cache, &record(99, &[1, longest + 1, 1]));
        assert_eq!((lengths.len(), pairs), (1, 2));
        assert_eq!(cache.left_out.get(), 1);
    }

    #[test]
    fn what_is_shared_is_bounded() {
        let cache = PushCache::default();
        let large = record(1, &[500_000; 100]);
        messages(&cache, &large);
        let shared = cache.latest.lock().unwrap();
        assert!(shared.bytes <= SHARED_BYTES_MAX);
        assert_eq!(shared.line.len(), shared.pieces.len());
        let held = shared
            .pieces
            .values()
            .filter_map(|piece| piece.message.as_ref());
        assert_eq!(held.map(Bytes::len).sum::<usize>(), shared.bytes);
    }
}
