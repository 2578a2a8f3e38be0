//! Hand-made runs of a few calls with their log; each break is told by its promise.

use super::*;
use crate::history::{Range, Seen};

/// Calls and log of a run that keeps every promise: five calls one after the other, the fourth with a lost answer.
fn run() -> (Vec<Call>, Vec<Logged>) {
    let put = |key: &str, value: &str| (key.to_owned(), Write::Put(value.to_owned()));
    let seen = |value: &str, revision| {
        let value = value.to_owned();
        Some(Seen { value, revision })
    };
    let commit = |checks: &[(&str, Expect)], writes: &[(String, Write)]| Request::Commit {
        checks: checks
            .iter()
            .map(|(key, expected)| ((*key).to_owned(), *expected))
            .collect(),
        writes: writes.to_vec(),
    };
    let committed = |revision| Outcome::Committed { revision };
    let lost = Outcome::Unknown {
        error: "lost".into(),
    };
    let both = [put("a", "a1"), put("b", "b1")];
    let calls = [
        (commit(&[("a", Expect::Absent)], &both), committed(3)),
        (
            Request::Get {
                keys: vec!["a".into(), "b".into(), "c".into()],
            },
            Outcome::Read {
                revision: 4,
                values: vec![
                    ("a".into(), seen("a1", 3)),
                    ("b".into(), seen("b1", 3)),
                    ("c".into(), None),
                ],
            },
        ),
        (
            commit(
                &[("a", Expect::At(3))],
                &[put("a", "a2"), ("b".into(), Write::Remove)],
            ),
            committed(6),
        ),
        (commit(&[], &[put("c", "c3")]), lost),
        (
            commit(&[("a", Expect::At(3))], &[put("a", "never")]),
            Outcome::Refused {
                key: "a".into(),
                actual: Some(6),
            },
        ),
        (
            Request::Scan {
                range: Range::all(),
            },
            Outcome::Read {
                revision: 8,
                values: vec![("a".into(), seen("a2", 6)), ("c".into(), seen("c3", 8))],
            },
        ),
    ];
    let numbered = calls.into_iter().zip(0u32..);
    let calls = numbered.map(|((request, outcome), number)| Call {
        id: OpId { client: 1, number },
        request,
        invoked: u64::from(number) * 10 + 1,
        returned: u64::from(number) * 10 + 9,
        outcome,
    });
    let logged = |revision, label: &str, changes: &[(String, Write)]| Logged {
        revision,
        label: label.to_owned(),
        changes: changes.to_vec(),
    };
    let log = vec![
        logged(3, "1.0", &both),
        logged(6, "1.2", &[put("a", "a2"), ("b".into(), Write::Remove)]),
        logged(8, "1.3", &[put("c", "c3")]),
    ];
    (calls.collect(), log)
}

fn broken(change: impl FnOnce(&mut Vec<Call>, &mut Vec<Logged>)) -> Vec<Promise> {
    let (mut calls, mut log) = run();
    change(&mut calls, &mut log);
    let found = check(&calls, &Reference::new(&log, 20));
    let mut promises: Vec<_> = found.into_iter().map(|found| found.promise).collect();
    promises.sort_unstable();
    promises.dedup();
    promises
}

#[test]
fn a_true_run_passes() {
    assert_eq!(broken(|_, _| {}), []);
    // The lost one may also never have been.
    let never = |calls: &mut Vec<Call>, log: &mut Vec<Logged>| {
        log.pop();
        if let Outcome::Read { values, .. } = &mut calls[5].outcome {
            values.pop();
        }
    };
    assert_eq!(broken(never), []);
}

#[test]
fn a_lost_commit_is_caught() {
    let found = broken(|_, log| drop(log.remove(1)));
    assert!(found.contains(&Promise::ExactlyOnce), "{found:?}");
}

#[test]
fn a_double_effect_is_caught() {
    let twice = |_: &mut Vec<Call>, log: &mut Vec<Logged>| {
        let mut again = log[2].clone();
        again.revision = 9;
        log.push(again);
    };
    assert_eq!(broken(twice), [Promise::ExactlyOnce]);
}

#[test]
fn a_commit_from_nowhere_is_caught() {
    let strange = |_: &mut Vec<Call>, log: &mut Vec<Logged>| {
        log.push(Logged {
            revision: 9,
            label: "7.7".into(),
            changes: vec![("z".into(), Write::Put("z".into()))],
        });
    };
    assert_eq!(broken(strange), [Promise::ExactlyOnce]);
}

#[test]
fn a_wrong_revision_is_caught() {
    let other = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        calls[2].outcome = Outcome::Committed { revision: 7 };
    };
    assert_eq!(broken(other), [Promise::ExactlyOnce]);
}

#[test]
fn an_effect_of_what_was_not_executed_is_caught() {
    let not = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        let error = "closed".into();
        calls[3].outcome = Outcome::NotExecuted { error };
    };
    assert_eq!(broken(not), [Promise::ExactlyOnce]);
    let refused = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        calls[2].outcome = Outcome::Refused {
            key: "a".into(),
            actual: None,
        };
    };
    assert!(broken(refused).contains(&Promise::ExactlyOnce));
}

#[test]
fn a_torn_commit_is_caught() {
    let half_logged = |_: &mut Vec<Call>, log: &mut Vec<Logged>| drop(log[1].changes.pop());
    assert!(broken(half_logged).contains(&Promise::AtomicCommit));
    // And one that a read shows: a of 6, b of 3, at no revision.
    let half_read = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        if let Outcome::Read { values, .. } = &mut calls[1].outcome {
            let value = "a2".to_owned();
            values[0].1 = Some(Seen { value, revision: 6 });
        }
    };
    assert_eq!(broken(half_read), [Promise::OneRevision]);
}

#[test]
fn a_stale_read_is_caught() {
    let old = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        let (early, late) = calls.split_at_mut(5);
        late[0].request = early[1].request.clone();
        late[0].outcome = early[1].outcome.clone();
    };
    assert_eq!(broken(old), [Promise::RealTime]);
    // The old value under the new revision.
    let pretends = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        let (early, late) = calls.split_at_mut(5);
        late[0].request = early[1].request.clone();
        late[0].outcome = early[1].outcome.clone();
        if let Outcome::Read { revision, .. } = &mut late[0].outcome {
            *revision = 8;
        }
    };
    assert_eq!(broken(pretends), [Promise::OneRevision]);
}

#[test]
fn a_scan_with_a_hole_is_caught() {
    let hole = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        if let Outcome::Read { values, .. } = &mut calls[5].outcome {
            values.remove(0);
        }
    };
    assert_eq!(broken(hole), [Promise::OneRevision]);
}

#[test]
fn a_reordered_pair_is_caught() {
    let late = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        // The commit of revision 3 was called only after revision 6 had been told.
        calls[0].invoked = 52;
        calls[0].returned = 53;
    };
    assert!(broken(late).contains(&Promise::RealTime));
    // An effect of a lost commit before it was called.
    let early = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        calls[3].invoked = 70;
        calls[3].returned = 79;
    };
    assert_eq!(broken(early), [Promise::RealTime]);
}

#[test]
fn a_check_that_did_not_hold_is_caught() {
    let unchecked = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        if let Request::Commit { checks, .. } = &mut calls[2].request {
            checks[0].1 = Expect::Absent;
        }
    };
    assert_eq!(broken(unchecked), [Promise::Checks]);
}

#[test]
fn a_wrong_refusal_is_caught() {
    let of_the_past = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        calls[4].outcome = Outcome::Refused {
            key: "a".into(),
            actual: None,
        };
    };
    assert_eq!(broken(of_the_past), [Promise::RealTime]);
    let without_reason = |calls: &mut Vec<Call>, _: &mut Vec<Logged>| {
        if let Request::Commit { checks, .. } = &mut calls[4].request {
            checks[0].1 = Expect::At(6);
        }
    };
    assert_eq!(broken(without_reason), [Promise::Checks]);
}
