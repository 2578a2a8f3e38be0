//! Pages that were read and not taken yet, bounded together.
//!
//! A `Latest` watch has the read pool read a page, and may not be polled for a long time after that: its session's
//! outbox is full, or its owner is busy. This bounds the pages that all such watches hold together. Over the bound the
//! page that waits longest is dropped, and its watch reads it again when it is polled. The same type bounds the events
//! left over from a pass that had been read to its end when its watch was parked.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What all finished pages that nobody has taken yet may have in keys and values; or one page, if that is larger.
pub(crate) const UNTAKEN_BYTES_MAX: usize = 64 << 20;

/// And what the events left over from passes of parked watches may have: less, since they may be parked for ever.
pub(crate) const RESTS_BYTES_MAX: usize = 16 << 20;

/// See the module.
pub(crate) struct Pages<T> {
    untaken: Mutex<Untaken<T>>,
    bytes_max: usize,
}

struct Untaken<T> {
    /// In the order in which they were kept.
    pages: BTreeMap<u64, (T, usize)>,
    next: u64,
    bytes: usize,
    /// Pages that were dropped to make room.
    dropped: u64,
}

/// A kept page. Dropping the ticket drops the page.
#[derive(Debug)]
pub(crate) struct Ticket<T> {
    pages: Weak<Pages<T>>,
    number: u64,
}

impl<T> Pages<T> {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        let untaken = Untaken {
            pages: BTreeMap::new(),
            next: 0,
            bytes: 0,
            dropped: 0,
        };
        Arc::new(Self {
            untaken: Mutex::new(untaken),
            bytes_max,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Untaken<T>> {
        self.untaken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a page of `bytes` bytes until it is taken; the pages that wait longest are dropped to make room.
    pub(crate) fn keep(self: &Arc<Self>, page: T, bytes: usize) -> Ticket<T> {
        let mut dropped = Vec::new();
        let mut untaken = self.lock();
        while untaken.bytes + bytes > self.bytes_max
            && let Some((_, (page, bytes))) = untaken.pages.pop_first()
        {
            untaken.bytes -= bytes;
            untaken.dropped += 1;
            dropped.push(page);
        }
        let number = untaken.next;
        untaken.next += 1;
        untaken.bytes += bytes;
        untaken.pages.insert(number, (page, bytes));
        drop(untaken);
        Ticket {
            pages: Arc::downgrade(self),
            number,
        }
    }

    /// Pages that were kept until now, and those of them that were dropped to make room.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> (u64, u64) {
        let untaken = self.lock();
        (untaken.next, untaken.dropped)
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

impl<T> Ticket<T> {
    /// The page; `None` if it was dropped to make room.
    pub(crate) fn take(self) -> Option<T> {
        self.remove()
    }

    fn remove(&self) -> Option<T> {
        let pages = self.pages.upgrade()?;
        let mut untaken = pages.lock();
        let (page, bytes) = untaken.pages.remove(&self.number)?;
        untaken.bytes -= bytes;
        Some(page)
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        drop(self.remove());
    }
}

impl<T> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_waits_longest_makes_room() {
        let pages = Pages::new(100);
        let first = pages.keep("first", 60);
        let second = pages.keep("second", 40);
        let third = pages.keep("third", 30);
        assert_eq!(pages.bytes(), 70);
        assert_eq!(first.take(), None);
        assert_eq!(second.take(), Some("second"));
        drop(third);
        assert_eq!(pages.bytes(), 0);
        // One that is larger than the bound is kept alone.
        let large = pages.keep("large", 1_000);
        assert_eq!(large.take(), Some("large"));
        assert_eq!(pages.bytes(), 0);
    }
}
