//! Random histories of a store that keeps every promise, by construction: all judges must pass them; and the same
//! with one fault planted, which must not pass.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Four clients whose calls overlap, each with its effect at some moment between call and answer.
fn simulate(seed: u64) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    // Call, effect, answer; a lost one may take effect late, or never.
    let mut plans = Vec::new();
    for client in 0..4 {
        let mut now = random.random_range(0..50);
        for number in 0..40 {
            let invoked = now + random.random_range(1..20);
            let returned = invoked + random.random_range(2..60);
            let lost = random.random_bool(0.15);
            let effect = match lost {
                false => Some(random.random_range(invoked + 1..returned)),
                true => random
                    .random_bool(0.6)
                    .then(|| invoked + random.random_range(1..400)),
            };
            let id = OpId { client, number };
            plans.push((
                effect.unwrap_or(invoked),
                id,
                invoked,
                returned,
                lost,
                effect.is_some(),
            ));
            now = returned;
        }
    }
    plans.sort_unstable();
    let mut revision = 0;
    let mut state: BTreeMap<String, Seen> = BTreeMap::new();
    let mut history = History {
        seed,
        ..History::default()
    };
    for (_, id, invoked, returned, lost, happens) in plans {
        let mut keys = vec!["a", "b", "c", "d"];
        keys.rotate_left(random.random_range(0..4));
        keys.truncate(random.random_range(1..=3));
        let known = |key: &str| state.get(key).map(|seen| seen.revision);
        let (request, outcome) = if random.random_bool(0.4) {
            let keys: Vec<String> = keys.into_iter().map(str::to_owned).collect();
            let values = keys
                .iter()
                .map(|key| (key.clone(), state.get(key).cloned()));
            let values = values.collect();
            (Request::Get { keys }, Outcome::Read { revision, values })
        } else {
            let writes = keys.iter().map(|key| {
                let write = match random.random_bool(0.25) {
                    true => Write::Remove,
                    false => Write::Put(format!("{id}@{key}")),
                };
                ((*key).to_owned(), write)
            });
            let writes: Vec<_> = writes.collect();
            let checks: Vec<_> = (random.random_bool(0.5))
                .then(|| {
                    let right = known(keys[0]).map_or(Expect::Absent, Expect::At);
                    let wrong = Expect::At(revision.saturating_sub(1));
                    let expected = if random.random_bool(0.6) {
                        right
                    } else {
                        wrong
                    };
                    (keys[0].to_owned(), expected)
                })
                .into_iter()
                .collect();
            let refused = checks
                .iter()
                .find(|(key, expected)| known(key).map_or(Expect::Absent, Expect::At) != *expected);
            let outcome = match refused {
                Some((key, _)) => Outcome::Refused {
                    key: key.clone(),
                    actual: known(key),
                },
                None if !happens => Outcome::Committed { revision: 0 },
                None => {
                    revision += random.random_range(1..4);
                    let mut changes = Vec::new();
                    for (key, write) in &writes {
                        let there = match write {
                            Write::Put(value) => {
                                let value = value.clone();
                                state.insert(key.clone(), Seen { value, revision });
                                true
                            }
                            _ => state.remove(key).is_some(),
                        };
                        if there {
                            changes.push((key.clone(), write.clone()));
                        }
                    }
                    if !changes.is_empty() {
                        history.log.push(Logged {
                            revision,
                            label: id.to_string(),
                            changes,
                        });
                    }
                    Outcome::Committed { revision }
                }
            };
            (Request::Commit { checks, writes }, outcome)
        };
        let read = matches!(request, Request::Get { .. });
        let outcome = match lost {
            // A read without an answer is none.
            true if read => continue,
            true => Outcome::Unknown {
                error: "lost".into(),
            },
            false => outcome,
        };
        history.calls.push(Call {
            id,
            request,
            invoked,
            returned,
            outcome,
        });
    }
    history.log_end = revision + 5;
    history
}

#[test]
fn random_true_histories_pass() {
    for seed in 0..300 {
        let verdict = judge(&simulate(seed));
        let found = &verdict.violations;
        assert!(found.is_empty(), "seed {seed}: {found:#?}");
        assert_eq!(verdict.undecided, 0, "seed {seed}");
    }
}

#[test]
fn a_fault_planted_in_a_random_history_is_caught() {
    for seed in 0..300 {
        let mut history = simulate(seed);
        let mut random = StdRng::seed_from_u64(seed);
        let place = random.random_range(0..history.log.len());
        let what = match seed % 5 {
            0 => {
                // An acknowledged commit is gone from the log.
                let acked = |commit: &Logged| {
                    history.calls.iter().any(|call| {
                        call.id.to_string() == commit.label && call.revision().is_some()
                    })
                };
                let place = history.log.iter().position(acked).unwrap();
                format!("lost {:?}", history.log.remove(place))
            }
            1 => {
                let mut again = history.log[place].clone();
                again.revision = history.log_end;
                history.log.push(again);
                "double effect".to_owned()
            }
            2 => {
                // A read answers with what the key was one version before.
                let reference = Reference::new(&history.log, history.log_end);
                let stale = history.calls.iter_mut().rev().find_map(|call| {
                    let Outcome::Read { values, .. } = &mut call.outcome else {
                        return None;
                    };
                    let (key, seen) = values.iter_mut().find(|(_, seen)| seen.is_some())?;
                    let old = reference.value(key, seen.as_ref()?.revision - 1);
                    Some(std::mem::replace(seen, old))
                });
                format!("stale read instead of {stale:?}")
            }
            3 => {
                let torn = history
                    .log
                    .iter_mut()
                    .find(|commit| commit.changes.len() > 1);
                torn.unwrap().changes.pop();
                "torn commit".to_owned()
            }
            _ => {
                // Two neighbours by one client, in the other order.
                let last = history.log.len() - 1;
                let (first, second) = (
                    history.log[0].label.clone(),
                    history.log[last].label.clone(),
                );
                history.log[0].label = second;
                history.log[last].label = first;
                "reordered".to_owned()
            }
        };
        assert!(
            !judge(&history).violations.is_empty(),
            "seed {seed}: {what}"
        );
    }
}
