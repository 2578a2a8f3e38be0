//! The task's side of a watch: puts events into the queue, and never waits. What breaks the protocol is an error.

use std::sync::{Arc, MutexGuard};

use storage_protocol::{
    CommitRecord, Continuity, Epoch, Key, KeyState, Position, ResyncReason, Revision, WatchEvent,
};

use super::WatchShared;
use super::events::{Waiting, is_plain_mark};
use super::queue::{Gap, Link, Queue, Stage, wake};
use crate::order::Broken;
use crate::sync::lock;

impl WatchShared {
    /// Takes the commits of one message of so many bytes.
    ///
    /// # Errors
    /// They break the order of the stream, or the server has sent far more than it was granted.
    pub(crate) fn push_commits(
        &self,
        commits: Vec<Arc<CommitRecord>>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue
            .order
            .commits(&self.range, commits.iter().map(|commit| &**commit))?;
        if let Some(last) = commits.last() {
            queue.received = Position {
                epoch,
                revision: last.revision,
            };
        }
        let events = commits.into_iter().map(WatchEvent::Commit);
        self.push(queue, events, bytes, epoch)
    }

    /// Takes the states of one message of so many bytes.
    ///
    /// # Errors
    /// As [`push_commits`](Self::push_commits).
    pub(crate) fn push_states(
        &self,
        states: Vec<(Key, KeyState)>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        queue.order.states(&self.range, &states)?;
        let event = |(key, state)| WatchEvent::State { key, state };
        self.push(queue, states.into_iter().map(event), bytes, epoch)
    }

    fn push(
        &self,
        mut queue: MutexGuard<'_, Queue>,
        events: impl ExactSizeIterator<Item = WatchEvent>,
        bytes: u64,
        epoch: Epoch,
    ) -> Result<(), Broken> {
        if queue.is_over() {
            return Ok(());
        }
        if queue.balance < -i128::from(self.window) {
            let max = self.window;
            return Err(format!(
                "it sent events far beyond the credit of a watch (its window is {max} bytes)"
            ));
        }
        queue.comes_further();
        queue.decide();
        queue.balance -= i128::from(bytes);
        let last = events.len().saturating_sub(1);
        for (place, event) in events.enumerate() {
            let bytes = if place == last { bytes } else { 0 };
            queue.events.push(Waiting {
                event,
                bytes,
                epoch,
            });
        }
        wake(queue);
        Ok(())
    }

    /// Takes a progress event. True: it ends a repair, and the watch is to go on in its own mode.
    ///
    /// # Errors
    /// Its revision goes back; or it has a token that was not requested.
    pub(crate) fn push_mark(&self, position: Position, token: Option<u64>) -> Result<bool, Broken> {
        let mut queue = lock(&self.queue);
        queue.order.mark(position.revision)?;
        if queue.is_over() {
            return Ok(false);
        }
        queue.comes_further();
        if let Some(token) = token {
            let place = queue.asked.iter().position(|asked| *asked == (token, true));
            let place = place.ok_or("it sent a mark with a token that nobody asked for")?;
            queue.asked.remove(place);
        }
        queue.decide();
        queue.received = position;
        let event = WatchEvent::Progress { position, token };
        // Of several in a row without other events in between, the last suffices; also with breaks in between.
        if token.is_none() {
            queue.drop_marks_before_break();
        }
        if token.is_none() && queue.events.last().is_some_and(is_plain_mark) {
            queue.events.pop_last();
        }
        queue.add(event, position.epoch);
        let repaired = queue.stage == Stage::Repair;
        if repaired {
            queue.stage = Stage::Own;
            queue.link = Link::Opening;
        }
        wake(queue);
        Ok(repaired)
    }

    /// Takes a reset.
    ///
    /// # Errors
    /// The watch is `Every`, which has none.
    pub(crate) fn push_reset(&self, epoch: Epoch) -> Result<(), Broken> {
        let mut queue = lock(&self.queue);
        // Ordering: before the check for the end. The server may not know of the end yet, and what it sends next is
        // checked by this order.
        queue.order.reset()?;
        if queue.is_over() {
            return Ok(());
        }
        queue.reset_due = false;
        if queue.gap == Gap::Undecided {
            let why = ResyncReason::Compacted {
                oldest: Revision::ZERO,
            };
            queue.tell(Continuity::Resynced { why });
        }
        // A progress event directly after a reset says that there was nothing, and so does this reset.
        let is_reset = |event: Option<&WatchEvent>| event == Some(&WatchEvent::Reset);
        if queue.events.last().is_some_and(is_plain_mark) && is_reset(queue.events.before_last(1)) {
            queue.events.pop_last();
        }
        if !is_reset(queue.events.last()) {
            queue.add(WatchEvent::Reset, epoch);
        }
        wake(queue);
        Ok(())
    }
}
