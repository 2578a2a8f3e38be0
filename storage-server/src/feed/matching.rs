//! Which watches a commit concerns, without looking at all of them.
//!
//! Nearly all watches are for a prefix, so they are found by looking up the key's own prefixes, one for each length that
//! some watch has. Ranges of another shape are few and are looked at one by one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use storage_protocol::{CommitRecord, Key, KeyRange};

use super::Slot;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatchId(pub(super) u64);

/// The watches of one keyspace.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    by_prefix: HashMap<Key, BTreeMap<WatchId, Arc<Slot>>>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
    others: BTreeMap<WatchId, Arc<Slot>>,
    count: usize,
}

impl Matcher {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn add(&mut self, id: WatchId, slot: Arc<Slot>) {
        self.count += 1;
        if !is_prefix(slot.range()) {
            self.others.insert(id, slot);
            return;
        }
        let prefix = slot.range().start.clone();
        let length = prefix.len();
        let watches = self.by_prefix.entry(prefix).or_default();
        if watches.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        watches.insert(id, slot);
    }

    pub(super) fn remove(&mut self, id: WatchId, slot: &Slot) {
        let prefix = &slot.range().start;
        let removed = match self.by_prefix.get_mut(prefix) {
            Some(watches) if is_prefix(slot.range()) => {
                let removed = watches.remove(&id).is_some();
                if watches.is_empty() {
                    self.by_prefix.remove(prefix);
                    if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                        *count -= 1;
                        if *count == 0 {
                            self.lengths.remove(&prefix.len());
                        }
                    }
                }
                removed
            }
            _ => self.others.remove(&id).is_some(),
        };
        self.count -= usize::from(removed);
    }

    /// Calls `tell` once for each watch that some change of the commit concerns.
    pub(super) fn each(&self, record: &CommitRecord, mut tell: impl FnMut(&Arc<Slot>)) {
        let single = record.changes.len() == 1;
        let mut told = HashSet::new();
        for change in &record.changes {
            let prefixes = self
                .lengths
                .keys()
                .map_while(|length| change.key.get(..*length));
            let by_prefix = prefixes
                .filter_map(|prefix| self.by_prefix.get(prefix))
                .flatten();
            let others = self
                .others
                .iter()
                .filter(|(_, slot)| slot.range().contains(&change.key));
            for (id, slot) in by_prefix.chain(others) {
                if single || told.insert(*id) {
                    tell(slot);
                }
            }
        }
    }
}

fn is_prefix(range: &KeyRange) -> bool {
    *range == KeyRange::prefix(range.start.clone())
}
