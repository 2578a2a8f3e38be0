//! Re-reads of keys, which are compared with the copy at a progress event.
//!
//! A re-read at revision R is checked at the first progress event M at or after R. If the watch delivered a state of a
//! key that is newer than R, the watch is right; for any other key, what was read at R still holds at M. To know which,
//! a re-read is registered *before* the keys are read, and what is delivered of its keys from then on is noted. A pass
//! from the beginning has itself re-read everything.

use std::collections::BTreeMap;

use storage_protocol::{Entry, Key, Position, Reading, Revision};
use tokio::sync::oneshot;

use super::changes::KeyChange;
use super::disk::Row;
use super::held::{Held, detached};

/// How a re-read ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// At this position the copy of these keys is what the server has; so many entries were repaired.
    Judged { position: Position, repaired: usize },
    /// Reading and progress event are of different histories: read again.
    Stale,
}

/// A re-read under way.
#[derive(Debug)]
struct Pending {
    id: u64,
    /// The position of the state when it was registered.
    since: Option<Position>,
    /// For each of its keys the newest revision that the watch has delivered since.
    told: BTreeMap<Key, Option<Revision>>,
    /// What was read, and its position.
    read: Option<Reading<Vec<Row>>>,
    answer: Option<oneshot::Sender<Verdict>>,
}

/// All re-reads under way.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    next_id: u64,
    pending: Vec<Pending>,
}

impl Reloads {
    /// Registers a re-read. To be called before the keys are read.
    pub(super) fn register(&mut self, keys: &[Key], since: Option<Position>) -> u64 {
        self.next_id += 1;
        self.pending.push(Pending {
            id: self.next_id,
            since,
            told: keys.iter().map(|key| (key.clone(), None)).collect(),
            read: None,
            answer: None,
        });
        self.next_id
    }

    /// Notes what was read; the verdict follows at a progress event.
    pub(super) fn read(
        &mut self,
        id: u64,
        keys: &[Key],
        reading: Reading<Vec<Option<Entry>>>,
    ) -> oneshot::Receiver<Verdict> {
        let (answer, verdict) = oneshot::channel();
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id) {
            let rows = keys.iter().cloned().zip(reading.value);
            pending.read = Some(Reading {
                position: reading.position,
                value: rows.collect(),
            });
            pending.answer = Some(answer);
        }
        verdict
    }

    pub(super) fn forget(&mut self, id: u64) {
        self.pending.retain(|pending| pending.id != id);
    }

    /// Notes a state that the watch delivered.
    pub(super) fn told(&mut self, key: &Key, revision: Revision) {
        for pending in &mut self.pending {
            if let Some(told) = pending.told.get_mut(key) {
                *told = (*told).max(Some(revision));
            }
        }
    }

    /// Checks the re-reads that are due at a progress event which was just applied, repairs the copy, and adds the
    /// repairs to its changes.
    pub(super) fn check_reload(
        &mut self,
        held: &mut Held,
        position: Position,
        whole: bool,
        changes: &mut Vec<KeyChange>,
    ) -> u64 {
        let mut all_repaired = 0;
        self.pending.retain_mut(|pending| {
            let Some(reading) = &pending.read else {
                return true;
            };
            let same_history = reading.position.epoch == position.epoch;
            if same_history && reading.position.revision > position.revision {
                return true;
            }
            let before_us = pending.since.is_some_and(|since| {
                since.epoch == reading.position.epoch && since.revision > reading.position.revision
            });
            let verdict = if !same_history || before_us {
                Verdict::Stale
            } else {
                let trusted = reading.value.iter().filter(|(key, _)| {
                    let told = pending.told.get(key).copied().flatten();
                    !whole && told.is_none_or(|told| told <= reading.position.revision)
                });
                let mut repaired = 0;
                for (key, entry) in trusted {
                    let (key, entry) = (Key::copy_from_slice(key), entry.as_ref().map(detached));
                    if held.set(&key, entry.clone()) {
                        repaired += 1;
                        changes.retain(|change| change.key != key);
                        changes.push(KeyChange { key, entry });
                    }
                }
                all_repaired += repaired as u64;
                Verdict::Judged { position, repaired }
            };
            if let Some(answer) = pending.answer.take() {
                // The caller may have given up.
                let _ = answer.send(verdict);
            }
            false
        });
        if all_repaired > 0 {
            changes.sort_by(|a, b| a.key.cmp(&b.key));
        }
        all_repaired
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{EntryLifetime, Epoch, KeyState};

    use super::super::held::Staging;
    use super::*;

    fn at(epoch: u64, revision: u64) -> Position {
        Position {
            epoch: Epoch(epoch),
            revision: Revision(revision),
        }
    }

    fn entry(value: &'static str, revision: u64) -> Entry {
        Entry {
            value: value.into(),
            revision: Revision(revision),
            lifetime: EntryLifetime::Forever,
        }
    }

    /// A copy with a wrong `k`, and a re-read of `k` registered at revision 5.
    fn wrong() -> (Held, Reloads, u64) {
        let mut held = Held::default();
        let mut staging = Staging::default();
        staging.stage(&"k".into(), KeyState::Live(entry("wrong", 3)));
        held.apply(staging, at(1, 5));
        let mut reloads = Reloads::default();
        let id = reloads.register(&["k".into()], held.position);
        (held, reloads, id)
    }

    fn reading(position: Position, value: Option<Entry>) -> Reading<Vec<Option<Entry>>> {
        Reading {
            position,
            value: vec![value],
        }
    }

    #[test]
    fn a_wrong_entry_is_repaired_at_a_mark_no_older_than_the_reading() {
        let (mut held, mut reloads, id) = wrong();
        let truth = entry("right", 3);
        let mut verdict = reloads.read(id, &["k".into()], reading(at(1, 8), Some(truth.clone())));
        let mut changes = Vec::new();
        reloads.check_reload(&mut held, at(1, 7), false, &mut changes);
        assert!(changes.is_empty() && verdict.try_recv().is_err());
        reloads.check_reload(&mut held, at(1, 9), false, &mut changes);
        assert_eq!(held.entries().get(&Key::from("k")), Some(&truth));
        assert_eq!(changes.len(), 1);
        let position = at(1, 9);
        assert_eq!(
            verdict.try_recv().unwrap(),
            Verdict::Judged {
                position,
                repaired: 1
            }
        );
    }

    #[test]
    fn what_the_watch_told_later_stands() {
        for removed in [true, false] {
            let (mut held, mut reloads, id) = wrong();
            let newer = (!removed).then(|| entry("newer", 9));
            reloads.told(&"k".into(), Revision(9));
            held.set(&"k".into(), newer.clone());
            let read = reading(at(1, 8), Some(entry("right", 3)));
            let mut verdict = reloads.read(id, &["k".into()], read);
            reloads.check_reload(&mut held, at(1, 9), false, &mut Vec::new());
            assert_eq!(
                held.entries().get(&Key::from("k")),
                newer.as_ref(),
                "went back"
            );
            let position = at(1, 9);
            assert_eq!(
                verdict.try_recv().unwrap(),
                Verdict::Judged {
                    position,
                    repaired: 0
                }
            );
        }
    }

    #[test]
    fn a_reading_of_another_history_or_from_before_is_not_used() {
        for read_at in [at(2, 6), at(1, 4)] {
            let (mut held, mut reloads, id) = wrong();
            let mut verdict = reloads.read(id, &["k".into()], reading(read_at, None));
            reloads.check_reload(&mut held, at(1, 9), false, &mut Vec::new());
            assert_eq!(verdict.try_recv().unwrap(), Verdict::Stale);
            assert_eq!(held.entries().len(), 1);
        }
    }
}
