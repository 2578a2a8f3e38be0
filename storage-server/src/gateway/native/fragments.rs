//! Keeps the time for what is on its way on a connection: requests in parts, and commits that later ones wait for.
//!
//! While one long WebSocket message is being received nothing else can arrive, so the clock stands still meanwhile: a
//! slow link must not be taken for a sender that stopped.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use storage_protocol::native::{BULK_TURNS, RequestId};

/// How often what is on its way is looked at, at least.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A clock that stands still while a message is being received.
#[derive(Debug, Default)]
pub(super) struct LinkClock {
    /// How long it has stood still in all.
    stood: Duration,
    /// Since when it stands still now.
    since: Option<Instant>,
}

impl LinkClock {
    /// The time that it shows; to be compared only with other times of this clock.
    pub(super) fn at(&self, now: Instant) -> Instant {
        let moving = self.since.map_or(now, |since| since.min(now));
        moving.checked_sub(self.stood).unwrap_or(moving)
    }

    pub(super) fn receiving(&mut self, since: Option<Instant>, now: Instant) {
        if let Some(before) = std::mem::replace(&mut self.since, since) {
            self.stood += now.saturating_duration_since(before);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    pub(super) clock: LinkClock,
    /// Requests whose parts are arriving; with the commit number of those that are commits.
    begun: HashMap<RequestId, Option<u64>>,
    /// The commit numbers in `begun`.
    numbers: HashSet<u64>,
    /// The number of the commit that later ones wait for, and since when, by the clock.
    gap: Option<(u64, Instant)>,
    check: Option<Instant>,
}

impl Fragments {
    pub(super) fn begin(&mut self, id: RequestId, number: Option<u64>) {
        self.begun.insert(id, number);
        self.numbers.extend(number);
    }

    /// The request is whole, or refused.
    pub(super) fn end(&mut self, id: RequestId) {
        if let Some(Some(number)) = self.begun.remove(&id) {
            self.numbers.remove(&number);
        }
    }

    pub(super) fn has_begun(&self, id: RequestId) -> bool {
        self.begun.contains_key(&id)
    }

    pub(super) fn has_number(&self, number: u64) -> bool {
        self.numbers.contains(&number)
    }

    /// Notes the number of the commit that is missing now.
    pub(super) fn note_gap(&mut self, missing: Option<u64>, now: Instant) {
        let (same, at) = (
            self.gap.map(|(number, _)| number) == missing,
            self.clock.at(now),
        );
        if !same {
            self.gap = missing.map(|number| (number, at));
        }
    }

    /// The number of the commit that has been missing for `patience`. One whose parts are arriving is not missing; nor
    /// is one while as many messages in parts are on their way as a sender sends at a time, since it may follow on
    /// them.
    pub(super) fn missing_for(&self, patience: Duration, now: Instant) -> Option<u64> {
        let (number, since) = self.gap?;
        let waited = self.clock.at(now).saturating_duration_since(since);
        let is_coming = self.has_number(number) || self.begun.len() >= BULK_TURNS;
        (waited >= patience && !is_coming).then_some(number)
    }

    /// When to look at what is on its way.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.check
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.check.is_some_and(|check| check <= now)
    }

    /// Sets the time of the next look, while anything is on its way. `patience`: how long that may take.
    pub(super) fn watch(&mut self, holds_fragments: bool, patience: Duration, now: Instant) {
        let interval = (patience / 10).clamp(Duration::from_millis(10), CHECK_INTERVAL);
        if !holds_fragments && self.gap.is_none() {
            self.check = None;
        } else if self.check.is_none_or(|check| check <= now) {
            self.check = Some(now + interval);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_clock_stands_while_a_message_is_received() {
        let start = Instant::now();
        let mut clock = LinkClock::default();
        let begun = clock.at(start);
        clock.receiving(Some(start + SECOND), start + 5 * SECOND);
        assert_eq!(clock.at(start + 9 * SECOND), begun + SECOND);
        clock.receiving(None, start + 11 * SECOND);
        assert_eq!(clock.at(start + 12 * SECOND), begun + 2 * SECOND);
    }

    #[test]
    fn a_commit_is_missing_unless_its_parts_are_coming() {
        let start = Instant::now();
        let mut fragments = Fragments::default();
        fragments.note_gap(Some(3), start);
        let patience = 10 * SECOND;
        assert_eq!(fragments.missing_for(patience, start + 9 * SECOND), None);
        assert_eq!(fragments.missing_for(patience, start + patience), Some(3));
        fragments.begin(7, Some(3));
        assert_eq!(fragments.missing_for(patience, start + patience), None);
        fragments.end(7);
        assert_eq!(fragments.missing_for(patience, start + patience), Some(3));
        // Another one is missing now.
        fragments.note_gap(Some(4), start + patience);
        assert_eq!(fragments.missing_for(patience, start + patience), None);
        fragments.note_gap(None, start + patience);
        assert_eq!(fragments.missing_for(patience, start + 99 * SECOND), None);
    }
}
