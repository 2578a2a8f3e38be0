//! What is tried: access rules, principals, and steps that they take, as proptest makes them.
//!
//! Few keys, few prefixes and short steps, so that rules, ranges and keys meet each other often, and a case that fails is
//! read at a glance.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use storage_protocol::{Key, KeyRange, ScanOptions};

/// Shorter than a stamp, so that a stamped key is told from them by its length.
pub(super) const KEYS: [&[u8]; 10] = [
    b"a", b"b", b"ab", b"abc", b"ab\xff", b"c", b"ba", b"b\x00", b"\xff", b"",
];
/// Of rules. Letters only: no stamp begins with one.
pub(super) const PREFIXES: [&str; 6] = ["", "a", "ab", "abc", "b", "ba"];
const SUBJECTS: [&str; 6] = [
    "cert:ann",
    "*",
    "cert:*",
    "role:r",
    "user:bob",
    "cert:other",
];
const KEYSPACES: [&str; 5] = ["m*", "*", "x*", "system", "system*"];
const MEMBERS: [&str; 3] = ["cert:ann", "user:*", "cert:*"];
pub(super) const PERMISSIONS: [&str; 4] = ["read", "write", "watch", "admin"];

/// Who takes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// `cert:ann`, by a certificate. Its commits are numbered, as a native client's are.
    Ann,
    /// `cert:ann`, by a token that Ann minted for less.
    Page,
    /// `user:bob`.
    Bob,
}

pub(super) const ALL: [Who; 3] = [Who::Ann, Who::Page, Who::Bob];

impl Who {
    pub(super) fn principal(self) -> &'static str {
        match self {
            Self::Ann | Self::Page => "cert:ann",
            Self::Bob => "user:bob",
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) subject: &'static str,
    pub(super) keyspace: &'static str,
    pub(super) prefix: &'static str,
    pub(super) allow: Vec<&'static str>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allow = self.allow.join("+");
        let Self {
            subject,
            keyspace,
            prefix,
            ..
        } = self;
        write!(f, "{subject} {allow} {keyspace} {prefix:?}")
    }
}

impl Rule {
    pub(super) fn json(&self) -> String {
        serde_json::json!({
            "principal": self.subject,
            "keyspace": self.keyspace,
            "prefix": self.prefix,
            "allow": self.allow,
        })
        .to_string()
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Op {
    Put(Key, u8),
    Remove(Key),
    Stamped(Key, u8),
    Signal(Key, u8),
}

impl Op {
    /// Of a stamped one, its prefix.
    pub(super) fn key(&self) -> &Key {
        match self {
            Self::Put(key, _)
            | Self::Remove(key)
            | Self::Stamped(key, _)
            | Self::Signal(key, _) => key,
        }
    }

    pub(super) fn is_stamped(&self) -> bool {
        matches!(self, Self::Stamped(..))
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(key, value) => write!(f, "put {key:?} v{value}"),
            Self::Remove(key) => write!(f, "remove {key:?}"),
            Self::Stamped(key, value) => write!(f, "stamp {key:?} v{value}"),
            Self::Signal(key, value) => write!(f, "signal {key:?} v{value}"),
        }
    }
}

/// A commit so many before the last one of the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Back(pub(super) usize);

#[derive(Clone, Debug)]
pub(super) struct Commit {
    pub(super) ops: Vec<Op>,
    /// `None`: it is to be absent.
    pub(super) checks: Vec<(Key, Option<Back>)>,
    pub(super) with_previous: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Scan {
    /// In order, apart from one another.
    pub(super) ranges: Vec<KeyRange>,
    /// Without `newer_than`.
    pub(super) options: ScanOptions,
    pub(super) newer_than: Option<Back>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Now,
    Beginning,
    After(Back),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Every,
    Latest,
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Get(Who, Vec<Key>),
    Scan(Who, Scan),
    /// Begins a scan; its pages are asked for at the next look.
    BeginScan(Who, Scan),
    Commit(Who, Commit),
    /// A commit of somebody who may do everything. `instead`: what it does in another store to what a principal may not
    /// see.
    Other {
        ops: Vec<Op>,
        instead: Vec<Op>,
    },
    Watch(Who, KeyRange, Mode, Start),
    /// All that watches tell up to now, and all pages of scans that were begun.
    Look,
    /// Reads a key of the keyspaces of the server.
    System(Who),
    Grant(Rule),
    /// Takes a rule back, if there is one at this place (modulo their number).
    Revoke(usize),
    /// The role's members from now on.
    Members(Vec<&'static str>),
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    /// With none everybody may do everything. With some, there is one more, which lets an administrator in.
    pub(super) rules: Vec<Rule>,
    pub(super) members: Vec<&'static str>,
    /// What the token was minted for, and the token that it was minted with, if it was one. Without rules: everything.
    pub(super) page: Vec<Rule>,
    pub(super) parent: Option<Vec<Rule>>,
    pub(super) steps: Vec<Step>,
}

fn key() -> impl Strategy<Value = Key> {
    select(KEYS.to_vec()).prop_map(Key::from_static)
}

fn full_key() -> impl Strategy<Value = Key> {
    select(KEYS[..9].to_vec()).prop_map(Key::from_static)
}

fn who() -> impl Strategy<Value = Who> {
    select(ALL.to_vec())
}

fn rule() -> impl Strategy<Value = Rule> {
    let subject = prop_oneof![3 => Just("cert:ann"), 2 => select(SUBJECTS.to_vec())];
    let keyspace = prop_oneof![4 => Just("m*"), 1 => select(KEYSPACES.to_vec())];
    let allow = prop_oneof![
        1 => Just(PERMISSIONS.to_vec()),
        2 => subsequence(PERMISSIONS.to_vec(), 1..=4)
    ];
    let prefix = prop_oneof![1 => Just(""), 3 => select(PREFIXES.to_vec())];
    (subject, keyspace, prefix, allow).prop_map(|(subject, keyspace, prefix, allow)| Rule {
        subject,
        keyspace,
        prefix,
        allow,
    })
}

fn members() -> impl Strategy<Value = Vec<&'static str>> {
    subsequence(MEMBERS.to_vec(), 0..=2)
}

fn range() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        3 => Just(KeyRange::all()),
        2 => key().prop_map(KeyRange::prefix),
        1 => full_key().prop_map(KeyRange::single),
        3 => (key(), proptest::option::of(full_key()))
            .prop_map(|(start, end)| KeyRange { start, end }),
    ]
}

/// One mostly, or two that lie apart.
fn ranges() -> impl Strategy<Value = Vec<KeyRange>> {
    let two = (key(), key(), key(), key()).prop_map(|(a, b, c, d)| {
        let mut bounds = [a, b, c, d];
        bounds.sort();
        let [a, b, c, d] = bounds;
        let mut both = vec![KeyRange::between(a, b), KeyRange::between(c, d)];
        both.dedup_by(|second, first| first.is_empty() || second.is_empty());
        both
    });
    prop_oneof![3 => range().prop_map(|range| vec![range]), 1 => two]
}

fn back() -> impl Strategy<Value = Back> {
    (0..4_usize).prop_map(Back)
}

fn scan() -> impl Strategy<Value = Scan> {
    let limit = prop_oneof![2 => Just(None), 1 => (0..3_u64).prop_map(Some)];
    let newer_than = prop_oneof![2 => Just(None), 1 => back().prop_map(Some)];
    (ranges(), any::<bool>(), any::<bool>(), limit, newer_than).prop_map(
        |(ranges, reverse, keys_only, limit, newer_than)| Scan {
            ranges,
            options: ScanOptions {
                reverse,
                keys_only,
                limit,
                newer_than: None,
            },
            newer_than,
        },
    )
}

fn op(key: impl Strategy<Value = Key>) -> impl Strategy<Value = Op> {
    (0..8_u8, key, 0..10_u8).prop_map(|(kind, key, value)| match kind {
        0..4 => Op::Put(key, value),
        4 | 5 => Op::Remove(key),
        6 => Op::Stamped(key, value),
        _ => Op::Signal(key, value),
    })
}

fn commit() -> impl Strategy<Value = Commit> {
    let check = (key(), prop_oneof![Just(None), back().prop_map(Some)]);
    let checks = prop_oneof![2 => Just(Vec::new()), 1 => vec(check, 1..2)];
    // Few operations: with each one more the commit is refused more often.
    (vec(op(key()), 0..3), checks, any::<bool>()).prop_map(|(ops, checks, with_previous)| Commit {
        ops,
        checks,
        with_previous,
    })
}

/// Each key once.
fn once(ops: Vec<Op>) -> Vec<Op> {
    let mut kept: Vec<Op> = Vec::new();
    for op in ops {
        let is_same = |other: &Op| (other.key(), other.is_stamped()) == (op.key(), op.is_stamped());
        if !kept.iter().any(is_same) {
            kept.push(op);
        }
    }
    kept
}

fn other() -> impl Strategy<Value = Step> {
    let ops = || vec(op(full_key()), 0..5).prop_map(once);
    (ops(), ops()).prop_map(|(ops, instead)| Step::Other { ops, instead })
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(Mode::Every), Just(Mode::Latest)];
    let start = prop_oneof![
        Just(Start::Now),
        Just(Start::Beginning),
        back().prop_map(Start::After)
    ];
    prop_oneof![
        3 => (who(), vec(key(), 0..3)).prop_map(|(who, keys)| Step::Get(who, keys)),
        3 => (who(), scan()).prop_map(|(who, scan)| Step::Scan(who, scan)),
        1 => (who(), scan()).prop_map(|(who, scan)| Step::BeginScan(who, scan)),
        4 => (who(), commit()).prop_map(|(who, commit)| Step::Commit(who, commit)),
        4 => other(),
        3 => (who(), range(), mode, start)
            .prop_map(|(who, range, mode, start)| Step::Watch(who, range, mode, start)),
        3 => Just(Step::Look),
        1 => who().prop_map(Step::System),
        1 => rule().prop_map(Step::Grant),
        1 => (0..4_usize).prop_map(Step::Revoke),
        1 => members().prop_map(Step::Members),
    ]
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let page = || vec(rule(), 0..3);
    let parent = proptest::option::weighted(0.3, page());
    // A keyspace is made by an administrator, so it is there in most cases.
    let steps = (other(), vec(step(), 1..24)).prop_map(|(first, mut steps)| {
        steps.insert(0, first);
        steps
    });
    let steps = prop_oneof![5 => steps, 1 => vec(step(), 1..24)];
    // Where most is refused, not much is seen.
    let rules = (vec(rule(), 0..6), any::<bool>()).prop_map(|(mut rules, is_generous)| {
        if is_generous {
            rules.push(Rule {
                subject: "*",
                keyspace: "m*",
                prefix: "",
                allow: PERMISSIONS.to_vec(),
            });
        }
        rules
    });
    (rules, members(), page(), parent, steps).prop_map(|(rules, members, page, parent, steps)| {
        Case {
            rules,
            members,
            page,
            parent,
            steps,
        }
    })
}
