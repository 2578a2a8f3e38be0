//! The committer's tasks, and how they are queued.

use std::sync::{Arc, OnceLock};

use storage_protocol::{Batch, CommitOptions, Key, Position, Result, Revision, UnixMillis};
use tokio::sync::oneshot;

use super::queue::Queue;
use crate::engine::rocks::clock::Late;
use crate::engine::rocks::sessions::{Handle, SessionState, Verdict};

/// One thing for the committer to do.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) session: Arc<SessionState>,
    /// The id of the session's handle that asks for it; 0: the engine itself.
    pub(crate) handle: u64,
    pub(crate) task: Task,
    /// How many bytes it counts in the queue.
    pub(crate) bytes: usize,
    pub(crate) reply: oneshot::Sender<Result<Position>>,
}

#[derive(Debug)]
pub(crate) enum Task {
    /// A commit. With a fingerprint, its commit number is a peer's, which may retry it.
    Commit {
        number: u64,
        fingerprint: Option<u64>,
        batch: Batch,
        options: CommitOptions,
    },
    /// A retry of a peer's commit whose number was executed or refused before: nothing is executed. Without a
    /// fingerprint its content is not known.
    Repeat {
        number: u64,
        fingerprint: Option<u64>,
    },
    /// Removes those of these entries that still have these revisions, in one labelled commit.
    Remove {
        label: &'static str,
        entries: Vec<(Key, Revision)>,
    },
    /// Removes parts that belong to no object, and their intent, in one labelled commit.
    Sweep { label: &'static str, sweep: Sweep },
    /// Gives those of these entries that still have these revisions, and are due at some time, other times, in one
    /// labelled commit.
    Correct {
        label: &'static str,
        entries: Vec<Late>,
    },
    /// Does nothing but let the committer look at the clock.
    Look,
    /// Forgets jumps of the clock.
    ForgetStretches { above: Vec<Revision> },
    /// Drops tombstones of the keyspace up to a revision, and the revision becomes its compacted revision. No commit.
    Forget {
        tombstones: Vec<(Key, Revision)>,
        compacted: Revision,
    },
    /// A newer generation takes the session over.
    Attach {
        handle: Handle,
        generation: u64,
        verdict: Arc<OnceLock<Verdict>>,
    },
    /// The handle's socket was lost.
    Lose,
    /// The handle's client knows that the session's keys were removed.
    Acknowledge,
    /// The session has been without a socket since this time, which is too long: its keys are to be removed.
    ExpireKeys { since: UnixMillis },
    /// The session has been without a socket since this time and is kept no longer: these records are removed, and its
    /// row.
    ForgetSession {
        since: UnixMillis,
        records: Vec<Vec<u8>>,
    },
    /// The session takes no more commits; its records are removed.
    End,
}

/// See [`Task::Sweep`].
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) intent: Key,
    /// Of the intent. If it has another one nothing is done.
    pub(crate) revision: Revision,
    pub(crate) parts: Vec<Key>,
    /// There are more parts, from this number on: the intent stays, says so, and is due at once.
    pub(crate) next: Option<u32>,
}

/// Puts work into the queue, for a handle of the session (0: for the engine itself).
///
/// # Errors
/// As [`Queue::push`].
pub(crate) fn submit(
    queue: &Queue,
    session: &Arc<SessionState>,
    handle: u64,
    task: Task,
    bytes: usize,
) -> Result<oneshot::Receiver<Result<Position>>> {
    let (reply, answer) = oneshot::channel();
    queue.push(Work {
        session: session.clone(),
        handle,
        task,
        bytes,
        reply,
    })?;
    Ok(answer)
}
