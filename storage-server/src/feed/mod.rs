//! The change feed: recent commits in memory, and their delivery to watches.
//!
//! The committer publishes each commit once it is durable: into the [`ring`], under a short lock, and into the queue of
//! the feed's thread ([`fan_out`]). That thread finds the watches which the commit concerns and puts it into their
//! queues. The committer answers without waiting for this, so the cost of a commit to its writer and to other writers
//! does not depend on how many watch. One exception: if the thread is idle and few watches are concerned, the committer
//! delivers to them itself, which costs less than to wake the thread.
//!
//! A watch that keeps up is *live*. One that does not (no credit, a long pause) drops its queue and is *behind*, at a
//! revision: no commit looks at it until it asks again and catches up, from the ring while that reaches back, else from
//! the log. Both are read in [`page`]s, which are searched by key and without a lock, so that thousands of watches may
//! resume at once. Queues hold whole commits, shared; each is cut to the watch's range when it is taken ([`views`]).
//!
//! The feed has two revisions: `published` (in the ring) and `delivered` (in the queues), `delivered <= published`.
//! Invariants:
//!
//! 1. Durable, then published, then answered: a caller that has its answer finds the commit in every read, in every
//!    watch that begins from then on, and below every progress event requested from then on. `delivered` follows later.
//! 2. A live watch has in its queue exactly the commits that touch its range after the last one it took, up to
//!    `delivered`. A commit up to the watch's `after` is not queued: the watch became live by a search of the ring up
//!    to `published`, which `delivered` had perhaps not reached.
//! 3. A progress event at *r* says: nothing more up to *r*. Only a live watch with an empty queue sends it, with an *r*
//!    up to the `delivered` that was read before the queue was found empty. So no progress event overtakes a commit
//!    that is not queued yet; one that was requested beyond `delivered` waits until `delivered` has reached it.
//! 4. A watch becomes live, and is filed with the matcher, while the ring is locked at the `published` up to which it
//!    was searched. What is published afterwards is matched afterwards and finds the watch.
//!
//! Locks, in the order in which they are taken: the matchers, the ring, a watch's state.

mod fan_out;
mod matching;
pub(crate) mod page;
mod ring;
mod slot;
mod subscription;
pub(crate) mod views;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage_protocol::{CommitRecord, KeyRange, Keyspace, Revision};

use self::fan_out::{HANDED_BYTES_MAX, HandOver, Published, What};
use self::matching::{Matcher, WatchId};
use self::ring::Ring;
pub(crate) use self::slot::QUEUE_BYTES_MAX;
use self::slot::{Delivery, SlotState, WatchSlot};
pub(crate) use self::subscription::{Next, Subscription};
use self::views::Views;

/// The committer delivers a group itself if it has at most this many changes of keyspaces with live watches, and concerns
/// at most this many watches (a watch counts once for each commit of the group). To wake the feed's thread costs a lone
/// writer more: with it a put of 1 KiB took 335 us of processor time, without it 287.
const AT_ONCE_MAX: usize = 32;

/// A commit in the feed.
#[derive(Clone, Debug)]
pub(crate) struct FeedCommit {
    pub(crate) keyspace: Keyspace,
    pub(crate) record: Arc<CommitRecord>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    recent: Mutex<Recent>,
    ring_bytes_max: usize,
    /// The watches that are live.
    matchers: Mutex<HashMap<Keyspace, Matcher>>,
    hand_over: HandOver,
    /// [`AT_ONCE_MAX`].
    at_once_max: usize,
    /// Everything up to here is in the queues of those it concerns.
    delivered: AtomicU64,
    /// What all live watches have queued; a commit counts for each that has it.
    queued: AtomicUsize,
    /// Watches attached, live or not.
    attached: AtomicUsize,
    next_id: AtomicU64,
    /// Watches that wait until `delivered` reaches a revision. Each watch at most once.
    waiting: Mutex<Vec<(Revision, Arc<WatchSlot>)>>,
    views: Views,
}

#[derive(Debug)]
struct Recent {
    ring: Ring,
    published: Revision,
}

impl Feed {
    pub(crate) fn new(ring_bytes_max: usize, at: Revision) -> Self {
        let recent = Recent {
            ring: Ring::new(ring_bytes_max, at),
            published: at,
        };
        Self {
            recent: Mutex::new(recent),
            ring_bytes_max,
            matchers: Mutex::default(),
            hand_over: HandOver::new(HANDED_BYTES_MAX),
            at_once_max: AT_ONCE_MAX,
            delivered: AtomicU64::new(at.0),
            queued: AtomicUsize::new(0),
            attached: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            waiting: Mutex::default(),
            views: Views::default(),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn matchers(&self) -> MutexGuard<'_, HashMap<Keyspace, Matcher>> {
        self.matchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delivered(&self) -> Revision {
        Revision(self.delivered.load(Ordering::Acquire))
    }

    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    /// Empties the ring: it begins after `floor`.
    pub(crate) fn restart(&self, floor: Revision) {
        self.recent().ring = Ring::new(self.ring_bytes_max, floor);
    }

    /// Puts commits from the log into the ring, before anything is published.
    pub(crate) fn refill(&self, commits: impl Iterator<Item = FeedCommit>) {
        let mut recent = self.recent();
        let mut gone = Vec::new();
        for commit in commits {
            recent.ring.push(commit, &mut gone);
        }
    }

    /// Publishes commits that are durable, in revision order; with them everything up to `published` is published.
    /// Waits for no watch.
    pub(crate) fn publish(&self, commits: Vec<FeedCommit>, published: Revision) {
        // Dropped after the lock is released: a page may hold the last references to thousands of commits.
        let mut gone = Vec::new();
        let mut recent = self.recent();
        for commit in &commits {
            recent.ring.push(commit.clone(), &mut gone);
        }
        recent.published = published;
        drop(recent);
        let delivering = AssertUnwindSafe(|| self.deliver_at_once(&commits, published));
        match catch_unwind(delivering) {
            Ok(true) => {}
            Ok(false) => self.hand_over.push(commits, published),
            // The commits are durable and will be answered. The panic is raised again in the feed's thread, and handled
            // like one of its own.
            Err(_) => self.hand_over.push_panic(published),
        }
    }

    /// Delivers them without the feed's thread, if that is little work and nothing waits to be delivered before them.
    fn deliver_at_once(&self, commits: &[FeedCommit], published: Revision) -> bool {
        // Ordering: after the push to the ring. A watch that is filed after this check has searched the ring up to
        // `published`.
        if !self.hand_over.is_idle() {
            return false;
        }
        let mut concerned = Vec::new();
        let mut left = self.at_once_max;
        let mut changes = 0;
        {
            let Ok(matchers) = self.matchers.try_lock() else {
                return false;
            };
            for FeedCommit { keyspace, record } in commits {
                let mut slots = Vec::new();
                // What nobody watches is no work.
                if let Some(matcher) = matchers.get(keyspace) {
                    changes += record.changes.len();
                    if changes > self.at_once_max
                        || !matcher.concerned_up_to(left, record, &mut slots)
                    {
                        return false;
                    }
                }
                left -= slots.len();
                concerned.push(slots);
            }
        }
        for (FeedCommit { keyspace, record }, mut slots) in commits.iter().zip(concerned) {
            slots.retain(|slot| slot.deliver(record, &self.queued) == Delivery::Behind);
            self.unfile_behind(keyspace, &slots);
        }
        self.delivered.store(published.0, Ordering::Release);
        self.wake_waiting(published);
        true
    }

    /// Delivers what is published to the watches, until [`Feed::close`]. For a thread of its own.
    pub(crate) fn run(&self) {
        while let Some(group) = self.hand_over.next() {
            self.deliver_group(group);
        }
    }

    /// In place of [`Feed::run`] after that panicked. Nothing is delivered any more: all watches fall behind with each
    /// group, and find its commits in the ring or the log. So what is published still reaches all watches, and progress
    /// events are still sent.
    pub(crate) fn run_undelivered(&self) {
        // The group at which it panicked may have reached some watches and not others.
        self.all_fall_behind();
        while let Some(group) = self.hand_over.next() {
            self.all_fall_behind();
            self.hand_over.done(group);
        }
    }

    fn all_fall_behind(&self) {
        // Ordering: first. A watch that becomes live from here on has searched the ring at least up to this revision.
        let published = self.recent().published;
        let keyspaces: Vec<_> = self.matchers().keys().cloned().collect();
        for keyspace in &keyspaces {
            self.fall_behind(keyspace, published);
        }
        self.delivered.store(published.0, Ordering::Release);
        self.wake_waiting(published);
    }

    /// Nothing is published any more: what was published is delivered, then [`Feed::run`] returns.
    pub(crate) fn close(&self) {
        self.hand_over.close();
        self.wake_waiting(Revision(u64::MAX));
    }

    /// Delivers what was published. For tests without the thread.
    #[cfg(test)]
    fn deliver_all(&self) {
        while let Some(group) = self.hand_over.try_next() {
            self.deliver_group(group);
        }
    }

    fn deliver_group(&self, group: Published) {
        let mut concerned = Vec::new();
        match &group.what {
            What::Commits(commits) => {
                for commit in commits {
                    self.deliver(commit, &mut concerned);
                }
            }
            What::LeftOut(keyspaces) => {
                for keyspace in keyspaces {
                    self.fall_behind(keyspace, group.published);
                }
            }
            What::Panicked => panic!("the committer panicked as it told watches"),
        }
        self.delivered.store(group.published.0, Ordering::Release);
        self.wake_waiting(group.published);
        self.hand_over.done(group);
    }

    fn deliver(&self, commit: &FeedCommit, concerned: &mut Vec<Arc<WatchSlot>>) {
        let FeedCommit { keyspace, record } = commit;
        let asks_for_keys = |matcher: &Matcher| matcher.asks_for_keys();
        if self.matchers().get(keyspace).is_some_and(asks_for_keys) {
            // Without a lock: to sort a million keys takes a while.
            record.sort_keys();
        }
        if let Some(matcher) = self.matchers().get(keyspace) {
            matcher.concerned(record, concerned);
        }
        concerned.retain(|slot| slot.deliver(record, &self.queued) == Delivery::Behind);
        self.unfile_behind(keyspace, concerned);
        concerned.clear();
    }

    /// All live watches of a keyspace fall behind, since they may have missed something.
    fn fall_behind(&self, keyspace: &Keyspace, upto: Revision) {
        let delivered = self.delivered();
        let slots: Vec<_> = match self.matchers().get(keyspace) {
            Some(matcher) => matcher.all().cloned().collect(),
            None => return,
        };
        for slot in &slots {
            slot.left_out(delivered, upto, &self.queued);
        }
        self.unfile_behind(keyspace, &slots);
    }

    /// Takes the watches that are behind out of the matcher: until they are live again no commit looks at them.
    fn unfile_behind(&self, keyspace: &Keyspace, slots: &[Arc<WatchSlot>]) {
        if slots.is_empty() {
            return;
        }
        let mut matchers = self.matchers();
        for slot in slots {
            let is_behind = matches!(*slot.state(), SlotState::Behind(_));
            if is_behind {
                unfile(&mut matchers, keyspace, slot);
            }
        }
    }

    fn wake_waiting(&self, delivered: Revision) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|(revision, slot)| {
            let stays = *revision > delivered;
            if !stays {
                slot.waits.store(false, Ordering::Relaxed);
                slot.waker.wake();
            }
            stays
        });
    }

    /// Wakes all watches that wait for a revision to be delivered: the store failed, and may never reach it.
    pub(crate) fn wake_all_waiting(&self) {
        self.wake_waiting(Revision(u64::MAX));
    }

    /// Attaches a watch. With `None` it begins after what is published; the revision it begins after is returned.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        keyspace: &Keyspace,
        range: KeyRange,
        after: Option<Revision>,
    ) -> (Subscription, Revision) {
        let id = WatchId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let mut matchers = self.matchers();
        let published = self.recent().published;
        let after = after.unwrap_or(published);
        let is_live = after >= published;
        let state = if is_live {
            SlotState::live(after, Vec::new(), &self.queued)
        } else {
            SlotState::Behind(after)
        };
        let slot = Arc::new(WatchSlot::new(id, range, state));
        if is_live {
            file(&mut matchers, keyspace, &slot);
        }
        drop(matchers);
        self.attached.fetch_add(1, Ordering::Relaxed);
        (
            Subscription::new(self.clone(), keyspace.clone(), slot),
            after,
        )
    }

    pub(crate) fn figures(&self) -> FeedFigures {
        let (ring_bytes, ring_floor) = {
            let recent = self.recent();
            (recent.ring.bytes(), recent.ring.floor())
        };
        FeedFigures {
            watches: self.attached.load(Ordering::Relaxed),
            queued_bytes: self.queued.load(Ordering::Relaxed),
            untold_bytes: self.hand_over.bytes(),
            views_bytes: self.views.bytes(),
            ring_bytes,
            ring_floor,
        }
    }
}

/// Files a watch with the matcher of its keyspace.
fn file(matchers: &mut HashMap<Keyspace, Matcher>, keyspace: &Keyspace, slot: &Arc<WatchSlot>) {
    if slot.filed.swap(true, Ordering::Relaxed) {
        return;
    }
    match matchers.get_mut(keyspace) {
        Some(matcher) => matcher.add(slot.clone()),
        None => matchers
            .entry(keyspace.clone())
            .or_default()
            .add(slot.clone()),
    }
}

fn unfile(matchers: &mut HashMap<Keyspace, Matcher>, keyspace: &Keyspace, slot: &WatchSlot) {
    if !slot.filed.swap(false, Ordering::Relaxed) {
        return;
    }
    if let Some(matcher) = matchers.get_mut(keyspace) {
        matcher.remove(slot);
        if matcher.is_empty() {
            matchers.remove(keyspace);
        }
    }
}

/// What the feed holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedFigures {
    /// Watches attached.
    pub(crate) watches: usize,
    /// Bytes in their queues.
    pub(crate) queued_bytes: usize,
    /// Bytes that are published and not delivered yet.
    pub(crate) untold_bytes: usize,
    /// Bytes of parts of large commits that are kept to be shared.
    pub(crate) views_bytes: usize,
    pub(crate) ring_bytes: usize,
    /// The revision that the ring reaches back to.
    pub(crate) ring_floor: Revision,
}

#[cfg(test)]
mod tests;
