//! Records on their way to the thread that writes them.
//!
//! Whoever reads or writes data never waits: a record that does not fit behind those that wait is dropped and counted. A
//! denial may take twice the room of the others. An administrative act waits for a place, so it is never dropped here.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::Level;

/// What may wait, in bytes of lines, but for administrative acts that have a place; of reads, writes, watches and sessions
/// half of it, and of acts without a place, for which nobody waits, twice of it.
pub(super) const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Administrative acts that may wait.
pub(super) const ADMIN_LEN_MAX: usize = 64;

/// A record as it is written.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) level: Level,
    pub(super) line: Vec<u8>,
    /// Of an administrative act: who waits until it is on the disk, and its place.
    pub(super) waited_for: Option<(oneshot::Sender<()>, OwnedSemaphorePermit)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Short sections only.
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Item>,
    /// Of the items, but for those that have a place.
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one behind the others. False: there is no room for it, or nobody writes any more.
    pub(super) fn push(&self, item: Item) -> bool {
        let mut waiting = self.lock();
        let max = match item.level {
            Level::Ordinary => QUEUE_BYTES_MAX / 2,
            Level::Denial => QUEUE_BYTES_MAX,
            Level::Admin => QUEUE_BYTES_MAX * 2,
        };
        // Those with a place are bounded by the places.
        let bytes = match item.waited_for {
            Some(_) => 0,
            None => item.line.len(),
        };
        if waiting.is_closed || (bytes > 0 && waiting.bytes.saturating_add(bytes) > max) {
            return false;
        }
        waiting.bytes += bytes;
        let was_empty = waiting.items.is_empty();
        waiting.items.push_back(item);
        drop(waiting);
        if was_empty {
            self.changed.notify_one();
        }
        true
    }

    /// All that waits, as soon as there is any; nothing at `until`, and at the end. Whether it is the end.
    pub(super) fn next(&self, until: Instant) -> (VecDeque<Item>, bool) {
        let mut waiting = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !waiting.items.is_empty() || waiting.is_closed || left.is_zero() {
                waiting.bytes = 0;
                return (std::mem::take(&mut waiting.items), waiting.is_closed);
            }
            waiting = self
                .changed
                .wait_timeout(waiting, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What waits is still written; nothing more is taken.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }
}
