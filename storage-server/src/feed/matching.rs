//! Which watches a commit concerns, without looking at all of them.
//!
//! A watch is filed under a prefix that all keys of its range have: the range's own, or what its start and its end have in
//! common. It is found by looking up a key's own prefixes, one for each length that some watch is filed under. Ranges
//! that are more than their prefix says stand there by their start, and those that start behind the key are not looked
//! at; of ranges that do not overlap, a prefix has 256 at most.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use storage_protocol::{CommitRecord, Key, KeyRange};

use super::Slot;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatchId(pub(super) u64);

/// The watches of one keyspace.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    by_prefix: HashMap<Key, Watches>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    count: usize,
}

/// The watches under one prefix.
#[derive(Debug, Default)]
struct Watches {
    /// For all keys with the prefix.
    whole: BTreeMap<WatchId, Arc<Slot>>,
    /// For some of them, by where their ranges start.
    parts: BTreeMap<(Key, WatchId), Arc<Slot>>,
}

impl Watches {
    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.parts.is_empty()
    }

    fn of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (WatchId, &'a Arc<Slot>)> {
        let last = (key.clone(), WatchId(u64::MAX));
        let parts = self.parts.range(..=last).map(|((_, id), slot)| (*id, slot));
        let parts = parts.filter(|(_, slot)| slot.range().contains(key));
        self.whole.iter().map(|(id, slot)| (*id, slot)).chain(parts)
    }
}

impl Matcher {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn add(&mut self, id: WatchId, slot: Arc<Slot>) {
        self.count += 1;
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

    pub(super) fn remove(&mut self, id: WatchId, slot: &Slot) {
        let (prefix, is_whole) = file_under(slot.range());
        let Some(watches) = self.by_prefix.get_mut(&prefix) else {
            return;
        };
        let removed = if is_whole {
            watches.whole.remove(&id)
        } else {
            watches.parts.remove(&(slot.range().start.clone(), id))
        };
        self.count -= usize::from(removed.is_some());
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

    /// Calls `tell` once for each watch that some change of the commit concerns, with the places of these changes in
    /// rising order.
    pub(super) fn each(&self, record: &CommitRecord, mut tell: impl FnMut(&Arc<Slot>, &[usize])) {
        if let [change] = record.changes.as_slice() {
            for (_, slot) in self.of(&change.key) {
                tell(slot, &[0]);
            }
            return;
        }
        let mut concerned: HashMap<WatchId, (&Arc<Slot>, Vec<usize>)> = HashMap::new();
        for (place, change) in record.changes.iter().enumerate() {
            for (id, slot) in self.of(&change.key) {
                let (_, places) = concerned.entry(id).or_insert((slot, Vec::new()));
                places.push(place);
            }
        }
        for (slot, places) in concerned.into_values() {
            tell(slot, &places);
        }
    }

    fn of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = (WatchId, &'a Arc<Slot>)> {
        let prefixes = self.lengths.keys().map_while(|length| key.get(..*length));
        prefixes
            .filter_map(|prefix| self.by_prefix.get(prefix))
            .flat_map(move |watches| watches.of(key))
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
