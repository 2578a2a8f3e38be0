//! The state of a remote watch, between the connection's task and the application: its queue, its credit, and how it
//! goes on after a break. This module uses neither the task nor the application's handle.
//!
//! The task puts events in and never waits; the application takes them out when it likes. The bytes of a message are
//! given back to the server as credit when its last event is consumed, in portions of half the window. Progress events
//! cost no credit; one without a token replaces another that it directly follows, so that they do not pile up.
//!
//! After every break, in either mode, the watch goes on in the same way: `Every` is requested again from the last
//! commit or progress event that was received, `Latest` from the last progress event. If the server cannot go on from
//! there, a stage in mode `Latest` repairs the state up to its first progress event, and `Every` goes on from that.

mod events;
mod push;
mod queue;
mod take;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use storage_protocol::native::{RequestId, WatchRequest};
use storage_protocol::{
    Continuity, KeyRange, Position, ResyncReason, Revision, StorageError, WatchMode, WatchOptions,
    WatchStart,
};

use crate::order::{Broken, StreamOrder};
use crate::sync::lock;
use queue::{Gap, Life, Link, Queue, Stage, wake};

/// Requests for progress of one watch that may be unanswered; one more ends the watch.
const MARKS_MAX: usize = 1_024;

/// One watch, shared by the connection's task and the application's end.
pub(crate) struct WatchShared {
    /// The id of the stream that feeds it on the present socket, plus one; 0 for none. Written by the connection's
    /// task.
    id: AtomicU64,
    /// The bytes that the server was granted at first.
    window: u64,
    range: KeyRange,
    mode: WatchMode,
    queue: Mutex<Queue>,
}

/// What the connection's task is to do with a watch whose stream ended with an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Repair {
    /// Request its next stream now.
    Again,
    /// Request its next stream a little later.
    Later,
    /// Nothing: the watch has ended.
    None,
}

impl WatchShared {
    pub(crate) fn new(range: KeyRange, mode: WatchMode, window: u64) -> Self {
        Self {
            id: AtomicU64::new(0),
            window,
            range,
            mode,
            queue: Mutex::new(Queue::new(window)),
        }
    }

    /// The request for its first stream.
    pub(crate) fn first_request(&self, options: WatchOptions) -> WatchRequest {
        lock(&self.queue).start = options.start;
        WatchRequest {
            range: self.range.clone(),
            start: options.start,
            mode: options.mode,
            credit: self.window,
        }
    }

    /// The id of its stream, if it has one.
    pub(crate) fn id(&self) -> Option<RequestId> {
        let id = self.id.load(Ordering::Acquire).checked_sub(1)?;
        RequestId::try_from(id).ok()
    }

    pub(crate) fn set_id(&self, id: Option<RequestId>) {
        let id = id.map_or(0, |id| u64::from(id) + 1);
        self.id.store(id, Ordering::Release);
    }

    fn is_latest(&self, queue: &Queue) -> bool {
        queue.stage == Stage::Repair || self.mode != WatchMode::Every
    }

    /// The first stream is attached: the watch begins after `start`.
    ///
    /// # Errors
    /// The watch was to begin elsewhere.
    pub(crate) fn begin(&self, start: Position) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue.order = self.order_from(&queue, start.revision)?;
        queue.link = Link::Open;
        queue.received = start;
        queue.told = start;
        Ok(())
    }

    /// The order of a stream that the server says to begin after `attached`.
    fn order_from(&self, queue: &Queue, attached: Revision) -> Result<StreamOrder, Broken> {
        let latest = self.is_latest(queue);
        let anew = latest && queue.start == WatchStart::Beginning;
        let asked = match queue.start {
            WatchStart::After(asked) => asked.revision,
            WatchStart::Beginning if latest => Revision::ZERO,
            // Only the server knows where that is.
            WatchStart::Now | WatchStart::Beginning => attached,
        };
        // It may not be earlier either: the next stream would go on from there.
        if attached != asked {
            return Err(format!(
                "it attached a watch after revision {attached} that was to begin after {asked}"
            ));
        }
        Ok(StreamOrder::new(latest, attached, anew))
    }

    /// Its stream is gone. States after the last progress event that the application did not take are dropped: they are
    /// sent again.
    pub(crate) fn lose(&self, since: Instant) {
        self.set_id(None);
        let mut queue = lock(&self.queue);
        if !matches!(queue.link, Link::Lost { .. }) {
            queue.link = Link::Lost { since };
        }
        queue.gap = Gap::Untold;
        queue.drop_open_pass();
        queue.forget_probes();
    }

    /// The request for the next stream.
    pub(crate) fn next_request(&self) -> WatchRequest {
        let mut queue = lock(&self.queue);
        queue.drop_open_pass();
        let buffered = queue.events.bytes();
        let credit = self.window.saturating_sub(buffered);
        queue.balance = i128::from(credit);
        queue.consumed = (i128::from(self.window) - i128::from(buffered)).min(0);
        let is_latest = self.is_latest(&queue);
        if queue.gap != Gap::None {
            queue.gap = match is_latest && queue.stage == Stage::Own {
                true => Gap::Undecided,
                false => Gap::Untold,
            };
        }
        // A pass from the beginning has no tombstones. So keys that were handed over in an open pass, and removed
        // since, must be forgotten by a `Reset`.
        let afresh = is_latest && queue.received.revision == Revision::ZERO;
        queue.reset_due |= afresh && queue.handed_over;
        let start = match queue.received {
            Position {
                revision: Revision::ZERO,
                ..
            } if afresh => WatchStart::Beginning,
            position => WatchStart::After(position),
        };
        let mode = match (queue.stage, self.mode) {
            (Stage::Repair, _) => WatchMode::Latest {
                min_interval: Duration::ZERO,
            },
            (Stage::Own, mode) => mode,
        };
        queue.start = start;
        let range = self.range.clone();
        WatchRequest {
            range,
            start,
            mode,
            credit,
        }
    }

    /// The stream that [`next_request`](Self::next_request) requested is open. Returns the tokens of the progress
    /// events to request on it, and the bytes to grant: those consumed since the request.
    ///
    /// # Errors
    /// The stream was to begin elsewhere.
    pub(crate) fn resume(&self, attached: Revision) -> Result<(Vec<u64>, u64), Broken> {
        let mut queue = lock(&self.queue);
        queue.order = self.order_from(&queue, attached)?;
        queue.link = Link::Open;
        if !self.is_latest(&queue) && queue.gap != Gap::None {
            queue.tell(Continuity::Continuous);
        }
        let asked = if queue.stage == Stage::Own {
            queue.asked.iter().map(|(token, _)| *token).collect()
        } else {
            Vec::new()
        };
        let granted = queue.take_grant(0);
        wake(queue);
        Ok((asked, granted))
    }

    /// Whether this progress event is to be requested now: there is a stream, and it was not requested on it yet. (Else
    /// it is requested when the next stream is open.)
    pub(crate) fn claim_probe(&self, token: u64) -> bool {
        let mut queue = lock(&self.queue);
        if queue.stage != Stage::Own || queue.link != Link::Open {
            return false;
        }
        let waiting = queue
            .asked
            .iter_mut()
            .find(|asked| **asked == (token, false));
        waiting.map(|asked| asked.1 = true).is_some()
    }

    /// The application dropped the watch: no further stream is to be opened.
    pub(crate) fn set_dropped(&self) {
        lock(&self.queue).life = Life::Dropped;
    }

    pub(crate) fn is_dropped(&self) -> bool {
        matches!(lock(&self.queue).life, Life::Dropped)
    }

    /// Its stream ended with an error, or could not be opened. `server` is the server's position.
    pub(crate) fn repair(&self, error: StorageError, server: Position) -> Repair {
        self.set_id(None);
        let mut queue = lock(&self.queue);
        if queue.is_over() {
            return Repair::None;
        }
        queue.drop_open_pass();
        queue.forget_probes();
        if queue.link == Link::Open {
            queue.link = Link::Opening;
        }
        queue.failures += 1;
        // At first there is no reason to wait. After repeated failures the server is asked less often.
        let again = match queue.failures {
            0..=2 => Repair::Again,
            _ => Repair::Later,
        };
        let repair = match &error {
            // (A server sends no such error on a watch `Latest`.)
            StorageError::Compacted { oldest }
                if self.mode == WatchMode::Every && queue.stage == Stage::Own =>
            {
                queue.stage = Stage::Repair;
                let why = ResyncReason::Compacted { oldest: *oldest };
                queue.tell(Continuity::Resynced { why });
                again
            }
            StorageError::EpochChanged { epoch, fork } => {
                let (epoch, fork) = (*epoch, *fork);
                let why = ResyncReason::EpochChanged { epoch, fork };
                self.begin_anew(&mut queue, why);
                again
            }
            StorageError::AccessChanged => {
                let why = ResyncReason::AccessChanged;
                self.begin_anew(&mut queue, why);
                again
            }
            // The pass was not read for too long: the watch goes on from its last progress event.
            StorageError::SnapshotExpired => {
                queue.gap = Gap::Untold;
                again
            }
            StorageError::Overloaded { .. } | StorageError::Closed { .. } => Repair::Later,
            _ => {
                queue.tell_lost(server);
                queue.life = Life::Ended(Some(error));
                Repair::None
            }
        };
        wake(queue);
        repair
    }

    /// What was told may not hold any more, and nobody can say what of it: everything comes anew.
    fn begin_anew(&self, queue: &mut Queue, why: ResyncReason) {
        if self.mode == WatchMode::Every {
            queue.stage = Stage::Repair;
        }
        queue.tell(Continuity::Resynced { why });
        queue.received = Position::default();
        queue.reset_due = true;
    }

    /// Ends the watch: after the queued events comes `error`.
    pub(crate) fn end(&self, error: StorageError) {
        let mut queue = lock(&self.queue);
        queue.end(error);
        wake(queue);
    }

    /// Ends a watch that would have gone on, but its connection is over for good. The application is told what is lost.
    pub(crate) fn end_unresumed(&self, error: StorageError, server: Position) {
        let mut queue = lock(&self.queue);
        if !queue.is_over() {
            queue.tell_lost(server);
        }
        drop(queue);
        self.end(error);
    }
}
