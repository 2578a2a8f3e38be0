//! Whether a history is linearizable, key by key, by the answers alone.
//!
//! The search is Wing and Gong's with Lowe's memory of what was tried, made per key (P-compositionality: a history is
//! linearizable exactly if that of each key is). The object is a register that also tells the revision of its value.
//! A call whose outcome is unknown may take effect at any moment after it was made, or never.
//!
//! Three things keep the search short without making it weaker. Revisions that were told fix the order of the calls
//! that have one. A read or a refusal that fits where the search stands is placed there at once, since it changes
//! nothing. And a value names the one call that put it, so a read of it tells the revision of a commit whose answer
//! was lost.
//!
//! What it does not see, the [`ledger`](super::ledger) does: commits of several keys as a whole.

mod search;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use super::{
    Call, Expect, Nanos, OpId, Outcome, Promise, Request, Seen, Verdict, Violation, Write,
};

pub use search::{Found, search};

/// Steps of one search, at which it is given up undecided.
pub const STEPS_MAX: usize = 100_000;

/// What a call is to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCall {
    /// Which call.
    pub id: OpId,
    /// When it was made.
    pub invoked: Nanos,
    /// When its effect was certain; the end of time where it is unknown.
    pub returned: Nanos,
    /// The revision that it was carried out at, if that is known.
    pub revision: Option<u64>,
    /// Whether it may be left out (its outcome is unknown).
    pub optional: bool,
    /// What it does.
    pub kind: Kind,
}

/// See [`KeyCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Reads(Option<Seen>),
    /// A refusal, or a check that held of a key that is not written: the key's revision.
    Finds(Option<u64>),
    /// A write, if its check holds.
    Writes {
        /// The check.
        expected: Option<Expect>,
        /// The value; none: it removes.
        value: Option<String>,
    },
}

/// Judges each key.
#[must_use]
pub fn check(calls: &[Call]) -> Verdict {
    let mut verdict = Verdict::default();
    for (key, calls) in by_key(calls) {
        let put = puts(&calls);
        let (calls, strange) = bind(calls, &put);
        for what in strange {
            let what = format!("key {key}: {what}");
            verdict
                .violations
                .push(Violation::new(Promise::Linearizable, what));
        }
        match search(&calls, STEPS_MAX) {
            Found::Linearizable => {}
            Found::Undecided => verdict.undecided += 1,
            Found::Violation { stuck } => {
                let what = format!("key {key}: no order explains {stuck}");
                verdict
                    .violations
                    .push(Violation::new(Promise::Linearizable, what));
            }
        }
    }
    verdict
}

/// The calls of each key, without those that certainly had no part.
fn by_key(calls: &[Call]) -> BTreeMap<&str, Vec<KeyCall>> {
    let mut keys: BTreeMap<&str, Vec<KeyCall>> = BTreeMap::new();
    for call in calls {
        let optional = matches!(call.outcome, Outcome::Unknown { .. });
        let mut add = |key, kind| {
            keys.entry(key).or_default().push(KeyCall {
                id: call.id,
                invoked: call.invoked,
                returned: if optional { Nanos::MAX } else { call.returned },
                revision: call.revision(),
                optional,
                kind,
            });
        };
        match (&call.request, &call.outcome) {
            // An absent key is not told by a scan; the ledger looks at those.
            (Request::Get { .. } | Request::Scan { .. }, Outcome::Read { values, .. }) => {
                for (key, seen) in values {
                    add(key, Kind::Reads(seen.clone()));
                }
            }
            (Request::Commit { checks, .. }, Outcome::Refused { key, actual }) => {
                // The first that does not hold is named, so those before it held.
                for (checked, expected) in checks.iter().take_while(|(checked, _)| checked != key) {
                    add(checked, Kind::Finds(revision_of(*expected)));
                }
                add(key, Kind::Finds(*actual));
            }
            (
                Request::Commit { checks, writes },
                Outcome::Committed { .. } | Outcome::Unknown { .. },
            ) => {
                let expected = |key: &str| {
                    let check = checks.iter().find(|(checked, _)| checked == key);
                    check.map(|(_, expected)| *expected)
                };
                for (key, write) in writes {
                    let value = match write {
                        Write::Put(value) => Some(value.clone()),
                        Write::Remove => None,
                        Write::Signal(_) => continue,
                    };
                    let expected = expected(key);
                    add(key, Kind::Writes { expected, value });
                }
                let written = |key: &String| {
                    let mut writes = writes.iter();
                    writes.any(|(other, write)| other == key && !matches!(write, Write::Signal(_)))
                };
                for (key, expected) in checks.iter().filter(|(key, _)| !written(key)) {
                    if !optional {
                        add(key, Kind::Finds(revision_of(*expected)));
                    }
                }
            }
            _ => {}
        }
    }
    for calls in keys.values_mut() {
        calls.sort_by_key(|call| call.invoked);
    }
    keys
}

fn revision_of(expected: Expect) -> Option<u64> {
    match expected {
        Expect::Absent => None,
        Expect::At(revision) => Some(revision),
    }
}

/// Each value and the place of the call that put it.
fn puts(calls: &[KeyCall]) -> HashMap<String, usize> {
    let mut puts = HashMap::new();
    for (place, call) in calls.iter().enumerate() {
        if let Kind::Writes {
            value: Some(value), ..
        } = &call.kind
        {
            puts.insert(value.clone(), place);
        }
    }
    puts
}

/// Gives commits whose answer was lost the revision that reads of their values tell; and what no order can explain.
fn bind(mut calls: Vec<KeyCall>, puts: &HashMap<String, usize>) -> (Vec<KeyCall>, Vec<String>) {
    let mut strange = Vec::new();
    let reads: Vec<(OpId, Seen)> = calls
        .iter()
        .filter_map(|call| match &call.kind {
            Kind::Reads(seen) => Some((call.id, seen.clone()?)),
            _ => None,
        })
        .collect();
    for (id, Seen { value, revision }) in reads {
        let Some(put) = puts.get(&value).and_then(|&place| calls.get_mut(place)) else {
            strange.push(format!("{id} read {value:?}, which nobody put"));
            continue;
        };
        match put.revision {
            None => {
                put.revision = Some(revision);
                put.optional = false;
            }
            Some(told) if told == revision => {}
            Some(told) => strange.push(format!(
                "{value:?} is of revision {told}, and {id} read it at revision {revision}"
            )),
        }
    }
    (calls, strange)
}
