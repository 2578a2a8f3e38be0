//! The committer's queue: bounded in bytes, and fair by bytes among principals.
//!
//! Each principal has a line of its own; the committer takes from the lines in turn, a share of bytes each, so that a
//! principal which pushes without pause delays another's small commit by one share, not by its backlog. Within a line,
//! and so within a session, order is kept. No line takes more than half of the queue, or one commit if that is larger.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use storage_protocol::{Limit, Outcome, Result, StorageError};

use super::task::{Task, Work};

/// What is taken from one principal's line at its turn, in bytes.
const SHARE_BYTES: usize = 256 * 1024;

/// Works taken at once: bounds what one synced write carries.
const WORKS_MAX: usize = 4096;

/// Bytes taken at once.
const BYTES_MAX: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<PrincipalQueues>,
    filled: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct PrincipalQueues {
    lines: HashMap<Arc<str>, PrincipalQueue>,
    /// The principals whose lines are not empty, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    bytes: usize,
    closed: bool,
}

/// What one principal has queued.
#[derive(Debug, Default)]
struct PrincipalQueue {
    works: VecDeque<Work>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            inner: Mutex::default(),
            filled: Condvar::new(),
            bytes_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, PrincipalQueues> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts work at the end of its principal's line.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full, or its principal's half of it; `Closed` when the engine is.
    pub(crate) fn push(&self, work: Work) -> Result<()> {
        let mut lines = self.lock();
        if lines.closed {
            return Err(StorageError::Closed {
                reason: "the store is closing".to_owned(),
                outcome: Outcome::NotExecuted,
            });
        }
        let principal = work.session.principal.clone();
        // What the engine itself queues is always admitted: it is little, and nobody would retry it.
        // So is a commit that is retried: refused here, it would look as if it had not been executed.
        if matches!(work.task, Task::Commit { .. }) {
            let own = lines.lines.get(&principal).map_or(0, |line| line.bytes);
            // A larger one is still admitted to an empty queue or line: the message limit bounds it.
            for (waiting, max) in [(own, self.bytes_max / 2), (lines.bytes, self.bytes_max)] {
                if waiting > 0 && waiting + work.bytes > max {
                    return Err(StorageError::Overloaded {
                        limit: Limit::CommitQueue,
                        max: max as u64,
                    });
                }
            }
        }
        lines.bytes += work.bytes;
        let line = lines.lines.entry(principal.clone()).or_default();
        line.bytes += work.bytes;
        line.works.push_back(work);
        if line.works.len() == 1 {
            lines.turns.push_back(principal);
        }
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for work and takes a group of it; empty only when the queue is closed and drained.
    pub(crate) fn take(&self) -> Vec<Work> {
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
                && let Some(work) = line.works.pop_front()
            {
                share += work.bytes;
                group.push(work);
            }
            line.bytes -= share;
            if line.works.is_empty() {
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
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{Batch, CommitOptions, Keyspace, SessionId};

    use super::*;
    use crate::engine::rocks::sessions::{Handle, SessionState};
    use crate::engine::rocks::{EngineOptions, RocksEngine};

    #[test]
    fn a_principal_has_half_of_the_queue() {
        let folder = tempfile::tempdir().unwrap();
        // For the keyspace of the works; the queue is the test's own, and nobody takes from it.
        let engine = RocksEngine::open(EngineOptions {
            disk_reserve_bytes: 0,
            ..EngineOptions::new(folder.path().join("data"))
        })
        .unwrap();
        let keyspace = engine.shared.store.keyspace(&Keyspace::new("a").unwrap());
        let work = |principal: &str, bytes, task| Work {
            session: Arc::new(SessionState::new(
                SessionId([0; 16]),
                principal,
                keyspace.clone(),
                Handle::engine(),
            )),
            handle: 0,
            task,
            bytes,
            reply: tokio::sync::oneshot::channel().0,
        };
        let commit = |principal: &str, bytes| {
            let task = Task::Commit {
                number: 0,
                fingerprint: None,
                batch: Batch::new(),
                options: CommitOptions::default(),
            };
            work(principal, bytes, task)
        };
        let full = |max| {
            let limit = Limit::CommitQueue;
            Err(StorageError::Overloaded { limit, max })
        };
        let queue = Queue::new(100);
        queue.push(commit("cert:a", 40)).unwrap();
        assert_eq!(
            queue.push(commit("cert:a", 11)),
            full(50),
            "of another session, too"
        );
        queue.push(commit("cert:a", 10)).unwrap();
        assert_eq!(queue.push(commit("cert:a", 1)), full(50));
        queue
            .push(work("cert:a", 64, Task::Look))
            .expect("it is the engine's");
        queue
            .push(commit("cert:b", 30))
            .expect_err("all of it is full");
        assert_eq!(queue.take().len(), 3);
        assert_eq!(queue.bytes(), 0);
        // One commit always fits, and nothing beside it.
        queue.push(commit("cert:a", 80)).unwrap();
        assert_eq!(queue.push(commit("cert:a", 1)), full(50));
        queue.push(commit("cert:b", 20)).unwrap();
        assert_eq!(queue.push(commit("cert:c", 1)), full(100));
    }
}
