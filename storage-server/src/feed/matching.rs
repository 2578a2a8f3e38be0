//! Finds the watches that a commit concerns, without looking at every watch, and without looking at any watch once for
//! each operation.
//!
//! A watch is filed under a prefix that all keys of its range have: the range's own, if the range is all keys with a
//! prefix, else the common prefix of its start and its end. For a commit each prefix is looked at once. It is found in
//! the cheaper of two ways: by the commit's keys (one look-up for each key and each length of a filed prefix), or by a
//! binary search in the commit's keys for each filed prefix. Under a prefix, ranges that are not all of its keys are
//! sorted by their start: those that start after the commit's last key are skipped, and for each of the others the
//! commit's keys are searched. If ranges do not overlap, a prefix has at most 256 of them.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use storage_protocol::{CommitRecord, Key, KeyRange};

use super::slot::WatchSlot;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatchId(pub(super) u64);

/// The watches of one keyspace.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    by_prefix: HashMap<Key, PrefixWatches>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    /// Counts the commits that were matched.
    turn: Cell<u64>,
}

/// The watches under one prefix.
#[derive(Debug, Default)]
struct PrefixWatches {
    /// For all keys with the prefix.
    whole: BTreeMap<WatchId, Arc<WatchSlot>>,
    /// For some of them, by where their ranges start.
    parts: BTreeMap<(Key, WatchId), Arc<WatchSlot>>,
    /// The commit for which it was looked at last.
    seen: Cell<u64>,
}

impl PrefixWatches {
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn len(&self) -> usize {
        self.whole.len() + self.parts.len()
    }

    /// Those whose range the commit touches. The commit has a key with the prefix, and none after `last`.
    fn concerned(&self, record: &CommitRecord, last: &Key, into: &mut Vec<Arc<WatchSlot>>) {
        into.extend(self.whole.values().cloned());
        if self.parts.is_empty() {
            return;
        }
        let last = (last.clone(), WatchId(u64::MAX));
        let parts = self.parts.range(..=last).map(|(_, slot)| slot);
        into.extend(parts.filter(|slot| record.touches(slot.range())).cloned());
    }
}

impl Matcher {
    pub(super) fn is_empty(&self) -> bool {
        self.by_prefix.is_empty()
    }

    pub(super) fn add(&mut self, slot: Arc<WatchSlot>) {
        let id = slot.id;
        let (prefix, is_whole) = file_under(slot.range());
        let length = prefix.len();
        let watches = self.by_prefix.entry(prefix).or_default();
        if watches.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        if is_whole {
            watches.whole.insert(id, slot);
        } else {
            watches.parts.insert((slot.range().start.clone(), id), slot);
        }
    }

    pub(super) fn remove(&mut self, slot: &WatchSlot) {
        let id = slot.id;
        let (prefix, is_whole) = file_under(slot.range());
        let Some(watches) = self.by_prefix.get_mut(&prefix) else {
            return;
        };
        if is_whole {
            watches.whole.remove(&id);
        } else {
            watches.parts.remove(&(slot.range().start.clone(), id));
        }
        if watches.is_empty() {
            self.by_prefix.remove(&prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        }
    }

    /// Whether the commit's keys are needed: not if all watches have the whole keyspace as their range.
    pub(super) fn asks_for_keys(&self) -> bool {
        let all = self.by_prefix.get(&Key::new());
        self.by_prefix.len() > usize::from(all.is_some())
            || all.is_some_and(|all| !all.parts.is_empty())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<WatchSlot>> {
        let watches = self.by_prefix.values();
        watches.flat_map(|watches| watches.whole.values().chain(watches.parts.values()))
    }

    /// Puts each watch that some change of the commit concerns into `into`, once.
    pub(super) fn concerned(&self, record: &CommitRecord, into: &mut Vec<Arc<WatchSlot>>) {
        self.concerned_up_to(usize::MAX, record, into);
    }

    /// The same, but gives up, with `false`, before it looks at more than `max` watches, or up prefixes more often.
    pub(super) fn concerned_up_to(
        &self,
        max: usize,
        record: &CommitRecord,
        into: &mut Vec<Arc<WatchSlot>>,
    ) -> bool {
        let Some(last) = record.changes.iter().map(|change| &change.key).max() else {
            return true;
        };
        if record.changes.len().saturating_mul(self.lengths.len()) > max {
            return false;
        }
        let mut looked_at = 0;
        let mut is_too_many = |watches: &PrefixWatches| {
            looked_at += watches.len();
            looked_at > max
        };
        let changes = record.changes.len();
        // To ask a commit for a prefix is a binary search in its keys.
        let by_asking = self.by_prefix.len() * (changes.ilog2() as usize + 1);
        if by_asking <= changes * self.lengths.len() {
            for (prefix, watches) in &self.by_prefix {
                if prefix.is_empty() || record.touches_prefix(prefix) {
                    if is_too_many(watches) {
                        return false;
                    }
                    watches.concerned(record, last, into);
                }
            }
            return true;
        }
        let turn = self.turn.get() + 1;
        self.turn.set(turn);
        for change in &record.changes {
            for watches in self.of(&change.key) {
                if watches.seen.replace(turn) != turn {
                    if is_too_many(watches) {
                        return false;
                    }
                    watches.concerned(record, last, into);
                }
            }
        }
        true
    }

    fn of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a PrefixWatches> {
        let prefixes = self.lengths.keys().map_while(|length| key.get(..*length));
        prefixes.filter_map(|prefix| self.by_prefix.get(prefix))
    }
}

/// A prefix that all keys of the range have, and whether the range is all keys with it.
fn file_under(range: &KeyRange) -> (Key, bool) {
    if *range == KeyRange::prefix(range.start.clone()) {
        return (range.start.clone(), true);
    }
    let common = match &range.end {
        Some(end) => {
            let pairs = range.start.iter().zip(end);
            pairs.take_while(|(a, b)| a == b).count()
        }
        None => 0,
    };
    (range.start.slice(..common), false)
}
