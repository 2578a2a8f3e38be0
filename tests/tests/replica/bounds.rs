//! Bounds: memory, slow consumers, giving up; and the end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use storage_client::Replica;
use storage_client::replica::{ReplicaError, ReplicaEvent, ReplicaState};
use storage_protocol::{KeyRange, Limit, Storage, StorageError, StorageExt};

use crate::support::{Faulty, PATIENCE, model, put, quick, replica_of, state_from, until};

fn stopped_by_memory(error: &ReplicaError, max: u64) -> bool {
    matches!(
        error,
        ReplicaError::Stopped(StorageError::LimitExceeded { limit: Limit::Memory, max: is, actual })
            if *is == max && *actual > max
    )
}

#[tokio::test]
async fn over_its_memory_it_stops_and_names_the_limit() {
    let (_, storage) = model();
    let max = 100_000;
    let replica = replica_of(storage.clone(), quick().memory_bytes_max(max)).await;
    let mut changes = replica.changes();
    for n in 0..40 {
        let key = format!("k{n:02}");
        storage
            .put(key.into(), vec![0; 1_000].into())
            .await
            .unwrap();
        replica.sync(PATIENCE).await.unwrap();
    }
    let status = replica.status();
    assert!(status.bytes > 40_000 && status.bytes <= max, "{status:?}");
    // Replacing costs no more; removing gives back.
    for _ in 0..200 {
        storage
            .put("k00".into(), vec![0; 1_000].into())
            .await
            .unwrap();
    }
    replica.sync(PATIENCE).await.unwrap();
    assert_eq!(replica.status().bytes, status.bytes);
    storage.remove("k00".into()).await.unwrap();
    replica.sync(PATIENCE).await.unwrap();
    assert!(replica.status().bytes < status.bytes - 1_000);
    storage
        .put("big".into(), vec![0; max].into())
        .await
        .unwrap();
    until("it stops", || replica.proof().is_err()).await;
    let error = replica.get(b"k01").unwrap_err();
    assert!(stopped_by_memory(&error, max as u64), "{error:?}");
    assert!(stopped_by_memory(
        &replica
            .wait_for(replica.status().position.unwrap(), PATIENCE)
            .await
            .unwrap_err(),
        max as u64
    ));
    assert!(replica.reload(&["k01".into()]).await.is_err());
    let status = replica.status();
    let ReplicaState::Stopped { why } = status.state else {
        panic!("{status:?}");
    };
    assert!(
        why.to_string().contains("memory_bytes_max is 100000"),
        "{why}"
    );
    assert_eq!((status.entries, status.bytes), (0, 0));
    let end = loop {
        if let Err(error) = changes.next().await {
            break error;
        }
    };
    assert!(stopped_by_memory(&end, max as u64));
    assert!(changes.next().await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_staged_counts_too() {
    let (_, storage) = model();
    for n in 0..200 {
        storage
            .put(format!("k{n}").into(), vec![0; 1_000].into())
            .await
            .unwrap();
    }
    let replica = replica_of(storage, quick().memory_bytes_max(50_000)).await;
    let error = replica.ready().await.unwrap_err();
    assert!(stopped_by_memory(&error, 50_000), "{error:?}");
    // It stopped in the middle of the first pass, not behind it.
    assert!(replica.status().states_fetched < 60);
}

#[tokio::test]
async fn a_slow_consumer_is_told_and_others_are_not_held_up() {
    let (_, storage) = model();
    let replica = replica_of(storage.clone(), quick().changes_bytes_max(10_000)).await;
    replica.ready().await.unwrap();
    let mut slow = replica.changes();
    let mut quick = replica.changes();
    let start = slow.start();
    let mut last = None;
    for n in 0..100u32 {
        let position = storage
            .put("k".into(), vec![0; 1_000].into())
            .await
            .unwrap();
        let Some(ReplicaEvent::Changed(batch)) = quick.next().await.unwrap() else {
            panic!("the quick one misses {n}");
        };
        assert_eq!(batch.position.revision, position.revision);
        last = Some(batch.position);
    }
    let Some(ReplicaEvent::Missed { after, to }) = slow.next().await.unwrap() else {
        panic!("the slow one was not told");
    };
    assert_eq!(after, start);
    let mut position = to.unwrap();
    // Behind what was missed it goes on without a gap.
    while Some(position) != last {
        let Some(ReplicaEvent::Changed(batch)) = slow.next().await.unwrap() else {
            panic!("nothing more");
        };
        assert_eq!(batch.position.revision.0, position.revision.0 + 1);
        position = batch.position;
    }
    // What to do: the state anew, with what follows exactly it.
    let (state, mut changes) = replica.scan_and_changes().unwrap();
    assert_eq!(Some(state.proof.position), changes.start());
    let next = put(&*storage, "k", "next").await;
    let Some(Ok(ReplicaEvent::Changed(batch))) = changes.next().await.transpose() else {
        panic!("no batch");
    };
    assert_eq!(batch.position, next);
    // It is a stream too.
    let first = StreamExt::next(&mut slow).await;
    assert!(matches!(first, Some(Ok(ReplicaEvent::Changed(_)))));
}

#[tokio::test]
async fn an_outage_is_tried_again_with_growing_pauses_and_given_up_only_if_asked() {
    let (_, storage) = model();
    let last = put(&*storage, "k", "v").await;
    let faulty = Faulty::new(storage, 1);
    faulty.refuse(true);
    let options = quick().backoff_max(Duration::from_millis(400));
    let patient = replica_of(faulty.clone(), options.clone()).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // 50..100, 100..200, 200..400, 200..400, ...: neither a storm nor silence.
    let tries = faulty.faults.watches.load(Ordering::SeqCst);
    assert!((4..=10).contains(&tries), "{tries} tries");
    let status = patient.status();
    assert!(matches!(status.state, ReplicaState::Disconnected { .. }));
    assert_eq!(status.breaks, tries);

    let options = options.give_up_after(Duration::from_millis(200));
    let impatient = replica_of(faulty.clone(), options).await;
    let error = impatient.ready().await.unwrap_err();
    assert!(
        matches!(error, ReplicaError::Stopped(StorageError::Closed { .. })),
        "{error:?}"
    );
    faulty.refuse(false);
    state_from(&patient, last).await;
}

#[tokio::test]
async fn closing_ends_all_handles_and_the_watch() {
    let (_, storage) = model();
    let replica = replica_of(storage.clone(), quick()).await;
    replica.ready().await.unwrap();
    let (other, mut changes) = (replica.clone(), replica.changes());
    drop(replica);
    other.get(b"k").unwrap();
    other.close().await.unwrap();
    other.close().await.unwrap();
    let error = other.get(b"k").unwrap_err();
    assert!(matches!(
        error,
        ReplicaError::Stopped(StorageError::Closed { .. })
    ));
    assert!(changes.next().await.is_err());
    // The last handle ends it as well.
    let replica = replica_of(storage.clone(), quick()).await;
    let mut changes = replica.changes();
    drop(replica);
    assert!(changes.next().await.is_err());
    let range = KeyRange::prefix("x");
    let fresh = Replica::start(storage as std::sync::Arc<dyn Storage>, range, quick()).await;
    fresh.unwrap().ready().await.unwrap();
}
