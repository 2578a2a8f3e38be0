//! Which rules give nothing that another rule for the same principals does not give.
//!
//! Ten thousand rules have fifty million pairs, so rules are filed by whom they are for, by keyspace and by prefix, and
//! only those are compared that may cover one another. Where that is of no use (many keyspaces that begin with `*`, or
//! prefixes of many lengths), the search ends after [`STEPS_MAX`]: then not all are found.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};

use super::{KeyspaceKind, KeyspacePattern, Rule, Subject};

/// How many rules, keyspaces and lengths of prefixes are looked at: two seconds at most, by measurement.
const STEPS_MAX: u32 = 2_000_000;

/// How a rule is covered by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    /// By one that stands before it and gives just the same.
    Same(usize),
    /// By one that gives more.
    Wider(usize),
}

/// Rules, filed. They are told by their places in the list that they came in.
pub(super) struct Filed<'a> {
    rules: HashMap<usize, &'a Rule>,
    subjects: HashMap<&'a Subject, OfSubject<'a>>,
    /// What is left of [`STEPS_MAX`].
    steps_left: Cell<u32>,
}

#[derive(Default)]
struct OfSubject<'a> {
    /// The places of the rules, by their prefixes.
    keyspaces: HashMap<&'a KeyspacePattern, ByPrefix<'a, usize>>,
    /// Those of `keyspaces` that may cover others, by what these begin with.
    wide: ByPrefix<'a, &'a KeyspacePattern>,
}

impl<'a> Filed<'a> {
    pub(super) fn new(rules: impl Iterator<Item = (usize, &'a Rule)>) -> Self {
        let mut filed = Self {
            rules: HashMap::new(),
            subjects: HashMap::new(),
            steps_left: Cell::new(STEPS_MAX),
        };
        for (place, rule) in rules {
            filed.rules.insert(place, rule);
            let subject = filed.subjects.entry(rule.principal()).or_default();
            let keyspace = rule.keyspace();
            if keyspace.has_wildcard() && !subject.keyspaces.contains_key(keyspace) {
                subject.wide.insert(keyspace.head(), keyspace);
            }
            let of_keyspace = subject.keyspaces.entry(keyspace).or_default();
            of_keyspace.insert(rule.prefix(), place);
        }
        filed
    }

    /// Another rule that covers the one at this place.
    pub(super) fn overlap(&self, place: usize) -> Option<Overlap> {
        let rule = *self.rules.get(&place)?;
        let subject = self.subjects.get(rule.principal())?;
        let keyspace = rule.keyspace();
        let steps_left = &self.steps_left;
        let wide = subject.wide.at_prefixes_of(keyspace.as_str(), steps_left);
        let wide = wide.filter(|wide| *wide != keyspace && wide.covers(keyspace));
        std::iter::once(keyspace)
            .chain(wide)
            .filter_map(|keyspace| subject.keyspaces.get(keyspace))
            .flat_map(|of_keyspace| of_keyspace.at_prefixes_of(rule.prefix(), steps_left))
            .find_map(|other| self.compare(place, other))
    }

    fn compare(&self, place: usize, other: usize) -> Option<Overlap> {
        let (rule, by) = (self.rules.get(&place)?, self.rules.get(&other)?);
        if !covers(by, rule) {
            return None;
        }
        match covers(rule, by) {
            false => Some(Overlap::Wider(other)),
            // Of those that give the same, the first one stays. A rule gives the same as itself.
            true => (other < place).then_some(Overlap::Same(other)),
        }
    }
}

/// Whether `by` gives all that `rule` gives, to the same principals.
pub(super) fn covers(by: &Rule, rule: &Rule) -> bool {
    let kind = match rule.keyspace().is_system_only() {
        true => KeyspaceKind::System,
        // In the server's own keyspaces such a rule gives what its admin gives, which is among what it gives elsewhere.
        false => KeyspaceKind::Ordinary,
    };
    by.keyspace().covers(rule.keyspace())
        && rule.prefix().starts_with(by.prefix())
        && by.given(kind).contains_all(rule.given(kind))
}

/// Things, each at a text.
struct ByPrefix<'a, T> {
    things: HashMap<&'a [u8], Vec<T>>,
    /// The lengths of the texts.
    lengths: BTreeSet<usize>,
}

impl<T> Default for ByPrefix<'_, T> {
    fn default() -> Self {
        Self {
            things: HashMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<'a, T: Copy> ByPrefix<'a, T> {
    fn insert(&mut self, text: &'a str, thing: T) {
        self.lengths.insert(text.len());
        self.things.entry(text.as_bytes()).or_default().push(thing);
    }

    /// What is at the texts that `longer` begins with, as long as steps are left.
    fn at_prefixes_of(&self, longer: &str, steps_left: &Cell<u32>) -> impl Iterator<Item = T> {
        let step = || {
            let left = steps_left.get();
            steps_left.set(left.saturating_sub(1));
            left > 0
        };
        let longer = longer.as_bytes();
        let lengths = self.lengths.range(..=longer.len());
        lengths
            .take_while(move |_| step())
            .filter_map(|length| self.things.get(longer.get(..*length)?))
            .flatten()
            .copied()
            .take_while(move |_| step())
    }
}
