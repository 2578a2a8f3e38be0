//! Watches `Latest` over the RocksDB engine: the present state of each key that changed, not each change.
//!
//! A watch that keeps up is served from its queue in the feed, like a watch `Every`: when it is polled, the queue is
//! conflated to the last state of each key, and a progress event follows. A watch that begins, or does not keep up,
//! makes passes over snapshots: it takes a snapshot at revision R, delivers the keys in the index rows after its last
//! progress event, each with its state at R, then a progress event at R. Such a watch buffers no changes, so its reader
//! may be as slow as it likes.
//!
//! A snapshot is pinned for a while ([`PinnedSnapshot`](crate::engine::rocks::read::PinnedSnapshot)). A pass whose
//! snapshot was released goes on over a new one, after what it has delivered: the index is in the order of revisions,
//! so what changed meanwhile is at its end, and a key may be delivered again with a higher revision. Tombstones newer
//! than the pass's first snapshot are always delivered, since their keys may have been delivered before. Only if such
//! tombstones were forgotten meanwhile does the pass begin anew, after a `Reset`.

mod pass;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::BoxFuture;
use storage_protocol::{
    ChangeKind, CommitRecord, Entry, Key, KeyState, Result, Revision, ScanItem, WatchEvent,
    WatchSource, WatchStatus,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

pub(crate) use self::pass::LatestPage;
use self::pass::{NextPage, read_page};
use crate::engine::rocks::EngineShared;
use crate::engine::rocks::read::ChangesCursor;
use crate::engine::rocks::store::KeyspaceState;
use crate::engine::rocks::watch::pages::Ticket;
use crate::engine::rocks::watch::{Tokens, live_if, progress_waits};
use crate::feed::{Next, Subscription};

pub(crate) struct LatestWatch {
    shared: Arc<EngineShared>,
    keyspace: Arc<KeyspaceState>,
    subscription: Subscription,
    min_interval: Duration,
    /// The revision of the last progress event.
    progress: Revision,
    /// The revision of the last progress event that the caller took.
    delivered: Revision,
    /// The watch began without a position, and is before its first progress event: no tombstones are delivered then.
    fresh: bool,
    /// Before the first progress event, which is sent even if nothing changed, so that an empty range gets one too.
    first: bool,
    pass: LatestPass,
    events: VecDeque<WatchEvent>,
    /// Of the pass whose last states are in `events`: tombstones up to here are not delivered.
    tombstones_after: Revision,
    next_pass_at: Option<Pin<Box<Sleep>>>,
    tokens: Tokens,
    /// The tokens that the pass under way will answer: those of requests made before its snapshot.
    answering: VecDeque<u64>,
    _place: OwnedSemaphorePermit,
}

enum LatestPass {
    /// No pass over a snapshot is under way.
    None,
    /// Between two pages.
    Resting(NextPage),
    /// All was read when the watch was parked, and some of it was not taken: the rest is kept while there is room for
    /// it, and else read again from here.
    Paused(NextPage, Ticket<VecDeque<WatchEvent>>),
    /// The page from here is being read, or waits to be taken.
    Reading(NextPage, BoxFuture<'static, Result<Ticket<LatestPage>>>),
}

impl LatestWatch {
    /// A watch of what changed after `progress`; with `fresh`, of everything that is there, without tombstones.
    pub(crate) fn new(
        shared: Arc<EngineShared>,
        keyspace: Arc<KeyspaceState>,
        subscription: Subscription,
        progress: Revision,
        fresh: bool,
        min_interval: Duration,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            shared,
            keyspace,
            subscription,
            min_interval,
            progress,
            delivered: progress,
            fresh,
            first: true,
            pass: LatestPass::None,
            events: VecDeque::new(),
            tombstones_after: Revision::ZERO,
            next_pass_at: None,
            tokens: Tokens::default(),
            answering: VecDeque::new(),
            _place: place,
        }
    }

    /// Delivers what is queued, or begins a pass, once something changed and the interval is over, or progress was
    /// requested: a requested progress event does not wait for the interval.
    fn begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let has_news = self.subscription.has_news(cx.waker());
        if !has_news && !self.first && self.tokens.asked.is_empty() {
            return Poll::Pending;
        }
        if self.tokens.asked.is_empty()
            && let Some(sleep) = &mut self.next_pass_at
        {
            ready!(sleep.as_mut().poll(cx));
        }
        if !self.min_interval.is_zero() {
            self.next_pass_at = Some(Box::pin(tokio::time::sleep_until(
                Instant::now() + self.min_interval,
            )));
        }
        // If only tombstones are missing, the commits in the log would do; but then the watch must get its `Reset`.
        let needs_state = self.first && (self.fresh || self.progress < self.keyspace.compacted());
        if needs_state {
            self.begin_pass();
            return Poll::Ready(());
        }
        match self.subscription.next_recent() {
            Next::Commits(commits) => self.deliver_batch(&commits),
            Next::ReadLog(_) => self.begin_pass(),
            Next::Idle(delivered) => {
                let asked = self.tokens.asked.front().copied();
                if let Some((_, at)) = asked
                    && progress_waits(&self.shared, &self.subscription, delivered, at, cx)
                {
                    return Poll::Pending;
                }
                if self.first || asked.is_some() {
                    self.end_batch(delivered.max(self.progress));
                }
            }
        }
        Poll::Ready(())
    }

    /// Delivers commits like one pass: the last state of each key, in revision order.
    fn deliver_batch(&mut self, commits: &[Arc<CommitRecord>]) {
        self.tombstones_after = Revision::ZERO;
        let mut states: HashMap<&Key, KeyState> = HashMap::new();
        let range = self.subscription.range();
        for commit in commits
            .iter()
            .filter(|commit| commit.revision > self.progress)
        {
            let changes = commit.changes.iter();
            for change in changes.filter(|change| range.contains(&change.key)) {
                if let Some(state) = state_behind(&change.kind, commit.revision) {
                    states.insert(&change.key, state);
                }
            }
        }
        let mut states: Vec<_> = states.into_iter().collect();
        states.sort_unstable_by(|(a, one), (b, other)| {
            (one.revision(), *a).cmp(&(other.revision(), *b))
        });
        let is_empty = states.is_empty();
        let states = states.into_iter().map(|(key, state)| WatchEvent::State {
            key: key.clone(),
            state,
        });
        self.events.extend(states);
        // It may be higher than the last commit's revision, if the ring was searched for the watch.
        let reached = self.subscription.taken();
        let answers = |(_, at): &(u64, Revision)| *at <= reached;
        if is_empty && !self.first && !self.tokens.asked.front().is_some_and(answers) {
            // Signals only, which this kind of watch does not get.
            self.progress = self.progress.max(reached);
            return;
        }
        self.end_batch(reached.max(self.progress));
    }

    /// A progress event at a revision that the feed has delivered, and with it the answers to requests up to there.
    fn end_batch(&mut self, reached: Revision) {
        while let Some((token, _)) = self.tokens.asked.pop_front_if(|(_, at)| *at <= reached) {
            self.answering.push_back(token);
        }
        if self.shared.store.check_poison().is_err() {
            // No commit will be delivered any more.
            self.answering
                .extend(self.tokens.asked.drain(..).map(|(token, _)| token));
        }
        self.end(reached);
    }

    fn end(&mut self, revision: Revision) {
        self.progress = revision;
        self.fresh = false;
        self.first = false;
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

    fn begin_pass(&mut self) {
        // Nothing is queued while the pass reads the same changes.
        self.subscription.park(None);
        // The snapshot is taken later, so it is no older than the requests.
        self.answering
            .extend(self.tokens.asked.drain(..).map(|(token, _)| token));
        self.read(NextPage::Mark {
            progress: self.progress,
            fresh: self.fresh,
        });
    }

    fn read(&mut self, from: NextPage) {
        let page = read_page(
            self.shared.clone(),
            self.keyspace.clone(),
            self.subscription.range().clone(),
            from.clone(),
        );
        self.pass = LatestPass::Reading(from, Box::pin(page));
    }

    /// Takes a page that was read.
    fn take(&mut self, page: LatestPage) {
        let LatestPage {
            snapshot,
            cursor,
            reset,
            items,
            is_last,
        } = page;
        if reset {
            self.events.push_back(WatchEvent::Reset);
        }
        let states = items.into_iter();
        let states = states.map(|ScanItem { key, state }| WatchEvent::State { key, state });
        self.events.extend(states);
        match cursor {
            Some(cursor) if !is_last => {
                self.pass = LatestPass::Resting(NextPage::Snapshot(snapshot, cursor));
            }
            cursor => {
                if let Some(cursor) = cursor {
                    self.tombstones_after = cursor.tombstones_after();
                }
                let revision = snapshot.revision();
                self.end(revision);
                self.subscription.caught_up(revision);
                // Live at once, if little was missed; else `begin` decides, once these events are taken.
                self.subscription.catch_up_live();
            }
        }
    }

    /// One step of the pass. Errors are final.
    fn step(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match std::mem::replace(&mut self.pass, LatestPass::None) {
            LatestPass::None => ready!(self.begin(cx)),
            LatestPass::Resting(from) => self.read(from),
            LatestPass::Paused(from, rest) => match rest.take() {
                Some(events) => {
                    // The kept events have the answers.
                    self.answering.clear();
                    self.events = events;
                }
                None => self.read(from),
            },
            LatestPass::Reading(from, mut reading) => match reading.as_mut().poll(cx) {
                Poll::Pending => {
                    self.pass = LatestPass::Reading(from, reading);
                    return Poll::Pending;
                }
                Poll::Ready(ticket) => match ticket?.take() {
                    Some(page) => self.take(page),
                    // It was dropped to make room for other watches' pages.
                    None => self.read(from),
                },
            },
        }
        Poll::Ready(Ok(()))
    }

    /// Gives up the states that were read and not taken.
    fn give_back(&mut self) {
        let Some(WatchEvent::State { key, state }) = self.events.front() else {
            return;
        };
        match &mut self.pass {
            LatestPass::Resting(NextPage::Snapshot(_, cursor)) => {
                cursor.go_back_to(state.revision(), key);
                self.events.clear();
            }
            LatestPass::None => self.keep_rest(),
            _ => {}
        }
    }

    /// The last states of a pass, or of a batch from the feed, cannot be read again as they are. They are kept while
    /// there is room for them, and else read again in a pass over a newer snapshot.
    fn keep_rest(&mut self) {
        let (Some(id), Some(WatchEvent::State { key, state })) =
            (self.keyspace.id(), self.events.front())
        else {
            return;
        };
        let range = self.subscription.range().clone();
        let mut cursor = ChangesCursor::new(id, range, self.delivered, self.tombstones_after);
        cursor.go_back_to(state.revision(), key);
        let tokens = self.events.iter().filter_map(|event| match event {
            WatchEvent::Progress { token, .. } => *token,
            _ => None,
        });
        self.answering = tokens.collect();
        let bytes = self.events.iter().map(|event| match event {
            WatchEvent::State { key, state } => size_of::<WatchEvent>() + state_bytes(key, state),
            _ => size_of::<WatchEvent>(),
        });
        let bytes = bytes.sum();
        let rest = std::mem::take(&mut self.events);
        let rest = self.shared.rests.keep(rest, bytes);
        self.pass = LatestPass::Paused(NextPage::Cursor(cursor), rest);
    }
}

/// The state of a key after a change; `None` for a signal.
fn state_behind(kind: &ChangeKind, revision: Revision) -> Option<KeyState> {
    match kind {
        ChangeKind::Put {
            value, lifetime, ..
        } => Some(KeyState::Live(Entry {
            value: value.clone(),
            revision,
            lifetime: *lifetime,
        })),
        ChangeKind::Removed { .. } => Some(KeyState::Removed(revision)),
        ChangeKind::Signalled { .. } => None,
    }
}

fn state_bytes(key: &Key, state: &KeyState) -> usize {
    let value = match state {
        KeyState::Live(entry) => entry.value.len(),
        KeyState::Removed(_) => 0,
    };
    key.len() + value
}

impl WatchSource for LatestWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        if let Err(error) = self.tokens.check() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                if let WatchEvent::Progress { position, .. } = event {
                    self.delivered = position.revision;
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
        self.give_back();
        if let LatestPass::Reading(from, _) = &self.pass {
            // Nobody would take the page that is being read.
            self.pass = LatestPass::Resting(from.clone());
        }
        // Nobody would take what the feed queues.
        self.subscription.park(None);
    }

    fn status(&self) -> WatchStatus {
        let idle = self.events.is_empty() && !self.first && matches!(self.pass, LatestPass::None);
        WatchStatus {
            state: live_if(idle && self.subscription.is_live()),
            position: self.shared.store.at(self.delivered),
        }
    }
}

#[cfg(test)]
mod tests;
