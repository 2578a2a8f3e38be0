//! The two kinds of watch over the RocksDB engine.
//!
//! [`EveryWatch`] drains its place in the feed, and asks the reader of the log ([`catch_up`](super::catch_up)) where the
//! feed's ring does not reach back.
//! [`LatestWatch`] goes in passes: a snapshot at revision R, the index rows after the last mark, each with its present
//! state, then a mark at R. Nothing is buffered per change, so a reader may be as slow as it likes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use storage_protocol::{
    CommitRecord, Limit, Result, Revision, ScanItem, StorageError, WatchEvent, WatchSource,
    WatchState, WatchStatus, planted,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::lease::Leased;
use super::log::LogPage;
use super::reader::ChangesCursor;
use super::store::KeyspaceState;
use super::{PAGE_BYTES, Shared};
use crate::feed::page::Found;
use crate::feed::{Next, QUEUE_BYTES_MAX, Subscription};

/// Probes that were asked for and not answered yet. One more ends the watch: a token that is never answered would keep
/// its asker waiting.
const TOKENS_MAX: usize = 1024;

/// Pages in memory that a watch which catches up searches at a time, before it looks at what it was asked for.
const PAGES_PER_TURN: usize = 16;

/// The tokens of the marks that were asked for, oldest first.
#[derive(Debug, Default)]
struct Tokens {
    /// Each with the store's revision when it was asked for: its mark is no older.
    asked: VecDeque<(u64, Revision)>,
    overflowed: bool,
}

impl Tokens {
    fn push(&mut self, token: u64, at: Revision) {
        if self.asked.len() < TOKENS_MAX {
            self.asked.push_back((token, at));
        } else {
            self.overflowed = true;
        }
    }

    fn check(&self) -> Result<()> {
        let max = TOKENS_MAX as u64;
        if self.overflowed {
            return Err(StorageError::Overloaded {
                limit: Limit::RequestsInFlight,
                max,
            });
        }
        Ok(())
    }
}

/// A question to the reader of the log: what comes after the revision?
type Reading = (Revision, BoxFuture<'static, Result<Arc<LogPage>>>);

pub(super) struct EveryWatch {
    shared: Arc<Shared>,
    keyspace: Arc<KeyspaceState>,
    subscription: Subscription,
    queue: VecDeque<Arc<CommitRecord>>,
    /// A page of the log that was asked for.
    reading: Option<Reading>,
    tokens: Tokens,
    /// Everything up to here was handed over.
    told: Revision,
    _place: OwnedSemaphorePermit,
}

impl EveryWatch {
    pub(super) fn new(
        shared: Arc<Shared>,
        keyspace: Arc<KeyspaceState>,
        subscription: Subscription,
        begun: Revision,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            keyspace,
            subscription,
            told: begun,
            queue: VecDeque::new(),
            reading: None,
            tokens: Tokens::default(),
            _place: place,
        }
    }

    /// Takes what the log gave, and what else is in memory of it: this watch's commits into the queue, as many as it may
    /// hold, its place in the feed to where the log was searched.
    fn take_page(&mut self, after: Revision, mut page: Arc<LogPage>) {
        let mut found = Found::after(after, QUEUE_BYTES_MAX);
        for _ in 0..PAGES_PER_TURN {
            match self.keyspace.id() {
                Some(id) => page.search(&id, self.subscription.range(), &mut found),
                // It has no commits yet.
                None => found.reached = page.reached(),
            }
            if found.is_full() {
                break;
            }
            match self.shared.catch_up.cached_after(found.reached) {
                Some(next) => page = next,
                None => break,
            }
        }
        self.queue.extend(found.commits);
        self.subscription.caught_up(found.reached);
    }
}

impl WatchSource for EveryWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        if planted("mark-overtakes")
            && let Some((token, at)) = self.tokens.asked.pop_front()
        {
            let (position, token) = (self.shared.store.at(at), Some(token));
            return Poll::Ready(Some(Ok(WatchEvent::Progress { position, token })));
        }
        if let Err(error) = self.tokens.check() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(commit) = self.queue.pop_front() {
                self.told = commit.revision;
                return Poll::Ready(Some(Ok(WatchEvent::Commit(commit))));
            }
            if let Some((after, reading)) = &mut self.reading {
                let (after, page) = (*after, ready!(reading.as_mut().poll(cx)));
                self.reading = None;
                match page {
                    Ok(page) => self.take_page(after, page),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
                continue;
            }
            match self.subscription.next(cx.waker()) {
                Next::Commits(commits) if commits.is_empty() => return Poll::Pending,
                Next::Commits(commits) => self.queue.extend(commits),
                Next::ReadLog(after) => {
                    let shared = self.shared.clone();
                    let page = async move { shared.catch_up.page_after(after).await };
                    self.reading = Some((after, Box::pin(page)));
                }
                Next::Idle(revision) => {
                    let Some(&(token, at)) = self.tokens.asked.front() else {
                        return Poll::Pending;
                    };
                    // A commit can be read a moment before it is published. The mark waits that moment; a store that
                    // broke between the two (poisoned) publishes no more.
                    if revision < at && self.shared.store.check_poison().is_ok() {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    self.tokens.asked.pop_front();
                    self.told = revision;
                    let position = self.shared.store.at(revision);
                    let mark = WatchEvent::Progress {
                        position,
                        token: Some(token),
                    };
                    return Poll::Ready(Some(Ok(mark)));
                }
            }
        }
    }

    fn request_progress(&mut self, token: u64) {
        self.tokens.push(token, self.shared.store.revision());
    }

    fn park(&mut self) {
        let first = self
            .queue
            .front()
            .map(|first| Revision(first.revision.0 - 1));
        self.queue = VecDeque::new();
        self.reading = None;
        self.subscription.park(first);
    }

    fn status(&self) -> WatchStatus {
        let is_live =
            self.queue.is_empty() && self.reading.is_none() && self.subscription.is_live();
        WatchStatus {
            state: live_if(is_live),
            position: self.shared.store.at(self.told),
        }
    }
}

pub(super) struct LatestWatch {
    shared: Arc<Shared>,
    keyspace: Arc<KeyspaceState>,
    subscription: Subscription,
    min_interval: Duration,
    /// The last mark.
    mark: Revision,
    /// The last mark that was handed over.
    told: Revision,
    /// Before the first mark: from the beginning, so without tombstones.
    fresh: bool,
    /// A first pass is due whatever changed, so that even an empty range has its mark.
    due: bool,
    pass: Pass,
    events: VecDeque<WatchEvent>,
    next_pass_at: Option<Pin<Box<Sleep>>>,
    tokens: Tokens,
    /// The tokens that the pass under way will answer: those asked for before its snapshot.
    answering: VecDeque<u64>,
    _place: OwnedSemaphorePermit,
}

enum Pass {
    None,
    Beginning(BoxFuture<'static, Result<Begun>>),
    /// Between two pages.
    Resting(Leased, ChangesCursor),
    Reading(BoxFuture<'static, Result<Page>>),
}

struct Begun {
    snapshot: Leased,
    cursor: Option<ChangesCursor>,
    reset: bool,
}

struct Page {
    snapshot: Leased,
    cursor: ChangesCursor,
    items: Option<Vec<ScanItem>>,
}

impl LatestWatch {
    /// Tells what changed after `mark`; `fresh`: everything that is there, and no tombstones.
    pub(super) fn new(
        shared: Arc<Shared>,
        keyspace: Arc<KeyspaceState>,
        subscription: Subscription,
        mark: Revision,
        fresh: bool,
        min_interval: Duration,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            keyspace,
            subscription,
            min_interval,
            mark,
            told: mark,
            fresh,
            due: true,
            pass: Pass::None,
            events: VecDeque::new(),
            next_pass_at: None,
            tokens: Tokens::default(),
            answering: VecDeque::new(),
            _place: place,
        }
    }

    /// Begins a pass if something changed or was asked for, and the interval is over.
    fn begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Ordering: the flag is taken before the snapshot, so what commits between sets it again.
        self.due |= self.subscription.take_dirty(cx.waker());
        if !self.due && self.tokens.asked.is_empty() {
            return Poll::Pending;
        }
        if let Some(sleep) = &mut self.next_pass_at {
            ready!(sleep.as_mut().poll(cx));
        }
        if !self.min_interval.is_zero() {
            self.next_pass_at = Some(Box::pin(tokio::time::sleep_until(
                Instant::now() + self.min_interval,
            )));
        }
        self.due = false;
        // The snapshot comes later, so it is no older than what was asked for.
        self.answering
            .extend(self.tokens.asked.drain(..).map(|(token, _)| token));
        let shared = self.shared.clone();
        let keyspace = self.keyspace.clone();
        let range = self.subscription.range().clone();
        let (mark, fresh) = (self.mark, self.fresh);
        let begin = move |shared: &Shared| {
            let snapshot = shared.leases.lend(&shared.store);
            // Ordering: after the snapshot. The horizon is raised before tombstones go, so a snapshot without them
            // comes with a horizon that tells.
            let reset = !fresh && mark < keyspace.horizon();
            let after = if reset { Revision::ZERO } else { mark };
            let cursor = keyspace
                .id()
                .map(|id| ChangesCursor::new(id, range, after, !fresh && !reset));
            Ok(Begun {
                snapshot,
                cursor,
                reset,
            })
        };
        self.pass = Pass::Beginning(Box::pin(async move { shared.on_pool(begin).await }));
        Poll::Ready(())
    }

    fn end(&mut self, revision: Revision) {
        self.mark = revision;
        self.fresh = false;
        let position = self.shared.store.at(revision);
        if self.answering.is_empty() {
            self.events.push_back(WatchEvent::Progress {
                position,
                token: None,
            });
        }
        let tokens = self.answering.drain(..);
        self.events.extend(tokens.map(|token| WatchEvent::Progress {
            position,
            token: Some(token),
        }));
    }

    fn read(&mut self, snapshot: Leased, mut cursor: ChangesCursor) {
        let shared = self.shared.clone();
        let read = move |_: &Shared| {
            let items = snapshot.read(|snapshot| cursor.next_page(snapshot, PAGE_BYTES))?;
            Ok(Page {
                snapshot,
                cursor,
                items,
            })
        };
        self.pass = Pass::Reading(Box::pin(async move { shared.on_pool(read).await }));
    }

    /// One step of the pass. Errors are final.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match std::mem::replace(&mut self.pass, Pass::None) {
            Pass::None => ready!(self.begin(cx)),
            Pass::Resting(snapshot, cursor) => self.read(snapshot, cursor),
            Pass::Beginning(mut beginning) => match beginning.as_mut().poll(cx) {
                Poll::Pending => {
                    self.pass = Pass::Beginning(beginning);
                    return Poll::Pending;
                }
                Poll::Ready(begun) => {
                    let Begun {
                        snapshot,
                        cursor,
                        reset,
                    } = begun?;
                    if reset {
                        self.events.push_back(WatchEvent::Reset);
                    }
                    match cursor {
                        Some(cursor) => self.pass = Pass::Resting(snapshot, cursor),
                        None => self.end(snapshot.revision()),
                    }
                }
            },
            Pass::Reading(mut reading) => {
                match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.pass = Pass::Reading(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready(page) => {
                        let Page {
                            snapshot,
                            cursor,
                            items,
                        } = page?;
                        match items {
                            None => self.end(snapshot.revision()),
                            Some(items) => {
                                let events = items.into_iter();
                                self.events.extend(events.map(|ScanItem { key, state }| {
                                    WatchEvent::State { key, state }
                                }));
                                self.pass = Pass::Resting(snapshot, cursor);
                            }
                        }
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl WatchSource for LatestWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        if let Err(error) = self.tokens.check() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                if let WatchEvent::Progress { position, .. } = event {
                    self.told = position.revision;
                }
                return Poll::Ready(Some(Ok(event)));
            }
            if let Err(error) = ready!(self.step(cx)) {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn request_progress(&mut self, token: u64) {
        self.tokens.push(token, self.shared.store.revision());
    }

    fn park(&mut self) {
        // A page's states, and nothing else, can be read again from the pass's snapshot.
        if let Pass::Resting(_, cursor) = &mut self.pass
            && let Some(WatchEvent::State { key, state }) = self.events.front()
        {
            cursor.go_back_to(state.revision(), key);
            self.events = VecDeque::new();
        }
    }

    fn status(&self) -> WatchStatus {
        let idle = self.events.is_empty() && !self.due && matches!(self.pass, Pass::None);
        WatchStatus {
            state: live_if(idle && self.subscription.is_live()),
            position: self.shared.store.at(self.told),
        }
    }
}

fn live_if(is_live: bool) -> WatchState {
    if is_live {
        WatchState::Live
    } else {
        WatchState::CatchingUp
    }
}
