//! A watch's place in the feed: what is queued for it, or where it stands.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use storage_protocol::{CommitRecord, KeyRange, Revision};

use super::matching::WatchId;

/// A live watch keeps at most this many commits; with more it stands behind and is served from the ring.
pub(super) const QUEUE_COMMITS_MAX: usize = 128;

/// And at most this many bytes, of whole commits. Who stands behind takes about as many at a time: it holds what it
/// took until its reader takes it.
pub(crate) const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// What the queues of all live watches may hold together, shared commits counted for each that has them; beyond it, who
/// is told something stands behind instead.
pub(super) const QUEUES_BYTES_MAX: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct WatchSlot {
    pub(super) id: WatchId,
    range: KeyRange,
    /// Held for moments, with no other lock taken within.
    state: Mutex<SlotState>,
    pub(super) waker: AtomicWaker,
    /// Whether the matcher has it. Changed under the lock of the matchers, together with `state`.
    pub(super) filed: AtomicBool,
    /// Whether it stands in the line of those who wait for a revision to be told.
    pub(super) waits: AtomicBool,
}

#[derive(Debug)]
pub(super) enum SlotState {
    /// All that is told after `after` and touches the range is queued, and nothing else.
    Live(Live),
    /// It was told everything up to here.
    Behind(Revision),
}

#[derive(Debug)]
pub(super) struct Live {
    /// Whole commits, to be cut when they are taken.
    queue: VecDeque<Arc<CommitRecord>>,
    bytes: usize,
    pub(super) after: Revision,
}

/// What became of a watch that was told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Queued,
    /// It has fallen behind with this, or stood there before: the matcher is to forget it.
    Behind,
}

impl Live {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Everything up to here that was not delivered is queued.
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

    /// Tells a commit with changes in the range. The watch is woken when it was resting: with something in its queue it
    /// was woken before, and takes all of it when it comes.
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

    /// Commits up to `upto` were left out, of which some may touch the range; up to `delivered` everything was told.
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

    /// Drops what is queued and stands behind, right before that (`after` may lie beyond it, where the queue came from
    /// the ring), or at `after` if that is earlier.
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
