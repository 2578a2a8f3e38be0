//! The calls of a history against the log of the store.
//!
//! The log gives each commit its revision, also those whose answer was lost, so this needs no search: every answer
//! must be what the log makes true at the revision it tells, and revisions must keep the order of real time.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::{Acknowledged, Call, Expect, Logged, OpId, Outcome, Promise, Reference, Request};
use super::{Violation, Write};

/// All that does not fit.
#[must_use]
pub fn check(calls: &[Call], reference: &Reference) -> Vec<Violation> {
    let mut found = Vec::new();
    let by_label: HashMap<String, &Call> = calls
        .iter()
        .map(|call| (call.id.to_string(), call))
        .collect();
    let logged = logged(reference, &by_label, &mut found);
    let acknowledged = Acknowledged::new(calls);
    let later = Later::new(calls, &logged);
    for call in calls {
        let entry = logged.get(&call.id).copied();
        let ledger = Ledger {
            reference,
            acknowledged: &acknowledged,
            later: &later,
        };
        ledger.real_time(call, entry, &mut found);
        match &call.request {
            Request::Get { keys } => ledger.get(call, keys, &mut found),
            Request::Scan { range } => {
                if let Outcome::Read { revision, values } = &call.outcome {
                    let state = reference.state(range, *revision).into_iter();
                    let state: Vec<_> = state.map(|(key, seen)| (key, Some(seen))).collect();
                    if state != *values {
                        found.push(Violation::new(
                            Promise::OneRevision,
                            format!("scan {} of {range:?} at {revision} told {values:?}, the state is {state:?}", call.id),
                        ));
                    }
                }
            }
            Request::Commit { checks, writes } => {
                ledger.commit(call, checks, writes, entry, &mut found);
            }
        }
    }
    found
}

/// Each commit of the log by its call; what has none, or has two, is told.
fn logged<'a>(
    reference: &'a Reference,
    by_label: &HashMap<String, &Call>,
    found: &mut Vec<Violation>,
) -> HashMap<OpId, &'a Logged> {
    let mut logged: HashMap<OpId, &Logged> = HashMap::new();
    let mut newest = 0;
    for commit in &reference.raw {
        let Logged {
            revision, label, ..
        } = commit;
        if *revision <= newest {
            found.push(Violation::new(
                Promise::ExactlyOnce,
                format!("the log tells revision {revision} behind {newest}"),
            ));
        }
        newest = newest.max(*revision);
        let Some(call) = by_label.get(label) else {
            found.push(Violation::new(
                Promise::ExactlyOnce,
                format!("revision {revision} is of {label:?}, which nobody committed"),
            ));
            continue;
        };
        if let Some(first) = logged.insert(call.id, commit) {
            found.push(Violation::new(
                Promise::ExactlyOnce,
                format!(
                    "{label} took effect at {} and again at {revision}",
                    first.revision
                ),
            ));
        }
    }
    logged
}

struct Ledger<'a> {
    reference: &'a Reference,
    acknowledged: &'a Acknowledged,
    later: &'a Later,
}

impl Ledger<'_> {
    /// Whoever calls after an answer sees its revision or a later one; a commit gets a later one.
    fn real_time(&self, call: &Call, entry: Option<&Logged>, found: &mut Vec<Violation>) {
        let floor = self.acknowledged.before(call.invoked);
        let is_commit = matches!(call.request, Request::Commit { .. });
        let revision = call.revision().or_else(|| Some(entry?.revision));
        if let Some(revision) = revision
            && (revision < floor || is_commit && revision == floor)
        {
            found.push(Violation::new(
                Promise::RealTime,
                format!(
                    "{} is of revision {revision}, though {floor} had been told before it was called",
                    call.id
                ),
            ));
        }
    }

    fn get(&self, call: &Call, keys: &[String], found: &mut Vec<Violation>) {
        let Outcome::Read { revision, values } = &call.outcome else {
            return;
        };
        if !values.iter().map(|(key, _)| key).eq(keys) {
            found.push(Violation::new(
                Promise::OneRevision,
                format!("get {} asked for {keys:?} and got {values:?}", call.id),
            ));
        }
        for (key, seen) in values {
            let state = self.reference.value(key, *revision);
            if state != *seen {
                found.push(Violation::new(
                    Promise::OneRevision,
                    format!(
                        "get {} at {revision} saw {key} as {seen:?}, the state is {state:?}",
                        call.id
                    ),
                ));
            }
        }
    }

    fn commit(
        &self,
        call: &Call,
        checks: &[(String, Expect)],
        writes: &[(String, Write)],
        entry: Option<&Logged>,
        found: &mut Vec<Violation>,
    ) {
        let mut tell = |promise, what| found.push(Violation::new(promise, what));
        let id = call.id;
        if let Some(entry) = entry {
            self.content(id, checks, writes, entry, &mut tell);
        }
        match (&call.outcome, entry) {
            (Outcome::Committed { revision }, Some(entry)) => {
                if *revision != entry.revision {
                    let at = entry.revision;
                    let what =
                        format!("{id} was acknowledged at {revision}, the log has it at {at}");
                    tell(Promise::ExactlyOnce, what);
                }
            }
            (Outcome::Committed { revision }, None) => {
                // Only what changes nothing is not in the log.
                let changes = self.effect(writes, *revision);
                if !changes.is_empty() && *revision <= self.reference.end {
                    let what = format!("{id} was acknowledged at {revision} and is lost");
                    tell(Promise::ExactlyOnce, what);
                }
                self.checks_hold(id, checks, *revision, &mut tell);
            }
            (Outcome::Refused { key, actual }, None) => {
                self.refusal(call, checks, key, *actual, &mut tell);
            }
            (Outcome::Refused { .. }, Some(entry)) => {
                let what = format!("{id} was refused, and took effect at {}", entry.revision);
                tell(Promise::ExactlyOnce, what);
            }
            (Outcome::NotExecuted { error }, Some(entry)) => {
                let at = entry.revision;
                let what = format!("{id} was not executed ({error}), and took effect at {at}");
                tell(Promise::ExactlyOnce, what);
            }
            (Outcome::Read { .. }, _) => {
                tell(
                    Promise::OneRevision,
                    format!("commit {id} was answered by a read"),
                );
            }
            (Outcome::NotExecuted { .. } | Outcome::Unknown { .. }, _) => {}
        }
    }

    /// What a commit changes, if it is of this revision: removing what is absent does not count.
    fn effect(&self, writes: &[(String, Write)], revision: u64) -> Vec<(String, Write)> {
        let before = revision.saturating_sub(1);
        let changes = writes.iter().filter(|(key, write)| {
            *write != Write::Remove || self.reference.value(key, before).is_some()
        });
        changes.cloned().collect()
    }

    fn content(
        &self,
        id: OpId,
        checks: &[(String, Expect)],
        writes: &[(String, Write)],
        entry: &Logged,
        tell: &mut impl FnMut(Promise, String),
    ) {
        let changes = self.effect(writes, entry.revision);
        if changes != entry.changes {
            let (at, told) = (entry.revision, &entry.changes);
            let what = format!("{id} is {changes:?}, and at {at} the log has {told:?}");
            tell(Promise::AtomicCommit, what);
        }
        self.checks_hold(id, checks, entry.revision, tell);
    }

    fn checks_hold(
        &self,
        id: OpId,
        checks: &[(String, Expect)],
        revision: u64,
        tell: &mut impl FnMut(Promise, String),
    ) {
        for (key, expected) in checks {
            let before = self.reference.value(key, revision.saturating_sub(1));
            if !holds(*expected, before.as_ref().map(|seen| seen.revision)) {
                let what = format!(
                    "{id} took effect at {revision}, though {key} was {before:?} and not {expected:?}"
                );
                tell(Promise::Checks, what);
            }
        }
    }

    /// A refusal names what made it: true at some revision between its call and its answer.
    fn refusal(
        &self,
        call: &Call,
        checks: &[(String, Expect)],
        key: &str,
        actual: Option<u64>,
        tell: &mut impl FnMut(Promise, String),
    ) {
        let id = call.id;
        let expected = checks.iter().find(|(checked, _)| checked == key);
        match expected {
            Some((_, expected)) if !holds(*expected, actual) => {}
            _ => {
                let what =
                    format!("{id} was refused for {key} at {actual:?}, which its checks allow");
                tell(Promise::Checks, what);
            }
        }
        let low = self.acknowledged.before(call.invoked);
        let below = self.later.after(call.returned);
        if !self.reference.was_at(key, actual, low, below) {
            let what = format!(
                "{id} was refused since {key} was at {actual:?}, which it never was from {low} on and below {below}"
            );
            tell(Promise::RealTime, what);
        }
    }
}

fn holds(expected: Expect, revision: Option<u64>) -> bool {
    match expected {
        Expect::Absent => revision.is_none(),
        Expect::At(at) => revision == Some(at),
    }
}

/// The lowest revision of a commit that was called after some moment.
struct Later {
    /// Call and the lowest revision of it and all later ones; both grow.
    steps: Vec<(u64, u64)>,
}

impl Later {
    fn new(calls: &[Call], logged: &HashMap<OpId, &Logged>) -> Self {
        let committed = |call: &Call| {
            let entry = logged.get(&call.id).map(|entry| entry.revision);
            let told = match call.outcome {
                Outcome::Committed { revision } => Some(revision),
                _ => None,
            };
            Some((call.invoked, entry.or(told)?))
        };
        let mut steps: Vec<_> = calls.iter().filter_map(committed).collect();
        steps.sort_unstable();
        let mut lowest = u64::MAX;
        for (_, revision) in steps.iter_mut().rev() {
            lowest = lowest.min(*revision);
            *revision = lowest;
        }
        Self { steps }
    }

    fn after(&self, moment: u64) -> u64 {
        let count = self.steps.partition_point(|(called, _)| *called <= moment);
        self.steps
            .get(count)
            .map_or(u64::MAX, |(_, revision)| *revision)
    }
}
