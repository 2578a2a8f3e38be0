//! The queue that the two ends of a watch share: the events between them, and how far the watch is.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::task::Waker;
use std::time::Instant;

use storage_protocol::{
    Continuity, Epoch, Outcome, Position, Revision, StorageError, WatchEvent, WatchStart,
};

use super::MARKS_MAX;
use super::events::{Events, Waiting, is_plain_mark};
use crate::order::StreamOrder;

/// Progress events, resets and reports of breaks that may wait for the application: they cost no credit. With more the
/// watch ends.
const FREE_EVENTS_MAX: usize = 4 * MARKS_MAX;

/// What feeds a watch at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its own mode.
    Own,
    /// A repair of an `Every`: a stream `Latest`, up to its first progress event.
    Repair,
}

/// Whether a stream is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It was requested, or is to be.
    Opening,
    Open,
    Lost {
        since: Instant,
    },
}

/// Whether more events may arrive.
#[derive(Debug)]
pub(super) enum Life {
    Live,
    /// It is over. The application gets the error once, after the events.
    Ended(Option<StorageError>),
    /// The application dropped the watch: no further stream is to be opened.
    Dropped,
}

/// What the application does not know yet of a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// There was no break, or its meaning was reported.
    None,
    /// The stream broke off, and the meaning of that was not reported yet.
    Untold,
    /// The same, and a stream `Latest` goes on: its first event shows whether there is a gap.
    Undecided,
}

/// See the module.
pub(super) struct Queue {
    /// Filled by the task, emptied by the application. Bounded by the credit (the server may overdraw it by one
    /// message; if it goes far beyond, the connection is closed), and by [`FREE_EVENTS_MAX`].
    pub(super) events: Events,
    /// Where the present stream was requested to begin.
    pub(super) start: WatchStart,
    /// What the present stream has delivered, as far as later events depend on it.
    pub(super) order: StreamOrder,
    /// How many streams in a row ended without an event. Events of a repair do not count: repairs may succeed each time
    /// without the watch getting any further.
    pub(super) failures: u32,
    /// The credit that the server has left, as the client counts it.
    pub(super) balance: i128,
    /// Bytes consumed and not yet given back. Below zero: buffered beyond the window when the stream was opened.
    pub(super) consumed: i128,
    /// The tokens of requested progress events that have not arrived; each with whether it was requested on the present
    /// stream.
    pub(super) asked: VecDeque<(u64, bool)>,
    pub(super) life: Life,
    pub(super) application: Option<Waker>,
    pub(super) stage: Stage,
    pub(super) link: Link,
    /// Where the watch goes on after a break: the last commit (`Every`) or progress event that was received.
    pub(super) received: Position,
    /// The last commit or progress event that the application took.
    pub(super) told: Position,
    /// Whether the application took states after the last progress event.
    pub(super) handed_over: bool,
    pub(super) gap: Gap,
    /// A `Reset` is to be queued before the next event.
    pub(super) reset_due: bool,
}

impl Queue {
    /// The queue of a watch that was not requested yet.
    pub(super) fn new(window: u64) -> Self {
        Self {
            events: Events::default(),
            start: WatchStart::Now,
            order: StreamOrder::new(false, Revision::ZERO, false),
            failures: 0,
            balance: i128::from(window),
            consumed: 0,
            asked: VecDeque::new(),
            life: Life::Live,
            application: None,
            stage: Stage::Own,
            link: Link::Opening,
            received: Position::default(),
            told: Position::default(),
            handed_over: false,
            gap: Gap::None,
            reset_due: false,
        }
    }

    /// Whether no more events are accepted.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.life, Life::Live)
    }

    /// No more events are accepted; after those that wait the application gets this error. Has no effect on a watch
    /// that is over already.
    pub(super) fn end(&mut self, error: StorageError) {
        if !self.is_over() {
            self.life = Life::Ended(Some(error));
        }
    }

    /// Puts an event that costs no credit.
    pub(super) fn add(&mut self, event: WatchEvent, epoch: Epoch) {
        if self.events.free >= FREE_EVENTS_MAX {
            self.end(StorageError::Closed {
                reason: format!(
                    "{FREE_EVENTS_MAX} marks, resets and breaks wait for an application that takes none of them"
                ),
                outcome: Outcome::NotExecuted,
            });
        }
        if !self.is_over() {
            self.events.push(Waiting {
                event,
                bytes: 0,
                epoch,
            });
        }
    }

    pub(super) fn tell(&mut self, continuity: Continuity) {
        self.gap = Gap::None;
        let event = WatchEvent::Continuity(continuity);
        // Of several breaks without an event in between one report is enough: the last of those that mean a gap.
        let is_gap = |event: &WatchEvent| {
            matches!(event, WatchEvent::Continuity(Continuity::Resynced { .. }))
        };
        if is_gap(&event) && self.events.last().is_some_and(is_gap) {
            self.events.pop_last();
        }
        if self.events.last() != Some(&event) {
            let epoch = self.received.epoch;
            self.add(event, epoch);
        }
    }

    /// Reports what is lost, up to `server`: the last known position of the server.
    pub(super) fn tell_lost(&mut self, server: Position) {
        let (from, mut to) = (self.received, server);
        if to.epoch == from.epoch {
            to.revision = to.revision.max(from.revision);
        }
        self.tell(Continuity::Lost { from, to });
    }

    /// Its stream has delivered something.
    pub(super) fn comes_further(&mut self) {
        if self.stage == Stage::Own {
            self.failures = 0;
        }
    }

    /// Called before an event of a stream: reports what the break before it meant, if that was still open.
    pub(super) fn decide(&mut self) {
        if self.gap == Gap::Undecided {
            self.tell(Continuity::Continuous);
        }
        if std::mem::take(&mut self.reset_due) {
            let epoch = self.received.epoch;
            self.add(WatchEvent::Reset, epoch);
        }
    }

    /// The present stream is gone, and with it its requested progress events: they are requested on the next one.
    pub(super) fn forget_probes(&mut self) {
        for asked in &mut self.asked {
            asked.1 = false;
        }
    }

    /// The credit to grant, if it is at least `least`.
    pub(super) fn take_grant(&mut self, least: u64) -> u64 {
        let granted = u64::try_from(self.consumed).unwrap_or(0);
        if granted == 0 || granted < least {
            return 0;
        }
        self.consumed = 0;
        self.balance += i128::from(granted);
        granted
    }

    /// Drops a progress event without a token, if only a report of a break without a gap follows it: the one that
    /// arrived now replaces it.
    pub(super) fn drop_marks_before_break(&mut self) {
        let continuous = WatchEvent::Continuity(Continuity::Continuous);
        if self.events.last() == Some(&continuous)
            && self.events.before_last(1).is_some_and(is_plain_mark)
        {
            self.events.pop_last();
            self.events.pop_last();
            if self.events.last() != Some(&continuous) {
                let epoch = self.received.epoch;
                self.add(continuous, epoch);
            }
        }
    }

    /// Drops the states after the last progress event that the application did not take: they are sent again.
    pub(super) fn drop_open_pass(&mut self) {
        while let Some(WatchEvent::State { .. } | WatchEvent::Reset) = self.events.last() {
            let last = self.events.pop_last();
            self.reset_due |= last.is_some_and(|last| last.event == WatchEvent::Reset);
        }
    }
}

/// Unlocks the queue, and wakes the application.
pub(super) fn wake(mut queue: MutexGuard<'_, Queue>) {
    let application = queue.application.take();
    drop(queue);
    if let Some(application) = application {
        application.wake();
    }
}
