//! Watches `Every` over the RocksDB engine, and what both kinds of watch have in common.
//!
//! [`EveryWatch`] drains its place in the feed, and asks the reader of the log ([`catch_up`](super::catch_up)) where the
//! feed's ring does not reach back. `Latest` is in [`latest`](super::latest).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use storage_protocol::{
    CommitRecord, Limit, Result, Revision, StorageError, WatchEvent, WatchSource, WatchState,
    WatchStatus, planted,
};
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::log::LogPage;
use super::store::KeyspaceState;
use crate::feed::page::Found;
use crate::feed::{Next, QUEUE_BYTES_MAX, Subscription};

/// Probes that were asked for and not answered yet. One more ends the watch: a token that is never answered would keep
/// its asker waiting.
const TOKENS_MAX: usize = 1024;

/// Pages in memory that a watch which catches up searches at a time, before it looks at what it was asked for.
const PAGES_PER_TURN: usize = 16;

/// The tokens of the marks that were asked for, oldest first.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// Each with the store's revision when it was asked for: its mark is no older.
    pub(super) asked: VecDeque<(u64, Revision)>,
    overflowed: bool,
}

impl Tokens {
    pub(super) fn push(&mut self, token: u64, at: Revision) {
        if self.asked.len() < TOKENS_MAX {
            self.asked.push_back((token, at));
        } else {
            self.overflowed = true;
        }
    }

    pub(super) fn check(&self) -> Result<()> {
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
                Some(id) => {
                    let views = self.shared.feed.views();
                    page.search(&id, self.subscription.range(), views, &mut found);
                }
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
                    if mark_waits(&self.shared, &self.subscription, revision, at, cx) {
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

/// Whether a mark that was asked for at a revision is still to come, from a watch that has nothing up to `told`; the waker
/// is called then. A commit can be read a moment before it is published, and is published a moment before it is told; the
/// mark waits for both. A store that broke between the first two (poisoned) publishes no more.
pub(super) fn mark_waits(
    shared: &Shared,
    subscription: &Subscription,
    told: Revision,
    asked_at: Revision,
    cx: &mut Context<'_>,
) -> bool {
    let mut due = asked_at;
    if shared.store.check_poison().is_err() {
        due = due.min(subscription.published());
    }
    let waits = told < due;
    if waits {
        subscription.wake_once_told(due, cx.waker());
    }
    waits
}

pub(super) fn live_if(is_live: bool) -> WatchState {
    if is_live {
        WatchState::Live
    } else {
        WatchState::CatchingUp
    }
}
