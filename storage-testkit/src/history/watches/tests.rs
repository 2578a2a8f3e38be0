//! Each validator with streams that keep its promise and with planted violations.

use super::*;
use crate::history::{Call, Logged, OpId, Outcome, Range, Request, Seen, Start, Write};

fn commit(revision: u64, changes: &[(&str, &str)]) -> Logged {
    let change = |(key, value): &(&str, &str)| {
        let write = match *value {
            "" => Write::Remove,
            value => Write::Put(value.into()),
        };
        ((*key).to_owned(), write)
    };
    Logged {
        revision,
        label: format!("0.{revision}"),
        changes: changes.iter().map(change).collect(),
    }
}

/// a, b and c over six commits, complete up to 20.
fn log() -> Vec<Logged> {
    vec![
        commit(2, &[("a", "a2")]),
        commit(4, &[("a", "a4"), ("b", "b4")]),
        commit(6, &[("c", "c6")]),
        commit(9, &[("b", "")]),
        commit(12, &[("a", "a12"), ("c", "c12")]),
        commit(15, &[("b", "b15")]),
    ]
}

fn reference() -> Reference {
    Reference::new(&log(), 20)
}

/// Revision 12 was told to someone at 1,000.
fn acknowledged() -> Acknowledged {
    Acknowledged::new(&[Call {
        id: OpId {
            client: 0,
            number: 12,
        },
        request: Request::Get { keys: Vec::new() },
        invoked: 900,
        returned: 1_000,
        outcome: Outcome::Read {
            revision: 12,
            values: Vec::new(),
        },
    }])
}

fn stream(mode: Mode, range: Range, events: Vec<Told>) -> WatchStream {
    let timed = events.into_iter().zip((0..).step_by(100));
    WatchStream {
        name: "w".into(),
        mode,
        range,
        events: timed.map(|(told, at)| (at, told)).collect(),
    }
}

fn broken(mode: Mode, events: Vec<Told>) -> Vec<Promise> {
    in_range(mode, Range::all(), events)
}

fn in_range(mode: Mode, range: Range, events: Vec<Told>) -> Vec<Promise> {
    let found = check(&stream(mode, range, events), &reference(), &acknowledged());
    let mut promises: Vec<_> = found.into_iter().map(|found| found.promise).collect();
    promises.sort_unstable();
    promises.dedup();
    promises
}

fn opened(start: Start, position: u64) -> Told {
    Told::Opened { start, position }
}

fn told(revision: u64) -> Told {
    let commit = log().into_iter().find(|commit| commit.revision == revision);
    Told::Commit(commit.unwrap())
}

fn mark(revision: u64) -> Told {
    Told::Mark {
        revision,
        token: None,
    }
}

fn state(key: &str, value: &str, revision: u64) -> Told {
    Told::State {
        key: key.into(),
        value: (!value.is_empty()).then(|| value.to_owned()),
        revision,
    }
}

fn broke() -> Told {
    Told::Broke {
        error: "lost".into(),
    }
}

fn resynced() -> Told {
    Told::Resynced { why: "log".into() }
}

const BEGINNING: Start = Start::Beginning;

fn all_commits() -> Vec<Told> {
    [2, 4, 6, 9, 12, 15].into_iter().map(told).collect()
}

fn every(insides: Vec<Told>) -> Vec<Told> {
    let mut events = vec![opened(BEGINNING, 0)];
    events.extend(insides);
    events
}

#[test]
fn true_streams_of_every_commit_pass() {
    assert_eq!(broken(Mode::Every, every(all_commits())), []);
    let mut marked = all_commits();
    marked.insert(3, mark(8));
    marked.push(mark(20));
    assert_eq!(broken(Mode::Every, every(marked)), []);
    // A range cuts commits, and skips those outside.
    let cut = |revision| {
        Told::Commit(
            reference()
                .cut(revision, &Range::new("b", Some("c")))
                .unwrap(),
        )
    };
    let events = vec![
        opened(Start::Now, 3),
        cut(4),
        mark(8),
        cut(9),
        cut(15),
        mark(17),
    ];
    assert_eq!(
        in_range(Mode::Every, Range::new("b", Some("c")), events),
        []
    );
    // Breaks: opened again by the application, continued by the client, and a mark right behind it.
    let events = every(vec![
        told(2),
        told(4),
        broke(),
        opened(Start::After(4), 4),
        told(6),
        mark(7),
        Told::Continuous,
        mark(8),
        told(9),
        Told::Continuous,
        told(12),
        told(15),
    ]);
    assert_eq!(broken(Mode::Every, events), []);
    // Steps left out, and said so.
    let events = every(vec![
        told(2),
        resynced(),
        state("b", "", 9),
        state("a", "a12", 12),
        state("c", "c12", 12),
        mark(13),
        told(15),
    ]);
    assert_eq!(broken(Mode::Every, events), []);
    let lost = Told::Lost { from: 4, to: 15 };
    assert_eq!(
        broken(Mode::Every, every(vec![told(2), told(4), lost, broke()])),
        []
    );
}

#[test]
fn true_streams_of_the_latest_pass() {
    let events = vec![
        opened(BEGINNING, 0),
        state("a", "a4", 4),
        state("c", "c6", 6),
        mark(9),
        mark(10),
        state("a", "a12", 12),
        state("c", "c12", 12),
        state("b", "b15", 15),
        mark(16),
    ];
    assert_eq!(broken(Mode::Latest, events), []);
    // A break within a pass; it is begun anew from the last mark.
    let events = vec![
        opened(Start::After(2), 2),
        state("a", "a4", 4),
        state("b", "b4", 4),
        mark(5),
        state("c", "c6", 6),
        broke(),
        opened(Start::After(5), 5),
        state("b", "", 9),
        state("a", "a12", 12),
        state("c", "c12", 12),
        mark(12),
    ];
    assert_eq!(broken(Mode::Latest, events), []);
    let events = vec![
        opened(Start::After(4), 4),
        resynced(),
        Told::Reset,
        state("a", "a12", 12),
        state("c", "c12", 12),
        mark(13),
    ];
    assert_eq!(broken(Mode::Latest, events), []);
}

/// What is gone is not told from the beginning, so a reader whose first pass broke must begin with nothing.
#[test]
fn a_first_pass_that_broke_begins_with_nothing() {
    let rest = [state("a", "a12", 12), state("c", "c12", 12), mark(12)];
    let mut events = vec![
        opened(BEGINNING, 0),
        state("b", "b4", 4),
        broke(),
        opened(BEGINNING, 0),
    ];
    events.extend(rest.clone());
    assert_eq!(broken(Mode::Latest, events), []);
    // Whoever calls that continuous leaves its reader with what is gone.
    let mut events = vec![opened(BEGINNING, 0), state("b", "b4", 4), Told::Continuous];
    events.extend(rest.clone());
    assert_eq!(broken(Mode::Latest, events), [Promise::Bookmarkable]);
    // And behind a mark there is a position to go on from.
    let mut events = vec![opened(BEGINNING, 0), mark(0), broke(), opened(BEGINNING, 0)];
    events.extend(rest);
    assert_eq!(broken(Mode::Latest, events), [Promise::Resumable]);
}

#[test]
fn a_mark_that_was_asked_for_passes() {
    let asked = Told::Asked { token: 7 };
    let answer = Told::Mark {
        revision: 15,
        token: Some(7),
    };
    let mut events = every(all_commits());
    events.extend([asked, answer]);
    assert_eq!(broken(Mode::Every, events), []);
}

#[test]
fn falling_revisions_are_not_ordered() {
    let mut events = all_commits();
    events.swap(2, 3);
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Ordered));
    let events = vec![
        opened(BEGINNING, 0),
        state("c", "c6", 6),
        state("a", "a4", 4),
        mark(9),
    ];
    assert_eq!(broken(Mode::Latest, events), [Promise::Ordered]);
}

#[test]
fn a_repeated_commit_is_not_unique() {
    let mut events = all_commits();
    events.insert(3, told(6));
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Unique));
    // The same commit under another revision.
    let mut again = commit(18, &[("b", "b15")]);
    again.label = "0.15".into();
    let mut events = all_commits();
    events.push(Told::Commit(again));
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Unique));
}

#[test]
fn a_key_told_twice_in_a_pass_is_not_unique() {
    let events = vec![
        opened(BEGINNING, 0),
        state("a", "a2", 2),
        state("a", "a4", 4),
        state("b", "b4", 4),
        mark(5),
    ];
    assert_eq!(broken(Mode::Latest, events), [Promise::Unique]);
    // And a state that a mark had covered.
    let events = vec![
        opened(BEGINNING, 0),
        state("a", "a4", 4),
        state("b", "b4", 4),
        mark(5),
        state("b", "b4", 4),
        mark(5),
    ];
    assert!(broken(Mode::Latest, events).contains(&Promise::Unique));
}

#[test]
fn a_missing_commit_is_not_reliable() {
    for missing in 0..5 {
        let mut events = all_commits();
        events.remove(missing);
        assert_eq!(broken(Mode::Every, every(events)), [Promise::Reliable]);
    }
    // Missing at the end, with a mark behind it.
    let mut events = all_commits();
    events.pop();
    events.push(mark(16));
    let found = broken(Mode::Every, every(events));
    assert_eq!(found, [Promise::Reliable, Promise::Bookmarkable]);
}

#[test]
fn a_missing_key_is_not_reliable() {
    let events = vec![
        opened(Start::After(4), 4),
        state("c", "c6", 6),
        mark(10),
        state("a", "a12", 12),
    ];
    let found = broken(Mode::Latest, events);
    assert_eq!(found, [Promise::Reliable, Promise::Bookmarkable]);
}

#[test]
fn a_split_or_changed_commit_is_not_atomic() {
    let half = |changes| Told::Commit(commit(4, changes));
    for changes in [
        &[("a", "a4")][..],
        &[("b", "b4"), ("a", "a4")],
        &[("a", "a4"), ("b", "other")],
        &[("a", "a4"), ("b", "b4"), ("c", "c6")],
    ] {
        let events = vec![told(2), half(changes), told(6)];
        assert!(broken(Mode::Every, every(events)).contains(&Promise::Atomic));
    }
    // In two halves.
    let events = vec![told(2), half(&[("a", "a4")]), half(&[("b", "b4")]), told(6)];
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Atomic));
    // From nowhere.
    let events = vec![told(2), told(4), Told::Commit(commit(5, &[("a", "x")]))];
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Atomic));
    let events = vec![opened(BEGINNING, 0), state("a", "x", 4)];
    assert_eq!(broken(Mode::Latest, events), [Promise::Atomic]);
    // What is not in its range.
    let events = vec![opened(BEGINNING, 0), told(2)];
    let found = in_range(Mode::Every, Range::new("b", None), events);
    assert_eq!(found, [Promise::Atomic]);
}

#[test]
fn a_gap_or_a_repetition_at_a_break_is_not_resumable() {
    for (again, first) in [
        (opened(Start::After(4), 4), 9),
        (opened(Start::After(4), 6), 9),
        (Told::Continuous, 9),
    ] {
        let events = vec![told(2), told(4), broke(), again, told(first)];
        assert_eq!(broken(Mode::Every, every(events)), [Promise::Resumable]);
    }
    for again in [opened(Start::After(4), 4), Told::Continuous] {
        let events = vec![told(2), told(4), broke(), again, told(4), told(6)];
        assert!(broken(Mode::Every, every(events)).contains(&Promise::Resumable));
    }
    // A gap that only a mark shows.
    let events = vec![told(2), Told::Continuous, mark(5)];
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Resumable));
    let events = vec![
        opened(Start::After(4), 4),
        broke(),
        opened(Start::After(4), 4),
        state("c", "c6", 6),
        mark(10),
    ];
    assert!(broken(Mode::Latest, events).contains(&Promise::Resumable));
}

#[test]
fn going_on_without_a_word_is_not_resumable() {
    let events = vec![told(2), broke(), told(4)];
    assert_eq!(broken(Mode::Every, every(events)), [Promise::Resumable]);
    let lost = Told::Lost { from: 2, to: 15 };
    let events = vec![told(2), lost, told(4)];
    assert_eq!(broken(Mode::Every, every(events)), [Promise::Resumable]);
}

#[test]
fn a_wrong_lost_is_not_resumable() {
    for from in [0, 4, 9] {
        let lost = Told::Lost { from, to: 15 };
        assert_eq!(
            broken(Mode::Every, every(vec![told(2), lost])),
            [Promise::Resumable]
        );
    }
}

#[test]
fn a_wrong_state_behind_resynced_is_not_resumable() {
    // The removal of b is missing, c is old.
    for states in [
        vec![state("a", "a12", 12), state("c", "c12", 12)],
        vec![
            state("c", "c6", 6),
            state("b", "", 9),
            state("a", "a12", 12),
        ],
        vec![],
    ] {
        let mut events = vec![told(2), told(4), resynced()];
        events.extend(states);
        events.push(mark(13));
        let found = broken(Mode::Every, every(events));
        assert_eq!(found, [Promise::Resumable]);
    }
    // And a gap behind its mark is one like any other.
    let events = vec![
        told(2),
        resynced(),
        state("a", "a4", 4),
        state("b", "b4", 4),
        mark(4),
        told(9),
    ];
    assert_eq!(broken(Mode::Every, every(events)), [Promise::Reliable]);
}

#[test]
fn a_mark_ahead_of_its_events_is_not_bookmarkable() {
    let events = vec![told(2), mark(4), told(4)];
    assert!(broken(Mode::Every, every(events)).contains(&Promise::Bookmarkable));
    let events = vec![
        opened(BEGINNING, 0),
        state("a", "a4", 4),
        mark(7),
        state("b", "b4", 4),
        state("c", "c6", 6),
        mark(7),
    ];
    assert!(broken(Mode::Latest, events).contains(&Promise::Bookmarkable));
}

#[test]
fn a_wrong_state_at_a_mark_is_not_bookmarkable() {
    // Newer than its mark.
    let events = vec![
        opened(BEGINNING, 0),
        state("b", "b4", 4),
        state("c", "c6", 6),
        state("a", "a12", 12),
        mark(8),
    ];
    assert!(broken(Mode::Latest, events).contains(&Promise::Bookmarkable));
    // Told what was gone again.
    let events = vec![
        opened(BEGINNING, 0),
        state("a", "a4", 4),
        state("b", "b4", 4),
        state("c", "c6", 6),
        mark(10),
    ];
    assert_eq!(broken(Mode::Latest, events), [Promise::Bookmarkable]);
}

#[test]
fn a_mark_that_is_older_than_its_question_is_not_bookmarkable() {
    let filler = std::iter::repeat_n(mark(0), 11);
    let mut events = vec![opened(Start::Now, 0)];
    events.extend(filler);
    // By now 12 was acknowledged.
    events.push(Told::Asked { token: 7 });
    events.extend([told(2), told(4)]);
    events.push(Told::Mark {
        revision: 5,
        token: Some(7),
    });
    assert_eq!(broken(Mode::Every, events), [Promise::Bookmarkable]);
    let unasked = Told::Mark {
        revision: 1,
        token: Some(8),
    };
    assert_eq!(
        broken(Mode::Every, every(vec![unasked])),
        [Promise::Bookmarkable]
    );
}

#[test]
fn the_reference_knows_each_state() {
    let reference = reference();
    let seen = |value: &str, revision| {
        Some(Seen {
            value: value.into(),
            revision,
        })
    };
    assert_eq!(reference.value("b", 8), seen("b4", 4));
    assert_eq!(reference.value("b", 9), None);
    assert_eq!(reference.value("b", 99), seen("b15", 15));
    assert_eq!(reference.value("x", 99), None);
    assert!(reference.was_at("b", None, 5, 10));
    assert!(!reference.was_at("b", None, 5, 9));
    assert!(reference.was_at("a", Some(2), 3, 4));
    assert!(!reference.was_at("a", Some(2), 4, 99));
}
