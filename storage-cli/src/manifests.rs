//! Manifests of objects that wait until their parts are in.
//!
//! A file that `export` wrote has each manifest before its parts, since their keys are longer. In that order a reader would
//! find an object that cannot be read yet, and an import that is broken off would leave one for good. So a manifest is held
//! back until the parts that it names have come, and comes behind them in a commit of its own, which is sent when all before
//! it is done. One whose parts do not come goes in at the end.
//!
//! Held by key and not by two passes over the file: stdin has one only, and what is held is bounded.

use std::collections::{BTreeMap, HashMap, VecDeque};

use storage_protocol::objects::{Manifest, ObjectId, PartKey};
use storage_protocol::{Key, Operation};

use crate::rows::Row;

/// Manifests whose parts are in and that are not sent yet: each commit of them waits for all before it.
const READY_MAX: usize = 32;

/// Manifests that wait; with one more the oldest goes in. Each is a key and some hundred bytes. In an export few do: those
/// of objects whose keys begin with one another.
const HELD_MAX: usize = 1_000;

/// What becomes of a row.
#[derive(Debug)]
pub(crate) enum Sorted {
    /// It is the next one.
    Next(Row),
    /// It comes later.
    Held,
    /// It is to be sorted again behind what is [due](Manifests::is_due) now.
    Postponed(Row),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Manifests {
    waiting: HashMap<Key, Waiting>,
    /// Those that wait, by the order in which they came.
    order: BTreeMap<u64, Key>,
    came: u64,
    ready: VecDeque<Row>,
    /// What is ready is to go in before any other row.
    is_due: bool,
}

#[derive(Debug)]
struct Waiting {
    row: Row,
    number: u64,
    id: ObjectId,
    /// Parts that have not come.
    missing: u32,
}

impl Manifests {
    /// Whether what is ready is to be taken now.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due && !self.ready.is_empty()
    }

    /// Holds a row back if it is a manifest, and gives back any other one.
    pub(crate) fn sort(&mut self, row: Row) -> Sorted {
        let key = row.operation.key();
        // Of equal keys the last row stays, so the one before goes in first.
        if self.waiting.contains_key(key)
            || self.ready.iter().any(|held| held.operation.key() == key)
        {
            self.release(&key.clone());
            self.is_due = true;
            return Sorted::Postponed(row);
        }
        if let Operation::Put { value, .. } = &row.operation
            && let Ok(Some(manifest)) = Manifest::decode(value)
        {
            self.hold(row, manifest);
            return Sorted::Held;
        }
        if let Some(part) = PartKey::parse(key)
            && part.number.is_some()
            && matches!(row.operation, Operation::Put { .. })
        {
            self.came(&part);
        }
        Sorted::Next(row)
    }

    /// The next one that is due.
    pub(crate) fn next(&mut self) -> Option<Row> {
        let next = self.ready.pop_front();
        self.is_due &= !self.ready.is_empty();
        next
    }

    /// Puts one back that there was no room for.
    pub(crate) fn put_back(&mut self, row: Row) {
        self.ready.push_front(row);
        self.is_due = true;
    }

    /// No row comes any more: all of them are due. Whether there are any.
    pub(crate) fn end(&mut self) -> bool {
        while self.release_oldest() {}
        self.is_due = !self.ready.is_empty();
        self.is_due
    }

    fn hold(&mut self, row: Row, manifest: Manifest) {
        if self.waiting.len() >= HELD_MAX {
            self.release_oldest();
            self.is_due = true;
        }
        let (key, number) = (row.operation.key().clone(), self.came);
        self.came += 1;
        self.order.insert(number, key.clone());
        let waiting = Waiting {
            row,
            number,
            id: manifest.id,
            missing: manifest.parts(),
        };
        self.waiting.insert(key, waiting);
    }

    fn came(&mut self, part: &PartKey) {
        let Some(waiting) = self.waiting.get_mut(&part.object) else {
            return;
        };
        if waiting.id != part.id {
            return;
        }
        waiting.missing = waiting.missing.saturating_sub(1);
        if waiting.missing == 0 {
            self.release(&part.object);
            self.is_due |= self.ready.len() >= READY_MAX;
        }
    }

    fn release(&mut self, key: &Key) {
        if let Some(waiting) = self.waiting.remove(key) {
            self.order.remove(&waiting.number);
            self.ready.push_back(waiting.row);
        }
    }

    fn release_oldest(&mut self) -> bool {
        let Some((_, key)) = self.order.pop_first() else {
            return false;
        };
        self.release(&key);
        true
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::Lifetime;

    use super::*;

    fn put(key: impl Into<Key>, value: impl Into<Key>) -> Row {
        Row {
            line: 1,
            operation: Operation::Put {
                key: key.into(),
                value: value.into(),
                lifetime: Lifetime::Forever,
            },
        }
    }

    fn manifest(key: &str, id: u8, parts: u64) -> Row {
        let manifest = Manifest {
            id: ObjectId([id; 16]),
            size: parts,
            part_bytes: 1,
        };
        put(key.to_owned(), manifest.encode())
    }

    fn part(key: &str, id: u8, number: u32) -> Row {
        put(
            PartKey::part(key.as_bytes(), ObjectId([id; 16]), number),
            "x",
        )
    }

    fn hold(manifests: &mut Manifests, row: Row) {
        assert!(matches!(manifests.sort(row), Sorted::Held));
    }

    fn pass(manifests: &mut Manifests, row: Row) {
        assert!(matches!(manifests.sort(row), Sorted::Next(_)));
    }

    fn due(manifests: &mut Manifests) -> Vec<String> {
        let mut keys = Vec::new();
        while manifests.is_due()
            && let Some(row) = manifests.next()
        {
            keys.push(String::from_utf8_lossy(row.operation.key()).into_owned());
        }
        keys
    }

    #[test]
    fn a_manifest_comes_behind_its_parts() {
        let mut manifests = Manifests::default();
        hold(&mut manifests, manifest("k", 1, 2));
        pass(&mut manifests, put("other", "x"));
        pass(&mut manifests, part("k", 1, 0));
        // Of another id.
        pass(&mut manifests, part("k", 2, 1));
        assert!(manifests.ready.is_empty());
        pass(&mut manifests, part("k", 1, 1));
        assert_eq!(manifests.ready.len(), 1);
        assert!(!manifests.is_due(), "a few wait for one another");
        assert!(manifests.end());
        assert_eq!(due(&mut manifests), ["k"]);
        assert!(!manifests.end());
    }

    #[test]
    fn many_whose_parts_are_in_are_due_together() {
        let mut manifests = Manifests::default();
        for n in 0..READY_MAX {
            assert!(!manifests.is_due());
            let key = format!("k{n}");
            hold(&mut manifests, manifest(&key, 1, 1));
            pass(&mut manifests, part(&key, 1, 0));
        }
        assert_eq!(due(&mut manifests).len(), READY_MAX);
        assert!(!manifests.is_due());
    }

    #[test]
    fn a_later_row_with_its_key_comes_behind_it() {
        for (parts, came) in [(2, 1), (1, 1)] {
            let mut manifests = Manifests::default();
            hold(&mut manifests, manifest("k", 1, parts));
            for number in 0..came {
                pass(&mut manifests, part("k", 1, number));
            }
            let Sorted::Postponed(again) = manifests.sort(manifest("k", 2, 1)) else {
                panic!("it comes behind the other one");
            };
            assert_eq!(due(&mut manifests), ["k"]);
            hold(&mut manifests, again);
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_the_oldest_goes_in_first() {
        let mut manifests = Manifests::default();
        for n in 0..HELD_MAX {
            hold(&mut manifests, manifest(&format!("k{n}"), 1, 1));
            assert!(!manifests.is_due());
        }
        hold(&mut manifests, manifest("more", 1, 1));
        assert_eq!(due(&mut manifests), ["k0"]);
        assert_eq!(manifests.waiting.len(), HELD_MAX);
    }
}
