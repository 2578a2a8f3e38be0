//! What a watch's two ends share: the events between them, and where the watch stands.

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

/// Marks, resets and words about breaks that wait for the application: they cost no credit. With more the watch ends.
const FREE_EVENTS_MAX: usize = 4 * MARKS_MAX;

/// What feeds a watch at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its own mode.
    Own,
    /// A repair of an `Every`: `Latest` up to the first mark.
    Repair,
}

/// Whether a stream is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It was asked for.
    Opening,
    Open,
    Lost {
        since: Instant,
    },
}

/// Whether anything more comes.
#[derive(Debug)]
pub(super) enum Life {
    Live,
    /// It is over, and the application is told why, once, behind the events.
    Ended(Option<StorageError>),
    /// The application let it go: no further stream is to be opened.
    Dropped,
}

/// What the application does not know yet of a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gap {
    /// There was none, or it was told what it meant.
    None,
    /// The stream broke off, and what that means was not told yet.
    Untold,
    /// The same, and a stream `Latest` goes on: its first event tells whether that is without a gap.
    Undecided,
}

/// See the module.
pub(super) struct Queue {
    /// Filled by the task, emptied by the application. Bounded by the credit (the server may overdraw it by one message,
    /// and is thrown out if it goes far beyond), and by [`FREE_EVENTS_MAX`].
    pub(super) events: Events,
    /// What the present stream asked for, and what it told.
    pub(super) start: WatchStart,
    pub(super) order: StreamOrder,
    /// How often a stream ended without having told anything, one after the other. What a repair tells does not count: it
    /// may go well each time, and the watch come no further.
    pub(super) failures: u32,
    /// What the server may still send, as we count it.
    pub(super) balance: i128,
    /// Consumed and not yet given back. Below zero: what was buffered beyond the window when the stream was opened.
    pub(super) consumed: i128,
    /// The tokens of the marks that were asked for and did not come, each with whether the present stream was asked.
    pub(super) asked: VecDeque<(u64, bool)>,
    pub(super) life: Life,
    pub(super) application: Option<Waker>,
    pub(super) stage: Stage,
    pub(super) link: Link,
    /// Where it goes on: the last commit (`Every`) or mark that was received.
    pub(super) received: Position,
    /// The last commit or mark that the application took.
    pub(super) told: Position,
    /// Whether states were handed over that no mark has closed yet.
    pub(super) handed_over: bool,
    pub(super) gap: Gap,
    /// The next event is to stand behind a `Reset`.
    pub(super) reset_due: bool,
}

impl Queue {
    /// Of a watch that was not asked for yet.
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

    /// Whether nothing more comes in.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.life, Life::Live)
    }

    /// Nothing more comes in; behind the events the application is told this. Of no effect where it is over already.
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
        // Of several breaks without an event between them, one word is enough: the last, of those that mean a gap.
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

    /// What happens from here on is not told. `server`: where the server was, as far as is known.
    pub(super) fn tell_lost(&mut self, server: Position) {
        let (from, mut to) = (self.received, server);
        if to.epoch == from.epoch {
            to.revision = to.revision.max(from.revision);
        }
        self.tell(Continuity::Lost { from, to });
    }

    /// Its stream told something.
    pub(super) fn comes_further(&mut self) {
        if self.stage == Stage::Own {
            self.failures = 0;
        }
    }

    /// Before the first event of a stream: what was still open is said.
    pub(super) fn decide(&mut self) {
        if self.gap == Gap::Undecided {
            self.tell(Continuity::Continuous);
        }
        if std::mem::take(&mut self.reset_due) {
            let epoch = self.received.epoch;
            self.add(WatchEvent::Reset, epoch);
        }
    }

    /// The present stream is gone, and with it the marks it was asked for: the next one is asked.
    pub(super) fn forget_probes(&mut self) {
        for asked in &mut self.asked {
            asked.1 = false;
        }
    }

    /// What is to be granted, if it is at least so much.
    pub(super) fn take_grant(&mut self, least: u64) -> u64 {
        let granted = u64::try_from(self.consumed).unwrap_or(0);
        if granted == 0 || granted < least {
            return 0;
        }
        self.consumed = 0;
        self.balance += i128::from(granted);
        granted
    }

    /// A plain mark before a break without an event behind either is outdone by the mark that comes now.
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

    /// Drops the states behind the last mark that the application did not take: they come again.
    pub(super) fn drop_open_pass(&mut self) {
        while let Some(WatchEvent::State { .. } | WatchEvent::Reset) = self.events.last() {
            let last = self.events.pop_last();
            self.reset_due |= last.is_some_and(|last| last.event == WatchEvent::Reset);
        }
    }
}

/// Lets go of the queue, and wakes the application.
pub(super) fn wake(mut queue: MutexGuard<'_, Queue>) {
    let application = queue.application.take();
    drop(queue);
    if let Some(application) = application {
        application.wake();
    }
}
