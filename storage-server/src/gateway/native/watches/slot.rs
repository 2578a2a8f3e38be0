//! One watch of a session: its credit, and how many of its events go into the outbox at its turn.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use storage_protocol::native::{Outbox, PART_BYTES, RequestId};
use storage_protocol::{Outcome, Revision, StorageError, Watch, WatchEvent, WatchState};

use super::sender::{Events, Sender, charged_bytes, to_credit};
use super::wake::WatchWaker;
use crate::limits::budget::Permit;

/// What one watch may put into the outbox before the others get a turn.
const TURN_BYTES: usize = 4 * PART_BYTES;

pub(super) struct OpenWatch {
    pub(super) watch: Watch,
    /// Bytes it may still send; below zero after an event that was longer than what was left.
    pub(super) credit: i64,
    pub(super) every: bool,
    /// Requested progress events that the watch has not delivered yet, in order: the id of the peer's probe, or `None`
    /// for one that the server requests by itself.
    pub(super) progress_due: VecDeque<Option<RequestId>>,
    /// It is behind; when it has caught up, the peer gets a progress event.
    pub(super) catching_up: bool,
    /// No event was delivered since the last look for idle watches.
    pub(super) quiet: bool,
    /// The revision of the last commit or progress event that it delivered.
    pub(super) delivered: Revision,
    pub(super) memory: Permit,
    /// An event that the watch delivered without credit for it, and its permit. Boxed: few watches have one.
    pub(super) kept: Option<Box<(WatchEvent, Permit)>>,
    pub(super) state: Arc<WatchWaker>,
}

/// Why a watch's turn is over.
pub(super) enum Rest {
    /// It waits for events, or has no credit.
    Waiting,
    /// There is more.
    Again,
    /// A message in parts must leave first.
    BehindLarge,
    Ended(StorageError),
}

impl OpenWatch {
    /// Lets the watch wait until its message in parts has left. If it was woken meanwhile it is in the line already,
    /// and this is called again at its next turn.
    pub(super) fn wait_behind_large(&self, waiting: &mut Vec<RequestId>) {
        if !self.state.queued.swap(true, Ordering::AcqRel) {
            waiting.push(self.state.id);
        }
    }

    /// Requests a progress event that the peer did not request.
    pub(super) fn request_unasked_progress(&mut self) {
        self.watch.request_progress(0);
        self.progress_due.push_back(None);
    }

    /// A permit for a kept event of so many bytes. One event may go beyond the session's bound: a commit may be as long
    /// as the bound, and its watch would end at each probe.
    fn room_to_keep(&self, bytes: usize) -> Result<Permit, StorageError> {
        let budget = self.memory.budget();
        let mut permit = budget.count();
        let is_within = budget.over().is_none();
        if is_within && permit.grow_beyond(bytes) {
            return Ok(permit);
        }
        permit.try_grow(bytes)?;
        Ok(permit)
    }

    /// Matches a progress event with its request. If the server asked by itself, the token is not shown to the peer.
    fn progress_came(&mut self, token: &mut Option<u64>, answered: &mut Vec<RequestId>) {
        if token.is_none() {
            return;
        }
        match self.progress_due.pop_front() {
            Some(Some(probe)) => answered.push(probe),
            _ => *token = None,
        }
    }

    pub(super) fn take_turn(
        &mut self,
        id: RequestId,
        outbox: &mut Outbox,
        answered: &mut Vec<RequestId>,
    ) -> Rest {
        // Built at each turn, since to keep it would cost 16 bytes for each watch. `will_wake` holds among all of them.
        let waker = Waker::from(self.state.clone());
        let start = outbox.bytes();
        let mut sender = Sender {
            id,
            outbox,
            events: Events::None,
            sent: 0,
        };
        loop {
            if sender.outbox.has_bulk(id) {
                self.credit -= sender.sent;
                return Rest::BehindLarge;
            }
            let estimated = to_credit(sender.events.bytes() as u64);
            if self.credit <= sender.sent.saturating_add(estimated) && self.credit > sender.sent {
                // The estimate may be too high. What was sent is what counts, and may leave credit for more.
                sender.flush();
                continue;
            }
            let has_credit = self.credit > sender.sent.saturating_add(estimated);
            if !has_credit && (self.kept.is_some() || self.progress_due.is_empty()) {
                self.watch.park();
                self.catching_up |= self.every;
                break self.settle(sender, Rest::Waiting);
            }
            if let Some(kept) = self.kept.take() {
                let (event, _) = *kept;
                sender.take(event);
                continue;
            }
            if sender.outbox.bytes() - start >= TURN_BYTES {
                break self.settle(sender, Rest::Again);
            }
            match Pin::new(&mut self.watch).poll_next(&mut Context::from_waker(&waker)) {
                Poll::Pending if self.requests_progress_if_caught_up() => {}
                Poll::Pending => break self.settle(sender, Rest::Waiting),
                Poll::Ready(Some(Ok(mut event))) => {
                    self.note(&mut event, answered);
                    match charged_bytes(&event).filter(|_| !has_credit) {
                        None => sender.take(event),
                        Some(bytes) => match self.room_to_keep(bytes) {
                            Ok(permit) => self.kept = Some(Box::new((event, permit))),
                            Err(error) => break self.settle(sender, Rest::Ended(error)),
                        },
                    }
                }
                Poll::Ready(Some(Err(error))) => break self.settle(sender, Rest::Ended(error)),
                Poll::Ready(None) => {
                    let error = StorageError::Closed {
                        reason: "the watch has ended".to_owned(),
                        outcome: Outcome::NotExecuted,
                    };
                    break self.settle(sender, Rest::Ended(error));
                }
            }
        }
    }

    /// Requests a progress event of a watch that has just caught up; true if it did.
    fn requests_progress_if_caught_up(&mut self) -> bool {
        if !self.catching_up || self.watch.status().state != WatchState::Live {
            return false;
        }
        self.catching_up = false;
        // One that was requested already serves as well, and a watch answers only so many requests.
        let asks = self.progress_due.is_empty();
        if asks {
            self.request_unasked_progress();
        }
        asks
    }

    /// Notes how far the watch has delivered with this event.
    fn note(&mut self, event: &mut WatchEvent, answered: &mut Vec<RequestId>) {
        self.quiet = false;
        match event {
            WatchEvent::Commit(record) => self.delivered = record.revision,
            WatchEvent::Progress { position, token } => {
                self.delivered = position.revision;
                self.progress_came(token, answered);
            }
            _ => {}
        }
    }

    fn settle(&mut self, mut sender: Sender<'_>, rest: Rest) -> Rest {
        sender.flush();
        self.credit -= sender.sent;
        rest
    }
}
