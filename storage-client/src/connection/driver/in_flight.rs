//! The requests of one socket that were sent and are not answered, with their ids.
//!
//! Invariants: an id stays in use until its answer arrives, even if nobody waits for it any more; what the server
//! counts as in flight is counted here. Sending is in [`send`](super::send), the handling of answers in
//! [`receive`](super::receive).

use std::collections::{BTreeSet, HashMap, VecDeque};

use storage_protocol::native::RequestId;
use storage_protocol::{Outcome, Result, StorageError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ids::Ids;
use super::watches::OpenWatches;
use crate::end::{End, EndKind};
use crate::requests::{Answer, Call, Expect, Submission};

/// A request that was sent and is not answered.
pub(super) struct Pending {
    pub(super) expect: Expect,
    /// `None`: nobody waits for the answer (any more).
    pub(super) reply: Option<oneshot::Sender<Result<Answer>>>,
    deadline: Instant,
    bytes: usize,
    /// Its position in the order of this socket's requests.
    sequence: u64,
    /// The call, to be sent again on the next socket.
    call: Option<Call>,
}

impl Pending {
    /// The commit number, if it is a commit.
    fn number(&self) -> Option<u64> {
        match self.call {
            Some(Call::Repeat { number, .. }) => Some(number),
            _ => None,
        }
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Whether somebody waits for it and its deadline has passed.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.reply.is_some() && self.deadline <= now
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct InFlight {
    ids: Ids,
    /// The requests that the server counts as in flight, and those that end watches and scans.
    pending: HashMap<RequestId, Pending>,
    /// The bytes of all in `pending`.
    bytes: usize,
    /// The commit numbers of the commits in flight.
    unanswered: BTreeSet<u64>,
    sequence: u64,
    /// Requests that the server refused because it shuts down, with their positions.
    kept: Vec<(u64, Submission)>,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.pending.contains_key(&id)
    }

    pub(super) fn get(&self, id: RequestId) -> Option<&Pending> {
        self.pending.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Pending> {
        self.pending.get_mut(&id)
    }

    pub(super) fn ids_where(&self, holds: impl Fn(&Pending) -> bool) -> Vec<RequestId> {
        let found = self.pending.iter().filter(|(_, pending)| holds(pending));
        found.map(|(id, _)| *id).collect()
    }

    /// The commit number of the commit that is in flight under this id.
    pub(super) fn number(&self, id: RequestId) -> Option<u64> {
        self.pending.get(&id).and_then(Pending::number)
    }

    /// The lowest commit number in flight.
    pub(super) fn lowest_number(&self) -> Option<u64> {
        self.unanswered.first().copied()
    }

    /// The lowest commit number in flight besides this one.
    pub(super) fn lowest_number_besides(&self, number: u64) -> Option<u64> {
        let mut unanswered = self.unanswered.iter().copied();
        unanswered.find(|other| *other != number)
    }

    /// An id that neither a request nor a watch has.
    pub(super) fn fresh_id(&mut self, watches: &OpenWatches) -> RequestId {
        let pending = &self.pending;
        self.ids
            .take(|id| pending.contains_key(&id) || watches.uses(id))
    }

    /// Whether this id was handed out at some time.
    pub(super) fn was_taken(&self, id: RequestId) -> bool {
        self.ids.was_taken(id)
    }

    /// A request is sent under this id.
    pub(super) fn insert(
        &mut self,
        id: RequestId,
        expect: Expect,
        reply: Option<oneshot::Sender<Result<Answer>>>,
        deadline: Instant,
        bytes: usize,
        call: Option<Call>,
    ) {
        self.sequence += 1;
        let pending = Pending {
            expect,
            reply,
            deadline,
            bytes,
            sequence: self.sequence,
            call,
        };
        self.unanswered.extend(pending.number());
        self.pending.insert(id, pending);
        self.bytes += bytes;
    }

    /// Its answer arrived.
    pub(super) fn remove(&mut self, id: RequestId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.bytes -= pending.bytes;
        if let Some(number) = pending.number() {
            self.unanswered.remove(&number);
        }
        Some(pending)
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_awaited(&self) -> bool {
        let waits = |pending: &Pending| pending.reply.is_some() && !pending.is_given_up();
        self.pending.values().any(waits)
    }

    /// The first deadline of a request that somebody waits for.
    pub(super) fn earliest(&self) -> Option<Instant> {
        let waiting = self
            .pending
            .values()
            .filter(|pending| pending.reply.is_some());
        let next = waiting.map(|pending| pending.deadline).min();
        let kept = self.kept.iter().map(|(_, kept)| kept.deadline).min();
        [next, kept].into_iter().flatten().min()
    }

    // For the next socket.

    /// Keeps a request for the next socket. A commit keeps its commit number, and so its place in the order.
    pub(super) fn keep_for_next(&mut self, pending: Pending) {
        let Pending {
            reply: Some(reply),
            deadline,
            sequence,
            call: Some(call),
            ..
        } = pending
        else {
            return;
        };
        if let (Call::Watch { watch, .. }, false) = (&call, reply.is_closed()) {
            watch.set_id(None);
        }
        let submission = Submission {
            call,
            reply: Some(reply),
            deadline,
        };
        if !submission.is_given_up() {
            self.kept.push((sequence, submission));
        }
    }

    pub(super) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Fails kept requests that are past their deadlines.
    pub(super) fn expire_kept(&mut self, now: Instant) {
        // Requests that the server refused wait here until it has closed: it may have more to answer, or read nothing
        // any more.
        for (_, kept) in &mut self.kept {
            if kept.deadline <= now {
                // The server said that it was not executed, and a request that nobody waits for is not sent again.
                let outcome = Outcome::NotExecuted;
                kept.fail(StorageError::DeadlineExceeded { outcome });
            }
        }
        self.forget_given_up();
    }

    /// Drops refused requests that nobody waits for any more.
    pub(super) fn forget_given_up(&mut self) {
        self.kept.retain(|(_, kept)| !kept.is_given_up());
    }

    /// The socket is gone. If another follows, returns the requests to send again there, in their order; the others
    /// fail.
    pub(super) fn finish(&mut self, end: &End, follows: bool) -> VecDeque<Submission> {
        for (_, pending) in std::mem::take(&mut self.pending) {
            let goes_on = follows && end.kind != EndKind::Misbehaved;
            if matches!(pending.expect, Expect::NextPage { .. }) && goes_on {
                // The server dropped the scan's snapshot with the socket.
                if let Some(reply) = pending.reply {
                    let _ = reply.send(Err(StorageError::SnapshotExpired));
                }
            } else if goes_on {
                self.keep_for_next(pending);
            } else if let Some(reply) = pending.reply {
                let _ = reply.send(Err(end.error(pending.expect.outcome_if_lost())));
            }
        }
        self.bytes = 0;
        self.unanswered.clear();
        self.kept.sort_unstable_by_key(|(sequence, _)| *sequence);
        self.kept.drain(..).map(|(_, kept)| kept).collect()
    }
}
