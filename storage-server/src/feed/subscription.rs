//! A watch's end of the feed: which commits are next for it.
//!
//! A live watch takes them from its queue. One that is behind searches the ring and becomes live when it has reached
//! the end; where the ring does not reach back, its owner reads the log first.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::Waker;

use storage_protocol::{CommitRecord, KeyRange, Keyspace, Revision};

use super::page::{CommitPage, Found};
use super::slot::{SlotState, WatchSlot};
use super::{Feed, QUEUE_BYTES_MAX, file, unfile};

/// A watch that is behind searches this many pages of the ring at a time, then lets others run.
const RING_STEP: usize = 64;

/// And at most this many commits with the ring's lock held: those published while it searched without the lock.
const LOCKED_COMMITS_MAX: usize = 256;

/// And at most this many bytes of them: large commits are not searched with the lock held.
const LOCKED_BYTES_MAX: usize = 1 << 20;

/// A watch attached to the feed. Dropping it detaches the watch.
#[derive(Debug)]
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    keyspace: Keyspace,
    slot: Arc<WatchSlot>,
}

/// What a watch finds when it asks.
#[derive(Debug)]
pub(crate) enum Next {
    /// Commits, in order, each cut to the range. If empty, it searched a part of the ring without finding any, and the
    /// waker was called.
    Commits(Vec<Arc<CommitRecord>>),
    /// Nothing in the range up to this revision, and the watch is live.
    Idle(Revision),
    /// The ring does not reach back to this revision: read the log, then [`Subscription::caught_up`].
    ReadLog(Revision),
}

impl Subscription {
    pub(super) fn new(feed: Arc<Feed>, keyspace: Keyspace, slot: Arc<WatchSlot>) -> Self {
        Self {
            feed,
            keyspace,
            slot,
        }
    }

    /// What is next for a watch `Every`. Registers the waker first, so nothing is missed.
    pub(crate) fn next(&self, waker: &Waker) -> Next {
        self.slot.waker.register(waker);
        let after = match self.take_queued() {
            Ok(next) => return next,
            Err(after) => after,
        };
        let Some((mut found, searched_all)) = self.search_ring(after) else {
            return Next::ReadLog(after);
        };
        let is_live = searched_all && self.go_live(&mut found, false);
        if !is_live {
            *self.slot.state() = SlotState::Behind(found.reached);
            if found.commits.is_empty() {
                // There is more to search; let others run first.
                waker.wake_by_ref();
            }
        }
        if is_live && found.commits.is_empty() {
            return Next::Idle(found.reached);
        }
        Next::Commits(found.commits)
    }

    /// What is next for a watch `Latest` that is near the present. One that is further behind than [`QUEUE_BYTES_MAX`]
    /// gets [`Next::ReadLog`]: it is to deliver the present state rather than the steps.
    pub(crate) fn next_recent(&self) -> Next {
        match self.take_queued() {
            Ok(next) => next,
            Err(after) if self.catch_up_live() => {
                self.take_queued().unwrap_or(Next::ReadLog(after))
            }
            Err(after) => Next::ReadLog(after),
        }
    }

    /// Whether there is something to ask [`Subscription::next_recent`] for. Registers the waker first.
    pub(crate) fn has_news(&self, waker: &Waker) -> bool {
        self.slot.waker.register(waker);
        !self.is_live()
    }

    /// Makes a watch that is behind live, with what it missed in its queue, if the ring has that and it is little.
    pub(crate) fn catch_up_live(&self) -> bool {
        let SlotState::Behind(after) = *self.slot.state() else {
            return true;
        };
        match self.search_ring(after) {
            Some((mut found, true)) => self.go_live(&mut found, true),
            _ => false,
        }
    }

    /// What is queued for a live watch; `Err` with the revision of one that is behind.
    fn take_queued(&self) -> Result<Next, Revision> {
        // Ordering: before the look at the queue. Everything up to this revision is in the queue by then.
        let delivered = self.feed.delivered();
        let commits = match &mut *self.slot.state() {
            SlotState::Behind(after) => return Err(*after),
            SlotState::Live(live) if live.is_empty() => {
                return Ok(Next::Idle(delivered.max(live.after)));
            }
            state @ SlotState::Live(_) => state.take(&self.feed.queued),
        };
        let cut = |commit: &Arc<_>| self.feed.views.cut(commit, self.range());
        Ok(Next::Commits(commits.iter().filter_map(cut).collect()))
    }

    /// What the ring has after a revision, up to [`QUEUE_BYTES_MAX`], and whether it was searched to its end; `None`
    /// where it does not reach back.
    fn search_ring(&self, after: Revision) -> Option<(Found, bool)> {
        let pages = {
            let mut recent = self.feed.recent();
            if after < recent.ring.floor() {
                return None;
            }
            recent.ring.pages_after(after, RING_STEP)
        };
        let mut found = Found::after(after, QUEUE_BYTES_MAX);
        // Without the lock: nobody else moves a watch that is behind.
        self.search(&pages, &mut found);
        let searched_all = pages.len() < RING_STEP && !found.is_full();
        Some((found, searched_all))
    }

    fn search(&self, pages: &[Arc<CommitPage<Keyspace>>], found: &mut Found) {
        for page in pages {
            page.search(&self.keyspace, self.range(), &self.feed.views, found);
        }
    }

    /// Makes a watch live for which the ring was searched to its end, if what was published since is little: that is
    /// searched here, under the lock, so that no commit falls in between. With `queued`, what was found goes into the
    /// watch's queue.
    fn go_live(&self, found: &mut Found, queued: bool) -> bool {
        let mut matchers = self.feed.matchers();
        let mut recent = self.feed.recent();
        // What was found is kept, but the ring may meanwhile have dropped commits that were not searched yet.
        if found.reached < recent.ring.floor() {
            return false;
        }
        let newer = recent.ring.pages_after(found.reached, RING_STEP);
        let commits: usize = newer.iter().map(|page| page.len()).sum();
        let bytes: usize = newer.iter().map(|page| page.bytes()).sum();
        if newer.len() == RING_STEP || commits > LOCKED_COMMITS_MAX || bytes > LOCKED_BYTES_MAX {
            return false;
        }
        self.search(&newer, found);
        if found.is_full() {
            return false;
        }
        found.reached = found.reached.max(recent.published);
        let commits = if queued {
            std::mem::take(&mut found.commits)
        } else {
            Vec::new()
        };
        *self.slot.state() = SlotState::live(found.reached, commits, &self.feed.queued);
        file(&mut matchers, &self.keyspace, &self.slot);
        true
    }

    /// The revision that this watch is behind at, if the ring does not reach back to it.
    pub(crate) fn needs_log(&self) -> Option<Revision> {
        let floor = self.feed.recent().ring.floor();
        match &*self.slot.state() {
            SlotState::Behind(after) if *after < floor => Some(*after),
            SlotState::Behind(_) | SlotState::Live(_) => None,
        }
    }

    /// The watch has searched the log up to here, after [`Next::ReadLog`].
    pub(crate) fn caught_up(&self, reached: Revision) {
        if let SlotState::Behind(after) = &mut *self.slot.state() {
            *after = (*after).max(reached);
        }
    }

    /// Drops the queue and falls behind, at the last commit taken, or at `after` if that is earlier (if its owner
    /// dropped some of what it took).
    pub(crate) fn park(&self, after: Option<Revision>) {
        self.slot.state().park(after, &self.feed.queued);
        // Nobody but its owner files it again.
        if self.slot.filed.load(Ordering::Relaxed) {
            unfile(&mut self.feed.matchers(), &self.keyspace, &self.slot);
        }
    }

    /// Calls the waker once everything up to `revision` is delivered; for a watch that got [`Next::Idle`] with a lower
    /// revision.
    pub(crate) fn wake_once_delivered(&self, revision: Revision, waker: &Waker) {
        self.slot.waker.register(waker);
        let mut waiting = self
            .feed
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.feed.delivered() >= revision {
            waker.wake_by_ref();
        } else if !self.slot.waits.swap(true, Ordering::Relaxed) {
            waiting.push((revision, self.slot.clone()));
        }
    }

    /// Everything of the range up to here was taken.
    pub(crate) fn taken(&self) -> Revision {
        match &*self.slot.state() {
            SlotState::Live(live) => live.taken_up_to(Revision::ZERO),
            SlotState::Behind(after) => *after,
        }
    }

    /// Everything up to here is published, and delivered or about to be.
    pub(crate) fn published(&self) -> Revision {
        self.feed.recent().published
    }

    pub(crate) fn range(&self) -> &KeyRange {
        self.slot.range()
    }

    /// Whether nothing waits for the watch.
    pub(crate) fn is_live(&self) -> bool {
        match &*self.slot.state() {
            SlotState::Live(live) => live.is_empty(),
            SlotState::Behind(_) => false,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.park(None);
        self.feed.attached.fetch_sub(1, Ordering::Relaxed);
    }
}
