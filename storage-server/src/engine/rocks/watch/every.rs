//! Watches `Every` over the RocksDB engine: each commit in revision order, from the watch's queue in the feed while it
//! keeps up, else from the ring or from pages of the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use storage_protocol::{CommitRecord, Result, Revision, WatchEvent, WatchSource, WatchStatus};
use tokio::sync::OwnedSemaphorePermit;

use super::{Tokens, live_if, progress_waits};
use crate::engine::rocks::EngineShared;
use crate::engine::rocks::log::LogPage;
use crate::engine::rocks::store::KeyspaceState;
use crate::feed::page::Found;
use crate::feed::{Next, QUEUE_BYTES_MAX, Subscription};

/// So many cached pages a watch that catches up searches in one poll, before it goes on with what it found.
const PAGES_PER_TURN: usize = 16;

/// A request to the reader of the log, for the page after the revision.
pub(super) type Reading = (Revision, BoxFuture<'static, Result<Arc<LogPage>>>);

pub(crate) struct EveryWatch {
    shared: Arc<EngineShared>,
    keyspace: Arc<KeyspaceState>,
    subscription: Subscription,
    queue: VecDeque<Arc<CommitRecord>>,
    /// A page of the log that was requested and has not arrived.
    reading: Option<Reading>,
    tokens: Tokens,
    /// Everything up to here was delivered.
    delivered: Revision,
    _place: OwnedSemaphorePermit,
}

impl EveryWatch {
    pub(crate) fn new(
        shared: Arc<EngineShared>,
        keyspace: Arc<KeyspaceState>,
        subscription: Subscription,
        begun: Revision,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            keyspace,
            subscription,
            delivered: begun,
            queue: VecDeque::new(),
            reading: None,
            tokens: Tokens::default(),
            _place: place,
        }
    }

    /// Searches a page of the log, and the cached pages that follow it: the commits in the range go into the queue, as
    /// many as it may hold, and the subscription moves on to the revision up to which the log was searched.
    fn take_page(&mut self, after: Revision, mut page: Arc<LogPage>) {
        let mut found = Found::after(after, QUEUE_BYTES_MAX);
        for _ in 0..PAGES_PER_TURN {
            match self.keyspace.id() {
                Some(id) => {
                    let views = self.shared.feed.views();
                    page.search(&id, self.subscription.range(), views, &mut found);
                }
                // The keyspace has no commits yet.
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
        if let Err(error) = self.tokens.check() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(commit) = self.queue.pop_front() {
                self.delivered = commit.revision;
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
                    if progress_waits(&self.shared, &self.subscription, revision, at, cx) {
                        return Poll::Pending;
                    }
                    self.tokens.asked.pop_front();
                    self.delivered = revision;
                    let position = self.shared.store.at(revision);
                    let progress = WatchEvent::Progress {
                        position,
                        token: Some(token),
                    };
                    return Poll::Ready(Some(Ok(progress)));
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
            position: self.shared.store.at(self.delivered),
        }
    }
}
