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

/// Probes that were asked for and not answered yet. One more ends the watch: a token that is never answered would keep
/// its waiter waiting.
const TOKENS_MAX: usize = 1024;

/// The tokens of the progress events that were asked for, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    /// Each with the store's revision when it was asked for: its progress event is no older.
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

/// Whether a progress event that was asked for at a revision is still to come, from a watch that has nothing up to
/// `delivered`; the waker is called then. A commit can be read a moment before it is published, and is published a
/// moment before it is told; the progress event waits for both. A store that broke between the first two (poisoned)
/// publishes no more.
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
