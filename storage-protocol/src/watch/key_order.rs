//! Which changes of a commit lie in a range, found by their keys in order.
//!
//! A large commit is asked this by each of its watches. Its changes are sorted once, by the first who asks; from then on an
//! answer costs a binary search, and what it finds is an interval of that order: watches with the same interval see the
//! same part of the commit.

use std::ops::Range;
use std::sync::Arc;

use super::CommitRecord;
use crate::KeyRange;

/// The changes of a commit up to this number are looked at one by one.
const FEW: usize = 16;

impl CommitRecord {
    /// Whether it has so many changes that [`CommitRecord::interval`] sorts them once.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.changes.len() > FEW
    }

    /// Sorts its changes by key, if it is large and nobody did yet: n log n once, then nothing.
    pub fn sort_keys(&self) {
        if self.is_large() {
            self.key_order();
        }
    }

    fn key_order(&self) -> &[u32] {
        self.key_order.get_or_init(|| {
            let mut order: Box<[u32]> = (0..).take(self.changes.len()).collect();
            order.sort_by(|a, b| self.key_at(*a).cmp(self.key_at(*b)));
            order
        })
    }

    /// The key of the change at a place of `key_order`.
    fn key_at(&self, place: u32) -> &[u8] {
        // There is one for each place.
        let change = self.changes.get(place as usize);
        change.map_or(&[], |change| &change.key)
    }

    /// Whether a change of it lies in the range.
    #[must_use]
    pub fn touches(&self, range: &KeyRange) -> bool {
        if range.is_all() || !self.is_large() {
            return self
                .changes
                .iter()
                .any(|change| range.contains(&change.key));
        }
        !self.interval(range).is_empty()
    }

    /// Whether a change's key begins with `prefix`.
    #[must_use]
    pub fn touches_prefix(&self, prefix: &[u8]) -> bool {
        if !self.is_large() {
            let mut changes = self.changes.iter();
            return changes.any(|change| change.key.starts_with(prefix));
        }
        let order = self.key_order();
        let first = order.partition_point(|place| self.key_at(*place) < prefix);
        order
            .get(first)
            .is_some_and(|place| self.key_at(*place).starts_with(prefix))
    }

    /// The changes in the range, as an interval of all changes in the order of their keys.
    #[must_use]
    pub fn interval(&self, range: &KeyRange) -> Range<usize> {
        if range.is_all() {
            return 0..self.changes.len();
        }
        let order = self.key_order();
        let start = order.partition_point(|place| self.key_at(*place) < range.start.as_ref());
        let end = match &range.end {
            Some(end) => order.partition_point(|place| self.key_at(*place) < end.as_ref()),
            None => order.len(),
        };
        start..end.max(start)
    }

    /// The part of this commit that an [interval](CommitRecord::interval) is: itself (shared) where that is all of it,
    /// `None` where it is empty. Costs as much as the part is long.
    #[must_use]
    pub fn part(self: &Arc<Self>, interval: Range<usize>) -> Option<Arc<Self>> {
        if interval.len() == self.changes.len() {
            return self.pick_all();
        }
        let mut places: Vec<u32> = self.key_order().get(interval)?.to_vec();
        places.sort_unstable();
        self.pick(
            &places
                .iter()
                .map(|place| *place as usize)
                .collect::<Vec<_>>(),
        )
    }

    /// The part of this commit that lies in `range`: itself (shared) where all of it does, `None` where nothing does.
    #[must_use]
    pub fn cut(self: &Arc<Self>, range: &KeyRange) -> Option<Arc<Self>> {
        if range.is_all() {
            return self.pick_all();
        }
        if self.is_large() {
            return self.part(self.interval(range));
        }
        let places = self.changes.iter().enumerate();
        let inside = places.filter(|(_, change)| range.contains(&change.key));
        let inside: Vec<usize> = inside.map(|(place, _)| place).collect();
        self.pick(&inside)
    }

    fn pick_all(self: &Arc<Self>) -> Option<Arc<Self>> {
        (!self.changes.is_empty()).then(|| self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, ChangeKind, Key, Revision, UnixMillis};

    fn record(keys: impl Iterator<Item = u32>) -> Arc<CommitRecord> {
        let changes = keys.map(|key| Change {
            key: Key::from(format!("{key:03}")),
            kind: ChangeKind::Removed { previous: None },
        });
        let changes = changes.collect();
        Arc::new(CommitRecord::new(
            Revision(7),
            UnixMillis(0),
            None,
            "t".into(),
            changes,
        ))
    }

    fn keys(record: &CommitRecord) -> Vec<Key> {
        record
            .changes
            .iter()
            .map(|change| change.key.clone())
            .collect()
    }

    #[test]
    fn a_large_commit_is_cut_as_a_small_one_is_by_looking_at_each_change() {
        // In no order of keys.
        let whole = record((0..200).map(|n| n * 77 % 200));
        let ranges = [
            KeyRange::all(),
            KeyRange::prefix("0"),
            KeyRange::prefix("11"),
            KeyRange::single("042"),
            KeyRange::between("05", "07"),
            KeyRange::between("7", "05"),
            KeyRange::between("", "a"),
            KeyRange::prefix("9"),
        ];
        for range in ranges {
            let inside: Vec<Key> = keys(&whole)
                .into_iter()
                .filter(|key| range.contains(key))
                .collect();
            let part = whole.cut(&range);
            assert_eq!(
                part.as_deref().map(keys).unwrap_or_default(),
                inside,
                "{range:?}"
            );
            assert_eq!(whole.touches(&range), !inside.is_empty(), "{range:?}");
            let is_whole = part.is_some_and(|part| Arc::ptr_eq(&part, &whole));
            assert_eq!(is_whole, inside.len() == 200, "{range:?}");
        }
        for prefix in ["", "0", "19", "199", "1999", "2"] {
            let any = keys(&whole)
                .iter()
                .any(|key| key.starts_with(prefix.as_bytes()));
            assert_eq!(whole.touches_prefix(prefix.as_bytes()), any, "{prefix}");
        }
    }
}
