//! The feed without an engine: what a watch finds that keeps up, falls behind, and comes back.

use std::sync::Arc;
use std::task::Waker;

use storage_protocol::{
    Change, ChangeKind, CommitRecord, Key, KeyRange, Keyspace, Revision, UnixMillis, Value,
};

use super::{Feed, FeedCommit, Next, QUEUE_COMMITS_MAX};

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
        feed.publish(vec![commit("a", revision, "k", 1)], Revision(revision));
        feed.publish(
            vec![commit("b", revision + 10_000, "k", 1)],
            Revision(revision),
        );
    }
    // The ring is in revision order in life; here the other keyspace's numbers only must not matter.
    let (seen, _) = drain(&watch);
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
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
    assert_eq!(feed.figures().0, 0);
}
