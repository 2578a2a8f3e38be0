//! The queue between the committer and the feed's thread: groups that are published and not yet delivered.
//!
//! The committer puts each group into the queue and goes on; the thread delivers it to the watches. If the thread is
//! idle and a group concerns few watches, the committer delivers it itself, which costs less than to wake the thread.
//! The queue is bounded in bytes. Over the bound it keeps only which keyspaces had commits, and not the commits: the
//! watches of these keyspaces fall behind, and read the ring or the log like every watch that is behind.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use storage_protocol::{Keyspace, Revision};

use super::FeedCommit;

/// What may wait to be delivered. Most of it is in the ring as well.
pub(super) const HANDED_BYTES_MAX: usize = 64 << 20;

/// What a group without changes counts.
const GROUP_BYTES_MIN: usize = 256;

/// What was published together.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) what: What,
    /// Everything up to here is delivered with it.
    pub(super) published: Revision,
    bytes: usize,
}

#[derive(Debug)]
pub(super) enum What {
    Commits(Vec<FeedCommit>),
    /// Commits of these keyspaces were left out.
    LeftOut(BTreeSet<Keyspace>),
    /// The committer panicked while it delivered them itself.
    Panicked,
}

/// See the module.
#[derive(Debug)]
pub(super) struct HandOver {
    line: Mutex<HandOverQueue>,
    pushed: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct HandOverQueue {
    groups: VecDeque<Published>,
    /// Of the groups in line, and of the one that is being delivered.
    bytes: usize,
    /// Whether a group was taken that is not delivered yet.
    is_delivering: bool,
    /// The thread waits, and nobody has woken it yet.
    waits: bool,
    closed: bool,
}

impl HandOver {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            line: Mutex::default(),
            pushed: Condvar::new(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HandOverQueue> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits and nothing is being delivered.
    pub(super) fn is_idle(&self) -> bool {
        let line = self.lock();
        line.groups.is_empty() && !line.is_delivering
    }

    /// Puts a group into the queue. Never waits.
    pub(super) fn push(&self, commits: Vec<FeedCommit>, published: Revision) {
        let bytes = commits.iter().map(|commit| commit.record.bytes());
        let bytes = GROUP_BYTES_MIN + bytes.sum::<usize>();
        let mut line = self.lock();
        if line.bytes > 0 && line.bytes + bytes > self.bytes_max {
            line.leave_out(&commits, published);
            return self.wake(line);
        }
        line.bytes += bytes;
        let what = What::Commits(commits);
        line.groups.push_back(Published {
            what,
            published,
            bytes,
        });
        self.wake(line);
    }

    /// Wakes the thread if it waits: to wake nobody is a system call as well.
    fn wake(&self, mut line: MutexGuard<'_, HandOverQueue>) {
        let waits = std::mem::take(&mut line.waits);
        // Before it is woken, since it needs the lock first.
        drop(line);
        if waits {
            self.pushed.notify_one();
        }
    }

    /// Stands for a group whose delivery by the committer panicked.
    pub(super) fn push_panic(&self, published: Revision) {
        let mut line = self.lock();
        line.groups.push_back(Published {
            what: What::Panicked,
            published,
            bytes: 0,
        });
        self.wake(line);
    }

    /// The next group; waits for one. `None` once closed and empty.
    pub(super) fn next(&self) -> Option<Published> {
        let mut line = self.lock();
        loop {
            if let Some(group) = line.take() {
                return Some(group);
            }
            if line.closed {
                return None;
            }
            line.waits = true;
            line = self
                .pushed
                .wait(line)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next group, if there is one.
    #[cfg(test)]
    pub(super) fn try_next(&self) -> Option<Published> {
        self.lock().take()
    }

    /// A group was delivered, or is given up.
    pub(super) fn done(&self, group: Published) {
        let mut line = self.lock();
        line.bytes -= group.bytes;
        line.is_delivering = false;
        drop(line);
        // Outside the lock: it may hold the last reference to a large commit.
        drop(group);
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.pushed.notify_all();
    }
}

impl HandOverQueue {
    fn take(&mut self) -> Option<Published> {
        let group = self.groups.pop_front();
        self.is_delivering |= group.is_some();
        group
    }

    fn leave_out(&mut self, commits: &[FeedCommit], published: Revision) {
        let names = commits.iter().map(|commit| commit.keyspace.clone());
        if let Some(last) = self.groups.back_mut()
            && let What::LeftOut(keyspaces) = &mut last.what
        {
            keyspaces.extend(names);
            last.published = published;
            return;
        }
        let what = What::LeftOut(names.collect());
        self.groups.push_back(Published {
            what,
            published,
            bytes: 0,
        });
    }
}
