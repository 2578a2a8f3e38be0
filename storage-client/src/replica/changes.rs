//! The stream of changes, to any number of consumers: one batch for each progress event that changed something.
//!
//! Each consumer has a queue of its own, bounded in bytes and events. When it is full, everything in it is replaced by
//! one [`ReplicaEvent::Missed`]: memory stays bounded, and the consumer knows that it missed something.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use storage_protocol::{Continuity, Entry, Key, Position, StorageError};

use super::error::ReplicaError;
use crate::sync::lock;

/// Events that may wait for one consumer, whatever their bytes.
const EVENTS_MAX: usize = 4_096;

/// The new state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The key.
    pub key: Key,
    /// Its entry; `None`: it was removed.
    pub entry: Option<Entry>,
}

impl KeyChange {
    fn bytes(&self) -> usize {
        let value = self.entry.as_ref().map_or(0, |entry| entry.value.len());
        size_of::<Self>() + self.key.len() + value
    }
}

/// All that differs between the states at two progress events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeBatch {
    /// With these changes, the state is the one at this position.
    pub position: Position,
    /// In key order, each key once; never empty.
    pub changes: Vec<KeyChange>,
}

/// An event of [`Changes`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaEvent {
    /// The replica shows a new state, at a later progress event.
    Changed(Arc<ChangeBatch>),
    /// A break is over, and this is what it meant. `Continuous`: the batches are as if there had been none. `Resynced`:
    /// the history changed, or is not known any more; the batches still add up to the state.
    Continuity(Continuity),
    /// This consumer was too slow, and what waited for it was dropped. What to do: take the state anew with
    /// [`Replica::scan_and_changes`](super::Replica::scan_and_changes), and go on with its stream. Or go on with this
    /// one if gaps do not matter.
    Missed {
        /// The last batch that was handed over, or the state that the stream began with; `None`: there was none.
        after: Option<Position>,
        /// The batches up to and including this position were dropped.
        to: Option<Position>,
    },
}

/// A stream of [`ReplicaEvent`]s; its last item is the error that the replica stopped with (`Closed` after a `close`).
///
/// Cancel-safe: no event is lost when a `next()` future is dropped. It does not keep the replica alive.
#[derive(Debug)]
pub struct Changes {
    consumer: Arc<Consumer>,
}

impl Changes {
    pub(super) fn new(consumer: Arc<Consumer>) -> Self {
        Self { consumer }
    }

    /// The position of the state that the stream began with; every batch after it is delivered. `None`: there was no
    /// state yet.
    #[must_use]
    pub fn start(&self) -> Option<Position> {
        self.consumer.start
    }

    /// The next event; `None` after the error. Cancel-safe.
    ///
    /// # Errors
    /// `Stopped`: the replica has stopped, and why.
    pub async fn next(&mut self) -> Result<Option<ReplicaEvent>, ReplicaError> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx))
            .await
            .transpose()
    }
}

impl Stream for Changes {
    type Item = Result<ReplicaEvent, ReplicaError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = lock(&self.consumer.queue);
        if let Some((event, bytes)) = queue.events.pop_front() {
            queue.bytes -= bytes;
            match &event {
                ReplicaEvent::Changed(batch) => queue.told = Some(batch.position),
                ReplicaEvent::Missed { to, .. } => queue.told = *to,
                ReplicaEvent::Continuity(_) => {}
            }
            return Poll::Ready(Some(Ok(event)));
        }
        if queue.ended {
            let end = queue.end.take();
            return Poll::Ready(end.map(|why| Err(ReplicaError::Stopped(why))));
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// The replica's end of one consumer's queue.
#[derive(Debug)]
pub(super) struct Consumer {
    start: Option<Position>,
    bytes_max: usize,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    events: VecDeque<(ReplicaEvent, usize)>,
    bytes: usize,
    /// The last position that was handed over, or the start.
    told: Option<Position>,
    /// The last position that was put in.
    newest: Option<Position>,
    ended: bool,
    end: Option<StorageError>,
    waker: Option<Waker>,
}

impl Consumer {
    pub(super) fn new(start: Option<Position>, bytes_max: usize) -> Self {
        let queue = Queue {
            events: VecDeque::new(),
            bytes: 0,
            told: start,
            newest: start,
            ended: false,
            end: None,
            waker: None,
        };
        Self {
            start,
            bytes_max,
            queue: Mutex::new(queue),
        }
    }

    /// Puts an event in, or `Missed` in place of all that waits. One event always fits, whatever its size.
    pub(super) fn push(&self, event: ReplicaEvent) {
        let mut queue = lock(&self.queue);
        let bytes = match &event {
            ReplicaEvent::Changed(batch) => batch.changes.iter().map(KeyChange::bytes).sum(),
            ReplicaEvent::Continuity(_) | ReplicaEvent::Missed { .. } => 0,
        };
        if let ReplicaEvent::Changed(batch) = &event {
            queue.newest = Some(batch.position);
        }
        let full = queue.bytes + bytes > self.bytes_max || queue.events.len() >= EVENTS_MAX;
        if full && !queue.events.is_empty() {
            let missed = ReplicaEvent::Missed {
                after: queue.told,
                to: queue.newest,
            };
            queue.events.clear();
            queue.bytes = 0;
            queue.events.push_back((missed, 0));
        } else {
            queue.events.push_back((event, bytes));
            queue.bytes += bytes;
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// After the events that wait the consumer gets this error.
    pub(super) fn end(&self, why: &StorageError) {
        let mut queue = lock(&self.queue);
        if !queue.ended {
            queue.ended = true;
            queue.end = Some(why.clone());
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use storage_protocol::{Epoch, Outcome, Revision};

    use super::*;

    fn at(revision: u64) -> Option<Position> {
        Some(Position {
            epoch: Epoch(1),
            revision: Revision(revision),
        })
    }

    fn batch(revision: u64) -> ReplicaEvent {
        let change = KeyChange {
            key: vec![0; 100].into(),
            entry: None,
        };
        ReplicaEvent::Changed(Arc::new(ChangeBatch {
            position: at(revision).unwrap(),
            changes: vec![change],
        }))
    }

    fn next(changes: &mut Changes) -> Option<Result<Option<ReplicaEvent>, ReplicaError>> {
        changes.next().now_or_never()
    }

    #[test]
    fn a_slow_consumer_is_told_what_it_missed_and_goes_on() {
        let consumer = Arc::new(Consumer::new(at(1), 700));
        let mut changes = Changes::new(consumer.clone());
        assert_eq!(changes.start(), at(1));
        consumer.push(batch(2));
        assert_eq!(next(&mut changes).unwrap().unwrap(), Some(batch(2)));
        for revision in 3..=20 {
            consumer.push(batch(revision));
            assert!(lock(&consumer.queue).bytes <= 700);
        }
        let Some(ReplicaEvent::Missed { after, to }) = next(&mut changes).unwrap().unwrap() else {
            panic!("not told");
        };
        assert_eq!(after, at(2));
        // What follows begins right behind what was missed.
        let mut expected = to.unwrap().revision.0 + 1;
        while let Some(event) = next(&mut changes) {
            assert_eq!(event.unwrap(), Some(batch(expected)));
            expected += 1;
        }
        assert_eq!(expected, 21);
        consumer.end(&StorageError::Closed {
            reason: "over".into(),
            outcome: Outcome::NotExecuted,
        });
        assert!(matches!(
            next(&mut changes),
            Some(Err(ReplicaError::Stopped(StorageError::Closed { .. })))
        ));
        assert!(matches!(next(&mut changes), Some(Ok(None))));
    }

    #[test]
    fn one_batch_fits_whatever_its_size() {
        let consumer = Arc::new(Consumer::new(None, 1));
        let mut changes = Changes::new(consumer.clone());
        consumer.push(batch(1));
        assert_eq!(next(&mut changes).unwrap().unwrap(), Some(batch(1)));
    }
}
