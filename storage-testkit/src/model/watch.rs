//! The two modes of a watch, told from the whole history.
//!
//! A watch owns nothing but its cursor: `Every` looks for the first commit behind it, `Latest` for what each key is
//! now. Neither can miss a change, since both begin anew at their cursor each time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use storage_protocol::{
    KeyRange, Keyspace, Position, Result, Revision, WatchEvent, WatchSource, WatchState,
    WatchStatus,
};

use super::history::History;
use super::{Permit, lock};

/// What both modes have.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) history: Arc<Mutex<History>>,
    pub(super) keyspace: Keyspace,
    pub(super) range: KeyRange,
    /// Everything up to here was told.
    pub(super) cursor: Revision,
    pub(super) _permit: Permit,
}

impl Subscription {
    fn status(&self, history: &History, is_live: bool) -> WatchStatus {
        WatchStatus {
            state: if is_live {
                WatchState::Live
            } else {
                WatchState::CatchingUp
            },
            position: Position {
                revision: self.cursor,
                ..history.position()
            },
        }
    }
}

#[derive(Debug)]
pub(super) struct EveryWatch {
    watch: Subscription,
    /// Marks that were asked for, each with the position then.
    asked: VecDeque<(u64, Position)>,
}

impl EveryWatch {
    pub(super) fn new(watch: Subscription) -> Self {
        Self {
            watch,
            asked: VecDeque::new(),
        }
    }
}

impl WatchSource for EveryWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        let watch = &mut self.watch;
        let mut history = lock(&watch.history);
        let due = history.next_commit(&watch.keyspace, &watch.range, watch.cursor);
        if let Some(&(token, position)) = self.asked.front()
            && due
                .as_ref()
                .is_none_or(|commit| commit.revision > position.revision)
        {
            self.asked.pop_front();
            return Poll::Ready(Some(Ok(WatchEvent::Progress {
                position,
                token: Some(token),
            })));
        }
        let Some(commit) = due else {
            history.wake_later(cx);
            return Poll::Pending;
        };
        watch.cursor = commit.revision;
        Poll::Ready(Some(Ok(WatchEvent::Commit(commit))))
    }

    fn request_progress(&mut self, token: u64) {
        let position = lock(&self.watch.history).position();
        self.asked.push_back((token, position));
    }

    // The model buffers nothing that counts: its history is in memory anyway.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        let history = lock(&self.watch.history);
        let due = history.next_commit(&self.watch.keyspace, &self.watch.range, self.watch.cursor);
        self.watch.status(&history, due.is_none())
    }
}

#[derive(Debug)]
pub(super) struct LatestWatch {
    watch: Subscription,
    /// What is left of the pass that the reader is taking.
    pass: VecDeque<WatchEvent>,
    /// Tokens that the next pass answers.
    asked: Vec<u64>,
    /// Whether the first pass was made: that one comes even if it is empty.
    opened: bool,
}

impl LatestWatch {
    pub(super) fn new(watch: Subscription) -> Self {
        Self {
            watch,
            pass: VecDeque::new(),
            asked: Vec::new(),
            opened: false,
        }
    }

    /// All that changed since the cursor, as it is now, closed by a mark.
    fn make_pass(&mut self, history: &History) {
        let watch = &mut self.watch;
        let fallen_behind =
            watch.cursor > Revision::ZERO && watch.cursor < history.horizon(&watch.keyspace);
        if fallen_behind {
            self.pass.push_back(WatchEvent::Reset);
        }
        let mut items = if fallen_behind || watch.cursor == Revision::ZERO {
            // The reader has nothing yet, so there is nothing that it must be told is gone.
            history.live_states(&watch.keyspace, &watch.range)
        } else {
            history
                .states_after(&watch.keyspace, &watch.range, watch.cursor)
                .expect("the cursor is not below the horizon")
        };
        items.sort_by_key(|item| item.state.revision());
        for item in items {
            self.pass.push_back(WatchEvent::State {
                key: item.key,
                state: item.state,
            });
        }
        let position = history.position();
        watch.cursor = position.revision;
        let mut tokens: Vec<_> = self.asked.drain(..).map(Some).collect();
        if tokens.is_empty() {
            tokens.push(None);
        }
        for token in tokens {
            self.pass
                .push_back(WatchEvent::Progress { position, token });
        }
        self.opened = true;
    }

    fn has_something_to_tell(&self, history: &History) -> bool {
        let watch = &self.watch;
        !self.opened
            || !self.asked.is_empty()
            || watch.cursor < history.horizon(&watch.keyspace)
            || history
                .states_after(&watch.keyspace, &watch.range, watch.cursor)
                .is_ok_and(|items| !items.is_empty())
    }
}

impl WatchSource for LatestWatch {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchEvent>>> {
        if self.pass.is_empty() {
            let history = self.watch.history.clone();
            let mut history = lock(&history);
            if !self.has_something_to_tell(&history) {
                history.wake_later(cx);
                return Poll::Pending;
            }
            self.make_pass(&history);
        }
        Poll::Ready(self.pass.pop_front().map(Ok))
    }

    fn request_progress(&mut self, token: u64) {
        self.asked.push(token);
    }

    // The model buffers nothing that counts: its history is in memory anyway.
    fn park(&mut self) {}

    fn status(&self) -> WatchStatus {
        let history = lock(&self.watch.history);
        let idle = self.pass.is_empty() && !self.has_something_to_tell(&history);
        self.watch.status(&history, idle)
    }
}
