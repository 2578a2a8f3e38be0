//! The search itself, on the calls of one key.

use std::collections::HashSet;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{KeyCall, Kind};
use crate::history::Expect;

/// What a search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation {
        /// The calls that could not be placed where the search came furthest.
        stuck: String,
    },
    /// Given up at the bound.
    Undecided,
}

/// What the key holds, between two calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The call that put the value (its place), and its revision where that is known.
    value: Option<(usize, Option<u64>)>,
    /// The highest revision of what was placed.
    floor: u64,
}

/// Searches for an order of `calls` (sorted by when they were made) that keeps real time and explains each answer, from
/// an absent key on.
#[must_use]
pub fn search(calls: &[KeyCall], steps_max: usize) -> Found {
    debug_assert!(calls.is_sorted_by_key(|call| call.invoked));
    let mut random = StdRng::seed_from_u64(0);
    let with_revision = (0..calls.len())
        .filter(|&place| calls.get(place).is_some_and(|call| call.revision.is_some()));
    let mut by_revision: Vec<usize> = with_revision.collect();
    by_revision.sort_by_key(|&place| calls.get(place).and_then(turn));
    let mut turns = vec![usize::MAX; calls.len()];
    for (at, &place) in by_revision.iter().enumerate() {
        if let Some(turn) = turns.get_mut(place) {
            *turn = at;
        }
    }
    let mut search = Search {
        calls,
        names: calls.iter().map(|_| random.random()).collect(),
        placed: vec![false; calls.len()],
        placed_name: 0,
        first_left: 0,
        by_revision,
        turns,
        first_by_revision: 0,
        tried: HashSet::new(),
        steps: 0,
        steps_max,
        best: 0,
        stuck: String::new(),
    };
    search.run()
}

/// A choice that was made: what it placed, and the state and choices left before it.
struct Frame {
    state: State,
    /// Placed by this choice, those that were placed at once with it included.
    placed: Vec<usize>,
    choices: Vec<usize>,
}

struct Search<'a> {
    calls: &'a [KeyCall],
    /// A random name for each place; a set of places is named by all of its names together (exclusive or).
    names: Vec<u128>,
    placed: Vec<bool>,
    placed_name: u128,
    /// All before it are placed.
    first_left: usize,
    /// The places of calls with a revision, in their turn.
    by_revision: Vec<usize>,
    /// Where in `by_revision` each place stands.
    turns: Vec<usize>,
    /// All before it in `by_revision` are placed.
    first_by_revision: usize,
    /// Sets of places, by name, with the state behind them. (Two sets of one name are as likely as a broken disk.)
    tried: HashSet<(u128, State)>,
    steps: usize,
    steps_max: usize,
    best: usize,
    stuck: String,
}

impl Search<'_> {
    fn run(&mut self) -> Found {
        let mut state = State {
            value: None,
            floor: 0,
        };
        let mut first = Vec::new();
        self.place_all_that_fit(&mut state, &mut first);
        let mut frames = vec![Frame {
            choices: self.choices(),
            placed: first,
            state,
        }];
        loop {
            if self.done() {
                return Found::Linearizable;
            }
            let Some(frame) = frames.last_mut() else {
                let stuck = std::mem::take(&mut self.stuck);
                return Found::Violation { stuck };
            };
            let Some(choice) = frame.choices.pop() else {
                let placed = std::mem::take(&mut frame.placed);
                frames.pop();
                for place in placed {
                    self.mark(place, false);
                }
                continue;
            };
            let Some(mut state) = self.step(&frame.state, choice) else {
                continue;
            };
            self.steps += 1;
            if self.steps > self.steps_max {
                return Found::Undecided;
            }
            let mut placed = vec![choice];
            self.mark(choice, true);
            self.place_all_that_fit(&mut state, &mut placed);
            // The same calls with the same state were tried on another way: what follows is the same.
            let known = !self.tried.insert((self.placed_name, state.clone()));
            let choices = if known {
                Vec::new()
            } else {
                self.note_progress(&state);
                self.choices()
            };
            frames.push(Frame {
                state,
                placed,
                choices,
            });
        }
    }

    fn mark(&mut self, place: usize, is_placed: bool) {
        if let (Some(placed), Some(name)) = (self.placed.get_mut(place), self.names.get(place)) {
            *placed = is_placed;
            self.placed_name ^= name;
        }
        self.first_left = self.first_left.min(place);
        while self.placed.get(self.first_left) == Some(&true) {
            self.first_left += 1;
        }
        let turn = self.turns.get(place).copied().unwrap_or(usize::MAX);
        self.first_by_revision = self.first_by_revision.min(turn);
        while let Some(place) = self.by_revision.get(self.first_by_revision)
            && self.placed.get(*place) == Some(&true)
        {
            self.first_by_revision += 1;
        }
    }

    fn left(&self) -> impl Iterator<Item = (usize, &KeyCall)> {
        let calls = self.calls.iter().enumerate().zip(&self.placed);
        calls
            .skip(self.first_left)
            .filter(|(_, placed)| !**placed)
            .map(|(call, _)| call)
    }

    fn done(&self) -> bool {
        self.left().all(|(_, call)| call.optional)
    }

    /// Calls that nothing that is left precedes in real time.
    fn ready(&self) -> impl Iterator<Item = (usize, &KeyCall)> {
        let mut first_return = u64::MAX;
        for (_, call) in self.left() {
            // Those behind it return later still.
            if call.invoked > first_return {
                break;
            }
            first_return = first_return.min(call.returned);
        }
        self.left()
            .take_while(move |(_, call)| call.invoked <= first_return)
    }

    /// The lowest revision that is left: it comes before all others that have one. Of one revision, the commit first.
    fn next_revision(&self) -> Option<(u64, bool)> {
        let place = *self.by_revision.get(self.first_by_revision)?;
        turn(self.calls.get(place)?)
    }

    /// Places reads and refusals that fit, as long as there are any: they change nothing, so sooner is never worse.
    fn place_all_that_fit(&mut self, state: &mut State, placed: &mut Vec<usize>) {
        loop {
            let next = self.next_revision();
            let fits = self.ready().find_map(|(place, call)| {
                if matches!(call.kind, Kind::Writes { .. }) || !in_turn(call, next) {
                    return None;
                }
                // Only what fits for certain: what would first decide a revision is a choice.
                if matches!(
                    (&call.kind, &state.value),
                    (Kind::Finds(Some(_)), Some((_, None)))
                ) {
                    return None;
                }
                Some((place, self.step(state, place)?))
            });
            let Some((place, after)) = fits else { return };
            *state = after;
            placed.push(place);
            self.mark(place, true);
        }
    }

    /// What may come next, the likeliest last: calls with the next revision, refusals, commits that may never have been.
    fn choices(&self) -> Vec<usize> {
        let next = self.next_revision();
        let rank = |call: &KeyCall| (!call.optional, call.revision.is_some());
        let mut choices: Vec<_> = self
            .ready()
            .filter(|(_, call)| in_turn(call, next))
            .map(|(place, call)| (rank(call), place))
            .collect();
        choices.sort_unstable();
        choices.into_iter().map(|(_, place)| place).collect()
    }

    fn step(&self, state: &State, place: usize) -> Option<State> {
        let call = self.calls.get(place)?;
        let mut after = state.clone();
        let writes = matches!(call.kind, Kind::Writes { .. });
        if let Some(revision) = call.revision {
            // A commit has a revision of its own; several reads may have one. A check of another key is a read too.
            if revision < state.floor || writes && revision == state.floor {
                return None;
            }
            after.floor = revision;
        }
        match &call.kind {
            Kind::Reads(None) => state.value.is_none().then_some(after),
            Kind::Reads(Some(seen)) => {
                let (put, known) = state.value?;
                let Kind::Writes { value, .. } = &self.calls.get(put)?.kind else {
                    return None;
                };
                let same = value.as_ref() == Some(&seen.value)
                    && known.is_none_or(|known| known == seen.revision);
                after.value = Some((put, Some(seen.revision)));
                same.then_some(after)
            }
            Kind::Finds(found) => find(&mut after, *found).then_some(after),
            Kind::Writes { expected, value } => {
                let holds = match expected {
                    None => true,
                    Some(Expect::Absent) => find(&mut after, None),
                    Some(Expect::At(revision)) => find(&mut after, Some(*revision)),
                };
                after.value = value.as_ref().map(|_| (place, call.revision));
                holds.then_some(after)
            }
        }
    }

    fn note_progress(&mut self, state: &State) {
        if self.first_left < self.best {
            return;
        }
        self.best = self.first_left;
        let ready: Vec<String> = self
            .ready()
            .filter(|(_, call)| !call.optional)
            .take(4)
            .map(|(_, call)| format!("{} {:?} at {:?}", call.id, call.kind, call.revision))
            .collect();
        self.stuck = format!("{ready:?} when it is {:?}", self.describe(state));
    }

    fn describe(&self, state: &State) -> Option<(String, Option<u64>)> {
        let (put, revision) = state.value?;
        Some((self.calls.get(put)?.id.to_string(), revision))
    }
}

/// When a call with a revision has its turn: in the order of revisions, and of one revision the commit first.
fn turn(call: &KeyCall) -> Option<(u64, bool)> {
    let reads = !matches!(call.kind, Kind::Writes { .. });
    call.revision.map(|revision| (revision, reads))
}

/// Whether `call` does not come before its turn.
fn in_turn(call: &KeyCall, next: Option<(u64, bool)>) -> bool {
    let own = turn(call);
    own.is_none() || own == next
}

/// Whether the key is at this revision; where its revision is not known, it is now.
fn find(state: &mut State, found: Option<u64>) -> bool {
    match (&mut state.value, found) {
        (None, None) => true,
        (Some((_, known)), Some(found)) => *known.get_or_insert(found) == found,
        _ => false,
    }
}
