//! The feed without an engine: what a watch finds that keeps up, falls behind, and comes back.

mod fan_out;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::task::Waker;

use proptest::prelude::*;
use storage_protocol::{
    Change, ChangeKind, CommitRecord, Key, KeyRange, Keyspace, Revision, UnixMillis, Value,
};

use super::fan_out::HandOver;
use super::page::{CommitPage, Found};
use super::slot::{QUEUE_COMMITS_MAX, QUEUES_BYTES_MAX};
use super::views::Views;
use super::{AT_ONCE_MAX, Feed, FeedCommit, Next, QUEUE_BYTES_MAX, Subscription};

fn commit(keyspace: &str, revision: u64, key: &str, bytes: usize) -> FeedCommit {
    let kind = ChangeKind::Signalled {
        bytes: Value::from(vec![0; bytes]),
    };
    let changes = vec![Change {
        key: Key::copy_from_slice(key.as_bytes()),
        kind,
    }];
    let record = CommitRecord::new(Revision(revision), UnixMillis(0), None, "t".into(), changes);
    FeedCommit {
        keyspace: Keyspace::new(keyspace).unwrap(),
        record: Arc::new(record),
    }
}

/// Publishes and tells, as the committer and the feed's thread do between them.
fn publish(feed: &Feed, commits: Vec<FeedCommit>, published: Revision) {
    feed.publish(commits, published);
    feed.deliver_all();
}

fn drain(subscription: &super::Subscription) -> (Vec<u64>, Option<Next>) {
    let mut seen = Vec::new();
    for _ in 0..1000 {
        match subscription.next(Waker::noop()) {
            Next::Commits(commits) => seen.extend(commits.iter().map(|commit| commit.revision.0)),
            other => return (seen, Some(other)),
        }
    }
    (seen, None)
}

#[test]
fn a_watch_that_falls_behind_is_caught_up_from_the_ring_without_gap_or_double() {
    let feed = Arc::new(Feed::new(1 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (watch, after) = feed.subscribe(&name, KeyRange::prefix("k"), None);
    assert_eq!(after, Revision(0));
    let last = QUEUE_COMMITS_MAX as u64 * 3;
    for revision in 1..=last {
        let (mine, others) = (revision * 2, revision * 2 + 1);
        publish(&feed, vec![commit("a", mine, "k", 1)], Revision(mine));
        publish(&feed, vec![commit("b", others, "k", 1)], Revision(others));
    }
    let (seen, _) = drain(&watch);
    assert_eq!(seen, (1..=last).map(|n| n * 2).collect::<Vec<_>>());
}

#[test]
fn what_came_near_and_was_not_taken_is_told_after_parking() {
    let feed = Arc::new(Feed::new(1 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (watch, _) = feed.subscribe(&name, KeyRange::prefix("k"), None);
    watch.park(None);
    for revision in 1..=3 {
        publish(
            &feed,
            vec![commit("a", revision, "k", 1)],
            Revision(revision),
        );
    }
    // Live, with the three in its queue; and parked before it took one.
    assert!(watch.catch_up_live());
    watch.park(None);
    assert_eq!(watch.taken(), Revision(0));
    let Next::Commits(commits) = watch.next_recent() else {
        panic!("nothing is told");
    };
    let delivered: Vec<_> = commits.iter().map(|commit| commit.revision.0).collect();
    assert_eq!(delivered, [1, 2, 3]);
}

#[test]
fn a_watch_older_than_the_ring_is_sent_to_the_log() {
    let feed = Arc::new(Feed::new(20_000, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (watch, _) = feed.subscribe(&name, KeyRange::all(), Some(Revision(0)));
    for revision in 1..=1_000 {
        publish(
            &feed,
            vec![commit("a", revision, "k", 100)],
            Revision(revision),
        );
    }
    let (seen, end) = drain(&watch);
    let Some(Next::ReadLog(after)) = end else {
        panic!("{seen:?} {end:?}")
    };
    assert_eq!(after, Revision(0));
    watch.caught_up(Revision(990));
    let (seen, end) = drain(&watch);
    assert_eq!(
        (seen.first(), seen.last()),
        (Some(&991), Some(&1000)),
        "{end:?}"
    );
}

#[test]
fn ranges_of_every_shape_are_matched_exactly() {
    let feed = Arc::new(Feed::new(1 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let ranges = [
        (KeyRange::all(), vec!["a", "ab", "b"]),
        (KeyRange::prefix("a"), vec!["a", "ab"]),
        (KeyRange::prefix("ab"), vec!["ab"]),
        (KeyRange::single("a"), vec!["a"]),
        (KeyRange::between("aa", "b"), vec!["ab"]),
    ];
    let watches = ranges.map(|(range, keys)| (feed.subscribe(&name, range, None).0, keys));
    for (revision, key) in (1..).zip(["a", "ab", "b"]) {
        publish(
            &feed,
            vec![commit("a", revision, key, 1)],
            Revision(revision),
        );
    }
    for (watch, keys) in &watches {
        let Next::Commits(commits) = watch.next(Waker::noop()) else {
            panic!("nothing for {keys:?}")
        };
        let seen: Vec<_> = commits
            .iter()
            .map(|commit| commit.changes[0].key.clone())
            .collect();
        assert_eq!(seen, *keys);
    }
    drop(watches);
    assert_eq!(feed.figures().watches, 0);
}

/// A commit with a change of each key.
fn commit_of(keyspace: &str, revision: u64, keys: &[Vec<u8>]) -> FeedCommit {
    let changes = keys.iter().map(|key| Change {
        key: Key::from(key.clone()),
        kind: ChangeKind::Removed { previous: None },
    });
    let record = CommitRecord::new(
        Revision(revision),
        UnixMillis(0),
        None,
        "t".into(),
        changes.collect(),
    );
    FeedCommit {
        keyspace: Keyspace::new(keyspace).unwrap(),
        record: Arc::new(record),
    }
}

/// What a watch tells of a history, by looking at each change.
fn naive(history: &[FeedCommit], keyspace: &str, range: &KeyRange) -> Vec<(u64, Vec<Key>)> {
    let mine = history
        .iter()
        .filter(|commit| commit.keyspace.as_str() == keyspace);
    let cut = mine.map(|commit| {
        let changes = commit.record.changes.iter();
        let inside = changes.filter(|change| range.contains(&change.key));
        let keys = inside.map(|change| change.key.clone()).collect();
        (commit.record.revision.0, keys)
    });
    cut.filter(|(_, keys): &(u64, Vec<Key>)| !keys.is_empty())
        .collect()
}

/// All commits that there were, as the log has them.
#[derive(Default)]
struct History(RwLock<Vec<FeedCommit>>);

impl History {
    /// A short page of it after a revision.
    fn page_after(&self, after: Revision) -> CommitPage<Keyspace> {
        let history = self.0.read().unwrap();
        let first = history.partition_point(|commit| commit.record.revision <= after);
        let commits = history[first..].iter().take(7);
        let commits: Vec<_> = commits
            .map(|commit| (commit.keyspace.clone(), commit.record.clone()))
            .collect();
        let reached = commits.last().map_or(after, |last| last.1.revision);
        CommitPage::new(after, reached, commits)
    }
}

/// What a watch is told at one call, the log included, if anything is left to tell.
fn step(
    watch: &Subscription,
    keyspace: &Keyspace,
    log: &History,
) -> Option<Vec<Arc<CommitRecord>>> {
    match watch.next(Waker::noop()) {
        Next::Commits(commits) => Some(commits),
        Next::Idle(_) => None,
        Next::ReadLog(after) => {
            let mut found = Found::after(after, QUEUE_BYTES_MAX);
            log.page_after(after)
                .search(keyspace, watch.range(), &Views::default(), &mut found);
            assert!(found.reached > after, "the log goes on behind the ring");
            watch.caught_up(found.reached);
            Some(found.commits)
        }
    }
}

fn delivered(commits: &[Arc<CommitRecord>]) -> impl Iterator<Item = (u64, Vec<Key>)> {
    commits.iter().map(|commit| {
        let keys = commit.changes.iter().map(|change| change.key.clone());
        (commit.revision.0, keys.collect())
    })
}

fn keys() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(
        prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(0xff)],
        0..4,
    )
}

fn ranges() -> impl Strategy<Value = KeyRange> {
    prop_oneof![
        keys().prop_map(KeyRange::prefix),
        keys().prop_map(KeyRange::single),
        (keys(), keys()).prop_map(|(start, end)| KeyRange::between(start, end)),
        keys().prop_map(|start| KeyRange {
            start: start.into(),
            end: None
        }),
    ]
}

/// What happens in a run: a commit, the feed tells what is published, or a watch takes a step, parks, or is replaced by
/// a new one.
#[derive(Clone, Debug)]
enum Event {
    Commit(bool, BTreeSet<Vec<u8>>),
    Tell,
    Step(usize),
    /// It becomes live with what it missed in its queue, if that is little: what a watch `Latest` does.
    ComeNear(usize),
    Park(usize),
    Replace(usize, KeyRange),
}

fn events() -> impl Strategy<Value = Event> {
    let keys_of = |count| {
        (
            any::<bool>(),
            proptest::collection::btree_set(keys(), count),
        )
    };
    prop_oneof![
        6 => keys_of(1..6).prop_map(|(own, keys)| Event::Commit(own, keys)),
        1 => keys_of(20..40).prop_map(|(own, keys)| Event::Commit(own, keys)),
        4 => Just(Event::Tell),
        3 => (0..6_usize).prop_map(Event::Step),
        2 => (0..6_usize).prop_map(Event::ComeNear),
        2 => (0..6_usize).prop_map(Event::Park),
        1 => (0..6_usize, ranges()).prop_map(|(watch, range)| Event::Replace(watch, range)),
    ]
}

/// A watch and what it was told.
struct Observed {
    watch: Subscription,
    begun: Revision,
    seen: Vec<(u64, Vec<Key>)>,
    /// It was told that there is nothing else up to here.
    mark: Revision,
}

impl Observed {
    /// Takes a step, if there is anything to tell. A progress event covers what was told, and nothing else.
    fn step(&mut self, name: &Keyspace, log: &History) -> bool {
        let Some(commits) = step(&self.watch, name, log) else {
            let Next::Idle(mark) = self.watch.next(Waker::noop()) else {
                panic!("it was idle");
            };
            self.mark = mark;
            return false;
        };
        self.seen.extend(delivered(&commits));
        true
    }

    fn expected(&self, history: &[FeedCommit]) -> Vec<(u64, Vec<Key>)> {
        let mut expected = naive(history, "a", self.watch.range());
        expected.retain(|(revision, _)| *revision > self.begun.0);
        expected
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Live, from the ring and from the log, parked and resumed, with commits left out and told late: what a watch is
    /// told is what looking at each change tells, and no progress event comes before what it covers.
    #[test]
    fn each_watch_is_told_what_the_naive_filter_tells(
        ring_bytes in prop_oneof![Just(0_usize), Just(3_000), Just(20_000), Just(1 << 20)],
        untold_bytes in prop_oneof![Just(0_usize), Just(3_000), Just(1 << 20)],
        at_once_max in prop_oneof![Just(0_usize), Just(3), Just(AT_ONCE_MAX)],
        first in proptest::collection::vec(ranges(), 6),
        run in proptest::collection::vec(events(), 1..120),
    ) {
        let mut feed = Feed::new(ring_bytes, Revision(0));
        feed.hand_over = HandOver::new(untold_bytes);
        feed.at_once_max = at_once_max;
        let feed = Arc::new(feed);
        let (name, log) = (Keyspace::new("a").unwrap(), History::default());
        let begin = |range: &KeyRange| {
            let (watch, begun) = feed.subscribe(&name, range.clone(), None);
            Observed { watch, begun, seen: Vec::new(), mark: begun }
        };
        let mut watches: Vec<_> = first.iter().map(begin).collect();
        let mut revision = 0;
        for event in run {
            match event {
                Event::Commit(own, keys) => {
                    // Not each number is a commit's.
                    revision += 1 + keys.len() as u64;
                    let keys: Vec<_> = keys.into_iter().rev().collect();
                    let commit = commit_of(if own { "a" } else { "b" }, revision, &keys);
                    log.0.write().unwrap().push(commit.clone());
                    feed.publish(vec![commit], Revision(revision));
                    prop_assert!(feed.figures().ring_bytes <= ring_bytes);
                }
                Event::Tell => feed.deliver_all(),
                Event::Step(watch) => {
                    let watch = &mut watches[watch];
                    if !watch.step(&name, &log) {
                        let mut expected = watch.expected(&log.0.read().unwrap());
                        expected.retain(|(revision, _)| *revision <= watch.mark.0);
                        prop_assert_eq!(&watch.seen, &expected, "at the mark {}", watch.mark);
                    }
                }
                Event::ComeNear(watch) => {
                    watches[watch].watch.catch_up_live();
                },
                Event::Park(watch) => watches[watch].watch.park(None),
                Event::Replace(watch, range) => watches[watch] = begin(&range),
            }
        }
        feed.deliver_all();
        let history = log.0.read().unwrap().clone();
        for watch in &mut watches {
            while watch.step(&name, &log) {}
            prop_assert!(watch.watch.is_live());
            prop_assert!(watch.mark >= Revision(revision));
            let expected = watch.expected(&history);
            prop_assert_eq!(&watch.seen, &expected, "{:?}", watch.watch.range());
        }
        drop(watches);
        let figures = feed.figures();
        prop_assert_eq!((figures.watches, figures.queued_bytes, figures.untold_bytes), (0, 0, 0));
        prop_assert!(feed.matchers().is_empty());
    }
}
