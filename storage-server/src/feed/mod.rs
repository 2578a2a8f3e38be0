//! The change feed: recent commits in memory, and the watches that are told of them.
//!
//! The committer publishes each commit once it is durable. A watch that keeps up has it in its own short queue; one that
//! does not (no credit, a long pause) drops its queue and stands *behind* at a revision, which costs nothing, until it
//! asks again and is caught up: from the [`ring`] while that reaches back, else from the log. Both are read in
//! [`page`]s, which are searched by key and without the lock, so that thousands may resume at once.
//!
//! Invariant, under the one lock of the feed: a live watch has in its queue exactly the commits of its range after its
//! last delivered one, up to `published`.

mod matching;
pub(crate) mod page;
mod ring;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::task::AtomicWaker;
use storage_protocol::{CommitRecord, KeyRange, Keyspace, Revision, planted};

use self::matching::{Matcher, WatchId};
use self::page::{Found, Page};
use self::ring::Ring;

/// A live watch keeps at most this many commits; with more it stands behind and is served from the ring.
const QUEUE_COMMITS_MAX: usize = 128;

/// And at most this many bytes. Who stands behind takes about as many at a time: it holds what it took until its reader
/// takes it.
pub(crate) const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// What the queues of all live watches may hold together; beyond it, who is told something stands behind instead.
const QUEUES_BYTES_MAX: usize = 64 << 20;

/// A watch that is behind searches this many pages of the ring at a time, then lets others run.
const RING_STEP: usize = 64;

/// And so many commits with the feed's lock held: what was published while it searched without.
const LOCKED_COMMITS_MAX: usize = 256;

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

#[derive(Debug)]
struct Inner {
    ring: Ring,
    published: Revision,
    /// What all live watches have queued; a commit counts for each that has it.
    queued: usize,
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
    /// Commits, in order, each cut to the range. None of them: it searched a part of the ring, and the waker was called.
    Commits(Vec<Arc<CommitRecord>>),
    /// Nothing in the range up to this revision, and the watch is live.
    Idle(Revision),
    /// The ring does not reach back to this revision: read the log, then [`Subscription::caught_up`].
    ReadLog(Revision),
}

impl Feed {
    pub(crate) fn new(ring_bytes_max: usize, at: Revision) -> Self {
        let inner = Inner {
            ring: Ring::new(ring_bytes_max, at),
            published: at,
            queued: 0,
            watches: HashMap::new(),
            next_id: 0,
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
        self.lock().ring = Ring::new(self.ring_bytes_max, floor);
    }

    /// Puts commits from the log into the ring, before anything is published.
    pub(crate) fn refill(&self, commits: impl Iterator<Item = FeedCommit>) {
        let mut inner = self.lock();
        for commit in commits {
            inner.ring.push(commit);
        }
    }

    /// Tells all watches of commits that are durable, in revision order; everything up to `published` is out.
    pub(crate) fn publish(&self, commits: Vec<FeedCommit>, published: Revision) {
        let mut inner = self.lock();
        let Inner {
            ring,
            queued,
            watches,
            ..
        } = &mut *inner;
        for commit in commits {
            if let Some(matcher) = watches.get(&commit.keyspace) {
                matcher.each(&commit.record, |slot, places| {
                    slot.tell(&commit.record, places, queued);
                });
            }
            ring.push(commit);
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

    pub(crate) fn figures(&self) -> Figures {
        let inner = self.lock();
        Figures {
            watches: inner.watches.values().map(Matcher::len).sum(),
            queued_bytes: inner.queued,
            ring_bytes: inner.ring.bytes(),
            ring_floor: inner.ring.floor(),
        }
    }
}

/// What the feed holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Watches attached.
    pub(crate) watches: usize,
    /// Bytes in their queues.
    pub(crate) queued_bytes: usize,
    pub(crate) ring_bytes: usize,
    /// The revision that the ring reaches back to.
    pub(crate) ring_floor: Revision,
}

impl Slot {
    pub(crate) fn range(&self) -> &KeyRange {
        &self.range
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A commit with changes in the range, at these places.
    fn tell(&self, record: &Arc<CommitRecord>, places: &[usize], queued: &mut usize) {
        match &mut *self.state() {
            SlotState::Behind { .. } => return,
            SlotState::Latest { dirty } => *dirty = true,
            SlotState::Live { after, .. } if record.revision <= *after => return,
            state @ SlotState::Live { .. } => state.queue(record, places, queued),
        }
        self.waker.wake();
    }
}

impl SlotState {
    fn queue(&mut self, record: &Arc<CommitRecord>, places: &[usize], queued: &mut usize) {
        let Self::Live {
            queue,
            bytes,
            after,
        } = self
        else {
            return;
        };
        let Some(mut record) = record.pick(places) else {
            return;
        };
        if planted("split-commit") && record.changes.len() > 1 {
            let mut first = CommitRecord::clone(&record);
            Arc::make_mut(&mut record).changes = first.changes.split_off(1);
            queue.push_back(Arc::new(first));
        }
        *bytes += record.bytes();
        *queued += record.bytes();
        queue.push_back(record);
        if queue.len() > QUEUE_COMMITS_MAX || *bytes > QUEUE_BYTES_MAX || *queued > QUEUES_BYTES_MAX
        {
            if planted("drop-at-overflow") {
                queue.pop_back();
                return;
            }
            // Nothing of the range lies between the last delivered commit and the first queued one.
            let first = queue
                .front()
                .map_or(*after, |first| Revision(first.revision.0 - 1));
            *queued -= *bytes;
            *self = Self::Behind { after: first };
        }
    }

    fn queued_bytes(&self) -> usize {
        match self {
            Self::Live { bytes, .. } => *bytes,
            Self::Behind { .. } | Self::Latest { .. } => 0,
        }
    }
}

impl Subscription {
    /// What a watch `Every` is to be told next. Registers the waker first, so nothing is missed.
    pub(crate) fn next(&self, waker: &std::task::Waker) -> Next {
        self.slot.waker.register(waker);
        let (after, pages) = {
            let mut inner = self.feed.lock();
            let inner = &mut *inner;
            match &mut *self.slot.state() {
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
                    inner.queued -= std::mem::take(bytes);
                    *after = commits.last().map_or(*after, |last| last.revision);
                    return Next::Commits(commits);
                }
                SlotState::Behind { after } if *after < inner.ring.floor() => {
                    return Next::ReadLog(*after);
                }
                SlotState::Behind { after } => (*after, inner.ring.pages_after(*after, RING_STEP)),
            }
        };
        let repeated = u64::from(planted("ring-boundary-repeats"));
        let mut found = Found::after(Revision(after.0.saturating_sub(repeated)), QUEUE_BYTES_MAX);
        // Without the lock: nobody else moves a watch that stands behind.
        self.search(&pages, &mut found);
        let is_live = self.go_live(&mut found, pages.len() < RING_STEP);
        if !is_live && found.commits.is_empty() {
            // There is more to search; let others run first.
            waker.wake_by_ref();
        }
        if is_live && found.commits.is_empty() {
            return Next::Idle(found.reached);
        }
        Next::Commits(found.commits)
    }

    fn search(&self, pages: &[Arc<Page<Keyspace>>], found: &mut Found) {
        for page in pages {
            page.search(&self.keyspace, &self.slot.range, found);
        }
    }

    /// Takes the watch to where the ring was searched: live if that is all there is, or so nearly that the rest is searched
    /// here, under the lock, so that no commit comes between.
    fn go_live(&self, found: &mut Found, searched_all: bool) -> bool {
        let mut inner = self.feed.lock();
        let mut is_live = false;
        // What was searched is in hand, but the ring may have moved on beyond it meanwhile.
        if searched_all && !found.is_full() && found.reached >= inner.ring.floor() {
            let newer = inner.ring.pages_after(found.reached, RING_STEP);
            let commits: usize = newer.iter().map(|page| page.len()).sum();
            if newer.len() < RING_STEP && commits <= LOCKED_COMMITS_MAX {
                self.search(&newer, found);
                is_live = !found.is_full();
            }
        }
        if is_live {
            found.reached = found.reached.max(inner.published);
        }
        let after = found.reached;
        *self.slot.state() = if is_live {
            SlotState::Live {
                queue: VecDeque::new(),
                bytes: 0,
                after,
            }
        } else {
            SlotState::Behind { after }
        };
        is_live
    }

    /// Where this watch stands, if the ring does not reach back to there.
    pub(crate) fn needs_log(&self) -> Option<Revision> {
        let inner = self.feed.lock();
        match &*self.slot.state() {
            SlotState::Behind { after } if *after < inner.ring.floor() => Some(*after),
            SlotState::Behind { .. } | SlotState::Live { .. } | SlotState::Latest { .. } => None,
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
        let mut feed = self.feed.lock();
        let mut state = self.slot.state();
        feed.queued -= state.queued_bytes();
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
        inner.queued -= self.slot.state().queued_bytes();
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
