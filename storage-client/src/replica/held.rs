//! The copy itself, and what is staged for it. Pure: nothing here waits.
//!
//! Invariant: [`Held`] is always the state of the range at [`Held::position`]. What a watch delivers between two
//! progress events goes into a [`Staging`], and becomes part of the copy in one step, at the second one.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage_protocol::{Entry, Key, KeyState, Position, StorageError};

use super::changes::KeyChange;
use super::clock::Moment;

/// What an entry costs beside the bytes of its key and its value: its slot in the tree (88 bytes, in nodes that are at
/// least half full) and the allocator's and `Bytes`' share of two buffers. Measured were 324 bytes of the process's
/// resident memory, fragmentation by the staging's tree included (`scripts/bench part replica`).
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 336;

/// How many bytes a staged or held entry counts.
fn cost(key: &Key, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + ENTRY_OVERHEAD_BYTES
}

/// A copy outside of the message that the entry arrived in: the entry would keep the whole message in memory.
pub(super) fn detached(entry: &Entry) -> Entry {
    Entry {
        value: Bytes::copy_from_slice(&entry.value),
        ..*entry
    }
}

/// A coherent state.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: BTreeMap<Key, Entry>,
    bytes: usize,
    /// `None`: no progress event has arrived yet.
    pub(super) position: Option<Position>,
    /// When the probe was sent whose answer proved this state, or an earlier one.
    pub(super) proven: Option<Moment>,
    /// Why the replica stopped, if it did: then nothing is held.
    pub(super) stopped: Option<StorageError>,
}

impl Held {
    /// A state that was kept on disk.
    pub(super) fn saved(position: Position, entries: BTreeMap<Key, Entry>) -> Self {
        let costs = entries
            .iter()
            .map(|(key, entry)| cost(key, Some(&entry.value)));
        Self {
            bytes: costs.sum(),
            entries,
            position: Some(position),
            ..Self::default()
        }
    }

    pub(super) fn entries(&self) -> &BTreeMap<Key, Entry> {
        &self.entries
    }

    /// How many bytes it counts, by [`cost`].
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Applies the staged states, as the state at `position`; returns what really changed, in key order.
    pub(super) fn apply(&mut self, staging: Staging, position: Position) -> Vec<KeyChange> {
        self.position = Some(position);
        if staging.whole || self.entries.is_empty() {
            return self.replace(staging);
        }
        let mut changes = Vec::with_capacity(staging.states.len());
        for (key, state) in staging.states {
            let entry = match state {
                KeyState::Live(entry) => Some(entry),
                KeyState::Removed(_) => None,
            };
            if self.set(&key, entry.clone()) {
                changes.push(KeyChange { key, entry });
            }
        }
        changes
    }

    /// Puts or removes one entry; true if that made a difference.
    pub(super) fn set(&mut self, key: &Key, entry: Option<Entry>) -> bool {
        if self.entries.get(key) == entry.as_ref() {
            return false;
        }
        if let Some((key, old)) = self.entries.remove_entry(key) {
            self.bytes -= cost(&key, Some(&old.value));
        }
        if let Some(entry) = entry {
            self.bytes += cost(key, Some(&entry.value));
            self.entries.insert(key.clone(), entry);
        }
        true
    }

    /// Replaces everything: what is not staged is gone.
    fn replace(&mut self, staging: Staging) -> Vec<KeyChange> {
        let live = staging
            .states
            .into_iter()
            .filter_map(|(key, state)| match state {
                KeyState::Live(entry) => Some((key, entry)),
                KeyState::Removed(_) => None,
            });
        // Built from sorted entries, a tree is fuller, and built faster, than by single insertions.
        let entries: BTreeMap<Key, Entry> = live.collect();
        let mut changes = Vec::new();
        let gone = self
            .entries
            .keys()
            .filter(|&key| !entries.contains_key(key));
        changes.extend(gone.map(|key| KeyChange {
            key: key.clone(),
            entry: None,
        }));
        let changed = entries
            .iter()
            .filter(|&(key, entry)| self.entries.get(key) != Some(entry));
        changes.extend(changed.map(|(key, entry)| KeyChange {
            key: key.clone(),
            entry: Some(entry.clone()),
        }));
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        let costs = entries
            .iter()
            .map(|(key, entry)| cost(key, Some(&entry.value)));
        self.bytes = costs.sum();
        self.entries = entries;
        changes
    }

    /// Drops everything; reads are refused with `why` from now on.
    pub(super) fn stop(&mut self, why: StorageError) {
        *self = Self {
            position: self.position,
            proven: self.proven,
            stopped: Some(why),
            ..Self::default()
        };
    }
}

/// What was delivered since the last progress event.
#[derive(Debug, Default)]
pub(super) struct Staging {
    states: BTreeMap<Key, KeyState>,
    bytes: usize,
    /// At the progress event, what is not in `states` is gone.
    pub(super) whole: bool,
}

impl Staging {
    /// For a pass that begins anew.
    pub(super) fn whole() -> Self {
        Self {
            whole: true,
            ..Self::default()
        }
    }

    /// Stages (copies) the state of a key.
    pub(super) fn stage(&mut self, key: &Key, state: KeyState) {
        let key = Bytes::copy_from_slice(key);
        let (state, added) = match state {
            KeyState::Live(entry) => {
                let added = cost(&key, Some(&entry.value));
                (KeyState::Live(detached(&entry)), added)
            }
            KeyState::Removed(revision) => (KeyState::Removed(revision), cost(&key, None)),
        };
        // The old key is removed too: an insertion alone would keep it.
        if let Some((key, old)) = self.states.remove_entry(&key) {
            let value = match &old {
                KeyState::Live(entry) => Some(&entry.value),
                KeyState::Removed(_) => None,
            };
            self.bytes -= cost(&key, value);
        }
        self.bytes += added;
        self.states.insert(key, state);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use storage_protocol::{EntryLifetime, Epoch, Revision};

    use super::*;

    fn live(value: &'static str, revision: u64) -> KeyState {
        KeyState::Live(Entry {
            value: value.into(),
            revision: Revision(revision),
            lifetime: EntryLifetime::Forever,
        })
    }

    fn at(revision: u64) -> Position {
        Position {
            epoch: Epoch(1),
            revision: Revision(revision),
        }
    }

    fn keys(changes: &[KeyChange]) -> Vec<(&[u8], bool)> {
        let told = changes
            .iter()
            .map(|change| (change.key.as_ref(), change.entry.is_some()));
        told.collect()
    }

    #[test]
    fn what_is_staged_is_seen_at_the_mark_only_and_counted_exactly() {
        let mut held = Held::default();
        let mut staging = Staging::default();
        staging.stage(&"b".into(), live("old", 1));
        staging.stage(&"b".into(), live("1234", 2));
        staging.stage(&"a".into(), live("", 2));
        staging.stage(&"gone".into(), KeyState::Removed(Revision(2)));
        assert_eq!(staging.bytes(), 3 * ENTRY_OVERHEAD_BYTES + 5 + 1 + 4);
        assert!(held.entries().is_empty());
        let changes = held.apply(staging, at(2));
        assert_eq!(keys(&changes), [(&b"a"[..], true), (b"b", true)]);
        assert_eq!(held.bytes(), 2 * ENTRY_OVERHEAD_BYTES + 6);
        let mut staging = Staging::default();
        staging.stage(&"b".into(), KeyState::Removed(Revision(3)));
        staging.stage(&"a".into(), live("", 2));
        let changes = held.apply(staging, at(3));
        assert_eq!(keys(&changes), [(&b"b"[..], false)]);
        assert_eq!(held.bytes(), ENTRY_OVERHEAD_BYTES + 1);
        assert_eq!(held.position, Some(at(3)));
    }

    #[test]
    fn a_whole_pass_takes_away_what_it_does_not_tell() {
        let mut held = Held::default();
        let mut staging = Staging::default();
        for key in ["a", "b", "c"] {
            staging.stage(&key.into(), live("x", 1));
        }
        held.apply(staging, at(1));
        let mut staging = Staging::whole();
        staging.stage(&"b".into(), live("x", 1));
        staging.stage(&"d".into(), live("x", 2));
        let changes = held.apply(staging, at(2));
        assert_eq!(
            keys(&changes),
            [(&b"a"[..], false), (b"c", false), (b"d", true)]
        );
        assert_eq!(held.bytes(), 2 * (ENTRY_OVERHEAD_BYTES + 2));
        held.apply(Staging::whole(), at(3));
        assert!(held.entries().is_empty() && held.bytes() == 0);
    }
}
