//! Commits on their way to the watches: who is told when, what it costs, and what it shares.

use super::*;

/// How many watches a commit of the keyspace looks at.
fn filed(feed: &Feed, keyspace: &Keyspace) -> usize {
    feed.matchers()
        .get(keyspace)
        .map_or(0, |matcher| matcher.all().count())
}

/// A commit of so many keys, in falling order.
fn large(revision: u64, keys: u32) -> FeedCommit {
    let keys = (0..keys).rev().map(|key| format!("{key:05}").into_bytes());
    commit_of("a", revision, &keys.collect::<Vec<_>>())
}

/// One that leaves all telling to its thread.
fn feed_with_a_thread() -> Arc<Feed> {
    let mut feed = Feed::new(1 << 20, Revision(0));
    feed.at_once_max = 0;
    Arc::new(feed)
}

#[test]
fn a_commit_is_published_without_telling_anybody() {
    let feed = feed_with_a_thread();
    let name = Keyspace::new("a").unwrap();
    let (early, _) = feed.subscribe(&name, KeyRange::all(), None);
    feed.publish(vec![commit("a", 1, "k", 1)], Revision(1));
    // It is there for who begins now, and below no progress event of who is not told yet.
    assert_eq!(feed.subscribe(&name, KeyRange::all(), None).1, Revision(1));
    assert!(matches!(early.next(Waker::noop()), Next::Idle(Revision(0))));
    feed.deliver_all();
    assert_eq!(drain(&early).0, [1]);
}

#[test]
fn what_nobody_watches_does_not_wake_the_thread() {
    let feed = feed_with_a_thread();
    let name = Keyspace::new("a").unwrap();
    let (watch, _) = feed.subscribe(&name, KeyRange::all(), None);
    let other = FeedCommit {
        keyspace: Keyspace::new("b").unwrap(),
        ..large(1, 100)
    };
    feed.publish(vec![other], Revision(1));
    assert!(feed.hand_over.try_next().is_none());
    assert!(matches!(watch.next(Waker::noop()), Next::Idle(Revision(1))));
    // With one that is watched it goes to the thread.
    feed.publish(vec![commit("b", 2, "k", 1), large(3, 1)], Revision(3));
    assert!(drain(&watch).0.is_empty());
    feed.deliver_all();
    assert_eq!(drain(&watch).0, [3]);
}

#[test]
fn what_concerns_few_is_told_as_it_is_published_and_in_its_turn() {
    let feed = Arc::new(Feed::new(1 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (watch, _) = feed.subscribe(&name, KeyRange::all(), None);
    feed.publish(vec![commit("a", 1, "k", 1)], Revision(1));
    assert_eq!(drain(&watch).0, [1]);
    // This is more, so it waits for the thread, and so does what comes behind it.
    feed.publish(vec![large(2, 100)], Revision(2));
    feed.publish(vec![commit("a", 3, "k", 1)], Revision(3));
    assert!(drain(&watch).0.is_empty());
    let group = feed.hand_over.try_next().unwrap();
    feed.publish(vec![commit("a", 4, "k", 1)], Revision(4));
    feed.deliver_group(group);
    assert_eq!(drain(&watch).0, [2]);
    feed.deliver_all();
    assert_eq!(drain(&watch).0, [3, 4]);
    // Too many watches.
    let others: Vec<_> = (0..AT_ONCE_MAX)
        .map(|_| feed.subscribe(&name, KeyRange::prefix("k"), None))
        .collect();
    feed.publish(vec![commit("a", 5, "k", 1)], Revision(5));
    assert!(drain(&watch).0.is_empty());
    feed.deliver_all();
    assert_eq!(drain(&watch).0, [5]);
    drop(others);
    feed.publish(vec![commit("a", 6, "k", 1)], Revision(6));
    assert_eq!(drain(&watch).0, [6]);
    // Few for one commit, and too many for two.
    let others: Vec<_> = (0..AT_ONCE_MAX / 2)
        .map(|_| feed.subscribe(&name, KeyRange::prefix("k"), None))
        .collect();
    feed.publish(vec![commit("a", 7, "k", 1)], Revision(7));
    assert_eq!(drain(&watch).0, [7]);
    let two = vec![commit("a", 8, "k", 1), commit("a", 9, "k", 1)];
    feed.publish(two, Revision(9));
    assert!(drain(&watch).0.is_empty());
    feed.deliver_all();
    assert_eq!(drain(&watch).0, [8, 9]);
    drop(others);
}

#[test]
fn a_watch_that_stands_behind_costs_a_commit_nothing() {
    let feed = Arc::new(Feed::new(64 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let (parked, _) = feed.subscribe(&name, KeyRange::all(), None);
    let (slow, _) = feed.subscribe(&name, KeyRange::prefix("0"), None);
    let (live, _) = feed.subscribe(&name, KeyRange::single("00007"), None);
    assert_eq!(filed(&feed, &name), 3);
    parked.park(None);
    assert_eq!(filed(&feed, &name), 2);
    // More than a queue takes: whom it concerns stands behind.
    publish(&feed, vec![large(1, 5_000)], Revision(1));
    assert_eq!(filed(&feed, &name), 0);
    for watch in [&parked, &slow, &live] {
        assert_eq!(drain(watch).0, [1]);
    }
    assert_eq!(filed(&feed, &name), 3);
}

#[test]
fn watches_with_the_same_view_of_a_commit_share_it() {
    let feed = Arc::new(Feed::new(64 << 20, Revision(0)));
    let name = Keyspace::new("a").unwrap();
    let views = [
        // All of it, however it is said.
        vec![
            KeyRange::all(),
            KeyRange::prefix("0"),
            KeyRange::between("", "1"),
        ],
        // The same part of it.
        vec![
            KeyRange::prefix("000"),
            KeyRange::between("00", "001"),
            KeyRange::between("00000", "00100"),
        ],
    ];
    for keys in [200, 5_000] {
        let revision = u64::from(keys);
        let watches: Vec<Vec<_>> = views
            .iter()
            .map(|ranges| {
                let watch = |range: &KeyRange| feed.subscribe(&name, range.clone(), None).0;
                ranges.iter().map(watch).collect()
            })
            .collect();
        publish(&feed, vec![large(revision, keys)], Revision(revision));
        for (watches, changes) in watches.iter().zip([keys as usize, 100]) {
            let delivered: Vec<_> = watches
                .iter()
                .map(|watch| match watch.next(Waker::noop()) {
                    Next::Commits(commits) => commits[0].clone(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(delivered[0].changes.len(), changes);
            assert!(
                delivered
                    .iter()
                    .all(|part| Arc::ptr_eq(part, &delivered[0])),
                "{keys}"
            );
        }
    }
}

#[test]
fn a_mark_beyond_what_is_told_is_waited_for() {
    struct WokenFlag(std::sync::atomic::AtomicBool);
    impl std::task::Wake for WokenFlag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
    let feed = feed_with_a_thread();
    let (watch, _) = feed.subscribe(&Keyspace::new("a").unwrap(), KeyRange::all(), None);
    // Of another keyspace, which somebody watches: the watch itself is told nothing.
    let _other = feed.subscribe(&Keyspace::new("b").unwrap(), KeyRange::all(), None);
    feed.publish(vec![commit("b", 7, "k", 1)], Revision(7));
    let woken = Arc::new(WokenFlag(false.into()));
    watch.wake_once_delivered(Revision(7), &woken.clone().into());
    assert!(!woken.0.load(std::sync::atomic::Ordering::SeqCst));
    feed.deliver_all();
    assert!(woken.0.load(std::sync::atomic::Ordering::SeqCst));
    assert!(matches!(watch.next(Waker::noop()), Next::Idle(Revision(7))));
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
        let (watch, _) = feed.subscribe(&name, prefix, None);
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
                let delivered = seen.len().min(expected.len());
                assert_eq!(
                    seen[seen.len().saturating_sub(50)..],
                    expected[delivered.saturating_sub(50)..delivered]
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
        publish(&feed, vec![commit], Revision(revision));
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
        publish(&feed, vec![commit], Revision(revision));
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
        .map(|_| feed.subscribe(&name, KeyRange::all(), None).0)
        .collect();
    for revision in 1..=10 {
        publish(
            &feed,
            vec![commit("a", revision, "k", 20_000)],
            Revision(revision),
        );
        assert!(feed.figures().queued_bytes <= QUEUES_BYTES_MAX);
    }
    for watch in &watches {
        assert_eq!(drain(watch).0, (1..=10).collect::<Vec<_>>());
    }
    assert_eq!(feed.figures().queued_bytes, 0);
}
