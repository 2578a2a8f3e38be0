//! The state of one watch in the feed. A live watch has a queue of the commits it has yet to take; one that is behind
//! has only the revision up to which it took everything. The queues are bounded: a watch that overruns a bound drops
//! its queue and falls behind.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use storage_protocol::{CommitRecord, KeyRange, Revision};

use super::matching::WatchId;

/// A live watch has at most this many commits queued; with more it falls behind and is served from the ring.
pub(super) const QUEUE_COMMITS_MAX: usize = 128;

/// And at most this many bytes, of whole commits. A watch that is behind takes about as many at a time, and holds them
/// until its reader takes them.
pub(crate) const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// What the queues of all live watches may hold together; a shared commit counts once for each queue that has it. Above
/// this, a watch to which a commit is delivered falls behind instead.
pub(super) const QUEUES_BYTES_MAX: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct WatchSlot {
    pub(super) id: WatchId,
    range: KeyRange,
    /// Locked for moments, with no other lock taken within.
    state: Mutex<SlotState>,
    pub(super) waker: AtomicWaker,
    /// Whether the matcher has it. Changed under the lock of the matchers, together with `state`.
    pub(super) filed: AtomicBool,
    /// Whether it is in the feed's list of watches that wait for a revision to be delivered.
    pub(super) waits: AtomicBool,
}

#[derive(Debug)]
pub(super) enum SlotState {
    /// All that is delivered after `after` and touches the range is queued, and nothing else.
    Live(Live),
    /// It took everything up to here.
    Behind(Revision),
}

#[derive(Debug)]
pub(super) struct Live {
    /// Whole commits, to be cut when they are taken.
    queue: VecDeque<Arc<CommitRecord>>,
    bytes: usize,
    pub(super) after: Revision,
}

/// The state of a watch after a delivery to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Queued,
    /// It fell behind with this, or was behind before: it is to leave the matcher.
    Behind,
}

impl Live {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Everything of the range up to here was taken. With an empty queue that is everything up to `delivered`, if this
    /// is higher than `after`.
    pub(super) fn taken_up_to(&self, delivered: Revision) -> Revision {
        let before_first = |first: &Arc<CommitRecord>| Revision(first.revision.0 - 1);
        self.queue
            .front()
            .map_or_else(|| self.after.max(delivered), before_first)
    }
}

impl SlotState {
    /// Live, with these commits queued already, which are all there are of the range up to `after`.
    pub(super) fn live(
        after: Revision,
        commits: Vec<Arc<CommitRecord>>,
        queued: &AtomicUsize,
    ) -> Self {
        let bytes = commits.iter().map(|commit| commit.bytes()).sum();
        queued.fetch_add(bytes, Ordering::Relaxed);
        Self::Live(Live {
            queue: commits.into(),
            bytes,
            after,
        })
    }
}

impl WatchSlot {
    pub(super) fn new(id: WatchId, range: KeyRange, state: SlotState) -> Self {
        Self {
            id,
            range,
            state: Mutex::new(state),
            waker: AtomicWaker::new(),
            filed: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }
    }

    pub(super) fn range(&self) -> &KeyRange {
        &self.range
    }

    pub(super) fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a commit with changes in the range. The watch is woken only if its queue was empty: else it was woken
    /// before, and takes the whole queue when it is polled.
    pub(super) fn deliver(&self, record: &Arc<CommitRecord>, queued: &AtomicUsize) -> Delivery {
        let mut state = self.state();
        let SlotState::Live(live) = &mut *state else {
            return Delivery::Behind;
        };
        if record.revision <= live.after {
            return Delivery::Queued;
        }
        let was_empty = live.queue.is_empty();
        let bytes = record.bytes();
        live.queue.push_back(record.clone());
        live.bytes += bytes;
        let all = queued.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut delivered = Delivery::Queued;
        if live.queue.len() > QUEUE_COMMITS_MAX
            || live.bytes > QUEUE_BYTES_MAX
            || all > QUEUES_BYTES_MAX
        {
            // Nothing of the range lies between the last delivered commit and the first queued one.
            let after = live.taken_up_to(Revision::ZERO);
            queued.fetch_sub(live.bytes, Ordering::Relaxed);
            *state = SlotState::Behind(after);
            delivered = Delivery::Behind;
        }
        drop(state);
        if was_empty || delivered == Delivery::Behind {
            self.waker.wake();
        }
        delivered
    }

    /// Commits up to `upto` were left out, of which some may touch the range; everything up to `delivered` was
    /// delivered. The watch falls behind.
    pub(super) fn left_out(&self, delivered: Revision, upto: Revision, queued: &AtomicUsize) {
        let mut state = self.state();
        let SlotState::Live(live) = &mut *state else {
            return;
        };
        if live.after >= upto {
            return;
        }
        let after = live.taken_up_to(delivered);
        queued.fetch_sub(live.bytes, Ordering::Relaxed);
        *state = SlotState::Behind(after);
        drop(state);
        self.waker.wake();
    }
}

impl SlotState {
    /// Takes what is queued, if it is live and anything is.
    pub(super) fn take(&mut self, queued: &AtomicUsize) -> Vec<Arc<CommitRecord>> {
        let Self::Live(live) = self else {
            return Vec::new();
        };
        let commits: Vec<_> = std::mem::take(&mut live.queue).into();
        queued.fetch_sub(std::mem::take(&mut live.bytes), Ordering::Relaxed);
        let last = commits.last().map_or(live.after, |last| last.revision);
        live.after = live.after.max(last);
        commits
    }

    /// Drops the queue and falls behind: at the revision before the first commit that it drops ([`Live::after`] may be
    /// higher, if the queue was filled from the ring), or at `after` if that is earlier.
    pub(super) fn park(&mut self, after: Option<Revision>, queued: &AtomicUsize) {
        let taken = match self {
            Self::Live(live) => {
                queued.fetch_sub(live.bytes, Ordering::Relaxed);
                live.taken_up_to(Revision::ZERO)
            }
            Self::Behind(after) => *after,
        };
        *self = Self::Behind(after.map_or(taken, |after| after.min(taken)));
    }
}
