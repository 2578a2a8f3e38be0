//! The change feed: recent commits in memory, and the watches that are told of them.
//!
//! The committer publishes each commit once it is durable. A watch that keeps up has it in its own short queue; one that
//! does not (no credit, a long pause) drops its queue and stands *behind* at a revision, which costs nothing, until it
//! asks again and is caught up: from the [ring](Feed) while that reaches back, else from the log.
//!
//! Invariant, under the one lock of the feed: a live watch has in its queue exactly the commits of its range after its
//! last delivered one, up to `published`.

mod matching;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use storage_protocol::{CommitRecord, KeyRange, Keyspace, Revision, planted};

use self::matching::{Matcher, WatchId};

/// A live watch keeps at most this many commits; with more it stands behind and is served from the ring.
const QUEUE_COMMITS_MAX: usize = 128;

/// And at most this many bytes.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// A watch that is behind looks at this many commits of the ring at a time, so that the lock is held for microseconds.
const RING_STEP: usize = 1024;

/// A commit in the feed.
#[derive(Clone, Debug)]
pub(crate) struct FeedCommit {
    pub(crate) keyspace: Keyspace,
    pub(crate) record: Arc<CommitRecord>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    inner: Mutex<Inner>,
    ring_bytes_max: usize,
}

#[derive(Debug, Default)]
struct Inner {
    /// All commits after `floor`, in revision order.
    ring: VecDeque<FeedCommit>,
    ring_bytes: usize,
    floor: Revision,
    published: Revision,
    watches: HashMap<Keyspace, Matcher>,
    next_id: u64,
}

/// A watch's place in the feed. Dropping it detaches the watch.
#[derive(Debug)]
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    keyspace: Keyspace,
    id: WatchId,
    slot: Arc<Slot>,
}

#[derive(Debug)]
pub(crate) struct Slot {
    range: KeyRange,
    /// Written by the publisher and by the watch; both hold the feed's lock first.
    state: Mutex<SlotState>,
    waker: AtomicWaker,
}

#[derive(Debug)]
enum SlotState {
    /// Nothing at or before `after` is queued.
    Live {
        queue: VecDeque<Arc<CommitRecord>>,
        bytes: usize,
        after: Revision,
    },
    Behind {
        after: Revision,
    },
    Latest {
        dirty: bool,
    },
}

/// What a watch `Every` finds when it asks.
#[derive(Debug)]
pub(crate) enum Next {
    /// Commits, in order, each cut to the range. Never empty.
    Commits(Vec<Arc<CommitRecord>>),
    /// Nothing in the range up to this revision, and the watch is live.
    Idle(Revision),
    /// The ring does not reach back to this revision: read the log, then [`Subscription::caught_up`].
    ReadLog(Revision),
}

impl Feed {
    pub(crate) fn new(ring_bytes_max: usize, at: Revision) -> Self {
        let inner = Inner {
            floor: at,
            published: at,
            ..Inner::default()
        };
        Self {
            inner: Mutex::new(inner),
            ring_bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the ring: it begins after `floor`.
    pub(crate) fn restart(&self, floor: Revision) {
        let mut inner = self.lock();
        inner.ring.clear();
        inner.ring_bytes = 0;
        inner.floor = floor;
    }

    /// Puts commits from the log into the ring, before anything is published.
    pub(crate) fn refill(&self, commits: impl Iterator<Item = FeedCommit>) {
        let mut inner = self.lock();
        for commit in commits {
            inner.push(commit, self.ring_bytes_max);
        }
    }

    /// Tells all watches of commits that are durable, in revision order; everything up to `published` is out.
    pub(crate) fn publish(&self, commits: Vec<FeedCommit>, published: Revision) {
        let mut inner = self.lock();
        for commit in commits {
            if let Some(matcher) = inner.watches.get(&commit.keyspace) {
                matcher.each(&commit.record, |slot| slot.tell(&commit.record));
            }
            inner.push(commit, self.ring_bytes_max);
        }
        inner.published = published;
    }

    /// Attaches a watch. With `None` it begins after what is published; the revision it begins after is returned.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        keyspace: &Keyspace,
        range: KeyRange,
        every: bool,
        after: Option<Revision>,
    ) -> (Subscription, Revision) {
        let mut inner = self.lock();
        let after = after.unwrap_or(inner.published);
        let state = match (every, after >= inner.published) {
            (false, _) => SlotState::Latest { dirty: true },
            (true, true) => SlotState::Live {
                queue: VecDeque::new(),
                bytes: 0,
                after,
            },
            (true, false) => SlotState::Behind { after },
        };
        let slot = Arc::new(Slot {
            range,
            state: Mutex::new(state),
            waker: AtomicWaker::new(),
        });
        let id = WatchId(inner.next_id);
        inner.next_id += 1;
        inner
            .watches
            .entry(keyspace.clone())
            .or_default()
            .add(id, slot.clone());
        (
            Subscription {
                feed: self.clone(),
                keyspace: keyspace.clone(),
                id,
                slot,
            },
            after,
        )
    }

    /// Watches attached, bytes in the ring, the revision it reaches back to.
    pub(crate) fn figures(&self) -> (usize, usize, Revision) {
        let inner = self.lock();
        (
            inner.watches.values().map(Matcher::len).sum(),
            inner.ring_bytes,
            inner.floor,
        )
    }

    /// Whether the ring holds everything after this revision.
    pub(crate) fn reaches_back_to(&self, after: Revision) -> bool {
        after >= self.lock().floor
    }
}

impl Inner {
    fn push(&mut self, commit: FeedCommit, bytes_max: usize) {
        self.ring_bytes += commit.record.bytes();
        self.ring.push_back(commit);
        while self.ring_bytes > bytes_max
            && let Some(oldest) = self.ring.pop_front()
        {
            self.ring_bytes -= oldest.record.bytes();
            self.floor = oldest.record.revision;
        }
    }
}

impl Slot {
    pub(crate) fn range(&self) -> &KeyRange {
        &self.range
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit with a change in the range.
    fn tell(&self, record: &Arc<CommitRecord>) {
        match &mut *self.state() {
            SlotState::Behind { .. } => return,
            SlotState::Latest { dirty } => *dirty = true,
            SlotState::Live { after, .. } if record.revision <= *after => return,
            state @ SlotState::Live { .. } => state.queue(record, &self.range),
        }
        self.waker.wake();
    }
}

impl SlotState {
    fn queue(&mut self, record: &Arc<CommitRecord>, range: &KeyRange) {
        let Self::Live {
            queue,
            bytes,
            after,
        } = self
        else {
            return;
        };
        let Some(mut record) = record.cut(range) else {
            return;
        };
        if planted("split-commit") && record.changes.len() > 1 {
            let mut first = CommitRecord::clone(&record);
            Arc::make_mut(&mut record).changes = first.changes.split_off(1);
            queue.push_back(Arc::new(first));
        }
        *bytes += record.bytes();
        queue.push_back(record);
        if queue.len() > QUEUE_COMMITS_MAX || *bytes > QUEUE_BYTES_MAX {
            if planted("drop-at-overflow") {
                queue.pop_back();
                return;
            }
            // Nothing of the range lies between the last delivered commit and the first queued one.
            let first = queue
                .front()
                .map_or(*after, |first| Revision(first.revision.0 - 1));
            *self = Self::Behind { after: first };
        }
    }
}

impl Subscription {
    /// What a watch `Every` is to be told next. Registers the waker first, so nothing is missed.
    pub(crate) fn next(&self, waker: &std::task::Waker) -> Next {
        self.slot.waker.register(waker);
        let inner = self.feed.lock();
        let mut state = self.slot.state();
        let after = match &mut *state {
            SlotState::Latest { .. } => return Next::Idle(inner.published),
            SlotState::Live { queue, after, .. } if queue.is_empty() => {
                return Next::Idle(inner.published.max(*after));
            }
            SlotState::Live {
                queue,
                bytes,
                after,
            } => {
                let commits: Vec<_> = std::mem::take(queue).into();
                *bytes = 0;
                *after = commits.last().map_or(*after, |last| last.revision);
                return Next::Commits(commits);
            }
            SlotState::Behind { after } => *after,
        };
        if after < inner.floor {
            return Next::ReadLog(after);
        }
        let from = inner
            .ring
            .partition_point(|commit| commit.record.revision <= after)
            .saturating_sub(usize::from(planted("ring-boundary-repeats")));
        // Cut by bytes too: who asks holds what it gets until its reader takes it.
        let mut bytes = 0;
        let bounded = inner
            .ring
            .range(from..)
            .take(RING_STEP)
            .take_while(|commit| {
                let fits = bytes < QUEUE_BYTES_MAX;
                if commit.keyspace == self.keyspace {
                    bytes += commit.record.bytes();
                }
                fits
            });
        let to = from + bounded.count();
        let mine = inner
            .ring
            .range(from..to)
            .filter(|commit| commit.keyspace == self.keyspace);
        let commits: Vec<_> = mine
            .filter_map(|commit| commit.record.cut(&self.slot.range))
            .collect();
        let reached = inner
            .ring
            .range(from..to)
            .next_back()
            .map_or(after, |commit| commit.record.revision);
        *state = if to == inner.ring.len() {
            SlotState::Live {
                queue: VecDeque::new(),
                bytes: 0,
                after: reached.max(inner.published),
            }
        } else {
            SlotState::Behind { after: reached }
        };
        if !commits.is_empty() {
            return Next::Commits(commits);
        }
        match &*state {
            SlotState::Behind { .. } => {
                // More of the ring is to be looked at; let others have the lock first.
                waker.wake_by_ref();
                Next::Commits(Vec::new())
            }
            SlotState::Live { .. } | SlotState::Latest { .. } => Next::Idle(inner.published),
        }
    }

    /// Tells that the log was read up to here, after [`Next::ReadLog`].
    pub(crate) fn caught_up(&self, reached: Revision) {
        let _feed = self.feed.lock();
        if let SlotState::Behind { after } = &mut *self.slot.state() {
            *after = (*after).max(reached);
        }
    }

    /// For a watch `Every`: drops what is queued and stands behind, at the last commit taken, or at `after` if that is
    /// earlier (its owner dropped some of what it took).
    pub(crate) fn park(&self, after: Option<Revision>) {
        let _feed = self.feed.lock();
        let mut state = self.slot.state();
        let taken = match &*state {
            SlotState::Latest { .. } => return,
            SlotState::Live { after, .. } | SlotState::Behind { after } => *after,
        };
        *state = SlotState::Behind {
            after: after.map_or(taken, |after| after.min(taken)),
        };
    }

    /// For a watch `Latest`: whether something changed since this was last asked. Registers the waker first.
    pub(crate) fn take_dirty(&self, waker: &std::task::Waker) -> bool {
        self.slot.waker.register(waker);
        match &mut *self.slot.state() {
            SlotState::Latest { dirty } => std::mem::take(dirty),
            SlotState::Live { .. } | SlotState::Behind { .. } => false,
        }
    }

    pub(crate) fn range(&self) -> &KeyRange {
        self.slot.range()
    }

    /// Whether nothing waits for the watch.
    pub(crate) fn is_live(&self) -> bool {
        match &*self.slot.state() {
            SlotState::Live { queue, .. } => queue.is_empty(),
            SlotState::Behind { .. } => false,
            SlotState::Latest { dirty } => !dirty,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.feed.lock();
        if let Some(matcher) = inner.watches.get_mut(&self.keyspace) {
            matcher.remove(self.id, &self.slot);
            if matcher.len() == 0 {
                inner.watches.remove(&self.keyspace);
            }
        }
    }
}

#[cfg(test)]
mod tests;
