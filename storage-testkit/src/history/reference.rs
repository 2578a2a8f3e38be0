//! The store as its log says it was: the state of every key at every revision.
//!
//! Built from the log of a run alone. Invariant: `commits` ascends strictly in revision (what does not is left out
//! here, and told by the ledger).

use std::collections::{BTreeMap, BTreeSet};

use super::{Logged, Range, Seen, Write};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// As the log tells them, even where it repeats itself.
    pub raw: Vec<Logged>,
    /// Up to where the log is complete.
    pub end: u64,
    commits: BTreeMap<u64, Logged>,
    /// Of each key, each revision that changed it, with its value since.
    versions: BTreeMap<String, Vec<(u64, Option<String>)>>,
}

impl Reference {
    /// From a log that begins with the first commit and is complete up to `end`.
    #[must_use]
    pub fn new(log: &[Logged], end: u64) -> Self {
        let mut reference = Self {
            raw: log.to_vec(),
            end,
            ..Self::default()
        };
        for commit in log {
            let newest = reference.commits.last_key_value();
            if newest.is_some_and(|(revision, _)| *revision >= commit.revision) {
                continue;
            }
            for (key, write) in &commit.changes {
                let value = match write {
                    Write::Put(value) => Some(value.clone()),
                    Write::Remove => None,
                    Write::Signal(_) => continue,
                };
                let versions = reference.versions.entry(key.clone()).or_default();
                versions.push((commit.revision, value));
            }
            reference.commits.insert(commit.revision, commit.clone());
        }
        reference
    }

    /// The commit of this revision.
    #[must_use]
    pub fn commit(&self, revision: u64) -> Option<&Logged> {
        self.commits.get(&revision)
    }

    /// What the commit of this revision is to a watcher of `range`; none, if nothing.
    #[must_use]
    pub fn cut(&self, revision: u64, range: &Range) -> Option<Logged> {
        let mut commit = self.commit(revision)?.clone();
        commit.changes.retain(|(key, _)| range.contains(key));
        (!commit.changes.is_empty()).then_some(commit)
    }

    /// The first commit that touches `range` after one revision and not after another.
    #[must_use]
    pub fn first_between(&self, range: &Range, after: u64, up_to: u64) -> Option<u64> {
        self.revisions(range, after, up_to).next()
    }

    /// All commits that touch `range` after one revision and not after another.
    pub fn revisions<'a>(
        &'a self,
        range: &'a Range,
        after: u64,
        up_to: u64,
    ) -> impl Iterator<Item = u64> + 'a {
        let span = (after < up_to).then(|| self.commits.range(after + 1..=up_to));
        span.into_iter()
            .flatten()
            .filter(|(_, commit)| commit.changes.iter().any(|(key, _)| range.contains(key)))
            .map(|(revision, _)| *revision)
    }

    /// What changed `key` last, at or before `revision`: when, and its value since.
    #[must_use]
    pub fn version(&self, key: &str, revision: u64) -> Option<(u64, Option<&str>)> {
        let versions = self.versions.get(key)?;
        let count = versions.partition_point(|(at, _)| *at <= revision);
        let (at, value) = versions.get(count.checked_sub(1)?)?;
        Some((*at, value.as_deref()))
    }

    /// The value of `key` at `revision`.
    #[must_use]
    pub fn value(&self, key: &str, revision: u64) -> Option<Seen> {
        let (revision, value) = self.version(key, revision)?;
        Some(Seen {
            value: value?.to_owned(),
            revision,
        })
    }

    /// All values of a range at `revision`.
    #[must_use]
    pub fn state(&self, range: &Range, revision: u64) -> BTreeMap<String, Seen> {
        let inside = self.versions.keys().filter(|key| range.contains(key));
        inside
            .filter_map(|key| Some((key.clone(), self.value(key, revision)?)))
            .collect()
    }

    /// The keys of a range whose state changed after one revision and not after another.
    #[must_use]
    pub fn changed(&self, range: &Range, after: u64, up_to: u64) -> BTreeSet<String> {
        let inside = self.versions.keys().filter(|key| range.contains(key));
        inside
            .filter(|key| self.version(key, up_to).is_some_and(|(at, _)| at > after))
            .cloned()
            .collect()
    }

    /// Whether at some revision from `low` on and below `below` the key was at `revision` (none: absent).
    #[must_use]
    pub fn was_at(&self, key: &str, revision: Option<u64>, low: u64, below: u64) -> bool {
        if low >= below {
            return false;
        }
        let now = |at| self.value(key, at).map(|seen| seen.revision);
        if now(low) == revision {
            return true;
        }
        let versions = self.versions.get(key).map_or(&[][..], Vec::as_slice);
        versions
            .iter()
            .any(|(at, _)| *at > low && *at < below && now(*at) == revision)
    }
}
