//! The feed without an engine: what a watch finds that keeps up, falls behind, and comes back.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::task::Waker;

use proptest::prelude::*;
use storage_protocol::{
    Change, ChangeKind, CommitRecord, Key, KeyRange, Keyspace, Revision, UnixMillis, Value,
};

use super::page::{Found, Page};
use super::{Feed, FeedCommit, Next, QUEUE_BYTES_MAX, QUEUE_COMMITS_MAX, Subscription};

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
    let (watch, after) = feed.subscribe(&name, KeyRange::prefix("k"), true, None);
    assert_eq!(after, Revision(0));
    let last = QUEUE_COMMITS_MAX as u64 * 3;
    for revision in 1..=last {
        let (mine, others) = (revision * 2, revision * 2 + 1);
        feed.publish(vec![commit("a", mine, "k", 1)], Revision(mine));
        feed.publish(vec![commit("b", others, "k", 1)], Revision(others));
    }
    let (seen, _) = drain(&watch);
    assert_eq!(seen, (1..=last).map(|n| n * 2).collect::<Vec<_>>());
}

#[test]
fn a_watch_older_than_the_ring_is_sent_to_the_log() {
    let feed = Arc::new(Feed::new(20_000, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (watch, _) = feed.subscribe(&name, KeyRange::all(), true, Some(Revision(0)));
    for revision in 1..=1_000 {
        feed.publish(vec![commit("a", revision, "k", 100)], Revision(revision));
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
    let watches = ranges.map(|(range, keys)| (feed.subscribe(&name, range, true, None).0, keys));
    for (revision, key) in (1..).zip(["a", "ab", "b"]) {
        feed.publish(vec![commit("a", revision, key, 1)], Revision(revision));
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
    fn page_after(&self, after: Revision) -> Page<Keyspace> {
        let history = self.0.read().unwrap();
        let first = history.partition_point(|commit| commit.record.revision <= after);
        let commits = history[first..].iter().take(7);
        let commits: Vec<_> = commits
            .map(|commit| (commit.keyspace.clone(), commit.record.clone()))
            .collect();
        let reached = commits.last().map_or(after, |last| last.1.revision);
        Page::new(after, reached, commits)
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
                .search(keyspace, watch.range(), &mut found);
            assert!(found.reached > after, "the log goes on behind the ring");
            watch.caught_up(found.reached);
            Some(found.commits)
        }
    }
}

fn told(commits: &[Arc<CommitRecord>]) -> impl Iterator<Item = (u64, Vec<Key>)> {
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

/// What happens in a run: a commit, or a watch takes a step, parks, or is replaced by a new one.
#[derive(Clone, Debug)]
enum Event {
    Commit(bool, BTreeSet<Vec<u8>>),
    Step(usize),
    Park(usize),
    Replace(usize, KeyRange),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (any::<bool>(), proptest::collection::btree_set(keys(), 1..6))
            .prop_map(|(own, keys)| Event::Commit(own, keys)),
        3 => (0..6_usize).prop_map(Event::Step),
        1 => (0..6_usize).prop_map(Event::Park),
        1 => (0..6_usize, ranges()).prop_map(|(watch, range)| Event::Replace(watch, range)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Live, from the ring and from the log, parked and resumed: what a watch is told is what looking at each change tells.
    #[test]
    fn each_watch_is_told_what_the_naive_filter_tells(
        ring_bytes in prop_oneof![Just(0_usize), Just(3_000), Just(20_000), Just(1 << 20)],
        first in proptest::collection::vec(ranges(), 6),
        run in proptest::collection::vec(events(), 1..120),
    ) {
        let feed = Arc::new(Feed::new(ring_bytes, Revision(0)));
        let (name, log) = (Keyspace::new("a").unwrap(), History::default());
        let begin = |range: &KeyRange| {
            let (watch, begun) = feed.subscribe(&name, range.clone(), true, None);
            (watch, begun, Vec::new())
        };
        let mut watches: Vec<_> = first.iter().map(begin).collect();
        let mut revision = 0;
        for event in run {
            match event {
                Event::Commit(own, keys) => {
                    // Not each number is a commit's.
                    revision += 1 + keys.len() as u64;
                    let keys: Vec<_> = keys.into_iter().collect();
                    let commit = commit_of(if own { "a" } else { "b" }, revision, &keys);
                    log.0.write().unwrap().push(commit.clone());
                    feed.publish(vec![commit], Revision(revision));
                    prop_assert!(feed.figures().ring_bytes <= ring_bytes);
                }
                Event::Step(watch) => {
                    let (watch, _, seen) = &mut watches[watch];
                    seen.extend(told(&step(watch, &name, &log).unwrap_or_default()));
                }
                Event::Park(watch) => watches[watch].0.park(None),
                Event::Replace(watch, range) => watches[watch] = begin(&range),
            }
        }
        let history = log.0.read().unwrap().clone();
        for (watch, begun, seen) in &mut watches {
            while let Some(commits) = step(watch, &name, &log) {
                seen.extend(told(&commits));
            }
            prop_assert!(watch.is_live());
            let mut expected = naive(&history, "a", watch.range());
            expected.retain(|(revision, _)| *revision > begun.0);
            prop_assert_eq!(&*seen, &expected, "{:?} after {}", watch.range(), begun);
        }
        drop(watches);
        let figures = feed.figures();
        prop_assert_eq!((figures.watches, figures.queued_bytes), (0, 0));
    }
}

/// Searches go on without the lock while the writer moves the ring on, joins its pages and drops them.
#[test]
fn watches_that_resume_while_the_ring_moves_on_miss_nothing() {
    const COMMITS: u64 = 20_000;
    // About a hundred commits: the writer overtakes whoever searches.
    let feed = Arc::new(Feed::new(100_000, Revision(0)));
    let (name, log) = (Keyspace::new("a").unwrap(), Arc::new(History::default()));
    let reader = |place: u64| {
        let (feed, name, log) = (feed.clone(), name.clone(), log.clone());
        let prefix = KeyRange::prefix(format!("{place}/"));
        let (watch, _) = feed.subscribe(&name, prefix, true, None);
        std::thread::spawn(move || {
            let expected: Vec<_> = (1..=COMMITS).filter(|n| n % 4 == place).collect();
            let mut seen = Vec::new();
            while seen.len() < expected.len() {
                match step(&watch, &name, &log) {
                    Some(commits) => seen.extend(commits.iter().map(|commit| commit.revision.0)),
                    None => std::thread::yield_now(),
                }
                if seen.len() % 3 == 0 {
                    watch.park(None);
                }
                let told = seen.len().min(expected.len());
                assert_eq!(
                    seen[seen.len().saturating_sub(50)..],
                    expected[told.saturating_sub(50)..told]
                );
            }
            assert_eq!(seen, expected);
        })
    };
    let readers: Vec<_> = (0..4).map(reader).collect();
    for revision in 1..=COMMITS {
        let key = format!("{}/k", revision % 4).into_bytes();
        let commit = commit_of("a", revision, &[key]);
        log.0.write().unwrap().push(commit.clone());
        feed.publish(vec![commit], Revision(revision));
    }
    for reader in readers {
        reader.join().expect("a reader sees what it must");
    }
}

#[test]
fn the_ring_counts_indexes_and_wire_forms() {
    let feed = Arc::new(Feed::new(1 << 20, Revision(0)));
    let mut held = 0;
    for revision in 1..=2_000 {
        let commit = commit("a", revision, "k", 10_000);
        assert!(commit.record.encoded().len() >= 10_000);
        held += 2 * 10_000;
        feed.publish(vec![commit], Revision(revision));
        let figures = feed.figures();
        assert!(figures.ring_bytes <= 1 << 20);
        assert!(
            revision > 40 || figures.ring_bytes >= held,
            "of {revision} commits"
        );
    }
    assert!(feed.figures().ring_floor >= Revision(2_000 - (1 << 20) / 20_000));
}

#[test]
fn queues_of_live_watches_are_bounded_together() {
    let feed = Arc::new(Feed::new(64 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let watches: Vec<_> = (0..2_000)
        .map(|_| feed.subscribe(&name, KeyRange::all(), true, None).0)
        .collect();
    for revision in 1..=10 {
        feed.publish(vec![commit("a", revision, "k", 20_000)], Revision(revision));
        assert!(feed.figures().queued_bytes <= super::QUEUES_BYTES_MAX);
    }
    for watch in &watches {
        assert_eq!(drain(watch).0, (1..=10).collect::<Vec<_>>());
    }
    assert_eq!(feed.figures().queued_bytes, 0);
}
