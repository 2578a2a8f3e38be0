//! Histories made by hand, good and bad; and small random ones, judged by trying every order.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

struct Maker {
    calls: Vec<Call>,
}

fn seen(value: &str, revision: u64) -> Option<Seen> {
    Some(Seen {
        value: value.into(),
        revision,
    })
}

impl Maker {
    fn new() -> Self {
        Self { calls: Vec::new() }
    }

    fn add(mut self, span: (Nanos, Nanos), request: Request, outcome: Outcome) -> Self {
        let number = u32::try_from(self.calls.len()).unwrap();
        self.calls.push(Call {
            id: OpId { client: 0, number },
            request,
            invoked: span.0,
            returned: span.1,
            outcome,
        });
        self
    }

    fn write(
        self,
        span: (Nanos, Nanos),
        check: Option<Expect>,
        value: &str,
        outcome: Outcome,
    ) -> Self {
        let write = match value {
            "" => Write::Remove,
            value => Write::Put(value.into()),
        };
        let request = Request::Commit {
            checks: check
                .map(|check| ("k".to_owned(), check))
                .into_iter()
                .collect(),
            writes: vec![("k".into(), write)],
        };
        self.add(span, request, outcome)
    }

    fn put(self, span: (Nanos, Nanos), value: &str, revision: u64) -> Self {
        self.write(span, None, value, Outcome::Committed { revision })
    }

    fn unknown(self, span: (Nanos, Nanos), check: Option<Expect>, value: &str) -> Self {
        let error = "lost".into();
        self.write(span, check, value, Outcome::Unknown { error })
    }

    fn get(self, span: (Nanos, Nanos), seen: Option<Seen>, revision: u64) -> Self {
        let request = Request::Get {
            keys: vec!["k".into()],
        };
        let values = vec![("k".to_owned(), seen)];
        self.add(span, request, Outcome::Read { revision, values })
    }

    fn refused(self, span: (Nanos, Nanos), check: Expect, actual: Option<u64>) -> Self {
        let key = "k".to_owned();
        self.write(span, Some(check), "never", Outcome::Refused { key, actual })
    }

    fn violations(&self) -> usize {
        let verdict = check(&self.calls);
        assert_eq!(verdict.undecided, 0);
        verdict.violations.len()
    }

    fn good(&self) {
        let verdict = check(&self.calls);
        assert!(verdict.violations.is_empty(), "{:?}", verdict.violations);
    }

    fn bad(&self) {
        assert_ne!(self.violations(), 0, "{:?}", self.calls);
    }
}

#[test]
fn sequences_and_overlaps_pass() {
    Maker::new()
        .get((0, 1), None, 0)
        .put((2, 3), "x", 5)
        .get((4, 5), seen("x", 5), 6)
        .put((6, 7), "", 8)
        .get((8, 9), None, 8)
        .good();
    // The later revision was asked for first, and the read saw the earlier one.
    Maker::new()
        .put((0, 9), "y", 7)
        .put((1, 8), "x", 5)
        .get((2, 7), seen("x", 5), 6)
        .get((10, 11), seen("y", 7), 7)
        .good();
}

#[test]
fn a_stale_read_is_caught() {
    Maker::new()
        .put((0, 1), "x", 5)
        .put((2, 3), "y", 7)
        .get((4, 5), seen("x", 5), 6)
        .bad();
    // Also if it claims to be of the present.
    Maker::new()
        .put((0, 1), "x", 5)
        .put((2, 3), "y", 7)
        .get((4, 5), seen("x", 5), 9)
        .bad();
    Maker::new().put((0, 1), "x", 5).get((2, 3), None, 3).bad();
}

#[test]
fn a_lost_update_is_caught() {
    Maker::new().put((0, 1), "x", 5).get((2, 3), None, 9).bad();
    // Two compare-and-sets from the same revision.
    let at = Some(Expect::At(5));
    let committed = |revision| Outcome::Committed { revision };
    Maker::new()
        .put((0, 1), "x", 5)
        .write((2, 5), at, "y", committed(7))
        .write((3, 4), at, "z", committed(8))
        .bad();
    Maker::new()
        .put((0, 1), "x", 5)
        .write((2, 3), Some(Expect::Absent), "y", committed(7))
        .bad();
}

#[test]
fn a_value_from_nowhere_is_caught() {
    Maker::new().get((0, 1), seen("x", 5), 6).bad();
    // One that was refused, and one that was not executed.
    Maker::new()
        .put((0, 1), "x", 5)
        .refused((2, 3), Expect::Absent, Some(5))
        .get((4, 5), seen("never", 7), 7)
        .bad();
    let error = String::new();
    Maker::new()
        .write((0, 1), None, "x", Outcome::NotExecuted { error })
        .get((2, 3), seen("x", 7), 7)
        .bad();
}

#[test]
fn a_reordered_pair_is_caught() {
    // Acknowledged in the wrong order of revisions.
    Maker::new().put((0, 1), "x", 7).put((2, 3), "y", 5).bad();
    // A read from before its commit was called.
    Maker::new()
        .get((0, 1), seen("x", 5), 5)
        .put((2, 3), "x", 5)
        .bad();
    // Two readers see two commits in two orders.
    Maker::new()
        .put((0, 90), "x", 5)
        .put((0, 90), "y", 7)
        .get((1, 2), seen("y", 7), 7)
        .get((3, 4), seen("x", 5), 5)
        .bad();
}

#[test]
fn a_double_effect_is_caught() {
    Maker::new()
        .put((0, 1), "x", 5)
        .get((2, 3), seen("x", 5), 5)
        .put((4, 5), "y", 7)
        .get((6, 7), seen("x", 9), 9)
        .bad();
    // Of a commit whose answer was lost.
    Maker::new()
        .unknown((0, 1), None, "x")
        .get((2, 3), seen("x", 5), 5)
        .put((4, 5), "", 7)
        .get((6, 7), seen("x", 9), 9)
        .bad();
}

#[test]
fn an_unknown_commit_may_be_late_or_never() {
    let base = || Maker::new().put((0, 1), "x", 5).unknown((2, 3), None, "y");
    base().get((4, 5), seen("x", 5), 6).good();
    base().get((4, 5), seen("y", 6), 6).good();
    base()
        .get((4, 5), seen("x", 5), 6)
        .get((6, 7), seen("y", 8), 9)
        .good();
    // Not before it was called, and not back again.
    base()
        .get((4, 5), seen("y", 6), 6)
        .get((6, 7), seen("x", 5), 9)
        .bad();
    // Never seen, but found by a refusal; and a removal that only an absent key shows.
    base().refused((4, 5), Expect::At(5), Some(6)).good();
    base().refused((4, 5), Expect::At(5), None).bad();
    let removed = Maker::new().put((0, 1), "x", 5).unknown((2, 3), None, "");
    removed.refused((4, 5), Expect::At(5), None).good();
}

#[test]
fn an_unknown_compare_and_set_keeps_its_check() {
    let base = || {
        Maker::new()
            .put((0, 1), "x", 5)
            .unknown((2, 3), Some(Expect::At(5)), "y")
    };
    base().get((4, 5), seen("y", 6), 6).good();
    base()
        .put((4, 5), "z", 8)
        .get((6, 7), seen("y", 9), 9)
        .bad();
}

#[test]
fn refusals_are_judged() {
    let base = || Maker::new().put((0, 1), "x", 5).put((2, 3), "y", 7);
    base().refused((4, 5), Expect::Absent, Some(7)).good();
    base().refused((4, 5), Expect::At(7), Some(5)).bad();
    base().refused((4, 5), Expect::At(7), None).bad();
    // While the second was under way both may be.
    Maker::new()
        .put((0, 1), "x", 5)
        .put((2, 9), "y", 7)
        .refused((3, 8), Expect::Absent, Some(5))
        .refused((3, 8), Expect::Absent, Some(7))
        .good();
}

/// A read that fits must not be placed before one of an earlier revision that has to wait for a refusal.
#[test]
fn reads_wait_for_their_turn() {
    Maker::new()
        .put((0, 1), "x", 5)
        .get((2, 9), seen("x", 5), 8)
        .refused((3, 4), Expect::Absent, Some(5))
        .get((5, 6), seen("x", 5), 7)
        .good();
}

/// Tries every order, and leaving out each unknown one.
fn by_force(calls: &[KeyCall]) -> bool {
    fn go(
        calls: &[KeyCall],
        left: &[usize],
        value: Option<(&str, Option<u64>)>,
        floor: u64,
    ) -> bool {
        if left.iter().all(|&place| calls[place].optional) {
            return true;
        }
        let first_return = left
            .iter()
            .map(|&place| calls[place].returned)
            .min()
            .unwrap();
        for (index, &place) in left.iter().enumerate() {
            let call = &calls[place];
            let writes = matches!(call.kind, Kind::Writes { .. });
            if call.invoked > first_return
                || call
                    .revision
                    .is_some_and(|at| at < floor || writes && at == floor)
            {
                continue;
            }
            let at = value.map(|(_, at)| at);
            let is_at = |wanted: Option<u64>| match (at, wanted) {
                (None, None) => true,
                (Some(known), Some(wanted)) => known.is_none_or(|known| known == wanted),
                _ => false,
            };
            let after = match &call.kind {
                Kind::Reads(seen) => {
                    let now = value.map(|(value, at)| (value.to_owned(), at));
                    let told = seen
                        .as_ref()
                        .map(|seen| (seen.value.clone(), Some(seen.revision)));
                    (now == told).then_some(value)
                }
                Kind::Finds(found) => is_at(*found).then_some(match (value, found) {
                    (Some((value, None)), Some(found)) => Some((value, Some(*found))),
                    _ => value,
                }),
                Kind::Writes {
                    expected,
                    value: new,
                } => {
                    let holds = match expected {
                        None => true,
                        Some(Expect::Absent) => is_at(None),
                        Some(Expect::At(revision)) => is_at(Some(*revision)),
                    };
                    holds.then(|| new.as_deref().map(|new| (new, call.revision)))
                }
            };
            let Some(after) = after else { continue };
            let mut rest = left.to_vec();
            rest.remove(index);
            if go(calls, &rest, after, call.revision.unwrap_or(floor)) {
                return true;
            }
        }
        false
    }
    let all: Vec<_> = (0..calls.len()).collect();
    go(calls, &all, None, 0)
}

/// Small histories, many of them wrong: the search and the trial of every order agree on each.
#[test]
fn the_search_agrees_with_trying_every_order() {
    let (mut good, mut bad) = (0, 0);
    for seed in 0..30_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut maker = Maker::new();
        let count = random.random_range(2..=6);
        let mut values: Vec<(String, u64)> = Vec::new();
        for number in 0..count {
            let begin = random.random_range(0..12);
            let span = (begin, begin + random.random_range(1..6));
            let revision = begin / 2 + random.random_range(1..4);
            let known = |random: &mut StdRng| {
                (!values.is_empty()).then(|| values[random.random_range(0..values.len())].clone())
            };
            maker = match random.random_range(0..7) {
                0 | 1 => {
                    let value = format!("v{number}");
                    values.push((value.clone(), revision));
                    maker.put(span, &value, revision)
                }
                2 => maker.put(span, "", revision),
                3 => {
                    let value = if random.random() {
                        format!("v{number}")
                    } else {
                        String::new()
                    };
                    let expected = known(&mut random).map(|(_, at)| Expect::At(at));
                    if !value.is_empty() {
                        values.push((value.clone(), revision));
                    }
                    maker.unknown(span, expected, &value)
                }
                4 => {
                    let actual = known(&mut random).map(|(_, at)| at);
                    maker.refused(span, Expect::At(99), actual)
                }
                _ => {
                    let seen = known(&mut random).and_then(|(value, at)| seen(&value, at));
                    let at = seen
                        .as_ref()
                        .map_or(revision, |seen| seen.revision.max(revision));
                    maker.get(span, seen, at)
                }
            };
        }
        for (_, calls) in by_key(&maker.calls) {
            let put = puts(&calls);
            let (calls, strange) = bind(calls, &put);
            if !strange.is_empty() {
                continue;
            }
            let expected = by_force(&calls);
            let found = search(&calls, STEPS_MAX);
            assert_eq!(
                found == Found::Linearizable,
                expected,
                "seed {seed}: {found:?} of {calls:#?}"
            );
            if expected {
                good += 1;
            } else {
                bad += 1;
            }
        }
    }
    assert!(good > 2_000 && bad > 2_000, "{good} good, {bad} bad");
}
