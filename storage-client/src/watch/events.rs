//! The events that wait for the application.

use std::collections::VecDeque;

use storage_protocol::{Epoch, WatchEvent};

/// An event that waits for the application.
pub(super) struct Waiting {
    pub(super) event: WatchEvent,
    /// The credit that is given back when it is consumed.
    pub(super) bytes: u64,
    /// The history it belongs to.
    pub(super) epoch: Epoch,
}

/// What waits for the application, and how many of it cost no credit.
#[derive(Default)]
pub(super) struct Events {
    waiting: VecDeque<Waiting>,
    pub(super) free: usize,
}

impl Events {
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.free += usize::from(is_free(&waiting.event));
        self.waiting.push_back(waiting);
    }

    pub(super) fn pop_first(&mut self) -> Option<Waiting> {
        let first = self.waiting.pop_front()?;
        self.free -= usize::from(is_free(&first.event));
        Some(first)
    }

    pub(super) fn pop_last(&mut self) -> Option<Waiting> {
        let last = self.waiting.pop_back()?;
        self.free -= usize::from(is_free(&last.event));
        Some(last)
    }

    pub(super) fn last(&self) -> Option<&WatchEvent> {
        self.before_last(0)
    }

    /// The event before the last `behind` ones.
    pub(super) fn before_last(&self, behind: usize) -> Option<&WatchEvent> {
        let place = self.waiting.len().checked_sub(behind + 1)?;
        Some(&self.waiting.get(place)?.event)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The credit that is given back when all of it is consumed.
    pub(super) fn bytes(&self) -> u64 {
        self.waiting.iter().map(|waiting| waiting.bytes).sum()
    }
}

fn is_free(event: &WatchEvent) -> bool {
    !matches!(event, WatchEvent::Commit(_) | WatchEvent::State { .. })
}

pub(super) fn is_plain_mark(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Progress { token: None, .. })
}
