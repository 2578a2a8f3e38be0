//! At each mark the copy is the state at that mark, whatever happens to the watch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use storage_client::replica::{Proven, ReplicaEvent, ReplicaState};
use storage_client::{Replica, ReplicaOptions};
use storage_protocol::{Continuity, Entry, Key, KeyRange, ResyncReason, Storage, StorageExt};
use storage_testkit::conformance::Fixture;
use storage_testkit::{RemoteFixture, RocksFixture};

use crate::support::{
    Faulty, History, keyspace, model, pairs, put, quick, replica_of, state_from, texts, until,
    write_at_random,
};

/// Commits of each writer.
const COMMITS: u32 = 300;

/// Between two commits of one writer.
const SHORT: Duration = Duration::from_micros(100);

/// Reads the whole copy again and again, and follows its changes, until told to end; gives the states that both showed.
async fn observe(replica: Replica, end: Arc<AtomicBool>) -> Vec<Proven<Vec<(Key, Entry)>>> {
    let (first, mut changes) = loop {
        match replica.scan_and_changes() {
            Ok(both) => break both,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut followed: BTreeMap<Key, Entry> = first.value.iter().cloned().collect();
    let mut proof = first.proof;
    let mut seen = vec![first];
    let mut last = seen[0].proof.position;
    while !end.load(Ordering::SeqCst) {
        tokio::select! {
            event = changes.next() => match event.unwrap().unwrap() {
                ReplicaEvent::Changed(batch) => {
                    for change in &batch.changes {
                        match &change.entry {
                            Some(entry) => followed.insert(change.key.clone(), entry.clone()),
                            None => followed.remove(&change.key),
                        };
                    }
                    proof.position = batch.position;
                    let value = followed.clone().into_iter().collect();
                    seen.push(Proven { value, proof });
                }
                ReplicaEvent::Continuity(_) => {}
                other => panic!("{other:?}"),
            },
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        let state = replica.scan(replica.range(), false, None).unwrap();
        assert!(
            state.proof.position.revision >= last.revision,
            "it went back"
        );
        last = state.proof.position;
        if seen.last().map(|seen| seen.proof.position) != Some(last) {
            seen.push(state);
        }
    }
    seen
}

/// Writers and an observed replica of a part of the keys; then everything that was seen is compared with the history.
async fn check_coherence(
    copied: Arc<dyn Storage>,
    writers: Vec<Arc<dyn Storage>>,
    options: ReplicaOptions,
    seed: u64,
    pause: Duration,
) -> Replica {
    println!("seed {seed}");
    let (range, truth) = (KeyRange::prefix("in/"), writers[0].clone());
    let replica = Replica::start(copied, range.clone(), options)
        .await
        .unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let observer = tokio::spawn(observe(replica.clone(), end.clone()));
    let last = write_at_random(writers, seed, COMMITS, pause).await;
    let state = state_from(&replica, last).await;
    end.store(true, Ordering::SeqCst);
    put(&*truth, "in/end", "").await;
    let mut seen = observer.await.unwrap();
    assert!(seen.len() > 5, "only {} states were seen", seen.len());
    seen.push(state);
    History::of(&*truth).await.check(&range, seen);
    replica
}

async fn sessions(fixture: &dyn Fixture, number: usize) -> Vec<Arc<dyn Storage>> {
    let mut sessions = Vec::new();
    for _ in 0..number {
        sessions.push(fixture.session(keyspace().as_str()).await.storage);
    }
    sessions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_shown_existed_on_the_model() {
    let (_, storage) = model();
    let writers: Vec<Arc<dyn Storage>> = vec![storage.clone(), storage.clone()];
    check_coherence(storage, writers, quick(), rand::random(), SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_shown_existed_on_the_engine() {
    let fixture = RocksFixture::new();
    let writers = sessions(&*fixture, 3).await;
    check_coherence(writers[2].clone(), writers, quick(), rand::random(), SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_state_shown_existed_over_the_network() {
    let fixture = RemoteFixture::new();
    let writers = sessions(&*fixture, 3).await;
    check_coherence(writers[2].clone(), writers, quick(), rand::random(), SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_end_at_random_change_nothing_of_that() {
    for round in 0..3 {
        let fixture = RocksFixture::new();
        let mut writers = sessions(&*fixture, 3).await;
        let seed = rand::random();
        let faulty = Faulty::new(writers.pop().unwrap(), seed);
        let chance = [50, 200, 500][round];
        let faults = faulty.faults.clone();
        faults.breaks_per_10_000.store(chance, Ordering::SeqCst);
        let replica = {
            let options = quick().backoff_max(Duration::from_millis(1));
            let pause = Duration::from_millis(3);
            check_coherence(faulty, writers, options, seed, pause).await
        };
        let broken = faults.broken.load(Ordering::SeqCst);
        assert!(broken > 0, "no watch was broken");
        let status = replica.status();
        assert!(status.breaks >= broken, "{status:?}");
        assert!(status.resumes > 0, "{status:?}");
        println!(
            "{broken} breaks, {} full passes, {} resumes",
            status.full_passes, status.resumes
        );
    }
}

#[tokio::test]
async fn after_a_break_only_what_changed_is_fetched() {
    let (_, storage) = model();
    for n in 0..200 {
        put(&*storage, &format!("k{n:03}"), "old").await;
    }
    let faulty = Faulty::new(storage.clone(), 1);
    let replica = replica_of(faulty.clone(), quick()).await;
    replica.ready().await.unwrap();
    let mut changes = replica.changes();
    assert_eq!(replica.status().states_fetched, 200);
    assert_eq!(replica.status().full_passes, 1);

    faulty.refuse(true);
    faulty.break_now();
    until("the break is seen", || {
        matches!(replica.status().state, ReplicaState::Disconnected { .. })
    })
    .await;
    put(&*storage, "k001", "new").await;
    storage.remove("k002".into()).await.unwrap();
    let last = put(&*storage, "k001", "newest").await;
    // What is held stays readable, and gets older.
    let read = replica.get(b"k001").unwrap();
    assert_eq!(read.value.unwrap().value, "old");
    assert!(replica.status().last_error.is_some());
    faulty.refuse(false);
    state_from(&replica, last).await;
    let status = replica.status();
    assert_eq!(status.state, ReplicaState::Live);
    assert_eq!((status.states_fetched, status.resumes), (202, 1));
    assert_eq!((status.full_passes, status.entries), (1, 199));
    let news = changes.next().await.unwrap();
    assert_eq!(news, Some(ReplicaEvent::Continuity(Continuity::Continuous)));
    let Some(ReplicaEvent::Changed(batch)) = changes.next().await.unwrap() else {
        panic!("no batch");
    };
    assert_eq!(
        (batch.changes.len(), batch.position.revision),
        (2, last.revision)
    );
}

#[tokio::test]
async fn what_is_gone_beyond_the_horizon_is_removed_at_the_mark() {
    let (store, storage) = model();
    for key in ["a", "b", "c"] {
        put(&*storage, key, "1").await;
    }
    let faulty = Faulty::new(storage.clone(), 1);
    let replica = replica_of(faulty.clone(), quick()).await;
    replica.ready().await.unwrap();
    let mut changes = replica.changes();
    faulty.refuse(true);
    faulty.break_now();
    until("the break", || replica.status().breaks > 0).await;
    storage.remove("a".into()).await.unwrap();
    let last = put(&*storage, "d", "1").await;
    store.drop_tombstones(&keyspace(), last.revision);
    faulty.refuse(false);
    let state = state_from(&replica, last).await;
    assert_eq!(
        texts(&state.value),
        pairs(&[("b", "1"), ("c", "1"), ("d", "1")])
    );
    assert_eq!(replica.status().full_passes, 2);
    let news = changes.next().await.unwrap().unwrap();
    assert!(
        matches!(
            news,
            ReplicaEvent::Continuity(Continuity::Resynced {
                why: ResyncReason::Compacted { .. }
            })
        ),
        "{news:?}"
    );
    let Some(ReplicaEvent::Changed(batch)) = changes.next().await.unwrap() else {
        panic!("no batch");
    };
    // What is the same as before is no change.
    let told = batch
        .changes
        .iter()
        .map(|change| (&change.key[..], change.entry.is_some()));
    assert_eq!(told.collect::<Vec<_>>(), [(&b"a"[..], false), (b"d", true)]);
}

#[tokio::test]
async fn a_reload_repairs_a_copy_that_is_wrong() {
    let (_, storage) = model();
    put(&*storage, "kept", "1").await;
    put(&*storage, "gone", "1").await;
    let faulty = Faulty::new(storage.clone(), 1);
    *faulty.faults.tampered.lock().unwrap() = Some("kept".into());
    let replica = replica_of(faulty.clone(), quick()).await;
    replica.ready().await.unwrap();
    *faulty.faults.withheld.lock().unwrap() = Some("gone".into());
    storage.remove("gone".into()).await.unwrap();
    let last = put(&*storage, "right", "1").await;
    let state = state_from(&replica, last).await;
    let wrong = pairs(&[("gone", "1"), ("kept", "tampered"), ("right", "1")]);
    assert_eq!(texts(&state.value), wrong);

    let mut changes = replica.changes();
    let keys: Vec<Key> = ["gone", "kept", "right", "never"].map(Key::from).to_vec();
    let reloaded = replica.reload(&keys).await.unwrap();
    assert_eq!(reloaded.repaired, 2);
    assert!(reloaded.position.revision >= last.revision);
    let state = state_from(&replica, reloaded.position).await;
    assert_eq!(texts(&state.value), pairs(&[("kept", "1"), ("right", "1")]));
    assert_eq!(replica.status().repaired, 2);
    let Some(ReplicaEvent::Changed(batch)) = changes.next().await.unwrap() else {
        panic!("the repair is no change");
    };
    assert_eq!(batch.changes.len(), 2);
    // Nothing to repair is no change.
    assert_eq!(replica.reload(&keys).await.unwrap().repaired, 0);
    assert!(replica.reload(&["x".into()]).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_beside_commits_never_go_back() {
    let fixture = RocksFixture::new();
    let writers = sessions(&*fixture, 2).await;
    let reloaded = check_coherence_with_reloads(writers).await;
    assert!(reloaded > 20, "only {reloaded} reloads");
}

async fn check_coherence_with_reloads(writers: Vec<Arc<dyn Storage>>) -> u32 {
    let copied = writers[1].clone();
    let replica = Replica::start(copied, KeyRange::prefix("in/"), quick())
        .await
        .unwrap();
    replica.ready().await.unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let observer = tokio::spawn(observe(replica.clone(), end.clone()));
    let (ended, reloading) = (end.clone(), replica.clone());
    let reloader = tokio::spawn(async move {
        let keys: Vec<Key> = (0..60).map(|n| Key::from(format!("in/{n:02}"))).collect();
        let mut reloads = 0;
        while !ended.load(Ordering::SeqCst) {
            // The copy is right, so a repair would be a step back.
            assert_eq!(reloading.reload(&keys).await.unwrap().repaired, 0);
            reloads += 1;
        }
        reloads
    });
    let last = write_at_random(writers.clone(), rand::random(), COMMITS, SHORT).await;
    state_from(&replica, last).await;
    end.store(true, Ordering::SeqCst);
    put(&*writers[0], "in/end", "").await;
    let seen = observer.await.unwrap();
    History::of(&*writers[0]).await.check(replica.range(), seen);
    reloader.await.unwrap()
}
