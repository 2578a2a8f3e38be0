//! Watches: events, credit, marks, ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join;
use storage_client::RemoteStorage;
use storage_protocol::native::{ClientMessage, RequestId, ServerMessage};
use storage_protocol::{
    Change, ChangeKind, CommitRecord, EntryLifetime, KeyRange, Revision, Storage, StorageError,
    UnixMillis, Watch, WatchEvent, WatchOptions,
};

use crate::fake::{Peer, connect, connect_with, position, welcome};

const WINDOW: u64 = 1_000;

/// A commit of one put, 400 and some bytes on the wire.
fn changes(revision: u64) -> (ServerMessage, u64) {
    let kind = ChangeKind::Put {
        value: vec![1; 400].into(),
        lifetime: EntryLifetime::Forever,
        previous: None,
    };
    let key = "k".into();
    let changes = vec![Change { key, kind }];
    let (revision, time) = (Revision(revision), UnixMillis(1));
    let record = CommitRecord::new(revision, time, None, "cert:w".into(), changes);
    let commits = vec![Arc::new(record)];
    let message = ServerMessage::Changes { commits };
    let bytes = message.encode(Some(0)).payload.len() as u64;
    (message, bytes)
}

fn revision_of(event: WatchEvent) -> u64 {
    match event {
        WatchEvent::Commit(record) => record.revision.0,
        other => panic!("{other:?} is no commit"),
    }
}

async fn watching(storage: &RemoteStorage, peer: &mut Peer) -> (Watch, RequestId) {
    let watch = storage.watch(KeyRange::all(), WatchOptions::default());
    let server = async {
        let (id, message) = peer.receive().await;
        let ClientMessage::Watch(request) = message else {
            panic!("no watch")
        };
        assert_eq!(request.credit, WINDOW);
        let revision = Revision(100);
        peer.send(id, ServerMessage::Watching { revision }).await;
        id
    };
    let (watch, id) = join(watch, server).await;
    (watch.unwrap(), id)
}

async fn connected() -> (RemoteStorage, Peer) {
    connect_with(welcome(), |options| options.watch_credit_bytes(WINDOW)).await
}

/// All that the client has sent so far was received: the next thing it sends is a probe.
async fn nothing_sent(storage: &RemoteStorage, peer: &mut Peer) {
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
async fn events_behind_the_answer_are_delivered() {
    let (storage, mut peer) = connected().await;
    let watch = storage.watch(KeyRange::all(), WatchOptions::default());
    let server = async {
        let (id, _) = peer.receive().await;
        let revision = Revision(100);
        peer.send(id, ServerMessage::Watching { revision }).await;
        peer.send(id, changes(101).0).await;
        peer.send(id, changes(102).0).await;
    };
    // The server's script is over before the watch is looked at.
    let (watch, ()) = join(watch, server).await;
    let mut watch = watch.unwrap();
    assert_eq!(watch.start(), position(100));
    for revision in [101, 102] {
        assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), revision);
    }
    assert!(watch.next().now_or_never().is_none());
}

#[tokio::test]
async fn credit_is_given_back_as_events_are_consumed_and_not_before() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    let (_, bytes) = changes(101);
    for revision in [101, 102, 103] {
        peer.send(id, changes(revision).0).await;
    }
    nothing_sent(&storage, &mut peer).await;
    assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), 101);
    // Less than half the window.
    nothing_sent(&storage, &mut peer).await;
    assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), 102);
    let credit = ClientMessage::Credit { bytes: 2 * bytes };
    assert_eq!(peer.receive().await, (id, credit));
    watch.next().await.unwrap().unwrap();
    nothing_sent(&storage, &mut peer).await;
}

#[tokio::test]
async fn a_server_far_beyond_the_credit_is_thrown_out() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    let (_, bytes) = changes(101);
    let within = 2 * WINDOW / bytes + 1;
    for revision in 0..=within {
        peer.send(id, changes(101 + revision).0).await;
    }
    let close = peer.closed().await.unwrap();
    assert_eq!(u16::from(close.code), 1002);
    assert!(close.reason.contains("credit"), "{}", close.reason);
    for revision in 0..within {
        let event = watch.next().await.unwrap().unwrap();
        assert_eq!(revision_of(event), 101 + revision);
    }
    let error = watch.next().await.unwrap_err();
    assert!(
        matches!(error, StorageError::PeerMisbehaved { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn marks_come_through_the_watchs_queue_with_their_token() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    for (round, answer_to_probe) in [(1, false), (2, true)] {
        watch.request_progress(70 + round);
        let (probe, message) = peer.receive().await;
        let token = 70 + round;
        let asked = ClientMessage::Probe {
            watch: Some(id),
            token,
        };
        assert_eq!(message, asked);
        peer.send(id, changes(100 + 10 * round).0).await;
        let mark = ServerMessage::Progress {
            revision: Revision(105 + 10 * round),
            token: Some(token),
        };
        // Under the watch's id or the probe's: both are understood.
        peer.send(if answer_to_probe { probe } else { id }, mark)
            .await;
        assert_eq!(
            revision_of(watch.next().await.unwrap().unwrap()),
            100 + 10 * round
        );
        let progress = WatchEvent::Progress {
            position: position(105 + 10 * round),
            token: Some(token),
        };
        assert_eq!(watch.next().await.unwrap(), Some(progress));
        if round == 2 {
            // The client has read all of the above when it answers for credit.
            let (_, bytes) = changes(101);
            let credit = ClientMessage::Credit { bytes: 2 * bytes };
            assert_eq!(peer.receive().await, (id, credit));
        }
    }
}

#[tokio::test]
async fn plain_marks_replace_each_other() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    for revision in 101..200 {
        let revision = Revision(revision);
        peer.send(
            id,
            ServerMessage::Progress {
                revision,
                token: None,
            },
        )
        .await;
    }
    nothing_sent(&storage, &mut peer).await;
    let last = WatchEvent::Progress {
        position: position(199),
        token: None,
    };
    assert_eq!(watch.next().await.unwrap(), Some(last));
    assert!(watch.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_dropped_watch_is_ended_and_late_events_are_harmless() {
    let (storage, mut peer) = connected().await;
    let (watch, id) = watching(&storage, &mut peer).await;
    drop(watch);
    let (unwatch, message) = peer.receive().await;
    assert_eq!(message, ClientMessage::Unwatch { watch: id });
    peer.send(id, changes(101).0).await;
    peer.send(unwatch, ServerMessage::Done).await;
    // Done is an answer, and may have overtaken events.
    peer.send(id, changes(102).0).await;
    nothing_sent(&storage, &mut peer).await;
}

#[tokio::test]
async fn a_watch_given_up_before_its_answer_is_ended_after_it() {
    let (storage, mut peer) = connected().await;
    let (id, _) = tokio::select! {
        _ = storage.watch(KeyRange::all(), WatchOptions::default()) => panic!("answered by nobody"),
        asked = peer.receive() => asked,
    };
    nothing_sent(&storage, &mut peer).await;
    let revision = Revision(100);
    peer.send(id, ServerMessage::Watching { revision }).await;
    let (_, message) = peer.receive().await;
    assert_eq!(message, ClientMessage::Unwatch { watch: id });
}

#[tokio::test]
async fn an_error_ends_the_watch_behind_its_events() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    let denied = StorageError::AccessDenied {
        message: "no more".into(),
    };
    peer.send(id, changes(101).0).await;
    peer.send(id, ServerMessage::Error(denied.clone())).await;
    nothing_sent(&storage, &mut peer).await;
    assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), 101);
    assert_eq!(watch.next().await.unwrap_err(), denied);
    assert_eq!(watch.next().await.unwrap(), None);
    drop(watch);
    nothing_sent(&storage, &mut peer).await;
}

#[tokio::test]
async fn a_lost_connection_ends_watches_behind_their_events() {
    let (storage, mut peer) = connected().await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    peer.send(id, changes(101).0).await;
    nothing_sent(&storage, &mut peer).await;
    drop(peer);
    let mut state = storage.state();
    let closed = |state: &_| matches!(state, storage_client::ConnectionState::Closed { .. });
    state.wait_for(closed).await.unwrap();
    assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), 101);
    let error = watch.next().await.unwrap_err();
    assert!(matches!(error, StorageError::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_watch_keeps_the_connection_open_and_the_last_drop_closes_it() {
    let (storage, mut peer) =
        connect_with(welcome(), |options| options.watch_credit_bytes(WINDOW)).await;
    let (mut watch, id) = watching(&storage, &mut peer).await;
    drop(storage);
    peer.send(id, changes(101).0).await;
    assert_eq!(revision_of(watch.next().await.unwrap().unwrap()), 101);
    drop(watch);
    assert_eq!(u16::from(peer.closed().await.unwrap().code), 1000);
}

#[tokio::test]
async fn a_watcher_that_takes_nothing_holds_nobody_up() {
    let (storage, mut peer) = connect().await;
    let watch = storage.watch(KeyRange::all(), WatchOptions::default());
    let server = async {
        let (id, _) = peer.receive().await;
        let revision = Revision(100);
        peer.send(id, ServerMessage::Watching { revision }).await;
        for revision in 101..2_000 {
            peer.send(id, changes(revision).0).await;
        }
    };
    let (watch, ()) = join(watch, server).await;
    tokio::time::timeout(Duration::from_secs(10), nothing_sent(&storage, &mut peer))
        .await
        .unwrap();
    drop(watch);
}
