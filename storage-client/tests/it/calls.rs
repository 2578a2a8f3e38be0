//! Gets and commits: correlation, limits, deadlines, and the class of each failure.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{join, join_all, pending};
use storage_protocol::native::{ClientMessage, ServerMessage};
use storage_protocol::{
    Batch, CommitOptions, Key, Limits, Outcome, Revision, Storage, StorageError, StorageExt,
};

use crate::fake::{PATIENCE, connect, connect_with, entry, position, values, welcome};

fn key_of(message: &ClientMessage) -> Key {
    match message {
        ClientMessage::Get { keys } => keys[0].clone(),
        other => panic!("{other:?} is no get"),
    }
}

fn number_of(message: &ClientMessage) -> u64 {
    match message {
        ClientMessage::Commit { number, .. } => *number,
        other => panic!("{other:?} is no commit"),
    }
}

fn committed(revision: u64) -> ServerMessage {
    let revision = Revision(revision);
    ServerMessage::Committed { revision }
}

#[tokio::test]
async fn answers_in_any_order_reach_their_callers() {
    let (storage, mut peer) = connect().await;
    let calls = join_all(["a", "b", "c"].map(|key| storage.get_one(Key::from(key))));
    let server = async {
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push(peer.receive().await);
        }
        for (id, message) in asked.into_iter().rev() {
            let value = [&key_of(&message)[..], b"-value"].concat();
            peer.send(id, values([Some(entry(value))])).await;
        }
    };
    let (found, ()) = join(calls, server).await;
    let found: Vec<_> = found
        .into_iter()
        .map(|e| e.unwrap().unwrap().value)
        .collect();
    assert_eq!(found, ["a-value", "b-value", "c-value"]);
}

#[tokio::test]
async fn big_messages_travel_in_parts_both_ways() {
    let (storage, mut peer) = connect().await;
    let big = Bytes::from(vec![9; 3 << 20]);
    let server = async {
        let (id, message) = peer.receive().await;
        let ClientMessage::Commit { batch, .. } = message else {
            panic!("no commit")
        };
        peer.send(id, committed(101)).await;
        let (id, _) = peer.receive().await;
        let value = batch.operations[0].value().to_vec();
        peer.send(id, values([Some(entry(value))])).await;
    };
    let client = async {
        assert_eq!(
            storage.put("k".into(), big.clone()).await.unwrap(),
            position(101)
        );
        storage.get_one("k".into()).await.unwrap().unwrap().value
    };
    assert_eq!(join(client, server).await.0, big);
}

#[tokio::test]
async fn a_small_get_passes_a_big_commit_and_commits_are_numbered_in_order() {
    let (storage, mut peer) = connect().await;
    let big = storage.put("big".into(), vec![1; 8 << 20].into());
    let small = storage.put("small".into(), "1".into());
    let get = storage.get_one("k".into());
    let server = async {
        let mut order = Vec::new();
        for _ in 0..3 {
            let (id, message) = peer.receive().await;
            match &message {
                ClientMessage::Get { .. } => {
                    order.push(0);
                    peer.send(id, values([None])).await;
                }
                commit => {
                    let number = number_of(commit);
                    order.push(number);
                    peer.send(id, committed(number)).await;
                }
            }
        }
        order
    };
    let ((big, small), (get, order)) = join(join(big, small), join(get, server)).await;
    assert_eq!((big.unwrap(), small.unwrap()), (position(1), position(2)));
    assert!(get.unwrap().is_none());
    assert_eq!(
        order.last(),
        Some(&1),
        "the big commit arrives last: {order:?}"
    );
}

#[tokio::test]
async fn a_lost_connection_fails_each_call_with_its_class() {
    let mut narrow = welcome();
    narrow.limits.requests_in_flight_max = 2;
    let (storage, mut peer) = connect_with(narrow, |options| options).await;
    let get = storage.get_one("a".into());
    let commit = storage.put("b".into(), "1".into());
    let unsent = storage.put("c".into(), "1".into());
    let server = async {
        peer.receive().await;
        peer.receive().await;
        drop(peer);
    };
    let ((get, commit), (unsent, ())) = join(join(get, commit), join(unsent, server)).await;
    let (get, commit, unsent) = (get.unwrap_err(), commit.unwrap_err(), unsent.unwrap_err());
    for error in [&get, &commit, &unsent] {
        assert!(matches!(error, StorageError::Closed { .. }), "{error:?}");
    }
    assert_eq!(get.outcome(), Outcome::NotExecuted);
    assert_eq!(commit.outcome(), Outcome::Unknown);
    assert_eq!(unsent.outcome(), Outcome::NotExecuted);
    let later = storage.put("d".into(), "1".into()).await.unwrap_err();
    assert_eq!(later.outcome(), Outcome::NotExecuted);
    assert!(storage.limits().await.is_err());
}

#[tokio::test]
async fn deadlines_tell_what_was_sent_and_take_no_number_for_what_was_not() {
    let mut narrow = welcome();
    narrow.limits.requests_in_flight_max = 2;
    let short = Duration::from_millis(300);
    let (storage, mut peer) = connect_with(narrow, |options| options.request_timeout(short)).await;
    let get = storage.get_one("a".into());
    let commit = storage.put("b".into(), "1".into());
    let unsent = storage.put("c".into(), "1".into());
    let ((get, commit), unsent) = join(join(get, commit), unsent).await;
    let outcomes = [get.map(drop), commit.map(drop), unsent.map(drop)].map(|result| {
        let error = result.unwrap_err();
        assert!(
            matches!(error, StorageError::DeadlineExceeded { .. }),
            "{error:?}"
        );
        error.outcome()
    });
    let expected = [Outcome::NotExecuted, Outcome::Unknown, Outcome::NotExecuted];
    assert_eq!(outcomes, expected);

    let (get_id, _) = peer.receive().await;
    let (commit_id, commit) = peer.receive().await;
    assert_eq!(number_of(&commit), 1);
    assert_eq!(peer.receive().await, (get_id, ClientMessage::Cancel));
    // Late answers free the ids, and are taken for nobody else's.
    peer.send(get_id, values([Some(entry("late"))])).await;
    peer.send(commit_id, committed(101)).await;
    let server = async {
        let (id, message) = peer.receive().await;
        assert_eq!(
            number_of(&message),
            2,
            "the one that was not sent took a number"
        );
        peer.send(id, committed(102)).await;
    };
    let put = storage.put("d".into(), "1".into());
    assert_eq!(join(put, server).await.0.unwrap(), position(102));
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_and_its_late_answer_is_harmless() {
    let (storage, mut peer) = connect().await;
    let (id, _) = tokio::select! {
        _ = storage.get_one("a".into()) => panic!("answered by nobody"),
        asked = peer.receive() => asked,
    };
    assert_eq!(peer.receive().await, (id, ClientMessage::Cancel));
    let server = async {
        let (next, _) = peer.receive().await;
        assert_ne!(next, id, "the id is in use until its answer");
        peer.send(id, values([Some(entry("late"))])).await;
        peer.send(next, values([Some(entry("right"))])).await;
    };
    let (found, ()) = join(storage.get_one("b".into()), server).await;
    assert_eq!(found.unwrap().unwrap().value, "right");
}

#[tokio::test]
async fn what_the_server_does_not_take_is_refused_before_it_is_sent() {
    let mut small = welcome();
    small.limits = Limits {
        key_bytes_max: 4,
        value_bytes_max: 8,
        keys_per_get_max: 2,
        operations_per_commit_max: 1,
        watches_max: 0,
        scans_max: 0,
        ..Limits::default()
    };
    let (storage, mut peer) = connect_with(small, |options| options).await;
    let text = |error: StorageError| {
        assert_eq!(error.outcome(), Outcome::NotExecuted);
        error.to_string()
    };
    let keys = [const { Key::from_static(b"k") }; 3];
    assert!(
        text(storage.get(&keys).await.unwrap_err()).contains("keys_per_get_max is 2, this has 3")
    );
    assert!(
        text(storage.get_one("12345".into()).await.unwrap_err()).contains("key_bytes_max is 4")
    );
    let put = storage.put("k".into(), "123456789".into()).await;
    assert!(text(put.unwrap_err()).contains("value_bytes_max is 8"));
    let two = Batch::new().put("a", "").put("b", "");
    let two = storage.commit(two, CommitOptions::default()).await;
    assert!(text(two.unwrap_err()).contains("operations_per_commit_max is 1, this has 2"));
    let watch = storage.watch(storage_protocol::KeyRange::all(), Default::default());
    assert!(text(watch.await.unwrap_err()).contains("watches_max"));
    let scan = storage.scan(storage_protocol::KeyRange::all(), Default::default());
    assert!(text(scan.await.unwrap_err()).contains("scans_max"));
    // The first thing the server sees is the probe.
    let server = async {
        let (id, message) = peer.receive().await;
        assert!(
            matches!(message, ClientMessage::Probe { watch: None, .. }),
            "{message:?}"
        );
        peer.probed(id).await;
    };
    join(storage.ping(), server).await.0.unwrap();
}

#[tokio::test]
async fn no_more_than_the_announced_requests_are_in_flight() {
    let (storage, mut peer) = connect_with(welcome(), |options| options.queue_len_max(16)).await;
    let max = Limits::default().requests_in_flight_max;
    let calls = join_all((0..max + 100).map(|_| storage.get_one("k".into())));
    let server = async {
        let mut asked = Vec::new();
        for _ in 0..max {
            asked.push(peer.receive().await.0);
        }
        // Nothing more comes, though a hundred wait, until one is answered.
        let more = tokio::time::timeout(Duration::from_millis(100), peer.receive());
        assert!(more.await.is_err(), "more than {max} in flight");
        for id in asked {
            peer.send(id, values([None])).await;
        }
        for _ in 0..100 {
            let (id, _) = peer.receive().await;
            peer.send(id, values([None])).await;
        }
    };
    let (answers, ()) = join(calls, server).await;
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn bytes_in_flight_are_bounded_and_a_larger_request_goes_alone() {
    let mut narrow = welcome();
    narrow.limits.bytes_in_flight_max = 1_000;
    let (storage, mut peer) = connect_with(narrow, |options| options).await;
    let puts = join_all((0..3).map(|n| storage.put(vec![b'a' + n].into(), vec![0; 2_000].into())));
    let server = async {
        for revision in 1..=3 {
            let (id, _) = peer.receive().await;
            let early = tokio::time::timeout(Duration::from_millis(50), peer.receive());
            assert!(early.await.is_err(), "two of 2,000 bytes in flight");
            peer.send(id, committed(revision)).await;
        }
    };
    let (answers, ()) = join(puts, server).await;
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn calls_enter_a_full_queue_in_the_order_they_were_first_polled() {
    let mut narrow = welcome();
    narrow.limits.requests_in_flight_max = 1;
    let (storage, mut peer) = connect_with(narrow, |options| options.queue_len_max(1)).await;
    let puts = join_all((0..20u8).map(|n| storage.put(vec![b'a' + n].into(), Bytes::new())));
    let server = async {
        let mut order = Vec::new();
        for revision in 1..=20 {
            let (id, message) = peer.receive().await;
            assert_eq!(number_of(&message), revision);
            let ClientMessage::Commit { batch, .. } = message else {
                panic!("no commit")
            };
            order.push(batch.operations[0].key()[0] - b'a');
            peer.send(id, committed(revision)).await;
        }
        order
    };
    let (answers, order) = join(puts, server).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test]
async fn a_refused_commit_is_told_as_the_server_says() {
    let (storage, mut peer) = connect().await;
    let refusal = StorageError::CheckFailed {
        key: "k".into(),
        actual: Some(Revision(3)),
    };
    let server = async {
        let (id, _) = peer.receive().await;
        peer.send(id, ServerMessage::Error(refusal.clone())).await;
    };
    let put = storage.put_if_absent("k".into(), "1".into());
    assert_eq!(join(put, server).await.0.unwrap_err(), refusal);
}

#[tokio::test]
async fn a_server_that_reads_nothing_is_still_read() {
    let (storage, mut peer) = connect().await;
    // More than both sockets' buffers hold: the client's writing stalls.
    let stalled =
        join_all((0..3).map(|n| storage.put(vec![n + 1].into(), vec![0; 16 << 20].into())));
    let mut stalled = Box::pin(stalled);
    assert!(stalled.as_mut().now_or_never().is_none());
    let mut draining = storage.state();
    let told = async {
        draining
            .wait_for(|state| matches!(state, storage_client::ConnectionState::Draining { .. }))
            .await
            .unwrap();
    };
    let goes = ServerMessage::GoAway {
        retry_after: Duration::from_secs(1),
        reason: "restart".into(),
    };
    let both = join(peer.send_as(None, goes), told);
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, both) => { done.expect("the client stopped reading"); }
        _ = join(stalled, pending::<()>()) => {}
    }
}
