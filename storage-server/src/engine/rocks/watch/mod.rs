//! Watches over the RocksDB engine: [`every`] and [`latest`], and what both have in common.

mod every;
mod latest;
mod pages;

use std::collections::VecDeque;
use std::task::Context;

use storage_protocol::{Limit, Result, Revision, StorageError, WatchState};

pub(crate) use self::every::EveryWatch;
pub(crate) use self::latest::{LatestPage, LatestWatch};
pub(crate) use self::pages::{Pages, RESTS_BYTES_MAX, UNTAKEN_BYTES_MAX};
use crate::engine::rocks::EngineShared;
use crate::feed::Subscription;

/// At most this many requests for progress may be unanswered. One more ends the watch with an error: if it were dropped
/// instead, its caller would wait for ever.
const TOKENS_MAX: usize = 1024;

/// The tokens of the requests for progress, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Each with the store's revision at the request: the answer must not be older.
    pub(crate) asked: VecDeque<(u64, Revision)>,
    overflowed: bool,
}

impl Tokens {
    pub(crate) fn push(&mut self, token: u64, at: Revision) {
        if self.asked.len() < TOKENS_MAX {
            self.asked.push_back((token, at));
        } else {
            self.overflowed = true;
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
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

/// Whether a progress event that was requested at a revision must still wait, for a watch that has nothing up to
/// `delivered`; if so, the waker is called when it can be sent. A commit can be read a moment before it is published,
/// and is published a moment before it is delivered; the progress event waits for both. A store that failed in between
/// (poisoned) publishes nothing more, so there it waits only for what is published.
pub(crate) fn progress_waits(
    shared: &EngineShared,
    subscription: &Subscription,
    delivered: Revision,
    asked_at: Revision,
    cx: &mut Context<'_>,
) -> bool {
    let mut due = asked_at;
    if shared.store.check_poison().is_err() {
        due = due.min(subscription.published());
    }
    let waits = delivered < due;
    if waits {
        subscription.wake_once_delivered(due, cx.waker());
    }
    waits
}

pub(crate) fn live_if(is_live: bool) -> WatchState {
    if is_live {
        WatchState::Live
    } else {
        WatchState::CatchingUp
    }
}
