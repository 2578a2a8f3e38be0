//! Six validators, one for each promise of a watch, on what one subscriber was told over all its breaks.
//!
//! | promise | `Every` | `Latest` |
//! | --- | --- | --- |
//! | [`ordered`] | revisions grow | within a pass they do not fall, and all are above the mark before |
//! | [`unique`] | no commit twice | no key twice in a pass, no state twice |
//! | [`reliable`] | no commit between the first and the last position is left out | each key that changed between two marks is told |
//! | [`atomic`] | each commit is what the log has, cut to the range, in one piece | each state is one that the log has |
//! | [`resumable`] | behind a break it goes on right after what was told last, or says that it cannot; behind `Resynced` the state at the next mark is right | the same |
//! | [`bookmarkable`] | at mark r all up to r was told, and nothing up to r comes later; a mark that was asked for is not older than the question | the same, and the state at r is right |
//!
//! Each looks at the stream alone and on its own, so that a finding names the promise that is broken.

mod passes;
mod resume;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use super::{Acknowledged, Mode, Promise, Reference, Told, Violation, WatchStream};

pub use resume::resumable;

/// All six.
#[must_use]
pub fn check(
    stream: &WatchStream,
    reference: &Reference,
    acknowledged: &Acknowledged,
) -> Vec<Violation> {
    [
        ordered(stream),
        unique(stream),
        reliable(stream, reference),
        atomic(stream, reference),
        resumable(stream, reference),
        bookmarkable(stream, reference, acknowledged),
    ]
    .concat()
}

/// Collects findings under the stream's name.
struct Findings<'a> {
    promise: Promise,
    stream: &'a WatchStream,
    found: Vec<Violation>,
}

impl<'a> Findings<'a> {
    fn new(promise: Promise, stream: &'a WatchStream) -> Self {
        Self {
            promise,
            stream,
            found: Vec::new(),
        }
    }

    fn tell(&mut self, what: impl std::fmt::Display) {
        let WatchStream {
            name, mode, range, ..
        } = self.stream;
        let what = format!("watch {name} ({mode:?} of {range:?}): {what}");
        self.found.push(Violation::new(self.promise, what));
    }
}

/// Revisions grow.
#[must_use]
pub fn ordered(stream: &WatchStream) -> Vec<Violation> {
    let mut findings = Findings::new(Promise::Ordered, stream);
    let (mut last, mut mark) = (0, 0);
    for (_, told) in &stream.events {
        match told {
            Told::Opened { position, .. } => (last, mark) = (*position, *position),
            Told::Commit(commit) => {
                let revision = commit.revision;
                if revision <= last {
                    findings.tell(format_args!("commit {revision} comes behind {last}"));
                }
                last = last.max(revision);
            }
            Told::State { key, revision, .. } => {
                if *revision < last || *revision <= mark {
                    findings.tell(format_args!(
                        "{key} at {revision} comes behind {last}, and the mark {mark}"
                    ));
                }
                last = last.max(*revision);
            }
            Told::Mark { revision, .. } => {
                if *revision < last {
                    findings.tell(format_args!("mark {revision} comes behind {last}"));
                }
                (last, mark) = (*revision, *revision);
            }
            // A pass begins anew; behind a Resynced it tells also what is older.
            Told::Continuous if stream.mode == Mode::Latest => last = mark,
            Told::Resynced { .. } | Told::Reset => (last, mark) = (0, 0),
            Told::Continuous | Told::Asked { .. } | Told::Lost { .. } | Told::Broke { .. } => {}
        }
    }
    findings.found
}

/// Nothing comes twice.
#[must_use]
pub fn unique(stream: &WatchStream) -> Vec<Violation> {
    let mut findings = Findings::new(Promise::Unique, stream);
    let (mut revisions, mut labels) = (HashSet::new(), HashSet::new());
    let mut pass: HashMap<&str, u64> = HashMap::new();
    // Of each key, what a mark has covered.
    let mut settled: HashMap<&str, u64> = HashMap::new();
    let mut repeats = false;
    for (_, told) in &stream.events {
        match told {
            Told::Commit(commit) => {
                if !revisions.insert(commit.revision) {
                    findings.tell(format_args!("revision {} comes twice", commit.revision));
                } else if !labels.insert(&commit.label) {
                    findings.tell(format_args!("commit {} comes twice", commit.label));
                }
            }
            Told::State { key, revision, .. } => {
                if pass.insert(key, *revision).is_some() {
                    findings.tell(format_args!("{key} comes twice between two marks"));
                }
                let before = settled.get(key.as_str());
                if !repeats && before.is_some_and(|before| before >= revision) {
                    findings.tell(format_args!("{key} at {revision} comes twice"));
                }
            }
            Told::Mark { .. } => {
                settled.extend(pass.drain());
                repeats = false;
            }
            // The pass is begun anew.
            Told::Opened { .. } | Told::Continuous => pass.clear(),
            Told::Resynced { .. } | Told::Reset => {
                pass.clear();
                repeats = true;
            }
            Told::Asked { .. } | Told::Lost { .. } | Told::Broke { .. } => {}
        }
    }
    findings.found
}

/// Nothing is left out. What is left out at a break is [`resumable`]'s to tell.
#[must_use]
pub fn reliable(stream: &WatchStream, reference: &Reference) -> Vec<Violation> {
    let mut findings = Findings::new(Promise::Reliable, stream);
    if stream.mode == Mode::Latest {
        for pass in passes::passes(stream).iter().filter(|pass| !pass.broken) {
            for missed in pass.missed(stream, reference) {
                findings.tell(missed);
            }
        }
        return findings.found;
    }
    // Where it stands; none right behind a break.
    let mut at = None;
    let mut opened = false;
    for (_, told) in &stream.events {
        let (up_to, stands) = match told {
            Told::Opened { position, .. } => {
                at = (!opened).then_some(*position);
                opened = true;
                continue;
            }
            Told::Continuous | Told::Resynced { .. } | Told::Broke { .. } => {
                at = None;
                continue;
            }
            Told::Commit(commit) => (commit.revision.saturating_sub(1), commit.revision),
            Told::Mark { revision, .. } => (*revision, *revision),
            _ => continue,
        };
        if let Some(at) = at
            && let Some(missed) = reference.first_between(&stream.range, at, up_to)
        {
            findings.tell(format_args!(
                "commit {missed} was not told between {at} and {stands}"
            ));
        }
        at = Some(stands);
    }
    findings.found
}

/// A commit comes as a whole.
#[must_use]
pub fn atomic(stream: &WatchStream, reference: &Reference) -> Vec<Violation> {
    let mut findings = Findings::new(Promise::Atomic, stream);
    for (_, told) in &stream.events {
        match told {
            Told::Commit(commit) if commit.revision <= reference.end => {
                let whole = reference.cut(commit.revision, &stream.range);
                if whole.as_ref() != Some(commit) {
                    findings.tell(format_args!("it told {commit:?}, the log has {whole:?}"));
                }
            }
            Told::State {
                key,
                value,
                revision,
            } if *revision <= reference.end => {
                let version = reference.version(key, *revision);
                if !stream.range.contains(key) || version != Some((*revision, value.as_deref())) {
                    findings.tell(format_args!(
                        "it told {key} as {value:?} at {revision}, the log has {version:?}"
                    ));
                }
            }
            _ => {}
        }
    }
    findings.found
}

/// Marks are true.
#[must_use]
pub fn bookmarkable(
    stream: &WatchStream,
    reference: &Reference,
    acknowledged: &Acknowledged,
) -> Vec<Violation> {
    let mut findings = Findings::new(Promise::Bookmarkable, stream);
    let mut marked = 0;
    let mut told_commits = HashSet::new();
    let mut compared = None;
    let mut asked: HashMap<u64, u64> = HashMap::new();
    let mut repeats = false;
    for (at, told) in &stream.events {
        match told {
            Told::Opened { position, .. } => {
                compared.get_or_insert(*position);
            }
            Told::Commit(commit) => {
                if commit.revision <= marked {
                    let revision = commit.revision;
                    findings.tell(format_args!("commit {revision} comes behind mark {marked}"));
                }
                told_commits.insert(commit.revision);
            }
            Told::State { key, revision, .. } if !repeats && *revision <= marked => {
                findings.tell(format_args!(
                    "{key} at {revision} comes behind mark {marked}"
                ));
            }
            Told::Asked { token } => {
                asked.insert(*token, acknowledged.before(*at));
            }
            Told::Mark { revision, token } => {
                if let Some(token) = token {
                    match asked.remove(token) {
                        None => findings.tell(format_args!("mark {token} was not asked for")),
                        Some(floor) if *revision < floor => findings.tell(format_args!(
                            "mark {revision} is older than its question: {floor} was acknowledged"
                        )),
                        Some(_) => {}
                    }
                }
                if stream.mode == Mode::Every && !repeats {
                    let after = compared.unwrap_or_default();
                    let missing = reference
                        .revisions(&stream.range, after, *revision)
                        .find(|due| !told_commits.contains(due));
                    if let Some(missing) = missing {
                        findings.tell(format_args!(
                            "mark {revision}, and commit {missing} was not told before"
                        ));
                    }
                }
                compared = compared.max(Some(*revision));
                marked = marked.max(*revision);
                repeats = false;
            }
            Told::Resynced { .. } | Told::Reset => {
                repeats = true;
                marked = 0;
            }
            _ => {}
        }
    }
    for pass in passes::passes(stream).iter().filter(|pass| !pass.resynced) {
        if let Some(wrong) = pass.wrong(stream, reference) {
            findings.tell(wrong);
        }
    }
    findings.found
}
