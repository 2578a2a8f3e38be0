//! The one reader of the log, for all watches that fell behind the ring.
//!
//! To find a position in the log is to read one of its files from the start. So one thread reads for all watches, and
//! keeps a few cursors open to read on from. The pages that it reads go into a small cache: a request for a position
//! inside a cached page is answered at once, and a new page answers all requests that wait for positions inside it. The
//! earliest position is read first, so that watches that started late join those ahead of them and the log is read once
//! for all; but every fourth page is read for the oldest request, so that none waits for long.
//!
//! What it holds is bounded: the cache in bytes ([`CACHE_BYTES`], or one page if that is larger), the requests by the
//! bound on watches. A waiting watch is only notified that its page is there, and takes it from the cache when it is
//! polled, so a watch that is not polled holds no page; if the page was evicted by then, it requests it again. Nothing
//! is read for a watch that was dropped.
//!
//! After [`REST`] without a request, the cache is cleared and the cursors are closed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use storage_protocol::{Outcome, Result, Revision, StorageError};
use tokio::sync::oneshot;

use super::{LogCursor, LogPage};
use crate::engine::rocks::{EngineShared, closed};

/// What one page reads of the log. Large, since each watch that catches up searches each page once.
const PAGE_BYTES: usize = 2 << 20;

/// What the cached pages may take in memory, their indexes and wire forms included.
const CACHE_BYTES: usize = 32 << 20;

/// Cursors that are kept open.
const CURSORS_MAX: usize = 4;

/// An open cursor is read on to a later position, rather than a new one opened there, if at most this many sequence
/// numbers lie between.
const SKIP_MAX: u64 = 64 * 1024;

/// One page in this many is read for the oldest request.
const OLDEST_EVERY: u64 = 4;

/// Idle for so long, the reader drops its cache and its open log iterators, which keep purged files on the disk.
const REST: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    state: Mutex<CatchUpState>,
    work: Condvar,
    pages_read: AtomicU64,
    places_found: AtomicU64,
}

#[derive(Debug, Default)]
struct CatchUpState {
    /// By where they start, with when they were last used.
    cache: BTreeMap<Revision, (Arc<LogPage>, u64)>,
    /// LRU index: last use to start. Not by position: readers far behind still need the early pages.
    used: BTreeMap<u64, Revision>,
    /// Counts uses.
    now: u64,
    cache_bytes: usize,
    /// The requests that wait for the page after a position.
    waiting: BTreeMap<Revision, Vec<oneshot::Sender<Result<()>>>>,
    /// The positions in the order of their first requests. One without requests by now is passed over.
    line: VecDeque<Revision>,
    /// Counts the positions that were given to the reader.
    turn: u64,
    stopped: bool,
}

/// What the reader holds, and what it has read so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CatchUpFigures {
    pub(crate) cache_bytes: usize,
    pub(crate) waiting: usize,
    pub(crate) pages_read: u64,
    pub(crate) places_found: u64,
}

impl CatchUp {
    fn lock(&self) -> MutexGuard<'_, CatchUpState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page that holds the commits after `after`, of all keyspaces. Waits for the reader, and does not block.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] where the log does not reach back to `after`; `Closed` once the store is closed.
    pub(crate) async fn page_after(&self, after: Revision) -> Result<Arc<LogPage>> {
        loop {
            let answer = {
                let mut state = self.lock();
                if let Some(page) = state.cached_after(after) {
                    return Ok(page);
                }
                if state.stopped {
                    return Err(closed());
                }
                let (sender, answer) = oneshot::channel();
                state.wait_for(after, sender);
                answer
            };
            self.work.notify_one();
            answer.await.map_err(|_| closed())??;
        }
    }

    /// The page that holds the commits after `after`, if it is in the cache.
    pub(crate) fn cached_after(&self, after: Revision) -> Option<Arc<LogPage>> {
        self.lock().cached_after(after)
    }

    pub(crate) fn figures(&self) -> CatchUpFigures {
        let state = self.lock();
        CatchUpFigures {
            cache_bytes: state.cache_bytes,
            waiting: state.waiting.values().map(Vec::len).sum(),
            pages_read: self.pages_read.load(Ordering::Relaxed),
            places_found: self.places_found.load(Ordering::Relaxed),
        }
    }

    /// Ends the reader; requests that wait are answered with `Closed`.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        *state = CatchUpState {
            stopped: true,
            ..CatchUpState::default()
        };
        self.work.notify_all();
    }

    /// The next position to read from, and where the next cached page begins; `None` when stopped. Calls `rest` when
    /// there was nothing to do for a while.
    fn next_offset(&self, mut rest: impl FnMut()) -> Option<(Revision, Option<Revision>)> {
        let mut state = self.lock();
        let mut is_resting = false;
        loop {
            if state.stopped {
                return None;
            }
            if let Some(offset) = state.next_offset() {
                return Some(offset);
            }
            if is_resting {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                is_resting = false;
                continue;
            }
            let (found, waited) = self
                .work
                .wait_timeout(state, REST)
                .unwrap_or_else(PoisonError::into_inner);
            state = found;
            if waited.timed_out() && state.waiting.is_empty() {
                state.forget();
                rest();
                is_resting = true;
            }
        }
    }
}

impl CatchUpState {
    fn cached_after(&mut self, after: Revision) -> Option<Arc<LogPage>> {
        let (start, (page, used)) = self.cache.range_mut(..=after).next_back()?;
        if after >= page.reached() {
            return None;
        }
        self.now += 1;
        self.used.remove(used);
        self.used.insert(self.now, *start);
        *used = self.now;
        Some(page.clone())
    }

    fn wait_for(&mut self, after: Revision, sender: oneshot::Sender<Result<()>>) {
        let line = &mut self.line;
        let offset = self.waiting.entry(after).or_insert_with(|| {
            line.push_back(after);
            Vec::new()
        });
        offset.push(sender);
    }

    fn next_offset(&mut self) -> Option<(Revision, Option<Revision>)> {
        while let Some((earliest, _)) = self.waiting.first_key_value() {
            let after = match self.turn % OLDEST_EVERY {
                0 => self.line.pop_front().unwrap_or(*earliest),
                _ => *earliest,
            };
            let Some(waiters) = self.waiting.get_mut(&after) else {
                continue;
            };
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                self.waiting.remove(&after);
                continue;
            }
            if self.cached_after(after).is_some() {
                self.answer(after, &Ok(()));
                continue;
            }
            self.turn += 1;
            let next = self.cache.range(after..).next();
            return Some((after, next.map(|(start, _)| *start)));
        }
        self.line.clear();
        None
    }

    /// Puts a page into the cache, and answers all requests for positions in it.
    fn insert(&mut self, page: LogPage) {
        if self.stopped {
            return;
        }
        let (start, end) = (page.starts_after(), page.reached());
        self.cache_bytes += page.bytes();
        // Evicted before the new page is in the cache, so that it is not the new one.
        while self.cache_bytes > CACHE_BYTES
            && let Some((_, oldest)) = self.used.pop_first()
        {
            if let Some((dropped, _)) = self.cache.remove(&oldest) {
                self.cache_bytes -= dropped.bytes();
            }
        }
        self.now += 1;
        self.used.insert(self.now, start);
        if let Some((replaced, used)) = self.cache.insert(start, (Arc::new(page), self.now)) {
            self.cache_bytes -= replaced.bytes();
            self.used.remove(&used);
        }
        let offsets: Vec<_> = self.waiting.range(start..end).map(|(at, _)| *at).collect();
        for offset in offsets {
            self.answer(offset, &Ok(()));
        }
    }

    fn failed(&mut self, after: Revision, error: &StorageError) {
        if let StorageError::Compacted { oldest } = *error {
            // The same answer for all requests before `oldest`: the log is not searched for each of them.
            let late: Vec<_> = self.waiting.range(..oldest).map(|(at, _)| *at).collect();
            for offset in late {
                self.answer(offset, &Err(StorageError::Compacted { oldest }));
            }
        }
        self.answer(after, &Err(error.clone()));
    }

    fn answer(&mut self, offset: Revision, answer: &Result<()>) {
        for waiter in self.waiting.remove(&offset).unwrap_or_default() {
            // The watch may be gone.
            let _ = waiter.send(answer.clone());
        }
    }

    fn forget(&mut self) {
        self.cache.clear();
        self.used.clear();
        self.cache_bytes = 0;
    }
}

/// The reader: runs until it is stopped.
pub(crate) fn run(shared: &EngineShared) {
    // Also when it panics: waiting requests must be answered.
    let _stop = StopOnDrop(&shared.catch_up);
    // Cursors of a database that `shared` keeps open. Longest unused first.
    let mut cursors = VecDeque::new();
    while let Some((after, until)) = shared.catch_up.next_offset(|| cursors.clear()) {
        let page = read(shared, &mut cursors, after, until).or_else(|error| {
            // A file may be purged while it is opened. Then the position is too old, and the log is not damaged.
            cursors.clear();
            if matches!(error, StorageError::Compacted { .. }) {
                return Err(error);
            }
            match super::oldest(&shared.store) {
                Ok(oldest) if after < oldest => Err(StorageError::Compacted { oldest }),
                _ => read(shared, &mut cursors, after, until),
            }
        });
        let mut state = shared.catch_up.lock();
        match page {
            Ok(page) => state.insert(page),
            Err(error) => state.failed(after, &error),
        }
    }
}

struct StopOnDrop<'a>(&'a CatchUp);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn read(
    shared: &EngineShared,
    cursors: &mut VecDeque<LogCursor>,
    after: Revision,
    until: Option<Revision>,
) -> Result<LogPage> {
    let store = &shared.store;
    let counters = &shared.catch_up;
    counters.pages_read.fetch_add(1, Ordering::Relaxed);
    if after >= store.revision() {
        // No watch can be behind at a revision that is not written yet.
        return Err(StorageError::Internal {
            message: "the log was asked for what is not written yet".to_owned(),
            outcome: Outcome::NotExecuted,
        });
    }
    if let Some(mut cursor) = take_nearest(cursors, after)
        && let Some(page) = cursor.read(store, after, until, PAGE_BYTES)?
    {
        cursors.push_back(cursor);
        return Ok(page);
    }
    counters.places_found.fetch_add(1, Ordering::Relaxed);
    let mut cursor = LogCursor::find(store, after)?;
    let page = cursor.read(store, after, until, PAGE_BYTES)?;
    cursors.push_back(cursor);
    if cursors.len() > CURSORS_MAX {
        cursors.pop_front();
    }
    page.ok_or(StorageError::Compacted {
        oldest: store.revision(),
    })
}

/// Takes out the open cursor that is nearest before `after`, if that is near enough to read on to it.
fn take_nearest(cursors: &mut VecDeque<LogCursor>, after: Revision) -> Option<LogCursor> {
    let offsets = cursors.iter().enumerate();
    let before = offsets.filter(|(_, cursor)| cursor.at() <= after);
    let (nearest, cursor) = before.max_by_key(|(_, cursor)| cursor.at())?;
    if after.0 - cursor.at().0 > SKIP_MAX {
        return None;
    }
    cursors.remove(nearest)
}

#[cfg(test)]
mod tests;
