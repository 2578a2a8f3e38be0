//! What waits for the committer: bounded in bytes, and fair by bytes among principals.
//!
//! Each principal has a line of its own; the committer takes from the lines in turn, a share of bytes each, so that a
//! principal which pushes without pause delays another's small commit by one share, not by its backlog. Within a line,
//! and so within a session, order is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use storage_protocol::{Limit, Outcome, Result, StorageError};

use super::committer::{Task, Work};

/// What one principal's line gives at its turn, in bytes.
const SHARE_BYTES: usize = 256 * 1024;

/// Works taken at once: bounds what one synced write carries.
const WORKS_MAX: usize = 4096;

/// Bytes taken at once.
const BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Lines>,
    filled: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Lines {
    lines: HashMap<Arc<str>, VecDeque<Work>>,
    /// The principals whose lines are not empty, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Condvar::new(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts work at the end of its principal's line.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, `Closed` when the engine is.
    pub(super) fn push(&self, work: Work) -> Result<()> {
        let mut lines = self.lock();
        if lines.closed {
            return Err(StorageError::Closed {
                reason: "the store is closing".to_owned(),
                outcome: Outcome::NotExecuted,
            });
        }
        // One that is larger than the queue still passes an empty one: the message limit bounds it.
        // What the engine itself queues passes always: it is little, and nobody would repeat it.
        // So does a commit that comes again: refused here, it would look as if it had not been executed.
        let bounded = matches!(work.task, Task::Commit { .. });
        if bounded && lines.bytes > 0 && lines.bytes + work.bytes > self.bytes_max {
            let max = self.bytes_max as u64;
            return Err(StorageError::Overloaded {
                limit: Limit::CommitQueue,
                max,
            });
        }
        lines.bytes += work.bytes;
        let principal = work.session.principal.clone();
        let line = lines.lines.entry(principal.clone()).or_default();
        line.push_back(work);
        if line.len() == 1 {
            lines.turns.push_back(principal);
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for work and takes a group of it; empty only when the queue is closed and drained.
    pub(super) fn take(&self) -> Vec<Work> {
        let mut lines = self.lock();
        while lines.turns.is_empty() && !lines.closed {
            lines = self
                .filled
                .wait(lines)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while group.len() < WORKS_MAX
            && bytes < BYTES_MAX
            && let Some(principal) = lines.turns.pop_front()
        {
            let Some(line) = lines.lines.get_mut(&principal) else {
                continue;
            };
            let mut share = 0;
            while share < SHARE_BYTES
                && group.len() < WORKS_MAX
                && let Some(work) = line.pop_front()
            {
                share += work.bytes;
                group.push(work);
            }
            if line.is_empty() {
                lines.lines.remove(&principal);
            } else {
                lines.turns.push_back(principal);
            }
            bytes += share;
        }
        lines.bytes -= bytes;
        group
    }

    /// Takes no more; what is queued is still committed.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}
