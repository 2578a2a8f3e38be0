//! FORCE_RELOAD: what others put, pushed to a connection at a moment when its client can bear it.
//!
//! A push is rebuilt from the commit, in the order of its puts. A connection's own PUTs are known by their revision;
//! since their event may come before the commit's own answer, events wait while an earlier own PUT is in flight.
//! Pushes are kept once the client asked for its prefix, and go out once that was answered. Bounded in bytes: over
//! the bound the watch is not polled, and after ten seconds the peer is closed, since it cannot be told of a gap.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use storage_protocol::mwdb::force_reload;
use storage_protocol::native::close_code;
use storage_protocol::{ChangeKind, CommitRecord, Revision, Watch, WatchEvent};

use super::failed;
use crate::metrics::ClosedLabel;
use crate::session::Close;

/// How long a peer may be over its bound.
const OVER_BOUND_MAX: Duration = Duration::from_secs(10);

/// The message of the last commit that was pushed, shared by all connections: it is made once.
#[derive(Debug, Default)]
pub(crate) struct PushCache(Mutex<Option<(Revision, Bytes)>>);

impl PushCache {
    /// The push of a commit; `None` where it put nothing.
    fn message(&self, record: &CommitRecord) -> Result<Option<Bytes>, Close> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, message)) = &*last
            && *revision == record.revision
        {
            return Ok(Some(message.clone()));
        }
        let puts = record
            .changes
            .iter()
            .filter_map(|change| match &change.kind {
                ChangeKind::Put { value, .. } => Some((change.key.as_ref(), value.as_ref())),
                ChangeKind::Removed { .. } | ChangeKind::Signalled { .. } => None,
            });
        if puts.clone().next().is_none() {
            return Ok(None);
        }
        let message = force_reload(puts)
            .map_err(|error| failed(format!("a commit cannot be pushed: {error}")))?;
        *last = Some((record.revision, message.clone()));
        Ok(Some(message))
    }
}

/// Where the client is with its prefix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Not asked for: nothing is due to it.
    NotAsked,
    /// Asked for: pushes are kept.
    Asked,
    /// Answered: pushes go out.
    Open,
}

struct Held {
    record: Arc<CommitRecord>,
    /// Own PUTs with a number below this were in flight, or done, when the event came.
    puts_begun: u64,
}

/// See the module.
pub(super) struct Pushes {
    watch: Option<Watch>,
    gate: Gate,
    bytes_max: usize,
    /// Events that an own PUT in flight might have caused. Counted in `bytes`.
    held: VecDeque<Held>,
    ready: VecDeque<Bytes>,
    bytes: usize,
    over_bound_since: Option<Instant>,
    puts_begun: u64,
    puts_in_flight: BTreeSet<u64>,
    /// Revisions of own PUTs whose events did not come yet.
    own: BTreeSet<Revision>,
}

impl Pushes {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            watch: None,
            gate: Gate::NotAsked,
            bytes_max,
            held: VecDeque::new(),
            ready: VecDeque::new(),
            bytes: 0,
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
        self.bytes = 0;
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

    /// An own PUT begins; its number.
    pub(super) fn begin_put(&mut self) -> u64 {
        let number = self.puts_begun;
        self.puts_begun += 1;
        self.puts_in_flight.insert(number);
        number
    }

    /// An own PUT is through, at this revision if it was done.
    pub(super) fn end_put(&mut self, number: u64, revision: Option<Revision>) {
        self.puts_in_flight.remove(&number);
        self.own.extend(revision);
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        cache: &PushCache,
        now: Instant,
    ) -> Result<bool, Close> {
        let mut moved = false;
        loop {
            moved |= self.release(cache)?;
            if self.bytes > self.bytes_max {
                self.over_bound_since.get_or_insert(now);
                return Ok(moved);
            }
            self.over_bound_since = None;
            let Some(watch) = &mut self.watch else {
                return Ok(moved);
            };
            match Pin::new(watch).poll_next(cx) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Some(Ok(WatchEvent::Commit(record)))) => {
                    self.bytes += record.bytes();
                    self.held.push_back(Held {
                        record,
                        puts_begun: self.puts_begun,
                    });
                    moved = true;
                }
                // Marks and the like say nothing in this dialect.
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => {
                    return Err(failed(format!("the pushes cannot go on: {error}")));
                }
                Poll::Ready(None) => return Err(failed("the pushes have ended".to_owned())),
            }
        }
    }

    /// Turns events into pushes as far as it is known whose they are.
    fn release(&mut self, cache: &PushCache) -> Result<bool, Close> {
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
            self.bytes -= record.bytes();
            let own = self.own.contains(&record.revision);
            // Events come in the order of revisions: what lies behind needs no remembering.
            self.own = self
                .own
                .split_off(&Revision(record.revision.0.saturating_add(1)));
            if own || self.gate == Gate::NotAsked {
                continue;
            }
            if let Some(message) = cache.message(&record)? {
                self.bytes += message.len();
                self.ready.push_back(message);
            }
        }
        Ok(moved)
    }

    /// The next push, if the client can bear one.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.gate != Gate::Open {
            return None;
        }
        let message = self.ready.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.over_bound_since.map(|since| since + OVER_BOUND_MAX)
    }

    /// Whether the peer took too little for too long.
    pub(super) fn judge(&self, now: Instant) -> Result<(), Close> {
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
