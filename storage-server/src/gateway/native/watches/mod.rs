//! The watches of a session: polled only when they were woken, have credit, and the outbox has room.
//!
//! Some progress events are sent without a probe of the peer: when a watch `Every` has caught up, and when nothing was
//! sent on it for long while the store went on. They are requested of the watch like those for probes.
//!
//! Each watch has a waker of its own that notes its id, so 10,000 resting watches cost a wake nothing. An id is at most
//! once in the line of watches to be polled. A watch without credit leaves the line until it is granted more; one with
//! a message in parts in the outbox, until that has left. Credit counts the payload bytes of changes and states.
//! Progress events are free: a watch with a requested one is polled without credit, and if it delivers another event
//! instead, that event is kept. A kept event is counted in the memory of watches.

mod sender;
mod slot;
mod wake;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::Context;
use std::time::Instant;

use storage_protocol::native::{Outbox, RequestId};
use storage_protocol::{Revision, StorageError, Watch};

use self::sender::to_credit;
use self::slot::{OpenWatch, Rest};
use self::wake::{WatchWaker, WokenWatches};
use crate::limits::budget::Permit;
use crate::metrics::Metrics;
use crate::ws::turn_is_over;

/// Watches that get a turn before the session's requests, and other sessions, do: of thousands that were woken at once
/// a peer's own commit must not wait for all.
const TURNS_PER_POLL: usize = 64;

/// About what a watch takes in memory beside the two keys of its range: here, in the engine and in the feed.
pub(super) const WATCH_BYTES: usize = 2 * 1024;

/// What a watch was opened with.
#[derive(Debug)]
pub(super) struct Terms {
    /// The first grant.
    pub(super) credit: u64,
    /// Mode `Every`.
    pub(super) every: bool,
    /// The permit for its memory.
    pub(super) memory: Permit,
}

/// See the module.
pub(super) struct Watches {
    slots: HashMap<RequestId, OpenWatch>,
    woken: Arc<WokenWatches>,
    line: VecDeque<RequestId>,
    behind_large: Vec<RequestId>,
    /// Probes that were answered by their progress events, or whose watches ended.
    answered: Vec<RequestId>,
    metrics: Arc<Metrics>,
}

/// What a poll did.
#[derive(Default)]
pub(super) struct Polled {
    pub(super) moved: bool,
    /// Watches that ended, and why.
    pub(super) ended: Vec<(RequestId, StorageError)>,
}

impl Watches {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            slots: HashMap::new(),
            woken: Arc::default(),
            line: VecDeque::new(),
            behind_large: Vec::new(),
            answered: Vec::new(),
            metrics,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether a watch is in line.
    pub(super) fn wait_for_turn(&self) -> bool {
        !self.line.is_empty() && !self.slots.is_empty()
    }

    pub(super) fn contains(&self, id: RequestId) -> bool {
        self.slots.contains_key(&id)
    }

    /// Adds a watch; `is_behind`: it has something to catch up on.
    pub(super) fn insert(&mut self, id: RequestId, watch: Watch, terms: Terms, is_behind: bool) {
        let state = Arc::new(WatchWaker {
            id,
            queued: AtomicBool::new(false),
            woken: self.woken.clone(),
        });
        let slot = OpenWatch {
            delivered: watch.start().revision,
            watch,
            credit: to_credit(terms.credit),
            every: terms.every,
            progress_due: VecDeque::new(),
            catching_up: is_behind && terms.every,
            quiet: false,
            memory: terms.memory,
            kept: None,
            state,
        };
        if self.slots.insert(id, slot).is_none() {
            self.metrics.watches.inc();
        }
        self.enqueue(id);
    }

    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let Some(slot) = self.slots.remove(&id) else {
            return false;
        };
        self.answered
            .extend(slot.progress_due.into_iter().flatten());
        self.metrics.watches.dec();
        true
    }

    /// The probes that were answered since the last call.
    pub(super) fn answered(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.answered)
    }

    /// Requests a progress event of each watch `Every` that delivered nothing since the last call, if the store has
    /// gone on to `present`. Watches without credit are parked, and left out.
    pub(super) fn request_idle_progress(&mut self, present: Revision) {
        for (id, slot) in &mut self.slots {
            let was_quiet = std::mem::replace(&mut slot.quiet, true);
            if slot.every
                && was_quiet
                && slot.credit > 0
                && slot.progress_due.is_empty()
                && slot.delivered < present
            {
                slot.request_unasked_progress();
                if !slot.state.queued.swap(true, Ordering::AcqRel) {
                    self.line.push_back(*id);
                }
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.metrics.watches.dec_by(self.slots.len() as u64);
        self.slots.clear();
    }

    /// Grants credit. For a watch that ended meanwhile it is ignored: the two messages crossed.
    pub(super) fn grant(&mut self, id: RequestId, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.credit = slot.credit.saturating_add(to_credit(bytes));
            self.enqueue(id);
        }
    }

    /// Requests a progress event for the peer's request `probe`.
    pub(super) fn request_progress(&mut self, id: RequestId, token: u64, probe: RequestId) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.watch.request_progress(token);
            slot.progress_due.push_back(Some(probe));
            self.enqueue(id);
        }
    }

    fn enqueue(&mut self, id: RequestId) {
        if let Some(slot) = self.slots.get(&id)
            && !slot.state.queued.swap(true, Ordering::AcqRel)
        {
            self.line.push_back(id);
        }
    }

    /// Polls the watches in line, while the outbox has room. `now` is when the session's turn began.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        outbox: &mut Outbox,
        now: Instant,
        is_full: impl Fn(&Outbox) -> bool,
    ) -> Polled {
        // Ordering: register, then look; a wake in between is seen or wakes the task.
        self.woken.task.register(cx.waker());
        self.line.extend(
            self.woken
                .ids
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .drain(..),
        );
        for id in std::mem::take(&mut self.behind_large) {
            // Its flag `queued` stays set all the time.
            if outbox.has_bulk(id) {
                self.behind_large.push(id)
            } else {
                self.line.push_back(id)
            }
        }
        let mut polled = Polled::default();
        for turn in 0.. {
            if is_full(outbox) {
                break;
            }
            let is_over = turn == TURNS_PER_POLL || (turn > 0 && turn_is_over(now));
            if is_over && !self.line.is_empty() {
                // The others have their turns at the next poll, after the session's other work.
                polled.moved = true;
                break;
            }
            let Some(id) = self.line.pop_front() else {
                break;
            };
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.state.queued.store(false, Ordering::Release);
            let before = outbox.bytes();
            let rest = slot.take_turn(id, outbox, &mut self.answered);
            polled.moved |= outbox.bytes() != before;
            match rest {
                Rest::Waiting => {}
                Rest::Again => self.enqueue(id),
                Rest::BehindLarge => slot.wait_behind_large(&mut self.behind_large),
                Rest::Ended(error) => {
                    self.remove(id);
                    polled.moved = true;
                    polled.ended.push((id, error));
                }
            }
        }
        polled
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests;
