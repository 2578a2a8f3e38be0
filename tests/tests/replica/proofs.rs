//! How old what is read may be, and waiting for a position.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use storage_client::replica::ReplicaError;
use storage_client::{Replica, ReplicaOptions};
use storage_protocol::{
    Batch, CommitOptions, KeyRange, Position, Revision, Storage, StorageError, StorageExt,
};
use storage_testkit::model::ModelStore;

use crate::support::{
    Faulty, PATIENCE, keyspace, model, put, quick, replica_of, state_from, texts, until,
};

/// Probes of its own accord come after a minute only.
fn slow() -> ReplicaOptions {
    quick().probe_interval(Duration::from_secs(60))
}

#[tokio::test]
async fn a_commit_is_read_after_waiting_for_it() {
    let (_, storage) = model();
    let replica = replica_of(storage.clone(), slow()).await;
    replica.ready().await.unwrap();
    for n in 0..50 {
        let batch = Batch::new().put("k", n.to_string());
        let options = CommitOptions::default();
        let done = replica.commit_and_wait(batch, options, PATIENCE);
        let done = done.await.unwrap();
        assert!(done.seen.unwrap().position.revision >= done.position.revision);
        let read = replica.get(b"k").unwrap().value.unwrap();
        assert_eq!(read.value, n.to_string());
    }
    // A commit outside of the range is told by no event, only by a mark that is asked for.
    let range = KeyRange::prefix("x/");
    let elsewhere = Replica::start(storage.clone(), range, slow()).await;
    let elsewhere = elsewhere.unwrap();
    elsewhere.sync(PATIENCE).await.unwrap();
    let last = put(&*storage, "k", "last").await;
    let began = Instant::now();
    elsewhere.wait_for(last, PATIENCE).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    let never = Position {
        revision: Revision(last.revision.0 + 1_000),
        ..last
    };
    let error = elsewhere.wait_for(never, Duration::from_millis(50)).await;
    assert!(matches!(error, Err(ReplicaError::TimedOut { .. })));
}

#[tokio::test]
async fn sync_holds_what_was_acknowledged_before_it() {
    let (_, storage) = model();
    let replica = replica_of(storage.clone(), slow()).await;
    for n in 0..50 {
        put(&*storage, "k", &n.to_string()).await;
        replica.sync(PATIENCE).await.unwrap();
        let read = replica.get(b"k").unwrap().value.unwrap();
        assert_eq!(read.value, n.to_string());
    }
}

#[tokio::test]
async fn a_position_of_another_epoch_is_not_compared_by_its_revision() {
    let (_, storage) = model();
    let other = ModelStore::new().storage(&keyspace());
    for _ in 0..5 {
        put(&*storage, "k", "v").await;
    }
    let foreign = put(&other, "k", "v").await;
    let replica = replica_of(storage, quick()).await;
    replica.ready().await.unwrap();
    let error = replica.wait_for(foreign, PATIENCE).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReplicaError::Storage(StorageError::EpochChanged { .. })
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_age_counts_from_the_sending_of_the_probe() {
    let (_, storage) = model();
    put(&*storage, "k", "v").await;
    let faulty = Faulty::new(storage, 1);
    let delay = Duration::from_millis(300);
    *faulty.faults.delay.lock().unwrap() = delay;
    let replica = replica_of(faulty, slow()).await;
    replica.ready().await.unwrap();
    let synced = replica.sync(PATIENCE).await.unwrap();
    // The answer has just come, and the question is that old.
    assert!(synced.age.unwrap() >= delay, "{synced:?}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let later = replica.proof().unwrap();
    assert!(later.age.unwrap() >= delay + Duration::from_millis(100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ages_never_say_too_little() {
    let (_, storage) = model();
    let faulty = Faulty::new(storage.clone(), 1);
    let replica = replica_of(faulty.clone(), quick()).await;
    replica.ready().await.unwrap();
    let end = Arc::new(AtomicBool::new(false));
    // Each commit with the time when it was acknowledged.
    let (ended, writer) = (end.clone(), storage.clone());
    let writer = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        while !ended.load(Ordering::SeqCst) {
            let position = put(&*writer, "k", "v").await;
            acknowledged.push((position.revision, Instant::now()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        acknowledged
    });
    let mut reads = Vec::new();
    for round in 0..1_500 {
        if round % 100 == 0 {
            let delay = Duration::from_millis([0, 5, 40][round / 100 % 3]);
            *faulty.faults.delay.lock().unwrap() = delay;
        }
        if round % 250 == 249 {
            faulty.break_now();
        }
        let now = Instant::now();
        let proof = replica.get(b"k").unwrap().proof;
        if let Some(age) = proof.age {
            reads.push((now, proof.position.revision, age));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    end.store(true, Ordering::SeqCst);
    let acknowledged = writer.await.unwrap();
    assert!(reads.len() > 1_000 && acknowledged.len() > 500);
    for (now, position, age) in reads {
        // So long ago there was nothing newer, so no commit behind the position was acknowledged by then.
        let first_unseen = acknowledged
            .iter()
            .find(|(revision, _)| *revision > position);
        if let Some((revision, at)) = first_unseen {
            let unseen_for = now.saturating_duration_since(*at);
            assert!(
                unseen_for <= age,
                "at {position:?}, said to be {age:?} old, {revision:?} was missing for {unseen_for:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_too_old_is_refused_with_its_age() {
    let (_, storage) = model();
    put(&*storage, "k", "v").await;
    let faulty = Faulty::new(storage, 1);
    let max = Duration::from_millis(500);
    let replica = replica_of(faulty.clone(), quick().freshness_max(max)).await;
    replica.sync(PATIENCE).await.unwrap();
    assert!(replica.get(b"k").unwrap().value.is_some());
    faulty.refuse(true);
    faulty.break_now();
    until("reads are refused", || replica.get(b"k").is_err()).await;
    let error = replica.get(b"k").unwrap_err();
    let ReplicaError::TooOld {
        age: Some(age),
        freshness_max,
    } = error
    else {
        panic!("{error:?}");
    };
    assert!(age > max && freshness_max == max);
    assert!(error.to_string().contains("at most 500ms"), "{error}");
    assert!(replica.scan(replica.range(), false, None).is_err());
    assert!(replica.get_many(&["k".into()]).is_err() && replica.len().is_err());
    assert!(replica.scan_and_changes().is_err());
    // Where it stands can still be asked, and it comes back by itself.
    assert!(replica.proof().unwrap().age.unwrap() > max);
    faulty.refuse(false);
    until("reads are answered", || replica.get(b"k").is_ok()).await;
}

#[tokio::test]
async fn reads_are_of_one_position_and_within_the_range() {
    let (_, storage) = model();
    let batch = Batch::new().put("a/1", "1").put("a/2", "2").put("a/3", "3");
    let batch = batch.put("b/1", "no");
    let options = CommitOptions::default();
    let last = storage.commit(batch, options).await.unwrap();
    let range = KeyRange::prefix("a/");
    let replica = Replica::start(storage.clone(), range.clone(), quick()).await;
    let replica = replica.unwrap();
    let not_ready = replica.get(b"a/1").unwrap_err();
    assert!(matches!(not_ready, ReplicaError::NotReady));
    let all = state_from(&replica, last).await;
    assert_eq!(all.proof.position.epoch, last.epoch);
    let keys: Vec<_> = texts(&all.value).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["a/1", "a/2", "a/3"]);
    let some = replica.get_many(&["a/3".into(), "a/0".into(), "a/3".into()]);
    let some: Vec<_> = some.unwrap().value;
    assert_eq!(
        some.iter().map(Option::is_some).collect::<Vec<_>>(),
        [true, false, true]
    );
    let last_two = replica.scan(&range, true, Some(2)).unwrap().value;
    assert_eq!(texts(&last_two)[0].0, "a/3");
    assert_eq!(last_two.len(), 2);
    let part = KeyRange::between("a/2", "a/3");
    assert_eq!(replica.scan(&part, false, None).unwrap().value.len(), 1);
    let nothing = KeyRange::between("z", "a");
    assert!(
        replica
            .scan(&nothing, false, None)
            .unwrap()
            .value
            .is_empty()
    );
    assert_eq!(replica.len().unwrap().value, 3);
    assert!(!replica.is_empty().unwrap().value);
    // "Not there" would be no answer for what is not copied.
    let beyond = replica.get(b"b/1").unwrap_err().to_string();
    assert!(
        beyond.contains("\"b/1\"") && beyond.contains("[a/..a0)"),
        "{beyond}"
    );
    assert!(replica.scan(&KeyRange::all(), false, None).is_err());
    assert!(replica.reload(&["b/1".into()]).await.is_err());
    storage.remove("a/1".into()).await.unwrap();
}
