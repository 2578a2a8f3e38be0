//! The WAL as the change log, trap by trap: a watch that resumes from any position misses nothing and sees nothing twice.

#![expect(clippy::unwrap_used, reason = "a test: what fails is the finding")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use storage_protocol::{
    Batch, CommitOptions, Entry, Key, KeyRange, KeyState, Keyspace, Position, Revision,
    ScanOptions, Storage, StorageError, StorageExt, WatchEvent, WatchOptions, WatchStart,
};
use storage_server::engine::Engine;
use storage_server::engine::rocks::{Durability, EngineOptions, RocksEngine};
use storage_server::gateway::prometheus_client::encoding::prometheus_text::encode;
use storage_server::gateway::prometheus_client::registry::Registry;

fn open(folder: &Path, change: impl FnOnce(&mut EngineOptions)) -> Arc<RocksEngine> {
    let mut options = EngineOptions::new(folder.join("data"));
    options.disk_reserve_bytes = 0;
    change(&mut options);
    RocksEngine::open(options).expect("the store opens")
}

async fn close(engine: Arc<RocksEngine>) {
    tokio::task::spawn_blocking(move || engine.close())
        .await
        .unwrap();
}

fn keyspace(name: &str) -> Keyspace {
    Keyspace::new(name).unwrap()
}

/// Many writers at once, so that groups form; returns the revisions of the keyspace's commits that change something, in
/// order.
async fn write_in_groups(
    engine: &Arc<RocksEngine>,
    name: &str,
    writers: u32,
    each: u32,
) -> Vec<Revision> {
    let writers = (0..writers).map(|writer| {
        let session = engine
            .open_session(&format!("cert:w{writer}"), &keyspace(name))
            .storage();
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for n in 0..each {
                let key = format!("{:02}/{:03}", writer, n % 7);
                // Nobody else writes it. To remove what is not there changes nothing.
                let there = session.get_one(Key::from(key.clone())).await.unwrap();
                let changes = n % 5 != 4 || there.is_some();
                let batch = match n % 5 {
                    4 => Batch::new().remove(key),
                    3 => Batch::new()
                        .put(key, format!("{writer}-{n}"))
                        .signal(format!("{writer:02}/signal"), "s"),
                    _ => Batch::new()
                        .put(key, format!("{writer}-{n}"))
                        .put(format!("{writer:02}/other"), "x"),
                };
                let options = CommitOptions::labelled("push").with_previous();
                let position = session.commit(batch, options).await.unwrap();
                revisions.extend(changes.then_some(position.revision));
            }
            revisions
        })
    });
    let mut all = Vec::new();
    for writer in futures_util::future::join_all(writers).await {
        all.extend(writer.unwrap());
    }
    all.sort();
    all
}

/// The revisions that a watch `Every` tells up to the present.
async fn told(
    storage: &dyn Storage,
    start: WatchStart,
    range: KeyRange,
) -> Result<Vec<Arc<storage_protocol::CommitRecord>>, StorageError> {
    let mut watch = storage.watch(range, WatchOptions::every(start)).await?;
    watch.request_progress(1);
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), watch.next())
            .await
            .expect("a watch goes on");
        match event?.expect("a watch does not end") {
            WatchEvent::Commit(commit) => seen.push(commit),
            WatchEvent::Progress { token: Some(1), .. } => return Ok(seen),
            other => panic!("{other:?}"),
        }
    }
}

async fn full_state(storage: &dyn Storage) -> (Position, BTreeMap<Key, Entry>) {
    let scan = storage
        .scan(KeyRange::all(), ScanOptions::default())
        .await
        .unwrap();
    let position = scan.position();
    let items = scan
        .collect()
        .await
        .unwrap()
        .into_iter()
        .filter_map(|item| match item.state {
            KeyState::Live(entry) => Some((item.key, entry)),
            KeyState::Removed(_) => None,
        });
    (position, items.collect())
}

/// The state as the changes up to a revision leave it: values and revisions.
fn replay(
    commits: &[Arc<storage_protocol::CommitRecord>],
    to: Revision,
) -> BTreeMap<Key, (Bytes, Revision)> {
    use storage_protocol::ChangeKind;
    let mut state = BTreeMap::new();
    for commit in commits.iter().take_while(|commit| commit.revision <= to) {
        for change in &commit.changes {
            match &change.kind {
                ChangeKind::Put { value, .. } => {
                    state.insert(change.key.clone(), (value.clone(), commit.revision));
                }
                ChangeKind::Removed { .. } => {
                    state.remove(&change.key);
                }
                ChangeKind::Signalled { .. } => {}
            }
        }
    }
    state
}

/// Goes on from a state at a position with `Latest`, to its first mark.
async fn follow(
    storage: &dyn Storage,
    from: Position,
    mut state: BTreeMap<Key, (Bytes, Revision)>,
) -> (Position, BTreeMap<Key, (Bytes, Revision)>) {
    let options = WatchOptions::latest(WatchStart::After(from));
    let mut watch = storage.watch(KeyRange::all(), options).await.unwrap();
    let mut last = from.revision;
    loop {
        match watch.next().await.unwrap().expect("a watch does not end") {
            WatchEvent::State { key, state: now } => {
                assert!(
                    now.revision() >= last && now.revision() > from.revision,
                    "in revision order"
                );
                last = now.revision();
                match now {
                    KeyState::Live(entry) => state.insert(key, (entry.value, entry.revision)),
                    KeyState::Removed(_) => state.remove(&key),
                };
            }
            WatchEvent::Progress { position, .. } => {
                assert!(last <= position.revision);
                return (position, state);
            }
            WatchEvent::Reset => state.clear(),
            other => panic!("{other:?}"),
        }
    }
}

/// Every position there is, commits' own and the numbers between them, in all of the store's history.
async fn check_every_position(engine: &Arc<RocksEngine>, revisions: &[Revision]) {
    let session = engine
        .open_session("cert:reader", &keyspace("model"))
        .storage();
    let all = told(&*session, WatchStart::Beginning, KeyRange::all())
        .await
        .unwrap();
    let told_revisions: Vec<_> = all.iter().map(|commit| commit.revision).collect();
    assert_eq!(
        told_revisions, revisions,
        "all commits with changes, in order, once"
    );
    let (present, state) = full_state(&*session).await;
    let state: BTreeMap<_, _> = state
        .into_iter()
        .map(|(key, entry)| (key, (entry.value, entry.revision)))
        .collect();
    for number in 0..=present.revision.0 {
        let position = Position {
            epoch: present.epoch,
            revision: Revision(number),
        };
        let seen = told(&*session, WatchStart::After(position), KeyRange::all())
            .await
            .unwrap();
        let expected: Vec<_> = all
            .iter()
            .filter(|commit| commit.revision.0 > number)
            .cloned()
            .collect();
        assert_eq!(seen, expected, "after {number}");
    }
    for number in 0..=present.revision.0 {
        let position = Position {
            epoch: present.epoch,
            revision: Revision(number),
        };
        let (mark, followed) = follow(&*session, position, replay(&all, position.revision)).await;
        assert_eq!(mark, present);
        assert_eq!(followed, state, "latest after {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_from_each_position_from_ring_and_log_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    // A ring of next to nothing: all but the last commits come from the log.
    let engine = open(folder.path(), |options| options.ring_bytes = 2_000);
    let mut revisions = write_in_groups(&engine, "model", 8, 20).await;
    write_in_groups(&engine, "other", 4, 10).await;
    revisions.extend(write_in_groups(&engine, "model", 8, 5).await);
    check_every_position(&engine, &revisions).await;
    close(engine).await;
    let engine = open(folder.path(), |options| options.ring_bytes = 2_000);
    check_every_position(&engine, &revisions).await;
    close(engine).await;
    // And with a ring that holds all of it, refilled from the log at the start.
    let engine = open(folder.path(), |_| {});
    check_every_position(&engine, &revisions).await;
    close(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_do_form_and_a_position_inside_one_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path(), |options| options.ring_bytes = 0);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    // One write holds the committer while the others queue up behind it.
    let commits =
        (0..200).map(|n| session.put(Bytes::from(format!("{n}")), Bytes::from(vec![b'v'; 10_000])));
    futures_util::future::try_join_all(commits).await.unwrap();
    let (mut registry, mut metrics) = (Registry::default(), String::new());
    engine.register_metrics(&mut registry);
    encode(&mut metrics, &registry).unwrap();
    let value = |name: &str| -> f64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let per_group = value("storage_commits_total") / value("storage_commit_groups_total");
    assert!(
        per_group > 2.0,
        "{per_group} commits a group: this test would show nothing"
    );
    let all = told(&*session, WatchStart::Beginning, KeyRange::all())
        .await
        .unwrap();
    for (place, commit) in all.iter().enumerate() {
        let position = Position {
            epoch: engine.position().epoch,
            revision: commit.revision,
        };
        let seen = told(&*session, WatchStart::After(position), KeyRange::all())
            .await
            .unwrap();
        assert_eq!(seen.len(), all.len() - place - 1);
    }
    drop(session);
    close(engine).await;
    // And where nothing was read of the group before.
    for place in [40, 80, 120, 160] {
        let engine = open(folder.path(), |options| options.ring_bytes = 0);
        let session = engine.open_session("cert:r", &keyspace("model")).storage();
        let position = Position {
            epoch: engine.position().epoch,
            revision: all[place].revision,
        };
        let seen = told(&*session, WatchStart::After(position), KeyRange::all())
            .await
            .unwrap();
        assert_eq!(seen.len(), all.len() - place - 1, "behind {place}");
        drop(session);
        close(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_log_is_told_and_latest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let small = |options: &mut EngineOptions| {
        options.durability = Durability::Os;
        options.memory_bytes = 64 << 20;
        options.log_bytes = 1 << 20;
        options.ring_bytes = 0;
    };
    let engine = open(folder.path(), small);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    let early = session.put("early".into(), "1".into()).await.unwrap();
    let random = |n: u32| Bytes::from(n.to_be_bytes().repeat(16 * 1024));
    for n in 0..1200 {
        session
            .put(Bytes::from(format!("key/{}", n % 50)), random(n))
            .await
            .unwrap();
    }
    drop(session);
    close(engine).await;
    // RocksDB purges at the start what is over the limit.
    let engine = open(folder.path(), small);
    let session = engine.open_session("cert:r", &keyspace("model")).storage();
    let refused = told(&*session, WatchStart::After(early), KeyRange::all())
        .await
        .unwrap_err();
    let StorageError::Compacted { oldest } = refused else {
        panic!("{refused:?}")
    };
    assert!(oldest > early.revision && oldest <= engine.position().revision);
    // What it says can be had, can be had.
    let from = Position {
        epoch: early.epoch,
        revision: oldest,
    };
    told(&*session, WatchStart::After(from), KeyRange::all())
        .await
        .unwrap();
    // A keyspace that is yet to be made has missed nothing: its watch begins, and sees its first commit.
    let later = engine.open_session("cert:r", &keyspace("later")).storage();
    let start = WatchOptions::every(WatchStart::Beginning);
    let mut watch = later.watch(KeyRange::all(), start).await.unwrap();
    later.put("first".into(), "1".into()).await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), watch.next())
        .await
        .unwrap();
    assert!(
        matches!(event, Ok(Some(WatchEvent::Commit(_)))),
        "{event:?}"
    );
    let state = BTreeMap::from([(Key::from("early"), (Bytes::from("1"), early.revision))]);
    let (_, followed) = follow(&*session, early, state).await;
    let (_, now) = full_state(&*session).await;
    assert_eq!(followed.len(), now.len());
    assert!(
        now.iter()
            .all(|(key, entry)| followed[key].1 == entry.revision)
    );
    close(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_tombstones_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path(), |options| options.tombstones_max = 2);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    for n in 0..10 {
        session
            .put(Bytes::from(format!("{n}")), "v".into())
            .await
            .unwrap();
    }
    let before = session.sync().await.unwrap();
    for n in 0..5 {
        session.remove(Bytes::from(format!("{n}"))).await.unwrap();
    }
    let forgetting = engine.clone();
    tokio::task::spawn_blocking(move || forgetting.forget_tombstones(&keyspace("model")))
        .await
        .unwrap()
        .unwrap();
    let newer = ScanOptions {
        newer_than: Some(before),
        ..ScanOptions::default()
    };
    let refused = session.scan(KeyRange::all(), newer).await.unwrap_err();
    assert!(
        matches!(refused, StorageError::Compacted { oldest } if oldest > before.revision),
        "{refused:?}"
    );
    // Latest opens with a reset and tells everything that is there.
    let mut watch = session
        .watch(
            KeyRange::all(),
            WatchOptions::latest(WatchStart::After(before)),
        )
        .await
        .unwrap();
    assert_eq!(watch.next().await.unwrap(), Some(WatchEvent::Reset));
    let mut keys = Vec::new();
    while let Some(WatchEvent::State { key, .. }) = watch.next().await.unwrap() {
        keys.push(key);
    }
    assert_eq!(keys, ["5", "6", "7", "8", "9"]);
    // The log still has each removal for who watches every commit, and the horizon survives a restart.
    assert_eq!(
        told(&*session, WatchStart::After(before), KeyRange::all())
            .await
            .unwrap()
            .len(),
        5
    );
    drop((watch, session));
    close(engine).await;
    let engine = open(folder.path(), |options| options.tombstones_max = 2);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    assert!(session.scan(KeyRange::all(), newer).await.is_err());
    close(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_watch_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path(), |options| options.ring_bytes = 20_000);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    let mut every = session
        .watch(KeyRange::all(), WatchOptions::default())
        .await
        .unwrap();
    for n in 0..300 {
        session
            .put(Bytes::from(format!("{n:03}")), vec![b'v'; 500].into())
            .await
            .unwrap();
    }
    let start = WatchOptions::latest(WatchStart::Beginning);
    let mut latest = session.watch(KeyRange::all(), start).await.unwrap();
    let (mut commits, mut states) = (Vec::new(), Vec::new());
    while commits.len() < 300 {
        let next = tokio::time::timeout(Duration::from_secs(20), every.next())
            .await
            .unwrap()
            .unwrap();
        let Some(WatchEvent::Commit(commit)) = next else {
            panic!("{next:?}")
        };
        commits.push(commit.changes[0].key.clone());
        if commits.len() % 7 == 0 {
            every.park();
        }
    }
    loop {
        match tokio::time::timeout(Duration::from_secs(20), latest.next())
            .await
            .unwrap()
            .unwrap()
        {
            Some(WatchEvent::State { key, .. }) => states.push(key),
            Some(WatchEvent::Progress { .. }) => break,
            other => panic!("{other:?}"),
        }
        if states.len() % 7 == 0 {
            latest.park();
        }
    }
    let all: Vec<_> = (0..300).map(|n| Key::from(format!("{n:03}"))).collect();
    assert_eq!(commits, all);
    assert_eq!(states, all);
    drop((every, latest, session));
    close(engine).await;
}

/// What a reader told itself of a first pass is gone by the time it reads on, and so are the tombstones that would tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_is_held_up_beyond_the_tombstones_of_what_it_told_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let engine = open(folder.path(), |options| options.tombstones_max = 0);
    let session = engine.open_session("cert:w", &keyspace("model")).storage();
    // Several pages of it.
    let batch = (0..2_000).fold(Batch::new(), |batch, n| {
        batch.put(format!("{n:06}"), vec![b'v'; 1_000])
    });
    session
        .commit(batch, CommitOptions::default())
        .await
        .unwrap();
    let options = WatchOptions::latest(WatchStart::Beginning);
    let mut watch = session.watch(KeyRange::all(), options).await.unwrap();
    let mut keys = std::collections::BTreeSet::new();
    while keys.len() < 500 {
        match watch.next().await.unwrap() {
            Some(WatchEvent::State { key, .. }) => keys.insert(key),
            other => panic!("{other:?}"),
        };
    }
    session.remove("000002".into()).await.unwrap();
    session.put("later".into(), "v".into()).await.unwrap();
    let forgetting = engine.clone();
    tokio::task::spawn_blocking(move || forgetting.forget_tombstones(&keyspace("model")))
        .await
        .unwrap()
        .unwrap();
    engine.expire_snapshots();
    let mut resets = 0;
    loop {
        match watch.next().await.unwrap() {
            Some(WatchEvent::State { key, state }) => {
                match state {
                    KeyState::Live(_) => keys.insert(key),
                    KeyState::Removed(_) => keys.remove(&key),
                };
            }
            Some(WatchEvent::Reset) => {
                keys.clear();
                resets += 1;
            }
            Some(WatchEvent::Progress { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(resets, 1);
    assert!(!keys.contains(&Key::from("000002")), "it was removed");
    assert_eq!(keys.len(), 2_000);
    drop((watch, session));
    close(engine).await;
}
