//! What a reader's state is at each mark, and what was told since the mark before.

use std::collections::{BTreeMap, BTreeSet};

use super::{Mode, Reference, Told, WatchStream};
use crate::history::{Seen, Start, Write};

/// From one mark (or the start) to the next.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    /// The mark before.
    from: u64,
    /// The mark that closes it.
    mark: u64,
    /// Whether there was a break in it.
    pub(super) broken: bool,
    /// Whether the watch said in it that steps are left out.
    pub(super) resynced: bool,
    /// Whether removals are not told: what it began with is gone.
    whole: bool,
    told: BTreeSet<String>,
    /// What the reader has at the mark; none, if where it began is not known.
    state: BTreeMap<String, Seen>,
    /// The position that the reader's state began with, if not with nothing.
    base: u64,
}

/// All that were closed by a mark.
pub(super) fn passes(stream: &WatchStream) -> Vec<Pass> {
    let mut passes = Vec::new();
    let mut pass = Pass {
        from: 0,
        mark: 0,
        broken: false,
        resynced: false,
        whole: false,
        told: BTreeSet::new(),
        state: BTreeMap::new(),
        base: 0,
    };
    let mut opened = false;
    for (_, told) in &stream.events {
        match told {
            Told::Opened { start, position } => {
                if opened {
                    pass.broken = true;
                    pass.told.clear();
                    if *start == Start::Beginning {
                        // The reader begins anew, with nothing.
                        pass.whole = true;
                        pass.state.clear();
                    }
                } else {
                    pass.from = *position;
                    pass.whole = *start == Start::Beginning;
                    pass.base = if pass.whole { 0 } else { *position };
                }
                opened = true;
            }
            Told::Continuous | Told::Broke { .. } => pass.broken = true,
            Told::Resynced { .. } => {
                (pass.broken, pass.resynced) = (true, true);
                pass.told.clear();
            }
            Told::Reset => {
                pass.whole = true;
                pass.base = 0;
                pass.state.clear();
                pass.told.clear();
            }
            Told::Commit(commit) => {
                for (key, write) in &commit.changes {
                    match write {
                        Write::Put(value) => pass.take(key, Some(value), commit.revision),
                        Write::Remove => pass.take(key, None, commit.revision),
                        Write::Signal(_) => {}
                    }
                }
            }
            Told::State {
                key,
                value,
                revision,
            } => pass.take(key, value.as_ref(), *revision),
            Told::Mark { revision, .. } => {
                pass.mark = *revision;
                passes.push(pass.clone());
                pass = Pass {
                    from: *revision,
                    mark: *revision,
                    broken: false,
                    resynced: false,
                    whole: false,
                    told: BTreeSet::new(),
                    ..pass
                };
            }
            Told::Asked { .. } | Told::Lost { .. } => {}
        }
    }
    passes
}

impl Pass {
    /// A removal stays, as an empty value of its revision, so that it covers what the base has.
    fn take(&mut self, key: &str, value: Option<&String>, revision: u64) {
        self.told.insert(key.to_owned());
        let seen = Seen {
            value: value.cloned().unwrap_or_default(),
            revision,
        };
        self.state.insert(key.to_owned(), seen);
    }

    /// Keys that changed and were not told (mode `Latest`).
    pub(super) fn missed(&self, stream: &WatchStream, reference: &Reference) -> Vec<String> {
        let changed = reference.changed(&stream.range, self.from, self.mark);
        let due = changed.into_iter().filter(|key| {
            // Where the reader began with nothing, what is gone is not told.
            let gone = self.whole && reference.value(key, self.mark).is_none();
            !gone && !self.told.contains(key)
        });
        due.map(|key| {
            format!(
                "{key} changed between {} and {} and was not told",
                self.from, self.mark
            )
        })
        .collect()
    }

    /// How the reader's state at the mark differs from the log's, if it does.
    pub(super) fn wrong(&self, stream: &WatchStream, reference: &Reference) -> Option<String> {
        if self.mark > reference.end {
            return None;
        }
        let mut has = reference.state(&stream.range, self.base);
        if self.base == 0 {
            has.clear();
        }
        for (key, seen) in &self.state {
            if seen.value.is_empty() {
                has.remove(key);
            } else {
                has.insert(key.clone(), seen.clone());
            }
        }
        let state = reference.state(&stream.range, self.mark);
        let kind = match stream.mode {
            Mode::Every => "the commits told make",
            Mode::Latest => "the states told make",
        };
        (has != state).then(|| {
            format!(
                "at mark {} {kind} {has:?}, the state is {state:?}",
                self.mark
            )
        })
    }
}
